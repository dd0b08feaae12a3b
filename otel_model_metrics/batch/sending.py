"""
Sending points with their own time over OTLP: oldest first, in requests of their own, until one is refused.

A store that refuses one point may drop the whole request, and one that has newer points may refuse all older ones. So
nothing is sent after a refusal, and what had been accepted before it is said.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from otel_model_metrics.batch.evaluation import iso
from otel_model_metrics.batch.points import Points
from otel_model_metrics.instruments import SCOPE
from otel_model_metrics.otlp import exporter_of, protocol_of
from otel_model_metrics.version import __version__

MOST_POINTS = 5_000  # of a request, unless a single window has more: about 1 MB before compression
_CREDENTIALS = "OTEL_PYTHON_EXPORTER_OTLP_HTTP_METRICS_CREDENTIAL_PROVIDER"
_DAY = 86_400.0
_MONTH = 30 * _DAY

# What stores say to points that are too old, in lower case. They say it of the first such point of a request.
_TOO_OLD = ("out of order", "out-of-order", "out of bounds", "too old", "too-old", "too far behind", "outside of")
_DIFFERENT = ("duplicate sample", "duplicate-timestamp", "new-value-for-timestamp")


@dataclass(frozen=True)
class Sent:
    """
    What became of points.

    Attributes:
        points, of: How many were accepted, and how many there are.
        until: Seconds since 1970 until when all points were accepted; None if there are none.
        refusal: What the receiver said to the request that it did not take, and what can be done; None if it took all.
    """

    points: int
    of: int
    until: float | None
    refusal: str | None = None


def send(
    points: Points,
    resource: Any,
    *,
    endpoint: str | None = None,
    protocol: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Sent:
    """
    Send points, oldest first, and stop at the first refusal.

    Args:
        points: What to send.
        resource: The OpenTelemetry resource they belong to.
        endpoint, protocol: As for `configure`; all of ``OTEL_EXPORTER_OTLP_*`` is heeded.
        progress: Called with the number of points after each request.

    Raises:
        ValueError: For an unknown protocol.

    Requests contain whole windows, up to 5,000 points. The receiver's answer counts: a Collector that batches answers
    before its store does.

    Cost: about 20 microseconds a point, most of them for encoding.
    """
    chosen = protocol_of(protocol)
    if points.start < 0:
        return Sent(0, points.count, None, "OTLP has no times before 1970. Is that the right column of times?")
    answers = _Answers()
    sender = exporter_of(chosen, endpoint, **answers.session(chosen))
    accepted, until = 0, None
    try:
        for count, end, data in _requests(points, resource):
            refusal = answers.refusal(partial(sender.export, data))
            if refusal is not None:
                return Sent(accepted, points.count, until, f"{refusal} {_advice(refusal, points)}")
            accepted, until = accepted + count, end
            if progress is not None:
                progress(count)
    finally:
        sender.shutdown()
    return Sent(accepted, points.count, until)


def _requests(points: Points, resource: Any) -> Iterator[tuple[int, float, Any]]:
    """Number of points, time until when they are, and the request, for each request."""
    from opentelemetry.sdk.metrics.export import MetricsData, ResourceMetrics, ScopeMetrics
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    scope = InstrumentationScope(SCOPE, __version__)
    # How many points of each series there are until the end of each window, and of all.
    known = {
        id(series): np.searchsorted(series.micros, points.ends, side="right")
        for family in points.families
        for series in family.series
    }
    until = np.sum(list(known.values()), axis=0) if known else np.zeros(0, np.int64)
    at, done = 0, 0
    while at < len(points.ends):
        last = max(at + 1, int(np.searchsorted(until, done + MOST_POINTS, side="right")))
        if points.apart:
            last = at + 1
        metrics = []
        for family in points.families:
            data_points = []
            for series in family.series:
                reached = known[id(series)]
                chosen = slice(int(reached[at - 1]) if at else 0, int(reached[last - 1]))
                data_points += _data_points(series, chosen, family.kind, points.start)
            if data_points:  # an instrument without points may fail the whole request
                metrics.append(_metric(family, data_points))
        if count := int(until[last - 1]) - done:
            data = MetricsData([ResourceMetrics(resource, [ScopeMetrics(scope, metrics, "")], "")])
            yield count, float(points.ends[last - 1]) / 1e6, data
        at, done = last, int(until[last - 1])


def _data_points(series: Any, chosen: slice, kind: str, start: int) -> list[Any]:
    from opentelemetry.sdk.metrics.export import NumberDataPoint

    return [
        NumberDataPoint(series.attributes, start * 1000 if kind == "counter" else 0, micros * 1000, value)
        for micros, value in zip(series.micros[chosen].tolist(), series.values[chosen].tolist(), strict=True)
    ]


def _metric(family: Any, data_points: list[Any]) -> Any:
    from opentelemetry.sdk.metrics.export import AggregationTemporality, Gauge, Metric, Sum

    if family.kind == "counter":
        data: Any = Sum(data_points, AggregationTemporality.CUMULATIVE, is_monotonic=True)
    else:
        data = Gauge(data_points)
    return Metric(family.name, family.description, family.unit, data)


class _Answers(logging.Handler):
    """
    What receivers answer. Exporters return whether they were successful, and only log why not; that a part of a request
    was refused they do not tell at all, so the answers over HTTP are looked at here.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: list[str] = []
        self._bodies: list[bytes] = []

    def session(self, protocol: str) -> dict[str, Any]:
        """Arguments of the exporter."""
        if protocol == "grpc" or os.environ.get(_CREDENTIALS):  # which provides a session
            return {}
        import requests

        session = requests.Session()
        session.hooks["response"].append(lambda response, **_: self._bodies.append(response.content))
        return {"session": session}

    def emit(self, record: logging.LogRecord) -> None:
        """Keep what an exporter logs."""
        self._said.append(record.getMessage())

    def refusal(self, export: Callable[[], Any]) -> str | None:
        """Why a request was not taken, or a part of it; None if it was."""
        from opentelemetry.sdk.metrics.export import MetricExportResult

        self._said.clear()
        self._bodies.clear()
        logger = logging.getLogger("opentelemetry")
        logger.addHandler(self)  # which also keeps the messages from standard error where nothing else is set up
        try:
            result = export()
        finally:
            logger.removeHandler(self)
        if result is not MetricExportResult.SUCCESS:
            said = self._said[-1] if self._said else "no reason is known"
            bodies = [text for text in (body.decode(errors="replace").strip() for body in self._bodies[-1:]) if text]
            return " ".join([said, *(body for body in bodies if body not in said)]).rstrip(".") + "."
        return self._partly()

    def _partly(self) -> str | None:
        from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

        for body in self._bodies[-1:]:
            try:
                partial = ExportMetricsServiceResponse.FromString(body).partial_success
            except Exception:  # some answer in words
                continue
            if partial.rejected_data_points:
                why = partial.error_message.strip().rstrip(".") or "no reason is given"
                return f"{partial.rejected_data_points:,} points of a request were rejected: {why}."
        return None


def note(points: Points) -> str | None:
    """What a sender must know who was told that all is well."""
    if time.time() - points.start / 1e6 < _MONTH:
        return None
    return (
        "Some stores accept points that are older than they keep them and drop them without a word (VictoriaMetrics: "
        "more than a month, unless -retentionPeriod says otherwise)."
    )


def _advice(refusal: str, points: Points) -> str:
    said = refusal.lower()
    if any(words in said for words in _DIFFERENT):
        return (
            "Points of the same series and time were sent before with other values, by other files or options. "
            "Send these under another name with --instance, or delete the old ones."
        )
    if any(words in said for words in _TOO_OLD):
        days = math.ceil((time.time() - points.start / 1e6) / _DAY) + 1
        return (
            f"The store does not take points this old: the first window begins {iso(points.start / 1e6)}. For "
            f"Prometheus set storage.tsdb.out_of_order_time_window to {days}d or more (Mimir: the limit "
            "out_of_order_time_window), or write them with --openmetrics FILE and load them with "
            "promtool tsdb create-blocks-from openmetrics FILE DATA_DIRECTORY."
        )
    if any(words in said for words in ("404", "unimplemented", "unsupported path")):
        return (
            "Is that an OTLP receiver? --endpoint is its address, such as http://localhost:4318; /v1/metrics is "
            "appended. Prometheus needs --web.enable-otlp-receiver and http://localhost:9090/api/v1/otlp; "
            "VictoriaMetrics -opentelemetry.usePrometheusNaming and http://localhost:8428/opentelemetry."
        )
    if any(code in said for code in ("401", "403", "429", "503")):
        return "It is there, but not for us now: see OTEL_EXPORTER_OTLP_HEADERS for who we are, or run it again later."
    return "Is the receiver running, and is --endpoint (OTEL_EXPORTER_OTLP_ENDPOINT) its address?"
