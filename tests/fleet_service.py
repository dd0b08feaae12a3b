"""
The service of test_fleet.py: a process with three models; its name decides how much it is asked and how well it does.

Each row is written to a file before it is recorded. Lines go to the system one by one, so that a process which is
killed leaves behind what it has recorded, and at most one row more.

    FLEET=FOLDER METRICS_PORT=PORT python fleet_service.py NAME
    FLEET=FOLDER gunicorn --preload "fleet_service:Service()"
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from opentelemetry import metrics
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from prometheus_client import start_http_server

from otel_model_metrics import BinaryMonitor, RankingMonitor, RegressionMonitor, Window

ITEMS = ["a", "b", "c", "d", "e"]


@dataclasses.dataclass(frozen=True)
class Share:
    """
    What a process gets to do, and how well it does it.

    Attributes:
        rate: Rows a second.
        wrong: Share of `fraud`'s answers that are wrong.
        noise: Standard deviation of `price`'s error.
        first: Share of searches with the relevant item in the first place.
        german: Share of rows from Germany.
    """

    rate: float
    wrong: float
    noise: float
    first: float
    german: float


# Those that see little do badly, so that a mean over processes is far from the whole. The third worker replaces one.
SHARES = {
    "batch": Share(rate=400, wrong=0.05, noise=0.8, first=0.8, german=0.3),
    "canary": Share(rate=40, wrong=0.35, noise=2.0, first=0.2, german=0.9),
    "worker 1": Share(rate=100, wrong=0.15, noise=1.1, first=0.6, german=0.5),
    "worker 2": Share(rate=60, wrong=0.25, noise=1.5, first=0.4, german=0.7),
    "worker 3": Share(rate=100, wrong=0.20, noise=1.3, first=0.5, german=0.5),
}


class Row(NamedTuple):
    """One row of each model."""

    predicted: bool
    label: bool
    country: str
    estimate: float
    price: float
    place: int  # of the relevant item, from 0


def rows_of(share: Share, seed: int) -> Any:
    """Rows without end."""
    rng = np.random.default_rng(seed)
    while True:
        label, price = rng.random() < 0.3, rng.normal(100, 20)
        yield Row(
            predicted=bool(label != (rng.random() < share.wrong)),
            label=bool(label),
            country="DE" if rng.random() < share.german else "FR",
            estimate=price + rng.normal(0, share.noise),
            price=price,
            place=0 if rng.random() < share.first else int(rng.integers(1, len(ITEMS))),
        )


class Models:
    """The monitors of three models."""

    def __init__(self, window: Window | None = None) -> None:
        self.fraud = BinaryMonitor("fraud", version="7", window=window)
        self.price = RegressionMonitor("price", version="7", window=window)
        self.search = RankingMonitor("search", version="7", window=window)

    def record(self, row: Row) -> None:
        self.fraud.record(row.predicted, row.label, segments={"country": row.country})
        self.price.record(row.estimate, row.price)
        self.search.record(ITEMS, ITEMS[row.place])


class Service:
    """The models, reporting over OTLP and to be scraped; as a WSGI application it says who it is."""

    def __init__(self) -> None:
        pushing = PeriodicExportingMetricReader(OTLPMetricExporter())
        metrics.set_meter_provider(MeterProvider([PrometheusMetricReader(), pushing]))
        self.folder = Path(os.environ["FLEET"])
        self.models = Models()

    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [str(os.getpid()).encode()]

    def start(self, name: str) -> None:
        """Work in the background: the hook of each gunicorn worker."""
        threading.Thread(target=self.work, args=(name,), daemon=True).start()

    def work(self, name: str) -> None:
        """Record rows at the pace of this process, until the day is over."""
        share = SHARES[name]
        rows = rows_of(share, seed=list(SHARES).index(name))
        begin, done = time.monotonic(), 0
        with (self.folder / f"{name}.{os.getpid()}.rows").open("w", buffering=1) as written:
            while not (self.folder / "over").exists():
                due = int((time.monotonic() - begin) * share.rate)
                for _ in range(done, due):
                    row = next(rows)
                    written.write(json.dumps(row) + "\n")
                    self.models.record(row)
                done = due
                time.sleep(0.02)


if __name__ == "__main__":
    service = Service()
    service.start(sys.argv[1])
    server, thread = start_http_server(int(os.environ["METRICS_PORT"]), addr="127.0.0.1")
    thread.join()
