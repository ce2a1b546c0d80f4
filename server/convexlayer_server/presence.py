"""Work that is given up where nobody waits for it any more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from fastapi import Request

from .errors import CallerLeftError

__all__ = ["while_waited_for"]

_T = TypeVar("_T")

_SOON_S = 0.25
"""From here on a connection is watched; most work is done before, and to watch takes a task for each request."""


async def while_waited_for(request: Request, work: Awaitable[_T]) -> _T:
    """What becomes of work, unless the caller closes the connection before.

    Args:
        request: the request, its body read.
        work: what to do for it.

    Raises:
        CallerLeftError: the connection was closed; the work was cancelled.
    """
    loop = asyncio.get_running_loop()
    working = asyncio.ensure_future(work)
    watching: list[asyncio.Task[None]] = []
    timer = loop.call_later(_SOON_S, lambda: watching.append(loop.create_task(_watch(request, working))))
    try:
        return await working
    except asyncio.CancelledError as error:
        if watching and watching[0].done():
            raise CallerLeftError("the connection was closed before the answer was ready") from error
        raise
    finally:
        timer.cancel()
        for task in watching:
            task.cancel()


async def _watch(request: Request, working: asyncio.Future[_T]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    working.cancel()
