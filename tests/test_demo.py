"""The demonstration and the command line: a whole run, its receiver, its words, and what is said without the extra."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator

import numpy as np
import pytest
from google.rpc.status_pb2 import Status
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

from otel_model_metrics import BinaryMonitor, MulticlassMonitor, RankingMonitor, Window, __version__
from otel_model_metrics.demo import view
from otel_model_metrics.demo.models import MODELS
from otel_model_metrics.demo.receiver import Receiver, Store

DEMO = [sys.executable, "-m", "otel_model_metrics", "demo"]
MODEL_NAMES = {"tumours", "digits", "diabetes", "image-search"}


def environment(**more: str) -> dict[str, str]:
    """The variables of this process, without those that would change what the demo says."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "FORCE_COLOR"))}
    return {**kept, **more}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


def post(url: str, body: bytes, **headers: str) -> tuple[int, str, bytes]:
    """Status, content type and body of the answer."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, body, {"Content-Type": "application/x-protobuf", **names})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as response:
            return response.status, response.headers["Content-Type"], response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read()


def a_request(value: float) -> bytes:
    request = ExportMetricsServiceRequest()
    metric = request.resource_metrics.add().scope_metrics.add().metrics.add(name="ml.model.f1")
    point = metric.gauge.data_points.add(as_double=value)
    point.attributes.add(key="ml.model.name").value.string_value = "fraud"
    return request.SerializeToString()


# --- A whole run -----------------------------------------------------------------------------------


def test_the_demo_ends_by_itself_and_finds_every_disturbed_model(receiver):
    """
    Without a terminal: plain lines, a summary in which each model was well and now is not and most labels have come,
    exit 0, and the same metrics at the endpoint the environment names.
    """
    endpoint = receiver.endpoint.removesuffix("/v1/metrics")

    done = subprocess.run(
        [*DEMO, "--seconds", "6"],
        env=environment(OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, PYTHONIOENCODING="ascii"),
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert (0, "") == (done.returncode, done.stderr)
    assert "\x1b" not in done.stdout
    live, _, summary = done.stdout.partition("verdict")
    for name in MODEL_NAMES:
        seen = [line for line in live.splitlines() if f"{name}: " in line]
        assert any("healthy" in line and "meets objective" in line for line in seen), live
        words = "WORSE THAN OBJECTIVE, surely" if name == "diabetes" else "BELOW OBJECTIVE, surely"
        assert any(line.startswith(name) and line.rstrip().endswith(words) for line in summary.splitlines()), summary
        labels = re.search(rf"^{name}: labels ([0-9]+) %, delay [0-9.]+ s \(median\)$", summary, re.M)
        assert labels, summary
        assert 50 < int(labels[1]) < 100
    assert {state.name for state in view.read(receiver.store.current())} == MODEL_NAMES


def test_the_demo_stops_at_ctrl_c_and_says_so():
    """
    Interrupted: no traceback, and the exit code of an interrupted program.
    """
    with subprocess.Popen(
        [*DEMO, "--seconds", "24"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell lets what it starts in the background ignore the signal, and so whatever that starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if " s  healthy" in line)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)

    assert (130, "") == (process.returncode, errors)
    assert "Stopped before the models were disturbed." in output


def test_on_a_terminal_a_view_is_drawn_which_tells_of_an_endpoint_that_does_not_answer():
    """
    All models with their bounds and verdicts, drawn again and again; the endpoint hinders nothing and is noted.
    """
    pty = pytest.importorskip("pty", reason="there are no pseudo-terminals on this system")
    ours, theirs = pty.openpty()
    variables = {"TERM": "xterm", "COLUMNS": "100", "LINES": "40", "PYTHONIOENCODING": "utf-8"}
    with subprocess.Popen(
        [*DEMO, "--seconds", "4"],
        env=environment(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", **variables),
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        output = "".join(until_closed(ours))
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)

    assert 0 == process.returncode, plain
    assert plain.count("exports received") > 4
    for name in MODEL_NAMES:
        assert re.search(rf"{name} version 1.0, [0-9]+ rows in the window, labels [0-9]+ %, delay [0-9.]+ s\s", plain)
    assert re.search(r"rmse +[0-9.]+ \[[0-9.]+, [0-9.]+\] +<=65.0 +WORSE THAN OBJECTIVE, surely +[▁-█]+", plain)
    assert "accuracy by scanner: worst mobile" in plain
    assert "note: " in plain
    assert "Traceback" not in plain


def until_closed(terminal: int) -> Iterator[str]:
    """What is written to a pseudo-terminal; that the other end closes is an error on Linux, an empty read elsewhere."""
    decode = codecs.getincrementaldecoder("utf-8")().decode
    with open(terminal, "rb", buffering=0) as file, contextlib.suppress(OSError):
        while piece := file.read(65536):
            yield decode(piece)


@pytest.mark.parametrize("kind", MODELS)
def test_labels_of_each_model_come_after_a_delay_of_its_own_and_some_never(kind, exports, clock):
    """
    None with the predictions, half of them soon, the last within three times the delay; a few percent are missing.
    """
    model = kind(Window(age=10.0), exports.provider, seconds=40.0, clock=clock)
    begun = clock.now

    def matched(after: float) -> int:
        """Labels that have come so many seconds after the predictions."""
        clock.now = begun + after
        model.deliver()
        return model.monitor.snapshot().labels["matched"]

    model.serve(np.random.default_rng(1), False, 2000)

    delay = kind.delay * 40.0
    all_of_them = pytest.approx(2000 * (1 - kind.never), rel=0.02)
    assert 3 * delay == pytest.approx(model.longest_delay)
    assert 0 == matched(after=0.0)
    assert pytest.approx(1000 * (1 - kind.never), rel=0.1) == matched(after=0.64 * delay)
    assert all_of_them == matched(after=3 * delay)
    assert all_of_them == matched(after=3 * delay + 1)
    assert pytest.approx(1 - kind.never, rel=0.02) == model.monitor.snapshot().value("label.coverage")


@pytest.mark.parametrize("kind", MODELS)
def test_each_model_meets_its_objectives_until_it_is_disturbed(kind, exports, clock):
    """
    On held-out data every objective is met, with room to spare for the bounds; disturbed none is.
    """
    model = kind(Window(age=2.0), exports.provider, seconds=40.0, clock=clock)
    rng = np.random.default_rng(1)

    def verdicts(disturbed: bool) -> list[bool]:
        model.serve(rng, disturbed, 500)
        clock.tick(model.longest_delay + 1.0)
        model.deliver()
        snapshot = model.monitor.snapshot()
        assert (True, 0) == (400 < snapshot.rows < 500, sum(snapshot.rejected.values()))
        assert snapshot.rows / 500 == snapshot.value("label.coverage")
        return [
            view.verdict(view.MetricState(name, better(name), value(snapshot, name), None, level, (), ())).good
            for name, level in snapshot.objectives.items()
        ]

    def better(name: str) -> str:
        return "lower" if name == "rmse" else "higher"

    def value(snapshot, name: str) -> float:
        return snapshot.value("ndcg_at_k" if name.startswith("ndcg") else name)

    assert {True} == set(verdicts(disturbed=False))
    assert {False} == set(verdicts(disturbed=True))


# --- The receiver ----------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip, Compression.Deflate])
def test_the_receiver_understands_the_real_exporter(receiver, compression):
    """
    What a monitor exports through OpenTelemetry arrives, however it is compressed.
    """
    exporter = OTLPMetricExporter(endpoint=receiver.endpoint, compression=compression)
    provider = MeterProvider([PeriodicExportingMetricReader(exporter)], shutdown_on_exit=False)
    monitor = BinaryMonitor("fraud", objectives={"accuracy": 0.9}, meter_provider=provider)
    monitor.record_batch([True, True, False], [True, False, False])

    provider.force_flush()
    provider.shutdown()

    (state,) = view.read(receiver.store.current())
    assert ("fraud", "unversioned", 3) == (state.name, state.version, state.rows)
    assert (2 / 3, 0.9) == (pytest.approx(state.metrics[0].value), state.metrics[0].objective)


def test_the_receiver_answers_as_the_specification_asks(receiver):
    """
    A good request: 200, protobuf, an empty response, which says that nothing was refused.
    """
    status, kind, body = post(receiver.endpoint, a_request(0.5))

    assert (200, "application/x-protobuf") == (status, kind)
    assert not ExportMetricsServiceResponse.FromString(body).HasField("partial_success")
    assert [0.5] == [series.value for series in receiver.store.current()]


@pytest.mark.parametrize(
    ("body", "headers", "path", "status", "message"),
    [
        (b"garbage", {}, "", 400, "the body is no ExportMetricsServiceRequest"),
        (b"garbage", {"Content_Encoding": "gzip"}, "", 400, "the body is not compressed with gzip"),
        (
            gzip.compress(b"cut off", mtime=0)[:-4],  # the case is named after it
            {"Content_Encoding": "gzip"},
            "",
            400,
            "the body ends before its gzip stream",
        ),
        (
            gzip.compress(bytes(65 * 2**20), mtime=0),
            {"Content_Encoding": "gzip"},
            "",
            413,
            "a request may have 67108864 bytes",
        ),
        (b"", {"Content_Encoding": "br"}, "", 415, "Content-Encoding must be gzip, deflate or identity, got br."),
        (b"{}", {"Content_Type": "application/json"}, "", 415, "Content-Type must be application/x-protobuf"),
        (b"", {}, "/elsewhere", 404, "metrics are received at /v1/metrics, got /v1/metrics/elsewhere."),
    ],
)
def test_the_receiver_refuses_what_it_cannot_read(receiver, body, headers, path, status, message):
    """
    With the status that stops an exporter from trying again, and a protobuf Status that says why; and then goes on.
    """
    got, kind, answer = post(receiver.endpoint + path, body, **headers)

    assert (status, "application/x-protobuf") == (got, kind)
    assert Status.FromString(answer).message.startswith(message)
    assert 200 == post(receiver.endpoint, a_request(0.5))[0]
    assert 1 == receiver.store.exports


def test_a_series_that_is_no_longer_exported_is_not_shown():
    """
    Undefined is absent: yesterday's value is not today's. When it comes back, its history is still there.
    """
    store = Store(keep=2)
    f1, recall = ("f1", {"a": "b"}, 0.5), ("recall", {"a": "b"}, 0.4)
    store.add([f1, recall])
    store.add([f1])

    assert ["f1"] == [series.name for series in store.current()]
    store.add([("f1", {"a": "b"}, 0.7), recall])
    assert {"f1": (0.5, 0.7), "recall": (0.4, 0.4)} == {one.name: one.history for one in store.current()}


# --- The words -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("better", "value", "bounds", "words"),
    [
        ("higher", 0.9, (0.85, 0.95), "meets objective, surely"),
        ("higher", 0.9, (0.75, 0.95), "meets objective"),
        ("higher", 0.7, (0.60, 0.79), "BELOW OBJECTIVE, surely"),
        ("higher", 0.7, (0.60, 0.85), "BELOW OBJECTIVE"),
        ("higher", 0.7, None, "BELOW OBJECTIVE"),
        ("lower", 0.7, (0.60, 0.79), "meets objective, surely"),
        ("lower", 0.7, (0.60, 0.85), "meets objective"),
        ("lower", 0.9, (0.85, 0.95), "WORSE THAN OBJECTIVE, surely"),
        ("lower", 0.9, (0.75, 0.95), "WORSE THAN OBJECTIVE"),
    ],
)
def test_the_verdict_is_in_words_and_knows_which_way_is_better(better, value, bounds, words):
    """
    Against an objective of 0.8; "surely" where the bound, too, is on that side.
    """
    said = view.verdict(view.MetricState("metric", better, value, bounds, 0.8, (value,), ()))

    assert view.Verdict(words, good=words.startswith("meets")) == said


def received(exports) -> Store:
    """A store that has received what an in-memory reader collects."""
    store = Store()
    store.add((name, dict(key), value) for name, points in exports.collect().items() for key, value in points.items())
    return store


def test_the_view_shows_objectives_first_and_the_worst_segment(make, exports):
    """
    Objectives find the variant they belong to - the cut-off, the macro average - and segments are sorted by badness.
    """
    search = make(RankingMonitor, "search", k=[1, 3], objectives={"ndcg_at_3": 0.7})
    species = make(MulticlassMonitor, "species", classes=["cat", "dog"], objectives={"f1": 0.6})
    for place, label in (("away", "a"), ("home", "b"), ("home", "z")):
        search.record(["a", "b", "c"], label, segments={"from": place})
        species.record("cat", "cat" if label == "a" else "dog", segments={"from": place})

    of_search, of_species = view.read(received(exports).current())

    assert ("search", 3) == (of_search.name, of_search.rows)
    assert ("ndcg@3", 0.7) == (of_search.metrics[0].name, of_search.metrics[0].objective)
    assert [("home", 2), ("away", 1)] == [(one.place, one.rows) for one in of_search.metrics[0].segments]
    assert "ndcg@3 by from: worst home 0.315 (2 rows), away 1.000 (1 row)" == view.segments_in_words(of_search)
    assert ("f1", 0.6, 0.25) == (
        of_species.metrics[0].name,
        of_species.metrics[0].objective,
        of_species.metrics[0].value,
    )


def test_the_view_shows_how_many_labels_have_come_and_how_long_they_took(make, exports, clock):
    """
    Three of four predictions have theirs, half of them within two seconds; without late labels nothing is said of it.
    """
    late, early = make(BinaryMonitor, "late", window=Window(age=60.0), ttl=60.0), make(BinaryMonitor, "now")
    for id in range(4):
        late.record_prediction(id, True)
    for id in range(3):
        clock.tick(1.0)
        late.record_label(id, True)
    early.record(True, True)

    of_late, of_early = view.read(received(exports).current())

    assert (0.75, 2.0) == (of_late.coverage, of_late.delay)
    assert (None, None) == (of_early.coverage, of_early.delay)
    assert "labels 75 %, delay 2 s" == view.labels_in_words(of_late)
    assert "no labels due yet" == view.labels_in_words(of_early)


def test_what_is_said_of_labels_fits_a_terminal_of_80_characters():
    """
    Also for the longest name, all labels, and a delay of minutes.
    """
    model = view.ModelState("image-search", "1.0", 500, coverage=1.0, delay=123.4, metrics=())

    text = view.screen([model], view.Moment("healthy", 1.0, 4.0, 1), 80, 24, unicode=True).plain

    assert "image-search version 1.0, 500 rows in the window, labels 100 %, delay 123 s" in text.splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 60), (40, 10)])
def test_the_screen_fits_the_terminal(make, exports, width, height):
    """
    No line is wider, and with four models there are no more lines than 24 if the terminal has that many.
    """
    for name in ("one", "two", "three", "four"):
        make(BinaryMonitor, name, objectives={"f1": 0.9}).record(True, True, segments={"country": "DE"})
    moment = view.Moment("disturbed", 30.0, 40.0, 30, note="something that was logged " * 10)

    text = view.screen(view.read(received(exports).current()), moment, width, height, unicode=True).plain

    assert max(len(line) for line in text.splitlines()) <= width
    assert len(text.splitlines()) <= max(height, 4 + 3 * 4)


def test_a_sparkline_spans_the_whole_history():
    """
    Longer than the room there is, neighbours share a character; noise is not blown up to the full height.
    """
    assert "_#" == view.sparkline([1.0] * 7 + [9.0] * 7, width=2, ramp="_-#")
    assert "" == view.sparkline([1.0], width=0)
    assert {"-"} == set(view.sparkline([1.0, 1.001, 1.0], width=9, ramp="_-#"))


# --- The command line ------------------------------------------------------------------------------


def command(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("module", ["click", "rich", "sklearn"])
def test_without_the_extra_the_command_line_names_it(module):
    """
    One line and an exit code, no traceback.
    """
    done = command(
        f"import sys; sys.modules[{module!r}] = None; from otel_model_metrics.cli import main; main(['demo'])"
    )

    expected = (
        f"otel-model-metrics: {module} is not installed, which this command needs. "
        'Install the extra demo: pip install "otel-model-metrics[demo]"\n'
    )
    assert (1, "", expected) == (done.returncode, done.stdout, done.stderr)


def test_a_fault_of_our_own_is_not_blamed_on_an_extra():
    """
    A module that no extra installs: the traceback is what helps.
    """
    done = command(
        "import sys; sys.modules['otel_model_metrics.demo.view'] = None;"
        "from otel_model_metrics.cli import main; main(['demo'])"
    )

    assert 1 == done.returncode
    assert done.stderr.splitlines()[-1].startswith("ModuleNotFoundError: import of otel_model_metrics.demo.view")


@pytest.mark.parametrize("seconds", ["3.9", "nan"])
def test_a_run_needs_time_for_both_phases(seconds):
    """
    Wrong usage says what is right.
    """
    done = subprocess.run([*DEMO, "--seconds", seconds], env=environment(), capture_output=True, text=True, timeout=60)

    assert 2 == done.returncode
    assert f"Invalid value for --seconds: seconds must be at least 4, got {float(seconds):g}." in done.stderr


def test_the_version_is_told():
    done = subprocess.run([*DEMO[:-1], "--version"], env=environment(), capture_output=True, text=True, timeout=60)

    assert (0, f"otel-model-metrics, version {__version__}\n") == (done.returncode, done.stdout)
