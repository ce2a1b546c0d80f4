"""The parts of a running service, which the routes share."""

from __future__ import annotations

from dataclasses import dataclass

from .admission.admission_queue import AdmissionQueue
from .admission.keys import Keyring
from .admission.limits import Limits
from .admission.memory import MemoryBudget
from .admission.usage import UsageLedger
from .compute.job_registry import JobRegistry
from .http.parser_pool import ParserPool
from .observability.metrics import Metrics
from .problem_registry import ProblemRegistry
from .settings import Settings
from .store import Store

__all__ = ["Service"]


@dataclass(frozen=True)
class Service:
    """The parts of a running service.

    Attributes:
        settings: limits and defaults.
        store: problems, keys and usage on disk.
        compute: the compute backend, behind its admission queue.
        registry: registered problems.
        jobs: asynchronous requests.
        parsers: processes that parse large request bodies.
        keyring: API keys in memory.
        limits: rate and concurrency limits.
        memory: budget of memory held for requests.
        ledger: usage by key and day.
        metrics: Prometheus metrics.
    """

    settings: Settings
    store: Store
    compute: AdmissionQueue
    registry: ProblemRegistry
    jobs: JobRegistry
    parsers: ParserPool
    keyring: Keyring
    limits: Limits
    memory: MemoryBudget
    ledger: UsageLedger
    metrics: Metrics
