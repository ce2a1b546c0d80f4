"""Settings of the service, read once from the environment and a file.

Each field is read from the variable ``CONVEXLAYER_<FIELD>``, such as ``CONVEXLAYER_MAX_BATCH=256``; if that is unset,
from the TOML file that ``CONVEXLAYER_SETTINGS`` names, such as ``max_batch = 256``. Sizes count array entries, unless
the name ends in ``_bytes``; durations end in ``_s``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, final

import tomllib
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from .errors import SettingsError

__all__ = ["Settings", "default_store"]

_LOG = logging.getLogger(__name__)

_PREFIX = "CONVEXLAYER_"
"""Beginning of the environment variables of settings."""

_FILE = f"{_PREFIX}SETTINGS"
"""Environment variable with the path of the settings file."""

_OTHERS = {_FILE, *(_PREFIX + name for name in ("API_KEY", "COMPILE", "FIRST_KEY", "FIRST_KEY_FILE", "URL"))}
"""Variables of the command line, the library and the client, which are not settings."""

_PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def default_store() -> str:
    """Return the default path of the store: in the user's data folder."""
    home = (
        os.environ.get("XDG_DATA_HOME") or os.environ.get("LOCALAPPDATA") or Path("~", ".local", "share").expanduser()
    )
    return str(Path(home, "convexlayer", "store.sqlite"))


@final
class Settings(BaseModel):
    """Limits of requests, sizes of caches, and numbers of processes.

    Attributes:
        max_connections: concurrent connections, fewer if the process may not open as many files. Beyond that, the
            connection that has been idle longest is closed; if none is idle, new ones are refused.
        max_connections_per_address: connections from one IPv4 address or one IPv6 network of 64 bits. Loopback
            addresses and trusted proxies, which connect for many clients, are exempt.
        max_head_bytes: bytes of a request line with its header fields; also of trailers and chunk extensions.
        max_headers: header fields of a request, including trailers.
        head_s: seconds for the head of a request to arrive, and for the rest of a request that was answered early.
        send_s: seconds for which a client may leave a response unread before it is disconnected.
        max_body_bytes: bytes of one request body.
        body_pause_s: seconds between two pieces of a body.
        body_bytes_per_s: minimum rate at which a body must arrive; a slower one is refused after ``body_pause_s`` at
            the earliest.
        max_held_bytes: bytes held for requests of all keys together: bodies, arrays, and responses until they are sent.
            A key may always hold its fair share.
        max_text_length: characters of one expression.
        max_depth: nesting of one expression, including its shared subexpressions.
        max_nodes: nodes of all expressions of a document; each use of a shared subexpression counts again.
        max_constraints: constraints of a document.
        max_names: parameters, variables, constants and shared subexpressions of a document.
        max_dimensions: dimensions of an array.
        max_leaf_size: entries of all parameters, and of all constants, of a document.
        max_variable_size: entries of all variables of a document, or of all outputs of a cone program.
        max_expression_size: entries of any expression.
        max_canonical_size: estimated coefficients of the standard form; and then its rows, columns, coefficients, and
            the entries of the squares of its second-order and semidefinite blocks together.
        max_cones: second-order, semidefinite and power cones of the standard form.
        max_batch: elements of a batch.
        max_array_size: entries of one decoded array, including the batch axis.
        max_batch_size: entries of all program data, solutions and outputs of a batch together.
        solvers: comma-separated solvers that a request may choose, besides ``auto``; empty for all installed ones.
        max_iter: iteration limit that a request may set.
        max_time_limit_s: time limit in seconds that a request may set.
        parsers: processes that parse large bodies, started when needed; one of them parses bodies up to 1 MiB alone.
        workers: processes that compute; by default one for each GPU, and at least two. 0 is a thread of this process,
            which can neither be killed nor limited in memory: for tests and notebooks.
        device: device of the workers: ``cpu``; ``cuda`` for all GPUs that CUDA_VISIBLE_DEVICES or Slurm makes visible,
            ``cuda:0,1`` for some of them; ``auto`` is ``cuda`` if a GPU is visible, else ``cpu``.
        background_workers: additional processes for slow tasks while several keys compute, at a lower priority; None
            for as many as there are workers, which is the maximum.
        deadline_s: seconds that one element, and what is computed with it, may take; a worker that takes longer is
            replaced.
        canonicalise_limit_s: seconds that canonicalising a problem may take; a worker that takes longer is replaced.
        worker_memory_bytes: resident memory of one worker; a worker that uses more is replaced.
        quarantine_s: seconds for which a problem, or a solver, is refused to a key for which it ended two workers.
        batching: whether to merge queued requests for the same problem.
        merged_elements: elements of a merged batch.
        state_bytes: bytes of all states kept for handles, and again of the factorisations that each worker caches. A
            key that stays within an equal share of them loses none to other keys. The newest state of each key stays
            even if that exceeds the total.
        state_s: seconds for which a state is kept after its last use.
        max_jobs_per_key: jobs of one key, including those whose results are kept.
        job_bytes: bytes of all results of jobs, shared among keys as those of states are.
        job_s: seconds for which the result of a job is kept.
        drain_s: seconds for running requests to finish at shutdown.
        cached_problems: canonicalised problems that each worker caches.
        max_cached_size: their total size, each measured as for ``max_canonical_size`` plus the coefficients of the
            map from its parameters; the most recently used one always stays.
        store: file of the SQLite database that the command line opens.
        max_store_bytes: bytes of all stored documents, compressed. Half of it is divided equally among the keys; the
            other half is shared. A document counts for each key that registered it. What a key stores stays, though its
            share shrinks with each new key.
        recent_bytes: bytes of recently used documents, as JSON, to cache in memory.
        max_problems_per_key: registered problems of one key.
        max_keys: keys, including revoked ones.
        max_in_flight_per_key: concurrent requests of one key: being received, waiting or being computed.
        max_waiting: requests of all keys in the queue of the compute backend; more are refused with 429.
        max_wait_s: seconds that one request waits in the queue before it is refused with 429; a job waits longer.
        refresh_s: interval in seconds at which keys are reloaded from the store, and usage is written to it.
        requests_per_minute: requests of one key, on average over a minute; None for no limit.
        seconds_per_day: compute seconds of one key a day (UTC); None for no limit.
        root_path: path under which a reverse proxy shows the service, such as ``/convexlayer``.
        trusted_proxies: comma-separated addresses whose forwarded headers are trusted; ``*`` trusts all.
        log_format: ``json`` for one JSON object a line, or ``text``.
        telemetry: whether to export traces by OpenTelemetry; its ``OTEL_*`` variables configure the exporter.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_connections: PositiveInt = 2_048
    max_connections_per_address: PositiveInt = 512
    max_head_bytes: PositiveInt = 32 * 2**10
    max_headers: PositiveInt = 100
    head_s: _PositiveFloat = 10.0
    send_s: _PositiveFloat = 30.0
    max_body_bytes: PositiveInt = 16 * 2**20
    body_pause_s: _PositiveFloat = 30.0
    body_bytes_per_s: _PositiveFloat = 10_000.0
    max_held_bytes: PositiveInt = 2**30
    max_text_length: PositiveInt = 20_000
    max_depth: PositiveInt = 64
    max_nodes: PositiveInt = 20_000
    max_constraints: PositiveInt = 5_000
    max_names: PositiveInt = 2_000
    max_dimensions: PositiveInt = 4
    max_leaf_size: PositiveInt = 1_000_000
    max_variable_size: PositiveInt = 100_000
    max_expression_size: PositiveInt = 1_000_000
    max_canonical_size: PositiveInt = 20_000_000
    max_cones: PositiveInt = 100_000
    max_batch: PositiveInt = 4_096
    max_array_size: PositiveInt = 8_000_000
    max_batch_size: PositiveInt = 50_000_000
    solvers: Annotated[str, Field(pattern=r"^([A-Za-z0-9_]+(, *[A-Za-z0-9_]+)*)?$")] = ""
    max_iter: PositiveInt = 1_000_000
    max_time_limit_s: _PositiveFloat = 600.0
    parsers: Annotated[int, Field(ge=2, le=64)] = 2
    workers: NonNegativeInt | None = None
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]+(,[0-9]+)*)?)$")] = "auto"
    background_workers: NonNegativeInt | None = None
    deadline_s: _PositiveFloat = 120.0
    canonicalise_limit_s: _PositiveFloat = 60.0
    worker_memory_bytes: PositiveInt = 4 * 2**30
    quarantine_s: _PositiveFloat = 3600.0
    batching: bool = True
    merged_elements: PositiveInt = 256
    state_bytes: PositiveInt = 512 * 2**20
    state_s: _PositiveFloat = 900.0
    max_jobs_per_key: PositiveInt = 64
    job_bytes: PositiveInt = 512 * 2**20
    job_s: _PositiveFloat = 3600.0
    drain_s: _PositiveFloat = 20.0
    cached_problems: PositiveInt = 64
    max_cached_size: PositiveInt = 60_000_000
    store: str = Field(default_factory=default_store)
    max_store_bytes: PositiveInt = 2 * 2**30
    recent_bytes: PositiveInt = 256 * 2**20
    max_problems_per_key: PositiveInt = 1_000
    max_keys: PositiveInt = 1_000
    max_in_flight_per_key: PositiveInt = 128
    max_waiting: PositiveInt = 256
    max_wait_s: _PositiveFloat = 30.0
    refresh_s: _PositiveFloat = 0.5
    requests_per_minute: PositiveInt | None = None
    seconds_per_day: _PositiveFloat | None = None
    root_path: Annotated[str, Field(pattern=r"^(/[A-Za-z0-9._~-]+)*$")] = ""
    trusted_proxies: str = ""
    log_format: Literal["json", "text"] = "json"
    telemetry: bool = False

    def allows(self, solver: str) -> bool:
        """Whether a request may choose a solver."""
        allowed = {name.strip().lower() for name in self.solvers.split(",")} - {""}
        return not allowed or solver.lower() in allowed | {"auto"}

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Read the settings of the environment, then those of its file; the others have their defaults.

        Raises:
            SettingsError: a value is invalid, the file cannot be read, or it has an unknown name.
        """
        source = os.environ if environment is None else environment
        names = {_PREFIX + field.upper(): field for field in cls.model_fields}
        for name in source:
            if name.startswith(_PREFIX) and name not in names.keys() | _OTHERS:
                _LOG.warning("ignoring %s, which is not a setting of this version", name)
        values = _from_file(source[_FILE]) if source.get(_FILE) else {}
        values |= {field: source[name] for name, field in names.items() if name in source}
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            field = str(first["loc"][0])
            name = _PREFIX + field.upper() if _PREFIX + field.upper() in source else field
            raise SettingsError(f"{name}: {first['msg']}, got {first['input']!r}") from error


def _from_file(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"the settings file {path} cannot be read: {error}") from error
