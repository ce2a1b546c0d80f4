"""Cone program documents: bounds on what they declare, before the library reads them.

The library checks every field. But a few bytes can declare a parameter or an output of 10^9 entries, and matrices with
a row or column for each of them would be allocated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..errors import DocumentError, pointer
from ..settings import Settings

__all__ = ["check_sizes"]


def check_sizes(program: Mapping[str, Any], settings: Settings) -> None:
    """Refuse declared sizes that exceed the bounds; whatever has not the expected form is left to the library.

    Raises:
        DocumentError: there are too many parameters or outputs, or they have too many dimensions or entries.
    """
    for part, limit in (("parameters", settings.max_leaf_size), ("outputs", settings.max_variable_size)):
        declared = program.get(part)
        if not isinstance(declared, list):
            continue
        if len(declared) > settings.max_names:
            raise DocumentError.at(pointer("program", part), f"has more than {settings.max_names} entries")
        total = 0
        for position, entry in enumerate(declared):
            shape = entry.get("shape") if isinstance(entry, dict) else None
            if not isinstance(shape, list) or not all(type(length) is int for length in shape):
                continue
            where = pointer("program", part, position, "shape")
            if len(shape) > settings.max_dimensions:
                raise DocumentError.at(where, f"has more than {settings.max_dimensions} dimensions")
            total += math.prod(shape)
            if total > limit:
                raise DocumentError.at(where, f"{part} have more than {limit} entries together")
