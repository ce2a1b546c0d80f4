"""Failed elements do not affect the others: a batch of 64 with five infeasible and three unbounded elements."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch

from convexlayer import ConvexLayer, FailedElementsError, Report, SolutionMap, Status, canonicalize

BATCH = 64
INFEASIBLE = (3, 17, 18, 40, 63)
UNBOUNDED = (0, 31, 52)
BAD = tuple(sorted(INFEASIBLE + UNBOUNDED))
GOOD = tuple(i for i in range(BATCH) if i not in BAD)

x = cp.Variable(4, name="x")
q, width, weight = cp.Parameter(4, name="q"), cp.Parameter(name="width"), cp.Parameter(2, nonneg=True, name="weight")
G = np.random.default_rng(0).standard_normal((3, 4)) * [1.0, 1.0, 1.0, 0.0] - [0.0, 0.0, 0.0, 0.5]
BELOW, BOX = G @ x <= 1, cp.abs(x[:2]) <= width
PROBLEM = cp.Problem(
    cp.Minimize(cp.sum_squares(x[:2]) + weight @ cp.square(x[2:]) + q @ x), [BELOW, BOX, x[3] >= 0, x[2] >= -1]
)
"""Infeasible for a negative width; unbounded in x[3] for a zero weight."""


def inputs() -> list[torch.Tensor]:
    rng = np.random.default_rng(1)
    values = [rng.standard_normal((BATCH, 4)), rng.uniform(0.2, 1.0, BATCH), rng.uniform(0.5, 1.5, (BATCH, 2))]
    values[1][list(INFEASIBLE)] = -1.0
    values[0][list(UNBOUNDED)] = [0.3, -0.2, 0.1, -1.0]
    values[2][list(UNBOUNDED)] = 0.0
    return [torch.tensor(value, requires_grad=True) for value in values]


def layer(**keywords: Any) -> ConvexLayer:
    return ConvexLayer(PROBLEM, [q, width, weight], [x, BELOW.dual_variables[0]], on_degenerate="report", **keywords)


def solve(on_failure: str, tensors: list[torch.Tensor], **keywords: Any) -> tuple[tuple[torch.Tensor, ...], Report]:
    """Outputs and report, taken from the exception if the layer raises."""
    made = layer(on_failure=on_failure, **keywords)
    if on_failure != "raise":
        return made.solve(*tensors)
    with pytest.raises(FailedElementsError, match=r"8 of 64 elements.*0 \(unbounded\), 3 \(infeasible\)") as caught:
        made(*tensors)
    assert caught.value.indices == BAD
    return caught.value.outputs, caught.value.report


@pytest.fixture(scope="module")
def alone() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The 56 good elements on their own: outputs and gradients of the loss below."""
    tensors = [t.detach()[list(GOOD)].requires_grad_() for t in inputs()]
    outputs, report = layer().solve(*tensors)
    assert report.failed == ()
    gradients = torch.autograd.grad(loss(outputs, slice(None)), tensors)
    return [o.detach().numpy() for o in outputs], [g.numpy() for g in gradients]


def loss(outputs: tuple[torch.Tensor, ...], rows: Any) -> torch.Tensor:
    return torch.stack([((o[rows] - 0.3) ** 3).sum() for o in outputs]).sum()


MODES = pytest.mark.parametrize("on_failure", ["raise", "nan", "keep"])


@MODES
def test_statuses(on_failure: str) -> None:
    _, report = solve(on_failure, inputs())
    expected = dict.fromkeys(INFEASIBLE, Status.INFEASIBLE) | dict.fromkeys(UNBOUNDED, Status.UNBOUNDED)
    assert report.status == tuple(expected.get(i, Status.OPTIMAL) for i in range(BATCH))
    assert report.failed == BAD
    assert isinstance(report.objective, torch.Tensor)
    assert report.objective.isnan().nonzero().ravel().tolist() == list(BAD)


@MODES
def test_outputs_of_the_other_elements_are_correct(on_failure: str, alone: Any) -> None:
    outputs, _ = solve(on_failure, inputs())
    for output, expected in zip(outputs, alone[0], strict=True):
        np.testing.assert_array_equal(output.detach()[list(GOOD)], expected)
        if on_failure == "keep":
            assert output.shape[0] == BATCH
        else:
            assert output[list(BAD)].isnan().all()


@MODES
def test_gradients_equal_those_of_the_good_elements_alone(on_failure: str, alone: Any) -> None:
    tensors = inputs()
    outputs, _ = solve(on_failure, tensors)
    gradients = torch.autograd.grad(loss(outputs, list(GOOD)), tensors)
    for gradient, expected in zip(gradients, alone[1], strict=True):
        np.testing.assert_allclose(gradient[list(GOOD)], expected, rtol=1e-12, atol=1e-12)
        assert not gradient[list(BAD)].any()


@MODES
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e300])
def test_cotangents_of_failed_rows_are_ignored(on_failure: str, poison: float, alone: Any) -> None:
    tensors = inputs()
    outputs, report = solve(on_failure, tensors)
    cotangents = []
    for output in outputs:
        cotangent = 3 * (output.detach() - 0.3) ** 2
        cotangent[list(BAD)] = poison
        cotangents.append(cotangent)
    at_objective = torch.zeros(BATCH, dtype=torch.float64)
    at_objective[list(BAD)] = poison
    assert isinstance(report.objective, torch.Tensor)
    gradients = torch.autograd.grad([*outputs, report.objective], tensors, [*cotangents, at_objective])
    for gradient, expected in zip(gradients, alone[1], strict=True):
        np.testing.assert_allclose(gradient[list(GOOD)], expected, rtol=1e-12, atol=1e-12)
        assert not gradient[list(BAD)].any()


def test_a_loss_over_all_rows_in_nan_mode(alone: Any) -> None:
    """The plain nansum of a training loop."""
    tensors = inputs()
    outputs, _ = solve("nan", tensors)
    total = torch.stack([torch.where(o.isnan(), 0.0, (o - 0.3) ** 3).sum() for o in outputs]).sum()
    for gradient, expected in zip(torch.autograd.grad(total, tensors), alone[1], strict=True):
        np.testing.assert_allclose(gradient[list(GOOD)], expected, rtol=1e-12, atol=1e-12)


@MODES
def test_a_shared_parameter_sums_over_the_good_elements(on_failure: str) -> None:
    tensors = inputs()
    shared = torch.full((2,), 0.8, dtype=torch.float64, requires_grad=True)
    made = layer(on_failure="nan" if on_failure == "raise" else on_failure)
    rows = [i for i in range(BATCH) if i not in INFEASIBLE]  # with a positive weight no element is unbounded
    outputs, report = made.solve(tensors[0], tensors[1], shared)
    assert report.failed == INFEASIBLE
    (whole,) = torch.autograd.grad(loss(outputs, rows), [shared])
    part, _ = made.solve(tensors[0][rows], tensors[1][rows], shared)
    (expected,) = torch.autograd.grad(loss(part, slice(None)), [shared])
    torch.testing.assert_close(whole, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by torch, at the first jvp
def test_tangents_of_failed_rows_are_nan() -> None:
    tensors = tuple(t.detach() for t in inputs())
    directions = tuple(torch.ones_like(t) for t in tensors)
    moved = torch.func.jvp(layer(on_failure="nan"), tensors, directions)[1]
    good = tuple(t[list(GOOD)] for t in tensors)
    expected = torch.func.jvp(layer(), good, tuple(torch.ones_like(t) for t in good))[1]
    for tangent, reference in zip(moved, expected, strict=True):
        assert tangent[list(BAD)].isnan().all()
        torch.testing.assert_close(tangent[list(GOOD)], reference, rtol=1e-12, atol=1e-12)


def test_one_failed_element_without_a_batch() -> None:
    tensors = [t.detach()[3].requires_grad_() for t in inputs()]
    outputs, report = layer(on_failure="nan").solve(*tensors)
    assert report.status == (Status.INFEASIBLE,)
    assert outputs[0].shape == (4,)
    for gradient in torch.autograd.grad(outputs[0].sum(), tensors):
        assert not gradient.any()
    with pytest.raises(FailedElementsError, match="1 of 1 elements"):
        layer()(*tensors)


@pytest.mark.parametrize("solver", ["scs", "ecos", "highs", "osqp", "piqp"])
def test_other_solvers_find_the_same_failed_elements(solver: str, alone: Any) -> None:
    """Eighteen of the elements suffice, and save time."""
    rows = [*BAD, *GOOD[:10]]
    program = canonicalize(PROBLEM, [q, width, weight], [x], self_check=False)
    values = [t.detach().numpy()[rows] for t in inputs()]
    solved = SolutionMap(program, solver=solver).solve(values)
    assert solved.report.solver == solver
    assert [status.solved for status in solved.report.status] == [False] * 8 + [True] * 10
    assert {solved.report.status[rows.index(i)] for i in INFEASIBLE} == {Status.INFEASIBLE}
    if solver != "highs":  # HiGHS reports unbounded QPs as optimal; the residuals reject that
        assert {solved.report.status[rows.index(i)] for i in UNBOUNDED} == {Status.UNBOUNDED}
    np.testing.assert_allclose(solved.outputs[0][8:], alone[0][0][:10], atol=1e-7)
