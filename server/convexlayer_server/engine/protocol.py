"""What computes, seen from the routes: four calls with plain documents and NumPy arrays.

Requests and results are picklable, so that an engine may live in other processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ..arrays import Array

__all__ = ["ComputeOptions", "ComputeRequest", "ComputeResult", "Engine", "EngineHealth", "Operation"]

Operation = Literal["solve", "vjp", "jvp"]


@dataclass(frozen=True, kw_only=True)
class ComputeOptions:
    """How to solve; None leaves the library's default.

    Attributes:
        solver: a name of ``convexlayer solvers``, or ``auto``.
        tol: accuracy asked of the solver.
        max_iter: its iterations.
        time_limit_s: seconds for one element.
    """

    solver: str = "auto"
    tol: float | None = None
    max_iter: int | None = None
    time_limit_s: float | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class ComputeRequest:
    """One solve, vjp or jvp.

    Attributes:
        request_id: for ``cancel``; no two requests in work may share one.
        problem_id: of a registered problem.
        operation: what to compute.
        parameters: one array for every parameter, of its shape or (batch, *shape).
        directions: cotangents of outputs (and of ``objective``) for a vjp, tangents of parameters for a jvp, each of
            the shape of what it belongs to or (batch, *shape); those left out are zero.
        wrt: for a vjp, the parameters whose gradients are wanted.
        outputs: for a solve or a jvp, the outputs that are wanted; None is all.
        options: how to solve.
    """

    request_id: str
    problem_id: str
    operation: Operation
    parameters: Mapping[str, Array]
    directions: Mapping[str, Array] = field(default_factory=dict)
    wrt: tuple[str, ...] = ()
    outputs: tuple[str, ...] | None = None
    options: ComputeOptions = field(default_factory=ComputeOptions)


@dataclass(frozen=True, eq=False, kw_only=True)
class ComputeResult:
    """The answer to a request; every per-element list has one entry an element.

    Attributes:
        arrays: outputs of a solve or their tangents, each (batch, *shape), or the gradients of a vjp: (batch, *shape)
            of parameters given with a batch axis, else summed over the batch.
        batched: whether any array of the request had a batch axis.
        status: what became of each element.
        objective: objective values of a solve or their tangents, (batch,); None for a vjp.
        iterations: of the solver.
        residuals: primal, dual, gap and natural.
        report: of the derivative: status, linear_residual, margin, condition and consistent; None for a solve.
        solver: the solver that ran.
        reason: why it was chosen.
        seconds: wall time of the parts.
    """

    arrays: Mapping[str, Array]
    batched: bool
    status: tuple[str, ...]
    objective: Array | None
    iterations: tuple[int, ...]
    residuals: Mapping[str, Array]
    report: Mapping[str, list[Any]] | None
    solver: str
    reason: str
    seconds: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class EngineHealth:
    """How an engine is.

    Attributes:
        ready: whether it takes requests.
        compiled: problems that it holds compiled.
        running: requests in work or waiting.
    """

    ready: bool
    compiled: int
    running: int


class Engine(Protocol):
    """Compiles and computes."""

    async def register(self, problem_id: str, document: Mapping[str, Any]) -> Mapping[str, Any]:
        """Compile a document, unless it is compiled already.

        Returns:
            The summary: shapes, cones, sizes, curvature, the solver's name; plain JSON.

        Raises:
            DocumentError: the document cannot be compiled.
        """

    async def run(self, request: ComputeRequest, document: Mapping[str, Any]) -> ComputeResult:
        """Compute with the problem of a document, which is compiled unless it is compiled already.

        Raises:
            DocumentError: the document cannot be compiled.
            InvalidError: the values cannot be used.
            SolverChoiceError: the solver asked for cannot be used.
            DerivativeError: the derivative cannot be had.
        """

    async def cancel(self, request_id: str) -> bool:
        """Give up a request that waits; whether it was still waiting."""

    def health(self) -> EngineHealth:
        """How the engine is, at once."""

    def close(self) -> None:
        """Stop, after what is being computed."""
