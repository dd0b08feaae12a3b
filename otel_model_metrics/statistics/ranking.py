"""
Ranking: where in the list were the relevant items.

Each ranking is judged once, as it arrives (`judge`); the window holds the judgements, not the lists. An item is
relevant if its gain is above 0. Lists shorter than k count as if filled up with irrelevant items.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from math import log2

import numpy as np
from numpy.typing import NDArray

from otel_model_metrics.statistics.groups import FloatArray, Groups
from otel_model_metrics.statistics.intervals import Bounds, mean_interval, mean_of_shares_interval, ratio, wilson


def judge(
    items: Sequence[Hashable], gains: Mapping[Hashable, float], ks: Sequence[int]
) -> tuple[int, list[int], list[float], list[float]]:
    """
    Judge one ranking.

    Args:
        items: The items shown, best first, without repetition.
        gains: Gain of each relevant item, > 0; at least one.
        ks: The cut-offs, ascending.

    Returns:
        Rank of the first relevant item (from 1; 0 if none is shown), and for each k the number of relevant items
        among the first k, the normalised discounted cumulative gain, and the average precision.

    Source: Jarvelin and Kekalainen (2002), ACM Transactions on Information Systems 20, 422-446 (linear gain);
        trec_eval ``ndcg_cut``, ``map_cut`` (divided by the number of relevant items).
    Cost: O(len(items) + max(ks) + relevant * log(relevant)).

    >>> judge(["a", "b", "c"], {"b": 1.0, "z": 1.0}, ks=[1, 3])
    (2, [0, 1], [0.0, 0.38685280723454163], [0.0, 0.25])
    """
    first = next((rank for rank, item in enumerate(items, start=1) if item in gains), 0)
    ideal_gains = sorted(gains.values(), reverse=True)
    hits, ndcg, average_precision = [], [], []
    found, gained, ideal, precisions, rank = 0, 0.0, 0.0, 0.0, 0
    for k in ks:
        while rank < k:
            if rank < len(ideal_gains):
                ideal += ideal_gains[rank] / log2(rank + 2)
            if rank < len(items):
                gain = gains.get(items[rank])
                if gain is not None:
                    found += 1
                    gained += gain / log2(rank + 2)
                    precisions += found / (rank + 1)
            elif rank >= len(ideal_gains):
                break  # nothing more can be found or missed
            rank += 1
        hits.append(found)
        ndcg.append(gained / ideal)
        average_precision.append(precisions / len(gains))
    return first, hits, ndcg, average_precision


def judgement_sums(
    first: NDArray[np.integer],
    relevant: NDArray[np.integer],
    hits: NDArray[np.integer],
    ndcg: FloatArray,
    average_precision: FloatArray,
    ks: Sequence[int],
    groups: Groups,
) -> dict[str, FloatArray]:
    """
    The additive statistics of n judged rankings.

    Args:
        first: Rank of the first relevant item, 0 for none. Shape ``(n,)``.
        relevant: Number of relevant items, >= 1. Shape ``(n,)``.
        hits, ndcg, average_precision: As from `judge`, shape ``(n, K)``.
        ks: The K cut-offs.
        groups: Groups of the n rows.

    Returns:
        Sums of the reciprocal rank and of its square, shape ``(G,)``; of precision, recall, ndcg, average
        precision and of rankings with at least one hit, shape ``(G, K)``.
    """
    reciprocal = np.zeros(len(first), np.float64)
    np.divide(1.0, first, out=reciprocal, where=first > 0)
    return {
        "reciprocal": groups.sums(reciprocal),
        "reciprocal_squared": groups.sums(reciprocal * reciprocal),
        "precision": groups.sums(hits / np.asarray(ks, np.float64)),
        "recall": groups.sums(hits / relevant.astype(np.float64)[:, np.newaxis]),
        "ndcg": groups.sums(ndcg),
        "average_precision": groups.sums(average_precision),
        "hits": groups.sums((hits > 0).astype(np.float64)),
    }


def mrr(n: FloatArray, reciprocal: FloatArray) -> FloatArray:
    """
    Mean of 1 / rank of the first relevant item (0 if none is shown), in [0, 1]; higher is better.

    Source: Voorhees (1999), TREC-8; trec_eval ``recip_rank``.

    >>> float(mrr(np.array(2), np.array(1.5)))
    0.75
    """
    return ratio(reciprocal, n)


def mrr_interval(n: FloatArray, reciprocal: FloatArray, reciprocal_squared: FloatArray) -> Bounds:
    """Normal interval of `mrr`; undefined for one row."""
    return mean_interval(n, reciprocal, reciprocal_squared, low=0.0, high=1.0)


def precision_at_k(n: FloatArray, precision: FloatArray) -> FloatArray:
    """
    Mean share of the first k places that hold a relevant item, in [0, 1]; higher is better.

    Source: trec_eval ``P``.

    >>> float(precision_at_k(np.array(2), np.array(1.5)))
    0.75
    """
    return ratio(precision, n)


def precision_interval(n: FloatArray, precision: FloatArray) -> Bounds:
    """Interval of `precision_at_k`, on the wide side."""
    return mean_of_shares_interval(n, precision)


def recall_at_k(n: FloatArray, recall: FloatArray) -> FloatArray:
    """
    Mean share of the relevant items that are among the first k, in [0, 1]; higher is better.

    Source: trec_eval ``recall``.

    >>> float(recall_at_k(np.array(2), np.array(1.5)))
    0.75
    """
    return ratio(recall, n)


def recall_interval(n: FloatArray, recall: FloatArray) -> Bounds:
    """Interval of `recall_at_k`, on the wide side."""
    return mean_of_shares_interval(n, recall)


def ndcg_at_k(n: FloatArray, ndcg: FloatArray) -> FloatArray:
    """
    Mean gain of the first k items, discounted by rank, relative to the best possible order; in [0, 1].

    Source: Jarvelin and Kekalainen (2002); trec_eval ``ndcg_cut``.

    >>> float(ndcg_at_k(np.array(2), np.array(1.5)))
    0.75
    """
    return ratio(ndcg, n)


def ndcg_interval(n: FloatArray, ndcg: FloatArray) -> Bounds:
    """Interval of `ndcg_at_k`, on the wide side."""
    return mean_of_shares_interval(n, ndcg)


def map_at_k(n: FloatArray, average_precision: FloatArray) -> FloatArray:
    """
    Mean average precision of the first k items, in [0, 1]; higher is better.

    Source: trec_eval ``map_cut``.

    >>> float(map_at_k(np.array(2), np.array(1.5)))
    0.75
    """
    return ratio(average_precision, n)


def map_interval(n: FloatArray, average_precision: FloatArray) -> Bounds:
    """Interval of `map_at_k`, on the wide side."""
    return mean_of_shares_interval(n, average_precision)


def hit_rate_at_k(n: FloatArray, hits: FloatArray) -> FloatArray:
    """
    Share of rankings with a relevant item among the first k, in [0, 1]; higher is better.

    Source: trec_eval ``success``.

    >>> float(hit_rate_at_k(np.array(4), np.array(3)))
    0.75
    """
    return ratio(hits, n)


def hit_rate_interval(n: FloatArray, hits: FloatArray) -> Bounds:
    """Wilson interval of `hit_rate_at_k`."""
    return wilson(hits, n)
