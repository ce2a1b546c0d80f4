"""Polish and the exact derivative by compiled kernels; the linear systems of several elements share SIMD lanes.

Element by element the formulas are those of ``certificate``, ``polish`` and ``exact``, whose portable forms take over
elements that need more care.
"""
