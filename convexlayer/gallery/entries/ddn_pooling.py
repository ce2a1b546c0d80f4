"""Robust pooling: where five penalties put the pooled point, and how much an outlier moves it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from convexlayer.gallery.result import Claim, Result
from convexlayer.nodes import (
    AbstractPenalty,
    Huber,
    PseudoHuber,
    Quadratic,
    TruncatedQuadratic,
    Welsch,
    robust_pool,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "Gould 2026, slides: average pooling example, with a robust penalty"

PENALTIES: dict[str, AbstractPenalty] = {
    "quadratic": Quadratic(),
    "pseudo-Huber": PseudoHuber(),
    "Huber": Huber(),
    "Welsch": Welsch(),
    "truncated quadratic": TruncatedQuadratic(),
}


def run(*, inliers: int = 20, positions: int = 80, reach: float = 10.0) -> Result:
    """Pool points around 0 with one more, whose position runs from 0 to ``reach``."""
    generator = torch.Generator().manual_seed(0)
    cloud = 0.3 * torch.randn(inliers, 1, dtype=torch.float64, generator=generator)
    cloud = cloud - cloud.mean()
    outlier = torch.linspace(0.0, reach, positions, dtype=torch.float64).requires_grad_()
    x = torch.cat([cloud.expand(positions, inliers, 1), outlier[:, None, None]], dim=1)
    pooled, influence, slope_errors = {}, {}, {}
    for name, penalty in PENALTIES.items():
        u = robust_pool(x, penalty)[:, 0]
        (slope,) = torch.autograd.grad(u.sum(), outlier, retain_graph=True)
        pooled[name], influence[name] = u.detach(), slope
        # The slope integrates to the movement where the pooled point does not jump.
        steps = 0.5 * (slope[1:] + slope[:-1]) * outlier.detach().diff()
        smooth = (steps - u.detach().diff()).abs()
        slope_errors[name] = float(smooth.median())
    average_error = float((robust_pool(x, Quadratic()).detach() - x.detach().mean(1)).abs().max())
    far = {name: abs(float(pooled[name][-1] - robust_pool(cloud, penalty)[0])) for name, penalty in PENALTIES.items()}
    numbers: dict[str, Any] = {
        "outlier": outlier.detach(),
        "pooled": pooled,
        "influence": influence,
        "median_slope_error": slope_errors,
        "average_error": average_error,
        "moved_by_the_farthest_outlier": far,
        "influence_of_the_farthest_outlier": {name: float(series[-1]) for name, series in influence.items()},
    }
    convex = max(far["Huber"], far["pseudo-Huber"])
    redescending = max(far["Welsch"], far["truncated quadratic"])
    claims = [
        Claim(
            "average pooling is argmin of the sum of squares",
            f"the quadratic penalty differs from the mean by {average_error:.0e}",
            average_error < 1e-12,
        ),
        Claim(
            "it can be made robust by another penalty",
            f"one at {reach:g} moves the mean by {far['quadratic']:.3f}, convex penalties by at most {convex:.3f}, "
            f"redescending ones by {redescending:.0e}",
            redescending < 1e-6 < convex < 0.5 * far["quadratic"],
        ),
    ]

    def draw(figure: Figure) -> None:
        figure.set_size_inches(10, 4)
        place, slope = figure.subplots(1, 2)
        for name in PENALTIES:
            place.plot(outlier.detach(), pooled[name], label=name)
            slope.plot(outlier.detach(), influence[name], label=name)
        place.set(
            xlabel="position of the outlier", ylabel="pooled point", title=f"{inliers} points around 0 and one more"
        )
        slope.set(xlabel="position of the outlier", ylabel="d pooled / d outlier", title="influence")
        place.legend()

    return Result(numbers, claims, draw)
