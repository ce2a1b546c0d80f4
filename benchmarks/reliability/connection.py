"""A non-blocking connection, for use with a selector."""

from __future__ import annotations

import selectors
import socket
from typing import final

__all__ = ["Connection"]

_CHUNK_BYTES = 2**16
"""Bytes read at a time."""


@final
class Connection:
    """A non-blocking TCP connection, registered with a selector.

    Args:
        selector: the selector; the connection is the data of its key.
        address: address of the server.
        source: source address; by default the system chooses.
        buffer_bytes: size of the receive buffer; by default the system chooses.
        reads: whether to select for reading.
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
        self._socket.connect_ex(address)  # errors show later

    def send(self, data: bytes) -> None:
        """Start sending data.

        Raises:
            OSError: the connection is lost.
            ValueError: earlier data is still being sent.
        """
        if self._pending:
            raise ValueError("earlier data is still being sent")
        self._pending = memoryview(data)
        self.flush()

    @property
    def sending(self) -> bool:
        """Whether data is still being sent."""
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
        """Return received data; None if there is none, ``b""`` if the server has closed the connection.

        Raises:
            OSError: the connection is lost.
        """
        try:
            return self._socket.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return None

    def close(self) -> None:
        """Close the connection."""
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
