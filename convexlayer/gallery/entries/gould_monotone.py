"""The gradient of an argmin does not change when the objective goes through a monotone function."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from convexlayer.gallery.result import Claim, Result
from convexlayer.nodes import NodeOptions, StationaryNode

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "Gould et al. 2016, section 3.4, lemma 3.4"

MAPS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "f": lambda f: f,
    "exp f": torch.exp,
    "log f": torch.log,
    "sqrt f": torch.sqrt,
    "-f": torch.neg,
    "exp(-f)": lambda f: torch.exp(-f),
    "1 / f": torch.reciprocal,
}
"""Increasing ones, and decreasing ones, for which a minimum becomes a maximum."""


def objective(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A positive function without a closed form for its minimum."""
    return 1.0 + 0.5 * (y - torch.sin(x)).square() + 0.05 * (y - x).pow(4)


def through(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    """h(f(x, y))."""
    return lambda y, x: change(objective(y, x))


def lemma(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """-f_XY / f_YY, lemma 3.1."""
    slope = torch.func.grad(objective)
    return -torch.func.grad(slope, argnums=1)(y, x) / torch.func.grad(slope)(y, x)


def run(*, points: int = 101) -> Result:
    """Differentiate the stationary point of each composition, and compare with f's own gradient."""
    x = torch.linspace(-2.0, 2.0, points, dtype=torch.float64)
    values, gradients = {}, {}
    for name, change in MAPS.items():
        node = StationaryNode(through(change), (), [()], options=NodeOptions(start=torch.sin))
        theta = x.clone().requires_grad_()
        y = node(theta)
        (gradients[name],) = torch.autograd.grad(y.sum(), theta)
        values[name] = y.detach()
    expected = torch.func.vmap(lemma)(values["f"], x)
    value_difference = {name: float((values[name] - values["f"]).abs().max()) for name in MAPS}
    gradient_difference = {name: float((gradients[name] - expected).abs().max()) for name in MAPS}
    worst = max(MAPS, key=lambda name: max(value_difference[name], gradient_difference[name]))
    numbers = {
        "value_difference": value_difference,
        "gradient_difference": gradient_difference,
        "x": x,
        "y": values["f"],
        "gradient": gradients["f"],
    }
    claims = [
        Claim(
            "lemma 3.4: g and g' stay as they are under increasing and decreasing maps",
            f"{len(MAPS)} maps; at worst ({worst}) g differs by {value_difference[worst]:.0e} and g' by "
            f"{gradient_difference[worst]:.0e}",
            max(*value_difference.values(), *gradient_difference.values()) < 1e-10,
        )
    ]

    def draw(figure: Figure) -> None:
        figure.set_size_inches(10, 4)
        left, right = figure.subplots(1, 2)
        grid = torch.linspace(-3.0, 3.0, 200, dtype=torch.float64)
        for name, change in MAPS.items():
            height = change(objective(grid, torch.tensor(1.0, dtype=torch.float64)))
            left.plot(grid, (height - height.min()) / (height.max() - height.min()), label=name)
        left.axvline(float(values["f"][(x - 1.0).abs().argmin()]), color="k", linestyle=":")
        left.set(xlabel="y", title="h(f(1, y)), scaled to [0, 1]")
        left.legend(fontsize="small")
        for name in MAPS:
            right.semilogy(x, (gradients[name] - expected).abs() + 1e-18, ".", label=name)
        right.set(xlabel="x", title="difference of g'(x) from lemma 3.1", ylim=(1e-18, 1e-8))

    return Result(numbers, claims, draw)
