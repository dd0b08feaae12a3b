"""Every store joins labels by the same rules: one contract, met through the verbs of the monitors."""

from __future__ import annotations

import itertools
import math
import os
import sqlite3
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from backends import redis_server
from conftest import Clock, Exports
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from test_instruments import run, series, series_of_total

from otel_model_metrics import (
    BinaryMonitor,
    MulticlassMonitor,
    RankingMonitor,
    RegressionMonitor,
    Window,
    catalog,
    monitors,
)
from otel_model_metrics.ground_truth.inbox import open_inbox
from otel_model_metrics.ground_truth.outcomes import COUNTED, LabelOutcome
from otel_model_metrics.tally import DELAY_BOUNDS

MATCHED, PENDING, DUPLICATE, CORRECTED, EXPIRED, UNMATCHED, REJECTED, QUEUED, DROPPED = LabelOutcome

TTL = 1000.0
COHORT = TTL / 32  # what is over is noticed when all predictions of this long are
OUTSIDE = ("sqlite", "redis")


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


def empty_store(kind: str, folder: Path, redis_url: Callable[[], str]) -> str:
    """The URL of a store with nothing in it; a label waits there for its outcome."""
    if kind == "memory":
        return kind
    if kind == "sqlite":
        return f"sqlite:///{folder / 'labels.db'}?wait=5"
    import redis

    url = redis_url()
    with redis.Redis.from_url(url) as client:
        client.flushall()
    return f"{url}?wait=5"


@pytest.fixture(params=["memory", *OUTSIDE])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return empty_store(request.param, tmp_path, lambda: request.getfixturevalue("redis_url"))


@pytest.fixture
def open_monitor(make: Callable[..., Any], store: str) -> Callable[..., Any]:
    """Makes a monitor on the store."""

    def build(kind: Callable[..., Any] = BinaryMonitor, name: str = "model", **arguments: Any) -> Any:
        return make(kind, name, **{"store": store, "ttl": TTL, **arguments})

    return build


def only(*kinds: str) -> pytest.MarkDecorator:
    """For promises that only these stores make."""
    return pytest.mark.parametrize("store", kinds, indirect=True)


def look(monitor: Any) -> Any:
    """What the monitor shows once its store has decided everything."""
    assert monitor.flush()
    return monitor.snapshot()


def labels_of(monitor: Any) -> dict[str, int]:
    """Labels by outcome, without zeros."""
    found: dict[str, int] = look(monitor).to_dict()["labels"]
    return found


def rejected(monitor: Any) -> dict[str, int]:
    """Rows not used, by reason."""
    found: dict[str, int] = look(monitor).to_dict()["rejected"]
    return found


def total(exports: Exports, name: str) -> float:
    """Sum of a counter over its series of the whole, after its birth at zero."""
    exports.collect()
    found = exports.collect().get(name, {})
    return sum(value for attributes, value in found.items() if "ml.segment.name" not in dict(attributes))


# What becomes of a label


def test_a_label_joins_its_prediction(open_monitor):
    """
    The row is in the window as soon as the label has its outcome.
    """
    monitor = open_monitor()
    monitor.record_prediction("a", True, score=0.75, segments={"country": "DE"})

    assert MATCHED == monitor.record_label("a", False)

    snapshot = monitor.snapshot()
    assert (1, 0.0, 0.5625) == (snapshot.rows, snapshot.value("accuracy"), snapshot.value("brier_score"))
    assert 0.0 == snapshot.value("accuracy", segment=("country", "DE"))
    assert {"matched": 1} == labels_of(monitor)


def test_a_label_may_come_before_its_prediction(open_monitor, clock):
    """
    It waits; the prediction makes the row, in its own segment.
    """
    monitor = open_monitor()

    assert PENDING == monitor.record_label("a", True)
    assert (0, {"pending": 1}) == (look(monitor).rows, labels_of(monitor))

    monitor.record_prediction("a", True, segments={"country": "DE"})

    assert (1, 1.0) == (look(monitor).rows, monitor.snapshot().value("accuracy", segment=("country", "DE")))
    clock.tick(2 * TTL)
    assert {"pending": 1, "matched": 1} == labels_of(monitor)  # neither of the two is missed in the end


def test_the_same_label_again_has_no_effect(open_monitor):
    """
    Whether its prediction is there yet or not.
    """
    monitor = open_monitor()

    assert [PENDING, DUPLICATE] == [monitor.record_label("a", True) for _ in range(2)]
    monitor.record_prediction("a", True)
    assert [DUPLICATE, DUPLICATE] == [monitor.record_label("a", 1) for _ in range(2)]

    assert 1 == look(monitor).rows
    assert {"pending": 1, "matched": 1, "duplicate": 3} == labels_of(monitor)


def test_another_label_corrects_one_that_still_waits(open_monitor, clock):
    """
    What joins is the last word, with its own time.
    """
    monitor = open_monitor()

    assert PENDING == monitor.record_label("a", False, timestamp=clock.now - 50)
    assert CORRECTED == monitor.record_label("a", True, timestamp=clock.now - 20)
    monitor.record_prediction("a", True, timestamp=clock.now - 100)

    assert (1.0, 80.0) == (look(monitor).value("accuracy"), monitor.snapshot().value("label.delay"))
    assert {"pending": 1, "corrected": 1, "matched": 1} == labels_of(monitor)


def test_another_label_corrects_the_row_in_the_window_but_no_total(open_monitor, exports):
    """
    The window says what is true now. Totals cannot fall; they keep the first label.
    """
    monitor = open_monitor()
    monitor.record_prediction("a", True, segments={"country": "DE"})
    monitor.record_label("a", True)
    exports.collect()
    wrong = {"ml__class__actual": "negative", "ml__class__predicted": "positive", "ml__outcome": "wrong"}
    right = {"ml__class__actual": "positive", "ml__class__predicted": "positive", "ml__outcome": "correct"}

    assert CORRECTED == monitor.record_label("a", False)

    snapshot = look(monitor)
    assert (1, 0.0) == (snapshot.rows, snapshot.value("accuracy"))
    assert 0.0 == snapshot.value("accuracy", segment=("country", "DE"))
    assert (0.0, 1.0) == (exports.value("ml.model.outcomes", **wrong), exports.value("ml.model.outcomes", **right))
    assert {"matched": 1, "corrected": 1} == labels_of(monitor)

    assert CORRECTED == monitor.record_label("a", True)
    assert 1.0 == look(monitor).value("accuracy")


def test_a_correction_leaves_other_rows_alone(open_monitor):
    """
    Also when they look the same.
    """
    monitor = open_monitor()
    for id in "abc":
        monitor.record_prediction(id, True)
        monitor.record_label(id, True)

    monitor.record_label("b", False)

    assert (3, 2 / 3) == (look(monitor).rows, monitor.snapshot().value("accuracy"))


@pytest.mark.parametrize("age", [TTL + 0.5, 1.25 * TTL])
def test_a_label_whose_prediction_is_older_than_ttl_is_expired(open_monitor, clock, age):
    """
    It is told so for a quarter of ttl longer, and does not count.
    """
    monitor = open_monitor()
    monitor.record_prediction("a", True)
    clock.tick(age)
    look(monitor)

    assert EXPIRED == monitor.record_label("a", True)
    assert (0, 1) == (look(monitor).rows, labels_of(monitor)["expired"])


def test_a_label_as_late_as_ttl_allows_joins(open_monitor, clock):
    """
    The limit is inclusive, for a label and for a prediction that finds one.
    """
    monitor = open_monitor()
    monitor.record_prediction("a", True)
    monitor.record_label("b", True)
    clock.tick(TTL)
    look(monitor)

    assert MATCHED == monitor.record_label("a", True)
    monitor.record_prediction("b", True)

    assert 2 == look(monitor).rows


def test_a_label_that_is_itself_older_than_ttl_does_not_wait(open_monitor, clock):
    """
    Its prediction is gone, so it is unmatched at once, however often it is told.
    """
    monitor = open_monitor()

    assert UNMATCHED == monitor.record_label("a", True, timestamp=clock.now - TTL - 1)
    assert UNMATCHED == monitor.record_label("a", False, timestamp=clock.now - TTL - 1)
    assert PENDING == monitor.record_label("a", True, timestamp=clock.now - TTL)
    assert {"unmatched": 2, "pending": 1} == labels_of(monitor)


def test_a_label_whose_prediction_never_comes_is_unmatched_in_the_end(open_monitor, clock):
    """
    It is counted once its time is over, and joins no later prediction.
    """
    monitor = open_monitor()
    clock.tick(COHORT / 2)
    monitor.record_label("a", True)
    clock.tick(TTL)
    assert {"pending": 1} == labels_of(monitor)

    clock.tick(COHORT + 1)
    assert {"pending": 1, "unmatched": 1} == labels_of(monitor)

    monitor.record_prediction("a", True)
    assert 0 == look(monitor).rows
    assert {"pending": 1, "unmatched": 1} == labels_of(monitor)


def test_a_prediction_whose_label_never_comes_is_counted_in_the_end(open_monitor, clock):
    """
    Once, and not if it has its label.
    """
    monitor = open_monitor()
    clock.tick(COHORT / 2)
    for id in "abc":
        monitor.record_prediction(id, True, segments={"id": id})
    monitor.record_label("b", True)
    clock.tick(TTL)
    assert {"matched": 1} == labels_of(monitor)

    clock.tick(COHORT + 1)
    assert {"matched": 1, "unlabelled": 2} == labels_of(monitor)
    clock.tick(10 * TTL)
    assert {"matched": 1, "unlabelled": 2} == labels_of(monitor)


@only("memory")
def test_the_oldest_predictions_make_room_in_memory(open_monitor):
    """
    However small the room is, and whether somebody looks or not; those with their label are not counted as evicted.
    """
    monitor = open_monitor(capacity=3)
    for id in range(3):
        monitor.record_prediction(id, True)
    monitor.record_label(0, True)

    for id in range(3, 6):
        monitor.record_prediction(id, True)
        assert [False] * (id - 2) + [True] * 3 == [monitor.awaits_label(one) for one in range(id + 1)]
        monitor.snapshot()

    assert PENDING == monitor.record_label(1, True)  # and that made room, too
    assert (False, True) == (monitor.awaits_label(3), monitor.awaits_label(5))
    assert {"matched": 1, "evicted": 3, "pending": 1} == labels_of(monitor)
    assert 2.0 == monitor.snapshot().value("label.pending")


@only("memory")
def test_labels_that_wait_take_room_in_memory_too(open_monitor):
    """
    One that was evicted joins nothing, and is counted.
    """
    monitor = open_monitor(capacity=2)

    outcomes = monitor.record_label_batch([1, 2, 3], [True] * 3)
    monitor.record_prediction(1, True)

    assert {PENDING: 3} == outcomes
    assert (0, 2) == (monitor.snapshot().rows, monitor.snapshot().labels["evicted"])


@only("memory")
def test_a_full_store_in_memory_is_as_fast_as_one_with_room(open_monitor, clock, monkeypatch):
    """
    It does not go through all its cohorts for every prediction.
    """
    from otel_model_metrics.ground_truth import memory

    sweeps = Counter()
    monkeypatch.setattr(memory, "over", lambda *given: sweeps.update(["cells"]))
    monitor = open_monitor(capacity=100)

    for id in range(5000):
        monitor.record_prediction(id, True)

    assert sweeps["cells"] <= 5


# Predictions


def test_a_prediction_told_twice_counts_once(open_monitor, exports):
    """
    As its first telling says, also after its label.
    """
    monitor = open_monitor()
    monitor.record_prediction("a", True)
    monitor.record_prediction("a", True)
    monitor.record_prediction("a", False)
    monitor.record_label("a", True)
    monitor.record_prediction("a", False)

    assert (1, 1.0) == (look(monitor).rows, monitor.snapshot().value("accuracy"))
    assert (1.0, 1.0) == (total(exports, "ml.model.predictions"), total(exports, "ml.model.outcomes"))
    assert {"matched": 1} == labels_of(monitor)


def test_an_id_is_free_again_after_ttl(open_monitor, clock, exports):
    """
    Then it names another prediction.
    """
    monitor = open_monitor()
    monitor.record_prediction("a", True)
    monitor.record_label("a", True)
    clock.tick(TTL + 1)

    monitor.record_prediction("a", False)

    assert MATCHED == monitor.record_label("a", True)
    assert (2.0, 2.0) == (total(exports, "ml.model.predictions"), total(exports, "ml.model.outcomes"))
    assert 0.5 == look(monitor).value("accuracy")


def test_a_prediction_counts_once_with_its_label_or_without(open_monitor, exports):
    """
    The predictions counter tells of all, outcomes of those with a label, whichever came first.
    """
    monitor = open_monitor()
    monitor.record_prediction_batch(list("abcd"), [True, True, False, False])
    look(monitor)
    assert (4.0, 0.0) == (total(exports, "ml.model.predictions"), total(exports, "ml.model.outcomes"))

    monitor.record_label_batch(list("abxy"), [True, False, True, True])
    look(monitor)
    assert (4.0, 2.0) == (total(exports, "ml.model.predictions"), total(exports, "ml.model.outcomes"))

    monitor.record_prediction("x", True)
    monitor.record(True, True)
    monitor.record(True)
    look(monitor)
    assert (7.0, 4.0) == (total(exports, "ml.model.predictions"), total(exports, "ml.model.outcomes"))
    positive = exports.collect()["ml.model.predictions"][series_of_total("binary", ml__class__predicted="positive")]
    assert 5.0 == positive


def test_a_monitor_knows_which_predictions_it_awaits_labels_for(open_monitor, clock):
    """
    Those that are there, labelled or not; not a label without one.
    """
    monitor = open_monitor()
    monitor.record_prediction("a", True)
    monitor.record_prediction(7, True)
    monitor.record_label("a", True)
    monitor.record_label("b", True)
    look(monitor)

    assert [True, True, False, False, False] == [monitor.awaits_label(id) for id in ("a", "7", "b", "c", None)]


# Ids

ID = uuid.UUID("123e4567-e89b-12d3-a456-426614174000")
SAME_IDS = [
    (42, "42"),
    ("42", b"42"),
    (np.int64(42), 42),
    (ID, str(ID)),
    (str(ID).encode(), ID),
    (np.str_("txn-1"), "txn-1"),
    (bytearray(b"txn-1"), "txn-1"),
    ("Käufer-😀", "Käufer-😀".encode()),
    (b"\xff\xfe", "fffe"),
    (-1, "-1"),
    ("x" * 1024, b"x" * 1024),
    ("a:b%c'\"; DROP TABLE entries; \n", b"a:b%c'\"; DROP TABLE entries; \n"),
]


@pytest.mark.parametrize(("one", "other"), SAME_IDS, ids=lambda value: f"{type(value).__name__} {value!r:.12}")
def test_ids_that_are_the_same_text_are_the_same_id(open_monitor, one, other):
    """
    Labels often come by way of a file, in which everything is text.
    """
    monitor = open_monitor()
    monitor.record_prediction(one, True)
    assert MATCHED == monitor.record_label(other, True)
    assert DUPLICATE == monitor.record_label(one, True)
    assert monitor.awaits_label(one)
    assert monitor.awaits_label(other)


def test_ids_that_are_different_text_are_different(open_monitor):
    """
    Nothing is stripped, folded or read as a number.
    """
    monitor = open_monitor()
    monitor.record_prediction("a1", True)

    assert {PENDING: 5} == monitor.record_label_batch(["A1", " a1", "a1 ", "a01", "a"], [True] * 5)


EXPECTED_ID = "id must be a non-empty string of at most 1024 characters, an integer, bytes or a UUID"
UNUSABLE_IDS = ["", None, 1.5, True, np.True_, "x" * 2000, "x" * 1_000_000, "\ud800", "\0", "a\0b", b"", b"\0"]
UNUSABLE_IDS += [b"x" * 1025, 1 << 300, float("nan"), ("a",), ["a"], object(), pd.NA]


@pytest.mark.parametrize("id", UNUSABLE_IDS, ids=lambda value: f"{type(value).__name__} {value!r:.8}")
def test_an_id_that_cannot_be_one_is_rejected(open_monitor, id):
    """
    In both verbs and in batches, counted, and without effect on the rest.
    """
    monitor = open_monitor()

    monitor.record_prediction(id, True)
    assert REJECTED == monitor.record_label(id, True)
    monitor.record_prediction_batch([id, "a"], [True, True])
    assert {REJECTED: 1, MATCHED: 1} == monitor.record_label_batch([id, "a"], [True, True])

    assert {"invalid_id": 4} == rejected(monitor)
    assert {"rejected": 2, "matched": 1} == labels_of(monitor)
    assert not monitor.awaits_label(id)


@only("memory")
def test_an_unusable_id_is_named_in_the_error(open_monitor):
    """
    With what was expected, and not a megabyte long.
    """
    monitor = open_monitor(strict=True)

    with pytest.raises(ValueError, match=r"^id must be") as raised:
        monitor.record_label("x" * 1_000_000, True)
    assert f"{EXPECTED_ID}, got 'xxxxx" == str(raised.value)[: len(EXPECTED_ID) + 12]
    assert len(str(raised.value)) < 250

    with pytest.raises(ValueError, match=r"^id must be") as raised:
        monitor.record_prediction(1.5, True)
    assert f"{EXPECTED_ID}, got 1.5 (float). (model 'model' unversioned)" == str(raised.value)


# What else cannot be used

BAD_LABELS = [
    (BinaryMonitor, {}, True, "invalid_label", [2, -1, "yes", None, float("nan"), [1], pd.NA, object()]),
    (BinaryMonitor, {"positive": "fraud"}, "fraud", "invalid_label", [1, None, float("nan"), b"fraud"]),
    (MulticlassMonitor, {}, "a", "invalid_label", [None, float("nan"), ["a"], pd.NA]),
    (MulticlassMonitor, {"classes": ["a", "b"]}, "a", "unknown_class", ["c", 1]),
    (RegressionMonitor, {}, 1.0, "invalid_label", ["1", None, float("nan"), float("inf"), 1e80, [1.0]]),
    (RankingMonitor, {}, ["a", "b"], "invalid_label", [None, [], set(), {"a": -1}, {"a": "x"}, float("nan"), [["a"]]]),
]


@pytest.mark.parametrize(
    ("kind", "arguments", "prediction", "reason", "bad"),
    BAD_LABELS,
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_label_of_the_wrong_kind_is_rejected(open_monitor, kind, arguments, prediction, reason, bad):
    """
    Its prediction goes on waiting for a better one.
    """
    monitor = open_monitor(kind, **arguments)
    monitor.record_prediction("a", prediction)

    assert [REJECTED] * len(bad) == [monitor.record_label("a", label) for label in bad]
    assert {REJECTED: len(bad)} == monitor.record_label_batch(["a"] * len(bad), bad)

    assert {reason: 2 * len(bad)} == rejected(monitor)
    assert 1.0 == look(monitor).value("label.pending")
    good = {RankingMonitor: "b", MulticlassMonitor: "b", RegressionMonitor: 2}.get(kind, prediction)
    assert MATCHED == monitor.record_label("a", good)


def test_a_prediction_that_cannot_be_used_is_rejected_as_record_would(open_monitor):
    """
    With the same reasons; its label finds nothing.
    """
    monitor = open_monitor(segments=["country"])
    monitor.record_prediction("a", "yes")
    monitor.record_prediction("b", True, score=1.5)
    monitor.record_prediction("c")
    monitor.record_prediction("d", True, segments={"city": "Bonn"})
    monitor.record_prediction("e", True, segments={"country": ["DE"]})
    monitor.record_prediction("f", True, segments=5)
    monitor.record_prediction("g", True, timestamp="now")

    reasons = {"invalid_prediction": 2, "invalid_score": 1, "invalid_segment": 3, "invalid_timestamp": 1}
    assert reasons == rejected(monitor)
    assert {PENDING: 7} == monitor.record_label_batch(list("abcdefg"), [True] * 7)


@pytest.mark.parametrize("offset", [301.0, float("nan"), -1e12, 1e12])
def test_a_time_in_the_future_is_rejected(open_monitor, clock, offset):
    """
    Beyond what another clock may be ahead; so are times before 1970 and such that are none.
    """
    monitor = open_monitor()

    monitor.record_prediction("a", True, timestamp=clock.now + offset)
    assert REJECTED == monitor.record_label("a", True, timestamp=clock.now + offset)
    monitor.record_prediction_batch(["a"], [True], timestamps=[clock.now + offset])
    assert {REJECTED: 1} == monitor.record_label_batch(["a"], [True], timestamps=[clock.now + offset])

    assert {"invalid_timestamp": 4} == rejected(monitor)
    assert {"rejected": 2} == labels_of(monitor)


def test_a_clock_slightly_ahead_is_believed(open_monitor, clock):
    """
    No delay and no age is negative for that.
    """
    monitor = open_monitor()
    monitor.record_prediction("a", True, timestamp=clock.now + 299)
    monitor.record_prediction("b", True, timestamp=clock.now + 299)

    assert MATCHED == monitor.record_label("a", True, timestamp=clock.now + 298)

    snapshot = look(monitor)
    assert [0.0] * 3 == [snapshot.value(f"label.{name}") for name in ("delay", "age", "pending_age")]


@pytest.mark.parametrize(
    "arguments",
    [
        {"labels": [True]},
        {"labels": [True, False, True]},
        {"labels": [True, False], "timestamps": [1.0]},
        {"labels": True},
        {"labels": "no"},
    ],
    ids=str,
)
def test_columns_of_unequal_length_reject_the_whole_call(open_monitor, arguments):
    """
    Nothing says which label belongs to which id.
    """
    monitor = open_monitor()
    monitor.record_prediction_batch(["a", "b"], [True, True])

    assert {REJECTED: 2} == monitor.record_label_batch(["a", "b"], **arguments)

    assert {"unequal_length": 2} == rejected(monitor)
    assert (0, 2.0) == (look(monitor).rows, monitor.snapshot().value("label.pending"))


@pytest.mark.parametrize(
    "arguments",
    [
        {"predictions": [True]},
        {"predictions": [True, True], "scores": [0.5]},
        {"predictions": [True, True], "segments": {"country": ["DE"]}},
        {"predictions": [True, True], "segments": [{"country": "DE"}]},
        {"predictions": [True, True], "timestamps": [1.0, 2.0, 3.0]},
    ],
    ids=str,
)
def test_predictions_of_unequal_length_are_rejected(open_monitor, arguments):
    """
    None of them waits for a label.
    """
    monitor = open_monitor()

    monitor.record_prediction_batch(["a", "b"], **arguments)

    assert {"unequal_length": 2} == rejected(monitor)
    assert {PENDING: 2} == monitor.record_label_batch(["a", "b"], [True, True])


# Rows that may not be judged yet


@only("sqlite", "redis")
def test_a_row_that_waits_for_its_maturity_survives_a_restart(open_monitor, clock, exports):
    """
    Whoever is there when its time has come judges it, once, by its label of then.
    """
    window = Window(maturity=100.0)
    monitor = open_monitor(window=window, segments=("country",))
    monitor.record_prediction("a", True, segments={"country": "DE"})
    monitor.record_prediction("b", True)
    clock.tick(10.0)
    assert [MATCHED, MATCHED] == [monitor.record_label(id, True) for id in "ab"]
    snapshot = look(monitor)
    assert (0, 2, 10.0) == (snapshot.rows, snapshot.labels["matched"], snapshot.value("label.age") + 10.0)
    assert 0.0 == total(exports, "ml.model.outcomes")
    monitor.close()

    monitor = open_monitor(window=window, segments=("country",))
    assert CORRECTED == monitor.record_label("a", False)
    clock.tick(91.0)
    snapshot = look(monitor)

    assert (2, 0.5, 0) == (snapshot.rows, snapshot.value("accuracy"), snapshot.labels["matched"])
    assert (1, 0.0) == (snapshot.value("window.rows", ("country", "DE")), snapshot.value("accuracy", ("country", "DE")))
    assert 2.0 == total(exports, "ml.model.outcomes")
    assert 2 == look(monitor).rows


@only("sqlite", "redis")
def test_of_two_monitors_one_judges_a_row_that_has_become_old_enough(make, store, clock):
    """
    Two processes share the work, not the rows. (Two scopes of one process here: versions differ only by name.)
    """
    window = Window(maturity=100.0)
    arguments = {"store": store, "ttl": TTL, "window": window, "version": "1"}
    one = make(BinaryMonitor, **arguments)
    one.record_prediction_batch([str(n) for n in range(50)], [True] * 50)
    one.record_label_batch([str(n) for n in range(50)], [True] * 50)
    assert one.flush()
    with monitors._monitors_lock:
        del monitors._monitors["model", "1"]  # as in another process, which does not know of this one
    two = make(BinaryMonitor, **arguments)
    clock.tick(101.0)

    assert one.flush()
    assert two.flush()

    assert 50 == one.snapshot().rows + two.snapshot().rows
    one.close()


# What happens at the same time


def test_a_correction_that_overtakes_its_row_finds_it_later(make, clock):
    """
    A thread that has joined a row may not have staged it yet when another one corrects its label.
    """
    monitor = make(BinaryMonitor)
    monitor.record_prediction("a", True)
    monitor.record_label("b", True)
    late: list[Any] = []
    joining = monitor._joining
    joining._join, join = late.append, joining._join
    monitor.record_label("a", True)
    joining._join = join

    assert CORRECTED == monitor.record_label("a", False)
    assert 0 == monitor.snapshot().rows
    join(late[0])

    assert (1, 0.0) == (monitor.snapshot().rows, monitor.snapshot().value("accuracy"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_label_is_corrected_in_a_forked_child_too(make):
    """
    It is a process of its own, with a window of its own.
    """
    monitor = make(BinaryMonitor)
    monitor.record_prediction("of the parent", True)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        monitor.record_prediction("a", True)
        monitor.record_label("a", True)
        monitor.record_label("a", False)
        os.write(writer, str(monitor.snapshot().value("accuracy")).encode())
        os._exit(0)
    os.waitpid(child, 0)

    assert b"0.0" == os.read(reader, 100)
    os.close(reader)
    os.close(writer)


@only("sqlite")
def test_a_busy_service_does_not_starve_the_thread_that_writes(open_monitor, monkeypatch):
    """
    With each statement it gives Python's lock away, and waits 5 ms to get it back; so there must be few of them.
    """
    statements: list[str] = []
    connect = sqlite3.connect

    def traced(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.set_trace_callback(statements.append)
        return connection

    monkeypatch.setattr(sqlite3, "connect", traced)
    monitor = open_monitor()
    ids = [str(number) for number in range(5000)]

    monitor.record_prediction_batch(ids, [True] * len(ids), segments={"n": [number % 50 for number in range(len(ids))]})
    assert monitor.flush()
    assert {MATCHED: len(ids)} == monitor.record_label_batch(ids, [True] * len(ids), wait=10)
    assert monitor.flush()

    assert 10 < len(statements) < 400


# Labels that are left in a store


@only("sqlite", "redis")
def test_a_file_that_says_two_things_of_one_id_changes_nothing_the_second_time(open_monitor, store):
    """
    The last one holds, however often the file is fed.
    """
    monitor = open_monitor(clock=time.time)  # as the inbox
    monitor.record_prediction("a", True)
    assert monitor.flush()
    for expected in ({"handed_over": 2}, {"known": 2}, {"known": 2}):
        with open_inbox(store) as inbox:
            counts = inbox.deposit("model", None, ["a"], [True]) + inbox.deposit("model", None, ["a"], [False])
        assert expected == dict(counts)
        snapshot = look(monitor)
        assert (1, 0.0) == (snapshot.rows, snapshot.value("accuracy"))

    with open_inbox(store) as inbox:  # a time that is later makes it another message; this one is in the future
        assert 1 == inbox.deposit("model", None, ["a"], [True], [4e9])["handed_over"]
    assert {"invalid_timestamp": 1} == rejected(monitor)


@only("sqlite", "redis")
def test_a_left_label_without_a_version_is_for_every_version_that_made_the_prediction(make, store):
    """
    A shadow deployment predicts the same ids.
    """
    shadow = {version: make(BinaryMonitor, version=version, store=store, clock=time.time) for version in "123"}
    for version in "13":
        shadow[version].record_prediction("a", True)
    assert all(monitor.flush() for monitor in shadow.values())
    shadow["2"].record_prediction("b", True)
    assert shadow["2"].flush()

    with open_inbox(store) as inbox:
        inbox.deposit("model", None, ["a"], [True])

    assert {"1": 1, "2": 0, "3": 1} == {version: look(monitor).rows for version, monitor in shadow.items()}


# The same values as when the label is known at once


def rows_of(task: str) -> tuple[type[Any], dict[str, Any], list[tuple[Any, Any, Any]]]:
    """A kind of monitor, its arguments, and rows: prediction, label, score."""
    draw = np.random.default_rng(7)
    count = 60
    if task == "binary":
        scores = draw.random(count)
        rows = [(bool(s > 0.4), bool(draw.random() < s), float(s) if i % 3 else None) for i, s in enumerate(scores)]
        return BinaryMonitor, {}, rows
    if task == "binary, named":
        scores = draw.random(count)
        rows = [(None, ["good", "fraud"][int(draw.random() < s)], float(s)) for s in scores]
        return BinaryMonitor, {"positive": "fraud", "threshold": 0.3}, rows
    if task == "multiclass":
        pairs = draw.integers(0, 7, (count, 2)).tolist()
        return MulticlassMonitor, {}, [(predicted, label, None) for predicted, label in pairs]
    if task == "multiclass, scored":
        classes = ["cat", "dog", "fox"]
        scores = draw.dirichlet([1, 1, 1], count)
        labels = draw.integers(0, 3, count)
        rows = [
            (
                None if i % 2 else classes[int(s.argmax())],
                classes[label],
                None if i % 4 == 0 else dict(zip(classes, s, strict=True)) if i % 3 == 0 else s,
            )
            for i, (s, label) in enumerate(zip(scores, labels, strict=True))
        ]
        return MulticlassMonitor, {"classes": classes, "k": [1, 2]}, rows
    if task == "regression":
        pairs = draw.normal(100, 50, (count, 2)).tolist()
        return RegressionMonitor, {}, [(predicted, label, None) for predicted, label in pairs]
    rows = []
    for index in range(count):
        shown = draw.permutation(20)[: draw.integers(1, 15)].tolist()
        relevant = draw.permutation(20)[: draw.integers(1, 6)].tolist()
        gains = dict(zip(relevant, draw.integers(1, 4, len(relevant)).tolist(), strict=True))
        rows.append((shown, [gains, set(relevant), relevant[0], relevant][index % 4], None))
    return RankingMonitor, {"k": [1, 5, 10]}, rows


TASKS = ["binary", "binary, named", "multiclass", "multiclass, scored", "regression", "ranking"]


def segments_at(index: int) -> Any:
    """Five countries where three are kept apart, several tags in one row, no segment at all."""
    if index % 7 == 6:
        return None
    return {"country": f"C{index % 5}", "tier": ("gold", "new") if index % 3 else None, "hour": index % 2}


def observed(monitor: Any, exports: Exports) -> tuple[dict[str, Any], dict[Any, float]]:
    """Values by segment, and everything exported, without what only late labels have."""
    assert monitor.flush()
    exports.collect()
    values = monitor.snapshot().to_dict()
    found = {
        (name, attributes): value
        for name, by_attributes in exports.collect().items()
        for attributes, value in by_attributes.items()
        if not name.startswith("ml.model.label") or ("ml.label.outcome", "matched") in attributes
    }
    plain = {"whole": values["values"], **values["segments"]}
    kept = {
        place: {name: value for name, value in of_place.items() if not name.startswith("label.")}
        for place, of_place in plain.items()
    }
    return {"rows": {"rows": values["rows"]}, "rejected": values["rejected"], **kept}, found


def assert_equal(expected: tuple[dict[str, Any], dict[Any, float]], got: tuple[dict[str, Any], dict[Any, float]]):
    (values, exported), (other_values, other_exported) = expected, got
    assert values.keys() == other_values.keys()
    for place, of_place in values.items():
        assert of_place == pytest.approx(other_values[place], rel=1e-12, abs=1e-12), place
    assert exported == pytest.approx(other_exported, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("batches", [False, True], ids=["singly", "in batches"])
@pytest.mark.parametrize("task", TASKS)
def test_late_labels_give_the_values_that_labels_at_once_give(make, clock, store, task, batches):
    """
    Every value, bound, segment and total of every task, whether labels come before or after their predictions.
    """
    kind, arguments, rows = rows_of(task)
    metrics = [entry.name for entry in catalog.metrics_of(kind.task) if not entry.always]
    arguments = {**arguments, "ttl": TTL, "max_segment_values": 3, "segment_metrics": metrics}
    here, there = Exports(), Exports()

    monitor = make(kind, meter_provider=here.provider, **arguments)
    for index, (prediction, label, score) in enumerate(rows):
        with_score = {} if score is None else {"score": score}
        monitor.record(prediction, label, segments=segments_at(index), timestamp=clock.now - 100 + index, **with_score)
    expected = observed(monitor, here)
    monitor.close()
    assert 60 == expected[0]["rows"]["rows"]
    assert {"country=C0", "country=__other__", "tier=gold"} <= expected[0].keys()

    late = make(kind, meter_provider=there.provider, store=store, **arguments)
    predictions, labels, scores = (list(column) for column in zip(*rows, strict=True))
    segments = [segments_at(index) or {} for index in range(60)]
    times = [clock.now - 100 + index for index in range(60)]
    first = list(range(0, 60, 4))  # these labels come before their predictions
    rest = [index for index in range(60) if index % 4][::-1]

    def label_all(indices: list[int]) -> Counter[LabelOutcome]:
        if batches:
            return late.record_label_batch(
                indices, [labels[i] for i in indices], timestamps=[times[i] for i in indices]
            )
        return Counter(late.record_label(i, labels[i], timestamp=times[i]) for i in indices)

    with_scores = any(score is not None for score in scores)
    assert {PENDING: 15} == label_all(first)
    if batches:
        column = {"scores": scores} if with_scores else {}
        late.record_prediction_batch(list(range(60)), predictions, segments=segments, timestamps=times, **column)
    else:
        for i in range(60):
            one = {} if scores[i] is None else {"score": scores[i]}
            late.record_prediction(i, predictions[i], segments=segments[i], timestamp=times[i], **one)
    assert {MATCHED: 45} == label_all(rest)

    assert_equal(expected, observed(late, there))


def test_batches_do_what_single_calls_do(make, clock, store):
    """
    Outcome by outcome, also for an id that is twice in one batch; whatever holds the columns.
    """
    found = []
    for batched in (False, True):
        exports = Exports()
        name = f"model-{batched}"
        monitor = make(BinaryMonitor, name, store=store, ttl=TTL, meter_provider=exports.provider)
        predicted = (list("abcdeaz"), [True, False, True, True, False, False, 7], list("UVUVUVU"))
        labelled = (list("abxacyx"), [True, True, False, False, None, True, False])
        if batched:
            ids, predictions, country = predicted
            monitor.record_prediction_batch(np.array(ids), predictions, segments={"country": pd.Series(country)})
            outcomes = monitor.record_label_batch(pd.Series(labelled[0]), labelled[1], timestamps=clock.now)
        else:
            for id, prediction, country in zip(*predicted, strict=True):
                monitor.record_prediction(id, prediction, segments={"country": country})
            outcomes = Counter(monitor.record_label(*one, timestamp=clock.now) for one in zip(*labelled, strict=True))
        snapshot = look(monitor).to_dict()
        found.append((outcomes, {**snapshot, "model": None}))

    assert {MATCHED: 2, PENDING: 2, CORRECTED: 1, REJECTED: 1, DUPLICATE: 1} == found[0][0]
    assert found[0] == found[1]
    assert 0 == found[0][0][EXPIRED]


def test_a_long_batch_is_all_there(open_monitor):
    """
    Longer than what is written, or handed over, at once.
    """
    monitor = open_monitor()
    count = 12_000
    ids = np.arange(count)

    monitor.record_prediction_batch(ids, ids % 2 == 0, scores=np.full(count, 0.25))
    look(monitor)
    assert {MATCHED: count} == monitor.record_label_batch(ids, np.ones(count, bool))

    assert (count, 0.5) == (labels_of(monitor)["matched"], monitor.snapshot().value("accuracy"))
    assert 0.0 == monitor.snapshot().value("label.pending")


def test_an_empty_batch_is_nothing(open_monitor):
    """
    No outcome, no fault, and nothing to export.
    """
    monitor = open_monitor()

    monitor.record_prediction_batch([], [])
    assert {} == monitor.record_label_batch([], [])

    assert ({}, {}) == (labels_of(monitor), rejected(monitor))


# Several monitors, several lives


def test_models_and_versions_in_one_store_do_not_mix(open_monitor):
    """
    Nor do names that only look alike when they are put together.
    """
    monitors = [
        open_monitor(BinaryMonitor, name, version=version)
        for name, version in [("a", "1"), ("a", "2"), ("b", "1"), ("a:1", "x"), ("a", "1:x"), ("a%3a1", "x")]
    ]
    for index, monitor in enumerate(monitors):
        monitor.record_prediction("id", index % 2 == 0)
        look(monitor)
        for later in monitors[index + 1 :]:
            assert not later.awaits_label("id")

    for monitor in monitors:
        assert MATCHED == monitor.record_label("id", True)

    assert [1.0, 0.0] * 3 == [look(monitor).value("accuracy") for monitor in monitors]
    assert [{"matched": 1}] * 6 == [labels_of(monitor) for monitor in monitors]
    assert [0.0] * 6 == [monitor.snapshot().value("label.pending") for monitor in monitors]


@only(*OUTSIDE)
def test_predictions_outlive_their_process(open_monitor, clock):
    """
    After a restart labels join, what is known stays known, and the window has begun anew.
    """
    monitor = open_monitor()
    monitor.record_prediction_batch(list("abc"), [True] * 3, scores=[0.5] * 3, segments={"country": "DE"})
    monitor.record_label("a", True)
    monitor.record_label("later", True)
    clock.tick(100.0)
    monitor.close()

    monitor = open_monitor(max_segment_values=7)
    assert 0 == look(monitor).rows

    monitor.record_prediction("later", True)
    monitor.record_prediction("b", False)
    outcomes = [monitor.record_label(id, False) for id in ("a", "b", "d", "later")]
    assert [CORRECTED, MATCHED, PENDING, CORRECTED] == outcomes

    snapshot = look(monitor)
    assert (2, 0.0) == (snapshot.rows, snapshot.value("accuracy"))
    assert (0.0, 0.25) == (snapshot.value("accuracy", ("country", "DE")), snapshot.value("brier_score"))
    assert 1.0 == snapshot.value("label.pending")
    assert 100.0 == snapshot.value("label.pending_age")
    assert 0.75 == snapshot.value("label.coverage")
    assert 2 / 3 == snapshot.value("label.coverage", ("country", "DE"))


@only("memory")
def test_a_store_in_memory_ends_with_its_monitor(open_monitor):
    """
    The next one starts with nothing.
    """
    monitor = open_monitor()
    monitor.record_prediction("a", True)
    monitor.close()

    assert PENDING == open_monitor().record_label("a", True)


@only(*OUTSIDE)
def test_predictions_over_all_processes_are_right_when_labels_join_elsewhere(make, store):
    """
    The process of the prediction has counted it; that of the label counts the outcome, and no prediction.
    """
    one, two = Exports(), Exports()
    monitor = make(BinaryMonitor, store=store, ttl=TTL, meter_provider=one.provider)
    monitor.record_prediction_batch(list("abc"), [True, True, False])
    look(monitor)
    assert (3.0, 0.0) == (total(one, "ml.model.predictions"), total(one, "ml.model.outcomes"))
    monitor.close()

    monitor = make(BinaryMonitor, store=store, ttl=TTL, meter_provider=two.provider)
    monitor.record_prediction("a", True)
    assert {MATCHED: 2} == monitor.record_label_batch(["a", "b"], [True, True])

    assert (0.0, 2.0) == (total(two, "ml.model.predictions"), total(two, "ml.model.outcomes"))


OTHER_PROCESS = """
    from otel_model_metrics import BinaryMonitor

    monitor = BinaryMonitor("model", store={store!r}, ttl=1000.0,
                            clock=lambda: {now!r})
    monitor.record_prediction("theirs", True, segments={{"country": "DE"}})
    print(monitor.record_label("ours", False).value)
    print(monitor.record_label("ours", False).value)
    assert monitor.flush()
    print(monitor.snapshot().rows, monitor.snapshot().value("label.pending"))
"""


@only(*OUTSIDE)
def test_two_processes_share_a_store_while_both_run(open_monitor, store, clock):
    """
    Each joins what the other has predicted, once; both know what is pending.
    """
    monitor = open_monitor()
    monitor.record_prediction("ours", True)
    look(monitor)

    assert ["matched", "duplicate", "1 1.0"] == run(OTHER_PROCESS.format(store=store, now=clock.now)).splitlines()

    assert DUPLICATE == monitor.record_label("ours", False)
    assert 1.0 == look(monitor).value("label.pending")
    assert MATCHED == monitor.record_label("theirs", True)
    assert (1, 1.0) == (look(monitor).rows, monitor.snapshot().value("accuracy", ("country", "DE")))


@only(*OUTSIDE)
def test_a_label_that_does_not_wait_is_queued_and_then_joins(open_monitor):
    """
    What it will come to is counted, and not that it was queued.
    """
    monitor = open_monitor()
    monitor.record_prediction("a", True)

    assert QUEUED == monitor.record_label("a", True, wait=0)
    assert {QUEUED: 2} == monitor.record_label_batch(["a", "b"], [True, True], wait=0)

    assert {"matched": 1, "duplicate": 1, "pending": 1} == labels_of(monitor)
    assert 1 == monitor.snapshot().rows


@only(*OUTSIDE)
def test_a_label_waits_as_long_as_it_is_told_to(open_monitor):
    """
    Also behind many predictions.
    """
    monitor = open_monitor()
    monitor.record_prediction_batch(range(1000), [True] * 1000)

    assert MATCHED == monitor.record_label(0, True, wait=5)


# The health of labels

HEALTH = ["label.coverage", "label.delay", "label.pending", "label.pending_age", "label.age"]


def test_label_health_is_what_one_counts_by_hand(open_monitor, clock, exports):
    """
    Coverage, delays, what is pending and for how long, of the whole and of each segment.
    """
    monitor = open_monitor(segment_metrics=["accuracy", *HEALTH])
    de, fr = {"country": "DE"}, {"country": "FR"}
    start = clock.now
    monitor.record_prediction("a", True, segments=de)
    monitor.record_prediction("b", True, segments=de)
    monitor.record_prediction("c", True, segments=fr)
    clock.tick(100.0)
    monitor.record_prediction("d", True, segments=fr)
    monitor.record_prediction("e", True, segments=de)
    clock.tick(100.0)
    monitor.record(True, True, segments=de)  # has never waited
    monitor.record_label("a", True, timestamp=start + 110)
    monitor.record_label("c", True, timestamp=start + 160)
    monitor.record_label("e", True, timestamp=start + 120)
    monitor.record_label("nothing", True)  # is no prediction

    def health(segment=None):
        snapshot = look(monitor)
        delays = [snapshot.value("label.delay", segment, quantile=one) for one in (0.5, 0.9, 0.99)]
        rest = [snapshot.value(f"label.{one}", segment) for one in ("coverage", "pending", "pending_age", "age")]
        return [*delays, *rest]

    assert pytest.approx([110.0, 150.0, 159.0, 3 / 5, 2.0, 200.0, 40.0]) == health()
    assert pytest.approx([65.0, 101.0, 109.1, 2 / 3, 1.0, 200.0, 80.0]) == health(("country", "DE"))
    assert pytest.approx([160.0, 160.0, 160.0, 1 / 2, 1.0, 100.0, 40.0]) == health(("country", "FR"))
    assert [None] * 7 == health(("country", "IT"))
    assert 4 == monitor.snapshot().rows

    assert 0.6 == exports.value("ml.model.label.coverage")
    assert 110.0 == exports.value("ml.model.label.delay", ml__quantile="0.5")
    fr_only = {"ml__segment__name": "country", "ml__segment__value": "FR"}
    assert 1.0 == exports.value("ml.model.label.pending", **fr_only)
    assert 100.0 == exports.value("ml.model.label.pending_age", **fr_only)


def test_nothing_is_said_of_what_there_is_not(open_monitor):
    """
    No delay without a label, no pending age without a prediction that waits.
    """
    monitor = open_monitor()
    monitor.record_prediction("a", True)
    snapshot = look(monitor)
    assert [0.0, None, 1.0, 0.0, None] == [snapshot.value(name) for name in HEALTH]

    monitor.record_label("a", True)
    snapshot = look(monitor)
    assert [1.0, 0.0, 0.0, None, 0.0] == [snapshot.value(name) for name in HEALTH]


def test_the_oldest_prediction_that_waits_may_be_told_of_later(open_monitor, clock):
    """
    Its age is that of the earliest one, in whichever order they come.
    """
    monitor = open_monitor()
    clock.tick(25.0)  # all in one cohort
    monitor.record_prediction("a", True, timestamp=clock.now - 5)
    look(monitor)
    monitor.record_prediction("b", True, timestamp=clock.now - 15)
    look(monitor)
    monitor.record_prediction("c", True, timestamp=clock.now - 1)

    assert 15.0 == look(monitor).value("label.pending_age")


def test_delays_are_exported_as_a_histogram(open_monitor, clock, exports):
    """
    By their upper end, inclusive and cumulative; a label that came first has no delay.
    """
    monitor = open_monitor()
    delays = [0.0, 1.0, 1.5, 60.0, 61.0, 3600.0, 40 * 86_400.0]
    monitor.record_label("first", True, timestamp=clock.now - 50)
    monitor.record_prediction("first", True)
    for id, delay in enumerate(delays):
        monitor.record_prediction(id, True, timestamp=clock.now - delay)
        monitor.record_label(id, True)
    monitor.record_label("nothing", True)
    look(monitor)
    exports.collect()

    found = {dict(attributes)["le"]: count for attributes, count in exports.collect()["ml.model.label.delays"].items()}

    def expected(bound: float) -> float:
        return float(1 + sum(delay <= bound for delay in delays))

    assert {**{str(bound): expected(bound) for bound in DELAY_BOUNDS}, "+Inf": 8.0} == found
    assert (3.0, 4.0, 5.0, 7.0) == tuple(found[le] for le in ("1", "10", "60", "3600"))


def test_outcomes_of_labels_are_born_at_zero(open_monitor, exports):
    """
    All there can be, from the first late label on.
    """
    monitor = open_monitor()
    monitor.record_label("a", True)
    look(monitor)

    first, second = exports.collect(), exports.collect()

    outcomes = {series(**{"ml__label__outcome": outcome}): 0.0 for outcome in COUNTED}
    assert outcomes == first["ml.model.labels"]
    assert {**outcomes, series(ml__label__outcome="pending"): 1.0} == second["ml.model.labels"]
    assert {0.0} == set(first["ml.model.label.delays"].values())


def test_without_late_labels_nothing_is_said_of_their_health(open_monitor, exports):
    """
    A model whose labels are known at once exports no series for it.
    """
    monitor = open_monitor()
    monitor.record(True, True)
    monitor.record(True)
    exports.collect()

    found = exports.collect()

    assert [] == [name for name in found if name.startswith("ml.model.label.")]
    assert {series(ml__label__outcome="matched"): 1.0} == found["ml.model.labels"]
    assert ({}, None) == (look(monitor).labels, monitor.snapshot().value("label.pending"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_million_predictions_fit_into_memory():
    """
    Each takes less than 250 bytes with an id of 36 characters, a score and two segments.
    """
    script = """
        import resource
        from otel_model_metrics import BinaryMonitor

        def memory():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * resource.getpagesize()

        monitor = BinaryMonitor("model", capacity=2_000_000)
        segments = [{"country": f"C{c}", "device": f"D{d}"} for c in range(10) for d in range(4)]
        monitor.record_prediction("warm", True, score=0.5, segments=segments[0])
        before = memory()
        for i in range(1_000_000):
            monitor.record_prediction(f"{i:08x}-0000-4000-8000-{i:012x}", True, score=0.5, segments=segments[i % 40])
        monitor.snapshot()
        print((memory() - before) / 1e6, monitor.snapshot().value("label.pending"))
    """

    each, pending = map(float, run(script).split())

    assert 1_000_001.0 == pending
    assert 150.0 < each < 250.0


# Whatever the order

MACHINE_TTL, MACHINE_AGE = 64.0, 32.0  # so cohorts are of one second
EPOCH = 1 / 16  # clocks of different lives never show the same time
SEGMENTS = (None, "DE", "FR")
ids = st.integers(0, 4)


class Known:
    """What the plain model knows under one id."""

    def __init__(self, received: float) -> None:
        self.received = received
        self.predicted: tuple[bool, float, str | None] | None = None  # prediction, time, segment
        self.labelled: tuple[bool, float] | None = None  # label, time of the first one
        self.row: list[Any] | None = None  # in the window of this life
        self.waits: list[Wait] = []


class Wait:
    """A prediction that waits for its label, or a label that waits for its prediction."""

    def __init__(self, since: float, what: str, segment: str | None) -> None:
        self.since = since
        self.what = what
        self.segment = segment
        self.joined = False

    def over(self, now: float) -> bool:
        """What is over is noticed by cohorts."""
        return now > math.floor(self.since) + 1 + MACHINE_TTL


class LateLabels(RuleBasedStateMachine):
    """
    A monitor beside a dictionary that follows the rules as `LabelOutcome` words them.

    What is older than 1.25 ttl may be remembered by a store or not. Both are right, and the model follows suit.
    """

    def __init__(self, new_store: Callable[[], str]) -> None:
        super().__init__()
        self.url = new_store()
        self.clock = Clock()

    @initialize(by=st.sampled_from(["label", "prediction"]))
    def begin(self, by: str) -> None:
        self.window = Window(rows=10_000, age=MACHINE_AGE, by=by)
        self.forget()
        self.open()

    def forget(self) -> None:
        """What a store knows, and all that was counted since it was empty."""
        self.known: dict[int, Known] = {}
        self.waits: list[Wait] = []
        self.happened: Counter[str] = Counter()
        self.shown_before: Counter[str] = Counter()

    def open(self) -> None:
        """A life of the monitor: its window and its totals begin anew."""
        self.rows: list[list[Any]] = []  # time, prediction, label, segment
        self.totals: Counter[tuple[bool, bool]] = Counter()
        self.predictions = 0
        self.late = False
        self.exports = Exports()
        self.monitor = BinaryMonitor(
            "model",
            window=self.window,
            store=self.url,
            ttl=MACHINE_TTL,
            clock=self.clock,
            meter_provider=self.exports.provider,
            segment_metrics=["accuracy", *HEALTH],
        )

    def teardown(self) -> None:
        if not hasattr(self, "monitor"):
            return
        try:
            self.look()
            self.clock.tick(3 * MACHINE_TTL)  # then everything is over
            self.look()
        finally:
            self.monitor.close()

    # What is done

    @rule(id=ids, prediction=st.booleans(), segment=st.sampled_from(SEGMENTS))
    def predict(self, id: int, prediction: bool, segment: str | None) -> None:
        segments = None if segment is None else {"country": segment}
        self.monitor.record_prediction(id, prediction, segments=segments)
        self.predicted(id, prediction, segment)

    @rule(given=st.lists(st.tuples(ids, st.booleans(), st.sampled_from(SEGMENTS)), min_size=1, max_size=5))
    def predict_many(self, given: list[tuple[int, bool, str | None]]) -> None:
        of_ids, predictions, countries = (list(column) for column in zip(*given, strict=True))
        self.monitor.record_prediction_batch(of_ids, predictions, segments={"country": countries})
        for one in given:
            self.predicted(*one)

    @rule(id=ids, label=st.booleans(), back=st.sampled_from([0.0, 0.0, 0.0, 10.0, 40.0, 100.0]))
    def label(self, id: int, label: bool, back: float) -> None:
        time = self.clock.now - back
        self.labelled(id, label, time, self.monitor.record_label(id, label, timestamp=time))

    @rule(id=ids)
    def label_again(self, id: int) -> None:
        known = self.known.get(id)
        if known is not None and known.labelled is not None:
            self.label(id, known.labelled[0], 0.0)

    @rule(id=ids)
    def correct(self, id: int) -> None:
        known = self.known.get(id)
        if known is not None and known.labelled is not None:
            self.label(id, not known.labelled[0], 0.0)

    @rule(given=st.lists(st.tuples(ids, st.booleans()), min_size=1, max_size=6))
    def label_many(self, given: list[tuple[int, bool]]) -> None:
        now = self.clock.now
        given = [one for one in given if len(self.allowed(*one, now)) == 1]
        if not given:
            return
        got = self.monitor.record_label_batch(*(list(column) for column in zip(*given, strict=True)))
        expected: Counter[LabelOutcome] = Counter()
        for id, label in given:
            (outcome,) = self.allowed(id, label, now)
            expected[outcome] += 1
            self.labelled(id, label, now, outcome)
        assert expected == got

    @rule(prediction=st.booleans(), label=st.booleans(), segment=st.sampled_from(SEGMENTS))
    def record(self, prediction: bool, label: bool, segment: str | None) -> None:
        self.monitor.record(prediction, label, segments=None if segment is None else {"country": segment})
        self.rows.append([self.clock.now, prediction, label, segment])
        self.totals[prediction, label] += 1
        self.predictions += 1

    @rule(seconds=st.sampled_from([1, 5, 5, 31, 33, 64, 65, 80, 81]))
    def tick(self, seconds: int) -> None:
        self.clock.tick(seconds)

    @rule()
    def restart(self) -> None:
        self.look()
        self.shown_before.update(self.monitor.snapshot().labels)
        self.monitor.close()
        self.clock.tick(EPOCH)
        if self.url == "memory":
            self.forget()
        for known in self.known.values():
            known.row = None
        self.open()

    # The rules

    def predicted(self, id: int, prediction: bool, segment: str | None) -> None:
        now = self.clock.now
        self.late = True
        known = self.known.get(id)
        if known is None or now - known.received > MACHINE_TTL:
            known = self.known[id] = Known(now)
        elif known.predicted is not None:
            return  # told twice
        self.predictions += 1
        known.predicted = prediction, now, segment
        self.wait(known, "prediction", segment)
        if known.labelled is not None:
            self.join(known)

    def wait(self, known: Known, what: str, segment: str | None) -> None:
        known.waits.append(Wait(self.clock.now, what, segment))
        self.waits.append(known.waits[-1])

    def join(self, known: Known) -> None:
        assert known.predicted is not None
        assert known.labelled is not None
        prediction, predicted, segment = known.predicted
        label, labelled = known.labelled
        # A label may be told of with a time before its prediction, but is no older than that.
        time = max(labelled, predicted) if self.window.by == "label" else predicted
        known.row = [time, prediction, label, segment]
        self.rows.append(known.row)
        self.totals[prediction, label] += 1
        self.happened["matched"] += 1
        for wait in known.waits:
            wait.joined = True

    def allowed(self, id: int, label: bool, time: float) -> set[LabelOutcome]:
        now = self.clock.now
        known = self.known.get(id)
        without = UNMATCHED if time < now - MACHINE_TTL else PENDING
        if known is None:
            return {without}
        if now - known.received > MACHINE_TTL:
            if known.predicted is None:
                return {without}
            return {EXPIRED} if now - known.received <= 1.25 * MACHINE_TTL else {EXPIRED, without}
        if known.labelled is None:
            return {MATCHED}
        return {DUPLICATE} if known.labelled[0] == label else {CORRECTED}

    def labelled(self, id: int, label: bool, time: float, outcome: LabelOutcome) -> None:
        assert outcome in self.allowed(id, label, time)
        self.late = True
        if outcome is PENDING:
            self.known[id] = Known(self.clock.now)
            self.known[id].labelled = label, time
            self.wait(self.known[id], "label", None)
        elif outcome is MATCHED:
            self.known[id].labelled = label, time
            self.join(self.known[id])
            return
        elif outcome is CORRECTED:
            known = self.known[id]
            assert known.labelled is not None
            known.labelled = label, time if known.predicted is None else known.labelled[1]
            if known.row is not None:
                known.row[2] = label
        self.happened[outcome.value] += 1

    # What is compared

    @rule()
    def look(self) -> None:
        assert self.monitor.flush()
        snapshot = self.monitor.snapshot()
        now = self.clock.now
        window = [row for row in self.rows if row[0] >= now - MACHINE_AGE]
        assert len(window) == snapshot.rows
        of_positive = [label for _, prediction, label, _ in window if prediction]
        assert (np.mean(of_positive) if of_positive else None) == snapshot.value("precision")
        for segment in SEGMENTS:
            place = None if segment is None else ("country", segment)
            right = [one == label for _, one, label, country in window if segment in (None, country)]
            assert (np.mean(right) if right else None) == snapshot.value("accuracy", place)
            if self.late:
                waits = [one for one in self.waits if one.what == "prediction" and segment in (None, one.segment)]
                pending = sum(not one.joined and not one.over(now) for one in waits)
                assert pending == (snapshot.value("label.pending", place) or 0)
                joined = [one.joined for one in waits if math.floor(one.since) + 1 > now - MACHINE_AGE]
                assert (np.mean(joined) if joined else None) == snapshot.value("label.coverage", place)
        self.look_at_counters(Counter(snapshot.labels))

    def look_at_counters(self, labels: Counter[str]) -> None:
        self.exports.collect()
        found = self.exports.collect()
        whole = {
            name: [(dict(by), value) for by, value in found.get(name, {}).items() if "ml.segment.name" not in dict(by)]
            for name in ("ml.model.outcomes", "ml.model.predictions")
        }
        totals: Counter[tuple[bool, bool]] = Counter()
        for by, value in whole["ml.model.outcomes"]:
            totals[by["ml.class.predicted"] == "positive", by["ml.class.actual"] == "positive"] += int(value)
        assert +self.totals == +totals
        assert self.predictions == sum(value for _, value in whole["ml.model.predictions"])

        if self.late:
            over = [one for one in self.waits if one.over(self.clock.now) and not one.joined]
            expected = self.happened + Counter(
                unlabelled=sum(one.what == "prediction" for one in over),
                unmatched=sum(one.what == "label" for one in over),
            )
            assert +expected == +(labels + self.shown_before)


@pytest.mark.parametrize("kind", ["memory", *OUTSIDE])
def test_every_order_of_events_comes_to_what_the_rules_say(kind, request, tmp_path):
    """
    Predictions, labels, corrections, batches, time and restarts mixed: outcomes, window, totals, coverage and counts.
    """
    folders = (tmp_path / str(number) for number in itertools.count())

    def new_store() -> str:
        folder = next(folders)
        folder.mkdir()
        return empty_store(kind, folder, lambda: request.getfixturevalue("redis_url"))

    run_state_machine_as_test(
        lambda: LateLabels(new_store),
        settings=settings(
            deadline=None,
            derandomize=True,
            max_examples=60 if kind == "memory" else 30,
            stateful_step_count=40,
            suppress_health_check=list(HealthCheck),
        ),
    )


# Not as promised yet


def test_a_missing_prediction_is_that_of_its_score(open_monitor, exports):
    """
    pandas' NA is missing, as it is for record.
    """
    monitor = open_monitor()
    monitor.record_prediction("a", pd.NA, score=0.75)
    monitor.record_label("a", True)

    assert {} == rejected(monitor)
    assert (1.0, 1.0) == (total(exports, "ml.model.predictions"), total(exports, "ml.model.outcomes"))


def test_a_missing_score_is_none(open_monitor):
    """
    pandas' NA is missing, as it is for record.
    """
    monitor = open_monitor(MulticlassMonitor, classes=["a", "b"])
    monitor.record_prediction("a", "a", score=pd.NA)
    monitor.record_label("a", "a")

    assert (1, {}) == (look(monitor).rows, rejected(monitor))


def test_a_class_that_is_nan_is_that_of_its_scores(open_monitor):
    """
    As it is for record: in a column of floats NaN is how a missing class is written.
    """
    monitor = open_monitor(MulticlassMonitor, classes=["a", "b"])
    monitor.record_prediction("a", float("nan"), score=[0.25, 0.75])

    assert MATCHED == monitor.record_label("a", "b")


def test_a_prediction_told_of_late_is_not_both_matched_and_unlabelled(open_monitor, clock):
    """
    It waits for ttl from when it was told, and is counted once.
    """
    monitor = open_monitor()
    monitor.record_prediction("a", True, timestamp=clock.now - 0.9 * TTL)
    clock.tick(0.5 * TTL)
    look(monitor)

    assert MATCHED == monitor.record_label("a", True)
    assert {"matched": 1} == labels_of(monitor)


@only(*OUTSIDE)
def test_a_correction_leaves_the_row_of_another_prediction_alone(open_monitor, clock):
    """
    Also when the row corrected is in the window of a process that has ended, and both labels have the same time.
    """
    day = clock.now - 100.0  # labels in files often have no better time
    monitor = open_monitor()
    monitor.record_prediction("a", True, timestamp=day - 50)
    monitor.record_label("a", True, timestamp=day)
    monitor.close()
    monitor = open_monitor()
    monitor.record_prediction("b", True, timestamp=day - 10)
    monitor.record_label("b", True, timestamp=day)

    assert CORRECTED == monitor.record_label("a", False, timestamp=day)

    assert 1.0 == look(monitor).value("accuracy")


@only(*OUTSIDE)
def test_coverage_is_right_after_a_restart_with_another_window(open_monitor):
    """
    Who changes the window of a service does not lose the count of what waits.
    """
    monitor = open_monitor(window=Window(age=100.0))
    monitor.record_prediction_batch(range(10), [True] * 10)
    look(monitor)
    monitor.close()
    monitor = open_monitor(window=Window(age=500.0))
    monitor.record_prediction_batch([10, 11], [True] * 2)
    monitor.record_label_batch(range(6), [True] * 6)

    snapshot = look(monitor)
    assert (0.5, 6.0) == (snapshot.value("label.coverage"), snapshot.value("label.pending"))
