"""solve_bilevel in the gradient form: convergence of every optimiser, stopping rules, and infeasible lower problems."""

from __future__ import annotations

from itertools import pairwise

import cvxpy as cp
import pytest
import torch
from matplotlib.figure import Figure

from convexlayer import ConvexLayer, FailedElementsError, ProblemError, SolverError
from convexlayer.nodes import (
    AbstractOptimizer,
    ArgminNode,
    Box,
    FixedPointNode,
    ForwardBackward,
    GradientDescent,
    Implicit,
    IPiano,
    L1Norm,
    SimplexEntropy,
    Stop,
    TorchOptimizer,
    Unrolled,
    solve_bilevel,
)
from convexlayer.nodes.bilevel import Stopped

D = torch.float64
TARGET = torch.tensor([0.2, 0.3, 0.5], dtype=D)


def projection() -> ConvexLayer:
    x, c = cp.Variable(3), cp.Parameter(3)
    return ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [x >= 0, cp.sum(x) == 1]), [c], [x])


def node(*, unrolled: bool = False) -> FixedPointNode:
    step = ForwardBackward(lambda x, c: x - c, 0.5, SimplexEntropy())
    start = torch.full((3,), 1 / 3, dtype=D)
    return FixedPointNode(step, (3,), [(3,)], start=start, derivative=Unrolled(20) if unrolled else Implicit())


def misfit(solution: torch.Tensor | tuple[torch.Tensor, ...], c: torch.Tensor) -> torch.Tensor:
    x = solution if isinstance(solution, torch.Tensor) else solution[0]
    return (x - TARGET).square().sum()


START = [torch.zeros(3, dtype=D)]

OPTIMIZERS: dict[str, AbstractOptimizer] = {
    "line search": GradientDescent(),
    "fixed step": GradientDescent(0.4, line_search=False),
    "ipiano": IPiano(beta=0.5),
    "proximal": IPiano(beta=0.0),
    "adam": TorchOptimizer(lambda parameters: torch.optim.Adam(parameters, lr=0.03)),
    "lbfgs": TorchOptimizer(torch.optim.LBFGS),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_every_optimizer_converges(optimizer: AbstractOptimizer) -> None:
    stop = Stop(max_iter=150, target=1e-9)
    result = solve_bilevel(misfit, projection(), START, optimizer=optimizer, stop=stop, progress=False)
    assert result.stopped in (Stopped.TARGET, Stopped.STATIONARY)
    assert result.value <= 1e-9
    torch.testing.assert_close(result.solution[0], TARGET, rtol=0, atol=1e-4)
    assert result.history.steps == len(result.history.evaluations) - 1 <= result.history.evaluations[-1] - 1


@pytest.mark.parametrize("unrolled", [False, True])
def test_nodes_and_functions_are_lower_levels(unrolled: bool) -> None:
    quartic = ArgminNode(lambda y, c: 0.5 * (y - c).square().sum() + 0.25 * y.pow(4).sum(), (3,), [(3,)])
    for lower in (node(unrolled=unrolled), quartic, lambda c: torch.softmax(c, 0)):
        result = solve_bilevel(misfit, lower, START, stop=Stop(target=1e-12), progress=False)
        assert result.stopped in (Stopped.TARGET, Stopped.STATIONARY)
        assert result.value <= 1e-12


def test_line_search_never_increases_the_objective() -> None:
    values = solve_bilevel(misfit, node(), [torch.tensor([3.0, 0, 0], dtype=D)], progress=False).history.value
    assert all(after < before for before, after in pairwise(values))


def test_warm_starts_do_not_change_the_iterates() -> None:
    results = [solve_bilevel(misfit, node(), START, warm_start=warm, progress=False) for warm in (False, True)]
    cold, warm = (torch.tensor(result.history.value[:3], dtype=D) for result in results)
    torch.testing.assert_close(warm, cold, rtol=1e-8, atol=1e-12)


def test_regularisers_hold_at_the_solution() -> None:
    # x = c - mean(c) + 1/3 here, so the smooth part pulls c towards TARGET - 1/3 up to a constant.
    stop = Stop(max_iter=300, gradient_tol=1e-7)
    sparse = solve_bilevel(
        misfit, projection(), START, optimizer=IPiano(beta=0.3, regulariser=L1Norm(0.05)), stop=stop, progress=False
    )
    assert sparse.stopped is Stopped.STATIONARY
    (c,) = sparse.theta
    assert float(c[1]) == 0.0
    boxed = solve_bilevel(
        misfit, projection(), START, optimizer=IPiano(beta=0.3, regulariser=Box(-0.1, 0.1)), stop=stop, progress=False
    )
    torch.testing.assert_close(boxed.theta[0], torch.tensor([-0.1, -0.05, 0.1], dtype=D), rtol=0, atol=1e-3)
    assert Box(0.0, 1.0).value((torch.tensor([2.0]),)) == torch.inf


def box_with_an_edge() -> ConvexLayer:
    """Infeasible for theta > 1."""
    x, theta = cp.Variable(1), cp.Parameter(1)
    return ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(x)), [x >= theta, x <= 1]), [theta], [x])


@pytest.mark.parametrize(
    "optimizer",
    [
        GradientDescent(10.0),
        GradientDescent(0.99, line_search=False),
        IPiano(lipschitz=0.01),
        TorchOptimizer(lambda parameters: torch.optim.SGD(parameters, lr=0.99)),
    ],
    ids=["line search", "fixed step", "ipiano", "sgd"],
)
def test_steps_to_infeasible_lower_problems_are_shortened(optimizer: AbstractOptimizer) -> None:
    result = solve_bilevel(
        lambda solution, theta: (solution[0] - 0.9).square().sum(),
        box_with_an_edge(),
        [torch.tensor([0.2], dtype=D)],
        optimizer=optimizer,
        stop=Stop(max_iter=20, target=1e-4),
        progress=False,
    )
    assert all(value <= result.history.value[0] for value in result.history.value)
    assert float(result.theta[0]) <= 1.0


def test_infeasible_start_raises() -> None:
    with pytest.raises(FailedElementsError):
        solve_bilevel(
            lambda solution, theta: solution[0].sum(),
            box_with_an_edge(),
            [torch.tensor([2.0], dtype=D)],
            progress=False,
        )
    with pytest.raises(SolverError, match="start elsewhere"):
        solve_bilevel(lambda x, c: (x / 0).sum(), lambda c: c, START, progress=False)


def test_stopping_rules() -> None:
    def run(stop: Stop, optimizer: AbstractOptimizer | None = None) -> Stopped:
        return solve_bilevel(
            misfit, lambda c: torch.softmax(c, 0), START, optimizer=optimizer, stop=stop, progress=False
        ).stopped

    slow = GradientDescent(1e-3, line_search=False)
    assert run(Stop(max_iter=3), slow) is Stopped.ITERATION_LIMIT
    assert run(Stop(target=0.04)) is Stopped.TARGET
    assert run(Stop(gradient_tol=1.0)) is Stopped.STATIONARY
    assert run(Stop(progress_tol=0.01), slow) is Stopped.NO_PROGRESS


def test_wrong_gradient_stops_with_no_descent() -> None:
    def reversed_misfit(x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        value = misfit(x, c)
        return 2 * value.detach() - value

    result = solve_bilevel(reversed_misfit, lambda c: torch.softmax(c, 0), START, progress=False)
    assert result.stopped is Stopped.NO_DESCENT
    assert result.history.steps == 0


def test_patience_stops_and_returns_the_best_parameters() -> None:
    result = solve_bilevel(
        misfit,
        lambda c: torch.softmax(c, 0),
        START,
        optimizer=GradientDescent(0.5, line_search=False),
        stop=Stop(max_iter=500, patience=5),
        validation=lambda x, c: (x - torch.tensor([0.25, 0.33, 0.42], dtype=D)).square().sum(),
        progress=False,
    )
    best = result.history.best_validation
    assert result.stopped is Stopped.OVERFITTING
    assert best is not None
    assert 0 < best == result.history.steps - 5
    assert result.value == result.history.value[best]


def test_history_is_drawn_and_progress_shown(capsys: pytest.CaptureFixture[str]) -> None:
    result = solve_bilevel(misfit, node(), START, validation=misfit, stop=Stop(max_iter=3))
    assert "step" in capsys.readouterr().err
    figure = Figure()
    result.history.draw(figure)
    assert len(figure.axes) == 3


def test_invalid_arguments_are_rejected() -> None:
    with pytest.raises(ProblemError, match="scalar"):
        solve_bilevel(lambda x, c: x, node(), START, progress=False)
    with pytest.raises(ProblemError, match="at least one"):
        solve_bilevel(misfit, node(), [], progress=False)
    with pytest.raises(ProblemError, match="validation"):
        solve_bilevel(misfit, node(), START, stop=Stop(patience=3), progress=False)
    for wrong in (
        lambda: GradientDescent(0.0),
        lambda: GradientDescent(decrease=2.0),
        lambda: IPiano(beta=1.0),
        lambda: IPiano(lipschitz=0.0),
        lambda: L1Norm(-1.0),
        lambda: Box(1.0, 0.0),
    ):
        with pytest.raises(ProblemError):
            wrong()
