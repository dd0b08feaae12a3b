"""
configure(): a MeterProvider that exports over OTLP, for a service that has none.

A service that sets up OpenTelemetry itself needs nothing from here. The SDK and the exporters are imported when
`configure` is called, not before: importing the library must stay cheap.

How what is configured survives forks and ends is told in `pipeline.py`.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from opentelemetry import metrics

from otel_model_metrics.pipeline import INSTANCE_ID, Exporter, Pipeline, keep, new_identity, reader_class

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.sdk.resources import Resource

Protocol = Literal["http/protobuf", "grpc"]
PROTOCOLS = ("http/protobuf", "grpc")

# One instrument of a monitor with many segments and classes has more series than the SDK's 2,000, beyond which it
# merges them; ours are bounded by the monitor already.
CARDINALITY_LIMIT = 1_000_000

_logger = logging.getLogger("otel_model_metrics")


def configure(
    service_name: str | None = None,
    endpoint: str | None = None,
    protocol: Protocol | None = None,
    interval: float | None = None,
    resource: Mapping[str, Any] | Resource | None = None,
) -> MeterProvider:
    """
    Set up the global MeterProvider with a periodic OTLP exporter, unless the service already has a provider.

    What is not given comes from the ``OTEL_*`` variables. At exit the last values are flushed, so that a short
    process is seen too, and so they are by ``shutdown()`` of the provider, for processes that end without an exit.
    Forked and spawned children report under a ``service.instance.id`` of their own and start empty.

    Args:
        service_name: ``service.name`` of the resource (``OTEL_SERVICE_NAME``).
        endpoint: Where to send, e.g. ``http://localhost:4318``; for HTTP ``/v1/metrics`` is appended if it is not
            there (``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_EXPORTER_OTLP_METRICS_ENDPOINT``).
        protocol: ``http/protobuf`` (default) or ``grpc`` (``OTEL_EXPORTER_OTLP_PROTOCOL``).
        interval: Seconds between exports, > 0; 60 by default (``OTEL_METRIC_EXPORT_INTERVAL``, milliseconds).
        resource: Further resource attributes.

    Returns:
        The provider in force: the new one, or the one that was set before, which is left alone.

    Raises:
        ValueError: For an unknown protocol or an interval that is no positive number.
    """
    chosen = protocol_of(protocol)
    if interval is not None and not (math.isfinite(interval) and interval > 0):
        raise ValueError(f"interval must be seconds > 0, got {interval!r}.")
    current = metrics.get_meter_provider()
    if not _is_placeholder(current):
        _logger.warning(
            "configure() leaves the MeterProvider alone that is already set (%s): monitors report through it.",
            type(current).__name__,
        )
        return current

    from opentelemetry.sdk.metrics import MeterProvider as SdkMeterProvider
    from opentelemetry.sdk.resources import Resource

    attributes = {"service.name": service_name} if service_name else {}
    if resource is not None and not isinstance(resource, Resource):
        attributes = {**resource, **attributes}
    described = Resource.create(attributes)
    if isinstance(resource, Resource):
        described = resource.merge(described) if service_name else described.merge(resource)
    if INSTANCE_ID not in described.attributes:
        described = described.merge(new_identity())
    readers = _readers(chosen, endpoint, interval)
    provider = SdkMeterProvider(readers, resource=described, shutdown_on_exit=False)
    metrics.set_meter_provider(provider)
    if readers:
        keep(Pipeline(provider, readers[0]))
    return provider


def protocol_of(given: str | None) -> str:
    """
    The protocol given, or that of the ``OTEL_EXPORTER_OTLP_*`` variables.

    Raises:
        ValueError: For an unknown one.
    """
    name = (
        given or os.environ.get("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    )
    name = (name or "http/protobuf").strip().lower()
    if name not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {name!r}.")
    return name


def _is_placeholder(provider: Any) -> bool:
    """Whether no provider has been set yet. The API's stand-in is not public, so it is known by its module."""
    return type(provider).__module__.startswith("opentelemetry.metrics")


def _readers(protocol: str, endpoint: str | None, interval: float | None) -> list[Any]:
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        _logger.info("OTEL_SDK_DISABLED is set: nothing is exported.")
        return []
    if os.environ.get("OTEL_METRICS_EXPORTER", "otlp").strip().lower() == "none":
        _logger.info("OTEL_METRICS_EXPORTER is none: nothing is exported.")
        return []

    from opentelemetry.sdk.metrics import ObservableCounter, ObservableGauge
    from opentelemetry.sdk.metrics.export import AggregationTemporality

    exporter = Exporter(lambda: exporter_of(protocol, endpoint))
    if exporter._preferred_temporality.get(ObservableCounter) is AggregationTemporality.DELTA:
        _logger.warning(
            "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE asks for delta temporality. Prometheus-like stores drop "
            "such counters without an error, and with them all totals of otel_model_metrics; use cumulative."
        )
    settings: dict[str, Any] = {"export_interval_millis": None if interval is None else interval * 1000}
    limits: dict[Any, int] = {ObservableCounter: CARDINALITY_LIMIT, ObservableGauge: CARDINALITY_LIMIT}
    reader = reader_class(exporter)
    try:
        return [reader(exporter, **settings, cardinality_limits=limits)]
    except TypeError:  # an older SDK, which has no such limit
        return [reader(exporter, **settings)]


def exporter_of(protocol: str, endpoint: str | None, **http: Any) -> Any:
    """
    The SDK's exporter of metrics for a protocol.

    Args:
        protocol: One of `PROTOCOLS`.
        endpoint: As for `configure`.
        http: Further arguments of the exporter over HTTP.
    """
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcExporter

        return GrpcExporter(endpoint=endpoint)
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpExporter

    if endpoint is not None and not endpoint.rstrip("/").endswith("/v1/metrics"):
        endpoint = endpoint.rstrip("/") + "/v1/metrics"
    return HttpExporter(endpoint=endpoint, **http)
