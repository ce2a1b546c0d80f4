"""The executor of a worker: its canonicalised problems and solved batches, and the execution of work items."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import final

from convexlayer.layers.protocol import AbstractSolvedBatch

from ..documents.grammar import Grammar
from ..errors import RequestError
from ..settings import Settings
from ..shared.caches import LRUCache
from .canonical import CanonicalProblem, canonicalise_document
from .problem_solver import ProblemSolver
from .protocol import ComputeRequest, PortableState
from .worker_messages import WorkItem, WorkResult

__all__ = ["Executor"]

_LOG = logging.getLogger(__name__)

_FILL_IN = 10
"""Assumed entries of a sparse factor for each entry of its matrix; only the cache's account of bytes depends on it."""

_VECTORS = 6
"""Assumed arrays of the size of the KKT matrix's entries in a solved batch, in addition to the factor."""

_DOUBLE_BYTES = 8
"""Bytes of a number in double precision."""


@final
class Executor:
    """Executes work items; not thread-safe.

    Args:
        settings: ``cached_problems``, ``max_cached_size``, ``state_bytes``, and the limits on documents.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, settings: Settings, device: str = "cpu") -> None:
        self._settings = settings
        self._device = device
        self._grammar = Grammar(settings)
        self._problems: LRUCache[str, tuple[CanonicalProblem, ProblemSolver]] = LRUCache(
            settings.max_cached_size, settings.cached_problems, keep_last=True
        )
        self._batches: LRUCache[str, AbstractSolvedBatch] = LRUCache(settings.state_bytes)

    def execute(self, work: WorkItem) -> WorkResult:
        """Canonicalise the problem if necessary, then compute. Errors are returned, never raised."""
        start = time.perf_counter()
        try:
            problem, solver, evicted = self._problem(work)
        except Exception as error:
            elapsed = time.perf_counter() - start
            return WorkResult(error=_picklable(error), canonicalised=False, canonicalise_s=elapsed)
        summary = None if work.document is None and work.request is not None else problem.summary
        canonicalised = time.perf_counter()
        partial = WorkResult(summary=summary, evicted_problems=tuple(evicted), canonicalise_s=canonicalised - start)
        if work.request is None:
            return partial
        try:
            result, batch, stopped = solver.compute(work.request, self._cached(work.request), merged=work.merged)
            cached, evicted_batches = self._cache(problem, work.request, batch)
        except Exception as error:
            return replace(partial, error=_picklable(error), compute_s=time.perf_counter() - canonicalised)
        return replace(
            partial,
            result=result,
            stopped=stopped,
            cached=cached,
            evicted_batches=evicted_batches,
            compute_s=time.perf_counter() - canonicalised,
        )

    def _problem(self, work: WorkItem) -> tuple[CanonicalProblem, ProblemSolver, list[str]]:
        """Return the problem, its solver, and the IDs of the problems that were evicted for it."""
        found = self._problems.get(work.problem_id)
        if found is not None:
            return *found, []
        assert work.document is not None, "the scheduler knows which problems its workers hold"
        problem = canonicalise_document(work.problem_id, work.document, self._grammar, self._settings)
        solver = ProblemSolver(problem, self._device)
        return problem, solver, self._problems.put(work.problem_id, (problem, solver), problem.size)

    def _cached(self, request: ComputeRequest) -> AbstractSolvedBatch | None:
        return self._batches.get(request.state) if isinstance(request.state, str) else None

    def _cache(
        self, problem: CanonicalProblem, request: ComputeRequest, batch: AbstractSolvedBatch
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Cache a solved batch if its request says so; return its key, and the keys that were evicted for it."""
        state = request.state
        key = request.request_id if request.keep else state.digest if isinstance(state, PortableState) else ""
        if not key:
            return (), ()
        evicted = self._batches.put(key, batch, _size_bytes(problem, batch))
        return ((key,) if key in self._batches else ()), tuple(each for each in evicted if each != key)


def _size_bytes(problem: CanonicalProblem, batch: AbstractSolvedBatch) -> int:
    """Estimate the bytes of a solved batch with its factor: dense, or sparse with fill-in, whichever is smaller."""
    structure = problem.program.structure
    order = structure.n + structure.m
    entries = order + structure.P.nnz + structure.A.nnz
    factor = min(order * order, _FILL_IN * entries)
    return _DOUBLE_BYTES * batch.batch * (_VECTORS * entries + factor)


def _picklable(error: Exception) -> Exception:
    """Return an error that can be pickled; the traceback of an unexpected one is logged here."""
    if isinstance(error, RequestError):
        return error
    _LOG.error("a request failed in a worker", exc_info=error)
    return RuntimeError(f"{type(error).__name__}: {error}")
