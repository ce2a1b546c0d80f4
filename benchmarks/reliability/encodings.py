"""Cost of encodings: 8 MB of parameters and solutions in three encodings, and /healthz while JSON is parsed."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil

from benchmarks.reliability.http_client import HttpClient
from benchmarks.reliability.load import Load, start
from benchmarks.reliability.problems import solution_map
from benchmarks.reliability.server import Server
from benchmarks.reliability.table import Plan, Row, milliseconds, quantile
from convexlayer_server.encodings import safetensors
from convexlayer_server.encodings.arrays import Encoding, encode

__all__ = ["measure"]

_BATCH, _SIZE = 256, 4096
"""Elements, and parameters of each: 8 MB."""

_ROUNDS = 7
"""Rounds in which the encodings alternate; medians are reported."""

_PAYLOAD_BYTES = 8 * _BATCH * _SIZE
"""Bytes of the parameters."""

_DOCUMENT: dict[str, Any] = {
    "kind": "expression",
    "parameters": {"a": {"shape": [_SIZE]}},
    "variables": {"x": {"shape": [_SIZE]}},
    "minimize": "sum(x)",
    "subject_to": ["x == a"],
}
"""A trivial problem, so that encoding dominates."""

_JSON = {"Content-Type": "application/json", "Accept": "application/json"}
_BINARY = {"Content-Type": safetensors.MEDIA_TYPE, "Accept": safetensors.MEDIA_TYPE}
_PROBE_S = 0.005
"""Seconds between probes."""

_COST_S, _PROBE_P99_S, _GROWTH = 60e-3, 20e-3, 3.0
"""Requirements: binary encoding over the library and p99 of a probe in seconds, and memory as a multiple of the
parameters."""


@dataclass(frozen=True)
class _Encoding:
    name: str
    body: bytes
    headers: dict[str, str]


def measure(plan: Plan) -> list[Row]:
    """Measure on one server with one worker and bodies of up to 32 MiB."""
    values = np.random.default_rng(0).standard_normal((_BATCH, _SIZE))
    with Server(workers=1, max_body_bytes=32 * 2**20) as server:
        path = f"{server.register(_DOCUMENT)}/solve"
        packed = _Encoding("binary", b"".join(safetensors.write({"parameters": {"a": values}})), _BINARY)
        small = _Encoding("binary", b"".join(safetensors.write({"parameters": {"a": values[:2]}})), _BINARY)
        _grown_bytes(server, path, small)  # one-time allocations
        grown = _grown_bytes(server, path, packed)  # first: growth within freed memory would not show
        memory = Row(
            "peak memory of the server process for it",
            f"<= {_GROWTH:g} x payload",
            f"{grown / _PAYLOAD_BYTES:.1f} x payload",
            grown <= _GROWTH * _PAYLOAD_BYTES,
        )
        cost = _cost(server, path, values, packed)
        return [cost, memory, _liveness(server, path, values[: _BATCH // 5 * 4], plan)]


def _cost(server: Server, path: str, values: np.ndarray, packed: _Encoding) -> Row:
    """Measure the library and the encodings alternately, under equal conditions."""
    encodings = [packed, _json("base64", values), _json("list", values)]
    took: dict[str, list[float]] = {name: [] for name in ("library", *(encoding.name for encoding in encodings))}
    here = solution_map(_DOCUMENT)
    with server.client() as client:
        for _ in range(_ROUNDS):
            start = time.perf_counter()
            _ = here.solve([values]).outputs
            took["library"].append(time.perf_counter() - start)
            for encoding in encodings:
                took[encoding.name].append(_send(client, path, encoding))
    medians = {name: quantile(seconds[1:], 0.5) for name, seconds in took.items()}
    over = {name: seconds - medians["library"] for name, seconds in medians.items()}
    return Row(
        "8 MB of parameters in and out, safetensors, over the library",
        f"<= {milliseconds(_COST_S)}",
        f"{milliseconds(over['binary'])} (base64 {milliseconds(over['base64'])}, lists {milliseconds(over['list'])}; "
        f"library {milliseconds(medians['library'])})",
        over["binary"] <= _COST_S,
    )


def _json(form: Encoding, values: np.ndarray) -> _Encoding:
    body = {"parameters": {"a": encode(values, form)}, "encoding": form}
    return _Encoding(form, json.dumps(body).encode(), _JSON)


def _send(client: HttpClient, path: str, encoding: _Encoding) -> float:
    """Return the seconds of the exchange."""
    answer = client.post(path, encoding.body, encoding.headers)
    assert answer.status == 200, answer.body[:500]
    return answer.seconds


def _grown_bytes(server: Server, path: str, encoding: _Encoding) -> int:
    """Return the growth of the server process while it serves requests, one after another."""
    process, end, peak = psutil.Process(server.pid), threading.Event(), [0]

    def watch() -> None:
        while not end.is_set():
            peak[0] = max(peak[0], process.memory_info().rss)
            time.sleep(0.001)

    before = process.memory_info().rss
    watching = threading.Thread(target=watch)
    watching.start()
    with server.client() as client:
        for _ in range(_ROUNDS):
            _send(client, path, encoding)
    end.set()
    watching.join()
    return peak[0] - before


def _liveness(server: Server, path: str, values: np.ndarray, plan: Plan) -> Row:
    """Measure /healthz while bodies of 16 MiB are parsed, and then rejected because their problem does not exist."""
    body = _json("list", values).body
    absent = f"{path.rpartition('/v1/problems/')[0]}/v1/problems/p_absent/solve"
    load = start(Load(server.address, absent, [body], clients=1, seconds=plan.load_s))
    took = []
    with server.client() as client:
        while not load.done():
            answer = client.get("/healthz")
            assert answer.status == 200, answer.body
            took.append(answer.seconds)
            time.sleep(_PROBE_S)
    load.result()
    worst = quantile(took, 0.99)
    return Row(
        f"healthz while JSON of {len(body) / 2**20:.0f} MiB is parsed",
        f"p99 <= {milliseconds(_PROBE_P99_S)}",
        f"p99 {milliseconds(worst)}, worst {milliseconds(max(took))}",
        worst <= _PROBE_P99_S,
    )
