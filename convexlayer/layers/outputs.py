"""Relative change of the outputs caused by a change of x and y."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import numpy as np

from convexlayer.canon import ParametricProgram
from convexlayer.program import Array, ConeProgram

__all__ = ["OutputChange"]

CANCELLED = 1e-6
"""An output that a Newton step reduces to at most this fraction counts as zero."""

ROUNDING = 1e-13
"""An output at most this large relative to its terms, before or after a Newton step, counts as zero: rounding."""

SMALL = 1e-8
"""Relative changes up to this size are accepted without the more expensive tests for zero."""


@final
class OutputChange:
    """Measure of relative change (``relative`` of ``ExactDifferentiator``) at one batch of solutions."""

    def __init__(
        self,
        program: ParametricProgram,
        features: Array,
        x: Array,
        y: Array,
        values: Sequence[Array],
    ) -> None:
        """Store features (B, features), x (B, n), y (B, m) and outputs."""
        self._program, self._features = program, features
        self._x, self._y = x, y
        flat = [value.reshape(len(value), -1) for value in values]
        self._values = flat[0] if len(flat) == 1 else np.concatenate(flat, axis=1)

    @property
    def _point(self) -> Array:
        return np.concatenate([self._x, self._y], axis=1)

    def __call__(self, dx: Array, dy: Array, respond: Callable[[ConeProgram], tuple[Array, Array]]) -> Array:
        """Compute the largest relative change of an output, (B,).

        An output may be close to zero because its terms cancel. Its change is then measured relative to its first-order
        response to equal relative changes, of random signs, of all parameters.

        Args:
            dx: change of x, (B, n).
            dy: change of y, (B, m).
            respond: maps a tangent of the program to tangents of x and y.
        """
        moved, values = self._moved(dx, dy), self._values
        change, size = np.abs(moved), np.abs(values)
        change[np.abs(values + moved) <= CANCELLED * size] = 0.0  # zero at the exact solution: no relative change
        doubtful = (change > SMALL * size).any(axis=1, keepdims=True)
        if doubtful.any():
            terms = self._program.recovery.terms(self._features, self._point)
            left = np.minimum(size, np.abs(values + moved))
            change[doubtful & (left < ROUNDING * terms)] = 0.0  # rounding errors of terms that cancel
            doubtful = (change > SMALL * size).any(axis=1, keepdims=True)
        if doubtful.any():
            size = np.where(doubtful, np.maximum(size, self._response(respond)), size)
        with np.errstate(divide="ignore"):
            largest: Array = np.divide(change, size, out=np.zeros_like(change), where=change > 0.0).max(1, initial=0.0)
        return largest

    def _response(self, respond: Callable[[ConeProgram], tuple[Array, Array]]) -> Array:
        """Magnitude of the outputs' response to a change of each parameter by +- itself, (B, entries)."""
        program, features = self._program, self._features
        push = features * np.random.default_rng(0).choice((-1.0, 1.0), features.shape[1])
        dx, dy = respond(program.push(features, push))
        return np.abs(self._moved(dx, dy) + program.recovery.push_direct(self._point, push))

    def _moved(self, dx: Array, dy: Array) -> Array:
        """Push forward tangents of x and y to all outputs, (B, entries)."""
        return self._program.recovery.push_linear(self._features, dx, dy)
