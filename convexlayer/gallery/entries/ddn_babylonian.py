"""Square roots by the Babylonian algorithm: unrolled and implicit derivatives, and one that autograd gets wrong."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from convexlayer.gallery.measure import saved_bytes
from convexlayer.gallery.result import Claim, Result
from convexlayer.gallery.style import legend_below, panels
from convexlayer.nodes import GivenBatch, StationaryNode

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "Gould 2026, slides: toy example Babylonian algorithm; separate forward and backward operations"

MAGIC = 0x5F3759DF
"""Constant of the fast inverse square root (Quake III): the bits of 1 / sqrt(x) are about this less half of those of
x."""


def babylonian(x: torch.Tensor, iterations: int) -> torch.Tensor:
    """Iterate y <- (y + x / y) / 2 from x / 2."""
    y = 0.5 * x
    for _ in range(iterations):
        y = 0.5 * (y + x / y)
    return y


def fast_inverse_root(x: torch.Tensor) -> torch.Tensor:
    """1 / sqrt(x) in float32, from an integer operation on the bits and one Newton step."""
    bits = x.detach().numpy().view(np.int32)
    y = torch.from_numpy((MAGIC - (bits >> 1)).astype(np.int32).view(np.float32))  # invisible to autograd
    return y * (1.5 - 0.5 * x * y * y)


def _slope(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    (slope,) = torch.autograd.grad(y.sum(), x)
    return slope


def run(*, points: int = 200, iterations: int = 12) -> Result:
    """Compare derivatives after each number of iterations, over x in [0.1, 100]."""
    x = torch.logspace(-1, 2, points, dtype=torch.float64).requires_grad_()
    root, exact = x.detach().sqrt(), 0.5 / x.detach().sqrt()
    values, unrolled, implicit, memory = [], [], [], []
    for count in range(1, iterations + 1):
        y = babylonian(x, count)
        values.append(float((y.detach() / root - 1).abs().max()))
        unrolled.append(float((_slope(y, x) / exact - 1).abs().max()))
        implicit.append(float((0.5 / y.detach() / exact - 1).abs().max()))
        memory.append(saved_bytes(partial(babylonian, x, count)))

    # The same as a node: the stationary point of y^3/3 - x y, computed by the algorithm, differentiated implicitly.
    solver = GivenBatch(lambda x: babylonian(x, iterations))
    node = StationaryNode(lambda y, x: y**3 / 3 - x * y, (), [()], solver=solver)
    through_node = float((_slope(node(x), x) / exact - 1).abs().max())
    node_memory = saved_bytes(lambda: node(x))

    single = x.detach().float().requires_grad_()
    fast = fast_inverse_root(single)
    true_slope = -0.5 * single.detach() ** -1.5
    seen = (_slope(fast, single) / true_slope - 1).abs()
    by_theorem = (-0.5 * fast.detach() / single.detach() / true_slope - 1).abs()
    hidden, recovered = float(seen.max()), float(by_theorem.max())

    numbers: dict[str, Any] = {
        "iterations": list(range(1, iterations + 1)),
        "value_error": values,
        "unrolled_derivative_error": unrolled,
        "implicit_derivative_error": implicit,
        "unrolled_saved_bytes": memory,
        "node_derivative_error": through_node,
        "node_saved_bytes": node_memory,
        "x": x.detach(),
        "fast_inverse_root_errors": {"autograd": seen, "implicit": by_theorem},
        "fast_inverse_root_autograd_error": hidden,
        "fast_inverse_root_implicit_error": recovered,
    }
    claims = [
        Claim(
            "automatic differentiation of the loop computes dy/dx, which could be computed directly as 1 / (2 y)",
            f"after {iterations} iterations unrolled {unrolled[-1]:.0e}, 1/(2y) {implicit[-1]:.0e}, node "
            f"{through_node:.0e} (relative errors)",
            max(unrolled[-1], implicit[-1], through_node) < 1e-12,
        ),
        Claim(
            "the backward code of the loop keeps every iterate",
            f"{memory[0]} bytes after one iteration, {memory[-1]} after {iterations}; the node {node_memory}",
            memory[-1] > 3 * memory[0] and node_memory < memory[-1],
        ),
        Claim(
            "automatic differentiation does not always work: Q_rsqrt",
            f"autograd is wrong by up to {hidden:.0%}, the implicit derivative -y / (2x) by {recovered:.2%}",
            hidden > 0.05 and recovered < 0.005,
        ),
    ]

    def draw(figure: Figure) -> None:
        error, size, fast_error = panels(figure, 3, height=3.5)
        steps = numbers["iterations"]
        floor = torch.finfo(torch.float64).eps
        error.semilogy(steps, np.maximum(values, floor), color="0.7", linewidth=5, label="value")
        error.semilogy(steps, np.maximum(unrolled, floor), "s-", color="C1", label="derivative, unrolled")
        error.semilogy(steps, np.maximum(implicit, floor), "o--", color="C0", label="derivative, $1/(2y)$")
        error.set(xlabel="iterations", ylabel="largest relative error", title=r"$\sqrt{x}$, $x$ from 0.1 to 100")
        size.plot(steps, np.divide(memory, 1024), "s-", color="C1", label="unrolled")
        size.axhline(node_memory / 1024, color="C0", linestyle="--", label="node")
        size.set(xlabel="iterations", ylabel="saved for backward, KiB", ylim=(0, None), title="memory")
        fast_error.loglog(x.detach(), seen, color="C1", label="autograd")
        fast_error.loglog(x.detach(), by_theorem, "--", color="C0", label="$-y / (2x)$")
        fast_error.set(xlabel="$x$", ylabel="relative error of the derivative", title="fast inverse root, float32")
        for axes in (error, size, fast_error):
            legend_below(axes)

    return Result(numbers, claims, draw)
