"""Requests that schemathesis generates from the OpenAPI document, valid and invalid."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import hypothesis
import schemathesis
from hypothesis.errors import Unsatisfiable
from schemathesis.generation import GenerationMode

__all__ = ["send_cases"]

_SETTINGS = hypothesis.settings(
    deadline=None,
    database=None,
    phases=[hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
)


def send_cases(document: Mapping[str, Any], examples: int, *, seed: int, send: Callable[..., None]) -> int:
    """Send requests to every operation of a document.

    Args:
        document: the OpenAPI document.
        examples: number of requests for each operation and kind.
        seed: random seed.
        send: sends and checks one request: called with method and path, and httpx's ``params``, ``headers``, ``json``
            or ``content``.

    Returns:
        The number of requests.
    """
    sent = 0
    for found in schemathesis.openapi.from_dict(dict(document)).get_all_operations():
        operation: Any = found.ok()  # type: ignore[union-attr]  # the document is valid, or this should fail
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            @hypothesis.seed(seed)
            @hypothesis.settings(_SETTINGS, max_examples=examples)
            @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            def run(case: Any) -> None:
                nonlocal sent
                sent += 1
                options = case.as_transport_kwargs(base_url="http://server")
                body = {"json": options["json"]} if "json" in options else {"content": options.get("data")}
                path = str(options["url"]).removeprefix("http://server")
                send(options["method"], path, params=options.get("params"), headers=dict(options["headers"]), **body)

            with contextlib.suppress(Unsatisfiable):  # an operation without parameters has no invalid requests
                run()
    return sent
