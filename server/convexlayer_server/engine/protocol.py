"""What computes, seen from the routes: four calls with documents, which are JSON texts, and NumPy arrays.

Requests and results are picklable, so that an engine may live in other processes or on other machines.

**State** between a solve and its derivatives, one contract in three levels; the answer never depends on the level:

    handle      ComputeRequest(operation="solve", keep=True) -> ComputeResult.state, a string that begins with s_. A
                later vjp or jvp of the same owner gives it as ``state`` in place of parameters. The engine holds the
                parameters and (x, y, s) within a byte budget and for a time, and factors wherever they are of use; a
                handle that it does not hold for this owner is a ``GoneError``.
    portable    ComputeRequest(operation="solve", portable=True) -> ComputeResult.portable, (x, y, s) as plain arrays,
                bound to problem and parameters by a hash. A later vjp or jvp gives it as ``state`` beside the
                parameters.
    recompute   A vjp or jvp with parameters alone.

**Batching.** An engine merges requests that wait for the same problem, so admission should let in many more than there
are workers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from convexlayer.runtime.kernel_cache import Kernels

from ..arrays import Array

__all__ = [
    "Abilities",
    "Begun",
    "Charge",
    "ComputeOptions",
    "ComputeRequest",
    "ComputeResult",
    "Engine",
    "EngineHealth",
    "Operation",
    "PortableState",
    "Progress",
    "SolverAbility",
]

Operation = Literal["solve", "vjp", "jvp"]

Progress = Callable[[int, int], None]
"""Called on the event loop with the number of elements done and of all elements."""

Begun = Callable[[], None]
"""Called on the event loop when the first of something is handed to a worker."""

Charge = Callable[[str, float], None]
"""Called on the event loop with an owner and seconds that a worker was busy for it, whatever became of that."""


@dataclass(frozen=True, kw_only=True)
class ComputeOptions:
    """How to solve; None leaves the library's default.

    Attributes:
        solver: a name of ``convexlayer solvers``, or ``auto``.
        tol: accuracy asked of the solver.
        max_iter: its iterations.
        time_limit_s: seconds for solving all elements; for those of each part, where a large batch is divided.
    """

    solver: str = "auto"
    tol: float | None = None
    max_iter: int | None = None
    time_limit_s: float | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class PortableState:
    """Solutions of the standard form that the caller keeps.

    Attributes:
        digest: hash of the problem's id, the parameters and the arrays below.
        x: (batch, n).
        y: (batch, m).
        s: (batch, m).
        status: what became of each element.
    """

    digest: str
    x: Array
    y: Array
    s: Array
    status: tuple[str, ...]

    def described(self) -> dict[str, Any]:
        """The state as a dictionary."""
        return {"digest": self.digest, "status": list(self.status), "x": self.x, "y": self.y, "s": self.s}


@dataclass(frozen=True, eq=False, kw_only=True)
class ComputeRequest:
    """One solve, vjp or jvp.

    Attributes:
        request_id: for ``cancel``; no two requests in work may share one.
        problem_id: of a registered problem.
        operation: what to compute.
        parameters: one array for every parameter, of its shape or (batch, *shape); none where ``state`` is a handle.
        directions: cotangents of outputs (and of ``objective``) for a vjp, tangents of parameters for a jvp, each of
            the shape of what it belongs to or (batch, *shape); those left out are zero.
        wrt: for a vjp, the parameters whose gradients are wanted.
        outputs: for a solve or a jvp, the outputs that are wanted; None is all.
        options: how to solve; with a handle, those of its solve are used.
        owner: whose request this is, the id of a key: a handle serves its owner alone.
        keep: for a solve, whether to keep its state and give a handle.
        portable: for a solve, whether to give its state as arrays.
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
        seconds: wall time of the steps; of those of all pieces together where it was computed in several.
        state: the handle of the state, where it was asked for; None where it is too large to be kept.
        portable: the state itself, where it was asked for.
        details: what there is to say of elements beyond their status, by position.
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
        """Bytes of its arrays."""
        arrays = [*self.arrays.values(), *self.residuals.values()]
        arrays += [] if self.portable is None else [self.portable.x, self.portable.y, self.portable.s]
        return sum(array.nbytes for array in arrays)


@dataclass(frozen=True, kw_only=True)
class SolverAbility:
    """A solver that is installed.

    Attributes:
        name: by which it is asked for.
        quadratic: whether it takes quadratic objectives.
        cones: names of those that it takes.
    """

    name: str
    quadratic: bool
    cones: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """What a worker can do.

    Attributes:
        kernels: those that it runs.
        solvers: those that are installed.
        functions: of expressions in documents, constraints that are written as functions included.
    """

    kernels: Kernels
    solvers: tuple[SolverAbility, ...]
    functions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class EngineHealth:
    """How an engine is.

    Attributes:
        ready: whether it takes requests.
        compiled: problems that it holds compiled.
        running: requests in work or waiting.
        workers: workers that can compute now.
        replaced: workers that ended unasked and were replaced, since the start.
        abilities: what the workers can do, with the portable kernels where some run those; None while none is ready.
        backlog_s: estimated seconds until a request that came now would begin.
    """

    ready: bool
    compiled: int
    running: int
    workers: int = 1
    replaced: int = 0
    abilities: Abilities | None = None
    backlog_s: float = 0.0


class Engine(Protocol):
    """Compiles and computes, each owner in its turn: what one asks for keeps no other waiting for long.

    ``open`` and ``close`` frame its life, both on the event loop that serves the four calls.
    """

    async def open(self, charge: Charge) -> None:
        """Begin; requests are taken from now on, though workers may take seconds to be ready."""

    async def register(self, problem_id: str, document: bytes, owner: str, begun: Begun) -> Mapping[str, Any]:
        """Compile a document, unless it is compiled already.

        Returns:
            The summary: shapes, cones, sizes, curvature, the solver's name; plain JSON.

        Raises:
            DocumentError: the document cannot be compiled, or not within the limits of time and memory.
            UnavailableError: the worker ended, or the problem is quarantined; to be tried again.
        """

    async def run(
        self, request: ComputeRequest, document: bytes, progress: Progress | None, begun: Begun
    ) -> ComputeResult:
        """Compute with the problem of a document, which is compiled unless it is compiled already.

        Raises:
            DocumentError: the document cannot be compiled.
            InvalidError: the values cannot be used; where they are a batch, that is the status of their rows instead.
            SolverChoiceError: the solver asked for cannot be used.
            DerivativeError: the derivative cannot be had.
            GoneError: the state is not, or no longer, here.
            UnavailableError: the worker ended, or the problem is quarantined; to be tried again.
            DeadlineError: it took longer than the server allows.
            asyncio.CancelledError: it was cancelled.
        """

    async def cancel(self, request_id: str) -> bool:
        """Give up a request; whether any of it was still to be done."""

    def health(self) -> EngineHealth:
        """How the engine is, at once."""

    async def close(self) -> None:
        """Stop, after what is being computed."""
