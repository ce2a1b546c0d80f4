"""Families of problems with closed-form solutions, and sums of families."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import Any

import cvxpy as cp
import numpy as np
import torch

from benchmarks.scales.outcome import Truth
from convexlayer import ParametricProgram, canonicalize
from convexlayer.program import Array

__all__ = ["Draw", "Family", "log_uniform", "sum_of"]

Draw = Callable[[np.random.Generator, float], list[Array]]
"""(random generator, k) -> one value per parameter."""


@dataclass(frozen=True, eq=False)
class Family:
    """minimize objective subject to constraints, with its solution as a function of the parameters.

    Attributes:
        name: name in tables; also seeds the draws.
        objective: a convex expression.
        constraints: the constraints.
        parameters: the parameters, in the order of ``draw``.
        variables: the outputs.
        draw: draws the parameters of one element.
        solution: one element's parameters (tensors) -> its outputs, flattened row by row and concatenated. Automatic
            differentiation of it gives the true derivatives.
        size: one element's parameters -> scales of the errors of outputs; by default their absolute values.
        coupled: whether derivatives are sums of larger terms that cancel.
        queries: positions of the outputs to differentiate; all by default.
    """

    name: str
    objective: cp.Expression
    constraints: list[cp.Constraint]
    parameters: list[cp.Parameter]
    variables: list[cp.Variable]
    draw: Draw
    solution: Callable[..., torch.Tensor]
    size: Callable[..., torch.Tensor] | None = None
    coupled: bool = False
    queries: Sequence[int] | None = None

    @property
    def problem(self) -> cp.Problem:
        """The CVXPY problem."""
        return cp.Problem(cp.Minimize(self.objective), self.constraints)

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return sum(variable.size for variable in self.variables)

    @property
    def differentiated(self) -> list[int]:
        """Positions of the outputs to differentiate."""
        return list(range(self.outputs)) if self.queries is None else list(self.queries)

    def program(self, **keywords: Any) -> ParametricProgram:
        """The canonicalised problem."""
        return canonicalize(self.problem, self.parameters, self.variables, **keywords)

    def theta(self, batch: int, k: float, *, seed: int) -> list[Array]:
        """Random parameters (B, *shape), in 10^-k..10^k."""
        rng = np.random.default_rng([seed, round(10 * k), *self.name.encode()])
        rows = [self.draw(rng, k) for _ in range(batch)]
        return [np.array(column, dtype=np.float64) for column in zip(*rows, strict=True)]

    def truth(self, theta: Sequence[Array]) -> Truth:
        """Solutions and derivatives for parameters (B, *shape)."""
        tensors = [torch.from_numpy(value) for value in theta]
        batch = len(theta[0])
        x = torch.func.vmap(self.solution)(*tensors).numpy()
        each = torch.func.vmap(torch.func.jacrev(self.solution, argnums=tuple(range(len(tensors)))))(*tensors)
        J = np.concatenate([part.numpy().reshape(batch, x.shape[1], -1) for part in each], axis=2)
        x_size = np.abs(x) if self.size is None else torch.func.vmap(self.size)(*tensors).numpy()
        flat = np.abs(np.concatenate([value.reshape(batch, -1) for value in theta], axis=1))
        natural = x_size[:, :, None] / np.where(flat > 0, flat, np.inf)[:, None, :]
        own = np.abs(J)
        J_size = np.maximum(own, natural) if self.coupled else np.where(own > 0, own, natural)
        return Truth(x, J, x_size, J_size)


def log_uniform(rng: np.random.Generator, k: float, *shape: int) -> Array:
    """Log-uniform random numbers in 10^-k..10^k."""
    drawn: Array = 10.0 ** rng.uniform(-k, k, size=shape)
    return drawn


def sum_of(families: Sequence[Family]) -> Family:
    """The sum of families without common variables, so that each part has the same solution as alone."""
    counts = np.cumsum([0, *(len(family.parameters) for family in families)]).tolist()
    parts = [slice(start, stop) for start, stop in pairwise(counts)]
    starts = np.cumsum([0, *(family.outputs for family in families)]).tolist()

    def draw(rng: np.random.Generator, k: float) -> list[Array]:
        return [value for family in families for value in family.draw(rng, k)]

    def solution(*theta: torch.Tensor) -> torch.Tensor:
        return torch.cat([family.solution(*theta[part]) for family, part in zip(families, parts, strict=True)])

    def size(*theta: torch.Tensor) -> torch.Tensor:
        sizes = [family.size or (lambda *own, of=family.solution: of(*own).abs()) for family in families]
        return torch.cat([each(*theta[part]) for each, part in zip(sizes, parts, strict=True)])

    return Family(
        " + ".join(family.name for family in families),
        reduce(lambda total, term: total + term, (family.objective for family in families)),
        [constraint for family in families for constraint in family.constraints],
        [parameter for family in families for parameter in family.parameters],
        [variable for family in families for variable in family.variables],
        draw,
        solution,
        size,
        any(family.coupled for family in families),
        [start + q for family, start in zip(families, starts, strict=False) for q in family.differentiated],
    )
