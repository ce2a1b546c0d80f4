"""Solutions kept between a solve and its derivatives, on behalf of those who hold their handles."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np

from ..arrays import Array
from ..errors import GoneError
from ..kept import Kept
from ..settings import Settings
from .protocol import ComputeOptions, ComputeResult, PortableState

__all__ = ["SolvedState", "States", "digest"]

_AROUND_BYTES, _ROW_BYTES = 5000, 200
"""What a state takes beside its arrays, and what each of its elements does."""


@dataclass(frozen=True, eq=False, kw_only=True)
class SolvedState:
    """What a handle stands for.

    Attributes:
        owner: whose it is.
        problem_id: of the problem that was solved.
        parameters: its values.
        options: how it was solved.
        result: what the solve said, without its outputs.
        points: the solutions of the standard form.
        pieces: for each part in which it was solved, its rows, and the id under which a worker may keep it solved.
        seconds_each: what solving one element took.
    """

    owner: str
    problem_id: str
    parameters: Mapping[str, Array]
    options: ComputeOptions
    result: ComputeResult
    points: PortableState
    pieces: tuple[tuple[slice, str], ...]
    seconds_each: float

    @property
    def size_bytes(self) -> int:
        """Bytes of its arrays, and of what is around them, about."""
        arrays = [*self.parameters.values(), self.points.x, self.points.y, self.points.s]
        return _AROUND_BYTES + _ROW_BYTES * len(self.points.status) + sum(array.nbytes for array in arrays)


@final
class States:
    """States by handle, each for a time after its last use.

    Args:
        settings: ``state_bytes`` and ``state_s``.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._states: Kept[SolvedState] = Kept(settings.state_bytes, settings.state_s)

    def put(self, state: SolvedState) -> str | None:
        """Keep a state; its handle, or None where it is too large."""
        if state.size_bytes > self._settings.state_bytes:
            return None
        handle = f"s_{secrets.token_urlsafe(18)}"
        self._states.put(handle, state.owner, state, state.size_bytes)
        return handle

    def get(self, handle: str, owner: str, problem_id: str) -> SolvedState:
        """The state of a handle.

        Raises:
            GoneError: it is not here for this owner and problem; whether it ever was is not said.
        """
        state = self._states.get(handle, owner, renew=True)
        if state is None or state.problem_id != problem_id:
            raise GoneError(
                f"the state {handle[:40]!r} is not here, or no longer (they are kept for {self._settings.state_s:g} s "
                "after their last use, and as long as there is room): send the parameters"
            )
        return state


def digest(problem_id: str, parameters: Mapping[str, Array], state: PortableState) -> str:
    """SHA-256 of a problem's id, its parameters with their shapes, and solutions with statuses, as hexadecimal."""
    sha = hashlib.sha256(problem_id.encode())
    named = {**{f"p/{name}": parameters[name] for name in sorted(parameters)}, "x": state.x, "y": state.y, "s": state.s}
    for name, array in named.items():
        sha.update(f"\n{name!r} {array.shape}\n".encode("utf-8", "surrogatepass"))
        sha.update(np.ascontiguousarray(array, dtype="<f8").data)
    sha.update("\n".join(state.status).encode("utf-8", "surrogatepass"))
    return sha.hexdigest()
