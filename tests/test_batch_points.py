"""
Points with their own time: totals born at zero, oldest first, the same ones again, and no refusal that goes unsaid.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backends import free_port
from click.testing import CliRunner, Result
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from otel_model_metrics import catalog
from otel_model_metrics.batch import Evaluation, Job, evaluate, openmetrics, sending
from otel_model_metrics.batch import points as of_points
from otel_model_metrics.batch.identity import instance_of, resource_of
from otel_model_metrics.batch.points import points
from otel_model_metrics.commands import group

HOUR = 3600
START = 1_790_000_000 // HOUR * HOUR
OPTIONS = ("--task", "binary", "--model", "fraud", "--prediction", "predicted", "--segment", "country")


class Receiver:
    """An OTLP receiver that keeps what it gets, and answers as told: status and body, the last one for ever."""

    def __init__(self, *answers: tuple[int, bytes]) -> None:
        self.answers = list(answers) or [(200, b"")]
        self.requests: list[ExportMetricsServiceRequest] = []
        self.paths: list[str] = []

    def points(self, at: int | None = None) -> list[tuple[str, dict[str, str], Any, str]]:
        """Instrument, attributes, point and kind of everything that came, or of one request."""
        return [
            (metric.name, {one.key: one.value.string_value for one in point.attributes}, point, kind)
            for request in (self.requests if at is None else [self.requests[at]])
            for resource in request.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for kind in [metric.WhichOneof("data")]
            for point in getattr(metric, kind).data_points
        ]


@contextlib.contextmanager
def receiving(*answers: tuple[int, bytes]) -> Iterator[tuple[str, Receiver]]:
    receiver = Receiver(*answers)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
            receiver.requests.append(ExportMetricsServiceRequest.FromString(body))
            receiver.paths.append(self.path)
            status, answer = receiver.answers[min(len(receiver.requests), len(receiver.answers)) - 1]
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", receiver
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def written(hours: list[int], rows: int = 40, start: float = START) -> None:
    """Some rows in each of these hours."""
    random = np.random.default_rng(0)
    count = rows * len(hours)
    label = random.integers(0, 2, count)
    columns = {
        "predicted": np.where(random.random(count) < 0.8, label, 1 - label),
        "label": pa.array(
            [None if draw < 0.1 else int(one) for draw, one in zip(random.random(count), label, strict=True)]
        ),
        "country": random.choice(["DE", "FR"], count),
        "at": start + np.repeat(hours, rows) * HOUR + random.uniform(0, HOUR, count),
    }
    pq.write_table(pa.table(columns), "rows.parquet")


def job(**settings: Any) -> Job:
    given = {"time": "at", "model": "fraud", "segments": ("country",), "objectives": {"f1": 0.7}}
    return Job("binary", "predicted", **{**given, **settings})


def evaluated(**settings: Any) -> Evaluation:
    return evaluate("rows.parquet", job(**settings))


def command(*arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(
        group, ["evaluate", "rows.parquet", *OPTIONS, *arguments], env={"COLUMNS": "240", **(env or {})}
    )


# What the points are


def test_totals_are_born_at_zero_and_rise_to_what_all_rows_are():
    """
    Just after a window has begun they are what they were before; when it ends, its rows are in them.
    """
    written([0, 1, 3])
    evaluation = evaluated()

    found = {family.name: family for family in points(evaluation).families}

    begins = [START + hour * HOUR + 0.001 for hour in range(4)]
    ends = [START + hour * HOUR + HOUR for hour in range(4)]
    for family in found.values():
        for series in family.series:
            assert (np.diff(series.micros) > 0).all()
            if family.kind == "counter":
                assert 0.0 == series.values[0]
                assert (np.diff(series.values) >= 0).all()
                assert {time / 1e6 for time in series.micros.tolist()} <= {*begins, *ends}
            else:
                assert {time / 1e6 for time in series.micros.tolist()} <= set(ends)
    whole = [s for s in found["ml.model.outcomes"].series if catalog.SEGMENT_NAME not in s.attributes]
    assert evaluation.overall.rows == sum(series.values[-1] for series in whole)
    assert evaluation.predictions == sum(
        series.values[-1]
        for series in found["ml.model.predictions"].series
        if catalog.SEGMENT_NAME not in series.attributes
    )
    (matched,) = found["ml.model.labels"].series
    assert ("matched", evaluation.overall.rows) == (matched.attributes[catalog.LABEL_OUTCOME], matched.values[-1])


def test_the_window_between_two_others_is_silent():
    """
    It has no rows, and its objective; metrics have no value there.
    """
    written([0, 2])

    found = {family.name: family for family in points(evaluated()).families}

    silent = round((START + 2 * HOUR) * 1e6)
    value_then = {
        name: [
            value
            for series in family.series
            for at, value in zip(series.micros, series.values, strict=True)
            if at == silent
        ]
        for name, family in found.items()
        if family.kind == "gauge"
    }
    assert {0.0} == set(value_then["ml.model.window.rows"])
    assert [0.7] == value_then["ml.model.objective"]
    assert [] == value_then["ml.model.f1"]


def test_windows_far_apart_are_not_joined_by_thousands_of_silent_ones():
    """
    A wrong date in one row must not make a million points.
    """
    written([0, of_points.MOST_WINDOWS + 7])

    assert 2 == len(points(evaluated()).ends)


def test_rejected_rows_and_crowded_segments_are_counted():
    """
    By the end of the last window; their totals are born at zero as well.
    """
    written([0, 1])
    table = pq.read_table("rows.parquet")
    labels = [7, 9, *table["label"].to_pylist()[2:]]
    pq.write_table(table.set_column(1, "label", pa.array(labels)), "rows.parquet")

    evaluation = evaluated(max_segment_values=1)
    found = {family.name: family for family in points(evaluation).families}

    (reason,) = evaluation.rejected
    (rejected,) = found["ml.model.rejected"].series
    assert (reason, [0.0, 0.0, 0.0, 2.0]) == (rejected.attributes[catalog.REJECT_REASON], rejected.values.tolist())
    (overflowed,) = found["ml.model.segments.overflowed"].series
    assert "country" == overflowed.attributes[catalog.SEGMENT_NAME]
    assert 0 == overflowed.values[0] < overflowed.values[-1] < evaluation.predictions


def test_what_became_of_labels_in_other_files_is_counted():
    """
    As it is of labels that come late to a service.
    """
    written([0, 1])
    table = pq.read_table("rows.parquet")
    table = table.append_column("id", pa.array(range(table.num_rows)))
    pq.write_table(table.drop_columns("label"), "rows.parquet")
    pq.write_table(pa.table({"id": [*range(5, 30), 29, 10_000, 31], "label": [0] * 26 + [1, None]}), "labels.parquet")

    evaluation = evaluate("rows.parquet", job(id="id"), labels="labels.parquet")
    found = {family.name: family for family in points(evaluation).families}

    counted = {
        one.attributes[catalog.LABEL_OUTCOME]: one.values[[0, -1]].tolist() for one in found["ml.model.labels"].series
    }
    assert [0.0, 25.0] == counted["matched"]
    assert [0.0, 1.0] == counted["unmatched"]
    assert [0.0, 1.0] == counted["duplicate"]
    assert "unlabelled" not in counted  # which is said of predictions


def test_points_need_a_time():
    """
    Of a job without times it must be said when it was.
    """
    written([0])

    with pytest.raises(ValueError, match=r"Points need times: the job has no column of them, time=, and there is"):
        points(evaluated(time=None))


def test_without_a_usable_row_there_is_no_point():
    """
    Nor a request.
    """
    pq.write_table(
        pa.table({name: pa.array([], pa.int64()) for name in ("predicted", "label", "country", "at")}), "rows.parquet"
    )

    assert 0 == points(evaluated()).count


# How they are sent


def test_requests_are_of_whole_windows_oldest_first(monkeypatch):
    """
    None has more points than it may, and none reaches back behind another.
    """
    monkeypatch.setattr(sending, "MOST_POINTS", 250)
    written(list(range(8)))
    found = points(evaluated())

    with receiving() as (url, receiver):
        sent = sending.send(found, resource_of(None, ["rows.parquet"], job()), endpoint=url)

    assert sending.Sent(found.count, found.count, START + 8 * HOUR) == sent
    assert found.count == len(receiver.points())
    assert len(receiver.requests) > 2
    assert {"/v1/metrics"} == set(receiver.paths)
    before = 0
    for at in range(len(receiver.requests)):
        times = [point.time_unix_nano for _, _, point, _ in receiver.points(at)]
        assert len(times) <= 250
        assert before < min(times)
        before = max(times)
        assert 0 == before % (HOUR * 10**9)  # a window's end


def test_totals_are_cumulative_monotonic_and_began_with_the_first_window():
    """
    So that stores which heed the start time see one run.
    """
    written([0, 1])

    with receiving() as (url, receiver):
        sending.send(points(evaluated()), resource_of(None, ["rows.parquet"], job()), endpoint=url)

    sums = [(name, point) for name, _, point, kind in receiver.points() if kind == "sum"]
    assert {START * 10**9} == {point.start_time_unix_nano for _, point in sums}
    (outcomes,) = {
        (metric.sum.is_monotonic, metric.sum.aggregation_temporality)
        for metric in receiver.requests[0].resource_metrics[0].scope_metrics[0].metrics
        if metric.name == "ml.model.outcomes"
    }
    assert (True, 2) == outcomes


def test_a_second_run_sends_the_same_bytes():
    """
    Same series, same times, same values; also under the name that the files were given in another order.
    """
    written([0, 1, 2])
    with receiving() as (url, receiver):
        for _ in range(2):
            result = command("--time", "at", "--otlp", "--endpoint", url)
            assert 0 == result.exit_code, result.output

    half = len(receiver.requests) // 2
    assert receiver.requests[:half] == receiver.requests[half:]
    assert instance_of(["a", "b"], job()) == instance_of([Path("b"), "./a"], job()) != instance_of(["a"], job())


def test_who_sends_can_be_said(monkeypatch):
    """
    By the option, or as every service says it.
    """
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=nightly,deployment.environment.name=prod")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "scoring")

    attributes = resource_of(None, ["a"], job()).attributes

    assert ("nightly", "scoring") == (attributes["service.instance.id"], attributes["service.name"])
    assert "prod" == attributes["deployment.environment.name"]
    assert "mine" == resource_of("mine", ["a"], job()).attributes["service.instance.id"]


# What receivers refuse. The texts are those of Prometheus 3.5.

REFUSALS = [
    pytest.param(400, b"out of order sample", "storage.tsdb.out_of_order_time_window to ", id="out of order"),
    pytest.param(400, b"out of bounds", "promtool tsdb create-blocks-from openmetrics FILE", id="out of bounds"),
    pytest.param(500, b"too old sample", "The store does not take points this old: the first window begins", id="old"),
    pytest.param(
        400,
        b"duplicate sample for timestamp 1790003600000; overrides not allowed",
        "were sent before with other values, by other files or options. Send these under another name with --instance",
        id="other values",
    ),
    pytest.param(404, b"404 page not found", "Is that an OTLP receiver?", id="no receiver"),
    pytest.param(400, b"unsupported path requested", "http://localhost:8428/opentelemetry", id="wrong address"),
    pytest.param(403, b"who are you", "see OTEL_EXPORTER_OTLP_HEADERS for who we are", id="not us"),
    pytest.param(400, b"no", "Is the receiver running, and is --endpoint", id="anything else"),
]


@pytest.mark.parametrize(("status", "body", "advice"), REFUSALS)
def test_a_refusal_stops_everything_and_says_what_to_do(monkeypatch, status, body, advice):
    """
    What was accepted before is told, with the window up to which everything is there. Nothing is sent after it.
    """
    monkeypatch.setattr(sending, "MOST_POINTS", 100)
    written(list(range(4)))

    with receiving((200, b""), (200, b""), (status, body)) as (url, receiver):
        result = command("--time", "at", "--otlp", "--endpoint", url)

    assert 1 == result.exit_code
    assert 3 == len(receiver.requests)
    assert body.decode() in result.stderr
    assert advice in result.stderr
    accepted = sum(len(receiver.points(at)) for at in range(2))
    assert f"Accepted before that: {accepted:,} of {points(evaluated(objectives={})).count:,} points, all windows " in (
        result.stderr
    )


def test_the_window_that_prometheus_needs_is_long_enough():
    """
    From the first window to now.
    """
    days = 12
    written([0], start=(time.time() - days * 86400) // HOUR * HOUR)

    with receiving((400, b"out of bounds")) as (url, _):
        result = command("--time", "at", "--otlp", "--endpoint", url)

    assert f"storage.tsdb.out_of_order_time_window to {days + 2}d" in result.stderr
    assert "Accepted before that: 0 of" in result.stderr


def test_points_rejected_in_an_accepted_request_are_a_refusal():
    """
    Receivers may take a part of a request, and exporters do not tell.
    """
    written([0])
    answer = ExportMetricsServiceResponse()
    answer.partial_success.rejected_data_points = 17
    answer.partial_success.error_message = "limit of series"

    with receiving((200, answer.SerializeToString())) as (url, _):
        result = command("--time", "at", "--otlp", "--endpoint", url)

    assert 1 == result.exit_code
    assert "Sending stopped: 17 points of a request were rejected: limit of series." in result.stderr


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_nobody_there_is_a_refusal(protocol):
    """
    By either protocol, after the time the exporter's variables say.
    """
    written([0])

    result = command(
        *("--time", "at", "--otlp", "--endpoint", f"http://127.0.0.1:{free_port()}", "--protocol", protocol),
        env={"OTEL_EXPORTER_OTLP_TIMEOUT": "1"},
    )

    assert 1 == result.exit_code
    assert "Sending stopped: " in result.stderr
    assert "Is the receiver running, and is --endpoint (OTEL_EXPORTER_OTLP_ENDPOINT) its address?" in result.stderr


def test_times_before_1970_cannot_be_sent():
    """
    OTLP has none.
    """
    written([0], start=-5 * HOUR)

    result = command("--time", "at", "--otlp")

    assert 1 == result.exit_code
    assert "OTLP has no times before 1970. Is that the right column of times?" in result.stderr


def test_points_older_than_a_month_come_with_a_warning():
    """
    Some stores accept them and drop them.
    """
    written([0], start=START - 40 * 86400)

    with receiving() as (url, _):
        result = command("--time", "at", "--otlp", "--endpoint", url)

    assert 0 == result.exit_code
    assert "Note: Some stores accept points that are older than they keep them" in result.stdout


# A job of this moment


def test_a_live_job_is_one_window_that_ends_now():
    """
    Its totals are zero when it begins, which is sent by itself: a live request has no old points.
    """
    written([0, 1])
    began = time.time()

    with receiving() as (url, receiver):
        result = command("--now", "--otlp", "--endpoint", url, "--time", "at")

    assert 0 == result.exit_code, result.output
    first, second = (receiver.points(at) for at in range(2))
    assert {0.0} == {point.as_double for _, _, point, _ in first}
    assert {"sum"} == {kind for *_, kind in first}
    (zero,), (now,) = ({point.time_unix_nano / 1e9 for _, _, point, _ in part} for part in (first, second))
    assert began - 0.01 <= zero < now <= time.time()
    names = [name for name, *_ in second]
    assert {"ml.model.f1", "ml.model.window.rows", "ml.model.outcomes", "ml.model.predictions"} <= set(names)


def test_a_live_job_that_misses_its_objective_says_so_to_the_pipeline_also_when_nobody_listens():
    """
    The verdict comes before the delivery.
    """
    written([0, 1], rows=300)

    with receiving((400, b"no")) as (url, _):
        result = command("--now", "--otlp", "--endpoint", url, "--objective", "accuracy=0.99")

    assert 3 == result.exit_code
    assert "Objective missed: accuracy is" in result.stdout
    assert "Sending stopped: " in result.stderr


# OpenMetrics


def test_openmetrics_has_every_point_under_prometheus_names():
    """
    As an independent parser reads it; names of models and segments may have any character.
    """
    written([0, 1])
    table = pq.read_table("rows.parquet")
    countries = ['a"b\\c\nd' if one == "DE" else "žluť" for one in table["country"].to_pylist()]
    pq.write_table(table.set_column(2, "country", pa.array(countries)), "rows.parquet")

    result = command("--time", "at", "--openmetrics", "history.txt", "--instance", "mine")

    assert 0 == result.exit_code, result.output
    found = points(evaluated(objectives={}))
    assert f"Wrote {found.count:,} points to history.txt." in result.stdout
    text = Path("history.txt").read_text(encoding="utf-8")
    assert text.endswith("# EOF\n")
    samples = {
        (sample.name, frozenset(sample.labels.items()), round(float(sample.timestamp) * 1000)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found.count == len(samples)
    for family in found.families:
        name = {"ml.model.window.age": "ml_model_window_age_seconds"}.get(family.name, family.name.replace(".", "_"))
        name += "_total" if family.kind == "counter" else ""
        for series in family.series:
            labels = {key.replace(".", "_"): value for key, value in series.attributes.items()}
            labels |= {"job": "otel-model-metrics-evaluate", "instance": "mine"}
            for micros, value in zip(series.micros.tolist(), series.values.tolist(), strict=True):
                assert samples[name, frozenset(labels.items()), micros // 1000] == value


def test_a_file_that_cannot_be_finished_leaves_the_old_one(monkeypatch):
    """
    A half-written history would be loaded as a whole one.
    """
    written([0])
    Path("history.txt").write_text("old")
    monkeypatch.setattr(openmetrics, "escaped", lambda text: 1 / 0)

    result = command("--time", "at", "--openmetrics", "history.txt")

    assert isinstance(result.exception, ZeroDivisionError)
    assert "old" == Path("history.txt").read_text()
    assert ["history.txt", "rows.parquet"] == sorted(path.name for path in Path().iterdir())


# Options


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--otlp",), "Points need a time: name the column of times with --time, or give --now for this moment."),
        (("--openmetrics", "x"), "Points need a time: name the column of times with --time, or give --now"),
        (("--now",), "--now passes judgement by objectives, or sends what it finds: give an objective"),
        (("--endpoint", "http://x"), "--endpoint and --protocol say where --otlp sends points: give --otlp too."),
        (("--instance", "a"), "--instance names the series of --otlp and --openmetrics: give one of these too."),
        (("--time", "at", "--openmetrics", "no/where.txt"), "there is no folder no."),
        (("--html", "no/where.html"), "there is no folder no."),
    ],
)
def test_options_that_do_not_go_together_are_told_before_anything_is_read(arguments, message):
    """
    There is no file to be read yet.
    """
    result = command(*arguments)

    assert 2 == result.exit_code
    assert message in result.stderr


def test_an_unknown_protocol_of_the_environment_is_told():
    """
    Before hours of reading.
    """
    result = command("--time", "at", "--otlp", env={"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"})

    assert 2 == result.exit_code
    assert "protocol must be one of http/protobuf, grpc, got 'http/json'." in result.stderr


def test_json_on_standard_output_stays_json_when_points_are_sent():
    """
    What became of the points is said elsewhere.
    """
    written([0])

    with receiving() as (url, _):
        result = command("--time", "at", "--otlp", "--endpoint", url, "--json", "-")

    assert "fraud" == json.loads(result.stdout)["model"]
    assert "Sent " in result.stderr
