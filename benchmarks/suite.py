"""Registry of the problems by name; every access builds a new copy."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import allocation, fitting, large, small
from benchmarks.problem import Problem

__all__ = ["HELD_OUT", "LARGE", "SMALL", "make", "marked"]

HELD_OUT: dict[str, Callable[[], Problem]] = {
    "group_lasso_12": lambda: fitting.group_lasso(4, 16),
    "group_lasso_48": lambda: fitting.group_lasso(16, 60),
    "quantile_regression_3x10": lambda: fitting.quantile_regression(3, 10),
    "quantile_regression_8x30": lambda: fitting.quantile_regression(8, 30),
    "isotonic_regression_12": lambda: fitting.isotonic_regression(12),
    "isotonic_regression_50": lambda: fitting.isotonic_regression(50),
    "matrix_completion_3x4": lambda: fitting.matrix_completion(3, 4),
    "matrix_completion_6x8": lambda: fitting.matrix_completion(6, 8),
    "d_optimal_design_10": lambda: fitting.d_optimal_design(10, 3),
    "d_optimal_design_30": lambda: fitting.d_optimal_design(30, 5),
    "robust_least_squares_8": lambda: fitting.robust_least_squares(8, 20),
    "robust_least_squares_40": lambda: fitting.robust_least_squares(40, 80),
    "support_vector_machine_4x10": lambda: fitting.support_vector_machine(4, 10),
    "support_vector_machine_10x40": lambda: fitting.support_vector_machine(10, 40),
    "kelly_8": lambda: allocation.kelly(8, 20),
    "kelly_30": lambda: allocation.kelly(30, 60),
    "gate_sizing_6": lambda: allocation.gate_sizing(6),
    "gate_sizing_30": lambda: allocation.gate_sizing(30),
    "chance_constrained_8": lambda: allocation.chance_constrained(8, 4),
    "chance_constrained_30": lambda: allocation.chance_constrained(30, 6),
    "power_flow_3": lambda: allocation.power_flow(3),
    "power_flow_10": lambda: allocation.power_flow(10),
    "transport_3": lambda: allocation.transport(3),
    "transport_10": lambda: allocation.transport(10),
    "network_utility_8": lambda: allocation.network_utility(8, 4),
    "network_utility_40": lambda: allocation.network_utility(40, 15),
}
"""Problems in batches that the library is measured on but not tuned for."""

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
    **HELD_OUT,
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


def marked(name: str) -> str:
    """The name in tables and figures: a star marks the problems held out."""
    return f"{name} *" if name in HELD_OUT else name
