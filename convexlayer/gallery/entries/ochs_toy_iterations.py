"""A non-smooth toy problem: energies of the iterates, and convergence of the gradient with back-iterations."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

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

CASES = {"0.3": 0.3, "0": 0.0}
"""The paper's values of theta: a smooth point, and the kink."""

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
    energies = {
        case: {method: _energy_gaps(method, theta, shown) for method in ITERATED} for case, theta in CASES.items()
    }
    gaps = {
        case: {method: _gradient_gaps(method, theta, iterations, tuple(truncated)) for method in ACCUMULATED}
        for case, theta in CASES.items()
    }
    rates = {method: {theta: _rates(method, theta, iterations) for theta in thetas} for method in ACCUMULATED}
    off = _deviation(rates)
    stalled = gaps["0"]["Bregman-FB"]
    slowest = (stalled[-1] / stalled[-2]) ** 0.25
    differences = {method: {n: _difference(method, n) for n in (*differing, iterations)} for method in PAIRS}
    largest = {n: max(values[n] for values in differences.values()) for n in (*differing, iterations)}
    visible = max(n for n in differing if largest[n] > VISIBLE)
    first_step = energies["0"]["Proj.GD"][0]
    numbers = {
        "back_iterations": list(truncated),
        "energy_gap": energies,
        "gradient_gap": gaps,
        "difference_of_the_variants": differences,
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
        places = panels(figure, 4, 2, width=3.2, height=3.5)
        _draw_problem(places[0], places[4])
        for column, case in enumerate(CASES, start=1):
            exact = " (Proj.GD: exact)" if case == "0" else ""
            _draw_gaps(places[column], range(1, shown), energies[case])
            places[column].set(
                xlabel="forward iterations",
                ylabel="energy above the least",
                title=rf"energy, $\theta = {case}$" + exact,
            )
            _draw_gaps(places[4 + column], truncated, gaps[case])
            places[4 + column].set(
                xlabel=f"back-iterations (of {iterations} forward)",
                ylabel="distance from the limit",
                title=rf"gradient, $\theta = {case}$" + exact,
            )
        _draw_rates(places[3], rates)
        _draw_differences(places[7], {method: {n: differences[method][n] for n in differing} for method in PAIRS})
        for axes in (*places[1:4], *places[5:]):
            legend_below(axes, 1 if axes is places[7] else 2, columnspacing=1.0, handlelength=1.6)

    return Result(numbers, claims, draw)


def _energy_gaps(method: str, theta: float, iterations: int) -> list[float]:
    """Energies of the iterates before ``iterations``, above the least."""
    least = float(toy.energy(toy.solution(torch.tensor(theta, dtype=torch.float64)), theta))
    points = [toy.gradient(method, theta, forward=n, back=1)[0] for n in range(1, iterations)]
    return [float(toy.energy(torch.tensor(x, dtype=torch.float64), theta)) - least for x in points]


def _rates(method: str, theta: float, iterations: int) -> list[float]:
    """Factors by which a back-iteration reduces the distance from the limit, between the numbers RATES_BY."""
    gaps = zip(RATES_BY, _gradient_gaps(method, theta, iterations, RATES_BY), strict=True)
    return [(late / early) ** (1 / (b - a)) for (a, early), (b, late) in pairwise(gaps)]


def _deviation(rates: dict[str, dict[float, list[float]]]) -> float:
    """Largest relative distance of measured factors from those that |dA/dx| at the solution predicts."""
    return max(
        abs(rate / toy.rate(method, theta) - 1)
        for method, by in rates.items()
        for theta, pair in by.items()
        for rate in pair
    )


def _difference(method: str, iterations: int) -> float:
    """Difference of the gradients by a method and by its variant at theta = 0.3, with all back-iterations."""
    first, second = (toy.gradient(name, 0.3, forward=iterations, back=iterations)[1] for name in (method, f"{method}2"))
    return abs(first - second)


def _gradient_gaps(method: str, theta: float, iterations: int, counts: tuple[int, ...]) -> list[float]:
    """Distances between the gradients with ``counts`` and with all back-iterations."""
    slopes = [toy.gradient(method, theta, forward=iterations, back=k)[1] for k in (*counts, iterations)]
    return [abs(slope - slopes[-1]) for slope in slopes[:-1]]


def _draw_gaps(axes: Axes, counts: Sequence[int], by_method: dict[str, list[float]]) -> None:
    """Draw distances that decrease to zero, but for methods that are exact at once."""
    floor = torch.finfo(torch.float64).eps
    for method, gaps in by_method.items():
        if gaps[0] > 0.0:
            axes.plot(counts, [max(gap, floor) for gap in gaps], label=method, **toy.STYLES[method])
    axes.set(yscale="log", ylim=(1e-16, 10))


def _colour(method: str) -> dict[str, Any]:
    """Colour of a method, without its marker and line style."""
    return {"color": toy.STYLES[method]["color"]}


def _draw_rates(axes: Axes, rates: dict[str, dict[float, list[float]]]) -> None:
    """Draw measured and predicted factors of a back-iteration against theta."""
    grid = torch.linspace(0.05, 0.45, 41).tolist()
    for method in PAIRS:
        axes.plot(grid, [toy.rate(method, theta) for theta in grid], label=f"{method}, $|dA/dx|$", **_colour(method))
        for mark, name in (("o", method), ("x", f"{method}2")):
            last = [by[-1] for by in rates[name].values()]
            axes.plot(list(rates[name]), last, mark, markersize=7, fillstyle="none", label=name, **_colour(method))
    axes.set(xlabel=r"$\theta$", ylabel="factor a back-iteration", title="rate", ylim=(0, 1))


def _draw_differences(axes: Axes, differences: dict[str, dict[int, float]]) -> None:
    """Draw the differences of the variants against the number of iterations, and the paper's."""
    for method, by_count in differences.items():
        axes.plot(list(by_count), list(by_count.values()), "o-", label=f"{method}, {method}2", **_colour(method))
    axes.axhline(VISIBLE, color="k", linestyle=":", label=f"the paper, at about {FEW}")
    axes.axvline(FEW, color="k", linestyle=":")
    axes.set(yscale="log", xlabel="forward iterations", ylabel="difference of the gradients")
    axes.set_title(r"variants, $\theta = 0.3$")


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
