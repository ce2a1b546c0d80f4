"""Validation of JSON values by pydantic, with bounded error messages."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from ..errors import FieldError, InvalidError, pointer

__all__ = ["LOCATION", "limit_members", "reject_unknown", "validate"]

_MAX_MEMBERS = 10_000
"""Members of a dictionary at most: pydantic makes up to two errors for each."""

_MAX_ERRORS = 20
"""Errors that a response lists."""

_MAX_MESSAGE = 300
"""Characters of each of them, which may quote what the client sent."""

LOCATION = "path"
"""Key in the context of a validation error: a tuple of further steps to the location of the error.

Not the steps themselves: pydantic encodes the strings of a context, and a name need not be valid Unicode.
"""

_T = TypeVar("_T")


def validate(kind: TypeAdapter[_T], given: Any) -> _T:
    """Convert a JSON value to a type.

    Raises:
        InvalidError: the value does not have the type.
    """
    try:
        return kind.validate_python(given)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        errors = [FieldError(_pointer(item), str(item["msg"])[:_MAX_MESSAGE]) for item in found[:_MAX_ERRORS]]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise InvalidError(f"{errors[0].pointer or 'the body'}: {errors[0].detail}{more}", errors) from error


def limit_members(given: Any) -> Any:
    """Reject a dictionary with too many members; a validator that runs before those of the members."""
    if isinstance(given, dict) and len(given) > _MAX_MEMBERS:
        counts = {"count": len(given), "limit": _MAX_MEMBERS}
        raise PydanticCustomError("too_many", "has {count} members; the limit is {limit}", counts)
    return given


def reject_unknown(model: type[BaseModel], given: Any) -> Any:
    """Reject the first unknown field of an object; a validator that runs before those of the fields.

    Pydantic alone would report each unknown field, and a body can contain millions of them.
    """
    known = _fields(model)
    if isinstance(given, dict) and not given.keys() <= known.keys():
        unknown = next(name for name in given if name not in known)
        context = {LOCATION: (unknown,), "fields": ", ".join(known)}
        raise PydanticCustomError("unknown_field", "unknown field; the fields are {fields}", context)
    return given


@cache
def _fields(model: type[BaseModel]) -> dict[str, None]:
    """Return the names of a model's fields in JSON, in order."""
    return {field.alias or name: None for name, field in model.model_fields.items()}


def _pointer(item: Mapping[str, Any]) -> str:
    """Return the JSON pointer of a pydantic error, without the tags of document kinds and dictionary keys."""
    path = list(item["loc"])
    path = path[1:] if path[:1] in (["expression"], ["cone_program"]) else path
    return pointer(*(step for step in (*path, *item.get("ctx", {}).get(LOCATION, ())) if step != "[key]"))
