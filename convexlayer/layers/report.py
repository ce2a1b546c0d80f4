"""The report of one call of the layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from convexlayer.diff import DerivativeReport
from convexlayer.program import Array, IndexArray
from convexlayer.solution import Residuals, Solution
from convexlayer.status import Status

__all__ = ["Report"]


@dataclass(eq=False)
class Report:
    """The report of one call; every array has one entry per element of the batch.

    Attributes:
        status: status of each element.
        residuals: residuals of the returned solutions, computed by Convexlayer on the equilibrated programs, so that
            they do not depend on the units of the problem.
        objective: objective values of the problem, NaN without a solution; from a torch layer a differentiable tensor,
            without the batch axis if no input had one.
        iterations: iterations of the solver.
        seconds: wall time by phase: ``canonical`` (program data), ``solve``, ``polish`` (and certification), and after
            a derivative of a torch layer ``derivative``.
        solver: the solver that ran.
        reason: why it was chosen.
        solution: the solution of the cone program, which can warm-start a later call.
        solved_again: positions of the elements that were solved again, by independent components or by the fallback
            solver (Clarabel, or the batched solver), because the solver stalled or claimed infeasibility or
            unboundedness without a certificate.
        details: messages by position of the element: the invalid parameter values of ``invalid`` elements, the cause
            of other failures.
        cold_start: why the given warm start was not used; None if it was used, or none was given.
        derivative: accuracy report of the last derivative, filled by the backward or forward-mode pass of a torch
            layer; None before. (``SolvedBatch.vjp`` and ``jvp`` return theirs.)
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
    derivative: DerivativeReport | None = None

    @property
    def failed(self) -> tuple[int, ...]:
        """Positions of the elements without a solution."""
        if self.solution.all_optimal:
            return ()
        return tuple(i for i, status in enumerate(self.status) if not status.solved)
