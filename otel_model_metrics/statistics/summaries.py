"""
Summaries: what is kept of rows that are too many to keep.

A summary of some rows and a summary of others `merge` to the summary of all of them, in any order and on any machine,
in memory that does not grow with the rows. From it follow the metrics that need rows: those that are means exactly,
those that need the rows in order from counts by bin. Bins do not depend on the data, so merged counts are the same
whatever the pieces were. Each function of a summary gives ``(value, error)``: the metric of the rows is at most `error`
away from the value, but for rounding. Undefined is ``(nan, 0.0)``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from otel_model_metrics.statistics import binary, regression
from otel_model_metrics.statistics.groups import FloatArray, IntArray

Estimate = tuple[float, float]
State = dict[str, NDArray[Any]]

_UNDEFINED = (math.nan, 0.0)

# A bin holds numbers with the same exponent and the same first 8 bits of mantissa, so it is at most 2^-8 of them wide.
_MANTISSA_BITS = 8
_DROPPED_BITS = 52 - _MANTISSA_BITS

# Below these, a single bin: scores of one in a billion, and errors whose squares are about to vanish.
_SMALLEST_SCORE = 2.0**-30
_SMALLEST_ERROR = 2.0**-256


def _bins_of(values: FloatArray, smallest: float) -> IntArray:
    """
    Bin of each number >= 0: 0 for zero, 1 for what is below `smallest`, then as many for each doubling.

    The bits of a positive float64, read as an integer, are in the order of the numbers.
    """
    bins: IntArray = values.view(np.int64) >> _DROPPED_BITS
    bins -= _first_bits(smallest) - 2
    np.maximum(bins, 1, out=bins)
    bins *= values != 0
    return bins


def _edges_of(bins: IntArray, smallest: float) -> tuple[FloatArray, FloatArray]:
    """The numbers between which those of a bin of `_bins_of` are."""

    def lower_edge(bins: IntArray) -> FloatArray:
        edges = ((bins + (_first_bits(smallest) - 2)) << _DROPPED_BITS).view(np.float64)
        return np.where(bins >= 2, edges, 0.0)

    return lower_edge(bins), np.where(bins == 0, 0.0, lower_edge(bins + 1))


def _first_bits(value: float) -> int:
    return int(np.float64(value).view(np.int64)) >> _DROPPED_BITS


_HALF = 2 + _first_bits(0.5) - _first_bits(_SMALLEST_SCORE)


def _bins_of_scores(scores: FloatArray) -> IntArray:
    """
    Bin of each score, in [0, 2 * _HALF]: as fine near 1 as near 0, for rare outcomes have scores close to one of them.

    Above 0.5 the distance to 1, which no rounding touches there, takes the place of the score; 0.5 has its own bin.
    """
    bins = _bins_of(np.minimum(scores, 1.0 - scores), _SMALLEST_SCORE)
    return np.where(scores > 0.5, 2 * _HALF - bins, bins)


@dataclass(frozen=True, eq=False)
class Bins:
    """
    How many rows of each kind are in each occupied bin.

    Attributes:
        keys: The b occupied bins, ascending. Shape ``(b,)``, int32.
        counts: Rows of each kind in them. Shape ``(b, kinds)``, int64.
        only: The number itself where all rows of a bin have the same, else ``nan``. Shape ``(b,)``, float64. Rounded
            scores and whole errors are so known exactly.
    """

    keys: NDArray[np.int32]
    counts: IntArray
    only: FloatArray

    @classmethod
    def of(cls, keys: IntArray, values: FloatArray, kind: IntArray | None = None, kinds: int = 1) -> Bins:
        """
        The bins of n rows.

        Args:
            keys: Bin of each row, shape ``(n,)``.
            values: The number that made it go there, shape ``(n,)``.
            kind: Kind of each row in ``[0, kinds)``, shape ``(n,)``; None when there is only one.
            kinds: Number of kinds.

        Cost: O(n + range of the keys).

        >>> bins = Bins.of(np.array([7, 5, 7]), np.array([0.7, 0.5, 0.72]))
        >>> bins.keys.tolist(), bins.counts.tolist(), bins.only.tolist()
        ([5, 7], [[1], [2]], [0.5, nan])
        """
        if len(keys) == 0:
            return cls(np.zeros(0, np.int32), np.zeros((0, kinds), np.int64), np.zeros(0))
        first = int(keys.min())
        place = keys - first
        size = int(place.max()) + 1
        only = np.full(size, np.nan)
        only[place] = values
        only[place[only[place] != values]] = np.nan
        if kind is not None:
            place = place * kinds + kind
        counts = np.bincount(place, minlength=size * kinds).reshape(size, kinds)
        occupied = np.flatnonzero(counts.any(axis=1))
        # Zero is added because a negative zero is equal to zero but has other bits.
        return cls((occupied + first).astype(np.int32), counts[occupied].astype(np.int64), only[occupied] + 0.0)

    def merge(self, other: Bins) -> Bins:
        """The bins of the rows of both."""
        keys = np.union1d(self.keys, other.keys)
        counts = np.zeros((len(keys), self.counts.shape[1]), np.int64)
        only = np.full(len(keys), np.nan)
        places = [np.searchsorted(keys, one.keys) for one in (self, other)]
        for one, place in zip((self, other), places, strict=True):
            counts[place] += one.counts
            only[place] = one.only
        only[places[0][only[places[0]] != self.only]] = np.nan
        return Bins(keys, counts, only)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.counts.sum())

    @property
    def nbytes(self) -> int:
        """Memory of the arrays, in bytes."""
        return self.keys.nbytes + self.counts.nbytes + self.only.nbytes

    def state(self) -> State:
        """The arrays by name."""
        return {"keys": self.keys, "counts": self.counts, "only": self.only}

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[Any]]) -> Bins:
        """What `state` was taken of."""
        return cls(state["keys"], state["counts"], state["only"])


S = TypeVar("S", bound="Summary")


class Summary(Protocol):
    """What every summary can do."""

    @classmethod
    def of(cls: type[S], *args: Any, **kwargs: Any) -> S:
        """The summary of rows, which come under the names that the functions of the task ask for."""

    @property
    def rows(self) -> int:
        """Number of rows."""

    @property
    def nbytes(self) -> int:
        """Memory of the arrays, in bytes."""

    def merge(self: S, other: S) -> S:
        """The summary of the rows of both, which stay as they are."""

    def state(self) -> State:
        """Everything, as arrays by name."""

    @classmethod
    def from_state(cls: type[S], state: Mapping[str, NDArray[Any]]) -> S:
        """What `state` was taken of."""


@dataclass(frozen=True, eq=False)
class ScoreSummary:
    """
    Of binary outcomes with scores. At most 0.42 MB, usually less than half of it.

    Attributes:
        bins: Rows with outcome 0 and outcome 1, by score.
        sums: Sum of the losses, and of the squared distances. Shape ``(2,)``.
        gaps: `binary.calibration_gaps`.

    >>> one = ScoreSummary.of(np.array([0.0, 1.0]), np.array([0.2, 0.2]))
    >>> other = ScoreSummary.of(np.array([1.0]), np.array([0.9]))
    >>> roc_auc(one.merge(other))
    (0.75, 0.0)
    """

    bins: Bins
    sums: FloatArray
    gaps: FloatArray

    @classmethod
    def of(cls, y_true: FloatArray, y_score: FloatArray) -> ScoreSummary:
        """
        The summary of n rows.

        Args:
            y_true: Outcomes, each 0.0 or 1.0. Shape ``(n,)``, float64.
            y_score: Predicted probability of outcome 1, in [0, 1]. Shape ``(n,)``, float64.

        Cost: O(n), about 20 ns a row.
        """
        return cls(
            Bins.of(_bins_of_scores(y_score), y_score, y_true.astype(np.int64), kinds=2),
            np.array([binary.losses(y_true, y_score).sum(), np.square(y_score - y_true).sum()]),
            binary.calibration_gaps(y_true, y_score),
        )

    def merge(self, other: ScoreSummary) -> ScoreSummary:
        """The summary of the rows of both, which stay as they are."""
        return ScoreSummary(self.bins.merge(other.bins), self.sums + other.sums, self.gaps + other.gaps)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.bins.rows

    @property
    def nbytes(self) -> int:
        """Memory of the arrays, in bytes."""
        return self.bins.nbytes + self.sums.nbytes + self.gaps.nbytes

    def state(self) -> State:
        """Everything, as arrays by name."""
        return {**self.bins.state(), "sums": self.sums, "gaps": self.gaps}

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[Any]]) -> ScoreSummary:
        """What `state` was taken of."""
        return cls(Bins.from_state(state), state["sums"], state["gaps"])


def roc_auc(summary: ScoreSummary) -> Estimate:
    """
    `binary.roc_auc`: rows of one bin count as if their scores were equal.

    Pairs within a bin of different scores count half but may count 0 or 1, so the error is half their share.

    Cost: O(bins).

    >>> roc_auc(ScoreSummary.of(np.array([0.0, 1.0]), np.array([0.4000, 0.4001])))
    (0.5, 0.5)
    """
    negative, positive = summary.bins.counts.T.astype(np.float64)
    pairs = float(positive.sum() * negative.sum())
    if pairs == 0:
        return _UNDEFINED
    ties = positive * negative / 2
    negative_before = np.cumsum(negative) - negative
    unknown = np.isnan(summary.bins.only)
    return float((positive * negative_before + ties).sum() / pairs), float(ties[unknown].sum() / pairs)


def average_precision(summary: ScoreSummary) -> Estimate:
    """
    `binary.average_precision`: the middle between the worst and the best that the rows of each bin allow.

    With t positive and f negative rows above a bin of p and n, the best is that the p come first, all with the same
    score, so that each counts with precision (t + p) / (t + p + f). The worst is that they come last, all apart: the
    i-th counts with (t + i) / (t + i + f + n), which add up to p - (f + n) * (a difference of harmonic numbers).

    Cost: O(bins).

    >>> value, error = average_precision(ScoreSummary.of(np.array([0.0, 1.0]), np.array([0.4000, 0.4001])))
    >>> round(value, 9), round(error, 9)
    (0.75, 0.25)
    """
    negative, positive = summary.bins.counts[::-1].T.astype(np.float64)
    positives = float(positive.sum())
    if positives == 0:
        return _UNDEFINED
    true_up_to, false_up_to = np.cumsum(positive), np.cumsum(negative)
    equal = positive * true_up_to / (true_up_to + false_up_to)
    best = positive * true_up_to / np.maximum(true_up_to + false_up_to - negative, 1.0)
    worst = positive - false_up_to * _harmonic_difference(true_up_to - positive + false_up_to, positive)
    known = ~np.isnan(summary.bins.only[::-1])
    low, high = (float(np.where(known, equal, bound).sum() / positives) for bound in (worst, best))
    return (low + high) / 2, max(high - low, 0.0) / 2


def log_loss(summary: ScoreSummary) -> Estimate:
    """
    `binary.log_loss`, exactly.

    >>> log_loss(ScoreSummary.of(np.array([1.0, 0.0]), np.array([1.0, 0.0])))[0] < 1e-15
    True
    """
    return (float(summary.sums[0] / summary.rows), 0.0) if summary.rows else _UNDEFINED


def brier_score(summary: ScoreSummary) -> Estimate:
    """
    `binary.brier_score`, exactly.

    >>> brier_score(ScoreSummary.of(np.array([1.0, 0.0]), np.array([0.75, 0.5])))
    (0.15625, 0.0)
    """
    return (float(summary.sums[1] / summary.rows), 0.0) if summary.rows else _UNDEFINED


def calibration_error(summary: ScoreSummary) -> Estimate:
    """
    `binary.calibration_error`, exactly.

    >>> calibration_error(ScoreSummary.of(np.array([1.0, 0.0]), np.array([0.75, 0.75])))
    (0.25, 0.0)
    """
    return (float(np.abs(summary.gaps).sum() / summary.rows), 0.0) if summary.rows else _UNDEFINED


def _harmonic_difference(start: FloatArray, count: FloatArray) -> FloatArray:
    """
    1 / (start + 1) + ... + 1 / (start + count), for whole numbers >= 0; exact but for rounding.

    That is digamma(start + count + 1) - digamma(start + 1). Both are moved up to where four terms of digamma's
    asymptotic expansion suffice, and subtracted term by term: of two large and nearly equal numbers little would be
    left.

    Source: Abramowitz and Stegun (1964), Handbook of Mathematical Functions, 6.3.6 and 6.3.18.
    """
    shift = 16
    steps = np.arange(1, shift + 1)[:, np.newaxis]
    moved = (count / ((start + steps) * (start + count + steps))).sum(axis=0)
    one, other = start + shift + 1, start + count + shift + 1
    series = np.log1p(count / one) + count / (2 * one * other)
    for divisor, power in ((12, 2), (-120, 4), (252, 6), (-240, 8)):
        series += (one**-power - other**-power) / divisor
    result: FloatArray = moved + series
    return result


@dataclass(frozen=True, eq=False)
class ErrorSummary:
    """
    Of predicted numbers. Usually less than 0.2 MB; 2.6 MB if errors fill every bin from 1e-77 to 1e70.

    Attributes:
        bins: Rows by absolute error.
        largest: The largest absolute error.
        relative: Sum of the relative errors of rows with a label other than 0.
        relative_rows: How many these are.
        squared: Sum of the squared errors.
        mean, spread: Mean of the labels, and the sum of their squared distances from it.
        lowest, highest: The smallest and the largest label.

    >>> one, other = (ErrorSummary.of(np.array([label]), np.array([label + 0.5])) for label in (1.0, 3.0))
    >>> r2(one.merge(other))
    (0.75, 0.0)
    """

    bins: Bins
    largest: float
    relative: float
    relative_rows: int
    squared: float
    mean: float
    spread: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, y_true: FloatArray, y_pred: FloatArray) -> ErrorSummary:
        """
        The summary of n rows.

        Args:
            y_true: Labels, shape ``(n,)``, float64.
            y_pred: Predictions, shape ``(n,)``, float64.

        Cost: O(n), about 15 ns a row.
        """
        error = np.abs(y_pred - y_true)
        relative = regression.relative_errors(y_true, y_pred)
        mean = float(y_true.mean()) if len(y_true) else 0.0
        return cls(
            Bins.of(_bins_of(error, _SMALLEST_ERROR), error),
            largest=float(error.max(initial=0.0)),
            relative=float(relative.sum()),
            relative_rows=len(relative),
            squared=float(np.square(error).sum()),
            mean=mean,
            spread=float(np.square(y_true - mean).sum()),
            lowest=float(y_true.min(initial=np.inf)),
            highest=float(y_true.max(initial=-np.inf)),
        )

    def merge(self, other: ErrorSummary) -> ErrorSummary:
        """
        The summary of the rows of both, which stay as they are.

        Source: of mean and spread, Chan, Golub and LeVeque (1983), The American Statistician 37, 242-247.
        """
        rows, others = self.rows, other.rows
        share = others / max(rows + others, 1)
        apart = other.mean - self.mean
        return ErrorSummary(
            self.bins.merge(other.bins),
            largest=max(self.largest, other.largest),
            relative=self.relative + other.relative,
            relative_rows=self.relative_rows + other.relative_rows,
            squared=self.squared + other.squared,
            mean=self.mean + apart * share,
            spread=self.spread + other.spread + apart * apart * rows * share,
            lowest=min(self.lowest, other.lowest),
            highest=max(self.highest, other.highest),
        )

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.bins.rows

    @property
    def nbytes(self) -> int:
        """Memory of the arrays, in bytes."""
        return self.bins.nbytes

    def state(self) -> State:
        """Everything, as arrays by name."""
        numbers = [self.largest, self.relative, self.squared, self.mean, self.spread, self.lowest, self.highest]
        return {
            **self.bins.state(),
            "numbers": np.array(numbers),
            "relative_rows": np.array([self.relative_rows], np.int64),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[Any]]) -> ErrorSummary:
        """What `state` was taken of."""
        largest, relative, squared, mean, spread, lowest, highest = state["numbers"].tolist()
        return cls(
            Bins.from_state(state),
            largest=largest,
            relative=relative,
            relative_rows=int(state["relative_rows"][0]),
            squared=squared,
            mean=mean,
            spread=spread,
            lowest=lowest,
            highest=highest,
        )


def mape(summary: ErrorSummary) -> Estimate:
    """
    `regression.mape`, exactly.

    >>> mape(ErrorSummary.of(np.array([2.0, 0.0]), np.array([3.0, 1.0])))
    (0.5, 0.0)
    """
    return (summary.relative / summary.relative_rows, 0.0) if summary.relative_rows else _UNDEFINED


def r2(summary: ErrorSummary) -> Estimate:
    """
    `regression.r2`, exactly.

    >>> r2(ErrorSummary.of(np.array([1.0, 3.0]), np.array([1.0, 2.0])))
    (0.5, 0.0)
    """
    # The mean of equal labels may be rounded, which leaves a spread; the smallest and the largest label tell.
    if summary.rows < 2 or summary.spread == 0 or summary.lowest == summary.highest:
        return _UNDEFINED
    return 1.0 - summary.squared / summary.spread, 0.0


def median_absolute_error(summary: ErrorSummary) -> Estimate:
    """
    `regression.median_absolute_error`: the middle of what the bins of the one or two middle errors allow.

    The error is at most 0.2 % of the value, or 0.0 where a bin holds one number.

    Cost: O(bins).

    >>> median_absolute_error(ErrorSummary.of(np.array([0.0, 0.0, 0.0]), np.array([1.0, 2.0, 9.0])))
    (2.0, 0.0)
    """
    rows, bins = summary.rows, summary.bins
    if rows == 0:
        return _UNDEFINED
    middle = np.searchsorted(np.cumsum(bins.counts), [(rows - 1) // 2, rows // 2], side="right")
    only = bins.only[middle]
    low, high = (
        float(np.where(np.isnan(only), edges, only).mean())
        for edges in _edges_of(bins.keys[middle].astype(np.int64), _SMALLEST_ERROR)
    )
    return (low + high) / 2, (high - low) / 2


def max_error(summary: ErrorSummary) -> Estimate:
    """
    `regression.max_error`, exactly.

    >>> max_error(ErrorSummary.of(np.array([0.0, 0.0]), np.array([1.0, -9.0])))
    (9.0, 0.0)
    """
    return (summary.largest, 0.0) if summary.rows else _UNDEFINED
