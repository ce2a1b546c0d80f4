"""Report of the results as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.results import CORRECT, OURS, Record, Results, fastest_correct, summaries
from benchmarks.suite import HELD_OUT, marked

__all__ = ["grid", "markdown"]

TIMES = {"total_s": "both ways", "forward_s": "forward", "backward_s": "backward"}


def markdown(results: Results) -> str:
    """The whole report."""
    sections = [_head(results), *_failed(results), *_cases(results)]
    if results.overhead:
        sections += ["## Overhead", _overhead(results)]
    if results.memory:
        sections += ["## Memory", _memory(results)]
    for curve, records in results.scaling.items():
        sections += [f"## Scaling: {curve}", "Milliseconds both ways.", _curve(records)]
    sections += ["## References", _references(results)]
    return "\n\n".join(sections) + "\n"


def _head(results: Results) -> str:
    machine = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        "# Benchmark\n\n"
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads each, float64, "
        f"commit {machine['commit']}, load at the start {machine['load']:.1f}. "
        f"Python {machine['python']}, {versions}.\n\n"
        "Medians in milliseconds from parameters to gradients, all contestants interleaved, every parameter with a "
        "gradient. Times in brackets belong to wrong results: the relative error of the gradient exceeds "
        f"{CORRECT:.0e} for more than one element in twenty. *Peer / ours* is of the fastest peer without brackets. "
        "The library is tuned on the problems without a star; those with one are held out."
    )


def _failed(results: Results) -> list[str]:
    if not results.failures:
        return []
    return ["## Failed", "\n".join(f"- {failure}" for failure in results.failures)]


def _cases(results: Results) -> list[str]:
    """Tables for each batch size: times of all contestants, summaries, times net of overhead, all times and errors."""
    sections = []
    for batch in sorted({r.batch for r in results.records}):
        records = [r for r in results.records if r.batch == batch]
        names = list(dict.fromkeys(r.contestant for r in records))
        rows = []
        for problem in dict.fromkeys(r.problem for r in records):
            group = {r.contestant: r for r in records if r.problem == problem}
            ours, peer = group.get(OURS), fastest_correct(list(group.values()))
            ratio = f"{peer.total_s / ours.total_s:.2f}" if ours and peer and ours.total_s and peer.total_s else ""
            rows.append([marked(problem), *(_time(group.get(name)) for name in names), ratio])
        sections += [f"## Batch {batch}", grid(["problem", *names, "peer / ours"], rows), *_summaries(records)]
        if batch == 1 and any(r.contestant == "empty" for r in records):
            sections += ["Net of an empty autograd function:", _net(records)]
        sections += [f"<details><summary>Batch {batch} in full</summary>", _full(records), "</details>"]
    return sections


def _summaries(records: list[Record]) -> list[str]:
    """Ratios of the fastest correct peer to ours over the problems of one batch size, and over those held out."""
    held_out = [r for r in records if r.problem in HELD_OUT]
    chosen = {"all": records, **({"held out": held_out} if len(held_out) < len(records) else {})}
    rows = [
        [
            TIMES[part],
            problems,
            str(summary.problems),
            f"{summary.mean:.2f}",
            f"{summary.least:.2f}",
            summary.where,
            "" if summary.cvxpylayers is None else f"{summary.cvxpylayers:.1f}",
        ]
        for part in TIMES
        for problems, group in chosen.items()
        for summary in summaries(group, part=part)
    ]
    head = [
        "peer / ours",
        "problems",
        "number",
        "geometric mean",
        "worst",
        "where",
        "cvxpylayers' default, mean",
    ]
    return [grid(head, rows)] if rows else []


def _time(record: Record | None) -> str:
    if record is None or record.total_s is None:
        return ""
    shown = _ms(record.total_s)
    return shown if record.correct or record.contestant == "empty" else f"({shown})"


def _net(records: Sequence[Record]) -> str:
    rows = []
    for problem in dict.fromkeys(r.problem for r in records):
        group = {r.contestant: r for r in records if r.problem == problem}
        ours, peer, empty = group.get(OURS), fastest_correct(list(group.values())), group.get("empty")
        if ours and peer and empty and ours.total_s and peer.total_s and empty.total_s:
            mine, theirs = ours.total_s - empty.total_s, peer.total_s - empty.total_s
            rows.append(
                [
                    marked(problem),
                    _ms(empty.total_s),
                    _ms(mine),
                    f"{_ms(theirs)} ({peer.contestant})",
                    f"{theirs / mine:.2f}",
                ]
            )
    return grid(["problem", "empty", "ours, net", "fastest correct peer, net", "ratio"], rows)


def _full(records: Sequence[Record]) -> str:
    head = [
        "problem",
        "contestant",
        "forward",
        "backward",
        "set-up",
        "first",
        "runs",
        "output-error",
        "gradient-error",
        "worst",
        "KKT",
        "note",
    ]
    rows = []
    for r in records:
        times = [_ms(value) for value in (r.forward_s, r.backward_s, r.setup_s, r.first_s)]
        errors = [_error(value) for value in (r.output_error, r.gradient_error, r.worst_gradient_error, r.residual)]
        rows.append([r.problem, r.contestant, *times, str(r.runs), *errors, r.note or r.solver or ""])
    return grid(head, rows)


def _overhead(results: Results) -> str:
    parts = list(dict.fromkeys(part for entry in results.overhead for part in entry["parts"]))
    head = ["problem", "batch", "solver", *parts, "both ways", "solver's own", "forward / solver", "overhead"]
    rows = []
    for entry in results.overhead:
        ratio = entry["forward_over_solver"]
        rows.append(
            [
                entry["problem"],
                str(entry["batch"]),
                entry["solver"],
                *(_ms(entry["parts"].get(part)) for part in parts),
                _ms(entry["total_s"]),
                _ms(entry["solver_s"]),
                f"{ratio:.2f}" if ratio and entry["batch"] == 1 else "",
                f"{100 * entry['overhead']:.0f} %",
            ]
        )
    note = "Milliseconds of Convexlayer's calls. Overhead: time outside `solve` and `derivative` of the report."
    return f"{note}\n\n{grid(head, rows)}"


def _memory(results: Results) -> str:
    names = list(dict.fromkeys(entry["contestant"] for entry in results.memory))
    rows = []
    for problem, batch in dict.fromkeys((entry["problem"], entry["batch"]) for entry in results.memory):
        group = {
            entry["contestant"]: entry.get("mebibytes")
            for entry in results.memory
            if (entry["problem"], entry["batch"]) == (problem, batch)
        }
        grown = [f"{group[name]:.1f}" if group.get(name) is not None else "" for name in names]
        rows.append([problem, str(batch), *grown])
    return (
        "Growth of resident memory in MiB, from after the imports and one element of a small problem to the peak.\n\n"
        + grid(["problem", "batch", *names], rows)
    )


def _curve(records: Sequence[Record]) -> str:
    names = list(dict.fromkeys(r.contestant for r in records))
    rows = []
    for problem, batch in dict.fromkeys((r.problem, r.batch) for r in records):
        group = {r.contestant: r for r in records if (r.problem, r.batch) == (problem, batch)}
        rows.append([problem, str(batch), *(_time(group.get(name)) for name in names)])
    return grid(["problem", "batch", *names], rows)


def _references(results: Results) -> str:
    note = (
        "Clarabel at tolerance 1e-12, polished and differentiated exactly. Residual: the largest of all elements. "
        "Differences: relative error of the gradient against central differences of the solutions, the median of a few "
        "elements."
    )
    rows = [
        [
            entry["problem"],
            str(entry["batch"]),
            _error(entry["residual"]),
            _error(entry["check"]),
            str(entry["unknown"]),
        ]
        for entry in results.references
    ]
    return f"{note}\n\n{grid(['problem', 'batch', 'residual', 'differences', 'elements without reference'], rows)}"


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.3g}" if seconds < 1 else f"{1000 * seconds:.0f}"


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.0e}"


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
