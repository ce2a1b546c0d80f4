"""RemoteSolutionMap follows the protocol of the library's solution maps, with the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from convexlayer_client import Client, ShapeError
from tests.client.layers import TOLERANCE, local, remote
from tests.families import family


def assert_same(ours: Sequence[Any], theirs: Sequence[Any]) -> None:
    """Compare arrays, of which some may be None."""
    for left, right in zip(ours, theirs, strict=True):
        assert (left is None) == (right is None)
        if left is not None:
            np.testing.assert_allclose(left, right, **TOLERANCE)


def test_the_solution_map_equals_the_local_one(client: Client) -> None:
    """The same protocol in NumPy: outputs, gradients and tangents, of chosen parameters and outputs."""
    case, rng = family("least_norm"), np.random.default_rng(0)
    theta = [tensor.detach().numpy() for tensor in case.tensors(3, seed=4, batched=(False, True, True))]
    ours, theirs = (layer.solution_map.solve(theta) for layer in (remote(case, client), local(case)))
    assert ours.batch == theirs.batch == 3
    assert_same((*ours.outputs, ours.objective), (*theirs.outputs, theirs.objective))
    cotangents = [*(rng.standard_normal(value.shape) for value in ours.outputs), rng.standard_normal(3)]
    vjps: tuple[dict[str, Any], ...] = ({}, {"per_element": False}, {"wrt": [True, False, True]})
    for keywords in vjps:
        (found, report), (expected, _) = (each.vjp(cotangents, **keywords) for each in (ours, theirs))
        assert report.status == ("ok",) * 3
        assert_same(found, expected)
    tangents = [rng.standard_normal(spec.shape) for spec in local(case).program.parameters]
    for of in (None, [True] + [False] * (len(ours.outputs) - 1), [False] + [True] * (len(ours.outputs) - 1) + [False]):
        (found, _), (expected, _) = (each.jvp([tangents[0], None, tangents[2]], of=of) for each in (ours, theirs))
        assert_same(found, expected)


def test_wrong_numbers_of_entries_are_named(client: Client) -> None:
    case = family("least_norm")
    solved = remote(case, client).solution_map.solve(case.values(2))
    names = ", ".join(f"{parameter.name()}" for parameter in case.parameters)
    attempts: list[tuple[Callable[[], object], str]] = [
        (lambda: solved.vjp([None]), r"expected \d+ cotangents \(for .*objective\), got 1"),
        (
            lambda: solved.vjp([None] * len(solved.outputs), wrt=[True]),
            rf"expected 3 entries in wrt \(for {names}\), got 1",
        ),
        (lambda: solved.jvp([None]), rf"expected 3 tangents \(for {names}\), got 1"),
        (lambda: solved.jvp([None] * 3, of=[True]), r"expected \d+ entries in of \(for .*objective\), got 1"),
    ]
    for attempt, message in attempts:
        with pytest.raises(ShapeError, match=message):
            attempt()
