"""Parametric cone programs: the map from parameters to program data and its adjoint, and its JSON document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import splu

from convexlayer.canon.affine_map import AffineMap, AffineProduct, Features
from convexlayer.canon.document import Reader, write_matrix, write_pattern
from convexlayer.canon.parameters import ATTRIBUTES, ParameterSpec
from convexlayer.canon.recovery import OutputSpec, Recovery
from convexlayer.errors import ProblemError
from convexlayer.program import Array, ConeProgram, ProgramCotangent, Structure
from convexlayer.solution import BoolArray
from convexlayer.sparse import ProgramBlocks, ProgramMatrix

__all__ = ["Objective", "ParametricProgram", "PresolveRecord"]

VERSION = 1
"""Version of the document form; ``from_document`` refuses others."""

DOCUMENT_FIELDS = ["version", "n", "parameters", "log", "cones", "P", "A", "data", "outputs", "recovery", "objective"]
"""Fields of a document, all of them required."""

PSD_TOL = 1e-9
"""A P whose negative eigenvalues are below this multiple of its 1-norm in magnitude counts as positive semidefinite:
rounding of a product F'F leaves such eigenvalues. Objectives that are concave by less pass too."""


@dataclass(frozen=True)
class Objective:
    """The map from the program's objective value to the problem's: sign * value, or its exponential if ``log``."""

    maximize: bool = False
    log: bool = False

    def value(self, program_value: Array) -> Array:
        """Objective values (B,) of the problem."""
        signed = -program_value if self.maximize else program_value
        return np.exp(signed) if self.log else signed

    def slope(self, value: Array) -> Array:
        """Derivative (B,) of the problem's objective value by the program's, at values (B,) of the problem's."""
        sign = -1.0 if self.maximize else 1.0
        return sign * value if self.log else np.full_like(value, sign)


@dataclass(frozen=True, eq=False)
class PresolveRecord:
    """The reductions that presolve made.

    Attributes:
        source: the program before presolve.
        eliminated_variables: number of variables eliminated, each with one equality row.
        bound_variables: number of epigraph variables eliminated with one upper bound each.
        redundant_rows: number of redundant rows dropped: always satisfied, or duplicates.
    """

    source: ParametricProgram
    eliminated_variables: int
    bound_variables: int
    redundant_rows: int


@dataclass(frozen=True, eq=False)
class ParametricProgram:
    """A family of cone programs whose data are affine in the features of the parameters.

    Attributes:
        parameters: the parameters, in order.
        structure: sparsity patterns and cones.
        features: the map from parameters to the feature vector.
        data: the map from the feature vector to the stacked values of (P, q, r, A, b).
        recovery: the map from (x, y) to the outputs.
        objective: the map from the program's objective value to the problem's.
        products: the part of r that is an inner product of two affine vectors, after presolve.
        presolve: the reductions that presolve made; None without presolve or without reductions.
    """

    parameters: tuple[ParameterSpec, ...]
    structure: Structure
    features: Features
    data: AffineMap
    recovery: Recovery
    objective: Objective
    products: AffineProduct | None = None
    presolve: PresolveRecord | None = None

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        """The outputs, in order."""
        return self.recovery.outputs

    @cached_property
    def parts(self) -> tuple[slice, slice, slice, slice, slice]:
        """Slices of P, q, r, A and b in the rows of ``data``."""
        shape = self.structure
        P, q, r, A, b = np.cumsum([shape.P.nnz, shape.n, 1, shape.A.nnz, shape.m]).tolist()
        return slice(0, P), slice(P, q), slice(q, r), slice(r, A), slice(A, b)

    @cached_property
    def _maps(self) -> tuple[AffineMap, AffineMap, AffineMap, AffineMap, AffineMap]:
        """The affine maps to P, q, r, A and b."""
        P, q, r, A, b = (self.data.of_rows(rows) for rows in self.parts)
        return P, q, r, A, b

    @cached_property
    def _varying(self) -> Structure:
        """The structure, with an empty pattern for P or A if that matrix does not depend on the parameters."""
        shape, (P, _, _, A, _) = self.structure, self._maps
        return Structure(
            shape.P if P.matrix.nnz else shape.P.empty, shape.A if A.matrix.nnz else shape.A.empty, shape.cones
        )

    @cached_property
    def _program_matrix(self) -> ProgramMatrix:
        sizes = [part.stop - part.start for part in self.parts]
        return ProgramMatrix(self.data.matrix, self.data.constant, sizes)

    def instantiate(self, features: Array) -> ConeProgram:
        """Compute the batch of programs at feature vectors (B, features.size)."""
        program = self._program([part.apply(features) for part in self._maps])
        return program if self.products is None else replace(program, r=program.r + self.products.apply(features))

    def normalised(self, features: Array) -> tuple[ConeProgram, Array]:
        """Compute the programs at feature vectors (B, features.size) with normalised objectives.

        Returns:
            The programs, with objectives divided by the scales, and the scales (B,): ``objective_scale`` of each.
        """
        (P, q, r, A, b), scale = self._program_matrix.times(features, normalise=True)
        if self.products is not None:
            r = r + (self.products.apply(features) / scale)[:, None]
        return self._program((P, q, r, A, b)), scale

    def push(self, features: Array, tangent: Array) -> ConeProgram:
        """Push forward a tangent (B, features.size) of the feature vectors to a program tangent."""
        program = self._program([part.push(tangent) for part in self._maps])
        if self.products is None:
            return program
        return replace(program, r=program.r + self.products.push(features, tangent))

    def pullback(self, features: Array, cotangent: ProgramCotangent, *, wanted: BoolArray | None = None) -> Array:
        """Pull back a program cotangent to a cotangent (B, features.size) of the feature vectors.

        Args:
            features: the feature vectors.
            cotangent: the program cotangent.
            wanted: mask of the features whose cotangents are computed; the others are zero.
        """
        r = np.zeros(len(features)) if cotangent.r is None else cotangent.r
        P, A = cotangent.P(self._varying.P), cotangent.A(self._varying.A)
        blocks = ProgramBlocks(P, cotangent.q, r[:, None], A, cotangent.b)
        total = self._program_matrix.adjoint(blocks, wanted)
        if self.products is not None and cotangent.r is not None:
            total = total + self.products.pull(features, r)
        return total

    def split(self, flat: Sequence[Array]) -> tuple[Array, ...]:
        """Reshape per-parameter arrays (B, entries) to (B, *shape)."""
        return tuple(part.reshape(len(part), *spec.shape) for spec, part in zip(self.parameters, flat, strict=True))

    def to_document(self) -> dict[str, Any]:
        """Write the program before presolve as plain JSON values, in the format of ``canon/document.py``."""
        if self.presolve is not None:
            return self.presolve.source.to_document()
        positions, matrix = self.features.positions, self.data.matrix
        columns = (sum(self.features.sizes) + len(self.features.log),)
        spread = sp.csr_matrix((matrix.data, positions[matrix.indices], matrix.indptr), matrix.shape[:1] + columns)
        return {
            "version": VERSION,
            "n": self.structure.n,
            "parameters": [
                {
                    "name": spec.name,
                    "shape": list(spec.shape),
                    "attributes": sorted(spec.attributes),
                    "sparsity": None if spec.sparsity is None else list(spec.sparsity),
                }
                for spec in self.parameters
            ],
            "log": positions[self.features.log].tolist(),
            "cones": self.structure.cones.as_dict(),
            "P": write_pattern(self.structure.P),
            "A": write_pattern(self.structure.A),
            "data": {"constant": self.data.constant.tolist(), **write_matrix(spread)},
            "outputs": [{"name": spec.name, "shape": list(spec.shape), "log": spec.log} for spec in self.outputs],
            "recovery": write_matrix(self.recovery.matrix),
            "objective": {"maximize": self.objective.maximize, "log": self.objective.log},
        }

    @staticmethod
    def from_document(document: Any) -> ParametricProgram:
        """Read a program from a document, without presolve.

        Raises:
            ProblemError: a field is missing, unknown or invalid; the message gives its path.
        """
        root = Reader(document, "", DOCUMENT_FIELDS)
        if root.size("version") != VERSION:
            raise root.fail("version", f"version {VERSION}")
        parameters = tuple(
            _read_parameter(Reader(item, f"/parameters/{i}", ("name", "shape", "attributes", "sparsity")))
            for i, item in enumerate(root.items("parameters"))
        )
        outputs = tuple(
            OutputSpec(reader.text("name"), reader.shape("shape"), reader.flag("log"))
            for reader in (
                Reader(item, f"/outputs/{i}", ("name", "shape", "log")) for i, item in enumerate(root.items("outputs"))
            )
        )
        for what, specs in (("parameters", parameters), ("outputs", outputs)):
            if len({spec.name for spec in specs}) < len(specs):
                raise root.fail(what, "names that differ from each other")
        total = sum(spec.size for spec in parameters)
        features = Features.of_parameters(parameters, np.zeros(0, dtype=np.int64))
        taken = features.positions
        logarithms = root.indices("log", total)
        if not np.all(np.isin(logarithms, taken)):
            raise root.fail("log", "no entry that its parameter's attributes hold at zero")
        features = replace(features, log=np.searchsorted(taken, logarithms))
        n, cones = root.size("n"), root.cones("cones")
        if n == 0 or not outputs:
            raise root.fail("n" if n == 0 else "outputs", "at least one")
        structure = Structure(
            root.pattern("P", (n, n), symmetric=True), root.pattern("A", (cones.m, n), symmetric=False), cones
        )
        data = root.child("data", ("constant", "rows", "cols", "values"))
        constant = data.numbers("constant")
        rows = structure.P.nnz + n + 1 + structure.A.nnz + cones.m
        if len(constant) != rows:
            raise data.fail("constant", f"{rows} numbers, for P, q, r, A and b")
        recovery = root.child("recovery", ("rows", "cols", "values"))
        objective = root.child("objective", ("maximize", "log"))
        matrix = data.matrix((rows, total + len(logarithms)))[:, features.positions]
        if matrix.nnz < len(data.items("values")):
            raise data.fail("cols", "no entry that its parameter's attributes hold at zero")
        program = ParametricProgram(
            parameters=parameters,
            structure=structure,
            features=features,
            data=AffineMap(matrix, constant),
            recovery=Recovery(outputs, recovery.matrix((sum(spec.size for spec in outputs), n + cones.m)), n),
            objective=Objective(objective.flag("maximize"), objective.flag("log")),
        )
        _check_convex(program)
        return program

    def _program(self, parts: Sequence[Array]) -> ConeProgram:
        P, q, r, A, b = parts
        return ConeProgram(self.structure, P, q, r[:, 0], A, b)


def _read_parameter(reader: Reader) -> ParameterSpec:
    shape = reader.shape("shape")
    attributes = frozenset(str(attribute) for attribute in reader.items("attributes"))
    if not attributes <= {*ATTRIBUTES, "sparse"}:
        raise reader.fail("attributes", f"a list of {', '.join(ATTRIBUTES)}, sparse")
    square = len(shape) >= 2 and shape[-1] == shape[-2]
    if attributes & {"symmetric", "PSD", "NSD", "diag"} and not square:
        raise reader.fail("shape", "a square matrix, as its attributes need")
    spec = ParameterSpec(reader.text("name"), shape, attributes)
    if "sparse" not in attributes:
        return spec
    return replace(spec, sparsity=tuple(reader.indices("sparsity", spec.size).tolist()))


def _check_convex(program: ParametricProgram) -> None:
    """Check that P is symmetric for every theta, and positive semidefinite if it does not depend on theta.

    Symmetry for every theta means equal affine maps to entries (i, j) and (j, i). If P depends on theta, its
    convexity is the responsibility of the author of the document.

    Raises:
        ProblemError: P is not symmetric or not positive semidefinite.
    """
    P = program.structure.P
    rows, constant = program.data.matrix[: P.nnz], program.data.constant[: P.nnz]
    difference = abs(rows - rows[P.transposed_positions])
    if np.any(constant != constant[P.transposed_positions]) or (difference.nnz and difference.max() > 0):
        raise ProblemError("/data: P must be symmetric for all parameters: equal maps to entries (i, j) and (j, i)")
    if P.nnz and not rows.nnz and not _positive_semidefinite(P.csc(constant)):
        raise ProblemError("/data/constant: P must be positive semidefinite, got a matrix with a negative eigenvalue")


def _positive_semidefinite(matrix: sp.csc_matrix) -> bool:
    """Whether a sparse symmetric matrix has no eigenvalue below -PSD_TOL times its 1-norm.

    The matrix, shifted by that much, must have only positive pivots in a symmetric LU factorisation.
    """
    shift = PSD_TOL * (float(abs(matrix).sum(axis=0).max()) or 1.0)
    shifted = (matrix + shift * sp.identity(matrix.shape[0], format="csc")).tocsc()
    try:
        factor = splu(shifted, diag_pivot_thresh=0.0, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True})
    except RuntimeError:  # exactly singular
        return False
    return bool(np.all(factor.U.diagonal() > 0) and np.array_equal(factor.perm_r, factor.perm_c))
