"""Degenerate programs for solvers. ``python -m tests.solvers.degenerate NAME...`` solves them with each solver."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache

import numpy as np

from convexlayer import Options
from convexlayer.cones import product_cone
from convexlayer.program import Array, ConeProgram, Cones
from convexlayer.solvers.registry import SolverInfo, available, solver_for
from convexlayer.testing.programs import dense_program

CONES = {
    "none": Cones(),
    "zero": Cones(zero=2),
    "nonnegative": Cones(nonnegative=3),
    "second_order": Cones(zero=1, nonnegative=1, second_order=(1, 3)),
    "psd": Cones(zero=1, psd=(1, 2)),
    "exponential": Cones(zero=1, nonnegative=1, exponential=1),
    "power": Cones(zero=1, power=(0.5,)),
}


def programs(info: SolverInfo) -> Iterator[tuple[str, ConeProgram]]:
    """What a solver supports of the programs, by cones and degeneracy: each alone, and batches of all.

    The dense solver, whose every call costs hundreds of torch's, has batches only.
    """
    for kind, cones in CONES.items():
        if cones.kinds <= info.cones:
            each = _data(cones, 4, quadratic=info.quadratic)
            if info.name != "dense":
                for name, data in each.items():
                    yield f"{kind}: {name}", dense_program(cones, **{part: value[None] for part, value in data.items()})
                each = _data(cones, 1, quadratic=info.quadratic)
            whole = {part: np.stack([data[part] for data in each.values()]) for part in "PqAb"}
            yield f"{kind}: a batch of all", dense_program(cones, **whole)


@cache
def _data(cones: Cones, n: int, *, quadratic: bool) -> dict[str, dict[str, Array]]:
    """Random data with a solution, to be made degenerate."""
    rng = np.random.default_rng(n)
    x, w = rng.standard_normal(n), rng.standard_normal(cones.m)
    y = product_cone(cones).project_dual(w[None])[0]
    A, P = rng.standard_normal((cones.m, n)), np.diag(np.arange(n) % 3.0) * quadratic
    whole = {"P": P, "q": -(P @ x + A.T @ y), "A": A, "b": A @ x + y - w}
    nothing = {part: np.zeros_like(value) for part, value in whole.items()}
    rows, columns = np.arange(cones.m)[:, None], np.arange(n)
    found: dict[str, dict[str, Array]] = {"nothing zero": whole, "everything zero": nothing}
    for part, value in whole.items():
        found[f"{part} zero"] = whole | {part: nothing[part]}
        found[f"all but {part} zero"] = nothing | {part: value}
        for word, factor in (("huge", 1e300), ("huge and negative", -1e300), ("tiny", 1e-300)):
            found[f"{part} {word}"] = whole | {part: factor * value}
    found["a column zero"] = whole | {"A": A * (columns > 0), "P": P * (columns > 0)}
    found["rows alike"] = whole | {"A": np.ones_like(A), "b": np.ones(cones.m)}
    found["every other row zero"] = whole | {"A": A * (rows % 2), "b": np.zeros(cones.m)}
    found["all but the first row zero"] = nothing | {"A": A * (rows == 0), "q": whole["q"]}
    found["all but the last row zero"] = nothing | {"A": A * (rows == cones.m - 1)}
    return found


def main(name: str) -> None:
    """Print a line before each program, and the number of elements at the end."""
    (info,) = (info for info in available() if info.name == name)
    elements = 0
    for what, program in programs(info):
        sys.stdout.write(f"{name}, {what}\n")
        sys.stdout.flush()
        solver, _ = solver_for(name, program.structure)
        elements += len(solver.solve(solver.init(program.structure), program, Options()).status)
    sys.stdout.write(f"{elements} elements of {name}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        main(argument)
