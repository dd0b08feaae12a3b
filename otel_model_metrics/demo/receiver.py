"""
An OTLP/HTTP receiver for metrics that runs inside the demonstration, and what it has received.

It speaks what the OTLP specification asks of a server for ``/v1/metrics``, in protobuf with or without gzip. It
listens on 127.0.0.1 only, and keeps numbers of gauges and sums, latest value and short history.
"""

from __future__ import annotations

import threading
import zlib
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue

PATH = "/v1/metrics"
PROTOBUF = "application/x-protobuf"
MOST_BYTES = 64 * 1024 * 1024  # of one request, also after decompression: the exporter's own limit
_IDLE_SECONDS = 60.0

Attributes = Mapping[str, str]


@dataclass(frozen=True)
class Received:
    """
    One series as it has arrived.

    Attributes:
        name: Name of the metric.
        attributes: Its attributes.
        history: Values, oldest first; at least one.
    """

    name: str
    attributes: Attributes
    history: tuple[float, ...]

    @property
    def value(self) -> float:
        """The latest value."""
        return self.history[-1]


class Store:
    """
    What has been received, for readers in other threads.

    Args:
        keep: Values kept of each series, >= 1.

    >>> store = Store()
    >>> store.add([("ml.model.f1", {"ml.model.name": "fraud"}, 0.8)])
    >>> store.current()[0].value
    0.8
    """

    def __init__(self, keep: int = 120) -> None:
        self._lock = threading.Lock()
        self._keep = keep
        self._histories: dict[tuple[str, frozenset[tuple[str, str]]], deque[float]] = {}
        self._latest: set[tuple[str, frozenset[tuple[str, str]]]] = set()
        self._exports = 0

    @property
    def exports(self) -> int:
        """How many requests have been received."""
        with self._lock:
            return self._exports

    def add(self, points: Iterable[tuple[str, Attributes, float]]) -> None:
        """Take in one export: metric name, attributes and value of each point."""
        arrived = {(name, frozenset(attributes.items())): value for name, attributes, value in points}
        with self._lock:
            self._exports += 1
            for key, value in arrived.items():
                history = self._histories.get(key)
                if history is None:
                    history = self._histories[key] = deque(maxlen=self._keep)
                history.append(value)
            self._latest = set(arrived)

    def current(self) -> list[Received]:
        """The series of the latest export. One that is no longer exported is undefined now, and not among them."""
        with self._lock:
            return [Received(key[0], dict(key[1]), tuple(self._histories[key])) for key in self._latest]


class Receiver:
    """
    An OTLP/HTTP server on a free port of 127.0.0.1, running between enter and exit.

    >>> with Receiver() as receiver:
    ...     receiver.endpoint.startswith("http://127.0.0.1:")
    True
    """

    def __init__(self, store: Store | None = None) -> None:
        self.store = Store() if store is None else store
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.store = self.store
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="otlp-receiver", daemon=True
        )

    def __enter__(self) -> Receiver:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        """The address metrics are to be sent to."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}{PATH}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    store: Store


class _RefusedError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps the connection between exports
    timeout = _IDLE_SECONDS
    server: _Server

    def do_POST(self) -> None:
        """Answer one export."""
        try:
            self.server.store.add(points_of(self._request()))
        except _RefusedError as refused:
            # What the body holds may not have been read, so the connection cannot be used again.
            self.close_connection = True
            self._reply(refused.status, Status(message=str(refused)))
        else:
            self._reply(200, ExportMetricsServiceResponse())

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing: the terminal is the view's."""

    def _request(self) -> ExportMetricsServiceRequest:
        if self.path.split("?")[0].rstrip("/") != PATH:
            raise _RefusedError(404, f"metrics are received at {PATH}, got {self.path}.")
        kind = self.headers.get_content_type()
        if kind != PROTOBUF:
            raise _RefusedError(415, f"Content-Type must be {PROTOBUF}, got {kind}.")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise _RefusedError(411, "a Content-Length is needed.")
        if int(length) > MOST_BYTES:
            raise _RefusedError(413, f"a request may have {MOST_BYTES} bytes, got {length}.")
        body = _decompressed(self.rfile.read(int(length)), self.headers.get("Content-Encoding", "identity"))
        request = ExportMetricsServiceRequest()
        try:
            request.ParseFromString(body)
        except DecodeError as error:
            raise _RefusedError(400, f"the body is no ExportMetricsServiceRequest: {error}.") from error
        return request

    def _reply(self, status: int, message: Message) -> None:
        body = message.SerializeToString()
        self.send_response(status)
        self.send_header("Content-Type", PROTOBUF)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


def points_of(request: ExportMetricsServiceRequest) -> list[tuple[str, dict[str, str], float]]:
    """Name, attributes and value of every number in a request: gauges and sums, for the library emits no others."""
    return [
        (metric.name, _attributes_of(point.attributes), float(getattr(point, kind)))
        for of_resource in request.resource_metrics
        for of_scope in of_resource.scope_metrics
        for metric in of_scope.metrics
        for point in (*metric.gauge.data_points, *metric.sum.data_points)
        if (kind := point.WhichOneof("value")) is not None  # None: said to have no value
    ]


def _attributes_of(pairs: Iterable[KeyValue]) -> dict[str, str]:
    return {pair.key: str(getattr(pair.value, pair.value.WhichOneof("value") or "string_value")) for pair in pairs}


def _decompressed(body: bytes, encoding: str) -> bytes:
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "deflate"):
        raise _RefusedError(415, f"Content-Encoding must be gzip, deflate or identity, got {encoding}.")
    # 32 lets zlib tell the header of gzip from its own; the limit is there for bodies that grow without end.
    inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        plain = inflate.decompress(body, MOST_BYTES)
    except zlib.error as error:
        raise _RefusedError(400, f"the body is not compressed with {encoding}: {error}.") from error
    if inflate.unconsumed_tail:
        raise _RefusedError(413, f"a request may have {MOST_BYTES} bytes, and decompresses to more.")
    if not inflate.eof:
        raise _RefusedError(400, f"the body ends before its {encoding} stream does.")
    return plain
