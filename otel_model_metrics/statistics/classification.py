"""
Classification: what follows from a confusion matrix, for two classes or many.

The arguments are additive statistics, named as in the literature; a function says by its argument names which
it needs. Binary statistics have shape ``(G,)``, one entry a group; one-against-rest statistics of many classes
have shape ``(G, C)``. Undefined (0/0) is ``nan``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from otel_model_metrics.statistics.groups import FloatArray, Groups, IntArray
from otel_model_metrics.statistics.intervals import Bounds, ratio, wilson


def confusion_matrix(cells: NDArray[np.integer], classes: int, groups: Groups) -> IntArray:
    """
    How often each class was predicted for each actual class.

    Args:
        cells: ``actual * classes + predicted`` of each row, shape ``(n,)``.
        classes: Number of classes C.
        groups: Groups of the n rows.

    Returns:
        Shape ``(G, C, C)``, int64: group, actual class, predicted class.

    >>> confusion_matrix(np.array([0, 1, 3, 3]), 2, Groups(np.zeros(4, int))).tolist()
    [[[1, 1], [0, 2]]]
    """
    return groups.rows_per_cell(cells, classes * classes).reshape(groups.count, classes, classes)


def two_class_counts(matrix: IntArray) -> dict[str, IntArray]:
    """
    The four counts of the positive class, each of shape ``(G,)``, with ``correct`` and ``n``.

    Args:
        matrix: Shape ``(G, 2, 2)``; class 1 is the positive one.

    >>> {name: counts.tolist() for name, counts in two_class_counts(np.array([[[1, 2], [0, 4]]])).items()}
    {'tn': [1], 'fp': [2], 'fn': [0], 'tp': [4], 'correct': [5], 'n': [7]}
    """
    tn, fp, fn, tp = matrix[:, 0, 0], matrix[:, 0, 1], matrix[:, 1, 0], matrix[:, 1, 1]
    return {"tn": tn, "fp": fp, "fn": fn, "tp": tp, "correct": tp + tn, "n": tn + fp + fn + tp}


def class_counts(matrix: IntArray) -> dict[str, IntArray]:
    """
    The four counts of each class against all others, its number of labels, and ``correct`` and ``n`` of all.

    Args:
        matrix: Shape ``(G, C, C)``.

    Returns:
        ``tp``, ``fp``, ``fn``, ``tn``, ``support``, ``predicted`` of shape ``(G, C)``; ``correct``, ``n`` of shape
        ``(G,)``.

    >>> class_counts(np.array([[[1, 1], [0, 2]]]))["fp"].tolist()
    [[0, 1]]
    """
    tp = np.diagonal(matrix, axis1=1, axis2=2)
    support = matrix.sum(axis=2)
    predicted = matrix.sum(axis=1)
    n = support.sum(axis=1)
    return {
        "tp": tp,
        "fp": predicted - tp,
        "fn": support - tp,
        "tn": n[:, np.newaxis] - support - predicted + tp,
        "support": support,
        "predicted": predicted,
        "correct": tp.sum(axis=1),
        "n": n,
    }


def accuracy(correct: FloatArray, n: FloatArray) -> FloatArray:
    """
    Share of predictions that equal their label, in [0, 1]; higher is better.

    Source: scikit-learn ``accuracy_score``.

    >>> float(accuracy(np.array(3), np.array(4)))
    0.75
    """
    return ratio(correct, n)


def accuracy_interval(correct: FloatArray, n: FloatArray) -> Bounds:
    """Wilson interval of `accuracy`."""
    return wilson(correct, n)


def precision(tp: FloatArray, fp: FloatArray) -> FloatArray:
    """
    Share of positive predictions that are right, in [0, 1]; higher is better, undefined without one.

    Source: scikit-learn ``precision_score`` with ``zero_division=nan``.

    >>> float(precision(np.array(3), np.array(1)))
    0.75
    """
    return ratio(tp, tp + fp)


def precision_interval(tp: FloatArray, fp: FloatArray) -> Bounds:
    """Wilson interval of `precision`."""
    return wilson(tp, tp + fp)


def recall(tp: FloatArray, fn: FloatArray) -> FloatArray:
    """
    Share of positive labels that were predicted, in [0, 1]; higher is better, undefined without one.

    Source: scikit-learn ``recall_score`` with ``zero_division=nan``.

    >>> float(recall(np.array(3), np.array(1)))
    0.75
    """
    return ratio(tp, tp + fn)


def recall_interval(tp: FloatArray, fn: FloatArray) -> Bounds:
    """Wilson interval of `recall`."""
    return wilson(tp, tp + fn)


def specificity(tn: FloatArray, fp: FloatArray) -> FloatArray:
    """
    Share of negative labels that were predicted negative, in [0, 1]; higher is better.

    Source: recall of the negative class, scikit-learn ``recall_score(pos_label=0)``.

    >>> float(specificity(np.array(3), np.array(1)))
    0.75
    """
    return ratio(tn, tn + fp)


def specificity_interval(tn: FloatArray, fp: FloatArray) -> Bounds:
    """Wilson interval of `specificity`."""
    return wilson(tn, tn + fp)


def f1(tp: FloatArray, fp: FloatArray, fn: FloatArray) -> FloatArray:
    """
    Harmonic mean of precision and recall, in [0, 1]; higher is better.

    Undefined only if the class occurs neither in predictions nor in labels.

    Source: scikit-learn ``f1_score`` with ``zero_division=nan``.

    >>> float(f1(np.array(2), np.array(1), np.array(1)))
    0.6666666666666666
    """
    return ratio(2 * tp, (tp + fp) + (tp + fn))


def balanced_accuracy(tp: FloatArray, fp: FloatArray, fn: FloatArray, tn: FloatArray) -> FloatArray:
    """
    Mean of recall and specificity, in [0, 1]; higher is better. A class without labels is left out.

    Source: scikit-learn ``balanced_accuracy_score``.

    >>> float(balanced_accuracy(np.array(1), np.array(0), np.array(1), np.array(2)))
    0.75
    """
    return _mean_of_two(recall(tp, fn), specificity(tn, fp))


def balanced_accuracy_interval(tp: FloatArray, fp: FloatArray, fn: FloatArray, tn: FloatArray) -> Bounds:
    """Mean of the Wilson intervals of `recall` and `specificity`; it errs on the wide side, for errors even out."""
    positive, negative = recall_interval(tp, fn), specificity_interval(tn, fp)
    return _mean_of_two(positive[0], negative[0]), _mean_of_two(positive[1], negative[1])


def balanced_accuracy_of_classes(tp: FloatArray, fn: FloatArray) -> FloatArray:
    """
    Mean recall over the classes that have labels, in [0, 1]; higher is better.

    Args:
        tp, fn: One class against the rest, shape ``(G, C)``.

    Source: scikit-learn ``balanced_accuracy_score``.

    >>> balanced_accuracy_of_classes(np.array([[2, 1]]), np.array([[0, 1]])).tolist()
    [0.75]
    """
    return _mean_over_classes(recall(tp, fn))


def balanced_accuracy_of_classes_interval(tp: FloatArray, fn: FloatArray) -> Bounds:
    """Mean of the Wilson intervals of each class's recall; it errs on the wide side, for errors even out."""
    lower, upper = recall_interval(tp, fn)
    return _mean_over_classes(lower), _mean_over_classes(upper)


def mcc(tp: FloatArray, fp: FloatArray, fn: FloatArray, tn: FloatArray) -> FloatArray:
    """
    Matthews correlation coefficient, in [-1, 1]; higher is better, 0 is chance.

    Undefined when predictions or labels are all of one class (scikit-learn says 0.0 there).

    Source: Matthews (1975), Biochimica et Biophysica Acta 405, 442-451; scikit-learn ``matthews_corrcoef``.

    >>> float(mcc(np.array(1), np.array(1), np.array(0), np.array(2)))
    0.5773502691896258
    """
    # Two roots, because the product of four counts of 1e5 each is near the limit of exact float64 integers.
    return ratio(tp * tn - fp * fn, np.sqrt((tp + fp) * (tp + fn)) * np.sqrt((tn + fp) * (tn + fn)))


def mcc_of_classes(correct: FloatArray, n: FloatArray, support: FloatArray, predicted: FloatArray) -> FloatArray:
    """
    Matthews correlation coefficient of many classes, in [-1, 1]; higher is better, 0 is chance.

    Args:
        correct, n: Shape ``(G,)``.
        support, predicted: Labels and predictions of each class, shape ``(G, C)``.

    Source: Gorodkin (2004), Computational Biology and Chemistry 28, 367-374; scikit-learn ``matthews_corrcoef``.

    >>> mcc_of_classes(np.array([3]), np.array([4]), np.array([[3, 1]]), np.array([[2, 2]])).round(6).tolist()
    [0.57735]
    """
    covariance = correct * n - np.nansum(support * predicted, axis=-1)
    spread_of_labels = n * n - np.nansum(support * support, axis=-1)
    spread_of_predictions = n * n - np.nansum(predicted * predicted, axis=-1)
    return ratio(covariance, np.sqrt(spread_of_labels) * np.sqrt(spread_of_predictions))


def macro_average(per_class: FloatArray, support: FloatArray) -> FloatArray:
    """
    Unweighted mean over the classes for which the value is defined.

    Args:
        per_class: Shape ``(G, C)``.
        support: Not used; both averages take the same arguments.

    Returns:
        Shape ``(G,)``.

    Source: scikit-learn ``average="macro", zero_division=nan``.

    >>> macro_average(np.array([[1.0, 0.5, np.nan]]), np.array([[3, 1, 0]])).tolist()
    [0.75]
    """
    return _mean_over_classes(per_class)


def weighted_average(per_class: FloatArray, support: FloatArray) -> FloatArray:
    """
    Mean over the classes for which the value is defined, each weighted by its number of labels.

    Undefined if none of these classes has a label (scikit-learn takes the unweighted mean there).

    Args:
        per_class: Shape ``(G, C)``.
        support: Labels of each class, shape ``(G, C)``.

    Returns:
        Shape ``(G,)``.

    Source: scikit-learn ``average="weighted", zero_division=nan``.

    >>> weighted_average(np.array([[1.0, 0.5, np.nan]]), np.array([[3, 1, 0]])).tolist()
    [0.875]
    """
    weights = np.where(np.isnan(per_class), np.nan, support)
    return ratio(np.nansum(per_class * support, axis=-1), np.nansum(weights, axis=-1))


def _mean_over_classes(values: FloatArray) -> FloatArray:
    """Mean over the last axis without the undefined values; undefined if all are."""
    return ratio(np.nansum(values, axis=-1), np.count_nonzero(~np.isnan(values), axis=-1))


def _mean_of_two(one: FloatArray, other: FloatArray) -> FloatArray:
    """Their mean, or the one that is defined; undefined if neither is."""
    return (np.where(np.isnan(one), other, one) + np.where(np.isnan(other), one, other)) / 2
