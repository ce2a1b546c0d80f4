"""Learning a soft-max classifier whose most likely features lie at given places: bilevel gradient descent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from convexlayer.gallery.result import Claim, Result
from convexlayer.gallery.softmax import in_ball, negative
from convexlayer.gallery.style import legend_below
from convexlayer.nodes import GradientDescent, InequalityNode, Stop, solve_bilevel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.contour import QuadContourSet
    from matplotlib.figure import Figure

SOURCE = "Gould et al. 2016, section 5, figure 6"


def run(
    *, iterations: int = 100, fixed_iterations: int = 100, seed: int = 2, accuracy: float = 1e-9, step: float = 1.0
) -> Result:
    """Solve eq. 81 for three classes in the unit disc; the targets are feasible, so the optimal value is 0.

    The optimisers are gradient descent with a line search, and with a fixed ``step`` as in eq. 82.
    """
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(3, 2, dtype=torch.float64, generator=generator)
    b = torch.randn(3, dtype=torch.float64, generator=generator)
    classes = torch.eye(3, dtype=torch.float64)
    angle = 2.0 * torch.pi / 3.0 * torch.arange(3, dtype=torch.float64)
    targets = torch.stack([torch.cos(angle), torch.sin(angle)], -1)
    node = InequalityNode(negative, in_ball, (2,), [(3, 2), (3,), (3,)])

    def features(A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return node(A, b, classes)

    def distance(x: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return 0.5 * (x - targets).square().sum()

    result = solve_bilevel(
        distance,
        features,
        [A, b],
        optimizer=GradientDescent(),
        stop=Stop(max_iter=iterations, target=accuracy, gradient_tol=0.0),
        progress=False,
    )
    plain = solve_bilevel(
        distance,
        features,
        [A, b],
        optimizer=GradientDescent(step, line_search=False),
        stop=Stop(max_iter=fixed_iterations, target=accuracy, gradient_tol=0.0),
        progress=False,
    )
    curve, fixed = result.history.value, plain.history.value
    start, end = features(A, b).detach(), result.solution.detach()
    early = curve[min(20, len(curve) - 1)]
    numbers = {
        "objective": curve,
        "steps": result.history.steps,
        "objective_with_a_fixed_step": fixed,
        "steps_with_a_fixed_step": plain.history.steps,
        "final_with_a_fixed_step": plain.value,
        "final": result.value,
        "after_20_steps": early,
        "solves": result.history.evaluations[-1],
        "largest_error_of_a_feature": float((end - targets).abs().max()),
    }
    claims = [
        Claim(
            "final convergence, to within 1e-9 of the optimal value, in under 100 iterations",
            f"{result.value:.1e} after {result.history.steps} steps with a line search; with a fixed step size of "
            f"{step:g}, {plain.value:.1e} after {plain.history.steps}",
            result.value <= 1e-9 and result.history.steps < 100,
        ),
        Claim(
            "a rapid decrease of the objective in the first 20 iterations",
            f"from {curve[0]:.2f} to {early:.1e} (line search)",
            early < 0.1 * curve[0],
        ),
    ]

    def draw(figure: Figure) -> None:
        figure.set_size_inches(12.5, 6.0)
        places = figure.subplot_mosaic("abcg;defg", width_ratios=[1, 1, 1, 1.5])
        for names, when, theta, x in (("abc", "initial", (A, b), start), ("def", "final", result.theta, end)):
            shown = _draw_classes([places[name] for name in names], when, theta, x, targets)
        figure.colorbar(shown, ax=[places[name] for name in "cf"], label="likelihood", ticks=[0, 0.5, 1], shrink=0.6)
        legend = legend_below(places["e"], 3, frameon=True, facecolor="0.45", edgecolor="none", labelcolor="w")
        legend.set_in_layout(False)  # wider than its panel, with room on both sides
        for name, (marker, series) in {"line search": ("o-", curve), f"fixed step size {step:g}": ("-", fixed)}.items():
            places["g"].semilogy(series, marker, label=name)
        places["g"].axhline(accuracy, color="k", linestyle=":", label="the paper's $10^{-9}$")
        places["g"].set(xlabel="iteration", ylabel="upper objective, eq. 81", title="learning curve")
        legend_below(places["g"], 1)

    return Result(numbers, claims, draw)


def _draw_classes(
    places: Sequence[Axes], when: str, theta: Sequence[torch.Tensor], x: torch.Tensor, targets: torch.Tensor
) -> QuadContourSet:
    """Draw the likelihood of each class with parameters (A, b), its target and its most likely feature."""
    grid = torch.linspace(-1.5, 1.5, 101, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(grid, grid, indexing="xy"), -1)
    circle = torch.linspace(0.0, 2.0 * torch.pi, 100)
    likelihood = torch.softmax(points @ theta[0].detach().mT + theta[1].detach(), -1)
    for i, axes in enumerate(places):
        shown = axes.contourf(grid, grid, likelihood[..., i], levels=torch.linspace(0.0, 1.0, 21).tolist())
        axes.plot(torch.cos(circle), torch.sin(circle), "w--", linewidth=1, label="unit circle")
        axes.plot(*targets[i], "wo", fillstyle="none", markersize=12, markeredgewidth=1.6, label="target")
        axes.plot(*x[i], "X", color="C1", markersize=8, markeredgecolor="w", label="most likely in the disc")
        axes.grid(visible=False)
        axes.set(title=f"class {i + 1}, {when}", aspect="equal", xticks=[-1, 0, 1], yticks=[-1, 0, 1])
        axes.set(xlabel="$x_1$", ylabel="$x_2$")
        axes.label_outer()
    return shown
