"""RankSVM, with the order of frames as inequalities: the node, the convex layer and finite differences agree.

minimise over u, xi    1/2 |u|^2 + C sum xi_ij     subject to    (v_i - v_j)'u >= 1 - xi_ij,  xi >= 0,  all j < i
"""

from __future__ import annotations

import cvxpy as cp
import pytest
import torch

from convexlayer import ConvexLayer
from convexlayer.nodes import InequalityNode

FRAMES, D, C = 5, 3, 0.3
LATER, EARLIER = torch.tril_indices(FRAMES, FRAMES, offset=-1)
PAIRS = len(LATER)


def objective(z: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return 0.5 * z[:D].square().sum() + C * z[D:].sum()


def violations(z: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    u, xi = z[:D], z[D:]
    return torch.cat([1.0 - xi - (v[LATER] - v[EARLIER]) @ u, -xi])


NODE = InequalityNode(objective, violations, (D + PAIRS,), [(FRAMES, D)])


def pooled(v: torch.Tensor) -> torch.Tensor:
    point, _ = NODE.solve(v)
    return torch.cat([point.y, point.mu], -1)


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    """Two sequences, each a trend in noise, with pairs in order, on the margin and out of order."""
    generator = torch.Generator().manual_seed(1)
    trend = torch.arange(FRAMES, dtype=torch.float64).unsqueeze(-1) * torch.tensor([0.5, -0.3, 0.1]).double()
    return trend + torch.randn(2, FRAMES, D, dtype=torch.float64, generator=generator)


def test_data_has_every_kind_of_pair(frames: torch.Tensor) -> None:
    point, _ = NODE.solve(frames)
    order = point.mu[:, :PAIRS]
    inside = (order > 1e-6) & (order < C - 1e-6)
    for kind in (order < 1e-6, inside, order > C - 1e-6):
        assert kind.any(-1).all()


def test_node_and_layer_agree(frames: torch.Tensor) -> None:
    v, u, xi = cp.Parameter((FRAMES, D)), cp.Variable(D), cp.Variable(PAIRS)
    ordered, slack = (v[LATER.numpy()] - v[EARLIER.numpy()]) @ u >= 1 - xi, xi >= 0
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(u) + C * cp.sum(xi)), [ordered, slack])
    duals = [constraint.dual_variables[0] for constraint in (ordered, slack)]
    layer = ConvexLayer(problem, [v], [u, xi, *duals], options={"tol": 1e-12})
    theta = frames.clone().requires_grad_()
    ours, theirs = pooled(theta), torch.cat(layer(theta), -1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)
    cotangent = torch.randn_like(ours)
    (mine,), (layers,) = (torch.autograd.grad(z, theta, cotangent) for z in (ours, theirs))
    torch.testing.assert_close(mine, layers, rtol=1e-7, atol=1e-7)


def test_gradient_matches_finite_differences(frames: torch.Tensor) -> None:
    assert torch.autograd.gradcheck(pooled, frames.clone().requires_grad_(), fast_mode=True)
