"""solve, vjp and jvp: how their answers are read, and how those of parts of a batch are put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from types import MappingProxyType
from typing import Any, Generic, TypeVar, final

import numpy as np

from convexlayer_client import readers
from convexlayer_client.arrays import Array
from convexlayer_client.results import (
    DerivativeReport,
    JvpResult,
    Problem,
    Residuals,
    SolveResult,
    SplitState,
    VjpResult,
)

__all__ = ["JVP", "OPERATIONS", "SOLVE", "VJP", "Operation"]

T = TypeVar("T")
R = TypeVar("R", SolveResult, VjpResult, JvpResult)


@final
@dataclass(frozen=True)
class Operation(Generic[T]):
    """What is computed of a batch.

    Attributes:
        name: As in paths.
        read: From the decoded body of an answer to the result.
        join: From the results of the parts of a batch, in order, and its problem to the result of the batch.
    """

    name: str
    read: Callable[[Any], T]
    join: Callable[[Sequence[T], Problem], T]


def _solve(results: Sequence[SolveResult], problem: Problem) -> SolveResult:
    return replace(
        _joined(results),
        variables=_columns([each.variables for each in results]),
        duals=_columns([each.duals for each in results]),
        objective=np.concatenate([each.objective for each in results]),
        iterations=np.concatenate([each.iterations for each in results]),
        residuals=Residuals(**_columns([vars(each.residuals) for each in results])),
        state=_split([each.state for each in results], results),
        portable=_split([each.portable for each in results], results),
    )


def _vjp(results: Sequence[VjpResult], problem: Problem) -> VjpResult:
    """The gradient of a parameter without a batch axis is that of its every element, so of all parts together."""
    summed = {name for name, value in results[0].gradients.items() if value.ndim == len(problem.parameters[name])}
    gradients = {
        name: np.asarray(sum(each.gradients[name] for each in results))
        if name in summed
        else np.concatenate([each.gradients[name] for each in results])
        for name in results[0].gradients
    }
    return replace(_joined(results), gradients=gradients, report=_report([each.report for each in results]))


def _jvp(results: Sequence[JvpResult], problem: Problem) -> JvpResult:
    return replace(
        _joined(results),
        tangents=_columns([each.tangents for each in results]),
        objective=np.concatenate([each.objective for each in results]),
        report=_report([each.report for each in results]),
    )


def _joined(results: Sequence[R]) -> R:
    """The first of them, with what is the same in all operations joined."""
    metas = [each.meta for each in results]
    seconds = {name: sum(meta["seconds"].get(name, 0.0) for meta in metas) for name in metas[0]["seconds"]}
    return replace(
        results[0],
        status=tuple(chain.from_iterable(each.status for each in results)),
        details={
            start + i: said
            for start, each in zip(accumulate(_rows(results), initial=0), results, strict=False)
            for i, said in each.details.items()
        },
        meta={**metas[0], "batch": sum(_rows(results)), "seconds": seconds},
    )


def _rows(results: Iterable[SolveResult | VjpResult | JvpResult]) -> tuple[int, ...]:
    """Elements of each."""
    return tuple(len(each.status) for each in results)


def _columns(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _split(states: Sequence[Any], results: Sequence[SolveResult]) -> SplitState[Any] | None:
    """Their state; none where one of them has none."""
    kept = tuple(state for state in states if state is not None)
    return SplitState(_rows(results), kept) if len(kept) == len(results) else None


def _report(reports: Sequence[DerivativeReport]) -> DerivativeReport:
    numbers = _columns([{name: value for name, value in vars(each).items() if name != "status"} for each in reports])
    return DerivativeReport(tuple(chain.from_iterable(each.status for each in reports)), **numbers)


SOLVE = Operation("solve", readers.solve_result, _solve)
VJP = Operation("vjp", readers.vjp_result, _vjp)
JVP = Operation("jvp", readers.jvp_result, _jvp)

OPERATIONS: Mapping[str, Operation[Any]] = MappingProxyType({each.name: each for each in (SOLVE, VJP, JVP)})
"""Each by its name."""
