"""A ConvexLayer over a RemoteSolutionMap gives the solutions and derivatives of a local one."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch

from convexlayer import (
    ConvexLayer,
    DerivativeError,
    FailedElementsError,
    InvalidElementsError,
    ProblemError,
    ShapeError,
    UnsupportedError,
)
from convexlayer_client import Client, InvalidError, NotFoundError, Options, RemoteSolutionMap
from convexlayer_client import ShapeError as ClientShapeError
from tests.client.layers import TOLERANCE, local, remote
from tests.families import Family, family

NAMES = ("least_norm", "portfolio", "nearest_correlation", "entropy_maximisation", "geometric_program")
"""Families on which the remote layer is compared with the local one."""

FORWARD_MODE = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated"
)  # raised inside torch by the first jvp


def solution_map_of(layer: ConvexLayer) -> RemoteSolutionMap:
    assert isinstance(layer.solution_map, RemoteSolutionMap)
    return layer.solution_map


def gradients(layer: Any, tensors: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Compute outputs, and gradients for fixed random cotangents of the outputs and the objective."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    outputs, report = layer.solve(*leaves)
    everything = [*outputs, report.objective]
    generator = torch.Generator().manual_seed(5)
    loss = sum(
        (output * torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.dtype)).sum()
        for output in everything
    )
    return everything, list(torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batching", ["single", "batched", "shared"])
def test_solutions_and_gradients_equal_those_of_the_local_layer(name: str, batching: str, client: Client) -> None:
    case = family(name)
    count = len(case.parameters)
    flags = {"single": (False,) * count, "batched": (True,) * count, "shared": (*(False,) * (count - 1), True)}[
        batching
    ]
    tensors = case.tensors(3, seed=3, batched=flags)
    theirs, their_gradients = gradients(local(case), tensors)
    ours, our_gradients = gradients(remote(case, client), tensors)
    for left, right in zip(ours + our_gradients, theirs + their_gradients, strict=True):
        assert left.shape == right.shape
        torch.testing.assert_close(left, right, **TOLERANCE)
    assert max(gradient.abs().max().item() for gradient in our_gradients) > 1e-3


@FORWARD_MODE
@pytest.mark.parametrize("name", NAMES)
def test_tangents_equal_those_of_the_local_layer(name: str, client: Client) -> None:
    case = family(name)
    tensors = [tensor.detach() for tensor in case.tensors(3, seed=4)]
    tangents = [tensor.detach() * 0.1 for tensor in case.tensors(3, seed=9)]
    results = [torch.func.jvp(layer, tuple(tensors), tuple(tangents)) for layer in (remote(case, client), local(case))]
    for ours, theirs in zip(*((*result[0], *result[1]) for result in results), strict=True):
        torch.testing.assert_close(ours, theirs, **TOLERANCE)


def test_torch_func_grad(client: Client) -> None:
    case = family("least_norm")
    tensors = [tensor.detach() for tensor in case.tensors(seed=5)]

    def loss(layer: Any) -> Any:
        return torch.func.grad(lambda *theta: layer(*theta)[0].square().sum(), argnums=(0, 1, 2))(*tensors)

    for ours, theirs in zip(loss(remote(case, client)), loss(local(case)), strict=True):
        torch.testing.assert_close(ours, theirs, **TOLERANCE)


def test_second_derivatives_are_rejected(client: Client) -> None:
    leaf = A.clone().requires_grad_()
    (solution,) = remote(box(), client)(leaf, BUDGETS[:1])
    (gradient,) = torch.autograd.grad(solution.square().sum(), leaf, create_graph=True)
    with pytest.raises(DerivativeError, match="cannot be differentiated again"):
        gradient.sum().backward()


@FORWARD_MODE
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("nested", ["reverse", "forward", "mixed"])
def test_nested_transforms_are_rejected(nested: str, power: int, client: Client) -> None:
    """For a linear loss the cotangent does not depend on the parameters, but the derivative does."""
    layer, one = remote(box(), client), torch.ones_like(A)

    def loss(leaf: torch.Tensor) -> torch.Tensor:
        return layer(leaf, BUDGETS[:1])[0].pow(power).sum()

    def reverse(function: Any) -> Any:
        return lambda leaf: torch.func.grad(function)(leaf).sum()

    def forward(function: Any) -> Any:
        return lambda leaf: torch.func.jvp(function, (leaf,), (one,))[1]

    inner, outer = {"reverse": (reverse, reverse), "forward": (forward, forward), "mixed": (reverse, forward)}[nested]
    with pytest.raises(DerivativeError, match="cannot be differentiated again"):
        outer(inner(loss))(A)


@FORWARD_MODE
def test_gradcheck_in_forward_and_reverse_mode(client: Client) -> None:
    case = family("least_norm")
    layer = remote(case, client)
    tensors = case.tensors(2, seed=6, batched=(False, True, False))
    assert torch.autograd.gradcheck(layer, tensors, atol=1e-5, rtol=1e-4, check_forward_ad=True)


@pytest.mark.parametrize("dtypes", [(torch.float32,) * 3, (torch.float32, torch.float64, torch.float32)])
def test_dtypes_are_kept(dtypes: tuple[torch.dtype, ...], client: Client) -> None:
    case = family("least_norm")
    tensors = [tensor.detach().to(dtype) for tensor, dtype in zip(case.tensors(seed=2), dtypes, strict=True)]
    ours, our_gradients = gradients(remote(case, client), tensors)
    theirs, their_gradients = gradients(local(case), tensors)
    assert [output.dtype for output in ours] == [output.dtype for output in theirs]
    assert [gradient.dtype for gradient in our_gradients] == list(dtypes)
    for left, right in zip(ours + our_gradients, theirs + their_gradients, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-6)


def box(lower: float = 0.0) -> Family:
    """Projection of a to x >= 0, sum(x) <= budget: infeasible for a negative budget."""
    x = cp.Variable(3, name="x")
    a, budget = cp.Parameter(3, name="a"), cp.Parameter(name="budget")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - a)), [x >= lower, cp.sum(x) <= budget])
    return Family(problem, [a, budget], [x], lambda rng: [rng.random(3), 0.5])


A = torch.tensor([0.5, 0.7, -0.9], dtype=torch.float64)
BUDGETS = torch.tensor([0.6, -1.0, 0.9], dtype=torch.float64)


def test_the_error_of_failed_elements_has_the_other_solutions(client: Client) -> None:
    with pytest.raises(FailedElementsError, match=r"1 \(infeasible\)") as caught:
        remote(box(), client)(A, BUDGETS)
    assert caught.value.indices == (1,)
    assert caught.value.report.status == ("optimal", "infeasible", "optimal")
    (solution,) = caught.value.outputs
    assert solution[1].isnan().all()
    torch.testing.assert_close(solution[[0, 2]], local(box())(A, BUDGETS[[0, 2]])[0], **TOLERANCE)


def test_failed_elements_do_not_change_other_gradients(client: Client) -> None:
    def grads(layer: Any, budgets: torch.Tensor) -> list[torch.Tensor]:
        leaves = [A.clone().requires_grad_(), budgets.clone().requires_grad_()]
        (solution,) = layer(*leaves)
        return list(torch.autograd.grad((solution**2).sum(), leaves))  # NaN cotangents of the failed element

    shared, own = grads(remote(box(), client, on_failure="nan"), BUDGETS)
    good_shared, good_own = grads(local(box()), BUDGETS[[0, 2]])
    torch.testing.assert_close(shared, good_shared, **TOLERANCE)
    torch.testing.assert_close(own[[0, 2]], good_own, **TOLERANCE)
    assert own[1] == 0


def test_a_failed_single_solve_is_nan_with_zero_gradient(client: Client) -> None:
    leaves = [A.clone().requires_grad_(), torch.tensor(-1.0, dtype=torch.float64)]
    (solution,) = remote(box(), client, on_failure="nan")(*leaves)
    assert solution.shape == (3,)
    assert solution.isnan().all()
    (gradient,) = torch.autograd.grad(solution.sum(), leaves[:1])
    assert torch.equal(gradient, torch.zeros(3, dtype=torch.float64))


def test_a_deleted_problem_is_registered_again(client: Client) -> None:
    layer = remote(box(lower=-0.25), client)
    leaf = A.clone().requires_grad_()
    problem_id = solution_map_of(layer).problem_id
    client.delete(problem_id)
    with pytest.raises(NotFoundError):
        client.get(problem_id)
    (solution,) = layer(leaf, BUDGETS[:1])
    client.delete(problem_id)
    solution.sum().backward()
    assert leaf.grad is not None
    assert client.get(problem_id).id == problem_id


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(3,)], r"expected 2 values \(for a, budget\), got 1"),
        ([(4,), ()], r"parameter 'a': expected shape [\[(]3"),
        ([(2, 2, 3), ()], r"parameter 'a'"),
        ([(2, 3), (3,)], r"batch size"),
    ],
)
def test_shapes_are_checked(shapes: list[tuple[int, ...]], message: str, client: Client) -> None:
    layer = remote(box(), client)
    with pytest.raises(ShapeError, match=message):
        layer(*(torch.ones(shape, dtype=torch.float64) for shape in shapes))
    with pytest.raises(ClientShapeError, match=message):
        layer.solution_map.solve([np.ones(shape) for shape in shapes])


def test_integers_are_rejected(client: Client) -> None:
    with pytest.raises(ProblemError, match=r"expected floating-point tensors, got torch.int64"):
        remote(box(), client)(torch.ones(3, dtype=torch.int64), BUDGETS)


def test_parameters_that_are_not_finite_are_rejected_by_the_server(client: Client) -> None:
    with pytest.raises(InvalidError) as caught:
        remote(box(), client)(A * np.nan, BUDGETS[:1])
    assert caught.value.errors[0].pointer == "/parameters/a"


def test_degenerate_derivatives_are_reported(client: Client) -> None:
    kink = torch.zeros(3, dtype=torch.float64, requires_grad=True)  # x >= 0 is weakly active at a = 0
    budget = torch.tensor(1.0, dtype=torch.float64)
    layer = remote(box(), client)
    with pytest.warns(UserWarning, match="may not exist"):
        layer(kink, budget)[0].sum().backward()
    with warnings.catch_warnings(action="error"):  # one warning per layer
        layer(kink, budget)[0].sum().backward()
    with pytest.raises(DerivativeError, match="may not exist"):
        remote(box(), client, on_degenerate="raise")(kink, budget)[0].sum().backward()
    (solution,), report = remote(box(), client, on_degenerate="report").solve(kink, budget)
    solution.sum().backward()
    assert report.derivative is not None
    assert report.derivative.status == ("degenerate",)


def test_options_and_solver_reach_the_server(client: Client) -> None:
    case = family("least_norm")
    tensors = case.tensors(seed=1)
    _, report = remote(case, client, solver="scs", options=Options(tol=1e-4)).solve(*tensors, options={"tol": 1e-6})
    assert report.result.meta["solver"] == "scs"
    with pytest.raises(InvalidError):
        remote(case, client, solver="no such solver")(*tensors)
    layer = remote(case, client, solver="clarabel", on_failure="nan", options=Options(max_iter=2))
    iterations = [layer.solve(*tensors, options=changes)[1].result.iterations for changes in (None, {"max_iter": 1})]
    assert iterations == [2, 1]


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"url": "http://x", "state": "?"},
        {"url": "http://x", "client": Client("http://x")},
        {"api_key": "k", "client": Client("http://x")},
    ],
)
def test_arguments_are_checked(keywords: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONVEXLAYER_URL", raising=False)
    case = box()
    with pytest.raises(ValueError, match=r"the URL of a server|url or client|state must be"):
        RemoteSolutionMap(case.problem, case.parameters, case.outputs, **keywords)


def test_policies_are_checked(client: Client) -> None:
    with pytest.raises(ProblemError, match="on_failure must be one of"):
        remote(box(), client, on_failure="?")
    with pytest.raises(ProblemError, match="on_degenerate must be one of"):
        remote(box(), client, on_degenerate="?")
    with pytest.raises(UnsupportedError, match=r"needs the solver's last iterates, which problem p_.* on http"):
        remote(box(), client, on_failure="keep")
    with pytest.raises(UnsupportedError, match="no canonicalised problem in this process"):
        _ = remote(box(), client).program


def test_a_problem_outside_the_grammar_is_sent_as_a_cone_program(client: Client) -> None:
    S, C = cp.Variable((3, 3), PSD=True, name="S"), cp.Parameter((3, 3), symmetric=True, name="C")
    objective = cp.Maximize(cp.von_neumann_entr(S) + cp.trace(C @ S))
    case = Family(cp.Problem(objective, [cp.trace(S) == 1]), [C], [S], lambda rng: [np.diag(rng.standard_normal(3))])
    layer = remote(case, client)
    assert client.get(solution_map_of(layer).problem_id).details["kind"] == "cone_program"
    tensors = case.tensors(3, seed=8)
    for left, right in zip(gradients(layer, tensors), gradients(local(case), tensors), strict=True):
        for ours, theirs in zip(left, right, strict=True):
            torch.testing.assert_close(ours, theirs, **TOLERANCE)


def test_a_variable_may_be_returned_twice(client: Client) -> None:
    case = box()
    (x,) = case.outputs
    layer = remote(replace(case, outputs=[x, x]), client)
    leaves = [A.clone().requires_grad_() for _ in range(2)]
    (once,) = remote(case, client)(leaves[0], BUDGETS[0])
    first, second = layer(leaves[1], BUDGETS[0])
    once.square().sum().backward()
    (first * second).sum().backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, **TOLERANCE)


def test_threads_may_share_a_layer(client: Client) -> None:
    layer, reference = remote(box(), client), local(box())

    def gradient(factor: float, layer: Any = layer) -> torch.Tensor:
        leaf = (factor * A).requires_grad_()
        layer(leaf, BUDGETS[:1])[0].square().sum().backward()
        return leaf.grad

    factors = [0.8 + 0.1 * i for i in range(12)]
    with ThreadPoolExecutor(4) as pool:
        for factor, ours in zip(factors, pool.map(gradient, factors), strict=True):
            torch.testing.assert_close(ours, gradient(factor, reference), **TOLERANCE)


def test_copies_share_the_connection(client: Client) -> None:
    layer = remote(box(), client)
    torch.testing.assert_close(copy.deepcopy(layer)(A, BUDGETS[:1]), layer(A, BUDGETS[:1]))
    assert solution_map_of(layer).problem_id in repr(layer)


def test_invalid_elements_do_not_affect_others(client: Client) -> None:
    """Status, outputs, gradients and messages equal those of the local layer."""
    case = box()
    budgets = torch.tensor([1.0, float("nan"), 0.5], dtype=torch.float64)
    results = []
    for layer in (remote(case, client, on_failure="nan"), local(case, on_failure="nan")):
        leaves = [A.clone().requires_grad_(), budgets.clone().requires_grad_()]
        (out,), report = layer.solve(*leaves)
        results.append((out, *torch.autograd.grad(out.nansum(), leaves)))
        assert list(map(str, report.status)) == ["optimal", "invalid", "optimal"]
        assert list(report.details) == [1]
        assert "is not finite: it is nan" in report.details[1]
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True, **TOLERANCE)
    with pytest.raises(InvalidElementsError, match=r"1 of 3.*1 \(invalid\).*Element 1: .*not finite") as caught:
        remote(case, client)(A, budgets)
    assert caught.value.indices == (1,)
    assert caught.value.outputs[0][[0, 2]].isfinite().all()
    with pytest.raises(InvalidError, match="not finite"):
        remote(case, client)(A, budgets[1])


@FORWARD_MODE
@pytest.mark.parametrize("batched", [(True, True, True), (False, True, False)], ids=["batched", "shared"])
def test_vmap_and_jacobians_equal_those_of_the_local_layer(batched: tuple[bool, ...], client: Client) -> None:
    """A server sums gradients of parameters without a batch axis; transforms need them for each element."""
    case = family("least_norm")
    tensors = [tensor.detach() for tensor in case.tensors(2, seed=7, batched=batched)]
    dims = tuple(0 if stacked else None for stacked in batched)

    def jacobians(layer: Any) -> list[torch.Tensor]:
        mapped = torch.func.vmap(lambda *theta: layer(*theta)[0], in_dims=dims)(*tensors)
        backward = torch.func.jacrev(lambda *theta: layer(*theta)[0], argnums=(0, 1, 2))(*tensors)
        forward = torch.func.jacfwd(lambda b: layer(*tensors[:2], b)[0])(tensors[2])
        each = torch.func.vmap(
            torch.func.grad(lambda *theta: layer(*theta)[0].square().sum(), argnums=(0, 1)), in_dims=dims
        )(*tensors)
        return [mapped, *backward, forward, *each]

    for ours, theirs in zip(jacobians(remote(case, client)), jacobians(local(case)), strict=True):
        torch.testing.assert_close(ours, theirs, **TOLERANCE)
