"""The interface of a compute backend, as the routes see it: documents are JSON texts, values are NumPy arrays.

Requests and results can be pickled, so a backend may live in other processes or on other machines.

**State** between a solve and its derivatives comes in three forms. The result never depends on the form:

    handle      ComputeRequest(operation="solve", keep=True) returns ComputeResult.state, a string that begins with
                ``s_``. A later vjp or jvp of the same owner passes it as ``state`` instead of parameters. The backend
                keeps the parameters and (x, y, s) within a byte budget and for a limited time, and factorisations where
                they save time. It raises ``GoneError`` for a handle that it does not hold for this owner.
    portable    ComputeRequest(operation="solve", portable=True) returns ComputeResult.portable: (x, y, s) as arrays,
                bound to the problem and the parameters by a hash. A later vjp or jvp passes it as ``state``, together
                with the parameters.
    recompute   A vjp or jvp with parameters alone solves again.

**Batching.** A backend merges queued requests for the same problem, so admission should let in many more requests than
there are workers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from convexlayer.runtime.kernel_cache import Kernels

from ..encodings.arrays import Array

__all__ = [
    "ComputeBackend",
    "ComputeHealth",
    "ComputeOptions",
    "ComputeRequest",
    "ComputeResult",
    "OnProgress",
    "OnStart",
    "Operation",
    "PortableState",
    "RecordUsage",
    "SolverInfo",
    "WorkerCapabilities",
]

Operation = Literal["solve", "vjp", "jvp"]

OnProgress = Callable[[int, int], None]
"""Called on the event loop with the number of computed elements and the number of all elements."""

OnStart = Callable[[], None]
"""Called on the event loop when a worker receives the first part of a request."""

RecordUsage = Callable[[str, float], None]
"""Called on the event loop with an owner and the seconds that a worker was busy for it, on success and on failure."""


@dataclass(frozen=True, kw_only=True)
class ComputeOptions:
    """Solver options; None is the library's default.

    Attributes:
        solver: a name that ``convexlayer solvers`` lists, or ``auto``.
        tol: tolerance of the solver.
        max_iter: iteration limit.
        time_limit_s: seconds for solving all elements; for each chunk, if a large batch is divided.
    """

    solver: str = "auto"
    tol: float | None = None
    max_iter: int | None = None
    time_limit_s: float | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class PortableState:
    """Solutions of the standard form, kept by the client.

    Attributes:
        digest: hash of the problem ID, the parameters and the arrays below.
        x: primal variables, (batch, n).
        y: dual variables, (batch, m).
        s: slacks, (batch, m).
        status: solver status of each element.
    """

    digest: str
    x: Array
    y: Array
    s: Array
    status: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the state as a dictionary."""
        return {"digest": self.digest, "status": list(self.status), "x": self.x, "y": self.y, "s": self.s}


@dataclass(frozen=True, eq=False, kw_only=True)
class ComputeRequest:
    """One solve, vjp or jvp.

    Attributes:
        request_id: ID for ``cancel``; unique among the unfinished requests.
        problem_id: ID of a registered problem.
        operation: what to compute.
        parameters: an array for every parameter, of its shape or (batch, *shape); empty if ``state`` is a handle.
        directions: cotangents of outputs (and of ``objective``) for a vjp, tangents of parameters for a jvp, each of
            the shape of its output or parameter, or (batch, *shape); missing ones are zero.
        wrt: for a vjp, the parameters whose gradients are requested.
        outputs: for a solve or a jvp, the requested outputs; None is all.
        options: solver options; with a handle, those of its solve apply.
        owner: ID of the key that sent the request; only the owner of a handle may use it.
        keep: for a solve, whether to keep its state and return a handle.
        portable: for a solve, whether to return its state as arrays.
        state: for a vjp or jvp, a handle or a portable state to start from.
    """

    request_id: str
    problem_id: str
    operation: Operation
    parameters: Mapping[str, Array]
    directions: Mapping[str, Array] = field(default_factory=dict)
    wrt: tuple[str, ...] = ()
    outputs: tuple[str, ...] | None = None
    options: ComputeOptions = field(default_factory=ComputeOptions)
    owner: str = ""
    keep: bool = False
    portable: bool = False
    state: str | PortableState | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class ComputeResult:
    """The result of a request; lists per element have one entry for each element.

    Attributes:
        arrays: for a solve, the outputs; for a jvp, their tangents, each (batch, *shape). For a vjp, the gradients:
            (batch, *shape) for parameters with a batch axis, summed over the batch for the others.
        batched: whether any array of the request had a batch axis.
        status: solver status of each element.
        objective: objective values of a solve or their tangents, (batch,); None for a vjp.
        iterations: solver iterations of each element.
        residuals: primal, dual, gap and natural residuals, each (batch,).
        report: of the derivative: status, linear_residual, margin, condition and consistent; None for a solve.
        solver: name of the solver that ran.
        reason: why the library chose it.
        seconds: wall time of each step, summed over the chunks of a divided batch; the admission queue adds the time
            spent in it, ``queue``.
        state: the handle, if requested; None if the state is too large to keep.
        portable: the state as arrays, if requested.
        details: messages about single elements, by position.
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
    state: str | None = None
    portable: PortableState | None = None
    details: Mapping[int, str] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Bytes of all arrays."""
        arrays = [*self.arrays.values(), *self.residuals.values()]
        arrays += [] if self.portable is None else [self.portable.x, self.portable.y, self.portable.s]
        return sum(array.nbytes for array in arrays)


@dataclass(frozen=True, kw_only=True)
class SolverInfo:
    """An installed solver.

    Attributes:
        name: name of the solver.
        quadratic: whether it accepts quadratic objectives.
        cones: names of the cones that it accepts.
    """

    name: str
    quadratic: bool
    cones: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class WorkerCapabilities:
    """The capabilities of a worker.

    Attributes:
        kernels: which kernels it runs, compiled or portable.
        solvers: installed solvers.
        functions: functions that expressions in documents may call, including constraint functions.
    """

    kernels: Kernels
    solvers: tuple[SolverInfo, ...]
    functions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ComputeHealth:
    """The health of a compute backend.

    Attributes:
        ready: whether it accepts requests.
        cached_problems: number of problems that its workers hold canonicalised.
        running: requests that are queued or being computed.
        workers: workers that can compute now.
        replaced: workers that ended unexpectedly and were replaced, since the start.
        capabilities: capabilities of the workers, with the portable kernels if any worker runs those; None until a
            worker is ready.
        backlog_s: estimated seconds until a request that arrives now would start.
    """

    ready: bool
    cached_problems: int
    running: int
    workers: int = 1
    replaced: int = 0
    capabilities: WorkerCapabilities | None = None
    backlog_s: float = 0.0


class ComputeBackend(Protocol):
    """Canonicalises problems and computes requests, with fair scheduling among owners.

    Call ``open`` first and ``close`` last, on the event loop that makes all other calls.
    """

    async def open(self, record_usage: RecordUsage) -> None:
        """Start; the backend accepts requests from now on, though workers may take seconds to get ready."""

    async def register(self, problem_id: str, document: bytes, owner: str, on_start: OnStart) -> Mapping[str, Any]:
        """Canonicalise a document, unless a worker holds it already.

        Returns:
            The summary as plain JSON: shapes, cones, sizes, curvature and the name of the solver.

        Raises:
            DocumentError: the document cannot be canonicalised, or not within the limits of time and memory.
            UnavailableError: the worker ended, or the problem is quarantined; the client may try again.
        """

    async def run(
        self, request: ComputeRequest, document: bytes, on_progress: OnProgress | None, on_start: OnStart
    ) -> ComputeResult:
        """Compute a request with the problem of a document, which is canonicalised if no worker holds it.

        Raises:
            DocumentError: the document cannot be canonicalised.
            InvalidError: the values are invalid; within a batch, they set the status of their elements instead.
            SolverChoiceError: the requested solver cannot be used.
            DerivativeError: the derivative cannot be computed.
            GoneError: the backend does not hold the state.
            UnavailableError: the worker ended, or the problem is quarantined; the client may try again.
            DeadlineError: the request exceeded its deadline.
            asyncio.CancelledError: the request was cancelled.
        """

    async def cancel(self, request_id: str) -> bool:
        """Cancel a request; return whether any of it was still to be computed."""

    def health(self) -> ComputeHealth:
        """Return the current health without blocking."""

    async def close(self) -> None:
        """Stop after the running requests."""
