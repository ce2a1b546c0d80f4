"""The calls of the API without any HTTP: what to send, and how to read what comes back.

A ``Call`` is a request and the reader of its reply. A client sends ``method``, ``path``, ``content`` and ``headers`` by
whatever library it likes, and hands the reply to ``result``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar, final
from urllib.parse import quote

from numpy.typing import ArrayLike

from convexlayer_client.arrays import Array, decode, encode
from convexlayer_client.errors import API_ERRORS, ApiError, EncodingError, FieldError, ProtocolError
from convexlayer_client.results import DerivativeReport, JvpResult, Options, Problem, Residuals, SolveResult, VjpResult

__all__ = ["Call", "Reply", "delete", "get", "health", "jvp", "problems", "register", "solve", "vjp"]

T = TypeVar("T")

_PROBLEMS = "/v1/problems"


@final
@dataclass(frozen=True)
class Reply:
    """An HTTP response: status, headers by lower-case name, and body."""

    status: int
    headers: Mapping[str, str]
    content: bytes


@final
@dataclass(frozen=True)
class Call(Generic[T]):
    """A request and how its reply is read.

    Attributes:
        method: HTTP method.
        path: Path below the server's URL.
        read: From the decoded JSON of a successful reply to the result.
        body: What is sent as JSON; None for no body.
    """

    method: str
    path: str
    read: Callable[[Any], T]
    body: Mapping[str, Any] | None = None

    @property
    def content(self) -> bytes | None:
        """The request's body in bytes.

        Raises:
            EncodingError: The body is not plain JSON.
        """
        if self.body is None:
            return None
        try:
            return json.dumps(self.body, separators=(",", ":"), allow_nan=False).encode("utf-8")
        except (TypeError, ValueError, RecursionError) as error:
            raise EncodingError(
                f"{self.method} {self.path}: expected plain JSON with finite numbers, got something else: {error}"
            ) from error

    @property
    def headers(self) -> dict[str, str]:
        """The request's own headers; authentication is the client's."""
        accept = {"Accept": "application/json"}
        return accept if self.body is None else accept | {"Content-Type": "application/json"}

    def result(self, reply: Reply) -> T:
        """What a reply says.

        Raises:
            ApiError: The server refused or failed; the class says which status.
            ProtocolError: The reply is not one of this API.
        """
        if reply.status >= 400:
            raise _api_error(reply)
        payload = _json(reply) if reply.content else None
        try:
            return self.read(payload)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ProtocolError(
                f"{self.method} {self.path}: the answer lacks what this client expects ({error!r}); "
                "is the server a Convexlayer server of the same version?"
            ) from error


def register(document: Mapping[str, Any]) -> Call[Problem]:
    """POST /v1/problems: register a document; the same document always gives the same id."""
    return Call("POST", _PROBLEMS, _problem, document)


def problems() -> Call[tuple[Problem, ...]]:
    """GET /v1/problems: what is registered."""
    return Call("GET", _PROBLEMS, lambda payload: tuple(map(_problem, payload["problems"])))


def get(problem_id: str) -> Call[Problem]:
    """GET /v1/problems/{id}."""
    return Call("GET", _path(problem_id), _problem)


def delete(problem_id: str) -> Call[None]:
    """DELETE /v1/problems/{id}."""
    return Call("DELETE", _path(problem_id), lambda payload: None)


def health() -> Call[Mapping[str, Any]]:
    """GET /healthz."""
    return Call("GET", "/healthz", dict)


def solve(
    problem_id: str,
    parameters: Mapping[str, ArrayLike],
    *,
    solver: str = "auto",
    options: Options | None = None,
    duals: bool = False,
) -> Call[SolveResult]:
    """POST /v1/problems/{id}/solve: the solutions of a batch of parameters."""
    body = _body(parameters, solver, options) | _returned(duals)
    return Call("POST", _path(problem_id, "solve"), _solve_result, body)


def vjp(
    problem_id: str,
    cotangents: Mapping[str, ArrayLike],
    parameters: Mapping[str, ArrayLike],
    *,
    wrt: Sequence[str] | None = None,
    solver: str = "auto",
    options: Options | None = None,
) -> Call[VjpResult]:
    """POST /v1/problems/{id}/vjp: gradients of <cotangents, outputs> in the parameters ``wrt``, in all by default."""
    body = _body(parameters, solver, options) | {"cotangents": _encode(cotangents)}
    return Call("POST", _path(problem_id, "vjp"), _vjp_result, body if wrt is None else body | {"wrt": list(wrt)})


def jvp(
    problem_id: str,
    tangents: Mapping[str, ArrayLike],
    parameters: Mapping[str, ArrayLike],
    *,
    solver: str = "auto",
    options: Options | None = None,
    duals: bool = False,
) -> Call[JvpResult]:
    """POST /v1/problems/{id}/jvp: the outputs' tangents along tangents of the parameters."""
    body = _body(parameters, solver, options) | _returned(duals) | {"tangents": _encode(tangents)}
    return Call("POST", _path(problem_id, "jvp"), _jvp_result, body)


def _path(problem_id: str, *steps: str) -> str:
    return "/".join([_PROBLEMS, quote(problem_id, safe=""), *steps])


def _body(parameters: Mapping[str, ArrayLike], solver: str, options: Options | None) -> dict[str, Any]:
    given = {name: value for name, value in asdict(options or Options()).items() if value is not None}
    return {"parameters": _encode(parameters), "options": {"solver": solver} | given, "encoding": "base64"}


def _returned(duals: bool) -> dict[str, Any]:
    return {"return": ["variables", "duals"] if duals else ["variables"]}


def _encode(arrays: Mapping[str, ArrayLike]) -> dict[str, Any]:
    encoded = {}
    for name, values in arrays.items():
        try:
            encoded[name] = encode(values)
        except (TypeError, ValueError) as error:
            kind = type(values).__name__
            raise EncodingError(f"{name}: expected a number or an array of numbers, got {kind}: {error}") from error
    return encoded


def _decode(arrays: Mapping[str, Any] | None) -> dict[str, Array]:
    return {name: decode(values) for name, values in (arrays or {}).items()}


def _problem(payload: Any) -> Problem:
    return Problem(
        id=payload["id"],
        parameters=_shapes(payload["parameters"]),
        variables=_shapes(payload["variables"]),
        duals=_shapes(payload["duals"]),
        details={name: value for name, value in payload.items() if name not in _PROBLEM_FIELDS},
    )


_PROBLEM_FIELDS = ("id", "parameters", "variables", "duals")


def _shapes(leaves: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf["shape"]) for name, leaf in leaves.items()}


def _solve_result(payload: Any) -> SolveResult:
    return SolveResult(
        variables=_decode(payload["variables"]),
        duals=_decode(payload.get("duals")),
        status=tuple(payload["status"]),
        objective=decode(payload["objective"]),
        iterations=decode(payload["iterations"]),
        residuals=Residuals(*(decode(payload["residuals"][name]) for name in ("primal", "dual", "gap", "natural"))),
        meta=payload["meta"],
    )


def _vjp_result(payload: Any) -> VjpResult:
    return VjpResult(
        gradients=_decode(payload["gradients"]),
        status=tuple(payload["status"]),
        report=_report(payload["report"]),
        meta=payload["meta"],
    )


def _jvp_result(payload: Any) -> JvpResult:
    return JvpResult(
        tangents=_decode(payload["tangents"]),
        objective=decode(payload["objective"]),
        status=tuple(payload["status"]),
        report=_report(payload["report"]),
        meta=payload["meta"],
    )


def _report(payload: Any) -> DerivativeReport:
    arrays = (decode(payload[name]) for name in ("linear_residual", "margin", "condition"))
    return DerivativeReport(tuple(payload["status"]), *arrays)


def _json(reply: Reply) -> Any:
    try:
        return json.loads(reply.content)
    except ValueError as error:
        raise ProtocolError(f"status {reply.status}, but the body is not JSON: {error}") from error


def _api_error(reply: Reply) -> ApiError:
    """The error of a refused request, from its problem document where it has one (a proxy's answer has none)."""
    try:
        document = json.loads(reply.content)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        document = {"detail": reply.content.decode("utf-8", "replace")[:200]}
    return API_ERRORS.get(reply.status, ApiError)(
        status=reply.status,
        type=document.get("type", "about:blank"),
        title=document.get("title", "The server answered with an error"),
        detail=document.get("detail", ""),
        errors=[
            FieldError(error.get("pointer", ""), error.get("detail", ""))
            for error in document.get("errors") or ()
            if isinstance(error, dict)
        ],
        request_id=document.get("request_id") or reply.headers.get("x-request-id"),
        retry_after_s=_seconds(reply.headers.get("retry-after")),
    )


def _seconds(text: str | None) -> float | None:
    """Retry-After in seconds; its other form, a date, is not used by this API."""
    return float(text) if text is not None and text.strip().isdigit() else None
