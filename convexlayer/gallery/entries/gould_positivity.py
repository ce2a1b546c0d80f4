"""A positivity constraint and its log-barrier, for several t: functions and gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from convexlayer.gallery.result import Claim, Result
from convexlayer.nodes import InequalityNode

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "Gould et al. 2016, section 4.3, figure 3"


def objective(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(x - y)^2, the case m = 1, h_1(x) = x of figure 3."""
    return (x - y).square()


def negated(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """-y <= 0."""
    return -y.reshape(1)


def smoothed(x: torch.Tensor, t: float) -> tuple[torch.Tensor, torch.Tensor]:
    """g_t(x), the positive root of 2 t (y - x) = 1 / y, and its derivative: the exercise below eq. 71."""
    root = torch.sqrt(x**2 + 2.0 / t)
    return 0.5 * (x + root), 0.5 * (1.0 + x / root)


def run(*, points: int = 200, barriers: Sequence[float] = (1.0, 10.0, 100.0, 1000.0)) -> Result:
    """Solve and differentiate with the active set and with each barrier; x = 0, a kink, is not on the even grid."""
    x = torch.linspace(-1.0, 1.0, points, dtype=torch.float64)

    def values(node: InequalityNode) -> tuple[torch.Tensor, torch.Tensor]:
        theta = x.clone().requires_grad_()
        y = node(theta)
        (gradient,) = torch.autograd.grad(y.sum(), theta)
        return y.detach(), gradient

    y, gradient = values(InequalityNode(objective, negated, (), [()]))
    exact = {
        "value_error": float((y - x.clamp(min=0.0)).abs().max()),
        "gradient_error": float((gradient - (x > 0).double()).abs().max()),
    }
    found = {t: values(InequalityNode(objective, negated, (), [()], t=t)) for t in barriers}
    barrier = {}
    for t, (value, slope) in found.items():
        expected, expected_slope = smoothed(x, t)
        paper = 2.0 * t / (2.0 * t + 1.0 / value**2)  # eq. 71 at g_t(x)
        inside, outside = x >= 0.5, x <= -0.5
        barrier[t] = {
            "value_error": float((value - expected).abs().max()),
            "gradient_error": float((slope - expected_slope).abs().max()),
            "eq_71_error": float((slope - paper).abs().max()),
            "distance_inside": float((slope[inside] - 1.0).abs().max()),
            "distance_outside": float(slope[outside].abs().max()),
            "distance_of_values": float((value - y).abs().max()),
        }
    last = barrier[barriers[-1]]
    worst = max(max(row["value_error"], row["gradient_error"], row["eq_71_error"]) for row in barrier.values())
    distances = [row["distance_inside"] for row in barrier.values()]
    numbers = {"exact": exact, "barrier": barrier, "x": x, "y": y, "gradient": gradient}
    claims = [
        Claim(
            "eq. 66: g(x) = max(0, x), with gradient 1 or 0",
            f"active set: errors {exact['value_error']:.0e} and {exact['gradient_error']:.0e}",
            max(exact.values()) < 1e-10,
        ),
        Claim(
            "eq. 71: g_t'(x) = 2 t / (2 t + 1 / g^2), with g_t(x) in closed form",
            f"barrier: largest error {worst:.0e} over t = {', '.join(f'{t:g}' for t in barriers)}",
            worst < 1e-9,
        ),
        Claim(
            "eq. 72: as t grows the gradient goes to 1 inside and to 0 outside",
            f"for |x| >= 1/2 it is within {last['distance_inside']:.0e} at t = {barriers[-1]:g}, from "
            f"{distances[0]:.0e} at t = {barriers[0]:g}",
            distances == sorted(distances, reverse=True) and last["distance_inside"] < 10.0 / barriers[-1],
        ),
    ]

    def draw(figure: Figure) -> None:
        figure.set_size_inches(10, 4)
        left, right = figure.subplots(1, 2)
        for t, (value, slope) in found.items():
            left.plot(x, value, label=f"t = {t:g}")
            right.plot(x, slope, label=f"t = {t:g}")
        left.plot(x, y, "k", label="active set")
        right.plot(x, gradient, "k", label="active set")
        left.set(xlabel="x", title="g(x)")
        right.set(xlabel="x", title="g'(x)")
        left.legend()
        right.legend()

    return Result(numbers, claims, draw)
