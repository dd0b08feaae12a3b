"""
The Collector configuration that we ship, loaded by a real Collector, and between a process and a real store.
"""

from __future__ import annotations

import contextlib
import re
import subprocess

import pytest
import yaml
from backends import COLLECTOR_CONFIG, Store, binary, collector, eventually, victoria_metrics
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from test_stories import Traffic, assert_equal, names_and_values


@pytest.fixture
def stores(tmp_path):
    """Three VictoriaMetrics, each in a folder of its own with room for a collector."""
    with (
        victoria_metrics(folder(tmp_path, "direct")) as direct,
        victoria_metrics(folder(tmp_path, "http")) as by_http,
        victoria_metrics(folder(tmp_path, "grpc")) as by_grpc,
    ):
        yield direct, by_http, by_grpc


def folder(parent, name):
    (parent / name).mkdir()
    return parent / name


def identities(store: Store) -> set[frozenset[tuple[str, str]]]:
    """All Prometheus labels of each of our series, those of the process included."""
    return {frozenset(labels.items()) for labels, _ in store.query('{__name__=~"ml_model_.+"}')}


def test_a_collector_between_changes_neither_names_nor_labels_nor_values(stores, tmp_path):
    """
    One process exports to three stores: directly, and through collectors by HTTP and by gRPC; all answer the same.
    """
    direct, by_http, by_grpc = stores
    traffic = Traffic()
    with collector(tmp_path / "http", by_http) as over_http, collector(tmp_path / "grpc", by_grpc) as over_grpc:
        exporters = [
            HttpExporter(endpoint=f"{direct.url}/opentelemetry/v1/metrics"),
            HttpExporter(endpoint=f"{over_http.http}/v1/metrics"),
            GrpcExporter(endpoint=over_grpc.grpc, insecure=True),
        ]
        provider = MeterProvider(
            [PeriodicExportingMetricReader(exporter, export_interval_millis=500) for exporter in exporters],
            resource=Resource.create({"service.name": "story", "service.instance.id": "worker-7"}),
            shutdown_on_exit=False,
        )
        try:
            traffic.record(provider)

            assert_equal(direct, traffic.expected())
            for through in (by_http, by_grpc):
                assert_equal(through, traffic.expected())
                # A store shows the series of one request one after the other, so wait; then say what differs.
                with contextlib.suppress(AssertionError):
                    eventually(
                        lambda through=through: names_and_values(direct) == names_and_values(through), "the same", 10.0
                    )
                assert names_and_values(direct) == names_and_values(through)
                assert identities(direct) == identities(through)
            assert {"worker-7"} == {dict(labels)["service_instance_id"] for labels in identities(by_grpc)}
        finally:
            provider.shutdown()


def test_the_collector_loads_every_component_of_the_configuration():
    """
    `validate` accepts the file as it is, with no variable set.
    """
    answer = subprocess.run(
        [binary("otelcol"), "validate", f"--config={COLLECTOR_CONFIG}"],
        env={},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (0, "") == (answer.returncode, answer.stderr)


def test_the_collector_starts_without_a_warning(tmp_path):
    """
    Nothing in the configuration is deprecated, or else.
    """
    with collector(tmp_path, Store("http://127.0.0.1:9")) as started:
        said = eventually(
            lambda: "Everything is ready" in (log := started.log.read_text()) and log, "a line in the log"
        )

    levels = {line.split("\t")[1] for line in said.splitlines()}
    assert {"info"} == levels, said


def test_without_variables_the_collector_talks_to_this_machine_only():
    """
    Whoever tries the file as it is opens no port to others, and sends nothing anywhere else.
    """
    configuration = yaml.safe_load(COLLECTOR_CONFIG.read_text())
    protocols = configuration["receivers"]["otlp"]["protocols"]
    endpoints = [protocol["endpoint"] for protocol in protocols.values()]
    endpoints += [exporter["endpoint"] for exporter in configuration["exporters"].values()]

    assert ["127.0.0.1"] * 3 == [
        re.fullmatch(r"\$\{env:\w+:-(?:http://)?([\w.]+):\d+.*\}", endpoint)[1] for endpoint in endpoints
    ]
