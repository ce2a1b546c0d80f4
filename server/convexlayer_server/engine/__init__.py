"""What computes."""

from .admission import Admission
from .embedded import EmbeddedEngine
from .protocol import (
    Begun,
    Charge,
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
    "Admission",
    "Begun",
    "Charge",
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
