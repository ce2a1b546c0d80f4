"""Logarithm and exponential of SIMD vectors, accurate to one or two units in the last place."""

from __future__ import annotations

from typing import Any

from convexlayer.runtime.inner_function import inner_function
from convexlayer.runtime.simd import pow2, split, where

__all__ = ["expm1", "log", "log1p"]

LN2_HIGH, LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
"""Their sum is ln 2 (fdlibm); the first ends in zero bits, so that its products with exponents are exact."""

INVERSE_LN2 = 1.4426950408889634
"""1 / ln 2."""

ROUNDING_SHIFT = 6755399441055744.0
"""1.5 2^52: adding and subtracting it rounds to the nearest integer."""


@inner_function
def _log_near_one(f: Any) -> Any:
    """log(1 + f) - f for sqrt(1/2) <= 1 + f < sqrt 2.

    With r = f / (2 + f): log(1 + f) = 2 atanh(r) = 2 r + 2 r^3 / 3 + 2 r^5 / 5 + ..., and 2 r = f - r f. The series is
    cut where its terms fall below 1e-17 (r^2 <= 0.0295).
    """
    r = f / (2.0 + f)
    z = r * r
    tail = 2.0 / 13.0 + z * (2.0 / 15.0 + z * (2.0 / 17.0 + z * (2.0 / 19.0 + z * (2.0 / 21.0))))
    tail = 2.0 / 3.0 + z * (2.0 / 5.0 + z * (2.0 / 7.0 + z * (2.0 / 9.0 + z * (2.0 / 11.0 + z * tail))))
    half = 0.5 * f * f
    return r * (half + z * tail) - half


@inner_function
def log(x: Any) -> Any:
    """Natural logarithm of normal numbers x > 0; unspecified for other x."""
    mantissa, exponent = split(x)
    f = mantissa - 1.0
    return exponent * LN2_HIGH + (f + (_log_near_one(f) + exponent * LN2_LOW))


@inner_function
def log1p(x: Any) -> Any:
    """log(1 + x) for x >= 0, with full relative precision near 0; unspecified for negative x."""
    total = 1.0 + x
    mantissa, exponent = split(total)
    small = exponent < 0.5
    f = where(small, x, mantissa - 1.0)
    lost = where(small, 0.0, (x - (total - 1.0)) / total)
    return exponent * LN2_HIGH + (f + (_log_near_one(f) + (lost + exponent * LN2_LOW)))


@inner_function
def expm1(x: Any) -> Any:
    """exp(x) - 1 for 0 <= x <= 700, with full relative precision near 0; unspecified for other x.

    With x = k ln 2 + r, abs(r) <= ln(2) / 2: 2^k (exp(r) - 1) + (2^k - 1), with exp(r) - 1 from its Taylor series.
    """
    exponent = (x * INVERSE_LN2 + ROUNDING_SHIFT) - ROUNDING_SHIFT
    r = (x - exponent * LN2_HIGH) - exponent * LN2_LOW
    tail = 1.0 + r * (1 / 10) * (1.0 + r * (1 / 11) * (1.0 + r * (1 / 12) * (1.0 + r * (1 / 13))))
    tail = 1.0 + r * (1 / 6) * (1.0 + r * (1 / 7) * (1.0 + r * (1 / 8) * (1.0 + r * (1 / 9) * tail)))
    tail = 1.0 + r * (1 / 3) * (1.0 + r * (1 / 4) * (1.0 + r * (1 / 5) * tail))
    scale = pow2(exponent)
    return scale * (r + 0.5 * r * r * tail) + (scale - 1.0)
