"""Eigendecomposition: repeated eigenvalues, signs of eigenvectors, numbers of eigenpairs."""

from __future__ import annotations

import warnings

import pytest
import torch

from convexlayer.errors import DerivativeError, ProblemError
from convexlayer.nodes import (
    eigen_decomposition,
)

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, at the first jvp


def double(*values: float | list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def test_projector_on_a_repeated_eigenspace_is_differentiable() -> None:
    """Projectors are invariant to the basis: the gradient matches finite differences, without a warning."""
    Q = torch.linalg.qr(normal(4, 4)).Q
    X = (Q * double(0.0, 1.0, 2.0, 2.0) @ Q.T).requires_grad_()
    C, E = normal(4, 4), normal(4, 4)

    def loss(X: torch.Tensor) -> torch.Tensor:
        Y = eigen_decomposition(X, 2, on_degenerate="raise")[1]
        return (C * (Y @ Y.T)).sum()

    (gradient,) = torch.autograd.grad(loss(X), X)
    slope = (loss(X + 1e-5 * E) - loss(X - 1e-5 * E)) / 2e-5
    torch.testing.assert_close((gradient * E).sum(), slope, rtol=1e-6, atol=1e-8)


def test_single_eigenvectors_of_a_repeated_eigenvalue_are_not_differentiable() -> None:
    X = torch.eye(3, dtype=torch.float64).requires_grad_()
    C = normal(3, 3)
    with pytest.raises(DerivativeError, match="coincide"):
        (C * eigen_decomposition(X, on_degenerate="raise")[1]).sum().backward()
    with pytest.warns(UserWarning, match="coincide"):
        (C * eigen_decomposition(X)[1]).sum().backward()
    assert X.grad is not None
    assert torch.isfinite(X.grad).all()
    with pytest.raises(DerivativeError, match="coincide"):
        (double(1.0, 2.0, 3.0) * eigen_decomposition(X, on_degenerate="raise")[0]).sum().backward()


def test_sum_of_repeated_eigenvalues_is_differentiable() -> None:
    X = torch.eye(3, dtype=torch.float64).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        eigen_decomposition(X)[0].sum().backward()
    torch.testing.assert_close(X.grad, torch.eye(3, dtype=torch.float64))


def test_largest_entry_of_an_eigenvector_is_positive() -> None:
    Y = eigen_decomposition(normal(5, 6, 6))[1]
    assert (Y.gather(-2, Y.abs().argmax(-2, keepdim=True)) > 0).all()


@pytest.mark.parametrize("k", [0, 5])
def test_invalid_number_of_eigenvalues_is_rejected(k: int) -> None:
    with pytest.raises(ProblemError, match="1 to 4"):
        eigen_decomposition(normal(4, 4), k)
