"""Arrays in JSON: ``{"dtype", "shape", "b64"}`` with little-endian bytes, or nested lists with null for NaN."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from convexlayer_client.errors import ProtocolError

__all__ = ["Array", "decode", "encode"]

Array = NDArray[np.float64]


def encode(values: ArrayLike) -> dict[str, Any]:
    """Encode an array in base64, in double precision and without loss."""
    array = np.asarray(values, dtype="<f8")
    data = base64.b64encode(array.tobytes()).decode("ascii")
    return {"dtype": "<f8", "shape": list(array.shape), "b64": data}


def decode(value: Any) -> Array:
    """Decode an array from either form.

    Raises:
        ProtocolError: The value is not an array.
    """
    try:
        if isinstance(value, dict):
            data = np.frombuffer(base64.b64decode(value["b64"], validate=True), dtype=np.dtype(value["dtype"]))
            return data.reshape(value["shape"]).astype(np.float64)
        return np.array(value, dtype=np.float64)
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise ProtocolError(f"the server sent something that is not an array: {error}") from error
