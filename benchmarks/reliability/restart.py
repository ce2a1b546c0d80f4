"""Restart after SIGKILL: persistence of problems, and recovery of clients."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.reliability.problems import dense_qp, dense_values
from benchmarks.reliability.server import Server
from benchmarks.reliability.table import Plan, Row
from convexlayer_client import Client

__all__ = ["measure"]

_PROBLEMS = 20
"""Problems that are registered before the server is killed."""

_CLIENTS = 4
"""Clients that solve while the server restarts."""


def measure(plan: Plan) -> list[Row]:
    """Kill the server under load, restart it, and count the errors of the clients."""
    solved, failed = [0] * _CLIENTS, []
    with TemporaryDirectory() as folder:
        path = str(Path(folder, "store.sqlite"))
        with Server(store=path) as first:
            port = first.address[1]
            ids = {first.register(dense_qp(3 + number)).rpartition("/")[2] for number in range(_PROBLEMS)}
            end = threading.Event()

            def call(number: int) -> None:
                size = 3 + number
                with Client(f"http://127.0.0.1:{port}", retry_s=120.0) as client:
                    problem_id = client.register(dense_qp(size)).id
                    while not end.is_set():
                        try:
                            client.solve(problem_id, dense_values(0, size))
                        except Exception as error:  # any error that a client sees is a failure
                            failed.append(repr(error))
                            return
                        solved[number] += 1

            threads = [threading.Thread(target=call, args=(number,)) for number in range(_CLIENTS)]
            for thread in threads:
                thread.start()
            time.sleep(min(5.0, plan.load_s))
            first.kill()
        before, start = list(solved), time.monotonic()
        with Server(store=path, port=port) as second:
            back_s = time.monotonic() - start
            with second.client() as client:
                listed = {problem["id"] for problem in json.loads(client.get("/v1/problems").body)["problems"]}
            time.sleep(min(5.0, plan.load_s))
            end.set()
            for thread in threads:
                thread.join()
    went_on = sum(after > earlier for after, earlier in zip(solved, before, strict=True))
    return [
        Row(
            "restart after SIGKILL, under load",
            "all problems persist; clients recover by themselves",
            f"{len(ids & listed)} of {len(ids)} problems; ready after {back_s:.1f} s; {went_on} of {_CLIENTS} clients "
            f"recovered, {len(failed)} saw an error",
            ids <= listed and went_on == _CLIENTS and not failed,
        )
    ]
