"""Messages between processes over a stream socket: pickles of protocol 5, with large arrays out of band.

    length of the pickle (8 bytes), number of buffers (4), length of each buffer (8 each), pickle, buffers

The buffers are the memory of the arrays: written without a copy, and received into memory that the arrays then use.
Both ends run this program on this machine, so the pickles are trusted.
"""

from __future__ import annotations

import pickle
import socket
import struct
from typing import Any

__all__ = ["receive", "send"]

_PREFIX = struct.Struct("<QI")

_OUT_OF_BAND_BYTES = 2**15
"""Size in bytes from which a buffer is sent by its own system call, which then costs less than a copy."""


def send(connection: socket.socket, message: Any) -> None:
    """Send a message.

    Raises:
        OSError: the other end is closed.
    """
    views: list[memoryview] = []

    def in_band(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes < _OUT_OF_BAND_BYTES:
            return True
        views.append(view)
        return False

    data = pickle.dumps(message, protocol=5, buffer_callback=in_band)
    sizes = struct.pack(f"<{len(views)}Q", *(view.nbytes for view in views))
    connection.sendall(b"".join((_PREFIX.pack(len(data), len(views)), sizes, data)))
    for view in views:
        connection.sendall(view)


def receive(connection: socket.socket) -> Any:
    """Wait for a message; its arrays are writable.

    Raises:
        EOFError: the other end closed the connection.
        OSError: the connection failed.
    """
    length, count = _PREFIX.unpack(_read(connection, _PREFIX.size))
    sizes = struct.unpack(f"<{count}Q", _read(connection, 8 * count))
    data = _read(connection, length)
    return pickle.loads(data, buffers=[_read(connection, size) for size in sizes])


def _read(connection: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    rest = memoryview(data)
    while rest:
        count = connection.recv_into(rest)
        if not count:
            raise EOFError("the other process closed the connection")
        rest = rest[count:]
    return data
