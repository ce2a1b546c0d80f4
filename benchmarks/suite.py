"""Registry of the problems by name; every access builds a new copy."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import large, small
from benchmarks.problem import Problem

__all__ = ["LARGE", "SMALL", "make"]

SMALL: dict[str, Callable[[], Problem]] = {
    "simplex": small.simplex,
    "dense_qp_10": lambda: small.dense_qp(10, 10, 1),
    "dense_qp_50": lambda: small.dense_qp(50, 50, 10),
    "dense_qp_100": lambda: small.dense_qp(100, 100, 20),
    "portfolio": small.portfolio,
    "control": small.control,
    "correlation": small.correlation,
    "entropy": small.entropy,
    "logistic": small.logistic,
    "lipmwalk": lambda: small.robotics("lipmwalk"),
    "whlipbal": lambda: small.robotics("whlipbal"),
    "parametric_factor": small.parametric_factor,
    "parametric_quad_form": small.parametric_quad_form,
}
"""Problems that are solved in batches."""

LARGE: dict[str, Callable[[], Problem]] = {
    "factor_portfolio_2000": large.factor_portfolio,
    "lasso_300x600": large.lasso,
    "control_200": large.control_large,
    "maximum_cut_40": large.maximum_cut,
}
"""Problems that are solved with batch size 1."""


def make(name: str) -> Problem:
    """A new copy of the problem of this name."""
    return (SMALL | LARGE)[name]()
