"""Problem documents: what a client posts to register a problem.

An expression document is a problem in the words of the grammar; a cone program document is what the library's own
canonicalisation gives. Both are checked for form here, for meaning in ``compile``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

__all__ = ["ConeProgramDocument", "ExpressionDocument", "Leaf", "ProblemDocument", "problem_documents"]

Identifier = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]
Length = Annotated[int, Field(ge=1, le=10**9, strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(min_length=1)]


class Leaf(BaseModel):
    """A parameter or a variable: its shape, scalar if none is given, and what is known of its values."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shape: list[Length] = []
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


class ExpressionDocument(BaseModel):
    """A problem written in expressions.

    ``minimize`` or ``maximize`` holds the objective, ``subject_to`` the constraints, ``let`` shared subexpressions
    (they may use each other, in any order, without a cycle), ``constants`` arrays. All names are distinct.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["expression"]
    parameters: dict[Identifier, Leaf] = {}
    variables: dict[Identifier, Leaf] = {}
    constants: dict[Identifier, Any] = {}
    let: dict[Identifier, Text] = {}
    minimize: Text | None = None
    maximize: Text | None = None
    subject_to: list[Text] = []
    gp: Flag = False


class ConeProgramDocument(BaseModel):
    """A parametrised cone program, as ``ParametricProgram.to_document()`` of the library gives it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["cone_program"]
    program: dict[str, Any]


ProblemDocument = Annotated[ExpressionDocument | ConeProgramDocument, Field(discriminator="kind")]

problem_documents: TypeAdapter[ExpressionDocument | ConeProgramDocument] = TypeAdapter(ProblemDocument)
