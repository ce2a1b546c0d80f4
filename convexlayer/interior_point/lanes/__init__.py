"""The interior-point method in Numba kernels: one batch element per SIMD lane, ranges of elements on threads."""
