"""How both clients send calls: concurrently, with retries, by httpx.

The two classes differ in ``await``, and in how they cancel calls.
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
from convexlayer_client.endpoint import Endpoint, parse_event
from convexlayer_client.errors import ClientError
from convexlayer_client.plans import Plan
from convexlayer_client.progress import ProgressBar
from convexlayer_client.results import Job, JobStatus

__all__ = ["AsyncConnection", "Connection"]

T = TypeVar("T")

_MAX_CONCURRENT = 2
"""Concurrent calls of one batch: while the server computes one, the client sends the next."""


@final
class Connection:
    """The connections of a client; they are closed when the client is garbage-collected.

    Args:
        endpoint: The server and the options.
        transport: httpx transport to use instead of the network.
        origin: Shares the connections of this object, if given.
    """

    def __init__(
        self, endpoint: Endpoint, transport: httpx.BaseTransport | None = None, origin: Connection | None = None
    ) -> None:
        self.endpoint = endpoint
        self._origin = origin
        self._http: httpx.Client = (
            httpx.Client(base_url=endpoint.url, transport=transport) if origin is None else origin._http
        )
        if origin is None:
            weakref.finalize(self, self._http.close)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def execute(self, plan: Plan[T], bar: ProgressBar) -> T:
        """Execute a plan, and return its result."""
        try:
            calls = next(plan)
            while True:
                try:
                    results = self._send_concurrently(calls, bar)
                except ClientError as error:
                    calls = plan.throw(error)
                else:
                    calls = plan.send(results)
        except StopIteration as end:
            result: T = end.value
            return result

    def stream(self, job: Job[Any]) -> Iterator[JobStatus]:
        """Yield the events of one connection; none if the server refuses, which the next status request reports."""
        endpoint = self.endpoint
        try:
            with connect_sse(
                self._http, "GET", wire.job_events(job), headers=endpoint.headers({}), timeout=endpoint.timeout
            ) as source:
                if source.response.is_success:
                    for event in source.iter_sse():
                        yield parse_event(event.data)
        except httpx.TransportError as error:
            endpoint.log_interrupted_stream(job, error)

    def _send_concurrently(self, calls: Sequence[Call[Any]], bar: ProgressBar) -> list[Any]:
        """Send calls concurrently, and return their results; if one fails, cancel those that are not sent yet."""
        bar.begin(calls)
        if len(calls) == 1:
            result = Retrying(**self.endpoint.retries)(self._send_once, calls[0])
            bar.add(calls[0])
            return [result]
        over = threading.Event()
        retrying = Retrying(**self.endpoint.retries, sleep=sleep_using_event(over))
        errors: list[BaseException] = []

        def send(call: Call[Any]) -> Any:
            try:
                return retrying(self._send_once, call, over)
            except BaseException as error:
                errors.append(error)
                over.set()
                raise

        pool = ThreadPoolExecutor(_MAX_CONCURRENT)
        try:
            futures = {pool.submit(send, call): call for call in calls}
            for future in as_completed(futures):
                if errors:  # other errors follow from the cancellation
                    raise errors[0]
                bar.add(futures[future])
            return [future.result() for future in futures]
        finally:
            over.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _send_once(self, call: Call[T], over: threading.Event | None = None) -> T:
        """Send a call once, unless it is cancelled; ``Retrying`` retries it."""
        if over is not None and over.is_set():
            raise self.endpoint.cancelled(call)
        if self._http.is_closed:
            raise self.endpoint.closed(call)
        steps = self.endpoint.exchange(call)
        request = next(steps)
        while True:
            reply = self._exchange(request)
            try:
                request = steps.send(reply)
            except StopIteration as end:
                result: T = end.value
                return result

    def _exchange(self, request: Request) -> Reply:
        try:
            with self._http.stream(**_arguments(request, self.endpoint)) as response:
                content = bytearray()
                for chunk in response.iter_bytes():
                    content += chunk
                return Reply(response.status_code, response.headers, content)
        except httpx.RequestError as error:
            raise self.endpoint.transport_error(request, error) from error


@final
class AsyncConnection:
    """The connections of a client, for asyncio.

    Args:
        endpoint: See ``Connection`` for all arguments.
        transport: httpx transport to use instead of the network.
        origin: Shares the connections of this object, if given.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        transport: httpx.AsyncBaseTransport | None = None,
        origin: AsyncConnection | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._http: httpx.AsyncClient = (
            httpx.AsyncClient(base_url=endpoint.url, transport=transport) if origin is None else origin._http
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def execute(self, plan: Plan[T], bar: ProgressBar) -> T:
        """Execute a plan, and return its result."""
        try:
            calls = next(plan)
            while True:
                try:
                    results = await self._send_concurrently(calls, bar)
                except ClientError as error:
                    calls = plan.throw(error)
                else:
                    calls = plan.send(results)
        except StopIteration as end:
            result: T = end.value
            return result

    async def stream(self, job: Job[Any]) -> AsyncIterator[JobStatus]:
        """Yield the events of one connection; none if the server refuses, which the next status request reports."""
        endpoint = self.endpoint
        try:
            async with aconnect_sse(
                self._http, "GET", wire.job_events(job), headers=endpoint.headers({}), timeout=endpoint.timeout
            ) as source:
                if source.response.is_success:
                    async for event in source.aiter_sse():
                        yield parse_event(event.data)
        except httpx.TransportError as error:
            endpoint.log_interrupted_stream(job, error)

    async def _send_concurrently(self, calls: Sequence[Call[Any]], bar: ProgressBar) -> list[Any]:
        """Send calls concurrently, and return their results; if one fails, cancel the others."""
        bar.begin(calls)
        slots = asyncio.Semaphore(_MAX_CONCURRENT)

        async def send(call: Call[Any]) -> Any:
            await slots.acquire()
            result: Any = await AsyncRetrying(**self.endpoint.retries)(self._send_once, call)
            slots.release()  # not after a failure, so that no other call starts
            bar.add(call)
            return result

        tasks = [asyncio.ensure_future(send(call)) for call in calls]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _send_once(self, call: Call[T]) -> T:
        """Send a call once; ``AsyncRetrying`` retries it."""
        if self._http.is_closed:
            raise self.endpoint.closed(call)
        steps = self.endpoint.exchange(call)
        request = next(steps)
        while True:
            reply = await self._exchange(request)
            try:
                request = steps.send(reply)
            except StopIteration as end:
                result: T = end.value
                return result

    async def _exchange(self, request: Request) -> Reply:
        try:
            async with self._http.stream(**_arguments(request, self.endpoint)) as response:
                content = bytearray()
                async for chunk in response.aiter_bytes():
                    content += chunk
                return Reply(response.status_code, response.headers, content)
        except httpx.RequestError as error:
            raise self.endpoint.transport_error(request, error) from error


def _arguments(request: Request, endpoint: Endpoint) -> Mapping[str, Any]:
    """Return the arguments of httpx for a request."""
    return {
        "method": request.method,
        "url": request.path,
        "content": request.content,
        "headers": request.headers,
        "timeout": endpoint.timeout,
    }
