"""Closed forms under autocast, torch.compile and pickle, and with half-precision inputs."""

from __future__ import annotations

import pickle
import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

import convexlayer.nodes as nodes
from convexlayer.errors import ProblemError, ShapeError
from convexlayer.nodes import (
    Huber,
    Welsch,
    eigen_decomposition,
    least_squares,
    nearest_simplex_etf,
    optimal_transport,
    orthogonal_procrustes,
    perspective_n_point,
    project_l2_ball,
    robust_pool,
    simplex_etf,
)
from convexlayer.nodes.closed_form import ClosedForm
from tests.nodes.closed_form.cases import FORMS, Form

PUBLIC = [getattr(nodes, name) for name in nodes.__all__ if hasattr(getattr(nodes, name), "__wrapped__")]

POINTS = torch.ones(3, 2)

every = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (least_squares, [(1, 5, 2), (1, 5)]),
        (lambda x: eigen_decomposition(x)[1], [(1, 3, 3)]),
        (project_l2_ball, [(1, 3)]),
        (orthogonal_procrustes, [(1, 3, 4), (1, 3, 4)]),
        (optimal_transport, [(1, 3, 4)]),
        (lambda x: robust_pool(x, Huber()), [(1, 5, 2)]),
    ],
)
def test_plain_call_records_one_autograd_function(
    function: Callable[..., torch.Tensor], shapes: list[tuple[int, ...]]
) -> None:
    """At small sizes recording dominates the cost of a call."""
    tensors = [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes]
    node = function(*tensors).grad_fn
    assert node is not None
    before = [following.name() for following, _ in node.next_functions if following is not None]
    assert before == ["torch::autograd::AccumulateGrad"] * len(tensors)


@every
def test_autocast_runs_in_float32(form: Form) -> None:
    """Both passes equal those in float32 without autocast."""
    singles = tuple(t.detach().float().requires_grad_() for t in form.tensors(2))
    expected = form.outputs(*singles)
    wanted = torch.autograd.grad([o.square().sum() for o in expected], singles)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = form.outputs(*singles)
        gradients = torch.autograd.grad([o.square().sum() for o in found], singles)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(gradients, wanted, strict=True))


def test_half_precision_inputs_under_autocast_give_float32() -> None:
    A, B = torch.randn(4, 5).requires_grad_(), torch.randn(5, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = A @ B
        U = orthogonal_procrustes(A=features, B=torch.randn(4, 6))  # keyword arguments of two dtypes
        total = least_squares(features, torch.ones(4), rcond=1e-3).sum() + U.sum()
    assert features.dtype == torch.bfloat16
    assert U.dtype == torch.float32
    total.backward()
    assert A.grad is not None
    assert A.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rejected_without_autocast(dtype: torch.dtype) -> None:
    with pytest.raises(ProblemError, match=f"expected a float32 or float64 tensor, got {dtype}; convert it first"):
        project_l2_ball(torch.ones(3, dtype=dtype))


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("b", lambda values: least_squares(torch.eye(2), values)),
        ("x", project_l2_ball),
        ("X", eigen_decomposition),
        ("M", optimal_transport),
        ("A", lambda values: orthogonal_procrustes(values, torch.eye(2))),
        ("B", lambda values: orthogonal_procrustes(torch.eye(2), values)),
        ("means", nearest_simplex_etf),
        ("X", lambda values: perspective_n_point(values, torch.ones(6, 2))),
        ("x", lambda values: perspective_n_point(torch.ones(6, 3), values)),
        ("x", lambda values: robust_pool(values, Huber())),
        ("start", lambda values: robust_pool(torch.ones(3, 2), Huber(), start=values)),
    ],
)
def test_non_tensors_are_rejected_by_name(name: str, function: Callable[[Any], Any]) -> None:
    with pytest.raises(ProblemError, match=f"^{name}: expected a float32 or float64 tensor, got list; convert it"):
        function([1.0, 2.0])


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (eigen_decomposition, {"X": torch.eye(3), "k": 1.5}, "k must be an integer, or None, got 1.5 (float)"),
        (eigen_decomposition, {"X": torch.eye(3), "k": 4}, "k: expected 1 to 3, the size of X, got 4"),
        (simplex_etf, {"K": 2.5}, "K must be an integer, got 2.5 (float)"),
        (robust_pool, {"x": POINTS, "penalty": "huber"}, "penalty must be a penalty such as Huber(), got 'huber'"),
        (robust_pool, {"x": POINTS, "penalty": Huber}, "penalty must be a penalty such as Huber()"),
        (robust_pool, {"x": POINTS, "penalty": Huber(), "tol": -1.0}, "tol must be a number of at least 0, got -1.0"),
        (optimal_transport, {"M": POINTS, "tol": float("nan")}, "tol must be a number of at least 0, got nan"),
        (optimal_transport, {"M": POINTS, "max_iter": 1.5}, "max_iter must be an integer of at least 0, got 1.5"),
        (perspective_n_point, {"X": torch.ones(6, 3), "x": torch.ones(6, 2), "max_iter": -1}, "max_iter must be an"),
        (least_squares, {"A": torch.eye(2), "b": torch.ones(2), "rcond": "small"}, "rcond must be a number, or None"),
        (project_l2_ball, {"x": torch.ones(2), "radius": "one"}, "radius must be a tensor or a number, got 'one'"),
    ],
)
def test_invalid_options_are_rejected_by_name(
    function: Callable[..., Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ProblemError, match=re.escape(message)):
        function(**options)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((5, 2), (4,)), r"b: expected shape \(..., 5\), got \(4,\)"),
        (((5,), (5,)), r"A: expected shape \(..., m, n\), got \(5,\)"),
        (((5, 0), (5,)), r"A: expected at least one n, got \(5, 0\)"),
        (((3, 5, 2), (2, 5)), r"leading axes must broadcast, but A has \(3,\), b has \(2,\)"),
    ],
)
def test_mismatched_shapes_are_rejected(shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        least_squares(*(torch.ones(shape) for shape in shapes))


def forms(kind: type[Any]) -> list[type[Any]]:
    return [kind, *(deeper for other in kind.__subclasses__() for deeper in forms(other))]


def test_closed_form_functions_pickle() -> None:
    assert len(PUBLIC) == 15
    for function in PUBLIC:
        assert pickle.loads(pickle.dumps(function)) is function
    x = torch.randn(6, 2)
    pool = pickle.loads(pickle.dumps(partial(robust_pool, penalty=Welsch(), alpha=2.0)))
    assert torch.equal(pool(x), robust_pool(x, Welsch(), 2.0))


def test_closed_form_objects_pickle() -> None:
    found = [value for kind in forms(ClosedForm) for value in vars(sys.modules[kind.__module__]).values()]
    several = [value for one in found for value in (one.values() if isinstance(one, dict) else [one])]
    objects = [value for value in several if isinstance(value, ClosedForm)]
    assert len({id(value) for value in objects}) >= 15
    for form in objects:
        again = pickle.loads(pickle.dumps(form))
        assert type(again) is type(form)
        assert again.__dict__.keys() == form.__dict__.keys()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own tracing
@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (least_squares, [(5, 2), (5,)]),
        (lambda x: eigen_decomposition(x)[0], [(3, 3)]),
        (lambda x: robust_pool(x, Huber()), [(5, 2)]),
        (lambda x: orthogonal_procrustes(x, simplex_etf(3), previous=torch.eye(3)), [(3, 3)]),
    ],
)
def test_torch_compile_does_not_change_results(
    function: Callable[..., torch.Tensor], shapes: list[tuple[int, ...]]
) -> None:
    def around(*tensors: torch.Tensor) -> torch.Tensor:
        return 2.0 * function(*(t + 1.0 for t in tensors))

    torch.compiler.reset()
    tensors = tuple(torch.randn(shape).requires_grad_() for shape in shapes)
    compiled = torch.compile(around, backend="eager")(*tensors)
    expected = around(*tensors)
    assert torch.equal(compiled, expected)
    cotangent = torch.randn_like(expected)
    for ours, theirs in zip(*(torch.autograd.grad(y, tensors, cotangent) for y in (compiled, expected)), strict=True):
        assert torch.equal(ours, theirs)


def test_torch_compile_breaks_the_graph_once_per_call() -> None:
    torch.compiler.reset()
    graphs = []

    def count(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    torch.compile(lambda x: 2.0 * project_l2_ball(x + 1.0), backend=count)(torch.randn(4))
    assert len(graphs) == 2
