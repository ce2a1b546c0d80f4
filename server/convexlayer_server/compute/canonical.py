"""Canonicalised problems: a problem document as a parametric cone program, with its solution maps."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np

from convexlayer.canon import ParametricProgram, presolved
from convexlayer.errors import ConvexLayerError, SolverError
from convexlayer.layers import SolutionMap, canonicalize
from convexlayer.program import Cones, Structure

from ..documents import ConeProgramDocument, problem_documents
from ..documents.cone_program import read_program
from ..documents.cvxpy_problem import build_problem
from ..documents.grammar import Grammar
from ..encodings.json_arrays import parse_json
from ..errors import DocumentError, MalformedError, SolverChoiceError
from ..settings import Settings

__all__ = ["CanonicalProblem", "canonicalise_document"]

_LOG = logging.getLogger(__name__)


def canonicalise_document(
    problem_id: str, document: bytes | memoryview, grammar: Grammar, settings: Settings
) -> CanonicalProblem:
    """Canonicalise a normalised document, which is JSON.

    Raises:
        DocumentError: the document cannot be canonicalised; the message says why.
    """
    try:
        parsed = problem_documents.validate_python(parse_json(document))
        if isinstance(parsed, ConeProgramDocument):
            program = read_program(parsed.program, settings)
            _check_structure(program.structure, settings, "/program")
            names = [output.name for output in program.outputs]
            return CanonicalProblem(problem_id, parsed.kind, presolved(program), names, duals=(), curvature=None)
        built = build_problem(parsed, grammar, settings)
        outputs = {**built.variables, **built.duals}
        program = canonicalize(built.problem, list(built.parameters.values()), list(outputs.values()), gp=built.gp)
        _check_structure(program.structure, settings, "")
        objective = built.problem.objective.expr
        curvature = objective.log_log_curvature if built.gp else objective.curvature
        return CanonicalProblem(
            problem_id, parsed.kind, program, list(outputs), duals=tuple(built.duals), curvature=curvature
        )
    except MalformedError as error:  # the process that received it allows deeper nesting
        raise DocumentError(error.detail) from error
    except ConvexLayerError as error:
        raise DocumentError(str(error)) from error
    except DocumentError:
        raise
    except RecursionError as error:
        raise DocumentError("the problem is nested too deep for CVXPY") from error
    except Exception as error:  # CVXPY does not document which exceptions it raises
        _LOG.warning("problem %s cannot be canonicalised", problem_id, exc_info=True)
        raise DocumentError(f"the problem cannot be canonicalised: {error}") from error


@final
class CanonicalProblem:
    """A parametric cone program with the names of its outputs, and a solution map for each requested solver.

    Args:
        problem_id: ID of the problem.
        kind: kind of the document.
        program: the parametric program.
        names: names of its outputs, in order.
        duals: the names that are dual variables.
        curvature: curvature of the objective as CVXPY calls it, if known.

    Attributes:
        program: the parametric program.
        names: names of its outputs, in order.
        size: approximate number of entries, in the units of ``max_cached_size``.
        summary: shapes, cones, sizes, curvature and the solver's name, as plain JSON.
    """

    def __init__(
        self,
        problem_id: str,
        kind: str,
        program: ParametricProgram,
        names: Sequence[str],
        *,
        duals: Sequence[str],
        curvature: str | None,
    ) -> None:
        self.program = program
        self.names = tuple(names)
        self.size = _structure_size(program.structure) + program.data.matrix.nnz
        self._maps: dict[tuple[str, str], SolutionMap] = {}
        automatic = self.solution_map("auto")
        shapes = {name: {"shape": list(output.shape)} for name, output in zip(names, program.outputs, strict=True)}
        structure = program.structure
        self.summary: Mapping[str, Any] = {
            "id": problem_id,
            "kind": kind,
            "parameters": {
                spec.name: {"shape": list(spec.shape), "attributes": sorted(spec.attributes)}
                for spec in program.parameters
            },
            "variables": {name: shape for name, shape in shapes.items() if name not in duals},
            "duals": {name: shapes[name] for name in duals},
            "curvature": curvature,
            "cones": structure.cones.as_dict(),
            "sizes": {
                "n": structure.n,
                "m": structure.m,
                "nnz_P": structure.P.nnz,
                "nnz_A": structure.A.nnz,
                "blocks": _block_entries(structure.cones),
            },
            "solver": {"name": automatic.solver, "reason": automatic.reason},
        }

    def solution_map(self, solver: str, device: str = "cpu") -> SolutionMap:
        """Return the solution map with a solver on a torch device; it is created at the first call.

        Raises:
            SolverChoiceError: the solver is unknown, not installed, or does not accept the problem.
        """
        if (solver, device) not in self._maps:
            try:
                self._maps[solver, device] = SolutionMap(self.program, solver=solver, device=device)
            except SolverError as error:
                raise SolverChoiceError.at("/options/solver", str(error)) from error
        return self._maps[solver, device]


def _block_entries(cones: Cones) -> int:
    """Entries of the Jacobian blocks of the projections: a square matrix for each block of a non-polyhedral cone."""
    return int(np.square(cones.block_rows[cones.zero + cones.nonnegative :]).sum())


def _structure_size(structure: Structure) -> int:
    return structure.n + structure.m + structure.P.nnz + structure.A.nnz + _block_entries(structure.cones)


def _check_structure(structure: Structure, settings: Settings, where: str) -> None:
    size = _structure_size(structure)
    if size > settings.max_canonical_size:
        raise DocumentError.at(
            where,
            f"the standard form has size {size} (rows, columns, coefficients and cone blocks); the limit is "
            f"{settings.max_canonical_size}",
        )
    cones = structure.cones
    count = len(cones.second_order) + len(cones.psd) + len(cones.power)
    if count > settings.max_cones:
        raise DocumentError.at(where, f"the standard form has {count} cones; the limit is {settings.max_cones}")
