"""Contents of a report before and after a derivative; handling of derivatives that may not exist."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch

from convexlayer import ConvexLayer, DerivativeError, Status
from convexlayer.solvers.clarabel_ import ClarabelSolver
from tests.families import SMOOTH, family

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by torch, at the first jvp


@pytest.mark.parametrize("name", SMOOTH)
def test_report(name: str) -> None:
    case = family(name)
    tensors = case.tensors(3)
    outputs, report = case.layer().solve(*case.prepared(tensors))
    assert report.status == (Status.OPTIMAL,) * 3
    assert report.failed == ()
    assert report.solver in ("batched", "daqp")
    assert "variables" in report.reason
    assert report.solved_again == ()
    assert report.residuals.worst.shape == report.iterations.shape == report.objective.shape == (3,)
    assert report.residuals.worst.max() < 1e-8
    assert np.all(report.iterations > 0) or name == "least_squares"  # solved as one linear system
    assert set(report.seconds) == {"canonical", "solve", "polish"}
    assert report.derivative is None
    torch.stack([o.sum() for o in outputs]).sum().backward()
    assert report.derivative is not None
    assert report.derivative.trusted
    assert report.derivative.status == ("ok",) * 3
    assert np.all(report.derivative.linear_residual < 1e-8)
    assert np.all(report.derivative.margin > 1e-6)
    assert np.all(report.derivative.consistent)
    assert report.seconds["derivative"] > 0


def test_forward_mode_fills_the_derivative_report() -> None:
    case = family("quadratic")
    tensors = tuple(t.detach() for t in case.tensors(2))
    layer = case.layer()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(tensors[0], torch.ones_like(tensors[0]))
        _, report = layer.solve(dual, *tensors[1:])
        assert report.derivative is not None
        assert report.derivative.status == ("ok", "ok")


@pytest.mark.parametrize("name", [name for name in SMOOTH if name != "geometric_program"])
def test_objective_matches_cvxpys_evaluation(name: str) -> None:
    """The objective value at the solution, evaluated by CVXPY."""
    case = family(name)
    tensors = case.prepared(case.tensors())
    _, report = case.layer().solve(*tensors)
    for parameter, tensor in zip(case.parameters, tensors, strict=True):
        parameter.value = tensor.detach().numpy()
    value = case.problem.solve(solver=cp.CLARABEL)
    np.testing.assert_allclose(report.objective.item(), value, rtol=1e-6)


@pytest.mark.parametrize("name", SMOOTH)
def test_objective_is_differentiable(name: str) -> None:
    """The envelope theorem against central differences along a random direction."""
    case = family(name)
    layer = case.layer(options={"tol": 1e-11})
    tensors = case.tensors(2)
    generator = torch.Generator().manual_seed(3)
    directions = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in tensors]

    def value(*ts: torch.Tensor) -> torch.Tensor:
        return layer.solve(*case.prepared(ts))[1].objective.sum()

    gradients = torch.autograd.grad(value(*tensors), tensors)
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    step = 1e-4
    with torch.no_grad():
        plus, minus = (
            value(*(t + sign * step * d for t, d in zip(tensors, directions, strict=True))) for sign in (1, -1)
        )
    np.testing.assert_allclose(slope, (plus - minus) / (2 * step), rtol=1e-5, atol=1e-5)


def test_the_objective_has_a_derivative_where_the_solution_has_none() -> None:
    x, c = cp.Variable(2), cp.Parameter()
    layer = ConvexLayer(cp.Problem(cp.Minimize(cp.sum(x)), [cp.sum(x) >= c, x >= -9]), [c], [x], on_degenerate="raise")
    theta = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    _, report = layer.solve(theta)
    report.objective.backward()
    torch.testing.assert_close(theta.grad, torch.tensor(1.0, dtype=torch.float64))
    assert report.derivative is not None
    assert report.derivative.status == ("ok",)


def test_the_objective_with_nonunique_multipliers_is_degenerate() -> None:
    """max(a, b) has no derivative at a = b, for any split of the multiplier."""
    x, a, b = cp.Variable(), cp.Parameter(), cp.Parameter()
    layer = ConvexLayer(cp.Problem(cp.Minimize(x), [x >= a, x >= b]), [a, b], [x], on_degenerate="report")
    one = torch.ones((), dtype=torch.float64, requires_grad=True)
    _, report = layer.solve(one, one)
    report.objective.backward()
    assert report.derivative is not None
    assert report.derivative.status == ("degenerate",)
    _, apart = layer.solve(one, 2 * one)
    apart.objective.backward()
    assert apart.derivative is not None
    assert apart.derivative.status == ("ok",)


def test_unrelated_large_numbers_do_not_hide_nonunique_multipliers() -> None:
    x, z = cp.Variable(), cp.Variable()
    a, b, c = cp.Parameter(), cp.Parameter(), cp.Parameter()
    problem = cp.Problem(cp.Minimize(x + 0.5 * cp.square(z - c)), [x >= a, x >= b])
    layer = ConvexLayer(problem, [a, b, c], [x], on_degenerate="report")
    for large in (1.0, 3e5, 1e6):
        one = torch.ones((), dtype=torch.float64, requires_grad=True)
        (value,), report = layer.solve(one, one, torch.tensor(large, dtype=torch.float64))
        value.backward()
        assert report.derivative is not None
        assert report.derivative.status == ("degenerate",)


@pytest.mark.parametrize("transform", [torch.func.jacrev, torch.func.jacfwd])
def test_the_report_covers_every_row_of_a_jacobian(transform: Any) -> None:
    x, c = cp.Variable(2), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [x >= 0])
    layer = ConvexLayer(problem, [c], [x], on_degenerate="raise")
    for kink in ([0.0, 1.0], [1.0, 0.0]):
        with pytest.raises(DerivativeError):
            transform(lambda v: layer(v)[0])(torch.tensor(kink, dtype=torch.float64))
    transform(lambda v: layer(v)[0])(torch.tensor([1.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("weight", [1e-7, 1e-4, 1e5])
def test_the_scale_of_the_objective_does_not_matter(weight: float) -> None:
    """Solutions and gradients do not depend on it, because the objective is normalised first."""
    x, c, G = cp.Variable(4), cp.Parameter(4), cp.Parameter((5, 4))
    generator = torch.Generator().manual_seed(1)
    values = 2 * torch.randn(12, 4, dtype=torch.float64, generator=generator)
    rows = torch.randn(12, 5, 4, dtype=torch.float64, generator=generator)
    found = []
    for scale in (1.0, weight):
        problem = cp.Problem(cp.Minimize(scale * cp.sum_squares(x - c)), [G @ x <= 1, cp.norm(x) <= 2])
        layer = ConvexLayer(problem, [c, G], [x, problem.constraints[0].dual_variables[0]], on_degenerate="raise")
        theta = values.clone().requires_grad_()
        solution, dual = layer(theta, rows)
        (solution.sum() + dual.sum() / scale).backward()
        found.append((solution.detach(), dual.detach() / scale, theta.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_maximisation_keeps_its_sign() -> None:
    x, c = cp.Variable(), cp.Parameter()
    layer = ConvexLayer(cp.Problem(cp.Maximize(c - cp.square(x - c) + 3)), [c], [x])
    theta = torch.tensor([1.5, -2.0], dtype=torch.float64, requires_grad=True)
    _, report = layer.solve(theta)
    np.testing.assert_allclose(report.objective.detach(), [4.5, 1.0], atol=1e-9)
    report.objective.sum().backward()
    np.testing.assert_allclose(theta.grad, [1.0, 1.0], atol=1e-9)


def weakly_active(**keywords: Any) -> ConvexLayer:
    """argmin (x - c)^2 over x >= 0: at c = 0 the left derivative is 0 and the right one 1."""
    x, c = cp.Variable(), cp.Parameter()
    return ConvexLayer(cp.Problem(cp.Minimize((x - c) ** 2), [x >= 0]), [c], [x], **keywords)


def kink() -> torch.Tensor:
    return torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64, requires_grad=True)


def test_degenerate_derivatives_warn_once_a_layer() -> None:
    layer = weakly_active()
    with pytest.warns(UserWarning, match=r"1 of 3 elements may not exist.*1 \(degenerate\)") as caught:
        layer(kink())[0].sum().backward()
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer(kink())[0].sum().backward()


def test_degenerate_derivatives_raise() -> None:
    solution = weakly_active(on_degenerate="raise")(kink())[0]
    with pytest.raises(DerivativeError, match=r"1 of 3 elements.*1 \(degenerate\)"):
        solution.sum().backward()


@pytest.mark.parametrize("on_degenerate", ["report", "warn", "raise"])
def test_degenerate_derivatives_are_reported(on_degenerate: str) -> None:
    theta = kink()
    solution, report = weakly_active(on_degenerate=on_degenerate).solve(theta)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            solution[0].sum().backward()
    except DerivativeError:
        pass
    else:
        torch.testing.assert_close(theta.grad[[0, 2]], torch.tensor([1.0, 0.0], dtype=torch.float64))
        assert -1e-9 <= theta.grad[1] <= 1.0 + 1e-9  # an element of Clarke's derivative
    assert report.derivative.status == ("ok", "degenerate", "ok")
    assert not report.derivative.trusted


def test_a_solution_that_is_not_unique_is_degenerate() -> None:
    """min c (x1 + x2) over x1 + x2 = 1, x >= 0: any split of the sum is optimal."""
    x, c = cp.Variable(2), cp.Parameter()
    problem = cp.Problem(cp.Minimize(cp.sum(x)), [cp.sum(x) == c, x >= 0])
    theta = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    solution, report = ConvexLayer(problem, [c], [x], on_degenerate="report").solve(theta)
    solution[0][0].backward()
    assert report.derivative.status == ("degenerate",)
    assert theta.grad.isfinite()


def test_derivatives_with_free_auxiliary_variables_are_trusted() -> None:
    """CVXPY's epigraph variables may be free without affecting the requested derivative."""
    x, A, b = cp.Variable(2), cp.Parameter((4, 2)), cp.Parameter(4)
    layer = ConvexLayer(cp.Problem(cp.Minimize(cp.norm1(A @ x - b))), [A, b], [x], on_degenerate="raise")
    rng = np.random.default_rng(0)
    tensors = [torch.tensor(rng.standard_normal(shape), requires_grad=True) for shape in ((4, 2), 4)]
    layer(*tensors)[0].sum().backward()
    assert tensors[0].grad.isfinite().all()


def inaccurate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make Clarabel return slightly inaccurate solutions."""
    honest = ClarabelSolver.solve

    def solve(self: Any, state: Any, program: Any, options: Any, warm_start: Any = None) -> Any:
        answer = honest(self, state, program, options)
        return replace(answer, x=answer.x + 1e-6)

    monkeypatch.setattr(ClarabelSolver, "solve", solve)


def test_inaccurate_solutions_warn_once_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call without a report warns; ``solve`` states the inaccuracy in its report."""
    inaccurate(monkeypatch)
    x, c = cp.Variable(), cp.Parameter()
    problem = cp.Problem(cp.Minimize((x - c) ** 2), [x >= 0])
    settings: list[dict[str, Any]] = [{}, {}, {"on_degenerate": "report"}]
    made = [
        ConvexLayer(problem, [c], [x], solver="clarabel", options={"polish": False}, self_check=False, **keywords)
        for keywords in settings
    ]
    theta = torch.tensor([1.0, 2.0], dtype=torch.float64)
    with pytest.warns(
        UserWarning, match=r"the solutions of 2 of 2 elements are inaccurate: 0, 1\. .*shown once per layer"
    ) as caught:
        made[0](theta)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made[0](theta)
        made[2](theta)
        _, report = made[1].solve(theta)
    assert report.status == (Status.OPTIMAL_INACCURATE,) * 2
    twin = copy.deepcopy(made[0])
    with pytest.warns(UserWarning, match="inaccurate"):
        twin(theta)
    with pytest.warns(UserWarning, match="inaccurate"):
        made[1](theta)


def test_inaccurate_solutions_and_degenerate_derivatives_warn_separately(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = weakly_active(solver="clarabel", options={"polish": False})
    inaccurate(monkeypatch)
    with pytest.warns(UserWarning, match="the solutions of 3 of 3 elements are inaccurate"):
        (out,) = layer(kink())
    with pytest.warns(UserWarning, match="the derivative of"):
        out.sum().backward()
