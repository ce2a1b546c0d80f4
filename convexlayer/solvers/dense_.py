"""Convexlayer's interior-point method on dense torch tensors, on the CPU or a GPU."""

from __future__ import annotations

from importlib.util import find_spec
from threading import Lock
from typing import TYPE_CHECKING, final

from convexlayer.errors import SolverError
from convexlayer.program import ConeProgram, Structure
from convexlayer.solution import Solution
from convexlayer.solvers.base import AbstractSolver
from convexlayer.solvers.options import Options

if TYPE_CHECKING:
    from convexlayer.interior_point.torch.solve import TorchInteriorPoint

__all__ = ["DenseSolver"]


@final
class _State:
    """One solver instance per device, created on first use."""

    def __init__(self, structure: Structure) -> None:
        self._structure = structure
        self._methods: dict[str, TorchInteriorPoint] = {}
        self._lock = Lock()

    def method(self, device: str) -> TorchInteriorPoint:
        """The solver instance for a device."""
        from convexlayer.interior_point.torch.solve import TorchInteriorPoint

        with self._lock:
            if device not in self._methods:
                self._methods[device] = TorchInteriorPoint(self._structure, device)
            return self._methods[device]


@final
class DenseSolver(AbstractSolver):
    """Interior-point method for batches of small dense programs.

    The raw option ``device`` selects a torch device: ``solver_options={"dense": {"device": "cuda"}}``.
    """

    name = "dense"
    package = "torch"
    cones = frozenset({"zero", "nonnegative", "second_order"})
    quadratic = True
    fallback = "clarabel"

    def installed(self) -> bool:
        """Whether torch is installed."""
        return find_spec("torch") is not None

    def init(self, structure: Structure) -> _State:
        """Defer the analysis to the first solve, whose options name the device."""
        return _State(structure)

    def solve(
        self, state: _State, program: ConeProgram, options: Options, warm_start: Solution | None = None
    ) -> Solution:
        """Solve the batch; warm starts are ignored."""
        device = options.raw(self.name, ("device",)).get("device", "cpu")
        try:
            method = state.method(str(device))
        except (RuntimeError, AssertionError) as error:
            raise SolverError(f"torch has no device {device!r} here: {error}") from error
        return method.solve(program, tol=options.tol, max_iter=options.max_iter, time_limit_s=options.time_limit_s)
