"""Products of batches with sparse matrices and patterns: compiled where that has been done, else by NumPy and SciPy."""

from convexlayer.sparse.products import (
    BatchedMatrix,
    ProgramMatrix,
    copy_entries,
    entries_of_products,
    residuals,
    rotate_entries,
    scale_entries,
    scatter_product,
)

__all__ = [
    "BatchedMatrix",
    "ProgramMatrix",
    "copy_entries",
    "entries_of_products",
    "residuals",
    "rotate_entries",
    "scale_entries",
    "scatter_product",
]
