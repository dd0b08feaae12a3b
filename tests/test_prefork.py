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
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from backends import Store, eventually, free_port, get, victoria_metrics

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
        return eventually(self._up_to_last_sample, "all series")

    def _up_to_last_sample(self) -> list[tuple[dict[str, str], list[float]]] | None:
        get(f"{self.store.url}/internal/force_flush")
        lines = get(f"{self.store.url}/api/v1/export", **{"match[]": f'{{run="{self.name}"}}'}).splitlines()
        found = [(series["metric"], series["values"]) for series in map(json.loads, lines)]
        others = [(labels, values) for labels, values in found if labels["__name__"] != "last_sample"]
        last = [values[-1] for labels, values in found if labels["__name__"] == "last_sample"]
        return others if [self.samples] == last else None

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
    "gunicorn threads preload": ([*GUNICORN, "--preload", "--threads=2"], WSGI),
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
