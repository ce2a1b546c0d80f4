"""CVXPY problems as parametric cone programs."""

from convexlayer.canon.canonicalize import canonicalize
from convexlayer.canon.parametric import ParameterSpec, ParametricProgram
from convexlayer.canon.recovery import OutputSpec

__all__ = ["OutputSpec", "ParameterSpec", "ParametricProgram", "canonicalize"]
