"""
The four models that are served: trained on half of a data set that comes with scikit-learn, asked about the rest.

Each has two segments of traffic, and a fault that strikes one of them: its inputs are disturbed, its labels are not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Traffic:
    """
    Requests to a model, with the truth about them.

    Attributes:
        features: What the model is asked, shape ``(n, features)``; float64.
        labels: The truth, shape ``(n,)``.
        segments: Where each request came from, shape ``(n,)``.
    """

    features: Floats
    labels: NDArray[Any]
    segments: list[str]


class ServedModel(ABC):
    """
    A trained model, the requests it may get, and its monitor.

    Attributes:
        task: What kind of model it is.
        story: What the model does, in a few words.
        fault: What goes wrong half-way, in a few words.
        segment: Name of the segment.
        places: Its two values; the fault strikes the second.
        monitor: What it records to.
    """

    task: ClassVar[str]
    story: ClassVar[str]
    fault: ClassVar[str]
    segment: ClassVar[str]
    places: ClassVar[tuple[str, str]]

    monitor: Monitor
    _features: Floats
    _labels: NDArray[Any]

    def serve(self, rng: np.random.Generator, disturbed: bool, n: int) -> None:
        """
        Answer n requests, drawn from the rows held out in training, and record each answer with its label.

        Args:
            rng: Draws the requests.
            disturbed: Whether the fault is there.
            n: How many, >= 1.
        """
        drawn = rng.integers(len(self._labels), size=n)
        places = rng.integers(len(self.places), size=n)
        features = self._features[drawn]
        if disturbed:
            struck = places == 1
            features[struck] = self._disturb(rng, features[struck])
        self._answer(Traffic(features, self._labels[drawn], [self.places[place] for place in places]))

    def close(self) -> None:
        """Close the monitor, so that its name is free again."""
        self.monitor.close()

    @abstractmethod
    def _disturb(self, rng: np.random.Generator, features: Floats) -> Floats:
        """The same features, as the fault leaves them."""

    @abstractmethod
    def _answer(self, traffic: Traffic) -> None:
        """Predict, and record with the labels."""


class TumourModel(ServedModel):
    """Binary: is a tumour malignant? Wisconsin breast cancer data, logistic regression; recorded one by one."""

    task = "binary"
    story = "is a tumour malignant?"
    fault = "the imaging of clinic south loses its calibration: every measure comes out 1.5 deviations low"
    segment = "clinic"
    places = ("north", "south")
    monitor: BinaryMonitor

    def __init__(self, window: Window, provider: MeterProvider) -> None:
        data = load_breast_cancer()
        train, self._features, answers, self._labels = _halves(data.data, data.target == 0)
        self._deviation = train.std(axis=0)
        self._model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(train, answers)
        self.monitor = BinaryMonitor(
            "tumours",
            version="1.0",
            window=window,
            segments=(self.segment,),
            objectives={"f1": 0.9, "recall": 0.85},
            meter_provider=provider,
        )

    def _disturb(self, rng: np.random.Generator, features: Floats) -> Floats:
        low: Floats = features - 1.5 * self._deviation
        return low

    def _answer(self, traffic: Traffic) -> None:
        scores = self._model.predict_proba(traffic.features)[:, 1].tolist()
        for score, label, place in zip(scores, traffic.labels.tolist(), traffic.segments, strict=True):
            self.monitor.record(score >= 0.5, label, score=score, segments={self.segment: place})


class DigitModel(ServedModel):
    """Multiclass: which digit was written? Digits data, logistic regression; recorded as batches of arrays."""

    task = "multiclass"
    story = "which digit was written?"
    fault = "the lens of the mobile scanner is dirty: its pictures are full of noise"
    segment = "scanner"
    places = ("desk", "mobile")
    monitor: MulticlassMonitor

    def __init__(self, window: Window, provider: MeterProvider) -> None:
        data = load_digits()
        train, self._features, answers, self._labels = _halves(data.data, data.target)
        self._model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(train, answers)
        self.monitor = MulticlassMonitor(
            "digits",
            version="1.0",
            classes=list(range(10)),
            window=window,
            segments=(self.segment,),
            objectives={"accuracy": 0.9},
            meter_provider=provider,
        )

    def _disturb(self, rng: np.random.Generator, features: Floats) -> Floats:
        return features + rng.normal(scale=6.0, size=features.shape)  # pixels are 0 to 16

    def _answer(self, traffic: Traffic) -> None:
        scores = self._model.predict_proba(traffic.features)
        predictions = scores.argmax(axis=1)
        self.monitor.record_batch(predictions, traffic.labels, scores=scores, segments={self.segment: traffic.segments})


class DiabetesModel(ServedModel):
    """Regression: how far will diabetes progress in a year? Diabetes data, ridge regression; recorded one by one."""

    task = "regression"
    story = "how far will diabetes progress?"
    fault = "laboratory B reports triglycerides (s5) as a binary logarithm rather than the natural one"
    segment = "laboratory"
    places = ("A", "B")
    monitor: RegressionMonitor

    def __init__(self, window: Window, provider: MeterProvider) -> None:
        data = load_diabetes(scaled=False)
        self._triglycerides = data.feature_names.index("s5")
        train, self._features, answers, self._labels = _halves(data.data, data.target)
        self._model = make_pipeline(StandardScaler(), Ridge(alpha=10.0)).fit(train, answers)
        self.monitor = RegressionMonitor(
            "diabetes",
            version="1.0",
            window=window,
            segments=(self.segment,),
            objectives={"rmse": 65.0},
            meter_provider=provider,
        )

    def _disturb(self, rng: np.random.Generator, features: Floats) -> Floats:
        features[:, self._triglycerides] /= np.log(2.0)
        return features

    def _answer(self, traffic: Traffic) -> None:
        predictions = self._model.predict(traffic.features).tolist()
        for prediction, label, place in zip(predictions, traffic.labels.tolist(), traffic.segments, strict=True):
            self.monitor.record(prediction, label, segments={self.segment: place})


class ImageSearch(ServedModel):
    """Ranking: which pictures of a small catalogue show the same digit? Digits data, nearest neighbours."""

    task = "ranking"
    story = "which pictures show the same digit?"
    fault = "the phone app sends its pictures upside down"
    segment = "app"
    places = ("web", "phone")
    monitor: RankingMonitor

    _shown = 10
    _catalogue_size = 200

    def __init__(self, window: Window, provider: MeterProvider) -> None:
        data = load_digits()
        catalogue, self._features, digits, self._labels = train_test_split(
            data.data, data.target, train_size=self._catalogue_size, random_state=0, stratify=data.target
        )
        self._model = NearestNeighbors(n_neighbors=self._shown).fit(catalogue)
        self._relevant = [set(np.flatnonzero(digits == digit).tolist()) for digit in range(10)]
        self.monitor = RankingMonitor(
            "image-search",
            version="1.0",
            k=self._shown,
            window=window,
            segments=(self.segment,),
            objectives={"mrr": 0.9, f"ndcg_at_{self._shown}": 0.75},
            meter_provider=provider,
        )

    def _disturb(self, rng: np.random.Generator, features: Floats) -> Floats:
        upside_down: Floats = features.reshape(-1, 8, 8)[:, ::-1, :].reshape(-1, 64)
        return upside_down

    def _answer(self, traffic: Traffic) -> None:
        found = self._model.kneighbors(traffic.features, return_distance=False).tolist()
        for items, digit, place in zip(found, traffic.labels.tolist(), traffic.segments, strict=True):
            self.monitor.record(items, self._relevant[digit], segments={self.segment: place})


MODELS = (TumourModel, DigitModel, DiabetesModel, ImageSearch)


def _halves(features: Floats, labels: NDArray[Any]) -> tuple[Floats, Floats, NDArray[Any], NDArray[Any]]:
    """Features to train on, features held out, and the labels of each; the same halves in every run."""
    train, held_out, answers, truth = train_test_split(features, labels, test_size=0.5, random_state=0)
    return train, held_out, answers, truth
