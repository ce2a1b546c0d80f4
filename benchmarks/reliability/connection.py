"""A connection that never waits: what it cannot send now it sends when the selector says so."""

from __future__ import annotations

import selectors
import socket
from typing import final

__all__ = ["Connection"]

_CHUNK_BYTES = 2**16


@final
class Connection:
    """A TCP connection without waiting, known to a selector.

    Args:
        selector: what tells when it can be read or written; the connection is the data of its key.
        address: of the server.
        source: address to come from; the system's choice unless given.
        buffer_bytes: of what has arrived and is not read yet, as the system keeps it; its own choice unless given.
        reads: whether the selector tells of what has arrived.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        address: tuple[str, int],
        *,
        source: str | None = None,
        buffer_bytes: int | None = None,
        reads: bool = True,
    ) -> None:
        self._selector = selector
        self._reads = selectors.EVENT_READ if reads else 0
        self._pending = memoryview(b"")
        self._watched = 0
        self._socket = socket.socket()
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if buffer_bytes is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        if source is not None:
            self._socket.bind((source, 0))
        self._socket.connect_ex(address)  # whether that comes to anything shows later

    def send(self, data: bytes) -> None:
        """Send this, after all that was to be sent before has gone.

        Raises:
            OSError: the connection is lost.
            ValueError: something is still to be sent.
        """
        if self._pending:
            raise ValueError("something is still to be sent")
        self._pending = memoryview(data)
        self.flush()

    @property
    def sending(self) -> bool:
        """Whether something is still to be sent."""
        return bool(self._pending)

    def flush(self) -> None:
        """Send what can be sent now.

        Raises:
            OSError: the connection is lost.
        """
        try:
            while self._pending:
                self._pending = self._pending[self._socket.send(self._pending) :]
        except BlockingIOError:
            pass
        self._watch(self._reads | (selectors.EVENT_WRITE if self._pending else 0))

    def receive(self) -> bytes | None:
        """What has arrived; None where nothing has, and nothing at all (``b""``) where the server has closed.

        Raises:
            OSError: the connection is lost.
        """
        try:
            return self._socket.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return None

    def close(self) -> None:
        """Close it, whatever is under way."""
        self._watch(0)
        self._socket.close()

    def _watch(self, events: int) -> None:
        if events == self._watched:
            return
        if not self._watched:
            self._selector.register(self._socket, events, self)
        elif not events:
            self._selector.unregister(self._socket)
        else:
            self._selector.modify(self._socket, events, self)
        self._watched = events
