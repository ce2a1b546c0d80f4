"""The problem of most tests of the client, its parameters and its solution."""

from __future__ import annotations

from typing import Any

import numpy as np

DOCUMENT: dict[str, Any] = {
    "kind": "expression",
    "parameters": {"a": {"shape": [3]}, "radius": {"pos": True}},
    "variables": {"x": {"shape": [3]}},
    "minimize": "sum_squares(x - a)",
    "subject_to": ["norm(x) <= radius", "x[0] == 0.5"],
}


THETA: dict[str, Any] = {"a": np.array([[3.0, 4.0, 0.0], [0.0, 0.1, 0.2]]), "radius": 1.0}


def expected(a: np.ndarray) -> np.ndarray:
    """Projection to the disc of radius sqrt(1 - 0.25) in the last two coordinates."""
    tail, limit = a[1:], np.sqrt(0.75)
    return np.concatenate([[0.5], tail * min(1.0, limit / np.linalg.norm(tail))])
