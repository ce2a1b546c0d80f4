"""The HTTP service of Convexlayer: problems in, batches of solutions and gradients out."""

from typing import TYPE_CHECKING

from convexlayer.lazy import attach

from .settings import Settings

if TYPE_CHECKING:
    from .app import create_app
else:
    __getattr__, __dir__ = attach(__name__, {"app": ["create_app"]})

__all__ = ["Settings", "create_app"]
