"""Nodes with a hand-written solution and pullback: projections, least squares, transport, eigenvectors, poses."""

from convexlayer.nodes.closed_form.base import ClosedForm
from convexlayer.nodes.closed_form.eigen import eigen_decomposition
from convexlayer.nodes.closed_form.least_squares import least_squares, weighted_least_squares
from convexlayer.nodes.closed_form.penalties import (
    AbstractPenalty,
    Huber,
    PseudoHuber,
    Quadratic,
    TruncatedQuadratic,
    Welsch,
)
from convexlayer.nodes.closed_form.pose import perspective_n_point, rotation_of
from convexlayer.nodes.closed_form.procrustes import nearest_simplex_etf, orthogonal_procrustes, simplex_etf
from convexlayer.nodes.closed_form.projections import (
    project_l1_ball,
    project_l1_sphere,
    project_l2_ball,
    project_l2_sphere,
    project_linf_ball,
    project_linf_sphere,
    project_simplex,
)
from convexlayer.nodes.closed_form.robust_pooling import robust_pool
from convexlayer.nodes.closed_form.transport import optimal_transport

__all__ = [
    "AbstractPenalty",
    "ClosedForm",
    "Huber",
    "PseudoHuber",
    "Quadratic",
    "TruncatedQuadratic",
    "Welsch",
    "eigen_decomposition",
    "least_squares",
    "nearest_simplex_etf",
    "optimal_transport",
    "orthogonal_procrustes",
    "perspective_n_point",
    "project_l1_ball",
    "project_l1_sphere",
    "project_l2_ball",
    "project_l2_sphere",
    "project_linf_ball",
    "project_linf_sphere",
    "project_simplex",
    "robust_pool",
    "rotation_of",
    "simplex_etf",
    "weighted_least_squares",
]
