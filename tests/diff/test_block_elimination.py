"""Block elimination against the dense inverse of the regularised matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import scipy.sparse as sp
from numpy.typing import NDArray

from convexlayer.cones import KroneckerBasis, PositiveSemidefinite
from convexlayer.diff.block_elimination import BlockElimination, CoupledBlocks, EntryVariables
from convexlayer.linalg import EPS
from convexlayer.program import Array

Indices = NDArray[np.int64]

ORDER = 4
SIZE = ORDER * (ORDER + 1) // 2


@dataclass
class Case:
    """n variables, blocks of order 4, and other unknowns."""

    n: int
    stored: Array
    blocks: list[CoupledBlocks]
    signs: Array

    def dense(self) -> Array:
        """The equilibrated matrix E."""
        E = self.stored.copy()
        for column in range(len(E)):
            unit = np.zeros(len(E))
            unit[column] = 1.0
            for group in self.blocks:
                group.add_product(unit, E[:, column])
        return E


def basis(rng: np.random.Generator, blocks: int) -> KroneckerBasis:
    return PositiveSemidefinite(ORDER).kronecker_at(rng.normal(size=(blocks, SIZE))).derive()


def case(rng: np.random.Generator, matrices: list[Array], *, curvature: Array, others: int, blocks: int = 1) -> Case:
    """Build one group per A (blocks * size, n), with P's diagonal ``curvature`` (n,) and rows of other cones."""
    n = matrices[0].shape[1]
    own = blocks * SIZE
    bases = [basis(rng, blocks) for _ in matrices]
    size = n + len(matrices) * own + others
    stored = np.diag(np.concatenate([curvature, *(-b.complement.ravel() for b in bases), -rng.uniform(size=others)]))
    coupling = rng.normal(size=(others, n)) * (rng.uniform(size=(others, n)) < 0.6)
    stored[size - others :, :n], stored[:n, size - others :] = coupling, coupling.T
    groups = [
        CoupledBlocks(slice(n + i * own, n + (i + 1) * own), b, sp.csr_matrix(A))
        for i, (A, b) in enumerate(zip(matrices, bases, strict=True))
    ]
    signs = np.concatenate([np.ones(n), -np.ones(size - n)])
    return Case(n, stored, groups, signs)


def check(made: Case, variables: list[EntryVariables | None], idle: Indices | None = None) -> None:
    """Compare by residuals, because entries of the inverse may be as large as 1 / EPS."""
    E = made.dense()
    np.testing.assert_allclose(E, E.T, atol=1e-14)
    elimination = BlockElimination(
        sp.csr_matrix(made.stored),
        made.blocks,
        variables,
        np.zeros(0, dtype=np.int64) if idle is None else idle,
        made.signs,
    )
    rng = np.random.default_rng(1)
    regularised = E + EPS * np.diag(made.signs)
    for _ in range(3):
        rhs = regularised @ rng.normal(size=len(E))
        solved = elimination.apply(rhs)
        np.testing.assert_allclose(regularised @ solved, rhs, atol=1e-7 * max(1.0, np.max(np.abs(solved))))
        np.testing.assert_allclose(solved, np.linalg.solve(regularised, rhs), atol=1e-6)


def injection(entries: Indices, n: int, sign: Array, rows: int = SIZE) -> Array:
    """Build A whose first columns are entry variables with these signs."""
    A = np.zeros((rows, n))
    A[entries, np.arange(len(entries))] = sign
    return A


def entry_variables(A: Array, entries: Indices) -> EntryVariables:
    """The entry variables in the first columns of A."""
    stored = sp.csr_matrix(A)
    rows = np.repeat(np.arange(len(A)), np.diff(stored.indptr))
    position = {(r, c): i for i, (r, c) in enumerate(zip(rows.tolist(), stored.indices.tolist(), strict=True))}
    source = np.array([position[entry, column] for column, entry in enumerate(entries.tolist())])
    return EntryVariables(entries, np.arange(len(entries)), source, np.setdiff1d(np.arange(len(A)), entries))


@pytest.mark.parametrize("curvature", [0.0, 0.7])
@pytest.mark.parametrize("fixed", [0, 3], ids=["all entries", "some entries"])
@pytest.mark.parametrize("more", [0, 2], ids=["alone", "other variables"])
def test_variables_that_are_entries(curvature: float, fixed: int, more: int) -> None:
    rng = np.random.default_rng(0)
    entries = np.sort(rng.choice(SIZE, SIZE - fixed, replace=False))
    n = len(entries) + more
    A = injection(entries, n, rng.choice([-1.0, 1.0], len(entries)))
    A[:, len(entries) :] = rng.normal(size=(SIZE, more))
    P = np.concatenate([np.full(len(entries), curvature), np.full(more, 0.3)])
    made = case(rng, [A], curvature=P, others=4)
    check(made, [entry_variables(A, entries)])


def test_blocks_without_entry_variables() -> None:
    rng = np.random.default_rng(1)
    made = case(rng, [rng.normal(size=(2 * SIZE, 5))], curvature=rng.uniform(0.1, 1.0, 5), others=3, blocks=2)
    check(made, [None])


def test_several_blocks_each_with_its_own_curvature() -> None:
    rng = np.random.default_rng(2)
    entries = np.sort(rng.choice(2 * SIZE, 2 * SIZE - 4, replace=False))
    n = len(entries) + 1
    A = injection(entries, n, rng.choice([-1.0, 1.0], len(entries)), rows=2 * SIZE)
    A[:, -1] = rng.normal(size=2 * SIZE)
    P = np.where(entries < SIZE, 0.2, 0.9)
    made = case(rng, [A], curvature=np.append(P, 0.0), others=2, blocks=2)
    check(made, [entry_variables(A, entries)])


def test_groups_of_both_kinds() -> None:
    rng = np.random.default_rng(3)
    entries = np.arange(SIZE)
    A = injection(entries, SIZE + 2, -np.ones(SIZE))
    B = np.zeros((SIZE, SIZE + 2))
    B[:, -2:] = rng.normal(size=(SIZE, 2))
    P = np.concatenate([np.full(SIZE, 0.4), [0.5, 0.0]])
    made = case(rng, [A, B], curvature=P, others=3)
    check(made, [entry_variables(A, entries), None])


def test_idle_unknowns_and_an_empty_schur_complement() -> None:
    rng = np.random.default_rng(4)
    entries = np.arange(SIZE)
    A = injection(entries, SIZE, -np.ones(SIZE))
    made = case(rng, [A], curvature=np.full(SIZE, 1.0), others=2)
    made.stored[-2:, :SIZE] = made.stored[:SIZE, -2:] = 0.0
    check(made, [entry_variables(A, entries)], idle=np.array([len(made.stored) - 2, len(made.stored) - 1]))
