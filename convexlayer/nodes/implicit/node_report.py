"""What a call of a node did, how far its derivative can be trusted, and what becomes of failures."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import final

import torch

from convexlayer.diff import DerivativeReport
from convexlayer.diff.report import ACCURATE
from convexlayer.errors import DerivativeError, ProblemError
from convexlayer.nodes.autodiff.derivatives import times
from convexlayer.nodes.implicit.error_estimate import irregular_signs, irregular_weights, rounding
from convexlayer.nodes.implicit.operator import LinearSolve, Operator
from convexlayer.nodes.implicit.stationary_kind import KINDS, Kind
from convexlayer.program import Array
from convexlayer.status import Status

__all__ = ["NodeReport", "OnDegenerate", "OnFailure", "Recorder"]

ON_FAILURE = ("raise", "nan", "keep")
ON_DEGENERATE = ("warn", "report", "raise")

JUMP = 0.1
"""Relative change of K within rounding of z, from which the function is not twice differentiable there."""

NEAR = 1e-6
"""An inequality is weakly active where it and its multiplier, each relative to what moves it, are not above this."""


@final
class NodeReport:
    """The account of one call; every tensor has one entry an element (under vmap, of all lanes one after another).

    Its words are made when somebody reads them.

    Attributes:
        distance: an estimate of the relative error of the solution: the largest |K^-1 R|_j / |z_j| (of a fixed point,
            |A(x) - x| / |A(x)|, in the maximum norm).
        iterations: iterations of the solver; 0 for given ones.
    """

    def __init__(self) -> None:
        self.distance, self.iterations = torch.empty(0), torch.empty(0, dtype=torch.int64)
        self._codes, self._kinds = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
        self._judged: _Judged | None = None
        self.flat, self.all_solved = torch.empty(0, dtype=torch.bool), True

    def fill(
        self,
        solved: torch.Tensor,
        finite: torch.Tensor,
        distance: torch.Tensor,
        iterations: torch.Tensor,
        kinds: torch.Tensor | None = None,
        flat: torch.Tensor | None = None,
    ) -> None:
        """Write what the forward pass found, (batch,) each.

        Args:
            solved: which elements are.
            finite: which have finite numbers.
            distance: relative errors.
            iterations: of the solver.
            kinds: positions in ``Kind``; unknown unless given.
            flat: where K has vanished at the solution; nowhere unless given.
        """
        code = torch.where(finite, _STATUSES.index(Status.ITERATION_LIMIT), _STATUSES.index(Status.NUMERICAL_ERROR))
        self._codes = torch.where(solved & finite, _STATUSES.index(Status.OPTIMAL), code)
        self.distance, self.iterations = torch.where(finite, distance, torch.inf), iterations
        self._kinds = torch.full_like(code, Kind.UNKNOWN.code) if kinds is None else kinds
        self.flat = torch.zeros_like(solved) if flat is None else flat
        self.all_solved = bool((solved & finite).all())

    @staticmethod
    def of_iterates(iterations: int, change: torch.Tensor) -> NodeReport:
        """What there is to say of iterates that are what was asked for, wherever they are: ``optimal_inaccurate``."""
        report, size = NodeReport(), change.shape[0]
        report._codes = torch.full((size,), _STATUSES.index(Status.OPTIMAL_INACCURATE))
        report._kinds = torch.full((size,), Kind.UNKNOWN.code)
        report.distance, report.iterations = change, torch.full((size,), iterations)
        return report

    def judge(self, judged: _Judged) -> None:
        """Write what a linear solve of the derivative showed."""
        self._judged = judged

    @property
    def solved(self) -> torch.Tensor:
        """Which elements have a solution, (batch,)."""
        return self._codes <= _STATUSES.index(Status.OPTIMAL_INACCURATE)

    @property
    def status(self) -> tuple[Status, ...]:
        """``optimal``, ``iteration_limit``, or ``numerical_error`` where the solution is not finite."""
        return tuple(_STATUSES[code] for code in self._codes.tolist())

    @property
    def kind(self) -> tuple[Kind, ...]:
        """The kinds of the stationary points; unknown for elements without one and where no matrix is formed."""
        return tuple(KINDS[code] for code in self._kinds.tolist())

    @property
    def failed(self) -> tuple[int, ...]:
        """Positions of the elements without a solution."""
        return tuple(torch.nonzero(~self.solved).flatten().tolist())

    @property
    def derivative(self) -> DerivativeReport | None:
        """How far the derivative can be trusted; None before the first."""
        return None if self._judged is None else self._judged.derivative

    @property
    def reasons(self) -> dict[int, str]:
        """What is wrong with the derivative, by element; of those that have a solution."""
        return {} if self._judged is None else self._judged.reasons(self.solved)


_STATUSES = (Status.OPTIMAL, Status.OPTIMAL_INACCURATE, Status.ITERATION_LIMIT, Status.NUMERICAL_ERROR)


@final
class OnFailure:
    """What becomes of elements without a solution: ``raise``, ``nan`` or ``keep``."""

    def __init__(self, choice: str) -> None:
        if choice not in ON_FAILURE:
            raise ProblemError(f"on_failure must be one of {', '.join(ON_FAILURE)}, got {choice!r}")
        self.choice = choice

    def masked(self, z: torch.Tensor, solved: torch.Tensor, report: NodeReport) -> torch.Tensor:
        """z (batch, n), constant or NaN where it is no solution."""
        if report.all_solved:
            return z
        return torch.where(solved.unsqueeze(-1), z, z.detach() if self.choice == "keep" else torch.nan)

    def message(self, report: NodeReport, tol: float) -> str:
        """What an error says."""
        failed = report.failed
        status, kind = report.status, report.kind
        named = ", ".join(
            f"{i} ({status[i]}, distance {float(report.distance[i]):.1e}"
            f"{'' if kind[i] is Kind.UNKNOWN else f', a {kind[i]} and no minimum'})"
            for i in failed[:8]
        )
        return (
            f"{len(failed)} of {len(status)} elements have no solution within {tol:.1e}: {named}"
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
        if self._choice == "report" or (self._choice == "warn" and self._warned):
            return
        reasons = report.reasons
        if not reasons:
            return
        first = next(iter(reasons))
        message = (
            f"the derivative of {len(reasons)} elements may not exist or is inaccurate, the first of them "
            f"{first}: {reasons[first]}. What is returned is a least-squares direction of minimum norm, or "
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
        margin: operator -> distance (batch,) from the nearest point where K is known to jump; None where nothing is.
        why_singular: (operator, element) -> what to say of a singular K.
    """

    def __init__(
        self,
        report: NodeReport,
        on_degenerate: OnDegenerate,
        tol: float,
        margin: Callable[[Operator], torch.Tensor] | None,
        why_singular: Callable[[Operator, int], str],
    ) -> None:
        self._report, self._on_degenerate, self._tol = report, on_degenerate, tol
        self._margin, self._why_singular = margin, why_singular
        self._seen: Operator | None = None
        self._jump = torch.empty(0)
        self._near = torch.empty(0)

    def __call__(
        self, operator: Operator, answer: LinearSolve, inverse: Callable[[torch.Tensor], torch.Tensor] | None
    ) -> None:
        """Judge one solve."""
        if self._seen is not operator:
            self._seen, self._near = operator, torch.full_like(operator.z[:, 0], torch.inf)
            if self._margin is not None:
                self._near = self._margin(operator)
            self._jump = self._measured_jump(operator, inverse)
        judged = _Judged(operator, answer, self._report, self._jump, self._near, self._tol, self._why_singular)
        self._report.judge(judged)
        if judged.doubtful:
            self._on_degenerate(self._report)

    def _measured_jump(
        self, operator: Operator, inverse: Callable[[torch.Tensor], torch.Tensor] | None
    ) -> torch.Tensor:
        """Relative change of K w beside z, (batch,): near 0 unless K jumps or vanishes there.

        Beside is as far as z is uncertain, by its distance and by what rounding leaves of R.

        Multipliers move by a factor, so that those of inactive inequalities stay zero.
        """
        z = operator.z
        eps = torch.finfo(z.dtype).eps
        known = self._report.distance.nan_to_num(0.0, 0.0, 0.0).clamp(eps ** (2 / 3), 1e-4).to(z).unsqueeze(-1)
        n = z.shape[-1] - operator.residual.multipliers
        size = z.abs()
        # An unknown that is zero moves by what the others tell of its length.
        most = size[:, :n].amax(-1, keepdim=True)
        size[:, :n] = torch.where(size[:, :n] > 0, size[:, :n], torch.where(most > 0, most, 1.0))
        shift, noise = 2.0 * known * size, rounding(operator)
        if inverse is not None:
            blurred = inverse(noise).abs().nan_to_num(0.0, 0.0)
            blurred[:, n:] = 0.0
            shift = torch.maximum(shift, 2.0 * blurred)
        shift = shift * irregular_signs(z)
        w = size * irregular_weights(z)  # no multiple of the shift: a jump along it does not cancel
        here, along = operator.transposed_product(w), operator.product(shift)
        (above, value_above), (below, value_below) = operator.beside(shift, w)
        change = torch.maximum((above - below).abs(), torch.maximum((above - here).abs(), (below - here).abs()))
        whole = torch.maximum(here.abs(), torch.maximum(above.abs(), below.abs()))
        # K may be the same on both sides of a kink of the objective, across which R itself jumps.
        jump = ((value_above - value_below) - 2.0 * along).abs()
        step = 2.0 * along.abs() + 100.0 * noise
        # What a row has to change is measured by the sizes of its entries: their sum with signs may be next to nothing.
        if inverse is not None:
            sizes = operator.dense().abs()
            whole = torch.maximum(whole, times(sizes.mT, w.abs()))
            step = step + 2.0 * times(sizes, shift.abs())
        else:
            for number in range(1, 4):
                weights = irregular_weights(z, number)
                whole = torch.maximum(whole, operator.transposed_product(size * weights).abs())
                step = torch.maximum(step, 2.0 * operator.product(shift.abs() * weights).abs())
        of_slope = torch.where(jump > JUMP * step, 1.0, 0.0).amax(-1)
        of_curvature = (change / torch.where(whole > 0, whole, 1.0)).amax(-1).nan_to_num(0.0, 0.0, 0.0)
        return torch.maximum(of_slope.to(of_curvature), of_curvature)


@final
class _Judged:
    """One linear solve of a derivative and what it means, kept as tensors until words are asked for."""

    def __init__(
        self,
        operator: Operator,
        answer: LinearSolve,
        report: NodeReport,
        jump: torch.Tensor,
        near: torch.Tensor,
        tol: float,
        why_singular: Callable[[Operator, int], str],
    ) -> None:
        n, eps = answer.solution.shape[-1], torch.finfo(answer.solution.dtype).eps
        # Afresh, for a report may live long and should not hold what has been recorded for the derivative.
        self._operator, self._answer, self._why_singular = operator.at(operator.z), answer, why_singular
        self._near, self._distance = near, report.distance
        self._accurate = max(ACCURATE, 1e3 * eps)
        tests = {
            "unsolved": ~report.solved,
            "infinite": ~torch.isfinite(answer.solution).all(-1),
            "singular": (answer.condition > 1.0 / (10.0 * n * eps)) | report.flat,
            "weak": near <= max(NEAR, 100.0 * eps),
            "uncertain": report.distance > tol,
            "jump": jump > JUMP,
            "residual": ~(answer.residual <= self._accurate),  # NaN too
        }
        self._names = tuple(tests)
        # The first test that finds fault decides.
        faults = torch.stack([*tests.values(), torch.ones_like(tests["weak"])])
        self._fault = faults.int().argmax(0)
        self.doubtful = bool((self._fault < len(tests)).any())

    @property
    def derivative(self) -> DerivativeReport:
        """In the words that all derivatives are reported in."""
        residual = self._answer.residual
        words = [_WORDS[self._names[code]] if code < len(self._names) else "ok" for code in self._fault.tolist()]
        return DerivativeReport(
            linear_residual=_array(residual),
            margin=_array(self._near),
            condition=_array(self._answer.condition),
            consistent=_array(residual) <= self._accurate,
            status=tuple(words),
        )

    def reasons(self, solved: torch.Tensor) -> dict[int, str]:
        """What is wrong, by element."""
        at = torch.nonzero((self._fault < len(self._names)) & solved).flatten().tolist()
        return {i: self._reason(self._names[int(self._fault[i])], i) for i in at}

    def _reason(self, fault: str, element: int) -> str:
        match fault:
            case "infinite":
                return "the second derivatives at the solution are not finite"
            case "singular":
                return self._why_singular(self._operator, element)
            case "weak":
                near = float(self._near[element])
                return f"an inequality is weakly active (it and its multiplier within {near:.0e}): a kink"
            case "uncertain":
                why = self._why_singular(self._operator, element)
                far = float(self._distance[element])
                return f"the second derivatives leave the solution uncertain by {far:.0e}: {why}"
            case "jump":
                return (
                    "second derivatives jump or vanish at the solution: the function is flat there, or not twice "
                    "differentiable"
                )
        residual = float(self._answer.residual[element])
        return f"the relative residual of the linear system is {residual:.0e}"


_WORDS = {
    "unsolved": "failed",
    "infinite": "failed",
    "singular": "degenerate",
    "weak": "degenerate",
    "uncertain": "inaccurate",
    "jump": "degenerate",
    "residual": "inaccurate",
}


def _array(tensor: torch.Tensor) -> Array:
    array: Array = tensor.detach().cpu().double().numpy()
    return array
