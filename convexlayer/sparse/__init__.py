"""Products of batches with sparse matrices and patterns: compiled where that has been done, else by NumPy and SciPy."""

from convexlayer.sparse.products import (
    BatchedMatrix,
    EntriesOfSystem,
    ProgramMatrix,
    entries_of_products,
    entries_of_system,
    residuals,
    rotate_entries,
    scatter_product,
)

__all__ = [
    "BatchedMatrix",
    "EntriesOfSystem",
    "ProgramMatrix",
    "entries_of_products",
    "entries_of_system",
    "residuals",
    "rotate_entries",
    "scatter_product",
]
