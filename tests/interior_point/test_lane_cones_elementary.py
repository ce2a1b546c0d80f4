"""Logarithm and exponential in lanes against NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numba import njit

from convexlayer.interior_point.lanes.elementary import expm1, log, log1p
from convexlayer.linalg.simd import load, store

LANES = (0.0,) * 8


@njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def apply(lanes: Any, function: Any, x: Any, out: Any) -> None:
    for row in range(len(x)):
        store(out, row, function(load(lanes, x, row)))


def samples(low: float, high: float) -> Any:
    rng = np.random.default_rng(0)
    return np.exp(rng.uniform(np.log(low), np.log(high), size=(500, 8)))


@pytest.mark.parametrize(
    ("function", "reference", "x"),
    [
        (log, np.log, samples(1e-300, 1e300)),
        (log, np.log, 1 + np.linspace(-1, 1, 4000).reshape(500, 8) ** 9 * 0.999),
        (log1p, np.log1p, samples(1e-300, 1e300)),
        (log1p, np.log1p, samples(1e-3, 1e1)),
        (expm1, np.expm1, samples(1e-300, 700)),
        (expm1, np.expm1, samples(1e-3, 1e1)),
    ],
)
def test_elementary_function_matches_numpy(function: Any, reference: Any, x: Any) -> None:
    out = np.empty_like(x)
    apply(LANES, function, x, out)
    np.testing.assert_allclose(out, reference(x), rtol=4e-16)
