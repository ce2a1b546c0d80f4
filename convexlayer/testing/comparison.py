"""The verdict on derivatives: right, wrong, or not to be judged by differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from convexlayer.program import Array
from convexlayer.testing.finite_differences import Difference
from convexlayer.testing.outputs import OutputVector

__all__ = ["Comparison"]

SAFETY = 10.0
"""Factor on the estimated error of a difference, within which the derivative is assumed to be."""

CONSTANT = 1e-6
"""Derivatives below this fraction of the value itself count as zero, as steps are relative."""

WEAK = 1e-6
"""So do derivatives along one argument below this fraction of those along others: rounding of a linear system that they
share may exceed them."""

TINY = float(np.finfo(np.float64).tiny)

ADVICE_WRONG = """What to try:
- If the function iterates, ask for a smaller tolerance: its error also enters its derivative.
- layer.solve(*tensors)[1].derivative says, after a backward pass, which elements are degenerate or inaccurate.
- rtol= accepts larger errors; directions= and seed= draw other directions."""

ADVICE_UNRESOLVED = """What to try:
- At a kink there is no derivative to compare with: move the point, or draw it at random.
- If the function is noisy, as after few iterations, ask for a smaller tolerance (options={"tol": 1e-11}).
- rtol= accepts larger errors."""


@final
@dataclass(frozen=True)
class _Failure:
    """A comparison that failed: multiple of the allowed difference, and a description."""

    excess: float
    text: str


@final
class Comparison:
    """Compares derivatives along the directions of every argument with differences, and keeps the worst failures.

    A derivative is wrong if it differs from an accurate difference by more than the tolerance and SAFETY times the
    estimated error of the difference. A difference is accurate if that error is below the tolerance, and the
    derivatives on both sides agree.

    Args:
        outputs: the outputs.
        names: name of each argument.
        differences: the difference along each direction of each argument.
        rtol: tolerance relative to the largest derivative of an output along the directions of an argument.
    """

    def __init__(
        self, outputs: OutputVector, names: Sequence[str], differences: Sequence[Sequence[Difference]], rtol: float
    ) -> None:
        self._outputs, self._names, self._differences, self._rtol = outputs, names, differences, rtol
        groups = outputs.groups
        floor = CONSTANT * groups.largest(outputs.value)
        sizes = [np.maximum.reduce([groups.largest(each.derivative) for each in own]) for own in differences]
        self._largest = np.maximum.reduce([floor, *sizes])
        self._tolerance = [rtol * np.maximum.reduce([size, floor, WEAK * self._largest]) for size in sizes]
        self._wrong: dict[str, _Failure] = {}
        self._unresolved: _Failure | None = None
        for argument, own in enumerate(differences):
            for direction, each in enumerate(own):
                self._note_unresolved(argument, direction, each)

    @property
    def weight(self) -> Array:
        """Weights of cotangents, (K,), with which all outputs and elements count equally."""
        return self._outputs.groups.spread(1.0 / np.where(self._largest > 0, self._largest, 1.0))

    def jvp(self, argument: int, direction: int, analytic: Array) -> None:
        """Compare a derivative (K,) along a direction, entry by entry."""
        difference, spread = self._differences[argument][direction], self._outputs.groups.spread
        tolerance, error = spread(self._tolerance[argument]), spread(SAFETY * difference.error)
        with np.errstate(invalid="ignore"):
            excess = np.abs(analytic - difference.derivative) / np.maximum(tolerance + error, TINY)
        excess = np.where(spread(self._accurate(argument, difference)), np.where(np.isnan(excess), np.inf, excess), 0.0)
        worst = int(np.argmax(excess)) if excess.size else 0
        if excess.size and excess[worst] > 1.0:
            values = (each[worst] for each in (analytic, difference.derivative, error, tolerance))
            self._note_wrong("forward", excess[worst], argument, direction, self._outputs.name(worst), *values)

    def vjp(self, output: int, cotangent: Array, argument: int, direction: int, analytic: float) -> None:
        """Compare the product of a pulled-back cotangent (entries of one output) with a direction."""
        difference, spread = self._differences[argument][direction], self._outputs.groups.spread
        part = self._outputs.parts[output]
        if not spread(self._accurate(argument, difference))[part].all():
            return
        numeric = float(cotangent @ difference.derivative[part])
        # Random signs: errors of the entries add up like a random walk.
        tolerance = float(np.linalg.norm(cotangent * spread(self._tolerance[argument])[part]))
        error = float(np.linalg.norm(cotangent * spread(SAFETY * difference.error)[part]))
        excess = abs(analytic - numeric) / max(tolerance + error, TINY)
        if not excess <= 1.0:
            where = f"output {output} (a random cotangent)"
            excess = np.inf if np.isnan(excess) else excess
            self._note_wrong("reverse", excess, argument, direction, where, analytic, numeric, error, tolerance)

    def conclude(self, cause: Exception | None) -> None:
        """Raise the worst failure of each mode, else what could not be judged.

        Args:
            cause: the last exception of an evaluation near the point.

        Raises:
            AssertionError: there is one.
        """
        if self._wrong:
            modes = " and ".join(self._wrong)
            told = "\n".join(failure.text for failure in self._wrong.values())
            raise AssertionError(f"{told}\nFailed in {modes} mode.\n{ADVICE_WRONG}")
        if self._unresolved is not None:
            raise AssertionError(f"{self._unresolved.text}\n{ADVICE_UNRESOLVED}") from cause

    def _accurate(self, argument: int, difference: Difference) -> Array:
        """Mask (G,) of the groups whose differences are accurate."""
        error, tolerance = SAFETY * difference.error, self._tolerance[argument]
        return np.asarray((error <= tolerance) & (difference.jump <= tolerance + error))

    def _note_wrong(
        self,
        mode: str,
        excess: float,
        argument: int,
        direction: int,
        where: str,
        analytic: float,
        numeric: float,
        error: float,
        tolerance: float,
    ) -> None:
        if mode not in self._wrong or excess > self._wrong[mode].excess:
            text = (
                f"{mode} mode is wrong: {self._names[argument]}, direction {direction}, {where}\n"
                f"    analytic           {analytic:.12g}\n"
                f"    finite difference  {numeric:.12g}, estimated error {error / SAFETY:.1e}\n"
                f"    difference         {abs(analytic - numeric):.1e}, tolerance {tolerance:.1e} (rtol={self._rtol:g})"
            )
            self._wrong[mode] = _Failure(excess, text)

    def _note_unresolved(self, argument: int, direction: int, difference: Difference) -> None:
        """Note the group that is farthest from being judged."""
        tolerance, accurate = self._tolerance[argument], self._accurate(argument, difference)
        excess = np.where(accurate, 0.0, np.maximum(SAFETY * difference.error, difference.jump))
        excess = excess / np.maximum(tolerance, TINY)
        worst = int(np.argmax(excess)) if excess.size else 0
        if accurate.all() or (self._unresolved is not None and excess[worst] <= self._unresolved.excess):
            return
        if np.isinf(difference.error[worst]):
            reason = "the function cannot be evaluated near the point"
        elif SAFETY * difference.error[worst] <= tolerance[worst]:
            reason = f"there is a kink, with derivatives on its two sides that differ by {difference.jump[worst]:.1e}"
        else:
            reason = f"the differences do not converge, with an estimated error of {difference.error[worst]:.1e}"
        text = (
            f"cannot judge the derivative of {self._outputs.group_name(worst)} along {self._names[argument]}, "
            f"direction {direction}: {reason} (tolerance {tolerance[worst]:.1e}, rtol={self._rtol:g})"
        )
        self._unresolved = _Failure(float(excess[worst]), text)
