"""Products of batches with sparse matrices and patterns: compiled where that has been done, else by NumPy and SciPy."""

from convexlayer.sparse.products import BatchedMatrix, entries_of_products, residuals, scatter_product

__all__ = ["BatchedMatrix", "entries_of_products", "residuals", "scatter_product"]
