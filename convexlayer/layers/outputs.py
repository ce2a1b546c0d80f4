"""How much a change of x and y is, relative to the outputs that are made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import numpy as np

from convexlayer.canon import ParametricProgram
from convexlayer.program import Array, ConeProgram, max_norm

__all__ = ["OutputChange"]

CANCELLED = 1e-6
"""An output of which a Newton step leaves no more than this share is 0."""

ROUNDING = 1e-13
"""An output that is smaller than this, or would be after a Newton step, relative to its terms, is 0."""

SMALL = 1e-8
"""Changes of outputs up to this share need no second look."""


@final
class OutputChange:
    """The ``relative`` of ``ExactDifferentiator``, at one batch of solutions."""

    def __init__(
        self,
        program: ParametricProgram,
        features: Array,
        x: Array,
        y: Array,
        values: Sequence[Array],
        scale: Array,
    ) -> None:
        """At features (B, features), x (B, n), y (B, m) and outputs, of programs whose objective is over ``scale``."""
        self._program, self._features, self._scale = program, features, scale
        self._point = np.concatenate([x, y], axis=1)
        self._values = np.concatenate([value.reshape(len(value), -1) for value in values], axis=1)
        self._answer: Array | None = None

    def __call__(self, dx: Array, dy: Array, respond: Callable[[ConeProgram], tuple[Array, Array]]) -> Array:
        """The largest change of an output relative to it, (B,).

        An output may be next to 0 because its terms cancel there. Then it moves with the parameters by much more than
        itself, and what counts is that: how it answers to changes of all parameters by the same share.

        Args:
            dx: change of x, (B, n).
            dy: change of y, (B, m).
            respond: how x and y answer to a tangent of the program.
        """
        moved, values = self._moved(dx, dy), self._values
        change, size = np.abs(moved), np.abs(values)
        change[np.abs(values + moved) <= CANCELLED * size] = 0.0  # 0 at the solution: of no size
        doubtful = np.any(change > SMALL * size, axis=1, keepdims=True)
        if np.any(doubtful):
            terms = self._program.recovery.terms(self._features, self._point)
            left = np.minimum(size, np.abs(values + moved))
            change[doubtful & (left < ROUNDING * terms)] = 0.0  # the rounding of terms that cancel
            doubtful = np.any(change > SMALL * size, axis=1, keepdims=True)
        if np.any(doubtful):
            size = np.where(doubtful, np.maximum(size, self._response(respond)), size)
        with np.errstate(divide="ignore", invalid="ignore"):
            return max_norm(np.where(change > 0.0, change / size, 0.0))

    def _response(self, respond: Callable[[ConeProgram], tuple[Array, Array]]) -> Array:
        """How the outputs answer to a change of all parameters by their size, (B, entries); found once."""
        if self._answer is not None:
            return self._answer
        program, features = self._program, self._features
        push = features * np.random.default_rng(0).choice((-1.0, 1.0), features.shape[1])
        dx, dy = respond(program.push(features, push).divided(self._scale))
        self._answer = np.abs(self._moved(dx, dy) + program.recovery.push_direct(self._point, push))
        return self._answer

    def _moved(self, dx: Array, dy: Array) -> Array:
        """Tangents (B, entries) of all outputs."""
        return self._program.recovery.push_linear(self._features, dx, dy * self._scale[:, None])
