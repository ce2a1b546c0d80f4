"""The solvers, by name. This is the only place where a string chooses one.

Every module of this package that ends in an underscore is an adapter; it is imported when solvers are first asked for,
and each final subclass of ``AbstractSolver`` in it that needs no argument is a solver. All other names go to CVXPY.
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
from convexlayer.solvers.cvxpy_ import KNOWN, CvxpySolver

__all__ = ["SolverInfo", "available", "solver_for"]


@dataclass(frozen=True)
class SolverInfo:
    """A line of ``convexlayer solvers``."""

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
    """Every solver that we know of, native ones first, whether installed or not."""
    native = list(_native().values())
    others = [CvxpySolver(name) for name in sorted(KNOWN) if name not in _native()]
    return [
        SolverInfo(solver.name, solver.package, solver.cones, solver.quadratic, solver.installed(), solver in native)
        for solver in [*native, *others]
    ]


def solver_for(name: str, structure: Structure, device: str = "cpu") -> tuple[AbstractSolver, str]:
    """The solver of this name (in any case, as CVXPY has it) for programs of this structure, and why it was chosen.

    Args:
        name: the name, or ``auto``.
        structure: of the programs.
        device: the torch device that ``auto`` should use where it can.

    Raises:
        NotInstalledError: its package is missing.
        SolverError: it does not exist, or does not support the structure.
    """
    name, reason = name.lower(), "asked for by name"
    if name == "auto":
        name, reason = choose_solver(structure, device)
    solver = _native().get(name) or CvxpySolver(name)
    if not solver.installed():
        if name not in KNOWN and name not in _native():
            names = ", ".join(sorted({*_native(), *KNOWN}))
            raise SolverError(f"no solver {name!r}: there are auto, {names}, and every solver that CVXPY has installed")
        raise NotInstalledError(
            f"solver {name!r} is not installed: pip install {solver.package}, or convexlayer[solvers]"
        )
    refusal = solver.refusal(structure)
    if refusal:
        raise SolverError(f"solver {name!r} cannot take this problem: {refusal}; solver='auto' can")
    return solver, reason
