"""Batched dense LU in torch: small systems on the CPU, and systems of any size on a GPU."""

from __future__ import annotations

import os
import sys
from functools import cache
from typing import final

import torch

from convexlayer.linalg.base import AbstractBackend, AbstractFactor
from convexlayer.program import Array, Pattern

__all__ = ["DenseBackend", "survive_forks"]


@final
class DenseBackend(AbstractBackend):
    """LU of the full matrices, on one torch device."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)

    def init(self, pattern: Pattern) -> Pattern:
        """The pattern is all that is needed."""
        return pattern

    def factor(self, state: Pattern, values: Array) -> AbstractFactor:
        """Scatter the upper triangles into full matrices and factorise them."""
        survive_forks()
        upper = torch.from_numpy(state.dense(values)).to(self.device)
        matrices = upper + torch.triu(upper, 1).mT
        lu, pivots, _ = torch.linalg.lu_factor_ex(matrices)
        return _DenseFactor(lu, pivots)


@cache
def survive_forks() -> None:
    """In a forked child torch waits for ever for the parent's threads, unless it is told to use one."""
    if sys.platform != "win32":
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


@final
class _DenseFactor(AbstractFactor):
    def __init__(self, lu: torch.Tensor, pivots: torch.Tensor) -> None:
        self.lu = lu
        self.pivots = pivots

    def solve(self, rhs: Array) -> Array:
        right = torch.from_numpy(rhs).to(self.lu.device).unsqueeze(-1)
        solved: Array = torch.linalg.lu_solve(self.lu, self.pivots, right).squeeze(-1).cpu().numpy()
        return solved
