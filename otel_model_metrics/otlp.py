"""
configure(): a MeterProvider that exports over OTLP, for a service that has none.

A service that sets up OpenTelemetry itself needs nothing from here. The SDK and the exporters are imported when
`configure` is called, not before: importing the library must stay cheap.

What is configured survives a fork, and a process of any kind exports its last values when it ends: `_Pipeline`.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import sys
import threading
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from opentelemetry import metrics

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.sdk.resources import Resource

Protocol = Literal["http/protobuf", "grpc"]
PROTOCOLS = ("http/protobuf", "grpc")

# One instrument of a monitor with many segments and classes has more series than the SDK's 2,000, beyond which it
# merges them; ours are bounded by the monitor already.
CARDINALITY_LIMIT = 1_000_000

# For the last exports of a process, together. A parent waits for its multiprocessing children, so they give up sooner;
# 25,000 series take them about a second.
_LAST_MILLIS = 10_000
_LAST_MILLIS_OF_CHILD = 5_000

# Tells the processes of a service apart. The SDK itself sets and renews it from 1.43 on.
INSTANCE_ID = "service.instance.id"

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
    chosen = _protocol(protocol)
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
        described = described.merge(_new_identity())
    readers = _readers(chosen, endpoint, interval)
    provider = SdkMeterProvider(readers, resource=described, shutdown_on_exit=False)
    metrics.set_meter_provider(provider)
    if readers:
        global _pipeline
        _pipeline = _Pipeline(provider, readers[0])
        _pipeline.end_with_process()
    return provider


def _protocol(given: str | None) -> str:
    name = (
        given or os.environ.get("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    )
    name = (name or "http/protobuf").strip().lower()
    if name not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {name!r}.")
    return name


def _new_identity() -> Resource:
    from opentelemetry.sdk.resources import Resource

    return Resource({INSTANCE_ID: str(uuid.uuid4())})


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

    exporter = _Exporter(lambda: _exporter(protocol, endpoint))
    if exporter._preferred_temporality.get(ObservableCounter) is AggregationTemporality.DELTA:
        _logger.warning(
            "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE asks for delta temporality. Prometheus-like stores drop "
            "such counters without an error, and with them all totals of otel_model_metrics; use cumulative."
        )
    settings: dict[str, Any] = {"export_interval_millis": None if interval is None else interval * 1000}
    limits: dict[Any, int] = {ObservableCounter: CARDINALITY_LIMIT, ObservableGauge: CARDINALITY_LIMIT}
    reader = _reader_class(exporter)
    try:
        return [reader(exporter, **settings, cardinality_limits=limits)]
    except TypeError:  # an older SDK, which has no such limit
        return [reader(exporter, **settings)]


def _exporter(protocol: str, endpoint: str | None) -> Any:
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcExporter

        return GrpcExporter(endpoint=endpoint)
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpExporter

    if endpoint is not None and not endpoint.rstrip("/").endswith("/v1/metrics"):
        endpoint = endpoint.rstrip("/") + "/v1/metrics"
    return HttpExporter(endpoint=endpoint)


class _Exporter:
    """
    The OTLP exporter of this process.

    A forked child makes its own at its first export, for two processes must not write to one connection.

    Args:
        make: Makes an exporter.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._exporter = make()
        self._made_in = os.getpid()
        self._inherited: list[Any] = []
        self._ended = False
        self.succeeded = True
        # The SDK asks an exporter for these.
        self._preferred_temporality = self._exporter._preferred_temporality
        self._preferred_aggregation = self._exporter._preferred_aggregation

    def _of_this_process(self) -> Any:
        if self._made_in != os.getpid():
            # Kept, not closed: its connections are the parent's, and the threads of gRPC did not come along.
            self._inherited.append(self._exporter)
            self._exporter = self._make()
            self._made_in = os.getpid()
        return self._exporter

    def export(self, metrics_data: Any, timeout_millis: float = 10_000, **kwargs: Any) -> Any:
        from opentelemetry.sdk.metrics.export import MetricExportResult

        self.succeeded = False
        if self._ended:
            return MetricExportResult.FAILURE
        result = self._of_this_process().export(metrics_data, timeout_millis=timeout_millis, **kwargs)
        self.succeeded = result is MetricExportResult.SUCCESS
        return result

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return bool(self._of_this_process().force_flush(timeout_millis))

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        self._ended = True
        if self._made_in == os.getpid():
            self._exporter.shutdown(timeout_millis)


def _reader_class(exporter: _Exporter) -> Any:
    """A class made here, because its base is imported here."""
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    class LastTwice(PeriodicExportingMetricReader):
        """
        Makes its last export twice: a series that is new in it says 0 first, and its value only then.

        Both are made by the thread that makes the others, so that the end can be waited for with a limit.
        """

        ended = False
        _once_more = False

        def shutdown(self, timeout_millis: float = _LAST_MILLIS, **kwargs: Any) -> None:
            if self.ended:
                return
            self.ended = self._once_more = True
            thread = getattr(self, "_daemon_thread", None)
            if thread is None or not thread.is_alive():  # e.g. OTEL_METRIC_EXPORT_INTERVAL=inf
                self.collect(timeout_millis)
            super().shutdown(timeout_millis=min(timeout_millis, _LAST_MILLIS), **kwargs)
            if thread is not None and thread.is_alive():
                _logger.warning("The last export was not finished in time: what it would have said is lost.")

        def _receive_metrics(self, metrics_data: Any, timeout_millis: float = 10_000, **kwargs: Any) -> None:
            super()._receive_metrics(metrics_data, timeout_millis=timeout_millis, **kwargs)
            # If this was a regular export that was under way, two more follow. An endpoint that did not take the first
            # is not kept waiting for with a second.
            if self._once_more and exporter.succeeded:
                self._once_more = False
                self.collect(_LAST_MILLIS)

        def renew(self) -> None:
            """New lock, in a forked child: the parent's may be held for ever."""
            self._export_lock = threading.Lock()

    return LastTwice


class _Pipeline:
    """
    What `configure` has set up, over the life of its process and of those forked from it.

    Args:
        provider: The provider of the SDK.
        reader: Its only reader.
    """

    def __init__(self, provider: Any, reader: Any) -> None:
        self._provider = provider
        self._reader = reader
        self._known_to_multiprocessing = False

    def end_with_process(self) -> None:
        """Export the last values when this process ends, or one that is forked from it."""
        atexit.register(self.end)
        self._tell_multiprocessing()
        process = sys.modules.get("multiprocessing.process")
        if process is not None and process.parent_process() is not None:
            _end_with_child(self)

    def end(self, limit_millis: float = _LAST_MILLIS) -> None:
        """Export the last values, once; more calls do nothing."""
        try:
            if not self._reader.ended:
                self._provider.shutdown(limit_millis)
        except Exception:
            _logger.warning("The last export did not succeed.", exc_info=True)

    def after_fork_in_child(self) -> None:
        """An identity of its own, and new locks, for the parent may have been exporting at the moment of the fork."""
        self._tell_multiprocessing()
        config = self._provider._sdk_config
        config.resource = config.resource.merge(_new_identity())
        self._reader.renew()
        consumer = self._provider._measurement_consumer
        consumer._lock = threading.Lock()
        for reader, storage in list(consumer._reader_storages.items()):
            # A new storage has new locks, and a counter of the host starts at zero in it, as it should under a new
            # service.instance.id. An SDK that cannot make one afterwards gets the outermost lock only.
            if hasattr(consumer, "add_metric_reader"):
                consumer.add_metric_reader(reader)
            else:
                storage._lock = threading.RLock()

    def _tell_multiprocessing(self) -> None:
        # Not imported for this: a process that can be one of its children, or have some, has imported it already by
        # the time of a fork.
        util = sys.modules.get("multiprocessing.util")
        if util is not None and not self._known_to_multiprocessing:
            self._known_to_multiprocessing = True
            # A child ends with os._exit(), without atexit, and forgets the finalizers of its parent when it starts.
            util.register_after_fork(self, _end_with_child)


def _end_with_child(pipeline: _Pipeline) -> None:
    """Export the last values when this child of multiprocessing ends, after its queues and its own children."""
    from multiprocessing.util import Finalize

    Finalize(None, pipeline.end, args=(_LAST_MILLIS_OF_CHILD,), exitpriority=-100)


_pipeline: _Pipeline | None = None


def _after_fork_in_child() -> None:
    """Registered before the SDK's own hooks, which start a thread that needs the locks."""
    try:
        if _pipeline is not None:
            _pipeline.after_fork_in_child()
    except Exception:
        _logger.exception("configure() could not renew its pipeline after a fork")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
