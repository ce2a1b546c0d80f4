"""A non-smooth toy problem: energies of the iterates, and convergence of the gradient with back-iterations."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from convexlayer.gallery import ochs_toy as toy
from convexlayer.gallery.result import Claim, Result
from convexlayer.gallery.style import legend_below, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SOURCE = "Ochs, Ranftl, Brox and Pock 2016, section 7, figures 2 to 4"

ITERATED = ("Smoothed-impl", "Proj.GD", "Bregman-FB")
ACCUMULATED = ("Proj.GD", "Proj.GD2", "Bregman-FB", "Bregman-FB2")
PAIRS = ("Proj.GD", "Bregman-FB")

FEW = 15
VISIBLE = 1e-4
"""Forward iterations after which the variants differ by this order in the paper."""

RATES_BY = (2, 5, 8)
"""Back-iterations between which the rate is measured, where the error is far above rounding."""


def run(
    *,
    iterations: int = 200,
    shown: int = 50,
    thetas: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4),
    differing: tuple[int, ...] = (6, 8, 10, 12, 15, 20, 25, 30),
) -> Result:
    """Iterate at theta = 0.3 and theta = 0, truncate the back-iterations, and measure their rate at several theta."""
    truncated = range(1, shown, 4)
    cases = {"0.3": 0.3, "0": 0.0}
    energies: dict[str, dict[str, list[float]]] = {}
    gaps: dict[str, dict[str, list[float]]] = {}
    for case, theta in cases.items():
        best = float(toy.energy(toy.solution(torch.tensor(theta, dtype=torch.float64)), theta))
        energies[case] = {}
        for method in ITERATED:
            points = [toy.gradient(method, theta, forward=n, back=1)[0] for n in range(1, shown)]
            energies[case][method] = [
                float(toy.energy(torch.tensor(x, dtype=torch.float64), theta)) - best for x in points
            ]
        gaps[case] = {method: _gaps(method, theta, iterations, tuple(truncated)) for method in ACCUMULATED}
    rates = {
        method: {
            theta: [
                (late / early) ** (1 / (b - a))
                for (a, early), (b, late) in pairwise(
                    zip(RATES_BY, _gaps(method, theta, iterations, RATES_BY), strict=True)
                )
            ]
            for theta in thetas
        }
        for method in ACCUMULATED
    }
    off = max(
        abs(rate / toy.rate(method, theta) - 1)
        for method, by in rates.items()
        for theta, pair in by.items()
        for rate in pair
    )
    stalled = gaps["0"]["Bregman-FB"]
    slowest = (stalled[-1] / stalled[-2]) ** 0.25
    apart = {
        pair: {
            n: abs(toy.gradient(pair, 0.3, forward=n, back=n)[1] - toy.gradient(f"{pair}2", 0.3, forward=n, back=n)[1])
            for n in (*differing, iterations)
        }
        for pair in PAIRS
    }
    largest = {n: max(values[n] for values in apart.values()) for n in (*differing, iterations)}
    visible = max(n for n in differing if largest[n] > VISIBLE)
    first_step = energies["0"]["Proj.GD"][0]
    numbers = {
        "back_iterations": list(truncated),
        "energy_gap": energies,
        "gradient_gap": gaps,
        "difference_of_the_variants": apart,
        "rate_of_the_back_iterations": rates,
        "largest_relative_distance_from_the_predicted_rate": off,
        "rate_at_the_kink": slowest,
    }
    measured = [rate for by in rates.values() for pair in by.values() for rate in pair]
    claims = [
        Claim(
            "figure 4: for theta = 0 projected gradient descent converges exactly in one iteration",
            f"its energy is {first_step:.0e} above the least after one",
            first_step == 0.0,
        ),
        Claim(
            "figure 4, theta = 0.3: the gradient converges linearly in the back-iterations",
            f"so it does at theta = {', '.join(map(str, thetas))}: each takes the error to {min(measured):.2f} to "
            f"{max(measured):.2f} of what it was, as |dA/dx| at the solution predicts to within {100 * off:.2g} %",
            off < 0.01,
        ),
        Claim(
            "figure 4, theta = 0: the same",
            "not for the Bregman iterates: they tend to the boundary, where |dA/dx| tends to 1, and the error of the "
            f"gradient falls like a power; the last back-iterations shown take it to {slowest:.3f} of what it was",
            slowest < 0.9,
        ),
        Claim(
            "Bregman-FB2 and Proj.GD2 accumulate the same gradient as Bregman-FB and Proj.GD",
            f"they differ by {largest[iterations]:.0e} after {iterations} forward iterations",
            largest[iterations] < 1e-12,
        ),
        Claim(
            "for about 15 forward iterations a difference of order 1e-4 becomes visible",
            f"{largest[FEW]:.1e} after {FEW}, {largest[visible]:.1e} after {visible}; the paper does not give the lam, "
            "b and step sizes it used",
            0.3 * VISIBLE < largest[FEW] < 3 * VISIBLE,
        ),
    ]

    def draw(figure: Figure) -> None:
        exact = {"0.3": "", "0": " (Proj.GD: exact)"}
        places = panels(figure, 4, 2, width=3.2, height=3.5)
        _draw_problem(places[0], places[4])
        floor = torch.finfo(torch.float64).eps
        for column, case in enumerate(cases, start=1):
            for method in ITERATED:
                if energies[case][method][0] > 0.0:
                    series = [max(e, floor) for e in energies[case][method]]
                    places[column].plot(range(1, shown), series, label=method, **toy.STYLES[method])
            for method in ACCUMULATED:
                series = [max(gap, floor) for gap in gaps[case][method]]
                if max(gaps[case][method]) > 0.0:
                    places[4 + column].plot(truncated, series, label=method, **toy.STYLES[method])
            places[column].set(
                yscale="log",
                ylim=(1e-16, 10),
                xlabel="forward iterations",
                ylabel="energy above the least",
                title=rf"energy, $\theta = {case}$" + exact[case],
            )
            places[4 + column].set(
                yscale="log",
                ylim=(1e-16, 10),
                xlabel=f"back-iterations (of {iterations} forward)",
                ylabel="distance from the limit",
                title=rf"gradient, $\theta = {case}$" + exact[case],
            )
        grid = torch.linspace(0.05, 0.45, 41).tolist()
        for method in PAIRS:
            style = {key: value for key, value in toy.STYLES[method].items() if key == "color"}
            places[3].plot(grid, [toy.rate(method, theta) for theta in grid], label=f"{method}, $|dA/dx|$", **style)
            for mark, name in (("o", method), ("x", f"{method}2")):
                series = [by[-1] for by in rates[name].values()]
                places[3].plot(thetas, series, mark, markersize=7, fillstyle="none", label=name, **style)
            places[7].plot(
                differing, [apart[method][n] for n in differing], "o-", label=f"{method}, {method}2", **style
            )
        places[3].set(xlabel=r"$\theta$", ylabel="factor a back-iteration", title="rate", ylim=(0, 1))
        places[7].axhline(VISIBLE, color="k", linestyle=":", label=f"the paper, at about {FEW}")
        places[7].axvline(FEW, color="k", linestyle=":")
        places[7].set(yscale="log", xlabel="forward iterations", ylabel="difference of the gradients")
        places[7].set_title(r"variants, $\theta = 0.3$")
        for axes in (*places[1:4], *places[5:]):
            legend_below(axes, 1 if axes is places[7] else 2, columnspacing=1.0, handlelength=1.6)

    return Result(numbers, claims, draw)


def _gaps(method: str, theta: float, iterations: int, counts: tuple[int, ...]) -> list[float]:
    """Distances between the gradients with ``counts`` and with all back-iterations."""
    slopes = [toy.gradient(method, theta, forward=iterations, back=k)[1] for k in (*counts, iterations)]
    return [abs(slope - slopes[-1]) for slope in slopes[:-1]]


def _draw_problem(objective: Axes, solutions: Axes) -> None:
    """Draw the loss with tangents, and the solution map."""
    thetas = torch.linspace(-1, 2, 301, dtype=torch.float64)
    objective.plot(thetas, toy.loss(toy.solution(thetas)), "k")
    for theta, colour in ((0.3, "C2"), (0.0, "C1")):
        at = toy.loss(toy.solution(torch.tensor(theta, dtype=torch.float64)))
        near = torch.linspace(theta - 0.35, theta + 0.35, 2, dtype=torch.float64)
        lower, upper = toy.subdifferential(theta)
        for place, slope in enumerate(dict.fromkeys((lower, 0.5 * (lower + upper), upper))):
            label = None if place else rf"tangents at $\theta = {theta:g}$"
            objective.plot(near, at + slope * (near - theta), color=colour, linewidth=1.0, label=label)
    objective.plot(toy.THETA_STAR, 0.0, "k*", markersize=10, label=r"$\theta^*$")
    objective.set(xlabel=r"$\theta$", ylabel="loss", title="upper objective", ylim=(-0.6, 2.0))
    legend_below(objective, 2, columnspacing=1.0, handlelength=1.6)
    solutions.plot(thetas, toy.solution(thetas), "k")
    solutions.set(xlabel=r"$\theta$", ylabel=r"$x^*(\theta)$", title="solution map")
