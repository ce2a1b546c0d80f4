"""A positivity constraint and its log-barrier for several t: solutions and gradients.

    g(x) = argmin over y >= 0 of (x - y)^2 = max(0, x),    g_t(x) = argmin over y of t (x - y)^2 - log y
    g_t'(x) = 2 t / (2 t + 1 / g_t(x)^2)

Errata: eq. 71 prints g in place of g_t, which would give a gradient of 0 for all x <= 0 and any t. Eq. 72 omits the
kink, where g_t'(0) = 1/2 for every t: the limit there is the gradient of neither side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from convexlayer.gallery.result import Claim, Result
from convexlayer.gallery.style import legend_below, panels, shades
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
    """g_t(x), the positive root of 2 t (y - x) = 1 / y, and its derivative (exercise below eq. 71)."""
    root = torch.sqrt(x**2 + 2.0 / t)
    return 0.5 * (x + root), 0.5 * (1.0 + x / root)


def run(*, points: int = 200, barriers: Sequence[float] = (1.0, 10.0, 100.0, 1000.0)) -> Result:
    """Solve and differentiate with the active set and with each barrier; the grid does not contain the kink x = 0.

    At the kink and at x = 1/2 and -1/2 the gradient of the barrier is computed for many more t.
    """
    x = torch.linspace(-1.0, 1.0, points, dtype=torch.float64)

    y, gradient = _slope(InequalityNode(objective, negated, (), [()]), x)
    exact = {
        "value_error": float((y - x.clamp(min=0.0)).abs().max()),
        "gradient_error": float((gradient - (x > 0).double()).abs().max()),
    }
    found = {t: _slope(InequalityNode(objective, negated, (), [()], t=t), x) for t in barriers}
    barrier = {
        t: {**_barrier_errors(x, t, value, slope), "distance_of_values": float((value - y).abs().max())}
        for t, (value, slope) in found.items()
    }
    many = torch.logspace(0, 6, 13, dtype=torch.float64)
    places = torch.tensor([0.5, 0.0, -0.5], dtype=torch.float64)
    by_t = torch.stack([_slope(InequalityNode(objective, negated, (), [()], t=float(t)), places)[1] for t in many])
    kink = float((by_t[:, 1] - 0.5).abs().max())
    last = barrier[barriers[-1]]
    worst = max(max(row["value_error"], row["gradient_error"], row["eq_71_error"]) for row in barrier.values())
    distances = [row["distance_inside"] for row in barrier.values()]
    numbers = {
        "exact": exact,
        "barrier": barrier,
        "x": x,
        "y": y,
        "gradient": gradient,
        "t": many,
        "gradient_by_t": {"inside": by_t[:, 0], "kink": by_t[:, 1], "outside": by_t[:, 2]},
        "largest_distance_from_one_half_at_the_kink": kink,
    }
    claims = [
        Claim(
            "eq. 66: g(x) = max(0, x), with gradient 1 or 0",
            f"active set: errors {exact['value_error']:.0e} and {exact['gradient_error']:.0e}",
            max(exact.values()) < 1e-10,
        ),
        Claim(
            "eq. 71: g_t'(x) = 2 t / (2 t + 1 / g^2), with g_t in place of g; g_t(x) in closed form",
            f"barrier: largest error {worst:.0e} over t = {', '.join(f'{t:g}' for t in barriers)}",
            worst < 1e-9,
        ),
        Claim(
            "eq. 72: as t grows the gradient goes to 1 inside and to 0 outside",
            f"for |x| >= 1/2 it is within {last['distance_inside']:.0e} at t = {barriers[-1]:g}, from "
            f"{distances[0]:.0e} at t = {barriers[0]:g}",
            distances == sorted(distances, reverse=True) and last["distance_inside"] < 10.0 / barriers[-1],
        ),
        Claim(
            "(not in the paper) at the kink it goes to neither: g_t'(0) = 1/2",
            f"within {kink:.0e} for t from {many[0]:g} to {many[-1]:.0e}",
            kink < 1e-12,
        ),
    ]

    def draw(figure: Figure) -> None:
        function, slopes, limit = panels(figure, 3, height=3.5)
        for colour, (t, (value, slope)) in zip(shades(len(found)), found.items(), strict=True):
            function.plot(x, value, color=colour, label=f"$t = {t:g}$")
            slopes.plot(x, slope, color=colour, label=f"$t = {t:g}$")
        for sign in (x < 0, x > 0):
            function.plot(x[sign], y[sign], "k--", label="active set" if sign[0] else None)
            slopes.plot(x[sign], gradient[sign], "k--", label="active set" if sign[0] else None)
        slopes.plot(0.0, 0.5, "ko", markerfacecolor="w", zorder=3)
        function.set(xlabel="$x$", ylabel="$g_t(x)$", title="solution")
        slopes.set(xlabel="$x$", ylabel="$g_t'(x)$", title="gradient")
        for column, (marker, name) in enumerate((("o", "$x = 1/2$"), ("s", "$x = 0$, the kink"), ("^", "$x = -1/2$"))):
            limit.plot(many, by_t[:, column], marker=marker, label=name)
        limit.set(xscale="log", xlabel="$t$", ylabel="$g_t'(x)$", title="gradient as $t$ grows")
        for axes in (function, slopes):
            legend_below(axes, 3)
        legend_below(limit, 2)

    return Result(numbers, claims, draw)


def _slope(node: InequalityNode, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Solve a batch of scalar problems; returns solutions and derivatives."""
    theta = x.clone().requires_grad_()
    y = node(theta)
    (gradient,) = torch.autograd.grad(y.sum(), theta)
    return y.detach(), gradient


def _barrier_errors(x: torch.Tensor, t: float, value: torch.Tensor, slope: torch.Tensor) -> dict[str, float]:
    """Differences of g_t and g_t' from the closed form and eq. 71, and of g_t' from its limits for |x| >= 1/2."""
    expected, expected_slope = smoothed(x, t)
    corrected = 2.0 * t / (2.0 * t + 1.0 / value**2)  # eq. 71 with g_t(x)
    return {
        "value_error": float((value - expected).abs().max()),
        "gradient_error": float((slope - expected_slope).abs().max()),
        "eq_71_error": float((slope - corrected).abs().max()),
        "distance_inside": float((slope[x >= 0.5] - 1.0).abs().max()),
        "distance_outside": float(slope[x <= -0.5].abs().max()),
    }
