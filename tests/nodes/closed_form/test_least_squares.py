"""Least squares: numpy's solution, weights, dependent columns and minimum-norm solutions."""

from __future__ import annotations

import math

import pytest
import torch
from torch.func import vmap

from convexlayer.errors import DerivativeError, ProblemError
from convexlayer.nodes import (
    least_squares,
    weighted_least_squares,
)

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, at the first jvp


def double(*values: float | list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def test_least_squares_matches_lstsq() -> None:
    A, b = normal(2, 9, 4).requires_grad_(), normal(9).requires_grad_()
    theirs = torch.linalg.lstsq(A, b.expand(2, 9)[..., None]).solution[..., 0]
    ours = least_squares(A, b)
    torch.testing.assert_close(ours, theirs)
    v = torch.randn_like(ours)
    torch.testing.assert_close(torch.autograd.grad(ours, (A, b), v), torch.autograd.grad(theirs, (A, b), v))


def test_zero_weight_has_a_gradient_and_its_row_none() -> None:
    A, b = normal(6, 2).requires_grad_(), normal(6).requires_grad_()
    w = double(1.0, 2.0, 0.0, 1.0, 0.5, 1.0).requires_grad_()
    x = weighted_least_squares(A, b, w)
    torch.testing.assert_close(x, least_squares(w.sqrt()[:, None] * A, w.sqrt() * b))
    x.sum().backward()
    assert w.grad is not None
    step = torch.zeros_like(w)
    step[2] = 1e-6
    ahead = (weighted_least_squares(A, b, w + step) - x).sum() / 1e-6
    torch.testing.assert_close(w.grad[2], ahead.detach(), rtol=1e-4, atol=1e-6)
    assert A.grad is not None
    assert not A.grad[2].any()


@pytest.mark.parametrize("A", [torch.ones(3, 5, 2), torch.zeros(3, 5, 2), torch.ones(3, 1, 2)])
def test_dependent_columns_are_rejected(A: torch.Tensor) -> None:
    with pytest.raises(ProblemError, match=r"dependent columns|full column rank"):
        least_squares(A, torch.ones(A.shape[-2]))


def test_elements_with_dependent_columns_are_named() -> None:
    A = normal(4, 5, 2)
    A[2, :, 1] = A[2, :, 0]
    with pytest.raises(ProblemError, match="in element 2"):
        least_squares(A, normal(5))


def test_negative_weights_are_rejected() -> None:
    with pytest.raises(ProblemError, match="nonnegative"):
        weighted_least_squares(normal(3, 1), normal(3), double(1.0, -1.0, 1.0))


@pytest.mark.parametrize(("m", "n", "rank"), [(6, 4, 2), (3, 5, 2), (4, 4, 1), (3, 5, 3), (5, 3, 3)])
def test_minimum_norm_solution_and_its_derivative_at_constant_rank(m: int, n: int, rank: int) -> None:
    left, right, b = normal(m, rank).requires_grad_(), normal(rank, n).requires_grad_(), normal(m).requires_grad_()

    def solve(left: torch.Tensor, right: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return least_squares(left @ right, b, rcond=1e-6, on_degenerate="raise")

    x = solve(left, right, b)
    torch.testing.assert_close(x, torch.linalg.pinv(left @ right, rtol=1e-6) @ b)
    assert torch.autograd.gradcheck(solve, (left, right, b), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(solve, (left, right, b))
    torch.testing.assert_close(vmap(solve)(left[None], right[None], b[None])[0], x)


def test_derivative_treats_small_singular_values_as_zero() -> None:
    """The derivative exists in every direction, including those that raise the rank."""
    A, b, E, v = (normal(5, 2) @ normal(2, 4)).requires_grad_(), normal(5), normal(5, 4), normal(4)
    (gradient,) = torch.autograd.grad(least_squares(A, b, rcond=1e-3, on_degenerate="raise") @ v, A)
    ahead, behind = (least_squares(A.detach() + h * E, b, rcond=1e-3) @ v for h in (1e-6, -1e-6))
    torch.testing.assert_close((gradient * E).sum(), (ahead - behind) / 2e-6, rtol=1e-6, atol=1e-8)


def test_minimum_norm_with_independent_columns_is_the_solution() -> None:
    A, b = normal(2, 7, 3).requires_grad_(), normal(7).requires_grad_()
    alone, least = least_squares(A, b), least_squares(A, b, rcond=0.0)
    torch.testing.assert_close(alone, least)
    v = normal(2, 3)
    torch.testing.assert_close(torch.autograd.grad(alone, (A, b), v), torch.autograd.grad(least, (A, b), v))


def test_ambiguous_rank_warns_or_raises() -> None:
    A = torch.diag(double(1.0, 0.3, 0.1))[None].repeat(2, 1, 1)
    A[0, 2, 2] = 0.0
    A.requires_grad_()
    with pytest.raises(DerivativeError, match=r"ambiguous in element 1: .* is 3\.3e-01 of"):
        least_squares(A, normal(3), rcond=0.2, on_degenerate="raise").sum().backward()
    with pytest.warns(UserWarning, match="rank of A is ambiguous"):
        least_squares(A, normal(3), rcond=0.2).sum().backward()
    zero = torch.zeros(3, 2, dtype=torch.float64).requires_grad_()
    with pytest.raises(DerivativeError, match="ambiguous"):
        least_squares(zero, normal(3), rcond=0.2, on_degenerate="raise").sum().backward()


@pytest.mark.parametrize("rcond", [-1.0, 1.0, math.nan])
def test_rcond_outside_zero_to_one_is_rejected(rcond: float) -> None:
    with pytest.raises(ProblemError, match="rcond"):
        least_squares(normal(3, 2), normal(3), rcond=rcond)
