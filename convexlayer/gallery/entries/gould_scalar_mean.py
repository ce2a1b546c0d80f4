"""The mean of functions of x as an argmin: lemma 3.1 gives the mean of their derivatives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from convexlayer.gallery.result import Claim, Result
from convexlayer.gallery.style import panels
from convexlayer.nodes import ArgminNode

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "Gould et al. 2016, section 3.1"

NAMES = (r"\sin 3x", "x^2", "e^{-x}", "x")


def terms(x: torch.Tensor) -> torch.Tensor:
    """h_i(x), i = 1 ... 4."""
    return torch.stack([torch.sin(3.0 * x), x**2, torch.exp(-x), x])


def objective(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """f(x, y) = sum (h_i(x) - y)^2."""
    return (terms(x) - y).square().sum()


def run(*, points: int = 201) -> Result:
    """Compare the node's values and gradients with eq. 18 on a grid of x, solved as one batch."""
    x = torch.linspace(-1.5, 1.5, points, dtype=torch.float64, requires_grad=True)
    y, report = ArgminNode(objective, (), [()]).solve(x)
    (gradient,) = torch.autograd.grad(y.y.sum(), x)
    slopes = torch.func.vmap(torch.func.jacrev(terms))(x.detach())
    error = float((y.y - torch.func.vmap(terms)(x).mean(-1)).detach().abs().max())
    gradient_error = float((gradient - slopes.mean(-1)).abs().max())
    numbers = {
        "value_error": error,
        "gradient_error": gradient_error,
        "iterations": int(report.iterations.max()),
        "x": x.detach(),
        "y": y.y.detach(),
        "gradient": gradient,
    }
    claims = [
        Claim("g(x) = mean of h_i(x)", f"largest error {error:.0e} on {points} points", error < 1e-12),
        Claim("eq. 18: g'(x) = mean of h_i'(x)", f"largest error {gradient_error:.0e}", gradient_error < 1e-12),
    ]

    def draw(figure: Figure) -> None:
        grid = x.detach()
        functions = torch.func.vmap(terms)(grid)
        for axes, series, mean, mark in zip(
            panels(figure, 2, height=3.2), (functions, slopes), (y.y.detach(), gradient), ("", "'"), strict=True
        ):
            for i, name in enumerate(NAMES, start=1):
                axes.plot(grid, series[:, i - 1], color=f"C{i - 1}", linewidth=1.0, label=f"$h_{i} = {name}$")
            axes.plot(grid, mean, "k", linewidth=2.0, label="the node")
            axes.plot(grid, series.mean(-1), "w:", linewidth=1.0)  # on the node's black line
            axes.set(xlabel="$x$", ylabel=f"$h_i{mark}(x)$ and $g{mark}(x)$", xlim=(-1.5, 1.5))
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
        figure.axes[0].set_title("functions and their mean (dots: by formula)")
        figure.axes[1].set_title("derivatives and their mean (dots: eq. 18)")

    return Result(numbers, claims, draw)
