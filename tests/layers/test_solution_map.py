"""The solution map with its NumPy interface."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch

from convexlayer import SolutionMap, Status
from convexlayer.program import Array
from tests.families import SMOOTH, Family, family

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}


def drawn(shapes: list[tuple[int, ...]], seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


def symmetrised(case: Family, values: list[Array]) -> list[Array]:
    return [0.5 * (v + v.swapaxes(-1, -2)) if i in case.symmetric else v for i, v in enumerate(values)]


@pytest.mark.parametrize("name", SMOOTH)
def test_vjp_and_jvp_are_transposes(name: str) -> None:
    """<v, J u> = <J'v, u> for every element, including the objective value."""
    case = family(name)
    solved = SolutionMap(case.program()).solve(case.values(3))
    u = symmetrised(case, drawn([(3, *spec.shape) for spec in case.program().parameters]))
    v = drawn([value.shape for value in solved.outputs], seed=1)
    at_objective = drawn([(3,)], seed=2)[0]
    (*moved, rate), _ = solved.jvp(u)
    pulled, _ = solved.vjp([*v, at_objective])
    left = sum(np.sum((a * b).reshape(3, -1), axis=1) for a, b in zip(v, moved, strict=True)) + at_objective * rate
    right = sum(np.sum((g * d).reshape(3, -1), axis=1) for g, d in zip(pulled, u, strict=True) if g is not None)
    np.testing.assert_allclose(left, right, **EXACT)


def test_the_layer_equals_the_solution_map() -> None:
    case = family("quadratic")
    layer = case.layer()
    tensors = case.tensors(2)
    solved = layer.solution_map.solve([t.detach().numpy() for t in tensors])
    outputs = layer(*tensors)
    for ours, theirs in zip(outputs, solved.outputs, strict=True):
        np.testing.assert_array_equal(ours.detach(), theirs)
    gradients = torch.autograd.grad(sum(o.sum() for o in outputs), tensors)
    for ours, theirs in zip(gradients, solved.vjp([np.ones_like(o) for o in solved.outputs])[0], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_missing_cotangents_and_tangents_are_zero() -> None:
    case = family("quadratic")
    solved = SolutionMap(case.program()).solve(case.values(2))
    x, first, second = solved.outputs
    v = drawn([x.shape])[0]
    some, _ = solved.vjp([v, None, None])
    everything, _ = solved.vjp([v, np.zeros_like(first), np.zeros_like(second), np.zeros(2)])
    for ours, theirs in zip(some, everything, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    gradients, report = solved.vjp([None, None, None])
    assert not any(np.any(g) for g in gradients)
    assert report.trusted
    tangents, report = solved.jvp([None] * 5)
    assert not any(np.any(t) for t in tangents)
    assert report.trusted


def test_wrt_selects_parameters() -> None:
    case = family("quadratic")
    solved = SolutionMap(case.program()).solve(case.values(2))
    v = [np.ones_like(value) for value in solved.outputs]
    everything, some = solved.vjp(v)[0], solved.vjp(v, wrt=[False, True, False, False, True])[0]
    assert [g is None for g in some] == [True, False, True, True, False]
    np.testing.assert_array_equal(some[1], everything[1])
    np.testing.assert_array_equal(some[4], everything[4])


def test_shared_values_and_tangents() -> None:
    """Gradients of a shared parameter have one row per element, or are summed."""
    case = family("quadratic")
    batched, shared = case.values(3), case.values(1)
    values = [batched[0], *(value[0] for value in shared[1:])]
    solved = SolutionMap(case.program()).solve(values)
    assert solved.batched == (True, False, False, False, False)
    assert solved.batch == 3
    cotangents = [np.ones_like(value) for value in solved.outputs]
    gradients, _ = solved.vjp(cotangents)
    assert [g.shape for g in gradients] == [(3, *spec.shape) for spec in case.program().parameters]
    summed, _ = solved.vjp(cotangents, per_element=False)
    np.testing.assert_array_equal(summed[0], gradients[0])
    for total, rows in zip(summed[1:], gradients[1:], strict=True):
        np.testing.assert_array_equal(total, rows.sum(axis=0))
    direction = np.ones(values[2].shape)
    once, repeated = (solved.jvp([None, None, d, None, None])[0] for d in (direction, np.stack([direction] * 3)))
    for left, right in zip(once, repeated, strict=True):
        np.testing.assert_array_equal(left, right)


def test_without_a_batch() -> None:
    case = family("quadratic")
    solved = SolutionMap(case.program()).solve([value[0] for value in case.values(1)])
    assert not any(solved.batched)
    assert [value.shape[0] for value in solved.outputs] == [1, 1, 1]


def test_survives_pickling() -> None:
    case = family("entropy_maximisation")
    made = SolutionMap(case.program(), solver="ecos", options={"tol": 1e-9})
    made.solve(case.values(2)).vjp([None, np.ones(2), None])
    again = pickle.loads(pickle.dumps(made))
    assert (again.solver, again.options) == (made.solver, made.options)
    for left, right in zip(made.solve(case.values(2)).outputs, again.solve(case.values(2)).outputs, strict=True):
        np.testing.assert_array_equal(left, right)


def test_the_attribute_check_can_be_switched_off() -> None:
    case = family("lasso")
    values = case.values(1)
    values[2] = -values[2]
    report = SolutionMap(case.program()).solve(values).report
    assert report.status == (Status.INVALID,)
    assert "is declared nonneg, but the value violates that by" in report.details[0]
    assert SolutionMap(case.program(), check_attributes=False).solve(values).batch == 1
