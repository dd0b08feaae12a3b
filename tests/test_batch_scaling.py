"""
Files are evaluated by several processes, or on a cluster: the same values to the last bit, and an end to every fault.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batch_worker import SECONDS, faulty, killed, modules, refusing, unsendable, without_memory
from test_batch_evaluation import as_jsonl, job_of, numbers, some_parts, table_of
from test_oracles import SCENARIOS

from otel_model_metrics import catalog
from otel_model_metrics.batch import evaluate, running
from otel_model_metrics.batch.merging import Tree
from otel_model_metrics.batch.processes import Processes, WorkerError
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
    program = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + SECONDS
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    workers = [Path("/proc", path.name) for path in tmp_path.iterdir()]

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
