"""Invalid values fail their own element only: NaN, infinities, violated attributes, nonconvex objectives."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch

from convexlayer import (
    ConvexLayer,
    FailedElementsError,
    InvalidElementsError,
    ProblemError,
    ShapeError,
    SolutionMap,
    SolverError,
    Status,
    canonicalize,
)
from tests.families import family

D = torch.float64
BATCH = 6
BAD = (1, 4)
GOOD = (0, 2, 3, 5)

x = cp.Variable(3, name="x")
c, w, P = cp.Parameter(3, name="c"), cp.Parameter(nonneg=True, name="w"), cp.Parameter((3, 3), PSD=True, name="P")
BELOW = x <= 1
PROBLEM = cp.Problem(cp.Minimize(cp.quad_form(x, P) - 2 * c @ x + w * cp.norm1(x)), [BELOW])

WRONG: dict[str, tuple[int, Any, str]] = {
    "nan": (0, [0.0, np.nan, 0.0], r"parameter 'c' is not finite: entry \[1\] is nan"),
    "inf": (0, [np.inf, 0.0, 0.0], r"parameter 'c' is not finite: entry \[0\] is inf"),
    "nan in a scalar": (1, np.nan, r"parameter 'w' is not finite: it is nan"),
    "sign": (1, -0.25, r"parameter 'w' is declared nonneg, but the value violates that by 0.25; change the value"),
    "indefinite": (2, np.diag([1.0, -0.5, 1.0]), r"parameter 'P' is declared PSD, but the value violates that by 0.5"),
    "asymmetric": (2, [[1, 1, 0], [0, 1, 0], [0, 0, 1]], r"parameter 'P' is declared PSD, but .* violates that by 1;"),
    "nan in a matrix": (2, np.full((3, 3), np.nan), r"parameter 'P' is not finite: entry \[0, 0\] is nan"),
}
EVERYTHING_WRONG = pytest.mark.parametrize("wrong", WRONG)


def values(wrong: str | None = None) -> list[torch.Tensor]:
    rng = np.random.default_rng(0)
    root = rng.standard_normal((BATCH, 3, 3))
    given = [rng.standard_normal((BATCH, 3)), rng.uniform(0.0, 0.3, BATCH), root @ root.swapaxes(1, 2) + np.eye(3)]
    if wrong is not None:
        position, value, _ = WRONG[wrong]
        given[position][list(BAD)] = value
    return [torch.tensor(value, requires_grad=True) for value in given]


def layer(**keywords: Any) -> ConvexLayer:
    return ConvexLayer(PROBLEM, [c, w, P], [x, BELOW.dual_variables[0]], self_check=False, **keywords)


def alone() -> tuple[tuple[torch.Tensor, ...], list[torch.Tensor]]:
    tensors = [t.detach()[list(GOOD)].requires_grad_() for t in values()]
    outputs = layer()(*tensors)
    return outputs, list(torch.autograd.grad(sum((o**3).sum() for o in outputs), tensors))


@EVERYTHING_WRONG
@pytest.mark.parametrize("on_failure", ["nan", "keep"])
@pytest.mark.parametrize("solver", ["auto", "clarabel", "scs"])
def test_the_other_elements_are_solved_as_if_alone(wrong: str, on_failure: str, solver: str) -> None:
    tensors = values(wrong)
    outputs, report = layer(on_failure=on_failure, solver=solver).solve(*tensors)
    assert report.status == tuple(Status.INVALID if i in BAD else Status.OPTIMAL for i in range(BATCH))
    assert report.failed == BAD
    assert list(report.details) == list(BAD)
    assert np.isinf(report.residuals.worst[list(BAD)]).all()
    assert report.residuals.worst[list(GOOD)].max() < 1e-8
    assert report.objective.isnan().nonzero().ravel().tolist() == list(BAD)
    expected, gradients = alone()
    for ours, theirs in zip(outputs, expected, strict=True):
        assert ours[list(BAD)].isnan().all()
        torch.testing.assert_close(ours[list(GOOD)], theirs, rtol=1e-8, atol=1e-8)
    loss = torch.stack([torch.where(o.isnan(), 0.0, o**3).sum() for o in outputs]).sum()
    for ours, theirs in zip(torch.autograd.grad(loss, tensors), gradients, strict=True):
        assert not ours[list(BAD)].any()
        torch.testing.assert_close(ours[list(GOOD)], theirs, rtol=1e-6, atol=1e-6)


@EVERYTHING_WRONG
def test_the_error_carries_the_other_outputs_and_the_reason(wrong: str) -> None:
    tensors = values(wrong)
    message = rf"2 of 6 elements have no solution: 1 \(invalid\), 4 \(invalid\)\..* Element 1: {WRONG[wrong][2]}"
    with pytest.raises(InvalidElementsError, match=message) as caught:
        layer()(*tensors)
    error = caught.value
    assert isinstance(error, ProblemError)
    assert isinstance(error, FailedElementsError)
    assert error.indices == BAD
    expected, gradients = alone()
    for ours, theirs in zip(error.outputs, expected, strict=True):
        torch.testing.assert_close(ours[list(GOOD)], theirs)
    loss = sum((o[list(GOOD)] ** 3).sum() for o in error.outputs)
    for ours, theirs in zip(torch.autograd.grad(loss, tensors), gradients, strict=True):
        torch.testing.assert_close(ours[list(GOOD)], theirs)


@EVERYTHING_WRONG
def test_an_invalid_element_without_a_batch(wrong: str) -> None:
    tensors = [t.detach()[1].requires_grad_() for t in values(wrong)]
    message = WRONG[wrong][2]
    with pytest.raises(ProblemError, match=f"^{message}"):
        layer()(*tensors)
    outputs, report = layer(on_failure="nan").solve(*tensors)
    assert report.status == (Status.INVALID,)
    assert outputs[0].shape == (3,)
    assert outputs[0].isnan().all()
    for gradient in torch.autograd.grad(outputs[0].sum(), tensors):
        assert not gradient.any()


def test_an_invalid_shared_value_makes_all_elements_invalid() -> None:
    tensors = values()
    tensors[1] = torch.tensor(-1.0, dtype=D, requires_grad=True)
    outputs, report = layer(on_failure="nan").solve(*tensors)
    assert report.status == (Status.INVALID,) * BATCH
    assert set(report.details.values()) == {
        "parameter 'w' is declared nonneg, but the value violates that by 1; change the value (or, in the library, "
        "pass check_attributes=False)"
    }
    for gradient in torch.autograd.grad(outputs[0].nansum(), tensors):
        assert not gradient.any()


def test_several_faults_and_failures_together() -> None:
    """Invalid, infeasible and solved elements in one batch; the first error of an element is reported."""
    low, high = cp.Parameter(), cp.Parameter(nonneg=True, name="high")
    y = cp.Variable()
    problem = cp.Problem(cp.Minimize(cp.square(y)), [y >= low, y <= high])
    lows = torch.tensor([1.0, 2.0, np.nan, 3.0, 0.5], dtype=D, requires_grad=True)
    highs = torch.tensor([2.0, 1.0, -1.0, -2.0, 0.5], dtype=D, requires_grad=True)
    made = ConvexLayer(problem, [low, high], [y], on_failure="nan", on_degenerate="report")
    (out,), report = made.solve(lows, highs)
    assert [str(word) for word in report.status] == ["optimal", "infeasible", "invalid", "invalid", "optimal"]
    assert "not finite" in report.details[2]
    assert "nonneg" in report.details[3]
    torch.testing.assert_close(out.detach()[[0, 4]], torch.tensor([1.0, 0.5], dtype=D))
    with pytest.raises(InvalidElementsError, match=r"3 of 5 elements.*1 \(infeasible\), 2 \(invalid\), 3 \(invalid\)"):
        ConvexLayer(problem, [low, high], [y])(lows, highs)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by torch, at the first jvp
def test_tangents_and_vmap() -> None:
    tensors = tuple(t.detach() for t in values("nan"))
    made = layer(on_failure="nan")
    outputs, moved, *_ = torch.func.jvp(made, tensors, tuple(torch.ones_like(t) for t in tensors))
    for tangent in moved:
        assert tangent[list(BAD)].isnan().all()
        assert tangent[list(GOOD)].isfinite().all()
    mapped = torch.func.vmap(made)(*tensors)
    for ours, theirs in zip(mapped, outputs, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)


def test_substitute_values_cause_no_warnings() -> None:
    """Warnings are errors here, so a logarithm of an invalid substitute would fail."""
    case = family("geometric_program")
    tensors = [t.detach().clone() for t in case.tensors(3)]
    tensors[0][1] = np.nan
    outputs, report = case.layer(on_failure="nan").solve(*tensors)
    assert [word.solved for word in report.status] == [True, False, True]
    expected = case.layer()(*(t[[0, 2]] for t in tensors))
    for ours, theirs in zip(outputs, expected, strict=True):
        torch.testing.assert_close(ours[[0, 2]], theirs)


def test_a_solution_map_returns_statuses() -> None:
    made = SolutionMap(canonicalize(PROBLEM, [c, w, P], [x], self_check=False))
    theta = [t.detach().numpy() for t in values("sign")]
    solved = made.solve(theta)
    assert solved.report.failed == BAD
    assert np.isnan(solved.outputs[0][list(BAD)]).all()
    again = made.at(theta, solved.report.solution)
    assert again.report.status == solved.report.status
    assert list(again.report.details) == list(BAD)
    for ours, theirs in zip(*(batch.vjp([np.ones((BATCH, 3))])[0] for batch in (again, solved)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-10)
    fine = made.solve([t.detach().numpy() for t in values()]).report.solution
    with pytest.raises(ProblemError, match="element 1 has status optimal, but parameter 'w' is declared nonneg"):
        made.at(theta, fine)


@pytest.mark.parametrize("solver", ["clarabel", "scs"])
def test_a_warm_start_with_invalid_elements(solver: str) -> None:
    made = layer(solver=solver, on_failure="nan")
    _, before = made.solve(*values("nan"))
    outputs, after = made.solve(*values("sign"), warm_start=before)
    assert after.status == before.status
    expected, _ = made.solve(*values())
    torch.testing.assert_close(outputs[0][list(GOOD)], expected[0][list(GOOD)], rtol=1e-7, atol=1e-7)


def test_shape_errors_take_precedence_over_invalid_values() -> None:
    tensors = values("nan")
    tensors[1] = tensors[1].detach()[:3]
    with pytest.raises(ShapeError, match="batch size 3"):
        layer(on_failure="nan")(*tensors)


# --- faults that are detected only if an element fails -------------------------------------------------------


def curved(batch: int = 3) -> tuple[cp.Problem, list[cp.Parameter], cp.Variable, list[torch.Tensor]]:
    """A quadratic form declared convex by the user."""
    y, S, q = cp.Variable(3), cp.Parameter((3, 3), symmetric=True), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.quad_form(y, cp.psd_wrap(S)) + q @ y), [y >= -1, y <= 1])
    root = np.random.default_rng(3).standard_normal((batch, 3, 3))
    matrices = root @ root.swapaxes(1, 2) + np.eye(3)
    matrices[1] = np.diag([1.0, -2.0, 1.0])
    return problem, [S, q], y, [torch.tensor(matrices), torch.ones(batch, 3, dtype=D)]


@pytest.mark.parametrize("solver", ["auto", "batched", "clarabel", "scs", "ecos", "cvxopt", "osqp", "piqp"])
@pytest.mark.parametrize("check", [True, False])
def test_an_indefinite_objective(solver: str, check: bool) -> None:
    """Some solvers stop at a saddle point; without the check only solvers that fail lead to an error."""
    problem, parameters, y, tensors = curved()
    keywords: dict[str, Any] = {"solver": solver, "self_check": False, "check_attributes": check}
    (out,), report = ConvexLayer(problem, parameters, [y], on_failure="nan", **keywords).solve(*tensors)
    if check or solver in ("scs", "ecos", "cvxopt", "osqp"):
        assert [str(word) for word in report.status] == ["optimal", "invalid", "optimal"]
        assert report.details[1] == "its objective is not convex: P has an eigenvalue of -1 times the largest"
        with pytest.raises(InvalidElementsError, match="Element 1: its objective is not convex"):
            ConvexLayer(problem, parameters, [y], **keywords)(*tensors)
    (expected,) = ConvexLayer(problem, parameters, [y], self_check=False)(*(t[[0, 2]] for t in tensors))
    torch.testing.assert_close(out[[0, 2]], expected, rtol=1e-6, atol=1e-6)


def test_convexity_is_checked_only_if_it_is_unproven() -> None:
    """If CVXPY proves convexity, no check is made."""
    problem, parameters, y, _ = curved()
    promised = SolutionMap(canonicalize(problem, parameters, [y], self_check=False))
    declared = SolutionMap(canonicalize(PROBLEM, [c, w, P], [x], self_check=False))
    weighted = family("lasso").program()
    assert promised._convexity_is_unproven
    assert not declared._convexity_is_unproven
    assert not SolutionMap(weighted)._convexity_is_unproven


@pytest.mark.parametrize("solver", ["auto", "clarabel", "scs", "ecos", "highs"])
@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered", "ignore:divide by zero")
def test_an_overflow_is_invalid(solver: str) -> None:
    """Finite values with a nonfinite program: the sum of two values of 1e308."""
    y, a = cp.Variable(2), cp.Parameter(2, name="a")
    problem = cp.Problem(cp.Minimize(cp.sum(y)), [y >= 0, cp.sum(y) >= cp.sum(a)])
    made = ConvexLayer(problem, [a], [y], solver=solver, on_failure="nan", on_degenerate="report", self_check=False)
    _, report = made.solve(torch.tensor([[1.0, 2.0], [1e308, 1e308], [3.0, 4.0]], dtype=D))
    assert [word.solved for word in report.status] == [True, False, True]
    assert report.status[1] is Status.INVALID
    assert report.details[1] == "b of its cone program is not finite: the parameters' values are too large"


def test_settings_are_not_elements() -> None:
    tensors = values("nan")
    with pytest.raises(SolverError, match="has no option 'no_such'"):
        layer(on_failure="nan", solver="clarabel")(*tensors, options={"solver_options": {"clarabel": {"no_such": 1}}})
