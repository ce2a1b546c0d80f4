"""Cancellation of requests whose client disconnects."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self, final

from starlette.types import Message, Receive, Send

from ..errors import ClientDisconnectedError, shutting_down

__all__ = ["CancelOnDisconnect"]

_GRACE_S = 0.25
"""Seconds after the body from which the connection is watched.

Most requests are done earlier, and watching takes a task.
"""


@final
class CancelOnDisconnect:
    """A context manager that cancels its body when the client disconnects, as ``asyncio.timeout`` does after a time.

    It watches the connection from the last byte of the request, or the first of the response, to the last byte of the
    response. Before that, the coroutine that receives the body notices a disconnect itself.

    Args:
        receive: ``receive`` of the server (ASGI).
        send: ``send`` of the server (ASGI).
    """

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._disconnected = False
        self._responding = False

    async def receive(self) -> Message:
        """Receive a message (ASGI)."""
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self._timer = self._loop.call_later(_GRACE_S, self._start_watching)
        return message

    async def send(self, message: Message) -> None:
        """Send a message (ASGI)."""
        self._responding = True
        if message["type"] == "http.response.body":
            if not message.get("more_body", False):
                self._stop_watching()
            elif self._watcher is None:
                self._start_watching()
        await self._send(message)
        if message.get("more_body", False):
            await asyncio.sleep(0)  # sending may not suspend: let other tasks run, and the watcher see a disconnect

    async def __aenter__(self) -> Self:
        self._task = asyncio.current_task()
        assert self._task is not None
        self._cancelling = self._task.cancelling()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Raise ClientDisconnectedError if a disconnect cancelled the body.

        Raise UnavailableError if something else cancelled it, such as a server that shuts down, before the response
        started: the client can still receive it.
        """
        self._stop_watching()
        cancelled = kind is asyncio.CancelledError
        if self._task is None or not (self._disconnected or (cancelled and not self._responding)):
            return
        cancelled_again = self._task.uncancel() > self._cancelling
        if cancelled and not cancelled_again:
            if self._disconnected:
                raise ClientDisconnectedError("the client disconnected before the response was ready") from error
            raise shutting_down() from error

    def _start_watching(self) -> None:
        self._stop_watching()
        self._watcher = self._loop.create_task(self._watch())

    def _stop_watching(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._disconnected = True
        assert self._task is not None
        self._task.cancel()
