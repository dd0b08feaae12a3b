"""What users may pass, in whatever form; and what becomes of a row that cannot be used."""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import fractions
import logging
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from otel_model_metrics import BinaryMonitor, MulticlassMonitor, RankingMonitor, RegressionMonitor
from otel_model_metrics.encoding import REASONS

TITLE = "model 'model' unversioned"


def rejected(monitor: Any) -> dict[str, int]:
    """Rows not used, by reason."""
    found: dict[str, int] = monitor.snapshot().to_dict()["rejected"]
    return found


def matrix_of(monitor: Any, exports: Any) -> list[int]:
    """Confusion matrix of a binary monitor's totals: tn, fp, fn, tp."""
    exports.collect()  # series are born at zero
    found = []
    for actual in ("negative", "positive"):
        for predicted in ("negative", "positive"):
            outcome = "correct" if actual == predicted else "wrong"
            found.append(
                exports.value(
                    "ml.model.outcomes", ml__class__actual=actual, ml__class__predicted=predicted, ml__outcome=outcome
                )
            )
    return found


class Yes(enum.Enum):
    YES = "yes"
    NO = "no"


# Binary: what is accepted

TRUE_FALSE = [
    (True, False),
    (1, 0),
    (1.0, 0.0),
    (np.True_, np.False_),
    (np.int8(1), np.uint64(0)),
    (np.float32(1), np.float64(0)),
    (decimal.Decimal(1), decimal.Decimal(0)),
    (np.array(1), np.array(0.0)),
]


@pytest.mark.parametrize(("yes", "no"), TRUE_FALSE, ids=lambda value: f"{type(value).__name__} {value}")
def test_a_flag_may_be_any_kind_of_true_and_false(make, exports, yes, no):
    """
    Booleans, 0 and 1, Python's or numpy's; one by one or in a list.
    """
    monitor = make(BinaryMonitor, strict=True)

    monitor.record(yes, yes)
    monitor.record(yes, no)
    monitor.record_batch([no, no, yes], [yes, no, no])

    assert [1, 2, 1, 1] == matrix_of(monitor, exports)


POSITIVES = [
    ("fraud", "fraud", "fine"),
    ("1", "1", "0"),
    (2, 2, 3),
    (1, 1, 0),
    (1, 1.0, -1.0),
    (0, 0, 1),
    (True, True, False),
    (-1, np.int64(-1), np.int64(1)),
    (Yes.YES, Yes.YES, Yes.NO),
    (("a", 1), ("a", 1), ("b", 2)),
]


@pytest.mark.parametrize(("positive", "yes", "no"), POSITIVES, ids=repr)
def test_the_positive_class_may_have_any_name(make, exports, positive, yes, no):
    """
    Every other value of its kind is negative.
    """
    monitor = make(BinaryMonitor, positive=positive, strict=True)

    monitor.record(yes, yes)
    monitor.record(yes, no)
    monitor.record_batch([no, no, yes], [yes, no, no])

    assert [1, 2, 1, 1] == matrix_of(monitor, exports)


@pytest.mark.parametrize("positive", [False, True, 1, 1.0], ids=repr)
def test_a_named_positive_class_is_the_same_in_a_list_and_in_an_array(make, exports, positive):
    """
    Booleans, and the numbers they equal.
    """
    one, other = make(BinaryMonitor, "list", positive=positive), make(BinaryMonitor, "array", positive=positive)

    one.record_batch([True, True, False], [True, False, False])
    other.record_batch(np.array([True, True, False]), np.array([True, False, False]))

    assert one.snapshot().to_dict()["values"] == other.snapshot().to_dict()["values"]


def converters(values: list[Any]) -> dict[str, Callable[[list[Any]], Any]]:
    """What may hold a column of these values."""
    found: dict[str, Callable[[list[Any]], Any]] = {
        "list": list,
        "tuple": tuple,
        "iterator": iter,
        "deque": collections.deque,
        "array": np.array,
        "object array": lambda column: np.array(column, object),
        "strided array": lambda column: np.repeat(np.array(column), 2)[::2],
        "read-only array": lambda column: _frozen(np.array(column)),
        "Series": pd.Series,
        "Series with another index": lambda column: pd.Series(column, index=range(len(column), 0, -1)),
        "Index": pd.Index,
        "object Series": lambda column: pd.Series(column, dtype=object),
        "Categorical": pd.Categorical,
        "category Series": lambda column: pd.Series(column, dtype="category"),
        "pyarrow array": pa.array,
        "pyarrow chunks": lambda column: pa.chunked_array([column[:1], column[1:]]),
        "pyarrow dictionary": lambda column: pa.array(column).dictionary_encode(),
        "pyarrow table column": lambda column: pa.table({"column": column})["column"],
        "arrow Series": lambda column: pd.Series(pa.array(column), dtype=pd.ArrowDtype(pa.array(column).type)),
    }
    if isinstance(values[0], str):
        found["string Series"] = lambda column: pd.Series(column, dtype="string")
        return found
    kinds = {bool: ["bool"], int: ["int8", "uint8", "int32", "uint64", "float32"], float: ["float16", "float64", ">f4"]}
    for dtype in kinds[type(values[0])]:
        found[f"{dtype} array"] = lambda column, dtype=dtype: np.array(column, dtype)
    nullable = {bool: "boolean", int: "Int64", float: "Float64"}[type(values[0])]
    found[f"{nullable} Series"] = lambda column: pd.Series(column, dtype=nullable)
    return found


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def cases(*kinds: list[Any]) -> list[Any]:
    return [
        pytest.param(values, convert, id=f"{type(values[0]).__name__} {name}")
        for values in kinds
        for name, convert in converters(values).items()
    ]


@pytest.mark.parametrize(("values", "convert"), cases([True, False], [1, 0], [1.0, 0.0], ["yes", "no"]))
def test_flags_come_in_whatever_holds_them(make, exports, values, convert):
    """
    Lists, numpy arrays of every type, pandas, pyarrow.
    """
    yes, no = values
    monitor = make(BinaryMonitor, positive=yes if isinstance(yes, str) else None, strict=True)

    monitor.record_batch(convert([yes, yes, no, no, yes]), convert([yes, no, yes, no, no]))

    assert [1, 2, 1, 1] == matrix_of(monitor, exports)


@pytest.mark.parametrize(("values", "convert"), cases([1, 2, 3], [0.5, 2.0, 4.25]))
def test_numbers_come_in_whatever_holds_them(make, values, convert):
    """
    For regression, every number counts.
    """
    monitor = make(RegressionMonitor, strict=True)

    monitor.record_batch(convert(values), [0.0, 0.0, 0.0])
    monitor.record_batch([0.0, 0.0, 0.0], convert(values))

    assert sum(values) / 3 == pytest.approx(monitor.snapshot().value("mae"))
    assert 0.0 == pytest.approx(monitor.snapshot().value("mean_error"))


@pytest.mark.parametrize(("values", "convert"), cases([0.25, 0.5, 1.0]))
def test_scores_come_in_whatever_holds_them(make, values, convert):
    """
    And alone, the threshold turns them into predictions.
    """
    monitor = make(BinaryMonitor, threshold=0.5, strict=True)

    monitor.record_batch(labels=[False, True, True], scores=convert(values))

    assert 1.0 == monitor.snapshot().value("accuracy")
    assert (0.25**2 + 0.5**2) / 3 == pytest.approx(monitor.snapshot().value("brier_score"))


@pytest.mark.parametrize(("values", "convert"), cases(["cat", "dog", "eel"], [7, 8, 9], [1.0, 2.0, 3.0], [True, False]))
def test_classes_come_in_whatever_holds_them(make, values, convert):
    """
    Text, numbers, booleans.
    """
    monitor = make(MulticlassMonitor, strict=True)

    monitor.record_batch(convert(values), convert(values[1:] + values[:1]))
    monitor.record_batch(convert(values), convert(values))
    monitor.record(values[0], values[0])

    wanted = (len(values) + 1) / (2 * len(values) + 1)
    assert wanted == pytest.approx(monitor.snapshot().value("accuracy"))
    assert [1.0] == [
        one.values[0] * 0 + 1 for one in monitor.snapshot().series if ("ml.class", str_of(values[0])) in one.variant
    ][:1]


def str_of(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


@pytest.mark.parametrize(
    "labels",
    [
        [True, None, False, None],
        pd.Series([True, None, False, None], dtype="boolean"),
        pd.Series([1, None, 0, None], dtype="Int64"),
        pd.Series([1, None, 0, None], dtype="Float64"),
        pd.Series([True, None, False, None], dtype=object),
        pd.array([True, None, False, None], dtype="boolean"),
        [True, pd.NA, False, pd.NaT],
        np.array([True, None, False, None], object),
        pa.array([True, None, False, None]),
        pa.array([1, None, 0, None]),
        pa.array([1.0, None, 0.0, None]),
        pa.chunked_array([[True, None], [False, None]]),
        pd.Series([True, None, False, None], dtype=pd.ArrowDtype(pa.bool_())),
    ],
    ids=lambda labels: f"{type(labels).__module__} {type(labels).__name__} {getattr(labels, 'dtype', '')}",
)
def test_a_missing_label_is_a_prediction_without_label(make, exports, labels):
    """
    None, NA and null: counted as a prediction, not in the window, and not refused.
    """
    monitor = make(BinaryMonitor, strict=True)

    monitor.record_batch([True, True, True, False], labels)

    assert 2 == monitor.snapshot().rows
    assert [0, 1, 0, 1] == matrix_of(monitor, exports)
    assert [3.0, 1.0] == [
        exports.value("ml.model.predictions", ml__class__predicted=one) for one in ("positive", "negative")
    ]


@pytest.mark.parametrize(
    ("kind", "predictions", "labels"),
    [
        (MulticlassMonitor, ["a", "b", "c"], ["a", None, "a"]),
        (MulticlassMonitor, ["a", "b", "c"], pd.Categorical(["a", None, "a"])),
        (MulticlassMonitor, ["a", "b", "c"], pd.Series(["a", None, "a"], dtype="string")),
        (MulticlassMonitor, ["a", "b", "c"], pa.array(["a", None, "a"]).dictionary_encode()),
        (RegressionMonitor, [1.0, 2.0, 3.0], [1.0, None, 1.0]),
        (RegressionMonitor, [1.0, 2.0, 3.0], pd.Series([1.0, None, 1.0], dtype="Float64")),
        (RegressionMonitor, [1.0, 2.0, 3.0], pa.array([1.0, None, 1.0])),
        (RankingMonitor, [["a"], ["b"], ["c"]], ["a", None, {"c"}]),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_a_missing_label_is_not_known_whatever_the_task(make, kind, predictions, labels):
    """
    Three predictions, two labels.
    """
    monitor = make(kind, strict=True)

    monitor.record_batch(predictions, labels)
    monitor.record_batch(predictions)
    monitor.record(predictions[0])

    reading = monitor.collect()[0]
    assert (2, 5) == (reading.labelled, reading.unlabelled)


# Multiclass scores


@pytest.mark.parametrize(
    "classes", [["cat", "dog", "eel"], [0, 1, 2], [1.5, 2.0, "x"], [True, False, "unknown"]], ids=str
)
@pytest.mark.parametrize(
    "spelling",
    [
        lambda vector, classes: vector,
        lambda vector, classes: tuple(vector),
        lambda vector, classes: np.array(vector, np.float32),
        lambda vector, classes: pd.Series(vector),
        lambda vector, classes: dict(zip(classes, vector, strict=True)),
        lambda vector, classes: {one: value for one, value in zip(classes, vector, strict=True) if value},
        lambda vector, classes: collections.OrderedDict(reversed(list(zip(classes, vector, strict=True)))),
        lambda vector, classes: types.MappingProxyType(dict(zip(classes, vector, strict=True))),
    ],
    ids=["list", "tuple", "array", "Series", "mapping", "mapping without zeros", "ordered mapping", "proxy"],
)  # fmt: skip
def test_scores_of_classes_are_a_vector_or_a_mapping(make, classes, spelling):
    """
    In the order of `classes=`, or by class, as the class was given.
    """
    monitor = make(MulticlassMonitor, classes=classes, k=1, strict=True)
    vectors = [[0.5, 0.25, 0.25], [0.0, 0.25, 0.75]]

    for vector, label in zip(vectors, [classes[0], classes[1]], strict=True):
        monitor.record(None, label, score=spelling(vector, classes))
    monitor.record_batch(None, [classes[0], classes[1]], scores=[spelling(vector, classes) for vector in vectors])

    assert 0.5 == monitor.snapshot().value("accuracy")
    assert 0.5 == monitor.snapshot().value("top_k_accuracy", k=1)
    assert -(np.log(0.5) + np.log(0.25)) / 2 == pytest.approx(monitor.snapshot().value("log_loss"), rel=1e-6)


@pytest.mark.parametrize(
    "convert",
    [
        np.array,
        lambda rows: np.array(rows, np.float32),
        lambda rows: np.asfortranarray(np.array(rows)),
        lambda rows: np.array(rows, object),
        list,
        lambda rows: [np.array(row) for row in rows],
        pd.DataFrame,
    ],
    ids=["array", "float32", "Fortran", "object", "lists", "arrays", "DataFrame"],
)
def test_a_batch_of_class_scores_is_a_matrix(make, convert):
    """
    Shape (n, C), however it is held.
    """
    monitor = make(MulticlassMonitor, classes=["cat", "dog"], k=1, strict=True)

    monitor.record_batch(None, ["cat", "dog", "cat"], scores=convert([[0.75, 0.25], [0.75, 0.25], [1.0, 0.0]]))

    assert 2 / 3 == pytest.approx(monitor.snapshot().value("accuracy"))


@pytest.mark.parametrize(
    "convert",
    [list, tuple, np.array, lambda rows: [np.array(row) for row in rows], pd.Series, pa.array],
    ids=["lists", "tuple", "array", "arrays", "Series", "pyarrow"],
)
def test_rankings_come_in_whatever_holds_them(make, convert):
    """
    One list of items a row, or an array of shape (n, items).
    """
    monitor = make(RankingMonitor, k=1, strict=True)
    rankings, labels = [["a", "b"], ["b", "a"]], ["a", "a"]

    monitor.record_batch(convert(rankings), labels)
    monitor.record(rankings[0], "a")
    monitor.record(np.array(rankings[1]), np.array(["a"]))

    assert 4 == monitor.snapshot().rows
    assert 0.75 == monitor.snapshot().value("mrr")


@pytest.mark.parametrize(
    ("kind", "score", "change"),
    [
        (MulticlassMonitor, np.array([0.75, 0.25]), lambda score: score.fill(9)),
        (MulticlassMonitor, [0.75, 0.25], lambda score: score.clear()),
        (MulticlassMonitor, {"a": 0.75, "b": 0.25}, lambda score: score.clear()),
    ],
    ids=["array", "list", "mapping"],
)
def test_a_score_the_caller_reuses_is_what_it_was(make, kind, score, change):
    """
    Servers reuse their buffers; the row is encoded later.
    """
    monitor = make(kind, classes=["a", "b"])
    monitor.record("a", "a", score=score)

    change(score)

    assert -np.log(0.75) == pytest.approx(monitor.snapshot().value("log_loss"))
    assert {} == rejected(monitor)


def test_a_ranking_the_caller_reuses_is_what_it_was(make):
    """
    Lists, sets, mappings and arrays.
    """
    monitor = make(RankingMonitor)
    for items, label in [(["a"], {"a"}), (["a"], ["a"]), (["a"], {"a": 1.0}), (np.array(["a"]), np.array(["a"]))]:
        monitor.record(items, label)
        if isinstance(items, list):
            items.clear()
            label.clear()
        else:
            items[:], label[:] = "z", "y"

    assert (4, 1.0) == (monitor.snapshot().rows, monitor.snapshot().value("mrr"))


# What is refused, and what is said


def refusal(count: int, reason: str, text: str) -> str:
    return f"{TITLE}: {count} row(s) rejected as {reason}: {text}"


FLAGS = "must be True/False or 0/1, got"
PROBABILITY = "score must be a probability in [0, 1], got"
FINITE = "must be a finite number, at most 1e+70 in size, got"
CLASS = "must be a class name or number, got"
VECTOR = "score must be 2 probabilities that add up to 1, in the order of classes=, got"
ITEMS = "prediction must be the ordered list of items shown, got"
RELEVANT = "label must be the relevant item, a set of them, or a mapping item -> gain, got"
NO_ITEM = "label must name at least one relevant item, got"
LEAVE_OUT = "Leave such rows out, or pass label=None."
TIME = "timestamp must be seconds since 1970 and not in the future, got"
LOGITS = "If these are logits, apply a sigmoid first."
NAN = float("nan")
INFINITE = float("inf")

GOOD: dict[Any, dict[str, Any]] = {
    BinaryMonitor: {"prediction": True, "label": False},
    MulticlassMonitor: {"prediction": "a", "label": "b"},
    RegressionMonitor: {"prediction": 1.0, "label": 2.0},
    RankingMonitor: {"prediction": ["a", "b"], "label": "b"},
}
KINDS = list(GOOD)
FIXED = {"classes": ["a", "b"]}
FRAUD = {"positive": "fraud"}

BAD_PREDICTION, BAD_LABEL, BAD_SCORE, BAD_TIME, UNKNOWN = (
    "invalid_prediction", "invalid_label", "invalid_score", "invalid_timestamp", "unknown_class"
)  # fmt: skip

# Monitor, its settings, what is wrong with an otherwise good row, the reason, and what is said.
BAD_ROWS: dict[str, tuple[Any, dict[str, Any], dict[str, Any], str, str]] = {}


def bad(kind: Any, settings: dict[str, Any], rows: list[tuple[dict[str, Any], str, str]]) -> None:
    for row, reason, text in rows:
        BAD_ROWS[f"{kind.task} {settings or ''} {row}".replace("\n", " ")] = (kind, settings, row, reason, text)


bad(BinaryMonitor, {}, [
    ({"prediction": "yes"}, BAD_PREDICTION,
     f"prediction {FLAGS} 'yes' (str). Name the positive class with positive='yes'."),
    ({"prediction": 2}, BAD_PREDICTION, f"prediction {FLAGS} 2 (int)."),
    ({"prediction": 0.83}, BAD_PREDICTION, f"prediction {FLAGS} 0.83 (float)."),
    ({"prediction": NAN}, BAD_PREDICTION, f"prediction {FLAGS} nan (float)."),
    ({"prediction": 10**400}, BAD_PREDICTION, f"prediction {FLAGS} {str(10**400)[:79]}… (int)."),
    ({"prediction": None}, BAD_PREDICTION,
     "a row needs a prediction, or a score that the threshold turns into one; got neither."),
    ({"label": NAN}, BAD_LABEL, f"label {FLAGS} nan (float)."),
    ({"label": "no"}, BAD_LABEL, f"label {FLAGS} 'no' (str). Name the positive class with positive='no'."),
    ({"label": [True]}, BAD_LABEL, f"label {FLAGS} [True] (list)."),
    ({"score": 1.7}, BAD_SCORE, f"{PROBABILITY} 1.7. {LOGITS}"),
    ({"score": -0.5}, BAD_SCORE, f"{PROBABILITY} -0.5. {LOGITS}"),
    ({"score": INFINITE}, BAD_SCORE, f"{PROBABILITY} inf. {LOGITS}"),
    ({"score": NAN}, BAD_SCORE, f"{PROBABILITY} nan (float)."),
    ({"score": "0.5"}, BAD_SCORE, f"{PROBABILITY} '0.5' (str)."),
    ({"score": [0.2, 0.8]}, BAD_SCORE, f"{PROBABILITY} [0.2, 0.8] (list)."),
    ({"timestamp": 1_700_000_301.0}, BAD_TIME, f"{TIME} 1.7e+09."),
    ({"timestamp": 1_700_000_000_000}, BAD_TIME, f"{TIME} 1.7e+12."),
    ({"timestamp": -1.0}, BAD_TIME, f"{TIME} -1."),
])  # fmt: skip
bad(BinaryMonitor, FRAUD, [
    ({"prediction": 1, "label": "fine"}, BAD_PREDICTION,
     "prediction must be comparable with the positive class 'fraud', got 1 (int)."),
    ({"prediction": "fine", "label": 1}, BAD_LABEL,
     "label must be comparable with the positive class 'fraud', got 1 (int)."),
])  # fmt: skip
bad(MulticlassMonitor, {}, [
    ({"prediction": None}, BAD_PREDICTION, f"prediction {CLASS} None (NoneType)."),
    ({"label": NAN}, BAD_LABEL, f"label {CLASS} nan (float)."),
    ({"label": ["a"]}, BAD_LABEL, f"label {CLASS} ['a'] (list)."),
    ({"score": [1.0]}, BAD_SCORE,
     "score needs classes= given to the monitor, for it says which probability belongs to which class."),
    ({"timestamp": True}, BAD_TIME, f"{TIME} nan."),
])  # fmt: skip
bad(MulticlassMonitor, FIXED, [
    ({"label": "c"}, UNKNOWN, "label must be one of the classes (a, b), got 'c' (str)."),
    ({"prediction": 3}, UNKNOWN, "prediction must be one of the classes (a, b), got 3 (int)."),
    ({"score": [0.5, 0.2]}, BAD_SCORE, f"{VECTOR} array([0.5, 0.2]) (ndarray)."),
    ({"score": [1.0]}, BAD_SCORE, f"{VECTOR} array([1.]) (ndarray)."),
    ({"score": []}, BAD_SCORE, f"{VECTOR} array([], dtype=float64) (ndarray)."),
    ({"score": [1.5, -0.5]}, BAD_SCORE, f"{VECTOR} array([ 1.5, -0.5]) (ndarray)."),
    ({"score": [NAN, 1.0]}, BAD_SCORE, f"{VECTOR} array([nan,  1.]) (ndarray)."),
    ({"score": 0.7}, BAD_SCORE, f"{VECTOR} array(0.7) (ndarray)."),
    ({"score": "high"}, BAD_SCORE, f"{VECTOR} 'high' (str)."),
    ({"score": {"z": 1.0}}, BAD_SCORE, f"{VECTOR} {{'z': 1.0}} (dict)."),
])  # fmt: skip
bad(MulticlassMonitor, {"max_classes": 2}, [
    ({"label": "c"}, UNKNOWN,
     "label must be one of at most 2 classes (a, b), got 'c' (str). "
     "Raise max_classes=, or group rare classes before recording."),
])  # fmt: skip
bad(RegressionMonitor, {}, [
    ({"prediction": NAN}, BAD_PREDICTION, f"prediction {FINITE} nan (float)."),
    ({"prediction": -1e71}, BAD_PREDICTION, f"prediction {FINITE} -1e+71 (float)."),
    ({"prediction": 10**400}, BAD_PREDICTION, f"prediction {FINITE} {str(10**400)[:79]}… (int)."),
    ({"prediction": "1.0"}, BAD_PREDICTION, f"prediction {FINITE} '1.0' (str)."),
    ({"prediction": 1j}, BAD_PREDICTION, f"prediction {FINITE} 1j (complex)."),
    ({"prediction": None}, BAD_PREDICTION, f"prediction {FINITE} None (NoneType)."),
    ({"prediction": [1.0]}, BAD_PREDICTION, f"prediction {FINITE} [1.0] (list)."),
    ({"label": INFINITE}, BAD_LABEL, f"label {FINITE} inf (float)."),
    ({"label": NAN}, BAD_LABEL, f"label {FINITE} nan (float)."),
    ({"timestamp": NAN}, BAD_TIME, f"{TIME} nan."),
    ({"timestamp": "2026-11-23"}, BAD_TIME, f"{TIME} nan."),
])  # fmt: skip
bad(RankingMonitor, {}, [
    ({"prediction": "abc"}, BAD_PREDICTION, f"{ITEMS} 'abc' (str)."),
    ({"prediction": {"a"}}, BAD_PREDICTION, f"{ITEMS} {{'a'}} (set)."),
    ({"prediction": None}, BAD_PREDICTION, f"{ITEMS} None (NoneType)."),
    ({"prediction": ["a", "b", "a"]}, BAD_PREDICTION,
     "prediction must not show an item twice, got ['a', 'b', 'a'] (list)."),
    ({"prediction": [["a"]]}, BAD_PREDICTION, "prediction must hold hashable items, got [['a']] (list)."),
    ({"label": {}}, BAD_LABEL, f"{NO_ITEM} {{}} (dict). {LEAVE_OUT}"),
    ({"label": {"a": 0.0}}, BAD_LABEL, f"{NO_ITEM} {{'a': 0.0}} (dict). {LEAVE_OUT}"),
    ({"label": {"a": -1.0}}, BAD_LABEL, "label must map items to gains >= 0, got {'a': -1.0} (dict)."),
    ({"label": {"a": NAN}}, BAD_LABEL, "label must map items to gains >= 0, got {'a': nan} (dict)."),
    ({"label": {"a": INFINITE}}, BAD_LABEL, "label must map items to gains >= 0, got {'a': inf} (dict)."),
    ({"label": {"a": "much"}}, BAD_LABEL, "label must map items to gains >= 0, got {'a': 'much'} (dict)."),
    ({"label": NAN}, BAD_LABEL, "label must be the relevant item, got NaN."),
    ({"label": (["a"],)}, BAD_LABEL, f"{RELEVANT} (['a'],) (tuple)."),
    ({"timestamp": datetime.datetime(2023, 11, 14)}, BAD_TIME, f"{TIME} nan."),
])  # fmt: skip


def good_row(kind: Any, settings: dict[str, Any]) -> dict[str, Any]:
    return {"prediction": "fraud", "label": "fine"} if settings is FRAUD else GOOD[kind]


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_refused_with_its_reason_and_the_others_are_kept(make, caplog, exports, case):
    """
    The log line says what was expected, what came, and what to do; the totals say how many.
    """
    kind, settings, wrong, reason, text = BAD_ROWS[case]
    good = good_row(kind, settings)
    monitor = make(kind, **settings)
    exports.collect()

    monitor.record(**good)
    monitor.record(**{**good, **wrong})
    monitor.record(**good)

    assert 2 == monitor.snapshot().rows
    assert {reason: 1} == rejected(monitor)
    exports.collect()
    assert 1.0 == exports.value("ml.model.rejected", ml__reject__reason=reason)
    assert [refusal(1, reason, text)] == [record.getMessage() for record in caplog.records]
    assert {logging.WARNING} == {record.levelno for record in caplog.records}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_in_a_batch_costs_only_itself(make, caplog, case):
    """
    The others of the batch are kept, and the reason is the same.
    """
    kind, settings, wrong, reason, _ = BAD_ROWS[case]
    rows = [good_row(kind, settings), {**good_row(kind, settings), **wrong}, good_row(kind, settings)]
    monitor = make(kind, **settings)
    more = {}
    if "score" in wrong:
        more["scores"] = [None, wrong["score"], None]
    if "timestamp" in wrong:
        more["timestamps"] = [1_700_000_000.0, wrong["timestamp"], 1_700_000_000.0]

    monitor.record_batch([row["prediction"] for row in rows], [row["label"] for row in rows], **more)

    assert 2 == monitor.snapshot().rows
    assert {reason: 1} == rejected(monitor)
    assert 1 == len(caplog.records)


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_strict_monitor_raises_what_others_log(make, caplog, case):
    """
    At the very call, after keeping the good rows; for tests.
    """
    kind, settings, wrong, reason, text = BAD_ROWS[case]
    good = good_row(kind, settings)
    monitor = make(kind, strict=True, **settings)
    monitor.record(**good)

    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the whole message is compared below
        monitor.record(**{**good, **wrong})

    assert f"{text} ({TITLE})" == str(raised.value)
    assert (1, {reason: 1}) == (monitor.snapshot().rows, rejected(monitor))


def test_a_row_with_several_faults_is_refused_once(make):
    """
    By the first of them.
    """
    monitor = make(BinaryMonitor, segments=())

    monitor.record("yes", "no", score=7.0, segments={"country": "DE"}, timestamp="now")

    assert {"invalid_score": 1} == rejected(monitor)


def test_a_reason_is_logged_once_a_minute(make, caplog, clock):
    """
    What was not said meanwhile is counted in the next line; other reasons have lines of their own.
    """
    monitor = make(BinaryMonitor)
    flag = f"label {FLAGS} 2 (int)."

    monitor.record_batch([True] * 3, [2, 2, True])
    monitor.record_batch([True], [2])
    clock.tick(59.0)
    monitor.record(True, 2)
    monitor.snapshot()
    monitor.record_batch([2], [True])
    assert [
        refusal(2, "invalid_label", flag),
        refusal(1, "invalid_prediction", f"prediction {FLAGS} 2 (int)."),
    ] == [record.getMessage() for record in caplog.records]

    caplog.clear()
    clock.tick(1.0)
    monitor.record_batch([True], [2])
    assert [f"{TITLE}: 1 row(s) rejected as invalid_label (2 more since the last such line): {flag}"] == [
        record.getMessage() for record in caplog.records
    ]

    caplog.clear()
    clock.tick(60.0)
    monitor.record_batch([True], [2])
    assert [refusal(1, "invalid_label", flag)] == [record.getMessage() for record in caplog.records]


def test_every_monitor_logs_for_itself(make, caplog):
    """
    One model's noise does not hide another's.
    """
    for name in ("first", "second"):
        make(BinaryMonitor, name, version="1").record_batch([True], [2])

    assert [
        f"model 'first' 1: 1 row(s) rejected as invalid_label: label {FLAGS} 2 (int).",
        f"model 'second' 1: 1 row(s) rejected as invalid_label: label {FLAGS} 2 (int).",
    ] == [record.getMessage() for record in caplog.records]


def test_every_log_line_comes_from_one_logger(make, caplog):
    """
    It can be silenced, or routed, by the name of the package.
    """
    make(BinaryMonitor).record_batch([True], [2])

    assert ["otel_model_metrics"] == [record.name for record in caplog.records]


# Calls that cannot be read at all

UNEQUAL = {
    "labels": (
        {"predictions": [True, True, True], "labels": [True]},
        "record_batch needs arrays of equal length, got 3 predictions, 1 labels.",
    ),
    "scores": (
        {"predictions": np.ones(3), "labels": np.ones(3), "scores": np.ones(2)},
        "record_batch needs arrays of equal length, got 3 predictions, 3 labels, 2 scores.",
    ),
    "no predictions": (
        {"labels": [True] * 3, "scores": [0.5]},
        "record_batch needs arrays of equal length, got 3 labels, 1 scores.",
    ),
    "segments": (
        {"predictions": [True] * 3, "segments": {"country": ["DE"], "channel": "web"}},
        "record_batch needs arrays of equal length, got 3 predictions, 1 segments['country'].",
    ),
    "segments by row": (
        {"predictions": [True] * 3, "segments": [{"country": "DE"}]},
        "record_batch needs arrays of equal length, got 3 predictions, 1 segments.",
    ),
    "timestamps": (
        {"predictions": [True] * 3, "timestamps": [1.0, 2.0]},
        "record_batch needs arrays of equal length, got 3 predictions, 2 timestamps.",
    ),
}


@pytest.mark.parametrize("case", UNEQUAL)
def test_columns_of_unequal_length_refuse_the_whole_call(make, caplog, case):
    """
    Nobody knows which rows belong together: nothing is recorded, and one line says so.
    """
    arguments, text = UNEQUAL[case]
    monitor = make(BinaryMonitor)

    monitor.record_batch(**arguments)

    assert [refusal(3, "unequal_length", text)] == [record.getMessage() for record in caplog.records]
    assert (0, {"unequal_length": 3}) == (monitor.snapshot().rows, rejected(monitor))

    with pytest.raises(ValueError, match="equal length") as raised:
        make(BinaryMonitor, "strict", strict=True).record_batch(**arguments)
    assert f"{text} (model 'strict' unversioned)" == str(raised.value)


UNREADABLE = {
    "single prediction": (
        {"predictions": True, "labels": [True, True]},
        2,
        "record_batch: predictions must be an array or list with one entry a row, got bool.",
    ),
    "text": (
        {"predictions": "yes", "labels": [True]},
        1,
        "record_batch: predictions must be an array or list with one entry a row, got str.",
    ),
    "array of no dimension": (
        {"predictions": np.array(1.0), "labels": np.array(1.0)},
        1,
        "record_batch: predictions must be an array or list with one entry a row, got a single value.",
    ),
    "matrix of predictions": (
        {"predictions": np.ones((4, 2)), "labels": np.ones(4)},
        4,
        "record_batch: predictions must have one dimension, got shape (4, 2).",
    ),
    "matrix of scores": (
        {"labels": np.ones(4), "scores": np.ones((4, 2))},
        4,
        "record_batch: scores must have one dimension, got shape (4, 2). "
        "Pass the probability of the positive class, e.g. scores[:, 1].",
    ),
    "nothing": (
        {"labels": [True, True]},
        2,
        "record_batch: there must be predictions, or scores that a threshold turns into them.",
    ),
    "nothing at all": (
        {},
        1,
        "record_batch: there must be predictions, or scores that a threshold turns into them.",
    ),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_call_that_cannot_be_read_is_refused_and_never_raises(make, caplog, case):
    """
    Single values, matrices, nothing.
    """
    arguments, count, text = UNREADABLE[case]
    monitor = make(BinaryMonitor)

    monitor.record_batch(**arguments)

    assert [refusal(count, "invalid_prediction", text)] == [record.getMessage() for record in caplog.records]
    assert (0, {"invalid_prediction": count}) == (monitor.snapshot().rows, rejected(monitor))


def test_an_empty_batch_is_no_misuse(make, caplog):
    """
    There are quiet seconds.
    """
    for kind in (BinaryMonitor, MulticlassMonitor, RegressionMonitor, RankingMonitor):
        monitor = make(kind, kind.__name__, strict=True)
        for empty in ([], np.array([]), pd.Series([], dtype=float), pa.array([], pa.float64()), iter([])):
            monitor.record_batch(empty)
            monitor.record_batch([], empty, segments={"country": []}, timestamps=[])
        assert (0, {}) == (monitor.snapshot().rows, rejected(monitor))

    assert [] == caplog.records


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        (np.ma.masked_array([1.0, 5.0, 3.0], mask=[False, True, False]), (2, 1)),
        (pd.DataFrame({"label": [1.0, 5.0, 3.0]}), (3, 0)),
        (pd.Series([1.0, np.nan, 3.0]), (2, 0)),
    ],
    ids=["masked array", "DataFrame of one column", "Series with NaN"],
)
def test_labels_are_never_invented(make, caplog, labels, wanted):
    """
    What is masked is not known, a table of one column is that column (or refused), NaN is no number.
    """
    monitor = make(RegressionMonitor)

    monitor.record_batch([1.0, 1.0, 3.0], labels)

    reading = monitor.collect()[0]
    assert (reading.labelled, reading.unlabelled) in (wanted, (0, 0))
    assert monitor.snapshot().value("max_error") in (None, 0.0, 4.0 if wanted == (3, 0) else 0.0)


@pytest.mark.parametrize("column", [[True, 1, 0], [1, True, 0]], ids=str)
def test_a_row_means_the_same_whatever_stands_beside_it(make, column):
    """
    True and 1 are equal, but a batch must not decide by which of them comes first.
    """
    at_once, one_by_one = make(BinaryMonitor, "at once", positive=0), make(BinaryMonitor, "one by one", positive=0)

    at_once.record_batch(column, [0, 0, 0])
    for value in column:
        one_by_one.record_batch([value], [0])

    assert one_by_one.snapshot().value("recall") == at_once.snapshot().value("recall")


# The host comes first


class Hostile:
    """An object of which the named methods fail."""

    def __init__(self, *methods: str) -> None:
        self.methods = methods

    def _fail(self, method: str, otherwise: Any) -> Any:
        if method in self.methods or "all" in self.methods:
            raise RuntimeError(f"{method} fails")
        return otherwise

    def __eq__(self, other: object) -> bool:
        return bool(self._fail("eq", self is other))

    def __hash__(self) -> int:
        return int(self._fail("hash", 1))

    def __str__(self) -> str:
        return str(self._fail("str", "text"))

    def __repr__(self) -> str:
        return str(self._fail("repr", "repr"))

    def __float__(self) -> float:
        return float(self._fail("float", 1.0))

    def __bool__(self) -> bool:
        return bool(self._fail("bool", True))

    def __len__(self) -> int:
        return int(self._fail("len", 3))

    def __iter__(self) -> Any:
        return self._fail("iter", iter([1, 2, 3]))

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self._fail("array", np.zeros(3))


class HostileInt(int):
    """A number that does not like to be one."""

    def __float__(self) -> float:
        raise RuntimeError("no float")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    def __hash__(self) -> int:
        raise RuntimeError("no hash")


class HostileText(str):
    def __hash__(self) -> int:
        raise RuntimeError("no hash")

    def __str__(self) -> str:
        raise RuntimeError("no text")

    def __len__(self) -> int:
        raise RuntimeError("no length")


class HostileMapping(dict):  # type: ignore[type-arg]
    def items(self) -> Any:
        return [1, 2, 3]

    def __iter__(self) -> Any:
        raise RuntimeError("no iteration")


class HostileList(list):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        raise RuntimeError("no iteration")

    def __len__(self) -> int:
        raise RuntimeError("no length")


class HostileAttributes:
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"no {name}")


class HostileZone(datetime.tzinfo):
    def utcoffset(self, moment: Any) -> Any:
        raise RuntimeError("no offset")


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class RaisesUnprintable:
    def __iter__(self) -> Any:
        raise UnprintableError


def recursive_list() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


def recursive_mapping() -> dict[str, Any]:
    found: dict[str, Any] = {}
    found["self"] = found
    return found


def deep_tuple() -> Any:
    found: Any = ()
    for _ in range(20_000):
        found = (found,)
    return found


ZOO: dict[str, Callable[[], Any]] = {
    **{f"failing {method}": lambda method=method: Hostile(method) for method in (
        "eq", "hash", "str", "repr", "float", "bool", "len", "iter", "array", "all"
    )},
    "two that cannot be compared": lambda: (Hostile("eq"), Hostile("eq")),
    "hostile int": lambda: HostileInt(1),
    "hostile text": lambda: HostileText("x"),
    "hostile mapping": lambda: HostileMapping(a=1),
    "hostile list": lambda: HostileList([1]),
    "hostile attributes": HostileAttributes,
    "hostile time zone": lambda: datetime.datetime(2023, 11, 14, tzinfo=HostileZone()),
    "zone without offset": lambda: datetime.datetime(2023, 11, 14, tzinfo=datetime.tzinfo()),
    "unprintable error": RaisesUnprintable,
    "recursive list": recursive_list,
    "recursive mapping": recursive_mapping,
    "deep tuple": deep_tuple,
    "huge int": lambda: 10**5000,
    "int beyond 64 bits": lambda: 2**70,
    "negative huge int": lambda: -(10**400),
    "huge float array": lambda: np.array([1e308, 1e308]),
    "long double": lambda: np.longdouble("1e4000"),
    "long doubles": lambda: np.array(["1e4000"], np.longdouble),
    "complex": lambda: 1 + 2j,
    "signalling NaN": lambda: decimal.Decimal("sNaN"),
    "infinite decimal": lambda: decimal.Decimal("Infinity"),
    "fraction": lambda: fractions.Fraction(1, 3),
    "none": lambda: None,
    "NaN": lambda: NAN,
    "NA": lambda: pd.NA,
    "NaT": lambda: pd.NaT,
    "not a time": lambda: np.datetime64("NaT"),
    "a time far away": lambda: np.datetime64(2**62, "Y"),
    "generic time": lambda: np.datetime64(5, "D"),
    "duration": lambda: np.timedelta64(5, "D"),
    "text": lambda: "text",
    "empty text": lambda: "",
    "lone surrogate": lambda: "\ud800",
    "bytes": lambda: b"\xff\x00",
    "long text": lambda: "x" * 1_000_000,
    "empty list": list,
    "list": lambda: [1, "a", None],
    "set": lambda: {1, "a"},
    "mapping": lambda: {"a": {}, None: 1},
    "array": lambda: np.ones((2, 2)),
    "array of no dimension": lambda: np.array(1),
    "array of objects": lambda: np.array([None, {}, [1]], dtype=object),
    "empty array": lambda: np.zeros((0, 3)),
    "structured array": lambda: np.zeros(2, [("a", int)]),
    "void": lambda: np.zeros(2, [("a", int)])[0],
    "Series": lambda: pd.Series([1, 2]),
    "DataFrame": lambda: pd.DataFrame({"a": [1, 2]}),
    "pyarrow scalar": lambda: pa.scalar(1),
    "pyarrow table": lambda: pa.table({"a": [1]}),
    "generator": lambda: (one for one in (1, 2)),
    "class": lambda: int,
    "function": lambda: len,
    "module": lambda: np,
    "exception": lambda: RuntimeError("x"),
    "range": lambda: range(3),
    "ellipsis": lambda: ...,
}  # fmt: skip


def accounted(monitor: Any, exports: Any) -> tuple[float, float]:
    """What the exported totals say: predictions seen, and rows refused."""
    exports.collect()  # series are born at zero
    exported = exports.collect()
    seen = sum(
        value
        for series, value in exported.get("ml.model.predictions", {}).items()
        if "ml.segment.name" not in dict(series)
    )
    return seen, sum(exported.get("ml.model.rejected", {}).values())


def settings_of(kind: Any) -> dict[str, Any]:
    return {"classes": ["a", "b", "c"]} if kind is MulticlassMonitor else {}


def hashable_or(value: Any, otherwise: Any) -> Any:
    """A value as a key of a mapping, if it can be one."""
    try:
        hash(value)
    except Exception:
        return otherwise
    return value


def rows_with(kind: Any, value: Callable[[], Any]) -> list[dict[str, Any]]:
    """Rows that have a value in every place it can be in."""
    good = GOOD[kind]
    wrong: list[dict[str, Any]] = [
        {"prediction": value()},
        {"label": value()},
        {"prediction": value(), "label": value()},
        {"prediction": [value()], "label": [value()]},
        {"prediction": [value(), "b"], "label": {"b"}},
        {"label": {hashable_or(value(), "x"): 1.0}},
        {"label": {"a": value()}},
        {"segments": value()},
        {"segments": {"country": value()}},
        {"segments": {"country": [value(), "DE"]}},
        {"segments": [value()]},
        {"timestamp": value()},
    ]
    if kind in (BinaryMonitor, MulticlassMonitor):
        wrong += [
            {"score": value()},
            {"prediction": None, "score": value()},
            {"prediction": None, "score": [value()]},
            {"prediction": None, "score": {"a": value()}},
        ]
    return [{**good, **one} for one in wrong]


def calls_with(kind: Any, value: Callable[[], Any]) -> list[dict[str, Any]]:
    """Batches of three rows of which the second has a value in a place it can be in."""
    predictions, labels = [GOOD[kind]["prediction"]] * 3, [GOOD[kind]["label"]] * 3
    wrong: list[dict[str, Any]] = [
        {"predictions": [predictions[0], value(), predictions[2]]},
        {"labels": [labels[0], value(), labels[2]]},
        {"segments": {"country": ["DE", value(), "FR"]}},
        {"segments": [{"country": "DE"}, value(), ["tag"]]},
        {"timestamps": [1e9, value(), 1e9]},
    ]
    if kind in (BinaryMonitor, MulticlassMonitor):
        wrong.append({"scores": [None, value(), None]})
    return [{"predictions": predictions, "labels": labels, **one} for one in wrong]


of_every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.task)
with_every_animal = pytest.mark.parametrize("animal", ZOO)
# numpy warns of some, and a warning is no error in production
warnings_are_no_errors = pytest.mark.filterwarnings("ignore")


@warnings_are_no_errors
@with_every_animal
@of_every_kind
def test_record_never_raises_and_loses_no_row(make, exports, caplog, kind, animal):
    """
    Whatever is passed, in whichever place: no error reaches the caller, and every row is accounted for.
    """
    caplog.set_level(logging.CRITICAL)
    monitor, rows = make(kind, **settings_of(kind)), rows_with(kind, ZOO[animal])

    for row in rows:
        monitor.record(**row)

    assert len(rows) == sum(accounted(monitor, exports))


@warnings_are_no_errors
@with_every_animal
@of_every_kind
def test_record_batch_never_raises_and_loses_no_row(make, exports, caplog, kind, animal):
    """
    The same in columns.
    """
    caplog.set_level(logging.CRITICAL)
    monitor, calls = make(kind, **settings_of(kind)), calls_with(kind, ZOO[animal])

    for call in calls:
        monitor.record_batch(**call)

    assert 3 * len(calls) == sum(accounted(monitor, exports))


@warnings_are_no_errors
@with_every_animal
@of_every_kind
def test_record_batch_never_raises_for_whole_columns(make, exports, caplog, kind, animal):
    """
    Nor for what is no column at all.
    """
    caplog.set_level(logging.CRITICAL)
    monitor, value = make(kind, **settings_of(kind)), ZOO[animal]
    good = {"predictions": [GOOD[kind]["prediction"]] * 3, "labels": [GOOD[kind]["label"]] * 3}

    for wrong in [
        lambda: {"predictions": value()},
        lambda: {"labels": value()},
        lambda: {"predictions": value(), "labels": value()},
        lambda: {"segments": value()},
        lambda: {"segments": {"country": value()}},
        lambda: {"segments": {hashable_or(value(), "x"): ["DE"] * 3}},
        lambda: {"timestamps": value()},
        *([lambda: {"scores": value()}] if kind in (BinaryMonitor, MulticlassMonitor) else []),
    ]:
        monitor.record_batch(**{**good, **wrong()})
    monitor.record_batch(**good)

    assert 3 <= monitor.snapshot().rows


@warnings_are_no_errors
@with_every_animal
@of_every_kind
def test_a_hostile_value_costs_only_its_own_row(make, caplog, kind, animal):
    """
    Good rows encoded together with it are kept: one faulty caller must not blind the monitor.
    """
    caplog.set_level(logging.CRITICAL)
    for row in rows_with(kind, ZOO[animal]):
        monitor = make(kind, **settings_of(kind))
        row.pop("timestamp", None)  # read in the caller's thread, and so by itself

        monitor.record(**GOOD[kind])
        monitor.record(**row)
        monitor.record(**GOOD[kind])

        assert 2 <= monitor.snapshot().rows, {
            name: value for name, value in row.items() if GOOD[kind].get(name) != value
        }
        monitor.close()


@warnings_are_no_errors
@with_every_animal
@of_every_kind
def test_a_hostile_value_in_a_batch_costs_only_its_own_row(make, caplog, kind, animal):
    """
    The other two of three are kept.
    """
    caplog.set_level(logging.CRITICAL)
    for number, call in enumerate(calls_with(kind, ZOO[animal])):
        monitor = make(kind, **settings_of(kind))

        monitor.record_batch(**call)

        assert 2 <= monitor.snapshot().rows, ("prediction", "label", "segment", "tag", "timestamp", "score")[number]
        monitor.close()


@warnings_are_no_errors
@with_every_animal
@pytest.mark.parametrize(
    ("kind", "column"),
    [
        (BinaryMonitor, "labels"),
        (BinaryMonitor, "scores"),
        (MulticlassMonitor, "labels"),
        (RegressionMonitor, "labels"),
    ],
    ids=lambda value: getattr(value, "task", value),
)
def test_a_value_is_good_or_bad_whatever_stands_beside_it(make, caplog, kind, column, animal):
    """
    Columns of the usual types take a fast path, which must not accept what the careful one refuses.
    """
    caplog.set_level(logging.CRITICAL)
    good = {"predictions": GOOD[kind]["prediction"], "labels": GOOD[kind]["label"]}
    refused = []
    for neighbours in ([], [good["labels"]], ["bad"]):
        monitor = make(kind, str(neighbours), **settings_of(kind))
        columns = {name: [value] * (1 + len(neighbours)) for name, value in good.items()}
        monitor.record_batch(**{**columns, column: [ZOO[animal](), *neighbours]})
        refused.append(sum(rejected(monitor).values()) - neighbours.count("bad"))

    assert [refused[0]] * 3 == refused, "alone, beside a good one, beside a bad one"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_row_is_labelled_or_unlabelled_or_refused(make, exports, caplog, kind):
    """
    Good, bad, late and unlabelled rows, in random order, one by one and in batches: the totals add up to the calls.
    """
    caplog.set_level(logging.CRITICAL)
    random = np.random.default_rng(8)
    monitor, (prediction, label) = make(kind), GOOD[kind].values()
    recorded = 0
    for _ in range(60):
        count = int(random.integers(0, 12))
        predictions = [[prediction, object()][int(random.random() < 0.2)] for _ in range(count)]
        labels = [[label, None, NAN][int(random.choice(3, p=[0.6, 0.2, 0.2]))] for _ in range(count)]
        segments = [[None, {"country": "DE"}, 7][int(random.integers(3))] for _ in range(count)]
        times = [[None, 1e9, 1e15][int(random.integers(3))] for _ in range(count)]
        recorded += count
        if random.random() < 0.5:
            for row in range(count):
                monitor.record(predictions[row], labels[row], segments=segments[row], timestamp=times[row])
        else:
            times = [1e9 if time is None else time for time in times]
            monitor.record_batch(predictions, labels, segments=segments, timestamps=times)
    monitor.record_batch([prediction] * 5, [label] * 4)
    recorded += 5

    reading = monitor.collect()[0]
    assert recorded == sum(accounted(monitor, exports))
    assert recorded == reading.labelled + reading.unlabelled + sum(reading.rejected.values())
    assert min(reading.labelled, reading.unlabelled, reading.rejected["invalid_segment"]) > 0


def test_all_reasons_are_exported_from_the_first_day(make, exports):
    """
    As zeros: an alert on an increase needs a series to begin with.
    """
    make(BinaryMonitor).record(True, True)

    exported = exports.collect()["ml.model.rejected"]

    assert set(REASONS) == {dict(series)["ml.reject.reason"] for series in exported}
    assert {0.0} == set(exported.values())


def test_ten_thousand_bad_rows_are_one_log_line(make, caplog):
    """
    The log is the host's too.
    """
    monitor = make(BinaryMonitor)

    for _ in range(10_000):
        monitor.record("yes", "no")

    assert {"invalid_prediction": 10_000} == rejected(monitor)
    assert 1 == len(caplog.records)


@pytest.mark.parametrize(
    ("kind", "arguments", "error", "message"),
    [
        (BinaryMonitor, {"threshold": 1.5}, ValueError, "threshold must be a probability in [0, 1], got 1.5."),
        (BinaryMonitor, {"threshold": True}, ValueError, "threshold must be a probability in [0, 1], got True."),
        (BinaryMonitor, {"positive": NAN}, TypeError,
         "positive must be the value that means positive, such as 'fraud' or 1, got nan."),
        (BinaryMonitor, {"positive": ["a"]}, TypeError,
         "positive must be the value that means positive, such as 'fraud' or 1, got ['a']."),
        (MulticlassMonitor, {"classes": "abc"}, ValueError, "classes must name at least two classes, got 'abc'."),
        (MulticlassMonitor, {"classes": ["a"]}, ValueError, "classes must name at least two classes, got ['a']."),
        (MulticlassMonitor, {"classes": [1, "1"]}, ValueError,
         "classes must be different when written as text, got [1, '1']."),
        (MulticlassMonitor, {"max_classes": 0}, ValueError, "max_classes must be a whole number >= 1, got 0 (int)."),
        (RankingMonitor, {"k": 0}, ValueError, "k must be a whole number >= 1, got 0 (int)."),
        (RankingMonitor, {"k": [5, 5]}, ValueError, "k must be one cut-off or several different ones, got [5, 5]."),
        (RankingMonitor, {"k": []}, ValueError, "k must be one cut-off or several different ones, got []."),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else getattr(value, "__name__", ""),
)  # fmt: skip
def test_misuse_raises_at_construction(make, kind, arguments, error, message):
    """
    With what was expected and what came.
    """
    with pytest.raises(error) as raised:
        make(kind, **arguments)

    assert message == str(raised.value)
