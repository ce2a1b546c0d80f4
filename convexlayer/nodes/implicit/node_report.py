"""Report of one call of a node, and the policies for elements that fail and derivatives that are doubtful."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import final

import torch

from convexlayer.arguments import MAX_LISTED
from convexlayer.diff import DerivativeReport
from convexlayer.errors import DerivativeError, ProblemError
from convexlayer.nodes.implicit.derivative_verdict import DerivativeVerdict
from convexlayer.nodes.implicit.stationary_kind import KINDS, Kind
from convexlayer.status import Status

__all__ = ["DegeneracyPolicy", "FailurePolicy", "NodeReport"]

ON_FAILURE = ("raise", "nan", "keep")
ON_DEGENERATE = ("warn", "report", "raise")


@final
class NodeReport:
    """Report of one call; tensors have one entry per element (under vmap, one batch after another).

    Attributes:
        distance: estimated relative error of the solution: the largest |K^-1 R|_j / |z_j| (for a fixed point,
            |A(x) - x| / |A(x)| in the maximum norm).
        iterations: iterations of the solver; 0 for given solutions.
        flat: mask of elements where K has vanished at the solution.
        all_solved: whether every element has a solution.
    """

    def __init__(self) -> None:
        self.distance, self.iterations = torch.empty(0), torch.empty(0, dtype=torch.int64)
        self._codes, self._kinds = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
        self._verdict: DerivativeVerdict | None = None
        self.flat, self.all_solved = torch.empty(0, dtype=torch.bool), True

    def record(
        self,
        solved: torch.Tensor,
        finite: torch.Tensor,
        distance: torch.Tensor,
        iterations: torch.Tensor,
        kinds: torch.Tensor | None = None,
        flat: torch.Tensor | None = None,
    ) -> None:
        """Record the result of the forward pass, (batch,) each.

        Args:
            solved: mask of the solved elements.
            finite: mask of the elements with finite values.
            distance: relative errors.
            iterations: iterations of the solver.
            kinds: codes of ``Kind``; None if unknown.
            flat: mask of elements where K has vanished; None for none.
        """
        code = torch.where(finite, _STATUSES.index(Status.ITERATION_LIMIT), _STATUSES.index(Status.NUMERICAL_ERROR))
        self._codes = torch.where(solved & finite, _STATUSES.index(Status.OPTIMAL), code)
        self.distance, self.iterations = torch.where(finite, distance, torch.inf), iterations
        self._kinds = torch.full_like(code, Kind.UNKNOWN.code) if kinds is None else kinds
        self.flat = torch.zeros_like(solved) if flat is None else flat
        self.all_solved = bool((solved & finite).all())

    @staticmethod
    def of_iterates(iterations: int, change: torch.Tensor) -> NodeReport:
        """Report of a fixed number of iterations, whose status is ``optimal_inaccurate``.

        Args:
            iterations: their number.
            change: relative change in the last one, (batch,).
        """
        report, size = NodeReport(), change.shape[0]
        report._codes = torch.full((size,), _STATUSES.index(Status.OPTIMAL_INACCURATE))
        report._kinds = torch.full((size,), Kind.UNKNOWN.code)
        report.distance, report.iterations = change, torch.full((size,), iterations)
        return report

    def record_derivative(self, verdict: DerivativeVerdict) -> None:
        """Record the verdict on a linear solve of the derivative."""
        self._verdict = verdict

    @property
    def solved(self) -> torch.Tensor:
        """Mask of the elements with a solution, (batch,)."""
        return self._codes <= _STATUSES.index(Status.OPTIMAL_INACCURATE)

    @property
    def status(self) -> tuple[Status, ...]:
        """One status per element.

        ``optimal``, ``iteration_limit``, or ``numerical_error`` if the solution is not finite; ``optimal_inaccurate``
        for every element after a fixed number of iterations, whose relative change is in ``distance``.
        """
        return tuple(_STATUSES[code] for code in self._codes.tolist())

    @property
    def kind(self) -> tuple[Kind, ...]:
        """Kinds of the stationary points; unknown for elements without one and where no Hessian is formed."""
        return tuple(KINDS[code] for code in self._kinds.tolist())

    @property
    def failed(self) -> tuple[int, ...]:
        """Indices of the elements without a solution."""
        return tuple(torch.nonzero(~self.solved).flatten().tolist())

    @property
    def derivative(self) -> DerivativeReport | None:
        """Accuracy of the latest derivative; None before the first."""
        return None if self._verdict is None else self._verdict.derivative

    @property
    def reasons(self) -> dict[int, str]:
        """Why the derivative is doubtful, by index of the element, for the solved ones."""
        return {} if self._verdict is None else self._verdict.reasons(self.solved)


_STATUSES = (Status.OPTIMAL, Status.OPTIMAL_INACCURATE, Status.ITERATION_LIMIT, Status.NUMERICAL_ERROR)


@final
class FailurePolicy:
    """Policy for elements without a solution: ``raise``, ``nan`` or ``keep``."""

    def __init__(self, choice: str) -> None:
        if choice not in ON_FAILURE:
            raise ProblemError(f"on_failure must be one of {', '.join(ON_FAILURE)}, got {choice!r}")
        self.choice = choice

    def masked(self, z: torch.Tensor, solved: torch.Tensor, report: NodeReport) -> torch.Tensor:
        """Replace elements of z (batch, n) without a solution by NaN, or by constants under ``keep``."""
        if report.all_solved:
            return z
        return torch.where(solved.unsqueeze(-1), z, z.detach() if self.choice == "keep" else torch.nan)

    def message(self, report: NodeReport, tol: float) -> str:
        """Text of the error for the failed elements."""
        failed = report.failed
        status, kind = report.status, report.kind
        listed = ", ".join(
            f"{i} ({status[i]}, distance {float(report.distance[i]):.1e}"
            f"{'' if kind[i] is Kind.UNKNOWN else f', a {kind[i]} and no minimum'})"
            for i in failed[:MAX_LISTED]
        )
        return (
            f"{len(failed)} of {len(status)} elements have no solution within {tol:.1e}: {listed}"
            f"{' ...' if len(failed) > MAX_LISTED else ''}. The function may be unbounded, not twice differentiable, "
            "or have no feasible point; else give another start, a solver, or more iterations. The outputs of "
            "the others are in this error's outputs; on_failure='nan' returns them instead"
        )


@final
class DegeneracyPolicy:
    """Policy for doubtful derivatives: ``warn`` (once per node), ``report`` or ``raise``."""

    def __init__(self, choice: str) -> None:
        if choice not in ON_DEGENERATE:
            raise ProblemError(f"on_degenerate must be one of {', '.join(ON_DEGENERATE)}, got {choice!r}")
        self._choice = choice
        self._lock = threading.Lock()
        self._warned = False

    def __reduce__(self) -> tuple[Callable[[str], DegeneracyPolicy], tuple[str]]:
        return DegeneracyPolicy, (self._choice,)

    def __call__(self, report: NodeReport) -> None:
        """Apply the policy to a report with a new derivative."""
        if self._choice == "report" or (self._choice == "warn" and self._warned):
            return
        reasons = report.reasons
        if not reasons:
            return
        first = next(iter(reasons))
        message = (
            f"the derivative of {len(reasons)} elements may not exist or is inaccurate, the first of them "
            f"{first}: {reasons[first]}. The returned derivative is a least-squares direction of minimum norm, or "
            "NaN; report.derivative gives its accuracy"
        )
        if self._choice == "raise":
            raise DerivativeError(message)
        with self._lock:
            first_time, self._warned = not self._warned, True
        if first_time:
            warnings.warn(
                message + " (warned once per node; on_degenerate='report' is silent)", UserWarning, stacklevel=2
            )
