"""Segments: every row in the right ones, however many there are and however they are passed."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from otel_model_metrics import BinaryMonitor, MulticlassMonitor, RankingMonitor, RegressionMonitor, Window
from otel_model_metrics.segments import UNUSABLE_SET, SegmentTable, key_of
from otel_model_metrics.vocabulary import MISSING, OTHER, Vocabulary, name_of

Segment = tuple[str, str]


def segments_of(table: SegmentTable, codes: np.ndarray) -> list[set[Segment] | None]:
    """For each row the segments it is in; None for a row that cannot be used."""
    usable = codes != UNUSABLE_SET
    groups = table.groups_of(np.where(usable, codes, 0).astype(np.int32))
    assert groups.members(0).all()  # every row is in the whole
    members = {segment: groups.members(group) for group, segment in enumerate(table.groups) if segment is not None}
    return [
        {segment for segment, rows in members.items() if rows[row]} if usable[row] else None
        for row in range(len(codes))
    ]


class PlainSegments:
    """The plain model: values of a name beyond the first `max_values` are "__other__"."""

    def __init__(self, max_values: int) -> None:
        self.max_values = max_values
        self.known: dict[str, list[str]] = {}

    def of(self, row: Iterable[tuple[str, Any]]) -> set[Segment] | None:
        found = set()
        for name, value in row:
            if isinstance(value, dict):
                return None
            if value is None or value != value:
                continue
            text, known = name_of(value), self.known.setdefault(name, [])
            if text not in known and len(known) < self.max_values:
                known.append(text)
            found.add((name, text if text in known else OTHER))
        return found


# Keys and columns

values = st.none() | st.sampled_from(["DE", "FR", "", "x\ny", 1, 2, 2.0, "2", float("nan"), b"DE", "🙂"])
tables = st.sampled_from([1, 2, 3, 300])  # 300: too many for a table of all combinations


@st.composite
def columns(draw: Any, values: Any = values) -> dict[str, list[Any]]:
    count = draw(st.integers(0, 12))
    names = draw(st.lists(st.sampled_from(["country", "channel", "os"]), unique=True, max_size=3))
    return {name: draw(st.lists(values, min_size=count, max_size=count)) for name in names}


@settings(deadline=None, max_examples=200)
@given(batches=st.lists(columns(), max_size=4), max_values=tables)
def test_columns_and_keys_give_the_same_segments(batches, max_values):
    """
    A batch is its rows, one by one - and both are what a plain model says, batch after batch.
    """
    by_column, by_key, plain = SegmentTable(None, max_values), SegmentTable(None, max_values), PlainSegments(max_values)
    for batch in batches:
        count = len(next(iter(batch.values()), ()))
        rows = [tuple((name, column[row]) for name, column in batch.items()) for row in range(count)]
        # Values are met column by column in a batch, but within a name in the order of the rows either way.
        wanted = [plain.of(row) for row in rows]

        assert wanted == segments_of(by_column, by_column.encode_columns(batch, count))
        assert wanted == segments_of(by_key, by_key.encode_keys(rows))


@settings(deadline=None, max_examples=50)
@given(batch=columns(values | st.just({"un": "hashable"})))
def test_a_row_with_an_unusable_value_is_unusable_either_way(batch):
    """
    And only that row.
    """
    count = len(next(iter(batch.values()), ()))
    rows = [tuple((name, column[row]) for name, column in batch.items()) for row in range(count)]
    by_column, by_key, plain = SegmentTable(None, 300), SegmentTable(None, 300), PlainSegments(300)
    wanted = [plain.of(row) for row in rows]

    assert wanted == segments_of(by_column, by_column.encode_columns(batch, count))
    assert wanted == segments_of(by_key, by_key.encode_keys(rows))


@pytest.mark.parametrize(
    ("segments", "wanted"),
    [
        (None, set()),
        ({}, set()),
        ([], set()),
        ({"country": "DE"}, {("country", "DE")}),
        ({"country": None, "os": float("nan")}, set()),
        ({"country": ""}, {("country", "__empty__")}),
        ({"country": ("DE", "FR")}, {("country", "DE"), ("country", "FR")}),
        ({"country": frozenset(["DE"])}, {("country", "DE")}),
        ({"country": ("DE", "DE", None)}, {("country", "DE")}),
        ({"country": ()}, set()),
        (["gold", "beta"], {("segment", "gold"), ("segment", "beta")}),
        (("gold",), {("segment", "gold")}),
        ({"gold"}, {("segment", "gold")}),
        ({"premium": True, "age": 3}, {("premium", "true"), ("age", "3")}),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("kind", "row"),
    [
        (BinaryMonitor, (True, True)),
        (MulticlassMonitor, ("a", "a")),
        (RegressionMonitor, (1.0, 1.0)),
        (RankingMonitor, (["a"], "a")),
    ],
    ids=["binary", "multiclass", "regression", "ranking"],
)
def test_segments_are_a_mapping_or_a_list_of_tags(make, kind, row, segments, wanted):
    """
    With one value or several for a name; None, NaN and nothing at all are no segment.
    """
    monitor = make(kind, strict=True)

    monitor.record(*row, segments=segments)
    monitor.record_batch([row[0]], [row[1]], segments=[segments])
    snapshot = monitor.snapshot()

    assert 2 == snapshot.rows
    assert wanted == {segment for segment in snapshot.segments if segment is not None}
    assert [2.0] * len(wanted) == [snapshot.value("window.rows", segment) for segment in wanted]


@pytest.mark.parametrize(
    "segments_of_caller",
    [lambda: ["x"], lambda: {"country": "DE"}],
    ids=["tags", "mapping"],
)
@pytest.mark.parametrize(
    ("kind", "row"),
    [
        (BinaryMonitor, (True, True)),
        (MulticlassMonitor, ("a", "a")),
        (RegressionMonitor, (1, 1)),
        (RankingMonitor, ([1], 1)),
    ],
    ids=["binary", "multiclass", "regression", "ranking"],
)
def test_what_the_caller_changes_later_does_not_reach_the_row(make, kind, row, segments_of_caller):
    """
    A row is what it was when it was recorded, though it is encoded later.
    """
    monitor, segments = make(kind), segments_of_caller()
    monitor.record(*row, segments=segments)

    segments.clear()
    snapshot = monitor.snapshot()

    assert 1 == len([segment for segment in snapshot.segments if segment is not None])


@pytest.mark.parametrize(
    "convert",
    [
        list,
        tuple,
        np.array,
        lambda values: np.array(values, object),
        pd.Series,
        pd.Categorical,
        lambda values: pd.Series(values, dtype="category"),
        lambda values: pd.Series(values, dtype="string"),
        pa.array,
        lambda values: pa.chunked_array([values[:1], values[1:]]),
        lambda values: pa.array(values).dictionary_encode(),
        iter,
    ],
    ids=[
        "list", "tuple", "array", "object array", "Series", "Categorical", "category", "string", "pyarrow", "chunked",
        "dictionary", "iterator",
    ],
)  # fmt: skip
def test_a_batch_takes_segments_from_whatever_holds_them(make, convert):
    """
    One column for each name; a single value holds for all rows.
    """
    monitor = make(BinaryMonitor, strict=True)

    monitor.record_batch(
        [True, True, False], [True, False, False], segments={"country": convert(["DE", "FR", "DE"]), "channel": "web"}
    )
    snapshot = monitor.snapshot()

    assert [2.0, 1.0, 3.0] == [
        snapshot.value("window.rows", segment) for segment in [("country", "DE"), ("country", "FR"), ("channel", "web")]
    ]
    assert [1.0, 0.0] == [snapshot.value("accuracy", ("country", one)) for one in ("DE", "FR")]


@pytest.mark.parametrize(
    "column",
    [
        pd.Series(["DE", None, "DE"]),
        pd.Series(["DE", None, "DE"], dtype="string"),
        pd.Categorical(["DE", None, "DE"]),
        pa.array(["DE", None, "DE"]),
        pa.array(["DE", None, "DE"]).dictionary_encode(),
        ["DE", float("nan"), "DE"],
    ],
    ids=lambda column: f"{type(column).__module__} {getattr(column, 'dtype', '')}",
)
def test_a_missing_value_in_a_column_is_no_segment(make, column):
    """
    The row counts in the whole only.
    """
    monitor = make(BinaryMonitor, strict=True)

    monitor.record_batch([True] * 3, [True] * 3, segments={"country": column})
    snapshot = monitor.snapshot()

    assert [None, ("country", "DE")] == list(snapshot.segments)
    assert [3.0, 2.0] == [snapshot.value("window.rows"), snapshot.value("window.rows", ("country", "DE"))]


def test_several_values_in_a_column_are_several_segments(make):
    """
    As in `record`: a tuple is no value of its own.
    """
    monitor = make(BinaryMonitor, strict=True)

    monitor.record(True, True, segments={"tag": ("gold", "beta")})
    monitor.record_batch([True, True], [True, True], segments={"tag": [("gold", "beta"), "gold"]})
    snapshot = monitor.snapshot()

    assert [None, ("tag", "gold"), ("tag", "beta")] == list(snapshot.segments)
    assert [3.0, 2.0] == [snapshot.value("window.rows", ("tag", tag)) for tag in ("gold", "beta")]


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint16, np.float32, np.float64])
def test_numbers_as_segments_are_written_the_same_from_every_array(make, dtype):
    """
    3, 3.0 and "3" are one segment.
    """
    monitor = make(BinaryMonitor, strict=True)

    monitor.record_batch([True] * 2, [True] * 2, segments={"tier": np.array([3, 4], dtype)})
    monitor.record(True, True, segments={"tier": "3"})

    assert 2.0 == monitor.snapshot().value("window.rows", ("tier", 3))
    assert [None, ("tier", "3"), ("tier", "4")] == list(monitor.snapshot().segments)


# "__other__"


def test_what_is_beyond_the_bound_is_computed_like_any_other_segment(make):
    """
    The overflow rows are a segment of their own, with values of their own - not the rest of a subtraction.
    """
    random = np.random.default_rng(4)
    countries = random.choice([f"country-{number}" for number in range(30)], 500)
    labels, predictions, scores = random.random(500) < 0.4, random.random(500) < 0.5, random.random(500)
    kept = list(dict.fromkeys(countries))[:5]
    rest = ~np.isin(countries, kept)
    monitor = make(BinaryMonitor, max_segment_values=5, segment_metrics=["f1", "precision", "roc_auc"], strict=True)

    for row in range(250):
        monitor.record(predictions[row], labels[row], score=scores[row], segments={"country": countries[row]})
    monitor.record_batch(
        predictions[250:], labels[250:], scores=scores[250:], segments={"country": countries[250:].tolist()}
    )
    snapshot = monitor.snapshot()

    assert [None, *(("country", one) for one in kept), ("country", OTHER)] == list(snapshot.segments)
    other = ("country", OTHER)
    assert rest.sum() == snapshot.value("window.rows", other)
    assert metrics.f1_score(labels[rest], predictions[rest]) == pytest.approx(snapshot.value("f1", other))
    assert metrics.precision_score(labels[rest], predictions[rest]) == pytest.approx(snapshot.value("precision", other))
    assert metrics.roc_auc_score(labels[rest], scores[rest]) == pytest.approx(snapshot.value("roc_auc", other))


def test_a_row_with_two_values_beyond_the_bound_is_one_row(make, exports):
    """
    It is in "__other__" once, and counted as overflowed once.
    """
    monitor = make(RegressionMonitor, max_segment_values=1)
    monitor.record(1.0, 0.0, segments=["first"])
    exports.collect()  # series are born at zero

    monitor.record(3.0, 0.0, segments=["second", "third", "first"])
    exports.collect()

    assert [1.0, 3.0] == [monitor.snapshot().value(metric, ("segment", OTHER)) for metric in ("window.rows", "mae")]
    assert 1.0 == exports.value("ml.model.segments.overflowed", ml__segment__name="segment")


def test_every_name_has_a_bound_of_its_own(make):
    """
    A name with many values takes no place from another.
    """
    monitor = make(BinaryMonitor, max_segment_values=2, strict=True)

    for number in range(10):
        monitor.record(True, True, segments={"user": number, "country": "DE" if number % 2 else "FR"})

    snapshot = monitor.snapshot()
    assert {("user", "0"), ("user", "1"), ("user", OTHER), ("country", "FR"), ("country", "DE")} == set(
        snapshot.segments
    ) - {None}
    assert [8.0, 5.0] == [snapshot.value("window.rows", segment) for segment in [("user", OTHER), ("country", "DE")]]


def test_names_beyond_the_bound_share_one(make):
    """
    Thirty-two names are kept apart when any is allowed; rows of further ones are not lost.
    """
    monitor = make(BinaryMonitor, strict=True)

    for number in range(40):
        monitor.record(True, True, segments={f"name-{number}": "value"})
    monitor.record_batch([True], [True], segments={"yet-another": ["value"], "and-another": ["value"]})

    snapshot = monitor.snapshot()
    assert 41 == snapshot.rows
    assert {(f"name-{number}", "value") for number in range(32)} | {(OTHER, OTHER)} == set(snapshot.segments) - {None}
    assert 9.0 == snapshot.value("window.rows", (OTHER, OTHER))


# What is refused


UNKNOWN_NAME = "segment name must be one of those given to the monitor (country, channel), got"
NO_SEGMENTS = "segments must be a mapping name -> value or a list of tags, got"
ADVICE = 'Write segments={"country": "DE"}, or segments=["DE"] for a tag.'


@pytest.mark.parametrize(
    ("segments", "problem"),
    [
        ({"region": "EU"}, f"{UNKNOWN_NAME} 'region' (str)."),
        ({"country": "DE", "region": "EU"}, f"{UNKNOWN_NAME} 'region' (str)."),
        (["DE"], f"{UNKNOWN_NAME} 'segment' (str)."),
        ({3: "DE"}, f"{UNKNOWN_NAME} 3 (int)."),
        ({"country": {"a": "dict"}}, "segment values must be hashable, got {'a': 'dict'} (dict) for 'country'."),
        ("DE", f"{NO_SEGMENTS} 'DE' (str). {ADVICE}"),
        (7, f"{NO_SEGMENTS} 7 (int). {ADVICE}"),
    ],
    ids=["unknown name", "one unknown name", "tags", "name no text", "unhashable value", "text", "number"],
)
def test_a_row_with_unusable_segments_is_refused_with_the_reason(make, caplog, exports, segments, problem):
    """
    The rows beside it are kept.
    """
    monitor = make(RegressionMonitor, segments=("country", "channel"))
    exports.collect()

    monitor.record(1.0, 1.0, segments={"country": "DE"})
    monitor.record(1.0, 1.0, segments=segments)
    monitor.record(1.0, 1.0, segments={"channel": "web"})
    exports.collect()

    assert 1.0 == exports.value("ml.model.rejected", ml__reject__reason="invalid_segment")
    assert 2 == monitor.snapshot().rows
    assert [f"model 'model' unversioned: 1 row(s) rejected as invalid_segment: {problem}"] == [
        record.getMessage() for record in caplog.records
    ]


@pytest.mark.parametrize("segments", [{"region": ["EU", "EU"]}, {"country": ["DE", "FR"], "region": "EU"}], ids=str)
def test_a_batch_with_an_unknown_segment_name_is_refused(make, caplog, segments):
    """
    Each of its rows has the unknown name.
    """
    monitor = make(BinaryMonitor, segments=("country",))

    monitor.record_batch([True, True], [True, True], segments=segments)
    monitor.record_batch([True, True], [True, True], segments={"country": ["DE", "FR"]})

    assert 2 == monitor.snapshot().rows
    assert {"invalid_segment": 2} == monitor.snapshot().to_dict()["rejected"]
    assert [
        "model 'model' unversioned: 2 row(s) rejected as invalid_segment: segment name must be one of those given to "
        "the monitor (country), got 'region' (str)."
    ] == [record.getMessage() for record in caplog.records]


def test_a_monitor_without_segments_takes_none(make, caplog):
    """
    `segments=()` allows no name at all.
    """
    caplog.set_level(logging.CRITICAL)
    monitor = make(BinaryMonitor, segments=())

    monitor.record(True, True, segments={"country": "DE"})
    monitor.record(True, True)

    assert 1 == monitor.snapshot().rows


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"segments": "country"},
            TypeError,
            "segments must be several names, got the single string 'country'. Write (\"country\",).",
        ),
        ({"segments": ["a", "a"]}, ValueError, "segments must not name a segment twice, got ('a', 'a')."),
        ({"segments": [3]}, TypeError, "a segment name must be a non-empty string, got 3 (int)."),
        ({"segments": [""]}, TypeError, "a segment name must be a non-empty string, got '' (str)."),
        ({"max_segment_values": 0}, ValueError, "max_segment_values must be a whole number >= 1, got 0 (int)."),
        ({"max_segment_values": 2.5}, ValueError, "max_segment_values must be a whole number >= 1, got 2.5 (float)."),
    ],
    ids=str,
)
def test_misuse_raises_at_construction(make, arguments, error, message):
    """
    With what was expected and what came.
    """
    with pytest.raises(error) as raised:
        make(BinaryMonitor, **arguments)

    assert message == str(raised.value)


# Bounds


def test_many_different_values_leave_a_monitor_small(make):
    """
    A user id passed as a segment value costs neither memory nor series. (200,000 of them, to be quick.)
    """
    table = SegmentTable(None, 50)

    for start in range(0, 100_000, 5000):
        table.encode_columns({"user": [f"user-{number}" for number in range(start, start + 5000)]}, 5000)
    for start in range(100_000, 200_000, 2500):
        keys = [(("user", f"user-{number}"),) for number in range(start, start + 2500)]
        table.encode_keys(keys)
        table.encode_keys([*keys[:5], (("user", "x" * 10_000),)])

    assert 1 + 50 + 1 == len(table.groups)
    assert 1 + 50 + 1 == table.sets
    assert 4096 >= len(table.key_ids)
    assert 4096 >= len(table._later_keys)
    assert 300 >= max(len(str(key)) for key in (*table.key_ids, *table._later_keys))


def test_every_backend_can_store_every_segment(make, exports):
    """
    Control characters, lone surrogates, emptiness and 10 kB of text reach nobody.
    """
    monitor = make(BinaryMonitor, strict=True)

    for value in ["", " ", "\n", "\x00", "\ud800", "x" * 10_000, "Köln 🙂"]:
        monitor.record(True, True, segments={"city": value, value: "as a name"})
    exported = {value for series in exports.collect()["ml.model.accuracy"] for _, value in series}

    for text in exported:
        text.encode()
        assert 0 < len(text.strip()) <= 120
        assert not any(ord(one) < 32 for one in text)


def test_many_sets_of_segments_in_a_small_window_stay_exact(make):
    """
    Sets of segments that no row in the window has are forgotten, and nobody can tell.
    """
    random = np.random.default_rng(9)
    rows = 30
    monitor = make(RegressionMonitor, window=Window(rows=rows), strict=True)
    past: list[tuple[float, dict[str, Any]]] = []
    most = 0

    for _ in range(60):
        errors = random.integers(1, 100, 200).astype(float)
        batch = {name: random.integers(0, 25, 200).tolist() for name in "abc"}
        monitor.record_batch(errors, np.zeros(200), segments=batch)
        past += [(errors[row], {name: column[row] for name, column in batch.items()}) for row in range(200)]
        for error in (1.0, 2.0, 3.0):
            tags = random.integers(0, 40, 4).tolist()
            monitor.record(error, 0.0, segments={"tag": tuple(tags), "a": 3})
            past.append((error, {"tag": tags, "a": 3}))
        snapshot = monitor.snapshot()
        most = max(most, monitor._recorder._segments.sets)

        held: dict[Segment, list[float]] = {}
        for error, segments in past[-rows:]:
            for name, value in segments.items():
                for one in set(value) if isinstance(value, list) else [value]:
                    held.setdefault((name, str(one)), []).append(error)
        known = [segment for segment in snapshot.segments if segment is not None]
        assert held.keys() <= set(known)
        for segment in known:
            assert len(held.get(segment, ())) == snapshot.value("window.rows", segment)
            assert (np.mean(held[segment]) if segment in held else None) == pytest.approx(
                snapshot.value("mae", segment)
            )

    assert 2 * (rows + 4096) < len({str(segments) for _, segments in past}), "too few sets to need compaction"
    assert 2 * (rows + 4096) + 300 > most


def test_compaction_keeps_what_rows_are_in():
    """
    Codes change, segments do not; sets met again later are found again.
    """
    table = SegmentTable(None, 50)
    keys = [((("a", a), ("b", b))) for a, b in itertools.product(range(20), range(20))]
    columns = {name: [dict(key)[name] for key in keys] for name in "ab"}
    codes = table.encode_columns(columns, len(keys))
    before = segments_of(table, codes)

    kept = codes[[7, 7, 399, 20]]
    renumbered = table.compact(kept)

    assert 4 == table.sets  # three, and the empty one
    assert [before[row] for row in (7, 7, 399, 20)] == segments_of(table, renumbered)
    assert before == segments_of(table, table.encode_keys(keys))


def test_a_key_cannot_be_read_from_everything():
    """
    What cannot be read is remembered with the reason, for the caller's thread must not suffer.
    """

    class Hostile(dict):  # type: ignore[type-arg]
        def items(self) -> Any:
            raise RuntimeError("no items")

    assert "segments could not be read (RuntimeError('no items'))." == key_of(Hostile()).message


def test_the_vocabulary_of_values_knows_no_missing_ones():
    """
    A segment is never named after what is not there.
    """
    words = Vocabulary(5)

    assert {MISSING} == set(words.encode([None, float("nan"), pd.NA, pd.NaT]).tolist())
    assert [] == words.names
