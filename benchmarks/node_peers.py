"""Cost of a node call at small sizes: ours, the deep declarative networks library, and unrolling.

The library is optional and not a package: clone https://github.com/anucvml/ddn and put the clone on PYTHONPATH. Inputs
have its layout; our calls include the transposition. Gradients are compared with finite differences first.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from benchmarks.node_cases import OURS, UNROLLED, by_differences, compared
from benchmarks.problem import Tensors
from benchmarks.timing import Plan
from convexlayer.nodes import (
    ArgminNode,
    EqualityNode,
    GivenBatch,
    NodeOptions,
    PseudoHuber,
    eigen_decomposition,
    least_squares,
    optimal_transport,
    project_l1_ball,
    project_l2_sphere,
    project_linf_ball,
    robust_pool,
)

__all__ = ["CASES", "LIBRARY", "importable", "small"]

LIBRARY = "ddn"
"""Package of the peer, and its name in the tables."""

SOLVED = 1e-5
"""Gradient norm to which the library's nodes solve."""

Function = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Case:
    """A node with one output.

    Attributes:
        shapes: shapes of one element's inputs.
        ours: (*inputs) -> output, by name.
        peer: builds the library's function from its modules.
        others: further implementations by name.
        uniform: whether inputs are uniform on [0, 1]; else normal.
    """

    shapes: tuple[tuple[int, ...], ...]
    ours: Mapping[str, Function]
    peer: Callable[[Callable[[str], Any]], Function]
    others: Mapping[str, Function] = field(default_factory=dict)
    uniform: bool = False

    def draw(self, batch: int, seed: int) -> Tensors:
        """Draw the inputs of a batch."""
        generator = torch.Generator().manual_seed(seed)
        make = torch.rand if self.uniform else torch.randn
        return tuple(make((batch, *shape), generator=generator).requires_grad_() for shape in self.shapes)


def importable() -> bool:
    """Whether the library can be imported."""
    try:
        _module("node")
    except ModuleNotFoundError:
        return False
    return True


def small(case: str, batch: int, plan: Plan) -> dict[str, Any]:
    """Measure one case at one batch size."""
    made = CASES[case]
    functions = {**made.ours, **({LIBRARY: made.peer(_module)} if importable() else {}), **made.others}
    calls = {name: partial(_call, function) for name, function in functions.items()}
    draws = [made.draw(batch, seed) for seed in range(3)]
    error_of = partial(by_differences, calls[OURS])
    return {**compared(case, draws, calls, error_of, plan), "batch": batch}


def _module(name: str) -> Any:
    return importlib.import_module(f"{LIBRARY}.pytorch.{name}")


def _call(function: Function, theta: Tensors) -> Tensors:
    return (function(*theta),)


# --- closed forms ----------------------------------------------------------------------------------------------------


def _squares(X: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return least_squares(X.mT, t[:, 0])


def _peer_squares(module: Callable[[str], Any]) -> Function:
    function = module("leastsquares").WeightedLeastSquaresFcn
    # Without the cached factor it calls torch.solve, which torch has removed.
    return lambda X, t: function.apply(X, t, None, 1e-12, True, False)[0]


def _conjugate_gradients(X: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Conjugate gradients on the normal equations, with one iteration per unknown."""
    G, g = X @ X.mT, X @ t.mT
    u = torch.zeros_like(g)
    p = r = g
    for _ in range(X.shape[1]):
        Gp = G @ p
        alpha = (r * r).sum(1, keepdim=True) / (p * Gp).sum(1, keepdim=True)
        u, new = u + alpha * p, r - alpha * Gp
        p, r = new + (new * new).sum(1, keepdim=True) / (r * r).sum(1, keepdim=True) * p, new
    return u[:, :, 0]


def _projector(X: torch.Tensor) -> torch.Tensor:
    Y = eigen_decomposition(X, 2)[1]
    return Y @ Y.mT


def _peer_projector(module: Callable[[str], Any]) -> Function:
    function = module("eigen_decomposition").EigenDecompositionFcn

    def projector(X: torch.Tensor) -> torch.Tensor:
        Y = function.apply(X, 2)
        return Y @ Y.mT

    return projector


def _peer_projection(method: str) -> Callable[[Callable[[str], Any]], Function]:
    def make(module: Callable[[str], Any]) -> Function:
        projections = module("projections")
        layer: Function = projections.EuclideanProjection(getattr(projections, method)).double()
        return layer

    return make


def _peer_transport(module: Callable[[str], Any]) -> Function:
    layer: Function = module("optimal_transport").OptimalTransportLayer(gamma=1.0, eps=1e-10)
    return layer


def _scaled(M: torch.Tensor) -> torch.Tensor:
    """Sinkhorn iterations, as many as these costs need."""
    K = torch.exp(-M)
    v = torch.ones_like(M[:, :1]).mT
    for _ in range(10):
        u = 1.0 / M.shape[1] / (K @ v)
        v = 1.0 / M.shape[2] / (K.mT @ u)
    return u * K * v.mT


def _pool(x: torch.Tensor) -> torch.Tensor:
    return robust_pool(x.flatten(2).mT, PseudoHuber())


def _peer_pool(module: Callable[[str], Any]) -> Function:
    pooling = module("robust_vec_pool")
    # The layer passes an extra argument without a gradient in its backward, which torch rejects.
    return lambda x: pooling.RobustVectorPool2dFcn.apply(x, pooling.PseudoHuber, 1.0)


def _averages(x: torch.Tensor) -> torch.Tensor:
    points = x.flatten(2)
    u = points.mean(-1, keepdim=True)
    for _ in range(40):
        w = torch.rsqrt(1.0 + (u - points).square().sum(1, keepdim=True))
        u = (w * points).sum(-1, keepdim=True) / w.sum(-1, keepdim=True)
    return u[:, :, 0]


# --- nodes of functions ----------------------------------------------------------------------------------------------


def _objective(y: torch.Tensor, A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return 0.5 * (A @ y - b).square().sum() + 0.25 * y.pow(4).sum()


def _peer_argmin(module: Callable[[str], Any]) -> Function:
    node = module("node")

    def objective(_: Any, A: torch.Tensor, b: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        residual = (A @ y[:, :, None])[:, :, 0] - b
        return 0.5 * residual.square().sum(-1) + 0.25 * y.pow(4).sum(-1)

    def solve(self: Any, A: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, None]:
        y = torch.zeros_like(A[:, 0]).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [y], max_iter=100, tolerance_grad=SOLVED, tolerance_change=1e-9, line_search_fn="strong_wolfe"
        )

        def total() -> torch.Tensor:
            optimizer.zero_grad()
            f: torch.Tensor = self.objective(A.detach(), b.detach(), y=y).sum()
            f.backward()
            return f

        with torch.enable_grad():
            optimizer.step(total)
        return y.detach(), None

    made = type("Node", (node.AbstractDeclarativeNode,), {"objective": objective, "solve": solve})
    layer: Function = node.DeclarativeLayer(made(eps=10.0 * SOLVED))
    return layer


def _newton(A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    y = torch.zeros_like(A[:, 0])
    gram, target = A.mT @ A, (A.mT @ b[:, :, None])[:, :, 0]
    for _ in range(16):
        gradient = (gram @ y[:, :, None])[:, :, 0] - target + y.pow(3)
        y = y - torch.linalg.solve(gram + 3.0 * torch.diag_embed(y.square()), gradient)
    return y


def _normalised(x: torch.Tensor) -> torch.Tensor:
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def _distance(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return 0.5 * (y - x).square().sum()


def _on_the_sphere(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return y.square().sum()[None] - 1.0


def _peer_sphere(module: Callable[[str], Any]) -> Function:
    node = module("node")

    def objective(_: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return 0.5 * (y - x).square().sum(-1)

    def constraints(_: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y.square().sum(-1) - 1.0

    def solve(_: Any, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _normalised(x), None

    members = {"objective": objective, "equality_constraints": constraints, "solve": solve}
    layer: Function = node.DeclarativeLayer(type("Node", (node.EqConstDeclarativeNode,), members)(eps=10.0 * SOLVED))
    return layer


def _projected_descent(x: torch.Tensor) -> torch.Tensor:
    y = torch.ones_like(x)
    for _ in range(30):
        y = _normalised(y + 10.0 * x)
    return y


GIVEN = f"{OURS}, solution given"

CASES = {
    "least squares, 10 by 4": Case(
        ((4, 10), (1, 10)), {OURS: _squares}, _peer_squares, {f"{UNROLLED}, conjugate gradients": _conjugate_gradients}
    ),
    "projector on 2 of 5 eigenvectors": Case(((5, 5),), {OURS: _projector}, _peer_projector),
    "projection on the l2 sphere, n = 10": Case(
        ((10,),), {OURS: project_l2_sphere}, _peer_projection("L2Sphere"), {"autograd of x / |x|": _normalised}
    ),
    "projection on the l1 ball, n = 10": Case(((10,),), {OURS: project_l1_ball}, _peer_projection("L1Ball")),
    "projection on the linf ball, n = 10": Case(((10,),), {OURS: project_linf_ball}, _peer_projection("LInfBall")),
    "transport, 5 by 6": Case(
        ((5, 6),), {OURS: optimal_transport}, _peer_transport, {f"{UNROLLED}, scaling": _scaled}, uniform=True
    ),
    "robust pooling of 12 points in space": Case(
        ((3, 4, 3),), {OURS: _pool}, _peer_pool, {f"{UNROLLED}, reweighted averages": _averages}
    ),
    "unconstrained node, n = 3": Case(
        ((4, 3), (4,)),
        {OURS: ArgminNode(_objective, (3,), [(4, 3), (4,)])},
        _peer_argmin,
        {f"{UNROLLED}, Newton's method": _newton},
    ),
    "equality node on the sphere, n = 3": Case(
        ((3,),),
        {
            OURS: EqualityNode(_distance, _on_the_sphere, (3,), [(3,)], options=NodeOptions(start=_normalised)),
            GIVEN: EqualityNode(_distance, _on_the_sphere, (3,), [(3,)], solver=GivenBatch(_normalised)),
        },
        _peer_sphere,
        {f"{UNROLLED}, projected descent": _projected_descent},
    ),
}
