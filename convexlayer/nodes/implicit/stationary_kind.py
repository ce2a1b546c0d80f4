"""What kind of stationary point it is: the signs of the Hessian on the tangent space of the active constraints."""

from __future__ import annotations

from enum import Enum

import torch

__all__ = ["Kind", "kind_of"]

TRIES = 4
"""Directions that are given where second derivatives do not decide."""

WEIGHT = 1e4
"""Of J'J beside the Hessian, both scaled to entries of 1: positive definite then is so on the null space of J."""


class Kind(str, Enum):
    """The kind of a stationary point, by the Hessian of the Lagrangian on the tangent space.

    ``MINIMUM`` and ``MAXIMUM`` are strict. A ``DEGENERATE`` Hessian has no negative eigenvalue there but zero ones:
    second derivatives do not tell. ``UNKNOWN`` is what no matrix was formed for.
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
        """Its position, by which tensors name it."""
        return KINDS.index(self)


KINDS = tuple(Kind)


def kind_of(hessian: torch.Tensor, jacobian: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The position in ``Kind`` (batch,), and tangent directions (batch, k, n) without curvature if it is no minimum.

    Args:
        hessian: of the Lagrangian, (batch, n, n), in any units.
        jacobian: of the constraints, (batch, r, n), with rows of zeros for those that are not active.
    """
    size, n = hessian.shape[0], hessian.shape[-1]
    scale = _unit(hessian.diagonal(dim1=-2, dim2=-1).abs(), hessian.abs().amax(-1))
    scaled = scale.unsqueeze(-1) * hessian * scale.unsqueeze(-2)
    rows = jacobian * scale.unsqueeze(-2)
    length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    rows = rows / torch.where(length > 0, length, 1.0)
    tol = torch.finfo(hessian.dtype).eps ** 0.75
    eye = torch.eye(n, dtype=hessian.dtype, device=hessian.device)
    kind = torch.full((size,), Kind.MINIMUM.code, device=hessian.device)
    directions = scale.new_zeros(size, TRIES, n)
    whole = scaled + WEIGHT * rows.mT @ rows - tol * eye
    doubtful = torch.linalg.cholesky_ex(whole)[1] != 0
    if not bool(doubtful.any()):
        return kind, directions
    scaled, rows = scaled[doubtful], rows[doubtful]
    usable = torch.isfinite(scaled).all(-1).all(-1) & torch.isfinite(rows).all(-1).all(-1)
    scaled, rows = torch.where(usable[:, None, None], scaled, eye), torch.where(usable[:, None, None], rows, 0.0)
    normal = torch.linalg.pinv(rows) @ rows
    tangent = eye - normal
    reduced = tangent @ scaled @ tangent
    beyond = 2.0 * (1.0 + scaled.abs().sum(-1).amax(-1))[:, None, None] * normal
    values, vectors = torch.linalg.eigh(reduced + beyond)
    least = values[:, 0]
    largest = torch.linalg.eigvalsh(reduced - beyond)[:, -1]
    any_tangent = tangent.diagonal(dim1=-2, dim2=-1).sum(-1) > 0.5
    down = torch.where(largest < -tol, Kind.MAXIMUM.code, Kind.SADDLE.code)
    found = torch.where(least >= -tol, Kind.DEGENERATE.code, down)
    found = torch.where((least > tol) | ~any_tangent, Kind.MINIMUM.code, found)
    kind[doubtful] = torch.where(usable, found, Kind.UNKNOWN.code)
    # The one of least curvature, and, where several have none, irregular sums of them.
    mixed = torch.cos(torch.outer(torch.arange(1.0, TRIES), 1.0 + torch.arange(float(n)) ** 2)).to(values)
    weights = torch.where((values <= tol).unsqueeze(1), mixed, 0.0)
    several = torch.cat([torch.nn.functional.one_hot(torch.zeros_like(found), n).to(values).unsqueeze(1), weights], 1)
    chosen = scale[doubtful].unsqueeze(1) * (several @ vectors.mT)
    directions[doubtful] = torch.where(usable[:, None, None], chosen, 0.0)
    return kind, directions


def _unit(size: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """1 / sqrt(size), or of the other where it is zero."""
    chosen = torch.where(size > 0, size, other)
    return torch.rsqrt(torch.where((chosen > 0) & torch.isfinite(chosen), chosen, 1.0))
