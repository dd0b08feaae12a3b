"""
Oracles: every metric a second time, by scikit-learn, SciPy and trec_eval (through ir-measures), or in plain Python.

`ORACLES[task, name]` takes `Rows` and, for a metric with several values, the arguments with which
`Snapshot.value` picks one (``average=``, ``class_=``, ``k=``). It answers ``nan`` where the metric is undefined.
Nothing of otel_model_metrics is imported here, so that no mistake of ours can be its own oracle.
"""

from __future__ import annotations

import itertools
import math
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ir_measures
import numpy as np
from scipy import stats
from sklearn import metrics
from statsmodels.stats.proportion import proportion_confint

NAN = float("nan")


@dataclass(frozen=True)
class Rows:
    """
    The rows of a window, as a user would hold them.

    Attributes:
        predictions: Booleans, classes, numbers, or for rankings lists of items. Shape ``(n,)``.
        labels: Likewise; for rankings a mapping item -> gain > 0 each.
        scores: Binary: probabilities, ``nan`` for none, shape ``(n,)``. Multiclass: shape ``(n, C)``. Else None.
        classes: The classes of a multiclass monitor, in the order of the scores' columns.
        segments: Segment name -> value of each row, None for no such segment.
    """

    predictions: Sequence[Any]
    labels: Sequence[Any]
    scores: np.ndarray | None = None
    classes: tuple[Any, ...] = ()
    segments: Mapping[str, Sequence[Any]] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, wanted: Sequence[bool]) -> Rows:
        """The rows for which `wanted` holds, without segments."""
        rows = [row for row, keep in enumerate(wanted) if keep]
        return replace(
            self,
            predictions=[self.predictions[row] for row in rows],
            labels=[self.labels[row] for row in rows],
            scores=None if self.scores is None else self.scores[rows],
            segments=None,
        )


Oracle = Callable[..., float]
ORACLES: dict[tuple[str, str], Oracle] = {}


def oracle(task: str, name: str) -> Callable[[Oracle], Oracle]:
    """Register the oracle of a metric. No rows means undefined, whatever the metric."""

    def register(function: Oracle) -> Oracle:
        def answer(rows: Rows, **variant: Any) -> float:
            if not len(rows):
                return NAN
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # scikit-learn warns of what is undefined, or rare
                return float(function(rows, **variant))

        ORACLES[task, name] = answer
        return function

    return register


def expected(task: str, name: str, rows: Rows, **variant: Any) -> float:
    """What a metric must be."""
    assert (task, name) in ORACLES, f"{task} {name} has no oracle: add one to tests/oracles.py that is not our own code"
    return ORACLES[task, name](rows, **variant)


# Bounds


def wilson(successes: float, trials: float) -> tuple[float, float]:
    """Wilson's 95 % interval, by SciPy."""
    if trials == 0:
        return NAN, NAN
    interval = stats.binomtest(int(successes), int(trials)).proportion_ci(0.95, method="wilson")
    return interval.low, interval.high


def f1_of_jaccard(successes: float, trials: float) -> tuple[float, float]:
    """Bounds of F1 = 2J / (1 + J) from those of the Jaccard index J."""
    lower, upper = wilson(successes, trials)
    return 2 * lower / (1 + lower), 2 * upper / (1 + upper)


def normal(values: Sequence[float], low: float, high: float) -> tuple[float, float]:
    """Normal 95 % interval of a mean, by SciPy, cut to the range the mean can have."""
    if len(values) < 2:
        return NAN, NAN
    half = stats.norm.ppf(0.975) * np.std(values, ddof=1) / math.sqrt(len(values))
    mean = np.mean(values)
    return float(np.clip(mean - half, low, high)), float(np.clip(mean + half, low, high))


def bounded(task: str, name: str) -> Callable[[Callable[..., tuple[float, float]]], Any]:
    """Register the oracles of both bounds of a metric."""

    def register(function: Callable[..., tuple[float, float]]) -> Any:
        oracle(task, f"{name}.lower")(lambda rows, **variant: function(rows, **variant)[0])
        oracle(task, f"{name}.upper")(lambda rows, **variant: function(rows, **variant)[1])
        return function

    return register


# Binary


def _binary(function: Callable[..., float], **settings: Any) -> Oracle:
    return lambda rows: function(np.array(rows.labels, bool), np.array(rows.predictions, bool), **settings)


oracle("binary", "accuracy")(_binary(metrics.accuracy_score))
oracle("binary", "precision")(_binary(metrics.precision_score, zero_division=np.nan))
oracle("binary", "recall")(_binary(metrics.recall_score, zero_division=np.nan))
oracle("binary", "specificity")(_binary(metrics.recall_score, pos_label=False, zero_division=np.nan))
oracle("binary", "f1")(_binary(metrics.f1_score, zero_division=np.nan))
oracle("binary", "balanced_accuracy")(_binary(metrics.balanced_accuracy_score))


def _mcc(rows: Rows) -> float:
    if len(set(rows.labels)) < 2 or len(set(rows.predictions)) < 2:
        return NAN  # scikit-learn says 0.0
    return metrics.matthews_corrcoef(rows.labels, rows.predictions)


oracle("binary", "mcc")(_mcc)


def _counts(rows: Rows) -> tuple[int, int, int, int]:
    tn, fp, fn, tp = metrics.confusion_matrix(
        np.array(rows.labels, bool), np.array(rows.predictions, bool), labels=[False, True]
    ).ravel()
    return int(tn), int(fp), int(fn), int(tp)


@bounded("binary", "accuracy")
def _accuracy_bounds(rows: Rows) -> tuple[float, float]:
    return wilson(
        sum(label == predicted for label, predicted in zip(rows.labels, rows.predictions, strict=True)), len(rows)
    )


@bounded("binary", "precision")
def _precision_bounds(rows: Rows) -> tuple[float, float]:
    _, fp, _, tp = _counts(rows)
    return wilson(tp, tp + fp)


@bounded("binary", "recall")
def _recall_bounds(rows: Rows) -> tuple[float, float]:
    _, _, fn, tp = _counts(rows)
    return wilson(tp, tp + fn)


@bounded("binary", "f1")
def _f1_bounds(rows: Rows) -> tuple[float, float]:
    _, fp, fn, tp = _counts(rows)
    return f1_of_jaccard(tp, tp + fp + fn)


@bounded("binary", "specificity")
def _specificity_bounds(rows: Rows) -> tuple[float, float]:
    tn, fp, _, _ = _counts(rows)
    return wilson(tn, tn + fp)


@bounded("binary", "balanced_accuracy")
def _balanced_accuracy_bounds(rows: Rows) -> tuple[float, float]:
    return _mean_bounds([_recall_bounds(rows), _specificity_bounds(rows)])


def _mean_bounds(bounds: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Mean of the bounds that are defined."""
    defined = [(lower, upper) for lower, upper in bounds if not math.isnan(lower)]
    if not defined:
        return NAN, NAN
    return statistics.fmean(lower for lower, _ in defined), statistics.fmean(upper for _, upper in defined)


def _scored(function: Callable[..., float], *, needs_both: bool = False, needs_positive: bool = False) -> Oracle:
    """Of the rows that have a score."""

    def answer(rows: Rows) -> float:
        assert rows.scores is not None
        has_score = ~np.isnan(rows.scores)
        labels, scores = np.array(rows.labels, bool)[has_score], rows.scores[has_score]
        if not len(labels) or (needs_both and labels.all()) or ((needs_both or needs_positive) and not labels.any()):
            return NAN
        return function(labels, scores)

    return answer


def _calibration_error(labels: np.ndarray, scores: np.ndarray) -> float:
    """Expected calibration error, bin by bin: weight of the bin times |mean score - share of positives|."""
    edges = np.linspace(0.0, 1.0, 11)
    error = 0.0
    for number, (low, high) in enumerate(itertools.pairwise(edges)):
        inside = ((scores > low) | (number == 0)) & (scores <= high)
        if inside.any():
            error += inside.mean() * abs(scores[inside].mean() - labels[inside].mean())
    return float(error)


oracle("binary", "roc_auc")(_scored(metrics.roc_auc_score, needs_both=True))
oracle("binary", "average_precision")(_scored(metrics.average_precision_score, needs_positive=True))
oracle("binary", "log_loss")(_scored(lambda y, p: metrics.log_loss(y, p, labels=[False, True])))
oracle("binary", "brier_score")(_scored(lambda y, p: metrics.brier_score_loss(y, p, labels=[False, True])))
oracle("binary", "calibration_error")(_scored(_calibration_error))


# Multiclass

oracle("multiclass", "accuracy")(lambda rows: metrics.accuracy_score(rows.labels, rows.predictions))
oracle("multiclass", "balanced_accuracy")(
    lambda rows: metrics.balanced_accuracy_score(list(rows.labels), list(rows.predictions))
)
oracle("multiclass", "mcc")(_mcc)
bounded("multiclass", "accuracy")(_accuracy_bounds)


def _by_class(function: Callable[..., Any]) -> Oracle:
    def answer(rows: Rows, *, average: str | None = None, class_: Any = None) -> float:
        given = {"labels": list(rows.classes), "zero_division": np.nan}
        if class_ is not None:
            given["labels"] = [class_]
        if average == "weighted" and class_ is None:
            per_class = function(rows.labels, rows.predictions, average=None, **given)
            support = np.array([list(rows.labels).count(one) for one in rows.classes])
            if not support[~np.isnan(per_class)].any():
                return NAN  # 0/0: no class with a value has a label. scikit-learn drops the weights there.
        values = function(rows.labels, rows.predictions, average=None if class_ is not None else average, **given)
        return float(values[0]) if class_ is not None else float(values)

    return answer


oracle("multiclass", "precision")(_by_class(metrics.precision_score))
oracle("multiclass", "recall")(_by_class(metrics.recall_score))
oracle("multiclass", "f1")(_by_class(metrics.f1_score))


def _bounds_by_class(bounds: Callable[[int, int, int], tuple[float, float]]) -> Any:
    """An average of bounds is the average of the classes' bounds, in plain Python."""

    def answer(rows: Rows, *, average: str | None = None, class_: Any = None) -> tuple[float, float]:
        found: list[tuple[int, tuple[float, float]]] = []
        for one in rows.classes if class_ is None else [class_]:
            pairs = [(label == one, guess == one) for label, guess in zip(rows.labels, rows.predictions, strict=True)]
            tp, fp, fn = pairs.count((True, True)), pairs.count((False, True)), pairs.count((True, False))
            found.append((tp + fn, bounds(tp, fp, fn)))
        if class_ is not None:
            return found[0][1]
        defined = [(support if average == "weighted" else 1, pair) for support, pair in found if pair[0] == pair[0]]
        total = sum(weight for weight, _ in defined)
        if not total:
            return NAN, NAN
        return (
            sum(weight * lower for weight, (lower, _) in defined) / total,
            sum(weight * upper for weight, (_, upper) in defined) / total,
        )

    return answer


@bounded("multiclass", "balanced_accuracy")
def _balanced_accuracy_of_classes_bounds(rows: Rows) -> tuple[float, float]:
    return _bounds_by_class(lambda tp, fp, fn: wilson(tp, tp + fn))(rows, average="macro")


bounded("multiclass", "precision")(_bounds_by_class(lambda tp, fp, fn: wilson(tp, tp + fp)))
bounded("multiclass", "recall")(_bounds_by_class(lambda tp, fp, fn: wilson(tp, tp + fn)))
bounded("multiclass", "f1")(_bounds_by_class(lambda tp, fp, fn: f1_of_jaccard(tp, tp + fp + fn)))


def _with_scores(function: Callable[..., float]) -> Oracle:
    def answer(rows: Rows, **variant: Any) -> float:
        if rows.scores is None:
            return NAN
        rows = rows.where(~np.isnan(rows.scores).any(axis=1))
        codes = [rows.classes.index(label) for label in rows.labels]
        return function(codes, rows.scores, labels=range(len(rows.classes)), **variant) if codes else NAN

    return answer


oracle("multiclass", "log_loss")(_with_scores(metrics.log_loss))
oracle("multiclass", "top_k_accuracy")(_with_scores(metrics.top_k_accuracy_score))


# Regression


def _regression(function: Callable[..., float]) -> Oracle:
    return lambda rows: function(np.array(rows.labels, float), np.array(rows.predictions, float))


oracle("regression", "mae")(_regression(metrics.mean_absolute_error))
oracle("regression", "mse")(_regression(metrics.mean_squared_error))
oracle("regression", "rmse")(_regression(metrics.root_mean_squared_error))
oracle("regression", "median_absolute_error")(_regression(metrics.median_absolute_error))
oracle("regression", "max_error")(_regression(metrics.max_error))


@oracle("regression", "mean_error")
def _mean_error(rows: Rows) -> float:
    return statistics.fmean(predicted - label for predicted, label in zip(rows.predictions, rows.labels, strict=True))


@oracle("regression", "mape")
def _mape(rows: Rows) -> float:
    rows = rows.where([label != 0 for label in rows.labels])
    return metrics.mean_absolute_percentage_error(rows.labels, rows.predictions) if len(rows) else NAN


@oracle("regression", "r2")
def _r2(rows: Rows) -> float:
    if len(set(rows.labels)) < 2:
        return NAN  # scikit-learn says 0.0 or 1.0
    return metrics.r2_score(rows.labels, rows.predictions)


def _errors(rows: Rows) -> np.ndarray:
    return np.array(rows.predictions, float) - np.array(rows.labels, float)


@bounded("regression", "mae")
def _mae_bounds(rows: Rows) -> tuple[float, float]:
    return normal(np.abs(_errors(rows)), 0.0, math.inf)


@bounded("regression", "mse")
def _mse_bounds(rows: Rows) -> tuple[float, float]:
    return normal(_errors(rows) ** 2, 0.0, math.inf)


@bounded("regression", "mean_error")
def _mean_error_bounds(rows: Rows) -> tuple[float, float]:
    return normal(_errors(rows), -math.inf, math.inf)


@bounded("regression", "rmse")
def _rmse_bounds(rows: Rows) -> tuple[float, float]:
    lower, upper = normal(_errors(rows) ** 2, 0.0, math.inf)
    return math.sqrt(lower), math.sqrt(upper)


# Ranking


def _trec(measure: Callable[[int], Any]) -> Callable[..., list[float]]:
    """One value for each ranking, by trec_eval."""

    def values(rows: Rows, *, k: int = 0) -> list[float]:
        qrels, run = [], []
        for query, (items, gains) in enumerate(zip(rows.predictions, rows.labels, strict=True)):
            qrels += [ir_measures.Qrel(str(query), str(item), int(gain)) for item, gain in gains.items()]
            # An irrelevant item at the end changes nothing, but makes trec_eval see queries that were shown nothing.
            shown = [*items, "nothing"]
            run += [
                ir_measures.ScoredDoc(str(query), str(item), float(len(shown) - place))
                for place, item in enumerate(shown)
            ]
        found = {result.query_id: result.value for result in ir_measures.iter_calc([measure(k)], qrels, run)}
        return [found[str(query)] for query in range(len(rows))]

    return values


_RANKING = {
    "mrr": _trec(lambda k: ir_measures.RR),
    "precision_at_k": _trec(lambda k: ir_measures.P @ k),
    "recall_at_k": _trec(lambda k: ir_measures.R @ k),
    "ndcg_at_k": _trec(lambda k: ir_measures.nDCG @ k),
    "map_at_k": _trec(lambda k: ir_measures.AP @ k),
    "hit_rate_at_k": _trec(lambda k: ir_measures.Success @ k),
}
for _name, _values in _RANKING.items():
    oracle("ranking", _name)(lambda rows, _values=_values, **variant: statistics.fmean(_values(rows, **variant)))


@bounded("ranking", "mrr")
def _mrr_bounds(rows: Rows) -> tuple[float, float]:
    return normal(_RANKING["mrr"](rows), 0.0, 1.0)


@bounded("ranking", "hit_rate_at_k")
def _hit_rate_bounds(rows: Rows, *, k: int) -> tuple[float, float]:
    return wilson(sum(_RANKING["hit_rate_at_k"](rows, k=k)), len(rows))


def _wilson_of_values(name: str) -> Callable[..., tuple[float, float]]:
    """By statsmodels, for which "successes" need not be whole."""

    def bounds(rows: Rows, *, k: int) -> tuple[float, float]:
        return proportion_confint(sum(_RANKING[name](rows, k=k)), len(rows), method="wilson")

    return bounds


for _name in ("precision_at_k", "recall_at_k", "ndcg_at_k", "map_at_k"):
    bounded("ranking", _name)(_wilson_of_values(_name))
