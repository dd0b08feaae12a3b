"""
The other processes of test_store_faults.py: each has a monitor of one store, and does what it is told.

    python store_worker.py storm STORE NAME SEED    predictions and labels as fast as it can, until it is killed
    python store_worker.py serve STORE              what it is asked on stdin, a line of JSON each; answers likewise
    python store_worker.py end STORE NAME HOW       1,000 predictions, and then an end: see `end`
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import sys
import threading
import time
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider

from otel_model_metrics import BinaryMonitor

PREDICTIONS = 1000


def monitor_of(store: str) -> BinaryMonitor:
    return BinaryMonitor("model", store=store, meter_provider=MeterProvider(shutdown_on_exit=False))


def say(*words: object) -> None:
    """One line, handed to the system at once: what was said is not lost when the process is killed."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def storm(store: str, name: str, seed: str) -> None:
    """
    Say ``flushed ID ...`` of predictions that are safe, and ``matched ID`` of each label that was seen to join.

    One thread predicts and labels without waiting, another one labels what is flushed and waits for the outcome.
    """
    monitor = monitor_of(store)
    choice = random.Random(int(seed))
    flushed: list[str] = []

    def label() -> None:
        done = 0
        while True:
            if done == len(flushed):
                monitor.flush(0.01)
                continue
            id = flushed[done]
            done += 1
            if monitor.record_label(id, True, wait=5.0) == "matched":
                say("matched", id)

    threading.Thread(target=label, daemon=True).start()
    count = 0
    while True:
        ids = [f"{name}-{number}" for number in range(count, count + choice.randint(1, 60))]
        count += len(ids)
        for id in ids:
            monitor.record_prediction(id, True)
        for id in ids[:: choice.randint(2, 5)]:
            monitor.record_label(id, False, wait=0.0)
        if monitor.flush(5.0):
            say("flushed", *ids)
            flushed += ids


def serve(store: str) -> None:
    """Answer until stdin ends."""
    monitor = monitor_of(store)
    say(json.dumps("ready"))
    for line in sys.stdin:
        do, arguments = json.loads(line)
        say(json.dumps(answer(monitor, do, arguments)))
    monitor.close()


def answer(monitor: BinaryMonitor, do: str, arguments: Any) -> Any:
    """What is asked of a monitor."""
    if do == "predict":
        for id in arguments:
            monitor.record_prediction(id, True)
        return len(arguments)
    if do == "label":
        return {id: monitor.record_label(id, True, wait=10.0) for id in arguments}
    if do == "flush":
        return monitor.flush(arguments)
    assert do == "labels", do
    return dict(monitor.snapshot().labels)


def end(store: str, name: str, how: str) -> None:
    """
    Record predictions, and end: ``return`` normally; ``exit`` by sys.exit in children that were forked while the parent
    was writing; ``spawn`` or ``fork`` in a child of multiprocessing; ``abort`` by os._exit.
    """
    if how in ("spawn", "fork"):
        child = multiprocessing.get_context(how).Process(target=_record, args=(store, name))
        child.start()
        child.join()
        return
    monitor = monitor_of(store)
    if how == "exit":
        choice = random.Random(1)
        done = threading.Event()

        def write() -> None:
            count = 0
            while not done.is_set():
                monitor.record_prediction_batch([f"other-{count + number}" for number in range(3000)], [True] * 3000)
                monitor.flush(5.0)
                count += 3000

        monitor.record_prediction("first", True)
        assert monitor.flush(30.0)
        writing = threading.Thread(target=write)
        writing.start()
        for begin in range(0, PREDICTIONS, 50):
            time.sleep(choice.random() * 0.02)  # so that it forks at any moment of a write
            if not os.fork():
                for number in range(begin, begin + 50):
                    monitor.record_prediction(f"{name}-{number}", True)
                sys.exit(0)
        done.set()  # lest they wait for each other
        writing.join()
        assert all(os.wait()[1] == 0 for _ in range(0, PREDICTIONS, 50))
        return
    record(monitor, name)
    if how == "abort":
        while not monitor.awaits_label(f"{name}-{PREDICTIONS - 1}"):  # it is written without being asked for
            pass
        record(monitor, f"{name}-late")
        os._exit(0)


def record(monitor: BinaryMonitor, name: str) -> None:
    for number in range(PREDICTIONS):
        monitor.record_prediction(f"{name}-{number}", True)


def _record(store: str, name: str) -> None:
    record(monitor_of(store), name)


if __name__ == "__main__":
    {"storm": storm, "serve": serve, "end": end}[sys.argv[1]](*sys.argv[2:])
