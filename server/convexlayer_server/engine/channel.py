"""Messages between processes over a stream socket: pickled, arrays out of band, nothing copied twice.

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


def send(connection: socket.socket, message: Any) -> None:
    """Write a message.

    Raises:
        OSError: the other end is gone.
    """
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
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
