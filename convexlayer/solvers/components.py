"""Connected components of a program: separable parts that can be solved independently, each with its own scaling.

If neither P nor A nor a cone couples two sets of variables, a program is the sum of two. Solved together, they share
one barrier parameter and one relative tolerance, so that a part with a much smaller objective may stay inaccurate.
Solved separately, each part reaches its own accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from convexlayer.program import Array, ConeProgram, IndexArray, Pattern, Structure
from convexlayer.rays import block_of_rows
from convexlayer.solution import Solution

__all__ = ["Component", "components"]


@final
@dataclass(frozen=True, eq=False)
class Component:
    """One connected component.

    Attributes:
        structure: structure of the component.
        variables: its variables, as indices into those of the program.
        rows: its rows.
        P_entries: its entries of P.
        A_entries: its entries of A.
    """

    structure: Structure
    variables: IndexArray
    rows: IndexArray
    P_entries: IndexArray
    A_entries: IndexArray

    def program(self, whole: ConeProgram) -> ConeProgram:
        """The component of every element, without the constant of the objective."""
        return ConeProgram(
            self.structure,
            P=whole.P[:, self.P_entries],
            q=whole.q[:, self.variables],
            r=np.zeros(whole.batch),
            A=whole.A[:, self.A_entries],
            b=whole.b[:, self.rows],
        )

    def place(self, part: Solution, x: Array, y: Array, s: Array) -> None:
        """Write the component's solution into x (B, n), y (B, m) and s (B, m) of the program."""
        x[:, self.variables], y[:, self.rows], s[:, self.rows] = part.x, part.y, part.s


def components(structure: Structure) -> list[Component]:
    """The connected components of a structure; an empty list if there is only one."""
    n, m, P, A = structure.n, structure.m, structure.P, structure.A
    block = block_of_rows(structure.cones)
    blocks = np.unique(block)
    ones = np.ones(P.nnz + A.nnz)
    graph = coo_array(
        (ones, (np.concatenate([P.rows, A.cols]), np.concatenate([P.cols, n + block[A.rows]]))), shape=(n + m, n + m)
    )
    _, label = connected_components(graph, directed=False)
    of_row = label[n + block]
    found = np.unique(label[:n])
    if len(found) == 1:
        return []
    parts = []
    for name in found:
        variables, rows = np.flatnonzero(label[:n] == name), np.flatnonzero(of_row == name)
        P_entries, A_entries = np.flatnonzero(label[P.rows] == name), np.flatnonzero(label[A.cols] == name)
        column, row = np.full(n, -1), np.full(m, -1)
        column[variables], row[rows] = np.arange(len(variables)), np.arange(len(rows))
        shape = len(variables), len(rows)
        parts.append(
            Component(
                Structure(
                    Pattern((shape[0], shape[0]), column[P.rows[P_entries]], column[P.cols[P_entries]]),
                    Pattern((shape[1], shape[0]), row[A.rows[A_entries]], column[A.cols[A_entries]]),
                    structure.cones.of_blocks(np.isin(blocks, block[rows])),
                ),
                variables,
                rows,
                P_entries,
                A_entries,
            )
        )
    return parts
