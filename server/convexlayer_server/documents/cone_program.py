"""Cone program documents: limits on their declarations, before the library parses them.

The library checks every field. But a few bytes can declare a parameter or an output with 10^9 entries, for each of
which it would allocate a row or column.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from convexlayer.canon import ParametricProgram
from convexlayer.errors import ProblemError

from ..errors import DocumentError, pointer
from ..settings import Settings

__all__ = ["read_program"]

_MAX_NAME_LENGTH = 64
"""Characters of a name at most, as for names of expression documents."""
_PLACE = re.compile(r"(?P<path>(/[^/:]+)*): (?P<detail>.*)", re.DOTALL)


def read_program(program: Mapping[str, Any], settings: Settings) -> ParametricProgram:
    """Return the parametric program of a document.

    Raises:
        DocumentError: a field is invalid; or there are too many parameters or outputs, or they have too many dimensions
            or entries, or names that a request cannot use.
    """
    _check_declared(program, settings)
    try:
        return ParametricProgram.from_document(program)
    except ProblemError as error:
        place = _PLACE.fullmatch(str(error))  # the library's messages begin with the path of the field
        if place is None:
            raise DocumentError.at("/program", str(error)) from error
        raise DocumentError.at(f"/program{place['path']}", place["detail"]) from error


def _check_declared(program: Mapping[str, Any], settings: Settings) -> None:
    """Check the limits. The library reports declarations of another form."""
    for part, limit in (("parameters", settings.max_leaf_size), ("outputs", settings.max_variable_size)):
        declared = program.get(part)
        if not isinstance(declared, list):
            continue
        if len(declared) > settings.max_names:
            raise DocumentError.at(pointer("program", part), f"has more than {settings.max_names} entries")
        total = 0
        for position, entry in enumerate(declared):
            if not isinstance(entry, dict):
                continue
            _check_name(entry.get("name"), part, pointer("program", part, position, "name"))
            shape = entry.get("shape")
            if not isinstance(shape, list) or not all(type(length) is int for length in shape):
                continue
            where = pointer("program", part, position, "shape")
            if len(shape) > settings.max_dimensions:
                raise DocumentError.at(where, f"has more than {settings.max_dimensions} dimensions")
            total += math.prod(shape)
            if total > limit:
                raise DocumentError.at(where, f"the {part} have more than {limit} entries together")


def _check_name(name: Any, part: str, where: str) -> None:
    if not isinstance(name, str):
        return
    if len(name) > _MAX_NAME_LENGTH or not name.isprintable():
        raise DocumentError.at(
            where, f"expected at most {_MAX_NAME_LENGTH} printable characters, got {name[:_MAX_NAME_LENGTH]!r}"
        )
    if part == "outputs" and name == "objective":
        raise DocumentError.at(where, "'objective' names the optimal value in vjp; rename the output")
