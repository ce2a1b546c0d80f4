"""Cost measurement: interleaved rounds, and an unchanged garbage collector."""

from __future__ import annotations

import gc

import pytest
import torch

from convexlayer.gallery.measure import costs, saved_bytes


def test_costs_belong_to_their_calls() -> None:
    x = torch.ones(8, dtype=torch.float64, requires_grad=True)
    counts = {"square": 0, "cube": 0}

    def square() -> torch.Tensor:
        counts["square"] += 1
        return x.square()

    def cube() -> torch.Tensor:
        counts["cube"] += 1
        return x * x * x

    measured = costs({"square": (square, (x,)), "cube": (cube, (x,))}, repetitions=2, budget_s=60.0)
    assert list(measured) == ["square", "cube"]
    assert measured["square"].saved_bytes == 64
    assert measured["cube"].saved_bytes == saved_bytes(cube) == 128
    assert min(counts.values()) > 3  # a round to warm up and two more
    assert all(each.forward_s > 0.0 and each.backward_s > 0.0 for each in measured.values())


def test_garbage_collection_is_restored_after_a_failure() -> None:
    def fails() -> torch.Tensor:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        costs({"fails": (fails, ())}, repetitions=1)
    assert gc.isenabled()
