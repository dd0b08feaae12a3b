"""configure(): each test in a process of its own, for the global provider can be set only once."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from backends import eventually, get, victoria_metrics
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from test_instruments import run

from otel_model_metrics import configure

SHORT_PROCESS = """
    import logging; logging.basicConfig()
    from otel_model_metrics import BinaryMonitor, configure
    configure("short", {arguments})
    monitor = BinaryMonitor("model", version="1")
    monitor.record_batch([True, True, False], [True, False, False])
"""


def test_a_short_process_is_seen_whole(tmp_path):
    """
    A process that ends before its first export: its last window arrives, and its totals as 0 and then their value.
    """
    with victoria_metrics(tmp_path) as store:
        endpoint = f"{store.url}/opentelemetry"
        output = run(SHORT_PROCESS.format(arguments=f"endpoint={endpoint!r}, resource={{'team': 'ml'}}"))

        assert "" == output
        assert 2 / 3 == pytest.approx(store.number('ml_model_accuracy{service_name="short",team="ml"}'))
        predictions = 'ml_model_predictions_total{ml_class_predicted="positive"}'
        eventually(lambda: 2 == store.number(predictions), "the totals, which are 0 in the first export")
        get(f"{store.url}/internal/force_flush")
        exported = get(f"{store.url}/api/v1/export", **{"match[]": predictions})
        assert [0, 2] == json.loads(exported)["values"]


def test_the_endpoint_may_come_from_the_environment(tmp_path):
    """
    OTEL_* variables fill in what the call leaves out.
    """
    with victoria_metrics(tmp_path) as store:
        run(
            SHORT_PROCESS.format(arguments=""),
            OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=f"{store.url}/opentelemetry/v1/metrics",
            OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test",
        )
        assert 3 == store.number('ml_model_window_rows{service_name="short",deployment_environment_name="test"}')


def test_grpc_is_spoken_too():
    """
    protocol="grpc" reaches a gRPC receiver.
    """
    received = []

    class Receiver(metrics_service_pb2_grpc.MetricsServiceServicer):
        def Export(self, request, context):  # noqa: N802 - the name is gRPC's
            received.append(request)
            return metrics_service_pb2.ExportMetricsServiceResponse()

    server = grpc.server(ThreadPoolExecutor(1))
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(Receiver(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        run(SHORT_PROCESS.format(arguments=f"endpoint='http://127.0.0.1:{port}', protocol='grpc', interval=0.5"))
        names = eventually(
            lambda: {
                m.name for r in received for rm in r.resource_metrics for sm in rm.scope_metrics for m in sm.metrics
            },
            "an export over gRPC",
        )
    finally:
        server.stop(None)

    assert {"ml.model.accuracy", "ml.model.outcomes", "ml.model.window.rows"} <= names


def test_an_existing_provider_is_left_alone_and_said_so():
    """
    A service that has OpenTelemetry keeps its own pipeline.
    """
    script = """
        import logging; logging.basicConfig()
        from opentelemetry import metrics
        from opentelemetry.sdk.metrics import MeterProvider
        from otel_model_metrics import configure
        mine = MeterProvider()
        metrics.set_meter_provider(mine)
        print(configure("service") is mine)
    """
    output = run(script)

    assert "True\n" in output
    assert "configure() leaves the MeterProvider alone that is already set (MeterProvider)" in output


def test_delta_temporality_is_warned_of():
    """
    Prometheus-like stores would drop every total in silence.
    """
    output = run(
        SHORT_PROCESS.format(arguments="endpoint='http://127.0.0.1:9'") + "    import os; os._exit(0)\n",
        OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE="delta",
    )

    assert "asks for delta temporality. Prometheus-like stores drop such counters" in output


@pytest.mark.alone  # the export at exit has ten seconds for thousands of series
def test_many_segments_and_classes_are_not_merged_by_the_sdk(tmp_path):
    """
    configure() lifts the SDK's limit of 2,000 attribute sets an instrument.
    """
    script = """
        from otel_model_metrics import BinaryMonitor, configure
        configure("wide", endpoint={endpoint!r})
        monitor = BinaryMonitor("model", max_segment_values=3000)
        monitor.record_batch([True] * 2500, [True] * 2500, segments={{"user": [str(n) for n in range(2500)]}})
    """
    with victoria_metrics(tmp_path) as store:
        run(script.format(endpoint=f"{store.url}/opentelemetry"))

        assert 2501 == store.number("count(ml_model_accuracy)")
        outcomes = 'sum(ml_model_outcomes_total{ml_segment_name="user"})'
        eventually(lambda: 2500 == store.number(outcomes), "the totals, which are 0 in the first export")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"protocol": "http/json"}, r"^protocol must be one of http/protobuf, grpc, got 'http/json'\.$"),
        ({"interval": 0}, r"^interval must be seconds > 0, got 0\.$"),
        ({"interval": float("nan")}, r"^interval must be seconds > 0, got nan\.$"),
    ],
)
def test_wrong_arguments_raise_at_once(arguments, message):
    """
    Misuse is said where it happens.
    """
    with pytest.raises(ValueError, match=message):
        configure("service", **arguments)
