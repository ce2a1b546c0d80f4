"""What computes."""

from .admission import Admission
from .embedded import EmbeddedEngine
from .protocol import (
    Abilities,
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
    SolverAbility,
)

__all__ = [
    "Abilities",
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
    "SolverAbility",
]
