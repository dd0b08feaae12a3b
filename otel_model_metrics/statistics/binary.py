"""
Binary classification with scores: how good are the probabilities, whatever the threshold.

These need the rows, not only sums of them. `y_true` is 0.0 or 1.0, `y_score` the predicted probability of 1;
both float64 of shape ``(n,)``. Undefined is ``nan``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from otel_model_metrics.statistics.groups import FloatArray, IntArray

CALIBRATION_BINS = 10


def rows(cell: NDArray[np.integer], score: FloatArray) -> tuple[dict[str, FloatArray], NDArray[np.bool_] | None]:
    """
    The rows that have a score, and which rows those are (None for all).

    Args:
        cell: ``2 * label + prediction``, shape ``(n,)``.
        score: Shape ``(n,)``, ``nan`` for none.

    >>> rows(np.array([0, 3]), np.array([0.25, np.nan]))[0]
    {'y_true': array([0.]), 'y_score': array([0.25])}
    """
    scored = ~np.isnan(score)
    if scored.all():
        return {"y_true": (cell >= 2).astype(np.float64), "y_score": score}, None
    return {"y_true": (cell[scored] >= 2).astype(np.float64), "y_score": score[scored]}, scored


def roc_auc(y_true: FloatArray, y_score: FloatArray) -> float:
    """
    Probability that a positive row has a higher score than a negative one; ties count half.

    Args:
        y_true: Outcomes, each 0.0 or 1.0. Shape ``(n,)``.
        y_score: Score of each row, any range. Shape ``(n,)``.

    Returns:
        A value in [0, 1], 0.5 for a score that tells nothing; higher is better. ``nan`` unless both classes occur.

    Source: Mann and Whitney (1947), Annals of Mathematical Statistics 18, 50-60; scikit-learn ``roc_auc_score``.
    Cost: O(n log n), one sort.

    >>> roc_auc(np.array([0.0, 1.0, 1.0]), np.array([0.2, 0.2, 0.9]))
    0.75
    """
    positives = float(y_true.sum())
    negatives = len(y_true) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    order, last = _groups_of_equal_scores(y_score)
    true_up_to = np.cumsum(y_true[order])[last]
    rows_up_to = last + 1.0
    true_here = np.diff(true_up_to, prepend=0.0)
    false_here = np.diff(rows_up_to, prepend=0.0) - true_here
    false_before = np.concatenate(([0.0], (rows_up_to - true_up_to)[:-1]))
    return float((true_here * (false_before + false_here / 2)).sum() / (positives * negatives))


def average_precision(y_true: FloatArray, y_score: FloatArray) -> float:
    """
    Precision at every threshold, weighted by the recall gained there (area under the precision-recall steps).

    Args:
        y_true: Outcomes, each 0.0 or 1.0. Shape ``(n,)``.
        y_score: Score of each row, any range. Shape ``(n,)``.

    Returns:
        A value in [0, 1]; higher is better, the share of positives is chance. ``nan`` without a positive row.

    Source: scikit-learn ``average_precision_score`` (no interpolation).
    Cost: O(n log n), one sort.

    >>> average_precision(np.array([0.0, 1.0, 1.0]), np.array([0.5, 0.4, 0.9]))
    0.8333333333333333
    """
    positives = float(y_true.sum())
    if positives == 0:
        return float("nan")
    order, last = _groups_of_equal_scores(-y_score)
    true_up_to = np.cumsum(y_true[order])[last]
    return float((np.diff(true_up_to, prepend=0.0) * true_up_to / (last + 1.0)).sum() / positives)


def log_loss(y_true: FloatArray, y_score: FloatArray) -> float:
    """
    Mean negative logarithm of the probability given to what happened.

    Scores are clipped to [2.2e-16, 1 - 2.2e-16], so that one confident mistake costs 36, not infinity.

    Args:
        y_true: Outcomes, each 0.0 or 1.0. Shape ``(n,)``.
        y_score: Predicted probability of outcome 1, in [0, 1]. Shape ``(n,)``.

    Returns:
        A value >= 0; lower is better. ``nan`` when n is 0.

    Source: scikit-learn ``log_loss``.
    Cost: O(n).

    >>> round(log_loss(np.array([1.0, 0.0]), np.array([0.5, 0.5])), 6)
    0.693147
    """
    return float(losses(y_true, y_score).mean()) if len(y_true) else float("nan")


def losses(y_true: FloatArray, y_score: FloatArray) -> FloatArray:
    """
    What each row adds to `log_loss`, shape ``(n,)``.

    >>> losses(np.array([1.0, 0.0]), np.array([1.0, 0.5])).round(6).tolist()
    [0.0, 0.693147]
    """
    epsilon = np.finfo(np.float64).eps
    likelihood = np.where(y_true == 1.0, y_score, 1.0 - y_score)
    loss: FloatArray = -np.log(np.clip(likelihood, epsilon, 1 - epsilon))
    return loss


def brier_score(y_true: FloatArray, y_score: FloatArray) -> float:
    """
    Mean squared distance between a predicted probability and what happened.

    Args:
        y_true: Outcomes, each 0.0 or 1.0. Shape ``(n,)``.
        y_score: Predicted probability of outcome 1, in [0, 1]. Shape ``(n,)``.

    Returns:
        A value in [0, 1]; lower is better. ``nan`` when n is 0.

    Source: Brier (1950), Monthly Weather Review 78, 1-3; the usual binary form, half his two-class sum.
    Cost: O(n) time, one temporary of n floats.

    >>> brier_score(np.array([1.0, 0.0]), np.array([0.75, 0.5]))
    0.15625
    """
    if len(y_true) == 0:
        return float("nan")
    return float(np.square(y_score - y_true).mean())


def calibration_error(y_true: FloatArray, y_score: FloatArray) -> float:
    """
    Distance between predicted probability and observed frequency, averaged over ten equal bins of the score.

    Bins are closed on the right, as in scikit-learn's ``calibration_curve``; each counts by its number of rows.

    Args:
        y_true: Outcomes, each 0.0 or 1.0. Shape ``(n,)``.
        y_score: Predicted probability of outcome 1, in [0, 1]. Shape ``(n,)``.

    Returns:
        A value in [0, 1]; lower is better. ``nan`` when n is 0.

    Source: Naeini, Cooper and Hauskrecht (2015), AAAI 29, "expected calibration error".
    Cost: O(n).

    >>> calibration_error(np.array([1.0, 0.0]), np.array([0.75, 0.75]))
    0.25
    """
    return float(np.abs(calibration_gaps(y_true, y_score)).sum() / len(y_true)) if len(y_true) else float("nan")


def calibration_gaps(y_true: FloatArray, y_score: FloatArray) -> FloatArray:
    """
    Sum of score minus outcome in each bin of `calibration_error`, shape ``(CALIBRATION_BINS,)``.

    >>> calibration_gaps(np.array([1.0, 0.0]), np.array([0.75, 0.75])).tolist()
    [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0]
    """
    # How many inner edges are below the score; nine comparisons of all rows are faster than a search for each row.
    bins: NDArray[np.int8] = np.zeros(len(y_score), np.int8)
    for edge in np.linspace(0.0, 1.0, CALIBRATION_BINS + 1)[1:-1]:
        bins += y_score > edge
    gaps = np.bincount(bins, weights=y_score - y_true, minlength=CALIBRATION_BINS)
    return gaps.astype(np.float64, copy=False)  # integers, zeros, when there is no row


def _groups_of_equal_scores(y_score: FloatArray) -> tuple[IntArray, IntArray]:
    """Rows in ascending order of score, and the position of the last row of each run of equal scores."""
    order = np.argsort(y_score, kind="stable")
    ordered = y_score[order]
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    return order, last
