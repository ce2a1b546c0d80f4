"""Inertia in the upper level: iPiano against forward-backward splitting, in speed and in local optima."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from scipy.optimize import minimize

from convexlayer.gallery.result import Claim, Result
from convexlayer.gallery.ridge import Ridge, diabetes
from convexlayer.gallery.style import legend_below, panels, shades
from convexlayer.nodes import Box, History, IPiano, L1Norm, Stop, solve_bilevel
from convexlayer.program import Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "Ochs, Ranftl, Brox and Pock 2016, section 3, eq. 4; Ochs, Chen, Brox and Pock 2014, section 5"

LEVELS = (1e-1, 1e-2, 1e-3)
"""Gaps to the optimum, relative to the gap at the start."""

BOX = (-4.0, 4.0)
"""Bounds of the logarithms of the ridge weights."""

COUPLING = 0.1
"""Coupling c of the two variables of the problem with several optima."""

CURVATURE = 100.0
"""Factor 100 in its loss, whose minima it separates."""


def run(
    *, betas: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9), steps: int = 1500, side: int = 9, short: int = 400
) -> Result:
    """Learn ridge weights in a box, and count the starts from which a problem with several optima reaches the best."""
    problem = diabetes()
    start = torch.zeros(problem.n, dtype=torch.float64)
    curves: dict[float, History] = {}
    for beta in betas:
        optimizer = IPiano(beta=beta, lipschitz=1e-3, regulariser=Box(*BOX))
        curves[beta] = solve_bilevel(
            problem.upper, problem.solution, [start], optimizer=optimizer, stop=Stop(max_iter=steps), progress=False
        ).history
    quasi_newton = _quasi_newton(problem)
    first, best = curves[0.0].value[0], quasi_newton[-1]
    gaps = {beta: [(value - best) / (first - best) for value in curve.value] for beta, curve in curves.items()}
    needed = {
        beta: {level: _first(gaps[beta], curve.evaluations, level) for level in LEVELS}
        for beta, curve in curves.items()
    }
    peer = [(value - best) / (first - best) for value in quasi_newton]
    counted = range(1, len(peer) + 1)
    others = {level: _first(peer, counted, level) for level in LEVELS}
    found = {beta: _from_everywhere(beta, side, short) for beta in betas}
    least = min(float(values.min()) for values, _ in found.values())
    shares = {beta: float((values < least + 1e-3).double().mean()) for beta, (values, _) in found.items()}
    numbers = {
        "relative_gap": gaps,
        "evaluations_to_level": needed,
        "evaluations_of_l_bfgs_b_to_level": others,
        "share_of_starts_at_the_best": shares,
        "mean_evaluations_from_a_start": {beta: evaluations for beta, (_, evaluations) in found.items()},
    }
    none, coarse, fine = needed[0.0], LEVELS[0], LEVELS[-1]
    fastest = {level: min((counts[level], beta) for beta, counts in needed.items())[1] for level in LEVELS}
    claims = [
        Claim(
            "iPiano was usually faster than proximal gradient descent (beta = 0)",
            f"evaluations to a gap of {fine:g}: {needed[fastest[fine]][fine]:g} with beta = {fastest[fine]:g}, "
            f"{none[fine]:g} without inertia; to {coarse:g}: {needed[fastest[coarse]][coarse]:g} with "
            f"{fastest[coarse]:g}, {none[coarse]:g} without, and {needed[betas[-1]][coarse]:g} with {betas[-1]:g}",
            needed[fastest[fine]][fine] < 0.5 * none[fine],
        ),
        Claim(
            "(not in the paper) where the parameters are bounded, a quasi-Newton method is faster yet",
            f"SciPy's L-BFGS-B needs {others[coarse]:g} evaluations to {coarse:g} and {others[fine]:g} to {fine:g}",
            others[fine] < needed[fastest[fine]][fine],
        ),
        Claim(
            "iPiano was less sensitive to local optima",
            "the best of them is reached from "
            + ", ".join(f"{100 * share:.0f} % (beta = {beta:g})" for beta, share in shares.items())
            + f" of {side**2} starts",
            all(share > shares[0.0] for beta, share in shares.items() if beta > 0),
        ),
    ]

    def draw(figure: Figure) -> None:
        curve, levels, optima = panels(figure, 3, height=3.6)
        for beta, colour in zip(betas, shades(len(betas)), strict=True):
            curve.loglog(curves[beta].evaluations, gaps[beta], color=colour, label=rf"$\beta = {beta:g}$")
        curve.loglog(counted[:-1], peer[:-1], "k-.", label="L-BFGS-B")
        curve.set(xlabel="lower solves", ylabel="gap, relative to the first", title="learning curves", ylim=(1e-6, 2))
        for level, style in zip(LEVELS, ("o-", "s--", "^:"), strict=True):
            levels.semilogy(betas, [needed[beta][level] for beta in betas], style, label=f"to {level:g}")
        levels.set(xlabel=r"$\beta$", ylabel="lower solves", title="lower solves to a relative gap", ylim=(1, None))
        bars = optima.bar([f"{beta:g}" for beta in betas], [100 * shares[beta] for beta in betas])
        optima.bar_label(bars, fmt="%.0f", fontsize=9)
        optima.grid(visible=False, axis="x")
        optima.set(xlabel=r"$\beta$", ylabel="share of the starts, %", ylim=(0, 100))
        optima.set_title("starts that end at the best optimum")
        legend_below(curve, 3, columnspacing=1.0, handlelength=1.6)
        legend_below(levels, 3)

    return Result(numbers, claims, draw)


def _quasi_newton(problem: Ridge) -> list[float]:
    """Best value of the same problem after each evaluation of SciPy's L-BFGS-B."""
    values: list[float] = []

    def objective(theta: Array) -> tuple[float, Array]:
        leaf = torch.tensor(theta, requires_grad=True)
        loss = problem.upper(problem.solution(leaf), leaf)
        loss.backward()
        assert leaf.grad is not None  # computed by the backward pass
        values.append(min([loss.item(), *values[-1:]]))
        return loss.item(), leaf.grad.numpy()

    options = {"ftol": 0.0, "gtol": 1e-10, "maxiter": 10_000}
    minimize(objective, [0.0] * problem.n, jac=True, method="L-BFGS-B", bounds=[BOX] * problem.n, options=options)
    return values


def _first(gaps: Sequence[float], evaluations: Sequence[int], level: float) -> float:
    """Number of evaluations until the gap first is at most the level; infinite if never."""
    return next((float(count) for gap, count in zip(gaps, evaluations, strict=True) if gap <= level), float("inf"))


def _from_everywhere(beta: float, side: int, steps: int) -> tuple[torch.Tensor, float]:
    """Final values from starts on a grid of side x side, and the mean number of evaluations.

        x*(theta) = argmin over x of 1/2 |x - theta|^2 + c/2 (x_1 - x_2)^2
        minimise over theta  1/2 sum log(1 + 100 (x*_i - 1)^2) + |theta|_1

    The loss has its minimum at 1, the norm another at 0, in each coordinate.
    """
    hessian = torch.eye(2) + COUPLING * torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    inverse = torch.linalg.inv(hessian.double())
    places = torch.linspace(-2, 2, side, dtype=torch.float64)
    results = [
        solve_bilevel(
            lambda x, _: 0.5 * torch.log1p(CURVATURE * (x - 1.0).square()).sum(),
            lambda theta: inverse @ theta,
            [start],
            optimizer=IPiano(beta=beta, regulariser=L1Norm(1.0)),
            stop=Stop(max_iter=steps, gradient_tol=1e-6),
            progress=False,
        )
        for start in torch.cartesian_prod(places, places)
    ]
    evaluations = [result.history.evaluations[-1] for result in results]
    return torch.tensor([result.value for result in results]), sum(evaluations) / len(evaluations)
