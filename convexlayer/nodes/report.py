"""What a call of a node did, how far its derivative can be trusted, and what becomes of failures."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

import torch

from convexlayer.diff import DerivativeReport
from convexlayer.diff.report import ACCURATE
from convexlayer.errors import DerivativeError, ProblemError
from convexlayer.nodes.linear import LinearSolve, Operator
from convexlayer.program import Array
from convexlayer.solution import Status

__all__ = ["NodeReport", "OnDegenerate", "OnFailure", "Recorder"]

ON_FAILURE = ("raise", "nan", "keep")
ON_DEGENERATE = ("warn", "report", "raise")

JUMP = 0.1
"""Relative change of K within rounding of z, from which the function is not twice differentiable there."""

NEAR = 1e-6
"""Distance of an inequality and its multiplier from zero, relative to 1 + |z|, up to which it is weakly active."""


@final
@dataclass(eq=False)
class NodeReport:
    """The account of one call; every tensor has one entry an element (under vmap, of all lanes one after another).

    Attributes:
        status: ``optimal``, ``iteration_limit``, or ``numerical_error`` where the solution is not finite.
        distance: an estimate of |z - z*| / (1 + |z|), from the residual of the optimality conditions.
        iterations: iterations of the solver; 0 for given ones.
        derivative: how far the derivative can be trusted; None before the first.
        reasons: what is wrong with the derivative, by element.
    """

    status: tuple[Status, ...] = ()
    distance: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    iterations: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    derivative: DerivativeReport | None = None
    reasons: dict[int, str] = field(default_factory=dict)

    @property
    def failed(self) -> tuple[int, ...]:
        """Positions of the elements without a solution."""
        return tuple(i for i, status in enumerate(self.status) if not status.solved)


@final
class OnFailure:
    """What becomes of elements without a solution: ``raise``, ``nan`` or ``keep``."""

    def __init__(self, choice: str) -> None:
        if choice not in ON_FAILURE:
            raise ProblemError(f"on_failure must be one of {', '.join(ON_FAILURE)}, got {choice!r}")
        self.choice = choice

    def message(self, report: NodeReport, tol: float) -> str:
        """What an error says."""
        failed = report.failed
        named = ", ".join(f"{i} ({report.status[i]}, distance {float(report.distance[i]):.1e})" for i in failed[:8])
        return (
            f"{len(failed)} of {len(report.status)} elements have no stationary point within {tol:.1e}: {named}"
            f"{' ...' if len(failed) > 8 else ''}. The function may be unbounded, not twice differentiable, or have no "
            "feasible point; else give another start, a solver, or more iterations. The others are in this error's "
            "outputs; on_failure='nan' returns them instead"
        )


@final
class OnDegenerate:
    """What becomes of derivatives that cannot be trusted: ``warn`` (once a node), ``report`` or ``raise``."""

    def __init__(self, choice: str) -> None:
        if choice not in ON_DEGENERATE:
            raise ProblemError(f"on_degenerate must be one of {', '.join(ON_DEGENERATE)}, got {choice!r}")
        self._choice = choice
        self._lock = threading.Lock()
        self._warned = False

    def __reduce__(self) -> tuple[Callable[[str], OnDegenerate], tuple[str]]:
        return OnDegenerate, (self._choice,)

    def __call__(self, report: NodeReport) -> None:
        """Judge a report that has just got a derivative."""
        if self._choice == "report" or not report.reasons:
            return
        first = next(iter(report.reasons))
        message = (
            f"the derivative of {len(report.reasons)} elements may not exist or is inaccurate, the first of them "
            f"{first}: {report.reasons[first]}. What is returned is a least-squares direction of minimum norm, or "
            "NaN; report.derivative says how far to trust it"
        )
        if self._choice == "raise":
            raise DerivativeError(message)
        with self._lock:
            fresh, self._warned = not self._warned, True
        if fresh:
            warnings.warn(message + " (said once a node; on_degenerate='report' is silent)", UserWarning, stacklevel=2)


@final
class Recorder:
    """Writes the derivative's part of a report after every linear solve of a call.

    Args:
        report: where to write.
        on_degenerate: told of it.
        tol: largest distance of an accurate solution.
        margin: operator -> distance (batch,) from the nearest point where K is known to jump.
        why_singular: (operator, element) -> what to say of a singular K.
    """

    def __init__(
        self,
        report: NodeReport,
        on_degenerate: OnDegenerate,
        tol: float,
        margin: Callable[[Operator], torch.Tensor],
        why_singular: Callable[[Operator, int], str],
    ) -> None:
        self._report, self._on_degenerate, self._tol = report, on_degenerate, tol
        self._margin, self._why_singular = margin, why_singular
        self._seen: Operator | None = None
        self._jump = torch.empty(0)
        self._near = torch.empty(0)

    def __call__(self, operator: Operator, answer: LinearSolve) -> None:
        """Judge one solve."""
        if self._seen is not operator:
            self._seen, self._jump, self._near = operator, self._measured_jump(operator), self._margin(operator)
        verdicts = [self._verdict(operator, answer, i) for i in range(len(answer.residual))]
        self._report.reasons = {
            i: reason
            for i, ((word, reason), status) in enumerate(zip(verdicts, self._report.status, strict=True))
            if word != "ok" and status.solved
        }
        self._report.derivative = DerivativeReport(
            linear_residual=_array(answer.residual),
            margin=_array(self._near),
            condition=_array(answer.condition),
            consistent=_array(answer.residual) <= _accurate(answer),
            status=tuple(word for word, _ in verdicts),
        )
        self._on_degenerate(self._report)

    def _measured_jump(self, operator: Operator) -> torch.Tensor:
        """Relative change of K w between two points beside z, (batch,): near 0 unless K jumps between them."""
        z = operator.z
        eps = torch.finfo(z.dtype).eps
        sign = torch.where(torch.arange(z.shape[-1], device=z.device) % 2 == 0, 1.0, -1.0).to(z).expand_as(z)
        known = self._report.distance.nan_to_num(0.0, 0.0, 0.0).clamp(eps ** (2 / 3), 1e-4).to(z)
        shift = 2.0 * known.unsqueeze(-1) * (1.0 + z.abs()) * sign
        w = sign + 0.5  # not a multiple of sign, so that a jump in one direction seldom cancels
        change = operator.at(z + shift).transposed_product(w) - operator.at(z - shift).transposed_product(w)
        size = operator.transposed_product(w).abs().amax(-1) + change.abs().amax(-1)
        return (change.abs().amax(-1) / torch.where(size > 0, size, 1.0)).nan_to_num(0.0, 0.0, 0.0)

    def _verdict(self, operator: Operator, answer: LinearSolve, element: int) -> tuple[str, str]:
        """The word of DerivativeReport's status, and what is wrong."""
        n, eps = answer.solution.shape[-1], torch.finfo(answer.solution.dtype).eps
        distance, residual = float(self._report.distance[element]), float(answer.residual[element])
        if not self._report.status[element].solved:
            return "failed", "there is no solution to differentiate"
        if not torch.isfinite(answer.solution[element]).all():
            return "failed", "the second derivatives at the solution are not finite"
        if answer.condition[element] > 1.0 / (10.0 * n * eps):
            return "degenerate", self._why_singular(operator, element)
        if self._near[element] <= max(NEAR, 100.0 * eps):
            near = float(self._near[element])
            return "degenerate", f"an inequality is weakly active (it and its multiplier within {near:.0e}): a kink"
        if distance > self._tol:
            why = self._why_singular(operator, element)
            return "inaccurate", f"the second derivatives leave the solution uncertain by {distance:.0e}: {why}"
        if self._jump[element] > JUMP:
            return "degenerate", "the function is not twice differentiable at the solution: second derivatives jump"
        if residual > _accurate(answer):
            return "inaccurate", f"the relative residual of the linear system is {residual:.0e}"
        return "ok", ""


def _accurate(answer: LinearSolve) -> float:
    """The largest relative residual of an accurate solve."""
    return max(ACCURATE, 1e3 * torch.finfo(answer.solution.dtype).eps)


def _array(tensor: torch.Tensor) -> Array:
    array: Array = tensor.detach().cpu().double().numpy()
    return array
