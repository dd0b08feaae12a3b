"""
Bounds: how far a value may be from the truth, given how few rows it rests on.

Every function takes additive statistics and returns (lower, upper) arrays of the same shape, ``nan`` where
there is no evidence. The confidence level is 95 %, two-sided.

What is computed from additive statistics, here and in the files beside this one, uses operators and numpy functions
only: no conversion, no method of arrays. So whatever follows numpy's dispatch protocols can stand in for an array, as
`provisioning/promql.py` does to write the same formula in another language.
"""

from __future__ import annotations

import numpy as np

from otel_model_metrics.statistics.groups import FloatArray

Bounds = tuple[FloatArray, FloatArray]

# Quantile 0.975 of the normal distribution. All digits, because rules in PromQL repeat it and are compared.
Z = 1.959963984540054


def ratio(part: FloatArray, whole: FloatArray) -> FloatArray:
    """
    ``part / whole``, and ``nan`` (undefined) where ``whole`` is 0.

    >>> ratio(np.array([1, 0]), np.array([4, 0])).tolist()
    [0.25, nan]
    """
    return np.true_divide(part, np.where(np.not_equal(whole, 0), whole, np.nan))


def wilson(successes: FloatArray, trials: FloatArray) -> Bounds:
    """
    Wilson score interval of a proportion.

    Args:
        successes: Any shape, 0 <= successes <= trials.
        trials: Same shape.

    Returns:
        Two arrays in [0, 1]; ``nan`` where trials is 0.

    Source: Wilson (1927), Journal of the American Statistical Association 22, 209-212.
    Cost: O(size).

    >>> [round(float(bound), 3) for bound in wilson(np.array(80), np.array(100))]
    [0.711, 0.867]
    """
    # The usual form times trials / trials: each count appears as rarely as can be, which matters where it is a query.
    half = Z * np.sqrt(ratio(successes * (trials - successes), trials) + Z * Z / 4)
    middle, weight = successes + Z * Z / 2, trials + Z * Z
    return np.clip((middle - half) / weight, 0.0, 1.0), np.clip((middle + half) / weight, 0.0, 1.0)


def f1_interval(tp: FloatArray, fp: FloatArray, fn: FloatArray) -> Bounds:
    """
    Interval of F1 = 2J / (1 + J), from the Wilson interval of the Jaccard index J = tp / (tp + fp + fn).

    J is a proportion of the rows that are positive in prediction or label, and F1 grows with J, so its
    bounds map onto bounds of F1. (F1 itself is no proportion of independent rows.)

    Args:
        tp, fp, fn: Counts, any common shape.

    Returns:
        Two arrays in [0, 1]; ``nan`` where tp + fp + fn is 0.

    >>> [round(float(bound), 3) for bound in f1_interval(np.array(80), np.array(10), np.array(10))]
    [0.831, 0.929]
    """
    lower, upper = wilson(tp, tp + fp + fn)
    return 2 - 2 / (1 + lower), 2 - 2 / (1 + upper)


def mean_interval(
    n: FloatArray, total: FloatArray, total_of_squares: FloatArray, low: float = -np.inf, high: float = np.inf
) -> Bounds:
    """
    Normal interval of a mean: mean -+ 1.96 s / sqrt(n), with the sample variance s^2.

    From sums, so that it holds for a fleet too; the price is that a spread below about 1e-7 of the mean drowns in
    rounding and the interval comes out too narrow.

    Args:
        n: Number of rows, any shape.
        total: Sum of the values, same shape.
        total_of_squares: Sum of their squares, same shape.
        low, high: Limits of what the mean can be; the bounds are clipped to them.

    Returns:
        Two arrays; ``nan`` where n < 2, for one row tells nothing of the spread.

    >>> [round(float(bound), 3) for bound in mean_interval(np.array(4), np.array(10.0), np.array(30.0))]
    [1.235, 3.765]
    """
    mean = ratio(total, n)
    with np.errstate(invalid="ignore", over="ignore"):
        # max(..., 0): without any spread rounding may leave a tiny negative number under the root
        scatter = np.maximum(total_of_squares - total * mean, 0.0)
        half = Z * np.sqrt(scatter / np.where(np.greater(n, 1), n * (n - 1), np.nan))
    return np.clip(mean - half, low, high), np.clip(mean + half, low, high)


def mean_of_shares_interval(n: FloatArray, total: FloatArray) -> Bounds:
    """
    Interval of a mean of values in [0, 1] whose squares were not summed.

    No such values vary more than those that are all 0 or 1, for which Wilson's interval is made: so this one errs on
    the wide side.

    Args:
        n: Number of rows, any shape.
        total: Sum of the values, same shape, 0 <= total <= n.

    Returns:
        Two arrays in [0, 1]; ``nan`` where n is 0.

    Source: Bhatia and Davis (2000), American Mathematical Monthly 107, 353-357 (the variance is at most m (1 - m)).

    >>> [round(float(bound), 3) for bound in mean_of_shares_interval(np.array(100), np.array(80.0))]
    [0.711, 0.867]
    """
    return wilson(total, n)


def rmse_interval(n: FloatArray, squared: FloatArray, fourth: FloatArray) -> Bounds:
    """
    Normal interval of the mean squared error, carried through the square root.

    The spread of the squared errors is measured (sum of fourth powers), not derived from an assumed normal
    error: with heavy tails that assumption makes the interval far too narrow.

    Args:
        n: Number of rows, any shape.
        squared: Sum of squared errors, same shape.
        fourth: Sum of fourth powers of the errors, same shape.

    Returns:
        Two arrays >= 0; ``nan`` where n < 2.

    >>> [round(float(bound), 3) for bound in rmse_interval(np.array(3), np.array(6.0), np.array(18.0))]
    [0.2, 1.99]
    """
    lower, upper = mean_interval(n, squared, fourth, low=0.0)
    return np.sqrt(lower), np.sqrt(upper)
