"""Open question: how inaccurate may a lower solution be before the gradient is no descent direction?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from convexlayer.gallery.result import Claim, Result
from convexlayer.gallery.ridge import Ridge, cosine, diabetes, path
from convexlayer.gallery.style import legend_below, panels, shades
from convexlayer.nodes import Implicit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "Gould et al. 2016, section 6, third question; Gould 2026, slides: suboptimal forward passes"

PLACES = (0, 5, 15, 50, 100)
"""Steps of learning after which errors are measured."""

GOOD = 0.9
"""Cosine between the gradient and its approximation from which the latter counts as good."""


def run(*, places: tuple[int, ...] = PLACES, draws: int = 20, levels: int = 22) -> Result:
    """Perturb the lower solution at several points of an outer descent, and stop its gradient descent early."""
    problem = diabetes()
    visited = path(problem, places[-1])
    errors = torch.logspace(-4, 1, levels, dtype=torch.float64)
    worst: dict[int, list[float]] = {}
    norms, descends, good = {}, {}, {}
    for place in places:
        theta = visited[place]
        exact = problem.exact_gradient(theta)
        norms[place] = float(exact.norm())
        worst[place] = [_worst_cosine(problem, theta, exact, float(error), draws) for error in errors]
        descends[place] = _largest(errors, worst[place], 0.0)
        good[place] = _largest(errors, worst[place], GOOD)
    early = {place: [_early(problem, visited[place], n) for n in (1, 2, 5, 10, 20, 50, 100, 200)] for place in places}
    ratios = [good[place] / norms[place] for place in places]
    first, last = places[0], places[-1]
    ten = {place: next(entry for entry in early[place] if entry["iterations"] == 10) for place in places}
    numbers = {
        "relative_errors": errors,
        "worst_cosine": worst,
        "gradient_norm": norms,
        "largest_error_that_descends": descends,
        "largest_error_with_a_good_cosine": good,
        "early_stopping": early,
    }
    claims = [
        Claim(
            "could non-exact solutions still lead to descent directions?",
            f"yes: everywhere every disturbance by {100 * min(descends.values()):.0f} % of its norm does",
            min(descends.values()) > 0.1,
        ),
        Claim(
            "especially during the early iterations, far from the optimal parameters",
            f"for a cosine above {GOOD} it may be off by {100 * good[first]:.0f} % at the start and "
            f"{100 * good[last]:.1f} % after {last} steps, in proportion to the norm of the gradient: their ratio "
            f"stays between {min(ratios):.0f} and {max(ratios):.0f}, while the norm falls by a factor of "
            f"{norms[first] / norms[last]:.0f}",
            good[last] < 0.5 * good[first] and max(ratios) < 4 * min(ratios),
        ),
        Claim(
            "(not in the paper) gradient descent on the lower problem may stop early",
            f"after 10 steps the solution is off by {_spread(ten, 'error')} of its norm, and the cosine with the "
            f"gradient is {_spread(ten, 'cosine')}",
            all(entry["cosine"] > 0 for entry in ten.values()),
        ),
    ]

    def draw(figure: Figure) -> None:
        disturbed, admissible, stopped = panels(figure, 3, height=3.6)
        for colour, place in zip(shades(len(places)), places, strict=True):
            disturbed.plot(errors, worst[place], color=colour, label=f"outer step {place}")
            stopped.plot(
                [e["iterations"] for e in early[place]],
                [e["cosine"] for e in early[place]],
                "o-",
                color=colour,
                label=f"outer step {place}",
            )
        disturbed.set(xlabel="relative error of the solution", ylabel="cosine with the gradient")
        disturbed.set_title(f"worst of {draws} disturbances")
        stopped.set(xlabel="lower iterations", ylabel="cosine with the gradient", ylim=(-0.05, 1.05))
        stopped.set_title("gradient descent stopped early")
        for axes in (disturbed, stopped):
            axes.set_xscale("log")
            axes.axhline(0.0, color="k", linewidth=0.8)
        for limit, style, label in ((good, "o-", f"cosine above {GOOD}"), (descends, "s--", "descends")):
            admissible.loglog([norms[p] for p in places], [limit[p] for p in places], style, label=label)
        admissible.set(xlabel="norm of the gradient", ylabel="relative error of the solution")
        admissible.set_title("largest error that is admissible")
        for axes in (disturbed, admissible, stopped):
            legend_below(axes)

    return Result(numbers, claims, draw)


def _largest(errors: torch.Tensor, cosines: list[float], least: float) -> float:
    """Largest error up to which all cosines exceed ``least``; 0 if none does."""
    too_low = [value <= least for value in cosines]
    count = too_low.index(True) if True in too_low else len(too_low)
    return float(errors[count - 1]) if count else 0.0


def _directions(problem: Ridge, theta: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Implicit gradients (batch, n) at points x (batch, n) that are not solutions."""
    node = problem.node(Implicit(tol=torch.inf, max_iter=0))
    leaf = theta.expand(len(x), -1).clone().requires_grad_()
    taken = node(leaf, warm_start=x)
    total = 0.5 * (taken @ problem.A_held.T - problem.b_held).square().mean(1).sum()
    (directions,) = torch.autograd.grad(total, leaf)
    return directions


def _worst_cosine(problem: Ridge, theta: torch.Tensor, exact: torch.Tensor, error: float, draws: int) -> float:
    x = problem.solution(theta)
    noise = torch.randn(draws, problem.n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    disturbed = x + error * x.norm() * noise / noise.norm(dim=1, keepdim=True)
    return min(cosine(direction, exact) for direction in _directions(problem, theta, disturbed))


def _early(problem: Ridge, theta: torch.Tensor, steps: int) -> dict[str, float]:
    """Stop gradient descent on the lower problem, from zero, after ``steps`` steps."""
    x, exact = torch.zeros(problem.n, dtype=torch.float64), problem.solution(theta)
    for _ in range(steps):
        x = x - problem.step_size * problem.lower_gradient(x, theta)
    (direction,) = _directions(problem, theta, x[None])
    return {
        "iterations": steps,
        "error": float((x - exact).norm() / exact.norm()),
        "cosine": cosine(direction, problem.exact_gradient(theta)),
    }


def _spread(entries: dict[int, dict[str, float]], name: str) -> str:
    values = [entry[name] for entry in entries.values()]
    return f"{min(values):.2f} to {max(values):.2f}"
