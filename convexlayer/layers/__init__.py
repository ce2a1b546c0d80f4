"""The differentiable solution map: in NumPy (SolutionMap) and as a torch module (ConvexLayer)."""

from convexlayer.layers.canonicalize import canonicalize
from convexlayer.layers.chunked_batch import ChunkedBatch
from convexlayer.layers.convex import ConvexLayer
from convexlayer.layers.report import Report
from convexlayer.layers.solution_map import SolutionMap
from convexlayer.layers.solved_batch import SolvedBatch

__all__ = ["ChunkedBatch", "ConvexLayer", "Report", "SolutionMap", "SolvedBatch", "canonicalize"]
