"""When a row whose label came late counts: by the time of its label or its prediction, and once it is old enough."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from conftest import Clock, Exports
from hypothesis import given, settings
from hypothesis import strategies as st
from test_instruments import run

from otel_model_metrics import BinaryMonitor, MulticlassMonitor, RegressionMonitor, Window
from otel_model_metrics.ground_truth.outcomes import LabelOutcome

MATCHED, PENDING, CORRECTED = LabelOutcome.MATCHED, LabelOutcome.PENDING, LabelOutcome.CORRECTED


def totals(exports: Exports) -> tuple[float, float]:
    """Predictions and outcomes counted so far, of the whole."""
    exports.collect()  # series are born at zero
    found = exports.collect()
    predictions, outcomes = (
        sum(value for by, value in found.get(name, {}).items() if "ml.segment.name" not in dict(by))
        for name in ("ml.model.predictions", "ml.model.outcomes")
    )
    return predictions, outcomes


def rows(monitor: Any) -> int:
    """Rows in the window."""
    found: int = monitor.snapshot().rows
    return found


# By which time


def test_a_row_is_in_the_window_while_its_label_is_young(make, clock):
    """
    By default its age counts from when the label came, however old the prediction is.
    """
    monitor = make(BinaryMonitor, window=Window(age=60.0))
    monitor.record_prediction("a", True)
    clock.tick(1000.0)
    assert 0 == rows(monitor)
    monitor.record_label("a", True)

    assert (1, 0.0) == (rows(monitor), monitor.snapshot().value("window.age"))
    clock.tick(60.0)
    assert (1, 60.0) == (rows(monitor), monitor.snapshot().value("window.age"))
    clock.tick(0.5)
    assert 0 == rows(monitor)


def test_a_row_is_in_the_window_while_its_prediction_is_young(make, clock):
    """
    With by="prediction" its age counts from when it was predicted, and it enters in that place.
    """
    monitor = make(BinaryMonitor, window=Window(age=60.0, by="prediction"))
    monitor.record_prediction("a", True)
    clock.tick(50.0)
    assert 0 == rows(monitor)
    monitor.record_label("a", True)

    assert (1, 50.0) == (rows(monitor), monitor.snapshot().value("window.age"))
    clock.tick(10.0)
    assert 1 == rows(monitor)
    clock.tick(0.5)
    assert 0 == rows(monitor)


@pytest.mark.parametrize("by", ["label", "prediction"])
def test_a_label_too_old_for_the_window_counts_in_the_totals(make, clock, exports, by):
    """
    It is no quality of now, but it was an outcome; and it pushes no other row out.
    """
    monitor = make(BinaryMonitor, window=Window(rows=1, age=60.0, by=by))
    monitor.record(True, True)
    monitor.record_prediction("a", True, timestamp=clock.now - 100)

    assert MATCHED == monitor.record_label("a", False, timestamp=clock.now - 61)

    assert (1, 1.0) == (rows(monitor), monitor.snapshot().value("accuracy"))
    assert (2.0, 2.0) == totals(exports)
    assert monitor.snapshot().value("label.delay") is None  # which is one of the window, too


def test_a_label_may_bring_its_own_time(make, clock):
    """
    When the truth was known, which is not when the service heard of it.
    """
    monitor = make(BinaryMonitor, window=Window(age=60.0))
    monitor.record_prediction("a", True, timestamp=clock.now - 500)
    monitor.record_label("a", True, timestamp=clock.now - 20)

    snapshot = monitor.snapshot()
    assert (20.0, 480.0, 20.0) == tuple(snapshot.value(name) for name in ("window.age", "label.delay", "label.age"))


def test_a_label_of_a_time_before_its_prediction_makes_the_row_as_old_as_the_prediction(make, clock):
    """
    Clocks of two machines differ; no row is older than its prediction.
    """
    monitor = make(BinaryMonitor, window=Window(age=60.0))
    monitor.record_label("a", True, timestamp=clock.now - 100)
    monitor.record_prediction("a", True, timestamp=clock.now - 10)

    assert (1, 10.0, 0.0) == (rows(monitor), *map(monitor.snapshot().value, ("window.age", "label.delay")))


@pytest.mark.parametrize(("by", "expected"), [("label", [3.0, 4.0]), ("prediction", [1.0, 4.0])])
def test_the_newest_rows_are_those_of_the_newest_labels_or_predictions(make, clock, by, expected):
    """
    Predictions in the order 2 3 1 4, labels in the order 2 1 3 4: the window holds two.
    """
    monitor = make(RegressionMonitor, window=Window(rows=2, by=by))
    for id, back in ((2, 400), (3, 300), (1, 200), (4, 100)):
        monitor.record_prediction(id, float(id), timestamp=clock.now - back)
    for id, back in ((4, 1), (3, 2), (2, 4), (1, 3)):
        monitor.record_label(id, 0.0, timestamp=clock.now - back)

    snapshot = monitor.snapshot()
    assert (np.mean(expected), max(expected)) == (snapshot.value("mae"), snapshot.value("max_error"))


# Maturity


@pytest.mark.parametrize("by", ["label", "prediction"])
def test_a_fast_label_does_not_count_before_its_prediction_is_old_enough(make, clock, exports, by):
    """
    Neither in the window nor in the totals, but the prediction and the label are counted; then everywhere.
    """
    monitor = make(BinaryMonitor, window=Window(age=60.0, by=by, maturity=100.0))
    monitor.record_prediction("a", True, segments={"country": "DE"})
    clock.tick(10.0)
    assert MATCHED == monitor.record_label("a", False)

    clock.tick(89.0)
    assert (0, None) == (rows(monitor), monitor.snapshot().value("accuracy"))
    assert (1.0, 0.0) == totals(exports)
    assert (1, 0.0) == (monitor.snapshot().labels["matched"], monitor.snapshot().value("label.pending"))

    clock.tick(1.0)
    assert (1, 0.0) == (rows(monitor), monitor.snapshot().value("accuracy", segment=("country", "DE")))
    assert (1.0, 1.0) == totals(exports)
    assert (0.0, 10.0) == tuple(map(monitor.snapshot().value, ("window.age", "label.delay")))

    clock.tick(60.0)
    assert 1 == rows(monitor)
    clock.tick(0.5)
    assert 0 == rows(monitor)
    assert (1.0, 1.0) == totals(exports)


@pytest.mark.parametrize(("by", "age"), [("label", 0.0), ("prediction", 50.0)])
def test_a_label_slower_than_maturity_counts_at_once(make, clock, exports, by, age):
    """
    Its age counts from the label, or from when the prediction was old enough.
    """
    monitor = make(BinaryMonitor, window=Window(age=60.0, by=by, maturity=100.0))
    monitor.record_prediction("a", True)
    clock.tick(150.0)
    monitor.record_label("a", True)

    assert (1, age) == (rows(monitor), monitor.snapshot().value("window.age"))
    assert (1.0, 1.0) == totals(exports)


def test_maturity_holds_for_labels_known_at_once_too(make, clock, exports):
    """
    Rows of `record` and `record_batch` wait as well, whatever their own time is.
    """
    monitor = make(BinaryMonitor, window=Window(maturity=100.0))
    monitor.record(True, True)
    monitor.record(True, False, timestamp=clock.now - 40)
    monitor.record_batch([False, False], [False, False], timestamps=[clock.now - 200, clock.now - 60])
    monitor.record(True)

    assert (1, (5.0, 1.0)) == (rows(monitor), totals(exports))
    clock.tick(40.0)
    assert (2, (5.0, 2.0)) == (rows(monitor), totals(exports))
    clock.tick(20.0)
    assert (3, (5.0, 3.0)) == (rows(monitor), totals(exports))
    clock.tick(40.0)
    assert (4, (5.0, 4.0), 0.75) == (rows(monitor), totals(exports), monitor.snapshot().value("accuracy"))
    clock.tick(1000.0)
    assert (4, (5.0, 4.0)) == (rows(monitor), totals(exports))


def test_rows_that_wait_are_counted_as_predictions_of_their_class(make, clock, exports):
    """
    A class never seen before included; nothing is taken off that was not put there.
    """
    monitor = make(MulticlassMonitor, window=Window(maturity=100.0))
    monitor.record("a", "b")
    monitor.record_prediction("id", "c", segments={"country": "DE"})
    monitor.record_label("id", "d")

    def predictions() -> dict[str, float]:
        exports.collect()
        return {
            dict(by)["ml.class.predicted"]: value
            for by, value in exports.collect()["ml.model.predictions"].items()
            if "ml.segment.name" not in dict(by)
        }

    assert {"a": 1.0, "c": 1.0} == predictions()
    clock.tick(100.0)
    assert {"a": 1.0, "c": 1.0} == predictions()
    assert (2.0, 2.0) == totals(exports)


def test_rows_count_in_the_order_in_which_their_predictions_grow_old(make, clock):
    """
    Whatever the order in which they were told.
    """
    monitor = make(RegressionMonitor, window=Window(maturity=100.0))
    for id, back in ((1, 10), (2, 70), (3, 40)):
        monitor.record_prediction(id, float(id), timestamp=clock.now - back)
    assert {MATCHED: 3} == monitor.record_label_batch([3, 1, 2], [0.0] * 3)

    seen = []
    for _ in range(4):
        seen.append((rows(monitor), monitor.snapshot().value("mae")))
        clock.tick(30.0)

    assert [(0, None), (1, 2.0), (2, 2.5), (3, 2.0)] == seen


def test_a_row_that_waits_can_be_corrected(make, clock, exports):
    """
    It counts with its last label, in the totals too, for it has not been counted before.
    """
    monitor = make(BinaryMonitor, window=Window(maturity=100.0))
    monitor.record_prediction("a", True)
    monitor.record_label("a", True)
    assert CORRECTED == monitor.record_label("a", False)
    assert 0 == rows(monitor)

    clock.tick(100.0)

    assert (1, 0.0) == (rows(monitor), monitor.snapshot().value("accuracy"))
    assert (1.0, 1.0) == totals(exports)
    wrong = {"ml__class__actual": "negative", "ml__class__predicted": "positive", "ml__outcome": "wrong"}
    assert 1.0 == exports.value("ml.model.outcomes", **wrong)

    assert CORRECTED == monitor.record_label("a", True)
    assert 1.0 == monitor.snapshot().value("accuracy")
    assert 1.0 == exports.value("ml.model.outcomes", **wrong)


# Coverage


def test_coverage_does_not_ask_young_predictions_for_their_label(make, clock):
    """
    Only those as old as maturity, in steps of a cohort, a quarter of it.
    """
    monitor = make(BinaryMonitor, window=Window(maturity=100.0), ttl=1000.0)
    monitor.record_prediction_batch(list("abcd"), [True] * 4)
    monitor.record_label_batch(list("abc"), [True] * 3)

    def coverage() -> float | None:
        found: float | None = monitor.snapshot().value("label.coverage")
        return found

    clock.tick(99.0)
    monitor.record_prediction_batch(list("xyz"), [True] * 3)
    assert coverage() is None
    clock.tick(26.0)
    assert 0.75 == coverage()
    clock.tick(100.0)
    assert 3 / 7 == coverage()


def test_coverage_looks_back_as_far_as_the_window(make, clock):
    """
    A prediction older than the window's age is not asked any more; it may still get its label.
    """
    monitor = make(BinaryMonitor, window=Window(age=320.0), ttl=8192.0)  # cohorts of 16 seconds
    monitor.record_prediction("a", True)
    clock.tick(320.0)
    monitor.record_prediction_batch(list("bc"), [True, True])
    monitor.record_label("b", True)
    assert 1 / 3 == monitor.snapshot().value("label.coverage")

    clock.tick(17.0)

    assert (0.5, 2.0) == tuple(map(monitor.snapshot().value, ("label.coverage", "label.pending")))
    assert MATCHED == monitor.record_label("a", True)
    assert (0.5, 1.0) == tuple(map(monitor.snapshot().value, ("label.coverage", "label.pending")))


# All of it, against a plain list

events = st.lists(
    st.tuples(st.just("tick"), st.integers(0, 40))
    | st.tuples(st.just("predict"), st.integers(0, 60))
    | st.tuples(st.just("label"), st.tuples(st.integers(0, 30), st.integers(0, 60)))
    | st.tuples(st.just("record"), st.integers(0, 60))
    | st.tuples(st.just("look"), st.none()),
    max_size=40,
)


@settings(deadline=None, max_examples=150)
@given(
    events=events,
    rows=st.integers(1, 12),
    age=st.none() | st.integers(1, 80),
    by=st.sampled_from(["label", "prediction"]),
    maturity=st.sampled_from([0, 0, 15, 50]),
)
def test_the_window_is_what_its_words_say(events, rows, age, by, maturity):
    """
    Of the rows whose time has come the newest, and none too old; totals are of all whose time has come.
    """
    clock, exports = Clock(), Exports()
    monitor = RegressionMonitor(
        "model",
        window=Window(rows=rows, age=age, by=by, maturity=maturity),
        clock=clock,
        meter_provider=exports.provider,
        strict=True,
    )
    predicted: list[float] = []  # of id
    entries: dict[float, float] = {}  # value -> when its row enters
    try:
        for number, (event, argument) in enumerate([*events, ("look", None)]):
            apart = (number + 1) / 1024  # so that no two times are equal
            if event == "tick":
                clock.tick(argument)
            elif event == "predict":
                predicted.append(clock.now - argument - apart)
                monitor.record_prediction(len(predicted) - 1, float(len(predicted) - 1), timestamp=predicted[-1])
            elif event == "label":
                id, back = argument
                if id < len(predicted) and id not in entries:
                    time = clock.now - back - apart
                    assert MATCHED == monitor.record_label(id, 0.0, timestamp=time)
                    entries[id] = predicted[id] + maturity
                    if by == "label":
                        entries[id] = max(entries[id], time)
            elif event == "record":
                value = 1000.0 + number
                monitor.record(value, 0.0, timestamp=clock.now - argument - apart)
                entries[value] = clock.now - argument - apart + maturity
            else:
                due = sorted((entry, value) for value, entry in entries.items() if entry <= clock.now)
                window = [value for entry, value in due[-rows:] if age is None or entry >= clock.now - age]
                snapshot = monitor.snapshot()
                assert len(window) == snapshot.rows
                assert (max(window) if window else None) == snapshot.value("max_error")
                assert (np.mean(window) if window else None) == pytest.approx(snapshot.value("mae"))
                of_records = sum(value >= 1000 for value in entries)
                assert (len(predicted) + of_records, len(due)) == totals(exports)
    finally:
        monitor.close()


# Construction


def test_a_window_goes_by_labels_and_asks_for_no_maturity_by_default():
    """
    As it was before labels could come late.
    """
    assert Window(by="label", maturity=0.0) == Window()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"by": "time"}, ValueError, "Window needs by='label' or by='prediction', got 'time'."),
        ({"by": None}, ValueError, "Window needs by='label' or by='prediction', got None."),
        ({"maturity": -1}, ValueError, "Window needs maturity >= 0 seconds, got -1."),
        ({"maturity": float("nan")}, ValueError, "Window needs maturity >= 0 seconds, got nan."),
        ({"maturity": float("inf")}, ValueError, "Window needs maturity >= 0 seconds, got inf."),
        ({"maturity": True}, TypeError, "Window needs maturity in seconds, got True (bool)."),
        ({"maturity": None}, TypeError, "Window needs maturity in seconds, got None (NoneType)."),
        ({"maturity": "1h"}, TypeError, "Window needs maturity in seconds, got '1h' (str)."),
    ],
    ids=str,
)
def test_an_impossible_window_is_refused(arguments, error, message):
    """
    At construction, with what was expected.
    """
    with pytest.raises(error) as raised:
        Window(**arguments)

    assert message == str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ttl": 0}, ValueError, "ttl must be seconds > 0, the window's maturity, and <= 1e+09, got 0."),
        ({"ttl": -1.0}, ValueError, "ttl must be seconds > 0, the window's maturity, and <= 1e+09, got -1.0."),
        ({"ttl": float("inf")}, ValueError, "ttl must be seconds > 0, the window's maturity, and <= 1e+09, got inf."),
        ({"ttl": float("nan")}, ValueError, "ttl must be seconds > 0, the window's maturity, and <= 1e+09, got nan."),
        ({"ttl": "1d"}, ValueError, "ttl must be seconds > 0, the window's maturity, and <= 1e+09, got '1d'."),
        (
            {"ttl": 100.0, "window": Window(maturity=100.0)},
            ValueError,
            "ttl must be seconds > 100, the window's maturity, and <= 1e+09, got 100.0.",
        ),
        ({"capacity": 0}, ValueError, "capacity must be a whole number >= 1, got 0 (int)."),
        ({"capacity": 1.5}, ValueError, "capacity must be a whole number >= 1, got 1.5 (float)."),
        (
            {"store": "redis"},
            ValueError,
            'store must be "memory", "sqlite:///path/to/file.db" or "redis://host:6379/0", got \'redis\'.',
        ),
        (
            {"store": None},
            ValueError,
            'store must be "memory", "sqlite:///path/to/file.db" or "redis://host:6379/0", got None.',
        ),
        (
            {"store": "sqlite://labels.db"},
            ValueError,
            'store must be "memory", "sqlite:///path/to/file.db" or "redis://host:6379/0", got '
            "'sqlite://labels.db'. An absolute path has four slashes: sqlite:////var/lib/labels.db.",
        ),
        (
            {"store": "sqlite:///labels.db?synchronous=no"},
            ValueError,
            "synchronous must be one of off, normal, full, extra, got 'no'.",
        ),
        (
            {"store": "sqlite:///labels.db?timeout=3"},
            ValueError,
            "Unknown setting 'timeout' of a store. Known: interval, buffer, wait, synchronous.",
        ),
        (
            {"store": "sqlite:///labels.db?interval=-1"},
            ValueError,
            "interval of a store must be a number >= 0, got '-1'. It is 0.1 by default.",
        ),
        (
            {"store": "redis://localhost?buffer=0"},
            ValueError,
            "buffer of a store must be a number >= 1, got '0'. It is 200000 by default.",
        ),
    ],
    ids=str,
)
def test_an_impossible_store_is_refused(make, arguments, error, message):
    """
    At construction; the monitor's name stays free.
    """
    with pytest.raises(error) as raised:
        make(BinaryMonitor, **arguments)

    assert message == str(raised.value)
    make(BinaryMonitor)


# Forks

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@needs_fork
def test_a_forked_child_has_no_predictions_in_memory():
    """
    It starts empty, and its labels do not reach the parent's.
    """
    script = """
        import os
        from otel_model_metrics import BinaryMonitor, Window

        monitor = BinaryMonitor("model", window=Window(maturity=0.0))
        monitor.record_prediction("a", True)
        monitor.record_prediction("b", True)
        monitor.record_label("b", False)
        monitor._joining._ledger._lock.acquire()  # held by another thread at the moment of the fork
        monitor._joining._lock.acquire()
        pid = os.fork()
        if pid == 0:
            snapshot = monitor.snapshot()
            print("child", snapshot.rows, dict(snapshot.labels), snapshot.value("label.pending"), flush=True)
            print("child", monitor.record_label("a", True).value, monitor.snapshot().labels["matched"], flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
        monitor._joining._ledger._lock.release()
        monitor._joining._lock.release()
        print("parent", monitor.record_label("a", True).value, monitor.snapshot().rows)
    """

    assert ["child 0 {} None", "child pending 0", "parent matched 2"] == run(script).splitlines()


@needs_fork
def test_a_forked_child_shares_the_file_and_writes_nothing_of_its_parent(tmp_path):
    """
    What the parent had not written yet at the fork is written once, by the parent; the child's predictions arrive.
    """
    script = f"""
        import os, time
        from otel_model_metrics import BinaryMonitor

        monitor = BinaryMonitor("model", store="sqlite:///{tmp_path}/labels.db?interval=600&wait=5")
        monitor.record_prediction("early", True)
        assert monitor.flush()
        writer = monitor._joining._ledger._writer
        rounds = -1
        while writer._wake.is_set() or rounds != writer._rounds:     # until its thread has gone to sleep
            rounds = writer._rounds
            time.sleep(0.05)
        monitor.record_prediction("parent", True)     # is queued for ten minutes
        pid = os.fork()
        if pid == 0:
            print("child", monitor.snapshot().rows, monitor.awaits_label("parent"), flush=True)
            monitor.record_prediction("child", True)
            print("child", monitor.record_label("early", True).value, flush=True)
            print("child", monitor.record_label("parent", True).value, flush=True)
            monitor.close()
            snapshot = monitor.snapshot()
            print("child", snapshot.rows, snapshot.labels["matched"], flush=True)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        assert status == 0, status
        print("parent", monitor.flush(), monitor.awaits_label("child"), monitor.record_label("child", False).value)
        assert monitor.flush()
        snapshot = monitor.snapshot()
        print("parent", snapshot.rows, snapshot.labels["matched"], snapshot.value("label.pending"))
        print("parent", monitor.record_label("early", True).value)
    """

    assert [
        "child 0 False",
        "child matched",
        "child pending",  # for its prediction is still in the parent's hands
        "child 1 1",
        "parent True True matched",
        "parent 2 2 0.0",
        "parent duplicate",
    ] == run(script).splitlines()
