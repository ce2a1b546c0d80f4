"""A problem family: a CVXPY problem, its outputs, and random draws of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import cvxpy as cp
import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:  # the client is tested on these families without the library
    from convexlayer import ConvexLayer, ParametricProgram

Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator], Sequence[Any]]
Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True, eq=False)
class Family:
    """A problem, its outputs, and random draws of its parameters.

    Attributes:
        problem: the problem.
        parameters: its parameters.
        outputs: variables and dual variables.
        draw: draws one value per parameter, before symmetrisation.
        symmetric: positions of the parameters that are symmetrised after the draw.
        gp: whether it is a geometric program.
        cones: kinds of cones that its canonical form contains, among others.
    """

    problem: cp.Problem
    parameters: list[cp.Parameter]
    outputs: list[cp.Variable]
    draw: Draw
    symmetric: Sequence[int] = field(default_factory=tuple)
    gp: bool = False
    cones: frozenset[str] = frozenset()

    def layer(self, **keywords: Any) -> ConvexLayer:
        """Build the layer without the self-check, which is tested separately."""
        from convexlayer import ConvexLayer

        return ConvexLayer(self.problem, self.parameters, self.outputs, gp=self.gp, **{"self_check": False} | keywords)

    def program(self, **keywords: Any) -> ParametricProgram:
        """Canonicalise, without the self-check."""
        from convexlayer import canonicalize

        return canonicalize(self.problem, self.parameters, self.outputs, gp=self.gp, **{"self_check": False} | keywords)

    def tensors(self, batch: int | None = None, *, seed: int = 0, batched: Sequence[bool] | None = None) -> Tensors:
        """Draw leaf tensors that require gradients.

        Args:
            batch: number of elements; None draws one, without a batch axis.
            seed: seed of the draws.
            batched: which parameters have the batch axis; the others are those of the first element. Default all.
        """
        rng = np.random.default_rng(seed)
        elements = [self._symmetrised(self.draw(rng)) for _ in range(batch or 1)]
        with_axis = (batch is not None,) * len(self.parameters) if batched is None else batched
        values = [
            np.array([element[i] for element in elements], dtype=float) if stacked else np.array(elements[0][i])
            for i, stacked in enumerate(with_axis)
        ]
        return tuple(torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in values)

    def prepared(self, tensors: Sequence[torch.Tensor]) -> Tensors:
        """The layer's arguments: the tensors, symmetrised if their parameter is symmetric."""
        return tuple(0.5 * (t + t.mT) if i in self.symmetric else t for i, t in enumerate(tensors))

    def values(self, batch: int | None = None, *, seed: int = 0) -> list[Array]:
        """The layer's arguments as arrays."""
        return [tensor.detach().numpy() for tensor in self.tensors(batch, seed=seed)]

    def _symmetrised(self, values: Sequence[Any]) -> list[Any]:
        return [0.5 * (v + np.transpose(v)) if i in self.symmetric else v for i, v in enumerate(values)]


def duals(*constraints: cp.Constraint) -> list[cp.Variable]:
    """The dual variables of constraints, in order."""
    return [dual for constraint in constraints for dual in constraint.dual_variables]


def fixed(*values: Any) -> Draw:
    """A draw that is always these values."""
    return lambda rng: values
