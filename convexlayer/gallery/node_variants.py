"""Nodes differentiated in three ways: by hand, by the implicit function theorem, and unrolled.

All three are the same function. The first is the closed form. The implicit node is given by objective and constraints,
and starts at the closed form's solution, so that only its backward pass differs. The unrolled one is an iteration
recorded by autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from convexlayer.nodes import (
    ArgminNode,
    EqualityNode,
    InequalityNode,
    NodeOptions,
    PseudoHuber,
    eigen_decomposition,
    least_squares,
    optimal_transport,
    orthogonal_procrustes,
    perspective_n_point,
    project_simplex,
    robust_pool,
    rotation_of,
)

__all__ = ["NODE_VARIANTS", "NodeVariants"]

Tensors = tuple[torch.Tensor, ...]
Node = Callable[..., torch.Tensor]

SINKHORN_GAMMA = 10.0
"""Inverse temperature of the transport node."""

POSE_NOISE = 0.01
"""Standard deviation of the image points, focal lengths."""


@dataclass(frozen=True)
class NodeVariants:
    """Three variants of one node, for one element.

    Attributes:
        inputs: size -> input tensors, float64.
        by_hand: closed form, tensors -> output.
        implicit: tensors -> node for their shapes, which starts at the closed form's solution.
        unrolled: (iterations, tensors) -> output.
    """

    inputs: Callable[[int], Tensors]
    by_hand: Node
    implicit: Callable[..., Node]
    unrolled: Callable[..., torch.Tensor]


def _options(start: Callable[..., torch.Tensor]) -> NodeOptions:
    return NodeOptions(start=lambda *theta: start(*(t.detach() for t in theta)))


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# --- least squares ---------------------------------------------------------------------------------------------------


def _squares_node(A: torch.Tensor, b: torch.Tensor) -> Node:
    def f(x: torch.Tensor, A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (A @ x - b).square().sum()

    return ArgminNode(f, (A.shape[1],), [tuple(A.shape), tuple(b.shape)], options=_options(least_squares))


def _squares_descent(iterations: int, A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Gradient descent with the optimal step 2 / (largest + smallest eigenvalue of A'A)."""
    values = torch.linalg.svdvals(A.detach()).square()
    step = 2.0 / (values[0] + values[-1])
    x = A.new_zeros(A.shape[1])
    for _ in range(iterations):
        x = x - step * (A.T @ (A @ x - b))
    return x


# --- the largest eigenvector -----------------------------------------------------------------------------------------


def _gapped(n: int) -> Tensors:
    """Symmetric matrix with eigenvalues 0 to 1/2, and 1, for which power iterations halve the error."""
    Q = torch.linalg.qr(_normal(n, n)).Q
    values = torch.linspace(0.0, 0.5, n, dtype=torch.float64)
    values[-1] = 1.0
    return (Q * values @ Q.T,)


def _top(X: torch.Tensor) -> torch.Tensor:
    return eigen_decomposition(X, 1)[1][..., 0]


def _eigen_node(X: torch.Tensor) -> Node:
    def f(u: torch.Tensor, X: torch.Tensor) -> torch.Tensor:
        return -(u @ X @ u)

    def h(u: torch.Tensor, X: torch.Tensor) -> torch.Tensor:
        return (u @ u - 1.0)[None]

    return EqualityNode(f, h, (X.shape[0],), [tuple(X.shape)], options=_options(_top))


def _power_iterations(iterations: int, X: torch.Tensor) -> torch.Tensor:
    """Power iterations, with the sign of the closed form, whose largest entry is positive."""
    u = torch.ones_like(X[0])
    symmetric = 0.5 * (X + X.T)
    for _ in range(iterations):
        u = symmetric @ u
        u = u / torch.linalg.vector_norm(u)
    return u * u.detach()[u.detach().abs().argmax()].sign()


# --- optimal transport -----------------------------------------------------------------------------------------------


def _plan(M: torch.Tensor) -> torch.Tensor:
    return optimal_transport(M, gamma=SINKHORN_GAMMA, tol=1e-13)


def _transport_node(M: torch.Tensor) -> Node:
    m, n = M.shape

    def f(P: torch.Tensor, M: torch.Tensor) -> torch.Tensor:
        return (M * P).sum() + torch.special.xlogy(P, P).sum() / SINKHORN_GAMMA

    def h(P: torch.Tensor, M: torch.Tensor) -> torch.Tensor:
        return torch.cat([P.sum(1) - 1.0 / m, P.sum(0)[1:] - 1.0 / n])  # one of the sums follows from the others

    return EqualityNode(f, h, (m, n), [(m, n)], options=_options(_plan))


def _sinkhorn(iterations: int, M: torch.Tensor) -> torch.Tensor:
    """Sinkhorn iterations in the log domain."""
    m, n = M.shape
    K = -SINKHORN_GAMMA * M
    log_r, log_c = -torch.log(M.new_tensor([m, n], dtype=M.dtype))
    f, g = M.new_zeros(m), M.new_zeros(n)
    for _ in range(iterations):
        f = log_r - torch.logsumexp(K + g, 1)
        g = log_c - torch.logsumexp(K + f[:, None], 0)
    return torch.exp(K + f[:, None] + g)


# --- robust pooling --------------------------------------------------------------------------------------------------


def _pooled(x: torch.Tensor) -> torch.Tensor:
    return robust_pool(x, PseudoHuber())


def _pooling_node(x: torch.Tensor) -> Node:
    def f(u: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (torch.sqrt(1.0 + (u - x).square().sum(-1)) - 1.0).sum()

    return ArgminNode(f, (x.shape[1],), [tuple(x.shape)], options=_options(_pooled))


def _reweighted(iterations: int, x: torch.Tensor) -> torch.Tensor:
    """Iteratively reweighted averages."""
    u = x.mean(0)
    for _ in range(iterations):
        w = torch.rsqrt(1.0 + (u - x).square().sum(-1))
        u = (w @ x) / w.sum()
    return u


# --- projection on the simplex ---------------------------------------------------------------------------------------


def _simplex_node(x: torch.Tensor) -> Node:
    def f(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * (y - x).square().sum()

    def g(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return -y

    def h(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (y.sum() - 1.0)[None]

    shape = tuple(x.shape)
    return InequalityNode(f, g, shape, [shape], h=h, options=_options(project_simplex))


def _michelot(iterations: int, x: torch.Tensor) -> torch.Tensor:
    """Michelot's algorithm: Newton steps for the multiplier tau of the sum, from a tau below all entries."""
    tau = x.detach().min() - 1.0 / len(x)
    for _ in range(iterations):
        above = torch.relu(x - tau)
        tau = tau + (above.sum() - 1.0) / (above > 0).sum()
    return torch.relu(x - tau)


# --- orthogonal Procrustes -------------------------------------------------------------------------------------------


def _procrustes_node(A: torch.Tensor, B: torch.Tensor) -> Node:
    d = A.shape[0]
    upper = torch.triu_indices(d, d)

    def f(U: torch.Tensor, A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
        return (A - U @ B).square().sum()

    def h(U: torch.Tensor, A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
        return (U.T @ U - torch.eye(d, dtype=U.dtype))[upper[0], upper[1]]

    return EqualityNode(f, h, (d, d), [tuple(A.shape), tuple(B.shape)], options=_options(orthogonal_procrustes))


def _newton_schulz(iterations: int, A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """Newton-Schulz iteration U <- U (3 I - U'U) / 2 for the polar factor of A B', from A B' scaled to norm 1."""
    U = A @ B.T
    U = U / torch.linalg.matrix_norm(U.detach(), 2)
    identity = torch.eye(len(U), dtype=U.dtype)
    for _ in range(iterations):
        U = 0.5 * U @ (3.0 * identity - U.T @ U)
    return U


# --- perspective-n-point ---------------------------------------------------------------------------------------------


def _views(n: int) -> Tensors:
    X = _normal(n, 3)
    Y = X @ rotation_of(_normal(3, seed=1)).T + torch.tensor([0.2, -0.1, 6.0], dtype=torch.float64)
    return X, Y[:, :2] / Y[:, 2:] + POSE_NOISE * _normal(n, 2, seed=2), 0.5 + _normal(n, seed=3).square()


def _joined(R: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.cat([R, t[..., None]], -1)


def _pose(X: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return _joined(*perspective_n_point(X, x, w))


def _reprojection(
    delta: torch.Tensor, X: torch.Tensor, x: torch.Tensor, w: torch.Tensor, R: torch.Tensor, t: torch.Tensor
) -> torch.Tensor:
    Y = X @ (rotation_of(delta[:3]) @ R).T + t + delta[3:]
    return (w * (Y[:, :2] / Y[:, 2:] - x).square().sum(-1)).sum()


def _pose_node(X: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> Node:
    """Node for the pose in six coordinates about the solution."""
    shapes = [tuple(t.shape) for t in (X, x, w)]
    node = ArgminNode(_reprojection, (6,), [*shapes, (3, 3), (3,)], options=NodeOptions(start=torch.zeros(6).double()))

    def pose(X: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        R, t = perspective_n_point(X.detach(), x.detach(), w.detach())
        delta = node(X, x, w, R, t)
        return _joined(rotation_of(delta[:3]) @ R, t + delta[3:])

    return pose


def _gauss_newton(iterations: int, X: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Gauss-Newton steps from a nearby pose."""
    with torch.no_grad():
        R, t = perspective_n_point(X, x, w)
        R = rotation_of(torch.full((3,), 0.02, dtype=X.dtype)) @ R
    for _ in range(iterations):
        q = X @ R.T
        Y = q + t
        depth, seen = Y[:, 2:], Y[:, :2] / Y[:, 2:]
        zero = torch.zeros_like(q[:, 0])
        turned = [[zero, q[:, 2], -q[:, 1]], [-q[:, 2], zero, q[:, 0]], [q[:, 1], -q[:, 0], zero]]  # -[q]
        D = torch.cat(
            [torch.stack([torch.stack(row, -1) for row in turned], -2), torch.eye(3).to(q).expand(len(q), 3, 3)], -1
        )
        J = (D[:, :2] - seen[:, :, None] * D[:, 2:]) / depth[..., None]
        gram = torch.einsum("n,nka,nkb->ab", w, J, J)
        step = -torch.linalg.solve(gram, torch.einsum("n,nka,nk->a", w, J, seen - x))
        R, t = rotation_of(step[:3]) @ R, t + step[3:]
    return _joined(R, t)


NODE_VARIANTS: dict[str, NodeVariants] = {
    "least squares": NodeVariants(
        lambda n: (_normal(2 * n, n), _normal(2 * n, seed=1)), least_squares, _squares_node, _squares_descent
    ),
    "eigenvector": NodeVariants(_gapped, _top, _eigen_node, _power_iterations),
    "transport": NodeVariants(
        lambda n: (torch.rand(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),),
        _plan,
        _transport_node,
        _sinkhorn,
    ),
    "pooling": NodeVariants(lambda n: (_normal(n, 3),), _pooled, _pooling_node, _reweighted),
    "simplex": NodeVariants(lambda n: (_normal(n),), project_simplex, _simplex_node, _michelot),
    "procrustes": NodeVariants(
        lambda n: (_normal(n, 3 * n), _normal(n, 3 * n, seed=1)),
        orthogonal_procrustes,
        _procrustes_node,
        _newton_schulz,
    ),
    "pnp": NodeVariants(_views, _pose, _pose_node, _gauss_newton),
}
"""Variants by name of the node. The size n is the number of unknowns or points; transport and Procrustes are n by n."""
