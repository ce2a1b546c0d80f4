"""Options common to the nodes given by functions."""

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
"""(y (k, *variable), f (k,), *theta) of one element -> the index of the selected stationary point."""

DEFAULT_TOL = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Default relative error of a solution by dtype; polishing usually ends at rounding, far below."""


@final
@dataclass(frozen=True)
class NodeOptions:
    """Options common to the nodes given by functions.

    Attributes:
        start: initial point(s) of the solver.
        choose: selects among the stationary points found from several starts; by default the one with the smallest
            objective. Starts that led to no stationary point are not offered.
        linear: solver of the linear systems of the derivative, ``Dense()`` by default.
        polish: largest number of Newton steps after the solver.
        tol: largest relative error of a component of y and the multipliers, as estimated by the Newton step, of a
            solution; None for 1e-6 in float64, 1e-3 in float32.
        on_failure: policy for elements without a solution: ``raise`` a FailedElementsError that carries the others,
            return ``nan`` for them, or ``keep`` the last iterate. Gradients of such elements are zero.
        on_degenerate: policy for derivatives that may not exist or are inaccurate: ``warn`` (once per node), ``report``
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
        """``tol``, or the default of the dtype."""
        return DEFAULT_TOL[dtype] if self.tol is None else self.tol
