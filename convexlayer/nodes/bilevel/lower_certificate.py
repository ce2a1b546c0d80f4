"""Whether a KKT point of a lower problem is a minimum of it: by second order, and against what its solver finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch

from convexlayer.nodes.bilevel.complementarity import ZERO, Complementarity, Found
from convexlayer.nodes.bilevel.lower_level import LowerProgram

__all__ = ["Certificate", "certified"]

BESIDE = 1e-3
"""How far from y, relative to 1 + |(theta, y)|, the lower solver starts along the direction of least curvature."""

NOISE, NOTICEABLE = 1e-9, 1e-3
"""Relative differences of a lower objective that the lower solver may leave, and of an upper one that counts."""


@final
@dataclass(frozen=True)
class Certificate:
    """What shows that y solves the lower problem; of the objective f - eps F where the choice is pessimistic.

    Attributes:
        lam: multipliers of the equalities, (p,).
        mu: multipliers of the inequalities, (m,).
        residual: largest violation of a constraint of the KKT form, relative to 1 + |(theta, y)|.
        curvature: smallest eigenvalue of L_YY on the null space of h_Y and of the rows of g_Y with a multiplier:
            positive at a strict minimum, infinite at a vertex, 0 where y may be one of many.
        gap: f(y) less the smallest f that the lower solver finds at theta from the node's starts and from beside y;
            -infinite where it finds nothing feasible.
    """

    lam: torch.Tensor
    mu: torch.Tensor
    residual: float
    curvature: float
    gap: float


def certified(
    problem: Complementarity, lower: LowerProgram, found: Found, eps: float, tol: float
) -> tuple[Certificate, str | None]:
    """The certificate, and why y is no lower solution; None where it is.

    Args:
        problem: whose point it is.
        lower: the lower problem.
        found: the point.
        eps: of the lower objective f - eps F.
        tol: largest violation of a feasible point, relative to 1 + |(theta, y)|.
    """
    x = found.x
    theta, y, lam, mu = problem.split(x)
    program, size = problem.perturbed(eps), problem.size(x)
    hessian = torch.func.jacrev(torch.func.grad(program.lagrangian))(y, lam, mu, *theta)
    A, G = (torch.func.jacrev(rows)(y, *theta) for rows in (program.h, program.g))
    curvature, direction = _least_curvature(hessian, torch.cat([A, G[mu > ZERO * (eps or 1.0)]]))
    inner, _ = _least_curvature(hessian, torch.cat([A, G[program.g(y, *theta) > -ZERO * size]]))
    trials = [lower.starts(theta), torch.stack([y - BESIDE * size * direction, y + BESIDE * size * direction])]
    others = lower.solve(program, torch.cat(trials), theta, p=len(lam), m=len(mu)).y
    f, h, g = program.values((None,) * len(theta), others, theta)
    broken = torch.cat([h.abs(), g.clamp(min=0.0), h.new_zeros(len(h), 1)], -1).amax(-1)
    allowed = (broken <= tol * size) & torch.isfinite(f)
    here = float(program.f(y, *theta))
    gap = here - float(torch.where(allowed, f, torch.inf).amin())
    certificate = Certificate(lam, mu, found.violation, curvature, gap)
    if not lower.minimises:
        return certificate, None
    if inner < -ZERO * float(hessian.abs().amax()):
        return certificate, f"y is a saddle point or maximum of the lower problem, of curvature {inner:.1e}"
    if gap > ZERO * (1.0 + abs(here)):
        return (
            certificate,
            f"y is no global minimum of the lower problem, whose objective is {gap:.1e} smaller elsewhere",
        )
    if eps > 0 and _worse(problem, lower, x, others[allowed]):
        return certificate, "another lower solution is worse for the upper level than y"
    return certificate, None


def _least_curvature(hessian: torch.Tensor, rows: torch.Tensor) -> tuple[float, torch.Tensor]:
    """The smallest eigenvalue of a matrix (n, n) on the null space of rows (k, n), and its vector (n,)."""
    _, values, vectors = torch.linalg.svd(rows, full_matrices=True)
    rank = int((values > ZERO * values.amax()).sum()) if len(values) else 0
    basis = vectors[rank:].mT
    if not basis.shape[-1]:
        return torch.inf, torch.zeros_like(hessian[0])
    eigenvalues, eigenvectors = torch.linalg.eigh(basis.mT @ hessian @ basis)
    return float(eigenvalues[0]), basis @ eigenvectors[:, 0]


def _worse(problem: Complementarity, lower: LowerProgram, x: torch.Tensor, others: torch.Tensor) -> bool:
    """Whether one of these y (k, n) is no worse for the follower and noticeably worse for the leader."""
    theta, y, _lam, _mu = problem.split(x)
    below, above = lower.program.f(y, *theta), problem.upper(y, *theta)
    return any(
        bool(lower.program.f(other, *theta) <= below + NOISE * (1 + below.abs()))
        and bool(problem.upper(other, *theta) > above + NOTICEABLE * (1 + above.abs()))
        for other in others
    )
