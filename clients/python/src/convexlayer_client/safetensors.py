"""Bodies as safetensors: arrays in binary, everything else as JSON in the metadata.

    8 bytes    N, little-endian
    N bytes    JSON: {"__metadata__": {"body": "{...}"}, "parameters/A": {"dtype", "shape", "data_offsets"}, ...}
    the rest   the arrays, little-endian, one after another

The array ``parameters/A`` corresponds to ``body["parameters"]["A"]`` of a JSON body. Reading copies no array.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from convexlayer_client.arrays import Array
from convexlayer_client.errors import ProtocolError

__all__ = ["MEDIA_TYPE", "read", "size_bytes", "write"]

MEDIA_TYPE = "application/vnd.convexlayer+safetensors"

_LENGTH_BYTES = 8
"""Bytes of the header's length, by the format."""

_METADATA = "__metadata__"
_DTYPES = {"F64": "<f8", "F32": "<f4"}


def write(tree: Mapping[str, Any]) -> bytes:
    """Serialise a dictionary with arrays as values or one level deeper.

    Raises:
        TypeError, ValueError: The other values are not plain JSON with finite numbers.
    """
    start, arrays = _start(tree)
    return b"".join([start, *(np.ascontiguousarray(array, dtype="<f8").reshape(-1).data for array in arrays)])


def size_bytes(tree: Mapping[str, Any]) -> int:
    """Return the size of a serialised dictionary; raises as ``write`` does."""
    start, arrays = _start(tree)
    return len(start) + sum(array.nbytes for array in arrays)


def _start(tree: Mapping[str, Any]) -> tuple[bytes, list[Array]]:
    """Return the header with its length, and the non-empty arrays."""
    arrays: dict[str, Array] = {}
    fields: dict[str, Any] = {}
    for part, value in tree.items():
        if isinstance(value, np.ndarray):
            arrays[part] = value
        elif isinstance(value, Mapping):
            inside = {f"{part}/{name}": entry for name, entry in value.items() if isinstance(entry, np.ndarray)}
            arrays |= inside
            if len(inside) < len(value) or not value:
                fields[part] = {name: entry for name, entry in value.items() if f"{part}/{name}" not in inside}
        else:
            fields[part] = value
    header: dict[str, Any] = {_METADATA: {"body": json.dumps(fields, separators=(",", ":"), allow_nan=False)}}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": "F64", "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)  # aligns the arrays to doubles
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text, [array for array in arrays.values() if array.size]


def read(body: bytearray) -> dict[str, Any]:
    """Parse a body; its arrays are writable views.

    Raises:
        ProtocolError: The body does not have this form.
    """
    try:
        start = _LENGTH_BYTES + int.from_bytes(body[:_LENGTH_BYTES], "little")
        header = json.loads(body[_LENGTH_BYTES:start])
        tree: dict[str, Any] = json.loads(header.pop(_METADATA)["body"])
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            values = np.frombuffer(memoryview(body)[start + begin : start + end], dtype=_DTYPES[entry["dtype"]])
            part, _, leaf = name.partition("/")
            place, key = (tree.setdefault(part, {}), leaf) if leaf else (tree, part)
            place[key] = values.reshape(entry["shape"]).astype(np.float64, copy=False)
        return tree
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"the server sent a body that is not of {MEDIA_TYPE}: {error!r}") from error
