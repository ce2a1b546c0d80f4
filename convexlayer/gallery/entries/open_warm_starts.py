"""Open question: do warm starts along an outer descent make lower solutions and gradients cheaper?"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from convexlayer.gallery.result import Claim, Result
from convexlayer.gallery.ridge import Ridge, diabetes, iterations, path
from convexlayer.gallery.style import panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "Gould et al. 2016, section 6, first question"

STARTS = ("cold", "warm", "predicted")


def run(*, steps: int = 20, tols: tuple[float, ...] = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9)) -> Result:
    """Solve along a path of weights from zero, from the previous solution, and from its first-order prediction."""
    problem = diabetes()
    thetas = path(problem, steps)
    forward = {tol: _forward(problem, thetas, tol) for tol in tols}
    adjoint = {tol: _adjoint(problem, thetas, tol) for tol in tols}
    numbers = {
        "tolerances": tols,
        "forward_iterations": {tol: {k: sum(v) for k, v in by.items()} for tol, by in forward.items()},
        "adjoint_iterations": {tol: {k: sum(v) for k, v in by.items()} for tol, by in adjoint.items()},
        "forward_iterations_by_step": forward,
    }

    def shares(counts: dict[float, dict[str, list[int]]], start: str) -> list[float]:
        return [sum(by[start]) / sum(by["cold"]) for by in counts.values()]

    warm, predicted, pulled = shares(forward, "warm"), shares(forward, "predicted"), shares(adjoint, "warm")
    claims = [
        Claim(
            "would warm starts be effective, given that parameters change slowly?",
            f"yes: lower solutions take {_range(warm)} of the iterations, the linear systems of the gradient "
            f"{_range(pulled)}, least at low accuracy",
            max(*warm, *pulled) < 1 and warm[0] < warm[-1],
        ),
        Claim(
            "(not in the paper) the derivative of the node predicts the next solution, which is a better start",
            f"{_range(predicted)} of the cold iterations",
            all(p < w for p, w in zip(predicted, warm, strict=True)),
        ),
    ]

    def draw(figure: Figure) -> None:
        places = panels(figure, 3, height=3.5)
        marks = dict(zip(STARTS, ("o-", "s--", "^:"), strict=True))
        for start in STARTS:
            places[0].plot(range(1, steps + 1), forward[tols[-1]][start], marks[start][1:], label=start)
        places[0].set(xlabel="outer step", ylabel="lower iterations", title=f"lower problem, tolerance {tols[-1]:g}")
        for axes, counts, title in (
            (places[1], forward, "lower problem, all steps"),
            (places[2], adjoint, "gradient's linear system, all steps"),
        ):
            for start in counts[tols[0]]:
                axes.plot(tols, [sum(by[start]) for by in counts.values()], marks[start], label=start)
            axes.set(xscale="log", xlabel="tolerance", ylabel="iterations in all", title=title)
            axes.invert_xaxis()
        for axes in places:
            axes.set_ylim(0, None)
        figure.legend(*places[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)

    return Result(numbers, claims, draw)


def _forward(problem: Ridge, thetas: list[torch.Tensor], tol: float) -> dict[str, list[int]]:
    counts: dict[str, list[int]] = {start: [] for start in STARTS}
    for before, theta in pairwise(thetas):
        known = problem.solution(before)
        predicted = known + torch.func.jacrev(problem.solution)(before) @ (theta - before)
        gradient = partial(_at, problem, theta)
        for start, x in (("cold", torch.zeros_like(known)), ("warm", known), ("predicted", predicted)):
            counts[start].append(iterations(gradient, x, problem.step_size, tol))
    return counts


def _at(problem: Ridge, theta: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return problem.lower_gradient(x, theta)


def _adjoint(problem: Ridge, thetas: list[torch.Tensor], tol: float) -> dict[str, list[int]]:
    """Count iterations u+ = u - alpha (H u - v) for the adjoint of eq. 11, a Neumann series from u = 0."""
    counts: dict[str, list[int]] = {"cold": [], "warm": []}
    for before, theta in pairwise(thetas):
        last = torch.linalg.solve(problem.hessian(before), _cotangent(problem, before))
        residual = partial(_system, problem.hessian(theta), _cotangent(problem, theta))
        for start, u in (("cold", torch.zeros_like(last)), ("warm", last)):
            counts[start].append(iterations(residual, u, problem.step_size, tol))
    return counts


def _system(H: torch.Tensor, v: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    return H @ u - v


def _cotangent(problem: Ridge, theta: torch.Tensor) -> torch.Tensor:
    return torch.func.grad(problem.upper)(problem.solution(theta), theta)


def _range(shares: list[float]) -> str:
    return f"{100 * min(shares):.0f} to {100 * max(shares):.0f} %"
