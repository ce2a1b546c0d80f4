"""The overhead of Python around the kernels: a small problem takes less time than some hundred calls."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest
import torch

from convexlayer.runtime import kernel_cache
from tests.families import family

MOST_CALLS = 850
"""Python calls of one forward and backward pass of one element; 476 to 767 when this was written."""


FAMILIES = (
    "quadratic",
    "portfolio",
    "entropy_maximisation",
    "nearest_correlation",
    "power_utility",
    "least_squares",
    "lasso",
)


@pytest.mark.parametrize("name", FAMILIES)
def test_python_calls_of_one_element(name: str) -> None:
    if not kernel_cache.ready():
        pytest.skip("the portable form makes more calls")
    case = family(name)
    layer, theta = case.layer(), case.tensors(1)

    def once() -> None:
        outputs = layer(*case.prepared(theta))
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])

    for _ in range(3):  # what is made once is made
        once()
    calls = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        once()
    finally:
        sys.setprofile(None)
    assert calls <= MOST_CALLS
