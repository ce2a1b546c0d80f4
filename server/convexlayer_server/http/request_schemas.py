"""Schemas of request bodies. Arrays are ``Any``: ``request_arrays`` decodes them, against the shapes of the problem."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from convexlayer.status import Status

from ..encodings.arrays import Encoding
from ..encodings.validation import reject_unknown

__all__ = ["JvpRequest", "Options", "Portable", "SolveRequest", "VjpRequest"]

Arrays = dict[str, Any]
OutputPart = Literal["variables", "duals"]
SolvePart = Literal["variables", "duals", "state", "portable"]


class _Body(BaseModel):
    """An object of a request; an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _reject_unknown(cls, given: Any) -> Any:
        return reject_unknown(cls, given)


class Options(_Body, strict=True):
    """Solver options; missing ones have the library's defaults."""

    solver: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,32}$")] = "auto"
    tol: Annotated[float, Field(ge=1e-15, le=1.0)] | None = None
    max_iter: Annotated[int, Field(ge=1)] | None = None
    time_limit_s: Annotated[float, Field(gt=0)] | None = None


class _Compute(_Body):
    parameters: Arrays = {}
    options: Options = Options()
    encoding: Encoding = "list"


class SolveRequest(_Compute):
    """Parameter values, each of its registered shape or with a leading batch axis.

    With ``state`` in ``return``, the response holds a handle for a later vjp or jvp; with ``portable``, the state
    itself.
    """

    parts: Annotated[list[SolvePart], Field(alias="return", fail_fast=True)] = ["variables"]


class Portable(_Body):
    """Solutions of the standard form, as a solve returned them; a vjp or jvp can start from them and the parameters.

    ``digest`` is a hash of the problem ID, the parameters and these arrays. x is (batch, n), y and s are (batch, m).
    """

    digest: Annotated[str, Field(max_length=128)]
    status: Annotated[list[Status], Field(fail_fast=True)]
    x: Any
    y: Any
    s: Any


State = Annotated[str, Field(max_length=128)] | Portable
"""A handle, instead of parameters and options; or a portable state, together with the parameters."""


class VjpRequest(_Compute):
    """Parameter values, cotangents of variables, duals and ``objective``, and the parameters to differentiate by.

    ``state`` is a handle (without parameters; 410 if it has expired) or portable (with the parameters of its solve).
    """

    state: State | None = None
    cotangents: Arrays
    wrt: Annotated[list[str], Field(fail_fast=True)] | None = None


class JvpRequest(_Compute):
    """Parameter values and tangents of parameters; ``state`` as for a vjp."""

    state: State | None = None
    tangents: Arrays
    parts: Annotated[list[OutputPart], Field(alias="return", fail_fast=True)] = ["variables"]
