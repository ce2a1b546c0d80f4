"""What a call of the layer did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from convexlayer.diff import DerivativeReport
from convexlayer.program import Array, IndexArray
from convexlayer.solution import Residuals, Solution
from convexlayer.status import Status

__all__ = ["DerivativeRecord", "Report"]


@dataclass(eq=False)
class DerivativeRecord:
    """Where a backward pass writes; all copies of a report share it."""

    report: DerivativeReport | None = None


@dataclass(frozen=True, eq=False)
class Report:
    """The account of one call; every array has one entry an element of the batch.

    Attributes:
        status: what became of each element.
        residuals: our own residuals of the solutions returned, of the programs in units of their own, so that those of
            the problem do not matter.
        objective: objective values of the problem, not a number where there is no solution; from a torch layer a tensor
            that can be differentiated, without the batch axis if no input had one.
        iterations: iterations of the solver.
        seconds: wall time of the parts: ``canonical`` data, ``solve``, ``polish`` (and certification), and after a
            backward pass ``derivative``.
        solver: the solver that ran.
        reason: why it was chosen.
        solution: the solution of the cone program, which a later call may take as its warm start.
        solved_again: positions of the elements on which the solver stalled or which it called infeasible or unbounded
            without proof, and which were solved in independent parts, or by its fallback (Clarabel, or the batched
            solver).
        details: what there is to say of elements beyond their status, by position: what is wrong with the values of
            those that are ``invalid``, and what happened to those that failed otherwise.
        cold_start: why a warm start that was given was not used; None where it was, or where none was given.
    """

    status: tuple[Status, ...]
    residuals: Residuals
    objective: Array | torch.Tensor
    iterations: IndexArray
    seconds: dict[str, float]
    solver: str
    reason: str
    solution: Solution
    solved_again: tuple[int, ...] = ()
    details: Mapping[int, str] = field(default_factory=dict)
    cold_start: str | None = None
    record: DerivativeRecord = field(default_factory=DerivativeRecord, repr=False)

    @property
    def derivative(self) -> DerivativeReport | None:
        """How far the last vjp or jvp at these solutions can be trusted; None before the first."""
        return self.record.report

    @property
    def failed(self) -> tuple[int, ...]:
        """Positions of the elements without a solution."""
        if self.solution.all_optimal:
            return ()
        return tuple(i for i, status in enumerate(self.status) if not status.solved)
