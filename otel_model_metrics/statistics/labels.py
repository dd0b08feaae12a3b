"""
Labels: how many predictions have theirs, and how long it took.
"""

from __future__ import annotations

import numpy as np

from otel_model_metrics.statistics.groups import FloatArray
from otel_model_metrics.statistics.intervals import ratio

QUANTILES = (0.5, 0.9, 0.99)


def coverage(labelled: FloatArray, predicted: FloatArray) -> FloatArray:
    """
    Share of predictions that have their label.

    Args:
        labelled: Predictions with a label, shape ``(G,)``.
        predicted: All of them, shape ``(G,)``.

    Returns:
        Shape ``(G,)``, in [0, 1], unit ``{ratio}``; higher is better. ``nan`` without a prediction.

    Cost: O(G).

    >>> coverage(np.array([3.0, 0.0]), np.array([4.0, 0.0])).tolist()
    [0.75, nan]
    """
    share: FloatArray = ratio(labelled, predicted)
    return share


def delay_quantiles(delays: FloatArray) -> FloatArray:
    """
    How long labels took: the median, and what 90 % and 99 % stay below.

    Args:
        delays: Seconds from prediction to label, shape ``(n,)``; ``nan`` where the label came with the prediction.

    Returns:
        Shape ``(3,)``, seconds, >= 0; ``nan`` when no label came late.

    Source: Hyndman and Fan (1996), The American Statistician 50, 361-365, definition 7, as `numpy.quantile`.
    Cost: O(n log n).

    >>> delay_quantiles(np.array([1.0, 3.0, np.nan])).round(2).tolist()
    [2.0, 2.8, 2.98]
    """
    known = np.sort(delays[~np.isnan(delays)])
    if not len(known):
        return np.full(len(QUANTILES), np.nan)
    place = (len(known) - 1) * np.array(QUANTILES)  # np.quantile itself takes ten times as long for few
    below = place.astype(np.int64)
    above = np.minimum(below + 1, len(known) - 1)
    quantiles: FloatArray = known[below] + (place - below) * (known[above] - known[below])
    return quantiles
