"""
What both applications open to: who may come in, which monitor a label is for, and what is answered.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from otel_model_metrics.ground_truth.outcomes import LabelOutcome
from otel_model_metrics.labels_http.body import (
    LabelRow,
    MalformedError,
    UnreadableError,
    is_id,
    read_label,
    rows_of,
    shown,
    unknown,
)
from otel_model_metrics.labels_http.openapi import LABELS_PATH, METHODS, OPENAPI_PATH, describe
from otel_model_metrics.monitors import all_monitors

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
# A version that comes and goes with each deployment must not make this grow for ever.
_MAX_FAULTS_LOGGED = 100


class LabelledMonitor(Protocol):
    """What is needed of a monitor: every monitor has it."""

    @property
    def name(self) -> str:
        """Name of the model."""

    @property
    def version(self) -> str:
        """Its version."""

    def awaits_label(self, id: Any, /, *, wait: float) -> bool:
        """Whether a prediction with this id is known; waits at most so many seconds for a store elsewhere."""

    def record_label_each(
        self, ids: Any, labels: Any, /, *, timestamps: Any = None, wait: float | None = None
    ) -> list[LabelOutcome]:
        """Takes labels, and says what becomes of each; waits at most so many seconds for a store elsewhere."""


Monitors = Iterable[LabelledMonitor] | Callable[[], Iterable[LabelledMonitor]]


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


def refusal(status: int, error: str, *headers: tuple[str, str]) -> Answer:
    """The answer to a request that is not taken."""
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
            return refusal(404, f"There is nothing at this path. Known: {known}.")
        allow = ("Allow", ", ".join(METHODS[path]))
        if method == "OPTIONS":
            return Answer(204, (allow,), b"")
        if method not in METHODS[path]:
            return refusal(405, f"{path} does not answer this method, only {allow[1]}.", allow)
        if path == OPENAPI_PATH:
            secured = self._tokens is not None
            return _answer(
                200,
                describe(prefix=prefix, secured=secured, max_labels=self._max_labels, max_body=self.max_body),
            )
        refused = self._unauthorized(headers)
        return self._unreadable(headers) if refused is None else refused

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
            rows, overflows = rows_of(body)
        except UnreadableError as unreadable:
            return refusal(400, str(unreadable))
        if len(rows) > self._max_labels:
            return refusal(
                413, f"A request may bring {self._max_labels} labels, got {len(rows)}. Send them in several requests."
            )
        deadline = time.monotonic() + self._wait
        by_model = self._by_model()
        outcomes: list[dict[str, Any]] = [{}] * len(rows)
        read: dict[int, LabelRow] = {}
        for place, row in enumerate(rows):
            try:
                read[place] = read_label(row, overflows)
            except MalformedError as reason:
                outcomes[place] = _rejected(row, str(reason))
        malformed = len(rows) - len(read)
        # Labels of one monitor go to it together, in their order: a store outside the process takes them at once.
        for_monitor: dict[int, tuple[LabelledMonitor, list[int]]] = {}
        for place, label in read.items():
            addressees = self._addressees(rows[place], label, by_model, deadline)
            if isinstance(addressees, dict):
                outcomes[place] = addressees
                continue
            for monitor in addressees:
                for_monitor.setdefault(id(monitor), (monitor, []))[1].append(place)
        told: dict[int, list[dict[str, Any]]] = {}
        for monitor, places in for_monitor.values():
            for place, of_label in zip(places, self._tell(monitor, [read[p] for p in places], deadline), strict=True):
                told.setdefault(place, []).append(of_label)
        for place, of_monitors in told.items():
            worst = min(of_monitors, key=lambda one: _WORST_FIRST.index(one["outcome"]))
            outcomes[place] = {"id": rows[place]["id"], "model": read[place].model, **worst}
            if len(of_monitors) > 1:
                outcomes[place].update(version=None, versions=of_monitors)
        counts = Counter(outcome["outcome"] for outcome in outcomes)
        status = 422 if rows and malformed == len(rows) else 200
        return _answer(status, {"outcomes": outcomes, "counts": counts})

    def _unauthorized(self, headers: Mapping[str, str]) -> Answer | None:
        if self._tokens is None:
            return None
        given = headers.get("authorization")
        if given is None:
            challenge = ("WWW-Authenticate", 'Bearer realm="labels"')
            return refusal(401, "A token is needed: send the header Authorization: Bearer <token>.", challenge)
        scheme, _, token = given.partition(" ")
        digest = _digest(token.strip(" ").encode("latin-1", "replace"))
        # All are compared, so that the time taken does not say which of them is like it.
        matches = sum(hmac.compare_digest(digest, known) for known in self._tokens)
        if scheme.lower() == "bearer" and matches:
            return None
        challenge = ("WWW-Authenticate", 'Bearer realm="labels", error="invalid_token"')
        return refusal(401, "The Authorization header has no token that is known here.", challenge)

    def _unreadable(self, headers: Mapping[str, str]) -> Answer | None:
        encoding = headers.get("content-encoding", "").strip().lower()
        if encoding not in ("", "identity"):
            error = "Compressed bodies are not taken: send it without Content-Encoding."
            return refusal(415, error, ("Accept-Encoding", "identity"))
        kind, *parameters = (part.strip().lower() for part in headers.get("content-type", "").split(";"))
        charsets = {part.partition("=")[2].strip('"') for part in parameters if part.startswith("charset=")}
        if kind != "application/json" or not charsets <= {"utf-8", "utf8"}:
            error = "Content-Type must be application/json, in UTF-8."
            return refusal(415, error, ("Accept-Post", "application/json"))
        length = headers.get("content-length")
        if length is None:
            return None
        if not (length.isascii() and length.isdigit()):
            return refusal(400, "Content-Length must be a number of bytes.")
        # Its digits are counted first, because Python refuses to read very long numbers.
        return self._too_large() if len(length) > 18 or int(length) > self.max_body else None

    def _too_large(self) -> Answer:
        return refusal(413, f"A request may bring {self.max_body} bytes. Send the labels in several requests.")

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

    def _addressees(
        self,
        row: Mapping[str, Any],
        label: LabelRow,
        by_model: Mapping[str, Mapping[str, LabelledMonitor]] | None,
        deadline: float,
    ) -> list[LabelledMonitor] | dict[str, Any]:
        """
        The monitor of the version; else all that know the prediction; else the one made last, which may yet. Or the
        answer, if there is none.
        """
        if by_model is None:
            return _rejected(row, "internal error")
        versions = by_model.get(label.model)
        if versions is None:
            return _rejected(row, unknown("model", label.model, by_model))
        if label.version is not None:
            if label.version not in versions:
                return _rejected(row, unknown(f"version of {shown(label.model)}", label.version, versions))
            return [versions[label.version]]
        *_, last = versions.values()
        if len(versions) == 1:
            return [last]
        return [monitor for monitor in versions.values() if self._awaits(monitor, label, deadline)] or [last]

    def _awaits(self, monitor: LabelledMonitor, label: LabelRow, deadline: float) -> bool:
        try:
            return monitor.awaits_label(label.id, wait=max(0.0, deadline - time.monotonic()))
        except Exception as fault:
            self._log(fault, "awaits_label", monitor.name, monitor.version)
            return False

    def _tell(self, monitor: LabelledMonitor, labels: Sequence[LabelRow], deadline: float) -> list[dict[str, Any]]:
        """What one monitor says of each label, as a part of the answer."""
        left = max(0.0, deadline - time.monotonic())
        try:
            times = [label.timestamp for label in labels]
            outcomes = monitor.record_label_each(
                [label.id for label in labels],
                [label.label for label in labels],
                timestamps=None if times.count(None) == len(times) else times,
                wait=left,
            )
            told: list[dict[str, Any]] = [
                {"version": monitor.version, "outcome": LabelOutcome(outcome)} for outcome in outcomes
            ]
        except Exception as fault:
            # Ours, not the client's; but the next monitor may fare better, and the service is not to suffer from it.
            self._log(fault, "record_label_each", monitor.name, monitor.version)
            told = [{"version": monitor.version, "outcome": LabelOutcome.REJECTED, "error": "internal error"}] * len(
                labels
            )
        for one in told:
            if one["outcome"] is LabelOutcome.REJECTED:
                one.setdefault(
                    "error", "The monitor of this model cannot use the label; the log of the service says why."
                )
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
        "id": id if is_id(id) else None,
        "model": model if isinstance(model, str) else None,
        "version": None,
        "outcome": LabelOutcome.REJECTED,
        "error": error,
    }


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
        return all_monitors
    if callable(monitors):
        return monitors
    example = "Write labels_app([monitor], token=...), or None for all monitors of this process."
    if not isinstance(monitors, Iterable):
        raise TypeError(f"monitors must be monitors, or a function that returns them, got {monitors!r}. {example}")
    fixed = tuple(monitors)
    for monitor in fixed:
        if not all(hasattr(monitor, name) for name in ("name", "version", "awaits_label", "record_label_each")):
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
