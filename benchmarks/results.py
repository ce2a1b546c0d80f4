"""Results of a run: records, stored as JSON, the machine, and summaries."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["CORRECT", "OURS", "Record", "Results", "Summary", "fastest_correct", "machine", "summaries"]

OURS = "convexlayer"

CORRECT = 1e-4
"""Largest gradient error (95th percentile over the elements) of a correct result."""

PACKAGES = (
    *("convexlayer", "clarabel", "cvxpy", "cvxpylayers", "daqp", "diffapqp", "diffcp", "libdqp", "moreau", "numba"),
    *("numpy", "proxsuite", "qpth", "scipy", "scs", "torch"),
)


@dataclass
class Record:
    """Result of one contestant for one problem and batch size; times are medians in seconds.

    Attributes:
        problem: name of the problem.
        batch: batch size.
        contestant: name of the contestant.
        setup_s: time of the construction.
        first_s: time of the first call, forward and backward.
        forward_s: time of the forward pass.
        backward_s: time of the backward pass.
        total_s: time from parameters to gradients.
        runs: number of timed calls.
        output_error: see ``reference.Errors``.
        gradient_error: see ``reference.Errors``.
        worst_gradient_error: see ``reference.Errors``.
        residual: largest KKT residual of Convexlayer's report; None for others.
        solver: solver and reason in Convexlayer's report.
        note: why values are missing.
        failed: whether the note is a failure, not an unsupported problem or the time limit.
    """

    problem: str
    batch: int
    contestant: str
    setup_s: float | None = None
    first_s: float | None = None
    forward_s: float | None = None
    backward_s: float | None = None
    total_s: float | None = None
    runs: int = 0
    output_error: float | None = None
    gradient_error: float | None = None
    worst_gradient_error: float | None = None
    residual: float | None = None
    solver: str | None = None
    note: str | None = None
    failed: bool = False

    @property
    def correct(self) -> bool:
        """Whether the contestant was measured and its gradient error is at most CORRECT."""
        return self.total_s is not None and self.gradient_error is not None and self.gradient_error <= CORRECT


@dataclass
class Results:
    """A whole run.

    Attributes:
        machine: the machine and the package versions.
        settings: command-line arguments.
        records: records of the small and large suite.
        scaling: records of the curves, by name of the curve.
        sizes: position on the axis of a curve, by curve and problem; the batch size if there is no entry.
        memory: growth of resident memory in MiB, one entry per problem and contestant.
        overhead: Convexlayer's time by part, one entry per problem.
        references: residual, finite-difference check, and number of elements without reference, one entry per case.
    """

    machine: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    scaling: dict[str, list[Record]] = field(default_factory=dict)
    sizes: dict[str, dict[str, int]] = field(default_factory=dict)
    memory: list[dict[str, Any]] = field(default_factory=list)
    overhead: list[dict[str, Any]] = field(default_factory=list)
    references: list[dict[str, Any]] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write the results as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def read(path: Path) -> Results:
        """Read results written by ``write``."""
        document = json.loads(path.read_text(encoding="utf-8"))
        document["records"] = [Record(**entry) for entry in document["records"]]
        document["scaling"] = {
            curve: [Record(**entry) for entry in entries] for curve, entries in document["scaling"].items()
        }
        return Results(**document)

    @property
    def failures(self) -> list[str]:
        """A message for each failure."""
        everything = [*self.records, *(record for curve in self.scaling.values() for record in curve)]
        messages = [f"{r.contestant} on {r.problem}, batch {r.batch}: {r.note}" for r in everything if r.failed]
        messages += [
            f"{m['contestant']} on {m['problem']}, memory: {m['error']}" for m in self.memory if m.get("error")
        ]
        return list(dict.fromkeys(messages))


@dataclass(frozen=True)
class Summary:
    """Speed-ups at one batch size: time of a peer divided by Convexlayer's.

    Attributes:
        batch: batch size.
        problems: number of problems with a correct result of Convexlayer and of a peer.
        mean: geometric mean of the speed-up over the fastest correct peer.
        least: the smallest of these speed-ups.
        where: problem and peer of the smallest speed-up.
        cvxpylayers: geometric mean of the speed-up over cvxpylayers with its default solver, correct or not.
    """

    batch: int
    problems: int
    mean: float
    least: float
    where: str
    cvxpylayers: float | None


def fastest_correct(records: list[Record]) -> Record | None:
    """The record of the fastest peer with correct gradients, among the records of one problem and batch size."""
    peers = [r for r in records if r.correct and r.contestant not in (OURS, "empty")]
    return min(peers, key=lambda r: r.total_s or np.inf, default=None)


def summaries(records: list[Record], *, part: str = "total_s") -> list[Summary]:
    """One summary per batch size, of ``total_s``, ``forward_s`` or ``backward_s``."""
    found = []
    for batch in sorted({r.batch for r in records}):
        ratios: dict[str, float] = {}
        default: list[float] = []
        for problem in dict.fromkeys(r.problem for r in records if r.batch == batch):
            group = [r for r in records if r.batch == batch and r.problem == problem]
            ours = next((r for r in group if r.contestant == OURS and r.correct), None)
            peer = fastest_correct(group)
            if ours is None:
                continue
            if peer is not None:
                ratios[f"{problem}, {peer.contestant}"] = getattr(peer, part) / getattr(ours, part)
            default += [
                getattr(r, part) / getattr(ours, part) for r in group if r.contestant == "cvxpylayers" and r.total_s
            ]
        if ratios:
            where = min(ratios, key=lambda key: ratios[key])
            found.append(
                Summary(
                    batch,
                    len(ratios),
                    _mean([*ratios.values()]),
                    ratios[where],
                    where,
                    _mean(default) if default else None,
                )
            )
    return found


def _mean(ratios: list[float]) -> float:
    return float(np.exp(np.mean(np.log(ratios))))


def machine(threads: int) -> dict[str, Any]:
    """Description of the machine, the package versions, and the commit."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "missing"
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": threads,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": _commit(),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def _commit() -> str:
    """The commit hash, with a plus if the working tree is modified."""
    folder = Path(__file__).parent
    try:
        commit, changed = (
            subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
            for command in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+" if changed else "")
