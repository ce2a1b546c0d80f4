"""The interior-point method compiled by Numba: one element a SIMD lane, ranges of elements on threads."""
