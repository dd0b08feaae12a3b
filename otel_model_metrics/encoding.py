"""
From raw rows to columns: what users pass becomes small numbers, and a row that cannot be used is refused.

One encoder a task. An encoder looks at whole columns; only a column with something unusual in it is looked at
row by row. It says why a row is refused, what was expected, and what to do.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from otel_model_metrics.columns import (
    BoolArray,
    Coded,
    Column,
    FloatArray,
    floats_or_none,
    is_missing,
    missing_mask,
    shown,
    to_float,
    to_floats,
)
from otel_model_metrics.statistics import classification, multiclass, ranking, regression
from otel_model_metrics.statistics.groups import Groups
from otel_model_metrics.vocabulary import MISSING, OVERFLOW, UNUSABLE, Vocabulary
from otel_model_metrics.window import Columns

# Why a row was not used: the values of the attribute ml.reject.reason.
INVALID_PREDICTION = "invalid_prediction"
INVALID_LABEL = "invalid_label"
INVALID_SCORE = "invalid_score"
INVALID_SEGMENT = "invalid_segment"
INVALID_TIMESTAMP = "invalid_timestamp"
UNKNOWN_CLASS = "unknown_class"
UNEQUAL_LENGTH = "unequal_length"
INVALID_ID = "invalid_id"
INTERNAL_ERROR = "internal_error"
REASONS = (
    INVALID_PREDICTION,
    INVALID_LABEL,
    INVALID_SCORE,
    INVALID_SEGMENT,
    INVALID_TIMESTAMP,
    UNKNOWN_CLASS,
    UNEQUAL_LENGTH,
    INVALID_ID,
    INTERNAL_ERROR,
)

Statistics = dict[str, NDArray[Any]]


class Refusals:
    """
    The rows of one chunk that cannot be used, each with its first reason.

    >>> refusals = Refusals(3)
    >>> refusals.add(INVALID_LABEL, np.array([False, True, False]), lambda row: f"row {row} is bad")
    >>> refusals.reasons, refusals.kept.tolist()
    ({'invalid_label': (1, 'row 1 is bad')}, [True, False, True])
    """

    def __init__(self, count: int) -> None:
        self._refused = np.zeros(count, np.bool_)
        self.reasons: dict[str, tuple[int, str]] = {}

    def add(self, reason: str, rows: BoolArray, message: Any) -> None:
        """Refuse the rows of a mask; `message` is called with the first of them to say what was wrong."""
        new = rows & ~self._refused
        count = int(np.count_nonzero(new))
        if count:
            self._refused |= new
            before, text = self.reasons.get(reason, (0, ""))
            if not text:
                try:
                    text = message(int(np.argmax(new)))
                except Exception:  # the value cannot even be looked at
                    text = "a value that cannot be shown."
            self.reasons[reason] = (before + count, text)

    @property
    def kept(self) -> BoolArray:
        """Mask of the rows not refused, shape ``(n,)``."""
        return ~self._refused

    def __bool__(self) -> bool:
        return bool(self.reasons)


@dataclass(frozen=True)
class Encoded:
    """
    A chunk of rows as columns.

    Attributes:
        columns: The ring's columns for all n rows; meaningless where refused or without a label.
        labelled: Which rows have a label, shape ``(n,)``; None if all have.
        predicted: Class code of each prediction, shape ``(n,)``; None where a task has no classes.
    """

    columns: Columns
    labelled: BoolArray | None
    predicted: NDArray[Any] | None = None


class Encoder(Protocol):
    """
    What the recorder needs to know of a task.

    Attributes:
        dtypes: The ring's columns beside time and segment set.
        staging_rows: Rows staged before the caller encodes them: the more, the cheaper a row; the fewer, the
            shorter the one call in so many that does the work.
    """

    dtypes: Mapping[str, DTypeLike]
    staging_rows: int

    def encode(self, predictions: Any, labels: Any, scores: Any, count: int, refusals: Refusals) -> Encoded:
        """Columns of n raw rows; rows that cannot be used are added to `refusals`."""

    def classes(self) -> list[str]:
        """Names of the classes met so far; none for a task without."""

    def sums(self, columns: Columns, groups: Groups, n_classes: int) -> Statistics:
        """The additive statistics of these rows, each with the groups as its first axis."""

    def predicted(self, columns: Columns) -> NDArray[Any] | None:
        """Class code of each row's prediction, from the ring's columns; None where a task has no classes."""

    def unlabelled(self, predicted: NDArray[Any] | None, groups: Groups) -> NDArray[np.int64]:
        """How often each class was predicted without a label, shape ``(G, C)``; ``(G, 1)`` without classes."""


class BinaryEncoder:
    """
    Two classes: booleans, 0/1, or one named positive class against all else; optionally with a probability.

    Args:
        positive: The value that means positive; None for booleans and 0/1.
        threshold: A prediction that is missing is ``score >= threshold``.
    """

    dtypes: Mapping[str, DTypeLike] = {"cell": np.int8, "score": np.float64}
    staging_rows = 4096

    def __init__(self, positive: Hashable | None, threshold: float) -> None:
        self._positive = positive
        self._threshold = threshold

    def encode(self, predictions: Any, labels: Any, scores: Any, count: int, refusals: Refusals) -> Encoded:
        score = _probabilities(scores, count, refusals)
        predicted = self._flags(predictions, count)
        if predicted.min(initial=0) < 0:
            absent = (predicted == _MISSING_FLAG) & ~np.isnan(score)
            predicted = np.where(absent, score >= self._threshold, predicted).astype(np.int8)
            refusals.add(INVALID_PREDICTION, predicted < 0, lambda row: self.expected("prediction", predictions, row))
        label = self._flags(labels, count)
        labelled = None
        if label.min(initial=0) < 0:
            refusals.add(INVALID_LABEL, label == _BAD_FLAG, lambda row: self.expected("label", labels, row))
            labelled = label >= 0
        return Encoded({"cell": 2 * label + predicted, "score": score}, labelled, predicted)

    def classes(self) -> list[str]:
        return ["negative", "positive"]

    def sums(self, columns: Columns, groups: Groups, n_classes: int) -> Statistics:
        return {"matrix": classification.confusion_matrix(columns["cell"], 2, groups)}

    def predicted(self, columns: Columns) -> NDArray[Any] | None:
        predicted: NDArray[Any] = columns["cell"] & 1
        return predicted

    def unlabelled(self, predicted: NDArray[Any] | None, groups: Groups) -> NDArray[np.int64]:
        assert predicted is not None
        return groups.rows_per_cell(predicted, 2)

    def _flags(self, column: Column | None, count: int) -> NDArray[np.int8]:
        """1 for positive, 0 for negative, `_MISSING_FLAG`, or `_BAD_FLAG`; shape ``(n,)``."""
        if column is None:
            return np.full(count, _MISSING_FLAG, np.int8)
        if isinstance(column, Coded):
            return column.spread(self._flags(list(column.values), len(column.values)))
        if isinstance(column, np.ndarray):
            if column.dtype.kind == "b" and (self._positive is None or isinstance(self._positive, str)):
                return column.view(np.int8)
            numbers = column.astype(np.float64)
            if isinstance(self._positive, str):
                return np.full(count, _BAD_FLAG, np.int8)
            if self._positive is None:
                flags = (numbers == 1).astype(np.int8)
                bad = (flags == 0) & (numbers != 0)
            else:
                flags = (numbers == self._positive).astype(np.int8)
                bad = np.isnan(numbers)
            return np.where(bad, _BAD_FLAG, flags).astype(np.int8) if bad.any() else flags
        if self._positive is None:
            try:
                octets = np.frombuffer(bytes(column), np.uint8)  # takes booleans and whole numbers only
                if octets.max(initial=0) <= 1:
                    return octets.view(np.int8)
            except Exception:  # something else, or a number outside 0..255
                pass
        try:
            known = {value: self.flag(value) for value in set(column)}
            return np.array([known[value] for value in column], np.int8)
        except Exception:  # unhashable values, or values whose __eq__ fails
            return np.array([self.flag(value) for value in column], np.int8)

    def flag(self, value: Any) -> int:
        """1 for a positive value, 0 for a negative one; below 0 for what is missing or cannot be used."""
        if is_missing(value):
            return _MISSING_FLAG
        positive = self._positive
        if isinstance(value, (bool, np.bool_)):
            # Beside text True means positive; beside a number it is the number 1.
            return int(value) if positive is None or isinstance(positive, str) else int(value == positive)
        if positive is None:
            try:
                number: float = bytes((value,))[0]  # the same judge as for whole columns, see `_flags`
            except Exception:
                number = to_float(value)
            return int(number) if number in (0.0, 1.0) else _BAD_FLAG
        comparable = isinstance(value, str) if isinstance(positive, str) else not isinstance(value, str)
        try:
            return int(bool(value == positive)) if comparable and value == value else _BAD_FLAG
        except Exception:
            return _BAD_FLAG

    def expected(self, what: str, column: Any, row: int) -> str:
        """What is wrong with a value that has no flag."""
        value = None if column is None else column[row]
        if what == "prediction" and value is None:
            return "a row needs a prediction, or a score that the threshold turns into one; got neither."
        if self._positive is not None:
            return f"{what} must be comparable with the positive class {self._positive!r}, got {shown(value)}."
        hint = (
            f" Name the positive class with positive={value!r}." if isinstance(value, str) and len(value) < 40 else ""
        )
        return f"{what} must be True/False or 0/1, got {shown(value)}.{hint}"


class MulticlassEncoder:
    """
    Many classes, known from the start or met on the way; optionally with a probability for each class.

    Args:
        classes: Vocabulary of the classes.
        fixed: Whether the classes were given by the user, in the order of the scores' columns.
        ks: The cut-offs of top-k accuracy.
    """

    staging_rows = 4096

    def __init__(self, classes: Vocabulary, fixed: bool, ks: Sequence[int]) -> None:
        self._classes = classes
        self._fixed = fixed
        self._ks = np.asarray(ks, np.int64)
        self.dtypes: Mapping[str, DTypeLike] = {
            "label": np.int16,
            "predicted": np.int16,
            "rank": np.int16,  # of the label among the scores; 0 for a row without scores
            "loss": np.float64,
        }

    def encode(self, predictions: Any, labels: Any, scores: Any, count: int, refusals: Refusals) -> Encoded:
        matrix, scored = self._matrix(scores, count, refusals)
        predicted = self._codes(predictions, count)
        if predicted.min(initial=0) < 0:
            absent = (predicted == MISSING) & scored
            if absent.any():
                predicted = np.where(absent, matrix.argmax(axis=1), predicted)
            self._refuse("prediction", INVALID_PREDICTION, predictions, predicted, predicted == MISSING, refusals)
        label = self._codes(labels, count)
        labelled = None
        if label.min(initial=0) < 0:
            nan = label == MISSING
            missing = missing_mask(labels, count)
            if missing is not None:
                nan &= ~missing
            self._refuse("label", INVALID_LABEL, labels, label, nan, refusals)
            labelled = label >= 0
        loss, rank = np.full(count, np.nan), np.zeros(count, np.int64)
        judged = scored if labelled is None else scored & labelled
        if judged.any():
            loss[judged], rank[judged] = multiclass.judge(matrix[judged], label[judged])
        columns = {"label": label, "predicted": predicted, "rank": rank, "loss": loss}
        return Encoded(columns, labelled, predicted)

    def classes(self) -> list[str]:
        return list(self._classes.names)

    def sums(self, columns: Columns, groups: Groups, n_classes: int) -> Statistics:
        cells = columns["label"].astype(np.int64) * n_classes + columns["predicted"]
        rank = columns["rank"]
        scored = rank > 0
        within_k = scored[:, np.newaxis] & (rank[:, np.newaxis] <= self._ks)
        return {
            "matrix": classification.confusion_matrix(cells, n_classes, groups),
            "loss": groups.sums(np.where(scored, columns["loss"], 0.0)),
            "scored": groups.sums(scored.astype(np.float64)),
            "within_k": groups.sums(within_k.astype(np.float64)),
        }

    def predicted(self, columns: Columns) -> NDArray[Any] | None:
        return columns["predicted"]

    def unlabelled(self, predicted: NDArray[Any] | None, groups: Groups) -> NDArray[np.int64]:
        assert predicted is not None
        return groups.rows_per_cell(predicted, len(self._classes))

    def problem_of(self, what: str, reason: str, value: Any) -> tuple[str, str] | None:
        """Why a single class cannot be used, and in which words; None if it can, and has a code from now on."""
        refusals = Refusals(1)
        codes = np.array([self._classes.code(value)])
        self._refuse(what, reason, [value], codes, codes == MISSING, refusals)
        return _first(refusals)

    def probabilities(self, score: Any) -> FloatArray | tuple[str, str]:
        """The probabilities of a single row, shape ``(C,)``; or why they cannot be used, and in which words."""
        refusals = Refusals(1)
        matrix, _ = self._matrix([score], 1, refusals)
        return _first(refusals) or matrix[0]

    def _codes(self, column: Column | None, count: int) -> NDArray[np.int64]:
        if column is None:
            return np.full(count, MISSING, np.int64)
        if isinstance(column, Coded):
            return column.spread(self._classes.encode(list(column.values)))
        return self._classes.encode(column.tolist() if isinstance(column, np.ndarray) else list(column))

    def _refuse(
        self, what: str, reason: str, column: Any, codes: NDArray[np.int64], missing: BoolArray, refusals: Refusals
    ) -> None:
        known = ", ".join(self._classes.names[:10]) + (", ..." if len(self._classes) > 10 else "")
        remedy = "" if self._fixed else " Raise max_classes=, or group rare classes before recording."
        limit = (
            f"one of the classes ({known})"
            if self._fixed
            else f"one of at most {self._classes.limit} classes ({known})"
        )
        refusals.add(
            UNKNOWN_CLASS, codes == OVERFLOW, lambda row: f"{what} must be {limit}, got {shown(column[row])}.{remedy}"
        )
        refusals.add(
            reason,
            (codes == UNUSABLE) | missing,
            lambda row: f"{what} must be a class name or number, got {shown(None if column is None else column[row])}.",
        )

    def _matrix(self, scores: Any, count: int, refusals: Refusals) -> tuple[FloatArray, BoolArray]:
        """Scores as ``(n, C)`` and which rows have them."""
        classes = len(self._classes)
        missing = missing_mask(scores, count)
        if missing is not None and missing.all():
            return np.zeros((count, 0)), np.zeros(count, np.bool_)
        matrix = np.zeros((count, classes))
        expected = f"score must be {classes} probabilities that add up to 1, in the order of classes="
        if not self._fixed:
            given = np.ones(count, np.bool_) if missing is None else ~missing
            text = "score needs classes= given to the monitor, for it says which probability belongs to which class."
            refusals.add(INVALID_SCORE, given, lambda row: text)
            return matrix, np.zeros(count, np.bool_)
        bad = np.zeros(count, np.bool_)
        if (
            isinstance(scores, np.ndarray)
            and scores.ndim == 2
            and scores.shape[1] == classes
            and scores.dtype.kind in "biuf"
        ):
            matrix = scores.astype(np.float64)
        else:
            for row, vector in enumerate(scores):
                if missing is None or not missing[row]:
                    bad[row] = not self._read_vector(vector, matrix[row])
        if classes:
            bad |= ~((matrix >= 0) & (matrix <= 1)).all(axis=1) | ~(np.abs(matrix.sum(axis=1) - 1) <= _SUM_TOLERANCE)
        scored = ~bad
        if missing is not None:
            bad &= ~missing
            scored &= ~missing
        refusals.add(INVALID_SCORE, bad, lambda row: f"{expected}, got {shown(scores[row])}.")
        return matrix, scored

    def _read_vector(self, vector: Any, into: FloatArray) -> bool:
        try:
            if isinstance(vector, Mapping):
                for key, probability in vector.items():
                    code = self._classes.code(key)
                    if code < 0:
                        return False
                    into[code] = to_float(probability)
                return True
            values = np.asarray(vector, np.float64)
        except Exception:
            return False
        if values.shape != into.shape:
            return False
        into[:] = values
        return True


class RegressionEncoder:
    """Real numbers."""

    dtypes: Mapping[str, DTypeLike] = {"label": np.float64, "predicted": np.float64}
    staging_rows = 4096

    def encode(self, predictions: Any, labels: Any, scores: Any, count: int, refusals: Refusals) -> Encoded:
        predicted = np.full(count, np.nan) if predictions is None else to_floats(predictions)
        _refuse_not_finite("prediction", INVALID_PREDICTION, predictions, predicted, None, refusals)
        missing = missing_mask(labels, count)
        label = np.full(count, np.nan) if labels is None else to_floats(labels)
        _refuse_not_finite("label", INVALID_LABEL, labels, label, missing, refusals)
        labelled = None if missing is None else ~missing
        return Encoded({"label": label, "predicted": predicted}, labelled)

    def classes(self) -> list[str]:
        return []

    def sums(self, columns: Columns, groups: Groups, n_classes: int) -> Statistics:
        sums = regression.error_sums(columns["label"], columns["predicted"], groups)
        return {"n": groups.rows(), **sums}

    def predicted(self, columns: Columns) -> NDArray[Any] | None:
        return None

    def unlabelled(self, predicted: NDArray[Any] | None, groups: Groups) -> NDArray[np.int64]:
        return groups.rows()[:, np.newaxis]


class RankingEncoder:
    """
    Ordered lists of items and the items that are relevant.

    Args:
        ks: The cut-offs, ascending.
    """

    # Judging a list takes microseconds, so few are staged: 64 of them keep the one slow call below a millisecond.
    staging_rows = 64

    def __init__(self, ks: Sequence[int]) -> None:
        self._ks = tuple(ks)
        shape = (len(self._ks),)
        self.dtypes: Mapping[str, DTypeLike] = {
            "first": np.int32,
            "relevant": np.int32,
            "hits": np.dtype((np.int16 if max(self._ks) < 1 << 15 else np.int32, shape)),
            "ndcg": np.dtype((np.float64, shape)),
            "average_precision": np.dtype((np.float64, shape)),
        }

    def encode(self, predictions: Any, labels: Any, scores: Any, count: int, refusals: Refusals) -> Encoded:
        columns: Columns = {name: np.zeros(count, dtype) for name, dtype in self.dtypes.items()}
        labelled = np.ones(count, np.bool_)
        for row in range(count):
            label = None if labels is None else labels[row]
            items = _items(None if predictions is None else predictions[row])
            if isinstance(items, str):
                refusals.add(INVALID_PREDICTION, _only(row, count), _saying(items))
                continue
            if is_missing(label):
                labelled[row] = False
                continue
            gains = gains_of(label)
            if isinstance(gains, str):
                refusals.add(INVALID_LABEL, _only(row, count), _saying(gains))
                continue
            first, hits, ndcg, average_precision = ranking.judge(items, gains, self._ks)
            columns["first"][row] = first
            columns["relevant"][row] = len(gains)
            columns["hits"][row] = hits
            columns["ndcg"][row] = ndcg
            columns["average_precision"][row] = average_precision
        return Encoded(columns, None if labelled.all() else labelled)

    def classes(self) -> list[str]:
        return []

    def sums(self, columns: Columns, groups: Groups, n_classes: int) -> Statistics:
        judgements = {name: columns[name] for name in self.dtypes}
        return {"n": groups.rows(), **ranking.judgement_sums(**judgements, ks=self._ks, groups=groups)}

    def predicted(self, columns: Columns) -> NDArray[Any] | None:
        return None

    def unlabelled(self, predicted: NDArray[Any] | None, groups: Groups) -> NDArray[np.int64]:
        return groups.rows()[:, np.newaxis]


def _first(refusals: Refusals) -> tuple[str, str] | None:
    return next(((reason, text) for reason, (_, text) in refusals.reasons.items()), None)


_MISSING_FLAG = -1
_BAD_FLAG = -2
# Probabilities of a model in half precision add up to 1 within about a thousandth.
_SUM_TOLERANCE = 1e-2


def _probabilities(scores: Any, count: int, refusals: Refusals) -> FloatArray:
    """Scores as ``(n,)`` float64, NaN where there is none."""
    floats = None if scores is None else floats_or_none(scores)
    missing = missing_mask(scores, count) if floats is None else None
    if missing is not None and missing.all():
        return np.full(count, np.nan)
    score = to_floats(scores) if floats is None else floats
    if count and score.min() >= 0 and score.max() <= 1:  # not so with a NaN among them
        return score
    bad = ~((score >= 0) & (score <= 1))
    if missing is not None:
        bad &= ~missing
    if bad.any():
        refusals.add(INVALID_SCORE, bad, lambda row: _expected_score(scores[row], float(to_float(scores[row]))))
        score = np.where(bad, np.nan, score)
    return score


def _expected_score(value: Any, number: float) -> str:
    hint = "" if np.isnan(number) else " If these are logits, apply a sigmoid first."
    text = f"{number:g}" if not np.isnan(number) else shown(value)
    return f"score must be a probability in [0, 1], got {text}.{hint}"


def _refuse_not_finite(
    what: str, reason: str, column: Any, numbers: FloatArray, missing: BoolArray | None, refusals: Refusals
) -> None:
    bad = ~(np.abs(numbers) <= _LARGEST)
    if missing is not None and what == "label":
        bad &= ~missing
    if bad.any():
        refusals.add(
            reason,
            bad,
            lambda row: (
                f"{what} must be a finite number, at most {_LARGEST:g} in size, got "
                f"{shown(None if column is None else column[row])}."
            ),
        )


# The fourth power of an error must stay finite, and so must the sum of many.
_LARGEST = 1e70


def _items(prediction: Any) -> Sequence[Hashable] | str:
    """The items of a ranking, or what is wrong with it."""
    if isinstance(prediction, np.ndarray):
        prediction = prediction.tolist()
    if not isinstance(prediction, (list, tuple)):
        return f"prediction must be the ordered list of items shown, got {shown(prediction)}."
    try:
        if len(set(prediction)) != len(prediction):
            return f"prediction must not show an item twice, got {shown(prediction)}."
    except Exception:
        return f"prediction must hold hashable items, got {shown(prediction)}."
    return prediction


def gains_of(label: Any) -> Mapping[Hashable, float] | str:
    """
    The gain of each relevant item, or what is wrong with the label.

    >>> gains_of("a"), gains_of({"a"}), gains_of({"a": 2, "b": 0})
    ({'a': 1.0}, {'a': 1.0}, {'a': 2.0})
    """
    try:
        if isinstance(label, Mapping):
            gains = {item: to_float(gain) for item, gain in label.items()}
            if not all(0 <= gain <= _LARGEST for gain in gains.values()):
                return f"label must map items to gains >= 0, got {shown(label)}."
            gains = {item: gain for item, gain in gains.items() if gain > 0}
        elif isinstance(label, (set, frozenset, list, tuple, np.ndarray)):
            gains = dict.fromkeys(label.tolist() if isinstance(label, np.ndarray) else label, 1.0)
        else:
            gains = {label: 1.0}
            if label != label:
                return "label must be the relevant item, got NaN."
    except Exception:
        return f"label must be the relevant item, a set of them, or a mapping item -> gain, got {shown(label)}."
    if not gains:
        return (
            f"label must name at least one relevant item, got {shown(label)}. Leave such rows out, or pass label=None."
        )
    return gains


def _only(row: int, count: int) -> BoolArray:
    mask = np.zeros(count, np.bool_)
    mask[row] = True
    return mask


def _saying(text: str) -> Any:
    return lambda row: text
