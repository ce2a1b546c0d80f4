"""torch.func, forward mode, no_grad and torch.compile."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from convexlayer import DerivativeError, ShapeError
from tests.families import Family, family

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by torch, at the first jvp

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}
NAMES = ("quadratic", "portfolio", "nearest_correlation", "entropy_maximisation", "geometric_program", "power_utility")


def detached(case: Family, batch: int | None = None, seed: int = 0) -> tuple[torch.Tensor, ...]:
    return tuple(t.detach() for t in case.prepared(case.tensors(batch, seed=seed)))


def same(left: object, right: object) -> None:
    torch.testing.assert_close(left, right, **EXACT)


@pytest.mark.parametrize("name", NAMES)
def test_vmap_equals_the_batch(name: str) -> None:
    case = family(name)
    layer, tensors = case.layer(), detached(case, 3)
    same(torch.func.vmap(layer)(*tensors), layer(*tensors))


@pytest.mark.parametrize("batched", list(product([False, True], repeat=3))[1:])
@pytest.mark.parametrize("inner", [(), (0,), (1, 2)])
def test_vmap_over_every_combination(batched: tuple[bool, ...], inner: tuple[int, ...]) -> None:
    """vmap over some inputs, an inner batch axis in some, and mapped axes at other positions equal a loop."""
    case = family("control")
    layer = case.layer()
    singles, lanes = 2, 3

    def tensor(i: int, shape: tuple[int, ...]) -> torch.Tensor:
        value = detached(case)[i]
        front = (lanes,) * batched[i] + (singles,) * (i in inner)
        noise = torch.rand((*front, *shape), generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        return value + 0.1 * noise

    tensors = [tensor(i, spec.shape) for i, spec in enumerate(layer.program.parameters)]
    in_dims = tuple(0 if b else None for b in batched)
    mapped = torch.func.vmap(layer, in_dims=in_dims)(*tensors)
    for lane in range(lanes):
        row = layer(*(t[lane] if b else t for t, b in zip(tensors, batched, strict=True)))
        same([m[lane] for m in mapped], list(row))
    last = [t.movedim(0, -1) if b else t for t, b in zip(tensors, batched, strict=True)]
    behind = torch.func.vmap(layer, in_dims=tuple(-1 if b else None for b in batched))(*last)
    same(behind, mapped)


def test_vmap_twice() -> None:
    case = family("quadratic")
    layer = case.layer()
    q = torch.rand(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, A, b, G, h = detached(case)
    twice = torch.func.vmap(torch.func.vmap(lambda v: layer(v, A, b, G, h)[0]))(q)
    same(twice, layer(q.reshape(6, 4), A, b, G, h)[0].reshape(2, 3, 4))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch", [None, 2])
def test_jvp_and_vjp_are_transposes(name: str, batch: int | None) -> None:
    case = family(name)
    layer, tensors = case.layer(), detached(case, batch)
    generator = torch.Generator().manual_seed(0)
    directions = case.prepared([torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in tensors])
    values, moved, *_ = torch.func.jvp(layer, tensors, tuple(directions))
    again, pull, *_ = torch.func.vjp(layer, *tensors)
    same(values, again)
    weights = tuple(torch.randn(v.shape, generator=generator, dtype=v.dtype) for v in values)
    pulled = pull(weights)
    left = sum((w * m).sum() for w, m in zip(weights, moved, strict=True))
    right = sum((p * d).sum() for p, d in zip(pulled, directions, strict=True))
    same(left, right)


@pytest.mark.parametrize("name", NAMES)
def test_jacrev_equals_jacfwd(name: str) -> None:
    case = family(name)
    layer, tensors = case.layer(), case.tensors()
    positions = tuple(range(len(tensors)))

    def function(*ts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return layer(*case.prepared(ts))

    backward = torch.func.jacrev(function, argnums=positions)(*tensors)
    forward = torch.func.jacfwd(function, argnums=positions)(*tensors)
    same(backward, forward)


@pytest.mark.parametrize("transform", [torch.func.jacrev, torch.func.jacfwd])
def test_vmap_of_jacobians(transform: Any) -> None:
    case = family("nearest_correlation")
    layer, (C,) = case.layer(), detached(case, 3)
    jacobian = transform(lambda c: layer(c)[0])
    mapped = torch.func.vmap(jacobian)(C)
    assert mapped.shape == (3, 3, 3, 3, 3)
    same(mapped, torch.stack([jacobian(c) for c in C]))


def test_jacobian_of_a_batch_is_block_diagonal() -> None:
    case = family("simplex_projection")
    layer, (c,) = case.layer(), detached(case, 2)
    whole = torch.func.jacrev(lambda v: layer(v)[0])(c)
    assert whole.shape == (2, 5, 2, 5)
    for i in range(2):
        same(whole[i, :, i], torch.func.jacrev(lambda v: layer(v)[0])(c[i]))
        assert not whole[i, :, 1 - i].any()


def test_per_example_gradients() -> None:
    """vmap of grad, with a parameter shared by all examples."""
    case = family("quadratic")
    layer = case.layer()
    tensors, batch = detached(case), detached(case, 4)[0]

    def loss(shared: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        return layer(q, *tensors[1:4], shared)[0].square().sum()

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(tensors[4], batch)
    same(gradients, torch.stack([torch.func.grad(loss)(tensors[4], q) for q in batch]))
    together = torch.func.grad(lambda h: layer(batch, *tensors[1:4], h)[0].square().sum())(tensors[4])
    same(gradients.sum(0), together)


def test_forward_mode_with_some_tangents_only() -> None:
    case = family("quadratic")
    layer, tensors = case.layer(), detached(case)
    direction = torch.ones_like(tensors[2])
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(tensors[2], direction)
        moved = torch.autograd.forward_ad.unpack_dual(layer(*tensors[:2], dual, *tensors[3:])[0]).tangent
    jacobian = torch.func.jacrev(lambda b: layer(*tensors[:2], b, *tensors[3:])[0])(tensors[2])
    same(moved, jacobian @ direction)


@pytest.mark.parametrize("name", ["quadratic", "geometric_program"])
def test_second_derivatives_raise(name: str) -> None:
    case = family(name)
    layer, tensors = case.layer(), case.tensors()

    def loss(first: torch.Tensor) -> torch.Tensor:
        return layer(first, *tensors[1:])[0].square().sum()

    with pytest.raises(DerivativeError, match="second derivatives"):
        torch.func.hessian(loss)(tensors[0].detach())
    with pytest.raises(DerivativeError, match="second derivatives"):
        torch.func.jacfwd(torch.func.jacfwd(loss))(tensors[0].detach())
    (gradient,) = torch.autograd.grad(loss(tensors[0]), tensors[:1], create_graph=True)
    with pytest.raises(DerivativeError, match="second derivatives"):
        gradient.sum().backward()


def test_create_graph_without_second_derivatives() -> None:
    case = family("quadratic")
    tensors = case.tensors()
    loss = case.layer()(*tensors)[0].sum()
    kept = torch.autograd.grad(loss, tensors, create_graph=True, retain_graph=True)
    same(kept, torch.autograd.grad(loss, tensors))


def test_backward_twice_through_one_graph() -> None:
    case = family("quadratic")
    tensors = case.tensors(2)
    loss = case.layer()(*tensors)[0].sum()
    first = torch.autograd.grad(loss, tensors, retain_graph=True)
    same(first, torch.autograd.grad(loss, tensors))


def test_only_tensors_that_require_gradients_get_them() -> None:
    case = family("quadratic")
    layer = case.layer()
    tensors = [t.detach() for t in case.tensors(2)]
    tensors[2].requires_grad_()
    layer(*tensors)[0].sum().backward()
    assert [t.grad is not None for t in tensors] == [False, False, True, False, False]
    assert not layer(*(t.detach() for t in tensors))[0].requires_grad


def test_no_grad() -> None:
    case = family("quadratic")
    layer, tensors = case.layer(), case.tensors(2)
    with torch.no_grad():
        outputs = layer(*tensors)
    assert not any(o.requires_grad for o in outputs)
    same([o.detach() for o in layer(*tensors)], list(outputs))
    with torch.inference_mode():
        same([o.clone() for o in layer(*tensors)], list(outputs))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # by torch, at a graph break
def test_compile() -> None:
    """Compiled code around the layer, with a graph break at the layer."""
    case = family("quadratic")
    layer, tensors = case.layer(), case.tensors(2)

    def loss(*ts: torch.Tensor) -> torch.Tensor:
        return (layer(2.0 * ts[0], *ts[1:])[0] + 1.0).square().sum()

    compiled = torch.compile(loss, backend="eager")
    same(compiled(*tensors), loss(*tensors))
    same(torch.autograd.grad(compiled(*tensors), tensors), torch.autograd.grad(loss(*tensors), tensors))


def test_errors_under_vmap_name_the_parameter() -> None:
    case = family("quadratic")
    tensors = list(detached(case, 3))
    tensors[1] = tensors[1][..., :2]
    with pytest.raises(ShapeError, match=r"expected shape \(1, 4\)"):
        torch.func.vmap(case.layer())(*tensors)


def test_finite_differences_of_a_directional_derivative() -> None:
    """The jvp of a batch against central differences, for all outputs."""
    case = family("portfolio")
    layer = case.layer(options={"tol": 1e-11})
    tensors = detached(case, 3)
    generator = torch.Generator().manual_seed(2)
    directions = tuple(torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in tensors)
    moved = torch.func.jvp(layer, tensors, directions)[1]
    step = 1e-4
    plus, minus = (
        layer(*(t + sign * step * d for t, d in zip(tensors, directions, strict=True))) for sign in (1.0, -1.0)
    )
    for p, m, expected in zip(plus, minus, moved, strict=True):
        np.testing.assert_allclose((p - m) / (2 * step), expected, atol=1e-5)
