"""Real backends for the story tests: each a process of its own on loopback, gone when the test ends."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

CACHE = Path(__file__).parent.parent / ".cache"
COLLECTOR_CONFIG = Path(__file__).parent.parent / "grafana" / "otel-collector.yaml"


def binary(name: str) -> str:
    """Path of a backend; without it the test is skipped with the reason, or fails where CI=true."""
    finder = {"otelcol": "collector", "redis-server": "redis", "chromium": "chromium"}.get(name, "backends")
    found = CACHE / f"{finder}.env"
    lines = dict(line.split("=", 1) for line in found.read_text().splitlines()) if found.exists() else {}
    path = lines.get(name)
    if path and Path(path).exists():
        return path
    why = CACHE / f"{finder}.why"
    reason = why.read_text().strip() if why.exists() else f".ci/{finder}.sh has not been run (make test does)"
    if os.environ.get("CI") == "true":
        pytest.fail(f"{name} could not be had: {reason}")
    pytest.skip(f"{name} could not be had: {reason}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(url: str, **parameters: str) -> str:
    query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
    with urllib.request.urlopen(url + query, timeout=10) as answer:
        return answer.read().decode()


def eventually(condition: Any, what: str, seconds: float = 30.0) -> Any:
    """The first true answer of `condition`; asks until the deadline, so a slow machine only takes longer."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            answer = condition()
            if answer:
                return answer
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.1)


class Store:
    """A time-series store that speaks PromQL."""

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expression: str, time: float | None = None) -> list[tuple[dict[str, str], float]]:
        """Prometheus labels and value of each series, now or at a time (seconds since 1970)."""
        at = {} if time is None else {"time": f"{time:.3f}"}
        return [(one["metric"], float(one["value"][1])) for one in self._ask("query", query=expression, **at)]

    def range(
        self, expression: str, start: float, end: float, step: float
    ) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
        """Prometheus labels of each series, and its times and values; `step` is in seconds."""
        found = self._ask("query_range", query=expression, start=f"{start:.3f}", end=f"{end:.3f}", step=f"{step:.3f}")
        return [(one["metric"], [(float(at), float(value)) for at, value in one["values"]]) for one in found]

    def _ask(self, what: str, **parameters: str) -> list[dict[str, Any]]:
        """By POST, for a query may be longer than a URL."""
        content = urllib.parse.urlencode(parameters).encode()
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{what}", data=content, timeout=30) as answer:
                result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
                return result
        except urllib.error.HTTPError as error:
            raise OSError(f"{error}: {error.read().decode()}\n{parameters['query']}") from error

    def number(self, expression: str) -> float:
        """The only value of a query, waited for."""
        series = eventually(lambda: self.query(expression), expression)
        assert len(series) == 1, series
        return series[0][1]


def reach(address: str) -> None:
    """Raises OSError unless a URL answers well, or a HOST:PORT accepts a connection."""
    if "://" in address:
        get(address)
    else:
        host, port = address.rsplit(":", 1)
        socket.create_connection((host, int(port)), timeout=10).close()


@contextlib.contextmanager
def running(
    command: list[str], ready: str, log: Path, env: dict[str, str] | None = None, cwd: Path | None = None
) -> Iterator[None]:
    """A process in `cwd`, from the moment `ready` (URL or HOST:PORT) answers until the block ends; `env` is added."""
    environment = {**os.environ, **(env or {})}
    with (
        log.open("w") as output,
        subprocess.Popen(command, stdout=output, stderr=output, env=environment, cwd=cwd) as process,
    ):
        try:

            def answers() -> bool:
                assert process.poll() is None, log.read_text()
                reach(ready)
                return True

            eventually(answers, command[0])
            yield
        finally:
            process.terminate()


@contextlib.contextmanager
def victoria_metrics(folder: Path) -> Iterator[Store]:
    """VictoriaMetrics, which takes OTLP at /opentelemetry/v1/metrics."""
    url = f"http://127.0.0.1:{free_port()}"
    command = [
        binary("victoria-metrics"),
        f"-storageDataPath={folder / 'victoria'}",
        f"-httpListenAddr={url.removeprefix('http://')}",
        "-opentelemetry.usePrometheusNaming",
        "-search.latencyOffset=0s",
        "-search.disableCache",
    ]
    with running(command, f"{url}/health", folder / "victoria.log"):
        yield Store(url)


@contextlib.contextmanager
def vmagent(folder: Path, store: Store) -> Iterator[str]:
    """URL of an agent that takes OTLP at /opentelemetry/v1/metrics, and writes it to a Prometheus."""
    url = f"http://127.0.0.1:{free_port()}"
    command = [
        binary("vmagent"),
        f"-httpListenAddr={url.removeprefix('http://')}",
        f"-remoteWrite.url={store.url}/api/v1/write",
        f"-remoteWrite.tmpDataPath={folder / 'vmagent'}",
        "-remoteWrite.forcePromProto",
        "-opentelemetry.usePrometheusNaming",
    ]
    with running(command, f"{url}/health", folder / "vmagent.log"):
        yield url


@contextlib.contextmanager
def prometheus(
    folder: Path,
    targets: str | Path,
    *,
    interval: str = "1s",
    lookback: str = "5m",
    rules: Iterable[Path] = (),
    alertmanager: str = "",
    out_of_order: str = "",
) -> Iterator[Store]:
    """
    Prometheus, scraping one target (HOST:PORT), or those that the *.json of a folder name.

    Args:
        folder: For its configuration, data and log.
        targets: What it scrapes.
        interval: How often it does.
        lookback: For how long a sample counts.
        rules: Files that it evaluates.
        alertmanager: URL of the Alertmanager that gets to know.
        out_of_order: How old a sample may be that is written to it, e.g. ``7d``; without, nothing can be written.
    """
    url = f"http://127.0.0.1:{free_port()}"
    found = (
        {"file_sd_configs": [{"files": [f"{targets}/*.json"]}]}
        if isinstance(targets, Path)
        else {"static_configs": [{"targets": [targets]}]}
    )
    told = [{"static_configs": [{"targets": [alertmanager.removeprefix("http://")]}]}] if alertmanager else []
    content = {
        "global": {"scrape_interval": interval, "scrape_timeout": interval},
        "scrape_configs": [{"job_name": "service", **found}],
        "rule_files": [str(path) for path in rules],
        "alerting": {"alertmanagers": told},
    }
    config = folder / "prometheus.yml"
    command = [
        binary("prometheus"),
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'prometheus'}",
        f"--web.listen-address={url.removeprefix('http://')}",
        f"--query.lookback-delta={lookback}",
    ]
    if out_of_order:
        content["storage"] = {"tsdb": {"out_of_order_time_window": out_of_order}}
        command.append("--web.enable-remote-write-receiver")
    config.write_text(json.dumps(content))  # which is YAML too
    with running(command, f"{url}/-/ready", folder / "prometheus.log"):
        yield Store(url)


@contextlib.contextmanager
def vmalert(folder: Path, store: Store, rules: Iterable[Path], alertmanager: str, *, lookback: str) -> Iterator[None]:
    """vmalert, which evaluates rules over a VictoriaMetrics, records there and tells an Alertmanager."""
    url = f"http://127.0.0.1:{free_port()}"
    command = [
        binary("vmalert"),
        *(f"-rule={path}" for path in rules),
        f"-datasource.url={store.url}",
        f"-remoteWrite.url={store.url}",
        f"-remoteRead.url={store.url}",
        f"-notifier.url={alertmanager}",
        f"-httpListenAddr={url.removeprefix('http://')}",
        f"-datasource.queryStep={lookback}",
        "-remoteWrite.flushInterval=100ms",
        "-rule.evalDelay=0s",  # VictoriaMetrics runs with -search.latencyOffset=0s
        "-rule.resendDelay=1m",  # as Prometheus does; else an alert ends by itself when an evaluation takes long
    ]
    with running(command, f"{url}/health", folder / "vmalert.log"):
        yield


@contextlib.contextmanager
def alertmanager(folder: Path, webhook: str) -> Iterator[str]:
    """The URL of an Alertmanager that passes each alert on at once, and says when it is over."""
    url = f"http://127.0.0.1:{free_port()}"
    route = {"receiver": "webhook", "group_by": ["..."], "group_wait": "0s", "group_interval": "200ms"}
    told = {"name": "webhook", "webhook_configs": [{"url": webhook, "send_resolved": True}]}
    config = folder / "alertmanager.yml"
    config.write_text(json.dumps({"route": route, "receivers": [told]}))  # which is YAML too
    with _with_templates(Path(binary("alertmanager")), folder) as program:
        command = [
            str(program),
            f"--config.file={config}",
            f"--storage.path={folder / 'alertmanager'}",
            f"--web.listen-address={url.removeprefix('http://')}",
            "--cluster.listen-address=",  # one is no cluster
        ]
        with running(command, f"{url}/-/ready", folder / "alertmanager.log", cwd=folder):
            yield url


@contextlib.contextmanager
def _with_templates(program: Path, folder: Path) -> Iterator[Path]:
    """
    An Alertmanager that finds its templates when it is started in this folder.

    Debian's opens them in /usr/share, where they are only if its package is installed. Where just the binary was taken
    out of the package, a copy opens empty ones, in its working directory: a webhook needs none.
    """
    place = b"/usr/share/prometheus/alertmanager"
    content = program.read_bytes()
    if place not in content or Path(place.decode()).exists():
        yield program
        return
    (folder / "templates").mkdir()
    for name in ("default.tmpl", "email.tmpl"):
        (folder / "templates" / name).touch()
    copy = folder / "alertmanager-copy"
    copy.write_bytes(content.replace(place, b"templates".ljust(len(place), b"/")))  # a path of the same length
    copy.chmod(0o755)
    try:
        yield copy
    finally:
        copy.unlink()  # pytest keeps what tests wrote, and this is large


@dataclasses.dataclass(frozen=True)
class Collector:
    """Where a collector listens, and what it says about itself."""

    http: str
    grpc: str
    log: Path


@contextlib.contextmanager
def collector(folder: Path, store: Store) -> Iterator[Collector]:
    """An OpenTelemetry Collector with the configuration that we ship, in front of a VictoriaMetrics."""
    http, grpc = (f"127.0.0.1:{free_port()}" for _ in range(2))
    log = folder / "collector.log"
    variables = {
        "METRICS_STORE": f"{store.url}/opentelemetry",
        "OTLP_HTTP_LISTEN": http,
        "OTLP_GRPC_LISTEN": grpc,
        "COLLECTOR_TELEMETRY": "none",  # its port is not ours to choose
    }
    # Of the two receivers the one for gRPC is started first.
    with running([binary("otelcol"), f"--config={COLLECTOR_CONFIG}"], http, log, env=variables):
        yield Collector(f"http://{http}", f"http://{grpc}", log)


class RedisServer:
    """A Redis on loopback that keeps nothing on disk; it can be halted, ended, and started again on the same port."""

    def __init__(self, folder: Path, port: int, extra: Sequence[str] = ()) -> None:
        self.port = port
        self.url = f"redis://127.0.0.1:{port}/0"
        self.log = folder / f"redis-{port}.log"  # of all its starts
        self.process: subprocess.Popen[bytes] | None = None  # None while there is none
        self._command = [
            *(binary("redis-server"), "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder)),
            *("--save", "", "--appendonly", "no"),
            *extra,
        ]

    def start(self) -> None:
        """Start it, empty, and wait until it answers."""
        assert self.process is None, "it runs already"
        with self.log.open("a") as output:
            process = self.process = subprocess.Popen(self._command, stdout=output, stderr=output)

        def answers() -> bool:
            assert process.poll() is None, self.log.read_text()
            with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(1) in (b"+", b"-")  # -: with a password in `extra`

        eventually(answers, self._command[0])

    def pause(self) -> None:
        """Halt it: connections are still accepted, by the kernel, but nothing is answered."""
        process = self._running()
        process.send_signal(signal.SIGSTOP)
        _, status = os.waitpid(process.pid, os.WUNTRACED)  # until it has really halted
        assert os.WIFSTOPPED(status), self.log.read_text()

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._running().send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it in good order, also while it is paused."""
        process = self._running()
        process.terminate()
        process.send_signal(signal.SIGCONT)  # a halted process does not notice that it is asked to end
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:  # such as in an endless script
            process.kill()
            process.wait()
        self.process = None

    def kill(self) -> None:
        """End it without any warning, also while it is paused."""
        process = self._running()
        process.kill()
        process.wait()
        self.process = None

    def _running(self) -> subprocess.Popen[bytes]:
        assert self.process is not None, "it does not run"
        return self.process


@contextlib.contextmanager
def redis_server(folder: Path, *, port: int | None = None, extra: Sequence[str] = ()) -> Iterator[RedisServer]:
    """
    A Redis that runs when the block begins, and no longer when it ends.

    Args:
        folder: For its log.
        port: Where it listens; any free one if not given.
        extra: Further arguments, such as ("--maxmemory", "10mb").
    """
    server = RedisServer(folder, free_port() if port is None else port, extra)
    try:
        server.start()
        yield server
    finally:
        if server.process is not None:
            server.stop()
