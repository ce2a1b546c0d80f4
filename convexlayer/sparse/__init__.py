"""Computations on batches of one sparsity pattern, each by kernels if they are compiled, else in NumPy and SciPy."""

from convexlayer.sparse.pattern import Pattern
from convexlayer.sparse.products import (
    BatchedMatrix,
    EntriesOfSystem,
    ProgramMatrix,
    entries_of_products,
    entries_of_system,
    power_of_two,
    rotate_entries,
)
from convexlayer.sparse.row_scales import complementary_residuals, relative_residuals, row_scales
from convexlayer.sparse.rows import is_finite, largest_of_blocks, max_norm
from convexlayer.sparse.structures import Denominators, Point, ProgramBlocks, Values

__all__ = [
    "BatchedMatrix",
    "Denominators",
    "EntriesOfSystem",
    "Pattern",
    "Point",
    "ProgramBlocks",
    "ProgramMatrix",
    "Values",
    "complementary_residuals",
    "entries_of_products",
    "entries_of_system",
    "is_finite",
    "largest_of_blocks",
    "max_norm",
    "power_of_two",
    "relative_residuals",
    "rotate_entries",
    "row_scales",
]
