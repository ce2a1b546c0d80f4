"""Interleaved timing of the forward and backward passes of several calls."""

from __future__ import annotations

import contextlib
import gc
import io
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from benchmarks.contestant import Call
from benchmarks.problem import Tensors

__all__ = ["Plan", "Times", "measure", "once", "quiet"]


@dataclass(frozen=True)
class Plan:
    """Duration of a measurement.

    Attributes:
        rounds: maximum number of rounds; each contestant has one turn per round.
        budget_s: time budget in seconds of a contestant for one problem and batch size.
        limit_s: calls that are expected to take more seconds than this are skipped.
        turn_s: target duration of a turn in seconds; short calls are repeated within a turn.
    """

    rounds: int = 15
    budget_s: float = 6.0
    limit_s: float = 20.0
    turn_s: float = 0.01


@dataclass
class Times:
    """Samples of the times, in seconds; the total is from parameters to gradients."""

    forward: list[float] = field(default_factory=list)
    backward: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)
    error: str | None = None

    def medians(self) -> tuple[float, float, float]:
        """Medians of forward, backward and total times."""
        forward, backward, total = (float(np.median(part)) for part in (self.forward, self.backward, self.total))
        return forward, backward, total


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress standard output, as some peers print on every call."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def once(call: Call, theta: Tensors, cotangents: Tensors) -> tuple[float, float, Tensors, Tensors]:
    """One forward and backward pass: forward time and backward time in seconds, outputs, gradients."""
    start = time.perf_counter()
    outputs = call(theta)
    solved = time.perf_counter()
    gradients = torch.autograd.grad(outputs, theta, cotangents, allow_unused=True)
    done = time.perf_counter()
    filled = tuple(torch.zeros_like(t) if g is None else g for g, t in zip(gradients, theta, strict=True))
    return solved - start, done - solved, outputs, filled


def measure(calls: Mapping[str, Call], draws: list[Tensors], cotangents: Tensors, plan: Plan) -> dict[str, Times]:
    """Measure calls that are warmed up already.

    In each round every call has one turn, in rotating order, so that other load on the machine affects all calls alike.
    Consecutive calls get different draws, so that no contestant can reuse results. If a turn has several calls, the
    first one only warms up threads and caches and is not counted.
    """
    times = {name: Times() for name in calls}
    spent = dict.fromkeys(calls, 0.0)
    turns = dict.fromkeys(calls, 1)
    number = 0
    with quiet(), _no_collection():
        for turn in range(plan.rounds):
            names = list(calls)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                samples = times[name]
                if samples.error or (spent[name] > plan.budget_s and samples.total):
                    continue
                try:
                    for position in range(turns[name]):
                        number += 1
                        forward, backward, *_ = once(calls[name], draws[number % len(draws)], cotangents)
                        spent[name] += forward + backward
                        if position or turns[name] == 1:
                            samples.forward.append(forward)
                            samples.backward.append(backward)
                            samples.total.append(forward + backward)
                except Exception as error:
                    samples.error = f"{type(error).__name__}: {error}"
                    continue
                turns[name] = int(np.clip(plan.turn_s / (forward + backward), 1, 20))
            gc.collect()
    return times


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
