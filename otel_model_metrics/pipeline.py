"""
The pipeline of configure() over the life of a process: each forked child has its own, and the last values are exported.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

# For the last exports of a process, together. A parent waits for its multiprocessing children, so they give up sooner;
# 25,000 series take them about a second.
LAST_MILLIS = 10_000
LAST_MILLIS_OF_CHILD = 5_000

# Tells the processes of a service apart. The SDK itself sets and renews it from 1.43 on.
INSTANCE_ID = "service.instance.id"

_logger = logging.getLogger("otel_model_metrics")


def new_identity() -> Resource:
    """What tells this process apart from all others."""
    from opentelemetry.sdk.resources import Resource

    return Resource({INSTANCE_ID: str(uuid.uuid4())})


class Exporter:
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
        """Send, unless it was shut down."""
        from opentelemetry.sdk.metrics.export import MetricExportResult

        self.succeeded = False
        if self._ended:
            return MetricExportResult.FAILURE
        result = self._of_this_process().export(metrics_data, timeout_millis=timeout_millis, **kwargs)
        self.succeeded = result is MetricExportResult.SUCCESS
        return result

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Send what is under way."""
        return bool(self._of_this_process().force_flush(timeout_millis))

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """End; a child leaves the connections of its parent alone."""
        self._ended = True
        if self._made_in == os.getpid():
            self._exporter.shutdown(timeout_millis)


def reader_class(exporter: Exporter) -> Any:
    """A class made here, because its base is imported here."""
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    class LastTwice(PeriodicExportingMetricReader):
        """
        Makes its last export twice: a series that is new in it says 0 first, and its value only then.

        Both are made by the thread that makes the others, so that the end can be waited for with a limit.
        """

        ended = False
        _once_more = False

        def shutdown(self, timeout_millis: float = LAST_MILLIS, **kwargs: Any) -> None:
            if self.ended:
                return
            self.ended = self._once_more = True
            thread = getattr(self, "_daemon_thread", None)
            if thread is None or not thread.is_alive():  # e.g. OTEL_METRIC_EXPORT_INTERVAL=inf
                self.collect(timeout_millis)
            super().shutdown(timeout_millis=min(timeout_millis, LAST_MILLIS), **kwargs)
            if thread is not None and thread.is_alive():
                _logger.warning("The last export was not finished in time: what it would have said is lost.")

        def _receive_metrics(self, metrics_data: Any, timeout_millis: float = 10_000, **kwargs: Any) -> None:
            super()._receive_metrics(metrics_data, timeout_millis=timeout_millis, **kwargs)
            # If this was a regular export that was under way, two more follow. An endpoint that did not take the first
            # is not kept waiting for with a second.
            if self._once_more and exporter.succeeded:
                self._once_more = False
                self.collect(LAST_MILLIS)

        def renew(self) -> None:
            """New lock, in a forked child: the parent's may be held for ever."""
            self._export_lock = threading.Lock()

    return LastTwice


class Pipeline:
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

    def end(self, limit_millis: float = LAST_MILLIS) -> None:
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
        config.resource = config.resource.merge(new_identity())
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


def _end_with_child(pipeline: Pipeline) -> None:
    """Export the last values when this child of multiprocessing ends, after its queues and its own children."""
    from multiprocessing.util import Finalize

    Finalize(None, pipeline.end, args=(LAST_MILLIS_OF_CHILD,), exitpriority=-100)


_pipeline: Pipeline | None = None


def keep(pipeline: Pipeline) -> None:
    """Let this pipeline end with the process, and be renewed in every child that is forked from it."""
    global _pipeline
    _pipeline = pipeline
    pipeline.end_with_process()


def _after_fork_in_child() -> None:
    """Registered before the SDK's own hooks, which start a thread that needs the locks."""
    try:
        if _pipeline is not None:
            _pipeline.after_fork_in_child()
    except Exception:
        _logger.exception("configure() could not renew its pipeline after a fork")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
