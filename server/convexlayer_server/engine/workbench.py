"""What a worker holds, compiled problems and solved batches, and how it does its work: one piece after another."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TypeVar, final

from convexlayer.layers import SolvedBatch

from ..documents.grammar import Grammar
from ..errors import RequestError
from ..kept import LRUCache
from ..settings import Settings
from .compiled import CompiledProblem, compile_document
from .computation import Computation
from .protocol import ComputeRequest, PortableState
from .work import Done, Work

__all__ = ["Workbench"]

_LOG = logging.getLogger(__name__)

_T = TypeVar("_T")

_FILL = 10
"""Entries that the factor of a sparse system is taken to have for each entry of the system."""


@final
class Workbench:
    """Does work; not thread-safe.

    Args:
        settings: ``compiled_problems``, ``max_compiled_size``, ``state_bytes``, and the bounds on documents.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, settings: Settings, device: str = "cpu") -> None:
        self._settings = settings
        self._device = device
        self._grammar = Grammar(settings)
        self._problems: LRUCache[str, tuple[CompiledProblem, Computation]] = LRUCache(
            settings.max_compiled_size, settings.compiled_problems, keep_last=True
        )
        self._batches: LRUCache[str, SolvedBatch] = LRUCache(settings.state_bytes)

    def do(self, work: Work) -> Done:
        """Compile where that is needed, then compute; no exception leaves."""
        start = time.perf_counter()
        try:
            problem, computation, problems = self._obtain(work)
        except Exception as error:
            return Done(error=_portable(error), compiled=False, compile_s=time.perf_counter() - start)
        summary = None if work.document is None and work.request is not None else problem.summary
        compiled = time.perf_counter()
        done = Done(summary=summary, problems=tuple(problems), compile_s=compiled - start)
        if work.request is None:
            return done
        try:
            result, batch, stopped = computation.result(work.request, self._batch(work.request), merged=work.merged)
            kept, dropped = self._keep(problem, work.request, batch)
        except Exception as error:
            return replace(done, error=_portable(error), compute_s=time.perf_counter() - compiled)
        return replace(
            done,
            result=result,
            stopped=stopped,
            kept=kept,
            dropped=dropped,
            compute_s=time.perf_counter() - compiled,
        )

    def _obtain(self, work: Work) -> tuple[CompiledProblem, Computation, list[str]]:
        """The problem, what computes with it, and the ids of those that had to make room for it."""
        found = self._problems.get(work.problem_id)
        if found is not None:
            return *found, []
        assert work.document is not None, "the engine knows what its workers have compiled"
        problem = compile_document(work.problem_id, work.document, self._grammar, self._settings)
        computation = Computation(problem, self._device)
        return problem, computation, self._problems.put(work.problem_id, (problem, computation), problem.size)

    def _batch(self, request: ComputeRequest) -> SolvedBatch | None:
        return self._batches.get(request.state) if isinstance(request.state, str) else None

    def _keep(
        self, problem: CompiledProblem, request: ComputeRequest, batch: SolvedBatch
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Ids of the batch, if it is kept, and of those that had to make room for it."""
        state = request.state
        key = request.request_id if request.keep else state.digest if isinstance(state, PortableState) else ""
        if not key:
            return (), ()
        dropped = self._batches.put(key, batch, _size_bytes(problem, batch))
        return ((key,) if key in self._batches else ()), tuple(each for each in dropped if each != key)


def _size_bytes(problem: CompiledProblem, batch: SolvedBatch) -> int:
    """Bytes of a solved batch with its factor, about: dense, or sparse with fill, whichever is smaller."""
    structure = problem.program.structure
    order = structure.n + structure.m
    entries = order + structure.P.nnz + structure.A.nnz
    factor = min(order * order, _FILL * entries)
    return 8 * batch.batch * (6 * entries + factor)


def _portable(error: Exception) -> Exception:
    """An error that can be sent: one of the service's own, or a bug with its traceback in the log of this worker."""
    if isinstance(error, RequestError):
        return error
    _LOG.error("a request failed in a worker", exc_info=error)
    return RuntimeError(f"{type(error).__name__}: {error}")
