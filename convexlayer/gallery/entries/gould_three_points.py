"""A function with three stationary points: all branches and their gradients, for x > 0 and x < 0.

    f(x, y) = x y^4 + 2 x^2 y^3 - 12 y^2
    g(x) in {0, (-3 x^2 - r) / (4 x), (-3 x^2 + r) / (4 x)},    r = sqrt(9 x^4 + 96 x)

All three exist where r is real: for x > 0, and for x below the fold at -(32 / 3)^(1/3), where two of them meet with
f_YY = 0 and infinite g'. Between the fold and 0 there is y = 0 only.

Erratum: the title of the section has three minima. y = 0 is a maximum, and for x < 0 so is the outer point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from convexlayer.gallery.result import Claim, Result
from convexlayer.gallery.style import legend_below, panels
from convexlayer.nodes import NodeOptions, StationaryNode

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SOURCE = "Gould et al. 2016, section 3.2, figure 1"

FOLD = -((32.0 / 3.0) ** (1.0 / 3.0))
"""Largest x < 0 with three stationary points; see above."""

SIDES = {"x > 0": (0.25, 5.0), "x < 0": (-5.0, FOLD - 0.1)}
"""Ranges of x."""

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


@dataclass(frozen=True)
class Branch:
    """Stationary points on a grid of x, with their gradients and errors.

    Attributes:
        y: stationary points.
        gradient: dy / dx.
        value_error: largest distance from eq. 24.
        gradient_error: largest distance from eq. 23, relative where that exceeds 1.
        kind: minimum, maximum or, where the curvature changes its sign, mixed.
    """

    y: torch.Tensor
    gradient: torch.Tensor
    value_error: float
    gradient_error: float
    kind: str


def follow(name: str, x: torch.Tensor) -> Branch:
    """Solve and differentiate one branch on a grid of x."""
    node = StationaryNode(objective, (), [()], options=NodeOptions(start=starts, choose=BRANCHES[name]))
    theta = x.clone().requires_grad_()
    y = node(theta)
    (gradient,) = torch.autograd.grad(y.sum(), theta)
    y = y.detach()
    expected = closed_form(x)[name]
    exact = closed_gradient(x, expected)
    curvature = torch.func.vmap(torch.func.grad(torch.func.grad(objective)))(y, x)
    return Branch(
        y,
        gradient,
        value_error=float((y - expected).abs().max()),
        gradient_error=float(((gradient - exact).abs() / exact.abs().clamp(min=1.0)).max()),
        kind="minimum" if (curvature > 0).all() else "maximum" if (curvature < 0).all() else "mixed",
    )


def run(*, points: int = 101) -> Result:
    """Follow each branch over grids of x, compare it with eq. 23 and 24, and classify its points."""
    grids = {side: torch.linspace(*ends, points, dtype=torch.float64) for side, ends in SIDES.items()}
    branches = {side: {name: follow(name, x) for name in BRANCHES} for side, x in grids.items()}

    def by_branch(attribute: str) -> dict[str, dict[str, Any]]:
        return {side: {name: getattr(found, attribute) for name, found in by.items()} for side, by in branches.items()}

    errors, gradient_errors, kinds = by_branch("value_error"), by_branch("gradient_error"), by_branch("kind")
    numbers = {
        "value_error": errors,
        "gradient_error": gradient_errors,
        "kind": kinds,
        "x": grids,
        "y": by_branch("y"),
        "gradient": by_branch("gradient"),
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
        right, left, value, gradient = panels(figure, 4, width=3.1, height=3.5)
        _draw_slice(right, 1.0, (-4.6, 3.0), kinds["x > 0"])
        _draw_slice(left, -3.0, (-1.2, 4.4), kinds["x < 0"])
        for side, x in grids.items():
            _draw_branches(value, gradient, x, branches[side], labelled=side == "x > 0")
        for axes, label, title in ((value, "$g(x)$", "branches"), (gradient, "$g'(x)$", "gradients (rings: eq. 23)")):
            axes.axvspan(FOLD, 0.0, color="0.9")
            axes.set(xlabel="$x$", ylabel=label, title=title)
            legend_below(axes, 3, title="solid: minima, dashed: maxima", handlelength=1.2, columnspacing=1.0)
        gradient.set_ylim(-8.0, 8.0)
        value.annotate("only $y = 0$", (FOLD / 2, 4.0), ha="center", va="center", rotation=90, color="0.3")

    return Result(numbers, claims, draw)


def _draw_slice(axes: Axes, at: float, reach: tuple[float, float], kinds: dict[str, str]) -> None:
    """Draw f(x, y) over y at one x, with its stationary points."""
    x = torch.tensor(at, dtype=torch.float64)
    y = torch.linspace(*reach, 200, dtype=torch.float64)
    axes.plot(y, objective(y, x), "0.4")
    for colour, (name, point) in enumerate(closed_form(x).items()):
        axes.plot(point, objective(point, x), KINDS[kinds[name]], color=f"C{colour}", markersize=8, label=name)
    axes.set(xlabel="$y$", ylabel=f"$f({at:g}, y)$", title=f"slice at $x = {at:g}$")
    legend_below(axes, 3, title="circles: minima, triangles: maxima", handletextpad=0.1, columnspacing=1.0)


def _draw_branches(
    value: Axes, gradient: Axes, x: torch.Tensor, branches: dict[str, Branch], *, labelled: bool
) -> None:
    """Draw the branches on one side of x = 0 and their gradients, with eq. 23 at some points."""
    for colour, (name, branch) in enumerate(branches.items()):
        style = "-" if branch.kind == "minimum" else "--"
        for axes, series in ((value, branch.y), (gradient, branch.gradient)):
            axes.plot(x, series, style, color=f"C{colour}", label=name if labelled else None)
        some = slice(None, None, max(len(x) // 10, 1))
        exact = closed_gradient(x, closed_form(x)[name])
        gradient.plot(x[some], exact[some], "o", color=f"C{colour}", markerfacecolor="w")
