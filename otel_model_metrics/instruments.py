"""
The boundary to OpenTelemetry: the only file that creates instruments.

A registry for each meter provider creates every instrument once; its callbacks walk the monitors. All instruments
of one export are served from one snapshot, taken when the first of them asks.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation

from otel_model_metrics import catalog
from otel_model_metrics.catalog import Naming, Task
from otel_model_metrics.recorder import Reading
from otel_model_metrics.snapshot import Selection, Snapshot, objective_series
from otel_model_metrics.tally import DELAY_BOUNDS
from otel_model_metrics.version import __version__
from otel_model_metrics.vocabulary import OTHER

SCOPE = "otel_model_metrics"

# The SDK merges what is beyond this many attribute sets of one instrument into one series, unless told otherwise.
SDK_CARDINALITY_LIMIT = 2000

Collected = dict[str, list[Observation]]

_logger = logging.getLogger("otel_model_metrics")


class Exported(Protocol):
    """What the registry needs to know of a monitor."""

    @property
    def task(self) -> Task:
        """The task."""

    @property
    def selection(self) -> Selection:
        """Its metrics."""

    @property
    def attributes(self) -> Mapping[str, str]:
        """Attributes on everything it exports."""

    def collect(self) -> tuple[Reading, Snapshot, Naming]:
        """The state of this moment."""

    def reset(self) -> None:
        """Forget everything, in a forked child."""


class _SeriesOfMonitor:
    """
    Observations of one monitor: its values with their attributes, and which totals each reader has seen at zero.

    Attribute mappings are built once a series and reused; the SDK copies them.
    """

    def __init__(self, monitor: Exported) -> None:
        self.monitor = monitor
        self._attributes: dict[tuple[Any, ...], dict[str, str]] = {}
        # A series is born at zero: its first export says 0, for increase() loses the first value of a series. Each
        # reader has exports of its own, so it is remembered by reader what has been introduced to it.
        self._introduced: weakref.WeakKeyDictionary[Any, dict[str, NDArray[np.bool_]]] = weakref.WeakKeyDictionary()

    def collect(self, reader: Any, into: Collected) -> None:
        reading, snapshot, naming = self.monitor.collect()
        if not reading.used:
            return  # e.g. the parent of forked workers, which records nothing itself
        for series in snapshot.series:
            observations = into.setdefault(catalog.NAMESPACE + series.name, [])
            finite = np.isfinite(series.values)
            values = series.values.tolist()
            for group in np.flatnonzero(finite).tolist():
                attributes = self._attributes_of(series.variant, reading.segments[group])
                observations.append(Observation(values[group], attributes))
        observations = into.setdefault(catalog.NAMESPACE + catalog.OBJECTIVE, [])
        for extra, level in objective_series(self.monitor.selection):
            observations.append(Observation(level, self._attributes_of(tuple(extra.items()), None)))
        introduced = self._introduced.setdefault(reader, {})
        self._collect_totals(reading, naming, introduced, into)
        self._collect_counts(reading, snapshot, introduced, into)

    def _collect_totals(
        self, reading: Reading, naming: Naming, introduced: dict[str, NDArray[np.bool_]], into: Collected
    ) -> None:
        for definition in catalog.totals_of(self.monitor.task):
            totals = definition.values(reading.totals)
            cells = definition.cells(naming, totals.shape[1])
            present = totals > 0 if definition.sparse else np.ones(totals.shape, np.bool_)
            known = _grown(introduced.get(definition.name), totals.shape)
            reported = np.where(known, totals, 0)
            introduced[definition.name] = known | present
            observations = into.setdefault(definition.instrument, [])
            for group, cell in np.argwhere(present).tolist():
                key = (definition.name, group, cell, totals.shape[1])
                attributes = self._attributes.get(key)
                if attributes is None:
                    attributes = self._attributes[key] = {
                        **self._attributes_of((), reading.segments[group]),
                        catalog.TASK: self.monitor.task,
                        **cells[cell],
                    }
                observations.append(Observation(float(reported[group, cell]), attributes))

    def _collect_counts(
        self, reading: Reading, snapshot: Snapshot, introduced: dict[str, NDArray[np.bool_]], into: Collected
    ) -> None:
        names = reading.segment_names
        overflowed = catalog.overflowed(reading.totals, reading.segments, names, self.monitor.task, OTHER)
        labels = dict(snapshot.labels)
        labels["matched"] = labels.get("matched", 0) + reading.labelled
        counts = {
            catalog.LABELS: labels,
            catalog.DELAYS: _histogram(reading) if snapshot.labels else {},
            catalog.REJECTED: reading.rejected,
            catalog.OVERFLOWED: overflowed,
        }
        for definition, by_value in counts.items():
            observations = into.setdefault(definition.instrument, [])
            for value, count in by_value.items():
                key = f"{definition.name}/{value}"
                attributes = self._attributes_of(((definition.attribute, value),), None)
                observations.append(Observation(float(count) if key in introduced else 0.0, attributes))
                introduced[key] = _SEEN

    def _attributes_of(self, variant: tuple[tuple[str, str], ...], segment: tuple[str, str] | None) -> dict[str, str]:
        key = (variant, segment)
        attributes = self._attributes.get(key)
        if attributes is None:
            attributes = {**self.monitor.attributes, **dict(variant)}
            if segment is not None:
                attributes[catalog.SEGMENT_NAME], attributes[catalog.SEGMENT_VALUE] = segment
            self._attributes[key] = attributes
        return attributes


_SEEN = np.ones((1, 1), np.bool_)


def _histogram(reading: Reading) -> dict[str, int]:
    """Delays as histogram_quantile() reads them: by their upper end, each count containing those before it."""
    ends = [*(str(bound) for bound in DELAY_BOUNDS), "+Inf"]
    return dict(zip(ends, np.cumsum(reading.delays).tolist(), strict=True))


def _grown(mask: NDArray[np.bool_] | None, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """A mask of (groups, cells) that has grown with the totals it belongs to."""
    if mask is not None and mask.shape == shape:
        return mask
    grown = np.zeros(shape, np.bool_)
    if mask is not None:
        if mask.shape[1] == shape[1]:
            grown[: len(mask)] = mask
        else:
            # A matrix of classes that gained a class: cell (a, p) moves from a * old + p to a * new + p.
            rows, cells = _table_shape(mask.shape[1], shape[1])
            old, new = cells
            table = mask.reshape(len(mask), rows[0], old)
            grown.reshape(shape[0], rows[1], new)[: len(mask), : rows[0], :old] = table
    return grown


def _table_shape(before: int, after: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns of the cells before and after growth: square for a class matrix, else one row."""
    side_before, side_after = int(before**0.5 + 0.5), int(after**0.5 + 0.5)
    if side_before**2 == before and side_after**2 == after and before > 1:
        return (side_before, side_after), (side_before, side_after)
    return (1, 1), (before, after)


class Registry:
    """
    The instruments of one meter provider, and the monitors they report.

    Args:
        meter: Where to create the instruments.
        provider: The provider, or None for the global one (which may be set later).
    """

    def __init__(self, meter: Meter, provider: MeterProvider | None) -> None:
        self._meter = meter
        self._provider = None if provider is None else weakref.ref(provider)
        self._monitors: list[_SeriesOfMonitor] = []
        self._created: set[str] = set()
        self._warned: set[str] = set()
        self.renew()

    def renew(self) -> None:
        """New lock and no snapshot; after a fork the old lock may be held for ever."""
        self._lock = threading.RLock()
        self._served: set[str] = set()
        self._collected: Collected = {}
        self._monitors = [_SeriesOfMonitor(series.monitor) for series in self._monitors]

    def add(self, monitor: Exported) -> None:
        """Report this monitor from the next export on."""
        with self._lock:
            self._monitors = [*self._monitors, _SeriesOfMonitor(monitor)]
            needed = list(catalog.instruments_of(monitor.task, monitor.selection.metrics))
            new = [instrument for instrument in needed if instrument.name not in self._created]
            self._created.update(instrument.name for instrument in new)
        # Not under our lock: the SDK takes its own here, and holds that while it waits for ours in a collection.
        meter = self._meter
        create = {"gauge": meter.create_observable_gauge, "counter": meter.create_observable_counter}
        for name, unit, description, kind in new:
            create[kind](name, [self._callback(name)], unit=unit, description=description)

    def remove(self, monitor: Exported) -> None:
        """Report this monitor no more."""
        with self._lock:
            self._monitors = [series for series in self._monitors if series.monitor is not monitor]

    def _callback(self, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def callback(options: CallbackOptions) -> Iterable[Observation]:
            try:
                with self._lock:
                    # A collection asks every instrument once, so one that asks again begins the next collection.
                    if not self._served or name in self._served:
                        self._served.clear()
                        self._collected = self._collect()
                    self._served.add(name)
                    return self._collected.get(name, ())
            except Exception:
                _logger.exception("otel_model_metrics could not collect %s", name)
                return ()

        return callback

    def _collect(self) -> Collected:
        reader = _collecting_reader()
        collected: Collected = {}
        for series in self._all():
            of_monitor: Collected = {}
            try:  # each by itself, so that one model's fault cannot hide the next
                series.collect(reader, of_monitor)
            except Exception:
                _logger.exception("otel_model_metrics could not collect model %s", dict(series.monitor.attributes))
                continue
            for name, observations in of_monitor.items():
                collected.setdefault(name, []).extend(observations)
        for name, observations in collected.items():
            if len(observations) > SDK_CARDINALITY_LIMIT and name not in self._warned:
                self._warned.add(name)
                _logger.warning(
                    "%s has %d series. The OpenTelemetry SDK keeps %d for each instrument by default and merges the "
                    "rest: give your metric reader higher cardinality_limits= (configure() does), or record fewer "
                    "segments or classes.",
                    name,
                    len(observations),
                    SDK_CARDINALITY_LIMIT,
                )
        return collected

    def _all(self) -> list[_SeriesOfMonitor]:
        # A provider given explicitly first, and made global later, already has our instruments: the SDK ignores the
        # callbacks of the global registry then, so its monitors are reported here.
        provider = self._provider() if self._provider is not None else None
        if provider is not None and _registries.of_global is not None and metrics.get_meter_provider() is provider:
            return [*self._monitors, *_registries.of_global._monitors]
        return self._monitors


class _AnyReader:
    """Stands for the reader where it cannot be told which one collects."""


_ANY_READER = _AnyReader()


def _collecting_reader() -> Any:
    """
    The metric reader that is collecting.

    OpenTelemetry does not tell a callback. With several readers on one provider each needs its own zeros, so the
    reader is looked up among the arguments of our callers; where there is none, all readers count as one.
    """
    try:
        frame = sys._getframe(2)
        for _ in range(12):
            reader = frame.f_locals.get("metric_reader")
            if reader is not None:
                weakref.ref(reader)
                return reader
            if frame.f_back is None:
                break
            frame = frame.f_back
    except Exception:
        pass
    return _ANY_READER


class _Registries:
    """The registry of each provider."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.of_global: Registry | None = None
        self._of_provider: weakref.WeakKeyDictionary[MeterProvider, Registry] = weakref.WeakKeyDictionary()

    def get(self, provider: MeterProvider | None) -> Registry:
        """The registry of a provider; None is the global one, whether it is set already or not."""
        with self.lock:
            current = metrics.get_meter_provider()
            if provider is None or provider is current:
                existing = self._of_provider.get(current)
                if existing is not None:
                    return existing
                if self.of_global is None:
                    self.of_global = Registry(metrics.get_meter(SCOPE, __version__), None)
                return self.of_global
            registry = self._of_provider.get(provider)
            if registry is None:
                registry = Registry(provider.get_meter(SCOPE, __version__), provider)
                self._of_provider[provider] = registry
            return registry

    def all(self) -> list[Registry]:
        """Every registry there is."""
        return [*([self.of_global] if self.of_global else []), *self._of_provider.values()]


_registries = _Registries()
_every_monitor: weakref.WeakSet[Exported] = weakref.WeakSet()


def attach(monitor: Exported, provider: MeterProvider | None) -> Registry:
    """Report a monitor through a provider's instruments."""
    registry = _registries.get(provider)
    registry.add(monitor)
    _every_monitor.add(monitor)
    return registry


def _after_fork_in_child() -> None:
    """A forked worker starts empty, with locks of its own."""
    try:
        _registries.lock = threading.Lock()
        for monitor in list(_every_monitor):
            monitor.reset()
        for registry in _registries.all():
            registry.renew()
    except Exception:
        _logger.exception("otel_model_metrics could not reset after a fork")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
