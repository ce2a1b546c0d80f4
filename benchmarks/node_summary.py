"""Report of the nodes' benchmark as Markdown and as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.ticker import NullFormatter

from benchmarks.node_cases import OURS, SINKHORN_TOL
from benchmarks.node_memory import CASES
from benchmarks.node_peers import LIBRARY
from benchmarks.table import grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw", "markdown"]

MIB = 2**20
"""Bytes of a mebibyte."""

WITHOUT = "The deep declarative networks library could not be imported: its rows are left out."


def markdown(results: Mapping[str, Any]) -> str:
    """Format the report as Markdown."""
    machine = results["machine"]
    sections = [
        "# Benchmark of the nodes",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads each, float64, commit "
        f"{machine['commit']}, load at the start {machine['load']:.1f}. Medians in milliseconds, all contestants "
        f"interleaved; all solve transport to a relative error of {SINKHORN_TOL:.0e} of the row sums.",
        *(part for case in results["times"] for part in (f"## {case['name']}", _times(case["contestants"]))),
        "## Small nodes",
        "Milliseconds forward and backward, and relative to ours; gradient errors against central differences."
        + ("" if any(LIBRARY in case["contestants"] for case in results["small"]) else f" {WITHOUT}"),
        _small(results["small"]),
        "## Memory of a plan against the iterations",
        _iterations(results["iterations"]),
        "## Memory of a generic node's backward pass",
        "Growth of the process in MiB for y = argmin |A y - b|^2 / 2n + |y|^2 / 2 with the gradient in A (n by n): "
        "with a dense Hessian; with products only; and, for comparison, with f_XY (n^3 entries) formed.",
        _memory(results["memory"]),
    ]
    return "\n\n".join(sections) + "\n"


def _times(entries: Mapping[str, Mapping[str, float]]) -> str:
    ours = entries[OURS]
    rows = [
        [
            name,
            f"{1000 * entry['forward_s']:.2f}",
            f"{1000 * entry['backward_s']:.2f}",
            "" if name == OURS else f"{entry['total_s'] / ours['total_s']:.1f}",
            "" if name == OURS else f"{entry['backward_s'] / ours['backward_s']:.1f}",
            f"{entry['gradient_error']:.0e}",
            f"{entry['saved_bytes'] / MIB:.3g}",
        ]
        for name, entry in entries.items()
    ]
    return grid(
        ["", "forward", "backward", "both / ours", "backward / ours", "gradient error", "kept for backward, MiB"], rows
    )


def _small(cases: Sequence[Mapping[str, Any]]) -> str:
    """Table with a row per contestant and a column per batch size."""
    batches = sorted({case["batch"] for case in cases})
    rows = []
    for name in dict.fromkeys(case["name"] for case in cases):
        sizes = {case["batch"]: case["contestants"] for case in cases if case["name"] == name}
        for label in next(iter(sizes.values())):
            cells = []
            for batch in batches:
                entry, ours = sizes[batch][label], sizes[batch][OURS]
                cells.append(f"{1000 * entry['total_s']:.3f} ({entry['total_s'] / ours['total_s']:.2f})")
            error = max(contestants[label]["gradient_error"] for contestants in sizes.values())
            rows.append([name if label == OURS else "", label, *cells, f"{error:.0e}"])
    return grid(["", "", *(f"B = {batch}" for batch in batches), "gradient error"], rows)


def _iterations(growth: Mapping[str, Any]) -> str:
    rows = [
        *(
            ["unrolled", "", str(n), f"{size / MIB:.3g}"]
            for n, size in _pairs(growth, "unrolled_iterations", "unrolled_bytes")
        ),
        *(
            [OURS, f"{gamma:g}", str(needed), f"{size / MIB:.3g}"]
            for gamma, needed, size in zip(
                growth["gammas"], growth["sinkhorn_iterations"], growth["bytes"], strict=True
            )
        ),
    ]
    return grid(["", "gamma", "iterations (that Sinkhorn needs)", "kept for backward, MiB"], rows)


def _pairs(growth: Mapping[str, Any], first: str, second: str) -> Sequence[tuple[Any, Any]]:
    return list(zip(growth[first], growth[second], strict=True))


def _memory(entries: Sequence[Mapping[str, Any]]) -> str:
    sizes = sorted({entry["n"] for entry in entries})
    found = {(entry["case"], entry["n"]): entry["mebibytes"] for entry in entries}
    rows = [[case, *(f"{found[case, n]:.1f}" if (case, n) in found else "" for n in sizes)] for case in CASES]
    return grid(["", *(f"n = {n}" for n in sizes)], rows)


def draw(results: Mapping[str, Any], figure: Figure) -> None:
    """Draw a panel per timed case, one for the memory of unrolling, and one for that of generic nodes."""
    panels = figure.subplots(2, -(-(len(results["times"]) + 2) // 2), squeeze=False).ravel()
    for axes, case in zip(panels, results["times"], strict=False):
        _bars(axes, case)
    *_, iterations, memory = panels[: len(results["times"]) + 2]
    growth = results["iterations"]
    iterations.loglog(
        growth["unrolled_iterations"], [size / MIB for size in growth["unrolled_bytes"]], "o-", label="unrolled"
    )
    for gamma, size in _pairs(growth, "gammas", "bytes"):
        iterations.axhline(size / MIB, color="#d62728", label=f"{OURS}, gamma = {gamma:g}")
    iterations.set(xlabel="unrolled iterations", ylabel="MiB kept for backward", title=f"transport, n = {growth['n']}")
    iterations.legend(fontsize="small")
    for case in CASES:
        group = [entry for entry in results["memory"] if entry["case"] == case]
        memory.loglog([entry["n"] for entry in group], [entry["mebibytes"] for entry in group], "o-", label=case)
    memory.set(xlabel="n", ylabel="MiB grown in backward", title="generic node, n unknowns, n^2 parameters")
    memory.legend(fontsize="small")
    for axes in panels[len(results["times"]) + 2 :]:
        axes.set_axis_off()


def _bars(axes: Axes, case: Mapping[str, Any]) -> None:
    entries = case["contestants"]
    places = range(len(entries))
    for shift, part, colour in ((-0.2, "forward_s", "#1f77b4"), (0.2, "backward_s", "#ff7f0e")):
        times = [1000 * entry[part] for entry in entries.values()]
        axes.barh([place + shift for place in places], times, height=0.4, color=colour, label=part.removesuffix("_s"))
    axes.set_yticks(list(places), list(entries))
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="ms", title=case["name"])
    axes.xaxis.set_minor_formatter(NullFormatter())  # minor labels would overlap
    axes.title.set_fontsize("medium")
    axes.legend(fontsize="small")
