"""Ruiz equilibration of a batch of dense cone programs on torch (see ``ruiz``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from convexlayer.linalg.equilibration.ruiz import MAX_SCALE, MIN_SCALE, TENSOR_PASSES

__all__ = ["DenseProgram", "Equilibrated", "equilibrate"]


@final
@dataclass(frozen=True, eq=False)
class DenseProgram:
    """Programs with dense P (B, n, n), q (B, n, 1), A (B, p + rows, n), b (B, p + rows, 1), in the padded layout."""

    P: Tensor
    q: Tensor
    A: Tensor
    b: Tensor


@final
@dataclass(frozen=True, eq=False)
class Equilibrated:
    """Equilibrated programs P' = c D P D, q' = c D q, A' = R A D, b' = R b; x = D x', s = R^-1 s', y = R y' / c.

    Attributes:
        program: the scaled programs.
        columns: the diagonal of D, (B, n, 1).
        rows: the diagonal of R, (B, p + rows, 1), constant on each second-order block.
        cost: c, (B, 1, 1).
    """

    program: DenseProgram
    columns: Tensor
    rows: Tensor
    cost: Tensor

    def select(self, index: Tensor) -> Equilibrated:
        """The elements at these positions."""
        data = self.program
        return Equilibrated(
            DenseProgram(data.P[index], data.q[index], data.A[index], data.b[index]),
            self.columns[index],
            self.rows[index],
            self.cost[index],
        )


def equilibrate(program: DenseProgram, block_max: Callable[[Tensor], Tensor]) -> Equilibrated:
    """Scale every row and column of [P A'; A 0] to a maximum norm near 1, then scale the objective.

    Args:
        program: the programs.
        block_max: replaces each entry of (B, p + rows, 1) by the largest of those that must have one scale.
    """
    P, A = program.P, program.A
    columns, rows = torch.ones_like(program.q), torch.ones_like(program.b)
    for _ in range(TENSOR_PASSES):
        size = torch.maximum(_largest(P, 1), _largest(A, 1)).mT
        height = block_max(_largest(A, 2))
        D, R = _step(columns, size), _step(rows, height)
        columns, rows = D * columns, R * rows
        P, A = D * P * D.mT, R * A * D.mT
    q = columns * program.q
    mean, largest = _largest(P, 1).mean(2, keepdim=True), _largest(q, 1)
    objective = torch.maximum(mean, largest)
    cost = (1.0 / torch.where(objective > 0.0, objective, 1.0)).clamp(MIN_SCALE, MAX_SCALE)
    return Equilibrated(DenseProgram(cost * P, cost * q, A, rows * program.b), columns, rows, cost)


def _step(scale: Tensor, size: Tensor) -> Tensor:
    """Scaling factors of one pass, (B, k, 1), from the norms ``size``; empty rows keep their scale."""
    step = torch.where(size > 0.0, size, 1.0).rsqrt()
    return (scale * step).clamp(MIN_SCALE, MAX_SCALE) / scale


def _largest(matrix: Tensor, dim: int) -> Tensor:
    """Largest absolute entries along a dimension, which is kept; 0 if it is empty."""
    if matrix.shape[dim] == 0:
        return matrix.new_zeros([1 if axis == dim else size for axis, size in enumerate(matrix.shape)])
    return matrix.abs().amax(dim, keepdim=True)
