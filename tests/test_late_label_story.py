"""
What a store is for: the prediction at one worker, its label at another, and the quality as if one had seen both.

gunicorn serves two models with two workers, which share a store: a SQLite file, or a Redis. Predictions and labels come
over HTTP by connections that each belong to one worker, so that every label goes where its prediction is not known. The
workers export to VictoriaMetrics, which is asked how good the models were; scikit-learn says what is right.

Sums of counters are compared, not their increase, which would only be about right.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import http.client
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends import Store, eventually, free_port, get, redis_server, running, victoria_metrics
from late_label_service import TOKEN, VERSION
from sklearn import metrics as sklearn_metrics
from test_prefork import GUNICORN

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

SERVICE = Path(__file__).parent / "late_label_service.py"
# Only a worker of threads keeps a connection open, and all that comes by it.
COMMAND = [*GUNICORN, "--preload", "--worker-class=gthread", "--threads=4", "--keep-alive=600"]
MODELS = ("fraud", "price")
TOTALS_OF = "1h"  # more than the whole story
SECONDS_OF_INBOX = 10.0


@dataclasses.dataclass(frozen=True)
class Row:
    """What was asked, what the service said, and the truth, which only the test knows."""

    id: str
    country: str
    predicted: bool
    label: bool
    estimate: float
    price: float


@dataclasses.dataclass(frozen=True)
class Quality:
    """How good the models were."""

    accuracy: float
    f1: float
    f1_in_germany: float
    rmse: float


def truth(rows: list[Row]) -> Quality:
    """What scikit-learn says to these rows."""
    labels, predicted = ([getattr(row, name) for row in rows] for name in ("label", "predicted"))
    german = [row for row in rows if row.country == "DE"]
    return Quality(
        accuracy=sklearn_metrics.accuracy_score(labels, predicted),
        f1=sklearn_metrics.f1_score(labels, predicted),
        f1_in_germany=sklearn_metrics.f1_score([row.label for row in german], [row.predicted for row in german]),
        rmse=sklearn_metrics.root_mean_squared_error([row.price for row in rows], [row.estimate for row in rows]),
    )


class Worker:
    """One worker of the service, by a connection of its own."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.process = 0
        self.ask("/")

    def ask(self, path: str, content: Any = None) -> Any:
        """The answer to GET, or to POST of some content."""
        method, body = ("GET", None) if content is None else ("POST", json.dumps(content))
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
        self._connection.request(method, path, body, headers)
        with self._connection.getresponse() as response:
            answer = response.read()
            assert 200 == response.status, answer
            process = int(response.headers["X-Worker"])
        assert process == (self.process or process), "the connection went to another worker"
        self.process = process
        return json.loads(answer)

    def predict(self, rng: np.random.Generator, count: int) -> list[Row]:
        """Ask for predictions; it is the truth that is noisy."""
        requests = [
            {
                "id": f"{self.process}-{number}",
                "signal": rng.normal(),
                "area": rng.uniform(20.0, 200.0),
                "country": str(rng.choice(["DE", "FR"])),
            }
            for number in range(count)
        ]
        answers = self.ask("/predict", requests)
        return [
            Row(
                id=answer["id"],
                country=request["country"],
                predicted=answer["fraud"],
                # Worse in Germany than elsewhere.
                label=bool(answer["fraud"] != (rng.random() < (0.3 if request["country"] == "DE" else 0.1))),
                estimate=answer["price"],
                price=answer["price"] + rng.normal(0.0, 15.0),
            )
            for request, answer in zip(requests, answers, strict=True)
        ]

    def label(self, rows: list[Row]) -> dict[str, int]:
        """Tell the truth to both models; returns how many labels came to which outcome."""
        labels = [
            {"model": model, "version": VERSION, "id": row.id, "label": label}
            for row in rows
            for model, label in zip(MODELS, (row.label, row.price), strict=True)
        ]
        return self.ask("/v1/labels", labels)["counts"]

    def coverage(self) -> list[float | None]:
        """Share of predictions that have their label, by model, as this worker knows it."""
        return [of_model["coverage"] for of_model in self.ask("/").values()]

    def kill(self) -> None:
        os.kill(self.process, signal.SIGKILL)
        self.close()

    def close(self) -> None:
        self._connection.close()


class Service:
    """The service, and what it has exported."""

    def __init__(self, port: int, store: str, backend: Store, run: str) -> None:
        self.store = store
        self._port = port
        self._backend = backend
        self._run = run
        self._samples = 0
        self._connections = contextlib.ExitStack()

    def workers(self, count: int, *known: Worker) -> list[Worker]:
        """So many workers that are not among those known, each by a connection of its own."""
        processes = {worker.process for worker in known}
        found: list[Worker] = []

        def enough() -> bool:
            # They stay open meanwhile, for a worker that has many connections leaves the next one to another.
            with contextlib.ExitStack() as others:
                for _ in range(8):
                    worker = Worker(self._port)
                    if worker.process in processes:
                        others.callback(worker.close)
                    else:
                        self._connections.callback(worker.close)
                        processes.add(worker.process)
                        found.append(worker)
            return len(found) >= count

        eventually(enough, f"{count} workers")
        return found

    def close(self) -> None:
        self._connections.close()

    def flush(self, *workers: Worker) -> None:
        """
        Wait until all that came to these workers has been decided, exported, and can be read.

        What VictoriaMetrics has taken can be read a moment later; a last sample of our own tells when that is.
        """
        assert [True] * len(workers) == [worker.ask("/flush", {}) for worker in workers]
        self._samples += 1
        sample = f'last_sample{{run="{self._run}"}} {self._samples}'
        with urllib.request.urlopen(f"{self._backend.url}/api/v1/import/prometheus", sample.encode(), timeout=10):
            pass

        def there() -> bool:
            get(f"{self._backend.url}/internal/force_flush")
            return [self._samples] == [value for _, value in self._backend.query(f'last_sample{{run="{self._run}"}}')]

        eventually(there, "the last sample")

    def by_worker(self, counter: str, model: str, **labels: str) -> dict[str, float]:
        """service.instance.id -> a counter, as it was exported last; also of workers that have ended."""
        wanted = {"run": self._run, "ml_model_name": model, "ml_segment_name": "", **labels}
        selector = ",".join(f'{name}="{value}"' for name, value in wanted.items())
        series = f"last_over_time(ml_model_{counter}_total{{{selector}}}[{TOTALS_OF}])"
        found = self._backend.query(f"sum by (service_instance_id) ({series})")
        return {of["service_instance_id"]: value for of, value in found}

    def total(self, counter: str, model: str, **labels: str) -> float:
        """A counter, summed over all workers."""
        return sum(self.by_worker(counter, model, **labels).values())

    def counts(self) -> dict[str, dict[str, float]]:
        """Predictions, rows, and labels by outcome, of each model."""
        outcomes = ("matched", "pending", "duplicate", "corrected", "expired", "unmatched", "rejected", "dropped")
        return {
            model: {
                "predictions": self.total("predictions", model),
                "rows": self.total("outcomes", model),
                **{name: self.total("labels", model, ml_label_outcome=name) for name in outcomes},
            }
            for model in MODELS
        }

    def quality(self) -> Quality:
        """How good the models were, from nothing but what has been exported."""

        def f1(**segment: str) -> float:
            true_positive, *false = (
                self.total("outcomes", "fraud", ml_class_actual=actual, ml_class_predicted=predicted, **segment)
                for actual, predicted in (("positive", "positive"), ("negative", "positive"), ("positive", "negative"))
            )
            return 2 * true_positive / (2 * true_positive + sum(false))

        return Quality(
            accuracy=self.total("outcomes", "fraud", ml_outcome="correct") / self.total("outcomes", "fraud"),
            f1=f1(),
            f1_in_germany=f1(ml_segment_name="country", ml_segment_value="DE"),
            rmse=(self.total("error_squared", "price") / self.total("outcomes", "price")) ** 0.5,
        )


def exactly(quality: Quality) -> Any:
    """Sums of floating-point numbers depend on their order in the last digits."""
    return pytest.approx(dataclasses.astuple(quality), rel=1e-9)


@pytest.fixture(scope="module")
def backend(tmp_path_factory) -> Iterator[Store]:
    with victoria_metrics(tmp_path_factory.mktemp("backend")) as store:
        yield store


@pytest.fixture(params=["sqlite", "redis"])
def store(request, tmp_path) -> Iterator[str]:
    """URL of a store that is empty."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'labels.db'}"
    else:
        with redis_server(tmp_path) as server:
            yield server.url


@pytest.fixture
def service(backend, store, tmp_path) -> Iterator[Service]:
    """The service, in gunicorn with two workers."""
    port = free_port()
    command = [sys.executable, "-m", *(part.format(port=port) for part in COMMAND)]
    command += [f"--pythonpath={SERVICE.parent}", "late_label_service:Service()"]
    environment = {
        "STORE": store,
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"{backend.url}/opentelemetry",
        "OTEL_RESOURCE_ATTRIBUTES": f"run={tmp_path.name}",
    }
    with (
        running(command, f"http://127.0.0.1:{port}", tmp_path / "gunicorn.log", environment),
        contextlib.closing(Service(port, store, backend, tmp_path.name)) as served,
    ):
        yield served


def all_labelled(*workers: Worker) -> bool:
    """Whether every worker knows of every prediction's label."""
    return {1.0} == {share for worker in workers for share in worker.coverage()}


def test_a_label_at_another_worker_than_its_prediction_counts_as_if_it_had_come_with_it(service):
    """
    Each of two workers gets the labels of the other: all match, both say that nothing is missing, and the quality of
    the fleet is that of all rows.
    """
    rng = np.random.default_rng(1)
    one, other = service.workers(2)
    of_one, of_other = one.predict(rng, 250), other.predict(rng, 150)
    service.flush(one, other)
    assert [0.0, 0.0] == one.coverage() == other.coverage()

    assert {"matched": 2 * 150} == one.label(of_other)
    assert {"matched": 2 * 250} == other.label(of_one)

    eventually(lambda: all_labelled(one, other), "coverage of 1.0 at both workers")
    service.flush(one, other)
    for model in MODELS:
        predictions = service.by_worker("predictions", model)
        matched = service.by_worker("labels", model, ml_label_outcome="matched")
        assert {(250.0, 150.0), (150.0, 250.0)} == {(made, matched[worker]) for worker, made in predictions.items()}
        assert (400.0, 400.0) == (service.total("predictions", model), service.total("outcomes", model))
    assert exactly(truth(of_one + of_other)) == dataclasses.astuple(service.quality())


def test_what_a_killed_worker_had_written_is_matched_by_the_other(service):
    """
    kill -9: the predictions are in the store, so their labels join at the worker that is left, and the worker that
    replaces the killed one knows of them, too.
    """
    rng = np.random.default_rng(2)
    killed, other = service.workers(2)
    rows = killed.predict(rng, 120) + other.predict(rng, 80)
    service.flush(killed, other)

    killed.kill()

    assert {"matched": 2 * 200} == other.label(rows)
    (replacing,) = service.workers(1, killed, other)
    more = replacing.predict(rng, 50)
    service.flush(replacing)
    assert [200 / 250] * len(MODELS) == replacing.coverage()
    assert {"matched": 2 * 50} == other.label(more)
    eventually(lambda: all_labelled(other, replacing), "coverage of 1.0 at both workers")
    service.flush(other, replacing)
    for of_model in service.counts().values():
        assert (250.0, 250.0, 250.0) == (of_model["predictions"], of_model["rows"], of_model["matched"])
    assert exactly(truth(rows + more)) == dataclasses.astuple(service.quality())


def test_a_nightly_job_labels_the_predictions_of_a_running_service_once(service, tmp_path):
    """
    `otel-model-metrics labels` leaves them in the store; the workers take them within seconds. The same file once more
    changes nothing.
    """
    rng = np.random.default_rng(3)
    workers = service.workers(2)
    rows = [row for worker in workers for row in worker.predict(rng, 200)]
    service.flush(*workers)
    labels = {"fraud": [row.label for row in rows], "price": [row.price for row in rows]}

    assert {model: "400 labels handed over, 0 known before" for model in MODELS} == nightly_job(
        tmp_path, service.store, rows, labels
    )

    eventually(lambda: all_labelled(*workers), "all labels from the inbox", SECONDS_OF_INBOX)
    service.flush(*workers)
    counts = service.counts()
    for of_model in counts.values():
        assert (400.0, 400.0, 400.0) == (of_model["predictions"], of_model["rows"], of_model["matched"])
        assert 0.0 == of_model["duplicate"]  # no label is taken by both
    assert exactly(truth(rows)) == dataclasses.astuple(service.quality())

    assert {model: "0 labels handed over, 400 known before" for model in MODELS} == nightly_job(
        tmp_path, service.store, rows, labels
    )
    service.flush(*workers)  # which looks into the inbox, too
    assert counts == service.counts()


def nightly_job(folder: Path, store: str, rows: list[Row], labels: dict[str, list[Any]]) -> dict[str, str]:
    """What the command says of each model's file."""
    said = {}
    for model, column in labels.items():
        file = folder / f"{model}.csv"
        with file.open("w", newline="") as opened:
            csv.writer(opened).writerows([("id", "label"), *zip((row.id for row in rows), column, strict=True)])
        command = [sys.executable, "-m", "otel_model_metrics", "labels", str(file), "--store", store, "--model", model]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (0, "") == (done.returncode, done.stderr)
        said[model] = ", ".join(done.stdout.removeprefix("1 file: ").split(", ")[:2])
    return said
