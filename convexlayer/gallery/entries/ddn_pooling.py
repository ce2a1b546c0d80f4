"""Robust pooling: the pooled points of five penalties, and the influence of an outlier.

    u = argmin over u of sum phi(|u - x_i|)

The influence is du / dx of the outlier. It has kinks for Huber's penalty and the truncated quadratic; the pooled point
of the latter jumps where the outlier is rejected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from convexlayer.gallery.result import Claim, Result
from convexlayer.gallery.style import panels
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


STEP = 1e-5
"""Step of the finite differences."""


def run(*, inliers: int = 20, positions: int = 80, reach: float = 10.0) -> Result:
    """Pool points around 0 together with an outlier at positions from 0 to ``reach``."""
    generator = torch.Generator().manual_seed(0)
    cloud = 0.3 * torch.randn(inliers, 1, dtype=torch.float64, generator=generator)
    cloud = cloud - cloud.mean()
    outlier = torch.linspace(0.0, reach, positions, dtype=torch.float64).requires_grad_()
    x = torch.cat([cloud.expand(positions, inliers, 1), outlier[:, None, None]], dim=1)
    last = torch.eye(inliers + 1, dtype=torch.float64)[:, -1:]
    pooled, influence, slope_errors, compared = {}, {}, {}, {}
    for name, penalty in PENALTIES.items():
        u = robust_pool(x, penalty)[:, 0]
        (slope,) = torch.autograd.grad(u.sum(), outlier, retain_graph=True)
        pooled[name], influence[name] = u.detach(), slope
        behind, ahead = ((robust_pool(x.detach() + s * last, penalty)[:, 0] - u.detach()) / s for s in (-STEP, STEP))
        smooth = (ahead - behind).abs() < 1e-3  # no kink between
        slope_errors[name] = float((slope - 0.5 * (ahead + behind))[smooth].abs().max())
        compared[name] = int(smooth.sum())
    average_error = float((robust_pool(x, Quadratic()).detach() - x.detach().mean(1)).abs().max())
    far = {name: abs(float(pooled[name][-1] - robust_pool(cloud, penalty)[0])) for name, penalty in PENALTIES.items()}
    numbers: dict[str, Any] = {
        "outlier": outlier.detach(),
        "pooled": pooled,
        "influence": influence,
        "largest_influence_error": slope_errors,
        "positions_without_a_kink": compared,
        "average_error": average_error,
        "moved_by_the_farthest_outlier": far,
        "influence_of_the_farthest_outlier": {name: float(series[-1]) for name, series in influence.items()},
    }
    convex = max(far["Huber"], far["pseudo-Huber"])
    redescending = max(far["Welsch"], far["truncated quadratic"])
    worst = max(slope_errors.values())
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
        Claim(
            "the pooled point has a derivative in every point",
            f"finite differences agree to {worst:.0e}, at {min(compared.values())} of {positions} positions of the "
            "outlier at least, the others being kinks",
            worst < 1e-7 and min(compared.values()) >= positions - 2,
        ),
    ]

    def draw(figure: Figure) -> None:
        count = len(PENALTIES)
        places = panels(figure, count, 2, width=2.5, height=2.5, sharex=True, sharey="row")
        where = outlier.detach()
        for top, bottom, (colour, name) in zip(places[:count], places[count:], enumerate(PENALTIES), strict=True):
            for axes, series in ((top, pooled), (bottom, influence)):
                if name != "quadratic":
                    axes.plot(where, series["quadratic"], color="0.7", label="quadratic, for comparison")
                axes.plot(where, _broken(series[name]), color=f"C{colour}", linewidth=1.8)
            top.set_title(name)
            bottom.set_xlabel("position of the outlier $x$")
        places[0].set(ylabel="pooled point $u$", ylim=(-0.02, 0.2))
        places[count].set_ylabel("influence $du/dx$")
        figure.legend(*places[1].get_legend_handles_labels(), loc="outside lower center")

    return Result(numbers, claims, draw)


def _broken(series: torch.Tensor) -> torch.Tensor:
    """Insert a gap where the series jumps."""
    jumps = series.diff().abs() > 0.4 * (series.max() - series.min()).clamp(min=1e-9)
    return torch.where(torch.cat([jumps.new_zeros(1), jumps]), torch.nan, series)
