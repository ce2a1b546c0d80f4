"""What all nodes that are given by functions can be told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

import torch

from convexlayer.nodes.declarative.initial_points import Start
from convexlayer.nodes.implicit.dense_lu import Dense
from convexlayer.nodes.implicit.operator import AbstractLinearSolver

__all__ = ["Choose", "NodeOptions"]

Choose = Callable[..., torch.Tensor]
"""(y (k, *variable), f (k,), *theta) -> the index of the stationary point that is wanted, of one element."""


@final
@dataclass(frozen=True)
class NodeOptions:
    """What all nodes that are given by functions can be told.

    Attributes:
        start: where the solver starts.
        choose: which of the points found from several starts is the solution; by default the one with the smallest
            objective. Starts from which no stationary point was found do not take part.
        linear: solves the linear systems of the derivative, ``Dense()`` by default.
        polish: at most so many steps of Newton's method after the solver.
        tol: largest relative error of a component of y and the multipliers, as far as the Newton step tells it, at
            which a point counts as a solution; None for 1e-6 in float64, 1e-3 in float32.
        on_failure: what to do when an element has no solution: ``raise`` a FailedElementsError that carries the others,
            return ``nan`` for it, or ``keep`` the last iterate. The gradients of such elements are zero.
        on_degenerate: what to do when a derivative may not exist or is inaccurate: ``warn`` (once a node), ``report``
            only, or ``raise`` a DerivativeError.
    """

    start: Start = None
    choose: Choose | None = None
    linear: AbstractLinearSolver = field(default_factory=Dense)
    polish: int = 3
    tol: float | None = None
    on_failure: str = "raise"
    on_degenerate: str = "warn"

    def tolerance(self, dtype: torch.dtype) -> float:
        """``tol``, or what stands for it in this type."""
        own = 1e-6 if dtype == torch.float64 else 1e-3
        return own if self.tol is None else self.tol
