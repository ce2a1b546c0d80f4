"""From bytes to values and back: JSON, read without a wait, and safetensors."""

from .packing import MalformedError, Mode
from .parser import AT_ONCE_BYTES, JsonParser

__all__ = ["AT_ONCE_BYTES", "JsonParser", "MalformedError", "Mode"]
