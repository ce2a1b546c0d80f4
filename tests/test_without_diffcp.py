"""Convexlayer does not need diffcp: all cones work, forward and backward, if it cannot be imported."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import cvxpy as cp
import pytest
import torch

from convexlayer import ConvexLayer, DerivativeError

# CVXPY looks for diffcp at import, so diffcp must be hidden first.
HIDE_AND_RUN = """
import runpy, sys
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec
PathFinder.find_spec = lambda name, *args: None if name.partition(".")[0] == "diffcp" else find_spec(name, *args)
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def test_every_cone_works_without_diffcp() -> None:
    command = [sys.executable, "-c", HIDE_AND_RUN, __file__]
    process = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == ["nonnegative", "second-order", "psd", "exponential", "power"]


def problems() -> Iterator[tuple[str, cp.Problem, cp.Parameter, cp.Variable, list[float]]]:
    """One problem per cone (each with an equality, so with the zero cone), and a point at which it is smooth."""
    x, c = cp.Variable(3), cp.Parameter(3)
    sums_to_one = [cp.sum(x) == 1]
    distance = cp.sum_squares(x - c)
    yield "nonnegative", cp.Problem(cp.Minimize(distance), [*sums_to_one, x >= 0]), c, x, [0.9, 0.5, -0.8]
    yield "second-order", cp.Problem(cp.Minimize(c @ x), [*sums_to_one, cp.norm(x) <= 2]), c, x, [0.3, -1.0, 0.5]
    X = cp.Variable((3, 3), PSD=True)
    nearest = cp.sum_squares(cp.diag(X) - c) + cp.sum_squares(X - 0.4)
    yield "psd", cp.Problem(cp.Minimize(nearest), [cp.trace(X) == 1]), c, X, [0.9, 0.5, -0.8]
    yield "exponential", cp.Problem(cp.Minimize(c @ x - cp.sum(cp.entr(x))), sums_to_one), c, x, [0.3, -1.0, 0.5]
    mean = cp.geo_mean(x, [0.5, 0.3, 0.2], approx=False)
    yield "power", cp.Problem(cp.Minimize(0.1 * distance - mean), sums_to_one), c, x, [0.3, -1.0, 0.5]


def main() -> None:
    for cone, problem, parameter, variable, point in problems():
        layer = ConvexLayer(problem, [parameter], [variable])
        theta = torch.tensor(point, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(layer, (theta,), eps=1e-5, atol=1e-5), cone
        print(cone)
        if cone == "nonnegative":
            reference = ConvexLayer(problem, [parameter], [variable], derivative="diffcp")
            with pytest.raises(DerivativeError, match="pip install diffcp"):
                reference(theta)[0].sum().backward()


if __name__ == "__main__":
    main()
