"""Labels come in over HTTP: the same answers through ASGI and WSGI, mounted or alone, whatever is sent."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import json
import logging
import subprocess
import sys
import textwrap
import threading
import wsgiref.util
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from backends import free_port, running
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_model_metrics import BinaryMonitor, RankingMonitor, labels_app, labels_wsgi_app
from otel_model_metrics.ground_truth.outcomes import LabelOutcome
from otel_model_metrics.labels_http import endpoint
from otel_model_metrics.labels_http.endpoint import LabelsEndpoint

TOKEN = "s3cret-token"
JSON = {"content-type": "application/json", "authorization": f"Bearer {TOKEN}"}
GOOD = {"model": "fraud", "id": "txn-1", "label": True}


class FakeMonitor:
    """
    Remembers what it is told.

    Args:
        name, version: As those of a monitor.
        awaits: Ids of the predictions it knows.
        outcome: What becomes of every label, or a function that says so.
    """

    def __init__(
        self,
        name: str = "fraud",
        version: str = "1",
        awaits: Iterable[Any] = (),
        outcome: LabelOutcome | Callable[[], LabelOutcome] = LabelOutcome.MATCHED,
    ) -> None:
        self.name = name
        self.version = version
        self.told: list[tuple[Any, Any]] = []
        self.details: list[dict[str, Any]] = []
        self._awaits = set(awaits)
        self._outcome = outcome

    def awaits_label(self, id: Any, *, wait: float) -> bool:
        return id in self._awaits

    def record_label_each(self, ids: Any, labels: Any, *, timestamps: Any = None, wait: float) -> list[LabelOutcome]:
        self.told += zip(ids, labels, strict=True)
        self.details += [{"timestamp": time, "wait": wait} for time in timestamps or [None] * len(ids)]
        return [self._outcome if isinstance(self._outcome, LabelOutcome) else self._outcome() for _ in ids]


class Answered:
    """What came back."""

    def __init__(self, status: int, headers: Iterable[tuple[str, str]], body: bytes) -> None:
        self.status = status
        self.headers = {name.lower(): value for name, value in headers}
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def outcomes(self) -> list[str]:
        return [outcome["outcome"] for outcome in self.json["outcomes"]]


def content(body: Any) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()


def scope_of(method: str, path: str, headers: dict[str, str], **more: Any) -> dict[str, Any]:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    return {"type": "http", "method": method, "path": path, "headers": raw, "http_version": "1.1", **more}


def call_asgi(app: Any, scope: dict[str, Any], messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What an ASGI application sends when it receives these messages, of which it takes as many as it wants."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent


def ask_asgi(app: Any, method: str, path: str, headers: dict[str, str], body: bytes, **more: Any) -> Answered:
    # In two parts, as they come over a network.
    parts = [{"type": "http.request", "body": body[:7], "more_body": True}, {"type": "http.request", "body": body[7:]}]
    start, rest = call_asgi(app, scope_of(method, path, headers, **more), parts)
    raw = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in start["headers"]]
    return Answered(start["status"], raw, rest["body"])


def environ_of(method: str, path: str, headers: dict[str, str], stream: Any, **more: Any) -> dict[str, Any]:
    environ: dict[str, Any] = {"REQUEST_METHOD": method, "PATH_INFO": path, "wsgi.input": stream, **more}
    wsgiref.util.setup_testing_defaults(environ)
    for name, value in headers.items():
        key = name.upper().replace("-", "_")
        environ[key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"] = value
    return environ


def call_wsgi(app: Any, environ: dict[str, Any]) -> Answered:
    started: list[Any] = []
    body = b"".join(app(environ, lambda status, headers: started.extend((status, headers))))
    return Answered(int(started[0].split()[0]), started[1], body)


def ask_wsgi(app: Any, method: str, path: str, headers: dict[str, str], body: bytes, **more: Any) -> Answered:
    headers = {"content-length": str(len(body)), **headers}
    return call_wsgi(app, environ_of(method, path, headers, io.BytesIO(body), **more))


class Service:
    """One of the two applications, and how to ask it."""

    def __init__(self, make: Callable[..., Any], ask: Callable[..., Answered]) -> None:
        self.make = make
        self._ask = ask
        self.app: Any = None

    def has(self, *monitors: FakeMonitor, **arguments: Any) -> Service:
        self.app = self.make(monitors, **{"token": TOKEN, **arguments})
        return self

    def ask(self, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> Answered:
        return self._ask(self.app, method, path, headers, body)

    def post(self, body: Any, **headers: str) -> Answered:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.ask("POST", "/v1/labels", {**JSON, **given}, content(body))


DOORS = {"asgi": (labels_app, ask_asgi), "wsgi": (labels_wsgi_app, ask_wsgi)}


@pytest.fixture(params=DOORS)
def service(request) -> Service:
    return Service(*DOORS[request.param])


# What is taken


def test_one_label_is_answered_with_its_outcome(service):
    """
    A single object is enough.
    """
    fraud = FakeMonitor()

    answer = service.has(fraud).post(GOOD)

    outcome = {"id": "txn-1", "model": "fraud", "version": "1", "outcome": "matched"}
    assert (200, {"outcomes": [outcome], "counts": {"matched": 1}}) == (answer.status, answer.json)
    assert [("txn-1", True)] == fraud.told


@pytest.mark.parametrize("envelope", [lambda rows: rows, lambda rows: {"labels": rows}], ids=["array", "object"])
def test_many_labels_are_answered_in_the_order_sent(service, envelope):
    """
    In an array, or in an object around it; each goes to the monitor of its model and version.
    """
    monitors = [FakeMonitor("fraud", "1"), FakeMonitor("fraud", "2"), FakeMonitor("churn", "1")]
    monitors[2]._outcome = LabelOutcome.PENDING
    rows = [{"model": "churn", "id": 7, "label": False}, {**GOOD, "version": "2"}, {**GOOD, "version": "1"}]

    answer = service.has(*monitors).post(envelope(rows))

    assert (200, ["pending", "matched", "matched"]) == (answer.status, answer.outcomes)
    assert {"pending": 1, "matched": 2} == answer.json["counts"]
    assert ["1", "2", "1"] == [outcome["version"] for outcome in answer.json["outcomes"]]
    assert [[("txn-1", True)], [("txn-1", True)], [(7, False)]] == [monitor.told for monitor in monitors]


@pytest.mark.parametrize("body", [[], {"labels": []}], ids=["array", "object"])
def test_no_labels_are_no_error(service, body):
    """
    A job that has nothing to say today says so.
    """
    answer = service.has().post(body)

    assert (200, {"outcomes": [], "counts": {}}) == (answer.status, answer.json)


@pytest.mark.parametrize(
    "label", [0, 0.5, "", "cat", False, [], ["a", "b"], {"a": [{"b": None}]}, [[["x"]]]], ids=json.dumps
)
def test_the_label_reaches_the_monitor_as_it_was_sent(service, label):
    """
    Any JSON value but null: which of them are labels is for the monitor to say.
    """
    fraud = FakeMonitor()

    service.has(fraud).post({**GOOD, "label": label})

    assert [("txn-1", label)] == fraud.told
    assert type(label) is type(fraud.told[0][1])


def test_a_timestamp_reaches_the_monitor_and_is_not_needed(service):
    """
    Null is the same as none, for time and version: many clients write all fields.
    """
    fraud = FakeMonitor()

    service.has(fraud).post(
        [{**GOOD, "timestamp": 1_790_000_000.5}, GOOD, {**GOOD, "timestamp": None, "version": None}]
    )

    assert [1_790_000_000.5, None, None] == [details["timestamp"] for details in fraud.details]


def test_a_whole_number_is_an_id_however_it_is_written(service):
    """
    JSON has only numbers; clients in JavaScript or pandas may write 7 as 7.0.
    """
    fraud = FakeMonitor()

    answer = service.has(fraud).post(b'[{"model": "fraud", "id": 7.0, "label": 1}]')

    assert 200 == answer.status
    assert ["7"] == [str(id) for id, _ in fraud.told]


@pytest.mark.parametrize("id", [0, 2**63 - 1, -(2**63), "0", " ", "𝄞" * 1024], ids=lambda id: repr(id)[:12])
def test_the_longest_ids_are_taken(service, id):
    """
    And come back as they were sent.
    """
    fraud = FakeMonitor()

    answer = service.has(fraud).post({**GOOD, "id": id})

    assert [(id, True)] == fraud.told
    assert (200, id) == (answer.status, answer.json["outcomes"][0]["id"])


@pytest.mark.parametrize("outcome", LabelOutcome, ids=str)
def test_every_outcome_can_be_answered(service, outcome):
    """
    Also those that may yet be added.
    """
    answer = service.has(FakeMonitor(outcome=outcome)).post(GOOD)

    assert (200, [outcome.value], {outcome.value: 1}) == (answer.status, answer.outcomes, answer.json["counts"])
    assert (outcome is LabelOutcome.REJECTED) == ("error" in answer.json["outcomes"][0])


# Which version


def test_without_a_version_all_that_know_the_prediction_get_the_label(service):
    """
    A shadow model predicts under the same id; its label comes once.
    """
    first, second, third = monitors = [
        FakeMonitor(version=v, awaits=ids) for v, ids in [("1", "a"), ("2", "ab"), ("3", "")]
    ]

    answer = service.has(*monitors).post([{**GOOD, "id": "a"}, {**GOOD, "id": "b"}])

    told = [{"version": "1", "outcome": "matched"}, {"version": "2", "outcome": "matched"}]
    assert [
        {"id": "a", "model": "fraud", "version": None, "outcome": "matched", "versions": told},
        {"id": "b", "model": "fraud", "version": "2", "outcome": "matched"},
    ] == answer.json["outcomes"]
    assert {"matched": 2} == answer.json["counts"]
    assert [["a"], ["a", "b"], []] == [[id for id, _ in one.told] for one in (first, second, third)]


def test_a_label_nobody_knows_yet_waits_in_the_version_made_last(service):
    """
    The prediction that comes later is most likely that of the newest version.
    """
    old, new = FakeMonitor(version="1"), FakeMonitor(version="2", outcome=LabelOutcome.PENDING)

    answer = service.has(old, new).post(GOOD)

    assert ([], [("txn-1", True)], ["pending"]) == (old.told, new.told, answer.outcomes)


def test_of_several_outcomes_the_one_that_needs_most_attention_is_told(service):
    """
    Whoever looks only at the first level does not miss it.
    """
    versions = [LabelOutcome.DUPLICATE, LabelOutcome.REJECTED, LabelOutcome.MATCHED]
    monitors = [FakeMonitor(version=str(v), awaits=["txn-1"], outcome=o) for v, o in enumerate(versions)]

    (outcome,) = service.has(*monitors).post(GOOD).json["outcomes"]

    assert "rejected" == outcome["outcome"]
    assert ["duplicate", "rejected", "matched"] == [one["outcome"] for one in outcome["versions"]]


def test_each_outcome_has_its_place_among_the_others():
    """
    A new one must be given it, or a label for several versions would fail.
    """
    assert set(LabelOutcome) == set(endpoint._WORST_FIRST)


def test_monitors_made_later_are_found_if_a_function_says_them(service):
    """
    It is asked at every request.
    """
    monitors: list[FakeMonitor] = []
    service.app = service.make(lambda: monitors, token=TOKEN)

    before = service.post(GOOD).json["outcomes"][0]
    monitors.append(FakeMonitor())
    after = service.post(GOOD).json["outcomes"][0]

    assert 'Unknown model "fraud". Known: none.' == before["error"]
    assert "matched" == after["outcome"]


# Which labels are bad

BAD_ROWS = {
    "no object": (3, "A label must be an object with model, id, label, got 3."),
    "array": ([GOOD], "A label must be an object with model, id, label, got an array."),
    "unknown field": (
        {**GOOD, "lable": 1},
        'Unknown field "lable". Known: "model", "version", "id", "label", "timestamp".',
    ),
    "nothing": ({}, "A label must have model, id, label; model and id and label missing."),
    "no id": ({"model": "fraud", "label": True}, "A label must have model, id, label; id missing."),
    "model": ({**GOOD, "model": None}, "model must be a string, got null."),
    "version": ({**GOOD, "version": 2}, "version must be a string, got 2. Write it in quotes."),
    "null": ({**GOOD, "label": None}, "label must be a value, got null. Send it when it is known."),
    **{
        f"id {shown[:12]}": (
            {**GOOD, "id": id},
            "id must be a non-empty string of at most 1024 characters without NUL, or an integer of 64 bits, "
            f"got {shown}. Longer integers may be written in quotes.",
        )
        for id, shown in [
            ("", '""'),
            (None, "null"),
            (True, "true"),
            (1.5, "1.5"),
            (1e17, "1e+17"),  # a float64 here has left out odd numbers, so it may have been another id
            (2**63, str(2**63)),
            ("a\0", '"a\\u0000"'),
            ("x" * 1025, '"' + "x" * 78 + "…"),
            ([1], "an array"),
            ({}, "an object"),
        ]
    },
    **{
        f"timestamp {shown}": (
            {**GOOD, "timestamp": timestamp},
            f"timestamp must be seconds since 1970, in [0, 100000000000], got {shown}. "
            "If these are milliseconds, divide by 1000.",
        )
        for timestamp, shown in [
            (1_790_000_000_000, "1790000000000"),
            (-1, "-1"),
            ("2026-11-24", '"2026-11-24"'),
            (True, "true"),
        ]
    },
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_bad_label_is_rejected_alone(service, kind):
    """
    The answer says what was expected and what came; the others are kept. If there are no others it is 422.
    """
    row, error = BAD_ROWS[kind]
    fraud = FakeMonitor()
    service.has(fraud)

    among_others = service.post([GOOD, row, GOOD])
    alone = service.post([row])

    assert (200, ["matched", "rejected", "matched"]) == (among_others.status, among_others.outcomes)
    assert error == among_others.json["outcomes"][1]["error"]
    assert {"matched": 2, "rejected": 1} == among_others.json["counts"]
    assert (422, {"rejected": 1}) == (alone.status, alone.json["counts"])
    assert 2 == len(fraud.told)


def test_a_number_that_no_float_can_be_is_rejected_alone(service):
    """
    Python reads 1e999 as infinity, which is no JSON and no label.
    """
    row = '{"model": "fraud", "id": 1, "label": %s}'
    body = f"[{row % '1e999'}, {row % '[-1e999]'}, {row % '1e99'}]".encode()

    answer = service.has(FakeMonitor()).post(body)

    assert ["rejected", "rejected", "matched"] == answer.outcomes
    assert (
        "label must have numbers that a float64 can be, got one that is too large."
        == answer.json["outcomes"][0]["error"]
        == answer.json["outcomes"][1]["error"]
    )


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({**GOOD, "model": "frod"}, 'Unknown model "frod". Known: "fraud", "churn".'),
        ({**GOOD, "version": "3"}, 'Unknown version of "fraud" "3". Known: "1", "2".'),
    ],
    ids=["model", "version"],
)
def test_a_model_or_version_that_is_not_known_is_rejected_with_200(service, row, error):
    """
    The request was as described; that the model has gone is no fault of its form.
    """
    monitors = [FakeMonitor("fraud", "1"), FakeMonitor("fraud", "2"), FakeMonitor("churn", "1")]

    answer = service.has(*monitors).post(row)

    expected = {"id": "txn-1", "model": row["model"], "version": None, "outcome": "rejected", "error": error}
    assert (200, [expected]) == (answer.status, answer.json["outcomes"])


# Which bodies are bad

BAD_BODIES = {
    "empty": (b"", "The body must be JSON: Expecting value: line 1 column 1 (char 0)."),
    "no JSON": (b"id=1", "The body must be JSON: Expecting value: line 1 column 1 (char 0)."),
    "cut off": (
        content([GOOD] * 100)[:-1],
        "The body must be JSON: Expecting ',' delimiter: line 1 column 5000 (char 4999).",
    ),
    "NaN": (b'{"model": "fraud", "id": 1, "label": NaN}', "The body must be JSON, which has no NaN."),
    "infinity": (b'[{"label": -Infinity}]', "The body must be JSON, which has no -Infinity."),
    "a name twice": (b'{"id": 1, "id": 2}', 'An object must not have a name twice, got "id".'),
    "deep": (b"[" * 100_000, "The body must not be nested deeper than 64 arrays and objects."),
    "deep label": (
        b'{"model": "fraud", "id": 1, "label": ' + b'[{"a": ' * 40 + b"1" + b"}]" * 40 + b"}",
        "The body must not be nested deeper than 64 arrays and objects.",
    ),
    "half a character": (rb'{"id": "\uDc00"}', "The body must be Unicode, got half of a surrogate pair."),
    "half a name": (rb'{"\ud83d": 1}', "The body must be Unicode, got half of a surrogate pair."),
    "encoded surrogate": (b'{"id": "\xed\xa0\x80"}', "The body must be UTF-8, and is not."),
    "Latin-1": ('{"id": "ä"}'.encode("latin-1"), "The body must be UTF-8, and is not."),
    "UTF-16": ('{"id": "a"}'.encode("utf-16"), "The body must be UTF-8, and is not."),
    "byte order mark": (
        b"\xef\xbb\xbf{}",
        "The body must be JSON: Unexpected UTF-8 BOM (decode using utf-8-sig): line 1 column 1 (char 0).",
    ),
    "many digits": (b'{"id": ' + b"9" * 5_000 + b"}", "The body has an integer with too many digits."),
    "no labels": (b"3", "The body must be a label, or an array of labels, got 3."),
    "null": (b"null", "The body must be a label, or an array of labels, got null."),
    "labels is no array": (b'{"labels": {}}', "labels must be an array, got an object."),
    "more than labels": (
        b'{"labels": [], "model": "fraud"}',
        'Beside labels there must be nothing else in the object, got "model".',
    ),
}


@pytest.mark.parametrize("kind", BAD_BODIES)
def test_a_body_that_cannot_be_read_is_400_and_nothing_of_it_is_taken(service, kind):
    """
    With what was wrong, and no word of Python.
    """
    body, error = BAD_BODIES[kind]
    fraud = FakeMonitor()

    answer = service.has(fraud).post(body)

    assert (400, {"error": error}, []) == (answer.status, answer.json, fraud.told)


def test_the_deepest_label_that_is_taken(service):
    """
    64 arrays and objects, brackets in strings and beside each other not counted.
    """
    deepest = b'{"model": "fraud", "id": "[[\\"[[\\\\", "label": ' + b"[" * 63 + b"[], []" + b"]" * 63 + b"}"

    assert 400 == service.has(FakeMonitor()).post(deepest).status
    assert 200 == service.post(deepest.replace(b"[], []", b"1, 2")).status


@pytest.mark.parametrize(
    "headers",
    [
        {"content_type": "text/plain"},
        {"content_type": "application/x-www-form-urlencoded"},
        {"content_type": ""},
        {"content_type": "application/json; charset=latin-1"},
        {"content_encoding": "gzip"},
    ],
    ids=str,
)
def test_another_content_type_or_a_compressed_body_is_415(service, headers):
    """
    A compressed body could be a thousand times what it seems, so the limit on bytes would mean nothing.
    """
    answer = service.has(FakeMonitor()).post(GOOD, **headers)

    expected = (
        "Compressed bodies are not taken: send it without Content-Encoding."
        if "content_encoding" in headers
        else "Content-Type must be application/json, in UTF-8."
    )
    assert (415, {"error": expected}) == (answer.status, answer.json)


@pytest.mark.parametrize("kind", ["application/json; charset=UTF-8", 'Application/JSON ;charset="utf-8"'])
def test_json_in_utf_8_may_be_spelled_in_several_ways(service, kind):
    """
    Names of media types and charsets have no case.
    """
    assert 200 == service.has(FakeMonitor()).post(GOOD, content_type=kind).status


# How much


def test_a_body_of_exactly_the_limit_is_taken_and_one_byte_more_is_not(service):
    """
    413 says how many bytes may come.
    """
    fraud, body = FakeMonitor(), content(GOOD)

    exact = service.has(fraud, max_body=len(body)).post(body)
    more = service.post(body + b" ")

    error = f"A request may bring {len(body)} bytes. Send the labels in several requests."
    assert (200, 413, {"error": error}) == (exact.status, more.status, more.json)
    assert 1 == len(fraud.told)


def test_more_labels_than_allowed_are_413_and_none_of_them_is_taken(service):
    """
    Half a batch would be hard to send again.
    """
    fraud = FakeMonitor()

    more = service.has(fraud, max_labels=2).post([GOOD] * 3)

    error = "A request may bring 2 labels, got 3. Send them in several requests."
    assert (413, {"error": error}, []) == (more.status, more.json, fraud.told)
    assert 200 == service.post([GOOD] * 2).status


@pytest.mark.parametrize("length", ["1" * 5_000, "10000000", "1, 1", "-1", "1e3", "²"])
def test_a_length_beyond_the_limit_or_that_is_none_is_refused_without_reading(service, length):
    """
    Also one that Python would not read as a number.
    """
    answer = service.has(FakeMonitor()).post(GOOD, content_length=length)

    assert (413 if length.isascii() and length.isdigit() else 400) == answer.status


def test_asgi_stops_reading_at_the_limit_whatever_the_length_said():
    """
    A stream without an end is left alone after the limit.
    """
    messages = [{"type": "http.request", "body": b" " * 40, "more_body": True} for _ in range(1_000)]
    scope = scope_of("POST", "/v1/labels", {**JSON, "content-length": "3"})

    sent = call_asgi(labels_app([], token=TOKEN, max_body=100), scope, messages)

    assert (413, 997) == (sent[0]["status"], len(messages))


class Endless(io.RawIOBase):
    """A body without an end, which counts what is taken of it."""

    taken = 0

    def read(self, size: int = -1) -> bytes:
        assert size > 0, "read() without a size takes all there is"
        self.taken += size
        return b" " * size


def test_wsgi_stops_reading_at_the_limit_of_a_chunked_body():
    """
    One byte more than the limit is all it takes to know.
    """
    stream = Endless()
    environ = environ_of("POST", "/v1/labels", JSON, stream, **{"wsgi.input_terminated": True})

    answer = call_wsgi(labels_wsgi_app([], token=TOKEN, max_body=100_000), environ)

    assert (413, 100_001) == (answer.status, stream.taken)


def test_wsgi_reads_no_more_than_the_length_says():
    """
    What follows belongs to the next request, or never comes.
    """
    body, fraud = content(GOOD), FakeMonitor()
    stream = io.BytesIO(body + b"POST /next")
    environ = environ_of("POST", "/v1/labels", {**JSON, "content-length": str(len(body))}, stream)

    answer = call_wsgi(labels_wsgi_app([fraud], token=TOKEN), environ)

    assert (200, b"POST /next") == (answer.status, stream.read())


def test_wsgi_takes_a_chunked_body_where_the_server_says_where_it_ends():
    """
    As gunicorn does; of other servers it would have to guess, so they answer 411.
    """
    app, headers = labels_wsgi_app([FakeMonitor()], token=TOKEN), {**JSON, "transfer-encoding": "chunked"}

    ends = environ_of("POST", "/v1/labels", headers, io.BytesIO(content(GOOD)), **{"wsgi.input_terminated": True})
    may_not_end = environ_of("POST", "/v1/labels", headers, Endless())
    has_none = environ_of("POST", "/v1/labels", JSON, Endless())

    assert [200, 411, 400] == [call_wsgi(app, environ).status for environ in (ends, may_not_end, has_none)]


# Who may


@pytest.mark.parametrize(
    "authorization",
    [
        "Bearer wrong",
        f"Bearer {TOKEN}x",
        f"Basic {TOKEN}",
        TOKEN,
        "Bearer",
        "",
        f"Bearer {TOKEN}, Bearer {TOKEN}",
        "Bearer ä",
    ],
)
def test_a_wrong_token_is_401_and_nothing_is_taken(service, authorization):
    """
    Nor is anything of the body read.
    """
    fraud = FakeMonitor()

    answer = service.has(fraud).post(b"not even JSON", authorization=authorization)

    error = {"error": "The Authorization header has no token that is known here."}
    assert (401, error, []) == (answer.status, answer.json, fraud.told)
    assert 'Bearer realm="labels", error="invalid_token"' == answer.headers["www-authenticate"]


def test_without_a_token_the_answer_says_how_to_send_one(service):
    """
    401, before anything is said of the request.
    """
    answer = service.has(FakeMonitor()).ask("POST", "/v1/labels", {"content-type": "text/plain"})

    error = {"error": "A token is needed: send the header Authorization: Bearer <token>."}
    assert (401, error) == (answer.status, answer.json)
    assert 'Bearer realm="labels"' == answer.headers["www-authenticate"]


def test_two_authorization_headers_are_not_a_choice():
    """
    Of which another layer might have looked at the other one.
    """
    right, wrong = ((b"authorization", f"Bearer {token}".encode()) for token in (TOKEN, "other"))

    for both in ([right, wrong], [wrong, right]):
        scope = {**scope_of("POST", "/v1/labels", {}), "headers": both}
        assert 401 == call_asgi(labels_app([], token=TOKEN), scope, [])[0]["status"]


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
@pytest.mark.parametrize("token", ["old", "new"])
def test_several_tokens_are_good_at_once(service, scheme, token):
    """
    So that clients can be given a new one, one after the other.
    """
    service.has(FakeMonitor(), token=["old", "new"])

    assert 200 == service.post(GOOD, authorization=f"{scheme} {token}").status


def test_no_token_must_be_said(service):
    """
    Nobody is let in because a variable was not set.
    """
    with pytest.raises(TypeError, match="token"):
        service.make([])

    service.has(FakeMonitor(), token=None)
    assert 200 == service.ask("POST", "/v1/labels", {"content-type": "application/json"}, content(GOOD)).status


@pytest.mark.parametrize(
    ("token", "error"),
    [
        ("", "token must not be blank: is the environment variable set that it comes from? "
             "For no authentication write token=None."),
        (["good", " "], "token must not be blank: is the environment variable set that it comes from? "
                        "For no authentication write token=None."),
        ([], "token must be a token or several, got none. For no authentication write token=None."),
        ("pass-phrase\n", "token must be printable ASCII without spaces, or no client can send it. "
                          "If it comes from a file, strip() the end of line."),
        ("pass phrase", "token must be printable ASCII without spaces, or no client can send it. "
                        "If it comes from a file, strip() the end of line."),
    ],
    ids=repr,
)  # fmt: skip
def test_a_token_that_cannot_be_meant_is_an_error_which_does_not_show_it(service, token, error):
    """
    At once, not at the first request.
    """
    with pytest.raises(ValueError, match=r"^token") as raised:
        service.make([], token=token)

    assert error == str(raised.value)


def test_tokens_are_not_kept(service):
    """
    Nothing that shows the application can show them.
    """
    service.has(FakeMonitor())

    kept = repr(vars(service.app._endpoint))
    assert TOKEN not in kept
    assert TOKEN not in repr(service.app)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"max_body": 0}, "max_body must be a whole number >= 1, got 0 (int)."),
        ({"max_labels": 2.5}, "max_labels must be a whole number >= 1, got 2.5 (float)."),
        ({"wait": -1}, "wait must be seconds >= 0, got -1 (int)."),
        ({"wait": None}, "wait must be seconds >= 0, got None (NoneType)."),
    ],
    ids=str,
)
def test_limits_that_cannot_be_meant_are_errors(service, arguments, error):
    """
    With what was expected and what came.
    """
    with pytest.raises(ValueError, match="must be") as raised:
        service.make([], token=TOKEN, **arguments)

    assert error == str(raised.value)


@pytest.mark.parametrize(
    ("monitors", "error"),
    [
        (7, "monitors must be monitors, or a function that returns them, got 7. "),
        (["fraud"], "monitors must be monitors, got 'fraud' (str). "),
    ],
    ids=str,
)
def test_monitors_that_are_none_are_an_error(service, monitors, error):
    """
    With what to write.
    """
    with pytest.raises(TypeError) as raised:
        service.make(monitors, token=TOKEN)

    example = "Write labels_app([monitor], token=...), or None for all monitors of this process."
    assert error + example == str(raised.value)


# Other requests


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/v1/labels", 405, "OPTIONS, POST"),
        ("HEAD", "/v1/labels", 405, "OPTIONS, POST"),
        ("DELETE", "/v1/labels", 405, "OPTIONS, POST"),
        ("OPTIONS", "/v1/labels", 204, "OPTIONS, POST"),
        ("POST", "/openapi.json", 405, "GET, HEAD, OPTIONS"),
        ("OPTIONS", "/openapi.json", 204, "GET, HEAD, OPTIONS"),
        ("GET", "/v1/labels/", 404, None),
        ("GET", "", 404, None),
        ("GET", "/ml/v1/labels", 404, None),
    ],
)
def test_other_methods_and_paths(service, method, path, status, allow):
    """
    405 says which methods are answered, 404 which paths; neither needs a token.
    """
    answer = service.has().ask(method, path, {})

    assert (status, allow) == (answer.status, answer.headers.get("allow"))
    if status == 404:
        assert {"error": "There is nothing at this path. Known: /v1/labels, /openapi.json."} == answer.json


def test_the_description_needs_no_token_and_names_no_model(service):
    """
    What it says is the same for everyone.
    """
    service.has(FakeMonitor("very-secret-model"))

    got, head = (service.ask(method, "/openapi.json", {}) for method in ("GET", "HEAD"))

    assert (200, "3.1.0") == (got.status, got.json["openapi"])
    assert b"very-secret-model" not in got.body
    assert (200, b"", str(len(got.body))) == (head.status, head.body, head.headers["content-length"])


@pytest.mark.parametrize("token", [TOKEN, None])
def test_both_doors_describe_themselves_alike(token):
    """
    With the token only where one is asked for.
    """
    asgi, wsgi = (Service(*DOORS[door]).has(token=token).ask("GET", "/openapi.json", {}).json for door in DOORS)

    assert asgi == wsgi
    assert (token is not None) == ("securitySchemes" in asgi["components"])
    assert (token is not None) == ("401" in asgi["paths"]["/v1/labels"]["post"]["responses"])


# The host comes first


def test_a_fault_of_a_monitor_is_logged_once_and_costs_one_label(service, caplog):
    """
    Without the label and the id, which are the customers'.
    """

    def fail() -> LabelOutcome:
        raise RuntimeError("txn-1 has label 'private'")

    broken, sound = FakeMonitor("broken", outcome=fail), FakeMonitor("sound")
    rows = [{"model": model, "id": "txn-1", "label": "private"} for model in ("broken", "sound", "broken")]

    answer = service.has(broken, sound).post(rows)

    assert (200, ["rejected", "matched", "rejected"]) == (answer.status, answer.outcomes)
    assert "internal error" == answer.json["outcomes"][0]["error"]
    (record,) = caplog.records
    assert ("otel_model_metrics", logging.ERROR) == (record.name, record.levelno)
    assert record.getMessage().startswith("Labels over HTTP: record_label_each broken 1 failed with RuntimeError at ")
    assert "txn-1" not in caplog.text
    assert "private" not in caplog.text
    assert TOKEN not in caplog.text


def test_a_monitor_that_cannot_say_what_it_awaits_is_passed_over(service, caplog):
    """
    The others still get the label.
    """
    broken, sound = FakeMonitor(version="1"), FakeMonitor(version="2", awaits=["txn-1"])
    broken.awaits_label = lambda id, wait: 1 / 0

    answer = service.has(broken, sound).post(GOOD)

    assert (["matched"], "2") == (answer.outcomes, answer.json["outcomes"][0]["version"])
    assert 1 == len(caplog.records)


def test_a_function_that_fails_to_say_the_monitors_rejects_every_label(service, caplog):
    """
    Logged once, answered with 200.
    """
    service.app = service.make(lambda: 1 / 0, token=TOKEN)

    answer = service.post([GOOD, GOOD])

    assert (200, ["internal error"] * 2) == (answer.status, [one["error"] for one in answer.json["outcomes"]])
    assert 1 == len(caplog.records)


def test_all_labels_of_a_request_share_one_time_to_wait(monkeypatch):
    """
    However many monitors they are for, the answer is due after `wait`. Those of one monitor go to it together.
    """
    now = [100.0]
    monkeypatch.setattr(endpoint.time, "monotonic", lambda: now[0])

    def slow() -> LabelOutcome:
        now[0] += 0.4
        return LabelOutcome.QUEUED

    slow_ones = [FakeMonitor(version=str(number), outcome=slow) for number in range(4)]
    rows = [{**GOOD, "version": one.version} for one in slow_ones]
    answer = ask_wsgi(labels_wsgi_app(slow_ones, token=TOKEN, wait=1.0), "POST", "/v1/labels", JSON, content(rows))

    assert {"queued": 4} == answer.json["counts"]
    assert [1.0, 0.6, 0.2, 0.0] == pytest.approx([one.details[0]["wait"] for one in slow_ones])


def test_the_event_loop_goes_on_while_a_store_is_slow():
    """
    The label here waits for something that only the loop can do.
    """
    begun, done = threading.Event(), threading.Event()

    def wait() -> LabelOutcome:
        begun.set()
        return LabelOutcome.MATCHED if done.wait(10) else LabelOutcome.QUEUED

    app = labels_app([FakeMonitor(outcome=wait)], token=TOKEN)
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": content(GOOD)}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def story() -> None:
        request = asyncio.create_task(app(scope_of("POST", "/v1/labels", JSON), receive, send))
        while not begun.is_set():
            await asyncio.sleep(0)
        done.set()
        await request

    asyncio.run(story())

    assert {"matched": 1} == json.loads(sent[1]["body"])["counts"]


def test_a_client_that_goes_away_in_the_middle_is_let_go():
    """
    Nothing is sent, nothing is taken.
    """
    fraud = FakeMonitor()
    messages = [{"type": "http.request", "body": content(GOOD), "more_body": True}, {"type": "http.disconnect"}]

    sent = call_asgi(labels_app([fraud], token=TOKEN), scope_of("POST", "/v1/labels", JSON), messages)

    assert ([], []) == (sent, fraud.told)


class Broken(io.BytesIO):
    """A body whose connection is lost after its first part."""

    def read(self, size: int | None = -1) -> bytes:
        part = super().read(size)
        if not part:
            raise ConnectionResetError
        return part


@pytest.mark.parametrize(
    ("stream", "more"),
    [
        (io.BytesIO, {"CONTENT_LENGTH": "1000"}),
        (Broken, {"CONTENT_LENGTH": "1000"}),
        (Broken, {"wsgi.input_terminated": True}),
    ],
    ids=["short", "lost", "lost in chunks"],
)
def test_wsgi_takes_nothing_of_a_body_that_ends_too_early(stream, more):
    """
    It is complete JSON, but not what the client meant to send.
    """
    fraud = FakeMonitor()
    environ = environ_of("POST", "/v1/labels", JSON, stream(content(GOOD)), **more)

    answer = call_wsgi(labels_wsgi_app([fraud], token=TOKEN), environ)

    assert (400, {"error": "The body ended too early."}, []) == (answer.status, answer.json, fraud.told)


# Where it is mounted


@pytest.mark.parametrize(
    ("path", "root_path"),
    [
        ("/v1/labels", ""),
        ("/ml/v1/labels", "/ml"),
        ("/v1/labels", "/ml"),
        ("/v1/v1/labels", "/v1"),
        ("/v1/labels", "/v1"),
    ],
)
def test_asgi_finds_its_path_below_any_prefix(path, root_path):
    """
    Frameworks before and after the change of what `path` means; also if the prefix looks like a part of ours.
    """
    app = labels_app([FakeMonitor()], token=TOKEN)

    assert 200 == ask_asgi(app, "POST", path, JSON, content(GOOD), root_path=root_path).status


def test_starlette_mounts_it():
    """
    And so does FastAPI, which is built on it. The description says the prefix.
    """
    applications = pytest.importorskip("starlette.applications")
    outer = applications.Starlette()
    outer.mount("/ml", labels_app([FakeMonitor()], token=TOKEN))

    def ask(method: str, path: str) -> Answered:
        return ask_asgi(outer, method, path, JSON, content(GOOD), root_path="", query_string=b"")

    assert 200 == ask("POST", "/ml/v1/labels").status
    assert [{"url": "/ml"}] == ask("GET", "/ml/openapi.json").json["servers"]
    assert "Known: /ml/v1/labels, /ml/openapi.json." in ask("GET", "/ml/else").json["error"]


def test_werkzeug_mounts_it():
    """
    And so does Flask: app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/ml": labels_wsgi_app(...)}).
    """
    dispatcher = pytest.importorskip("werkzeug.middleware.dispatcher")
    outer = dispatcher.DispatcherMiddleware(None, {"/ml": labels_wsgi_app([FakeMonitor()], token=TOKEN)})

    assert 200 == ask_wsgi(outer, "POST", "/ml/v1/labels", JSON, content(GOOD)).status
    assert [{"url": "/ml"}] == ask_wsgi(outer, "GET", "/ml/openapi.json", {}, b"").json["servers"]


def test_asgi_answers_lifespan_and_refuses_websockets():
    """
    A server may insist on the first, and must not wait for the second.
    """
    app = labels_app([], token=TOKEN)

    lifespan = call_asgi(app, {"type": "lifespan"}, [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    websocket = call_asgi(app, {"type": "websocket"}, [{"type": "websocket.connect"}])

    assert ["lifespan.startup.complete", "lifespan.shutdown.complete"] == [message["type"] for message in lifespan]
    assert ["websocket.close"] == [message["type"] for message in websocket]
    with pytest.raises(
        ValueError, match=r"^labels_app answers http, lifespan and websocket, got a scope of type 'x'\.$"
    ):
        call_asgi(app, {"type": "x"}, [])


# Real monitors


def test_a_label_over_http_makes_the_row_of_its_prediction(service, make):
    """
    From a prediction in the service to the metric, with the label by another way.
    """
    fraud = make(BinaryMonitor, "fraud", version="2026.11")
    fraud.record_prediction("txn-1", True, score=0.9)
    fraud.record_prediction(42, True, score=0.8)
    service.has(fraud)

    first = service.post(
        [GOOD, {**GOOD, "id": 42, "label": False}, {**GOOD, "id": "early"}, {**GOOD, "label": "maybe"}]
    )
    again = service.post([GOOD, {**GOOD, "label": False}, {**GOOD, "id": "42", "label": False}])

    assert ["matched", "matched", "pending", "rejected"] == first.outcomes
    error = "The monitor of this model cannot use the label; the log of the service says why."
    assert error == first.json["outcomes"][3]["error"]
    assert ["duplicate", "corrected", "duplicate"] == again.outcomes
    assert 0.0 == fraud.snapshot().value("precision")


def test_a_ranking_takes_the_items_that_were_right(service, make):
    """
    A label may be an array or an object, as the monitor takes them.
    """
    search = make(RankingMonitor, "search", version="1", k=2)
    search.record_prediction("q-1", ["a", "b", "c"])
    search.record_prediction("q-2", ["a", "b", "c"])

    answer = service.has(search).post(
        [{"model": "search", "id": "q-1", "label": ["b"]}, {"model": "search", "id": "q-2", "label": {"a": 3.0}}]
    )

    assert ["matched", "matched"] == answer.outcomes
    assert 0.75 == search.snapshot().value("mrr")


def test_of_two_real_versions_the_one_that_predicted_gets_the_label(service, make):
    """
    Then there is no need to remember which version answered.
    """
    old, new = (make(BinaryMonitor, "fraud", version=version) for version in ("1", "2"))
    old.record_prediction("txn-1", True)

    answer = service.has(old, new).post([GOOD, {**GOOD, "id": "later"}])

    assert [("1", "matched"), ("2", "pending")] == [(one["version"], one["outcome"]) for one in answer.json["outcomes"]]


def test_without_monitors_those_of_the_process_are_meant(service, make):
    """
    Whichever there are when the request comes.
    """
    service.app = service.make(token=TOKEN)
    make(BinaryMonitor, "fraud").record_prediction("txn-1", True)

    assert ["matched"] == service.post(GOOD).outcomes


# Whatever is sent

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
numbers = [0, -1, 1.0, 1.5, 2**63, -(2**63), 2**63 - 1, -(2**63) - 1, 10**11, 10**11 + 1]
texts = ["", "a", "a\0", "\0", "x" * 1024, "x" * 1025, "𝄞" * 1024]
edges = st.sampled_from([*numbers, *texts, None, True, [], {}])
near_labels = st.fixed_dictionaries(
    {}, optional={name: edges | json_values for name in ("model", "version", "id", "label", "timestamp", "more")}
) | st.fixed_dictionaries(
    {"model": st.sampled_from(["fraud", "other"]), "id": edges, "label": json_values},
    optional={"timestamp": edges | st.floats(0, 2e11), "version": st.sampled_from(["1", None, 2])},
)


@settings(deadline=None, max_examples=500)
@given(row=near_labels | json_values)
def test_a_label_is_bad_exactly_if_the_description_says_so(row):
    """
    The JSON Schema of the description, read by an independent validator, is the judge.
    """
    jsonschema_rs = pytest.importorskip("jsonschema_rs")
    endpoint = LabelsEndpoint([FakeMonitor()], None, 1_000_000, 10, 1.0)
    described = endpoint.before_body("GET", "/openapi.json", "", {})
    assert described is not None
    schemas = json.loads(described.body)["components"]
    label = {"$ref": "#/components/schemas/Label", "components": schemas}
    outcomes = {"$ref": "#/components/schemas/Outcomes", "components": schemas}

    answer = endpoint.after_body(content([row, GOOD]))
    alone = endpoint.after_body(content([row]))

    assert 200 == answer.status
    assert (200 if jsonschema_rs.is_valid(label, row) else 422) == alone.status, alone.body
    assert jsonschema_rs.is_valid(outcomes, json.loads(answer.body))


alphabet = [
    b"[",
    b"]",
    b"{",
    b"}",
    b'"',
    b"\\",
    b",",
    b":",
    b"1",
    b"e9",
    b"-",
    b"null",
    b"NaN",
    b"\xff",
    b"\\ud800",
    b" ",
]


@settings(deadline=None, max_examples=500)
@given(body=st.binary(max_size=50) | st.lists(st.sampled_from(alphabet), max_size=200).map(b"".join))
def test_whatever_bytes_come_there_is_an_answer(body):
    """
    One of those described, never an exception.
    """
    answer = LabelsEndpoint([FakeMonitor()], None, 1_000_000, 10, 1.0).after_body(body)

    assert answer.status in (200, 400, 413, 422)
    assert json.loads(answer.body)


@settings(deadline=None, max_examples=300)
@given(rows=st.lists(near_labels | st.just(GOOD), max_size=8))
def test_every_label_is_answered_and_counted_once(rows):
    """
    As many outcomes as labels, each counted under its name.
    """
    answer = json.loads(LabelsEndpoint([FakeMonitor()], None, 1_000_000, 10, 1.0).after_body(content(rows)).body)

    told = [one["outcome"] for one in answer["outcomes"]]
    assert {outcome: told.count(outcome) for outcome in told} == answer["counts"]
    assert len(rows) == len(told)


# Real servers

SERVED = """
from otel_model_metrics import BinaryMonitor
from otel_model_metrics import labels_app, labels_wsgi_app

monitors = [BinaryMonitor(name, version=version) for name, version in (("fraud", "1"), ("fraud", "2"), ("churn", "1"))]
for monitor in monitors[1:]:
    monitor.record_prediction_batch(["whole", "in chunks"], [True, False])
asgi = labels_app(monitors, token="s3cret-token")
wsgi = labels_wsgi_app(monitors, token="s3cret-token")
"""
SERVERS = {
    "uvicorn": ["uvicorn", "--log-level=warning", "--host=127.0.0.1", "--port={port}", "served:asgi"],
    "gunicorn": ["gunicorn", "--workers=2", "--no-control-socket", "--bind=127.0.0.1:{port}", "served:wsgi"],
}


@contextlib.contextmanager
def serving(server: str, source: str, folder: Path) -> Iterator[int]:
    port = free_port()
    (folder / "served.py").write_text(textwrap.dedent(source))
    command = [sys.executable, "-m", *(part.format(port=port) for part in SERVERS[server])]
    with running(command, f"http://127.0.0.1:{port}/openapi.json", folder / "server.log", cwd=folder):
        yield port


@pytest.fixture(scope="module", params=SERVERS)
def served(request, tmp_path_factory) -> Iterator[int]:
    with serving(request.param, SERVED, tmp_path_factory.mktemp("served")) as port:
        yield port


def over_http(port: int, method: str, path: str, body: Any = None, **headers: str) -> Answered:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(
            method, path, body, {**JSON, **given}, encode_chunked=not isinstance(body, (bytes, type(None)))
        )
        answer = connection.getresponse()
        return Answered(answer.status, answer.getheaders(), answer.read())


def test_a_real_server_takes_labels_whole_and_in_chunks(served):
    """
    Over a socket: a body with its length, one without, one that is too large, one without a token.
    """

    def body(id: str) -> bytes:
        return content([{**GOOD, "id": id}, {"model": "churn", "id": id, "label": 0}])

    whole = over_http(served, "POST", "/v1/labels", body("whole"))
    chunked = over_http(served, "POST", "/v1/labels", iter([body("in chunks")[:9], body("in chunks")[9:]]))
    large = over_http(served, "POST", "/v1/labels", iter([b" " * 1_000_000, b" "]))
    unknown = over_http(served, "POST", "/v1/labels", body("whole"), authorization="Bearer wrong")

    assert [200, 200, 413, 401] == [whole.status, chunked.status, large.status, unknown.status]
    assert {"matched": 2} == whole.json["counts"] == chunked.json["counts"]
    assert ["2", "1"] == [outcome["version"] for outcome in whole.json["outcomes"]]


def test_schemathesis_finds_nothing(served, tmp_path):
    """
    Requests made from the description, right ones and wrong ones, with every check it has.
    """
    pytest.importorskip("schemathesis")
    description = tmp_path / "openapi.json"  # as a file, or it would not test the path that it came from
    description.write_bytes(over_http(served, "GET", "/openapi.json").body)

    done = subprocess.run(
        [
            *(
                sys.executable,
                "-c",
                "from schemathesis.cli import schemathesis; schemathesis()",
                "run",
                str(description),
            ),
            *("--url", f"http://127.0.0.1:{served}", "--header", f"Authorization: Bearer {TOKEN}"),
            *("--checks", "all", "--max-examples", "80", "--no-color"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert 0 == done.returncode, done.stdout + done.stderr
    assert "Operations:       2 selected / 2 total" in done.stdout
    assert "No issues found" in done.stdout
