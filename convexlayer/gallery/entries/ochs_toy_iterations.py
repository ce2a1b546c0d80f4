"""A non-smooth toy problem: energies of the iterations, and what each back-iteration adds to the gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from convexlayer.gallery import ochs_toy as toy
from convexlayer.gallery.result import Claim, Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "Ochs, Ranftl, Brox and Pock 2016, section 7, figures 2 to 4"

ITERATED = ("Smoothed-impl", "Proj.GD", "Bregman-FB")
ACCUMULATED = ("Proj.GD", "Proj.GD2", "Bregman-FB", "Bregman-FB2")


def run(*, iterations: int = 200, shown: int = 50, few: int = 15) -> Result:
    """Iterate at theta = 0.3 and theta = 0, and truncate the back-iterations at numbers up to ``shown``."""
    truncated = range(1, shown, 4)
    cases = {"theta = 0.3": 0.3, "theta = 0": 0.0}
    energies: dict[str, dict[str, list[float]]] = {}
    gaps: dict[str, dict[str, list[float]]] = {}
    for case, theta in cases.items():
        best = float(toy.energy(toy.solution(torch.tensor(theta, dtype=torch.float64)), theta))
        energies[case], gaps[case] = {}, {}
        for method in ITERATED:
            points = [toy.gradient(method, theta, forward=n, back=1)[0] for n in range(1, shown)]
            energies[case][method] = [
                float(toy.energy(torch.tensor(x, dtype=torch.float64), theta)) - best for x in points
            ]
        for method in ACCUMULATED:
            slopes = [toy.gradient(method, theta, forward=iterations, back=k)[1] for k in [*truncated, iterations]]
            gaps[case][method] = [abs(slope - slopes[-1]) for slope in slopes[:-1]]
    apart = {
        pair: {
            n: abs(toy.gradient(pair, 0.3, forward=n, back=n)[1] - toy.gradient(f"{pair}2", 0.3, forward=n, back=n)[1])
            for n in (few, iterations)
        }
        for pair in ("Proj.GD", "Bregman-FB")
    }
    smooth = gaps["theta = 0.3"]
    early, late = 1, 5
    back = truncated[late] - truncated[early]
    rates = {method: (smooth[method][late] / smooth[method][early]) ** (1 / back) for method in ACCUMULATED}
    first_step = energies["theta = 0"]["Proj.GD"][0]
    numbers = {
        "back_iterations": list(truncated),
        "energy_gap": energies,
        "gradient_gap": gaps,
        "difference_of_the_variants": apart,
        "rate_of_the_back_iterations": rates,
    }
    worst_few = max(values[few] for values in apart.values())
    worst_many = max(values[iterations] for values in apart.values())
    claims = [
        Claim(
            "figure 4: for theta = 0 projected gradient descent converges exactly in one iteration",
            f"its energy is {first_step:.0e} above the least after one",
            first_step == 0.0,
        ),
        Claim(
            "figure 4: the gradient converges linearly in the back-iterations, so a few are often enough",
            f"at theta = 0.3 each takes the error to {min(rates.values()):.2f} to {max(rates.values()):.2f} of what it "
            "was; at 0 the Bregman iterates tend to the boundary, and slower than linearly",
            max(rates.values()) < 0.6,
        ),
        Claim(
            "Bregman-FB2 and Proj.GD2 accumulate the same gradient as Bregman-FB and Proj.GD",
            f"they differ by {worst_many:.0e} after {iterations} forward iterations",
            worst_many < 1e-12,
        ),
        Claim(
            "for about 15 forward iterations a difference of order 1e-4 becomes visible",
            f"{worst_few:.1e} after {few}",
            1e-5 < worst_few < 1e-3,
        ),
    ]

    def draw(figure: Figure) -> None:
        figure.set_size_inches(13, 7)
        axes = figure.subplots(2, 3)
        thetas = torch.linspace(-1, 2, 301, dtype=torch.float64)
        values = toy.loss(toy.solution(thetas))
        axes[0, 0].plot(thetas, values, "k")
        for theta, colour in ((0.3, "tab:green"), (0.0, "tab:red")):
            at = toy.loss(toy.solution(torch.tensor(theta, dtype=torch.float64)))
            near = torch.linspace(theta - 0.35, theta + 0.35, 2, dtype=torch.float64)
            lower, upper = toy.subdifferential(theta)
            for slope in (lower, 0.5 * (lower + upper), upper):
                axes[0, 0].plot(near, at + slope * (near - theta), colour, linewidth=0.8)
        axes[0, 0].plot(toy.THETA_STAR, 0.0, "k*", markersize=10)
        axes[0, 0].set(title="loss, with tangents at 0.3 and 0", xlabel="theta")
        axes[1, 0].plot(thetas, toy.solution(thetas), "k")
        axes[1, 0].set(title="solution map", xlabel="theta")
        for column, case in enumerate(cases, start=1):
            for method in ITERATED:
                axes[0, column].plot(range(1, shown), energies[case][method], toy.STYLES[method], label=method)
            axes[0, column].set(yscale="log", ylim=(1e-16, 10), title=f"energy above the least, {case}")
            axes[0, column].set(xlabel="forward iterations")
            for method in ACCUMULATED:
                axes[1, column].plot(truncated, gaps[case][method], toy.STYLES[method], label=method)
            axes[1, column].set(yscale="log", ylim=(1e-16, 10), title=f"gradient, distance from its limit, {case}")
            axes[1, column].set(xlabel=f"back-iterations (of {iterations} forward)")
            axes[0, column].legend()
            axes[1, column].legend()

    return Result(numbers, claims, draw)
