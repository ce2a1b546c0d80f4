"""Convexlayer's batched interior-point method in Numba kernels: small and medium-sized programs on the CPU."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, final

from convexlayer.errors import SolverError
from convexlayer.program import ConeProgram, Structure
from convexlayer.runtime import kernel_cache
from convexlayer.solution import Solution
from convexlayer.solvers.base import AbstractSolver
from convexlayer.solvers.options import Options

if TYPE_CHECKING:
    from convexlayer.interior_point.lanes.solve import LanesInteriorPoint

__all__ = ["BatchedSolver"]


@final
class BatchedSolver(AbstractSolver):
    """Interior-point method with one element per SIMD lane; supports every cone.

    If its kernels are not compiled yet (``convexlayer compile``), ``init`` compiles them.
    """

    name = "batched"
    package = "numba"
    cones = frozenset({"zero", "nonnegative", "second_order", "psd", "exponential", "power"})
    quadratic = True
    fallback = "clarabel"
    supports_time_limit = False

    def installed(self) -> bool:
        """Whether Numba is installed."""
        return find_spec("numba") is not None

    def init(self, structure: Structure) -> LanesInteriorPoint:
        """Compile the kernels if needed, and analyse the structure."""
        if not kernel_cache.ready():
            kernel_cache.prepare(wait=True)
        from convexlayer.interior_point.lanes.solve import LanesInteriorPoint

        return LanesInteriorPoint(structure)

    def solve(
        self, state: LanesInteriorPoint, program: ConeProgram, options: Options, warm_start: Solution | None = None
    ) -> Solution:
        """Solve the batch; warm starts are ignored."""
        options.raw(self.name, ())
        if options.time_limit_s is not None:
            raise SolverError("solver 'batched' has no time_limit_s: omit it, or use solver='clarabel'")
        return state.solve(program, tol=options.tol, max_iter=options.max_iter)
