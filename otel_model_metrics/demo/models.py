"""
The four models that are served: trained on half of a data set that comes with scikit-learn, asked about the rest.

Each has two segments of traffic, and a fault that strikes one of them: its inputs are disturbed, its labels are not.
Labels come later, each model's after a delay of its own, and some never do.
"""

from __future__ import annotations

import heapq
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from opentelemetry.metrics import MeterProvider
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import train_test_split
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from otel_model_metrics import BinaryMonitor, MulticlassMonitor, RankingMonitor, RegressionMonitor, Window
from otel_model_metrics.monitors import Monitor

Floats = NDArray[np.float64]

# Delays are exponential, cut off here.
_LONGEST = 3.0


@dataclass(frozen=True)
class Traffic:
    """
    Requests to a model.

    Attributes:
        ids: What the labels will be known by, shape ``(n,)``.
        features: What the model is asked, shape ``(n, features)``; float64.
        segments: Where each request came from, shape ``(n,)``.
    """

    ids: list[str]
    features: Floats
    segments: list[str]


class ServedModel(ABC):
    """
    A trained model, the requests it may get, and its monitor.

    Args:
        window: Which rows count.
        provider: Where the monitor's metrics go.
        seconds: How long the run takes, of which delays are a part.
        clock: Seconds since 1970, for tests.

    Attributes:
        task: What kind of model it is.
        story: What the model does, in a few words.
        fault: What goes wrong half-way, in a few words.
        segment: Name of the segment.
        places: Its two values; the fault strikes the second.
        delay: How long labels take, as a part of the run: few take three times as long, none longer.
        never: Share of predictions whose label never comes.
        monitor: What it records to.
    """

    task: ClassVar[str]
    story: ClassVar[str]
    fault: ClassVar[str]
    segment: ClassVar[str]
    places: ClassVar[tuple[str, str]]
    delay: ClassVar[float]
    never: ClassVar[float]

    monitor: Monitor
    _features: Floats
    _labels: NDArray[Any]

    def __init__(
        self, window: Window, provider: MeterProvider, seconds: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._delay = self.delay * seconds
        self._due: list[tuple[float, str, int]] = []  # a heap: when a label comes, of which prediction, and its row
        self._served = 0
        self._train()
        self.monitor = self._make_monitor(
            version="1.0",
            # Only predictions whose label should be there are asked for it, or the newest would look like a gap.
            window=replace(window, maturity=self.longest_delay),
            segments=(self.segment,),
            ttl=seconds,  # nothing is waited for longer
            meter_provider=provider,
            clock=clock,
        )

    @property
    def longest_delay(self) -> float:
        """Seconds within which a label comes, if it does."""
        return _LONGEST * self._delay

    def serve(self, rng: np.random.Generator, disturbed: bool, n: int) -> None:
        """
        Answer n requests, drawn from the rows held out in training, and record each answer.

        Args:
            rng: Draws the requests, and when their labels will come.
            disturbed: Whether the fault is there.
            n: How many, >= 1.
        """
        drawn = rng.integers(len(self._labels), size=n)
        places = rng.integers(len(self.places), size=n)
        features = self._features[drawn]
        if disturbed:
            struck = places == 1
            features[struck] = self._disturb(rng, features[struck])
        ids = [f"{self.monitor.name}-{number}" for number in range(self._served, self._served + n)]
        self._served += n
        self._answer(Traffic(ids, features, [self.places[place] for place in places]))
        due = self._clock() + self._delay * _exponential(rng.random(n))
        comes = rng.random(n) >= self.never
        for arrival in zip(due[comes].tolist(), np.array(ids)[comes].tolist(), drawn[comes].tolist(), strict=True):
            heapq.heappush(self._due, arrival)

    def deliver(self) -> None:
        """Record the labels that have come until now."""
        now = self._clock()
        ids, drawn = [], []
        while self._due and self._due[0][0] <= now:
            _, id, row = heapq.heappop(self._due)
            ids.append(id)
            drawn.append(row)
        if ids:
            self._learn(ids, self._labels[drawn].tolist())

    def close(self) -> None:
        """Close the monitor, so that its name is free again."""
        self.monitor.close()

    @abstractmethod
    def _disturb(self, rng: np.random.Generator, features: Floats) -> Floats:
        """The same features, as the fault leaves them."""

    @abstractmethod
    def _train(self) -> None:
        """Train the model, and set aside what it is asked later."""

    @abstractmethod
    def _make_monitor(self, **settings: Any) -> Monitor:
        """The monitor, with what all models have in common."""

    @abstractmethod
    def _answer(self, traffic: Traffic) -> None:
        """Predict, and record under the ids."""

    def _learn(self, ids: Sequence[str], labels: Sequence[Any]) -> None:
        """Record the labels of these ids."""
        for id, label in zip(ids, labels, strict=True):
            self.monitor.record_label(id, label)


class TumourModel(ServedModel):
    """Binary: is a tumour malignant? Wisconsin breast cancer data, logistic regression; recorded one by one."""

    task = "binary"
    story = "is a tumour malignant?"
    fault = "the imaging of clinic south loses its calibration: every measure comes out 1.5 deviations low"
    segment = "clinic"
    places = ("north", "south")
    delay = 0.03
    never = 0.06
    monitor: BinaryMonitor

    def _train(self) -> None:
        data = load_breast_cancer()
        train, self._features, answers, self._labels = _halves(data.data, data.target == 0)
        self._deviation = train.std(axis=0)
        self._model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(train, answers)

    def _make_monitor(self, **settings: Any) -> BinaryMonitor:
        return BinaryMonitor(
            "tumours",
            objectives={"f1": 0.9, "recall": 0.85},
            **settings,
        )

    def _disturb(self, rng: np.random.Generator, features: Floats) -> Floats:
        low: Floats = features - 1.5 * self._deviation
        return low

    def _answer(self, traffic: Traffic) -> None:
        scores = self._model.predict_proba(traffic.features)[:, 1].tolist()
        for id, score, place in zip(traffic.ids, scores, traffic.segments, strict=True):
            self.monitor.record_prediction(id, score >= 0.5, score=score, segments={self.segment: place})


class DigitModel(ServedModel):
    """Multiclass: which digit was written? Digits data, logistic regression; recorded as batches of arrays."""

    task = "multiclass"
    story = "which digit was written?"
    fault = "the lens of the mobile scanner is dirty: its pictures are full of noise"
    segment = "scanner"
    places = ("desk", "mobile")
    delay = 0.02
    never = 0.02
    monitor: MulticlassMonitor

    def _train(self) -> None:
        data = load_digits()
        train, self._features, answers, self._labels = _halves(data.data, data.target)
        self._model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(train, answers)

    def _make_monitor(self, **settings: Any) -> MulticlassMonitor:
        return MulticlassMonitor(
            "digits",
            classes=list(range(10)),
            objectives={"accuracy": 0.9},
            **settings,
        )

    def _disturb(self, rng: np.random.Generator, features: Floats) -> Floats:
        return features + rng.normal(scale=6.0, size=features.shape)  # pixels are 0 to 16

    def _answer(self, traffic: Traffic) -> None:
        scores = self._model.predict_proba(traffic.features)
        predictions = scores.argmax(axis=1)
        segments = {self.segment: traffic.segments}
        self.monitor.record_prediction_batch(traffic.ids, predictions, scores=scores, segments=segments)

    def _learn(self, ids: Sequence[str], labels: Sequence[Any]) -> None:
        self.monitor.record_label_batch(ids, labels)


class DiabetesModel(ServedModel):
    """Regression: how far will diabetes progress in a year? Diabetes data, ridge regression; recorded one by one."""

    task = "regression"
    story = "how far will diabetes progress?"
    fault = "laboratory B reports triglycerides (s5) as a binary logarithm rather than the natural one"
    segment = "laboratory"
    places = ("A", "B")
    delay = 0.05
    never = 0.04
    monitor: RegressionMonitor

    def _train(self) -> None:
        data = load_diabetes(scaled=False)
        self._triglycerides = data.feature_names.index("s5")
        train, self._features, answers, self._labels = _halves(data.data, data.target)
        self._model = make_pipeline(StandardScaler(), Ridge(alpha=10.0)).fit(train, answers)

    def _make_monitor(self, **settings: Any) -> RegressionMonitor:
        return RegressionMonitor(
            "diabetes",
            objectives={"rmse": 65.0},
            **settings,
        )

    def _disturb(self, rng: np.random.Generator, features: Floats) -> Floats:
        features[:, self._triglycerides] /= np.log(2.0)
        return features

    def _answer(self, traffic: Traffic) -> None:
        predictions = self._model.predict(traffic.features).tolist()
        for id, prediction, place in zip(traffic.ids, predictions, traffic.segments, strict=True):
            self.monitor.record_prediction(id, prediction, segments={self.segment: place})


class ImageSearch(ServedModel):
    """Ranking: which pictures of a small catalogue show the same digit? Digits data, nearest neighbours."""

    task = "ranking"
    story = "which pictures show the same digit?"
    fault = "the phone app sends its pictures upside down"
    segment = "app"
    places = ("web", "phone")
    delay = 0.01
    never = 0.08
    monitor: RankingMonitor

    _shown = 10
    _catalogue_size = 200

    def _train(self) -> None:
        data = load_digits()
        catalogue, self._features, digits, self._labels = train_test_split(
            data.data, data.target, train_size=self._catalogue_size, random_state=0, stratify=data.target
        )
        self._model = NearestNeighbors(n_neighbors=self._shown).fit(catalogue)
        self._relevant = [set(np.flatnonzero(digits == digit).tolist()) for digit in range(10)]

    def _make_monitor(self, **settings: Any) -> RankingMonitor:
        return RankingMonitor(
            "image-search",
            k=self._shown,
            objectives={"mrr": 0.9, f"ndcg_at_{self._shown}": 0.75},
            **settings,
        )

    def _disturb(self, rng: np.random.Generator, features: Floats) -> Floats:
        upside_down: Floats = features.reshape(-1, 8, 8)[:, ::-1, :].reshape(-1, 64)
        return upside_down

    def _answer(self, traffic: Traffic) -> None:
        found = self._model.kneighbors(traffic.features, return_distance=False).tolist()
        for id, items, place in zip(traffic.ids, found, traffic.segments, strict=True):
            self.monitor.record_prediction(id, items, segments={self.segment: place})

    def _learn(self, ids: Sequence[str], labels: Sequence[Any]) -> None:
        super()._learn(ids, [self._relevant[digit] for digit in labels])


MODELS = (TumourModel, DigitModel, DiabetesModel, ImageSearch)


def _exponential(chances: Floats) -> Floats:
    """
    Delays with a mean of about 1, of which few are long and none is longer than `_LONGEST`.

    Args:
        chances: Uniform in [0, 1).
    """
    delays: Floats = -np.log1p(chances * np.expm1(-_LONGEST))
    return delays


def _halves(features: Floats, labels: NDArray[Any]) -> tuple[Floats, Floats, NDArray[Any], NDArray[Any]]:
    """Features to train on, features held out, and the labels of each; the same halves in every run."""
    train, held_out, answers, truth = train_test_split(features, labels, test_size=0.5, random_state=0)
    return train, held_out, answers, truth
