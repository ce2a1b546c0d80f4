"""Each closed form is the implicit function theorem on its definition, and the limit of an unrolled iteration."""

from __future__ import annotations

import pytest
import torch

from convexlayer.gallery.trios import TRIOS

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


@pytest.mark.parametrize("name", TRIOS)
def test_by_hand_implicit_and_unrolled_agree(name: str) -> None:
    trio = TRIOS[name]
    inputs = tuple(t.requires_grad_() for t in trio.inputs(SIZE.get(name, 4)))
    implicit = trio.implicit(*inputs)
    found = {
        "by hand": trio.by_hand(*inputs),
        "implicit": implicit(*inputs),
        "unrolled": trio.unrolled(LONG[name], *inputs),
    }
    cotangent = torch.randn_like(found["by hand"])
    gradients = {way: torch.autograd.grad(output, inputs, cotangent) for way, output in found.items()}
    for way in ("implicit", "unrolled"):
        torch.testing.assert_close(found[way], found["by hand"], rtol=1e-8, atol=1e-9)
        for gradient, expected in zip(gradients[way], gradients["by hand"], strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-7, atol=1e-8)
