"""
Regression: how far off are the predictions.

An error is prediction minus label. The first functions need sums over rows only, so they hold for a fleet too;
the last need the rows themselves. Undefined is ``nan``.
"""

from __future__ import annotations

import numpy as np

from otel_model_metrics.statistics.groups import FloatArray, Groups
from otel_model_metrics.statistics.intervals import Bounds, mean_interval, ratio


def error_sums(y_true: FloatArray, y_pred: FloatArray, groups: Groups) -> dict[str, FloatArray]:
    """
    The additive statistics of n rows, each of shape ``(G,)``.

    Args:
        y_true: Labels, shape ``(n,)``.
        y_pred: Predictions, shape ``(n,)``.
        groups: Groups of the n rows.

    Returns:
        ``over`` and ``under``: sums of absolute errors of predictions above and below their label;
        ``squared`` and ``fourth``: sums of squared errors and of their squares.

    >>> sums = error_sums(np.array([1.0, 5.0]), np.array([2.0, 3.0]), Groups(np.zeros(2, int)))
    >>> {name: values.tolist() for name, values in sums.items()}
    {'over': [1.0], 'under': [2.0], 'squared': [5.0], 'fourth': [17.0]}
    """
    error = y_pred - y_true
    squared = error * error
    return {
        "over": groups.sums(np.maximum(error, 0.0)),
        "under": groups.sums(np.maximum(-error, 0.0)),
        "squared": groups.sums(squared),
        "fourth": groups.sums(squared * squared),
    }


def mae(n: FloatArray, over: FloatArray, under: FloatArray) -> FloatArray:
    """
    Mean absolute error, in the label's unit; >= 0, lower is better.

    Source: scikit-learn ``mean_absolute_error``.

    >>> float(mae(np.array(2), np.array(1.0), np.array(2.0)))
    1.5
    """
    return ratio(over + under, n)


def mae_interval(n: FloatArray, over: FloatArray, under: FloatArray, squared: FloatArray) -> Bounds:
    """Normal interval of `mae`; undefined for one row."""
    return mean_interval(n, over + under, squared, low=0.0)


def mse(n: FloatArray, squared: FloatArray) -> FloatArray:
    """
    Mean squared error, in the label's unit squared; >= 0, lower is better.

    Source: scikit-learn ``mean_squared_error``.

    >>> float(mse(np.array(2), np.array(5.0)))
    2.5
    """
    return ratio(squared, n)


def mse_interval(n: FloatArray, squared: FloatArray, fourth: FloatArray) -> Bounds:
    """Normal interval of `mse`; undefined for one row."""
    return mean_interval(n, squared, fourth, low=0.0)


def rmse(n: FloatArray, squared: FloatArray) -> FloatArray:
    """
    Root of the mean squared error, in the label's unit; >= 0, lower is better.

    Source: scikit-learn ``root_mean_squared_error``.

    >>> float(rmse(np.array(2), np.array(8.0)))
    2.0
    """
    return np.sqrt(ratio(squared, n))


def mean_error(n: FloatArray, over: FloatArray, under: FloatArray) -> FloatArray:
    """
    Mean of prediction minus label (the bias), in the label's unit; near 0 is better, > 0 is predicting too much.

    Source: the mean of the errors.

    >>> float(mean_error(np.array(2), np.array(1.0), np.array(2.0)))
    -0.5
    """
    return ratio(over - under, n)


def mean_error_interval(n: FloatArray, over: FloatArray, under: FloatArray, squared: FloatArray) -> Bounds:
    """Normal interval of `mean_error`; undefined for one row."""
    return mean_interval(n, over - under, squared)


def mape(y_true: FloatArray, y_pred: FloatArray) -> float:
    """
    Mean of the absolute error relative to the label; >= 0, lower is better, 0.1 is ten percent.

    Rows with label 0 have no relative error and are left out (scikit-learn divides by 2.2e-16 there).

    Args:
        y_true: Labels, shape ``(n,)``.
        y_pred: Predictions, shape ``(n,)``.

    Returns:
        ``nan`` when there is no row with a label other than 0.

    Source: scikit-learn ``mean_absolute_percentage_error``.
    Cost: O(n).

    >>> mape(np.array([2.0, 0.0]), np.array([3.0, 1.0]))
    0.5
    """
    errors = relative_errors(y_true, y_pred)
    return float(errors.mean()) if len(errors) else float("nan")


def relative_errors(y_true: FloatArray, y_pred: FloatArray) -> FloatArray:
    """
    Absolute error relative to the label, of the m rows with a label other than 0; shape ``(m,)``.

    >>> relative_errors(np.array([2.0, 0.0]), np.array([3.0, 1.0]))
    array([0.5])
    """
    usable = y_true != 0
    if not usable.all():
        y_true, y_pred = y_true[usable], y_pred[usable]
    return np.abs((y_pred - y_true) / y_true)


def r2(y_true: FloatArray, y_pred: FloatArray) -> float:
    """
    Share of the labels' variance that the predictions explain, at most 1; higher is better, 0 is that of the mean.

    Args:
        y_true: Labels, shape ``(n,)``.
        y_pred: Predictions, shape ``(n,)``.

    Returns:
        ``nan`` for fewer than two rows, and when all labels are equal (scikit-learn says 0.0 or 1.0 there).

    Source: scikit-learn ``r2_score``.
    Cost: O(n).

    >>> r2(np.array([1.0, 3.0]), np.array([1.0, 2.0]))
    0.5
    """
    if len(y_true) < 2:
        return float("nan")
    spread = np.square(y_true - y_true.mean()).sum()
    if spread == 0 or (y_true == y_true[0]).all():
        return float("nan")
    return float(1.0 - np.square(y_true - y_pred).sum() / spread)


def median_absolute_error(y_true: FloatArray, y_pred: FloatArray) -> float:
    """
    Median of the absolute errors, in the label's unit; >= 0, lower is better, and deaf to outliers.

    Args:
        y_true: Labels, shape ``(n,)``.
        y_pred: Predictions, shape ``(n,)``.

    Returns:
        ``nan`` when n is 0.

    Source: scikit-learn ``median_absolute_error``.
    Cost: O(n).

    >>> median_absolute_error(np.array([0.0, 0.0, 0.0]), np.array([1.0, 2.0, 9.0]))
    2.0
    """
    return float(np.median(np.abs(y_pred - y_true))) if len(y_true) else float("nan")


def max_error(y_true: FloatArray, y_pred: FloatArray) -> float:
    """
    Largest absolute error, in the label's unit; >= 0, lower is better.

    Args:
        y_true: Labels, shape ``(n,)``.
        y_pred: Predictions, shape ``(n,)``.

    Returns:
        ``nan`` when n is 0.

    Source: scikit-learn ``max_error``.
    Cost: O(n).

    >>> max_error(np.array([0.0, 0.0]), np.array([1.0, -9.0]))
    9.0
    """
    return float(np.abs(y_pred - y_true).max()) if len(y_true) else float("nan")
