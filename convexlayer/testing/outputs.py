"""The outputs of a function as one vector (K,), and the names of its entries."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import final

import numpy as np
import torch

from convexlayer.program import Array
from convexlayer.testing.finite_differences import Groups

__all__ = ["OutputVector", "flat"]


@final
class OutputVector:
    """How the outputs stand in the vector.

    Attributes:
        value: the vector at the point of the check, (K,).
        parts: the slice of each output.
        groups: the entries that are compared on one scale: an output, or one element of it.
    """

    def __init__(self, outputs: Sequence[torch.Tensor], *, batched: bool) -> None:
        """Lay the outputs out.

        Args:
            outputs: the outputs at the point of the check.
            batched: whether their leading axis is the batch axis.
        """
        self.value = flat(outputs)
        self._batched = batched
        self._shapes = [tuple(output.shape) for output in outputs]
        ends = np.cumsum([0, *(output.numel() for output in outputs)]).tolist()
        self.parts = [slice(start, end) for start, end in pairwise(ends)]
        sizes = [output.numel() // _elements(output, batched) for output in outputs]
        counts = [_elements(output, batched) if output.numel() else 0 for output in outputs]
        self.groups = Groups(np.repeat(np.array(sizes, dtype=np.int64), counts))

    def name(self, position: int) -> str:
        """Output, element and entry at a position of the vector."""
        number, index = self._find(position)
        entry = index[1:] if self._batched else index
        return f"{self._group(number, index)}{f', entry {entry}' if entry else ''}"

    def group_name(self, group: int) -> str:
        """Output and element of a group."""
        return self._group(*self._find(int(self.groups.sizes[:group].sum())))

    def _find(self, position: int) -> tuple[int, tuple[int, ...]]:
        """Number of the output, and index into it."""
        number = next(i for i, part in enumerate(self.parts) if part.start <= position < part.stop)
        index = np.unravel_index(position - self.parts[number].start, self._shapes[number])
        return number, tuple(int(each) for each in index)

    def _group(self, number: int, index: tuple[int, ...]) -> str:
        return f"output {number}, element {index[0]}" if self._batched else f"output {number}"


def _elements(output: torch.Tensor, batched: bool) -> int:
    """Number of groups of an output, at least 1."""
    return max(1, output.shape[0]) if batched else 1


def flat(tensors: Sequence[torch.Tensor]) -> Array:
    """All entries of tensors, (K,)."""
    return np.concatenate([np.zeros(0), *(each.detach().cpu().numpy().ravel() for each in tensors)])
