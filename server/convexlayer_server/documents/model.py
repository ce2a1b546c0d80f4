"""Schemas of problem documents, which clients post to register problems.

An expression document states a problem in the notation of ``grammar``; a cone program document is the result of the
library's canonicalisation. The schemas check their form; ``cvxpy_problem`` and ``cone_program`` check their meaning.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, TypeAdapter, model_validator
from pydantic_core import PydanticCustomError

from ..encodings.validation import LOCATION, limit_members, reject_unknown
from ..errors import MAX_QUOTED

__all__ = ["MAX_LENGTH", "ConeProgramDocument", "ExpressionDocument", "Leaf", "problem_documents"]

MAX_LENGTH = 10**9
"""Length of an axis at most, so that products of lengths stay small; the limits of the settings are lower."""

Identifier = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]
"""A name of at most 64 characters."""

Length = Annotated[int, Field(ge=1, le=MAX_LENGTH, strict=True)]
"""The length of an axis."""

LimitedMembers = BeforeValidator(limit_members)
"""Refuses a dictionary with too many members before pydantic validates each of them."""

Text = Annotated[str, Field(min_length=1)]
"""The text of an expression or a constraint, in the notation of ``grammar``."""

_KINDS = ("expression", "cone_program")


class _Object(BaseModel):
    """An object of a document; an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _reject_unknown(cls, given: Any) -> Any:
        return reject_unknown(cls, given)


class Leaf(_Object):
    """A parameter or a variable: its shape (by default a scalar) and attributes."""

    shape: Annotated[list[Length], Field(fail_fast=True)] = []
    nonneg: StrictBool = False
    nonpos: StrictBool = False
    pos: StrictBool = False
    neg: StrictBool = False
    symmetric: StrictBool = False
    PSD: StrictBool = False
    NSD: StrictBool = False
    diag: StrictBool = False

    @property
    def attributes(self) -> list[str]:
        """CVXPY names of the attributes that are set."""
        return [name for name, value in self if value is True]


class ExpressionDocument(_Object):
    """A problem in expressions.

    ``minimize`` or ``maximize`` holds the objective, ``subject_to`` the constraints, ``let`` shared subexpressions
    (which may use each other in any order, but not in a cycle), ``constants`` arrays. All names are distinct.
    """

    kind: Literal["expression"]
    parameters: Annotated[dict[Identifier, Leaf], LimitedMembers] = {}
    variables: Annotated[dict[Identifier, Leaf], LimitedMembers] = {}
    constants: Annotated[dict[Identifier, Any], LimitedMembers] = {}
    let: Annotated[dict[Identifier, Text], LimitedMembers] = {}
    minimize: Text | None = None
    maximize: Text | None = None
    subject_to: Annotated[list[Text], Field(fail_fast=True)] = []
    gp: StrictBool = False


class ConeProgramDocument(_Object):
    """A parametric cone program, as ``ParametricProgram.to_document()`` of the library returns it."""

    kind: Literal["cone_program"]
    program: dict[str, Any]


def _check_kind(given: Any) -> Any:
    """Check the kind of a document; a validator that runs before those of its kind."""
    if not isinstance(given, dict):
        raise PydanticCustomError("document", "expected an object with kind, variables, minimize and so on")
    kind = given.get("kind")
    if isinstance(kind, str) and kind in _KINDS:
        return given
    likely = "cone_program" if "program" in given else "expression"
    context = {
        LOCATION: ("kind",),
        "found": f"got {ascii(kind)[:MAX_QUOTED]}" if "kind" in given else "is missing",
        "kind": likely,
    }
    raise PydanticCustomError(
        "kind", '{found}; write "kind": "{kind}" (the kinds are expression and cone_program)', context
    )


problem_documents: TypeAdapter[ExpressionDocument | ConeProgramDocument] = TypeAdapter(
    Annotated[ExpressionDocument | ConeProgramDocument, Field(discriminator="kind"), BeforeValidator(_check_kind)]
)
