"""State of a layer: threads, copies, the user's problem, memory, warm starts, options."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch

from convexlayer import ConvexLayer, ShapeError, SolutionMap, Status
from tests.families import family
from tests.layers.running import run, same


@pytest.mark.parametrize("name", ["quadratic", "sdp_relaxation", "geometric_program"])
def test_eight_threads_agree_with_one(name: str) -> None:
    case = family(name)
    layer = case.layer()
    inputs = [case.tensors(1 + i % 3, seed=i) for i in range(8)]

    def work(tensors: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        leaves = tuple(t.detach().requires_grad_() for t in tensors)
        outputs = layer(*case.prepared(leaves))
        return [*outputs, *torch.autograd.grad(sum(o.sum() for o in outputs), leaves)]

    serial = [work(tensors) for tensors in inputs]
    with ThreadPoolExecutor(8) as threads:
        parallel = list(threads.map(work, inputs))
    for left, right in zip(serial, parallel, strict=True):
        for a, b in zip(left, right, strict=True):
            torch.testing.assert_close(a, b, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
@pytest.mark.parametrize("used", [False, True])
def test_copies(copied: Callable[[ConvexLayer], ConvexLayer], used: bool) -> None:
    """Copies before and after a forward and backward pass."""
    case = family("nearest_correlation")
    layer = case.layer(solver="scs", options={"tol": 1e-7}, on_failure="nan", on_degenerate="raise")
    tensors = tuple(t.detach().requires_grad_() for t in case.prepared(case.tensors(2)))
    if used:
        run(layer, *tensors)
    twin = copied(layer)
    assert repr(twin) == repr(layer)
    assert isinstance(twin.solution_map, SolutionMap)
    assert isinstance(layer.solution_map, SolutionMap)
    assert twin.solution_map.options == layer.solution_map.options
    for a, b in zip(run(layer, *tensors), run(twin, *tensors), strict=True):
        same(a, b)


def test_a_layer_in_a_module() -> None:
    """The layer has no torch parameters, and can be moved and converted with its parent module."""
    case = family("simplex_projection")
    linear = torch.nn.Linear(3, 5)
    model = torch.nn.Sequential(linear, case.layer()).float()
    assert len(list(model.parameters())) == 2
    assert list(model.state_dict()) == ["0.weight", "0.bias"]
    model(torch.ones(4, 3))[0].square().sum().backward()
    assert linear.weight.grad.isfinite().all()
    assert "n=5, m=6 (n=10, m=11 before presolve), solver=" in repr(model)


def test_the_users_problem_is_untouched() -> None:
    x, c, P = cp.Variable(2, name="x"), cp.Parameter(2, name="c"), cp.Parameter((2, 2), PSD=True)
    constraint = cp.sum(x) == 1
    problem = cp.Problem(cp.Minimize(cp.quad_form(x, P) + c @ x), [constraint])
    c.value, P.value = np.array([1.0, 2.0]), np.eye(2)
    problem.solve(solver=cp.CLARABEL)
    before = x.value.copy(), constraint.dual_value, problem.value
    cached, stats = problem._cache, problem.solver_stats
    entries = dict(vars(cached))
    layer = ConvexLayer(problem, [c, P], [x, constraint.dual_variables[0]])
    tensors = torch.zeros(2, dtype=torch.float64, requires_grad=True), 2 * torch.eye(2, dtype=torch.float64)
    layer(*tensors)[0].sum().backward()
    np.testing.assert_array_equal(c.value, [1.0, 2.0])
    np.testing.assert_array_equal(P.value, np.eye(2))
    np.testing.assert_array_equal(x.value, before[0])
    assert constraint.dual_value == before[1]
    assert problem.value == before[2]
    assert problem._cache is cached
    assert problem.solver_stats is stats
    assert all(vars(cached)[key] is value for key, value in entries.items())


def test_a_problem_without_values_stays_without_values() -> None:
    x, c = cp.Variable(2), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [x >= 0])
    ConvexLayer(problem, [c], [x])(torch.ones(2))
    assert c.value is None
    assert x.value is None
    assert problem.value is None


def test_factors_are_freed_after_a_step() -> None:
    """Factors are freed with their autograd graph, without the garbage collector."""
    case = family("quadratic")
    layer, kept = case.layer(), []
    solve = SolutionMap.solve

    def watched(self: SolutionMap, *args: Any, **keywords: Any) -> Any:
        solved = solve(self, *args, **keywords)
        kept.append(weakref.ref(solved))
        return solved

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SolutionMap, "solve", watched)
        gc.collect()
        gc.disable()
        try:
            tensors = case.tensors(2)
            outputs = layer(*tensors)
            outputs[0].sum().backward()
            del outputs, tensors
            assert [reference() for reference in kept] == [None]
        finally:
            gc.enable()


# --- warm starts and options --------------------------------------------------------------------------------


def test_warm_start() -> None:
    """SCS needs fewer iterations with the report of an earlier call as warm start, with the same result."""
    case = family("nearest_correlation")
    layer = case.layer(solver="scs")
    tensors = case.prepared(case.tensors(3))
    outputs, cold = layer.solve(*tensors)
    near = tuple(t + 1e-6 for t in tensors)
    warm_outputs, warm = layer.solve(*near, warm_start=cold)
    _, fresh = layer.solve(*near)
    assert np.all(warm.iterations < fresh.iterations)
    for cold_output, warm_output in zip(layer(*near), warm_outputs, strict=True):
        torch.testing.assert_close(cold_output, warm_output, rtol=0, atol=1e-8)  # both within the solver's accuracy
    assert layer(*near, warm_start=cold)[0].shape == outputs[0].shape


@pytest.mark.parametrize("batch", [2, 4, None])
def test_a_warm_start_of_another_batch_size_is_reported_as_a_cold_start(batch: int | None) -> None:
    """For instance the last batch of a data loader, which is smaller."""
    case = family("nearest_correlation")
    layer = case.layer(solver="scs")
    _, report = layer.solve(*case.prepared(case.tensors(3)))
    tensors = case.prepared(case.tensors(batch))
    outputs, cold = layer.solve(*tensors, warm_start=report)
    assert cold.cold_start == f"the warm start has 3 elements, this batch {batch or 1}"
    expected, fresh = layer.solve(*tensors)
    assert fresh.cold_start is None
    assert layer.solve(*tensors, warm_start=fresh)[1].cold_start is None
    np.testing.assert_array_equal(cold.iterations, fresh.iterations)
    for ours, theirs in zip(outputs, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.0, atol=0.0)


def test_a_solver_without_warm_starts_reports_a_cold_start() -> None:
    case = family("nearest_correlation")
    layer = case.layer(solver="clarabel")
    tensors = case.prepared(case.tensors(3))
    _, report = layer.solve(*tensors)
    _, again = layer.solve(*tensors, warm_start=report)
    assert again.cold_start == "solver 'clarabel' cannot start from a given point"


def test_warm_starts_must_come_from_the_same_problem() -> None:
    case, other = family("nearest_correlation"), family("quadratic")
    _, report = other.layer().solve(*other.tensors(2))
    with pytest.raises(ShapeError, match="warm_start"):
        case.layer(solver="scs").solve(*case.prepared(case.tensors(2)), warm_start=report)


def test_options_of_the_layer_and_of_the_call() -> None:
    case = family("nearest_correlation")
    tensors = case.prepared(case.tensors(2))
    layer = case.layer(solver="scs", options={"tol": 1e-3, "polish": False})
    loose = layer.solve(*tensors)[1]
    fine = layer.solve(*tensors, options={"tol": 1e-9})[1]
    assert np.all(fine.iterations > loose.iterations)
    assert fine.residuals.worst.max() < 1e-7 < loose.residuals.worst.max()
    stopped = case.layer(on_failure="nan").solve(*tensors, options={"max_iter": 1, "polish": False})[1]
    assert stopped.status == (Status.ITERATION_LIMIT,) * 2


def test_polish_reaches_double_precision() -> None:
    case = family("sdp_relaxation")
    tensors = case.prepared(case.tensors(3))
    layer = case.layer(solver="scs", options={"tol": 1e-3})
    assert layer.solve(*tensors)[1].residuals.worst.max() < 1e-9
    assert layer.solve(*tensors, options={"polish": False})[1].residuals.worst.max() > 1e-7
