"""Open questions: lower problems with several solutions, and lower problems that become infeasible."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import cvxpy as cp
import torch

from convexlayer.gallery.result import Claim, Result
from convexlayer.gallery.style import legend_below, panels, shades
from convexlayer.layers import ConvexLayer
from convexlayer.nodes import (
    BilevelResult,
    BoxEntropy,
    FixedPointNode,
    ForwardBackward,
    GradientDescent,
    Stop,
    Unrolled,
    solve_bilevel,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "Gould 2026, slides: open questions; Ochs, Ranftl, Brox and Pock 2016, eq. 2 and section 4.2"

Loss = Callable[..., torch.Tensor]


def run(*, iterations: tuple[int, ...] = (1, 2, 5, 10, 20, 50), steps: int = 40) -> Result:
    """Descend on a step function, through a flat set of solutions, and towards an empty feasible set."""
    slopes = {n: _slope(_unrolled(n)) for n in iterations}
    exact = _slope(_linear_program())
    jumps: dict[str | int, BilevelResult] = {"exact": _descend(_linear_program(), steps)}
    jumps |= {n: _descend(_unrolled(n), steps) for n in iterations}
    losses: dict[str, Loss] = {"x1 + x2": lambda x: x.sum(), "x1": lambda x: x[0]}
    flat_reports = {name: _flat(loss) for name, loss in losses.items()}
    edges = {"stepping back": _narrow(_interval(), steps), "elastic": _narrow(_elastic_interval(), steps)}
    failures = {name: _failures(result) for name, result in edges.items()}
    numbers = {
        "exact_slope_at_1": exact,
        "unrolled_slope_at_1": slopes,
        "loss_after_descent": {str(name): result.value for name, result in jumps.items()},
        "losses": {str(name): result.history.value for name, result in jumps.items()},
        "flat_solutions": flat_reports,
        "infeasible_evaluations": failures,
        "interval_loss": {name: result.history.value for name, result in edges.items()},
    }
    reached = [n for n in iterations if jumps[n].value < 1e-3]
    dependent, invariant = flat_reports["x1"], flat_reports["x1 + x2"]
    back, elastic = edges["stepping back"], edges["elastic"]
    claims = [
        Claim(
            "Ochs, eq. 2: a gradient method gets stuck on a step function, whose derivative vanishes almost everywhere",
            f"through the linear program the slope at 1 is {exact:.0e}, and the loss stays {jumps['exact'].value:.2f}",
            abs(exact) < 1e-6 and jumps["exact"].value > 0.99,
        ),
        Claim(
            "section 4.2: an algorithm with a smooth step has a unique output and a nonzero derivative",
            f"descent through {', '.join(map(str, reached))} Bregman steps ends at a loss of at most "
            f"{max((jumps[n].value for n in reached), default=torch.inf):.0e}",
            iterations[0] in reached,
        ),
        Claim(
            "(not in the paper) but not with many iterations: they come close to the step function",
            f"the slope at theta = 1 falls from {max(slopes.values()):.2g} to {slopes[iterations[-1]]:.0e} with "
            f"{iterations[-1]} steps",
            slopes[iterations[-1]] < 1e-3 * max(slopes.values()),
        ),
        Claim(
            "what about problems with multiple solutions?",
            f"if the loss is equal at all solutions, the derivative is right ({invariant['slope']:.6f} for 1) and "
            f"consistent; otherwise the returned direction ({dependent['slope']:.2f}) is reported as "
            f"{dependent['status']} and inconsistent",
            abs(invariant["slope"] - 1) < 1e-6 and invariant["consistent"] and not dependent["consistent"],
        ),
        Claim(
            "can problems become infeasible during learning?",
            f"yes, at {failures['stepping back']} of {back.history.evaluations[-1]} trial steps; stepping back still "
            f"ends at a loss of {back.value:.0e}, an elastic problem meets {failures['elastic']} and ends at "
            f"{elastic.value:.0e}",
            failures["stepping back"] > 0 == failures["elastic"] and back.value < 1e-3,
        ),
    ]

    def draw(figure: Figure) -> None:
        maps, slope_axes, curves, intervals = panels(figure, 4, width=3.2, height=3.8)
        stuck = {name: ", stuck" if result.value > 0.99 else "" for name, result in jumps.items()}
        thetas = torch.linspace(-3, 3, 121, dtype=torch.float64)
        maps.plot([-3, 0, 0, 3], [1, 1, 0, 0], "k--", label="solution", zorder=3)
        for colour, n in zip(shades(len(iterations)), iterations, strict=True):
            label = f"{n} step" if n == 1 else f"{n} steps"
            maps.plot(thetas, _unrolled(n)(thetas[:, None]).flatten(), color=colour, label=label)
            curves.plot(jumps[n].history.value, "o-", markersize=3, color=colour, label=label + stuck[n])
        curves.plot(jumps["exact"].history.value, "kx", label="linear program" + stuck["exact"])
        maps.set(xlabel=r"$\theta$", ylabel=r"$x(\theta)$", title=r"$\min\ \theta x$ over $0 \leq x \leq 1$")
        slope_axes.loglog(iterations, list(slopes.values()), "o-", label="unrolled")
        slope_axes.axhline(
            torch.finfo(torch.float64).eps, color="k", linestyle=":", label=r"$\varepsilon$, double precision"
        )
        slope_axes.set(xlabel="Bregman steps", ylabel=r"$|d\,loss / d\theta|$", title=r"slope at $\theta = 1$")
        slope_axes.set_xticks(iterations, [str(n) for n in iterations])
        slope_axes.set_xticks([], minor=True)
        curves.set(xlabel="outer step", ylabel="loss $(x - 1)^2$", title=r"descent from $\theta = 1$")
        for (name, result), style in zip(edges.items(), ("-", "--"), strict=True):
            intervals.semilogy(result.history.value, style, label=f"{name}, {failures[name]} infeasible trials")
        intervals.set(xlabel="outer step", ylabel="loss", title="an interval that is to shrink")
        for axes, columns in ((maps, 2), (slope_axes, 1), (curves, 2), (intervals, 1)):
            legend_below(axes, columns)

    return Result(numbers, claims, draw)


def _linear_program() -> Callable[[torch.Tensor], torch.Tensor]:
    x, theta = cp.Variable(1), cp.Parameter(1)
    layer = ConvexLayer(cp.Problem(cp.Minimize(theta @ x), [x >= 0, x <= 1]), [theta], [x])
    return lambda value: layer(value)[0]


def _unrolled(iterations: int) -> Callable[[torch.Tensor], torch.Tensor]:
    step = ForwardBackward(lambda x, theta: theta.expand(1), 0.5, BoxEntropy(0.0, 1.0))
    start = torch.full((1,), 0.5, dtype=torch.float64)
    return FixedPointNode(step, (1,), [(1,)], start=start, derivative=Unrolled(iterations))


def _slope(lower: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """Magnitude of the derivative of the loss at theta = 1."""
    theta = torch.ones(1, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad((lower(theta) - 1).square().sum(), theta)
    return float(slope.abs())


def _descend(lower: Callable[[torch.Tensor], torch.Tensor], steps: int) -> BilevelResult:
    start = [torch.ones(1, dtype=torch.float64)]
    stop = Stop(max_iter=steps, target=1e-6)
    return solve_bilevel(lambda x, _: (x - 1).square().sum(), lower, start, stop=stop, progress=False)


def _flat(loss: Loss) -> dict[str, Any]:
    """Slope and report of a loss of the solutions of x1 + x2 = theta in the unit square."""
    x, theta = cp.Variable(2), cp.Parameter()
    problem = cp.Problem(cp.Minimize(cp.square(cp.sum(x) - theta)), [x >= 0, x <= 1])
    layer = ConvexLayer(problem, [theta], [x], on_degenerate="report")
    value = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    (solution,), report = layer.solve(value)
    (slope,) = torch.autograd.grad(loss(solution), value)
    assert report.derivative is not None  # set by the backward pass
    return {
        "slope": float(slope),
        "consistent": bool(report.derivative.consistent[0]),
        "status": report.derivative.status[0],
    }


def _interval() -> ConvexLayer:
    """Point nearest to theta_0 in the interval [theta_1, theta_2]; infeasible if theta_1 > theta_2."""
    x, theta = cp.Variable(1), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - theta[0])), [x >= theta[1], x <= theta[2]])
    return ConvexLayer(problem, [theta], [x], on_degenerate="report")


def _elastic_interval() -> ConvexLayer:
    """The same with both ends relaxed at a penalty."""
    x, slack, theta = cp.Variable(1), cp.Variable(1, nonneg=True), cp.Parameter(3)
    objective = cp.Minimize(cp.sum_squares(x - theta[0]) + 10 * cp.sum(slack))
    problem = cp.Problem(objective, [x + slack >= theta[1], x - slack <= theta[2]])
    return ConvexLayer(problem, [theta], [x], on_degenerate="report")


def _narrow(layer: ConvexLayer, steps: int) -> BilevelResult:
    """Narrow the interval and move its point to 0.3, with steps so long that it becomes empty."""

    def upper(solution: tuple[torch.Tensor, ...], theta: torch.Tensor) -> torch.Tensor:
        return (solution[0] - 0.3).square().sum() + (theta[2] - theta[1]).square()

    start = [torch.tensor([0.0, -1.0, 1.0], dtype=torch.float64)]
    optimizer = GradientDescent(0.35, line_search=False)
    return solve_bilevel(upper, layer, start, optimizer=optimizer, stop=Stop(max_iter=steps), progress=False)


def _failures(result: BilevelResult) -> int:
    """Count trial steps whose lower problem had no solution, the only rejected ones without a line search."""
    return result.history.evaluations[-1] - result.history.steps - 1
