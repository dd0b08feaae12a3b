"""
What dashboards are asked about in tests: 27 hours of a fleet, told to two stores, and what is true of it.

The story is `STORY`: processes, when they live, and the models they serve. Each plays its part at once, in simulated
time that ends now, because Grafana asks for now. VictoriaMetrics gets what a service pushes over OTLP, Prometheus what
it would have scraped. A `Witness` sees every row on its way to a monitor, so that scikit-learn can be asked as well.

What differs from life: Prometheus is told nothing of series that end, so for five minutes they seem to go on.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pytest
from backends import Store, binary, get, prometheus, victoria_metrics
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExportResult, MetricsData
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest
from threadpoolctl import threadpool_limits

from otel_model_metrics import BinaryMonitor, LabelOutcome, RegressionMonitor, Window
from otel_model_metrics.demo.models import MODELS, ServedModel
from otel_model_metrics.monitors import Monitor

MINUTE, HOUR = 60, 3600

# Rows that a process gives a model each minute.
DEMO_ROWS, PLAIN_ROWS = 4, 3

# A model of a process: sets itself up on the stage, and returns what it does every minute.
Role = Callable[["Stage"], Callable[[], None]]


@dataclasses.dataclass(frozen=True)
class Process:
    """
    A process of the story.

    Attributes:
        service: Its ``service.name``, and its job in Prometheus.
        instance: Its ``service.instance.id``, and its instance in Prometheus.
        begin, end: When it lives, in seconds before (so negative) or at the end of the story.
        roles: The models it serves.
    """

    service: str
    instance: str
    begin: int
    end: int
    roles: Sequence[Role]

    @property
    def minutes(self) -> list[int]:
        """When its models are asked: between the exports."""
        return list(range(self.begin + MINUTE // 2, self.end, MINUTE))

    @property
    def exports(self) -> list[int]:
        """
        Every two minutes, and in the last half hour of the story every minute.

        The last export comes twice, for what was born since the one before says 0 in the first of them.
        """
        each_minute = range(self.begin, self.end + 1, MINUTE)
        regular = {moment for moment in each_minute if moment >= -30 * MINUTE or moment % (2 * MINUTE) == 0}
        return sorted(regular | {self.end - 1, self.end})


# The models


def demo(version: str, disturbed_from: int | None = None) -> list[Role]:
    """The four models of the demonstration; from then on what they are asked is disturbed."""

    def role(kind: type[ServedModel]) -> Role:
        def serve(stage: Stage) -> Callable[[], None]:
            class Watched(kind):  # type: ignore[misc, valid-type]
                def _make_monitor(self, **settings: Any) -> Witness:
                    monitor = super()._make_monitor(**{**settings, "version": version})
                    return Witness(monitor, stage, settings["window"].maturity)

            model = Watched(Window(rows=500, age=HOUR), stage.provider, HOUR, stage.clock)

            def minute() -> None:
                model.deliver()
                disturbed = disturbed_from is not None and stage.now - stage.over >= disturbed_from
                model.serve(stage.rng, disturbed, DEMO_ROWS)

            return minute

        return serve

    return [role(kind) for kind in MODELS]


def dead(stage: Stage) -> Callable[[], None]:
    """A model like any other, until its process ends. In one country it is hardly better than chance."""
    model = stage.monitor(BinaryMonitor, "dead", objectives={"f1": 0.8, "accuracy": 0.95})

    def minute() -> None:
        for answer in stage.answers(PLAIN_ROWS, wrong_in_italy=0.4):
            model.record(answer.prediction, answer.label, score=answer.score, segments=answer.segments)

    return minute


def newborn(stage: Stage) -> Callable[[], None]:
    """Too few rows to say how good it is."""
    model = stage.monitor(BinaryMonitor, "newborn", objectives={"f1": 0.8})

    def minute() -> None:
        for answer in stage.answers(PLAIN_ROWS):
            model.record(answer.prediction, answer.label, score=answer.score, segments=answer.segments)

    return minute


def unlabelled(stage: Stage) -> Callable[[], None]:
    """Predictions, of which nobody will ever know whether they were right."""
    model = stage.monitor(BinaryMonitor, "unlabelled", objectives={"f1": 0.8})

    def minute() -> None:
        for answer in stage.answers(PLAIN_ROWS):
            model.record(prediction=answer.prediction, label=None, score=answer.score, segments=answer.segments)

    return minute


def goalless(stage: Stage) -> Callable[[], None]:
    """Nobody has said how good it should be."""
    model = stage.monitor(RegressionMonitor, "goalless")

    def minute() -> None:
        for answer in stage.answers(PLAIN_ROWS):
            price = float(stage.rng.normal(100.0, 20.0))
            model.record(price + float(stage.rng.normal(1.0, 5.0)), price, segments=answer.segments)

    return minute


def late(stage: Stage) -> Callable[[], None]:
    """
    Labels come after minutes, at times twice, changed, or before the prediction. Some come too late: it remembers
    the predictions of 20 minutes. It holds its objective.
    """
    model = stage.monitor(
        BinaryMonitor, "late", objectives={"accuracy": 0.8}, capacity=20 * PLAIN_ROWS, ttl=float(HOUR)
    )
    ids = (f"late-{number}" for number in itertools.count())
    due: list[tuple[float, str, bool]] = []  # a heap
    early: list[tuple[str, Answer]] = []  # answers whose label was there a minute ago

    def minute() -> None:
        while due and due[0][0] <= stage.now:
            _, id, label = heapq.heappop(due)
            model.record_label(id, label)
            chance = stage.rng.random()
            if chance < 0.1:
                model.record_label(id, label)
            elif chance < 0.15:
                model.record_label(id, not label)
        for id, answer in early:
            model.record_prediction(id, answer.prediction, score=answer.score, segments=answer.segments)
        early.clear()
        for answer in stage.answers(PLAIN_ROWS):
            id, chance = next(ids), stage.rng.random()
            if chance < 0.05:
                model.record_label(id, answer.label)
                early.append((id, answer))
                continue
            model.record_prediction(id, answer.prediction, score=answer.score, segments=answer.segments)
            if chance < 0.9:
                delay = min(stage.rng.exponential(6 * MINUTE), 25 * MINUTE)
                heapq.heappush(due, (stage.now + delay, id, answer.label))

    return minute


def messy(stage: Stage) -> Callable[[], None]:
    """Rows that cannot be used, and more countries than it tells apart."""
    model = stage.monitor(BinaryMonitor, "messy", max_segment_values=2, objectives={"accuracy": 0.99})

    def minute() -> None:
        for answer in stage.answers(PLAIN_ROWS):
            model.record(answer.prediction, answer.label, score=answer.score, segments=answer.segments)
        # Past the witness: these are no rows.
        model.monitor.record(prediction=True, label=float("nan"))
        if stage.rng.random() < 0.5:
            model.monitor.record(prediction=True, label=True, score=7.0)

    return minute


STORY = (
    # Yesterday all was well. Then the version was replaced.
    Process("demo", "yesterday", -27 * HOUR, -25 * HOUR, demo("0.9")),
    # Today there are two processes, and half-way things go wrong.
    Process("demo", "today-1", -3 * HOUR, 0, demo("1.0", disturbed_from=-90 * MINUTE)),
    Process("demo", "today-2", -3 * HOUR, 0, demo("1.0", disturbed_from=-90 * MINUTE)),
    # Beside them, models to each of which something else has happened.
    Process("nightly", "nightly-1", -4 * HOUR, -2 * HOUR, [dead]),
    Process("shop", "shop-1", -3 * HOUR, 0, [unlabelled, goalless, late, messy]),
    Process("launch", "launch-1", -5 * MINUTE, 0, [newborn]),  # first asked after half a minute
)


# The truth


@dataclasses.dataclass(frozen=True)
class Row:
    """
    A prediction that has been judged.

    Attributes:
        model, version: By whom.
        process: The `Process.instance` in which its label came.
        judged: Since when it counts in totals, in seconds since 1970: the next export knows.
        prediction, label, score: As they were recorded; `score` is None if there was none.
        segments: Name -> value.
    """

    model: str
    version: str
    process: str
    judged: float
    prediction: Any
    label: Any
    score: Any
    segments: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Made:
    """A prediction that has been made, and may be judged one day."""

    model: str
    version: str
    moment: float
    prediction: Any
    score: Any
    segments: dict[str, str]


@dataclasses.dataclass
class Truth:
    """Every prediction that has been made, and every one that has been judged."""

    made: list[Made] = dataclasses.field(default_factory=list)
    rows: list[Row] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Fleet:
    """
    Two stores that were told the same story, and the truth.

    Attributes:
        stores: ``victoria_metrics``, which labels processes by ``service_instance_id``, and ``prometheus``, which does
            it by ``instance``.
        now: The end of the story, in seconds since 1970: the time of the last export.
    """

    stores: dict[str, Store]
    now: int
    truth: Truth

    def rows(self, model: str, version: str | None = None, since: float | None = None) -> list[Row]:
        """
        The rows that have been judged, and that the stores know of.

        Args:
            model: Of which model.
            version: Of which version; of all by default.
            since: Only those judged later, in seconds since 1970. ``since=fleet.now - 6 * HOUR`` are the rows that
                ``increase(...[6h])`` counts, to the last one, because nothing happened at that time.
        """
        return [one for one in self.truth.rows if _is(one, model, version) and (since is None or one.judged > since)]

    def predictions(self, model: str, version: str | None = None, since: float | None = None) -> int:
        """How many predictions have been made, judged or not; the arguments are those of `rows`."""
        return sum(_is(one, model, version) and (since is None or one.moment > since) for one in self.truth.made)


def _is(one: Row | Made, model: str, version: str | None) -> bool:
    return one.model == model and version in (None, one.version)


class Witness:
    """
    A monitor, and somebody who writes down what it must count.

    Args:
        monitor: The monitor; what is not written down goes straight to it.
        stage: Knows the time, and has the truth.
        maturity: That of the monitor's window: before a prediction is so old, it is not judged.
    """

    def __init__(self, monitor: Monitor, stage: Stage, maturity: float = 0.0) -> None:
        self.monitor = monitor
        self._stage = stage
        stage.watched.append(self)
        self._maturity = maturity
        self._made: dict[str, Made] = {}
        self._early: dict[str, Any] = {}  # labels that came before their predictions

    def __getattr__(self, name: str) -> Any:
        return getattr(self.monitor, name)

    def record(self, prediction: Any, label: Any = None, *, segments: dict[str, str], **score: Any) -> None:
        self.monitor.record(prediction, label, segments=segments, **score)
        made = self._predicted(prediction, score.get("score"), segments)
        if label is not None:
            self._judged(made, label)

    def record_prediction(self, id: str, prediction: Any, *, segments: dict[str, str], **score: Any) -> None:
        self.monitor.record_prediction(id, prediction, segments=segments, **score)
        self._made[id] = self._predicted(prediction, score.get("score"), segments)
        if id in self._early:
            self._judged(self._made[id], self._early.pop(id))

    def record_prediction_batch(self, ids: Any, predictions: Any, *, scores: Any, segments: dict[str, Any]) -> None:
        self.monitor.record_prediction_batch(ids, predictions, scores=scores, segments=segments)
        for place, id in enumerate(ids):
            of_row = {name: values[place] for name, values in segments.items()}
            self._made[id] = self._predicted(predictions[place], scores[place], of_row)

    def record_label(self, id: str, label: Any) -> None:
        self._labelled(id, label, self.monitor.record_label(id, label))

    def record_label_batch(self, ids: Any, labels: Any) -> None:
        # The same as record_label_batch, which only says how many labels came to which outcome.
        for id, label, outcome in zip(ids, labels, self.monitor.record_label_each(ids, labels), strict=True):
            self._labelled(id, label, outcome)

    def _predicted(self, prediction: Any, score: Any, segments: dict[str, str]) -> Made:
        made = Made(self.monitor.name, self.monitor.version, self._stage.now, prediction, score, segments)
        self._stage.truth.made.append(made)
        return made

    def _labelled(self, id: str, label: Any, outcome: LabelOutcome) -> None:
        if outcome is LabelOutcome.MATCHED:  # a corrected label comes to a row that has been counted already
            self._judged(self._made[id], label)
        elif outcome is LabelOutcome.PENDING and id not in self._made:
            self._early[id] = label

    def _judged(self, made: Made, label: Any) -> None:
        judged = max(made.moment + self._maturity, self._stage.now)
        process, end = self._stage.process, self._stage.over + self._stage.process.end
        if judged > end:
            return  # never, for by then its process has ended
        assert judged <= end - 1, "it may be the first of a series, which says 0 in the last export"
        self._stage.truth.rows.append(
            Row(made.model, made.version, process.instance, judged, made.prediction, label, made.score, made.segments)
        )


# How it is played


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a binary model has said, and what it should have."""

    prediction: bool
    label: bool
    score: float
    segments: dict[str, str]


class Stage:
    """
    Where a process plays its part: what its models need.

    Args:
        process: The process.
        over: When the story ends, in seconds since 1970.
        truth: Where witnesses write.
        provider: Where metrics go.

    Attributes:
        now: The time, in seconds since 1970.
        rng: Chance, the same in every run.
        watched: Its monitors.
    """

    def __init__(self, process: Process, over: int, truth: Truth, provider: MeterProvider) -> None:
        self.process = process
        self.over = over
        self.truth = truth
        self.provider = provider
        self.now = float(over + process.begin)
        self.rng = np.random.default_rng(list(process.instance.encode()))
        self.watched: list[Witness] = []

    def clock(self) -> float:
        return self.now

    def monitor(self, kind: type[Monitor], name: str, **settings: Any) -> Witness:
        """A monitor with two segments."""
        settings = {"version": "1.0", "window": Window(age=float(HOUR)), **settings}
        monitor: Any = kind(  # type: ignore[call-arg]
            name, segments=("country", "channel"), meter_provider=self.provider, clock=self.clock, **settings
        )
        return Witness(monitor, self)

    def answers(self, n: int, wrong: float = 0.05, wrong_in_italy: float = 0.05) -> Iterator[Answer]:
        """Answers of a binary model, of which these shares are wrong."""
        for _ in range(n):
            country = str(self.rng.choice(["DE", "FR", "IT", "ES"], p=[0.4, 0.3, 0.2, 0.1]))
            channel = str(self.rng.choice(["web", "app"]))
            label = bool(self.rng.random() < 0.4)
            prediction = label != bool(self.rng.random() < (wrong_in_italy if country == "IT" else wrong))
            doubt = float(self.rng.beta(2, 5)) / 2
            score = 1 - doubt if prediction else doubt
            yield Answer(prediction, label, score, {"country": country, "channel": channel})


class Reader(PrometheusMetricReader):
    """Is scraped, and keeps what it collected for it to be pushed as well: one collection costs half of two."""

    collected: MetricsData | None = None

    def _receive_metrics(self, metrics_data: MetricsData, *args: Any, **kwargs: Any) -> None:
        self.collected = metrics_data
        super()._receive_metrics(metrics_data, *args, **kwargs)


def play(process: Process, over: int, truth: Truth, exporter: OTLPMetricExporter, scrapes: TextIO) -> None:
    """Let a process live, and tell the stores."""
    registry = CollectorRegistry()
    reader = Reader(registry=registry)
    resource = Resource.create({"service.name": process.service, "service.instance.id": process.instance})
    provider = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
    stage = Stage(process, over, truth, provider)
    models = [role(stage) for role in process.roles]
    minutes, exports = set(process.minutes), set(process.exports)
    for moment in sorted(minutes | exports):
        stage.now = float(over + moment)
        if moment in minutes:
            for minute in models:
                minute()
        if moment in exports:
            page = generate_latest(registry).decode()
            scrapes.writelines(scraped(page, process, over + moment))
            if reader.collected is not None:  # None before the first prediction
                timed = at(reader.collected, over + moment, over + process.begin)
                assert exporter.export(timed) is MetricExportResult.SUCCESS
    provider.shutdown()
    for watched in stage.watched:
        watched.close()  # the next process may have a model of the same name


def at(data: MetricsData, moment: int, begin: int) -> MetricsData:
    """Data of a moment of the story, and of a process that began then: the SDK has a clock of its own."""

    def timed(point: Any) -> Any:
        started = point.start_time_unix_nano and begin * 10**9
        return dataclasses.replace(point, time_unix_nano=moment * 10**9, start_time_unix_nano=started)

    def within(thing: Any, field: str, change: Callable[[Any], Any]) -> Any:
        return dataclasses.replace(thing, **{field: [change(one) for one in getattr(thing, field)]})

    def of_metric(metric: Any) -> Any:
        return dataclasses.replace(metric, data=within(metric.data, "data_points", timed))

    def of_scope(scope: Any) -> Any:
        return within(scope, "metrics", of_metric)

    def of_resource(resource: Any) -> Any:
        return within(resource, "scope_metrics", of_scope)

    return within(data, "resource_metrics", of_resource)


def scraped(text: str, process: Process, moment: int) -> Iterable[str]:
    """What Prometheus makes of a page that it scrapes: each sample gets the labels of its target, and the time."""
    target = f'job="{process.service}",instance="{process.instance}"'
    yield f"up{{{target}}} 1 {moment}\n"
    for line in text.splitlines():
        if not line.startswith("#"):  # every sample has labels: those of the scope at least
            yield line.replace("{", f"{{{target},", 1) + f" {moment}\n"


def load(scrapes: Path, into: Path) -> None:
    """Make blocks of what has been scraped, for Prometheus to be started with."""
    command = [binary("promtool"), "tsdb", "create-blocks-from", "openmetrics", "--quiet", str(scrapes), str(into)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert 0 == done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The whole story, told to both stores."""
    folder = tmp_path_factory.mktemp("dashboard_fleet")
    now, truth = int(time.time()), Truth()
    with victoria_metrics(folder) as pushed_to:
        exporter = OTLPMetricExporter(endpoint=f"{pushed_to.url}/opentelemetry/v1/metrics")
        scrapes = folder / "scrapes.txt"
        # One thread: for a few rows at a time, several mostly wait for each other.
        with scrapes.open("w") as file, threadpool_limits(1):
            for process in STORY:
                play(process, now, truth, exporter, file)
            file.write("# EOF\n")
        exporter.shutdown()
        get(f"{pushed_to.url}/internal/force_flush")
        load(scrapes, folder / "prometheus")
        with prometheus(folder, folder / "nobody") as scraping:
            yield Fleet({"victoria_metrics": pushed_to, "prometheus": scraping}, now, truth)
