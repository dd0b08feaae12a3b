"""
Jobs: what is to be evaluated, said once and checked at once. A job can be sent to another process.
"""

from __future__ import annotations

import datetime
import math
import re
import zoneinfo
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from otel_model_metrics import catalog
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
from otel_model_metrics.batch.reading import Wanted
from otel_model_metrics.catalog import Task
from otel_model_metrics.encoding import BinaryEncoder, Encoder, MulticlassEncoder, RankingEncoder, RegressionEncoder
from otel_model_metrics.snapshot import Selection, select

EXACT_ROWS = 100_000
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_MICROS = 1_000_000


@dataclass(frozen=True)
class Job:
    """
    What is to be evaluated.

    Args:
        task: ``binary``, ``multiclass``, ``regression`` or ``ranking``.
        prediction, label: Names of the columns. Without a prediction, scores are turned into predictions.
        id: Column of the ids, if labels are in files of their own: of these files, and of those of the predictions.
        label_id: Its name in the files of the labels, if it is another.
        model, version: Exported as ``ml.model.name`` and ``ml.model.version``.
        score: Column of the probabilities; for multiclass one column for each of `classes`, or one of lists.
        time: Column of the times; without it, all rows are one window.
        every: Length of a window: ``30m``, ``1h``, ``7d``, or seconds. Windows begin at multiples of it since 1970.
        timezone: Where times are from that do not say it themselves, such as ``UTC`` or ``Europe/Berlin``.
        segments: Columns whose values are segments.
        max_segment_values: Values told apart for each of these, those with the most rows; the rest become
            ``__other__``.
        objectives, metrics, segment_metrics, attributes, positive, threshold, classes, max_classes, k: As for monitors.
        exact_rows: Up to this many rows of a window, metrics that need the rows are exact. Beyond it those that need
            them in order (``roc_auc``, ``average_precision``, ``median_absolute_error``) are within a bound that
            `Snapshot.inexact` has.
        delimiter: What separates the cells of CSV files.

    Raises:
        ValueError, TypeError: For arguments that cannot be used.

    >>> Job("binary", "predicted", "label", every="1h30m").window_seconds
    5400.0
    """

    task: Task
    prediction: str | None = None
    label: str = "label"
    model: str = "model"
    version: str = "unversioned"
    score: str | tuple[str, ...] | None = None
    time: str | None = None
    every: str | float = "1h"
    timezone: str | None = None
    segments: tuple[str, ...] = ()
    max_segment_values: int = 50
    objectives: Mapping[str, float] = field(default_factory=dict)
    metrics: tuple[str, ...] | None = None
    segment_metrics: tuple[str, ...] | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    positive: Hashable | None = None
    threshold: float = 0.5
    classes: tuple[Hashable, ...] | None = None
    max_classes: int = 100
    k: int | tuple[int, ...] | None = None
    exact_rows: int = EXACT_ROWS
    delimiter: str = ","
    id: str | None = None
    label_id: str | None = None

    def __post_init__(self) -> None:
        if self.task not in catalog.TASKS:
            raise ValueError(f"task must be one of {', '.join(catalog.TASKS)}, got {self.task!r}.")
        for name in ("model", "version", "label"):
            text(getattr(self, name), name)
        if self.label_id is not None and self.id is None:
            raise ValueError("label_id is what id is called in files of labels, so there must be id too.")
        if self.id is not None and text(self.label_id or self.id, "id") == self.label:
            raise ValueError(f"id and label must be different columns, got {self.label!r} for both.")
        if self.prediction is None and (self.score is None or self.task not in ("binary", "multiclass")):
            raise ValueError(
                "A job needs the column of the predictions, prediction=; "
                "classification may have score= instead, from which they follow."
            )
        if self.score is not None and self.task not in ("binary", "multiclass"):
            raise ValueError(f"score= is for classification; the task {self.task} has none.")
        if len(self.scores) > 1 and (self.task != "multiclass" or len(self.scores) != len(self.classes or ())):
            raise ValueError(
                f"Several columns of scores are for multiclass, one for each of classes=, in their order; "
                f"got {len(self.scores)} for {len(self.classes or ())} classes."
            )
        segment_names(self.segments)
        positive_int(self.max_segment_values, "max_segment_values")
        positive_int(self.exact_rows, "exact_rows")
        if self.timezone not in (None, "UTC"):  # UTC is known without the machine's database of time zones
            try:
                zoneinfo.ZoneInfo(self.timezone)
            except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
                raise ValueError(
                    f"timezone must be a name such as UTC or Europe/Berlin, got {self.timezone!r}."
                ) from error
        constant_attributes(self.attributes)
        # Each of these checks what it is made of.
        self.encoder()
        for name in ("selection", "window_seconds", "wanted"):
            getattr(self, name)

    @property
    def scores(self) -> tuple[str, ...]:
        """The columns of the scores."""
        return () if self.score is None else (self.score,) if isinstance(self.score, str) else tuple(self.score)

    @cached_property
    def ks(self) -> tuple[int, ...]:
        """Cut-offs of metrics at k; those of a monitor by default."""
        defaults = {"multiclass": 3, "ranking": 10}
        return cut_offs(self.k if self.k is not None else defaults[self.task]) if self.task in defaults else ()

    @cached_property
    def selection(self) -> Selection:
        """Which metrics."""
        return select(self.task, self.metrics, self.segment_metrics, self.objectives, self.ks)

    @cached_property
    def window_seconds(self) -> float:
        """Length of a window."""
        return duration(self.every)

    @property
    def window_micros(self) -> int:
        """The same in microseconds, which is how finely times are told apart."""
        return round(self.window_seconds * _MICROS)

    @cached_property
    def wanted(self) -> Wanted:
        """Which columns of a file of predictions are read."""
        options = {
            "prediction": () if self.prediction is None else (self.prediction,),
            "label": (self.label,) if self.id is None else (),
            "id": () if self.id is None else (self.id,),
            "score": self.scores,
            "time": () if self.time is None else (self.time,),
            "segment": tuple(self.segments),
        }
        coded = set(self.segments)
        if self.task in ("binary", "multiclass"):
            coded |= {*options["label"], *options["prediction"]}
        return Wanted({name: columns for name, columns in options.items() if columns}, frozenset(coded), self.delimiter)

    @cached_property
    def wanted_of_labels(self) -> Wanted:
        """Which columns of a file of labels are read; for a job with an `id`."""
        coded = frozenset({self.label} if self.task in ("binary", "multiclass") else ())
        options = {"id" if self.label_id is None else "label-id": (self.id_of_labels,), "label": (self.label,)}
        return Wanted(options, coded, self.delimiter)

    @property
    def id_of_labels(self) -> str:
        """Column of the ids in files of labels; for a job with an `id`."""
        return str(self.label_id or self.id)

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """
        What must be the same of two jobs for their statistics to be added up, by argument and as text.

        Not here: names, attributes and objectives, which do not change what is counted.
        """
        windows = f"{self.window_micros / _MICROS:g}s" if self.time is not None else "one"
        given = {
            "task": self.task,
            "prediction": self.prediction,
            "label": self.label,
            "id": self.id,
            "label_id": self.label_id,
            "score": self.scores,
            "time": self.time,
            "every": windows,
            "timezone": self.timezone,
            "segments": tuple(self.segments),
            "metrics": tuple(metric.name for metric in self.selection.metrics),
            "segment_metrics": tuple(sorted(self.selection.in_segments)),
            "positive": self.positive,
            "threshold": self.threshold,
            "classes": None if self.classes is None else tuple(self.classes),
            "max_classes": self.max_classes,
            "k": self.ks,
            "exact_rows": self.exact_rows,
        }
        return {name: value if isinstance(value, str) else repr(value) for name, value in given.items()}

    def need_same(self, fingerprint: Mapping[str, str]) -> None:
        """
        Raises:
            ValueError: If a fingerprint is not this job's; names the first argument that differs.
        """
        for name in {**self.fingerprint, **fingerprint}:
            ours, theirs = self.fingerprint.get(name), fingerprint.get(name)
            if ours != theirs:
                raise ValueError(
                    f"Statistics of different jobs cannot be added up: {name} is {ours} here and {theirs} there."
                )

    def encoder(self) -> Encoder:
        """A new encoder of the task."""
        if self.task == "binary":
            return BinaryEncoder(positive_class(self.positive), probability_threshold(self.threshold))
        if self.task == "multiclass":
            return MulticlassEncoder(
                class_vocabulary(self.classes, self.max_classes), self.classes is not None, self.ks
            )
        return RegressionEncoder() if self.task == "regression" else RankingEncoder(self.ks)

    @property
    def all_attributes(self) -> dict[str, str]:
        """Attributes on everything exported."""
        return {
            **constant_attributes(self.attributes),
            catalog.MODEL_NAME: text(self.model, "model"),
            catalog.MODEL_VERSION: text(self.version, "version"),
        }


def duration(every: Any) -> float:
    """
    The length of a window in seconds.

    Args:
        every: Seconds, a `datetime.timedelta`, or text such as ``90s``, ``1h30m``, ``7d``.

    Raises:
        ValueError: If it is none, or shorter than a second.

    >>> duration("1h30m"), duration("7d"), duration(60)
    (5400.0, 604800.0, 60.0)
    """
    seconds = math.nan
    if isinstance(every, datetime.timedelta):
        seconds = every.total_seconds()
    elif isinstance(every, (int, float)) and not isinstance(every, bool):
        seconds = float(every)
    elif isinstance(every, str) and re.fullmatch(r"([0-9]+[smhdw])+", every):
        seconds = float(sum(int(count) * _UNITS[unit] for count, unit in re.findall(r"([0-9]+)([smhdw])", every)))
    if not 1 <= seconds < math.inf:
        raise ValueError(
            f"every must be the length of a window, a number and a unit (s, m, h, d, w), such as 30m or 1h; "
            f"got {every!r}."
        )
    return seconds
