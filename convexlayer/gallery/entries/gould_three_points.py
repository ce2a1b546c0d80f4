"""A function with three stationary points: all three branches and their gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from convexlayer.gallery.result import Claim, Result
from convexlayer.nodes import NodeOptions, StationaryNode

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "Gould et al. 2016, section 3.2, figure 1"

BRANCHES = {
    "lower": lambda y, *_: y.argmin(),
    "middle": lambda y, *_: y.abs().argmin(),
    "upper": lambda y, *_: y.argmax(),
}
"""Which of the stationary points found is meant."""


def objective(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Eq. 19."""
    return x * y**4 + 2.0 * x**2 * y**3 - 12.0 * y**2


def starts(x: torch.Tensor) -> torch.Tensor:
    """Points around all stationary ones: |y| is at most 1.5 |x| + sqrt(6 / |x|)."""
    reach = 1.5 * x.abs() + torch.sqrt(6.0 / x.abs())
    return 1.2 * reach * torch.linspace(-1.0, 1.0, 25, dtype=x.dtype)


def closed_form(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Eq. 24."""
    root = torch.sqrt(9.0 * x**4 + 96.0 * x)
    return {
        "lower": (-3.0 * x**2 - root) / (4.0 * x),
        "middle": torch.zeros_like(x),
        "upper": (-3.0 * x**2 + root) / (4.0 * x),
    }


def closed_gradient(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Eq. 23."""
    return -(y**3 + 3.0 * x * y**2) / (3.0 * x * y**2 + 3.0 * x**2 * y - 6.0)


def run(*, points: int = 101) -> Result:
    """Follow each branch over a grid of x and compare it with eq. 23 and 24; look at what kind of points they are."""
    x = torch.linspace(0.25, 5.0, points, dtype=torch.float64)
    expected = closed_form(x)
    values, gradients, errors, gradient_errors, curvature = {}, {}, {}, {}, {}
    for name, choose in BRANCHES.items():
        node = StationaryNode(objective, (), [()], options=NodeOptions(start=starts, choose=choose))
        theta = x.clone().requires_grad_()
        y = node(theta)
        (gradients[name],) = torch.autograd.grad(y.sum(), theta)
        values[name] = y.detach()
        errors[name] = float((values[name] - expected[name]).abs().max())
        gradient_errors[name] = float((gradients[name] - closed_gradient(x, expected[name])).abs().max())
        curvature[name] = torch.func.vmap(torch.func.grad(torch.func.grad(objective)))(values[name], x)
    kinds = {
        name: "minimum" if (c > 0).all() else "maximum" if (c < 0).all() else "mixed" for name, c in curvature.items()
    }
    numbers = {
        "value_error": errors,
        "gradient_error": gradient_errors,
        "kind": kinds,
        "x": x,
        "y": values,
        "gradient": gradients,
    }
    claims = [
        Claim(
            f"eq. 24: the {name} stationary point, eq. 23: its gradient",
            f"errors {errors[name]:.0e} and {gradient_errors[name]:.0e} on {points} points; it is a {kinds[name]}",
            max(errors[name], gradient_errors[name]) < 1e-10,
        )
        for name in BRANCHES
    ]
    claims.append(
        Claim(
            "the result holds for any stationary point, not for minima only (the section's title says three minima)",
            f"y = 0 is a {kinds['middle']} for x > 0, the other two are minima",
            kinds == {"lower": "minimum", "middle": "maximum", "upper": "minimum"},
        )
    )

    def draw(figure: Figure) -> None:
        figure.set_size_inches(14, 6)
        panels = figure.subplots(2, 4)
        y = torch.linspace(-8.0, 5.0, 200, dtype=torch.float64)
        surface = objective(y.unsqueeze(1), x.unsqueeze(0))
        contours = panels[0, 0].contourf(x, y, torch.sign(surface) * torch.log1p(surface.abs()), levels=30)
        figure.colorbar(contours, ax=panels[0, 0], label="signed log(1 + |f|)")
        panels[0, 0].set(xlabel="x", ylabel="y", title="f(x, y)")
        near = torch.linspace(-5.0, 3.5, 200, dtype=torch.float64)
        panels[1, 0].plot(near, objective(near, torch.tensor(1.0)))
        panels[1, 0].set(xlabel="y", title="f(1, y)")
        for column, name in enumerate(BRANCHES, start=1):
            panels[0, 0].plot(x, values[name], "w", linewidth=1)
            panels[0, column].plot(x, values[name])
            panels[0, column].set(xlabel="x", title=f"g(x), {name} ({kinds[name]})")
            panels[1, column].plot(x, gradients[name], label="node")
            panels[1, column].plot(x, closed_gradient(x, expected[name]), "k:", label="eq. 23")
            panels[1, column].set(xlabel="x", title="g'(x)")
            panels[1, column].legend()
        for panel in panels[:, 2]:
            panel.set_ylim(-1.0, 1.0)  # zero up to rounding

    return Result(numbers, claims, draw)
