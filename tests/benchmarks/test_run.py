"""The machinery of the benchmarks: one small run, and the reports of recorded results."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.contestant import Call, Contestant, Setting
from benchmarks.contestants import EMPTY, OURS
from benchmarks.curves import BATCH
from benchmarks.plots import draw
from benchmarks.problem import Problem, Tensors
from benchmarks.reference import Reference
from benchmarks.results import Record, Results, summaries
from benchmarks.runner import Runner
from benchmarks.suite import make
from benchmarks.table import markdown
from benchmarks.timing import Plan, measure, once

ROOT = Path(__file__).parents[2]
PLAN = Plan(rounds=2, budget_s=1.0, limit_s=60.0, turn_s=0.0)


def _any(problem: Problem) -> None:
    return None


def _raises(setting: Setting) -> Call:
    raise ValueError("no such solver")


def _wrong(setting: Setting) -> Call:
    """Correct outputs, gradients too large by a factor of 2."""
    right = OURS.build(setting)

    def call(theta: Tensors) -> Tensors:
        return tuple(2 * output - output.detach() for output in right(theta))

    return call


BROKEN = Contestant("broken", ("convexlayer",), _any, _raises)
MISSING = Contestant("missing", ("no_such_package",), _any, _raises)
WRONG = Contestant("wrong", ("convexlayer",), _any, _wrong)


def test_a_run_from_the_command_line(tmp_path: Path) -> None:
    options = "--no-peers --no-progress --quick --rounds 1 --budget 0.1 --problems simplex --batches 1 3"
    command = [sys.executable, "-m", "benchmarks", *options.split(), "--parts", "suite", "overhead"]
    command += ["--output", str(tmp_path)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert process.returncode == 0, process.stderr
    results = Results.read(tmp_path / "results.json")
    ours = [record for record in results.records if record.contestant == OURS.name]
    assert [record.batch for record in ours] == [1, 3]
    assert all(record.correct and record.forward_s and record.backward_s for record in ours)
    assert all(record.residual is not None and record.residual < 1e-7 for record in ours)
    assert all(entry["check"] < 1e-4 for entry in results.references)
    assert results.machine["commit"]
    assert 0.0 < results.overhead[0]["overhead"] < 1.0
    assert (tmp_path / "table.md").read_text(encoding="utf-8") in process.stdout
    assert (tmp_path / "batch_3.png").stat().st_size > 1000


def test_failing_and_missing_contestants_are_reported_and_do_not_stop_the_run() -> None:
    runner = Runner([OURS, BROKEN, MISSING, EMPTY], 1, PLAN, progress=False)
    records = {record.contestant: record for record in runner.case("simplex", lambda: make("simplex"), 2)}
    assert records[OURS.name].correct
    assert records["empty"].total_s is not None
    assert records["broken"].failed
    assert "no such solver" in (records["broken"].note or "")
    assert records["missing"].failed
    assert "no_such_package" in (records["missing"].note or "")
    failures = Results(records=[*records.values()]).failures
    assert len(failures) == 2
    assert all("simplex, batch 2" in failure for failure in failures)


def test_a_wrong_gradient_is_not_correct() -> None:
    runner = Runner([OURS, WRONG], 1, PLAN, progress=False)
    records = {record.contestant: record for record in runner.case("simplex", lambda: make("simplex"), 3)}
    assert records["wrong"].output_error == records[OURS.name].output_error
    assert records["wrong"].gradient_error == pytest.approx(1.0, abs=0.9)
    assert not records["wrong"].correct


def test_references_detect_a_wrong_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make("simplex")
    theta, cotangents = problem.theta(2, seed=0), problem.cotangents(2)
    assert Reference(problem, theta, cotangents).check < 1e-5
    right = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: tuple(1.01 * g for g in right(*a, **k)))
    assert Reference(problem, theta, cotangents).check > 1e-3


def test_a_failure_while_measuring_ends_only_that_call() -> None:
    problem = make("simplex")
    draws, cotangents = [problem.theta(1, seed=seed) for seed in range(2)], problem.cotangents(1)
    seen: list[int] = []

    def fails_late(theta: Tensors) -> Tensors:
        seen.append(len(seen))
        if len(seen) > 1:
            raise RuntimeError("late")
        return nothing(theta)

    with ExitStack() as cleanup:
        nothing = EMPTY.build(Setting(problem, 1, 1, cleanup))
        times = measure({"fails": fails_late, "nothing": nothing}, draws, cotangents, replace(PLAN, rounds=4))
    assert times["fails"].error == "RuntimeError: late"
    assert times["nothing"].error is None
    assert len(times["nothing"].total) == 4
    assert np.isfinite(times["nothing"].medians()).all()


def test_gradients_of_unused_parameters_are_zero() -> None:
    theta = (torch.ones(1, 2, dtype=torch.float64, requires_grad=True), torch.ones(1, requires_grad=True))
    *_, gradients = once(lambda theta: (2 * theta[0],), theta, (torch.ones(1, 2, dtype=torch.float64),))
    assert [gradient.tolist() for gradient in gradients] == [[[2.0, 2.0]], [0.0]]


def _recorded() -> Results:
    def record(problem: str, contestant: str, total: float, error: float = 1e-9, batch: int = 1) -> Record:
        parts: dict[str, Any] = {"forward_s": 0.6 * total, "backward_s": 0.4 * total, "total_s": total}
        return Record(problem, batch, contestant, setup_s=0.1, first_s=total, runs=3, gradient_error=error, **parts)

    records = [
        record("a", OURS.name, 1e-3),
        record("a", "moreau-qp", 1e-4, error=1.0),
        record("a", "proxsuite", 8e-3),
        record("a", "cvxpylayers", 9e-2, error=1.0),
        record("a", "empty", 1e-5, error=1.0),
        record("b", OURS.name, 1e-3),
        record("b", "proxsuite", 2e-3),
        record("c", OURS.name, 1e-3),
        Record("c", 1, "qpth", note="ValueError: bad | shape", failed=True),
    ]
    machine = {"cpu": "a CPU", "cores": 2, "threads": 2, "python": "3.11", "versions": {}, "commit": "abc", "load": 0.0}
    overhead = {"parts": {"solve": 1e-3}, "forward_s": 2e-3, "total_s": 4e-3, "solver_s": 1e-3}
    return Results(
        machine=machine,
        records=records,
        scaling={BATCH: [record("d", OURS.name, 1e-3, batch=b) for b in (1, 8)]},
        memory=[{"problem": "a", "batch": 1, "contestant": OURS.name, "mebibytes": 12.5}],
        overhead=[
            {"problem": "a", "batch": 1, "solver": "s", "forward_over_solver": 2.0, "overhead": 0.75, **overhead}
        ],
        references=[{"problem": "a", "batch": 1, "residual": 1e-15, "check": 1e-9, "unknown": 0}],
    )


def test_summaries_count_correct_peers_only() -> None:
    (summary,) = summaries(_recorded().records)
    assert summary.problems == 2  # c has no peer
    assert summary.mean == pytest.approx(4.0)
    assert summary.least == pytest.approx(2.0)
    assert summary.where == "b, proxsuite"
    assert summary.cvxpylayers == pytest.approx(90.0)


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    results = _recorded()
    results.write(tmp_path / "results.json")
    again = Results.read(tmp_path / "results.json")
    assert again == results
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["machine"]["commit"] == "abc"


def test_the_table_marks_wrong_results_and_failures() -> None:
    text = markdown(_recorded())
    assert "| a | 1 | (0.1) | 8 | (90) | 0.01 |  | 8.00 |" in text
    assert "- qpth on c, batch 1: ValueError: bad | shape" in text
    assert "bad \\| shape |" in text
    for number in ("75 %", "2.00", "12.5", "4.00"):
        assert number in text


def test_held_out_problems_are_marked_and_summarised_apart() -> None:
    results = _recorded()
    for record in results.records:
        record.problem = record.problem.replace("b", "transport_10")
    text = markdown(results)
    assert "| transport_10 * | 1 |" in text
    assert "| both ways | all | 2 | 4.00 | 2.00 | transport_10, proxsuite |" in text
    assert "| both ways | held out | 1 | 2.00 | 2.00 | transport_10, proxsuite |" in text


def test_the_figures_are_drawn(tmp_path: Path) -> None:
    written = draw(_recorded(), tmp_path)
    assert [path.name for path in written] == ["batch_1.png", "scaling.png"]
    assert all(path.stat().st_size > 1000 for path in written)
