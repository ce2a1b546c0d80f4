"""The engine inside the server's own process: threads, and a cache of compiled problems."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar, final

from ..documents import Grammar
from ..settings import Settings
from .compiled import CompiledProblem, compile_document
from .protocol import ComputeRequest, ComputeResult, EngineHealth, Progress

__all__ = ["EmbeddedEngine"]

_T = TypeVar("_T")


@final
class EmbeddedEngine:
    """Compiles on one thread, one document after another, and solves on several.

    Args:
        settings: ``solver_threads``, ``compiled_problems``, ``max_compiled_size``, and the bounds on documents.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._grammar = Grammar(settings)
        self._compiler = ThreadPoolExecutor(1, thread_name_prefix="compile")
        self._solvers = ThreadPoolExecutor(settings.solver_threads, thread_name_prefix="solve")
        self._compiled: OrderedDict[str, CompiledProblem] = OrderedDict()
        self._running: dict[str, Future[ComputeResult]] = {}
        self._lock = threading.Lock()
        self._closed = False

    async def register(self, problem_id: str, document: Mapping[str, Any]) -> Mapping[str, Any]:
        """Compile a document, unless it is compiled already."""
        return (await self._obtain(problem_id, document)).summary

    async def run(
        self, request: ComputeRequest, document: Mapping[str, Any], progress: Progress | None = None
    ) -> ComputeResult:
        """Compute on a thread of the pool."""
        compiled = await self._obtain(request.problem_id, document)
        future = self._solvers.submit(compiled.compute, request)
        self._running[request.request_id] = future
        try:
            return await asyncio.wrap_future(future)
        finally:
            self._running.pop(request.request_id, None)

    async def cancel(self, request_id: str) -> bool:
        """Give up a request that waits for a thread; one that is being solved runs on."""
        future = self._running.get(request_id)
        return future is not None and future.cancel()

    def health(self) -> EngineHealth:
        """How the engine is."""
        return EngineHealth(ready=not self._closed, compiled=len(self._compiled), running=len(self._running))

    async def open(self) -> None:
        """Nothing has to begin."""

    async def close(self) -> None:
        """Stop both pools after what they are computing; what waits is dropped."""
        self._closed = True
        for pool in (self._compiler, self._solvers):
            await asyncio.to_thread(pool.shutdown, cancel_futures=True)

    async def _obtain(self, problem_id: str, document: Mapping[str, Any]) -> CompiledProblem:
        """The compiled problem itself, which stays usable though the cache may drop it at any time."""
        found = self._find(problem_id)
        if found is None:
            found = await _on(self._compiler, lambda: self._compile(problem_id, document))
        return found

    def _find(self, problem_id: str) -> CompiledProblem | None:
        with self._lock:
            compiled = self._compiled.get(problem_id)
            if compiled is not None:
                self._compiled.move_to_end(problem_id)
            return compiled

    def _compile(self, problem_id: str, document: Mapping[str, Any]) -> CompiledProblem:
        """On the one compiling thread, so that a problem posted twice at once is compiled once."""
        compiled = self._find(problem_id)
        if compiled is None:
            compiled = compile_document(problem_id, document, self._grammar, self._settings)
            with self._lock:
                self._compiled[problem_id] = compiled
                self._evict()
        return compiled

    def _evict(self) -> None:
        """Drop the least recently used problems, but never the last one, which is about to be used."""
        size = sum(compiled.size for compiled in self._compiled.values())
        while len(self._compiled) > 1 and (
            len(self._compiled) > self._settings.compiled_problems or size > self._settings.max_compiled_size
        ):
            _, dropped = self._compiled.popitem(last=False)
            size -= dropped.size


async def _on(pool: ThreadPoolExecutor, work: Callable[[], _T]) -> _T:
    return await asyncio.get_running_loop().run_in_executor(pool, work)
