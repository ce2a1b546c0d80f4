"""By hand, implicit or unrolled: seven nodes three ways, in gradient error, time and memory."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from convexlayer.gallery.measure import cost
from convexlayer.gallery.result import Claim, Result
from convexlayer.gallery.trios import TRIOS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = "Gould 2026, slides: profiling (least squares), results in running time and memory (optimal transport)"

WAYS = ("by hand", "implicit", "unrolled")

SIZES: dict[str, tuple[int, ...]] = {
    "least squares": (4, 8, 16),
    "eigenvector": (8, 16, 32),
    "transport": (4, 8, 16),
    "pooling": (16, 64, 256),
    "simplex": (4, 8, 16),
    "procrustes": (2, 3, 4),
    "pnp": (8, 32, 128),
}

ITERATIONS = {
    "least squares": 300,
    "eigenvector": 60,
    "transport": 100,
    "pooling": 60,
    "simplex": 300,
    "procrustes": 40,
    "pnp": 8,
}
"""As many as bring the unrolled gradient below 1e-6 of the exact one at the smallest size."""


def _measured(name: str, size: int, repetitions: int) -> dict[str, Any]:
    """Of one node at one size: cost each way, and gradient errors relative to the one by hand."""
    trio = TRIOS[name]
    inputs = tuple(tensor.requires_grad_() for tensor in trio.inputs(size))
    calls = {
        "by hand": partial(trio.by_hand, *inputs),
        "implicit": partial(trio.implicit(*inputs), *inputs),
        "unrolled": partial(trio.unrolled, ITERATIONS[name], *inputs),
    }
    output = calls["by hand"]()
    cotangent = torch.randn(output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(0))
    gradients = {way: torch.autograd.grad(call(), inputs, cotangent) for way, call in calls.items()}
    exact = torch.cat([gradient.flatten() for gradient in gradients["by hand"]])
    found: dict[str, Any] = {"size": size}
    for way, call in calls.items():
        gradient = torch.cat([part.flatten() for part in gradients[way]])
        error = float((gradient - exact).norm() / exact.norm())
        found[way] = {**vars(cost(call, inputs, repetitions=repetitions, budget_s=0.5)), "gradient_error": error}
    return found


def run(*, sizes: int = 3, repetitions: int = 7) -> Result:
    """Measure every node at its first ``sizes`` sizes."""
    measured = {name: [_measured(name, size, repetitions) for size in SIZES[name][:sizes]] for name in TRIOS}
    smallest = {name: rows[0] for name, rows in measured.items()}
    largest = {name: rows[-1] for name, rows in measured.items()}
    implicit_error = max(row["implicit"]["gradient_error"] for row in smallest.values())
    unrolled_error = max(row["unrolled"]["gradient_error"] for row in smallest.values())
    memory = {name: row["unrolled"]["saved_bytes"] / row["by hand"]["saved_bytes"] for name, row in largest.items()}
    speed = {
        way: {name: row[way]["backward_s"] / row["by hand"]["backward_s"] for name, row in largest.items()}
        for way in WAYS[1:]
    }
    numbers: dict[str, Any] = {
        "measured": measured,
        "iterations": ITERATIONS,
        "implicit_gradient_error": implicit_error,
        "unrolled_gradient_error": unrolled_error,
        "saved_bytes_unrolled_over_by_hand": memory,
        "backward_over_by_hand": speed,
    }
    slowest = {way: min(ratios.values()) for way, ratios in speed.items()}
    claims = [
        Claim(
            "unrolling and implicit differentiation give the same derivative",
            f"relative to the one by hand the implicit gradients differ by at most {implicit_error:.0e}, the unrolled "
            f"ones by {unrolled_error:.0e}",
            implicit_error < 1e-6 and unrolled_error < 1e-5,
        ),
        Claim(
            "unrolling is memory intensive, implicit differentiation stores no intermediate calculations",
            f"unrolled over by hand: {min(memory.values()):.1f} ({min(memory, key=memory.__getitem__)}) to "
            f"{max(memory.values()):.0f} times ({max(memory, key=memory.__getitem__)})",
            min(memory.values()) > 1.0,
        ),
        Claim(
            "hand-crafted backward code is the efficient extreme, unrolling the other",
            f"backward passes take at least {slowest['implicit']:.1f} times as long implicitly, "
            f"{slowest['unrolled']:.1f} times unrolled (this run, largest sizes)",
            min(slowest.values()) > 1.0,
        ),
    ]

    def draw(figure: Figure) -> None:
        figure.set_size_inches(2.6 * len(measured), 6)
        panels = figure.subplots(2, len(measured), sharex="col")
        for column, (name, rows) in enumerate(measured.items()):
            places = [row["size"] for row in rows]
            for colour, way in enumerate(WAYS):
                style = {"marker": "o", "color": f"C{colour}", "label": way}
                panels[0, column].loglog(places, [1000 * row[way]["backward_s"] for row in rows], **style)
                panels[1, column].loglog(places, [row[way]["saved_bytes"] / 1024 for row in rows], **style)
            panels[0, column].set(title=name)
            panels[1, column].set(xlabel="size")
            panels[1, column].set_xticks(places, places)
            panels[1, column].minorticks_off()
        panels[0, 0].set(ylabel="backward, ms")
        panels[1, 0].set(ylabel="saved, KiB")
        panels[0, 0].legend()

    return Result(numbers, claims, draw)
