"""Entropic optimal transport: marginals, matchings, disconnected plans and invalid input."""

from __future__ import annotations

import math

import pytest
import torch

from convexlayer.errors import DerivativeError, ProblemError, SolverError
from convexlayer.nodes import (
    optimal_transport,
)

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, at the first jvp


def double(*values: float | list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("gamma", [1e-3, 1.0, 30.0, 1000.0])
@pytest.mark.parametrize(("m", "n"), [(1, 4), (6, 3), (20, 20)])
def test_plan_has_the_marginals_and_the_entropic_form(m: int, n: int, gamma: float) -> None:
    M, r, c = torch.rand(m, n, dtype=torch.float64), normal(m).softmax(-1), normal(n).softmax(-1)
    P = optimal_transport(M, r, c, gamma)
    torch.testing.assert_close(P.sum(1), r, rtol=1e-9, atol=0)
    torch.testing.assert_close(P.sum(0), c, rtol=1e-9, atol=0)
    # log P + gamma M = f_i + g_j: all mixed second differences vanish where P has not underflowed.
    L = torch.where(P > 1e-300, P.log() + gamma * M, math.nan)
    cross = L[1:, 1:] - L[1:, :1] - L[:1, 1:] + L[:1, :1]
    assert cross.nan_to_num(0.0).abs().max() <= 1e-9 * max(gamma, 1.0) if cross.numel() else True


def test_large_gamma_gives_the_matching() -> None:
    M = torch.rand(8, 8, dtype=torch.float64)
    order = torch.randperm(8)
    M[torch.arange(8), order] -= 1.0
    P = 8.0 * optimal_transport(M, gamma=200.0)
    torch.testing.assert_close(P.argmax(1), order)
    torch.testing.assert_close(P.amax(1), torch.ones(8).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("gamma", [20.0, 30.0, 40.0, 200.0])
def test_disconnected_plan_is_differentiable_in_the_costs(gamma: float) -> None:
    """Two pairs, each a plan of its own at large gamma: the gradient equals that of the separate pairs."""
    pair = torch.tensor([[0.0, 0.02], [0.01, 0.0]], dtype=torch.float64)
    M = torch.block_diag(pair, pair) + torch.block_diag(*2 * [torch.ones(2, 2)]).neg().add(1.0)
    M = M.requires_grad_()
    C = normal(4, 4)
    (gradient,) = torch.autograd.grad((C * optimal_transport(M, gamma=gamma)).sum(), M)
    alone = pair.expand(2, 2, 2).clone().requires_grad_()
    parts = 0.5 * optimal_transport(alone, gamma=gamma)
    (expected,) = torch.autograd.grad((torch.stack([C[:2, :2], C[2:, 2:]]) * parts).sum(), alone)
    found = torch.stack([gradient[:2, :2], gradient[2:, 2:]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9 + 20.0 * gamma * math.exp(-0.95 * gamma))


def test_disconnected_plan_is_not_differentiable_in_the_marginals() -> None:
    M, r = 1.0 - torch.eye(4, dtype=torch.float64), torch.full((4,), 0.25).double().requires_grad_()
    P = optimal_transport(M, r, gamma=200.0)
    with pytest.raises(DerivativeError, match="lower gamma"):
        (P * normal(4, 4)).sum().backward()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"r": double(1.0, 1.0)}, "equal sums"),
        ({"r": double(1.0, 0.0)}, "positive"),
        ({"gamma": -1.0}, "gamma"),
    ],
)
def test_invalid_marginals_are_rejected(change: dict[str, torch.Tensor | float], match: str) -> None:
    arguments = {"M": normal(2, 3), "r": double(0.5, 0.5), "c": double(0.2, 0.3, 0.5), "gamma": 1.0, **change}
    with pytest.raises(ProblemError, match=match):
        optimal_transport(**arguments)  # type: ignore[arg-type]


def test_iteration_limit_raises() -> None:
    with pytest.raises(SolverError, match="after 5 iterations"):
        optimal_transport(torch.rand(30, 30, dtype=torch.float64), gamma=500.0, max_iter=5)
