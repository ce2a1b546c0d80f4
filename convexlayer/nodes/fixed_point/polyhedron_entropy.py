"""Entropy of a bounded polyhedron, a Bregman distance whose proximal step has no closed form."""

from __future__ import annotations

from typing import ClassVar, final

import numpy as np
import torch
from scipy.optimize import linprog

from convexlayer.errors import ProblemError, ShapeError, SolverError
from convexlayer.nodes.autodiff.batch import Batch, Dims, Tensors
from convexlayer.nodes.fixed_point.bregman import AbstractBregman
from convexlayer.nodes.implicit.dense_lu import Dense
from convexlayer.nodes.implicit.equation import Equation, Solution, solve_implicitly
from convexlayer.nodes.implicit.operator import AbstractResidual, LinearSolve, Operator

__all__ = ["PolyhedronEntropy"]

MAX_NEWTON_STEPS = 100
"""Limit of the damped Newton steps of a proximal step; a few more than ten are usual."""

CONVERGED_FACTOR = 100.0
"""Newton's decrement is zero at this multiple of eps^2: the step is then at rounding."""

BOUNDARY_FRACTION = 0.99
"""Largest step, as a fraction of that to the boundary."""

ARMIJO_FRACTION = 1e-4
"""Sufficient decrease, as a fraction of the decrement (Nocedal and Wright 2006, section 3.1)."""

MAX_HALVINGS = 50
"""Halvings of a step in the line search, to 1e-15 of it."""

ROUNDOFF_FACTOR = 10.0
"""Multiples of eps, relative to the objective, by which rounding may increase it."""


@final
class PolyhedronEntropy(AbstractBregman):
    """psi(x) = sum s log s with s = b - A x, on the polyhedron A x <= b; Ochs et al. (2016), example 4.

    The proximal step solves grad psi(x) = -A'(log s + 1) = y by Newton's method, and is differentiated by the implicit
    function theorem. The modulus of strong convexity is the smallest eigenvalue of A'A over the largest
    slack; scale A and b to make it 1.

    Args:
        A: normals of the faces, (m, n), of rank n.
        b: offsets of the faces, (m,).

    Raises:
        ShapeError: shapes do not fit.
        ProblemError: the polyhedron has no interior or is unbounded.
    """

    def __init__(self, A: torch.Tensor, b: torch.Tensor) -> None:
        if A.ndim != 2 or b.shape != A.shape[:1]:
            raise ShapeError(f"expected A (m, n) and b (m,), got {tuple(A.shape)} and {tuple(b.shape)}")
        self._A, self._b = A, b
        self._centre = _chebyshev_centre(A, b)

    def potential(self, x: torch.Tensor) -> torch.Tensor:
        """Negative entropy of the slacks."""
        return -torch.special.entr(self._b - self._A @ x).sum()

    def gradient(self, x: torch.Tensor) -> torch.Tensor:
        """Gradient -A'(log s + 1)."""
        return -self._A.T @ (torch.log(self._b - self._A @ x) + 1)

    def mirror(self, y: torch.Tensor) -> torch.Tensor:
        """Solve by Newton's method from the Chebyshev centre."""
        return self._solve(y, self._centre)

    def move(self, x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        """Solve by Newton's method from x."""
        return self._solve(self.gradient(x) - slope, x.detach())

    def _solve(self, y: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        equation = Equation(_MirrorResidual(self), self._newton, Dense(), _no_check)
        x, _ = solve_implicitly(equation, Batch((y,), (None,), 1, True), start.unsqueeze(0), ())
        return x.squeeze(0)

    def _newton(self, start: torch.Tensor | None, dims: Dims, theta: Tensors) -> Solution:
        """Minimise psi(x) - <y, x> by damped Newton steps, for the whole batch."""
        A, b, (y,) = self._A, self._b, theta
        assert start is not None  # both callers pass one
        x = start.expand(y.shape) if y.ndim == 2 else start
        precision = torch.finfo(x.dtype).eps
        for _ in range(MAX_NEWTON_STEPS):
            slack = b - x @ A.T
            gradient = -(torch.log(slack) + 1) @ A - y
            factor, _ = torch.linalg.cholesky_ex((A.T / slack.unsqueeze(-2)) @ A)
            step = -torch.cholesky_solve(gradient.unsqueeze(-1), factor).squeeze(-1)
            decrement = -(gradient * step).sum(-1)
            if bool((decrement <= CONVERGED_FACTOR * precision**2).all()):
                return x, decrement <= precision
            x = x + self._step_length(x, step, y, decrement).unsqueeze(-1) * step
        if bool((decrement <= precision).all()):
            return x, decrement <= precision
        raise SolverError(
            f"entropy of a polyhedron: Newton's method has not converged in {MAX_NEWTON_STEPS} steps (decrement "
            f"{decrement.max().item():.1e}); the point may be too close to the boundary: use smaller steps"
        )

    def _step_length(
        self, x: torch.Tensor, step: torch.Tensor, y: torch.Tensor, decrement: torch.Tensor
    ) -> torch.Tensor:
        """Line search for step lengths (batch,) inside the polyhedron with sufficient decrease."""
        A, b = self._A, self._b
        value = self._value(x, y)
        slack_change, slack = step @ A.T, b - x @ A.T
        length = (BOUNDARY_FRACTION * torch.where(slack_change > 0, slack / slack_change, torch.inf).amin(-1)).clamp(
            max=1.0
        )
        for _ in range(MAX_HALVINGS):
            moved = self._value(x + length.unsqueeze(-1) * step, y)
            roundoff = ROUNDOFF_FACTOR * torch.finfo(x.dtype).eps * value.abs()
            rejected = moved > value - ARMIJO_FRACTION * length * decrement + roundoff
            if not bool(rejected.any()):
                break
            length = torch.where(rejected, 0.5 * length, length)
        return length

    def _value(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return -torch.special.entr(self._b - x @ self._A.T).sum(-1) - (x * y).sum(-1)


@final
class _MirrorResidual(AbstractResidual):
    """(x, y) -> grad psi(x) - y."""

    symmetric: ClassVar[bool] = True

    def __init__(self, entropy: PolyhedronEntropy) -> None:
        self._entropy = entropy

    def __call__(self, z: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
        (y,) = theta
        return self._entropy.gradient(z) - y


def _no_check(operator: Operator, answer: LinearSolve, inverse: object) -> None:
    """Skip the check of linear solves: the Hessian of the entropy is positive definite inside the polyhedron."""


def _chebyshev_centre(A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Centre of the largest ball in the polyhedron, by a linear program."""
    normals, offsets = A.detach().cpu().double().numpy(), b.detach().cpu().double().numpy()
    norms = np.linalg.norm(normals, axis=1, keepdims=True)
    # Bounded, by Stiemke's lemma: the normals span the space, and a positive combination of them is zero.
    faces, n = normals.shape
    spanned = np.linalg.matrix_rank(normals) == n
    if not spanned or linprog(np.zeros(faces), A_eq=normals.T, b_eq=np.zeros(n), bounds=(1, None)).status != 0:
        raise ProblemError("expected a bounded polyhedron A x <= b, got one that contains a ray: add bounds of x")
    found = linprog(np.append(np.zeros(n), -1.0), np.hstack([normals, norms]), offsets, bounds=(None, None))
    if found.x is None or not found.x[-1] > 0:
        raise ProblemError("expected a polyhedron A x <= b with an interior, got one without")
    return torch.as_tensor(found.x[:-1], dtype=A.dtype, device=A.device)
