"""
The front door: the four monitors and their verbs.

A monitor is a service's handle for one version of one model. `record` and `record_batch` never raise because of
data and never wait for I/O or a statistic: bad rows are counted, logged once per reason and minute, and left out.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from opentelemetry.metrics import MeterProvider

from otel_model_metrics import catalog, instruments
from otel_model_metrics.arguments import (
    class_vocabulary,
    constant_attributes,
    cut_offs,
    positive_class,
    positive_int,
    probability_threshold,
    segment_names,
    text,
)
from otel_model_metrics.catalog import Naming, Task
from otel_model_metrics.columns import is_number, to_seconds
from otel_model_metrics.encoding import BinaryEncoder, Encoder, MulticlassEncoder, RankingEncoder, RegressionEncoder
from otel_model_metrics.ground_truth.ledger import Scope
from otel_model_metrics.ground_truth.outcomes import LabelOutcome
from otel_model_metrics.joining import Joining
from otel_model_metrics.packing import SegmentPacking, packing_of
from otel_model_metrics.recorder import Reading, Recorder
from otel_model_metrics.segments import SegmentTable, key_of
from otel_model_metrics.snapshot import Selection, Snapshot, select, take_snapshot
from otel_model_metrics.window import Window

_logger = logging.getLogger("otel_model_metrics")

_monitors: dict[tuple[str, str], Monitor] = {}
_monitors_lock = threading.Lock()


def _renew_lock_in_child() -> None:
    """A thread of the parent may have been making a monitor when the child was forked."""
    global _monitors_lock
    _monitors_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock_in_child)

UNVERSIONED = "unversioned"

# How long a prediction waits for its label, in seconds, and how many wait at most in memory.
DEFAULT_TTL = 7 * 86_400.0
DEFAULT_CAPACITY = 100_000
MAX_TTL = 1e9  # thirty years


def get_monitor(name: str, version: str = UNVERSIONED) -> Monitor:
    """
    The monitor of a model that this process has already made.

    Args:
        name: Name of the model.
        version: Its version.

    Raises:
        LookupError: If there is none; the message lists those there are.
    """
    monitor = _monitors.get((name, str(version)))
    if monitor is None:
        known = ", ".join(f"{one!r} {of!r}" for one, of in _monitors) or "none"
        raise LookupError(f"No monitor for model {name!r} version {version!r}. Monitors of this process: {known}.")
    return monitor


def all_monitors() -> list[Monitor]:
    """All monitors of this process, in the order in which they were made."""
    return list(_monitors.values())


class Monitor:
    """What the four monitors share. Not made directly; see `BinaryMonitor` and the others."""

    task: ClassVar[Task]
    # Arguments of record_batch that may be two-dimensional.
    _matrices: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        name: str,
        *,
        encoder: Encoder,
        version: str,
        window: Window | None,
        segments: Sequence[str] | None,
        max_segment_values: int,
        metrics: Iterable[str] | None,
        segment_metrics: Iterable[str] | None,
        objectives: Mapping[str, float] | None,
        attributes: Mapping[str, str] | None,
        meter_provider: MeterProvider | None,
        clock: Callable[[], float],
        strict: bool,
        store: str,
        ttl: float | None,
        capacity: int,
        positive: Hashable | None = None,
        ks: tuple[int, ...] = (),
    ) -> None:
        self.name = text(name, "name")
        self.version = text(version, "version")
        window = Window() if window is None else window
        if not isinstance(window, Window):
            raise TypeError(f"window must be a Window, got {window!r}. Write window=Window(rows=10_000, age=3600.0).")
        if not callable(clock):
            raise TypeError(f"clock must be a function that returns seconds since 1970, got {clock!r}.")
        self._selection = select(self.task, metrics, segment_metrics, objectives, ks)
        self._attributes = {
            **constant_attributes(attributes),
            catalog.MODEL_NAME: self.name,
            catalog.MODEL_VERSION: self.version,
        }
        table = SegmentTable(segment_names(segments), positive_int(max_segment_values, "max_segment_values"))
        title = f"model {self.name!r} {self.version}"
        self._recorder = Recorder(title, encoder, window, table, clock, strict)
        self._clock = clock
        # What record() needs, without a detour: attribute look-ups are a good part of its cost.
        self._staged = self._recorder.staged
        self._key_ids = table.key_ids
        self._limit = 1 if strict else self._recorder.staging_limit
        packing = packing_of(encoder, positive, self._recorder.locked)
        if ttl is None:
            ttl = max(DEFAULT_TTL, 2 * window.maturity)
        if not is_number(ttl) or not window.maturity < ttl <= MAX_TTL:
            raise ValueError(
                f"ttl must be seconds > {window.maturity:g}, the window's maturity, and <= {MAX_TTL:g}, got {ttl!r}."
            )
        scope = Scope(
            self.name,
            self.version,
            float(ttl),
            window.age,
            positive_int(capacity, "capacity"),
            window.maturity,
            window.by == "prediction",
        )
        self._joining = Joining(
            self._recorder, packing, lambda portable: SegmentPacking(table, portable), store, scope, clock, strict
        )
        with _monitors_lock:
            if (self.name, self.version) in _monitors:
                raise ValueError(
                    f"There is a monitor for model {self.name!r} version {self.version!r} already, and two would "
                    f"export the same series. Use get_monitor({self.name!r}, {self.version!r}), or close() the first."
                )
            self._registry = instruments.attach(self, meter_provider)
            _monitors[self.name, self.version] = self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, version={self.version!r})"

    def snapshot(self) -> Snapshot:
        """
        The current values, computed now.

        Returns:
            A frozen `Snapshot`, e.g. ``.value("f1")``, ``.value("f1", segment=("country", "DE"))``, ``.rows``.

        Cost: as one export; see `Snapshot`.
        """
        return self.collect()[1]

    def close(self) -> None:
        """
        Stop exporting and free the name. What was not exported yet stays unexported; `snapshot` still works. What a
        store outside this process has not got yet is written first, for some seconds at most.
        """
        self._registry.remove(self)
        self._joining.close()
        with _monitors_lock:
            if _monitors.get((self.name, self.version)) is self:
                del _monitors[self.name, self.version]

    def record_label(self, id: Any, label: Any, *, timestamp: Any = None, wait: float | None = None) -> LabelOutcome:
        """
        Record the label of a prediction that was, or will be, recorded under this id.

        Args:
            id: The id given to `record_prediction`; see there.
            label: The truth, as for `record`.
            timestamp: When the truth was known: seconds since 1970 or an aware datetime; now by default.
            wait: Seconds to wait for a store outside this process; half a millisecond by default.

        Returns:
            What became of it. ``MATCHED``: the row is in the window (unless it is too old for it, or not old enough)
            and in the totals of this process, whichever process the prediction came from. ``CORRECTED``: there was
            another label; its row in the window is replaced, if it is in the window of this process. Totals stay as
            they are, because they can only grow: they count every prediction once, with its first label, and how many
            labels were corrected is in ``ml.model.labels``. ``QUEUED``: the store has not decided within `wait`; it
            will.

        Never raises because of data, and may be called again with the same label: that is a ``DUPLICATE``.

        Cost: about half of one OpenTelemetry `Counter.add`, with the store in memory.
        """
        return self._joining.label(id, label, timestamp, wait)

    def record_label_batch(
        self, ids: Any, labels: Any, *, timestamps: Any = None, wait: float | None = None
    ) -> Counter[LabelOutcome]:
        """
        Record many labels.

        Args:
            ids, labels: One entry a label: lists, numpy arrays, pandas Series, pyarrow arrays. Shape ``(n,)``.
            timestamps: One for all or one for each; now by default.
            wait: Seconds to wait for a store outside this process, for all of them together.

        Returns:
            How many labels came to which outcome, as for `record_label`; 0 for what is not in it.
        """
        return Counter(self._joining.label_many(ids, labels, timestamps, wait))

    def record_label_each(
        self, ids: Any, labels: Any, *, timestamps: Any = None, wait: float | None = None
    ) -> list[LabelOutcome]:
        """Record many labels, as `record_label_batch`; returns the outcome of each, in their order."""
        return self._joining.label_many(ids, labels, timestamps, wait)

    def awaits_label(self, id: Any, *, wait: float = 1.0) -> bool:
        """
        Whether a prediction of this id is known, labelled or not.

        Args:
            id: The id.
            wait: Seconds to wait for a store outside this process; if it has not answered by then, False.
        """
        return self._joining.awaits(id, wait)

    def flush(self, seconds: float = 5.0) -> bool:
        """Wait until a store outside this process has taken and decided everything; returns whether it has."""
        return self._joining.flush(seconds)

    @property
    def selection(self) -> Selection:
        """Which metrics the monitor computes. For the exporting side."""
        return self._selection

    @property
    def attributes(self) -> Mapping[str, str]:
        """Attributes on everything exported. For the exporting side."""
        return self._attributes

    def collect(self) -> tuple[Reading, Snapshot, Naming]:
        """One consistent state: what was read, its values, and the words for its classes. For the exporting side."""
        waiting = self._joining.waiting()
        reading = self._recorder.read()
        of_labels = None if waiting is None else waiting.statistics(reading)
        labels = self._joining.counts
        if labels is not None:
            labels["matched"] += reading.matched
        snapshot = take_snapshot(self._recorder, reading, self._selection, self.name, self.version, of_labels, labels)
        return reading, snapshot, Naming(tuple(reading.classes), self._selection.ks)

    def reset(self) -> None:
        """Forget every row and total, as a forked child does."""
        self._recorder.reset()
        self._joining.reset()

    def _stage(self, prediction: Any, label: Any, score: Any, segments: Any, timestamp: Any) -> None:
        """Stage one row, as `BinaryMonitor.record` does in line."""
        key = None if segments is None else key_of(segments)
        moment = self._clock() if timestamp is None else to_seconds(timestamp)
        self._staged.extend((moment, prediction, label, score, key))
        if len(self._staged) >= self._limit:
            self._recorder.drain_if_due()


class BinaryMonitor(Monitor):
    """
    Quality of a model that says yes or no.

    Args:
        name: Name of the model, exported as ``ml.model.name``.
        version: Its version, exported as ``ml.model.version``.
        window: Which rows count; the newest 10,000 by default.
        segments: Segment names allowed; None allows any.
        max_segment_values: Values kept apart for each segment name; the rest become ``__other__``.
        metrics: Names of the metrics to compute; all by default.
        segment_metrics: Names of those that segments have too; accuracy, precision, recall and f1 by default.
        objectives: The level a metric should hold, by name; exported beside the metrics.
        attributes: Constant attributes on everything exported.
        positive: The value that means positive, if predictions and labels are not booleans or 0/1; all other
            values of its kind mean negative.
        threshold: A score alone predicts positive if it is at least this.
        store: Where predictions wait for labels that come late: ``"memory"``; ``"sqlite:///path"``, which all processes
            of a machine share and which survives them; ``"redis://host"``, for several machines.
        ttl: Seconds that a prediction waits for its label, and a label for its prediction; a week by default, or twice
            the window's maturity if that is longer.
        capacity: Most predictions that wait in memory, about 200 bytes each; the oldest are given up first.
        meter_provider: An OpenTelemetry provider; the global one by default, whether set before or after.
        clock: Seconds since 1970, for tests.
        strict: Raise ValueError for rows that cannot be used, for tests.

    Raises:
        ValueError, TypeError: For arguments that cannot be used, and for a name and version already in use.

    >>> fraud = BinaryMonitor("fraud-example", version="1")
    >>> fraud.record(prediction=True, label=False)
    >>> fraud.record(prediction=True, label=True, score=0.9, segments={"country": "DE"})
    >>> fraud.snapshot().value("precision")
    0.5
    >>> fraud.snapshot().value("precision", segment=("country", "DE"))
    1.0
    >>> fraud.close()
    """

    task = "binary"

    def __init__(
        self,
        name: str,
        *,
        version: str = UNVERSIONED,
        window: Window | None = None,
        segments: Sequence[str] | None = None,
        max_segment_values: int = 50,
        metrics: Iterable[str] | None = None,
        segment_metrics: Iterable[str] | None = None,
        objectives: Mapping[str, float] | None = None,
        attributes: Mapping[str, str] | None = None,
        positive: Hashable | None = None,
        threshold: float = 0.5,
        store: str = "memory",
        ttl: float | None = None,
        capacity: int = DEFAULT_CAPACITY,
        meter_provider: MeterProvider | None = None,
        clock: Callable[[], float] = time.time,
        strict: bool = False,
    ) -> None:
        super().__init__(
            name,
            encoder=BinaryEncoder(positive_class(positive), probability_threshold(threshold)),
            version=version,
            window=window,
            segments=segments,
            max_segment_values=max_segment_values,
            metrics=metrics,
            segment_metrics=segment_metrics,
            objectives=objectives,
            attributes=attributes,
            meter_provider=meter_provider,
            clock=clock,
            strict=strict,
            store=store,
            ttl=ttl,
            capacity=capacity,
            positive=positive,
        )

    def record(
        self,
        prediction: Any = None,
        label: Any = None,
        *,
        score: float | None = None,
        segments: Mapping[str, Any] | Sequence[Any] | None = None,
        timestamp: Any = None,
    ) -> None:
        """
        Record one prediction and, if it is known, its label.

        Args:
            prediction: True/False, 0/1, or a value comparable with `positive`. None leaves it to score and threshold.
            label: The truth, likewise. None means not known: the prediction is counted, but not in the window.
            score: Probability of the positive class, in [0, 1].
            segments: Name -> value (or a tuple of several values), or a list of tags.
            timestamp: Seconds since 1970 or an aware datetime; now by default.

        Cost: about half a microsecond with score and two segments; one call in 4,096 encodes the staged rows and
            takes a millisecond.
        """
        if segments is None:
            key: Any = 0  # the number of the empty key
        else:
            try:
                key = tuple(segments.items())  # type: ignore[union-attr]
                key = self._key_ids.get(key, key)
            except Exception:
                key = key_of(segments)
        staged = self._staged
        # One extend() is atomic, so no lock: rows of several threads cannot mix.
        staged.extend((self._clock() if timestamp is None else to_seconds(timestamp), prediction, label, score, key))
        if len(staged) >= self._limit:
            self._recorder.drain_if_due()

    def record_batch(
        self,
        predictions: Any = None,
        labels: Any = None,
        *,
        scores: Any = None,
        segments: Mapping[str, Any] | Sequence[Any] | None = None,
        timestamps: Any = None,
    ) -> None:
        """
        Record many predictions at once.

        Args:
            predictions, labels, scores: One entry a row, as for `record`: lists, numpy arrays, pandas Series or
                Categoricals, pyarrow arrays. Shape ``(n,)``. Labels may be left out, or None for single rows.
            segments: Name -> column of values, or one value for all rows; or a list with a mapping or a list of
                tags for each row.
            timestamps: One for all rows or one for each; now by default.

        Columns of unequal length reject the whole call, counted and logged.

        Cost: about 20 ns a row for numpy arrays, and 20 ns for each segment name.
        """
        self._recorder.add_batch(predictions, labels, scores, segments, timestamps, self._matrices)

    def record_prediction(
        self,
        id: Any,
        prediction: Any = None,
        *,
        score: float | None = None,
        segments: Mapping[str, Any] | Sequence[Any] | None = None,
        timestamp: Any = None,
    ) -> None:
        """
        Record a prediction whose label comes later, by `record_label`.

        Args:
            id: What the label will be known by: a string of at most 1,024 characters, an integer, bytes or a UUID. As
                text they are all the same: ``42`` and ``"42"`` are one id.
            prediction, score, segments, timestamp: As for `record`.

        An id that is known already, from this process or another one with the same store, has no effect. Never raises
        because of data, and never waits for disk or network. Of the request nothing is kept but the id, the time, the
        segments and the prediction with its score, nine bytes.

        Cost: about half of one OpenTelemetry `Counter.add`; with a store outside this process its thread takes
            more than that again.
        """
        self._joining.predict(id, prediction, score, segments, timestamp)

    def record_prediction_batch(
        self,
        ids: Any,
        predictions: Any = None,
        *,
        scores: Any = None,
        segments: Mapping[str, Any] | Sequence[Any] | None = None,
        timestamps: Any = None,
    ) -> None:
        """
        Record many predictions whose labels come later.

        Args:
            ids: One id a row, shape ``(n,)``.
            predictions, scores, segments, timestamps: As for `record_batch`.
        """
        self._joining.predict_many(ids, predictions, scores, segments, timestamps)


class MulticlassMonitor(Monitor):
    """
    Quality of a model that picks one of several classes.

    Args:
        classes: The classes, in the order of the scores' columns. If given, any other class is rejected; if not,
            classes are added as they are met.
        max_classes: Most classes told apart; rows with further ones are rejected (a shared "other" class would
            call two different classes equal).
        k: Cut-off, or several, of ``top_k_accuracy``.

    The other arguments are those of `BinaryMonitor`.

    Raises:
        ValueError, TypeError: As `BinaryMonitor`.

    >>> species = MulticlassMonitor("species-example", classes=["cat", "dog", "fox"], k=2)
    >>> species.record("cat", "cat", score=[0.5, 0.3, 0.2])
    >>> species.record("cat", "dog", score=[0.5, 0.3, 0.2])
    >>> species.snapshot().value("accuracy"), species.snapshot().value("top_k_accuracy")
    (0.5, 1.0)
    >>> species.snapshot().value("precision", class_="cat"), species.snapshot().value("f1", average="macro")
    (0.5, 0.3333333333333333)
    >>> species.close()
    """

    task = "multiclass"
    _matrices = ("scores",)

    def __init__(
        self,
        name: str,
        *,
        version: str = UNVERSIONED,
        window: Window | None = None,
        segments: Sequence[str] | None = None,
        max_segment_values: int = 50,
        metrics: Iterable[str] | None = None,
        segment_metrics: Iterable[str] | None = None,
        objectives: Mapping[str, float] | None = None,
        attributes: Mapping[str, str] | None = None,
        classes: Sequence[Hashable] | None = None,
        max_classes: int = 100,
        k: int | Sequence[int] = 3,
        store: str = "memory",
        ttl: float | None = None,
        capacity: int = DEFAULT_CAPACITY,
        meter_provider: MeterProvider | None = None,
        clock: Callable[[], float] = time.time,
        strict: bool = False,
    ) -> None:
        vocabulary = class_vocabulary(classes, max_classes)
        ks = cut_offs(k)
        super().__init__(
            name,
            encoder=MulticlassEncoder(vocabulary, classes is not None, ks),
            version=version,
            window=window,
            segments=segments,
            max_segment_values=max_segment_values,
            metrics=metrics,
            segment_metrics=segment_metrics,
            objectives=objectives,
            attributes=attributes,
            meter_provider=meter_provider,
            clock=clock,
            strict=strict,
            store=store,
            ttl=ttl,
            capacity=capacity,
            ks=ks,
        )

    def record(
        self,
        prediction: Any = None,
        label: Any = None,
        *,
        score: Any = None,
        segments: Mapping[str, Any] | Sequence[Any] | None = None,
        timestamp: Any = None,
    ) -> None:
        """
        Record one prediction and, if it is known, its label.

        Args:
            prediction: The class. None leaves it to the highest score.
            label: The true class. None means not known.
            score: Probability of each class in the order of `classes`, shape ``(C,)``, adding up to 1; or a mapping
                class -> probability.
            segments, timestamp: As for `BinaryMonitor.record`.
        """
        if score is not None:
            try:  # copied, for the caller may reuse the buffer
                score = dict(score) if isinstance(score, Mapping) else np.array(score, np.float64)
            except Exception:
                pass  # refused with the row, when it is encoded
        self._stage(prediction, label, score, segments, timestamp)

    def record_batch(
        self,
        predictions: Any = None,
        labels: Any = None,
        *,
        scores: Any = None,
        segments: Mapping[str, Any] | Sequence[Any] | None = None,
        timestamps: Any = None,
    ) -> None:
        """
        Record many predictions at once.

        Args:
            predictions, labels: Classes, shape ``(n,)``.
            scores: Probabilities, shape ``(n, C)``, in the order of `classes`.
            segments, timestamps: As for `BinaryMonitor.record_batch`.
        """
        self._recorder.add_batch(predictions, labels, scores, segments, timestamps, self._matrices)

    def record_prediction(
        self,
        id: Any,
        prediction: Any = None,
        *,
        score: Any = None,
        segments: Mapping[str, Any] | Sequence[Any] | None = None,
        timestamp: Any = None,
    ) -> None:
        """
        Record a prediction whose label comes later, by `record_label`.

        Args:
            id: What the label will be known by: a string of at most 1,024 characters, an integer, bytes or a UUID. As
                text they are all the same: ``42`` and ``"42"`` are one id.
            prediction, score, segments, timestamp: As for `record`.

        An id that is known already, from this process or another one with the same store, has no effect. Never raises
        because of data, and never waits for disk or network. Of the request nothing is kept but the id, the time, the
        segments and the class with the probabilities, eight bytes each.

        Cost: about half of one OpenTelemetry `Counter.add`; with a store outside this process its thread takes
            more than that again.
        """
        self._joining.predict(id, prediction, score, segments, timestamp)

    def record_prediction_batch(
        self,
        ids: Any,
        predictions: Any = None,
        *,
        scores: Any = None,
        segments: Mapping[str, Any] | Sequence[Any] | None = None,
        timestamps: Any = None,
    ) -> None:
        """
        Record many predictions whose labels come later.

        Args:
            ids: One id a row, shape ``(n,)``.
            predictions, scores, segments, timestamps: As for `record_batch`.
        """
        self._joining.predict_many(ids, predictions, scores, segments, timestamps)


class RegressionMonitor(Monitor):
    """
    Quality of a model that predicts a number.

    The arguments are those of `BinaryMonitor`, without `positive` and `threshold`.

    >>> price = RegressionMonitor("price-example")
    >>> price.record(prediction=10.0, label=12.0)
    >>> price.snapshot().value("mae"), price.snapshot().value("mean_error")
    (2.0, -2.0)
    >>> price.close()
    """

    task = "regression"

    def __init__(
        self,
        name: str,
        *,
        version: str = UNVERSIONED,
        window: Window | None = None,
        segments: Sequence[str] | None = None,
        max_segment_values: int = 50,
        metrics: Iterable[str] | None = None,
        segment_metrics: Iterable[str] | None = None,
        objectives: Mapping[str, float] | None = None,
        attributes: Mapping[str, str] | None = None,
        store: str = "memory",
        ttl: float | None = None,
        capacity: int = DEFAULT_CAPACITY,
        meter_provider: MeterProvider | None = None,
        clock: Callable[[], float] = time.time,
        strict: bool = False,
    ) -> None:
        super().__init__(
            name,
            encoder=RegressionEncoder(),
            version=version,
            window=window,
            segments=segments,
            max_segment_values=max_segment_values,
            metrics=metrics,
            segment_metrics=segment_metrics,
            objectives=objectives,
            attributes=attributes,
            meter_provider=meter_provider,
            clock=clock,
            strict=strict,
            store=store,
            ttl=ttl,
            capacity=capacity,
        )

    def record(
        self,
        prediction: Any,
        label: Any = None,
        *,
        segments: Mapping[str, Any] | Sequence[Any] | None = None,
        timestamp: Any = None,
    ) -> None:
        """
        Record one prediction and, if it is known, its label.

        Args:
            prediction: A finite number.
            label: The true number. None means not known.
            segments, timestamp: As for `BinaryMonitor.record`.
        """
        self._stage(prediction, label, None, segments, timestamp)

    def record_batch(
        self,
        predictions: Any,
        labels: Any = None,
        *,
        segments: Mapping[str, Any] | Sequence[Any] | None = None,
        timestamps: Any = None,
    ) -> None:
        """
        Record many predictions at once.

        Args:
            predictions, labels: Numbers, shape ``(n,)``.
            segments, timestamps: As for `BinaryMonitor.record_batch`.
        """
        self._recorder.add_batch(predictions, labels, None, segments, timestamps, self._matrices)

    def record_prediction(
        self,
        id: Any,
        prediction: Any,
        *,
        segments: Mapping[str, Any] | Sequence[Any] | None = None,
        timestamp: Any = None,
    ) -> None:
        """
        Record a prediction whose label comes later, by `record_label`.

        Args:
            id: What the label will be known by; see `BinaryMonitor.record_prediction`.
            prediction, segments, timestamp: As for `record`. Eight bytes are kept of it.
        """
        self._joining.predict(id, prediction, None, segments, timestamp)

    def record_prediction_batch(
        self,
        ids: Any,
        predictions: Any,
        *,
        segments: Mapping[str, Any] | Sequence[Any] | None = None,
        timestamps: Any = None,
    ) -> None:
        """
        Record many predictions whose labels come later.

        Args:
            ids: One id a row, shape ``(n,)``.
            predictions, segments, timestamps: As for `record_batch`.
        """
        self._joining.predict_many(ids, predictions, None, segments, timestamps)


class RankingMonitor(Monitor):
    """
    Quality of a model that orders items: search, recommendation.

    Args:
        k: Cut-off, or several, of the metrics at k. The first is the one an objective refers to.

    The other arguments are those of `BinaryMonitor`, without `positive` and `threshold`.

    >>> search = RankingMonitor("search-example", k=[1, 3])
    >>> search.record(prediction=["a", "b", "c"], label="b")
    >>> search.record(prediction=["a", "b", "c"], label={"a": 3.0, "z": 1.0})
    >>> search.snapshot().value("mrr"), search.snapshot().value("hit_rate_at_k", k=1)
    (0.75, 0.5)
    >>> search.close()
    """

    task = "ranking"
    _matrices = ("predictions", "labels")

    def __init__(
        self,
        name: str,
        *,
        version: str = UNVERSIONED,
        window: Window | None = None,
        segments: Sequence[str] | None = None,
        max_segment_values: int = 50,
        metrics: Iterable[str] | None = None,
        segment_metrics: Iterable[str] | None = None,
        objectives: Mapping[str, float] | None = None,
        attributes: Mapping[str, str] | None = None,
        k: int | Sequence[int] = 10,
        store: str = "memory",
        ttl: float | None = None,
        capacity: int = DEFAULT_CAPACITY,
        meter_provider: MeterProvider | None = None,
        clock: Callable[[], float] = time.time,
        strict: bool = False,
    ) -> None:
        ks = cut_offs(k)
        super().__init__(
            name,
            encoder=RankingEncoder(ks),
            version=version,
            window=window,
            segments=segments,
            max_segment_values=max_segment_values,
            metrics=metrics,
            segment_metrics=segment_metrics,
            objectives=objectives,
            attributes=attributes,
            meter_provider=meter_provider,
            clock=clock,
            strict=strict,
            store=store,
            ttl=ttl,
            capacity=capacity,
            ks=ks,
        )

    def record(
        self,
        prediction: Any,
        label: Any = None,
        *,
        segments: Mapping[str, Any] | Sequence[Any] | None = None,
        timestamp: Any = None,
    ) -> None:
        """
        Record one ranking and, if they are known, the relevant items.

        Args:
            prediction: The items shown, best first: a list, tuple or array of hashable items, none twice.
            label: The relevant item; a set (or list) of them; or a mapping item -> gain, >= 0. None means not known.
            segments, timestamp: As for `BinaryMonitor.record`.
        """
        try:  # copied, for the caller may change them
            prediction = list(prediction) if isinstance(prediction, (list, tuple, np.ndarray)) else prediction
            if isinstance(label, Mapping):
                label = dict(label)
            elif isinstance(label, (set, list, np.ndarray)):
                label = tuple(label.tolist() if isinstance(label, np.ndarray) else label)
        except Exception:
            pass  # refused with the row, when it is encoded
        self._stage(prediction, label, None, segments, timestamp)

    def record_batch(
        self,
        predictions: Any,
        labels: Any = None,
        *,
        segments: Mapping[str, Any] | Sequence[Any] | None = None,
        timestamps: Any = None,
    ) -> None:
        """
        Record many rankings at once.

        Args:
            predictions: One list of items a row, or an array of shape ``(n, items)``.
            labels: One label a row, as for `record`.
            segments, timestamps: As for `BinaryMonitor.record_batch`.
        """
        self._recorder.add_batch(predictions, labels, None, segments, timestamps, self._matrices)

    def record_prediction(
        self,
        id: Any,
        prediction: Any,
        *,
        segments: Mapping[str, Any] | Sequence[Any] | None = None,
        timestamp: Any = None,
    ) -> None:
        """
        Record a prediction whose label comes later, by `record_label`.

        Args:
            id: What the label will be known by; see `BinaryMonitor.record_prediction`.
            prediction, segments, timestamp: As for `record`. Of each item a digest of eight bytes is kept.
        """
        self._joining.predict(id, prediction, None, segments, timestamp)

    def record_prediction_batch(
        self,
        ids: Any,
        predictions: Any,
        *,
        segments: Mapping[str, Any] | Sequence[Any] | None = None,
        timestamps: Any = None,
    ) -> None:
        """
        Record many predictions whose labels come later.

        Args:
            ids: One id a row, shape ``(n,)``.
            predictions, segments, timestamps: As for `record_batch`.
        """
        self._joining.predict_many(ids, predictions, None, segments, timestamps)
