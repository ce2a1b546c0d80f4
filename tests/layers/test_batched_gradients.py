"""Batches of cotangents: vmap over torch.autograd.grad, and torch.autograd's legacy vmap."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import cvxpy as cp
import pytest
import torch

from convexlayer import ConvexLayer, DerivativeError
from tests.families import Family, family

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by torch, at the first jvp

LANES = 3
NAMES = ("quadratic", "nearest_correlation", "geometric_program", "entropy_maximisation")
Tensors = tuple[torch.Tensor, ...]
Pulled = tuple[torch.Tensor | None, ...]


def same(left: Any, right: Any) -> None:
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


def forward(case: Family, batched: tuple[bool, ...]) -> tuple[Tensors, Tensors]:
    """Parameters, with a batch axis as given by ``batched``, and the outputs with the objective values."""
    full, single = case.tensors(2), case.tensors(seed=1)
    tensors = tuple(f if b else s for f, s, b in zip(full, single, batched, strict=True))
    outputs, report = case.layer().solve(*case.prepared(tensors))
    return tensors, (*outputs, report.objective)


def draw(outputs: Tensors, *axes: int) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn((*axes, *o.shape), generator=generator, dtype=o.dtype) for o in outputs)


def by_vmap(outputs: Tensors, tensors: Tensors, weights: Tensors, **options: bool) -> Pulled:
    def pull(*cotangents: torch.Tensor) -> Pulled:
        return torch.autograd.grad(outputs, tensors, cotangents, retain_graph=True, **options)

    return torch.vmap(pull)(*weights)


def by_autograd(outputs: Tensors, tensors: Tensors, weights: Tensors, **options: bool) -> Pulled:
    return torch.autograd.grad(outputs, tensors, weights, retain_graph=True, is_grads_batched=True, **options)


def by_loop(outputs: Tensors, tensors: Tensors, weights: Tensors, **options: bool) -> Pulled:
    rows = [
        torch.autograd.grad(outputs, tensors, [w[i] for w in weights], retain_graph=True, **options)
        for i in range(len(weights[0]))
    ]
    return tuple(None if column[0] is None else torch.stack(column) for column in zip(*rows, strict=True))


WAYS = pytest.mark.parametrize("way", [by_vmap, by_autograd])
Way = Callable[..., Pulled]


@WAYS
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("create_graph", [False, True])
def test_all_outputs_and_parameters(way: Way, name: str, batched: bool, create_graph: bool) -> None:
    case = family(name)
    tensors, outputs = forward(case, (batched,) * len(case.parameters))
    weights = draw(outputs, LANES)
    pulled = way(outputs, tensors, weights, create_graph=create_graph)
    assert [p.shape for p in pulled] == [(LANES, *t.shape) for t in tensors]
    same(pulled, by_loop(outputs, tensors, weights))


@WAYS
@pytest.mark.parametrize("batched", list(product([False, True], repeat=3)))
def test_batched_and_unbatched_parameters_mix(way: Way, batched: tuple[bool, ...]) -> None:
    case = family("quadratic")
    tensors, outputs = forward(case, (*batched, False, batched[0]))
    weights = draw(outputs, LANES)
    same(way(outputs, tensors, weights), by_loop(outputs, tensors, weights))


@WAYS
@pytest.mark.parametrize("chosen", [(0,), (1, 2), (3,), (0, 3), (2,)])
@pytest.mark.parametrize("wrt", [(0,), (1, 4), (0, 1, 2, 3, 4)])
def test_some_outputs_and_some_parameters(way: Way, chosen: tuple[int, ...], wrt: tuple[int, ...]) -> None:
    """The other outputs have the cotangent None; the last output is the objective."""
    tensors, outputs = forward(family("quadratic"), (True, False, False, True, False))
    outputs = tuple(outputs[i] for i in chosen)
    tensors = tuple(tensors[i] for i in wrt)
    weights = draw(outputs, LANES)
    same(way(outputs, tensors, weights), by_loop(outputs, tensors, weights))


def test_unused_parameters_have_no_gradient() -> None:
    tensors, outputs = forward(family("quadratic"), (True,) * 5)
    other, weights = torch.ones(2, dtype=torch.float64, requires_grad=True), draw(outputs[:1], LANES)
    pulled = by_autograd(outputs[:1], (tensors[0], other), weights, allow_unused=True)
    assert pulled[1] is None
    same(pulled[0], by_loop(outputs[:1], tensors[:1], weights)[0])


@pytest.mark.parametrize(("way", "lanes"), [(by_vmap, 0), (by_vmap, 1), (by_autograd, 1)])
def test_few_cotangents(way: Way, lanes: int) -> None:
    tensors, outputs = forward(family("quadratic"), (True, False, False, False, False))
    weights = draw(outputs, lanes)
    pulled = way(outputs, tensors, weights)
    assert [p.shape for p in pulled] == [(lanes, *t.shape) for t in tensors]


@pytest.mark.parametrize("create_graph", [False, True])
def test_vmap_twice(create_graph: bool) -> None:
    tensors, outputs = forward(family("quadratic"), (True, False, False, False, True))
    weights = draw(outputs, 2, LANES)

    def pull(*cotangents: torch.Tensor) -> Pulled:
        return torch.autograd.grad(outputs, tensors, cotangents, retain_graph=True, create_graph=create_graph)

    twice = torch.vmap(torch.vmap(pull))(*weights)
    rows = [by_loop(outputs, tensors, tuple(w[i] for w in weights)) for i in range(2)]
    same(twice, tuple(torch.stack(column) for column in zip(*rows, strict=True)))
    crossed = torch.vmap(torch.vmap(pull, in_dims=1), in_dims=-1)(*(w.movedim((0, 1), (-1, 1)) for w in weights))
    same(crossed, twice)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
def test_vectorized_jacobians(name: str, strategy: str) -> None:
    case = family(name)
    layer, tensors = case.layer(), tuple(t.detach() for t in case.tensors())

    def function(*ts: torch.Tensor) -> Tensors:
        return layer(*case.prepared(ts))

    vectorized = torch.autograd.functional.jacobian(function, tensors, vectorize=True, strategy=strategy)
    same(vectorized, torch.autograd.functional.jacobian(function, tensors))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch", [None, 2])
def test_gradcheck_of_batched_gradients(name: str, batch: int | None) -> None:
    case = family(name)
    layer = case.layer(options={"tol": 1e-11}, on_degenerate="raise")

    def outputs(*tensors: torch.Tensor) -> Tensors:
        solution, report = layer.solve(*case.prepared(tensors))
        return (*solution, report.objective)

    assert torch.autograd.gradcheck(
        outputs,
        case.tensors(batch),
        eps=1e-4,
        atol=5e-5,
        rtol=1e-4,
        fast_mode=True,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )


@WAYS
def test_failed_rows_do_not_affect_the_others(way: Way) -> None:
    x, c, top = cp.Variable(2), cp.Parameter(2), cp.Parameter()
    layer = ConvexLayer(
        cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [x >= 0, x <= top]), [c, top], [x], on_failure="nan"
    )
    theta = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64, requires_grad=True)
    (out,) = layer(theta, torch.tensor([-1.0, 2.0], dtype=torch.float64))
    weights = torch.full((LANES, 2, 2), float("nan"), dtype=torch.float64)
    weights[:, 1] = torch.arange(LANES, dtype=torch.float64)[:, None]
    (pulled,) = way((out,), (theta,), (weights,))
    assert not pulled[:, 0].any()
    same(pulled[:, 1], torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]], dtype=torch.float64))


@WAYS
def test_the_report_covers_every_lane(way: Way) -> None:
    x, c = cp.Variable(2), cp.Parameter(2)
    layer = ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [x >= 0]), [c], [x], on_degenerate="raise")
    theta = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    (out,) = layer(theta)
    with pytest.raises(DerivativeError, match="degenerate"):
        way((out,), (theta,), (torch.eye(2, dtype=torch.float64),))


@WAYS
def test_gradients_have_the_dtype_of_their_tensors(way: Way) -> None:
    case = family("quadratic")
    tensors = tuple(t.detach().float().requires_grad_() for t in case.tensors(2))
    outputs = case.layer()(*tensors)
    pulled = way(outputs, tensors, draw(outputs, LANES))
    assert {p.dtype for p in pulled} == {torch.float32}


def test_second_derivatives_still_raise() -> None:
    tensors, outputs = forward(family("quadratic"), (False,) * 5)
    pulled = by_autograd(outputs, tensors, draw(outputs, LANES), create_graph=True)
    with pytest.raises(DerivativeError, match="second derivatives"):
        torch.autograd.grad(pulled[0].sum(), tensors[:1])
