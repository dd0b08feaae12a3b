"""
Names: an instrument and the Prometheus series it becomes, by every path, and how long a duration is.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics import MeterProvider

from otel_model_metrics import catalog
from otel_model_metrics.prometheus_names import NAMINGS, escaped, prometheus_label, prometheus_name
from otel_model_metrics.provisioning.promql import counter_name, recorded_name, seconds, selector

# What Prometheus 3.5 calls an instrument that came over OTLP, as measured. Prometheus and the Collector share the code.
MEASURED = [
    ("ml.model.accuracy", "1", "gauge", "ml_model_accuracy_ratio"),
    ("ml.model.accuracy.ratio", "1", "gauge", "ml_model_accuracy_ratio"),
    ("ml.model.x.total", "1", "gauge", "ml_model_x_total_ratio"),
    ("ml.model.x.total", "", "gauge", "ml_model_x_total"),
    ("ml.model.rmse", "", "gauge", "ml_model_rmse"),
    ("ml.model.roc_auc", "{score}", "gauge", "ml_model_roc_auc"),
    ("ml.model.window.rows", "{prediction}", "gauge", "ml_model_window_rows"),
    ("ml.model.mse", "{target^2}", "gauge", "ml_model_mse"),
    ("ml.model.label.delay", "s", "gauge", "ml_model_label_delay_seconds"),
    ("ml.model.label.delay", "ms", "gauge", "ml_model_label_delay_milliseconds"),
    ("ml.model.label.delay.seconds", "s", "gauge", "ml_model_label_delay_seconds"),
    ("ml.model.share", "%", "gauge", "ml_model_share_percent"),
    ("ml.model.memory", "By", "gauge", "ml_model_memory_bytes"),
    ("ml.model.price", "USD", "gauge", "ml_model_price_USD"),
    ("ml.model.traffic", "{prediction}/s", "gauge", "ml_model_traffic_per_second"),
    ("ml.model.traffic", "1/s", "gauge", "ml_model_traffic_per_second"),
    ("ml.model.predictions", "{prediction}", "counter", "ml_model_predictions_total"),
    ("ml.model.predictions", "1", "counter", "ml_model_predictions_total"),
    ("ml.model.predictions", "", "counter", "ml_model_predictions_total"),
    ("ml.model.x.total", "{row}", "counter", "ml_model_x_total"),
    ("ml.model.time", "s", "counter", "ml_model_time_seconds_total"),
]
# Of these the Python exporter, when scraped, has other names for gauges of unit 1 only.
SCRAPED = {
    ("ml.model.accuracy", "1"): "ml_model_accuracy",
    ("ml.model.x.total", "1"): "ml_model_x_total",
}

TOTALS = [*catalog.TOTALS, *catalog.COUNTS]
# Every instrument there is: name, unit and kind.
INSTRUMENTS: list[tuple[str, str, Any]] = list(
    dict.fromkeys(
        [
            *((catalog.NAMESPACE + catalog.OBJECTIVE, catalog.OBJECTIVE_UNIT, "gauge"),),
            *(
                (metric.instrument + suffix, metric.unit, "gauge")
                for metric in catalog.METRICS
                for suffix in ("", *(catalog.BOUNDS if metric.intervals else ()))
            ),
            *((total.instrument, total.unit, "counter") for total in TOTALS),
        ]
    )
)
for_every_instrument = pytest.mark.parametrize(
    ("instrument", "unit", "kind"), INSTRUMENTS, ids=[name for name, _, _ in INSTRUMENTS]
)


@pytest.mark.parametrize(("instrument", "unit", "kind", "name"), MEASURED)
def test_names_are_those_that_prometheus_was_seen_to_give(instrument, unit, kind, name):
    """
    Over OTLP; and with the namespace of a Collector in front.
    """
    assert name == prometheus_name(instrument, unit, kind)
    assert f"acme_{name}" == prometheus_name(instrument, unit, kind, namespace="acme")


@pytest.mark.parametrize(("instrument", "unit", "kind", "name"), MEASURED)
def test_scraped_names_differ_where_the_python_exporter_does(instrument, unit, kind, name):
    """
    It leaves the unit 1 of a gauge out.
    """
    assert SCRAPED.get((instrument, unit), name) == prometheus_name(instrument, unit, kind, "scrape")


@for_every_instrument
def test_no_instrument_of_ours_has_two_names(instrument, unit, kind):
    """
    So one set of rules serves those who push and those who are scraped.
    """
    assert "1" != unit
    assert 1 == len({prometheus_name(instrument, unit, kind, naming) for naming in NAMINGS})


def test_no_two_instruments_of_ours_have_one_name():
    """
    Dots and underscores are the same to Prometheus.
    """
    names = [prometheus_name(instrument, unit, kind) for instrument, unit, kind in INSTRUMENTS]

    assert len(set(names)) == len({instrument for instrument, _, _ in INSTRUMENTS}) == len(names)


@for_every_instrument
def test_the_python_exporter_serves_the_names_and_labels_we_expect(instrument, unit, kind):
    """
    An observable instrument of each name and unit, with every attribute of ours, as it is really scraped.
    """
    client = pytest.importorskip("prometheus_client")
    exporter = pytest.importorskip("opentelemetry.exporter.prometheus")
    registry = client.CollectorRegistry()
    provider = MeterProvider([exporter.PrometheusMetricReader(registry=registry)], shutdown_on_exit=False)
    meter = provider.get_meter("test")
    make = meter.create_observable_counter if kind == "counter" else meter.create_observable_gauge
    make(instrument, [lambda options: [Observation(1.5, dict.fromkeys(catalog.ATTRIBUTES, "x"))]], unit=unit)

    served = [sample for family in registry.collect() for sample in family.samples if sample.name != "target_info"]
    text = client.generate_latest(registry).decode()
    provider.shutdown()

    expected = prometheus_name(instrument, unit, kind, "scrape")
    assert [(expected, 1.5)] == [(sample.name, sample.value) for sample in served]
    assert f"\n{expected}{{" in text
    labels = {prometheus_label(attribute) for attribute in catalog.ATTRIBUTES}
    assert labels == {label for label in served[0].labels if not label.startswith("otel_scope_")}


@pytest.mark.parametrize("total", TOTALS, ids=lambda total: f"{total.name}-{getattr(total, 'tasks', '')}")
def test_the_counter_of_a_total_is_found_by_its_name(total):
    """
    Short for the name, unit and kind that the catalogue knows.
    """
    assert prometheus_name(total.instrument, total.unit, "counter") == counter_name(total.name)
    assert f"acme_{counter_name(total.name)}" == counter_name(total.name, "scrape", "acme")


@pytest.mark.parametrize(
    ("attribute", "label"),
    [
        ("ml.model.name", "ml_model_name"),
        ("ml.segment.value", "ml_segment_value"),
        ("ml.k", "ml_k"),
        ("deployment.environment.name", "deployment_environment_name"),
        ("service.instance-id", "service_instance_id"),
        ("a__b", "a__b"),
    ],
)
def test_labels_have_underscores_for_dots(attribute, label):
    """
    As Prometheus 3.5 was seen to write them.
    """
    assert label == prometheus_label(attribute)


def test_no_two_attributes_of_ours_are_one_label():
    """
    Prometheus would join their values with a semicolon.
    """
    assert len(catalog.ATTRIBUTES) == len({prometheus_label(attribute) for attribute in catalog.ATTRIBUTES})


def test_recorded_series_of_different_things_have_different_names():
    """
    Metrics, bounds and totals share the names of a window.
    """
    things = [
        *(total.name for total in TOTALS),
        *(metric.name + suffix for metric in catalog.METRICS for suffix in ("", *catalog.BOUNDS)),
    ]

    assert "ml_model:error_squared:30m" == recorded_name("error.squared", "30m")
    assert len(set(things)) == len({recorded_name(thing, "1h") for thing in things})


@pytest.mark.parametrize(
    ("duration", "length"),
    [
        ("1s", 1),
        ("90s", 90),
        ("5m", 300),
        ("1h", 3_600),
        ("60m", 3_600),
        ("1h30m", 5_400),
        ("1d", 86_400),
        ("1w", 604_800),
        ("1y", 31_536_000),
        ("1w2d3h4m5s", 788_645),
    ],
)
def test_a_duration_has_the_length_prometheus_gives_it(duration, length):
    """
    A day has 24 hours and a year 365 days, always.
    """
    promql_parser = pytest.importorskip("promql_parser")

    assert length == seconds(duration) == promql_parser.parse_duration(duration).total_seconds()


@pytest.mark.parametrize(
    "duration", ["", "1", "h", "1.5h", "-1h", "1 h", "1H", "1h ", "1month", "1m1h", "\u0661h", "1h\n"]
)
def test_what_is_no_duration_is_refused(duration):
    """
    With what one looks like.
    """
    message = f"A duration is a number and a unit (s, m, h, d, w), such as 30m, 6h or 1h30m; got {duration!r}."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        seconds(duration)


@pytest.mark.parametrize("duration", ["0s", "0h0m"])
def test_no_time_is_refused(duration):
    """
    There is nothing to sum up over it.
    """
    with pytest.raises(ValueError, match=f"^A duration must be longer than 0, got '{duration}'.$"):
        seconds(duration)


def test_label_values_are_quoted_as_promql_reads_them():
    """
    Quotes, backslashes and line ends, read back by a parser.
    """
    promql_parser = pytest.importorskip("promql_parser")
    value = 'a"b\\c\nd{}'

    (matcher,) = promql_parser.parse(selector("up", {"x": value})).matchers.matchers

    assert ("x", value) == (matcher.name, matcher.value)
    assert 'a\\"b\\\\c\\nd{}' == escaped(value)
