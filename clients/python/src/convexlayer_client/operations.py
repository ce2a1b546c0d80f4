"""solve, vjp and jvp: parsers of their responses, and how the results of parts of a batch are joined."""

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
    """An operation on a batch.

    Attributes:
        name: Name in paths.
        read: Converts the decoded body of a response to the result.
        join: Joins the results of the parts of a batch, in order; it also receives the problem.
    """

    name: str
    read: Callable[[Any], T]
    join: Callable[[Sequence[T], Problem], T]


def _join_solves(results: Sequence[SolveResult], problem: Problem) -> SolveResult:
    return replace(
        _joined(results),
        variables=_concatenate([each.variables for each in results]),
        duals=_concatenate([each.duals for each in results]),
        objective=np.concatenate([each.objective for each in results]),
        iterations=np.concatenate([each.iterations for each in results]),
        residuals=Residuals(**_concatenate([vars(each.residuals) for each in results])),
        state=_split([each.state for each in results], results),
        portable=_split([each.portable for each in results], results),
    )


def _join_vjps(results: Sequence[VjpResult], problem: Problem) -> VjpResult:
    """Join gradients; those of parameters without a batch axis are summed over the parts."""
    summed = {name for name, value in results[0].gradients.items() if value.ndim == len(problem.parameters[name])}
    gradients = {
        name: np.asarray(sum(each.gradients[name] for each in results))
        if name in summed
        else np.concatenate([each.gradients[name] for each in results])
        for name in results[0].gradients
    }
    return replace(_joined(results), gradients=gradients, report=_report([each.report for each in results]))


def _join_jvps(results: Sequence[JvpResult], problem: Problem) -> JvpResult:
    return replace(
        _joined(results),
        tangents=_concatenate([each.tangents for each in results]),
        objective=np.concatenate([each.objective for each in results]),
        report=_report([each.report for each in results]),
    )


def _joined(results: Sequence[R]) -> R:
    """Return the first result, with the fields that all operations share joined."""
    metas = [each.meta for each in results]
    seconds = {name: sum(meta["seconds"].get(name, 0.0) for meta in metas) for name in metas[0]["seconds"]}
    return replace(
        results[0],
        status=tuple(chain.from_iterable(each.status for each in results)),
        details={
            start + i: detail
            for start, each in zip(accumulate(_sizes(results), initial=0), results, strict=False)
            for i, detail in each.details.items()
        },
        meta={**metas[0], "batch": sum(_sizes(results)), "seconds": seconds},
    )


def _sizes(results: Iterable[SolveResult | VjpResult | JvpResult]) -> tuple[int, ...]:
    """Return the number of elements of each result."""
    return tuple(len(each.status) for each in results)


def _concatenate(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _split(states: Sequence[Any], results: Sequence[SolveResult]) -> SplitState[Any] | None:
    """Return the state of all parts; None if a part has none."""
    present = tuple(state for state in states if state is not None)
    return SplitState(_sizes(results), present) if len(present) == len(results) else None


def _report(reports: Sequence[DerivativeReport]) -> DerivativeReport:
    numbers = _concatenate(
        [{name: value for name, value in vars(each).items() if name != "status"} for each in reports]
    )
    return DerivativeReport(tuple(chain.from_iterable(each.status for each in reports)), **numbers)


SOLVE = Operation("solve", readers.solve_result, _join_solves)
VJP = Operation("vjp", readers.vjp_result, _join_vjps)
JVP = Operation("jvp", readers.jvp_result, _join_jvps)

OPERATIONS: Mapping[str, Operation[Any]] = MappingProxyType({each.name: each for each in (SOLVE, VJP, JVP)})
"""Operations by name."""
