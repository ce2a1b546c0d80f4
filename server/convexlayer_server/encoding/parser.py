"""JSON bodies read without keeping the event loop waiting: small ones at once, large ones by another process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, final

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from . import packing
from .packing import PREFIX_BYTES, MalformedError, Mode, load

__all__ = ["AT_ONCE_BYTES", "JsonParser"]

_LOG = logging.getLogger(__name__)

AT_ONCE_BYTES = 2**17
"""Up to here a body is read in less time than other requests notice: 3 ms at the most."""

_TIME_LIMIT_S = 30.0


@final
class _Process:
    """The other process, and the socket to it."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        # One thread for linear algebra, which it has no use for: more would each reserve memory.
        environment: Mapping[str, str] = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", packing.__file__],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # an interrupt from the keyboard is for the server, which closes it
            )
        self._socket.setblocking(False)

    async def ask(self, text: bytes | bytearray, mode: Mode) -> bytearray:
        """The pickled outcome for a text."""
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self._socket, (1 + len(text)).to_bytes(PREFIX_BYTES, "little") + mode[:1].encode())
        await loop.sock_sendall(self._socket, text)
        return await self._received(int.from_bytes(await self._received(PREFIX_BYTES), "little"))

    async def _received(self, size: int) -> bytearray:
        message = bytearray(size)
        view = memoryview(message)
        while view:
            count = await asyncio.get_running_loop().sock_recv_into(self._socket, view)
            if not count:
                raise EOFError("the process that reads JSON ended")
            view = view[count:]
        return message

    def stop(self) -> None:
        """End the process, whatever it does."""
        self._socket.close()
        self._process.kill()
        self._process.wait()


@final
class JsonParser:
    """Reads JSON texts; the process for large ones is started with the first of them, and replaced when it fails.

    It reads one text at a time.
    """

    def __init__(self) -> None:
        self._process: _Process | None = None
        self._turn = asyncio.Lock()

    async def parse(self, text: bytes | bytearray, mode: Mode) -> Any:
        """The value of a text, with arrays in place of large lists of numbers if the text is large.

        Raises:
            MalformedError: the text is not JSON, or holds too much beside arrays.
            HTTPException: 503, it cannot be read now.
        """
        if len(text) <= AT_ONCE_BYTES:
            return load(text)
        async with self._turn:
            kind, value = await run_in_threadpool(pickle.loads, await self._outcome(text, mode))
        if kind == "malformed":
            raise MalformedError(value)
        return value

    async def _outcome(self, text: bytes | bytearray, mode: Mode) -> bytearray:
        done = False
        try:
            if self._process is None:
                self._process = _Process()  # at once, a matter of a millisecond: nothing is half started
            async with asyncio.timeout(_TIME_LIMIT_S):
                outcome = await self._process.ask(text, mode)
            done = True
            return outcome
        except (OSError, EOFError) as error:  # TimeoutError is an OSError
            _LOG.warning("a body of %d bytes could not be read: %r", len(text), error)
            detail = "the process that reads large JSON bodies failed and is replaced; try again"
            raise HTTPException(503, detail, {"Retry-After": "1"}) from error
        finally:
            if not done:  # given up in the middle of a message, too
                self.close()

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(OSError):
                process.stop()
