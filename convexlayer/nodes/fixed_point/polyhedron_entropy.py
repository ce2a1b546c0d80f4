"""The entropy of a bounded polyhedron, a Bregman distance whose proximal step has no closed form."""

from __future__ import annotations

from typing import ClassVar, final

import numpy as np
import torch
from scipy.optimize import linprog

from convexlayer.errors import ProblemError, SolverError
from convexlayer.nodes.autodiff.batch import Batch, Dims, Tensors
from convexlayer.nodes.fixed_point.bregman import AbstractBregman
from convexlayer.nodes.implicit.dense_lu import Dense
from convexlayer.nodes.implicit.equation import Equation, Found, solve_implicitly
from convexlayer.nodes.implicit.operator import AbstractResidual, LinearSolve, Operator

__all__ = ["PolyhedronEntropy"]

MAX_ITERATIONS = 100


@final
class PolyhedronEntropy(AbstractBregman):
    """psi(x) = sum s log s with s = b - A x, on the polyhedron A x <= b; Ochs et al. (2016), example 4.

    The proximal step solves grad psi(x) = -A'(log s + 1) = y by Newton's method, and is differentiated by the implicit
    function theorem. The modulus of strong convexity is that of A'A over the largest slack; scale A and b to make it 1.

    Args:
        A: normals of the faces, (m, n), of rank n.
        b: offsets of the faces, (m,).

    Raises:
        ProblemError: the polyhedron is empty inside or unbounded.
    """

    def __init__(self, A: torch.Tensor, b: torch.Tensor) -> None:
        self._A, self._b = A, b
        self._center = _chebyshev_center(A, b)

    def potential(self, x: torch.Tensor) -> torch.Tensor:
        """Entropy of the slacks, negative."""
        return -torch.special.entr(self._b - self._A @ x).sum()

    def gradient(self, x: torch.Tensor) -> torch.Tensor:
        """The normals, weighted by the slacks: -A'(log s + 1)."""
        return -self._A.T @ (torch.log(self._b - self._A @ x) + 1)

    def mirror(self, y: torch.Tensor) -> torch.Tensor:
        """Newton's method from the centre of the polyhedron."""
        return self._solve(y, self._center)

    def move(self, x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        """Newton's method from x."""
        return self._solve(self.gradient(x) - slope, x.detach())

    def _solve(self, y: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        equation = Equation(_Condition(self), self._newton, Dense(), _accept)
        x, _ = solve_implicitly(equation, Batch((y,), (None,), 1, True), start.unsqueeze(0), ())
        return x.squeeze(0)

    def _newton(self, start: torch.Tensor | None, dims: Dims, theta: Tensors) -> Found:
        """Damped Newton steps on psi(x) - <y, x>, the whole batch at once."""
        A, b, (y,) = self._A, self._b, theta
        assert start is not None  # the two callers above give one
        x = start.expand(y.shape) if y.ndim == 2 else start
        precision = torch.finfo(x.dtype).eps
        for _ in range(MAX_ITERATIONS):
            slack = b - x @ A.T
            gradient = -(torch.log(slack) + 1) @ A - y
            factor, _ = torch.linalg.cholesky_ex((A.T / slack.unsqueeze(-2)) @ A)
            step = -torch.cholesky_solve(gradient.unsqueeze(-1), factor).squeeze(-1)
            decrement = -(gradient * step).sum(-1)
            if bool((decrement <= 100 * precision**2).all()):
                return x, decrement <= precision
            x = x + self._damped(x, step, y, decrement).unsqueeze(-1) * step
        if bool((decrement <= precision).all()):
            return x, decrement <= precision
        raise SolverError(
            f"the entropy of a polyhedron: Newton's method has not converged in {MAX_ITERATIONS} steps (decrement "
            f"{decrement.max().item():.1e}); the point may be too close to the boundary: take smaller steps"
        )

    def _damped(self, x: torch.Tensor, step: torch.Tensor, y: torch.Tensor, decrement: torch.Tensor) -> torch.Tensor:
        """Step lengths (batch,): inside the polyhedron, and with sufficient decrease up to rounding."""
        A, b = self._A, self._b
        value = self._value(x, y)
        towards, slack = step @ A.T, b - x @ A.T
        length = (0.99 * torch.where(towards > 0, slack / towards, torch.inf).amin(-1)).clamp(max=1.0)
        for _ in range(50):
            moved = self._value(x + length.unsqueeze(-1) * step, y)
            short = moved > value - 1e-4 * length * decrement + 10 * torch.finfo(x.dtype).eps * value.abs()
            if not bool(short.any()):
                break
            length = torch.where(short, 0.5 * length, length)
        return length

    def _value(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return -torch.special.entr(self._b - x @ self._A.T).sum(-1) - (x * y).sum(-1)


@final
class _Condition(AbstractResidual):
    """(x, y) -> grad psi(x) - y."""

    symmetric: ClassVar[bool] = True

    def __init__(self, entropy: PolyhedronEntropy) -> None:
        self._entropy = entropy

    def __call__(self, z: torch.Tensor, *theta: torch.Tensor) -> torch.Tensor:
        (y,) = theta
        return self._entropy.gradient(z) - y


def _accept(operator: Operator, answer: LinearSolve, inverse: object) -> None:
    """The Hessian of the entropy is positive definite inside the polyhedron: there is nothing to judge."""


def _chebyshev_center(A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The centre of the largest ball in the polyhedron."""
    normals, offsets = A.detach().cpu().double().numpy(), b.detach().cpu().double().numpy()
    norms = np.linalg.norm(normals, axis=1, keepdims=True)
    # Bounded (Stiemke): the normals span the space, and some positive combination of them is zero.
    faces, n = normals.shape
    spanned = np.linalg.matrix_rank(normals) == n
    if not spanned or linprog(np.zeros(faces), A_eq=normals.T, b_eq=np.zeros(n), bounds=(1, None)).status != 0:
        raise ProblemError(
            "expected a bounded polyhedron A x <= b, got one with a ray in it: add the bounds that x has"
        )
    found = linprog(np.append(np.zeros(n), -1.0), np.hstack([normals, norms]), offsets, bounds=(None, None))
    if found.x is None or not found.x[-1] > 0:
        raise ProblemError("expected a polyhedron A x <= b with an interior, got one without")
    return torch.as_tensor(found.x[:-1], dtype=A.dtype, device=A.device)
