"""Requests of the tests of operations, and what they return."""

from __future__ import annotations

from typing import Any

import numpy as np

from convexlayer_server import Settings
from convexlayer_server.encodings.arrays import Array, decode, encode

from .conftest import AppClient

SETTINGS = Settings()


BATCH = 5


def theta(seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {"A": rng.standard_normal((4, 3)), "b": rng.standard_normal((BATCH, 4)), "lam": np.array(0.3)}


def sent(arrays: dict[str, Array], encoding: Any = "list") -> dict[str, Any]:
    return {name: encode(value, encoding) for name, value in arrays.items()}


def answered(client: AppClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = client.post(path, body)
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()
    return result


def read(value: Any) -> Array:
    return decode(value, "", SETTINGS, finite=False)


FEASIBILITY: dict[str, Any] = {
    "kind": "expression",
    "parameters": {"lower": {}, "upper": {}, "slope": {}},
    "variables": {"x": {}, "y": {}},
    "minimize": "square(x - 1) + slope * y",
    "subject_to": ["x >= lower", "x <= upper", "y >= 0"],
}
