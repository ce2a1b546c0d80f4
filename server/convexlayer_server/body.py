"""What all bodies of requests have in common."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from .errors import FieldError, InvalidError, pointer

__all__ = ["PATH", "refuse_many", "refuse_unknown", "validated"]

_MAX_MEMBERS = 10_000
_MAX_ERRORS = 20
_MAX_MESSAGE = 300

PATH = "path"
"""Entry of the context of a validation error: a tuple of the further steps to the place that it is about.

Not the steps themselves: pydantic encodes the strings of a context, and a name need not be valid Unicode.
"""

_T = TypeVar("_T")


def validated(kind: TypeAdapter[_T], given: Any) -> _T:
    """What was given, as what it should be.

    Raises:
        InvalidError: it is something else.
    """
    try:
        return kind.validate_python(given)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        errors = [FieldError(_place(item), str(item["msg"])[:_MAX_MESSAGE]) for item in found[:_MAX_ERRORS]]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise InvalidError(f"{errors[0].pointer or 'the body'}: {errors[0].detail}{more}", errors) from error


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
    known = _fields(model)
    if isinstance(given, dict) and not given.keys() <= known.keys():
        unknown = next(name for name in given if name not in known)
        context = {PATH: (unknown,), "fields": ", ".join(known)}
        raise PydanticCustomError("unknown_field", "unknown field; the fields are {fields}", context)
    return given


@cache
def _fields(model: type[BaseModel]) -> dict[str, None]:
    """Names of the fields in a body, in order."""
    return {field.alias or name: None for name, field in model.model_fields.items()}


def _place(item: Mapping[str, Any]) -> str:
    """JSON pointer of a pydantic error, without the tag of a document's kind and marks of dictionary keys."""
    path = list(item["loc"])
    path = path[1:] if path[:1] in (["expression"], ["cone_program"]) else path
    return pointer(*(step for step in (*path, *item.get("ctx", {}).get(PATH, ())) if step != "[key]"))
