"""States: solutions kept between a solve and its derivatives, for the owners of their handles."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np

from ..encodings.arrays import Array
from ..errors import MAX_QUOTED, GoneError
from ..settings import Settings
from ..shared.caches import FairShareCache
from .protocol import ComputeOptions, ComputeResult, PortableState

__all__ = ["SolvedState", "StateCache", "state_digest"]

_OVERHEAD_BYTES = 5000
"""Overhead of a state in bytes, without its arrays."""

_ELEMENT_BYTES = 200
"""Overhead of each element of a state in bytes, without its arrays."""


@dataclass(frozen=True, eq=False, kw_only=True)
class SolvedState:
    """The state of a handle.

    Attributes:
        owner: ID of the key that owns it.
        problem_id: ID of the solved problem.
        parameters: parameter values.
        options: solver options.
        result: result of the solve, without its outputs.
        points: solutions of the standard form.
        chunks: for each chunk of the solve, its elements and the key under which a worker may cache its solved batch.
        seconds_each: seconds that solving one element took.
    """

    owner: str
    problem_id: str
    parameters: Mapping[str, Array]
    options: ComputeOptions
    result: ComputeResult
    points: PortableState
    chunks: tuple[tuple[slice, str], ...]
    seconds_each: float

    @property
    def size_bytes(self) -> int:
        """Approximate bytes, with overhead."""
        arrays = [*self.parameters.values(), self.points.x, self.points.y, self.points.s]
        return _OVERHEAD_BYTES + _ELEMENT_BYTES * len(self.points.status) + sum(array.nbytes for array in arrays)


@final
class StateCache:
    """States by handle, each for a limited time after its last use.

    Args:
        settings: ``state_bytes`` and ``state_s``.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._states: FairShareCache[SolvedState] = FairShareCache(settings.state_bytes, settings.state_s)

    def put(self, state: SolvedState) -> str | None:
        """Store a state; return its handle, or None if it is too large."""
        if state.size_bytes > self._settings.state_bytes:
            return None
        handle = f"s_{secrets.token_urlsafe(18)}"
        self._states.put(handle, state.owner, state, state.size_bytes)
        return handle

    def get(self, handle: str, owner: str, problem_id: str) -> SolvedState:
        """Return the state of a handle.

        Raises:
            GoneError: there is none for this owner and problem; the error does not tell whether there ever was.
        """
        state = self._states.get(handle, owner, renew=True)
        if state is None or state.problem_id != problem_id:
            raise GoneError(
                f"the server does not hold the state {handle[:MAX_QUOTED]!r} (states expire "
                f"{self._settings.state_s:g} s after their last use, or earlier if memory runs short); send the "
                "parameters instead"
            )
        return state


def state_digest(problem_id: str, parameters: Mapping[str, Array], state: PortableState) -> str:
    """Return the hexadecimal SHA-256 of a problem's ID, its parameters with their shapes, solutions and statuses."""
    sha = hashlib.sha256(problem_id.encode())
    named = {**{f"p/{name}": parameters[name] for name in sorted(parameters)}, "x": state.x, "y": state.y, "s": state.s}
    for name, array in named.items():
        sha.update(f"\n{name!r} {array.shape}\n".encode("utf-8", "surrogatepass"))
        sha.update(np.ascontiguousarray(array, dtype="<f8").data)
    sha.update("\n".join(state.status).encode("utf-8", "surrogatepass"))
    return sha.hexdigest()
