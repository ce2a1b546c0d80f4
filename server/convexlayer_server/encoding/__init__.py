"""From bytes to values and back: JSON, read without a wait, and safetensors."""

from .packing import load, packed
from .readers import Readers

__all__ = ["Readers", "load", "packed"]
