"""A function with three stationary points: all branches and their gradients, for x > 0 and x < 0.

    f(x, y) = x y^4 + 2 x^2 y^3 - 12 y^2
    g(x) in {0, (-3 x^2 - r) / (4 x), (-3 x^2 + r) / (4 x)},    r = sqrt(9 x^4 + 96 x)

All three exist where r is real: for x > 0, and for x below the fold at -(32 / 3)^(1/3), where two of them meet with
f_YY = 0 and infinite g'. Between the fold and 0 there is y = 0 only.

Erratum: the title of the section has three minima. y = 0 is a maximum, and for x < 0 so is the outer point.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from convexlayer.gallery.result import Claim, Result
from convexlayer.gallery.style import legend_below, panels
from convexlayer.nodes import NodeOptions, StationaryNode

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "Gould et al. 2016, section 3.2, figure 1"

FOLD = -((32.0 / 3.0) ** (1.0 / 3.0))
SIDES = {"x > 0": (0.25, 5.0), "x < 0": (-5.0, FOLD - 0.1)}

BRANCHES = {
    "y = 0": lambda y, *_: y.abs().argmin(),
    "root with -": lambda y, f, x: torch.where(x > 0, y, -y).argmin(),
    "root with +": lambda y, f, x: torch.where(x > 0, -y, torch.where(y.abs() < 1e-9, torch.inf, y)).argmin(),
}
"""Selection among the stationary points, by eq. 24, whose roots are both positive for x < 0, with + the smaller."""

KINDS = {"minimum": "o", "maximum": "^"}


def objective(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Eq. 19."""
    return x * y**4 + 2.0 * x**2 * y**3 - 12.0 * y**2


def starts(x: torch.Tensor) -> torch.Tensor:
    """Initial points around all stationary points, for which |y| is at most 1.5 |x| + sqrt(6 / |x|)."""
    reach = 1.5 * x.abs() + torch.sqrt(6.0 / x.abs())
    return 1.2 * reach * torch.linspace(-1.0, 1.0, 25, dtype=x.dtype)


def closed_form(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Eq. 24."""
    root = torch.sqrt(9.0 * x**4 + 96.0 * x)
    return {
        "y = 0": torch.zeros_like(x),
        "root with -": (-3.0 * x**2 - root) / (4.0 * x),
        "root with +": (-3.0 * x**2 + root) / (4.0 * x),
    }


def closed_gradient(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Eq. 23."""
    return -(y**3 + 3.0 * x * y**2) / (3.0 * x * y**2 + 3.0 * x**2 * y - 6.0)


def run(*, points: int = 101) -> Result:
    """Follow each branch over grids of x, compare it with eq. 23 and 24, and classify its points."""
    grids = {side: torch.linspace(*ends, points, dtype=torch.float64) for side, ends in SIDES.items()}
    curvature_of = torch.func.vmap(torch.func.grad(torch.func.grad(objective)))
    values: dict[str, dict[str, torch.Tensor]] = {}
    gradients: dict[str, dict[str, torch.Tensor]] = {}
    errors: dict[str, dict[str, float]] = {}
    gradient_errors: dict[str, dict[str, float]] = {}
    kinds: dict[str, dict[str, str]] = {}
    for side, x in grids.items():
        values[side], gradients[side], errors[side], gradient_errors[side], kinds[side] = {}, {}, {}, {}, {}
        for name, expected in closed_form(x).items():
            node = StationaryNode(objective, (), [()], options=NodeOptions(start=starts, choose=BRANCHES[name]))
            theta = x.clone().requires_grad_()
            y = node(theta)
            (slope,) = torch.autograd.grad(y.sum(), theta)
            exact = closed_gradient(x, expected)
            values[side][name], gradients[side][name] = y.detach(), slope
            errors[side][name] = float((y.detach() - expected).abs().max())
            gradient_errors[side][name] = float(((slope - exact).abs() / exact.abs().clamp(min=1.0)).max())
            curvature = curvature_of(y.detach(), x)
            kinds[side][name] = "minimum" if (curvature > 0).all() else "maximum" if (curvature < 0).all() else "mixed"
    numbers = {
        "value_error": errors,
        "gradient_error": gradient_errors,
        "kind": kinds,
        "x": grids,
        "y": values,
        "gradient": gradients,
        "fold": FOLD,
    }
    claims = [
        Claim(
            f"eq. 24: the stationary points for {side}, eq. 23: their gradients",
            f"errors at most {max(errors[side].values()):.0e} and {max(gradient_errors[side].values()):.0e}, the "
            f"latter relative where it exceeds 1, on {points} points of each branch",
            max(*errors[side].values(), *gradient_errors[side].values()) < 1e-10,
        )
        for side in SIDES
    ]
    claims.append(
        Claim(
            "the result holds for any stationary point, not for minima only (the section's title says three minima)",
            "; ".join(
                f"for {side} " + ", ".join(f"{name} is a {kind}" for name, kind in by.items())
                for side, by in kinds.items()
            ),
            kinds
            == {
                "x > 0": {"y = 0": "maximum", "root with -": "minimum", "root with +": "minimum"},
                "x < 0": {"y = 0": "maximum", "root with -": "maximum", "root with +": "minimum"},
            },
        )
    )

    def draw(figure: Figure) -> None:
        upper = panels(figure, 4, width=3.1, height=3.5)
        for axes, at, reach in ((upper[0], 1.0, (-4.6, 3.0)), (upper[1], -3.0, (-1.2, 4.4))):
            x = torch.tensor(at, dtype=torch.float64)
            y = torch.linspace(*reach, 200, dtype=torch.float64)
            axes.plot(y, objective(y, x), "0.4")
            for colour, (name, point) in enumerate(closed_form(x).items()):
                marker = KINDS[kinds["x > 0" if at > 0 else "x < 0"][name]]
                axes.plot(point, objective(point, x), marker, color=f"C{colour}", markersize=8, label=name)
            axes.set(xlabel="$y$", ylabel=f"$f({at:g}, y)$", title=f"slice at $x = {at:g}$")
        for colour, name in enumerate(BRANCHES):
            for side, x in grids.items():
                label = name if side == "x > 0" else None
                style = "-" if kinds[side][name] == "minimum" else "--"
                upper[2].plot(x, values[side][name], style, color=f"C{colour}", label=label)
                upper[3].plot(x, gradients[side][name], style, color=f"C{colour}", label=label)
                upper[3].plot(
                    x[:: max(points // 10, 1)],
                    closed_gradient(x, closed_form(x)[name])[:: max(points // 10, 1)],
                    "o",
                    color=f"C{colour}",
                    markerfacecolor="w",
                )
        for axes, label, title in (
            (upper[2], "$g(x)$", "branches"),
            (upper[3], "$g'(x)$", "gradients (rings: eq. 23)"),
        ):
            axes.axvspan(FOLD, 0.0, color="0.9")
            axes.set(xlabel="$x$", ylabel=label, title=title)
        upper[3].set_ylim(-8.0, 8.0)
        upper[2].annotate("only $y = 0$", (FOLD / 2, 4.0), ha="center", va="center", rotation=90, color="0.3")
        legend_below(upper[0], 3, title="circles: minima, triangles: maxima", handletextpad=0.1, columnspacing=1.0)
        legend_below(upper[1], 3, title="circles: minima, triangles: maxima", handletextpad=0.1, columnspacing=1.0)
        legend_below(upper[2], 3, title="solid: minima, dashed: maxima", handlelength=1.2, columnspacing=1.0)
        legend_below(upper[3], 3, title="solid: minima, dashed: maxima", handlelength=1.2, columnspacing=1.0)

    return Result(numbers, claims, draw)
