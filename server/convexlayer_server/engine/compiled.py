"""A compiled problem: its program, names, sizes and solution maps. Making one may take long."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, final

from convexlayer.canon import ParametricProgram, presolved
from convexlayer.errors import ConvexLayerError, SolverError
from convexlayer.layers import SolutionMap, canonicalize
from convexlayer.program import Cones, Structure

from ..documents import ConeProgramDocument, problem_documents
from ..documents.compile import pose
from ..documents.cone_program import read_program
from ..documents.grammar import Grammar
from ..encoding import load
from ..errors import DocumentError, MalformedError, SolverChoiceError
from ..settings import Settings

__all__ = ["CompiledProblem", "compile_document"]

_LOG = logging.getLogger(__name__)


def compile_document(
    problem_id: str, document: bytes | memoryview, grammar: Grammar, settings: Settings
) -> CompiledProblem:
    """Compile a normalised document, which is JSON.

    Raises:
        DocumentError: it cannot be compiled; the message says why.
    """
    try:
        parsed = problem_documents.validate_python(load(document))
        if isinstance(parsed, ConeProgramDocument):
            program = read_program(parsed.program, settings)
            _check_structure(program.structure, settings, "/program")
            names = [output.name for output in program.outputs]
            return CompiledProblem(problem_id, parsed.kind, presolved(program), names, duals=(), curvature=None)
        posed = pose(parsed, grammar, settings)
        outputs = {**posed.variables, **posed.duals}
        program = canonicalize(posed.problem, list(posed.parameters.values()), list(outputs.values()), gp=posed.gp)
        _check_structure(program.structure, settings, "")
        objective = posed.problem.objective.expr
        curvature = objective.log_log_curvature if posed.gp else objective.curvature
        return CompiledProblem(
            problem_id, parsed.kind, program, list(outputs), duals=tuple(posed.duals), curvature=curvature
        )
    except MalformedError as error:  # it was read before, but with more room for nesting
        raise DocumentError(error.detail) from error
    except ConvexLayerError as error:
        raise DocumentError(str(error)) from error
    except DocumentError:
        raise
    except RecursionError as error:
        raise DocumentError("the problem is nested too deep for CVXPY") from error
    except Exception as error:  # what CVXPY raises on a document that it cannot take is not listed anywhere
        _LOG.warning("problem %s cannot be compiled", problem_id, exc_info=True)
        raise DocumentError(f"the problem cannot be compiled: {error}") from error


@final
class CompiledProblem:
    """A parametric program, its names, and a solution map for each solver asked for.

    Args:
        problem_id: its id.
        kind: of the document.
        program: the compiled program.
        names: of its outputs, in order.
        duals: those of the names that are dual variables.
        curvature: of the objective, in CVXPY's words, where it is known.

    Attributes:
        program: the compiled program.
        names: of its outputs, in order.
        size: entries that it holds, about; in the units of ``max_compiled_size``.
        summary: shapes, cones, sizes, curvature, the solver's name; plain JSON.
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
        """The map with a solver on a torch device, made at the first use.

        Raises:
            SolverChoiceError: the solver is unknown, missing, or cannot take the problem.
        """
        if (solver, device) not in self._maps:
            try:
                self._maps[solver, device] = SolutionMap(self.program, solver=solver, device=device)
            except SolverError as error:
                raise SolverChoiceError.at("/options/solver", str(error)) from error
        return self._maps[solver, device]


def _block_entries(cones: Cones) -> int:
    """Entries of the square matrices that the derivative has for every block of a curved cone."""
    triangles = (k * (k + 1) // 2 for k in cones.psd)
    return sum(size * size for size in (*cones.second_order, *triangles)) + 9 * (cones.exponential + len(cones.power))


def _structure_size(structure: Structure) -> int:
    return structure.n + structure.m + structure.P.nnz + structure.A.nnz + _block_entries(structure.cones)


def _check_structure(structure: Structure, settings: Settings, where: str) -> None:
    size = _structure_size(structure)
    if size > settings.max_canonical_size:
        raise DocumentError.at(
            where,
            f"the standard form has size {size} (rows, columns, coefficients and cone blocks), at most "
            f"{settings.max_canonical_size} is taken",
        )
    cones = structure.cones
    count = len(cones.second_order) + len(cones.psd) + len(cones.power)
    if count > settings.max_cones:
        raise DocumentError.at(where, f"the standard form has {count} cones, at most {settings.max_cones} are taken")
