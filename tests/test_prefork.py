"""Several workers: real servers and real children, each with the lines that the README shows for it."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import pytest
from backends import Store, binary, eventually, free_port, get, running, victoria_metrics
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from test_instruments import run

README = Path(__file__).parent.parent / "README.md"

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def shown_for(what: str) -> str:
    """The block of the README that says it is run here."""
    found = re.findall(
        rf"<!-- not run: [^\n]*, in {re.escape(what)} -->\n```python\n(.*?)```", README.read_text(), re.S
    )
    assert 1 == len(found), what
    return found[0]


# Each request records one row and answers with the process that did.
WSGI = """
import os


def app(environ, start_response):
    fraud.record(True, True)
    start_response("200 OK", [])
    return [str(os.getpid()).encode()]


fraud.record_batch([True] * int(os.environ.get("ROWS_AT_IMPORT", 0)), None)
"""

ASGI = """
import os


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        async with lifespan(app):
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    fraud.record(True, True)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(os.getpid()).encode()})


fraud.record_batch([True] * int(os.environ.get("ROWS_AT_IMPORT", 0)), None)
"""


class Fleet:
    """What one run of several processes has exported."""

    def __init__(self, store: Store, name: str) -> None:
        self.store = store
        self.name = name
        self.samples = 0
        self.environment = {
            **os.environ,
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"{store.url}/opentelemetry",
            "OTEL_RESOURCE_ATTRIBUTES": f"run={name}",
        }

    def exported(self) -> list[tuple[dict[str, str], list[float]]]:
        """
        Labels and all values of each series.

        What the store has taken can be read a moment later; a last sample of our own tells when that is.
        """
        self.samples += 1
        sample = f'last_sample{{run="{self.name}"}} {self.samples}'
        with urllib.request.urlopen(f"{self.store.url}/api/v1/import/prometheus", sample.encode(), timeout=10):
            pass
        found = eventually(self._up_to_last_sample, "all series")
        return [(labels, values) for labels, values in found if labels["__name__"] != "last_sample"]

    def _up_to_last_sample(self) -> list[tuple[dict[str, str], list[float]]]:
        get(f"{self.store.url}/internal/force_flush")
        lines = get(f"{self.store.url}/api/v1/export", **{"match[]": f'{{run="{self.name}"}}'}).splitlines()
        found = [(series["metric"], series["values"]) for series in map(json.loads, lines)]
        last = [values[-1] for labels, values in found if labels["__name__"] == "last_sample"]
        return found if [self.samples] == last else []

    def rows(self) -> dict[str, float]:
        """service.instance.id -> rows it has counted; each has begun at zero."""
        counted: collections.Counter[str] = collections.Counter()
        for labels, values in self.exported():
            if labels["__name__"] == "ml_model_predictions_total":
                assert 0 == values[0], (labels, values)
                counted[labels["service_instance_id"]] += values[-1]
        return dict(counted)


class Server:
    """A server with several workers, and how often each of them has served."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
        self.process = process
        self.url = url
        self.log = log
        self.served: collections.Counter[str] = collections.Counter()

    def ask(self) -> str:
        assert self.process.poll() is None, self.log.read_text()
        return get(self.url)

    def serve(self, workers: int, without: frozenset[str] = frozenset()) -> set[str]:
        """Ask until that many workers have served that are not among those known."""

        def enough() -> bool:
            with ThreadPoolExecutor(4) as pool:
                for answer in [pool.submit(self.ask) for _ in range(8)]:
                    with contextlib.suppress(OSError):  # a worker that is being replaced
                        self.served[answer.result()] += 1
            return len(self.served.keys() - without) >= workers

        eventually(enough, f"{workers} workers that serve")
        return set(self.served) - without

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


@contextlib.contextmanager
def serving(command: list[str], folder: Path, app: str, fleet: Fleet, **environment: str):
    """A server that serves `app`, until the block ends."""
    port = free_port()
    log = folder / "server.log"
    (folder / "app.py").write_text(app)
    command = [sys.executable, "-m", *(part.format(port=port) for part in command), "app:app"]
    with (
        log.open("w") as output,
        subprocess.Popen(
            command, cwd=folder, stdout=output, stderr=output, env={**fleet.environment, **environment}
        ) as process,
    ):
        server = Server(process, f"http://127.0.0.1:{port}", log)
        try:
            server.serve(workers=1)
            yield server
        finally:
            if process.poll() is None:
                server.stop()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with victoria_metrics(tmp_path_factory.mktemp("store")) as running_store:
        yield running_store


@pytest.fixture
def fleet(store, request):
    return Fleet(store, re.sub(r"\W", "_", request.node.name))


GUNICORN = ["gunicorn", "--bind=127.0.0.1:{port}", "--workers=2", "--no-control-socket"]
UVICORN = ["uvicorn", "--host=127.0.0.1", "--port={port}", "--workers=2"]
SERVERS = {
    "gunicorn": (GUNICORN, WSGI),
    "gunicorn preload": ([*GUNICORN, "--preload"], WSGI),
    "gunicorn uvicorn": ([*GUNICORN, "--worker-class=uvicorn_worker.UvicornWorker"], ASGI),
    "gunicorn uvicorn preload": ([*GUNICORN, "--preload", "--worker-class=uvicorn_worker.UvicornWorker"], ASGI),
    "uvicorn": (UVICORN, ASGI),
}


def app_of(wsgi_or_asgi: str) -> str:
    return shown_for("gunicorn" if wsgi_or_asgi is WSGI else "uvicorn") + wsgi_or_asgi


@pytest.mark.parametrize("kind", SERVERS)
def test_each_row_is_counted_once_under_the_worker_that_served_it(kind, fleet, tmp_path):
    """
    After a graceful stop every worker has reported exactly its own rows under an id of its own, and the parent nothing.
    """
    command, app = SERVERS[kind]
    with serving(command, tmp_path, app_of(app), fleet) as server:
        server.serve(workers=2)
        server.stop()

    assert sorted(server.served.values()) == sorted(fleet.rows().values()), server.log.read_text()


@pytest.mark.alone
@pytest.mark.parametrize("kind", ["gunicorn preload", "gunicorn uvicorn preload"])
def test_rows_recorded_before_the_fork_stay_with_the_parent(kind, fleet, tmp_path):
    """
    The parent exports them before and after it forks; its workers start at zero.
    """
    command, app = SERVERS[kind]
    environment = {"ROWS_AT_IMPORT": "7", "OTEL_METRIC_EXPORT_INTERVAL": "500"}
    with serving(command, tmp_path, app_of(app), fleet, **environment) as server:
        eventually(lambda: 7 in fleet.rows().values(), "the rows of the parent")
        server.serve(workers=2)
        server.stop()

    assert sorted([7, *server.served.values()]) == sorted(fleet.rows().values()), server.log.read_text()


@pytest.mark.alone
@pytest.mark.parametrize("kind", ["gunicorn preload", "uvicorn"])
def test_a_worker_that_replaces_another_has_its_own_id_and_starts_at_zero(kind, fleet, tmp_path):
    """
    First both are reloaded, then one is killed after it has exported: nobody's rows are lost, or counted again.
    """
    command, app = SERVERS[kind]
    with serving(command, tmp_path, app_of(app), fleet, OTEL_METRIC_EXPORT_INTERVAL="500") as server:
        first = server.serve(workers=2)
        server.process.send_signal(signal.SIGHUP)
        second = server.serve(workers=2, without=frozenset(first))
        eventually(lambda: server.served.total() == sum(fleet.rows().values()), "all rows so far")
        os.kill(int(min(second)), signal.SIGKILL)
        server.serve(workers=1, without=frozenset(first | second))
        server.stop()

    assert sorted(server.served.values()) == sorted(fleet.rows().values()), server.log.read_text()


def test_workers_that_end_after_some_requests_flush_too(fleet, tmp_path):
    """
    gunicorn --max-requests: many short workers, each counted in full.
    """
    command, app = SERVERS["gunicorn preload"]
    with serving([*command, "--max-requests=6"], tmp_path, app_of(app), fleet) as server:
        server.serve(workers=5)
        server.stop()

    assert sorted(server.served.values()) == sorted(fleet.rows().values()), server.log.read_text()


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_children_of_multiprocessing_flush_when_they_end(method, fleet, tmp_path):
    """
    Short processes and a pool: every row is counted once, under as many ids as there were processes that recorded.
    """
    script = tmp_path / "main.py"
    script.write_text(shown_for("multiprocessing").replace('"spawn"', repr(method)))

    subprocess.run([sys.executable, script], check=True, env=fleet.environment, timeout=60)

    rows = fleet.rows()
    assert 4 == sum(rows.values())
    assert 2 <= len(rows) <= 3  # one worker of the pool may have done all of its work


Received = list[tuple[str, str, float]]


def received(request: metrics_service_pb2.ExportMetricsServiceRequest, peer: str) -> Received:
    """Connection, service.instance.id and rows counted, of each resource in a request."""
    found = []
    for resource in request.resource_metrics:
        identity = {a.key: a.value.string_value for a in resource.resource.attributes}["service.instance.id"]
        exported = [metric for scope in resource.scope_metrics for metric in scope.metrics]
        points = [p.as_double for m in exported if m.name == "ml.model.predictions" for p in m.sum.data_points]
        found.append((peer, identity, sum(points)))
    return found


@contextlib.contextmanager
def http_receiver(into: Received):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # keeps connections

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            request = metrics_service_pb2.ExportMetricsServiceRequest.FromString(body)
            into.extend(received(request, str(self.client_address)))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def grpc_receiver(into: Received):
    class Receiver(metrics_service_pb2_grpc.MetricsServiceServicer):
        def Export(self, request, context):  # noqa: N802 - the name is gRPC's
            into.extend(received(request, context.peer()))
            return metrics_service_pb2.ExportMetricsServiceResponse()

    server = grpc.server(ThreadPoolExecutor(4))
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(Receiver(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop(None)


IN_A_CHILD = """
    import os, sys
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from otel_model_metrics import BinaryMonitor, configure

    fork = get_context("fork")
"""


def test_a_child_that_configures_itself_flushes_too():
    """
    configure() in the child, where the parent has none.
    """
    script = """
    def work():
        configure("service")
        BinaryMonitor("model").record(True, True)

    child = fork.Process(target=work)
    child.start()
    child.join()
    """
    exports: Received = []
    with http_receiver(exports) as endpoint:
        assert "" == run(IN_A_CHILD + script, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
    assert [0, 1] == [rows for _, _, rows in exports]


def test_workers_of_an_executor_flush_too():
    """
    concurrent.futures lets its processes end, so nothing is lost.
    """
    script = """
    configure("service")
    monitor = BinaryMonitor("model")

    def work(n):
        monitor.record(True, True)

    with ProcessPoolExecutor(2, mp_context=fork) as pool:
        list(pool.map(work, range(20)))
    """
    exports: Received = []
    with http_receiver(exports) as endpoint:
        assert "" == run(IN_A_CHILD + script, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
    assert 20 == sum({identity: rows for _, identity, rows in exports}.values())


def test_a_terminated_pool_keeps_what_it_has_exported(fleet):
    """
    Its workers are killed, so the regular exports are all there is.
    """
    script = """
    configure("service", interval=0.2)
    monitor = BinaryMonitor("model")

    def work(n):
        monitor.record(True, True)

    with fork.Pool(2) as pool:
        pool.map(work, range(3))
        input()
    """
    command = [sys.executable, "-c", textwrap.dedent(IN_A_CHILD + script)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=fleet.environment) as process:
        eventually(lambda: 3 == sum(fleet.rows().values()), "the regular exports")
        process.communicate(b"\n", timeout=30)

    assert (0, 3) == (process.returncode, sum(fleet.rows().values()))


@pytest.mark.alone
def test_a_child_without_rows_ends_at_once_and_one_with_rows_soon():
    """
    An endpoint that does not answer delays a child by no more than the limit: retries would go on for much longer.
    """
    script = """
    import time
    from otel_model_metrics import pipeline

    pipeline.LAST_MILLIS_OF_CHILD = 200
    configure("service", endpoint="http://127.0.0.1:9")
    monitor = BinaryMonitor("model")

    def work(rows):
        monitor.record_batch([True] * rows, None)

    for rows in (0, 1):
        child = fork.Process(target=work, args=(rows,))
        begun = time.monotonic()
        child.start()
        child.join()
        print(child.exitcode, time.monotonic() - begun < 4, flush=True)
    os._exit(0)
    """
    output = run(IN_A_CHILD + script)

    assert ["0 True", "0 True"] == re.findall("^0 .*$", output, re.M), output
    assert 1 == output.count("The last export was not finished in time: what it would have said is lost.")


def test_the_last_export_is_not_repeated_where_it_failed():
    """
    An endpoint that did not take the first of the two is not waited for again.
    """
    script = """
    from opentelemetry.sdk.metrics.export import MetricExportResult
    from otel_model_metrics import otlp

    class Endpoint:
        def export(self, *_, **__):
            print("export")
            return MetricExportResult.FAILURE

        def shutdown(self, timeout_millis):
            print("shutdown")

    own = otlp.exporter_of

    def make(*arguments):
        endpoint, exporter = Endpoint(), own(*arguments)
        endpoint._preferred_temporality = exporter._preferred_temporality
        endpoint._preferred_aggregation = exporter._preferred_aggregation
        return endpoint

    otlp.exporter_of = make
    configure("service")
    BinaryMonitor("model").record(True, True)
    """
    assert "export\nshutdown\n" == run(IN_A_CHILD + script)


def test_a_provider_that_was_shut_down_is_not_flushed_again():
    """
    As with uvicorn, whose application shuts down before the process ends: one flush, and nothing is said about it.
    """
    script = """
    provider = configure("service")
    monitor = BinaryMonitor("model")
    monitor.record(True, True)
    provider.shutdown()
    monitor.record(True, True)
    """
    exports: Received = []
    with http_receiver(exports) as endpoint:
        assert "" == run(IN_A_CHILD + script, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
    assert [0, 1] == [rows for _, _, rows in exports]


def test_multiprocessing_is_not_imported_for_those_without_it():
    """
    configure() tells it of itself only where it is there.
    """
    script = """
    import sys
    from otel_model_metrics import configure
    configure("service", endpoint="http://127.0.0.1:9")
    print([name for name in sys.modules if name.startswith("multiprocessing")])
    """
    assert "[]\n" == run(script)


@pytest.mark.parametrize("kind", ["gunicorn preload", "uvicorn"])
def test_workers_without_rows_export_nothing(kind, fleet, tmp_path):
    """
    Neither the parent nor a worker, however often they come to export.
    """
    command, app = SERVERS[kind]
    app = app_of(app).replace("    fraud.record(True, True)\n", "")
    with serving(command, tmp_path, app, fleet, OTEL_METRIC_EXPORT_INTERVAL="100") as server:
        server.serve(workers=2)
        server.stop()

    assert [] == fleet.exported()


@pytest.mark.parametrize(("protocol", "receiver"), [("http/protobuf", http_receiver), ("grpc", grpc_receiver)])
def test_no_two_processes_use_one_connection(protocol, receiver):
    """
    The parent has a connection open when it forks; children that wrote to it would read each other's answers.
    """
    script = """
        import os, sys
        from otel_model_metrics import BinaryMonitor, configure
        provider = configure("service", {endpoint!r}, {protocol!r})
        monitor = BinaryMonitor("model")
        monitor.record(True, True)
        provider.force_flush()
        children = []
        for _ in range(3):
            children.append(os.fork())
            if not children[-1]:
                for _ in range(3):
                    monitor.record(True, True)
                    provider.force_flush()
                sys.exit()
        assert all(os.waitpid(child, 0)[1] == 0 for child in children)
    """
    exports: Received = []
    with receiver(exports) as endpoint:
        run(script.format(endpoint=endpoint, protocol=protocol))

    users = collections.defaultdict(set)
    for connection, identity, _ in exports:
        users[connection].add(identity)
    assert {1} == {len(identities) for identities in users.values()}
    assert [1, 3, 3, 3] == sorted({identity: rows for _, identity, rows in exports}.values())


def test_an_sdk_that_knows_no_instances_is_given_them():
    """
    Before 1.43 the SDK neither sets a service.instance.id nor renews it after a fork.
    """
    script = """
        import os
        from opentelemetry.sdk import resources
        from opentelemetry.sdk.metrics import MeterProvider
        from otel_model_metrics import BinaryMonitor, configure
        detector = getattr(resources, "ServiceInstanceIdResourceDetector", None)
        if detector is not None:
            detector.detect = lambda self: resources.Resource({{}})
        MeterProvider._handle_fork = lambda self: None
        configure("service", {endpoint!r})
        monitor = BinaryMonitor("model")
        monitor.record(True, True)
        if os.fork():
            os.wait()
        else:
            monitor.record_batch([True, True], None)
    """
    exports: Received = []
    with http_receiver(exports) as endpoint:
        run(script.format(endpoint=endpoint))

    assert [1, 2] == sorted({identity: rows for _, identity, rows in exports}.values())


def test_a_child_forked_in_the_middle_of_a_collection_exports():
    """
    The parent's thread holds the locks of the SDK then, and no thread of the child will ever release them.
    """
    script = """
        import os, sys, threading
        from opentelemetry import metrics
        from otel_model_metrics import BinaryMonitor, configure
        provider = configure("service", {endpoint!r}, interval=0.05)
        monitor = BinaryMonitor("model")
        inside, leave, parent = threading.Event(), threading.Event(), os.getpid()

        def slow(options):
            if os.getpid() == parent:
                inside.set()
                leave.wait()
            return []

        meter = metrics.get_meter("host")
        meter.create_observable_gauge("slow", [slow])
        inside.wait()
        if not os.fork():
            meter.create_observable_gauge("another")
            monitor.record(True, True)
            sys.exit()
        print(os.wait()[1])
        leave.set()
    """
    exports: Received = []
    with http_receiver(exports) as endpoint:
        assert "0\n" == run(script.format(endpoint=endpoint))

    assert 1 == exports[-1][2]


def test_a_child_forked_in_the_middle_of_an_export_exports():
    """
    The same, while the parent waits for its endpoint.
    """
    script = """
        import os, sys, threading
        from otel_model_metrics import BinaryMonitor, configure, pipeline
        inside, leave, parent = threading.Event(), threading.Event(), os.getpid()
        export = pipeline.Exporter.export

        def slow(*arguments, **others):
            if os.getpid() == parent:
                inside.set()
                leave.wait()
            return export(*arguments, **others)

        pipeline.Exporter.export = slow
        provider = configure("service", {endpoint!r}, interval=0.05)
        monitor = BinaryMonitor("model")
        monitor.record(True, True)
        inside.wait()
        if not os.fork():
            monitor.record_batch([True, True], None)
            sys.exit()
        print(os.wait()[1])
        leave.set()
    """
    exports: Received = []
    with http_receiver(exports) as endpoint:
        assert "0\n" == run(script.format(endpoint=endpoint))

    assert {1, 2} == set({identity: rows for _, identity, rows in exports}.values())


SCRAPED = """
from opentelemetry import metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider

from otel_model_metrics import BinaryMonitor

metrics.set_meter_provider(MeterProvider([PrometheusMetricReader()]))
fraud = BinaryMonitor("fraud", version="2026.11")
"""


def test_each_worker_can_be_scraped(fleet, tmp_path):
    """
    One port and one file for each worker of gunicorn --preload; Prometheus finds them, and their files go with them.
    """
    targets = tmp_path / "targets"
    targets.mkdir()
    (tmp_path / "gunicorn.conf.py").write_text(
        shown_for("gunicorn.conf.py").replace("/run/fraud-service", str(targets)).replace("localhost", "127.0.0.1")
    )
    address = f"127.0.0.1:{free_port()}"
    config = tmp_path / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s, scrape_timeout: 1s}\n"
        f"scrape_configs: [{{job_name: fleet, file_sd_configs: [{{files: ['{targets}/*.json']}}]}}]\n"
    )
    command = [
        binary("prometheus"),
        f"--config.file={config}",
        f"--storage.tsdb.path={tmp_path / 'prometheus'}",
        f"--web.listen-address={address}",
    ]
    with (
        serving([*GUNICORN, "--preload"], tmp_path, SCRAPED + WSGI, fleet) as server,
        running(command, f"http://{address}/-/ready", tmp_path / "prometheus.log"),
    ):
        server.serve(workers=2)
        store = Store(f"http://{address}")
        expression = "sum by (instance) (ml_model_predictions_total)"
        eventually(
            lambda: sorted(server.served.values()) == sorted(rows for _, rows in store.query(expression)),
            "both workers in Prometheus",
        )
        assert 2 == len(list(targets.iterdir()))
        server.stop()

    assert [] == list(targets.iterdir())
