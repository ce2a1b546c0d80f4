"""Invalid functions, parameters and options, unconverged solvers, and derivatives that do not exist."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from convexlayer import DerivativeError, FailedElementsError, ProblemError, ShapeError, SolverError
from convexlayer.nodes import (
    AbstractNode,
    ArgminNode,
    ConjugateGradients,
    EqualityNode,
    Given,
    GivenBatch,
    InequalityNode,
    LinearEqualityNode,
    NodeOptions,
    ScipyMinimize,
    Stationary,
    StationaryNode,
)

Function = Callable[..., torch.Tensor]

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, at the first jvp

UNPOLISHED = NodeOptions(polish=0)


def values(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64, requires_grad=True)


def parabola(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return (y - x) ** 2


def squares(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return (y - x).square().sum()


def not_a_tensor(y: torch.Tensor, x: torch.Tensor) -> Any:
    return 3.0


def scalar(f: Function, **options: object) -> ArgminNode:
    return ArgminNode(f, (), [()], options=NodeOptions(**options))  # type: ignore[arg-type]


def verdicts(node: AbstractNode, x: torch.Tensor) -> tuple[tuple[str, ...], str]:
    """Status of the derivative, and the text of the one warning."""
    point, report = node.solve(x)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        point.y.sum().backward()
    return report.derivative.status, str(caught[0].message) if caught else ""


@pytest.mark.parametrize(
    ("node", "x", "message"),
    [
        (ArgminNode(lambda y, x: (y - x) ** 2, (2,), [(2,)]), values(1.0, 2.0), r"a scalar, shape \(\), got \(2,\)"),
        (scalar(not_a_tensor), values(1.0), "got float"),
        (EqualityNode(parabola, lambda y, x: y - x, (), [()]), values(1.0), r"equalities .* as a vector.* got \(\)"),
        (InequalityNode(parabola, lambda y, x: y - x, (), [()]), values(1.0), "inequalities"),
        (scalar(lambda y, x: parabola(y, x) if y > 0 else y * y), values(1.0), "cannot be batched by torch.func.vmap"),
        (scalar(lambda y, x: parabola(y, x).float()), values(1.0), "dtype of the parameters, torch.float64"),
    ],
)
def test_functions_with_invalid_outputs_are_rejected(node: torch.nn.Module, x: torch.Tensor, message: str) -> None:
    with pytest.raises(ProblemError, match=message):
        node(x)


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        ((torch.ones(3),), ShapeError, "expected 2 parameters, got 1"),
        ((torch.ones(3), torch.ones(2, 2, 2)), ShapeError, r"parameter 1: expected \(2,\), or that behind one batch"),
        ((torch.ones(2, 3), torch.ones(4, 2)), ShapeError, "expected a batch of 2 .* got 4"),
        ((torch.ones(3), torch.ones(0, 2)), ShapeError, "got a batch of 0"),
        ((torch.ones(3), torch.ones(2).double()), ProblemError, "convert them to one dtype"),
        ((torch.ones(3, dtype=torch.int64), torch.ones(2)), ProblemError, "expected a floating-point"),
        ((torch.ones(3), [1.0, 2.0]), ProblemError, "got list"),
    ],
)
def test_invalid_parameters_are_rejected(
    tensors: tuple[torch.Tensor, ...], error: type[Exception], message: str
) -> None:
    node = ArgminNode(lambda y, a, b: squares(y, b) + y.sum() * a.sum(), (2,), [(-1,), (2,)])
    with pytest.raises(error, match=message):
        node(*tensors)


def test_constructor_arguments_are_validated() -> None:
    with pytest.raises(ProblemError, match="on_failure must be one of raise, nan, keep"):
        scalar(parabola, on_failure="ignore")
    with pytest.raises(ProblemError, match="on_degenerate must be one of"):
        scalar(parabola, on_degenerate="ignore")
    with pytest.raises(ProblemError, match="at least one parameter"):
        ArgminNode(parabola, (), [])
    with pytest.raises(ProblemError, match="t must be positive"):
        InequalityNode(parabola, lambda y, x: -y.reshape(1), (), [()], t=-1.0)
    with pytest.raises(ProblemError, match=r"dependent \(rank 1\)"):
        LinearEqualityNode(squares, torch.ones(2, 3), torch.ones(2), [(3,)])
    with pytest.raises(ProblemError, match="leave no degree of freedom"):
        LinearEqualityNode(squares, torch.eye(2), torch.ones(2), [(2,)])
    with pytest.raises(ShapeError, match=r"expected A \(m, n\) and b \(m,\)"):
        LinearEqualityNode(squares, torch.ones(1, 3), torch.ones(2), [(3,)])
    with pytest.raises(ShapeError, match="expected a start of shape"):
        scalar(parabola, start=torch.ones(2, 2))(values(1.0))
    with pytest.raises(ShapeError, match="warm_start"):
        scalar(parabola)(values(1.0), warm_start=torch.ones(2, 3))


@pytest.mark.parametrize(
    ("node", "status"),
    [
        (scalar(lambda y, x: y * x), "iteration_limit"),  # unbounded
        (
            ArgminNode(parabola, (), [()], solver=Given(lambda x: x + 1), options=NodeOptions(polish=0)),
            "iteration_limit",
        ),
        (ArgminNode(parabola, (), [()], solver=Given(lambda x: x * torch.nan)), "numerical_error"),
        (InequalityNode(parabola, lambda y, x: torch.stack([y - 1, 2 - y]), (), [()]), "iteration_limit"),  # infeasible
    ],
)
def test_failed_elements_raise_an_error_with_the_other_outputs(node: torch.nn.Module, status: str) -> None:
    with pytest.raises(FailedElementsError, match=status) as caught:
        node(values(1.0, 2.0))
    assert caught.value.indices == (0, 1)
    assert caught.value.outputs.y.isnan().all()
    assert [str(word) for word in caught.value.report.status] == [status] * 2


def test_infeasible_equalities_raise() -> None:
    node = EqualityNode(squares, lambda y, x: torch.stack([y.sum() - 1, y.sum() - 2]), (2,), [(2,)])
    with pytest.raises(FailedElementsError, match="feasible"):
        node(values(1.0, 2.0))


def half_wrong(choice: str) -> ArgminNode:
    solver = Given(lambda x: x + (x > 1.5))
    return ArgminNode(parabola, (), [()], solver=solver, options=NodeOptions(polish=0, on_failure=choice))


def test_failed_elements_are_kept_or_nan_with_zero_gradients() -> None:
    for choice, expected in (("keep", 3.0), ("nan", torch.nan)):
        x = values(1.0, 2.0)
        y, report = half_wrong(choice).solve(x)
        torch.testing.assert_close(y.y.detach(), torch.tensor([1.0, expected]).double(), equal_nan=True)
        assert report.failed == (1,)
        y.y.backward(torch.tensor([1.0, torch.nan], dtype=torch.float64))
        assert x.grad is not None
        assert x.grad.tolist() == [1.0, 0.0]
        assert report.derivative is not None
        assert report.derivative.status == ("ok", "failed")


def test_approximate_solutions_are_polished() -> None:
    x = values(1.0, 2.0)
    y = ArgminNode(parabola, (), [()], solver=GivenBatch(lambda x: x + 0.01))(x)
    torch.testing.assert_close(y, x, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("node", "x", "status", "message"),
    [
        (ArgminNode(lambda y, x: (y[0] - x) ** 2, (2,), [()]), values(1.0), "degenerate", "Hessian f_YY is singular"),
        (scalar(lambda y, x: (y - x).abs()), values(1.0), "degenerate", "singular"),
        (scalar(lambda y, x: (y - x) ** 4), values(1.0), "degenerate", "jump or vanish"),
        (
            scalar(lambda y, x: torch.where(y.abs() < 1, 0.5 * y**2, y.abs() - 0.5) + 0.5 * (y - x) ** 2),
            values(2.0),
            "degenerate",
            "not twice differentiable",
        ),
        (
            EqualityNode(squares, lambda y, x: torch.stack([y.sum() - 1, 2 * y.sum() - 2]), (2,), [(2,)]),
            values(1.0, 2.0),
            "degenerate",
            r"2 active constraints are dependent \(rank 1\)",
        ),
        (
            InequalityNode(parabola, lambda y, x: torch.stack([y - 0.5, y - 0.5]), (), [()]),
            values(1.0),
            "degenerate",
            "dependent",
        ),
        (InequalityNode(parabola, lambda y, x: y.reshape(1) - 1, (), [()]), values(1.0), "degenerate", "weakly active"),
        (
            EqualityNode(lambda y, x: y[0] * x, lambda y, x: y[:1] ** 2 + y[:1] - 2, (2,), [()]),
            values(1.0),
            "degenerate",
            "tangent space",
        ),
    ],
)
def test_missing_derivatives_are_reported(node: AbstractNode, x: torch.Tensor, status: str, message: str) -> None:
    words, warning = verdicts(node, x)
    assert words == (status,)
    assert re.search(message, warning), warning


def test_only_doubtful_elements_are_named_and_warned_about_once() -> None:
    node = InequalityNode(parabola, lambda y, x: y.reshape(1) - 1, (), [()])
    words, warning = verdicts(node, values(0.0, 1.0, 2.0))
    assert words == ("ok", "degenerate", "ok")
    assert "the first of them 1" in warning
    assert verdicts(node, values(1.0))[1] == ""


def test_on_degenerate_raises_or_stays_silent() -> None:
    def flat(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (y[0] - x) ** 2

    for choice in ("raise", "report"):
        x = values(1.0)
        y = ArgminNode(flat, (2,), [()], options=NodeOptions(on_degenerate=choice))(x)
        if choice == "raise":
            with pytest.raises(DerivativeError, match="singular"):
                y.sum().backward()
        else:
            y.sum().backward()
            assert x.grad is not None
            assert x.grad.tolist() == [1.0]  # the minimum-norm direction


def test_solvers_reject_unsupported_problems() -> None:
    bound: dict[str, Any] = {"variable": (), "parameters": [()]}
    with pytest.raises(SolverError, match="does not support inequalities"):
        InequalityNode(parabola, lambda y, x: -y.reshape(1), solver=Stationary(), **bound)(values(1.0))
    with pytest.raises(SolverError, match="use InteriorPoint"):
        InequalityNode(parabola, lambda y, x: -y.reshape(1), solver=ScipyMinimize(), t=1.0, **bound)(values(1.0))
    with pytest.raises(SolverError, match="expected 1 numbers"):
        ArgminNode(parabola, solver=GivenBatch(lambda x: torch.ones(2, 3)), **bound)(values(1.0))


def test_conjugate_gradients_report_indefinite_systems() -> None:
    options = NodeOptions(linear=ConjugateGradients(), polish=0, start=torch.zeros(2))
    node = StationaryNode(lambda y, x: y[0] ** 2 - y[1] ** 2 + y @ x, (2,), [(2,)], options=options)
    words, warning = verdicts(node, values(1.0, 1.0))
    assert words == ("inaccurate",)
    assert "residual of the linear system" in warning


def test_nested_forward_mode_is_rejected() -> None:
    node = scalar(lambda y, x: y**4 / 4 + y**2 / 2 - torch.sin(x) * y)
    x = values(0.7)[0].detach()
    twice = torch.func.hessian(node)(x)
    torch.testing.assert_close(torch.func.jacrev(torch.func.jacfwd(node))(x), twice)
    with pytest.raises(DerivativeError, match="forward mode over forward mode"):
        torch.func.jacfwd(torch.func.jacfwd(node))(x)
