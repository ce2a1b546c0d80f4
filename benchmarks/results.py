"""What a run leaves behind: records as JSON, the machine they were made on, and their summary."""

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
"""Largest gradient error (the 95th percentile of the elements) of an answer that counts."""

PACKAGES = (
    *("convexlayer", "clarabel", "cvxpy", "cvxpylayers", "daqp", "diffapqp", "diffcp", "libdqp", "moreau", "numba"),
    *("numpy", "proxsuite", "qpth", "scipy", "scs", "torch"),
)


@dataclass
class Record:
    """One contestant at one problem and batch size; times are medians in seconds.

    Attributes:
        problem: the problem.
        batch: the batch size.
        contestant: the contestant.
        setup_s: building it.
        first_s: its first call, forward and backward.
        forward_s: forward.
        backward_s: backward.
        total_s: parameters in, gradients out.
        runs: number of timed calls.
        output_error: see ``reference.Errors``.
        gradient_error: likewise.
        worst_gradient_error: likewise.
        residual: the worst KKT residual of our own report; None of others.
        solver: what our report says of the solver and why.
        note: why something is missing.
        failed: whether the note is a failure, and not a limit of the contestant or of time.
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
        """Whether it was measured and its gradient is right."""
        return self.total_s is not None and self.gradient_error is not None and self.gradient_error <= CORRECT


@dataclass
class Results:
    """A whole run.

    Attributes:
        machine: where it ran, and with which versions.
        settings: the command line.
        records: the suite, small and large.
        scaling: records of the curves, by the name of the curve.
        sizes: what stands on the axis of a curve, by curve and problem; the batch where there is no entry.
        memory: growth of resident memory in MiB, one entry a problem and contestant.
        overhead: our own time by part, one entry a problem.
        references: residual, check by differences, and number of elements without reference, one entry a case.
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
        """As JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def read(path: Path) -> Results:
        """What ``write`` wrote."""
        document = json.loads(path.read_text(encoding="utf-8"))
        document["records"] = [Record(**entry) for entry in document["records"]]
        document["scaling"] = {
            curve: [Record(**entry) for entry in entries] for curve, entries in document["scaling"].items()
        }
        return Results(**document)

    @property
    def failures(self) -> list[str]:
        """What went wrong, a sentence each."""
        everything = [*self.records, *(record for curve in self.scaling.values() for record in curve)]
        said = [f"{r.contestant} on {r.problem}, batch {r.batch}: {r.note}" for r in everything if r.failed]
        said += [f"{m['contestant']} on {m['problem']}, memory: {m['error']}" for m in self.memory if m.get("error")]
        return list(dict.fromkeys(said))


@dataclass(frozen=True)
class Summary:
    """Our speed at one batch size: ratios of times, those of the other over ours.

    Attributes:
        batch: the batch size.
        problems: how many problems have a correct answer of ours and of a peer.
        mean: geometric mean of the ratio to the fastest correct peer.
        least: the smallest ratio.
        where: the problem and peer of the smallest ratio.
        cvxpylayers: geometric mean of the ratio to cvxpylayers with its default solver, right or wrong.
    """

    batch: int
    problems: int
    mean: float
    least: float
    where: str
    cvxpylayers: float | None


def fastest_correct(records: list[Record]) -> Record | None:
    """The fastest peer among records of one problem and batch whose gradient is right."""
    peers = [r for r in records if r.correct and r.contestant not in (OURS, "empty")]
    return min(peers, key=lambda r: r.total_s or np.inf, default=None)


def summaries(records: list[Record], *, part: str = "total_s") -> list[Summary]:
    """One summary a batch size, of ``total_s``, ``forward_s`` or ``backward_s``."""
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
    """The machine, the versions of all packages, and the commit."""
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
    """The commit, with a plus if the tree differs from it."""
    folder = Path(__file__).parent
    try:
        commit, changed = (
            subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
            for command in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+" if changed else "")
