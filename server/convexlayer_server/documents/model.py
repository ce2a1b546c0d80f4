"""Problem documents: what a client posts to register a problem.

An expression document is a problem in the words of the grammar; a cone program document is what the library's own
canonicalisation gives. Both are checked for form here, for meaning in ``compile``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, model_validator
from pydantic_core import PydanticCustomError

from ..body import PATH, refuse_many, refuse_unknown

__all__ = ["ConeProgramDocument", "ExpressionDocument", "Leaf", "problem_documents"]

Identifier = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]
Length = Annotated[int, Field(ge=1, le=10**9, strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Few = BeforeValidator(refuse_many)
Text = Annotated[str, Field(min_length=1)]

_KINDS = ("expression", "cone_program")


class _Object(BaseModel):
    """An object of a document; an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, given: Any) -> Any:
        return refuse_unknown(cls, given)


class Leaf(_Object):
    """A parameter or a variable: its shape, scalar if none is given, and what is known of its values."""

    shape: Annotated[list[Length], Field(fail_fast=True)] = []
    nonneg: Flag = False
    nonpos: Flag = False
    pos: Flag = False
    neg: Flag = False
    symmetric: Flag = False
    PSD: Flag = False
    NSD: Flag = False
    diag: Flag = False

    @property
    def attributes(self) -> list[str]:
        """Names of the attributes that are set, as CVXPY calls them."""
        return [name for name, value in self if value is True]


class ExpressionDocument(_Object):
    """A problem written in expressions.

    ``minimize`` or ``maximize`` holds the objective, ``subject_to`` the constraints, ``let`` shared subexpressions
    (they may use each other, in any order, without a cycle), ``constants`` arrays. All names are distinct.
    """

    kind: Literal["expression"]
    parameters: Annotated[dict[Identifier, Leaf], Few] = {}
    variables: Annotated[dict[Identifier, Leaf], Few] = {}
    constants: Annotated[dict[Identifier, Any], Few] = {}
    let: Annotated[dict[Identifier, Text], Few] = {}
    minimize: Text | None = None
    maximize: Text | None = None
    subject_to: Annotated[list[Text], Field(fail_fast=True)] = []
    gp: Flag = False


class ConeProgramDocument(_Object):
    """A parametrised cone program, as ``ParametricProgram.to_document()`` of the library gives it."""

    kind: Literal["cone_program"]
    program: dict[str, Any]


def _check_kind(given: Any) -> Any:
    """Validator of a document, run before those of its kind."""
    if not isinstance(given, dict):
        raise PydanticCustomError("document", "expected an object with kind, variables, minimize and so on")
    kind = given.get("kind")
    if isinstance(kind, str) and kind in _KINDS:
        return given
    likely = "cone_program" if "program" in given else "expression"
    context = {PATH: ("kind",), "found": f"got {ascii(kind)[:40]}" if "kind" in given else "is missing", "kind": likely}
    raise PydanticCustomError(
        "kind", '{found}; write "kind": "{kind}" (the kinds are expression and cone_program)', context
    )


problem_documents: TypeAdapter[ExpressionDocument | ConeProgramDocument] = TypeAdapter(
    Annotated[ExpressionDocument | ConeProgramDocument, Field(discriminator="kind"), BeforeValidator(_check_kind)]
)
