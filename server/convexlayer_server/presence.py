"""Work and answers that are given up where nobody waits for them any more."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self, final

from starlette.types import Message, Receive, Send

from .errors import CallerLeftError, UnavailableError

__all__ = ["Presence"]

_SOON_S = 0.25
"""Work that takes longer is watched; most is done before, and to watch takes a task for each request."""


@final
class Presence:
    """Watches a request's connection from the last byte of the body, or the first of an answer, to the last of that.

    A context manager like ``asyncio.timeout``: where the caller leaves, what is awaited within is cancelled. While the
    body comes, whoever reads it notices by itself.

    Args:
        receive: what the server gave (ASGI).
        send: as before.
    """

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._timer: asyncio.TimerHandle | None = None
        self._watching: asyncio.Task[None] | None = None
        self._left = False
        self._answering = False

    async def receive(self) -> Message:
        """The next message (ASGI)."""
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self._timer = self._loop.call_later(_SOON_S, self._begin)
        return message

    async def send(self, message: Message) -> None:
        """Send a message (ASGI)."""
        self._answering = True
        if message["type"] == "http.response.body":
            if not message.get("more_body", False):
                self._end()
            elif self._watching is None:
                self._begin()
        await self._send(message)
        if message.get("more_body", False):
            await asyncio.sleep(0)  # sending need not wait; so others have their turn, and a caller who left is noticed

    async def __aenter__(self) -> Self:
        self._task = asyncio.current_task()
        assert self._task is not None
        self._cancelling = self._task.cancelling()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raise CallerLeftError where what was within was cancelled for that.

        Raise UnavailableError where it was cancelled from outside, as by a server that will wait no longer, while it
        can still be answered.
        """
        self._end()
        cancelled = kind is asyncio.CancelledError
        if self._task is None or not (self._left or (cancelled and not self._answering)):
            return
        others = self._task.uncancel() > self._cancelling
        if cancelled and not others:
            if self._left:
                raise CallerLeftError("the connection was closed before the answer was ready") from error
            raise UnavailableError("the server is shutting down", retry_after_s=1.0) from error

    def _begin(self) -> None:
        self._end()
        self._watching = self._loop.create_task(self._watch())

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._watching is not None:
            self._watching.cancel()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left = True
        assert self._task is not None
        self._task.cancel()
