"""What computes."""

from .embedded import EmbeddedEngine
from .protocol import (
    ComputeOptions,
    ComputeRequest,
    ComputeResult,
    Engine,
    EngineHealth,
    Operation,
    PortableState,
    Progress,
)

__all__ = [
    "ComputeOptions",
    "ComputeRequest",
    "ComputeResult",
    "EmbeddedEngine",
    "Engine",
    "EngineHealth",
    "Operation",
    "PortableState",
    "Progress",
]
