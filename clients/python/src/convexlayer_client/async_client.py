"""The asynchronous client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar, final

import httpx
from numpy.typing import ArrayLike

from convexlayer_client import plans, wire
from convexlayer_client.account import Capabilities, Usage
from convexlayer_client.call import Call
from convexlayer_client.connection import AsyncConnection
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

__all__ = ["AsyncClient"]

T = TypeVar("T")


@final
class AsyncClient:
    """A client of a Convexlayer server for asyncio, with the methods of ``Client``.

        async with AsyncClient("http://127.0.0.1:8000") as client:
            problem = await client.register(document)
            result = await client.solve(problem.id, {"b": b})

    Args:
        url: URL of the server; see ``Client`` for all arguments.
        api_key: Sent as a bearer token.
        timeout_s: Seconds to wait for a response.
        retry_s: Seconds for which a request may be retried.
        headers: Headers of every request.
        transport: httpx transport to use instead of the network.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = 600.0,
        retry_s: float = 30.0,
        headers: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._connection = AsyncConnection(Endpoint(url, api_key, timeout_s, retry_s, headers), transport)

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
    ) -> AsyncClient:
        """Return a client with other options, for one call or for many."""
        client = AsyncClient.__new__(AsyncClient)
        endpoint = self._connection.endpoint.with_options(timeout_s, retry_s, headers)
        client._connection = AsyncConnection(endpoint, origin=self._connection)
        return client

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; the client cannot be used afterwards."""
        await self._connection.close()

    async def health(self) -> Mapping[str, Any]:
        """Return the liveness of the server."""
        return await self.run(wire.health())

    async def capabilities(self) -> Capabilities:
        """Return the capabilities of the server, and its limits on requests."""
        return await self.run(wire.capabilities())

    async def usage(self, *, days: int = 31) -> Usage:
        """Return the usage of this key on each of the last days (UTC)."""
        return await self.run(wire.usage(days))

    async def register(self, document: Mapping[str, Any]) -> Problem:
        """Register a problem document. Equal documents have the same ID, and are canonicalised once."""
        return await self.run(wire.register(document))

    async def problems(self) -> tuple[Problem, ...]:
        """Return all registered problems."""
        return await self._connection.execute(plans.problems(), ProgressBar(shown=False))

    async def get(self, problem_id: str) -> Problem:
        """Return a registered problem."""
        return await self.run(wire.get(problem_id))

    async def delete(self, problem_id: str) -> None:
        """Delete a registration."""
        await self.run(wire.delete(problem_id))

    async def solve(
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
        """Solve a problem for a batch of parameters."""
        return await self.run(
            wire.solve(
                problem_id, parameters, solver=solver, options=options, duals=duals, state=state, portable=portable
            ),
            progress=progress,
        )

    async def vjp(
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
        """Return the gradients of <cotangents, outputs> with respect to parameters."""
        return await self.run(
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

    async def jvp(
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
        """Return the tangents of the outputs along tangents of the parameters."""
        return await self.run(
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

    async def run(self, call: Call[T], *, progress: bool = False) -> T:
        """Send a call of ``wire``, and return its result."""
        with ProgressBar(shown=progress) as bar:
            return await self._connection.execute(
                plans.result_of(call, self._connection.endpoint.known, measured=progress), bar
            )

    async def submit(self, call: Call[T]) -> Job[T]:
        """Start a solve, vjp or jvp as a job, which outlives the connection."""
        return await self.run(wire.submit(call))

    async def job(self, job_id: str) -> Job[Any]:
        """Return a job that was started elsewhere, by its ID."""
        return await self.run(wire.job(job_id))

    async def jobs(self) -> tuple[JobStatus, ...]:
        """Return the progress of the jobs of this key."""
        return await self.run(wire.jobs())

    async def status(self, job: Job[Any]) -> JobStatus:
        """Return the progress of a job."""
        return await self.run(wire.job_status(job))

    async def events(self, job: Job[Any]) -> AsyncIterator[JobStatus]:
        """Yield the progress of a job, now and after each change, until it ends; reconnect if the connection breaks."""
        status = await self.status(job)
        yield status
        while not status.ended:
            async for status in self._connection.stream(job):
                yield status
            if not status.ended:
                await asyncio.sleep(RECONNECT_S)
                status = await self.status(job)
                yield status

    async def cancel(self, job: Job[Any]) -> None:
        """Cancel a job, or drop its result."""
        await self.run(wire.job_cancel(job))

    async def result(self, job: Job[T], *, progress: bool = False) -> T:
        """Wait for a job, and return its result."""
        with ProgressBar(shown=progress) as bar:
            async for status in self.events(job):
                bar.show(f"{status.operation} {status.status}", status.done, status.total)
        return await self.run(wire.job_result(job))
