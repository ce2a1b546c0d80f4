"""The context of the current request, and the export of traces by OpenTelemetry."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import SettingsError

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["RequestContext", "current_context", "export_traces", "set_context"]

_UNTRACED_PATHS = "healthz,readyz,metrics"
"""Comma-separated patterns, in the form of OpenTelemetry, of URLs that get no span: probes would hide all others."""


@dataclass(eq=False)
class RequestContext:
    """What logs and metrics report about one request. It never holds arrays, documents or tokens.

    Attributes:
        request_id: ID of the request.
        key_id: ID of the API key; empty if the request has none.
        body_bytes: size of the received body.
        problem_id: ID of the problem.
        operation: solve, vjp, jvp or register.
        batch: number of elements.
        queue_s: seconds in the queue.
        solve_s: seconds in the compute backend, after the queue.
    """

    request_id: str
    key_id: str = ""
    body_bytes: int | None = None
    problem_id: str | None = None
    operation: str | None = None
    batch: int | None = None
    queue_s: float | None = None
    solve_s: float | None = None


_CONTEXT: ContextVar[RequestContext | None] = ContextVar("request_context", default=None)


def current_context() -> RequestContext:
    """Return the context of the current request; outside of a request, create one without an ID."""
    context = _CONTEXT.get()
    return set_context(RequestContext("")) if context is None else context


def set_context(context: RequestContext) -> RequestContext:
    """Set the context for the rest of this task, and return it."""
    _CONTEXT.set(context)
    return context


def export_traces(app: FastAPI, processor: Any = None) -> None:
    """Create an OpenTelemetry span for each request. The ``OTEL_*`` variables configure the exporter.

    Args:
        app: the application.
        processor: span processor; by default a batch processor that exports by OTLP over HTTP.

    Raises:
        SettingsError: OpenTelemetry is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SettingsError(
            f"telemetry needs more packages ({error}): pip install 'convexlayer[server,telemetry]', or turn it off"
        ) from error
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: "convexlayer"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()) if processor is None else processor)
    app.add_middleware(OpenTelemetryMiddleware, tracer_provider=provider, excluded_urls=_UNTRACED_PATHS)
