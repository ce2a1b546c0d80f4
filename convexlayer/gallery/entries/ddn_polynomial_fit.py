"""Polynomial curve fitting as a node: the sensitivity of the fit to each measurement.

The objective |A a - y|^2, A the powers of the x_i, is strongly convex: there is an m > 0 such that for all u and v
f(v) >= f(u) + f'(u)'(v - u) + m/2 |v - u|^2. So its minimum is unique and has a derivative in the data.

Erratum: the slides print m (v - u)^2 <= f(v) - f(u), which no function satisfies with u and v exchanged as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from convexlayer.gallery.result import Claim, Result
from convexlayer.gallery.style import legend_below, panels
from convexlayer.nodes import ArgminNode, least_squares

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "Gould 2026, slides: classic example polynomial curve fitting; least squares"


def run(*, degree: int = 5, measurements: int = 30) -> Result:
    """Fit y_i = sin(3 x_i) + noise on [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(-1, 1, measurements, dtype=torch.float64).requires_grad_()
    noise = torch.randn(measurements, dtype=torch.float64, generator=generator)
    y = (torch.sin(3 * x.detach()) + 0.2 * noise).requires_grad_()

    def powers(x: torch.Tensor) -> torch.Tensor:
        return x[:, None] ** torch.arange(degree + 1)

    def fit(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return least_squares(powers(x), y)

    a = fit(x, y)
    reference = np.polynomial.polynomial.polyfit(x.detach().numpy(), y.detach().numpy(), degree)
    value_error = float(np.abs(a.detach().numpy() - reference).max())
    implicit = ArgminNode(lambda a, A, y: (A @ a - y).square().sum(), (degree + 1,), [(-1, degree + 1), (-1,)])
    by_hand = torch.func.jacrev(fit, argnums=(0, 1))(x.detach(), y.detach())
    by_theorem = torch.func.jacrev(lambda x, y: implicit(powers(x), y), argnums=(0, 1))(x.detach(), y.detach())
    gradient_error = max(
        float((ours - theirs).abs().max() / theirs.abs().max())
        for ours, theirs in zip(by_hand, by_theorem, strict=True)
    )
    # The derivative in y is the pseudo-inverse; its product with the powers is the hat matrix, of trace degree + 1.
    hat = powers(x.detach()) @ by_hand[1]
    leverage = hat.diagonal()
    trace_error = float((leverage.sum() - (degree + 1)).abs())
    numbers: dict[str, Any] = {
        "coefficients": a.detach(),
        "value_error_to_polyfit": value_error,
        "gradient_error_to_implicit": gradient_error,
        "leverage": leverage,
        "leverage_trace_error": trace_error,
    }
    claims = [
        Claim(
            "polynomial curve fitting is an instance of a least-squares problem",
            f"the node equals polyfit to {value_error:.0e}",
            value_error < 1e-9,
        ),
        Claim(
            "its solution has a derivative in the data",
            f"by hand and by the implicit function theorem agree to {gradient_error:.0e}; the leverages sum to "
            f"{float(leverage.sum()):.12f}, which is degree + 1",
            gradient_error < 1e-8 and trace_error < 1e-9,
        ),
    ]

    def draw(figure: Figure) -> None:
        curve, influence = panels(figure, 2, width=4.2, height=3.6)
        grid = torch.linspace(-1, 1, 200, dtype=torch.float64)
        curve.plot(x.detach(), y.detach(), "k.", label="measurements")
        curve.plot(grid, torch.sin(3 * grid), ":", color="0.4", label=r"truth, $\sin 3x$")
        curve.plot(grid, powers(grid) @ a.detach(), label=f"fit, degree {degree}")
        curve.set(xlabel="$x$", ylabel="$y$", title="measurements and fit")
        legend_below(curve, 3)
        influence.vlines(x.detach(), 0.0, leverage, color="C0")
        influence.plot(x.detach(), leverage, "o", color="C0", label="by hand")
        influence.axhline(
            (degree + 1) / measurements, color="k", linestyle=":", label="mean, (degree + 1) / measurements"
        )
        influence.set(xlabel="$x_i$", ylabel=r"$d\,fit(x_i) / d\,y_i$", title="leverage of each measurement")
        influence.set_ylim(0.0, None)
        legend_below(influence)

    return Result(numbers, claims, draw)
