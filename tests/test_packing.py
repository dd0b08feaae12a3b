"""What is kept of a prediction gives the same columns as the prediction itself, and holds nothing else of it."""

from __future__ import annotations

import contextlib
import enum
import struct
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_model_metrics.encoding import (
    BinaryEncoder,
    Encoder,
    MulticlassEncoder,
    RankingEncoder,
    Refusals,
    RegressionEncoder,
)
from otel_model_metrics.packing import Packing, SegmentPacking, UnusableError, packing_of
from otel_model_metrics.segments import SegmentTable
from otel_model_metrics.vocabulary import Vocabulary


class Fraud(enum.Enum):
    YES = "yes"
    NO = "no"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Kind(str, enum.Enum):
    GOOD = "good"
    FRAUD = "fraud"


def binary(positive: Any = None, threshold: float = 0.5) -> tuple[Encoder, Packing]:
    encoder = BinaryEncoder(positive, threshold)
    return encoder, packing_of(encoder, positive, contextlib.nullcontext)


def multiclass(classes: list[Any] | None = None, most: int = 100) -> tuple[Encoder, Packing]:
    vocabulary = Vocabulary(most) if classes is None else Vocabulary(len(classes), values=classes, closed=True)
    encoder = MulticlassEncoder(vocabulary, classes is not None, (1, 2))
    return encoder, packing_of(encoder, None, contextlib.nullcontext)


def regression() -> tuple[Encoder, Packing]:
    encoder = RegressionEncoder()
    return encoder, packing_of(encoder, None, contextlib.nullcontext)


def ranking() -> tuple[Encoder, Packing]:
    encoder = RankingEncoder((1, 3))
    return encoder, packing_of(encoder, None, contextlib.nullcontext)


def columns_of(encoder: Encoder, predictions: Any, labels: Any, scores: Any, count: int) -> dict[str, list[Any]]:
    """The ring's columns of rows that can all be used."""
    refusals = Refusals(count)
    encoded = encoder.encode(predictions, labels, scores, count, refusals)
    assert {} == refusals.reasons
    return {name: column.ravel().tolist() for name, column in encoded.columns.items()}


def assert_same_columns(pair: tuple[Encoder, Packing], rows: list[tuple[Any, Any, Any]]) -> None:
    """Rows of prediction, label and score, by way of bytes and straight; all together and one by one."""
    encoder, packing = pair
    for some in (rows, *([row] for row in rows)):
        predictions, labels, scores = (list(column) for column in zip(*some, strict=True))
        with_scores = scores if any(score is not None for score in scores) else None
        expected = columns_of(encoder, predictions, labels, with_scores, len(some))
        packed = [packing.prediction(prediction, score) for prediction, _, score in some]
        packed_labels = [packing.label(label) for label in labels]
        found = columns_of(encoder, *packing.columns(packed, packed_labels), len(some))
        for name, column in expected.items():
            assert column == pytest.approx(found[name], rel=1e-12, abs=1e-12, nan_ok=True), name


# Binary


@pytest.mark.parametrize(
    ("positive", "yes", "no"),
    [
        (None, True, False),
        (None, 1, 0),
        (None, 1.0, 0.0),
        (None, np.True_, np.False_),
        (None, np.int8(1), np.uint64(0)),
        (None, np.float32(1), np.float64(0)),
        ("fraud", "fraud", "good"),
        ("fraud", "fraud", ""),
        ("fraud", np.str_("fraud"), np.str_("good")),
        ("fraud", True, False),
        (1, 1, 0),
        (1, 1.0, -1),
        (1, True, False),
        (1, np.int64(1), np.int64(7)),
        (0, 0, 1),
        (0, False, True),
        (0, np.float64(0), 5),
        (2, 2, 1),
        (2, np.int64(2), True),
        (2, 2.0, 0),
        (-1, -1, 1),
        (b"fraud", b"fraud", b"good"),
        (Fraud.YES, Fraud.YES, Fraud.NO),
        (Level.HIGH, Level.HIGH, Level.LOW),
        (Level.HIGH, 2, 1),
        (Kind.FRAUD, Kind.FRAUD, Kind.GOOD),
        (Kind.FRAUD, "fraud", "good"),
        (np.int64(2), 2, 3),
        (("a", 1), ("a", 1), ("b", 1)),
    ],
    ids=lambda value: f"{type(value).__name__} {value!r}",
)
@pytest.mark.parametrize("scores", [(None, None), (0.75, 0.25), (0.5, None), (1, np.float32(0.0))], ids=str)
def test_a_binary_row_comes_back_as_it_was(positive, yes, no, scores):
    """
    Whatever means positive, whichever type tells it, with a score, without, or some of both.
    """
    rows = [(one, other, score) for one in (yes, no) for other in (yes, no) for score in scores]

    assert_same_columns(binary(positive), rows)


@pytest.mark.parametrize("positive", [None, "fraud", 1, 0, 2, Fraud.YES])
def test_a_score_alone_is_a_prediction_by_the_threshold_of_its_monitor(positive):
    """
    It is decided when the prediction is made, so that a later threshold changes nothing.
    """
    encoder, packing = binary(positive, threshold=0.3)
    yes, no = {None: (True, False), "fraud": ("fraud", "x"), 1: (1, 0), 0: (0, 1), 2: (2, 1)}.get(
        positive, (Fraud.YES, Fraud.NO)
    )
    assert_same_columns((encoder, packing), [(None, yes, 0.3), (None, no, 0.29), (None, yes, 1.0), (None, no, 0.0)])

    _, later = binary(positive, threshold=0.9)
    packed = [packing.prediction(None, score) for score in (0.3, 0.29)]
    columns = columns_of(encoder, *later.columns(packed, [later.label(yes)] * 2), 2)
    assert {"cell": [3, 2], "score": [0.3, 0.29]} == columns


@pytest.mark.parametrize("positive", [None, "fraud", 1, 0, 2, Fraud.YES])
def test_a_prediction_is_counted_as_what_it_means(positive):
    """
    Also if it was never told but follows from its score.
    """
    encoder, packing = binary(positive)

    for score, expected in ((0.75, 1), (0.25, 0)):
        told = packing.counted(packing.prediction(None, score))
        refusals = Refusals(1)
        assert [expected] == encoder.encode([told], None, None, 1, refusals).predicted.tolist()
        assert {} == refusals.reasons


def test_a_binary_prediction_with_its_score_takes_nine_bytes():
    """
    One without takes one, and so does a label.
    """
    _, packing = binary()

    assert (9, 1, 1) == tuple(
        map(len, (packing.prediction(True, 0.5), packing.prediction(True, None), packing.label(0)))
    )
    assert b"\x01" + struct.pack("<d", 0.1) == packing.prediction(np.int64(1), 0.1)


@pytest.mark.parametrize(
    ("positive", "same"),
    [(None, [True, 1, 1.0, np.True_, np.int8(1)]), ("fraud", ["fraud", True, np.str_("fraud")]), (2, [2, 2.0])],
)
def test_equal_labels_are_equal_bytes(positive, same):
    """
    Else a label told again by another way would be a correction.
    """
    _, packing = binary(positive)

    assert {b"\x01"} == {packing.label(label) for label in same}


@pytest.mark.parametrize(
    ("positive", "prediction", "score", "reason"),
    [
        (None, "yes", None, "invalid_prediction"),
        (None, 2, None, "invalid_prediction"),
        (None, None, None, "invalid_prediction"),
        (None, float("nan"), 0.5, "invalid_prediction"),
        (None, [True], None, "invalid_prediction"),
        ("fraud", 1, None, "invalid_prediction"),
        (1, "1", None, "invalid_prediction"),
        (None, True, 1.5, "invalid_score"),
        (None, True, float("nan"), "invalid_score"),
        (None, True, "0.5", "invalid_score"),
        (None, None, -0.1, "invalid_score"),
    ],
)
def test_a_binary_prediction_that_cannot_be_used_is_refused_with_its_reason(positive, prediction, score, reason):
    """
    Before anything of it is kept.
    """
    _, packing = binary(positive)

    with pytest.raises(UnusableError) as raised:
        packing.prediction(prediction, score)

    assert reason == raised.value.reason


@settings(deadline=None, max_examples=150)
@given(
    positive=st.sampled_from([None, "fraud", 1, 0, 2]),
    rows=st.lists(st.tuples(st.booleans(), st.booleans(), st.none() | st.floats(0, 1)), min_size=1, max_size=20),
)
def test_many_binary_rows_come_back_together(positive, rows):
    """
    Some with a score and some without, in any order.
    """
    yes, no = {None: (True, False), "fraud": ("fraud", "good"), 1: (1, 0), 0: (0, 1), 2: (2, 1)}[positive]

    assert_same_columns(
        binary(positive), [(yes if one else no, yes if other else no, score) for one, other, score in rows]
    )


# Multiclass


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("cat", "dog"),
        (3, 4),
        (3, 4.0),
        (np.int64(3), np.str_("x")),
        (True, False),
        (Fraud.YES, Fraud.NO),
        (b"DE", "FR"),
        ("new\nline", "a\0b"),
        ("", "x" * 300),
        ("Käufer", "😀"),
    ],
    ids=str,
)
def test_a_class_comes_back_as_it_was(one, other):
    """
    Whatever its type and however it is written.
    """
    assert_same_columns(multiclass(), [(one, other, None), (other, other, None), (one, one, None)])


def test_a_class_met_by_way_of_bytes_is_the_same_as_one_met_straight():
    """
    3, 3.0, np.int64(3) and "3" are one class.
    """
    _, packing = multiclass()

    assert {b"3"} == {packing.label(label) for label in (3, 3.0, np.int64(3), np.float32(3), "3", b"3")}
    assert b"3" == packing.prediction(3, None)


SCORES = [0.5, 0.3, 0.2]


@pytest.mark.parametrize(
    "score",
    [
        SCORES,
        tuple(SCORES),
        np.array(SCORES),
        np.array(SCORES, np.float32),
        {"cat": 0.5, "dog": 0.3, "fox": 0.2},
        {"fox": 0.2, "cat": 0.8},
        [1, 0, 0],
    ],
    ids=lambda score: type(score).__name__,
)
@pytest.mark.parametrize("prediction", ["fox", None])
def test_probabilities_come_back_as_they_were(score, prediction):
    """
    In any form; without a prediction they say what it is.
    """
    rows = [(prediction, label, score) for label in ("cat", "dog", "fox")]

    assert_same_columns(multiclass(["cat", "dog", "fox"]), rows)


def test_classes_may_be_numbers_with_probabilities():
    """
    The order is that of classes=.
    """
    rows = [(None, 10, [0.1, 0.7, 0.2]), (30, "20", {30: 0.5, 10: 0.5}), (20, 20, None)]

    assert_same_columns(multiclass([10, 20, 30]), rows[:2])
    assert_same_columns(multiclass([10, 20, 30]), rows[2:])


@pytest.mark.parametrize("first", [None, np.array(SCORES)], ids=["without first", "with first"])
def test_rows_with_probabilities_and_without_come_back_together(first):
    """
    Some have scores, in any order; the others are no worse for it.
    """
    encoder, packing = multiclass(["cat", "dog", "fox"])
    scores = [first, None, np.array([0.2, 0.2, 0.6]), None, np.array(SCORES)]
    packed = [packing.prediction("cat", score) for score in scores]

    columns = columns_of(encoder, *packing.columns(packed, [packing.label("fox")] * 5), 5)

    assert [0 if score is None else 1 if index == 2 else 3 for index, score in enumerate(scores)] == columns["rank"]
    assert [0] * 5 == columns["predicted"]
    assert [2] * 5 == columns["label"]


def test_a_class_beyond_max_classes_is_refused_when_it_comes():
    """
    As a prediction and as a label, with the remedy.
    """
    encoder, packing = multiclass(most=2)
    packing.prediction("a", None)
    packing.label("b")

    for pack in (lambda: packing.prediction("c", None), lambda: packing.label("c")):
        with pytest.raises(UnusableError) as raised:
            pack()
        assert "unknown_class" == raised.value.reason
        assert "one of at most 2 classes (a, b), got 'c' (str). Raise max_classes=" in raised.value.text
    assert ["a", "b"] == encoder.classes()
    assert b"a" == packing.label("a")


def test_a_class_another_process_has_met_may_be_beyond_max_classes_here():
    """
    Then its row is refused when it joins, and no other row with it.
    """
    _, there = multiclass()
    encoder, here = multiclass(most=2)
    packed = [there.prediction(name, None) for name in "abc"]
    refusals = Refusals(3)

    encoder.encode(*here.columns(packed, [here.label("a")] * 3), 3, refusals)

    assert {"unknown_class": 1} == {reason: count for reason, (count, _) in refusals.reasons.items()}
    assert [True, True, False] == refusals.kept.tolist()


@pytest.mark.parametrize(
    ("classes", "prediction", "score", "reason"),
    [
        (None, None, None, "invalid_prediction"),
        (None, ["a"], None, "invalid_prediction"),
        (None, ("a", "b"), None, "invalid_prediction"),
        (None, float("nan"), None, "invalid_prediction"),
        (None, "a", [0.5, 0.5], "invalid_score"),
        (["a", "b"], "c", None, "unknown_class"),
        (["a", "b"], "a", [0.5], "invalid_score"),
        (["a", "b"], "a", [0.9, 0.9], "invalid_score"),
        (["a", "b"], "a", {"c": 1.0}, "invalid_score"),
        (["a", "b"], "a", 0.5, "invalid_score"),
    ],
    ids=str,
)
def test_a_class_that_cannot_be_used_is_refused_with_its_reason(classes, prediction, score, reason):
    """
    Before anything of it is kept.
    """
    _, packing = multiclass(classes)

    with pytest.raises(UnusableError) as raised:
        packing.prediction(prediction, score)

    assert reason == raised.value.reason


def test_a_class_takes_its_name_and_eight_bytes_a_probability():
    """
    However precise its scores were.
    """
    _, packing = multiclass(["cat", "dog", "fox"])

    assert b"dog" == packing.prediction("dog", None)
    assert 3 + 1 + 24 == len(packing.prediction("dog", np.array(SCORES, np.longdouble)))


# Regression


@pytest.mark.parametrize("kind", [float, int, np.float64, np.float32, np.int16], ids=lambda kind: kind.__name__)
def test_a_number_comes_back_as_it_was(kind):
    """
    Python's or numpy's, in eight bytes.
    """
    rows = [(kind(one), kind(other), None) for one, other in ((1, 2), (-5, 0), (300, -300))]

    assert_same_columns(regression(), rows)
    assert (8, 8) == tuple(map(len, (regression()[1].prediction(kind(1), None), regression()[1].label(kind(1)))))


@settings(deadline=None, max_examples=150)
@given(one=st.floats(-1e70, 1e70), other=st.floats(-1e70, 1e70) | st.integers(-(10**70), 10**70))
def test_any_number_comes_back_as_it_was(one, other):
    """
    To its last bit, as large as a number may be.
    """
    assert_same_columns(regression(), [(one, other, None)])


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), -1e71, "1", [1.0], 1j, 10**400], ids=str)
def test_what_is_no_finite_number_is_refused(value):
    """
    As a prediction and as a label.
    """
    _, packing = regression()

    with pytest.raises(UnusableError) as raised:
        packing.prediction(value, None)
    assert "invalid_prediction" == raised.value.reason
    with pytest.raises(UnusableError) as raised:
        packing.label(value)
    assert "invalid_label" == raised.value.reason


def test_equal_numbers_are_equal_bytes():
    """
    Also the two zeros, so that no label corrects its equal.
    """
    _, packing = regression()

    assert 1 == len({packing.label(zero) for zero in (0.0, -0.0, 0, np.float32(-0.0), False)})
    assert 1 == len({packing.label(one) for one in (1.5, np.float64(1.5), np.float16(1.5))})


# Ranking


@pytest.mark.parametrize(
    ("shown", "label"),
    [
        (["a", "b", "c", "d"], "c"),
        (["a", "b", "c", "d"], {"d", "z"}),
        (["a", "b", "c", "d"], ["z", "b", "y"]),
        (["a", "b", "c", "d"], {"a": 3.0, "c": 1, "z": 2.5, "b": 0}),
        (("a", "b"), frozenset(["b"])),
        ([1, 2, 3], 3),
        ([1, 2, 3], {3.0: 2}),
        ([1.0, 2.5, 3.0], {3, 2.5}),
        ([True, 0, 7], {1: 1.0, False: 2.0}),
        (np.array([5, 6, 7]), np.array([7, 9])),
        (np.array([0.5, 1.0]), 1),
        ([np.int64(5), np.str_("x"), np.float32(0.5)], {5: 1.0, "x": 2.0, 0.5: 3.0}),
        ([b"a", "a", b"b"], b"a"),
        ([b"a", "a", b"b"], "a"),
        ([3, "3", "3.0"], "3"),
        ([("a", 1), ("a", 2), ("b", 1)], {("a", 2): 1.0, ("b", 1.0): 2.0}),
        ([("a", "b"), ("ab",), "ab"], [("ab",)]),
        ([(("a",), "b"), ("a", ("b",))], [("a", ("b",))]),
        ([float("inf"), -0.0, 2**70], {0: 1, 2.0**70: 2}),
        ([], "a"),
        (["😀", "\ud800", "\0", ""], {"": 1.0, "\ud800": 2.0}),
        ([Fraud.YES, Kind.GOOD, Level.LOW], {Fraud.YES: 1, "good": 2, 1: 3}),
        ([None, "None"], ["None"]),
    ],
    ids=str,
)
def test_a_ranking_comes_back_as_it_was(shown, label):
    """
    Its places, hits and gains; items are the same where Python says so, and only there.
    """
    assert_same_columns(ranking(), [(shown, label, None)])


items = st.recursive(
    st.integers(-3, 3) | st.sampled_from([0.0, -0.0, 1.0, 0.5, "", "1", "a", b"a", b"", True]) | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=4,
)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(items, items), min_size=1, max_size=20))
def test_two_items_are_one_to_the_packing_if_they_are_to_python(pairs):
    """
    Numbers by value, text and bytes by their kind, tuples by what is in them.
    """
    _, packing = ranking()

    for one, other in pairs:
        assert (one == other) == (packing.prediction([one], None) == packing.prediction([other], None))


@settings(deadline=None, max_examples=100)
@given(
    shown=st.lists(st.integers(0, 12) | st.sampled_from("abc"), unique=True, max_size=8),
    gains=st.dictionaries(st.integers(0, 12) | st.sampled_from("abc"), st.floats(0.1, 9), min_size=1, max_size=6),
)
def test_any_ranking_comes_back_as_it_was(shown, gains):
    """
    With gains, and with the same items as a set.
    """
    assert_same_columns(ranking(), [(shown, gains, None), (shown, set(gains), None)])


def test_equal_rankings_of_the_truth_are_equal_bytes():
    """
    Whichever form they have, and in whichever order they are.
    """
    _, packing = ranking()

    assert 1 == len({packing.label(one) for one in ("a", ["a"], {"a"}, {"a": 1}, {"a": 1.0, "b": 0}, np.array(["a"]))})
    assert packing.label({"a": 2, "b": 1, 3: 1}) == packing.label({3.0: 1.0, "b": 1.0, "a": 2.0})
    assert packing.label({"a": 2}) != packing.label({"a": 1})


def test_nothing_of_an_item_is_kept_but_eight_bytes():
    """
    Its name does not appear in what goes to a store; sixteen bytes each for what is relevant.
    """
    _, packing = ranking()
    shown = [f"customer-{number}@example.com" for number in range(5)]

    prediction, label = packing.prediction(shown, None), packing.label({shown[0]: 1.0, shown[1]: 2.0})

    assert (40, 32) == (len(prediction), len(label))
    for secret in (b"customer", b"example", shown[0].encode(), shown[0].encode("utf-16-le")):
        assert secret not in prediction + label


@pytest.mark.parametrize("seed", ["0", "1"])
def test_a_digest_is_the_same_in_every_process(seed):
    """
    Python's own hash is not.
    """
    _, packing = ranking()
    shown = "['a', 3, b'b', ('t', 1.5)]"
    script = f"""
import contextlib
from otel_model_metrics.encoding import RankingEncoder
from otel_model_metrics.packing import RankingPacking
print(RankingPacking(RankingEncoder((1,))).prediction({shown}, None).hex())
"""

    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={"PYTHONHASHSEED": seed}
    )

    assert packing.prediction(["a", 3, b"b", ("t", 1.5)], None).hex() == answer.stdout.strip(), answer.stderr


class Unwritable:
    """An item that has no text."""

    def __repr__(self) -> str:
        return "Unwritable()"  # without its address, for tests are named after it

    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("prediction", "text"),
    [
        ("abc", "prediction must be the ordered list of items shown, got 'abc' (str)."),
        (None, "prediction must be the ordered list of items shown, got None (NoneType)."),
        (["a", "a"], "prediction must not show an item twice, got ['a', 'a'] (list)."),
        ([3, 3.0], "prediction must not show an item twice, got [3, 3.0] (list)."),
        ([["a"]], "prediction must hold hashable items, got [['a']] (list)."),
        ([Unwritable()], "prediction must hold items that can be written as text, got "),
    ],
    ids=str,
)
def test_a_ranking_that_cannot_be_used_is_refused(prediction, text):
    """
    Before anything of it is kept.
    """
    _, packing = ranking()

    with pytest.raises(UnusableError) as raised:
        packing.prediction(prediction, None)

    assert "invalid_prediction" == raised.value.reason
    assert raised.value.text.startswith(text)


@pytest.mark.parametrize("label", [None, [], {"a": 0}, {"a": -1}, {"a": "x"}, [["a"]], float("nan"), {Unwritable(): 1}])
def test_a_truth_that_cannot_be_used_is_refused(label):
    """
    With the reason that it has as a label.
    """
    _, packing = ranking()

    with pytest.raises(UnusableError) as raised:
        packing.label(label)

    assert "invalid_label" == raised.value.reason


# Segments


def segments(
    portable: bool, names: tuple[str, ...] | None = None, most: int = 2
) -> tuple[SegmentTable, SegmentPacking]:
    table = SegmentTable(names, most)
    return table, SegmentPacking(table, portable)


KEYS: list[Any] = [
    (),
    (("country", "DE"),),
    (("country", "FR"), ("tier", "gold")),
    (("tier", ("gold", "new")),),
    (("country", None),),
    (("country", "IT"),),  # the third, so it is another
    (("country", 5), ("hour", 1.0), ('"quoted"', "Käufer:😀")),
]


@pytest.mark.parametrize("portable", [False, True])
def test_segments_come_back_as_they_were(portable):
    """
    By number within a process, by name beyond it.
    """
    table, packing = segments(portable)

    for key in KEYS:
        expected = table.groups_of_set(int(table.encode_keys([key])[0]))
        for _ in range(2):  # looked up, and remembered
            _, packed = packing.pack(key)
            assert expected == table.groups_of_set(packing.set_code(packed)), key


def test_segments_mean_the_same_in_another_process():
    """
    Whatever it has met before, and in whichever order; beyond its bound they are others there, too.
    """
    _, there = segments(True)
    table, here = segments(True, most=3)
    here.pack((("hour", 7), ("country", "US")))

    packed = [there.pack(key)[1] for key in KEYS]
    named = [{table.groups[group] for group in here.groups(one)} for one in packed]

    assert [
        set(),
        {("country", "DE")},
        {("country", "FR"), ("tier", "gold")},
        {("tier", "gold"), ("tier", "new")},
        set(),
        {("country", "__other__")},
        {("country", "__other__"), ("hour", "1"), ('"quoted"', "Käufer:😀")},
    ] == named


def test_a_segment_that_is_not_allowed_here_is_left_out():
    """
    The row still counts in the whole, and in its other segments.
    """
    _, there = segments(True)
    table, here = segments(True, names=("tier",))

    groups = here.groups(there.pack((("country", "FR"), ("tier", "gold")))[1])

    assert [("tier", "gold")] == [table.groups[group] for group in groups]


@pytest.mark.parametrize("packed", [b"{}", b"[1]", b"\xff", b"null", b'[["a"]]', b'{"a": "b"}'])
def test_segments_of_an_unknown_form_are_none(packed):
    """
    Another version of this library may have written them.
    """
    _, packing = segments(True)

    assert () == packing.groups(packed)


def test_segments_that_cannot_be_used_are_refused():
    """
    With the table's own words.
    """
    _, packing = segments(True, names=("tier",))

    with pytest.raises(UnusableError) as raised:
        packing.pack((("country", "DE"),))

    assert "invalid_segment" == raised.value.reason
    expected = "segment name must be one of those given to the monitor (tier), got 'country' (str)."
    assert expected == raised.value.text


@pytest.mark.parametrize("portable", [False, True])
def test_more_segments_than_are_remembered_are_still_right(portable):
    """
    What is remembered is bounded; what is meant is not forgotten with it.
    """
    table, packing = segments(portable, most=20_000)
    packed = [packing.pack((("id", number),))[1] for number in range(9000)]

    assert [("id", "0"), ("id", "8999")] == [table.groups[packing.groups(packed[place])[0]] for place in (0, -1)]
    assert packing.pack((("id", 0),))[1] == packed[0]
    assert () == packing.groups(packing.pack(())[1])
    assert len(packing.known) <= 8192
