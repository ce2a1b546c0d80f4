"""Registry of the solvers by name.

Every module of this package whose name ends in an underscore is an adapter. It is imported on first use, and each
subclass of ``AbstractSolver`` that it defines is registered. All other names are passed to CVXPY.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import MappingProxyType

import convexlayer.solvers
from convexlayer.errors import NotInstalledError, SolverError
from convexlayer.program import Structure
from convexlayer.solvers.auto import choose_solver
from convexlayer.solvers.base import AbstractSolver
from convexlayer.solvers.cvxpy_ import SOLVER_SPECS, CvxpySolver

__all__ = ["SolverInfo", "available", "solver_for"]


@dataclass(frozen=True)
class SolverInfo:
    """Description of a solver: a line of ``convexlayer solvers``. ``native`` solvers do not go through CVXPY."""

    name: str
    package: str
    cones: frozenset[str]
    quadratic: bool
    installed: bool
    native: bool


@cache
def _native() -> Mapping[str, AbstractSolver]:
    found: dict[str, AbstractSolver] = {}
    for module_info in pkgutil.iter_modules(convexlayer.solvers.__path__):
        if not module_info.name.endswith("_") or module_info.name == "cvxpy_":
            continue
        module = import_module(f"convexlayer.solvers.{module_info.name}")
        for _, kind in inspect.getmembers(module, inspect.isclass):
            if issubclass(kind, AbstractSolver) and kind.__module__ == module.__name__:
                solver = kind()
                found[solver.name] = solver
    return MappingProxyType(found)


def available() -> list[SolverInfo]:
    """All known solvers, native ones first, installed or not."""
    native = list(_native().values())
    others = [CvxpySolver(name) for name in sorted(SOLVER_SPECS) if name not in _native()]
    return [
        SolverInfo(solver.name, solver.package, solver.cones, solver.quadratic, solver.installed(), solver in native)
        for solver in [*native, *others]
    ]


def solver_for(name: str, structure: Structure, device: str = "cpu") -> tuple[AbstractSolver, str]:
    """Look up a solver for programs of a structure; returns the solver and the reason of the choice.

    Args:
        name: name of the solver, case-insensitive, or ``auto``.
        structure: structure of the programs.
        device: the torch device that ``auto`` uses if possible.

    Raises:
        NotInstalledError: the solver's package is not installed.
        SolverError: the solver does not exist, or does not support the structure.
    """
    name, reason = name.lower(), "requested by name"
    if name == "auto":
        name, reason = choose_solver(structure, device)
    solver = _native().get(name) or CvxpySolver(name)
    if not solver.installed():
        if name not in SOLVER_SPECS and name not in _native():
            names = ", ".join(sorted({*_native(), *SOLVER_SPECS}))
            raise SolverError(f"no solver {name!r}: use auto, {names}, or a solver that is installed in CVXPY")
        raise NotInstalledError(
            f"solver {name!r} is not installed: pip install {solver.package}, or convexlayer[solvers]"
        )
    unsupported = solver.unsupported_reason(structure)
    if unsupported:
        raise SolverError(f"solver {name!r} cannot take this problem: {unsupported}; use solver='auto'")
    return solver, reason
