"""Solving and differentiating on a given device: equal results, and an error for a missing device."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from convexlayer import SolutionMap, SolverError
from tests.families import family

DEVICES = ["cpu:0", *(["cuda"] if torch.cuda.is_available() else [])]
"""cpu:0 selects the dense methods on the CPU."""


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["quadratic", "simplex_projection", "portfolio"])
def test_dense_and_sparse_methods_agree(name: str, device: str) -> None:
    case = family(name)
    values = case.values(5)
    there, here = SolutionMap(case.program(), device=device), SolutionMap(case.program())
    assert there.solver == "dense"
    assert device in there.reason
    one, other = there.solve(values), here.solve(values)
    rng = np.random.default_rng(0)
    cotangents = [rng.standard_normal(output.shape) for output in one.outputs]
    for left, right in zip(one.outputs, other.outputs, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-7)
    for left, right in zip(one.vjp(cotangents)[0], other.vjp(cotangents)[0], strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-6, atol=1e-6)
    assert one.report.solution.stats["device"].startswith(device)


@pytest.mark.parametrize("device", DEVICES)
def test_programs_that_the_dense_solver_does_not_support_use_another_solver(device: str) -> None:
    case = family("nearest_correlation")
    made = SolutionMap(case.program(), device=device)
    assert made.solver != "dense"
    assert all(status.solved for status in made.solve(case.values(2)).report.status)
    assert pickle.loads(pickle.dumps(made)).solver == made.solver


def test_the_device_in_the_options_takes_precedence() -> None:
    case = family("quadratic")
    made = SolutionMap(case.program(), device="cpu:0", options={"solver_options": {"dense": {"device": "cpu"}}})
    assert made.solve(case.values(2)).report.solution.stats["device"] == "cpu"


@pytest.mark.parametrize("device", ["abacus", "meta", "cuda:99"])
def test_a_missing_device_raises(device: str) -> None:
    with pytest.raises(SolverError, match="device='cpu' works"):
        SolutionMap(family("quadratic").program(), device=device)
