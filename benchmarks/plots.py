"""Figures of the results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.results import CORRECT, OURS, Record, Results, fastest_correct
from benchmarks.suite import marked

__all__ = ["draw"]

COLOURS = {
    OURS: "#d62728",
    "cvxpylayers": "#1f77b4",
    "cvxpylayers-clarabel": "#aec7e8",
    "moreau-ipm": "#2ca02c",
    "moreau-auto": "#98df8a",
    "moreau-qp": "#006400",
    "proxsuite": "#9467bd",
    "qpth": "#8c564b",
    "libdqp": "#e377c2",
    "diffapqp": "#7f7f7f",
}


def draw(results: Results, folder: Path) -> list[Path]:
    """Write the figures: one per batch size, and one with all curves."""
    written = []
    for batch in sorted({r.batch for r in results.records}):
        measured = [r for r in results.records if r.batch == batch and r.total_s and r.contestant in COLOURS]
        if measured:
            written.append(folder / f"batch_{batch}.png")
            _batch(measured, batch).savefig(written[-1], dpi=120)
    if results.scaling:
        written.append(folder / "scaling.png")
        _scaling(results).savefig(written[-1], dpi=120)
    return written


def _batch(records: Sequence[Record], batch: int) -> Figure:
    """Times, ratio of the fastest correct peer to ours, and gradient errors, by problem."""
    problems = list(dict.fromkeys(r.problem for r in records))
    figure = Figure(figsize=(2.5 + 0.8 * len(problems), 9), layout="constrained")
    times, ratios, errors = figure.subplots(3, 1, sharex=True, height_ratios=[3, 1.5, 2])
    for name in [name for name in COLOURS if any(r.contestant == name for r in records)]:
        group = [r for r in records if r.contestant == name]
        place = [problems.index(r.problem) for r in group]
        size, order = (70, 3) if name == OURS else (30, 2)
        filled = [COLOURS[name] if r.correct else "none" for r in group]
        style = {"s": size, "zorder": order, "color": filled, "edgecolors": COLOURS[name]}
        times.scatter(place, [1000 * (r.total_s or np.nan) for r in group], **style)
        times.scatter([], [], s=30, color=COLOURS[name], label=name)
        errors.scatter(place, [max(r.gradient_error or 0.0, 1e-16) for r in group], **style)
    times.set(yscale="log", ylabel="ms, forward and backward", title=f"batch {batch}: hollow marks are wrong results")
    figure.legend(loc="outside upper center", ncols=4, fontsize="small")
    for position, problem in enumerate(problems):
        group = [r for r in records if r.problem == problem]
        ours, peer = next((r for r in group if r.contestant == OURS), None), fastest_correct(group)
        if ours and peer and ours.total_s and peer.total_s:
            ratio = peer.total_s / ours.total_s
            ratios.bar(position, ratio, color=COLOURS[peer.contestant])
            ratios.annotate(f"{ratio:.1f}", (position, ratio), ha="center", va="bottom", fontsize="small")
    ratios.axhline(1.0, color="black", linewidth=0.8)
    ratios.set(yscale="log", ylabel="fastest correct\npeer / ours")
    errors.axhline(CORRECT, color="black", linewidth=0.8)
    errors.set(yscale="log", ylabel="gradient error")
    errors.set_xticks(range(len(problems)), list(map(marked, problems)), rotation=30, ha="right")
    for axes in (times, ratios, errors):
        axes.grid(axis="y", alpha=0.3)
    return figure


def _scaling(results: Results) -> Figure:
    """One panel per curve."""
    figure = Figure(figsize=(6.5 * len(results.scaling), 5), layout="constrained")
    panels = figure.subplots(1, len(results.scaling), squeeze=False)[0]
    for axes, (curve, records) in zip(panels, results.scaling.items(), strict=True):
        for name, colour in COLOURS.items():
            group = [r for r in records if r.contestant == name and r.total_s]
            if group:
                axis = results.sizes.get(curve, {})
                place = [axis.get(r.problem, r.batch) for r in group]
                shown = [1000 * (r.total_s or np.nan) for r in group]
                width = 2 if name == OURS else 1
                axes.plot(place, shown, "o-", color=colour, label=name, linewidth=width, markersize=4)
        axes.set(xscale="log", yscale="log", title=curve, ylabel="ms, forward and backward")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return figure
