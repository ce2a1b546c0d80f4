"""Canonicalisation of CVXPY problems to parametric cone programs."""

from convexlayer.canon.canonicalize import canonicalise_problem
from convexlayer.canon.parameters import ParameterSpec
from convexlayer.canon.parametric import ParametricProgram, PresolveRecord
from convexlayer.canon.presolve import presolved
from convexlayer.canon.recovery import OutputSpec

__all__ = ["OutputSpec", "ParameterSpec", "ParametricProgram", "PresolveRecord", "canonicalise_problem", "presolved"]
