"""
A way in for labels over HTTP: a small ASGI application and its WSGI twin, for a service to mount.

Reads down: the two doors, the endpoint behind both, one label, the body, the token. Nothing but the standard library
is needed, and nothing of a monitor but what `LabelledMonitor` says. What is promised is in `labels_openapi.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import http
import itertools
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from otel_model_metrics.ground_truth.ids import id_text
from otel_model_metrics.ground_truth.outcomes import LabelOutcome
from otel_model_metrics.labels_openapi import (
    FIELDS,
    LABELS_PATH,
    MAX_DEPTH,
    MAX_ID,
    MAX_TIMESTAMP,
    METHODS,
    MIN_ID,
    OPENAPI_PATH,
    REQUIRED,
    describe,
)

_logger = logging.getLogger("otel_model_metrics")

# Of several outcomes of one label, the first of these is told.
_WORST_FIRST = (
    LabelOutcome.REJECTED,
    LabelOutcome.DROPPED,
    LabelOutcome.UNMATCHED,
    LabelOutcome.EXPIRED,
    LabelOutcome.QUEUED,
    LabelOutcome.PENDING,
    LabelOutcome.DUPLICATE,
    LabelOutcome.CORRECTED,
    LabelOutcome.MATCHED,
)
_CHUNK = 65_536
# A version that comes and goes with each deployment must not make this grow for ever.
_MAX_FAULTS_LOGGED = 100

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
StartResponse = Callable[[str, list[tuple[str, str]]], object]


class LabelledMonitor(Protocol):
    """What is needed of a monitor: every monitor has it."""

    @property
    def name(self) -> str:
        """Name of the model."""

    @property
    def version(self) -> str:
        """Its version."""

    def awaits_label(self, id: Any, /) -> bool:
        """Whether a prediction with this id is known."""

    def record_label(
        self, id: Any, label: Any, /, *, timestamp: float | None = None, wait: float | None = None
    ) -> LabelOutcome:
        """Takes a label, and says what becomes of it; waits at most so many seconds for a store elsewhere."""


Monitors = Iterable[LabelledMonitor] | Callable[[], Iterable[LabelledMonitor]]

# All monitors of this process. Whoever keeps them says so here, because nothing is imported upwards.
monitors_of_this_process: Callable[[], Iterable[LabelledMonitor]] = tuple


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


# The two doors


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
            return _refusal(411, "This server needs to know the length of the body: send Content-Length.")
        body = _read_body(environ["wsgi.input"], wanted)
        if body is None or ("content-length" in headers and len(body) < wanted):
            return _refusal(400, "The body ended too early.")  # which hardly anybody is there to hear
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


# The endpoint behind both


class Answer(NamedTuple):
    """What is sent back."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def sent(self, method: str) -> bytes:
        """The body, unless the method asks for the headers only."""
        return b"" if method == "HEAD" else self.body


def _answer(status: int, content: Mapping[str, Any], *headers: tuple[str, str]) -> Answer:
    body = json.dumps(content).encode()
    usual = (
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        ("X-Content-Type-Options", "nosniff"),  # ids and models of the request are in it
    )
    return Answer(status, (*usual, *headers), body)


def _refusal(status: int, error: str, *headers: tuple[str, str]) -> Answer:
    return _answer(status, {"error": error}, *headers)


class LabelsEndpoint:
    """
    From a request to an answer, without I/O of its own; in two steps, so that nobody reads a body in vain.

    Args: those of `labels_app`.
    """

    def __init__(
        self,
        monitors: Monitors | None,
        token: str | Sequence[str] | None,
        max_body: int,
        max_labels: int,
        wait: float,
    ) -> None:
        self.max_body = _at_least_one(max_body, "max_body")
        self._max_labels = _at_least_one(max_labels, "max_labels")
        self._wait = _seconds(wait, "wait")
        self._monitors = _source(monitors)
        self._tokens = _digests(token)
        self._faults: set[tuple[str, ...]] = set()

    @property
    def title(self) -> str:
        """For people; says nothing of the tokens but how many there are."""
        tokens = "no token" if self._tokens is None else f"{len(self._tokens)} token(s)"
        return f"POST {LABELS_PATH}, {tokens}"

    def before_body(self, method: str, path: str, prefix: str, headers: Mapping[str, str]) -> Answer | None:
        """
        The answer, if none of the body is needed for it; None if it is.

        Args:
            method: As sent, e.g. ``POST``.
            path: Within this application, e.g. ``/v1/labels``.
            prefix: Where the application is mounted, e.g. ``/ml``, or an empty string.
            headers: With names in lower case.
        """
        if path not in METHODS:
            known = ", ".join(prefix + one for one in METHODS)
            return _refusal(404, f"There is nothing at this path. Known: {known}.")
        allow = ("Allow", ", ".join(METHODS[path]))
        if method == "OPTIONS":
            return Answer(204, (allow,), b"")
        if method not in METHODS[path]:
            return _refusal(405, f"{path} does not answer this method, only {allow[1]}.", allow)
        if path == OPENAPI_PATH:
            secured = self._tokens is not None
            return _answer(
                200,
                describe(prefix=prefix, secured=secured, max_labels=self._max_labels, max_body=self.max_body),
            )
        refusal = self._unauthorized(headers)
        return self._unreadable(headers) if refusal is None else refusal

    def after_body(self, body: bytes) -> Answer:
        """
        Takes the labels of a body, and says what became of each.

        May wait for a store outside the process, for all labels together at most as long as the application's `wait`.

        Args:
            body: At least its first ``max_body + 1`` bytes.
        """
        if len(body) > self.max_body:
            return self._too_large()
        try:
            rows, overflows = _rows_of(body)
        except _UnreadableError as unreadable:
            return _refusal(400, str(unreadable))
        if len(rows) > self._max_labels:
            return _refusal(
                413, f"A request may bring {self._max_labels} labels, got {len(rows)}. Send them in several requests."
            )
        deadline = time.monotonic() + self._wait
        by_model = self._by_model()
        outcomes: list[dict[str, Any]] = []
        malformed = 0
        for row in rows:
            try:
                label = _read(row, overflows)
            except _MalformedError as reason:
                malformed += 1
                outcomes.append(_rejected(row, str(reason)))
            else:
                outcomes.append(self._record(row, label, by_model, deadline))
        counts = Counter(outcome["outcome"] for outcome in outcomes)
        status = 422 if rows and malformed == len(rows) else 200
        return _answer(status, {"outcomes": outcomes, "counts": counts})

    def _unauthorized(self, headers: Mapping[str, str]) -> Answer | None:
        if self._tokens is None:
            return None
        given = headers.get("authorization")
        if given is None:
            challenge = ("WWW-Authenticate", 'Bearer realm="labels"')
            return _refusal(401, "A token is needed: send the header Authorization: Bearer <token>.", challenge)
        scheme, _, token = given.partition(" ")
        digest = _digest(token.strip(" ").encode("latin-1", "replace"))
        # All are compared, so that the time taken does not say which of them is like it.
        matches = sum(hmac.compare_digest(digest, known) for known in self._tokens)
        if scheme.lower() == "bearer" and matches:
            return None
        challenge = ("WWW-Authenticate", 'Bearer realm="labels", error="invalid_token"')
        return _refusal(401, "The Authorization header has no token that is known here.", challenge)

    def _unreadable(self, headers: Mapping[str, str]) -> Answer | None:
        encoding = headers.get("content-encoding", "").strip().lower()
        if encoding not in ("", "identity"):
            error = "Compressed bodies are not taken: send it without Content-Encoding."
            return _refusal(415, error, ("Accept-Encoding", "identity"))
        kind, *parameters = (part.strip().lower() for part in headers.get("content-type", "").split(";"))
        charsets = {part.partition("=")[2].strip('"') for part in parameters if part.startswith("charset=")}
        if kind != "application/json" or not charsets <= {"utf-8", "utf8"}:
            error = "Content-Type must be application/json, in UTF-8."
            return _refusal(415, error, ("Accept-Post", "application/json"))
        length = headers.get("content-length")
        if length is None:
            return None
        if not (length.isascii() and length.isdigit()):
            return _refusal(400, "Content-Length must be a number of bytes.")
        # Its digits are counted first, because Python refuses to read very long numbers.
        return self._too_large() if len(length) > 18 or int(length) > self.max_body else None

    def _too_large(self) -> Answer:
        return _refusal(413, f"A request may bring {self.max_body} bytes. Send the labels in several requests.")

    def _by_model(self) -> dict[str, dict[str, LabelledMonitor]] | None:
        """The monitors as model -> version -> monitor, in the order they were made; None if they cannot be had."""
        found: dict[str, dict[str, LabelledMonitor]] = {}
        try:
            for monitor in self._monitors():
                found.setdefault(monitor.name, {})[monitor.version] = monitor
        except Exception as fault:
            self._log(fault, "the function that returns the monitors")
            return None
        return found

    def _record(
        self,
        row: Mapping[str, Any],
        label: _Label,
        by_model: Mapping[str, Mapping[str, LabelledMonitor]] | None,
        deadline: float,
    ) -> dict[str, Any]:
        """Gives one label to its monitors."""
        if by_model is None:
            return _rejected(row, "internal error")
        versions = by_model.get(label.model)
        if versions is None:
            return _rejected(row, _unknown("model", label.model, by_model))
        if label.version is not None and label.version not in versions:
            return _rejected(row, _unknown(f"version of {_shown(label.model)}", label.version, versions))
        told = [
            self._tell(monitor, label, deadline) for monitor in self._addressees(versions, label)
        ]  # one at least, for no model is known without a monitor
        worst = min(told, key=lambda one: _WORST_FIRST.index(one["outcome"]))
        outcome = {"id": row["id"], "model": label.model, **worst}
        if len(told) > 1:
            outcome.update(version=None, versions=told)
        return outcome

    def _addressees(self, versions: Mapping[str, LabelledMonitor], label: _Label) -> list[LabelledMonitor]:
        """The monitor of the version; else all that know the prediction; else the one made last, which may yet."""
        if label.version is not None:
            return [versions[label.version]]
        *_, last = versions.values()
        if len(versions) == 1:
            return [last]
        return [monitor for monitor in versions.values() if self._awaits(monitor, label)] or [last]

    def _awaits(self, monitor: LabelledMonitor, label: _Label) -> bool:
        try:
            return monitor.awaits_label(label.id)
        except Exception as fault:
            self._log(fault, "awaits_label", monitor.name, monitor.version)
            return False

    def _tell(self, monitor: LabelledMonitor, label: _Label, deadline: float) -> dict[str, Any]:
        """What one monitor says, as a part of the answer."""
        told: dict[str, Any] = {"version": monitor.version}
        try:
            left = max(0.0, deadline - time.monotonic())
            outcome = LabelOutcome(monitor.record_label(label.id, label.label, timestamp=label.timestamp, wait=left))
        except Exception as fault:
            # Ours, not the client's; but the next label may fare better, and the service is not to suffer from it.
            self._log(fault, "record_label", monitor.name, monitor.version)
            return {**told, "outcome": LabelOutcome.REJECTED, "error": "internal error"}
        told["outcome"] = outcome
        if outcome is LabelOutcome.REJECTED:
            told["error"] = "The monitor of this model cannot use the label; the log of the service says why."
        return told

    def _log(self, fault: Exception, *where: str) -> None:
        """Once for each kind of fault. Not the exception's text, in which the label or the id may be."""
        last = fault.__traceback__
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        place = f"{last.tb_frame.f_code.co_filename}:{last.tb_lineno}" if last is not None else "unknown"
        key = (*where, type(fault).__name__, place)
        if key in self._faults or len(self._faults) >= _MAX_FAULTS_LOGGED:
            return
        self._faults.add(key)
        _logger.error("Labels over HTTP: %s failed with %s at %s; not logged again.", " ".join(where), *key[-2:])


def _rejected(row: Any, error: str) -> dict[str, Any]:
    row = row if isinstance(row, dict) else {}
    id, model = row.get("id"), row.get("model")
    return {
        "id": id if _is_id(id) else None,
        "model": model if isinstance(model, str) else None,
        "version": None,
        "outcome": LabelOutcome.REJECTED,
        "error": error,
    }


# One label


class _Label(NamedTuple):
    model: str
    version: str | None
    id: str | int
    label: Any
    timestamp: float | None


class _MalformedError(Exception):
    """One label is not as described."""


def _read(row: Any, overflows: bool) -> _Label:
    """
    One label of a body.

    Args:
        row: Whatever JSON has.
        overflows: Whether there is a number in the body that no float64 can be.

    Raises:
        _MalformedError: If it is not as described; says what was expected, and what came.
    """
    if not isinstance(row, dict):
        raise _MalformedError(f"A label must be an object with {', '.join(REQUIRED)}, got {_shown(row)}.")
    for field in row:
        if field not in FIELDS:
            raise _MalformedError(_unknown("field", field, FIELDS))
    missing = [field for field in REQUIRED if field not in row]
    if missing:
        raise _MalformedError(f"A label must have {', '.join(REQUIRED)}; {' and '.join(missing)} missing.")
    model, version, id, timestamp = row["model"], row.get("version"), row["id"], row.get("timestamp")
    if not isinstance(model, str):
        raise _MalformedError(f"model must be a string, got {_shown(model)}.")
    if version is not None and not isinstance(version, str):
        raise _MalformedError(f"version must be a string, got {_shown(version)}. Write it in quotes.")
    if not _is_id(id):
        raise _MalformedError(f"{_EXPECTED_ID}, got {_shown(id)}. Longer integers may be written in quotes.")
    if row["label"] is None:
        raise _MalformedError("label must be a value, got null. Send it when it is known.")
    if timestamp is not None and not _is_timestamp(timestamp):
        raise _MalformedError(
            f"timestamp must be seconds since 1970, in [0, {MAX_TIMESTAMP}], got {_shown(timestamp)}. "
            "If these are milliseconds, divide by 1000."
        )
    if overflows and not _is_finite(row["label"]):
        raise _MalformedError("label must have numbers that a float64 can be, got one that is too large.")
    return _Label(model, version, int(id) if isinstance(id, float) else id, row["label"], timestamp)


_EXPECTED_ID = "id must be a non-empty string of at most 1024 characters without NUL, or an integer of 64 bits"


def _is_id(value: Any) -> bool:
    if isinstance(value, float):  # in JSON 1.0 is an integer; beyond 2**53 it is not known which
        return value.is_integer() and abs(value) <= 2**53
    if isinstance(value, int):
        return not isinstance(value, bool) and MIN_ID <= value <= MAX_ID
    return id_text(value) is not None


def _is_timestamp(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= MAX_TIMESTAMP


def _is_finite(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def _shown(value: Any) -> str:
    """
    A value for a message, as JSON has it.

    >>> _shown(None), _shown("x" * 500) == '"' + "x" * 78 + "…", _shown([[1], [2]])
    ('null', True, 'an array')
    """
    if isinstance(value, (list, dict)):
        return "an array" if isinstance(value, list) else "an object"
    text = json.dumps(value[:80] if isinstance(value, str) else value)
    return text if len(text) <= 80 else text[:79] + "…"


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    """
    What to say of a name that is not known. Without a guess what was meant, for guesses take seconds for 10,000 labels.

    >>> _unknown("model", "frod", ["fraud", "churn"])
    'Unknown model "frod". Known: "fraud", "churn".'
    """
    names = list(itertools.islice(known, 11))
    shown = ", ".join(map(_shown, names[:10])) or "none"
    return f"Unknown {what} {_shown(name)}. Known: {shown}{', …' if len(names) > 10 else ''}."


# The body


class _UnreadableError(Exception):
    """The body as a whole cannot be read."""


def _rows_of(body: bytes) -> tuple[list[Any], bool]:
    """
    The labels of a body, not looked at yet; and whether there is a number in it that no float64 can be.

    Raises:
        _UnreadableError: If it is not JSON, or something else than labels.
    """
    content, overflows = _parse(body)
    if isinstance(content, dict) and "labels" in content:
        others = [name for name in content if name != "labels"]
        if others:
            raise _UnreadableError(f"Beside labels there must be nothing else in the object, got {_shown(others[0])}.")
        content = content["labels"]
        if not isinstance(content, list):
            raise _UnreadableError(f"labels must be an array, got {_shown(content)}.")
    if isinstance(content, dict):
        return [content], overflows
    if isinstance(content, list):
        return content, overflows
    raise _UnreadableError(f"The body must be a label, or an array of labels, got {_shown(content)}.")


def _parse(body: bytes) -> tuple[Any, bool]:
    overflows = False

    def to_float(text: str) -> float:
        nonlocal overflows
        number = float(text)
        overflows = overflows or math.isinf(number)
        return number

    if _is_deep(body):
        raise _UnreadableError(f"The body must not be nested deeper than {MAX_DEPTH} arrays and objects.")
    try:
        content = json.loads(
            body.decode(),
            object_pairs_hook=_without_duplicates,
            parse_constant=_no_constant,
            parse_float=to_float,
        )
        if b"\\ud" in body.lower():  # perhaps half a character, which no store can write
            json.dumps(content, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        raise _UnreadableError("The body must be UTF-8, and is not.") from None
    except UnicodeEncodeError:
        raise _UnreadableError("The body must be Unicode, got half of a surrogate pair.") from None
    except json.JSONDecodeError as fault:
        raise _UnreadableError(f"The body must be JSON: {fault}.") from None
    except ValueError:  # more digits than Python reads, see sys.set_int_max_str_digits
        raise _UnreadableError("The body has an integer with too many digits.") from None
    return content, overflows


def _is_deep(body: bytes) -> bool:
    """
    Whether JSON is nested deeper than `MAX_DEPTH`.

    Asked before it is parsed, because how deep the parser can go depends on Python and on the stack of the thread.

    Cost: about 40 ms for a megabyte of labels.

    >>> _is_deep(b'[{"a": "[[[["}, []]' + b"[]" * 100), _is_deep(b"[" * 100)
    (False, True)
    """
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return False
    # Without escaped quotes, every second part is outside of strings.
    outside = body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2]
    brackets = b"".join(outside).translate(_ALL_SQUARE, _NO_BRACKETS)
    for _ in range(MAX_DEPTH):
        outer = brackets.replace(b"[]", b"")
        if len(outer) == len(brackets):  # nothing left, or no JSON: the parser will say why, if it can go so deep
            return outer.count(b"[") > MAX_DEPTH
        brackets = outer
    return bool(brackets)


_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_ALL_SQUARE = bytes.maketrans(b"{}", b"[]")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        raise _UnreadableError(f"An object must not have a name twice, got {_shown(name)}.")
    return found


def _no_constant(name: str) -> float:
    raise _UnreadableError(f"The body must be JSON, which has no {name}.")


# The arguments


def _digest(token: bytes) -> bytes:
    # Of one length, so that the comparison says nothing of a token's.
    return hashlib.sha256(token).digest()


def _digests(token: str | Sequence[str] | None) -> tuple[bytes, ...] | None:
    """What is kept of the tokens; None if none is asked for."""
    if token is None:
        return None
    tokens = [token] if isinstance(token, (str, bytes)) else list(token)
    if not tokens:
        raise ValueError("token must be a token or several, got none. For no authentication write token=None.")
    for one in tokens:
        # Its text is no part of the messages, which end in logs.
        if not isinstance(one, str):
            raise TypeError(f"token must be a string or several, got {type(one).__name__}.")
        if not one.strip():
            raise ValueError(
                "token must not be blank: is the environment variable set that it comes from? "
                "For no authentication write token=None."
            )
        if not (one.isascii() and one.isprintable()) or " " in one:
            raise ValueError(
                "token must be printable ASCII without spaces, or no client can send it. "
                "If it comes from a file, strip() the end of line."
            )
    return tuple(_digest(one.encode()) for one in tokens)


def _source(monitors: Monitors | None) -> Callable[[], Iterable[LabelledMonitor]]:
    if monitors is None:
        return lambda: monitors_of_this_process()  # looked up when it is needed
    if callable(monitors):
        return monitors
    example = "Write labels_app([monitor], token=...), or None for all monitors of this process."
    if not isinstance(monitors, Iterable):
        raise TypeError(f"monitors must be monitors, or a function that returns them, got {monitors!r}. {example}")
    fixed = tuple(monitors)
    for monitor in fixed:
        if not all(hasattr(monitor, name) for name in ("name", "version", "awaits_label", "record_label")):
            raise TypeError(f"monitors must be monitors, got {monitor!r} ({type(monitor).__name__}). {example}")
    return lambda: fixed


def _at_least_one(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{what} must be a whole number >= 1, got {value!r} ({type(value).__name__}).")
    return value


def _seconds(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"{what} must be seconds >= 0, got {value!r} ({type(value).__name__}).")
    return float(value)
