"""The one table of problem families of the tests, by name."""

from __future__ import annotations

from . import canonical, smooth
from .family import Family, Tensors, duals

__all__ = ["CANONICAL", "SMOOTH", "Family", "Tensors", "duals", "family"]

BUILDERS = {
    builder.__name__: builder
    for builder in (
        smooth.least_squares,
        smooth.simplex_projection,
        smooth.quadratic,
        smooth.parametric_quad_form,
        smooth.portfolio,
        smooth.logistic_regression,
        smooth.entropy_maximisation,
        smooth.nearest_correlation,
        smooth.sdp_relaxation,
        smooth.geometric_program,
        smooth.power_utility,
        smooth.control,
        smooth.lasso,
        smooth.linear_program,
        smooth.least_norm,
        canonical.quadratic_program,
        canonical.without_rows,
        canonical.second_order,
        canonical.semidefinite,
        canonical.psd_variable,
        canonical.exponential,
        canonical.exponential_cone_constraint,
        canonical.geometric_mean,
        canonical.power_cone_constraint,
        canonical.power_cone_nd,
        canonical.geometric_exponent,
        canonical.attribute_parameters,
        canonical.attribute_variables,
        canonical.parametric_bounds,
        canonical.nonlinear_in_parameters_alone,
        canonical.huber_regression,
        canonical.constraint_in_parameters_alone,
        canonical.unused_parameter,
        canonical.no_parameters,
        canonical.constant_objective,
        canonical.objective_in_parameters_alone,
        canonical.empty_parameter,
        canonical.variable_without_effect,
    )
}

SMOOTH = tuple(name for name, builder in BUILDERS.items() if builder.__module__ == smooth.__name__)
"""Families that are drawn at points at which their solution maps are smooth."""

CANONICAL = ("parametric_quad_form", "power_utility", *(name for name in BUILDERS if name not in SMOOTH))
"""Families that together cover all parts of the canonicalisation."""


def family(name: str) -> Family:
    """Build the family of this name."""
    return BUILDERS[name]()
