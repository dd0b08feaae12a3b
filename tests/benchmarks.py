"""
What the library costs, as ratios against peers measured in the same run.

    make bench                  all measurements
    make bench ARGS=--check     and fail where one is over its budget

Nanoseconds differ from machine to machine and from minute to minute; ratios of one run much less. Each figure is
the best of several repetitions, which is the one least disturbed by whatever else the machine did.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
import tracemalloc
import uuid
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import backends
import numpy as np
import prometheus_client
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from river import metrics as river_metrics
from river import utils as river_utils
from sklearn.metrics import precision_recall_fscore_support

from otel_model_metrics import BinaryMonitor, MulticlassMonitor, RankingMonitor, RegressionMonitor, Window

ROWS = 60_000
BATCH = 10_000
COLLECTED = 100_000
LATE = 4096
STORED = 50_000
STORED_AT_ONCE = 5_000
FILED = 10_000_000
EVIDENTLY = ("evidently>=0.7", "pandas<3", "pyarrow")  # it does not start with a newer pandas
PENDING_SEGMENTS = {"country": "DE", "channel": "web"}
README = Path(__file__).parent.parent / "README.md"


def best(function: Callable[[], object], rows: int, repetitions: int = 7) -> float:
    """Nanoseconds a row, the best of several runs."""
    times = []
    for _ in range(repetitions):
        gc.collect()
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return min(times) / rows * 1e9


def loop(call: Callable[[], object], times: int = 20_000) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            call()

    return run


@dataclass
class Line:
    """One measurement: ours, a peer's, and the most that ours may be of it (or in nanoseconds)."""

    what: str
    ours: float
    peer: str
    theirs: float | None
    budget: str
    within: bool
    unit: str = "ns"

    def cells(self) -> list[str]:
        theirs = "" if self.theirs is None else f"{self.theirs:,.0f} ns"
        ratio = ""
        if self.theirs is not None:
            part = self.theirs / self.ours
            ratio = f"1/{part:.1f}" if part >= 1 else f"{1 / part:.1f}/1"
        return [
            self.what,
            f"{self.ours:,.0f} {self.unit}",
            self.peer,
            theirs,
            ratio,
            self.budget,
            "yes" if self.within else "NO",
        ]


def against(what: str, ours: float, peer: str, theirs: float, at_most: float) -> Line:
    budget = f"1/{at_most:g}" if at_most >= 1 else f"{1 / at_most:g}/1"
    return Line(what, ours, peer, theirs, budget, ours * at_most <= theirs)


def monitor_of(name: str, **arguments: object) -> BinaryMonitor:
    return BinaryMonitor(name, meter_provider=MeterProvider(shutdown_on_exit=False), **arguments)


def record_calls() -> list[Line]:
    """One call of record(), beside one call of the counters people know."""
    counter = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False).get_meter("bench").create_counter("calls")
    add = best(loop(lambda: counter.add(1, {"model": "m", "version": "1", "country": "DE", "channel": "web"})), 20_000)
    labels = prometheus_client.Counter(
        "calls", "calls", ["model", "version", "country", "channel"], registry=prometheus_client.CollectorRegistry()
    )
    inc = best(loop(lambda: labels.labels("m", "1", "DE", "web").inc()), 20_000)
    rolling = river_utils.Rolling(river_metrics.F1, window_size=10_000)
    river = best(loop(lambda: rolling.update(True, False), 5_000), 5_000, repetitions=3)

    full = monitor_of("full")
    plain = monitor_of("plain")
    staging = full._recorder.staging_limit // 5 - 1

    def caller() -> None:
        full._staged.clear()
        for _ in range(staging):
            full.record(prediction=True, label=False, score=0.83, segments={"country": "DE", "channel": "web"})

    caller()
    full.snapshot()  # as in a service: the segments have been met before
    in_caller = best(caller, staging, repetitions=50)

    def amortised_full() -> None:
        for _ in range(ROWS):
            full.record(prediction=True, label=False, score=0.83, segments={"country": "DE", "channel": "web"})
        full.snapshot()

    def amortised_plain() -> None:
        for _ in range(ROWS):
            plain.record(True, False)
        plain.snapshot()

    all_in, all_in_plain = best(amortised_full, ROWS, 5), best(amortised_plain, ROWS, 5)
    with_all = "`record`, score, 2 segments"
    return [
        against(f"{with_all}: in the caller", in_caller, "`Counter.add`, 4 attributes", add, 12),
        against(f"{with_all}: in the caller", in_caller, "`.labels().inc()`, 4 labels", inc, 2),
        against(f"{with_all}: all in", all_in, "`Counter.add`, 4 attributes", add, 10),
        against("`record(prediction, label)`: all in", all_in_plain, "`Counter.add`, 4 attributes", add, 18),
        against("`record(prediction, label)`: all in", all_in_plain, "`.labels().inc()`, 4 labels", inc, 3),
        against("`record(prediction, label)`: all in", all_in_plain, "River `Rolling(F1).update`", river, 1),
    ]


def batches() -> list[Line]:
    """record_batch of 10,000 rows."""
    rng = np.random.default_rng(0)
    labels = rng.random(BATCH) < 0.3
    scores = rng.random(BATCH)
    predictions = scores >= 0.5
    countries = np.array([f"country {n}" for n in range(40)], object)[rng.integers(0, 40, BATCH)]
    channels = np.array(["web", "app", "shop"], object)[rng.integers(0, 3, BATCH)]
    plain, full = monitor_of("plain batch"), monitor_of("full batch")

    def with_segments() -> None:
        full.record_batch(predictions, labels, scores=scores, segments={"country": countries, "channel": channels})

    with_segments()
    without = best(loop(lambda: plain.record_batch(predictions, labels, scores=scores), 20), 20 * BATCH)
    within = best(loop(with_segments, 20), 20 * BATCH)
    return [
        Line("`record_batch`, a row of 10,000", without, "", None, "20 ns", without <= 20),
        Line("`record_batch`, 2 segments as arrays", within, "", None, "60 ns", within <= 60),
    ]


def collections() -> list[Line]:
    """One collection of 100,000 rows in 100 segments, beside one call of scikit-learn without segments."""
    rng = np.random.default_rng(0)
    labels, predictions = rng.random(COLLECTED) < 0.3, rng.random(COLLECTED) < 0.4
    segments = {
        "country": np.array([f"country {n}" for n in range(50)], object)[rng.integers(0, 50, COLLECTED)],
        "shop": np.array([f"shop {n}" for n in range(50)], object)[rng.integers(0, 50, COLLECTED)],
    }
    monitor = monitor_of("collected", window=Window(rows=COLLECTED))
    monitor.record_batch(predictions, labels, segments=segments)
    assert monitor.snapshot().rows == COLLECTED
    assert len(monitor.snapshot().segments) == 101
    ours = best(monitor.snapshot, 1, 30)
    warnings.simplefilter("ignore")
    theirs = best(lambda: precision_recall_fscore_support(labels, predictions, average="binary"), 1, 5)
    what = "collection, 100,000 rows x 100 segments"
    return [
        Line(what, ours, "", None, "2 ms", ours <= 2e6),
        against(what, ours, "`precision_recall_fscore_support`", theirs, 1),
    ]


def late_labels() -> list[Line]:
    """Predictions and their labels through the store in memory, beside one call of Counter.add."""
    counter = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False).get_meter("bench").create_counter("calls")
    add = best(loop(lambda: counter.add(1, {"model": "m", "version": "1", "country": "DE", "channel": "web"})), 20_000)
    monitor = monitor_of("late", capacity=1_000_000)
    ids = [str(uuid.UUID(int=number)) for number in range(20 * LATE)]
    begin = iter(range(0, len(ids), LATE))

    def both() -> None:
        first = next(begin)
        for id in ids[first : first + LATE]:
            monitor.record_prediction(id, True, score=0.83, segments={"country": "DE", "channel": "web"})
        for id in ids[first : first + LATE]:
            monitor.record_label(id, False)

    both()
    ours = best(both, LATE, 15)
    return [against("prediction and late label, in memory", ours, "`Counter.add`, 4 attributes", add, 1)]


def stores() -> list[Line]:
    """The same through SQLite and Redis, beside plain upserts of the same rows."""
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        name = f"{folder}/labels.db"
        plain = Path(folder) / "plain.db"
        ours, theirs = best_of(
            lambda turn: through_store(f"sqlite:///{name}", turn), lambda turn: plain_sqlite(plain, turn)
        )
        lines.append(against("prediction and late label, SQLite", ours, "two upserts with `sqlite3`", theirs, 0.5))
        try:
            with backends.redis_server(Path(folder)) as server:
                url = server.url
                ours, theirs = best_of(lambda turn: through_store(url, turn), lambda turn: plain_redis(url, turn))
            what = "two upserts with `redis-py`, pipelined"
            lines.append(against("prediction and late label, Redis", ours, what, theirs, 0.5))
        except pytest.skip.Exception as reason:
            print(reason, file=sys.stderr)
    return lines


def best_of(*runs: Callable[[int], float], turns: int = 4) -> list[float]:
    """Nanoseconds a row of each, the best of several runs, which take turns and are told apart by their number."""
    seconds: list[list[float]] = [[] for _ in runs]
    for turn in range(turns):
        for taken, run in zip(seconds, runs, strict=True):
            gc.collect()
            taken.append(run(turn))
    return [min(taken) / STORED * 1e9 for taken in seconds]


def rows_of(turn: int) -> tuple[list[str], list[bool], list[float], list[str]]:
    """Ids, predictions, scores and countries, the same for everybody in this turn."""
    rng = np.random.default_rng(turn)
    ids = [str(uuid.UUID(bytes=rng.bytes(16))) for _ in range(STORED)]
    scores = rng.random(STORED)
    return ids, (scores > 0.5).tolist(), scores.tolist(), rng.choice(["DE", "FR", "IT"], STORED).tolist()


def through_store(store: str, turn: int) -> float:
    """Seconds from the first prediction until the last label has joined."""
    ids, predictions, scores, countries = rows_of(turn)
    monitor = monitor_of("stored", store=store)
    begin = time.perf_counter()
    for first in range(0, STORED, STORED_AT_ONCE):
        some = slice(first, first + STORED_AT_ONCE)
        monitor.record_prediction_batch(
            ids[some], predictions[some], scores=scores[some], segments={"country": countries[some]}
        )
    assert monitor.flush(60)
    for first in range(0, STORED, STORED_AT_ONCE):
        some = slice(first, first + STORED_AT_ONCE)
        monitor.record_label_batch(ids[some], predictions[some], wait=0.0)
    assert monitor.flush(60)
    taken = time.perf_counter() - begin
    assert STORED == monitor.snapshot().labels["matched"]
    monitor.close()
    return taken


def plain_sqlite(path: Path, turn: int) -> float:
    """Seconds for the same rows in a table, with the same settings."""
    ids, predictions, scores, countries = rows_of(turn)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS predictions (model TEXT, version TEXT, id TEXT, time REAL, prediction INTEGER, "
        "score REAL, segments TEXT, label INTEGER, UNIQUE (model, version, id))"
    )
    predicted = (
        "INSERT INTO predictions (model, version, id, time, prediction, score, segments) VALUES (?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT DO UPDATE SET prediction = excluded.prediction, score = excluded.score"
    )
    labelled = (
        "INSERT INTO predictions (model, version, id, label) VALUES (?, ?, ?, ?) "
        "ON CONFLICT DO UPDATE SET label = excluded.label"
    )
    begin = time.perf_counter()
    for statement, row in (
        (
            predicted,
            lambda i: ("m", "1", ids[i], time.time(), predictions[i], scores[i], json.dumps({"country": countries[i]})),
        ),
        (labelled, lambda i: ("m", "1", ids[i], predictions[i])),
    ):
        for first in range(0, STORED, STORED_AT_ONCE):
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(statement, map(row, range(first, min(first + STORED_AT_ONCE, STORED))))
            connection.execute("COMMIT")
    taken = time.perf_counter() - begin
    connection.close()
    return taken


def plain_redis(url: str, turn: int) -> float:
    """Seconds for the same rows as hashes that expire."""
    ids, predictions, scores, countries = rows_of(turn)
    client = redis.Redis.from_url(url)
    begin = time.perf_counter()
    for label in (False, True):
        for first in range(0, STORED, 500):
            pipeline = client.pipeline(transaction=False)
            for i in range(first, min(first + 500, STORED)):
                key = f"predictions:m:1:{ids[i]}"
                if label:
                    pipeline.hset(key, "label", int(predictions[i]))
                else:
                    segments = json.dumps({"country": countries[i]})
                    row = {"time": time.time(), "prediction": int(predictions[i]), "score": scores[i]}
                    pipeline.hset(key, mapping={**row, "segments": segments})
                    pipeline.pexpire(key, 604_800_000)
            pipeline.execute()
    taken = time.perf_counter() - begin
    client.close()
    return taken


def files() -> list[Line]:
    """A file of 10,000,000 rows, 24 windows and 2 segments, beside group-bys of the same file."""
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/rows.parquet"
        write_rows(Path(path))
        for copy in range(3):
            os.link(path, f"{folder}/more{copy}.parquet")
        alone, memory = zip(*(timed(EVALUATED, path, 1) for _ in range(5)), strict=True)
        together, memories = zip(*(timed(EVALUATED, path, 2) for _ in range(5)), strict=True)
        most_alone, most_together = (min(timed(EVALUATED, folder, n)[0] for _ in range(3)) for n in (1, 2))
        ours = min(alone) / FILED * 1e9
        what = "`evaluate`, a row of Parquet, 24 windows, 2 segments"
        duckdb = "DuckDB, 1 thread, confusion counts by window and"
        for peer, sets, at_most in (
            (f"{duckdb} segment", "grouping sets ((w, y, p), (w, country, y, p), (w, channel, y, p))", 1),
            (f"{duckdb} both segments at once", "all", 1),
        ):
            lines += beside(what, ours, peer, at_most, DUCKDB, path, sets)
        lines += beside(
            what, ours, "pandas and scikit-learn, f1 by window and segment, of 1,000,000 rows", 1, PANDAS, path
        )
        peer = "evidently, f1, precision, recall without windows and segments, of 200,000 rows"
        lines += beside(what, ours, peer, 1, EVIDENT, path, python=evidently())
        # Until the second process is there, the first one has read some four million rows.
        workers = against("the same with `--workers 2`", min(together) / FILED * 1e9, "one process", ours, 1)
        rows = 4 * FILED
        more = against(
            "the same of 40,000,000 rows with `--workers 2`",
            most_together / rows * 1e9,
            "one process",
            most_alone / rows * 1e9,
            1.6,
        )
        lines += [workers, more]
        for processes, size in ((1, max(memory)), (2, max(memories))):
            what = f"memory of `evaluate` with {processes} process{'es' if processes > 1 else ''}"
            lines.append(Line(what, size, "", None, "500 MB", size <= 500, "MB"))
    return lines


def write_rows(path: Path) -> None:
    """A day of predictions, a million rows at a time."""
    random, some, writer = np.random.default_rng(0), 1_000_000, None
    day = 86_400_000_000
    for part in range(FILED // some):
        label = random.random(some) < 0.3
        time = 1_700_006_400_000_000 + np.sort((part + random.random(some)) * day * some / FILED).astype(np.int64)
        table = pa.table(
            {
                "p": label ^ (random.random(some) < 0.1),
                "y": label,
                "country": pa.array(random.choice(["DE", "FR", "US", "IT", "ES"], some)),
                "channel": pa.array(random.choice(["web", "app", "api"], some)),
                "time": pa.array(time, pa.timestamp("us", tz="UTC")),
            }
        )
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


# Programs of their own, so that each begins with nothing in memory: they print seconds.

EVALUATED = """
import resource, sys, time
from otel_model_metrics.batch import Job, evaluate
job = Job("binary", "p", "y", time="time", segments=("country", "channel"))
begin = time.perf_counter()
found = evaluate(sys.argv[1], job, workers=int(sys.argv[2]))
seconds = time.perf_counter() - begin
assert found.rows % 10_000_000 == 0 < found.rows and 24 == len(found.windows), found
# Not that of getrusage(), which begins with what the program had that started this one.
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
others = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (int(sys.argv[2]) - 1)
print(seconds, (int(status["VmHWM"].split()[0]) + others) / 1024)
"""

DUCKDB = """
import sys, time
import duckdb
connection = duckdb.connect()
connection.execute("set threads = 1")
connection.execute("set enable_progress_bar = false")
begin = time.perf_counter()
counts = "select date_trunc('hour', time) w, country, channel, y, p, count(*) from read_parquet(?) group by "
rows = connection.execute(counts + sys.argv[2], [sys.argv[1]]).fetchall()
seconds = time.perf_counter() - begin
assert len(rows) in (24 * 4 * (1 + 5 + 3), 24 * 4 * 5 * 3), len(rows)
print(seconds, 0)
"""

PANDAS = """
import sys, time
import pandas, pyarrow.parquet
from sklearn.metrics import precision_recall_fscore_support
begin = time.perf_counter()
rows = pyarrow.parquet.ParquetFile(sys.argv[1]).read_row_group(0).to_pandas()
for keys in (["w"], ["w", "country"], ["w", "channel"]):
    for _, one in rows.assign(w=rows["time"].dt.floor("h")).groupby(keys):
        precision_recall_fscore_support(one["y"], one["p"], average="binary", zero_division=0)
print((time.perf_counter() - begin) * 10_000_000 / len(rows), 0)
"""

EVIDENT = """
import sys, time, warnings
warnings.simplefilter("ignore")
import pyarrow.parquet
from evidently import BinaryClassification, DataDefinition, Dataset, Report
from evidently.metrics import F1Score, Precision, Recall
begin = time.perf_counter()
batches = pyarrow.parquet.ParquetFile(sys.argv[1]).iter_batches(200_000, columns=["p", "y"])
rows = next(batches).to_pandas().astype(int)
definition = DataDefinition(classification=[BinaryClassification(target="y", prediction_labels="p")])
Report([F1Score(), Precision(), Recall()]).run(Dataset.from_pandas(rows, definition), None).dict()
print((time.perf_counter() - begin) * 10_000_000 / len(rows), 0)
"""


def timed(program: str, *arguments: object, python: str = sys.executable) -> tuple[float, float]:
    """Seconds and MB that a program says it took."""
    done = subprocess.run([python, "-c", program, *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ModuleNotFoundError((done.stderr.strip() or "it said nothing").splitlines()[-1])
    seconds, size = map(float, done.stdout.splitlines()[-1].split())
    return seconds, size


def beside(
    what: str, ours: float, peer: str, at_most: float, program: str, *arguments: object, python: str = sys.executable
) -> list[Line]:
    """A peer in a program of its own; no line, but the reason, where it does not run here."""
    try:
        theirs = min(timed(program, *arguments, python=python)[0] for _ in range(3))
    except (OSError, ModuleNotFoundError) as reason:
        print(f"    without {peer.partition(',')[0]}: {reason}", file=sys.stderr)
        return []
    return [against(what, ours, peer, theirs / FILED * 1e9, at_most)]


def evidently() -> str:
    """The interpreter of an environment of its own, which is made if there is none."""
    place = README.parent / ".cache" / "evidently"
    python = place / "bin" / "python"
    if not (place / "installed").exists():
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "check": False}
        subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", place], **quiet)
        install = [sys.executable, "-m", "pip", "--python", python, "install", "--disable-pip-version-check"]
        if not subprocess.run([*install, *EVIDENTLY], **quiet).returncode:
            (place / "installed").touch()
    return str(python)


def pending() -> float:
    """Bytes of each of a million predictions that wait, with an id of 36 characters, a score and two segments."""
    monitor = monitor_of("pending", capacity=1_000_000)
    gc.collect()
    tracemalloc.start()
    for number in range(1_000_000):
        monitor.record_prediction(str(uuid.UUID(int=number)), True, score=0.83, segments=PENDING_SEGMENTS)
    monitor.snapshot()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return size / 1_000_000


def memory() -> list[tuple[str, float]]:
    """Bytes a row of the window."""
    window = Window(rows=100_000)
    provider = MeterProvider(shutdown_on_exit=False)
    monitors = [
        BinaryMonitor("m1", window=window, meter_provider=provider),
        MulticlassMonitor("m2", window=window, meter_provider=provider),
        RegressionMonitor("m3", window=window, meter_provider=provider),
        RankingMonitor("m4", window=window, meter_provider=provider),
    ]
    return [(monitor.task, monitor._recorder.nbytes / window.rows) for monitor in monitors]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--check", action="store_true", help="exit 1 where a figure is over its budget")
    parser.add_argument("--readme", action="store_true", help="write the table into README.md")
    arguments = parser.parse_args()
    lines: list[Line] = []
    measures = (record_calls, batches, collections, late_labels, stores, files)
    for step, measure in enumerate(measures, start=1):
        print(f"[{step}/{len(measures) + 1}] {measure.__doc__}", file=sys.stderr, flush=True)
        lines += measure()
    header = ["what", "ours", "peer", "peer's", "ratio", "budget", "within"]
    table = [header, ["---"] * len(header), *(line.cells() for line in lines)]
    table += [
        [f"memory of a row, {task}", f"{size:.0f} bytes", "", "", "", "40 bytes", "yes" if size <= 40 else "NO"]
        for task, size in memory()
    ]
    print(f"[{len(measures) + 1}/{len(measures) + 1}] {pending.__doc__}", file=sys.stderr, flush=True)
    size = pending()
    table.append(
        ["memory of a pending prediction", f"{size:.0f} bytes", "", "", "", "250 bytes", "yes" if size <= 250 else "NO"]
    )
    text = "\n".join("| " + " | ".join(row) + " |" for row in table)
    print(text)
    if arguments.readme:
        begin, end = "<!-- benchmarks -->\n", "<!-- /benchmarks -->"
        before, _, rest = README.read_text().partition(begin)
        README.write_text(before + begin + text + "\n" + end + rest.partition(end)[2])
    return int(arguments.check and "NO" in text)


if __name__ == "__main__":
    raise SystemExit(main())
