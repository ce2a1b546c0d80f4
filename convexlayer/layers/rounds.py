"""Derivatives at rows that belong to any elements of a batch, several to one element or none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from convexlayer.layers.chunked_batch import ChunkedBatch
from convexlayer.layers.protocol import AbstractSolvedBatch
from convexlayer.program import Array, IndexArray

__all__ = ["Derivative", "in_rounds", "wanted"]

Derivative = Callable[[AbstractSolvedBatch, list[Array | None]], tuple[tuple[Array | None, ...], Any]]
"""A derivative of a solved batch: from rows (B, ...) to results (B, ...), with a report."""


def in_rounds(
    element: IndexArray, solved: AbstractSolvedBatch, rows: list[Array | None], derivative: Derivative
) -> tuple[tuple[Array, ...], Any]:
    """Apply a derivative to rows of the given elements, in rounds with at most one row per element.

    A chunked batch takes all rounds of a chunk before the next chunk, so that no chunk is factorised twice.

    Args:
        element: the element that each row belongs to, (rows,).
        solved: the solved batch.
        rows: cotangents or tangents, each (rows, ...); None is zero.
        derivative: the derivative.

    Returns:
        The results that are not None, one row per row of ``element``, and the worst report of all rounds.
    """
    if len(element) == solved.batch and np.array_equal(element, np.arange(solved.batch)):
        return wanted(derivative(solved, rows))
    turn = _turns(element)
    if not isinstance(solved, ChunkedBatch):
        return _in_turns(element, turn, solved, rows, derivative)
    results: tuple[Array, ...] = ()
    reports: list[Any] = []
    for chunk, part in solved.parts("derivative"):
        mine = np.flatnonzero((element >= chunk.start) & (element < chunk.stop))
        chosen = [None if value is None else value[mine] for value in rows]
        answers, report = _in_turns(element[mine] - chunk.start, turn[mine], part, chosen, derivative)
        reports.append(report)
        results = results or tuple(np.zeros((len(element), *answer.shape[1:])) for answer in answers)
        for result, answer in zip(results, answers, strict=True):
            result[mine] = answer
    return results, solved.joined_report(reports)


def wanted(results: tuple[tuple[Array | None, ...], Any]) -> tuple[tuple[Array, ...], Any]:
    """The results of a derivative that were asked for, and its report."""
    values, report = results
    return tuple(value for value in values if value is not None), report


def _turns(element: IndexArray) -> IndexArray:
    """The number of earlier rows of the same element, for each row."""
    order = np.argsort(element, kind="stable")
    ranked = element[order]
    turn = np.empty(len(element), dtype=np.int64)
    turn[order] = np.arange(len(element)) - np.searchsorted(ranked, ranked)
    return turn


def _in_turns(
    element: IndexArray,
    turn: IndexArray,
    solved: AbstractSolvedBatch,
    rows: list[Array | None],
    derivative: Derivative,
) -> tuple[tuple[Array, ...], Any]:
    """``in_rounds`` for a batch that is differentiated whole; ``turn`` is the round of each row."""
    results: tuple[Array, ...] = ()
    worst: Any = None
    for number in range(int(turn.max(initial=0)) + 1):  # at least one round, to learn the shapes
        chosen = np.flatnonzero(turn == number)
        placed: list[Array | None] = []
        for value in rows:
            if value is None:
                placed.append(None)
            else:
                spread = np.zeros((solved.batch, *value.shape[1:]))
                spread[element[chosen]] = value[chosen]
                placed.append(spread)
        answers, report = wanted(derivative(solved, placed))
        worst = report if worst is None else worst.worse(report)
        results = results or tuple(np.zeros((len(element), *answer.shape[1:])) for answer in answers)
        for result, answer in zip(results, answers, strict=True):
            result[chosen] = answer[element[chosen]]
    return results, worst
