"""Growth of resident memory of a contestant in its own process, from after a first small call to the peak.

python -m benchmarks.memory PROBLEM BATCH CONTESTANT THREADS
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

__all__ = ["PEAK_RESET", "grown", "status"]

PASSES = 5
"""Number of measured forward and backward passes, on alternating draws."""

STATUS = Path("/proc/self/status")
PEAK_RESET = Path("/proc/self/clear_refs")
"""Writing 5 to this file resets the peak of resident memory (VmHWM)."""


def grown(problem: str, batch: int, contestant: str, threads: int) -> dict[str, Any]:
    """Measure one entry of ``Results.memory``: the case, with ``mebibytes`` or ``error``."""
    command = [sys.executable, "-m", "benchmarks.memory", problem, str(batch), contestant, str(threads)]
    root = Path(__file__).parents[1]
    process = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=root)
    entry: dict[str, Any] = {"problem": problem, "batch": batch, "contestant": contestant}
    if process.returncode:
        return {**entry, "error": (process.stderr.strip().splitlines() or ["no message"])[-1]}
    return {**entry, "mebibytes": json.loads(process.stdout.splitlines()[-1])}


def _measure(name: str, batch: int, contestant: str, threads: int) -> float:
    """Peak resident memory minus that after imports and one call with one element of a small problem, in MiB.

    The small call loads what libraries load late; the start of Numba, for instance, takes 45 MiB.
    """
    from benchmarks.contestant import Setting
    from benchmarks.contestants import EMPTY, OURS, PEERS
    from benchmarks.suite import SMALL, make
    from benchmarks.timing import once, quiet

    chosen = {OURS.name: OURS, EMPTY.name: EMPTY, **PEERS}[contestant]
    with quiet(), ExitStack() as cleanup:
        chosen.load()
        small = next(make(other) for other in SMALL if chosen.refusal(make(other)) is None)
        once(chosen.build(Setting(small, 1, threads, cleanup)), small.theta(1, seed=0), small.cotangents(1))
        problem = make(name)
        draws = [problem.theta(batch, seed=seed) for seed in range(2)]
        cotangents = problem.cotangents(batch)
        PEAK_RESET.write_text("5")
        before = status("VmRSS")
        call = chosen.build(Setting(problem, batch, threads, cleanup))
        for number in range(PASSES):
            once(call, draws[number % 2], cotangents)
        peak = status("VmHWM")
    return (peak - before) / 1024


def status(field: str) -> int:
    """A field of /proc/self/status, in KiB."""
    found = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{STATUS} has no {field}: memory is measured on Linux only")
    return int(found.group(1))


def main() -> None:
    """Print the growth in MiB."""
    import torch

    problem, batch, contestant, threads = sys.argv[1:]
    torch.set_default_dtype(torch.float64)
    print(json.dumps(_measure(problem, int(batch), contestant, int(threads))))


if __name__ == "__main__":
    main()
