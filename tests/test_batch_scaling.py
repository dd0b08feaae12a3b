"""
Files are evaluated by several processes, or on a cluster: the same values to the last bit, and an end to every fault.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import distributed
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batch_worker import (
    SECONDS,
    faulty,
    gone,
    killed,
    modules,
    refusing,
    unsendable,
    without_memory,
    without_memory_here,
    wrong,
)
from dask import config
from test_batch_evaluation import as_jsonl, as_parquet, job_of, numbers, some_parts, table_of
from test_oracles import SCENARIOS

from otel_model_metrics import catalog
from otel_model_metrics.batch import Evaluation, Job, Statistics, cluster, container, evaluate, merged, reading, running
from otel_model_metrics.batch.labels import Labels
from otel_model_metrics.batch.merging import Tree
from otel_model_metrics.batch.processes import Processes, WorkerError
from otel_model_metrics.batch.reading import Part, parts_of
from otel_model_metrics.batch.statistics import Kept
from otel_model_metrics.cells import arrow_numbers
from otel_model_metrics.files import InputError

# Merging


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 21])
def test_the_tree_has_the_same_shape_in_whatever_order_parts_come(count):
    """
    Sums of floats depend on it.
    """

    def merged(places: list[int]) -> str | None:
        tree: Tree[str] = Tree("({}+{})".format)
        for place in places:
            tree.put(place, str(place))
        return tree.merged()

    in_order = merged(list(range(count)))

    assert [in_order] * 20 == [merged(np.random.default_rng(seed).permutation(count).tolist()) for seed in range(20)]


def test_neighbours_are_merged_first():
    """
    And what is left over last.
    """
    tree: Tree[str] = Tree("({}+{})".format)
    for place in range(7):
        tree.put(place, str(place))

    assert "(((0+1)+(2+3))+((4+5)+6))" == tree.merged()


# Several processes


@pytest.fixture
def nobody_alone(monkeypatch):
    """This process reads nothing before another one has finished something. Gives the names of threads with results."""
    helped = threading.Event()
    threads: set[str] = set()
    pieces = running.pieces

    class Watched(Tree):
        def put(self, place: int, result: Any) -> None:
            thread = threading.current_thread()
            threads.add("this" if thread is threading.main_thread() else "another")
            if thread is not threading.main_thread():
                helped.set()
            super().put(place, result)

    def waiting(*arguments: Any) -> Any:
        assert helped.wait(SECONDS)
        yield from pieces(*arguments)

    monkeypatch.setattr(running, "Tree", Watched)
    monkeypatch.setattr(running, "pieces", waiting)
    return threads


@pytest.mark.parametrize("task", catalog.TASKS)
def test_workers_change_nothing_to_the_last_bit(tmp_path, monkeypatch, task, nobody_alone):
    """
    Parts depend on the files only, and are merged in a fixed tree, so even sums of floats are the same.
    """
    job, paths = some_parts(tmp_path, task, monkeypatch)
    with monkeypatch.context() as undone:
        undone.setattr(threading.Event, "wait", lambda *_: True)
        alone = evaluate(paths, job)
    nobody_alone.clear()

    together = evaluate(paths, job, workers=2)

    assert {"this", "another"} == nobody_alone
    assert numbers(alone.to_dict()) == numbers(together.to_dict())


def test_progress_is_told_of_what_other_processes_read(tmp_path, monkeypatch, nobody_alone):
    """
    All bytes and rows, each once.
    """
    job, paths = some_parts(tmp_path, "binary", monkeypatch)
    told: list[tuple[int, int]] = []

    evaluation = evaluate(paths, job, workers=3, progress=lambda *read: told.append(read))

    assert "another" in nobody_alone
    assert sum(path.stat().st_size for path in paths) == sum(size for size, _ in told)
    assert evaluation.rows == sum(rows for _, rows in told)


def test_what_is_wrong_with_rows_and_files_is_known_of_other_processes_too(tmp_path):
    """
    A broken file is one problem, as if this process had read it.
    """
    rows = SCENARIOS["binary"]["any"](np.random.default_rng(1))
    good = as_jsonl(table_of("binary", rows, [1_700_000_000.0] * len(rows)), tmp_path / "good")
    (tmp_path / "bad.jsonl").write_text(good.read_text() + '{"prediction": \n')
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")

    alone, together = (evaluate(tmp_path, job_of("binary"), workers=workers) for workers in (1, 3))

    assert 1 == len(together.problems)
    assert {"unreadable_row": 1} == together.rejected
    assert numbers(alone.to_dict()) == numbers(together.to_dict())


def test_a_program_without_a_guard_is_not_run_again_by_its_workers(tmp_path, monkeypatch):
    """
    As it would be by multiprocessing, whose users must write `if __name__ == "__main__"`.
    """
    _, paths = some_parts(tmp_path, "regression", monkeypatch)
    script = f"""
from otel_model_metrics.batch import Job, evaluate, reading
reading.PART_ROWS = 40
print(evaluate({[str(path) for path in paths]}, Job("regression", "prediction"), workers=2).rows)
"""
    (tmp_path / "program.py").write_text(script)

    done = subprocess.run(
        [sys.executable, tmp_path / "program.py"], capture_output=True, text=True, timeout=60, check=False
    )

    assert ("400\n", "") == (done.stdout, done.stderr)


# What may happen to other processes, see batch_worker.py


def described(argument: dict[str, Any]) -> str:
    return f"part {argument['number']}"


def run(function: Any, tmp_path: Path, workers: int = 2, give_up: bool = False) -> dict[int, Any]:
    results: dict[int, Any] = {}
    given = {"parent": os.getpid(), "folder": str(tmp_path), "give_up": give_up}
    with Processes() as processes:
        processes.start(workers - 1)
        processes.run(
            function, [{**given, "number": number} for number in range(workers)], results.__setitem__, described
        )
    return results


def test_workers_load_only_what_they_need(tmp_path):
    """
    Neither OpenTelemetry nor the program, which would take longer than reading a million rows.
    """
    results = run(modules, tmp_path, give_up=True)

    loaded = set(results[0] + results[1])
    assert "numpy" in loaded
    assert set() == loaded & {"opentelemetry", "pandas", "pytest", "click", "rich", "multiprocessing"}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (killed, "A worker process was killed by signal 9, perhaps for want of memory, while it read part 1."),
        (without_memory, "A worker process has not enough memory for part 1. Try fewer workers."),
        (faulty, "A worker process failed with part 1: KeyError: 'no such thing'"),
    ],
    ids=["killed", "without memory", "faulty"],
)
def test_a_worker_that_fails_ends_the_run_at_once_and_names_its_part(tmp_path, function, message):
    """
    Though this process is in the midst of a part that takes twenty seconds.
    """
    begin = time.monotonic()

    with pytest.raises(WorkerError) as raised:
        run(function, tmp_path)

    assert message == str(raised.value)
    assert time.monotonic() - begin < SECONDS / 2


def test_what_a_worker_finds_wrong_with_the_users_input_is_told_as_it_is(tmp_path):
    """
    Only naming something else helps, whichever process notices.
    """
    with pytest.raises(InputError) as raised:
        run(refusing, tmp_path)

    assert "There are too many windows." == str(raised.value)


def test_a_result_that_cannot_be_sent_is_a_fault_of_its_part(tmp_path):
    """
    And the lines that led to it are in the traceback.
    """
    with pytest.raises(WorkerError, match="A worker process failed with part 1: ") as raised:
        run(unsendable, tmp_path)

    assert "Traceback" in str(raised.value.__cause__)
    assert "in say" in str(raised.value.__cause__)


@pytest.mark.parametrize("fault", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "killed"])
def test_no_worker_outlives_the_program(tmp_path, fault):
    """
    Neither after Ctrl-C nor when nobody could tell them.
    """
    tests = str(Path(__file__).parent)
    script = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {tests!r})
import batch_worker, os
from otel_model_metrics.batch.processes import Processes
given = {{"parent": os.getpid(), "folder": {str(tmp_path)!r}, "give_up": False}}
with Processes() as processes:
    processes.start(2)
    processes.run(batch_worker.endless, [given] * 3, print)
"""
    program = subprocess.Popen(
        [sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    end = time.monotonic() + SECONDS
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    workers = [Path("/proc", path.name) for path in tmp_path.iterdir()]

    if fault == signal.SIGINT:  # a terminal sends it to the whole group of processes
        os.killpg(program.pid, fault)
    else:
        os.kill(program.pid, fault)
    said = program.communicate(timeout=SECONDS)[1]

    end = time.monotonic() + SECONDS / 4
    while any(map(alive, workers)) and time.monotonic() < end:
        time.sleep(0.01)
    assert 2 == len(workers)
    assert [] == [path for path in workers if alive(path)]
    assert -fault == program.returncode
    assert ("KeyboardInterrupt" in said) == (fault == signal.SIGINT)
    assert 1 >= said.count("Traceback")


def alive(process: Path) -> bool:
    try:
        return "Z" != (process / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


# Statistics as bytes


def some_statistics(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> list[Statistics]:
    """Of parts with everything that statistics can have; rows that are kept, or summaries."""
    _, paths = some_parts(tmp_path, task, monkeypatch)
    job = job_of(task, **settings)
    parts = [running.statistics_of(job, part) for part in parts_of(paths, job.wanted)]
    parts[1].refuse("unreadable_row", 2, "a.jsonl, row 3: half of a character, \ud83d")
    parts[2].problems.append("b.csv is empty.")
    parts[2].crowded.add("country")
    return parts


def everything(value: Any) -> Any:
    """All that an object has, to the last bit, in a form that can be compared."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        return [(key, everything(one)) for key, one in value.items()]
    if isinstance(value, (list, tuple)):
        return [everything(one) for one in value]
    if isinstance(value, (int, float, str, bytes, Path, set, type(None))):
        return value
    if isinstance(value, Kept):
        return everything([value.columns(), value.rows, value.summary])
    if isinstance(value, Job):
        return value.fingerprint
    return type(value), everything(vars(value))


@pytest.mark.parametrize("exact_rows", [1_000, 10], ids=["rows kept", "summaries"])
@pytest.mark.parametrize("task", catalog.TASKS)
def test_statistics_come_back_from_bytes_as_they_were(tmp_path, monkeypatch, task, exact_rows):
    """
    All that is in them, with the types of their numbers; so evaluating and merging gives the same to the last bit.
    """
    parts = some_statistics(task, tmp_path, monkeypatch, exact_rows=exact_rows)
    job = job_of(task, exact_rows=exact_rows)
    labels = Labels(tmp_path, 3, (tmp_path / "labels.csv",), {"duplicate": 1}, "first", ("problem",))
    parts[0].labels, parts[0].used, parts[0].without_id = labels, np.array([5], np.uint8), 7

    sent = [Statistics.from_bytes(job, part.to_bytes()) for part in parts]

    assert [everything(part) for part in parts] == [everything(part) for part in sent]
    if task in ("binary", "regression"):
        assert (exact_rows == 10) == any(kept.summary is not None for part in sent for kept in part.kept.values())
    one, other = (numbers(Evaluation.of(merged(job, some)).to_dict()) for some in (parts, sent))
    assert one == other


def test_no_statistics_are_bytes_too():
    """
    A partition of Spark may have no rows.
    """
    job = job_of("binary")

    assert everything(Statistics(job)) == everything(Statistics.from_bytes(job, Statistics(job).to_bytes()))


def test_bytes_are_smaller_than_the_memory_they_stand_for():
    """
    Counts take as few bytes as they need, and are compressed.
    """
    random = np.random.default_rng(1)
    frame = pd.DataFrame(
        {
            "prediction": random.random(5_000) < 0.5,
            "label": random.random(5_000) < 0.5,
            "time": random.uniform(1_700_000_000, 1_700_086_400, 5_000),
            "country": random.integers(0, 40, 5_000).astype(str),
        }
    )
    statistics = Statistics.of_table(Job("binary", "prediction", time="time", segments=("country",)), frame)

    assert len(statistics.to_bytes()) < sum(values.nbytes for values in statistics.sums.values()) / 5


@pytest.mark.parametrize(
    "array",
    [
        np.array([-300, 5]),
        np.array([-1, 255], np.int16),
        np.array([0, 2**64 - 1], np.uint64),
        np.array([-(2**63), 2**63 - 1]),
        np.array([[True], [False]]),
        np.array([np.nan, -0.0, np.inf], np.float32),
        np.arange(6, dtype=">i4").reshape(2, 3).T,
        np.zeros((0, 3), np.int64),
        np.array(7, np.int8),
    ],
    ids=str,
)
def test_arrays_come_back_with_their_type_and_shape(array):
    """
    However narrow they were held, and in the byte order of most machines.
    """
    header, arrays = container.unpacked(container.packed({"a": "\ud83d"}, {"array": array}))

    little = array.astype(array.dtype.newbyteorder("<"))
    assert {"a": "\ud83d"} == header
    assert (little.dtype, little.shape, little.tobytes()) == (
        arrays["array"].dtype,
        arrays["array"].shape,
        arrays["array"].tobytes(),
    )
    assert arrays["array"].flags.writeable


def test_what_is_no_statistics_is_refused(tmp_path, monkeypatch):
    """
    With what is wrong: something else, cut anywhere, damaged anywhere, longer, or from a later release.
    """
    job = job_of("binary")
    data = some_statistics("binary", tmp_path, monkeypatch)[0].to_bytes()

    def refused(data: bytes) -> str:
        with pytest.raises(ValueError, match=r"^These (are no )?statistics") as raised:
            Statistics.from_bytes(job, data)
        return str(raised.value)

    assert (
        "These are no statistics, which begin with b'otel-model-metrics statistics\\n': got 4 bytes that begin with "
        "b'PAR1'." == refused(b"PAR1")
    )
    for length in [*range(0, 40), *range(40, len(data), 97)]:
        refused(data[:length])
    for at in range(31, len(data), 97):
        refused(data[:at] + bytes([data[at] ^ 64]) + data[at + 1 :])
    assert f"These statistics are cut off: got {len(data) - 1:,} bytes." == refused(data[:-1])
    assert f"These statistics have something after their end: got {len(data) + 1:,} bytes." == refused(data + b"0")
    later = data[:30] + b"\x02" + data[31:]
    assert refused(later).startswith("These statistics are of version 2 of the format, and only 1 is known here.")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 1200}, "every is 600s here and 1200s there."),
        ({"threshold": 0.25}, "threshold is 0.5 here and 0.25 there."),
        ({"label": "truth"}, "label is label here and truth there."),
        ({"positive": "yes"}, "positive is None here and yes there."),
        ({"segments": ("country",)}, "segments is ('country', 'channel') here and ('country',) there."),
    ],
    ids=str,
)
def test_statistics_of_different_jobs_are_not_added_up(settings, message):
    """
    Neither in memory nor from bytes.
    """
    ours, theirs = job_of("binary"), job_of("binary", **settings)
    whole = f"Statistics of different jobs cannot be added up: {message}"

    with pytest.raises(ValueError, match="different jobs") as merging:
        Statistics(ours).merge(Statistics(theirs))
    with pytest.raises(ValueError, match="different jobs") as reading:
        Statistics.from_bytes(ours, Statistics(theirs).to_bytes())

    assert [whole, whole] == [str(merging.value), str(reading.value)]


def test_names_and_objectives_do_not_make_a_job_different():
    """
    They do not change what is counted; nor does another spelling of the same length of a window.
    """
    ours = job_of("binary", every="10m")
    theirs = job_of("binary", every=600, model="other", objectives={"f1": 0.5}, attributes={"team": "a"})

    assert 0 == Statistics(ours).merge(Statistics.from_bytes(theirs, Statistics(ours).to_bytes())).rows


# Tables


@pytest.mark.parametrize("form", ["pandas", "Table", "RecordBatch", "another"])
@pytest.mark.parametrize("task", catalog.TASKS)
def test_a_table_has_the_statistics_of_the_same_rows_in_a_file(tmp_path, task, form):
    """
    To the last bit, and with what is wrong with rows.
    """
    rows = SCENARIOS[task]["any"](np.random.default_rng(3))
    times = [1_700_000_000.0 + 7 * number for number in range(len(rows))]
    table = table_of(task, rows, times)
    table = table.set_column(2, "time", pa.array([None, *table["time"].to_pylist()[1:]], table["time"].type))
    job = job_of(task)
    path = as_parquet(table, tmp_path / "rows")

    def frame() -> pd.DataFrame:
        frame = pq.read_table(path).to_pandas()
        return frame if task != "ranking" else frame.assign(label=frame["label"].map(dict))  # a mapping in Python

    given = {
        "pandas": frame,
        "Table": lambda: table,
        "RecordBatch": lambda: table.combine_chunks().to_batches()[0],
        "another": lambda: SimpleNamespace(__arrow_c_stream__=table.__arrow_c_stream__),
    }[form]()

    [part] = parts_of([path], job.wanted)
    expected = running.statistics_of(job, part)
    found = Statistics.of_table(job, given, name=str(path))

    assert {"invalid_timestamp": 1} == found.rejected
    assert everything(expected) == everything(found)


def test_columns_of_mixed_values_are_understood_as_in_jsonl(monkeypatch):
    """
    Which pandas can hold, but no format of columns. In several pieces, too.
    """
    monkeypatch.setattr(reading, "PIECE_ROWS", 3)
    frame = pd.DataFrame({"prediction": [1, "yes", True, None], "label": [True, 0, 1, False], "other": [1, 2, 3, 4]})
    job = Job("binary", "prediction")

    statistics = Statistics.of_table(job, frame)

    assert {"invalid_prediction": 2} == statistics.rejected
    assert statistics.first["invalid_prediction"].startswith("table, row 2: prediction must be")
    assert 2 == Evaluation.of(statistics).overall.rows


def test_a_table_that_cannot_be_used_is_refused():
    """
    With the column that was meant; for a column that cannot be understood at all, too.
    """
    job = Job("binary", "prediction", time="time")
    frame = pd.DataFrame({"predictions": [True], "label": [True], "time": pd.to_datetime(["2026-01-01"])})

    with pytest.raises(InputError) as missing:
        Statistics.of_table(job, frame)
    with pytest.raises(InputError) as zone:
        Statistics.of_table(job, frame.rename(columns={"predictions": "prediction"}))
    with pytest.raises(TypeError) as nothing:
        Statistics.of_table(job, [True])

    assert (
        "table has no column 'prediction'; did you mean 'predictions'? Name it with --prediction. "
        "There are: predictions, label, time." == str(missing.value)
    )
    assert "table: times in column 'time' have no time zone. Say which one they are in, e.g. --timezone UTC." == str(
        zone.value
    )
    assert "A table must be a pandas.DataFrame, a pyarrow.Table or similar, got list." == str(nothing.value)


# A Dask cluster


@pytest.fixture(scope="module")
def dask() -> Iterator[str]:
    """The address of a scheduler with two workers, which are processes; it gives up when the first of them dies."""
    with (
        config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", host="127.0.0.1", silence_logs=50
        ) as cluster,
    ):
        yield cluster.scheduler_address


@pytest.mark.parametrize("task", catalog.TASKS)
def test_a_cluster_changes_nothing_to_the_last_bit(tmp_path, monkeypatch, task, dask):
    """
    Its tree of merges is the same; its workers have the files where this process has them.
    """
    job, paths = some_parts(tmp_path, task, monkeypatch)

    evaluation = evaluate(paths, job, dask=dask)

    assert numbers(evaluate(paths, job).to_dict()) == numbers(evaluation.to_dict())


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_few_tasks_are_enough_for_many_parts(monkeypatch, size):
    """
    Blocks of parts are branches of the tree, so its shape does not depend on how many there are of them.
    """
    for count in range(1, 40):
        monkeypatch.setattr(cluster, "MOST_TASKS", -(-count // size))
        blocks = cluster._blocks(list(range(count)))
        tree: Tree[str] = Tree("({}+{})".format)
        trees: list[Tree[str]] = [Tree("({}+{})".format) for _ in blocks]
        for place, block in enumerate(blocks):
            for at, part in enumerate(block):
                trees[place].put(at, str(part))
            tree.put(place, str(trees[place].merged()))
        plain: Tree[str] = Tree("({}+{})".format)
        for part in range(count):
            plain.put(part, str(part))

        assert len(blocks) <= -(-count // size)
        assert plain.merged() == tree.merged()


def test_a_client_is_used_and_stays_open(tmp_path, monkeypatch, dask):
    """
    Nothing of ours stays on its cluster. Progress is told.
    """
    job, paths = some_parts(tmp_path, "binary", monkeypatch)
    monkeypatch.setattr(cluster, "MOST_TASKS", 4)
    told: list[tuple[int, int]] = []
    with distributed.Client(dask, set_as_default=False) as client:
        evaluation = evaluate(paths, job, dask=client, progress=lambda *read: told.append(read))

        assert {"running"} == {client.status}
        end = time.monotonic() + SECONDS / 4
        while client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)) and time.monotonic() < end:
            time.sleep(0.01)
        assert 0 == client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))
    assert evaluation.rows == sum(rows for _, rows in told) == 400
    assert sum(path.stat().st_size for path in paths) == sum(size for size, _ in told)
    assert 4 == len(told)


def test_a_worker_that_has_no_such_file_says_so(tmp_path, dask):
    """
    Instead of a problem for each part of it.
    """
    part = Part(tmp_path / "nowhere.parquet", 0)

    with pytest.raises(InputError, match="has no such file") as raised:
        cluster.statistics_on(dask, functools.partial(running.statistics_of, job_of("binary")), [part])

    assert str(raised.value) == (
        f"{part.path}: the worker of the Dask cluster on {socket.gethostname()} has no such file. "
        "Workers read the files themselves, so these must be at the same path everywhere."
    )


def test_a_cluster_that_cannot_be_used_is_refused(monkeypatch):
    """
    No scheduler; and workers as well as a cluster.
    """
    assert 10.0 == cluster._PATIENCE
    monkeypatch.setattr(cluster, "_PATIENCE", 0.5)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        begin = time.monotonic()
        with pytest.raises(InputError) as nobody:
            cluster.statistics_on(address, running.statistics_of, [])
        seconds = time.monotonic() - begin
    with pytest.raises(InputError) as nonsense:
        cluster.statistics_on("nonsense://a", running.statistics_of, [])
    with pytest.raises(InputError) as both:
        evaluate("rows.parquet", job_of("binary"), workers=2, dask=address)

    start = f"There is no Dask scheduler at {address!r}, or it did not answer within"
    assert str(nobody.value).startswith(start)
    assert seconds < 5
    assert str(nonsense.value).startswith("There is no Dask scheduler at 'nonsense://a'")
    assert "Either processes of this machine compute, workers=, or a cluster, dask=; not both." == str(both.value)


def test_a_scheduler_without_workers_is_refused(monkeypatch):
    """
    Instead of waiting for one for ever.
    """
    monkeypatch.setattr(cluster, "_PATIENCE", 0.3)
    with distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=":0", silence_logs=50) as nobody:
        with pytest.raises(InputError) as raised:
            cluster.statistics_on(nobody.scheduler_address, running.statistics_of, [])

        expected = f"The Dask scheduler at {nobody.scheduler_address} has had no worker for 0.3 s."
    assert expected == str(raised.value)


def test_workers_with_another_version_are_refused(monkeypatch, dask):
    """
    For they might count otherwise. It says what to install where.
    """
    ours = cluster.__version__
    monkeypatch.setattr(cluster, "__version__", "99.0")

    with pytest.raises(InputError, match="of the Dask cluster must have") as raised:
        cluster.statistics_on(dask, running.statistics_of, [])

    assert str(raised.value).endswith(
        f" of the Dask cluster must have otel-model-metrics 99.0, as is here; it has {ours}. "
        'Install it there: pip install "otel-model-metrics[dask]==99.0"'
    )


def test_workers_without_the_package_are_refused():
    """
    Before anything is sent to them.
    """
    with distributed.LocalCluster(
        n_workers=0, processes=False, protocol="tcp", dashboard_address=":0", silence_logs=50
    ) as scheduler:
        script = f"""
import sys
sys.modules["otel_model_metrics"] = None
from distributed.cli.dask_worker import main
main([{scheduler.scheduler_address!r}, "--no-nanny", "--no-dashboard", "--nthreads", "1"])
"""
        worker = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
        try:
            with pytest.raises(InputError, match="must have otel-model-metrics") as raised:
                cluster.statistics_on(scheduler.scheduler_address, running.statistics_of, [])
        finally:
            worker.terminate()
            worker.wait()

    assert "it has none that runs (" in str(raised.value)


def test_a_fault_on_a_worker_of_a_cluster_names_its_part(tmp_path, dask):
    """
    And what is wrong with the users' input is told as it is.
    """
    with pytest.raises(WorkerError) as raised:
        cluster.statistics_on(dask, wrong, [Part(tmp_path, 0, 1, 10)])

    assert f"A worker of the Dask cluster failed with {tmp_path}, rows 1 to 10: KeyError: 'no such thing'" == str(
        raised.value
    )


def test_a_worker_that_dies_ends_the_run_and_names_its_part(tmp_path, dask):
    """
    For want of memory, in most cases.
    """
    parts = [Part(tmp_path, 0, 1, 10), Part(tmp_path, 0, 11, 10)]

    with pytest.raises(WorkerError) as raised:
        cluster.statistics_on(dask, gone, parts)

    assert str(raised.value).startswith(f"Workers of the Dask cluster died while reading {tmp_path}, rows 1")


def test_a_frame_instead_of_files_is_shown_the_way():
    """
    Rather than its columns being taken for files.
    """
    with pytest.raises(TypeError, match=r"files must be names of files, got DataFrame\. Of data in memory, Statistics"):
        evaluate(pd.DataFrame({"prediction": [True]}), job_of("binary"))


def test_an_evaluation_is_short_when_printed(spark_rows):
    """
    However many windows it has.
    """
    path, job, _ = spark_rows
    evaluation = evaluate(path, job)

    assert f"<Evaluation of 'model' 'unversioned': {evaluation.rows} rows, {evaluation.rows} with a label, " in repr(
        evaluation
    )
    assert len(repr(evaluation)) < 100


# Spark, as README shows it


def partition_of(job: Job) -> Callable[[Iterator[pd.DataFrame]], Iterator[pd.DataFrame]]:
    """The function for `mapInPandas`."""

    def partition(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        statistics = merged(job, (Statistics.of_table(job, frame) for frame in frames))
        yield pd.DataFrame({"statistics": [statistics.to_bytes()]})

    return partition


@pytest.fixture
def spark_rows(tmp_path):
    """A file of two row groups, the job, and its evaluation here. Spark hands over times without their zone."""
    rows = SCENARIOS["binary"]["any"](np.random.default_rng(3))
    times = [1_700_000_000.0 + 7 * number for number in range(len(rows))]
    path = tmp_path / "rows.parquet"
    pq.write_table(table_of("binary", rows, times), path, row_group_size=100)
    job = job_of("binary", timezone="UTC")
    return path, job, evaluate(path, job).to_dict()


def test_partitions_of_frames_add_up_to_the_file(spark_rows):
    """
    Also one without frames. Every frame is read on its own.
    """
    path, job, expected = spark_rows
    frame = pq.read_table(path).to_pandas()
    partitions = [[frame[:50], frame[50:120]], [], [frame[120:]]]

    sent = [
        bytes(data) for frames in partitions for one in partition_of(job)(iter(frames)) for data in one["statistics"]
    ]

    found = Evaluation.of(merged(job, (Statistics.from_bytes(job, data) for data in sent)))
    assert 3 == len(sent)
    assert approximately(numbers(expected)) == numbers(found.to_dict())


def test_spark_computes_the_same(spark_rows, monkeypatch):
    """
    Each partition becomes one row with bytes.
    """
    pyspark = pytest.importorskip("pyspark.sql", reason="pyspark is not installed", exc_type=ImportError)
    if shutil.which("java") is None:
        pytest.skip("there is no java, which Spark needs")
    path, job, expected = spark_rows
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        builder = pyspark.SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
        spark = builder.config("spark.sql.session.timeZone", "UTC").getOrCreate()
        try:
            frame = spark.read.parquet(str(path)).repartition(3)
            rows = frame.mapInPandas(partition_of(job), "statistics binary").collect()
        finally:
            spark.stop()

    found = Evaluation.of(merged(job, (Statistics.from_bytes(job, row.statistics) for row in rows)))
    assert 3 == len(rows)
    assert approximately(numbers(expected)) == numbers(found.to_dict())


def approximately(values: Any) -> Any:
    """The same but for the rounding of sums, which depends on how rows are divided."""
    if isinstance(values, dict):
        return {name: approximately(value) for name, value in values.items()}
    if isinstance(values, list):
        return [approximately(value) for value in values]
    return pytest.approx(values, rel=1e-9, abs=1e-12) if isinstance(values, float) else values


# What made one process slow


@pytest.mark.parametrize("start", [0, 1, 7, 8, 13])
@pytest.mark.parametrize("kind", ["bool", "int8", "uint16", "int64", "float16", "float32", "float64"])
def test_numbers_of_pyarrow_are_taken_as_they_are(kind, start):
    """
    Also of a slice, which begins within a byte of truths, and with something in place of what is missing.
    """
    values: list[Any] = [number % 3 == 0 if kind == "bool" else number * 2 for number in range(40)]
    some = [None if number % 5 == 0 else value for number, value in enumerate(values)]
    dtype = pa.from_numpy_dtype(np.dtype(kind))

    whole = arrow_numbers(pa.array(values, dtype)[start:39])
    gaps = arrow_numbers(pa.array(some, dtype)[start:39], 1)

    assert (np.dtype(kind), values[start:39]) == (whole.dtype, whole.tolist())
    assert (np.dtype(kind), [1 if one is None else one for one in some[start:39]]) == (gaps.dtype, gaps.tolist())
    assert np.dtype(kind) == arrow_numbers(pa.array([], dtype)).dtype


def test_pandas_is_not_imported_to_read_columns(tmp_path):
    """
    As pyarrow does to hand over numbers, where there is one: half a second in each process.
    """
    table = pa.table(
        {
            "prediction": [True, None, False, True],
            "label": pa.array([1, 0, None, 1]),
            "score": [0.5, None, 0.25, 1.0],
            "time": pa.array([1, None, 3, 4], pa.timestamp("ms", tz="UTC")),
            "country": ["DE", None, "FR", "FR"],
        }
    )
    path = as_parquet(table, tmp_path / "rows")
    script = f"""
import sys
from otel_model_metrics.batch import Job, evaluate
job = Job("binary", "prediction", score="score", time="time", segments=("country",))
print(evaluate({str(path)!r}, job).rows, "pandas" in sys.modules)
"""

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)

    assert ("4 False\n", "") == (done.stdout, done.stderr)


def test_a_part_for_which_this_process_has_no_memory_is_named(tmp_path):
    """
    As that of another one is.
    """
    with pytest.raises(WorkerError) as raised:
        run(without_memory_here, tmp_path, workers=1)

    assert "There is not enough memory for part 0." == str(raised.value)
