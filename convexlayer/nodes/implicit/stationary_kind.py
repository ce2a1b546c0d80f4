"""Second-order classification of stationary points, by the Hessian on the tangent space of the active constraints."""

from __future__ import annotations

from enum import Enum

import torch

__all__ = ["Kind", "classify_stationary_points"]

NUM_DIRECTIONS = 4
"""Directions returned for points that second derivatives do not show to be minima."""

CONSTRAINT_WEIGHT = 1e4
"""Weight of J'J added to the Hessian, both with entries of 1: if the sum is positive definite, so is the Hessian on the
null space of J (Finsler's lemma). Larger weights lose digits of the Hessian."""

CURVATURE_TOL_EXPONENT = 0.75
"""Scaled curvatures below eps to this power count as zero: 2e-12 in float64."""


class Kind(str, Enum):
    """Kind of a stationary point, by the Hessian of the Lagrangian on the tangent space.

    ``MINIMUM`` and ``MAXIMUM`` are strict. ``DEGENERATE``: the Hessian has zero eigenvalues and no negative one, so
    second derivatives do not decide. ``UNKNOWN``: no Hessian was formed.
    """

    MINIMUM = "minimum"
    DEGENERATE = "degenerate"
    SADDLE = "saddle"
    MAXIMUM = "maximum"
    UNKNOWN = "unknown"

    def __str__(self) -> str:
        return self.value

    @property
    def code(self) -> int:
        """Integer code in tensors: the position in ``KINDS``."""
        return KINDS.index(self)


KINDS = tuple(Kind)


def classify_stationary_points(hessian: torch.Tensor, jacobian: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Classify stationary points, and find tangent directions along which the objective may decrease.

    Args:
        hessian: of the Lagrangian, (batch, n, n), in any units.
        jacobian: of the constraints, (batch, r, n), with rows of zeros for inactive ones.

    Returns:
        The codes of the kinds, (batch,), and directions (batch, k, n) of least curvature; zero for minima.
    """
    size, n = hessian.shape[0], hessian.shape[-1]
    scale = _unit_scale(hessian.diagonal(dim1=-2, dim2=-1).abs(), hessian.abs().amax(-1))
    scaled = scale.unsqueeze(-1) * hessian * scale.unsqueeze(-2)
    rows = jacobian * scale.unsqueeze(-2)
    length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    rows = rows / torch.where(length > 0, length, 1.0)
    tol = torch.finfo(hessian.dtype).eps ** CURVATURE_TOL_EXPONENT
    eye = torch.eye(n, dtype=hessian.dtype, device=hessian.device)
    kind = torch.full((size,), Kind.MINIMUM.code, device=hessian.device)
    directions = scale.new_zeros(size, NUM_DIRECTIONS, n)
    whole = scaled + CONSTRAINT_WEIGHT * rows.mT @ rows - tol * eye
    undecided = torch.linalg.cholesky_ex(whole)[1] != 0
    if not bool(undecided.any()):
        return kind, directions
    scaled, rows = scaled[undecided], rows[undecided]
    usable = torch.isfinite(scaled).all(-1).all(-1) & torch.isfinite(rows).all(-1).all(-1)
    scaled, rows = torch.where(usable[:, None, None], scaled, eye), torch.where(usable[:, None, None], rows, 0.0)
    normal = torch.linalg.pinv(rows) @ rows
    tangent = eye - normal
    reduced = tangent @ scaled @ tangent
    # Normal directions get eigenvalues outside the spectrum, so that the extreme eigenvalues are those of tangents.
    beyond = 2.0 * (1.0 + scaled.abs().sum(-1).amax(-1))[:, None, None] * normal
    values, vectors = torch.linalg.eigh(reduced + beyond)
    least = values[:, 0]
    largest = torch.linalg.eigvalsh(reduced - beyond)[:, -1]
    # The trace of a projector is its rank, up to rounding.
    any_tangent = tangent.diagonal(dim1=-2, dim2=-1).sum(-1) > 0.5
    down = torch.where(largest < -tol, Kind.MAXIMUM.code, Kind.SADDLE.code)
    found = torch.where(least >= -tol, Kind.DEGENERATE.code, down)
    found = torch.where((least > tol) | ~any_tangent, Kind.MINIMUM.code, found)
    kind[undecided] = torch.where(usable, found, Kind.UNKNOWN.code)
    # The direction of least curvature and, if several have none, irregular combinations of them.
    mixed = torch.cos(torch.outer(torch.arange(1.0, NUM_DIRECTIONS), 1.0 + torch.arange(float(n)) ** 2)).to(values)
    weights = torch.where((values <= tol).unsqueeze(1), mixed, 0.0)
    several = torch.cat([torch.nn.functional.one_hot(torch.zeros_like(found), n).to(values).unsqueeze(1), weights], 1)
    chosen = scale[undecided].unsqueeze(1) * (several @ vectors.mT)
    directions[undecided] = torch.where(usable[:, None, None], chosen, 0.0)
    return kind, directions


def _unit_scale(size: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """1 / sqrt(size), or 1 / sqrt(other) where the size is zero."""
    chosen = torch.where(size > 0, size, other)
    return torch.rsqrt(torch.where((chosen > 0) & torch.isfinite(chosen), chosen, 1.0))
