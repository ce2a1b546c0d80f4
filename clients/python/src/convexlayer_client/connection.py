"""How both clients send: plans followed, calls made side by side and again, requests sent by httpx.

The two classes differ in ``await`` alone, and in how calls are given up.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, TypeVar, final

import httpx
from httpx_sse import aconnect_sse, connect_sse
from tenacity import AsyncRetrying, Retrying, sleep_using_event

from convexlayer_client import wire
from convexlayer_client.call import Call, Reply, Request
from convexlayer_client.core import Core, progress_of
from convexlayer_client.errors import ClientError
from convexlayer_client.plans import Plan
from convexlayer_client.progress import ProgressBar
from convexlayer_client.results import Job, JobStatus

__all__ = ["AsyncConnection", "Connection"]

T = TypeVar("T")

_AT_A_TIME = 2
"""Calls that are made side by side, where there are many: while the server computes one, the next is sent."""


@final
class Connection:
    """The connections of a client, which nobody having it any more closes.

    Args:
        core: The server, and the way to speak to it.
        transport: In place of the network.
        origin: Whose connections these are, if they are not new.
    """

    def __init__(
        self, core: Core, transport: httpx.BaseTransport | None = None, origin: Connection | None = None
    ) -> None:
        self.core = core
        self._origin = origin
        self._http: httpx.Client = (
            httpx.Client(base_url=core.url, transport=transport) if origin is None else origin._http
        )
        if origin is None:
            weakref.finalize(self, self._http.close)

    def close(self) -> None:
        """Close them."""
        self._http.close()

    def follow(self, plan: Plan[T], bar: ProgressBar) -> T:
        """What a plan comes to."""
        try:
            calls = next(plan)
            while True:
                try:
                    results = self._side_by_side(calls, bar)
                except ClientError as error:
                    calls = plan.throw(error)
                else:
                    calls = plan.send(results)
        except StopIteration as end:
            result: T = end.value
            return result

    def stream(self, job: Job[Any]) -> Iterator[JobStatus]:
        """The events of one connection; none where the server refuses, which asking for the status will tell."""
        core = self.core
        try:
            with connect_sse(
                self._http, "GET", wire.job_events(job), headers=core.headers({}), timeout=core.timeout
            ) as source:
                if source.response.is_success:
                    for event in source.iter_sse():
                        yield progress_of(event.data)
        except httpx.TransportError as error:
            core.broken(job, error)

    def _side_by_side(self, calls: Sequence[Call[Any]], bar: ProgressBar) -> list[Any]:
        """The results of calls; where one fails, the others are given up, but for what is sent already."""
        bar.begin(calls)
        if len(calls) == 1:
            result = Retrying(**self.core.retries)(self._once, calls[0])
            bar.add(calls[0])
            return [result]
        over = threading.Event()
        retrying = Retrying(**self.core.retries, sleep=sleep_using_event(over))
        errors: list[BaseException] = []

        def answered(call: Call[Any]) -> Any:
            try:
                return retrying(self._once, call, over)
            except BaseException as error:
                errors.append(error)
                over.set()
                raise

        pool = ThreadPoolExecutor(_AT_A_TIME)
        try:
            answers = {pool.submit(answered, call): call for call in calls}
            for answer in as_completed(answers):
                if errors:  # the others are of what was given up
                    raise errors[0]
                bar.add(answers[answer])
            return [answer.result() for answer in answers]
        finally:
            over.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _once(self, call: Call[T], over: threading.Event | None = None) -> T:
        """One exchange, unless all is over; ``Retrying`` calls it again."""
        if over is not None and over.is_set():
            raise self.core.given_up(call)
        if self._http.is_closed:
            raise self.core.closed(call)
        steps = self.core.exchange(call)
        request = next(steps)
        while True:
            reply = self._sent(request)
            try:
                request = steps.send(reply)
            except StopIteration as end:
                result: T = end.value
                return result

    def _sent(self, request: Request) -> Reply:
        try:
            with self._http.stream(**_arguments(request, self.core)) as response:
                content = bytearray()
                for chunk in response.iter_bytes():
                    content += chunk
                return Reply(response.status_code, response.headers, content)
        except httpx.RequestError as error:
            raise self.core.lost(request, error) from error


@final
class AsyncConnection:
    """The connections of a client, for asyncio.

    Args:
        core: As for ``Connection``, as are the others.
        transport: In place of the network.
        origin: Whose connections these are, if they are not new.
    """

    def __init__(
        self, core: Core, transport: httpx.AsyncBaseTransport | None = None, origin: AsyncConnection | None = None
    ) -> None:
        self.core = core
        self._http: httpx.AsyncClient = (
            httpx.AsyncClient(base_url=core.url, transport=transport) if origin is None else origin._http
        )

    async def close(self) -> None:
        """Close them."""
        await self._http.aclose()

    async def follow(self, plan: Plan[T], bar: ProgressBar) -> T:
        """What a plan comes to."""
        try:
            calls = next(plan)
            while True:
                try:
                    results = await self._side_by_side(calls, bar)
                except ClientError as error:
                    calls = plan.throw(error)
                else:
                    calls = plan.send(results)
        except StopIteration as end:
            result: T = end.value
            return result

    async def stream(self, job: Job[Any]) -> AsyncIterator[JobStatus]:
        """The events of one connection; none where the server refuses, which asking for the status will tell."""
        core = self.core
        try:
            async with aconnect_sse(
                self._http, "GET", wire.job_events(job), headers=core.headers({}), timeout=core.timeout
            ) as source:
                if source.response.is_success:
                    async for event in source.aiter_sse():
                        yield progress_of(event.data)
        except httpx.TransportError as error:
            core.broken(job, error)

    async def _side_by_side(self, calls: Sequence[Call[Any]], bar: ProgressBar) -> list[Any]:
        """The results of calls; where one fails, the others are given up."""
        bar.begin(calls)
        gate = asyncio.Semaphore(_AT_A_TIME)

        async def answered(call: Call[Any]) -> Any:
            await gate.acquire()
            result: Any = await AsyncRetrying(**self.core.retries)(self._once, call)
            gate.release()  # not where it failed: then no other is to begin
            bar.add(call)
            return result

        tasks = [asyncio.ensure_future(answered(call)) for call in calls]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _once(self, call: Call[T]) -> T:
        """One exchange; ``AsyncRetrying`` calls it again."""
        if self._http.is_closed:
            raise self.core.closed(call)
        steps = self.core.exchange(call)
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
            async with self._http.stream(**_arguments(request, self.core)) as response:
                content = bytearray()
                async for chunk in response.aiter_bytes():
                    content += chunk
                return Reply(response.status_code, response.headers, content)
        except httpx.RequestError as error:
            raise self.core.lost(request, error) from error


def _arguments(request: Request, core: Core) -> Mapping[str, Any]:
    """A request as httpx takes it."""
    return {
        "method": request.method,
        "url": request.path,
        "content": request.content,
        "headers": request.headers,
        "timeout": core.timeout,
    }
