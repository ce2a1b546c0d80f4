"""Sparse LDL' factorisations: by kernels in lanes, and the portable form by QDLDL."""
