"""Most likely feature of a soft-max class, free, on a slice and in a ball, and its sensitivity to the parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from convexlayer.gallery.result import Claim, Result
from convexlayer.gallery.softmax import in_ball, negative, on_slice, parameter_gradients
from convexlayer.gallery.style import legend_below, panels
from convexlayer.nodes import ArgminNode, EqualityNode, InequalityNode

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.contour import QuadContourSet
    from matplotlib.figure import Figure

    from convexlayer.nodes import AbstractNode

SOURCE = "Gould et al. 2016, sections 3.3 and 4.4, figures 2, 4 and 5"


def run(
    *, classes: int = 10, seed: int = 20, barriers: Sequence[float] = (10.0, 100.0, 1e3, 1e4), step: float = 0.2
) -> Result:
    """Compare the Jacobians of all three nodes with eq. 33, 34, 74, 75 and the corrected 78 to 80, and take a step."""
    A, b, weights = classifier(classes, seed)
    shapes = [tuple(A.shape), tuple(b.shape), tuple(b.shape)]
    n = A.shape[1]
    nodes: dict[str, AbstractNode] = {
        "free": ArgminNode(negative, (n,), shapes),
        "slice": EqualityNode(negative, on_slice, (n,), shapes),
        "ball": InequalityNode(negative, in_ball, (n,), shapes),
    }
    solutions = {name: node(A, b, weights) for name, node in nodes.items()}
    jacobians = {name: jacobian(node, A, b, weights) for name, node in nodes.items()}
    errors = {
        name: formula_error(jacobians[name], solutions[name], A, b, weights, constrained=name == "slice")
        for name in ("free", "slice")
    }
    barrier = {t: barrier_errors(A, b, weights, t, jacobians["ball"]) for t in barriers}
    closed = max(row["corrected"] for row in barrier.values())
    to_exact = [row["to_exact"] for row in barrier.values()]
    first = barrier[barriers[0]]
    length = torch.linalg.vector_norm
    sums = jacobians["slice"][0].sum(0).abs().max()
    moved = {name: after_step(nodes[name], A, b, weights, jacobians[name], step) for name in nodes}
    decreases = {name: float((moved[name][0] - solutions[name])[0]) for name in nodes}
    numbers = {
        "solution": solutions,
        "formula_error": errors,
        "slice_gradient_sum": float(sums),
        "barrier": barrier,
        "ball_norm": float(length(solutions["ball"])),
        "free_norm": float(length(solutions["free"])),
        "first_coordinate_moved_by": decreases,
    }
    claims = [
        Claim(
            "eq. 33 and 34: gradients of the free solution",
            f"relative difference {errors['free']:.0e}",
            errors["free"] < 1e-10,
        ),
        Claim(
            "eq. 74 and 75: gradients on the slice, in the null space of 1'",
            f"relative difference {errors['slice']:.0e}, 1'g' = {float(sums):.0e}",
            max(errors["slice"], float(sums)) < 1e-10,
        ),
        Claim(
            "eq. 78 to 80: gradients in the ball by the barrier (here with the sign of eq. 80, the terms a_i - abar, "
            "and the barrier's Hessian over t put right)",
            f"corrected formulas {closed:.0e} from the node; as printed {100 * first['printed']:.0f} % at "
            f"t = {barriers[0]:g}",
            closed < 1e-8,
        ),
        Claim(
            "the barrier approximates the constrained gradient",
            "difference from the active set's "
            + ", ".join(f"{error:.0e} (t = {t:g})" for t, error in zip(barriers, to_exact, strict=True)),
            to_exact == sorted(to_exact, reverse=True) and to_exact[-1] < 20.0 / barriers[-1],
        ),
        Claim(
            "figures 2, 4 and 5: a step of all parameters along -dx_1 moves the solution's first coordinate down",
            ", ".join(f"{name} {value:+.3f}" for name, value in decreases.items()),
            all(value < 0 for value in decreases.values()),
        ),
    ]

    def draw(figure: Figure) -> None:
        places = panels(figure, 3, 2, width=3.3, height=3.35, sharex=True, sharey=True)
        for column, name in enumerate(nodes):
            before, after = solutions[name].detach(), moved[name][0].detach()
            shown = surface(places[column], A, b, weights, name, "before")
            surface(places[3 + column], *moved[name][1:], weights, name, "after the step")
            for axes, x in ((places[column], before), (places[3 + column], after)):
                axes.plot(*x, "X", color="C1", markersize=9, markeredgecolor="w", label="most likely")
            places[3 + column].plot(*before, "wX", fillstyle="none", markersize=9, label="before the step")
            places[3 + column].set_xlabel("$x_1$")
        for axes in (places[0], places[3]):
            axes.set_ylabel("$x_2$")
        figure.colorbar(shown, ax=places, label=r"likelihood $\ell_i(x)$", shrink=0.5, ticks=[0.0, 0.2, 0.4, 0.6])
        legend_below(places[4], 3, frameon=True, facecolor="0.45", edgecolor="none", labelcolor="w")

    return Result(numbers, claims, draw)


def classifier(classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw A (classes, 2) and b, and select the class whose a_i is nearest to the mean.

    That a_i is inside the convex hull of the others, so that the free solution exists.
    """
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(classes, 2, dtype=torch.float64, generator=generator)
    b = torch.randn(classes, dtype=torch.float64, generator=generator)
    inner = int((A - A.mean(0)).square().sum(-1).argmin())
    return A, b, torch.eye(classes, dtype=torch.float64)[inner]


def jacobian(
    node: AbstractNode, A: torch.Tensor, b: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """dx / dA (n, m, n) and dx / db (n, m)."""
    found: tuple[torch.Tensor, torch.Tensor] = torch.func.jacrev(node, argnums=(0, 1))(A, b, weights)
    return found


def hessian(x: torch.Tensor, A: torch.Tensor, b: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Eq. 30."""
    likelihood = torch.softmax(A @ x + b, 0)
    mean = likelihood @ A
    return torch.outer(mean, mean) - A.mT @ (likelihood.unsqueeze(-1) * A)


def formula_error(
    found: Sequence[torch.Tensor],
    x: torch.Tensor,
    A: torch.Tensor,
    b: torch.Tensor,
    weights: torch.Tensor,
    *,
    constrained: bool,
) -> float:
    """Relative difference of the Jacobians at x from eq. 33 and 34 or, constrained to the slice, eq. 74 and 75."""
    inverse = torch.linalg.inv(hessian(x, A, b, weights))
    if constrained:
        ones = torch.ones(len(x), 1, dtype=A.dtype)
        inverse = inverse - inverse @ ones @ ones.mT @ inverse / (ones.mT @ inverse @ ones)
    return difference(found, parameter_gradients(x, A, b, weights, inverse, drop=True))


def difference(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """Relative difference of two sets of Jacobians."""
    flat, other = (torch.cat([part.reshape(-1) for part in parts]) for parts in (found, expected))
    return float(torch.linalg.vector_norm(flat - other) / torch.linalg.vector_norm(other))


def barrier_errors(
    A: torch.Tensor, b: torch.Tensor, weights: torch.Tensor, t: float, exact: tuple[torch.Tensor, torch.Tensor]
) -> dict[str, float]:
    """Compare the Jacobian of the barrier node with the corrected and printed formulas and the active set."""
    shapes = [tuple(A.shape), tuple(b.shape), tuple(b.shape)]
    node = InequalityNode(negative, in_ball, (A.shape[1],), shapes, t=t)
    x = node(A, b, weights)
    found = jacobian(node, A, b, weights)
    room = 1.0 - x.square().sum()
    outer, eye = torch.outer(x, x), torch.eye(len(x), dtype=x.dtype)
    curvature = -4.0 / room**2 * outer - 2.0 / room * eye
    printed = 4.0 / room**2 * outer - 2.0 / room * eye
    H = hessian(x, A, b, weights)
    corrected = parameter_gradients(x, A, b, weights, torch.linalg.inv(H + curvature / t))
    as_printed = parameter_gradients(x, A, b, weights, torch.linalg.inv(H + printed), drop=True)
    return {
        "corrected": difference(corrected, found),
        "printed": difference(as_printed, found),
        "to_exact": difference(found, exact),
    }


def after_step(
    node: AbstractNode,
    A: torch.Tensor,
    b: torch.Tensor,
    weights: torch.Tensor,
    jacobians: tuple[torch.Tensor, torch.Tensor],
    step: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Solution, A and b after a step theta - step dx_1 / dtheta with the normalised gradient."""
    first = [part[0] for part in jacobians]
    length = torch.sqrt(first[0].square().sum() + first[1].square().sum())
    A, b = A - step / length * first[0], b - step / length * first[1]
    return node(A, b, weights), A, b


def surface(
    axes: Axes, A: torch.Tensor, b: torch.Tensor, weights: torch.Tensor, domain: str, when: str
) -> QuadContourSet:
    """Draw l_i over the plane, and the feasible set."""
    grid = torch.linspace(-2.0, 2.0, 121, dtype=A.dtype)
    points = torch.stack(torch.meshgrid(grid, grid, indexing="xy"), -1)
    likelihood = torch.softmax(points @ A.mT + b, -1) @ weights
    shown = axes.contourf(grid, grid, likelihood, levels=torch.linspace(0.0, 0.6, 25).tolist(), extend="max")
    if domain == "slice":
        axes.plot(grid, 1.0 - grid, "w--", linewidth=1)
    if domain == "ball":
        angle = torch.linspace(0.0, 2.0 * torch.pi, 100)
        axes.plot(torch.cos(angle), torch.sin(angle), "w--", linewidth=1)
    axes.grid(visible=False)
    axes.set(title=f"{domain}, {when}", xlim=(-2, 2), ylim=(-2, 2), aspect="equal")
    return shown
