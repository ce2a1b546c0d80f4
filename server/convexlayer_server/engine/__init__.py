"""What computes."""

from .embedded import EmbeddedEngine
from .fair import FairEngine
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
    "FairEngine",
    "Operation",
    "PortableState",
    "Progress",
]
