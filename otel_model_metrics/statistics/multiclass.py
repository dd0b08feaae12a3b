"""
Multiclass classification with scores: what a row's probabilities say of its label.

The matrix of scores is reduced to two numbers a row as it arrives (`judge`), so that the window holds no matrix.
"""

from __future__ import annotations

import numpy as np

from otel_model_metrics.statistics.groups import FloatArray, IntArray
from otel_model_metrics.statistics.intervals import ratio


def judge(scores: FloatArray, labels: IntArray) -> tuple[FloatArray, IntArray]:
    """
    The loss of each row, and the rank its label has among the scores.

    Equal scores are ranked as scikit-learn does it: the later class first.

    Args:
        scores: Probabilities, shape ``(n, C)``, rows that add up to 1.
        labels: Class code of each label, shape ``(n,)``, in ``[0, C)``.

    Returns:
        Loss >= 0, shape ``(n,)``, and rank in ``[1, C]``, shape ``(n,)``, int64.

    Source: scikit-learn ``log_loss``, ``top_k_accuracy_score``.
    Cost: O(n * C).

    >>> losses, ranks = judge(np.array([[0.5, 0.25, 0.25]]), np.array([1]))
    >>> losses.round(4).tolist(), ranks.tolist()
    ([1.3863], [3])
    """
    own = np.take_along_axis(scores, labels[:, np.newaxis], axis=1)
    later = np.arange(scores.shape[1]) > labels[:, np.newaxis]
    ranks = 1 + (scores > own).sum(axis=1) + ((scores == own) & later).sum(axis=1)
    epsilon = np.finfo(np.float64).eps
    return -np.log(np.clip(own[:, 0], epsilon, 1 - epsilon)), ranks


def log_loss(loss: FloatArray, scored: FloatArray) -> FloatArray:
    """
    Mean negative logarithm of the probability given to the label; >= 0, lower is better.

    Args:
        loss: Sum of the losses of the rows that have scores.
        scored: Number of these rows.

    Source: scikit-learn ``log_loss``.

    >>> float(log_loss(np.array(3.0), np.array(2)))
    1.5
    """
    return ratio(loss, scored)


def top_k_accuracy(within_k: FloatArray, scored: FloatArray) -> FloatArray:
    """
    Share of rows whose label is among the k highest scores, in [0, 1]; higher is better.

    Args:
        within_k: Number of such rows for each k, shape ``(G, K)``.
        scored: Number of rows that have scores.

    Source: scikit-learn ``top_k_accuracy_score``.

    >>> top_k_accuracy(np.array([[1, 2]]), np.array([[4]])).tolist()
    [[0.25, 0.5]]
    """
    return ratio(within_k, scored)
