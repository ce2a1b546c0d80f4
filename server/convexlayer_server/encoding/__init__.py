"""From bytes to values and back: JSON, read without a wait, and safetensors."""

from .packing import MalformedError, Mode
from .parser import JsonParser

__all__ = ["JsonParser", "MalformedError", "Mode"]
