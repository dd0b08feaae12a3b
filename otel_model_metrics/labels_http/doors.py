"""
The two doors: labels_app() for ASGI, labels_wsgi_app() for WSGI.
"""

from __future__ import annotations

import http
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from otel_model_metrics.labels_http.endpoint import Answer, LabelsEndpoint, Monitors, refusal
from otel_model_metrics.labels_http.openapi import METHODS

_CHUNK = 65_536

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
StartResponse = Callable[[str, list[tuple[str, str]]], object]


def labels_app(
    monitors: Monitors | None = None,
    *,
    token: str | Sequence[str] | None,
    max_body: int = 1_000_000,
    max_labels: int = 10_000,
    wait: float = 1.0,
) -> LabelsASGI:
    """
    An ASGI application that takes labels at ``POST /v1/labels``, to be mounted or served by itself.

    Labels are recorded in a worker thread (asyncio only), so the event loop never waits for a store.
    ``GET /openapi.json`` describes it, and asks for no token because it names no model.

    Args:
        monitors: Those that get the labels; or a function that returns them, asked at each request, so that monitors
            made later are found. None for all of this process.
        token: What a client sends as ``Authorization: Bearer ...``. Several, so that they can be replaced without a
            gap. None for no authentication at all, which is only right behind your own.
        max_body: Bytes of a request.
        max_labels: Labels of a request.
        wait: Seconds that the labels of a request together may wait for a store outside the process. Those that it
            has not decided by then are answered with ``queued``.

    Raises:
        ValueError: For a token or limit that cannot be meant.
        TypeError: For monitors that are none.

    >>> labels_app([], token="s3cret")
    <LabelsASGI POST /v1/labels, 1 token(s)>
    """
    return LabelsASGI(LabelsEndpoint(monitors, token, max_body, max_labels, wait))


def labels_wsgi_app(
    monitors: Monitors | None = None,
    *,
    token: str | Sequence[str] | None,
    max_body: int = 1_000_000,
    max_labels: int = 10_000,
    wait: float = 1.0,
) -> LabelsWSGI:
    """
    The WSGI twin of `labels_app`, with the same arguments and the same answers.

    >>> labels_wsgi_app([], token=None)
    <LabelsWSGI POST /v1/labels, no token>
    """
    return LabelsWSGI(LabelsEndpoint(monitors, token, max_body, max_labels, wait))


class LabelsASGI:
    """See `labels_app`, which makes it."""

    def __init__(self, endpoint: LabelsEndpoint) -> None:
        self._endpoint = endpoint

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._endpoint.title}>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one connection, as ASGI has it."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})  # before it is accepted: 403
        else:
            raise ValueError(f"labels_app answers http, lifespan and websocket, got a scope of type {scope['type']!r}.")

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: dict[str, str] = {}
        for raw_name, raw_value in scope["headers"]:
            name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
            # Joined as HTTP has it; two tokens, or two lengths, so become one that is wrong.
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        path, prefix = _route(scope["path"], scope.get("root_path", ""))
        answer = self._endpoint.before_body(scope["method"], path, prefix, headers)
        if answer is None:
            body = await _receive_body(receive, self._endpoint.max_body)
            if body is None:
                return  # nobody is there any more to be answered
            import asyncio  # whoever calls this runs on it, and nobody else should pay for it

            answer = await asyncio.to_thread(self._endpoint.after_body, body)
        raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
        await send({"type": "http.response.start", "status": answer.status, "headers": raw})
        await send({"type": "http.response.body", "body": answer.sent(scope["method"])})


def _route(path: str, root_path: str) -> tuple[str, str]:
    """
    The path within this application and the prefix before it.

    Since 2024 `path` of ASGI has the prefix in it, before that it had not, and frameworks of both kinds are in use.

    >>> _route("/ml/v1/labels", "/ml"), _route("/v1/labels", "/ml"), _route("/v1/labels", "")
    (('/v1/labels', '/ml'), ('/v1/labels', '/ml'), ('/v1/labels', ''))
    """
    prefix = root_path.rstrip("/")
    if prefix and path not in METHODS and path.startswith(f"{prefix}/"):
        path = path[len(prefix) :]
    return path, prefix


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


async def _receive_body(receive: Receive, limit: int) -> bytes | None:
    """The body, or its beginning if it is longer than the limit; None if the client is gone."""
    body = bytearray()
    more = True
    while more and len(body) <= limit:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return bytes(body)


class LabelsWSGI:
    """See `labels_wsgi_app`, which makes it."""

    def __init__(self, endpoint: LabelsEndpoint) -> None:
        self._endpoint = endpoint

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._endpoint.title}>"

    def __call__(self, environ: Mapping[str, Any], start_response: StartResponse) -> list[bytes]:
        """Answers one request, as WSGI has it."""
        method = environ["REQUEST_METHOD"]
        headers = {
            name.removeprefix("HTTP_").replace("_", "-").lower(): value
            for name, value in environ.items()
            if name.startswith("HTTP_") or (name in ("CONTENT_TYPE", "CONTENT_LENGTH") and value)
        }
        prefix = environ.get("SCRIPT_NAME", "").rstrip("/")
        answer = self._endpoint.before_body(method, environ.get("PATH_INFO", ""), prefix, headers)
        if answer is None:
            answer = self._after_body(environ, headers)
        start_response(f"{answer.status} {http.HTTPStatus(answer.status).phrase}", list(answer.headers))
        return [answer.sent(method)]

    def _after_body(self, environ: Mapping[str, Any], headers: Mapping[str, str]) -> Answer:
        ends = bool(environ.get("wsgi.input_terminated"))
        if "content-length" in headers:
            wanted = int(headers["content-length"])  # `before_body` has seen that it is a number within the limit
        elif ends or "transfer-encoding" not in headers:
            wanted = self._endpoint.max_body + 1 if ends else 0
        else:
            # Without a length only some servers say where the body ends; of the others it must not be read.
            return refusal(411, "This server needs to know the length of the body: send Content-Length.")
        body = _read_body(environ["wsgi.input"], wanted)
        if body is None or ("content-length" in headers and len(body) < wanted):
            return refusal(400, "The body ended too early.")  # which hardly anybody is there to hear
        return self._endpoint.after_body(body)


def _read_body(stream: Any, wanted: int) -> bytes | None:
    """At most so many bytes of a body; None if the client is gone, and the server says so."""
    body = bytearray()
    try:
        while len(body) < wanted:
            chunk = stream.read(min(_CHUNK, wanted - len(body)))
            if not chunk:
                break
            body += chunk
    except OSError:
        return None
    return bytes(body)
