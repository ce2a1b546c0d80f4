"""Helpers that run a layer forward and backward, and compare results."""

from __future__ import annotations

from typing import Any

import torch

from convexlayer import ConvexLayer

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}


def run(layer: ConvexLayer, *tensors: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Outputs, and the gradients of a fixed random linear loss of all outputs."""
    outputs = list(layer(*tensors))
    generator = torch.Generator().manual_seed(1)
    weights = [
        torch.rand(o.shape[o.ndim > spec_ndim :], generator=generator, dtype=torch.float64)
        for o, spec_ndim in zip(outputs, (len(spec.shape) for spec in layer.program.outputs), strict=True)
    ]
    loss = sum((o * w.to(o.dtype)).sum() for o, w in zip(outputs, weights, strict=True))
    wanted = [t for t in tensors if t.requires_grad]
    return outputs, list(torch.autograd.grad(loss, wanted, allow_unused=True))


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> None:
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, **EXACT)
