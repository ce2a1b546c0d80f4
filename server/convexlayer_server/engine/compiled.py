"""A compiled problem, and what is computed with it. All of this may take long and runs off the event loop."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np

from convexlayer.canon import ParametricProgram, canonicalize, presolved
from convexlayer.errors import ConvexLayerError, ProblemError, SolverError
from convexlayer.errors import DerivativeError as LibraryDerivativeError
from convexlayer.layers import SolutionMap, SolvedBatch
from convexlayer.program import Cones, Structure

from ..arrays import Array
from ..documents import ConeProgramDocument, Grammar, pose, problem_documents, read_program
from ..errors import DerivativeError, DocumentError, InvalidError, SolverChoiceError, pointer
from ..settings import Settings
from .protocol import ComputeOptions, ComputeRequest, ComputeResult

__all__ = ["CompiledProblem", "compile_document"]

_LOG = logging.getLogger(__name__)


def compile_document(
    problem_id: str, document: Mapping[str, Any], grammar: Grammar, settings: Settings
) -> CompiledProblem:
    """Compile a normalised document.

    Raises:
        DocumentError: it cannot be compiled; the message says why.
    """
    parsed = problem_documents.validate_python(document)
    try:
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
        self._program = program
        self._names = tuple(names)
        self.size = _structure_size(program.structure) + program.data.matrix.nnz
        self._maps: dict[str, SolutionMap] = {}
        automatic = self._solution_map("auto")
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

    def compute(self, request: ComputeRequest) -> ComputeResult:
        """Serve a request; raises as ``Engine.run`` does."""
        theta, directions, batched = self._operands(request)
        solution_map = self._solution_map(request.options.solver)
        try:
            solved = solution_map.solve(theta, options=_library_options(request.options))
        except ProblemError as error:
            raise InvalidError.at("/parameters", str(error)) from error
        except SolverError as error:
            raise SolverChoiceError.at("/options", str(error)) from error
        try:
            arrays, objective = self._outcome(request, solved, directions)
        except LibraryDerivativeError as error:
            raise DerivativeError(str(error)) from error
        report = solved.report
        residuals = report.residuals
        return ComputeResult(
            arrays=arrays,
            batched=batched,
            status=tuple(str(status) for status in report.status),
            objective=objective,
            iterations=tuple(int(count) for count in report.iterations),
            residuals={name: getattr(residuals, name) for name in ("primal", "dual", "gap", "natural")},
            report=None if request.operation == "solve" else _derivative_report(solved),
            solver=report.solver,
            reason=report.reason,
            seconds=dict(report.seconds),
        )

    def _solution_map(self, solver: str) -> SolutionMap:
        if solver not in self._maps:
            try:
                self._maps[solver] = SolutionMap(self._program, solver=solver)
            except SolverError as error:
                raise SolverChoiceError.at("/options/solver", str(error)) from error
        return self._maps[solver]

    def _operands(self, request: ComputeRequest) -> tuple[list[Array], dict[str, Array], bool]:
        """Parameter values in order, directions with a batch axis each, and whether anything came with one.

        Where directions are batched and no parameter is, the parameters are the same for every element.
        """
        specs = self._program.parameters
        theta = [request.parameters[spec.name] for spec in specs]
        sizes = [value.shape[0] for spec, value in zip(specs, theta, strict=True) if value.ndim > len(spec.shape)]
        shapes = self._shapes(request.operation)
        sizes += [value.shape[0] for name, value in request.directions.items() if value.ndim > len(shapes[name])]
        batch = sizes[0] if sizes else 1
        if theta and sizes and all(value.shape == spec.shape for spec, value in zip(specs, theta, strict=True)):
            theta[0] = np.broadcast_to(theta[0], (batch, *specs[0].shape))
        if not theta and batch > 1:
            raise InvalidError.at("/cotangents", "the problem has no parameters, so there is no batch")
        directions = {
            name: np.broadcast_to(value, (batch, *shapes[name])) for name, value in request.directions.items()
        }
        return theta, directions, bool(sizes)

    def _shapes(self, operation: str) -> dict[str, tuple[int, ...]]:
        """Shapes of what directions belong to."""
        if operation == "jvp":
            return {spec.name: spec.shape for spec in self._program.parameters}
        outputs = zip(self._names, self._program.outputs, strict=True)
        return {"objective": (), **{name: output.shape for name, output in outputs}}

    def _outcome(
        self, request: ComputeRequest, solved: SolvedBatch, directions: Mapping[str, Array]
    ) -> tuple[dict[str, Array], Array | None]:
        specs = self._program.parameters
        wanted = [request.outputs is None or name in request.outputs for name in self._names]
        if request.operation == "solve":
            return self._named(solved.outputs, wanted), solved.objective
        if request.operation == "jvp":
            tangents, objective = solved.jvp([directions.get(spec.name) for spec in specs], of=wanted)
            return self._named(tangents, wanted), objective
        _check_cotangents(directions, solved)
        gradients = solved.vjp(
            [directions.get(name) for name in self._names],
            objective=directions.get("objective"),
            wrt=[spec.name in request.wrt for spec in specs],
        )
        return {
            spec.name: gradient if request.parameters[spec.name].ndim > len(spec.shape) else gradient.sum(axis=0)
            for spec, gradient in zip(specs, gradients, strict=True)
            if gradient is not None
        }, None

    def _named(self, values: Sequence[Array], wanted: Sequence[bool]) -> dict[str, Array]:
        return {name: value for name, value, want in zip(self._names, values, wanted, strict=True) if want}


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


def _check_cotangents(cotangents: Mapping[str, Array], solved: SolvedBatch) -> None:
    """Rows of elements without a solution are ignored, as in the layer; all others must be finite."""
    usable = np.ones(solved.batch, dtype=bool)
    usable[list(solved.report.failed)] = False
    for name, value in cotangents.items():
        finite = np.isfinite(value).reshape(solved.batch, -1).all(axis=1)
        wrong = np.flatnonzero(usable & ~finite)
        if len(wrong):
            where = pointer("cotangents", name)
            raise InvalidError.at(where, f"element {wrong[0]} is not finite, though it has a solution")


def _library_options(options: ComputeOptions) -> dict[str, Any]:
    given = {"tol": options.tol, "max_iter": options.max_iter, "time_limit_s": options.time_limit_s}
    return {name: value for name, value in given.items() if value is not None}


def _derivative_report(solved: SolvedBatch) -> dict[str, list[Any]]:
    """How far the derivative can be trusted; of the objective's alone, which needs no linear system, only a status."""
    report = solved.report.derivative
    if report is None:
        status = ["ok" if status.solved else "failed" for status in solved.report.status]
        missing: list[Any] = [None] * solved.batch
        return {
            "status": status,
            "linear_residual": missing,
            "margin": missing,
            "condition": missing,
            "consistent": missing,
        }
    return {
        "status": list(report.status),
        "linear_residual": report.linear_residual.tolist(),
        "margin": report.margin.tolist(),
        "condition": report.condition.tolist(),
        "consistent": [bool(value) for value in report.consistent],
    }
