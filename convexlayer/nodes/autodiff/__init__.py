"""Batch axes of parameters, and derivatives of torch functions under autograd and torch.func."""

from convexlayer.nodes.autodiff.batch import Batch

__all__ = [
    "Batch",
]
