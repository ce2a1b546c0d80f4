"""Certificate that a KKT point minimises the lower problem, by second-order conditions and the lower solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch

from convexlayer.nodes.bilevel.complementarity import ZERO_TOL, Complementarity, SubproblemSolution
from convexlayer.nodes.bilevel.lower_level import LowerProgram

__all__ = ["Certificate", "certify"]

PERTURBATION = 1e-3
"""Distance of the lower solver's start from y along the direction of least curvature, relative to 1 + |(theta, y)|."""

LOWER_GAP_TOL, UPPER_GAP_TOL = 1e-9, 1e-3
"""Relative difference of lower objectives that is due to the solver's tolerance, and of upper ones that matters."""


@final
@dataclass(frozen=True)
class Certificate:
    """Evidence that y solves the lower problem, with the objective f - eps F under the pessimistic choice.

    Attributes:
        lam: multipliers of the equalities, (p,).
        mu: multipliers of the inequalities, (m,).
        residual: largest violation of a constraint of the KKT form, relative to 1 + |(theta, y)|.
        curvature: smallest eigenvalue of L_YY on the null space of h_Y and of the rows of g_Y with a multiplier:
            positive at a strict minimum, infinite at a vertex, 0 where y may be one of many.
        gap: f(y) less the smallest f that the lower solver finds at theta from the node's starts and from near y;
            -infinity if it finds no feasible point.
    """

    lam: torch.Tensor
    mu: torch.Tensor
    residual: float
    curvature: float
    gap: float


def certify(
    problem: Complementarity, lower: LowerProgram, found: SubproblemSolution, eps: float, tol: float
) -> tuple[Certificate, str | None]:
    """Certify a point.

    Args:
        problem: the complementarity problem.
        lower: the lower problem.
        found: a point of it.
        eps: weight in the lower objective f - eps F.
        tol: largest violation of a feasible point, relative to 1 + |(theta, y)|.

    Returns:
        The certificate, and why y is not a lower solution (None if it is).
    """
    x = found.x
    theta, y, lam, mu = problem.split(x)
    program, size = problem.perturbed(eps), problem.size(x)
    hessian = torch.func.jacrev(torch.func.grad(program.lagrangian))(y, lam, mu, *theta)
    A, G = (torch.func.jacrev(rows)(y, *theta) for rows in (program.h, program.g))
    curvature, direction = _least_curvature(hessian, torch.cat([A, G[mu > ZERO_TOL * (eps or 1.0)]]))
    inner, _ = _least_curvature(hessian, torch.cat([A, G[program.g(y, *theta) > -ZERO_TOL * size]]))
    trials = [
        lower.starts(theta),
        torch.stack([y - PERTURBATION * size * direction, y + PERTURBATION * size * direction]),
    ]
    others = lower.solve(program, torch.cat(trials), theta, p=len(lam), m=len(mu)).y
    f, h, g = program.values((None,) * len(theta), others, theta)
    violations = torch.cat([h.abs(), g.clamp(min=0.0), h.new_zeros(len(h), 1)], -1).amax(-1)
    allowed = (violations <= tol * size) & torch.isfinite(f)
    value = float(program.f(y, *theta))
    gap = value - float(torch.where(allowed, f, torch.inf).amin())
    certificate = Certificate(lam, mu, found.violation, curvature, gap)
    if not lower.minimises:
        return certificate, None
    if inner < -ZERO_TOL * float(hessian.abs().amax()):
        return certificate, f"y is a saddle point or maximum of the lower problem, of curvature {inner:.1e}"
    if gap > ZERO_TOL * (1.0 + abs(value)):
        return (
            certificate,
            f"y is no global minimum of the lower problem, whose objective is {gap:.1e} smaller elsewhere",
        )
    if eps > 0 and _worse_for_upper_level(problem, lower, x, others[allowed]):
        return certificate, "another lower solution is worse for the upper level than y"
    return certificate, None


def _least_curvature(hessian: torch.Tensor, rows: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Smallest eigenvalue of a matrix (n, n) on the null space of rows (k, n), and its eigenvector (n,)."""
    _, values, vectors = torch.linalg.svd(rows, full_matrices=True)
    rank = int((values > ZERO_TOL * values.amax()).sum()) if len(values) else 0
    basis = vectors[rank:].mT
    if not basis.shape[-1]:
        return torch.inf, torch.zeros_like(hessian[0])
    eigenvalues, eigenvectors = torch.linalg.eigh(basis.mT @ hessian @ basis)
    return float(eigenvalues[0]), basis @ eigenvectors[:, 0]


def _worse_for_upper_level(
    problem: Complementarity, lower: LowerProgram, x: torch.Tensor, others: torch.Tensor
) -> bool:
    """Whether any of y (k, n) is no worse for the lower level and significantly worse for the upper level."""
    theta, y, _lam, _mu = problem.split(x)
    below, above = lower.program.f(y, *theta), problem.upper(y, *theta)
    return any(
        bool(lower.program.f(other, *theta) <= below + LOWER_GAP_TOL * (1 + below.abs()))
        and bool(problem.upper(other, *theta) > above + UPPER_GAP_TOL * (1 + above.abs()))
        for other in others
    )
