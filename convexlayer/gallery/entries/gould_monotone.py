"""Invariance of the argmin and its gradient under monotone transformations of the objective.

    g(x) = argmin over y of h(f(x, y)),    g'(x) = -f_XY / f_YY,    for h monotone with h' nonzero

Erratum: lemma 3.4 requires only that h is monotone, but its proof uses h' nonzero. h(u) = u^3 is increasing with
h'(0) = 0: if f = 0 at its minimum, both derivatives of h(f) vanish, and lemma 3.1 gives 0 / 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from convexlayer.gallery.result import Claim, Result
from convexlayer.gallery.style import legend_below, panels
from convexlayer.nodes import NodeOptions, StationaryNode

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "Gould et al. 2016, section 3.4, lemma 3.4"

INCREASING: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "f": lambda f: f,
    "exp f": torch.exp,
    "log f": torch.log,
    "sqrt f": torch.sqrt,
}
DECREASING: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "-f": torch.neg,
    "exp(-f)": lambda f: torch.exp(-f),
    "1 / f": torch.reciprocal,
}
"""Maps under which a minimum becomes a maximum."""

MAPS = {**INCREASING, **DECREASING}
NAMES = {
    "f": "$f$",
    "exp f": r"$e^f$",
    "log f": r"$\log f$",
    "sqrt f": r"$\sqrt{f}$",
    "-f": "$-f$",
    "exp(-f)": "$e^{-f}$",
    "1 / f": "$1/f$",
}
"""Labels in the figure."""


def objective(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A positive function whose minimum has no closed form."""
    return 1.0 + 0.5 * (y - torch.sin(x)).square() + 0.05 * (y - x).pow(4)


def through(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    """h(f(x, y))."""
    return lambda y, x: change(objective(y, x))


def lemma(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """-f_XY / f_YY, lemma 3.1."""
    slope = torch.func.grad(objective)
    return -torch.func.grad(slope, argnums=1)(y, x) / torch.func.grad(slope)(y, x)


def cubed(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """u^3 of u = (y - sin x)^2 / 2, which is zero at its minimum."""
    return (0.5 * (y - torch.sin(x)).square()) ** 3


def run(*, points: int = 101) -> Result:
    """Differentiate the stationary point of each composition, and compare with that of f."""
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
    at = torch.tensor(1.0, dtype=torch.float64)
    slope = torch.func.grad(cubed)
    flat = (
        float(torch.func.grad(slope, argnums=1)(torch.sin(at), at).abs()),
        float(torch.func.grad(slope)(torch.sin(at), at).abs()),
    )
    numbers = {
        "cubed_second_derivatives": flat,
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
        ),
        Claim(
            "(erratum) h' must be nonzero: u^3 is increasing, but not where f = 0 at its minimum",
            f"there h(f)_XY = {flat[0]:g} and h(f)_YY = {flat[1]:g}, so that lemma 3.1 gives 0 / 0",
            flat == (0.0, 0.0),
        ),
    ]

    def draw(figure: Figure) -> None:
        up, down, slope_axes, errors = panels(figure, 4, width=3.0, height=3.4)
        grid = torch.linspace(-1.5, 3.0, 200, dtype=torch.float64)
        for axes, maps, title in ((up, INCREASING, "increasing $h$"), (down, DECREASING, "decreasing $h$")):
            for name, change in maps.items():
                height = change(objective(grid, at))
                colour = f"C{list(MAPS).index(name)}"
                axes.plot(
                    grid, (height - height.min()) / (height.max() - height.min()), color=colour, label=NAMES[name]
                )
            axes.axvline(float(values["f"][(x - 1.0).abs().argmin()]), color="k", linestyle=":", label="$g(1)$")
            axes.set(xlabel="$y$", ylabel="$h(f(1, y))$, scaled to [0, 1]", title=title)
            legend_below(axes, 3)
        slope_axes.plot(x, expected, color="0.75", linewidth=5, label="lemma 3.1 on $f$")
        every = max(len(x) // 14, 1)
        for place, name in enumerate(MAPS):
            marked = slice(place * every // len(MAPS), None, every)  # none hides another
            slope_axes.plot(x[marked], gradients[name][marked], "o", color=f"C{place}")
        slope_axes.set(xlabel="$x$", ylabel="$g'(x)$", title="gradients through all seven")
        legend_below(slope_axes)
        eps = torch.finfo(torch.float64).eps
        rows = range(len(MAPS))
        errors.plot([value_difference[name] / eps for name in MAPS], rows, "o", markersize=6, label="of $g$")
        errors.plot([gradient_difference[name] / eps for name in MAPS], rows, "D", label="of $g'$")
        errors.set(
            xlabel=r"largest difference / $2^{-52}$",
            ylabel="$h(f)$",
            title="through $h$ against direct",
            xlim=(-0.2, None),
        )
        errors.set_yticks(rows, [NAMES[name] for name in MAPS])
        errors.invert_yaxis()
        legend_below(errors)

    return Result(numbers, claims, draw)
