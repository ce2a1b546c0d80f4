"""Hyper-parameters of a support vector machine by the gradient of the validation loss, against a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import torch

from convexlayer.gallery.result import Claim, Result
from convexlayer.gallery.style import legend_below, panels
from convexlayer.nodes import BilevelResult, InequalityNode, NodeOptions, Stop, TorchOptimizer, solve_bilevel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SOURCE = "Gould et al. 2016, section 1, and the work it names: Klatzer and Pock 2015 (continuous hyper-parameters)"

LOG_C, LOG_WIDTH = (-4.0, 8.0), (-3.0, 3.0)
"""The ranges of the grid, natural logarithms."""

STARTS = tuple(product((-2.0, 2.0, 6.0), (-1.5, 0.0, 1.5)))
"""Starts of learning two hyper-parameters: log C and the logarithm of the inverse width."""

Solution = tuple[torch.Tensor, torch.Tensor]
Path = list[tuple[float, float]]


@dataclass(frozen=True)
class Part:
    """Features (count, n) and classes (count,), -1 or 1."""

    X: torch.Tensor
    y: torch.Tensor


def patients(training: int, validation: int) -> dict[str, Part]:
    """Load scikit-learn's breast cancer data in three parts; features are standardised by the training part."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    X, y = torch.as_tensor(data.data), 2.0 * torch.as_tensor(data.target).double() - 1.0
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    deviation, mean = torch.std_mean(X[order[:training]], 0)
    sizes = {"training": training, "validation": validation, "test": len(y) - training - validation}
    parts = zip(sizes, order.split(list(sizes.values())), strict=True)
    return {name: Part((X[rows] - mean) / deviation, y[rows]) for name, rows in parts}


class SupportVectorMachine:
    """Dual of a support vector machine with squared hinge loss and Gaussian kernel, with learnable hyper-parameters.

        minimise over a >= 0, y'a = 0    1/2 a' (K o yy' + I / 2C) a - 1'a
        K_ij = exp(-sum_k s_k^2 (x_ik - x_jk)^2 / 2n),    score(x) = sum_i a_i y_i K(x, x_i) + b

    The offset b is the multiplier of y'a = 0. C and the inverse widths s (one, or one per feature) are given as
    logarithms.
    """

    def __init__(self, training: Part) -> None:
        self._X, self._y = training.X, training.y
        m = len(self._y)
        options = NodeOptions(start=torch.ones(m, dtype=torch.float64), on_degenerate="report")
        self._node = InequalityNode(
            self._objective,
            lambda a, K, log_C: -a,
            (m,),
            [(m, m), ()],
            h=lambda a, K, log_C: (self._y @ a).reshape(1),
            options=options,
        )

    def solve(self, log_C: torch.Tensor, log_width: torch.Tensor) -> Solution:
        """Solve for a (m,) and b (1,)."""
        point, _ = self._node.solve(self._kernel(self._X, log_width), log_C)
        return point.y, point.lam

    def margins(self, solution: Solution, log_width: torch.Tensor, part: Part) -> torch.Tensor:
        """Margins y score(x), (count,); negative where the class is wrong."""
        a, b = solution
        return part.y * (self._kernel(part.X, log_width) @ (a * self._y) + b)

    def loss(self, solution: Solution, log_width: torch.Tensor, part: Part) -> torch.Tensor:
        """Mean of max(1 - margin, 0)^2."""
        return torch.relu(1.0 - self.margins(solution, log_width, part)).square().mean()

    def _objective(self, a: torch.Tensor, K: torch.Tensor, log_C: torch.Tensor) -> torch.Tensor:
        signed = a * self._y
        return 0.5 * signed @ K @ signed + 0.25 * torch.exp(-log_C) * a.square().sum() - a.sum()

    def _kernel(self, X: torch.Tensor, log_width: torch.Tensor) -> torch.Tensor:
        scale = torch.exp(log_width)
        difference = (scale * X).unsqueeze(1) - (scale * self._X).unsqueeze(0)
        return torch.exp(-0.5 * difference.square().mean(-1))


def run(
    *,
    training: int = 100,
    validation: int = 150,
    grid: int = 13,
    steps: int = 8,
    starts: Sequence[tuple[float, float]] = STARTS,
) -> Result:
    """Search a grid for C and one width; learn these two by the gradient, and then C and one width per feature."""
    data = patients(training, validation)
    machine = SupportVectorMachine(data["training"])
    log_Cs = torch.linspace(*LOG_C, grid, dtype=torch.float64)
    log_widths = torch.linspace(*LOG_WIDTH, grid, dtype=torch.float64)
    losses = _grid(machine, data["validation"], log_Cs, log_widths)
    row, column = divmod(int(losses.argmin()), grid)
    best = (float(log_Cs[row]), float(log_widths[column]))
    learnt = [_learn(machine, data["validation"], c, torch.tensor([w], dtype=torch.float64), steps) for c, w in starts]
    n = data["training"].X.shape[1]
    each, _ = _learn(machine, data["validation"], 0.0, torch.zeros(n, dtype=torch.float64), steps)
    below = [result for result, _ in learnt if result.value <= float(losses.min())]
    solves = sorted(result.history.evaluations[-1] for result in below)
    typical = sorted((result for result, _ in learnt), key=lambda result: result.value)[len(learnt) // 2]
    ways: dict[str, Any] = {
        f"grid of {grid} x {grid}": {
            "lower_solves": grid**2,
            **_scores(machine, data, machine.solve(log_Cs[row], log_widths[[column]]), log_widths[[column]]),
        },
        "gradient, 2 parameters": _found(machine, data, typical),
        f"gradient, {n + 1} parameters": _found(machine, data, each),
    }
    searched, two, many = ways.values()
    error = _gradient_error(machine, data["validation"])
    numbers = {
        "ways": ways,
        "grid": {"log_C": log_Cs, "log_width": log_widths, "validation_loss": losses},
        "starts": [
            {"start": start, "validation_loss": result.value, "lower_solves": result.history.evaluations[-1]}
            for start, (result, _) in zip(starts, learnt, strict=True)
        ],
        "gradient_error": error,
    }
    claims = [
        Claim(
            "hyper-parameters can be learnt by the gradient through the lower problem's optimality conditions",
            f"it agrees to {error:.0e} with central differences",
            error < 1e-6,
        ),
        Claim(
            "learning them replaces a search over a grid",
            f"C and one width, from {len(starts)} starts: {len(below)} end below the grid's validation loss, after "
            f"{solves[0] if solves else 0} to {solves[-1] if solves else 0} lower solves and not {grid**2}; "
            f"{two['validation_loss']:.4f} against {searched['validation_loss']:.4f} at the median, test errors "
            f"{100 * two['test_error']:.1f} and {100 * searched['test_error']:.1f} %",
            2 * len(below) > len(starts) and solves[-1] < grid**2,
        ),
        Claim(
            "many can be learnt, where a grid is impossible",
            f"a width for each of {n} features: validation loss {many['validation_loss']:.4f} after "
            f"{many['lower_solves']} lower solves",
            many["validation_loss"] < two["validation_loss"],
        ),
        Claim(
            "(not in the paper) many are also fitted to the validation part",
            f"test loss {many['test_loss']:.3f} and error {100 * many['test_error']:.1f} % with {n + 1} of them, "
            f"{two['test_loss']:.3f} and {100 * two['test_error']:.1f} % with two",
            many["test_loss"] > many["validation_loss"],
        ),
    ]

    def draw(figure: Figure) -> None:
        surface, curve, scores = panels(figure, 3, width=4.0, height=3.6)
        levels = surface.contourf(log_widths, log_Cs, losses.clamp(max=1.0).log10(), levels=20)
        figure.colorbar(levels, ax=surface, label=r"$\log_{10}$ of the validation loss, at most 1")
        _draw_paths(surface, [path for _, path in learnt], best)
        for result, _ in learnt:
            curve.semilogy(result.history.evaluations, result.history.value, "C0o-", markersize=3)
        curve.lines[0].set_label("gradient, 2 parameters")
        curve.semilogy(each.history.evaluations, each.history.value, "C1s--", label=f"gradient, {n + 1} parameters")
        curve.axhline(searched["validation_loss"], color="k", linestyle=":", label=f"grid, after {grid**2}")
        curve.set(xlabel="lower solves", ylabel="validation loss", title="learning curves")
        legend_below(curve)
        _draw_scores(scores, dict(zip(("2, grid", "2, gradient", f"{n + 1}, gradient"), ways.values(), strict=True)))

    return Result(numbers, claims, draw)


def _draw_paths(axes: Axes, paths: Sequence[Path], best: tuple[float, float]) -> None:
    """Draw the iterates of learning, and the best point of the grid, (log C, log width) each."""
    for path in paths:
        axes.plot([w for _, w in path], [c for c, _ in path], "w.-", linewidth=1)
    axes.lines[0].set_label("gradient")
    axes.plot(best[1], best[0], "C1P", markersize=9, markeredgecolor="w", label="best of the grid")
    axes.set(xlabel="log inverse width", ylabel=r"$\log C$", title="$C$ and one width", xlim=LOG_WIDTH, ylim=LOG_C)
    axes.grid(visible=False)
    legend_below(axes, frameon=True, facecolor="0.45", edgecolor="none", labelcolor="w")


def _draw_scores(axes: Axes, ways: Mapping[str, Mapping[str, float]]) -> None:
    """Draw validation and test errors of each way as bars."""
    places = torch.arange(len(ways))
    for shift, part, colour in ((-0.2, "validation", "C2"), (0.2, "test", "C3")):
        heights = [100 * way[f"{part}_error"] for way in ways.values()]
        bars = axes.bar(places + shift, heights, 0.4, color=colour, label=part)
        axes.bar_label(bars, fmt="%.1f", fontsize=9)
    axes.set_xticks(places, list(ways))
    axes.grid(visible=False, axis="x")
    axes.set(xlabel="hyper-parameters, how found", ylabel="error, %", title="classification")
    legend_below(axes)


def _grid(machine: SupportVectorMachine, part: Part, log_Cs: torch.Tensor, log_widths: torch.Tensor) -> torch.Tensor:
    """Validation losses on the grid, (log_Cs, log_widths)."""
    with torch.no_grad():
        rows = [[machine.loss(machine.solve(c, w.reshape(1)), w, part) for w in log_widths] for c in log_Cs]
    return torch.tensor(rows, dtype=torch.float64)


def _learn(
    machine: SupportVectorMachine, part: Part, log_C: float, log_width: torch.Tensor, steps: int
) -> tuple[BilevelResult, Path]:
    """Minimise the validation loss by L-BFGS; returns the result and the iterates (log C, first log width)."""
    visited: Path = []

    def loss(solution: Solution, log_C: torch.Tensor, log_width: torch.Tensor) -> torch.Tensor:
        return machine.loss(solution, log_width, part)

    def watched(solution: Solution, log_C: torch.Tensor, log_width: torch.Tensor) -> torch.Tensor:
        visited.append((log_C.item(), log_width[0].item()))
        return loss(solution, log_C, log_width)

    result = solve_bilevel(
        loss,
        machine.solve,
        [torch.tensor(log_C, dtype=torch.float64), log_width],
        optimizer=TorchOptimizer(
            lambda parameters: torch.optim.LBFGS(parameters, line_search_fn="strong_wolfe", max_iter=4)
        ),
        stop=Stop(max_iter=steps, progress_tol=1e-3),
        validation=watched,
        progress=False,
    )
    return result, visited


def _found(machine: SupportVectorMachine, data: dict[str, Part], result: BilevelResult) -> dict[str, float]:
    scores = _scores(machine, data, result.solution, result.theta[1])
    return {"lower_solves": result.history.evaluations[-1], **scores}


def _scores(
    machine: SupportVectorMachine, data: dict[str, Part], solution: Solution, log_width: torch.Tensor
) -> dict[str, float]:
    found = {}
    for name in ("validation", "test"):
        found[f"{name}_loss"] = float(machine.loss(solution, log_width, data[name]))
        found[f"{name}_error"] = float((machine.margins(solution, log_width, data[name]) <= 0).double().mean())
    return found


def _gradient_error(machine: SupportVectorMachine, part: Part) -> float:
    """Relative error of the gradient in log C and one log width against central differences."""

    def loss(theta: torch.Tensor) -> torch.Tensor:
        return machine.loss(machine.solve(theta[0], theta[1:]), theta[1:], part)

    theta = torch.tensor([1.0, 0.5], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(theta), theta)
    step = 1e-5
    with torch.no_grad():
        pairs = [(loss(theta + step * unit), loss(theta - step * unit)) for unit in torch.eye(2, dtype=torch.float64)]
    numeric = torch.stack([(ahead - behind) / (2 * step) for ahead, behind in pairs])
    return float((gradient - numeric).norm() / numeric.norm())
