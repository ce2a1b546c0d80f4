"""The HTTP service of Convexlayer: problems in, batches of solutions and gradients out."""

from .app import create_app
from .settings import Settings

__all__ = ["Settings", "create_app"]
