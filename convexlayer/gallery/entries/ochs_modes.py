"""Forward against reverse mode: work, memory and agreement by the number of parameters and of iterations."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, final

import torch

from convexlayer.gallery.measure import saved_bytes, work
from convexlayer.gallery.result import Claim, Result
from convexlayer.gallery.style import panels
from convexlayer.nodes import (
    AbstractDerivative,
    FixedPointNode,
    ForwardBackward,
    ForwardMode,
    Implicit,
    Neumann,
    Unrolled,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "Ochs, Ranftl, Brox and Pock 2016, sections 4.2 and 4.3"

UNROLLED, FORWARD, SERIES, DENSE = (
    "reverse (unrolled)",
    "forward",
    "implicit, series",
    "implicit, dense (factor not counted)",
)


@final
class _Regression:
    """Ridge regression with P weights shared by n coefficients, by gradient descent.

        x*(theta) = argmin over x of 1/2 |A x - b|^2 / m + 1/2 sum_i exp(theta_(i mod P)) x_i^2

    A step takes one product with A and one with A'.
    """

    def __init__(self, n: int, P: int) -> None:
        generator = torch.Generator().manual_seed(0)
        m = 2 * n
        self._A = torch.randn(m, n, dtype=torch.float64, generator=generator)
        self._truth = torch.randn(n, dtype=torch.float64, generator=generator)
        noise = torch.randn(m, dtype=torch.float64, generator=generator)
        self._b = self._A @ self._truth + noise
        self._of = torch.arange(n) % P
        self.theta = -1.0 + 0.3 * torch.randn(P, dtype=torch.float64, generator=generator)
        step_size = 1.0 / (float(torch.linalg.matrix_norm(self._A, 2)) ** 2 / m + 1.0)
        self._step = ForwardBackward(self._slope, step_size)

    def node(self, derivative: AbstractDerivative) -> FixedPointNode:
        """Node that computes the coefficients."""
        shape, parameters = (len(self._truth),), [(len(self.theta),)]
        return FixedPointNode(
            self._step, shape, parameters, derivative=derivative, on_failure="keep", on_degenerate="report"
        )

    def loss(self, x: torch.Tensor) -> torch.Tensor:
        """Half the squared distance from the true coefficients."""
        return 0.5 * (x - self._truth).square().sum()

    def gradient(self, derivative: AbstractDerivative) -> torch.Tensor:
        """Gradient of the loss through a node."""
        theta = self.theta.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self.loss(self.node(derivative)(theta)), theta)
        return gradient

    def exact_loss(self, theta: torch.Tensor) -> torch.Tensor:
        """Loss at the exact solution."""
        gram = self._A.T @ self._A / len(self._b) + torch.diag(torch.exp(theta)[self._of])
        return self.loss(torch.linalg.solve(gram, self._A.T @ self._b / len(self._b)))

    def _slope(self, x: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        return self._A.T @ (self._A @ x - self._b) / len(self._b) + torch.exp(theta)[self._of] * x


def run(
    *,
    n: int = 100,
    parameters: tuple[int, ...] = (1, 3, 10, 30, 100),
    iterations: tuple[int, ...] = (10, 30, 100, 300),
    few: int = 10,
    steps: int = 100,
) -> Result:
    """Measure each mode by parameters, with ``steps`` iterations, and by iterations, with ``few`` parameters."""
    by_parameters = {P: _measured(_Regression(n, P), steps) for P in parameters}
    by_iterations = {k: _measured(_Regression(n, few), k) for k in iterations}
    difference = max(rows[FORWARD]["to_unrolled"] for rows in (*by_parameters.values(), *by_iterations.values()))
    exact_error = _exact_error(_Regression(n, few))
    least, most = by_parameters[parameters[0]], by_parameters[parameters[-1]]
    short, long = by_iterations[iterations[0]], by_iterations[iterations[-1]]
    span = iterations[-1] - iterations[0]
    growth = {name: (long[name]["saved_bytes"] - short[name]["saved_bytes"]) / span for name in long}
    numbers = {
        "by_parameters": by_parameters,
        "by_iterations": by_iterations,
        "saved_bytes_an_iteration": growth,
        "forward_to_unrolled": difference,
        "exact_gradient_error": exact_error,
    }
    claims = [
        Claim(
            "section 4.2: mathematically forward and backward mode result in the same solution",
            f"gradients differ by {difference:.0e} at most, relative",
            difference < 1e-12,
        ),
        Claim(
            "section 4.2: the reverse mode is more efficient for many parameters",
            f"multiplications, in those of a step, of {steps} steps and the gradient in {parameters[-1]} parameters: "
            f"forward {most[FORWARD]['products']:.0f}, reverse {most[UNROLLED]['products']:.0f}; in {parameters[0]}: "
            f"{least[FORWARD]['products']:.0f} and {least[UNROLLED]['products']:.0f}",
            most[FORWARD]["products"] > 10 * most[UNROLLED]["products"],
        ),
        Claim(
            "section 4.2: the forward mode's memory increases with the parameters, the reverse mode needs all iterates",
            f"kept for the backward pass, {parameters[0]} -> {parameters[-1]} parameters: forward "
            f"{_kib(least[FORWARD])} -> {_kib(most[FORWARD])} KiB, reverse {_kib(least[UNROLLED])} -> "
            f"{_kib(most[UNROLLED])}; {iterations[0]} -> {iterations[-1]} iterations: {_kib(short[FORWARD])} -> "
            f"{_kib(long[FORWARD])} and {_kib(short[UNROLLED])} -> {_kib(long[UNROLLED])}",
            growth[FORWARD] == 0.0
            and growth[UNROLLED] > 8 * n
            and most[FORWARD]["saved_bytes"] > 8 * n * parameters[-1],
        ),
        Claim(
            "section 4.3: the series at the fixed point needs to store only the optimum",
            f"{_kib(long[SERIES])} KiB whatever the iterations; its error after {iterations[-1]} is "
            f"{long[SERIES]['error']:.0e}, that of the unrolled gradient {long[UNROLLED]['error']:.0e}",
            growth[SERIES] == 0.0 and long[SERIES]["error"] < 1e-2,
        ),
    ]

    def draw(figure: Figure) -> None:
        places = panels(figure, 3, 2, sharex="row", sharey="col")
        kinds = {
            "products": ("work", "multiplications, in those of a step"),
            "saved_bytes": ("memory", "kept for backward, bytes"),
            "error": ("gradient", "relative error"),
        }
        labels = (f"parameters ({steps} iterations)", f"iterations ({few} parameters)")
        for row, (by, label) in enumerate(zip((by_parameters, by_iterations), labels, strict=True)):
            for axes, (key, (title, quantity)) in zip(places[3 * row : 3 * row + 3], kinds.items(), strict=True):
                for name, style in STYLES.items():
                    axes.loglog(list(by), [max(found[name][key], FLOOR) for found in by.values()], style, label=name)
                axes.set(xlabel=label, ylabel=quantity, title=title)
        figure.legend(*places[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(STYLES))

    return Result(numbers, claims, draw)


FLOOR = 1e-16
"""Smallest number drawn on the logarithmic scale."""

STYLES = {UNROLLED: "o-", FORWARD: "s--", SERIES: "^:", DENSE: "d-."}


def _measured(problem: _Regression, steps: int) -> dict[str, dict[str, float]]:
    """Measure each mode: multiplications relative to a step, saved bytes, and gradient errors against other modes."""
    ways: dict[str, AbstractDerivative] = {
        UNROLLED: Unrolled(steps),
        FORWARD: ForwardMode(steps),
        SERIES: Implicit(Neumann(steps), tol=0.0, max_iter=steps),
        DENSE: Implicit(tol=0.0, max_iter=steps),
    }
    leaf = problem.theta.clone().requires_grad_()
    (exact,) = torch.autograd.grad(problem.exact_loss(leaf), leaf)
    gradients = {name: problem.gradient(way) for name, way in ways.items()}
    one = work(lambda: problem.node(Unrolled(1))(problem.theta)).multiplications
    return {
        name: {
            "products": work(partial(problem.gradient, way)).multiplications / one,
            "saved_bytes": saved_bytes(partial(problem.node(way), leaf)),
            "error": float((gradients[name] - exact).norm() / exact.norm()),
            "to_unrolled": float((gradients[name] - gradients[UNROLLED]).norm() / exact.norm()),
        }
        for name, way in ways.items()
    }


def _exact_error(problem: _Regression) -> float:
    """Relative error of the exact gradient against central differences."""
    theta, step = problem.theta.clone().requires_grad_(), 1e-5
    (gradient,) = torch.autograd.grad(problem.exact_loss(theta), theta)
    with torch.no_grad():
        units = step * torch.eye(len(theta), dtype=torch.float64)
        slopes = [(problem.exact_loss(theta + unit) - problem.exact_loss(theta - unit)) / (2 * step) for unit in units]
    return float((gradient - torch.stack(slopes)).norm() / gradient.norm())


def _kib(found: dict[str, Any]) -> str:
    return f"{found['saved_bytes'] / 1024:.3g}"
