"""Closed forms equal the implicit derivative of their definition and the limit of an unrolled iteration."""

from __future__ import annotations

import pytest
import torch

from convexlayer.gallery.node_variants import NODE_VARIANTS

LONG = {
    "least squares": 600,
    "eigenvector": 80,
    "transport": 400,
    "pooling": 120,
    "simplex": 20,
    "procrustes": 60,
    "pnp": 12,
}
SIZE = {"pnp": 8}


@pytest.mark.parametrize("name", NODE_VARIANTS)
def test_closed_form_implicit_and_unrolled_derivatives_agree(name: str) -> None:
    variants = NODE_VARIANTS[name]
    inputs = tuple(t.requires_grad_() for t in variants.inputs(SIZE.get(name, 4)))
    implicit = variants.implicit(*inputs)
    found = {
        "by hand": variants.by_hand(*inputs),
        "implicit": implicit(*inputs),
        "unrolled": variants.unrolled(LONG[name], *inputs),
    }
    cotangent = torch.randn_like(found["by hand"])
    gradients = {way: torch.autograd.grad(output, inputs, cotangent) for way, output in found.items()}
    for way in ("implicit", "unrolled"):
        torch.testing.assert_close(found[way], found["by hand"], rtol=1e-8, atol=1e-9)
        for gradient, expected in zip(gradients[way], gradients["by hand"], strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-7, atol=1e-8)
