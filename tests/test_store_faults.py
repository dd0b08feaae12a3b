"""
Faults of stores, caused for real: killed processes, full disks, locked, corrupt and deleted files, a Redis that
refuses, hangs, restarts or forgets to answer. The host is neither delayed nor failed, and everything is accounted for.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import gc
import json
import logging
import multiprocessing
import os
import random
import resource
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from backends import RedisServer, eventually, free_port, redis_server

from otel_model_metrics import BinaryMonitor, LabelOutcome
from otel_model_metrics.ground_truth import background, sqlite

WORKER = Path(__file__).parent / "store_worker.py"

# What a label comes to in the end; beside them are counted predictions that were evicted, dropped, or got no label.
OUTCOMES = [outcome.value for outcome in LabelOutcome if outcome is not LabelOutcome.QUEUED]


def labels_of(*counts: dict[str, int]) -> int:
    """Labels accounted for, over processes in which every prediction came before its label."""
    return sum(count[outcome] for count in counts for outcome in OUTCOMES)


def predictions_of(exports: Any) -> float:
    """Predictions exported, with a label and without."""
    exports.collect()  # a counter begins at zero, so that its first increase is seen
    return sum(exports.collect().get("ml.model.predictions", {}).values())


def ids_of(name: str, count: int) -> list[str]:
    return [f"{name}-{number}" for number in range(count)]


def predict(monitor: Any, ids: Iterable[str]) -> None:
    for id in ids:
        monitor.record_prediction(id, True)


def label(monitor: Any, ids: Iterable[str]) -> None:
    for id in ids:
        monitor.record_label(id, True, wait=0.0)


def outcomes_of(monitor: Any, ids: list[str]) -> dict[str, int]:
    """What labels of these ids come to, all of them decided."""
    outcomes = monitor.record_label_batch(ids, [True] * len(ids), wait=30.0)
    return {str(outcome): count for outcome, count in outcomes.items() if count}


class Worker:
    """A process that does what it is asked."""

    def __init__(self, store: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), "serve", store], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert "ready" == self._answer()

    def ask(self, do: str, arguments: Any = None) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([do, arguments]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate(timeout=30)  # it ends with its input
        assert 0 == self._process.returncode


@pytest.fixture
def start_worker() -> Iterator[Callable[[str], Worker]]:
    workers: list[Worker] = []

    def start(store: str) -> Worker:
        workers.append(Worker(store))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as server:
        yield server


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What hangs or is locked is given up after a moment, so that tests need not wait for that long."""
    monkeypatch.setattr(sqlite, "_BUSY_SECONDS", 0.1)
    monkeypatch.setattr("otel_model_metrics.ground_truth.redis._TIMEOUT", 0.3)
    monkeypatch.setattr(background, "_LONGEST_BACKOFF", 0.1)


@pytest.fixture
def live(make: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a monitor with a store, in the time that passes."""

    def build(store: str, **arguments: Any) -> Any:
        return make(BinaryMonitor, store=store, **{"clock": time.time, **arguments})

    return build


# Killed


def run_and_kill(store: str, run: int) -> tuple[list[str], list[str]]:
    """A process that writes as fast as it can, killed at some moment; returns ids flushed, and ids seen to join."""
    command = [sys.executable, str(WORKER), "storm", store, f"run-{run}", str(run)]
    lines = random.Random(run).randint(3, 150)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(lines)]
        process.kill()
        said += process.stdout.readlines()
    assert -9 == process.returncode
    flushed = [id for line in said if line.startswith("flushed ") and line.endswith("\n") for id in line.split()[1:]]
    matched = [line.split()[1] for line in said if line.startswith("matched ") and line.endswith("\n")]
    return flushed, matched


def check_killed(store: str, runs: int, monitor: Any) -> None:
    flushed: list[str] = []
    matched: list[str] = []
    for run in range(runs):
        of_run = run_and_kill(store, run)
        flushed += of_run[0]
        matched += of_run[1]
    assert flushed
    assert matched
    assert len(matched) == len(set(matched))  # over all processes

    # The worker labels some of them False, so a label that is told again may correct one.
    again = outcomes_of(monitor, matched)
    others = outcomes_of(monitor, sorted(set(flushed) - set(matched)))

    assert len(matched) == again.get("duplicate", 0) + again.get("corrected", 0)
    assert len(set(flushed) - set(matched)) == sum(
        others.get(outcome, 0) for outcome in ("matched", "duplicate", "corrected")
    )


def test_twenty_kills_in_the_middle_of_writing_lose_nothing_from_a_file(live, tmp_path):
    """
    What was flushed before a SIGKILL is known afterwards, no label has joined twice, and the database is sound.
    """
    path = tmp_path / "labels.db"

    check_killed(f"sqlite:///{path}", 20, live(f"sqlite:///{path}"))

    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert [("ok",)] == connection.execute("PRAGMA integrity_check").fetchall()


def test_kills_in_the_middle_of_writing_lose_nothing_from_redis(live, redis):
    """
    What was flushed before a SIGKILL is known afterwards, and no label has joined twice.
    """
    check_killed(redis.url, 5, live(redis.url))


# Disk full


def test_a_full_disk_keeps_predictions_until_there_is_room(live, impatient, tmp_path, caplog, exports):
    """
    On a file system without room nothing fails, one line says so, and all is written once there is room again.
    """
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system could be mounted: {mounted.stderr.decode().strip()}")
    try:
        monitor = live(f"sqlite:///{folder}/labels.db?buffer=10000")
        ballast = folder / "ballast"
        predict(monitor, ids_of("early", 10))
        assert monitor.flush(10.0)
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

        predict(monitor, ids_of("full", 10_000))

        assert not monitor.flush(2.0)
        warnings = [record.getMessage() for record in caplog.records]
        assert 1 == len(warnings), warnings
        assert (
            f"SQLite store {folder}/labels.db: {folder}/labels.db cannot be used (database or disk is full)"
            in (warnings[0])
        )
        predict(monitor, ids_of("too-many", 7))
        assert {"dropped": 3} == outcomes_of(monitor, ids_of("full", 3))
        assert 7 == monitor.snapshot().labels["prediction_dropped"]

        ballast.unlink()
        subprocess.run(["mount", "-o", "remount,size=20m", str(folder)], check=True)

        assert monitor.flush(30.0)
        assert {"matched": 10} == outcomes_of(monitor, ids_of("early", 10))
        assert {"matched": 10_000} == outcomes_of(monitor, ids_of("full", 10_000))
        assert 10_013 == labels_of(monitor.snapshot().labels)
        assert 10_017 == predictions_of(exports)
    finally:
        monitor.close()
        subprocess.run(["umount", str(folder)], check=True)


def test_a_limit_of_file_size_keeps_predictions_until_it_is_lifted(live, impatient, tmp_path):
    """
    Where the system lets no file grow, nothing fails, and all is written once it does.
    """
    monitor = live(f"sqlite:///{tmp_path}/labels.db")
    predict(monitor, ids_of("early", 10))
    assert monitor.flush(10.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        predict(monitor, ids_of("full", 5000))

        assert not monitor.flush(1.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert monitor.flush(30.0)
    assert {"matched": 5010} == outcomes_of(monitor, ids_of("early", 10) + ids_of("full", 5000))


# Locked


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process that lets nobody write to a database."""
    program = (
        "import sqlite3, sys; connection = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "connection.execute('BEGIN EXCLUSIVE'); print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert b"locked\n" == process.stdout.readline()
        yield
        process.kill()


@pytest.mark.alone
def test_a_locked_database_is_waited_for_by_nobody_but_its_thread(live, impatient, tmp_path, exports):
    """
    While another process holds the database, calls return at once; afterwards everything is there.
    """
    path = tmp_path / "labels.db"
    monitor = live(f"sqlite:///{path}")
    predict(monitor, ids_of("early", 10))
    assert monitor.flush(10.0)

    with locked(path):
        measured = latencies(monitor, "locked", 2000)
        assert not monitor.flush(0.5)
        assert monitor._joining._ledger._writer._failing  # SQLite has given up waiting, too

    measured.check()
    assert monitor.flush(30.0)
    assert 2000 == monitor.snapshot().labels["matched"]
    assert 2010 == predictions_of(exports)


def test_a_database_locked_for_a_moment_is_waited_for(live, tmp_path, caplog):
    """
    As long as another process writes for a moment only, nothing is said, and nothing is lost.
    """
    path = tmp_path / "labels.db"
    monitor = live(f"sqlite:///{path}")
    assert monitor.flush(10.0)

    with locked(path):
        predict(monitor, ids_of("locked", 100))
        assert not monitor.flush(0.3)

    assert {"matched": 100} == outcomes_of(monitor, ids_of("locked", 100))
    assert [] == caplog.records


# Corrupt


def aside(path: Path) -> list[Path]:
    return [found for found in path.parent.glob(f"{path.name}.corrupt-*") if not found.name.endswith(("-wal", "-shm"))]


def test_what_is_no_database_is_moved_aside(live, tmp_path, caplog):
    """
    A file that is none of SQLite's is kept under another name, with a clear message, and a new one is made.
    """
    path = tmp_path / "labels.db"
    path.write_bytes(b"This is a note, and not at all a database. " * 1000)
    monitor = live(f"sqlite:///{path}")

    predict(monitor, ids_of("new", 100))
    assert monitor.flush(10.0)  # a new one is made in the background

    assert {"matched": 100} == outcomes_of(monitor, ids_of("new", 100))
    (moved,) = aside(path)
    assert moved.read_bytes().startswith(b"This is a note")
    assert [
        f"{path} is corrupt (file is not a database) and was moved to {moved}. A new one is made; the labels of "
        "predictions that were in it will be unmatched."
    ] == [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]


def overwrite(path: Path) -> None:
    """Noise all over a database and its write-ahead log."""
    noise = random.Random(1)
    for file in (path, Path(f"{path}-wal")):
        with file.open("r+b") as opened:
            opened.write(noise.randbytes(file.stat().st_size))


def test_a_database_that_becomes_corrupt_is_moved_aside_once(live, tmp_path, caplog, start_worker):
    """
    Two processes whose file is overwritten under them go on with one new file, and one old one is kept.
    """
    path = tmp_path / "labels.db"
    monitor = live(f"sqlite:///{path}")
    worker = start_worker(f"sqlite:///{path}")
    predict(monitor, ids_of("early", 3000))
    assert monitor.flush(10.0)
    assert {"matched"} == set(worker.ask("label", ids_of("early", 100)).values())

    overwrite(path)

    def heals() -> bool:
        """Both write, as they do in a service; what is written to the old file may be lost with it."""
        predict(monitor, ["probe"])
        worker.ask("predict", ["probe of worker"])
        return bool(monitor.flush(0.2) and worker.ask("flush", 0.2) and aside(path))

    eventually(heals, "a new file")
    predict(monitor, ids_of("new", 100))
    worker.ask("predict", ids_of("of-worker", 100))
    assert monitor.flush(10.0)
    assert worker.ask("flush", 10.0)
    # Each knows what the other one has predicted: they have the same file.
    assert {"matched"} == set(worker.ask("label", ids_of("new", 100)).values())
    assert {"matched": 100} == outcomes_of(monitor, ids_of("of-worker", 100))
    assert 1 == len(aside(path))
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert [("ok",)] == connection.execute("PRAGMA integrity_check").fetchall()


# Not writable, or gone


def test_a_path_that_cannot_be_written_is_used_once_it_can(live, impatient, tmp_path, caplog):
    """
    Below a file there is no folder: predictions are kept, up to the bound, and written when the obstacle is gone.
    """
    obstacle = tmp_path / "obstacle"
    obstacle.touch()
    monitor = live(f"sqlite:///{obstacle}/labels.db?buffer=100")

    predict(monitor, ids_of("kept", 100))
    predict(monitor, ids_of("dropped", 5))
    assert not monitor.flush(0.5)
    assert {"dropped": 2} == outcomes_of(monitor, ids_of("kept", 2))
    obstacle.unlink()

    assert monitor.flush(10.0)
    assert {"matched": 100} == outcomes_of(monitor, ids_of("kept", 100))
    counts = monitor.snapshot().labels
    assert (5, 2) == (counts["prediction_dropped"], counts["dropped"])
    (line,) = [record.getMessage() for record in caplog.records]
    place = f"{obstacle}/labels.db"
    assert line.startswith(f"SQLite store {place}: {place} cannot be used ([Errno 17] File exists: '{obstacle}'). ")
    assert line.endswith(" predictions and labels are kept until it can be used.")


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_deleted_database_is_made_anew(live, tmp_path, what, start_worker):
    """
    When somebody deletes the file, or its folder, all processes go on with the same new one.
    """
    path = tmp_path / "folder" / "labels.db"
    monitor = live(f"sqlite:///{path}")
    worker = start_worker(f"sqlite:///{path}")
    predict(monitor, ids_of("early", 100))
    assert monitor.flush(10.0)
    assert worker.ask("flush", 10.0)

    if what == "file":
        path.unlink()
    else:
        shutil.rmtree(path.parent)
    predict(monitor, ids_of("new", 100))
    worker.ask("predict", ids_of("of-worker", 100))
    assert monitor.flush(10.0)
    assert worker.ask("flush", 10.0)

    assert {"matched"} == set(worker.ask("label", ids_of("new", 100)).values())
    assert {"matched": 100} == outcomes_of(monitor, ids_of("of-worker", 100))


# How long a request is delayed


@dataclasses.dataclass
class Latencies:
    """
    Seconds that calls took.

    Attributes:
        predict, label: Without the time for which the machine had no processor for the caller.
        whole: All of them, with it.
    """

    predict: list[float] = dataclasses.field(default_factory=list)
    label: list[float] = dataclasses.field(default_factory=list)
    whole: list[float] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        return "; ".join(
            f"{name} p99 {1000 * p99(values):.3f} ms, most {1000 * max(values):.1f} ms"
            for name, values in vars(self).items()
        )

    def check(self) -> None:
        """A millisecond at p99, and never much more than Python may take to switch between threads."""
        print(self)
        assert p99(self.predict) <= 0.001, str(self)
        assert p99(self.label) <= 0.001, str(self)
        assert max(self.predict + self.label) <= 0.1, str(self)


def p99(values: list[float]) -> float:
    return sorted(values)[int(0.99 * len(values))]


@contextlib.contextmanager
def without_processor() -> Iterator[Callable[[], float]]:
    """Tells for how many seconds this thread could have run but had no processor; always 0.0 where none says."""
    try:
        status = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
    except OSError:
        yield lambda: 0.0
        return
    try:
        yield lambda: int(os.pread(status, 100, 0).split()[1]) / 1e9
    finally:
        os.close(status)


def latencies(monitor: Any, name: str, count: int, until: Callable[[], bool] = lambda: True) -> Latencies:
    """Predictions and their labels, one after the other as in a service: so many, and on until a condition holds."""
    measured = Latencies()
    now = time.perf_counter
    gc.collect()
    gc.disable()
    try:
        with without_processor() as lost:
            number = 0
            while number < count or not until():
                lost_before, begin = lost(), now()
                monitor.record_prediction(f"{name}-{number}", True)
                middle, lost_between, again = now(), lost(), now()
                outcome = monitor.record_label(f"{name}-{number}", True)
                end, lost_after = now(), lost()
                assert isinstance(outcome, LabelOutcome)
                measured.predict.append(middle - begin - (lost_between - lost_before))
                measured.label.append(end - again - (lost_after - lost_between))
                measured.whole += (middle - begin, end - again)
                number += 1
    finally:
        gc.enable()
    return measured


@pytest.mark.alone
def test_a_redis_that_refuses_delays_nobody(live, impatient, tmp_path, exports):
    """
    Where nothing listens, calls return at once; everything is written once somebody does.
    """
    server = RedisServer(tmp_path, free_port())
    monitor = live(server.url)

    latencies(monitor, "refused", 2000).check()

    assert not monitor.flush(0.3)
    server.start()
    try:
        assert monitor.flush(30.0)
        assert 2000 == monitor.snapshot().labels["matched"]
        assert 2000 == predictions_of(exports)
    finally:
        monitor.close()
        server.stop()


@pytest.mark.alone
def test_a_redis_that_hangs_delays_nobody(live, redis, exports):
    """
    While the server is halted, calls soon do not wait at all; everything is written once it goes on.
    """
    monitor = live(redis.url)
    predict(monitor, ids_of("early", 10))
    assert monitor.flush(10.0)

    redis.pause()
    measured = latencies(monitor, "hanging", 2000)
    assert not monitor.flush(0.3)
    redis.resume()

    measured.check()
    assert monitor.flush(30.0)
    counts = monitor.snapshot().labels
    assert 2000 == counts["matched"] == labels_of(counts)
    assert 2010 == predictions_of(exports)


@pytest.mark.parametrize("pauses", [4])
def test_a_redis_that_hangs_now_and_then_takes_everything_once(live, impatient, redis, pauses, exports):
    """
    Writes whose answers come too late are not made a second time, however often that happens.
    """
    monitor = live(redis.url)
    count = 0
    for number in range(pauses):
        predict(monitor, ids_of(f"pause-{number}", 400))
        assert monitor.flush(10.0)
        stopped = threading.Timer(0.0, redis.pause)
        stopped.start()
        label(monitor, ids_of(f"pause-{number}", 400))
        stopped.join()
        assert not monitor.flush(0.8)  # longer than a write may take
        redis.resume()
        count += 400

    assert monitor.flush(30.0)
    counts = monitor.snapshot().labels
    assert count == counts["matched"] == labels_of(counts)
    assert count == predictions_of(exports)


@pytest.mark.alone
def test_a_redis_that_restarts_amid_traffic_delays_nobody(live, impatient, redis, exports):
    """
    Killed and started again, empty, while predictions and labels are recorded: nobody waits, each label has an outcome.
    """
    monitor = live(redis.url)
    restarted = threading.Event()

    def restart() -> None:
        for _ in range(3):
            redis.kill()
            redis.start()
        restarted.set()

    restarting = threading.Thread(target=restart)
    latencies(monitor, "before", 200)
    restarting.start()
    measured = latencies(monitor, "restarted", 2000, until=restarted.is_set)
    restarting.join()

    assert monitor.flush(30.0)
    measured.check()
    # A label whose prediction was in a server that is gone waits, for nothing.
    counts = monitor.snapshot().labels
    assert 200 + len(measured.label) == labels_of(counts) == counts["matched"] + counts["pending"]
    assert 200 + len(measured.label) == predictions_of(exports)


@pytest.mark.alone
@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_a_store_that_is_well_delays_nobody(live, tmp_path, redis, kind, exports):
    """
    A label waits half a millisecond for its outcome at most, by default; then it is decided later.
    """
    monitor = live(redis.url if kind == "redis" else f"sqlite:///{tmp_path}/labels.db")
    latencies(monitor, "first", 100)

    latencies(monitor, "well", 2000).check()
    assert monitor.flush(30.0)
    assert 2100 == monitor.snapshot().labels["matched"]
    assert 2100 == predictions_of(exports)


# Answers that are lost


class Proxy:
    """
    Between a client and a Redis; it can break connections at the worst moment.

    Args:
        port: Of the Redis.
    """

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self.lose_answers = 0  # of so many writes, which are executed
        self.hold = False  # the next write: its connection breaks before it is executed ...
        self._held: list[bytes] = []
        self.release_after = b"\0"  # ... which it is right after the answer to a request that contains this
        self.lost = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with (
            client,
            socket.create_connection(("127.0.0.1", self._server_port)) as server,
            contextlib.suppress(OSError),
        ):
            while request := self._request(client):
                is_write = b"EVALSHA" in request and b"omm:proof:" in request
                if is_write and self.hold:
                    self.hold = False
                    self.lost += 1
                    self._held.append(request)
                    return
                server.sendall(request)
                answer = server.recv(1 << 20)
                if is_write and self.lose_answers and not answer.startswith(b"-"):
                    self.lose_answers -= 1
                    self.lost += 1
                    return
                if self._held and self.release_after in request:
                    self._execute(self._held.pop())
                client.sendall(answer)

    def _request(self, client: socket.socket) -> bytes:
        """A whole request: what its first lines announce."""
        with contextlib.suppress(IndexError, ValueError):
            request = b""
            while piece := client.recv(1 << 20):
                request += piece
                if _is_whole(request):
                    return request
        return b""

    def _execute(self, request: bytes) -> None:
        with socket.create_connection(("127.0.0.1", self._server_port)) as server:
            server.sendall(request)
            assert b":1\r\n" == server.recv(1 << 10)


def _is_whole(request: bytes) -> bool:
    head, _, rest = request.partition(b"\r\n")
    for _ in range(int(head[1:])):
        length, found, rest = rest.partition(b"\r\n")
        if not found or len(rest) < int(length[1:]) + 2:
            return False
        rest = rest[int(length[1:]) + 2 :]
    return True


@pytest.fixture
def proxy(redis: RedisServer) -> Iterator[Proxy]:
    proxy = Proxy(redis.port)
    yield proxy
    proxy.close()


@pytest.mark.parametrize("times", [1, 3])
def test_a_write_whose_answer_is_lost_is_not_made_again(live, proxy, times, exports):
    """
    A server that has written and a connection that breaks before it says so: each label joins, and is counted, once.
    """
    monitor = live(proxy.url)
    predict(monitor, ids_of("id", 100))
    label(monitor, ids_of("id", 20))
    assert monitor.flush(10.0)

    proxy.lose_answers = times
    predict(monitor, ids_of("more", 100))
    label(monitor, ids_of("id", 100))
    label(monitor, ids_of("more", 100))
    assert eventually(lambda: proxy.lost == 1, "an answer that is lost")
    proxy.lose_answers = times - 1
    predict(monitor, ids_of("last", 10))
    label(monitor, ids_of("last", 10))

    assert monitor.flush(30.0)
    counts = monitor.snapshot().labels
    assert (210, 20) == (counts["matched"], counts["duplicate"])
    assert 230 == labels_of(counts)
    assert 210 == predictions_of(exports)
    assert {"duplicate": 210} == outcomes_of(monitor, ids_of("id", 100) + ids_of("more", 100) + ids_of("last", 10))


@pytest.mark.parametrize("moment", [b"EXISTS", b"MGET", b"PING"])
def test_a_write_that_arrives_late_is_not_made_again(live, proxy, moment, exports):
    """
    A server that executes what it got from a connection that is gone, at whatever moment: each label joins once.
    """
    monitor = live(proxy.url)
    predict(monitor, ids_of("id", 100))
    label(monitor, ["id-0"])
    assert monitor.flush(10.0)

    proxy.release_after = moment
    proxy.hold = True
    label(monitor, ids_of("id", 100))

    assert monitor.flush(30.0)
    assert 1 == proxy.lost
    assert [] == proxy._held
    counts = monitor.snapshot().labels
    assert (100, 1) == (counts["matched"], counts["duplicate"])
    assert 101 == labels_of(counts)


# Several processes


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_a_label_that_two_processes_record_joins_in_one(tmp_path, redis, kind, start_worker):
    """
    Of two processes that are told the same labels at the same time, exactly one has each of them as a row.
    """
    store = redis.url if kind == "redis" else f"sqlite:///{tmp_path}/labels.db"
    workers = [start_worker(store) for _ in range(2)]
    ids = ids_of("id", 600)
    for number, worker in enumerate(workers):
        worker.ask("predict", ids[number::2])
    for worker in workers:
        assert worker.ask("flush", 10.0)

    barrier = threading.Barrier(2)

    def tell(worker: Worker) -> dict[str, str]:
        barrier.wait()
        return worker.ask("label", ids)

    with ThreadPoolExecutor(2) as pool:
        told = list(pool.map(tell, workers))

    found = collections.Counter((id, outcome) for of_one in told for id, outcome in of_one.items())
    assert {(id, outcome): 1 for id in ids for outcome in ("matched", "duplicate")} == found
    counts = [worker.ask("labels") for worker in workers]
    assert (600, 600) == tuple(sum(count[outcome] for count in counts) for outcome in ("matched", "duplicate"))
    assert 1200 == labels_of(*counts)


# Clocks


def store_of(kind: str, tmp_path: Path, redis: RedisServer) -> str:
    return {"memory": "memory", "sqlite": f"sqlite:///{tmp_path}/labels.db", "redis": redis.url}[kind]


@pytest.mark.parametrize("kind", ["memory", "sqlite", "redis"])
def test_a_clock_that_goes_backwards_loses_nothing(make, clock, tmp_path, redis, kind):
    """
    Labels that seem to come before their predictions join them, after no time at all.
    """
    monitor = make(BinaryMonitor, store=store_of(kind, tmp_path, redis), ttl=3600.0)
    predict(monitor, ids_of("id", 100))
    assert monitor.flush(10.0)

    clock.tick(-1800.0)

    assert {"matched": 100} == outcomes_of(monitor, ids_of("id", 100))
    assert monitor.flush(10.0)
    snapshot = monitor.snapshot()
    assert 0.0 <= snapshot.value("label.delay", quantile=0.99) <= 1.0
    assert 100 == labels_of(snapshot.labels)
    # Of a label whose clock is behind that of its prediction by more than ttl the prediction is from the future.
    clock.tick(+1800.0)
    predict(monitor, ids_of("future", 100))
    assert monitor.flush(10.0)
    clock.tick(-4 * 3600.0)
    assert {"matched": 100} == outcomes_of(monitor, ids_of("future", 100))


@pytest.mark.parametrize("kind", ["memory", "sqlite", "redis"])
def test_a_clock_that_jumps_ahead_and_back_loses_nothing(make, clock, tmp_path, redis, kind):
    """
    What was predicted while the clock was ahead has its label, and what was predicted before the jump as well.
    """
    monitor = make(BinaryMonitor, store=store_of(kind, tmp_path, redis), ttl=3600.0)
    predict(monitor, ids_of("before", 100))
    assert monitor.flush(10.0)
    clock.tick(1800.0)
    predict(monitor, ids_of("ahead", 100))
    assert {"matched": 50} == outcomes_of(monitor, ids_of("before", 50))
    clock.tick(-1800.0)

    assert {"matched": 50} == outcomes_of(monitor, ids_of("before", 100)[50:])
    assert {"matched": 100} == outcomes_of(monitor, ids_of("ahead", 100))
    assert 200 == labels_of(monitor.snapshot().labels)


# The end of a process


@pytest.mark.alone
@pytest.mark.parametrize("how", ["return", "exit", "fork", "spawn"])
def test_a_process_that_ends_in_good_order_loses_nothing(live, tmp_path, how):
    """
    What was recorded just before the end is written, in a main process, in forked children, and in multiprocessing's.
    """
    if how == "fork" and "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system has no fork")
    store = f"sqlite:///{tmp_path}/labels.db?interval=60"

    subprocess.run([sys.executable, str(WORKER), "end", store, "id", how], check=True, timeout=60)

    monitor = live(store)
    assert {"matched": 1000} == outcomes_of(monitor, ids_of("id", 1000))
    with contextlib.closing(sqlite3.connect(tmp_path / "labels.db")) as connection:
        assert [("ok",)] == connection.execute("PRAGMA integrity_check").fetchall()


def test_a_process_that_is_ended_abruptly_loses_an_interval_at_most(live, tmp_path):
    """
    After os._exit, what was recorded before the last write is there.
    """
    store = f"sqlite:///{tmp_path}/labels.db?interval=0.05"

    subprocess.run([sys.executable, str(WORKER), "end", store, "id", "abort"], check=True, timeout=60)

    monitor = live(store)
    assert {"matched": 1000} == outcomes_of(monitor, ids_of("id", 1000))
    assert {"matched", "pending"} >= outcomes_of(monitor, ids_of("id-late", 1000)).keys()


# Asked to wait


@contextlib.contextmanager
def away(kind: str, tmp_path: Path, redis: RedisServer) -> Iterator[str]:
    """The URL of a store that is away."""
    if kind == "refusing":
        yield f"redis://127.0.0.1:{free_port()}/0"
    elif kind == "hanging":
        redis.pause()
        yield redis.url
        redis.resume()
    elif kind == "locked":
        with contextlib.closing(sqlite3.connect(tmp_path / "labels.db")) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
        with locked(tmp_path / "labels.db"):
            yield f"sqlite:///{tmp_path}/labels.db"
    else:
        (tmp_path / "obstacle").touch()
        yield f"sqlite:///{tmp_path}/obstacle/labels.db"


@pytest.mark.alone
@pytest.mark.parametrize("kind", ["refusing", "hanging", "locked", "not writable"])
def test_flush_and_close_do_not_wait_for_a_store_that_is_away(live, tmp_path, redis, kind, exports, caplog):
    """
    Flush says no after the time it was given, close ends soon, and what could not be written is dropped and counted.
    """
    with away(kind, tmp_path, redis) as store:
        monitor = live(store)
        predict(monitor, ids_of("id", 100))
        label(monitor, ids_of("id", 30))

        begin = time.monotonic()
        assert not monitor.flush(0.3)
        flushed = time.monotonic()
        monitor.close()
        closed = time.monotonic()

    assert 0.3 <= flushed - begin <= 0.8
    assert closed - flushed <= 3.0
    ledger = monitor._joining._ledger
    eventually(lambda: ledger._writer._thread is None, "the end of the thread")
    counts = monitor.snapshot().labels
    assert 30 == labels_of(counts)
    # A server that only hung may have got them in the end.
    assert (100, 30) == (counts["prediction_dropped"], counts["dropped"]) or kind == "hanging"
    if counts["dropped"]:
        assert "130 predictions and labels could not be written and are dropped." in caplog.text


# What is said


@pytest.mark.parametrize(
    ("store", "message"),
    [
        ("postgres://db/labels", '{expected}, got "postgres://db/labels".'),
        ("", '{expected}, got "".'),
        ("sqlite://labels.db", '{expected}, got "sqlite://labels.db". {slashes}'),
        ("sqlite:///", '{expected}, got "sqlite:///". {slashes}'),
        ("sqlite:///a.db?interval=-1", "interval of a store must be a number >= 0, got '-1'. It is 0.1 by default."),
        ("sqlite:///a.db?buffer=0", "buffer of a store must be a number >= 1, got '0'. It is 200000 by default."),
        ("redis://h/0?wait=soon", "wait of a store must be a number >= 0, got 'soon'. It is 0.0005 by default."),
        (
            "sqlite:///a.db?synchronous=maybe",
            "synchronous must be one of off, normal, full, extra, got 'maybe'.",
        ),
        (
            "sqlite:///a.db?intervall=1",
            "Unknown setting 'intervall' of a store. Known: interval, buffer, wait, synchronous.",
        ),
    ],
)
def test_a_store_that_cannot_be_named_is_refused(make, store, message):
    """
    What was expected, what came, and what to do: when the monitor is made, and not in a thread later.
    """
    expected = 'store must be "memory", "sqlite:///path/to/file.db" or "redis://host:6379/0"'
    slashes = "An absolute path has four slashes: sqlite:////var/lib/labels.db."

    with pytest.raises(ValueError) as refused:  # noqa: PT011
        make(BinaryMonitor, store=store)

    assert message.format(expected=expected, slashes=slashes).replace('got "', "got '").replace('".', "'.") == str(
        refused.value
    )


def test_a_setting_that_redis_does_not_know_is_refused(make):
    """
    A slip of the pen in the URL is a ValueError at once, and not a thread that fails for ever.
    """
    with pytest.raises(ValueError, match=r"^A setting in the URL of the store is not known to redis-py: .*'intervall'"):
        make(BinaryMonitor, store="redis://localhost/0?intervall=1")


def test_a_missing_extra_is_named(make, monkeypatch):
    """
    Without redis-py the message says what to install.
    """
    monkeypatch.setitem(sys.modules, "redis", None)

    with pytest.raises(ModuleNotFoundError) as missing:
        make(BinaryMonitor, store="redis://localhost/0")

    assert 'A store in Redis needs the extra redis: pip install "otel-model-metrics[redis]"' == str(missing.value)


def test_no_password_is_logged(live, impatient, tmp_path, caplog):
    """
    Neither a wrong password, nor the right one of a server that is gone, is in what is logged.
    """
    caplog.set_level(logging.DEBUG)
    with redis_server(tmp_path, extra=("--requirepass", "right-secret")) as server:
        where = f"127.0.0.1:{server.port}/0"
        wrong = live(f"redis://:wrong-secret@{where}", name="wrong")
        right = live(f"redis://:right-secret@{where}", name="right")
        predict(wrong, ["id"])
        predict(right, ["id"])
        assert not wrong.flush(0.5)
        assert right.flush(10.0)
    predict(right, ["id-2"])
    assert not right.flush(0.5)
    wrong.close()
    right.close()

    lines = [record.getMessage() for record in caplog.records if record.name == "otel_model_metrics"]
    assert 4 == len(lines), lines
    assert all(line.startswith(f"Redis store 127.0.0.1:{server.port}: ") for line in lines), lines
    assert "secret" not in caplog.text


# Values that cannot be used


@pytest.mark.parametrize("kind", ["memory", "sqlite", "redis"])
def test_ids_and_labels_that_cannot_be_used_fail_nobody(make, tmp_path, redis, kind, exports):
    """
    Empty ids, ids of a megabyte, labels of the wrong type: each is rejected and counted; unknown ids wait.
    """
    monitor = make(BinaryMonitor, store=store_of(kind, tmp_path, redis))
    huge = "x" * 1_000_000
    unusable = ["", huge, huge.encode(), 10**100_000, None, 1.5, object(), "\0", "\ud800"]
    for id in unusable:
        monitor.record_prediction(id, True)
        assert LabelOutcome.REJECTED == monitor.record_label(id, True)
    predict(monitor, ["known"])
    for wrong in ("maybe", 7, object(), huge, [True]):
        assert LabelOutcome.REJECTED == monitor.record_label("known", wrong)

    assert LabelOutcome.PENDING == monitor.record_label("unknown", True, wait=10.0)
    assert LabelOutcome.MATCHED == monitor.record_label("known", True, wait=10.0)

    counts = monitor.snapshot().labels
    assert len(unusable) + 5 == counts["rejected"]
    assert len(unusable) + 5 + 2 == labels_of(counts)
    assert 1 == predictions_of(exports)
