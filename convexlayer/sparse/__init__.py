"""Batched products with sparse matrices and patterns, by kernels if they are compiled, else by NumPy and SciPy."""

from convexlayer.sparse.products import (
    BatchedMatrix,
    EntriesOfSystem,
    ProgramMatrix,
    complementary,
    entries_of_products,
    entries_of_system,
    equilibrate,
    residuals,
    rotate_entries,
    scales,
    scatter_product,
)

__all__ = [
    "BatchedMatrix",
    "EntriesOfSystem",
    "ProgramMatrix",
    "complementary",
    "entries_of_products",
    "entries_of_system",
    "equilibrate",
    "residuals",
    "rotate_entries",
    "scales",
    "scatter_product",
]
