"""Parsers: results from the decoded bodies of responses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convexlayer_client.account import Capabilities, DayUsage, Solver, Usage
from convexlayer_client.arrays import Array, decode
from convexlayer_client.results import (
    DerivativeReport,
    Job,
    JobStatus,
    JvpResult,
    PortableState,
    Problem,
    Residuals,
    SolveResult,
    VjpResult,
)

__all__ = ["capabilities", "job", "job_status", "jvp_result", "page", "problem", "solve_result", "usage", "vjp_result"]

_PROBLEM_FIELDS = ("id", "parameters", "variables", "duals")


def problem(payload: Any) -> Problem:
    """Parse a registered problem."""
    return Problem(
        id=payload["id"],
        parameters=_shapes(payload["parameters"]),
        variables=_shapes(payload["variables"]),
        duals=_shapes(payload["duals"]),
        details={name: value for name, value in payload.items() if name not in _PROBLEM_FIELDS},
    )


def page(payload: Any) -> tuple[list[Problem], str | None]:
    """Parse a page of problems, and the cursor of the next page; None after the last."""
    return [problem(listed) for listed in payload["problems"]], payload.get("next")


def _shapes(leaves: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf["shape"]) for name, leaf in leaves.items()}


def solve_result(payload: Any) -> SolveResult:
    """Parse the response to a solve."""
    return SolveResult(
        variables=_decode(payload["variables"]),
        duals=_decode(payload.get("duals")),
        status=tuple(payload["status"]),
        objective=decode(payload["objective"]),
        iterations=decode(payload["iterations"]),
        residuals=Residuals(*(decode(payload["residuals"][name]) for name in ("primal", "dual", "gap", "natural"))),
        meta=payload["meta"],
        state=payload.get("state"),
        portable=_portable(payload.get("portable")),
        details=_details(payload),
    )


def vjp_result(payload: Any) -> VjpResult:
    """Parse the response to a vjp."""
    return VjpResult(
        gradients=_decode(payload["gradients"]),
        status=tuple(payload["status"]),
        report=_report(payload["report"]),
        meta=payload["meta"],
        details=_details(payload),
    )


def jvp_result(payload: Any) -> JvpResult:
    """Parse the response to a jvp."""
    return JvpResult(
        tangents=_decode(payload["tangents"]),
        objective=decode(payload["objective"]),
        status=tuple(payload["status"]),
        report=_report(payload["report"]),
        meta=payload["meta"],
        details=_details(payload),
    )


def _report(payload: Any) -> DerivativeReport:
    arrays = (decode(payload[name]) for name in ("linear_residual", "margin", "condition"))
    return DerivativeReport(tuple(payload["status"]), *arrays)


def _details(payload: Any) -> dict[int, str]:
    return {int(i): detail for i, detail in payload.get("details", {}).items()}


def job(payload: Any) -> Job[Any]:
    """Parse a job from its status."""
    return Job(payload["id"], payload["problem_id"], payload["operation"])


def job_status(payload: Any) -> JobStatus:
    """Parse the status of a job."""
    names = ("id", "problem_id", "operation", "status", "done", "total", "seconds", "expires_s")
    return JobStatus(**{name: payload[name] for name in names})


def capabilities(payload: Any) -> Capabilities:
    """Parse the capabilities of a server."""
    return Capabilities(
        versions=payload["versions"],
        solvers=tuple(Solver(each["name"], each["quadratic"], tuple(each["cones"])) for each in payload["solvers"]),
        functions=tuple(payload["functions"]),
        documents=tuple(payload["documents"]),
        keys_required=payload["keys_required"],
        workers=payload["workers"],
        limits=payload["limits"],
    )


def usage(payload: Any) -> Usage:
    """Parse the usage of a key."""
    names = ("day", "requests", "elements", "seconds")
    return Usage(
        key=payload["key"], days=tuple(DayUsage(**{name: day[name] for name in names}) for day in payload["days"])
    )


def _portable(payload: Any) -> PortableState | None:
    if payload is None:
        return None
    x, y, s = (decode(payload[name]) for name in "xys")
    return PortableState(digest=payload["digest"], status=tuple(payload["status"]), x=x, y=y, s=s)


def _decode(arrays: Mapping[str, Any] | None) -> dict[str, Array]:
    return {name: decode(values) for name, values in (arrays or {}).items()}
