"""Short runs of the examples."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from convexlayer.nodes import Implicit, Unrolled

EXAMPLES = Path(__file__).parents[1] / "examples"


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_deep_equilibrium_network_learns_digits_like_the_unrolled_one() -> None:
    example = loaded("deep_equilibrium")
    implicit = example.train(Implicit(tol=1e-5), 2, progress=False)
    unrolled = example.train(Unrolled(40), 2, progress=False)
    assert implicit.losses == pytest.approx(unrolled.losses, rel=1e-4)
    assert implicit.losses[1] < implicit.losses[0]
    assert implicit.accuracy > 0.7
