"""A non-smooth toy problem: six gradient methods, at a smooth point and at the kink."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from convexlayer.gallery import ochs_toy as toy
from convexlayer.gallery.result import Claim, Result
from convexlayer.gallery.style import panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "Ochs, Ranftl, Brox and Pock 2016, section 7, figures 5 and 6"

FORWARD = (1, 2, 3, 5, 8, 12, 18, 25, 50, 100, 200)
"""Numbers of forward iterations."""

BACK = (5, 10, 20, 50, 100, 200)
"""Numbers of back-iterations."""


def run(*, forward: tuple[int, ...] = FORWARD, back: tuple[int, ...] = BACK) -> Result:
    """Gradients at theta = 0.3 and 0 for all numbers of forward and back iterations."""
    gradients = {
        theta: {
            k: {method: [toy.gradient(method, theta, forward=n, back=k)[1] for n in forward] for method in toy.METHODS}
            for k in back
        }
        for theta in (0.3, 0.0)
    }
    exact, _ = toy.subdifferential(0.3)
    errors = {
        k: {method: [abs(slope - exact) for slope in slopes] for method, slopes in by_method.items()}
        for k, by_method in gradients[0.3].items()
    }
    final = {k: {method: series[-1] for method, series in by_method.items()} for k, by_method in errors.items()}
    lower, upper = toy.subdifferential(0.0)
    at_kink = {method: gradients[0.0][back[-1]][method][-1] for method in toy.METHODS}
    outside = max(max(lower - s, s - upper, 0.0) for by in gradients[0.0].values() for m in by.values() for s in m)
    numbers = {
        "forward_iterations": forward,
        "exact_gradient_at_0.3": exact,
        "error_at_0.3": errors,
        "final_error_at_0.3": final,
        "subdifferential_at_0": (lower, upper),
        "gradient_at_0": gradients[0.0],
        "final_gradient_at_0": at_kink,
        "largest_distance_from_the_subdifferential_at_0": outside,
    }
    most, least = final[back[-1]], final[back[0]]
    truncated = ("Proj.GD", "Proj.GD2", "Bregman-FB", "Bregman-FB2")
    settled = next(i for i, n in enumerate(forward) if n >= 25)
    halfway = {method: errors[back[-1]][method][settled] for method in toy.METHODS}
    pairs = [("Bregman-FB", "Proj.GD"), ("Bregman-FB2", "Proj.GD2"), ("Bregman-FB-impl", "Proj.GD2")]
    boundary = [at_kink[method] for method in ("Proj.GD", "Proj.GD2")]
    interior = [at_kink[method] for method in toy.METHODS if not method.startswith("Proj")]
    margin = 1e-9 * (upper - lower)
    claims = [
        Claim(
            "figure 5: more back-iterations lead to more accurate gradient estimates",
            f"with {back[0]} the errors are at least {min(least[m] for m in truncated):.0e}, with {back[-1]} at most "
            f"{max(most[m] for m in truncated):.0e}",
            all(most[m] < 1e-6 * least[m] for m in truncated),
        ),
        Claim(
            "figure 5: the implicit methods always perform equally, as no back-iterations are required",
            f"Bregman-FB-impl is off by {least['Bregman-FB-impl']:.0e} whatever their number",
            all(len({final[k][m] for k in back}) == 1 for m in ("Bregman-FB-impl", "Smoothed-impl")),
        ),
        Claim(
            "figure 5: Smoothed-impl performs worst, due to the rough approximation",
            f"it is off by {most['Smoothed-impl']:.0e}, all others by at most {max(most[m] for m in truncated):.0e}",
            all(most[m] < 1e-3 * most["Smoothed-impl"] for m in toy.METHODS if m != "Smoothed-impl"),
        ),
        Claim(
            "figure 5: Bregman-FB, Bregman-FB2 and Bregman-FB-impl are best, slightly better than Proj.GD and Proj.GD2",
            f"after {forward[settled]} forward iterations "
            + ", ".join(
                f"{ours} is off by {halfway[ours]:.1e}, {theirs} by {halfway[theirs]:.1e}" for ours, theirs in pairs
            ),
            all(halfway[ours] < halfway[theirs] for ours, theirs in pairs),
        ),
        Claim(
            "figure 6: at the kink all estimates lie in the subdifferential",
            f"the farthest is {outside:.0e} outside [{lower:.2f}, {upper:.2f}]",
            outside <= 1e-12,
        ),
        Claim(
            "figure 6: Proj.GD and Proj.GD2 estimate a gradient from its boundary, the others from its interior",
            f"{boundary[0]:.3f} and {boundary[1]:.3f}; the others from {min(interior):.3f} to {max(interior):.3f}",
            all(min(abs(s - lower), abs(s - upper)) <= margin for s in boundary)
            and all(lower + margin < s < upper - margin for s in interior),
        ),
    ]

    return Result(numbers, claims, partial(_draw, numbers))


def _draw(numbers: Mapping[str, Any], figure: Figure) -> None:
    """Draw errors at theta = 0.3 above gradients at 0, a column for each number of back-iterations."""
    forward, errors, gradients = numbers["forward_iterations"], numbers["error_at_0.3"], numbers["gradient_at_0"]
    columns = len(errors)
    places = panels(figure, columns, 2, width=2.3, height=3.2, sharey="row", sharex=True)
    floor = torch.finfo(torch.float64).eps
    for top, bottom, k in zip(places[:columns], places[columns:], errors, strict=True):
        bottom.axhspan(*numbers["subdifferential_at_0"], color="C2", alpha=0.15, label="subdifferential")
        for method in toy.METHODS:
            series = [max(error, floor) for error in errors[k][method]]
            top.plot(forward, series, label=method, **toy.STYLES[method])
            bottom.plot(forward, gradients[k][method], label=method, **toy.STYLES[method])
        top.set(xscale="log", yscale="log", title=f"{k} back-iterations")
        bottom.set(xscale="log", xlabel="forward iterations")
    places[0].set_ylabel(r"error of the gradient, $\theta = 0.3$")
    places[columns].set_ylabel(r"gradient, $\theta = 0$")
    figure.legend(*places[-1].get_legend_handles_labels(), loc="outside lower center", ncols=min(7, 1 + columns))
