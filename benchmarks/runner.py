"""Runs the contestants on problems and batch sizes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.contestant import Call, Contestant, Setting
from benchmarks.contestants import OURS
from benchmarks.ours import layer
from benchmarks.problem import Problem, Tensors
from benchmarks.reference import Reference
from benchmarks.results import Record
from benchmarks.timing import Plan, measure, once, quiet

__all__ = ["Runner"]

DRAWS = 4
"""Number of different batches of parameters that the timed calls cycle through."""


@dataclass
class Runner:
    """Runs the measurements.

    Attributes:
        contestants: the contestants.
        threads: number of threads per contestant.
        plan: duration of the measurements.
        progress: whether to show a progress bar.
        references: quality of the references, one entry per problem and batch size.
    """

    contestants: Sequence[Contestant]
    threads: int
    plan: Plan
    progress: bool = True
    references: list[dict[str, Any]] = field(default_factory=list)

    def batches(self, name: str, make: Callable[[], Problem], sizes: Sequence[int]) -> list[Record]:
        """Measure one problem at all batch sizes, ascending, so that calls above the time limit can be predicted."""
        records: list[Record] = []
        for batch in sorted(sizes):
            records += self.case(name, make, batch, records)
        return records

    def ladder(self, makers: dict[str, Callable[[], Problem]], batch: int, title: str) -> list[Record]:
        """Measure problems of ascending size at one batch size; a contestant that is too slow is dropped."""
        records: list[Record] = []
        left = list(self.contestants)
        for name, make in tqdm(makers.items(), desc=title, unit="size", disable=not self.progress):
            stage = replace(self, contestants=left)
            found = stage.case(name, make, batch)
            records += found
            slow = {r.contestant for r in found if r.total_s is None or r.total_s > self.plan.limit_s / 4}
            left = [contestant for contestant in left if contestant.name not in slow]
            if not left:
                break
        return records

    def case(self, name: str, make: Callable[[], Problem], batch: int, before: Sequence[Record] = ()) -> list[Record]:
        """Measure all contestants at one problem and batch size; ``before`` has the records of smaller batches."""
        problem = make()
        draws = [problem.theta(batch, seed=seed) for seed in range(DRAWS)]
        cotangents = problem.cotangents(batch)
        try:
            reference = Reference(problem, draws[0], cotangents)
        except Exception as error:  # skip this case, continue with the others
            return [Record(name, batch, OURS.name, note=f"no reference: {_said(error)}", failed=True)]
        self.references.append({"problem": name, "batch": batch, **reference.quality})
        records, calls = [], {}
        with ExitStack() as cleanup:
            for contestant in self.contestants:
                if contestant.refusal(problem):
                    continue
                record = Record(name, batch, contestant.name)
                records.append(record)
                record.note = dict(problem.unsupported).get(contestant.name) or self._out_of_reach(record, before)
                if record.note is None:
                    setting = Setting(make(), batch, self.threads, cleanup)
                    call = self._warm(contestant, record, setting, draws, cotangents, reference)
                    if call is not None:
                        calls[contestant.name] = call
            times = measure(calls, draws, cotangents, self.plan)
        for record in records:
            if record.contestant not in times:
                continue
            samples = times[record.contestant]
            if samples.error:
                record.note, record.failed = samples.error, True
            else:
                record.forward_s, record.backward_s, record.total_s = samples.medians()
                record.runs = len(samples.total)
        return records

    def _warm(
        self,
        contestant: Contestant,
        record: Record,
        setting: Setting,
        draws: list[Tensors],
        cotangents: Tensors,
        reference: Reference,
    ) -> Call | None:
        """Build the call and run it twice; set the record's set-up time and errors."""
        try:
            with quiet():
                contestant.load()
                start = time.perf_counter()
                call = contestant.build(setting)
                record.setup_s = time.perf_counter() - start
                forward, backward, *_ = once(call, draws[1], cotangents)
                record.first_s = forward + backward
                forward, backward, outputs, gradients = once(call, draws[0], cotangents)
                if forward + backward > self.plan.limit_s:
                    record.note = f"skipped: a call took {forward + backward:.0f} s"
        except Exception as error:
            record.note, record.failed = _said(error), True
            return None
        errors = reference.errors(outputs, gradients)
        record.output_error, record.gradient_error = errors.output, errors.gradient
        record.worst_gradient_error = errors.worst_gradient
        if contestant is OURS:
            with torch.no_grad():
                _, report = layer(setting.problem).solve(*draws[0])
            record.residual = float(report.residuals.worst.max())
            record.solver = f"{report.solver}: {report.reason}"
        return call if record.note is None else None

    def _out_of_reach(self, record: Record, before: Sequence[Record]) -> str | None:
        """Why a batch size is skipped: the contestant failed at a smaller one, or would take too long."""
        smaller = [r for r in before if (r.problem, r.contestant) == (record.problem, record.contestant)]
        if not smaller:
            return None
        last = max(smaller, key=lambda r: r.batch)
        if last.total_s is None:
            return f"skipped: no result at batch {last.batch}"
        expected = last.total_s * record.batch / last.batch if last.batch > 1 else last.total_s
        return f"skipped: about {expected:.0f} s per call" if expected > self.plan.limit_s else None


def _said(error: Exception) -> str:
    """An exception as one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
