"""The asynchronous client: the calls of ``wire``, sent by httpx, as by ``Client``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar, final

import httpx
from httpx_sse import aconnect_sse
from numpy.typing import ArrayLike
from tenacity import AsyncRetrying

from convexlayer_client import wire
from convexlayer_client.call import Call, Reply, Request
from convexlayer_client.core import PAUSE_S, Core, progress_of
from convexlayer_client.progress import ProgressBar
from convexlayer_client.results import (
    Job,
    JobStatus,
    JvpResult,
    Options,
    PortableState,
    Problem,
    SolveResult,
    VjpResult,
)

__all__ = ["AsyncClient"]

T = TypeVar("T")


@final
class AsyncClient:
    """A connection to a Convexlayer server, for asyncio: the methods of ``Client``, to be awaited.

        async with AsyncClient("http://127.0.0.1:8000") as client:
            problem = await client.register(document)
            result = await client.solve(problem.id, {"b": b})

    Args:
        url: As for ``Client``, as are the others.
        api_key: Sent as a bearer token.
        timeout_s: Seconds to wait for an answer.
        retry_s: Seconds for which a call may be sent again.
        transport: httpx transport in place of the network.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = 600.0,
        retry_s: float = 30.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._core = Core(url, api_key, timeout_s, retry_s)
        self._http = httpx.AsyncClient(**self._core.settings, transport=transport)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; the client cannot be used afterwards."""
        await self._http.aclose()

    async def health(self) -> Mapping[str, Any]:
        """What the server says of itself."""
        return await self.run(wire.health())

    async def register(self, document: Mapping[str, Any]) -> Problem:
        """Register a problem document. The same document always has the same id, and is compiled once."""
        return await self.run(wire.register(document))

    async def problems(self) -> tuple[Problem, ...]:
        """The registered problems."""
        return await self.run(wire.problems())

    async def get(self, problem_id: str) -> Problem:
        """A registered problem."""
        return await self.run(wire.get(problem_id))

    async def delete(self, problem_id: str) -> None:
        """Remove a registration."""
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
    ) -> SolveResult:
        """Solve a problem for a batch of parameters."""
        return await self.run(
            wire.solve(
                problem_id, parameters, solver=solver, options=options, duals=duals, state=state, portable=portable
            )
        )

    async def vjp(
        self,
        problem_id: str,
        cotangents: Mapping[str, ArrayLike],
        parameters: Mapping[str, ArrayLike] | None = None,
        *,
        state: str | None = None,
        portable: PortableState | None = None,
        wrt: Sequence[str] | None = None,
        solver: str = "auto",
        options: Options | None = None,
    ) -> VjpResult:
        """Gradients of <cotangents, outputs> with respect to parameters."""
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
            )
        )

    async def jvp(
        self,
        problem_id: str,
        tangents: Mapping[str, ArrayLike],
        parameters: Mapping[str, ArrayLike] | None = None,
        *,
        state: str | None = None,
        portable: PortableState | None = None,
        solver: str = "auto",
        options: Options | None = None,
        duals: bool = False,
    ) -> JvpResult:
        """Tangents of the outputs along tangents of the parameters."""
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
            )
        )

    async def run(self, call: Call[T]) -> T:
        """The result of a call of ``wire``."""
        return await AsyncRetrying(**self._core.retries)(self._once, call)

    async def submit(self, call: Call[T]) -> Job[T]:
        """Begin a solve, vjp or jvp that outlives the connection."""
        return await self.run(wire.submit(call))

    async def jobs(self) -> tuple[JobStatus, ...]:
        """How far the jobs of this key are."""
        return await self.run(wire.jobs())

    async def status(self, job: Job[Any]) -> JobStatus:
        """How far a job is."""
        return await self.run(wire.job_status(job))

    async def events(self, job: Job[Any]) -> AsyncIterator[JobStatus]:
        """How far a job is, now and whenever that changes, until it ends; a connection that breaks is made again."""
        status = await self.status(job)
        yield status
        while not status.ended:
            async for status in self._stream(job):
                yield status
            if not status.ended:
                await asyncio.sleep(PAUSE_S)
                status = await self.status(job)
                yield status

    async def cancel(self, job: Job[Any]) -> None:
        """Give a job up, or forget its result."""
        await self.run(wire.job_cancel(job))

    async def result(self, job: Job[T], *, progress: bool = False) -> T:
        """The result of a job, once it is done."""
        with ProgressBar(shown=progress) as bar:
            async for status in self.events(job):
                bar.show(status)
        return await self.run(wire.job_result(job))

    async def _once(self, call: Call[T]) -> T:
        """One exchange; ``Retrying`` calls it again."""
        if self._http.is_closed:
            raise self._core.closed(call)
        steps = self._core.exchange(call)
        request = next(steps)
        while True:
            reply = await self._sent(request)
            try:
                request = steps.send(reply)
            except StopIteration as end:
                result: T = end.value
                return result

    async def _sent(self, request: Request) -> Reply:
        try:
            async with self._http.stream(
                request.method, request.path, content=request.content, headers=request.headers
            ) as response:
                content = bytearray()
                async for chunk in response.aiter_bytes():
                    content += chunk
                return Reply(response.status_code, response.headers, content)
        except httpx.RequestError as error:
            raise self._core.lost(request, error) from error

    async def _stream(self, job: Job[Any]) -> AsyncIterator[JobStatus]:
        """The events of one connection; none where the server refuses, which asking for the status will tell."""
        try:
            async with aconnect_sse(self._http, "GET", wire.job_events(job)) as source:
                if source.response.is_success:
                    async for event in source.aiter_sse():
                        yield progress_of(event.data)
        except httpx.TransportError as error:
            self._core.broken(job, error)
