"""The arrays of a request, against the shapes of its problem."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from ..arrays import Array, decode_batch
from ..engine import Operation, PortableState
from ..errors import InvalidError, pointer
from ..settings import Settings
from .bodies import Portable

__all__ = ["Reader", "known_names"]


def known_names(names: Iterable[str]) -> str:
    """The end of a message on an unknown name."""
    known = ", ".join(islice(names, 30))
    return f"; known are {known}" if known else "; there are none"


class Reader:
    """Reads the arrays of one request and sees that their batch sizes agree.

    Attributes:
        copied_bytes: of the arrays that were read and were none before.
    """

    def __init__(self, summary: Mapping[str, Any], settings: Settings) -> None:
        self._summary = summary
        self._settings = settings
        self._batch: int | None = None
        self._origin = ""
        self.copied_bytes = 0

    @property
    def batch(self) -> int:
        """Elements of the batch; 1 where there is none."""
        return self._batch or 1

    def parameters(self, given: Mapping[str, Any]) -> dict[str, Array]:
        """Values of every parameter."""
        shapes = self._shapes("parameters")
        for name in shapes:
            if name not in given:
                raise InvalidError.at(pointer("parameters", name), "is missing; every parameter needs a value")
        return self._read(given, "parameters", shapes, rows_may_fail=True)

    def directions(self, operation: Operation, given: Mapping[str, Any]) -> dict[str, Array]:
        """Cotangents of outputs or tangents of parameters, those that are given."""
        if operation == "jvp":
            return self._read(given, "tangents", self._shapes("parameters"))
        shapes = {"objective": (), **self._shapes("variables"), **self._shapes("duals")}
        return self._read(given, "cotangents", shapes, finite=False)

    def state(self, given: Portable) -> PortableState:
        """A portable state."""
        sizes = self._summary["sizes"]
        arrays = {}
        for name, length in (("x", sizes["n"]), ("y", sizes["m"]), ("s", sizes["m"])):
            where = pointer("state", name)
            arrays[name], batched = self._decoded(getattr(given, name), (length,), where)
            if not batched or len(arrays[name]) != len(given.status):
                raise InvalidError.at(where, f"expected one row for each of the {len(given.status)} in status")
        return PortableState(digest=given.digest, status=tuple(map(str, given.status)), **arrays)

    def _shapes(self, part: str) -> dict[str, tuple[int, ...]]:
        return {name: tuple(entry["shape"]) for name, entry in self._summary[part].items()}

    def _read(
        self,
        given: Mapping[str, Any],
        part: str,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        finite: bool = True,
        rows_may_fail: bool = False,
    ) -> dict[str, Array]:
        arrays = {}
        for name, value in given.items():
            where = pointer(part, name)
            if name not in shapes:
                raise InvalidError.at(where, f"unknown name{known_names(shapes)}")
            arrays[name], batched = self._decoded(
                value, shapes[name], where, finite=finite, rows_may_fail=rows_may_fail
            )
            if batched:
                self._agree(len(arrays[name]), where)
        return arrays

    def _decoded(self, value: Any, shape: tuple[int, ...], where: str, **options: bool) -> tuple[Array, bool]:
        array, batched = decode_batch(value, shape, where, self._settings, **options)
        self.copied_bytes += 0 if array is value else array.nbytes
        return array, batched

    def _agree(self, batch: int, where: str) -> None:
        if self._batch is not None and batch != self._batch:
            raise InvalidError.at(where, f"has {batch} elements, but {self._origin} has {self._batch}")
        self._batch, self._origin = batch, where
        sizes = self._summary["sizes"]
        arrays = [shape for part in ("variables", "duals", "parameters") for shape in self._shapes(part).values()]
        each = sum(sizes.values()) + sum(map(math.prod, arrays))
        if batch * each > self._settings.max_batch_size:
            most = max(1, self._settings.max_batch_size // each)
            raise InvalidError.at(
                where, f"{batch} elements of this problem are too many; send at most {most} at a time"
            )
