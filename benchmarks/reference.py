"""Reference outputs and gradients: solutions to machine precision, with gradients checked by finite differences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.ours import layer
from benchmarks.problem import Problem, Tensors

__all__ = ["Errors", "Reference"]

STEPS = (1e-5, 1e-6)
"""Steps of the fourth-order central differences, relative to the largest entry: the longer one may cross a kink of the
solution map, the shorter one is dominated by rounding if solutions are less accurate."""

CHECKED = 3
"""Number of elements whose gradient is compared with finite differences."""


@dataclass(frozen=True)
class Errors:
    """Errors of a contestant relative to the reference.

    Attributes:
        output: 95th percentile over the elements of norm(difference) / max(1, norm(reference)).
        gradient: 95th percentile over the elements of norm(difference) / max(norm(reference), 0.1 r), for the gradients
            of all parameters together; r is the root mean square of norm(reference) over the batch, as some elements
            have zero gradients.
        worst_gradient: the largest gradient error of an element.
    """

    output: float
    gradient: float
    worst_gradient: float


class Reference:
    """Solutions of one batch by Clarabel at tolerance 1e-12 with polishing, and their exact gradients.

    Attributes:
        residual: the largest residual of all elements.
        check: relative error of the gradients against central differences of the solutions: median over CHECKED
            elements, for the better of the two steps.
    """

    def __init__(self, problem: Problem, theta: Tensors, cotangents: Tensors) -> None:
        """Solve and differentiate."""
        self._problem = problem
        self._layer = layer(
            problem,
            solver="clarabel",
            options={"tol": 1e-12, "max_iter": 500},
            on_failure="nan",
            check_attributes=False,  # finite differences slightly violate PSD attributes
        )
        outputs, report = self._layer.solve(*theta)
        self.residual = float(report.residuals.worst.max())
        self._outputs = _flat(outputs).detach()
        gradients = torch.autograd.grad(outputs, theta, [torch.nan_to_num(c) for c in cotangents])
        self._gradients = _flat(problem.symmetrised(gradients))
        self._known = torch.isfinite(self._outputs).all(1)
        self.check = self._differences(theta, cotangents)

    @property
    def quality(self) -> dict[str, float]:
        """``residual``, ``check``, and ``unknown``, the number of elements without a reference, which are skipped."""
        return {"residual": self.residual, "check": self.check, "unknown": int((~self._known).sum())}

    def errors(self, outputs: Tensors, gradients: Tensors) -> Errors:
        """The errors of a contestant."""
        x, g = (_flat(values).detach()[self._known] for values in (outputs, self._problem.symmetrised(gradients)))
        true_x, true_g = self._outputs[self._known], self._gradients[self._known]
        output = (x - true_x).norm(dim=1) / true_x.norm(dim=1).clamp_min(1.0)
        norms = true_g.norm(dim=1)
        gradient = (g - true_g).norm(dim=1) / norms.clamp_min(0.1 * float(norms.square().mean().sqrt()))
        output, gradient = (torch.nan_to_num(e, nan=torch.inf) for e in (output, gradient))
        return Errors(_percentile(output), _percentile(gradient), float(gradient.max()))

    def _differences(self, theta: Tensors, cotangents: Tensors) -> float:
        rng = np.random.default_rng(5)
        count = min(CHECKED, len(theta[0]))
        start = [t.detach()[:count] for t in theta]
        drawn = tuple(torch.from_numpy(rng.standard_normal(t.shape)) * (t.abs().amax() + 1e-3) for t in start)
        directions = self._problem.symmetrised(drawn)
        weight = _flat(tuple(c[:count] for c in cotangents)).repeat(4, 1)
        expected = (self._gradients[:count] * _flat(directions)).sum(1)
        norms = self._gradients[:count].norm(dim=1) * _flat(directions).norm(dim=1)
        scale = torch.maximum(expected.abs(), norms / np.sqrt(self._gradients.shape[1]))
        errors = []
        for step in STEPS:
            moves = (step, -step, 2 * step, -2 * step)
            moved = [torch.cat([t + move * d for move in moves]) for t, d in zip(start, directions, strict=True)]
            with torch.no_grad():
                outputs = self._layer(*moved)
            loss = (_flat(outputs) * weight).sum(1).reshape(4, count)
            slope = (8 * (loss[0] - loss[1]) - (loss[2] - loss[3])) / (12 * step)
            errors.append(float(((slope - expected).abs() / scale).nan_to_num(nan=torch.inf).median()))
        return min(errors)


def _flat(values: Tensors) -> torch.Tensor:
    """Flatten and concatenate tensors (B, *shape) to (B, entries)."""
    return torch.cat([value.reshape(len(value), -1) for value in values], dim=1)


def _percentile(errors: torch.Tensor) -> float:
    """The 95th percentile; the maximum for fewer than 20 elements."""
    return float(errors.sort().values[max(0, int(np.ceil(0.95 * len(errors))) - 1)]) if len(errors) else float("nan")
