"""Traces by OpenTelemetry, where the settings ask for them; its own ``OTEL_`` variables say where they go."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from .errors import SettingsError

__all__ = ["install"]


def install(app: FastAPI, processor: Any = None) -> None:
    """Let a span be made of each request.

    Args:
        app: the application.
        processor: of spans; one that sends them in batches by OTLP over HTTP unless given.

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
    app.add_middleware(OpenTelemetryMiddleware, tracer_provider=provider, excluded_urls="healthz,readyz,metrics")
