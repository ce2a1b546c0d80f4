"""Ruiz equilibration: the method, and the constants of its forms.

A pass divides each row and column of a symmetric matrix M by the square root of its maximum norm,

    d_i <- d_i / sqrt(max_j abs(d_i M_ij d_j)),

so that the norms approach 1: each pass about halves the orders of magnitude between them. Empty rows keep their scale.
For a program M = [P A'; A 0] and d = (D, E), with one scale for all rows of the block of a curved
cone, so that E maps the cone to itself.

Source: Ruiz, A scaling algorithm to equilibrate both rows and columns norms in matrices (2001).

The forms, and what each is for:

    symmetric          a batch of symmetric matrices before they are factorised, in NumPy
    symmetric_lanes    the same in lanes
    programs           a batch of programs in units of their own, by powers of two, by kernels or in NumPy
    element            one program when it is loaded into a lane of the interior-point method
    tensors            a batch of dense programs on torch

The last two limit the scales, because they also see rows of rounding noise, and scale the objective. The norm of a
block is the largest of its rows' norms, in ``element`` their mean (as in Clarabel).
"""

from __future__ import annotations

__all__ = [
    "ELEMENT_PASSES",
    "ELEMENT_TOL",
    "MAX_SCALE",
    "MIN_SCALE",
    "NEGLIGIBLE_B",
    "OWN_SCALING_RATIO",
    "PROGRAM_PASSES",
    "SYMMETRIC_PASSES",
    "TENSOR_PASSES",
]

SYMMETRIC_PASSES = 4
"""Passes before a factorisation; more passes change the scales little."""

PROGRAM_PASSES = 12
"""Passes over a program in arbitrary units, whose norms may differ by hundreds of orders of magnitude."""

ELEMENT_PASSES = 4
"""Maximum number of passes when an element is loaded. Each costs as much as reading the data a few times; later passes
change the scales little."""

ELEMENT_TOL = 0.5
"""These passes end when every row norm is within this distance of 1 (the stopping test of Ruiz 2001)."""

TENSOR_PASSES = 8
"""Passes over dense programs; afterwards the row and column norms are within a few per cent of 1."""

MIN_SCALE, MAX_SCALE = 1e-4, 1e4
"""Bounds of every scale in the interior-point methods (Clarabel's equilibrate_min_scaling, equilibrate_max_scaling):
beyond them, rows of rounding noise would be scaled up to the size of data."""

OWN_SCALING_RATIO = 1e3
"""Programs keep their units if the largest entries of the rows of M differ by at most this factor, and the expected
size of the solution differs from 1 by at most this factor: the solver's own scaling suffices."""

NEGLIGIBLE_B = 1e-13
"""A right-hand side b at most this factor times norm(q) / norm(P) counts as rounding errors of zeros."""
