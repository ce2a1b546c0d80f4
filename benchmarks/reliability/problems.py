"""Problem documents for the measurements, and request bodies with random parameters."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

import convexlayer
from convexlayer_server import Settings
from convexlayer_server.compute.canonical import canonicalise_document
from convexlayer_server.documents import identify
from convexlayer_server.documents.grammar import Grammar
from convexlayer_server.encodings.arrays import Array

__all__ = [
    "HARD",
    "body",
    "dense_batch",
    "dense_qp",
    "dense_values",
    "heavy_bodies",
    "heavy_qp",
    "heavy_values",
    "least_squares",
    "line",
    "many_cones",
    "nearest_correlation",
    "portfolio",
    "solution_map",
    "values_of",
]

Values = dict[str, Array]

HARD = {"solver": "scs", "tol": 1e-15, "max_iter": 1_000_000}
"""Options with which one element of ``heavy_qp()`` takes a minute: SCS never reaches the tolerance."""

_HEAVY_SIZE = 400
"""Variables of ``heavy_qp``, so that a solve takes 20 ms."""

_HEAVY_BODIES = 16
"""Different requests of ``heavy_qp``, which clients send in turn."""


def dense_qp(size: int = 10) -> dict[str, Any]:
    """A dense quadratic program with as many inequalities as variables; q and h are parameters."""
    rng = np.random.default_rng(size)
    root = rng.standard_normal((size, size))
    return {
        "kind": "expression",
        "parameters": {"q": {"shape": [size]}, "h": {"shape": [size]}},
        "variables": {"x": {"shape": [size]}},
        "constants": {"P": (root @ root.T + np.eye(size)).tolist(), "G": rng.standard_normal((size, size)).tolist()},
        "minimize": "0.5 * quad_form(x, P) + q @ x",
        "subject_to": ["G @ x <= h"],
    }


def dense_values(seed: int, size: int = 10) -> Values:
    """Return parameters of the problem above."""
    rng = np.random.default_rng(seed)
    return {"q": rng.standard_normal(size), "h": rng.uniform(0.1, 1.0, size)}


def dense_batch(seed: int, batch: int, size: int = 10) -> Values:
    """Return a batch of parameters of ``dense_qp``."""
    rng = np.random.default_rng(seed)
    return {"q": rng.standard_normal((batch, size)), "h": rng.uniform(0.1, 1.0, (batch, size))}


def least_squares() -> dict[str, Any]:
    """Least squares on the simplex, (30, 15), whose parameters are 10 kB of JSON."""
    return {
        "kind": "expression",
        "parameters": {"A": {"shape": [30, 15]}, "b": {"shape": [30]}},
        "variables": {"x": {"shape": [15]}},
        "minimize": "sum_squares(A @ x - b)",
        "subject_to": ["x >= 0", "sum(x) == 1"],
    }


def heavy_qp(size: int = _HEAVY_SIZE) -> dict[str, Any]:
    """A slow sparse problem: total variation of a signal of length ``size``, within bounds."""
    return {
        "kind": "expression",
        "parameters": {"b": {"shape": [size]}},
        "variables": {"x": {"shape": [size]}},
        "minimize": "sum_squares(x - b) + norm1(diff(x))",
        "subject_to": ["x >= -1", "x <= 1"],
    }


def heavy_values(seed: int, size: int = _HEAVY_SIZE) -> Values:
    """Return parameters of the problem above: a random walk."""
    return {"b": np.cumsum(np.random.default_rng(seed).standard_normal(size)) / 5.0}


def heavy_bodies(size: int = _HEAVY_SIZE, **others: Any) -> list[bytes]:
    """Return different request bodies of the problem above."""
    return [body(heavy_values(seed, size), **others) for seed in range(_HEAVY_BODIES)]


def portfolio(size: int, factors: int) -> dict[str, Any]:
    """Markowitz with a factor model, long only; the expected returns are the parameter."""
    rng = np.random.default_rng(size)
    return {
        "kind": "expression",
        "parameters": {"mu": {"shape": [size]}},
        "variables": {"w": {"shape": [size]}},
        "constants": {
            "F": (rng.standard_normal((factors, size)) / np.sqrt(factors)).tolist(),
            "d": rng.uniform(0.1, 1.0, size).tolist(),
        },
        "minimize": "sum_squares(F @ w) + sum_squares(multiply(d, w)) - mu @ w",
        "subject_to": ["w >= 0", "sum(w) == 1", "w <= 0.1"],
    }


def nearest_correlation(size: int) -> dict[str, Any]:
    """The nearest correlation matrix, a semidefinite program."""
    return {
        "kind": "expression",
        "parameters": {"A": {"shape": [size, size]}},
        "variables": {"X": {"shape": [size, size], "symmetric": True}},
        "minimize": "sum_squares(X - A)",
        "subject_to": ["X >> 0", "diag(X) == 1"],
    }


def many_cones(count: int, seed: int) -> dict[str, Any]:
    """A small document that is slow to canonicalise, different for each seed."""
    return {
        "kind": "expression",
        "parameters": {"b": {"shape": [8]}},
        "variables": {"x": {"shape": [8]}},
        "constants": {"c": float(seed)},
        "minimize": "sum_squares(x - b)",
        "subject_to": [f"norm(x - {number} * b, 2) <= c + {number}" for number in range(count)],
    }


def line(size: int, **others: Any) -> dict[str, Any]:
    """A problem with small requests (the number t) and large responses; x may follow t * c."""
    return {
        "kind": "expression",
        "parameters": {"t": {"shape": []}},
        "variables": {"x": {"shape": [size]}},
        "constants": {"c": np.random.default_rng(size).standard_normal(size).tolist()},
        **others,
    }


def solution_map(document: dict[str, Any]) -> convexlayer.SolutionMap:
    """Return the solution map of a document in this process: the library without the service."""
    settings = Settings()
    read = identify(json.dumps(document).encode(), settings)
    return canonicalise_document(read.id, read.text, Grammar(settings), settings).solution_map("auto")


def values_of(document: dict[str, Any], seed: int) -> Values:
    """Return normally distributed parameters of a document."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(entry["shape"]) for name, entry in document["parameters"].items()}


def body(values: Values, **others: Any) -> bytes:
    """Return a request body, with arrays as lists."""
    return json.dumps({"parameters": {name: value.tolist() for name, value in values.items()}, **others}).encode()
