"""Termination test of each element: residuals in the units of the data, best iterate, infeasibility certificates."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import final

import torch
from torch import Tensor

from convexlayer.interior_point.torch.cones import ConeRows
from convexlayer.interior_point.torch.iterate import Iterate, Residual
from convexlayer.linalg.equilibration.tensors import Equilibrated

__all__ = ["Outcome", "TerminationTest", "Verdict"]

CERTIFICATE_TOL = 1e-8
"""Residual tolerance of a certificate, relative to b'y = -1 or q'x = -1: no x (or y) of norm below
1 / CERTIFICATE_TOL can satisfy the constraints. Clarabel's test multiplies its tolerance by norm(y), which proves less:
it sometimes accepted rays of badly scaled programs that have a solution."""

PROGRESS_FACTOR = 0.1
"""After the first accepted iterate, iterations towards a natural residual of tol continue only while each reduces it to
this fraction. On curved cones it falls only as the square root of mu, and a few Newton steps afterwards do better."""

STALL_COMPLEMENTARITY = 1e-5
"""An element whose s'y is below this fraction of tol without being accepted counts as stalled: its other residuals no
longer decrease."""


class Outcome(IntEnum):
    """State of one element."""

    RUNNING = 0
    SOLVED = 1
    INFEASIBLE = 2
    UNBOUNDED = 3
    STALLED = 4


@final
@dataclass(frozen=True, eq=False)
class Verdict:
    """Outcome and best iterate of B elements.

    Attributes:
        outcome: ``Outcome`` of each element, (B,).
        score: merit of the best iterate, (B,): its natural residual if accepted, else 1 + the largest other residual.
        iterations: iterations of each element, (B,).
        x, y, s: best iterate, or ray of a certificate, in the units of the data, (B, n), (B, p + rows), (B, p + rows).
    """

    outcome: Tensor
    score: Tensor
    iterations: Tensor
    x: Tensor
    y: Tensor
    s: Tensor

    @staticmethod
    def none(x: Tensor, y: Tensor) -> Verdict:
        """The verdict before the first check; x and y (B, ...) only determine shapes."""
        count = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        unknown = x.new_full((len(x),), torch.inf)
        nowhere = torch.full_like(y[..., 0], torch.nan)
        return Verdict(count, unknown, count, torch.full_like(x[..., 0], torch.nan), nowhere, nowhere)

    def parts(self) -> tuple[Tensor, ...]:
        """All tensors."""
        return self.outcome, self.score, self.iterations, self.x, self.y, self.s

    def select(self, index: Tensor) -> Verdict:
        """The elements at these positions."""
        return Verdict(*(part[index] for part in self.parts()))

    def store(self, index: Tensor, verdict: Verdict) -> Verdict:
        """A copy in which the elements at these positions are replaced by those of ``verdict``."""
        pairs = zip(self.parts(), verdict.parts(), strict=True)
        return Verdict(*(part.index_copy(0, index, new) for part, new in pairs))

    @property
    def running(self) -> Tensor:
        """Mask of the elements that are not finished, (B,)."""
        return self.outcome == Outcome.RUNNING

    def stop(self, lost: Tensor) -> Verdict:
        """Stop the running elements in ``lost``: SOLVED if an iterate was accepted, else STALLED."""
        final = torch.where(self.score <= 1.0, Outcome.SOLVED, Outcome.STALLED)
        outcome = torch.where(self.running & lost, final, self.outcome)
        return Verdict(outcome, *self.parts()[1:])


@final
class TerminationTest:
    """Tests iterates of equilibrated programs by the residuals of ``Solution.residuals``.

    Args:
        tol: bound on the residuals.
        scaled: the equilibrated programs.
        cone: the product cone without the zero cone.
    """

    def __init__(self, tol: float, scaled: Equilibrated, cone: ConeRows) -> None:
        self._tol, self._cone = tol, cone
        self._scaled = scaled
        self._p = scaled.rows.shape[1] - cone.rows

    def select(self, index: Tensor) -> TerminationTest:
        """The test for the elements at these positions."""
        return TerminationTest(self._tol, self._scaled.select(index), self._cone)

    def check(self, at: Iterate, residuals: Residual, before: Verdict) -> Verdict:
        """Update the verdict ``before`` with the next iterate."""
        scaled, p = self._scaled, self._p
        program, cost, tau = scaled.program, scaled.cost, at.tau
        s = torch.cat((torch.zeros_like(at.y[:, :p]), at.s), 1)
        x, y, s = scaled.columns * at.x, scaled.rows * at.y / cost, s / scaled.rows

        # Maximum norms in the units of the data, not yet divided by tau.
        across = torch.cat((residuals.Px, tau * program.q, residuals.Aty, residuals.dual), 2)
        Px, q, Aty, dual = _largest(across / (cost * scaled.columns)).unbind(1)
        along = torch.cat((residuals.Ax, tau * program.b, residuals.primal), 2)
        Ax, b, primal = _largest(along / scaled.rows).unbind(1)
        tau, cost = tau.flatten(), cost.flatten()
        xtPx, qx, by = (term.flatten() / cost for term in (residuals.xtPx, residuals.qx, residuals.by))
        s_size, y_size, unnatural = _largest(torch.cat((s, y, self._natural(y, s)), 2)).unbind(1)

        value = _most(tau, xtPx / tau, qx.abs(), by.abs())
        gap = (xtPx / tau + qx + by).abs() / value
        worst = torch.stack((primal / _most(tau, Ax, s_size, b), dual / _most(tau, Px, q, Aty), gap)).amax(0)
        natural = unnatural / _most(tau, y_size, s_size)
        accepted = worst <= self._tol
        score = torch.where(accepted, natural.clamp(max=1.0), 1.0 + worst)  # NaN is never better

        running = before.running
        better = running & (score < before.score)
        best = torch.minimum(score, before.score)
        futile = residuals.mu.flatten() / (cost * tau) <= STALL_COMPLEMENTARITY * self._tol * value
        slow = (before.score <= 1.0) & ~(score <= PROGRESS_FACTOR * before.score)
        solved = running & ((accepted & (natural <= self._tol)) | slow)
        ray_wins = running & ~solved & (at.kappa.flatten() > tau)
        stalled = running & ~accepted & ~ray_wins & futile
        left = _largest((residuals.Ax[:, :, :1] + scaled.rows * s) / scaled.rows).flatten()
        infeasible = ray_wins & (by < 0.0) & (Aty <= -CERTIFICATE_TOL * by)
        unbounded = ray_wins & ~infeasible & (qx < 0.0) & (torch.maximum(Px, left) <= -CERTIFICATE_TOL * qx)
        outcome = before.outcome
        for mask, state in (
            (stalled, Outcome.STALLED),
            (solved, Outcome.SOLVED),
            (infeasible, Outcome.INFEASIBLE),
            (unbounded, Outcome.UNBOUNDED),
        ):
            outcome = torch.where(mask, state, outcome)

        def kept(old: Tensor, new: Tensor, length: Tensor, ray: Tensor, other: Tensor) -> Tensor:
            """The best iterate, or the ray of a certificate; NaN where the certificate does not define this part."""
            value = torch.where(better[:, None], new / tau[:, None], old)
            value = torch.where(ray[:, None], new / length[:, None], value)
            return torch.where(other[:, None], torch.nan, value)

        x, y, s = x[..., 0], y[..., 0], s[..., 0]
        return Verdict(
            outcome,
            torch.where(running, best, before.score),
            before.iterations + running,
            kept(before.x, x, -qx, unbounded, infeasible),
            kept(before.y, y, -by, infeasible, unbounded),
            kept(before.s, s, -qx, unbounded, infeasible),
        )

    def _natural(self, y: Tensor, s: Tensor) -> Tensor:
        """Natural residual y - Pi_{K*}(y - s), 0 in rows of the zero cone."""
        y_cone, s_cone = y[:, self._p :], s[:, self._p :]
        return torch.cat((torch.zeros_like(y[:, : self._p]), y_cone - self._cone.project(y_cone - s_cone)), 1)


def _largest(columns: Tensor) -> Tensor:
    """Maximum norms (B, c) of the columns of (B, k, c); 0 if k = 0."""
    if columns.shape[1] == 0:
        return columns.new_zeros(columns.shape[0], columns.shape[2])
    return columns.abs().amax(1)


def _most(first: Tensor, *others: Tensor) -> Tensor:
    return torch.stack((first, *others)).amax(0)
