"""
From record() over the shipped rules and a real Alertmanager to a webhook: an alert really arrives, and goes away again.

The shipped files are evaluated in time-lapse, for nobody waits for an hour: every duration in them is divided by one
factor, and nothing else is changed.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import prometheus_client
import pytest
from backends import Store, alertmanager, eventually, get, prometheus, victoria_metrics, vmalert
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from promtool import ALERTS, RULES, shipped_groups, written

from otel_model_metrics import BinaryMonitor
from otel_model_metrics.provisioning.messages import spoken
from otel_model_metrics.provisioning.rules import Settings

# Time-lapse

UNITS = {"w": 604_800_000, "d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}

# Names and strings come first: what looks like a duration in ml_model:f1:1h is none.
_TOKENS = re.compile(
    r'"(?:[^"\\]|\\.)*"|[A-Za-z_][\w:]*|(?P<duration>\d+(?:ms|[smhdw])\b)|(?<=time\(\) - )(?P<seconds>\d+)'
)


# What in a rule is a duration.
LASTING = ("for", "keep_firing_for")


def shortened(duration: str, factor: int) -> str:
    """
    A duration divided by a factor, in the largest unit in which it is whole.

    >>> shortened("1h", 1), shortened("1h", 120), shortened("5m", 120), shortened("1w", 7)
    ('1h', '30s', '2500ms', '1d')
    """
    number, unit = re.fullmatch(r"(\d+)(\w+)", duration).groups()
    milliseconds, rest = divmod(int(number) * UNITS[unit], factor)
    assert 0 == rest, f"{duration} cannot be divided by {factor}"
    largest = next(unit for unit, length in UNITS.items() if milliseconds % length == 0)
    return f"{milliseconds // UNITS[largest]}{largest}"


def lapsed(expression: str, factor: int) -> str:
    """
    PromQL with all its durations divided by a factor.

    >>> lapsed('sum(ml_model:f1:1h{window="1h"} offset 1w) or increase(f1_total[1h]) > time() - 86400', 60)
    'sum(ml_model:f1:1h{window="1h"} offset 168m) or increase(f1_total[1m]) > time() - 1440'
    """

    def replaced(token: re.Match[str]) -> str:
        if token["duration"]:
            return shortened(token["duration"], factor)
        return str(int(token["seconds"]) // factor) if token["seconds"] else token[0]

    return _TOKENS.sub(replaced, expression)


def time_lapse(groups: list[dict[str, Any]], factor: int) -> list[dict[str, Any]]:
    """Groups of rules of which everything happens so many times faster."""

    def faster(rule: dict[str, Any]) -> dict[str, Any]:
        lasting = {key: shortened(rule[key], factor) for key in LASTING if key in rule}
        return {**rule, "expr": lapsed(rule["expr"], factor), **lasting}

    return [
        {**group, "interval": shortened(group["interval"], factor), "rules": [faster(rule) for rule in group["rules"]]}
        for group in groups
    ]


SHIPPED = [pytest.param(path, id=path.stem) for path in (RULES, ALERTS)]


@pytest.mark.parametrize("path", SHIPPED)
def test_time_lapse_by_factor_one_changes_nothing(path):
    """
    What is read with factor 1 is what is shipped.
    """
    assert shipped_groups(path) == time_lapse(shipped_groups(path), 1)


@pytest.mark.parametrize("path", SHIPPED)
def test_time_lapse_shortens_every_duration_and_nothing_else(path):
    """
    At half speed, every duration is half as long; names, labels and messages stay, ml_model:f1:1h among them.
    """
    durations = r"(?<![\w:.])\d+[smhdw]\b|(?<=\d[mhdw]:)\d+[smhdw]\b|(?<![\w.])\d{4,}\b"
    for group, faster in zip(shipped_groups(path), time_lapse(shipped_groups(path), 2), strict=True):
        assert {**group, "interval": "", "rules": ""} == {**faster, "interval": "", "rules": ""}
        assert in_seconds(group["interval"]) == 2 * in_seconds(faster["interval"])
        for rule, other in zip(group["rules"], faster["rules"], strict=True):
            changed = dict.fromkeys(("expr", *LASTING), "")
            assert {**rule, **changed} == {**other, **changed}
            for key in LASTING:
                assert in_seconds(rule.get(key, "0s")) == 2 * in_seconds(other.get(key, "0s"))
            assert re.split(durations, rule["expr"]) == re.split(durations, other["expr"])
            before, after = (re.findall(durations, each["expr"]) for each in (rule, other))
            assert [in_seconds(each) for each in before] == [2 * in_seconds(each) for each in after]


def in_seconds(duration: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(\w*)", duration).groups()
    return int(number) * (UNITS[unit] / 1000 if unit else 1)


# The story

FACTOR = 120  # an hour takes half a minute
EVERY = shortened("1m", FACTOR)  # between two scrapes, or exports
LOOKBACK = shortened("5m", FACTOR)  # for so long a sample counts

# What a model that is right in one of five answers sets off when it should be right in nine of ten: name and window.
EXPECTED = {
    ("ModelQualityBelowObjective", "1h"): "critical",
    ("ModelErrorBudgetFastBurn", "1h"): "critical",
    ("ModelQualityBelowObjective", "6h"): "warning",
    ("ModelErrorBudgetSlowBurn", "6h"): "warning",
}

Notice = dict[str, Any]


class Webhook:
    """What an on-call engineer got to know, in its order."""

    def __init__(self) -> None:
        self.received: list[Notice] = []

    def latest(self, status: str) -> dict[tuple[str, str], Notice]:
        """The alerts of which the newest notice has this status."""
        newest = {name_and_window(notice): notice for notice in [*self.received]}
        return {key: notice for key, notice in newest.items() if notice["status"] == status}


def name_and_window(notice: Notice) -> tuple[str, str]:
    return notice["labels"]["alertname"], notice["labels"].get("window", "")


@contextlib.contextmanager
def listening(webhook: Webhook) -> Iterator[str]:
    """The URL at which a webhook is told of alerts."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            webhook.received += json.loads(body)["alerts"]
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Not into the output of the tests."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@dataclass(frozen=True)
class Backend:
    """
    Where the model's metrics go, and who evaluates rules over them.

    Attributes:
        provider: Exports to it.
        store: Is asked.
        hurry: Makes it show at once what it has taken.
    """

    provider: MeterProvider
    store: Store
    hurry: Callable[[], Any]


@contextlib.contextmanager
def scraped_by_prometheus(folder: Path, rules: list[Path], told: str) -> Iterator[Backend]:
    registry = prometheus_client.CollectorRegistry()
    provider = MeterProvider([PrometheusMetricReader(registry=registry)], shutdown_on_exit=False)
    server, thread = prometheus_client.start_http_server(0, addr="127.0.0.1", registry=registry)
    try:
        target, times = f"127.0.0.1:{server.server_port}", {"interval": EVERY, "lookback": LOOKBACK}
        with prometheus(folder, target, rules=rules, alertmanager=told, **times) as store:
            yield Backend(provider, store, lambda: None)
    finally:
        provider.shutdown()
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def pushed_to_victoria_metrics(folder: Path, rules: list[Path], told: str) -> Iterator[Backend]:
    with victoria_metrics(folder) as store, vmalert(folder, store, rules, told, lookback=LOOKBACK):
        exporter = OTLPMetricExporter(endpoint=f"{store.url}/opentelemetry/v1/metrics")
        reader = PeriodicExportingMetricReader(exporter, export_interval_millis=int(EVERY.removesuffix("ms")))
        provider = MeterProvider([reader], resource=Resource.create({"service.name": "story"}), shutdown_on_exit=False)
        try:
            # Unasked it takes two seconds: nothing to an hour, but as much as a window of five minutes has here.
            yield Backend(provider, store, lambda: get(f"{store.url}/internal/force_flush"))
        finally:
            provider.shutdown()


class Service:
    """A model with an objective, in use for as long as a test waits for something."""

    def __init__(self, backend: Backend) -> None:
        self.hurry = backend.hurry
        self.monitor = BinaryMonitor(
            "fraud", version="2026.11", objectives={"accuracy": 0.9}, meter_provider=backend.provider
        )

    def serve(self, rows: int, accuracy: float) -> None:
        """Hundreds of rows, in each of which exactly this share is right; every other hundred is from Germany."""
        place = np.arange(rows)
        labels, right = place % 3 == 0, place % 100 < 100 * accuracy
        country = np.where(place // 100 % 2, "DE", "FR")
        self.monitor.record_batch(labels == right, labels, segments={"country": country})

    def until(self, condition: Callable[[], Any], what: str, *, rows: int, accuracy: float) -> None:
        """Serve so many rows, again and again, until a condition holds."""

        def holds() -> Any:
            self.serve(rows, accuracy)
            self.hurry()
            return condition()

        eventually(holds, what, seconds=120.0)


def assert_readable(notice: Notice) -> None:
    """Every part of the message was filled in."""
    labels, said = notice["labels"], notice["annotations"]
    for text in (said["summary"], said["description"]):
        assert not re.search(r"\?|\{\{|<|error (?!budget)|NaN|Inf", text), text
        assert "accuracy of fraud 2026.11" in text
        assert "90%" in text  # its objective
    assert f"the last {spoken(labels['window'])} " in said["description"]
    assert re.search(r"\d labelled rows", said["description"]), said["description"]
    assert said["runbook_url"] == f"{Settings().runbooks}#{labels['alertname'].lower()}"


def percentages(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"([\d.]+)%", text)]


@pytest.mark.alone
@pytest.mark.parametrize("kind", [scraped_by_prometheus, pushed_to_victoria_metrics])
def test_an_alert_arrives_when_quality_drops_and_is_resolved_when_it_recovers(kind, tmp_path):
    """
    A model misses its objective: whoever is on call is told so, as the shipped rules have it, and told when it is over.
    """
    webhook = Webhook()
    rules = [written(tmp_path, time_lapse(shipped_groups(path), FACTOR), path.name) for path in (RULES, ALERTS)]
    with (
        listening(webhook) as url,
        alertmanager(tmp_path, url) as told,
        kind(tmp_path, rules, told) as backend,
    ):
        fraud = Service(backend)

        # Long enough for an alert to fire that has to last for a quarter of an hour.
        judged = f'ml_model:accuracy:1h{{ml_segment_name=""}} offset {shortened("16m", FACTOR)}'
        fraud.until(lambda: backend.store.query(judged), judged, rows=200, accuracy=0.97)
        assert [] == webhook.received

        fraud.until(
            lambda: EXPECTED.keys() <= webhook.latest("firing").keys(), "all alerts fire", rows=1000, accuracy=0.2
        )
        fired = webhook.latest("firing")
        for notice in fired.values():
            assert_readable(notice)
        assert EXPECTED == {key: notice["labels"]["severity"] for key, notice in fired.items()}
        missed = fired["ModelQualityBelowObjective", "1h"]
        assert "accuracy" == missed["labels"]["ml_metric"]
        value, objective = percentages(missed["annotations"]["summary"])
        assert value < objective == 90
        value, lower, upper, objective = percentages(missed["annotations"]["description"])
        # Not lower < value < upper: what falls this fast is caught between two evaluations, and bounds then trail it.
        assert max(lower, value, upper) < objective == 90

        fraud.until(
            lambda: EXPECTED.keys() <= webhook.latest("resolved").keys(), "all are over", rows=20_000, accuracy=0.97
        )
        for notice in webhook.received:
            assert_readable(notice)
        assert EXPECTED.keys() == {name_and_window(notice) for notice in webhook.received}
