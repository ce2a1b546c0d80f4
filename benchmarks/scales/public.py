"""Quadratic programs like those of public collections: accuracy of solutions and derivatives, cost of derivatives."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.scales.plan import Plan
from benchmarks.scales.public_problems import PROBLEMS, QP
from benchmarks.scales.public_truth import EXACT, Directional, Reference
from benchmarks.scales.table import Count
from benchmarks.table import grid
from convexlayer import ParametricProgram
from convexlayer.canon.document import write_pattern
from convexlayer.errors import SolverError
from convexlayer.layers.solution_map import SolutionMap
from convexlayer.program import Array, Cones, Pattern
from convexlayer.status import Status

__all__ = ["measure", "parametric", "table"]

Move = tuple[Array | None, Array | None]
"""Perturbations of q and of b, in equilibrated units."""

DIRECTIONS = 2
"""Number of directions of q, and of b, in which derivatives are compared with finite differences."""

RIGHT = 1e-4
"""Largest relative error of a right directional derivative; finite differences resolve this accuracy."""


SOLVED = 1e-6
"""Largest relative error of the objective of a solved problem."""


def measure(plan: Plan) -> Iterator[Count]:
    """One count per problem and solver, of two cases: the derivatives in q and in b."""
    for name, make in PROBLEMS.items():
        if not plan.wants(name):
            continue
        qp = make()
        reference, program = Reference(qp), parametric(qp)
        rng = np.random.default_rng([plan.seed, *name.encode()])
        weight = rng.normal(size=len(qp.q)) / reference.d  # near 1 in equilibrated units
        n, m = len(qp.q), program.structure.m
        moves: dict[str, list[Move]] = {
            "q": [(rng.normal(size=n), None) for _ in range(DIRECTIONS)],
            "b": [(None, rng.normal(size=m)) for _ in range(DIRECTIONS)],
        }
        truths = {wrt: [reference.along(weight, dq, db) for dq, db in pairs] for wrt, pairs in moves.items()}
        for solver in plan.solvers or ("auto",):
            try:
                solution_map = SolutionMap(program, solver=solver, options=plan.options)
            except SolverError:
                continue
            count = Count("public", name, 0.0, solver)
            _counted(count, solution_map, qp, reference, weight, moves, truths)
            yield count


def _counted(
    count: Count,
    solution_map: SolutionMap,
    qp: QP,
    reference: Reference,
    weight: Array,
    moves: dict[str, list[Move]],
    truths: dict[str, list[Directional]],
) -> None:
    b = qp.rows()[1]
    solve_s, vjp_s = list[float](), {"q": list[float](), "b": list[float]()}
    for _ in range(2):
        start = time.perf_counter()
        solved = solution_map.solve([qp.q, b])
        solve_s.append(time.perf_counter() - start)
        status, x, objective = solved.report.status[0], solved.outputs[0][0], float(solved.objective[0])
        for wrt, spent in vjp_s.items():
            start = time.perf_counter()
            pulled, report = solved.vjp([weight[None]], wrt=[wrt == "q", wrt == "b"])
            spent.append(time.perf_counter() - start)
            gradient = pulled[0 if wrt == "q" else 1]
            count.details[wrt] = {"reported": report.status[0], "gradient": gradient}
    count.statuses = {str(status): 2}
    size = np.max(np.abs(reference.x / reference.d))
    x_error = float(np.max(np.abs((x - reference.x) / reference.d)) / size)
    count.details |= {
        "n": len(qp.q), "m": len(b), "solver": solved.report.solver, "status": str(status),
        "objective_error": abs(objective - reference.objective) / max(1.0, abs(reference.objective)),
        "x_error": x_error, "reference_error": reference.error, "solve_s": min(solve_s),
    }  # fmt: skip
    known = reference.error <= EXACT  # otherwise the true derivatives are unknown
    for wrt, spent in vjp_s.items():
        part = count.details[wrt]
        gradient = part.pop("gradient")
        exists = all(truth.exists for truth in truths[wrt])
        error = 0.0
        for (dq, db), truth in zip(moves[wrt], truths[wrt], strict=True):
            if exists:
                move = reference.own(dq, db)
                error = max(error, abs(float(gradient[0] @ move) - truth.value) / truth.scale)
        right = not exists or (error <= RIGHT and x_error <= RIGHT)
        ok, optimal = part["reported"] == "ok", status is Status.OPTIMAL
        truth_word = "unknown" if not known else "exists" if exists else "none"
        part |= {"truth": truth_word, "error": error, "vjp_s": min(spent), "cost": min(spent) / min(solve_s)}
        if not known:
            continue
        count.right_reported_ok += int(optimal and right and ok == exists)
        count.silent += int(optimal and ok and not (exists and right))
        false_alarm = not (optimal and ok) and exists
        count.right_not_ok += int(false_alarm and right)
        count.wrong_not_ok += int((false_alarm and not right) or (not exists and not optimal))


def parametric(qp: QP) -> ParametricProgram:
    """The parametric program with parameters q and b and output x."""
    A, b, equations = qp.rows()
    n, m, P = len(qp.q), len(b), qp.P.tocoo()
    patterns = []
    for matrix in (P, A.tocoo()):
        order = np.lexsort((matrix.row, matrix.col))
        rows, cols = (index[order].astype(np.int64) for index in (matrix.row, matrix.col))
        patterns.append((Pattern(matrix.shape, rows, cols), matrix.data[order].tolist()))
    (P_pattern, P_values), (A_pattern, A_values) = patterns
    sizes = [P_pattern.nnz, n, 1, A_pattern.nnz, m]
    ends = np.cumsum(sizes).tolist()
    return ParametricProgram.from_document(
        {
            "version": 1,
            "n": n,
            "parameters": [
                {"name": name, "shape": [size], "attributes": [], "sparsity": None}
                for name, size in (("q", n), ("b", m))
            ],
            "log": [],
            "cones": Cones(zero=equations, nonnegative=m - equations).as_dict(),
            "P": write_pattern(P_pattern),
            "A": write_pattern(A_pattern),
            "data": {
                "constant": [*P_values, *[0.0] * (n + 1), *A_values, *[0.0] * m],
                "rows": [*range(ends[0], ends[1]), *range(ends[3], ends[4])],
                "cols": list(range(n + m)),
                "values": [1.0] * (n + m),
            },
            "outputs": [{"name": "x", "shape": [n], "log": False}],
            "recovery": {"rows": list(range(n)), "cols": list(range(n)), "values": [1.0] * n},
            "objective": {"maximize": False, "log": False},
        }
    )


def table(counts: Sequence[Count]) -> str:
    """One row per problem and solver."""
    head = [
        "problem", "n", "m", "solver", "status", "objective error", "x error", "in q", "reported", "error",
        "vjp / solve", "in b", "reported", "error", "vjp / solve",
    ]  # fmt: skip
    rows = []
    for count in counts:
        d = count.details
        cells = [count.family, str(d["n"]), str(d["m"]), d["solver"], d["status"]]
        cells += [f"{d[name]:.0e}" for name in ("objective_error", "x_error")]
        for wrt in ("q", "b"):
            part = d[wrt]
            cells += [
                part["truth"],
                part["reported"],
                f"{part['error']:.0e}",
                f"{part['cost']:.1f}",
            ]
        rows.append(cells)
    optimal = [count for count in counts if count.details["status"] == "optimal"]
    solved = sum(count.details["objective_error"] <= SOLVED for count in optimal)
    not_ok = [c.details[wrt] for c in counts for wrt in ("q", "b") if c.details[wrt]["reported"] != "ok"]
    summary = (
        f"{solved} of {len(counts)} solved, {len(optimal) - solved} wrongly reported optimal; "
        f"{sum(c.silent for c in counts)} wrong or nonexistent derivatives reported ok, "
        f"{sum(c.right_not_ok for c in counts)} false alarms, {sum(c.wrong_not_ok for c in counts)} reported errors; "
        f"a derivative that is not ok costs up to {max((part['cost'] for part in not_ok), default=0.0):.1f} solves, "
        f"with median {np.median([part['cost'] for part in not_ok] or [0.0]):.1f}."
    )
    return f"{grid(head, rows)}\n\n{summary}"
