"""Calls of a layer: shapes, batches, broadcasting, attributes, dtypes and devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch

from convexlayer import ConvexLayer, DerivativeError, ProblemError, ShapeError, SolverError
from tests.families import SMOOTH, Family, family
from tests.layers.running import EXACT, run, same

# --- batches and broadcasting -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMOOTH)
def test_rows_of_a_batch_equal_single_solves(name: str) -> None:
    case = family(name)
    layer, tensors = case.layer(), case.tensors(3)
    outputs = layer(*case.prepared(tensors))
    whole = torch.autograd.grad(sum(o.sum() for o in outputs), tensors)
    for i in range(3):
        row = tuple(t[i].detach().requires_grad_() for t in tensors)
        single = layer(*case.prepared(row))
        gradients = torch.autograd.grad(sum(o.sum() for o in single), row)
        for o, spec in zip(single, layer.program.outputs, strict=True):
            assert tuple(o.shape) == spec.shape
        same(list(single), [o[i] for o in outputs])
        same(list(gradients), [g[i] for g in whole])


def test_gradients_of_shared_parameters_are_sums_over_the_batch() -> None:
    case = family("quadratic")
    layer = case.layer()
    full, shared = case.tensors(4), case.tensors(seed=3)
    for batched in (0, 2, 4):
        mixed = tuple(full[i] if i == batched else t for i, t in enumerate(shared))
        expanded = tuple(
            t if i == batched else t.detach().expand(4, *t.shape).clone().requires_grad_() for i, t in enumerate(mixed)
        )
        outputs, gradients = run(layer, *mixed)
        expected, per_row = run(layer, *expanded)
        same(outputs, expected)
        same(gradients, [g if i == batched else g.sum(0) for i, g in enumerate(per_row)])


def test_a_batch_of_one_keeps_its_axis() -> None:
    case = family("quadratic")
    layer, tensors = case.layer(), case.tensors(1)
    for output, spec in zip(layer(*tensors), layer.program.outputs, strict=True):
        assert tuple(output.shape) == (1, *spec.shape)


def test_an_empty_batch() -> None:
    case = family("quadratic")
    layer = case.layer()
    tensors = tuple(t[:0].detach().requires_grad_() for t in case.tensors(2))
    outputs, gradients = run(layer, *tensors)
    assert [tuple(o.shape) for o in outputs] == [(0, *spec.shape) for spec in layer.program.outputs]
    assert [tuple(g.shape) for g in gradients] == [tuple(t.shape) for t in tensors]
    shared = case.tensors()[1:]
    _, mixed = run(layer, tensors[0], *shared)
    for gradient in mixed[1:]:
        assert not gradient.any()
    _, report = layer.solve(*tensors)
    assert report.status == ()
    assert report.objective.shape == (0,)


def test_a_problem_without_parameters() -> None:
    x = cp.Variable(3)
    layer = ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - 1)), [x <= [0.5, 2.0, 0.0]]), [], [x])
    (value,) = layer()
    torch.testing.assert_close(value, torch.tensor([0.5, 1.0, 0.0], dtype=torch.float64), **EXACT)
    assert not value.requires_grad


def test_unused_parameters_have_zero_gradients() -> None:
    x, c, unused = cp.Variable(2), cp.Parameter(2), cp.Parameter((2, 3))
    layer = ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - c))), [unused, c], [x])
    tensors = (torch.ones(4, 2, 3, dtype=torch.float64, requires_grad=True), torch.ones(2, requires_grad=True))
    (value,) = layer(*tensors)
    assert value.shape == (4, 2)
    value.sum().backward()
    assert not tensors[0].grad.any()
    torch.testing.assert_close(tensors[1].grad, torch.full((2,), 4.0))


def test_scalar_parameters_and_variables() -> None:
    x, c = cp.Variable(), cp.Parameter()
    layer = ConvexLayer(cp.Problem(cp.Minimize((x - c) ** 2), [x >= 0]), [c], [x])
    single, batch = layer(torch.tensor(2.0))[0], layer(torch.tensor([2.0, -1.0, 3.0]))[0]
    assert single.shape == ()
    torch.testing.assert_close(batch, torch.tensor([2.0, 0.0, 3.0]))


# --- shapes, values and attributes: what is rejected -----------------------------------------------------------


def assert_rejected(
    case: Family, change: Callable[[list[torch.Tensor]], None], error: type[Exception], match: str
) -> None:
    tensors = [t.detach() for t in case.tensors(3)]
    change(tensors)
    with pytest.raises(error, match=match):
        case.layer()(*tensors)


def named() -> Family:
    x, A, b = cp.Variable(2), cp.Parameter((3, 2), name="A"), cp.Parameter(3, name="b")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)))
    return Family(problem, [A, b], [x], lambda rng: [rng.standard_normal((3, 2)), rng.standard_normal(3)])


def put(position: int, value: Any) -> Callable[[list[torch.Tensor]], None]:
    def change(tensors: list[torch.Tensor]) -> None:
        tensors[position] = value

    return change


@pytest.mark.parametrize(
    ("position", "value", "error", "match"),
    [
        (1, torch.zeros(4, 3), ShapeError, r"'b' has batch size 4, but 'A' has 3"),
        (1, torch.zeros(2), ShapeError, r"'b': expected shape \(3,\).*batch axis.*got \(2,\)"),
        (0, torch.zeros(3, 2, 3), ShapeError, r"'A': expected shape \(3, 2\)"),
        (0, torch.zeros(1, 3, 3, 2), ShapeError, r"'A'.*got \(1, 3, 3, 2\)"),
        (1, torch.zeros(3, dtype=torch.int64), ProblemError, r"floating.*torch.int64.*\.double\(\)"),
        (1, torch.zeros(3, dtype=torch.complex128), ProblemError, "floating"),
        (1, np.zeros(3), ProblemError, "torch tensors, got ndarray"),
        (1, torch.tensor([0.0, float("nan"), 0.0]), ProblemError, r"'b' is not finite: entry \[1\] is nan"),
        (1, torch.tensor([[0.0, 1.0, float("inf")]] * 3), ProblemError, r"'b' is not finite: entry \[2\] is inf"),
    ],
)
def test_bad_tensors(position: int, value: Any, error: type[Exception], match: str) -> None:
    assert_rejected(named(), put(position, value), error, match)


def test_a_wrong_number_of_tensors() -> None:
    with pytest.raises(ShapeError, match=r"expected 2 values \(for A, b\), got 1"):
        named().layer()(torch.zeros(3, 2))


@pytest.mark.parametrize(
    ("attributes", "bad", "size"),
    [
        ({"nonneg": True}, [[1.0, 0.0], [0.0, -0.25]], "0.25"),
        ({"nonpos": True}, [[-1.0, 0.0], [0.0, 0.5]], "0.5"),
        ({"pos": True}, [[1.0, 1.0], [0.0, 1.0]], "0"),
        ({"neg": True}, [[-1.0, -1.0], [-1.0, 2.0]], "2"),
        ({"symmetric": True}, [[1.0, 0.5], [0.0, 1.0]], "0.5"),
        ({"PSD": True}, [[1.0, 2.0], [2.0, 1.0]], "1"),
        ({"NSD": True}, [[1.0, 0.0], [0.0, -1.0]], "1"),
        ({"diag": True}, [[1.0, 0.125], [0.0, 1.0]], "0.125"),
        ({"sparsity": ([0, 1], [0, 0])}, [[1.0, 0.0], [1.0, -0.75]], "0.75"),
    ],
)
def test_attribute_errors_state_the_violation(attributes: dict[str, Any], bad: Any, size: str) -> None:
    X, C = cp.Variable((2, 2)), cp.Parameter((2, 2), name="C", **attributes)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(X - C)))
    name = "sparse" if "sparsity" in attributes else next(iter(attributes))
    value = torch.tensor(bad, dtype=torch.float64)
    layer = ConvexLayer(problem, [C], [X])
    for tensor in (value, torch.stack([torch.zeros(2, 2), value]) if name not in ("pos", "neg") else value[None]):
        with pytest.raises(
            ProblemError, match=rf"'C' is declared {name}.*violates that by -?{size}\b.*check_attributes"
        ):
            layer(tensor)
    unchecked = ConvexLayer(problem, [C], [X], check_attributes=False)
    assert unchecked(value)[0].isfinite().all()


def test_rounding_errors_do_not_violate_attributes() -> None:
    case = family("nearest_correlation")
    (C,) = case.prepared(case.tensors())
    C = C.detach().clone()
    C[0, 1] += 1e-9
    assert case.layer()(C)[0].isfinite().all()


def test_bad_arguments() -> None:
    case = named()
    with pytest.raises(ProblemError, match="on_failure must be one of raise, nan, keep"):
        case.layer(on_failure="ignore")
    with pytest.raises(ProblemError, match="on_degenerate must be one of warn, report, raise"):
        case.layer(on_degenerate="ignore")
    with pytest.raises(DerivativeError, match="no derivative mode 'numeric'"):
        case.layer(derivative="numeric")
    with pytest.raises(SolverError, match="no solver 'simplex'"):
        case.layer(solver="simplex")
    with pytest.raises(SolverError, match="unknown option 'tolerance'"):
        case.layer()(*case.tensors(), options={"tolerance": 1e-3})


# --- dtypes -------------------------------------------------------------------------------------------------


def test_float32_inputs_are_solved_in_float64_and_return_float32() -> None:
    case = family("quadratic")
    layer = case.layer()
    wide = case.tensors(2)
    narrow = tuple(t.detach().float().requires_grad_() for t in wide)
    outputs, gradients = run(layer, *narrow)
    assert {o.dtype for o in outputs} == {g.dtype for g in gradients} == {torch.float32}
    expected, exact = run(layer, *(t.detach().double().requires_grad_() for t in narrow))
    for a, b in zip([*outputs, *gradients], [*expected, *exact], strict=True):
        torch.testing.assert_close(a, b.float(), rtol=0.0, atol=1e-6)


def test_mixed_dtypes_promote_and_gradients_keep_their_own() -> None:
    case = family("quadratic")
    tensors = list(case.tensors(2))
    tensors[1] = tensors[1].detach().float().requires_grad_()
    tensors[3] = tensors[3].detach().half().requires_grad_()
    outputs, gradients = run(case.layer(), *tensors)
    assert {o.dtype for o in outputs} == {torch.float64}
    assert [g.dtype for g in gradients] == [t.dtype for t in tensors]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_outputs_are_on_the_device_of_the_inputs() -> None:
    case = family("quadratic")
    layer, tensors = case.layer(), case.tensors(2)
    moved = tuple(t.detach().cuda().requires_grad_() for t in tensors)
    (outputs, gradients), (expected, exact) = run(layer, *moved), run(layer, *tensors)
    assert {t.device.type for t in [*outputs, *gradients]} == {"cuda"}
    same([t.cpu() for t in [*outputs, *gradients]], [*expected, *exact])


def test_tensors_on_several_devices_are_rejected() -> None:
    tensors = list(named().tensors())
    tensors[1] = tensors[1].detach().to("meta")
    with pytest.raises(ProblemError, match="on one device, got cpu, meta"):
        named().layer()(*tensors)


def test_noncontiguous_tensors() -> None:
    case = family("least_squares")
    A, b = case.tensors()
    transposed = A.detach().T.contiguous().T.requires_grad_()
    assert not transposed.is_contiguous()
    same(*(run(case.layer(), a, b)[1] for a in (A, transposed)))


def test_outputs_may_be_modified_in_place() -> None:
    """In-place changes of an output do not affect the derivative."""
    case = family("geometric_program")
    layer, tensors = case.layer(), case.tensors(2)
    expected = torch.autograd.grad(sum(o.sum() for o in layer(*tensors)), tensors)
    outputs = layer(*tensors)
    loss = sum(o.sum() for o in outputs)
    for output in outputs:
        output.detach().mul_(3.0)
    same(list(torch.autograd.grad(loss, tensors)), list(expected))


def test_attributes_are_checked_element_by_element() -> None:
    """A wrong sign in a small element is detected beside a large element."""
    x, weight = cp.Variable(2), cp.Parameter(nonneg=True)
    layer = ConvexLayer(cp.Problem(cp.Minimize(weight * cp.sum_squares(x - 1)), [x >= -1, x <= 3]), [weight], [x])
    with pytest.raises(ProblemError, match=r"declared nonneg, but the value violates that by 0\.9"):
        layer(torch.tensor([1e6, -0.9], dtype=torch.float64))
    P = cp.Parameter((2, 2), PSD=True)
    layer = ConvexLayer(cp.Problem(cp.Minimize(cp.quad_form(x, P)), [x >= -1, x <= 3]), [P], [x])
    with pytest.raises(ProblemError, match="declared PSD"):
        layer(torch.stack([1e6 * torch.eye(2), -0.9 * torch.eye(2)]).double())


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(3, dtype=torch.complex128), "take .real"),
        (torch.ones(3).to_sparse(), "dense tensors"),
        (torch.ones(3, device="meta"), "dense tensors"),
    ],
)
def test_sparse_and_meta_tensors_are_rejected(tensor: torch.Tensor, message: str) -> None:
    x, c = cp.Variable(3), cp.Parameter(3)
    layer = ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - c))), [c], [x])
    with pytest.raises(ProblemError, match=message):
        layer(tensor)
