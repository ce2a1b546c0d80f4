"""The version of this package, which is that of the library: both are built from the one literal of the repository."""

from importlib.metadata import PackageNotFoundError, version

__all__ = ["__version__"]

try:
    __version__ = version("convexlayer-client")
except PackageNotFoundError:  # the sources are on the path, but not installed
    __version__ = "0+unknown"
