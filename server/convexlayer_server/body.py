"""What all bodies of requests have in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticCustomError

__all__ = ["UNKNOWN_FIELD", "refuse_many", "refuse_unknown"]

_MAX_MEMBERS = 10_000

UNKNOWN_FIELD = "unknown_field"
"""Type of the validation error of a field that does not exist; its context holds ``path``, a tuple of the name.

Not the name itself: pydantic encodes the strings of a context, and a name need not be valid Unicode.
"""


def refuse_many(given: Any) -> Any:
    """Validator of a dictionary, run before those of its members, each of which could make two errors."""
    if isinstance(given, dict) and len(given) > _MAX_MEMBERS:
        counts = {"count": len(given), "most": _MAX_MEMBERS}
        raise PydanticCustomError("too_many", "has {count} members, at most {most} are read", counts)
    return given


def refuse_unknown(model: type[BaseModel], given: Any) -> Any:
    """Validator of a whole object, run before those of its fields: the first unknown field is an error.

    Pydantic alone would make an error of each unknown field, and a body can hold millions of them.
    """
    known = [field.alias or name for name, field in model.model_fields.items()]
    unknown = next((name for name in given if name not in known), None) if isinstance(given, dict) else None
    if unknown is not None:
        raise PydanticCustomError(
            UNKNOWN_FIELD, "unknown field; the fields are {fields}", {"path": (unknown,), "fields": ", ".join(known)}
        )
    return given
