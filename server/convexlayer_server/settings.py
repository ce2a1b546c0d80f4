"""Limits and ways of working of the service, read once from a file and the environment.

Every field is read from ``CONVEXLAYER_<FIELD>``, upper case: ``CONVEXLAYER_MAX_BATCH=256``; or, below that, from a TOML
file that ``CONVEXLAYER_SETTINGS`` names: ``max_batch = 256``. Sizes count array entries unless the name ends in
``_bytes``; durations end in ``_s``.
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
_FILE = f"{_PREFIX}SETTINGS"
_OTHERS = {_FILE, *(_PREFIX + name for name in ("API_KEY", "COMPILE", "FIRST_KEY", "FIRST_KEY_FILE", "URL"))}
"""Variables that are no fields: read by the command line, the library and the client."""

_PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def default_store() -> str:
    """Where the command line keeps the store unless it is told: in the user's data folder."""
    home = (
        os.environ.get("XDG_DATA_HOME") or os.environ.get("LOCALAPPDATA") or Path("~", ".local", "share").expanduser()
    )
    return str(Path(home, "convexlayer", "store.sqlite"))


@final
class Settings(BaseModel):
    """Limits that no request may exceed, and the sizes of caches and pools.

    Attributes:
        max_connections: connections at a time, fewer where the process may not open as many; beyond, the one that has
            waited longest for a request gives way, and where none does, new ones are refused.
        max_connections_per_address: of one IPv4 address or IPv6 network of 64 bits; but of this machine itself and of
            trusted proxies, who connect for many, as many as there may be.
        max_head_bytes: bytes of a request's line and header fields; and of what else is no body: trailers, extensions.
        max_headers: header fields of a request, trailers included.
        head_s: what a client is given for the head of a request, and for the end of one that was answered before it.
        send_s: how long a client may leave an answer unread before it is disconnected.
        max_body_bytes: bytes of one request body.
        body_pause_s: how long nothing of a body may come.
        body_bytes_per_s: at which rate a body comes at least; one that is slower is given up after that pause at the
            earliest.
        max_held_bytes: bytes that are held for requests of all keys together: bodies, arrays, and answers until they
            are sent; a key may always hold its share of it.
        max_text_length: characters of one expression.
        max_depth: nesting of one expression, its shared subexpressions included.
        max_nodes: nodes of all expressions of a document, each use of a shared subexpression counted again.
        max_constraints: constraints of a document.
        max_names: parameters, variables, constants and shared subexpressions of a document.
        max_dimensions: number of dimensions of an array.
        max_leaf_size: entries of all parameters, and of all constants, of a document.
        max_variable_size: entries of all variables of a document, or of all outputs of a cone program.
        max_expression_size: entries of any one expression.
        max_canonical_size: estimated number of coefficients of the canonicalised problem; and then rows and columns,
            coefficients, and entries of the squares of its second-order and semidefinite blocks together.
        max_cones: second-order, semidefinite and power cones of the canonicalised problem.
        max_batch: elements of a batch.
        max_array_size: entries of one decoded array, batch included.
        max_batch_size: entries of all program data, solutions and outputs of a batch together.
        solvers: names of the solvers that a request may ask for beside ``auto``, comma-separated; empty for all that
            are installed.
        max_iter: iterations that a request may ask for.
        max_time_limit_s: time limit that a request may ask for.
        readers: processes that read large bodies, started when they are needed; one of them reads those up to 1 MiB
            alone.
        workers: processes that compute; one for each GPU, and no fewer than two, unless it is set. 0 is a thread of
            this process, which can neither be killed nor kept within memory: for tests and notebooks.
        device: of the workers: ``cpu``, or ``cuda`` for all GPUs that CUDA_VISIBLE_DEVICES or Slurm lets this process
            see, ``cuda:0,1`` for some of them; ``auto`` is ``cuda`` where there is one, else ``cpu``.
        background_workers: processes beside them that do what takes long while several keys compute, at a lower
            priority; None for as many as there are workers, which is the most.
        deadline_s: what one element, or what is computed with it, may take in a worker; one that takes longer is
            replaced.
        compile_limit_s: what compiling a problem may take.
        worker_memory_bytes: resident memory of one worker; one that takes more is replaced.
        quarantine_s: how long a problem, or a solver, is refused to a key for which it ended two workers.
        batching: merge requests that wait for the same problem.
        merged_rows: elements of one merged batch.
        state_bytes: bytes of all states kept for handles together, and again of the factors kept by each worker. A key
            that keeps no more than an equal share of them loses none to others.
        state_s: how long a state is kept.
        max_jobs_per_key: jobs of one key, those whose results are kept included.
        job_bytes: bytes of all results of jobs together, which are shared as those of states are.
        job_s: how long the result of a job is kept.
        drain_s: what requests in work are given to end at a shutdown.
        compiled_problems: compiled problems kept in memory, by each worker.
        max_compiled_size: their size together, each measured as for ``max_canonical_size``, with the coefficients of
            the map from its parameters; the one used last is kept in any case.
        store: file of the SQLite database that the command line opens.
        max_store_bytes: bytes of all stored documents together, compressed. Half of it is shared out equally among the
            keys, the other half is for whoever comes first; a document counts for each key that has registered it. What
            a key holds stays, though its share shrinks when another is made.
        recent_bytes: bytes of the documents, as JSON, that are kept in memory because they were used last.
        max_problems_per_key: problems that one key may have registered.
        max_keys: keys that may exist, those revoked included.
        max_in_flight_per_key: requests of one key that are being read, waiting or computed.
        max_waiting: requests of all keys that wait for the engine; more are answered with 429.
        max_wait_s: what one request waits for the engine before it is answered with 429; a job waits longer.
        refresh_s: how often keys are read anew from the store, and usage is written to it.
        requests_per_minute: what one key may send, on average over a minute; None for any number.
        seconds_per_day: seconds of the engine that one key may use a day (UTC); None for any number.
        root_path: path under which a reverse proxy shows the service, such as ``/convexlayer``.
        trusted_proxies: addresses, comma-separated, whose forwarded headers are believed; ``*`` is any.
        log_format: one JSON object a line, or text for people.
        telemetry: send traces by OpenTelemetry, which its own ``OTEL_`` variables configure.
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
    readers: Annotated[int, Field(ge=2, le=64)] = 2
    workers: NonNegativeInt | None = None
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]+(,[0-9]+)*)?)$")] = "auto"
    background_workers: NonNegativeInt | None = None
    deadline_s: _PositiveFloat = 120.0
    compile_limit_s: _PositiveFloat = 60.0
    worker_memory_bytes: PositiveInt = 4 * 2**30
    quarantine_s: _PositiveFloat = 3600.0
    batching: bool = True
    merged_rows: PositiveInt = 256
    state_bytes: PositiveInt = 512 * 2**20
    state_s: _PositiveFloat = 900.0
    max_jobs_per_key: PositiveInt = 64
    job_bytes: PositiveInt = 512 * 2**20
    job_s: _PositiveFloat = 3600.0
    drain_s: _PositiveFloat = 20.0
    compiled_problems: PositiveInt = 64
    max_compiled_size: PositiveInt = 60_000_000
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
        """Whether a request may ask for a solver."""
        allowed = {name.strip().lower() for name in self.solvers.split(",")} - {""}
        return not allowed or solver.lower() in allowed | {"auto"}

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Read every field that the environment sets, then those that its file sets; the others keep their defaults.

        Raises:
            SettingsError: a value cannot be used, the file cannot be read, or a name in it is unknown.
        """
        source = os.environ if environment is None else environment
        names = {_PREFIX + field.upper(): field for field in cls.model_fields}
        for name in source:
            if name.startswith(_PREFIX) and name not in names.keys() | _OTHERS:
                _LOG.warning("%s is no setting of this version; it is ignored", name)
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
