"""The synchronous client: the calls of ``wire``, sent by httpx."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar, final

import httpx
from numpy.typing import ArrayLike

from convexlayer_client import plans, wire
from convexlayer_client.account import Capabilities, Usage
from convexlayer_client.call import Call
from convexlayer_client.connection import Connection
from convexlayer_client.core import PAUSE_S, Core
from convexlayer_client.progress import ProgressBar
from convexlayer_client.results import (
    Job,
    JobStatus,
    JvpResult,
    Options,
    PortableState,
    Problem,
    SolveResult,
    SplitState,
    VjpResult,
)

__all__ = ["Client"]

T = TypeVar("T")


@final
class Client:
    """A connection to a Convexlayer server.

        with Client("http://127.0.0.1:8000") as client:
            problem = client.register(document)
            result = client.solve(problem.id, {"b": b})

    Threads may share a client. Every method raises ``ApiError`` (one class a status), ``TransportError`` where no
    answer comes, ``ProtocolError`` where the answer is not this API's, and ``EncodingError`` where what is given cannot
    be sent. A call is sent again where the server says that it can be (429, 503; after the time that it names), where
    no connection could be made, and where one broke under a call that changes nothing when it arrives twice.
    ``RequestTimeoutError``, a ``TransportError``, says that no answer came in time.

    A batch that is too large for one request is sent in parts, two at a time, each of them again where need be, and
    the result is that of the batch.

    Args:
        url: Where the server is; the environment's ``CONVEXLAYER_URL`` unless given.
        api_key: Sent as a bearer token; ``CONVEXLAYER_API_KEY`` unless given. None of both is for servers without keys.
        timeout_s: Seconds to wait for an answer, or for more of it; solves of large batches take their time.
        retry_s: Seconds for which a call may be sent again before its error is raised; 0 raises at once.
        headers: Headers of every request, before the client's own User-Agent and Authorization.
        transport: httpx transport in place of the network, for tests and proxies.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = 600.0,
        retry_s: float = 30.0,
        headers: Mapping[str, str] | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._connection = Connection(Core(url, api_key, timeout_s, retry_s, headers), transport)

    def with_options(
        self,
        *,
        timeout_s: float | None = None,
        retry_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Client:
        """The same client with other options, for one call or for many.

            client.with_options(timeout_s=5, headers={"X-Request-Id": "night-7"}).solve(problem.id, {"b": b})

        It shares the connections, which closing either of them closes, and what is known of the server.

        Args:
            timeout_s: As for the client, as are the others; those that are not given stay as they are.
            retry_s: Seconds for which a call may be sent again.
            headers: Headers beside those of this client, or in place of them.
        """
        client = Client.__new__(Client)
        core = self._connection.core.with_options(timeout_s, retry_s, headers)
        client._connection = Connection(core, origin=self._connection)
        return client

    def __deepcopy__(self, memo: dict[int, Any]) -> Client:
        """The client itself: a connection is shared, not copied."""
        return self

    def __reduce__(self) -> tuple[Callable[..., Client], tuple[Any, ...]]:
        """Another connection to the same server.

        Keys and headers are not written down: there, the environment has to have the key.
        """
        return self._connection.core.reconnected(Client), ()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; the client cannot be used afterwards."""
        self._connection.close()

    def health(self) -> Mapping[str, Any]:
        """What the server says of itself."""
        return self.run(wire.health())

    def capabilities(self) -> Capabilities:
        """What the server can do, and what it takes in one request."""
        return self.run(wire.capabilities())

    def usage(self, *, days: int = 31) -> Usage:
        """What this key used on each of the last days (UTC)."""
        return self.run(wire.usage(days))

    def register(self, document: Mapping[str, Any]) -> Problem:
        """Register a problem document. The same document always has the same id, and is compiled once.

        Args:
            document: An expression document or a cone program document, plain JSON.
        """
        return self.run(wire.register(document))

    def problems(self) -> tuple[Problem, ...]:
        """The registered problems, all of them."""
        return self._connection.follow(plans.problems(), ProgressBar(shown=False))

    def get(self, problem_id: str) -> Problem:
        """A registered problem."""
        return self.run(wire.get(problem_id))

    def delete(self, problem_id: str) -> None:
        """Remove a registration."""
        self.run(wire.delete(problem_id))

    def solve(
        self,
        problem_id: str,
        parameters: Mapping[str, ArrayLike],
        *,
        solver: str = "auto",
        options: Options | None = None,
        duals: bool = False,
        state: bool = False,
        portable: bool = False,
        progress: bool = False,
    ) -> SolveResult:
        """Solve a problem for a batch of parameters.

        Args:
            problem_id: The problem.
            parameters: Array of each parameter, of its registered shape or with one leading batch axis.
            solver: Name of a solver, or "auto".
            options: Tolerance and limits.
            duals: Return the dual variables of the constraints, too.
            state: Keep the state there and return its handle, so that ``vjp`` and ``jvp`` need not solve again.
            portable: Return the state itself, for the same purpose.
            progress: Show a bar of the elements that are done, part by part (needs tqdm).

        Raises:
            ShapeError: Batches of a call that has to be sent in parts differ in size.
        """
        return self.run(
            wire.solve(
                problem_id, parameters, solver=solver, options=options, duals=duals, state=state, portable=portable
            ),
            progress=progress,
        )

    def vjp(
        self,
        problem_id: str,
        cotangents: Mapping[str, ArrayLike],
        parameters: Mapping[str, ArrayLike] | None = None,
        *,
        state: str | SplitState[str] | None = None,
        portable: PortableState | SplitState[PortableState] | None = None,
        wrt: Sequence[str] | None = None,
        solver: str = "auto",
        options: Options | None = None,
        progress: bool = False,
    ) -> VjpResult:
        """Gradients of <cotangents, outputs> with respect to parameters.

        Args:
            problem_id: The problem.
            cotangents: Array by variable or dual variable, shaped as the output, or "objective", shape (batch,).
            parameters: As for ``solve``. With a handle they are sent only if the server no longer has its state.
            state: The handle of the solve's state.
            portable: The state itself; needs the parameters.
            wrt: Parameters to differentiate in; all by default.
            solver: Name of a solver, or "auto".
            options: Tolerance and limits.
            progress: As for ``solve``.

        Raises:
            GoneError: The server no longer has the state, and there are no parameters to compute it from.
            ShapeError: As for ``solve``, or the state is of another number of elements.
        """
        return self.run(
            wire.vjp(
                problem_id,
                cotangents,
                parameters,
                state=state,
                portable=portable,
                wrt=wrt,
                solver=solver,
                options=options,
            ),
            progress=progress,
        )

    def jvp(
        self,
        problem_id: str,
        tangents: Mapping[str, ArrayLike],
        parameters: Mapping[str, ArrayLike] | None = None,
        *,
        state: str | SplitState[str] | None = None,
        portable: PortableState | SplitState[PortableState] | None = None,
        solver: str = "auto",
        options: Options | None = None,
        duals: bool = False,
        progress: bool = False,
    ) -> JvpResult:
        """Tangents of the outputs along tangents of the parameters.

        Args:
            problem_id: The problem.
            tangents: Array by parameter, of its shape or with a batch axis; parameters left out do not move.
            parameters: As for ``vjp``, as are the states.
            state: The handle of the solve's state.
            portable: The state itself.
            solver: Name of a solver, or "auto".
            options: Tolerance and limits.
            duals: Return the tangents of the dual variables, too.
            progress: As for ``solve``.

        Raises:
            GoneError: The server no longer has the state, and there are no parameters to compute it from.
            ShapeError: As for ``solve``, or the state is of another number of elements.
        """
        return self.run(
            wire.jvp(
                problem_id,
                tangents,
                parameters,
                state=state,
                portable=portable,
                solver=solver,
                options=options,
                duals=duals,
            ),
            progress=progress,
        )

    def run(self, call: Call[T], *, progress: bool = False) -> T:
        """The result of a call of ``wire``.

        Args:
            call: The call.
            progress: As for ``solve``.
        """
        with ProgressBar(shown=progress) as bar:
            plan = plans.result_of(call, self._connection.core.known, measured=progress)
            return self._connection.follow(plan, bar)

    def submit(self, call: Call[T]) -> Job[T]:
        """Begin a solve, vjp or jvp that outlives the connection: one request, however large.

        Args:
            call: What to compute: ``wire.solve(problem.id, parameters)``.
        """
        return self.run(wire.submit(call))

    def job(self, job_id: str) -> Job[Any]:
        """A job that was begun elsewhere, by its id; its result is of what it computes."""
        return self.run(wire.job(job_id))

    def jobs(self) -> tuple[JobStatus, ...]:
        """How far the jobs of this key are."""
        return self.run(wire.jobs())

    def status(self, job: Job[Any]) -> JobStatus:
        """How far a job is."""
        return self.run(wire.job_status(job))

    def events(self, job: Job[Any]) -> Iterator[JobStatus]:
        """How far a job is, now and whenever that changes, until it ends; a connection that breaks is made again."""
        status = self.status(job)
        yield status
        while not status.ended:
            for status in self._connection.stream(job):
                yield status
            if not status.ended:
                time.sleep(PAUSE_S)
                status = self.status(job)
                yield status

    def cancel(self, job: Job[Any]) -> None:
        """Give a job up, or forget its result."""
        self.run(wire.job_cancel(job))

    def result(self, job: Job[T], *, progress: bool = False) -> T:
        """The result of a job, once it is done.

        Args:
            job: The job.
            progress: Show a bar meanwhile (needs tqdm).

        Raises:
            ApiError: What the request itself would have been refused with; NotFoundError where the job was cancelled.
        """
        with ProgressBar(shown=progress) as bar:
            for status in self.events(job):
                bar.show(f"{status.operation} {status.status}", status.done, status.total)
        return self.run(wire.job_result(job))
