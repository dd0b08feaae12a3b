"""
One run of the demonstration: serve, label, disturb half-way, export, receive, show, sum up.

Everything shown has been over the wire: the monitors export to the receiver inside this process and, if
``OTEL_EXPORTER_OTLP_ENDPOINT`` is set, to that endpoint as well.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from rich.console import Console
from rich.live import Live

from otel_model_metrics.demo import view
from otel_model_metrics.demo.models import MODELS, ServedModel
from otel_model_metrics.demo.receiver import Receiver, Store
from otel_model_metrics.window import Window

SERVICE_NAME = "otel-model-metrics-demo"
LEAST_SECONDS = 4.0

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_WINDOW_ROWS = 500
_TICK = 0.05  # seconds between two batches of requests
_FRAMES_PER_SECOND = 4.0
_FLUSH_MILLIS = 3_000
_SUMMARY_WIDTH = 120  # where there is no terminal that has a width

_OK, _FAILED, _INTERRUPTED = 0, 1, 130


def run(seconds: float = 40.0) -> int:
    """
    Run the demonstration.

    Args:
        seconds: How long models are served, at least 4; half of it healthy, half disturbed.

    Returns:
        The exit code: 0; 1 if nothing could be received; 130 after Ctrl-C.

    Raises:
        ValueError: If there is no time for two phases.
    """
    if not seconds >= LEAST_SECONDS or seconds == float("inf"):
        raise ValueError(f"seconds must be at least {LEAST_SECONDS:.0f}, got {seconds:g}.")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _SUMMARY_WIDTH)
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        console.print("OTEL_SDK_DISABLED is set, so nothing would be exported. Unset it to see the demo.")
        return _FAILED
    _reach_this_machine_directly()
    notes = _Notes()
    try:
        with notes, Receiver(Store(keep=600)) as receiver:
            return _Run(console, receiver, notes, seconds).execute()
    except KeyboardInterrupt:
        return _INTERRUPTED


class _Run:
    """What one run shares: its models, the way of their metrics, and the clock."""

    def __init__(self, console: Console, receiver: Receiver, notes: _Notes, seconds: float) -> None:
        self._console = console
        self._store = receiver.store
        self._notes = notes
        self._seconds = seconds
        interval = min(1.0, seconds / 12)
        self._reader = _reader(OTLPMetricExporter(endpoint=receiver.endpoint, timeout=2.0), interval)
        readers = [self._reader]
        if self._elsewhere():
            readers.append(_reader(OTLPMetricExporter(), interval))
        resource = Resource.create({"service.name": SERVICE_NAME})
        self._provider = MeterProvider(readers, resource=resource, shutdown_on_exit=False)
        # A window is renewed twice in each phase, and just filled by the rows that come in its time. At the end of a
        # phase all of its rows are from that phase, for the longest delay of a label is shorter than a window.
        age = seconds / 4
        self._window = Window(rows=_WINDOW_ROWS, age=age)
        self._rows_per_second = _WINDOW_ROWS / age
        self._models: list[ServedModel] = []
        self._before: list[view.ModelState] = []

    def execute(self) -> int:
        """Train, serve, sum up."""
        try:
            self._print("Training four models on the data sets that come with scikit-learn ...")
            self._models = [kind(self._window, self._provider, self._seconds) for kind in MODELS]
            for model in self._models:
                self._print(f"  {model.monitor.name} ({model.task}): {model.story}")
            self._print("Labels come later, each model's after a delay of its own. Some never do.")
            elsewhere = self._elsewhere()
            if elsewhere:
                self._print(f"Metrics go to {elsewhere}, and to the receiver of this demo, which shows them.")
            else:
                self._print(f"Metrics go to the receiver of this demo ({_ENDPOINTS[1]} is not set).")
            self._print("")
            interrupted = False
            try:
                with self._shown() as show:
                    self._serve(show)
            except KeyboardInterrupt:
                interrupted = True
            return self._finish(interrupted)
        finally:
            self._provider.shutdown(_FLUSH_MILLIS)
            for model in self._models:
                model.monitor.close()

    def _serve(self, show: _Show) -> None:
        rng = np.random.default_rng(0)
        start = time.monotonic()
        served, disturbed = 0, False
        while (elapsed := time.monotonic() - start) < self._seconds:
            for model in self._models:
                model.deliver()
            if not disturbed and elapsed >= self._seconds / 2:
                disturbed = True
                self._before = self._received_now()
                show.say("Half-way: what the models are asked is disturbed from here on.")
                for model in self._models:
                    show.say(f"  {model.monitor.name}: {model.fault}")
            due = int(elapsed * self._rows_per_second) - served
            if due > 0:
                for model in self._models:
                    # A machine that was asleep need not catch up on more than a window.
                    model.serve(rng, disturbed, min(due, _WINDOW_ROWS))
                served += due
            show.at(
                view.Moment(
                    phase="disturbed" if disturbed else "healthy",
                    elapsed=elapsed,
                    seconds=self._seconds,
                    exports=self._store.exports,
                    note=self._notes.last,
                )
            )
            time.sleep(_TICK)

    def _finish(self, interrupted: bool) -> int:
        after = self._received_now()
        self._print("")
        if not after:
            self._print("Nothing has been received, so there is nothing to sum up.")
        elif interrupted and not self._before:
            self._print("Stopped before the models were disturbed.")
        else:
            self._console.print(view.summary(self._before, after))
            self._print("")
            for model in after:
                self._print(f"{model.name}: {view.labels_in_words(model)} (median)")
                if words := view.segments_in_words(model):
                    self._print(f"  {words}")
        for note in self._notes.all:
            self._print(f"note: {note}")
        if interrupted:
            return _INTERRUPTED
        return _OK if after else _FAILED

    def _received_now(self) -> list[view.ModelState]:
        """What is received after an export of this moment, with the labels that have come until now."""
        for model in self._models:
            model.deliver()
        self._reader.force_flush(_FLUSH_MILLIS)
        return view.read(self._store.current())

    @contextlib.contextmanager
    def _shown(self) -> Iterator[_Show]:
        if not sys.stdout.isatty() or self._console.is_dumb_terminal:
            yield _Lines(self._store, every=max(1.0, self._seconds / 8))
            return
        with Live(console=self._console, auto_refresh=False, vertical_overflow="crop") as live:
            yield _Screen(self._store, self._console, live)

    def _elsewhere(self) -> str:
        """The endpoint the environment names, or nothing."""
        return next((endpoint for name in _ENDPOINTS if (endpoint := os.environ.get(name, "").strip())), "")

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)
        self._console.file.flush()


class _Show(ABC):
    """Where the view goes."""

    @abstractmethod
    def at(self, moment: view.Moment) -> None:
        """Show this moment, if it is time to."""

    @abstractmethod
    def say(self, text: str) -> None:
        """Say something once."""


class _Screen(_Show):
    """A terminal: the view is drawn anew several times a second."""

    def __init__(self, store: Store, console: Console, live: Live) -> None:
        self._store = store
        self._console = console
        self._live = live
        self._next = 0.0

    def at(self, moment: view.Moment) -> None:
        if moment.elapsed < self._next:
            return
        self._next = moment.elapsed + 1 / _FRAMES_PER_SECOND
        width, height = self._console.size
        unicode = self._console.encoding.lower().startswith("utf")
        models = view.read(self._store.current())
        self._live.update(view.screen(models, moment, width, height, unicode), refresh=True)

    def say(self, text: str) -> None:
        self._live.console.print(text, markup=False)


class _Lines(_Show):
    """No terminal: a few plain lines every few seconds."""

    def __init__(self, store: Store, every: float) -> None:
        self._store = store
        self._every = every
        self._next = every

    def at(self, moment: view.Moment) -> None:
        if moment.elapsed >= self._next:
            self._next += self._every
            for line in view.lines(view.read(self._store.current()), moment):
                print(line, flush=True)

    def say(self, text: str) -> None:
        print(text, flush=True)


class _Notes(logging.Handler):
    """Keeps what OpenTelemetry and the library log, between enter and exit, so that it does not tear the view."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._kept: dict[str, None] = {}
        self._propagated: dict[str, bool] = {}

    def __enter__(self) -> _Notes:
        for name in ("opentelemetry", "otel_model_metrics"):
            logger = logging.getLogger(name)
            self._propagated[name] = logger.propagate
            logger.propagate = False
            logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        for name, propagated in self._propagated.items():
            logger = logging.getLogger(name)
            logger.removeHandler(self)
            logger.propagate = propagated

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message, the first ten different ones."""
        if len(self._kept) < 10:
            self._kept.setdefault(" ".join(record.getMessage().split())[:200])

    @property
    def all(self) -> list[str]:
        """The messages, oldest first."""
        return list(self._kept)

    @property
    def last(self) -> str:
        """The newest message, or nothing."""
        return next(reversed(self.all), "")


def _reader(exporter: OTLPMetricExporter, interval: float) -> PeriodicExportingMetricReader:
    return PeriodicExportingMetricReader(exporter, export_interval_millis=interval * 1000)


def _reach_this_machine_directly() -> None:
    """Keep a proxy the environment may name out of the way to our own receiver."""
    for name in ("NO_PROXY", "no_proxy"):
        known = os.environ.get(name, "")
        if "127.0.0.1" not in known.split(","):
            os.environ[name] = f"{known},127.0.0.1".lstrip(",")
