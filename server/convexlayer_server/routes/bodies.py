"""Bodies of requests and answers. Arrays are ``Any`` here: their form is read by ``arrays``, off the event loop."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..arrays import Encoding
from ..body import refuse_unknown

__all__ = [
    "DerivativeReport",
    "JvpAnswer",
    "JvpRequest",
    "Meta",
    "Options",
    "Problem",
    "ProblemDetail",
    "ProblemList",
    "ProblemSummary",
    "Residuals",
    "SolveAnswer",
    "SolveRequest",
    "VjpAnswer",
    "VjpRequest",
]

Arrays = dict[str, Any]
Part = Literal["variables", "duals"]
Numbers = list[float | None]


class _Body(BaseModel):
    """An object of a request; an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, given: Any) -> Any:
        return refuse_unknown(cls, given)


class Options(_Body, strict=True):
    """How to solve; what is left out is the library's default."""

    solver: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,32}$")] = "auto"
    tol: Annotated[float, Field(ge=1e-15, le=1.0)] | None = None
    max_iter: Annotated[int, Field(ge=1)] | None = None
    time_limit_s: Annotated[float, Field(gt=0)] | None = None


class _Compute(_Body):
    parameters: Arrays = {}
    options: Options = Options()
    encoding: Encoding = "list"


class SolveRequest(_Compute):
    """Parameter values, each of its registered shape or with one leading batch axis."""

    parts: Annotated[list[Part], Field(alias="return", fail_fast=True)] = ["variables"]


class VjpRequest(_Compute):
    """Parameter values, cotangents of variables, duals and ``objective``, and the parameters to differentiate by."""

    cotangents: Arrays
    wrt: Annotated[list[str], Field(fail_fast=True)] | None = None


class JvpRequest(_Compute):
    """Parameter values and tangents of parameters."""

    tangents: Arrays
    parts: Annotated[list[Part], Field(alias="return", fail_fast=True)] = ["variables"]


class Meta(BaseModel):
    """What served the request."""

    problem_id: str
    solver: str
    reason: str
    batch: int
    batched: bool
    seconds: dict[str, float]
    versions: dict[str, str]


class Residuals(BaseModel):
    """How far each solution is from optimal, by the server's own account."""

    primal: Numbers
    dual: Numbers
    gap: Numbers
    natural: Numbers


class DerivativeReport(BaseModel):
    """How far each derivative can be trusted."""

    status: list[str]
    linear_residual: Numbers
    margin: Numbers
    condition: Numbers
    consistent: list[bool | None]


class SolveAnswer(BaseModel):
    """Solutions; null (NaN in base64) in rows of elements without one."""

    variables: Arrays | None = None
    duals: Arrays | None = None
    status: list[str]
    objective: Numbers
    iterations: list[int]
    residuals: Residuals
    meta: Meta


class VjpAnswer(BaseModel):
    """Gradients: per element of parameters given with a batch axis, summed over the batch of the others."""

    gradients: Arrays
    status: list[str]
    report: DerivativeReport
    meta: Meta


class JvpAnswer(BaseModel):
    """Tangents of outputs and of the objective values."""

    tangents: Arrays
    objective: Numbers
    status: list[str]
    report: DerivativeReport
    meta: Meta


class FieldProblem(BaseModel):
    """One wrong place of a request."""

    pointer: str
    detail: str


class Problem(BaseModel):
    """An error (RFC 9457); ``type`` is ``urn:convexlayer:problem:<slug>``."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldProblem]
    request_id: str


class ProblemSummary(BaseModel):
    """A compiled problem."""

    id: str
    kind: str
    parameters: dict[str, Any]
    variables: dict[str, Any]
    duals: dict[str, Any]
    curvature: str | None
    cones: dict[str, Any]
    sizes: dict[str, int]
    solver: dict[str, str]


class ProblemDetail(ProblemSummary):
    """A compiled problem with its normalised document."""

    document: dict[str, Any]


class ProblemList(BaseModel):
    """What is registered."""

    problems: list[ProblemSummary]
