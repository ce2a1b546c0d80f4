"""The arrays of a request, decoded and checked against the shapes of its problem."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from ..compute.protocol import Operation, PortableState
from ..encodings.arrays import Array, decode_batch
from ..errors import InvalidError, pointer
from ..settings import Settings
from .request_schemas import Portable

__all__ = ["RequestArrays", "known_names"]

_MAX_LISTED = 30
"""Names that a message lists."""


def known_names(names: Iterable[str]) -> str:
    """Return the end of a message about an unknown name."""
    known = ", ".join(islice(names, _MAX_LISTED))
    return f"; known are {known}" if known else "; there are none"


class RequestArrays:
    """Decodes the arrays of one request, and checks that their batch sizes agree.

    Args:
        summary: summary of the problem.
        settings: ``max_batch_size`` and the limits of ``decode_batch``.

    Attributes:
        copied_bytes: bytes of the arrays that decoding allocated.
    """

    def __init__(self, summary: Mapping[str, Any], settings: Settings) -> None:
        self._summary = summary
        self._settings = settings
        self._batch: int | None = None
        self._origin = ""
        self.copied_bytes = 0

    @property
    def batch(self) -> int:
        """Number of elements; 1 without a batch axis."""
        return self._batch or 1

    def parameters(self, given: Mapping[str, Any]) -> dict[str, Array]:
        """Return the values of all parameters.

        Raises:
            InvalidError: a value is missing, unknown, or has another shape.
        """
        shapes = self._shapes("parameters")
        for name in shapes:
            if name not in given:
                raise InvalidError.at(pointer("parameters", name), "is missing; every parameter needs a value")
        return self._decode_all(given, "parameters", shapes, elements_may_fail=True)

    def directions(self, operation: Operation, given: Mapping[str, Any]) -> dict[str, Array]:
        """Return the given cotangents of outputs, or tangents of parameters.

        Raises:
            InvalidError: a name is unknown, or an array has another shape.
        """
        if operation == "jvp":
            return self._decode_all(given, "tangents", self._shapes("parameters"))
        shapes = {"objective": (), **self._shapes("variables"), **self._shapes("duals")}
        return self._decode_all(given, "cotangents", shapes, finite=False)

    def state(self, given: Portable) -> PortableState:
        """Return a portable state.

        Raises:
            InvalidError: an array has another shape.
        """
        sizes = self._summary["sizes"]
        arrays = {}
        for name, length in (("x", sizes["n"]), ("y", sizes["m"]), ("s", sizes["m"])):
            where = pointer("state", name)
            arrays[name], batched = self._decode(getattr(given, name), (length,), where)
            if not batched or len(arrays[name]) != len(given.status):
                raise InvalidError.at(where, f"expected one row for each of the {len(given.status)} elements of status")
        return PortableState(digest=given.digest, status=tuple(map(str, given.status)), **arrays)

    def _shapes(self, part: str) -> dict[str, tuple[int, ...]]:
        return {name: tuple(entry["shape"]) for name, entry in self._summary[part].items()}

    def _decode_all(
        self,
        given: Mapping[str, Any],
        part: str,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        finite: bool = True,
        elements_may_fail: bool = False,
    ) -> dict[str, Array]:
        arrays = {}
        for name, value in given.items():
            where = pointer(part, name)
            if name not in shapes:
                raise InvalidError.at(where, f"unknown name{known_names(shapes)}")
            arrays[name], batched = self._decode(
                value, shapes[name], where, finite=finite, elements_may_fail=elements_may_fail
            )
            if batched:
                self._check_batch(len(arrays[name]), where)
        return arrays

    def _decode(self, value: Any, shape: tuple[int, ...], where: str, **options: bool) -> tuple[Array, bool]:
        array, batched = decode_batch(value, shape, where, self._settings, **options)
        self.copied_bytes += 0 if array is value else array.nbytes
        return array, batched

    def _check_batch(self, batch: int, where: str) -> None:
        if self._batch is not None and batch != self._batch:
            raise InvalidError.at(where, f"has {batch} elements, but {self._origin} has {self._batch}")
        self._batch, self._origin = batch, where
        sizes = self._summary["sizes"]
        shapes = [shape for part in ("variables", "duals", "parameters") for shape in self._shapes(part).values()]
        each = sum(sizes.values()) + sum(map(math.prod, shapes))
        if batch * each > self._settings.max_batch_size:
            limit = max(1, self._settings.max_batch_size // each)
            raise InvalidError.at(
                where, f"{batch} elements of this problem are too many; send at most {limit} at a time"
            )
