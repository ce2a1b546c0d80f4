"""RemoteSolutionMap follows the protocol of the library's solution maps, with the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from convexlayer_client import Client
from tests.client.layers import remote
from tests.client.test_layer import TOLERANCE, local
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
