"""Messages between processes over a stream socket: pickled, large arrays out of band, so that they are not copied.

    length of the head (8 bytes), number of buffers (4), length of each buffer (8 each), head, buffers

The head is a pickle of protocol 5; the buffers are the memory of the arrays in it, written from where it lies and read
to where it stays. Both ends are this program, on this machine.
"""

from __future__ import annotations

import pickle
import socket
import struct
from typing import Any

__all__ = ["receive", "send"]

_START = struct.Struct("<QI")

_LARGE_BYTES = 2**15
"""From this size on, copying costs more than another call of the system."""


def send(connection: socket.socket, message: Any) -> None:
    """Write a message.

    Raises:
        OSError: the other end is gone.
    """
    views: list[memoryview] = []

    def within_the_head(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes < _LARGE_BYTES:
            return True
        views.append(view)
        return False

    head = pickle.dumps(message, protocol=5, buffer_callback=within_the_head)
    sizes = struct.pack(f"<{len(views)}Q", *(view.nbytes for view in views))
    connection.sendall(b"".join((_START.pack(len(head), len(views)), sizes, head)))
    for view in views:
        connection.sendall(view)


def receive(connection: socket.socket) -> Any:
    """Wait for a message; its arrays may be written to.

    Raises:
        EOFError: the other end is gone.
        OSError: as before.
    """
    length, count = _START.unpack(_read(connection, _START.size))
    sizes = struct.unpack(f"<{count}Q", _read(connection, 8 * count))
    head = _read(connection, length)
    return pickle.loads(head, buffers=[_read(connection, size) for size in sizes])


def _read(connection: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    rest = memoryview(data)
    while rest:
        count = connection.recv_into(rest)
        if not count:
            raise EOFError("the other process is gone")
        rest = rest[count:]
    return data
