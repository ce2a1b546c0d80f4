"""Separate solution of the independent components of a program (see ``solvers/components``)."""

from __future__ import annotations

from functools import cached_property
from typing import final

import numpy as np

from convexlayer.program import ConeProgram, Structure
from convexlayer.solution import Solution
from convexlayer.solvers import Options
from convexlayer.solvers.base import AbstractSolver, SolverState
from convexlayer.solvers.components import Component, components
from convexlayer.solvers.registry import solver_for
from convexlayer.status import Status

__all__ = ["ComponentSolver"]


@final
class ComponentSolver:
    """The independent components of a structure and their solvers."""

    def __init__(self, solver: str, structure: Structure) -> None:
        """Store the solver's name; ``auto`` is resolved for each component separately."""
        self._solver, self._structure = solver, structure

    @cached_property
    def _each(self) -> list[tuple[Component, AbstractSolver, SolverState]]:
        parts = components(self._structure)
        solvers = [solver_for(self._solver, part.structure)[0] for part in parts]
        return [(part, solver, solver.init(part.structure)) for part, solver in zip(parts, solvers, strict=True)]

    @property
    def several(self) -> bool:
        """Whether there is more than one component."""
        return len(self._each) > 1

    def solve(self, program: ConeProgram, options: Options) -> Solution:
        """Solve each component separately, its objective divided by its own scale.

        The status of an element is optimal if all its components are, and otherwise that of its last component that is
        not.
        """
        x, y, s = (np.zeros((program.batch, size)) for size in (program.structure.n, *[program.structure.m] * 2))
        status, seconds = [Status.OPTIMAL] * program.batch, np.zeros(program.batch)
        iterations = np.zeros(program.batch, dtype=np.int64)
        for component, solver, state in self._each:
            part = component.program(program)
            scale = part.objective_scale()
            found = solver.solve(state, part.with_objective_divided(scale), options).with_objective_divided(1.0 / scale)
            component.place(found, x, y, s)
            pairs = zip(status, found.status, strict=True)
            status = [old if new is Status.OPTIMAL else new for old, new in pairs]
            iterations, seconds = iterations + found.iterations, seconds + found.seconds
        return Solution(x, y, s, tuple(status), iterations, seconds, {"solver": self._solver})
