"""
What tests share: a clock under their control, an in-memory reader, monitors that are closed again, and the machine.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dashboard_fleet import fleet as fleet  # one for the whole session, however many files ask for it
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from otel_model_metrics import monitors

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps others away from tests that want to be alone
    fcntl = None  # type: ignore[assignment]


class Clock:
    """Seconds since 1970 that pass only when told to."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def tick(self, seconds: float) -> None:
        self.now += seconds


class Exports:
    """A provider with an in-memory reader: what a backend would receive."""

    def __init__(self, **settings: Any) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False, **settings)

    def collect(self, reader: InMemoryMetricReader | None = None) -> dict[str, dict[frozenset[tuple[str, Any]], Any]]:
        """One export: metric name -> attributes -> value."""
        data = (reader or self.reader).get_metrics_data()
        found: dict[str, dict[frozenset[tuple[str, Any]], Any]] = {}
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    points = found.setdefault(metric.name, {})
                    for point in metric.data.data_points:
                        points[frozenset(point.attributes.items())] = point.value
        return found

    def value(self, name: str, **attributes: str) -> Any:
        """
        The value of the only series of a metric whose attributes beside the model's are exactly these.

        Dots in attribute names are written as two underscores. None if there is no such series.
        """
        wanted = {key.replace("__", "."): value for key, value in attributes.items()}
        found = [
            value
            for series, value in self.collect().get(name, {}).items()
            if {k: v for k, v in series if k not in ("ml.model.name", "ml.model.version", "ml.model.task")} == wanted
        ]
        assert len(found) <= 1, f"{name} has {len(found)} series with {wanted}"
        return found[0] if found else None


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def exports() -> Exports:
    return Exports()


@pytest.fixture(autouse=True)
def closed_monitors() -> Iterator[None]:
    """Every monitor a test made is closed after it, so that names are free again."""
    yield
    for monitor in list(monitors._monitors.values()):
        monitor.close()


@pytest.fixture
def make(exports: Exports, clock: Clock) -> Callable[..., Any]:
    """Makes a monitor that exports to `exports` and lives in the time of `clock`."""

    def build(kind: Callable[..., Any], name: str = "model", **arguments: Any) -> Any:
        arguments = {"meter_provider": exports.provider, "clock": clock, **arguments}
        return kind(name, **arguments)

    return build


# Tests that run at the same time, in the processes of `pytest --numprocesses`


def pytest_configure(config: pytest.Config) -> None:
    """Sets have one order in all processes, for some tests are named after sets, and they must be the same in each."""
    if getattr(config.option, "numprocesses", None):
        os.environ.setdefault("PYTHONHASHSEED", str(random.randrange(2**32)))


DOOR, ROOM = Path(__file__).parent, Path(__file__)  # any two: they are locked, and nothing else


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """While a test marked as `alone` is prepared, runs and is cleared away, no other test does."""
    if fcntl is None or "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    with place_among_others(alone=item.get_closest_marker("alone") is not None):
        return (yield)


@contextlib.contextmanager
def place_among_others(*, alone: bool) -> Iterator[None]:
    """
    Wait until a test may run.

    All queue at a door. Whoever wants to be alone keeps it shut until those inside have left; without a door there
    might always be somebody inside.
    """
    with locked(DOOR, fcntl.LOCK_EX):
        inside = contextlib.ExitStack()
        inside.enter_context(locked(ROOM, fcntl.LOCK_EX if alone else fcntl.LOCK_SH))
    with inside:
        yield


@contextlib.contextmanager
def locked(path: Path, kind: int) -> Iterator[None]:
    """As flock() does it: the lock of a process that dies is gone."""
    file = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(file, kind)
        yield
    finally:
        # Closing is not enough, if a test has forked a process that goes on: the file is open there, too.
        fcntl.flock(file, fcntl.LOCK_UN)
        os.close(file)
