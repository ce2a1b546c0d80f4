"""The synchronous client."""

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
from convexlayer_client.endpoint import RECONNECT_S, Endpoint
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
    """A client of a Convexlayer server.

        with Client("http://127.0.0.1:8000") as client:
            problem = client.register(document)
            result = client.solve(problem.id, {"b": b})

    A client is thread-safe. Every method raises ``ApiError`` (with a subclass for each status), ``TransportError`` if
    no response arrives (``RequestTimeoutError`` if none arrives in time), ``ProtocolError`` if the response is not one
    of this API, and ``EncodingError`` if an argument cannot be encoded.

    Requests are retried if the server asks for it (429 and 503, after Retry-After), if no connection could be
    established, and, if they are idempotent, after a broken connection. A batch that is too large for one request is
    sent in parts, two at a time, and the result is that of the batch.

    Args:
        url: URL of the server; by default the variable ``CONVEXLAYER_URL``.
        api_key: Bearer token; by default the variable ``CONVEXLAYER_API_KEY``. Servers without keys need neither.
        timeout_s: Seconds to wait for a response, or for more of it; solving a large batch may take minutes.
        retry_s: Seconds for which a request may be retried; 0 disables retries.
        headers: Headers of every request; they override the client's User-Agent and Authorization.
        transport: httpx transport to use instead of the network, for tests and proxies.
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
        self._connection = Connection(Endpoint(url, api_key, timeout_s, retry_s, headers), transport)

    @property
    def url(self) -> str:
        """URL of the server."""
        return self._connection.endpoint.url

    def with_options(
        self,
        *,
        timeout_s: float | None = None,
        retry_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Client:
        """Return a client with other options, for one call or for many.

            client.with_options(timeout_s=5, headers={"X-Request-Id": "night-7"}).solve(problem.id, {"b": b})

        Both clients share their connections, so closing one closes the other, and what they know of the server.

        Args:
            timeout_s: See ``Client``. Options that are not given stay the same.
            retry_s: See ``Client``.
            headers: Headers to add to those of this client, or to override.
        """
        client = Client.__new__(Client)
        endpoint = self._connection.endpoint.with_options(timeout_s, retry_s, headers)
        client._connection = Connection(endpoint, origin=self._connection)
        return client

    def __deepcopy__(self, memo: dict[int, Any]) -> Client:
        """Return the client itself: connections are shared, not copied."""
        return self

    def __reduce__(self) -> tuple[Callable[..., Client], tuple[Any, ...]]:
        """Pickle the URL and the options, but not the key and the headers, which may be secret.

        The process that unpickles the client reads the key from its environment.
        """
        return self._connection.endpoint.factory(Client), ()

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
        """Return the liveness of the server."""
        return self.run(wire.health())

    def capabilities(self) -> Capabilities:
        """Return the capabilities of the server, and its limits on requests."""
        return self.run(wire.capabilities())

    def usage(self, *, days: int = 31) -> Usage:
        """Return the usage of this key on each of the last days (UTC)."""
        return self.run(wire.usage(days))

    def register(self, document: Mapping[str, Any]) -> Problem:
        """Register a problem document. Equal documents have the same ID, and are canonicalised once.

        Args:
            document: An expression document or a cone program document, plain JSON.
        """
        return self.run(wire.register(document))

    def problems(self) -> tuple[Problem, ...]:
        """Return all registered problems."""
        return self._connection.execute(plans.problems(), ProgressBar(shown=False))

    def get(self, problem_id: str) -> Problem:
        """Return a registered problem."""
        return self.run(wire.get(problem_id))

    def delete(self, problem_id: str) -> None:
        """Delete a registration."""
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
            problem_id: ID of the problem.
            parameters: Array for each parameter, of its registered shape or with a leading batch axis.
            solver: Name of a solver, or "auto".
            options: Solver options.
            duals: Whether to return the dual variables of the constraints, too.
            state: Whether the server keeps the state and returns its handle, so that ``vjp`` and ``jvp`` need not solve
                again.
            portable: Whether to return the state itself, for the same purpose.
            progress: Whether to show a progress bar of the computed elements (needs tqdm).

        Raises:
            ShapeError: A batch must be sent in parts, but the batch sizes differ.
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
        """Return the gradients of <cotangents, outputs> with respect to parameters.

        Args:
            problem_id: ID of the problem.
            cotangents: Arrays by variable or dual variable, of the shape of the output; or "objective", of shape
                (batch,).
            parameters: See ``solve``. With a handle, they are sent only if its state has expired.
            state: Handle of the state of a solve.
            portable: The state itself; it needs the parameters.
            wrt: Parameters to differentiate with respect to; all by default.
            solver: Name of a solver, or "auto".
            options: Solver options.
            progress: See ``solve``.

        Raises:
            GoneError: The state has expired, and there are no parameters to recompute it from.
            ShapeError: See ``solve``; or the state has another number of elements.
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
        """Return the tangents of the outputs along tangents of the parameters.

        Args:
            problem_id: ID of the problem.
            tangents: Arrays by parameter, of its shape or with a batch axis; missing tangents are zero.
            parameters: See ``vjp``.
            state: Handle of the state of a solve.
            portable: The state itself.
            solver: Name of a solver, or "auto".
            options: Solver options.
            duals: Whether to return the tangents of the dual variables, too.
            progress: See ``solve``.

        Raises:
            GoneError: The state has expired, and there are no parameters to recompute it from.
            ShapeError: See ``solve``; or the state has another number of elements.
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
        """Send a call of ``wire``, and return its result.

        Args:
            call: The call.
            progress: See ``solve``.
        """
        with ProgressBar(shown=progress) as bar:
            plan = plans.result_of(call, self._connection.endpoint.known, measured=progress)
            return self._connection.execute(plan, bar)

    def submit(self, call: Call[T]) -> Job[T]:
        """Start a solve, vjp or jvp as a job, which outlives the connection: one request, whatever its size.

        Args:
            call: The call, such as ``wire.solve(problem.id, parameters)``.
        """
        return self.run(wire.submit(call))

    def job(self, job_id: str) -> Job[Any]:
        """Return a job that was started elsewhere, by its ID."""
        return self.run(wire.job(job_id))

    def jobs(self) -> tuple[JobStatus, ...]:
        """Return the progress of the jobs of this key."""
        return self.run(wire.jobs())

    def status(self, job: Job[Any]) -> JobStatus:
        """Return the progress of a job."""
        return self.run(wire.job_status(job))

    def events(self, job: Job[Any]) -> Iterator[JobStatus]:
        """Yield the progress of a job, now and after each change, until it ends; reconnect if the connection breaks."""
        status = self.status(job)
        yield status
        while not status.ended:
            for status in self._connection.stream(job):
                yield status
            if not status.ended:
                time.sleep(RECONNECT_S)
                status = self.status(job)
                yield status

    def cancel(self, job: Job[Any]) -> None:
        """Cancel a job, or drop its result."""
        self.run(wire.job_cancel(job))

    def result(self, job: Job[T], *, progress: bool = False) -> T:
        """Wait for a job, and return its result.

        Args:
            job: The job.
            progress: Whether to show a progress bar (needs tqdm).

        Raises:
            ApiError: The error of the request itself; NotFoundError if the job was cancelled.
        """
        with ProgressBar(shown=progress) as bar:
            for status in self.events(job):
                bar.show(f"{status.operation} {status.status}", status.done, status.total)
        return self.run(wire.job_result(job))
