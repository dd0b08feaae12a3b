"""The window holds the newest rows and none that is too old - against a plain list, and as a user sees it."""

from __future__ import annotations

import datetime

import numpy as np
import pandas as pd
import pytest
from conftest import Clock, Exports
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_model_metrics import BinaryMonitor, RegressionMonitor, Window
from otel_model_metrics.window import RingBuffer

# The ring

# Few different times, so that equal ones are common; long chunks, so that the ring slides and wraps.
chunks = st.lists(st.lists(st.integers(0, 30), max_size=90), max_size=12)


def newest(times: list[float], rows: int, oldest: float | None = None) -> list[int]:
    """The plain model: arrival numbers of the newest rows, oldest first; among equal times the later is newer."""
    order = sorted(range(len(times)), key=lambda arrival: times[arrival])[-rows:]
    return [arrival for arrival in order if oldest is None or times[arrival] >= oldest]


def filled(ring: RingBuffer, times: list[float], first: int = 0) -> None:
    arrivals = np.arange(first, first + len(times))
    ring.append({"time": np.array(times, np.float64), "arrival": arrivals, "pair": np.stack([arrivals, -arrivals], 1)})


def ring_of(rows: int) -> RingBuffer:
    return RingBuffer(rows, {"arrival": np.int64, "pair": np.dtype((np.int32, (2,)))})


@settings(deadline=None, max_examples=150)
@given(rows=st.integers(1, 120), chunks=chunks, oldest=st.none() | st.integers(-1, 31))
def test_the_ring_is_a_sorted_list_cut_to_its_newest_rows(rows, chunks, oldest):
    """
    Whatever the order of arrival, after every chunk: every column holds the newest rows, in order of time.
    """
    ring, times = ring_of(rows), []

    for chunk in chunks:
        filled(ring, chunk, first=len(times))
        times += chunk

        wanted = newest(times, rows, oldest)
        live = ring.live(oldest)
        assert wanted == live["arrival"].tolist()
        assert [times[arrival] for arrival in wanted] == live["time"].tolist()
        assert [[arrival, -arrival] for arrival in wanted] == live["pair"].tolist()


def test_a_row_exactly_as_old_as_allowed_is_in_the_window():
    """
    The age limit is inclusive.
    """
    ring = ring_of(10)
    filled(ring, [1.0, 2.0, 3.0])

    assert [2.0, 3.0] == ring.live(oldest=2.0)["time"].tolist()


def test_one_chunk_may_be_longer_than_the_ring():
    """
    Only its newest rows stay, in order of time, not of arrival.
    """
    ring, times = ring_of(3), [float(time) for time in np.random.default_rng(1).permutation(10_000)]

    filled(ring, times)

    assert [9_997.0, 9_998.0, 9_999.0] == ring.live(None)["time"].tolist()


def test_an_old_row_does_not_push_out_newer_ones():
    """
    A full ring has no room for a row older than all of its own.
    """
    ring = ring_of(2)
    filled(ring, [10.0, 20.0])

    filled(ring, [5.0], first=2)

    assert [0, 1] == ring.live(None)["arrival"].tolist()


def test_a_cleared_ring_is_empty_and_usable():
    """
    Clearing forgets rows, not columns.
    """
    ring = ring_of(2)
    filled(ring, [1.0, 2.0, 3.0])

    ring.clear()
    assert 0 == len(ring.live(None)["time"])

    filled(ring, [0.5])
    assert [0.5] == ring.live(None)["time"].tolist()


def test_a_column_can_be_overwritten_for_the_rows_held():
    """
    `replace` reaches the rows in the ring, also after it has slid.
    """
    ring = ring_of(2)
    filled(ring, list(range(500)))

    ring.replace("arrival", np.array([7, 8]))

    assert [7, 8] == ring.live(None)["arrival"].tolist()


def test_memory_does_not_grow():
    """
    The ring's arrays are made once.
    """
    ring = ring_of(1000)
    before = ring.nbytes

    filled(ring, list(range(100_000)))

    assert before == ring.nbytes


# The window of a monitor

steps = st.lists(
    st.tuples(st.just("tick"), st.integers(0, 40))
    | st.tuples(st.just("record"), st.integers(-100, 20))
    | st.tuples(st.just("batch"), st.lists(st.integers(-100, 20), max_size=30))
    | st.tuples(st.just("look"), st.none()),
    max_size=40,
)


@settings(deadline=None, max_examples=100)
@given(steps=steps, rows=st.integers(1, 25), age=st.none() | st.integers(1, 80))
def test_the_window_is_the_newest_rows_that_are_young_enough(steps, rows, age):
    """
    Rows and age together, live and late rows mixed, staged or in batches: always those of a plain list.
    """
    clock, times = Clock(), []
    monitor = RegressionMonitor(
        "model", window=Window(rows=rows, age=age), clock=clock, meter_provider=Exports().provider, strict=True
    )
    try:
        for step, argument in [*steps, ("look", None)]:
            if step == "tick":
                clock.tick(argument)
            elif step == "record":
                monitor.record(float(len(times)), 0.0, timestamp=clock.now + argument)
                times.append(clock.now + argument)
            elif step == "batch":
                ids = np.arange(len(times), len(times) + len(argument), dtype=float)
                monitor.record_batch(ids, np.zeros(len(ids)), timestamps=[clock.now + one for one in argument])
                times += [clock.now + one for one in argument]
            else:
                wanted = newest(times, rows, None if age is None else clock.now - age)
                snapshot = monitor.snapshot()
                assert len(wanted) == snapshot.rows == snapshot.value("window.rows")
                assert (max(wanted) if wanted else None) == snapshot.value("max_error")
                assert (np.mean(wanted) if wanted else None) == pytest.approx(snapshot.value("mean_error"))
                oldest = max(0.0, clock.now - times[wanted[0]]) if wanted else 0.0
                assert oldest == pytest.approx(snapshot.value("window.age"))
    finally:
        monitor.close()


def test_silence_empties_the_window(make, clock, exports):
    """
    Rows older than `age` are gone even when nothing new is recorded; the window says so itself.
    """
    monitor = make(BinaryMonitor, window=Window(rows=100, age=60.0))
    monitor.record_batch([True, False], [True, True])

    clock.tick(60.0)
    assert 2.0 == exports.value("ml.model.window.rows")
    assert 60.0 == exports.value("ml.model.window.age")
    assert 0.5 == exports.value("ml.model.accuracy")

    clock.tick(0.5)
    assert 0.0 == exports.value("ml.model.window.rows")
    assert 0.0 == exports.value("ml.model.window.age")
    assert exports.value("ml.model.accuracy") is None


def test_a_late_row_too_old_for_the_window_still_counts_in_the_totals(make, clock, exports):
    """
    It is no quality of now, but it was an outcome.
    """
    monitor = make(BinaryMonitor, window=Window(rows=100, age=60.0))
    monitor.record(True, True)
    exports.collect()  # series are born at zero

    monitor.record(True, False, timestamp=clock.now - 60.5)
    monitor.record_batch([True], [False], timestamps=clock.now - 1e6)

    assert 1.0 == exports.value("ml.model.window.rows")
    assert 1.0 == exports.value("ml.model.accuracy")
    wrong = {"ml__class__actual": "negative", "ml__class__predicted": "positive", "ml__outcome": "wrong"}
    assert 2.0 == exports.value("ml.model.outcomes", **wrong)


def test_a_late_row_young_enough_enters_in_its_place(make, clock):
    """
    It is the first to go when the window is full.
    """
    monitor = make(RegressionMonitor, window=Window(rows=2, age=60.0))
    monitor.record(1.0, 0.0, timestamp=clock.now - 10)
    monitor.record(5.0, 0.0, timestamp=clock.now - 30)
    assert 3.0 == monitor.snapshot().value("mae")

    monitor.record(2.0, 0.0)

    assert 1.5 == monitor.snapshot().value("mae")


def test_a_flood_of_late_rows_leaves_the_window_alone(make, clock):
    """
    However many rows are too old, they push out none that is in the window.
    """
    monitor = make(RegressionMonitor, window=Window(rows=3, age=60.0))
    monitor.record_batch([1.0, 2.0, 3.0], [0.0, 0.0, 0.0])

    monitor.record_batch(np.full(1000, 9.0), np.zeros(1000), timestamps=np.full(1000, clock.now - 61))

    assert 2.0 == monitor.snapshot().value("mae")
    assert 3 == monitor.snapshot().rows


MOMENT = 1_699_999_990.0  # ten seconds before the clock's


@pytest.mark.parametrize(
    "timestamp",
    [
        MOMENT,
        int(MOMENT),
        np.float64(MOMENT),
        np.int64(MOMENT),
        datetime.datetime.fromtimestamp(MOMENT, datetime.timezone.utc),
        datetime.datetime.fromtimestamp(MOMENT, datetime.timezone(datetime.timedelta(hours=5))),
        np.datetime64(int(MOMENT), "s"),
        np.datetime64(int(MOMENT) * 1_000_000_000, "ns"),
        pd.Timestamp(MOMENT, unit="s", tz="UTC"),
    ],
    ids=lambda timestamp: type(timestamp).__name__,
)
def test_a_row_may_bring_its_own_time(make, timestamp):
    """
    Seconds since 1970, an aware datetime, or a numpy one.
    """
    monitor = make(BinaryMonitor, window=Window(age=60.0), strict=True)

    monitor.record(True, True, timestamp=timestamp)
    assert 10.0 == monitor.snapshot().value("window.age")

    monitor.record_batch([True], [True], timestamps=timestamp)
    assert (2.0, 10.0) == (monitor.snapshot().value("window.rows"), monitor.snapshot().value("window.age"))


@pytest.mark.parametrize(
    "convert",
    [
        list,
        tuple,
        np.array,
        pd.Series,
        lambda times: np.array(times).astype("datetime64[s]"),
        lambda times: pd.to_datetime(pd.Series(times), unit="s"),
        lambda times: pd.to_datetime(pd.Series(times), unit="s", utc=True),
        lambda times: [datetime.datetime.fromtimestamp(time, datetime.timezone.utc) for time in times],
    ],
    ids=["list", "tuple", "array", "Series", "datetime64", "naive Series", "aware Series", "datetimes"],
)
def test_every_row_of_a_batch_may_bring_its_own_time(make, convert):
    """
    Whatever holds the times.
    """
    monitor = make(RegressionMonitor, window=Window(rows=2), strict=True)

    monitor.record_batch([1.0, 2.0, 3.0], [0.0, 0.0, 0.0], timestamps=convert([MOMENT + 2, MOMENT, MOMENT + 4]))

    assert 2.0 == monitor.snapshot().value("mae")
    assert 8.0 == monitor.snapshot().value("window.age")


def test_a_clock_slightly_ahead_makes_no_negative_age(make, clock):
    """
    Another machine's clock may be ahead; its rows count, and are new.
    """
    monitor = make(BinaryMonitor, window=Window(age=60.0), strict=True)

    monitor.record(True, True, timestamp=clock.now + 299.0)

    assert (1.0, 0.0) == (monitor.snapshot().value("window.rows"), monitor.snapshot().value("window.age"))


# Its construction


def test_a_window_has_rows_and_no_age_by_default():
    """
    Ten thousand rows, however old.
    """
    assert Window(rows=10_000, age=None) == Window()


@pytest.mark.parametrize("given", [Window(1), Window(np.int64(5), np.float32(2.5)), Window(age=1), Window(age=1e-3)])
def test_a_window_takes_any_kind_of_number(make, given):
    """
    Python's and numpy's.
    """
    monitor = make(BinaryMonitor, window=given)

    monitor.record(True, True)

    assert 1 == monitor.snapshot().rows


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rows": 0}, ValueError, "Window needs rows >= 1, got 0."),
        ({"rows": -5}, ValueError, "Window needs rows >= 1, got -5."),
        ({"rows": 10.0}, TypeError, "Window needs rows as a whole number, got 10.0 (float)."),
        ({"rows": True}, TypeError, "Window needs rows as a whole number, got True (bool)."),
        ({"rows": None}, TypeError, "Window needs rows as a whole number, got None (NoneType)."),
        ({"rows": "10"}, TypeError, "Window needs rows as a whole number, got '10' (str)."),
        ({"age": 0}, ValueError, "Window needs age > 0 seconds (or None for no limit), got 0."),
        ({"age": -1.5}, ValueError, "Window needs age > 0 seconds (or None for no limit), got -1.5."),
        ({"age": float("nan")}, ValueError, "Window needs age > 0 seconds (or None for no limit), got nan."),
        ({"age": float("inf")}, ValueError, "Window needs age > 0 seconds (or None for no limit), got inf."),
        ({"age": "1h"}, TypeError, "Window needs age in seconds or None, got '1h' (str)."),
        ({"age": True}, TypeError, "Window needs age in seconds or None, got True (bool)."),
        (
            {"age": datetime.timedelta(hours=1)},
            TypeError,
            "Window needs age in seconds or None, got datetime.timedelta(seconds=3600) (timedelta).",
        ),
    ],
    ids=str,
)
def test_an_impossible_window_is_refused_with_what_was_expected(arguments, error, message):
    """
    At construction, not at the first row.
    """
    with pytest.raises(error) as raised:
        Window(**arguments)

    assert message == str(raised.value)


def test_a_monitor_asks_for_a_window_and_not_a_number(make):
    """
    The error says how to write it.
    """
    with pytest.raises(TypeError) as raised:
        make(BinaryMonitor, window=1000)

    assert "window must be a Window, got 1000. Write window=Window(rows=10_000, age=3600.0)." == str(raised.value)
