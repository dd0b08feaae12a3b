"""
The service of test_late_label_story.py: two models behind one door, whose labels come later, by POST /v1/labels.

Every answer says in X-Worker which process gave it, so that a test can send a label to another one than the
prediction. It may also say to flush, which a real service does not need: then what was handed over has been written to
the store, decided, and exported.

    STORE=sqlite:///labels.db gunicorn --preload "late_label_service:Service()"
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

from otel_model_metrics import BinaryMonitor, RegressionMonitor, configure, labels_wsgi_app

TOKEN = "a-token-of-this-test"
VERSION = "7"


class Service:
    """A WSGI application: GET / for its state, POST /predict, POST /v1/labels, POST /flush."""

    def __init__(self) -> None:
        self.provider = configure("shop")
        store = os.environ["STORE"]
        self.fraud = BinaryMonitor("fraud", version=VERSION, segments=["country"], store=store)
        self.price = RegressionMonitor("price", version=VERSION, store=store)
        self.monitors = (self.fraud, self.price)
        # All labels of a request may take half a minute, on a machine that has other things to do.
        self.labels = labels_wsgi_app(self.monitors, token=TOKEN, wait=30.0)

    def __call__(self, environ: Mapping[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        worker = ("X-Worker", str(os.getpid()))
        if environ["PATH_INFO"] == "/v1/labels":
            return self.labels(environ, lambda status, headers: start_response(status, [*headers, worker]))
        answers = {"/": self.state, "/predict": self.predict, "/flush": self.flush}
        answer = answers[environ["PATH_INFO"]](environ["wsgi.input"].read())
        body = json.dumps(answer).encode()
        start_response("200 OK", [worker, ("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    def predict(self, body: bytes) -> list[dict[str, Any]]:
        """What the models say to each request."""
        answers = []
        for request in json.loads(body):
            score = 1 / (1 + math.exp(-request["signal"]))
            answer = {"id": request["id"], "fraud": score >= 0.5, "price": 3.0 * request["area"] + 20.0}
            segments = {"country": request["country"]}
            self.fraud.record_prediction(answer["id"], answer["fraud"], score=score, segments=segments)
            self.price.record_prediction(answer["id"], answer["price"])
            answers.append(answer)
        return answers

    def state(self, body: bytes) -> dict[str, Any]:
        """What this worker knows of the labels of both models."""
        snapshots = {monitor.name: monitor.snapshot() for monitor in self.monitors}
        return {name: {"coverage": snapshot.value("label.coverage")} for name, snapshot in snapshots.items()}

    def flush(self, body: bytes) -> bool:
        """Wait until the store has decided everything, and export what came of it; returns whether that was done."""
        written = [monitor.flush(30.0) for monitor in self.monitors]
        # Twice, because the first export of a counter says 0.
        exported = [self.provider.force_flush() for _ in range(2)]
        return all(written + exported)
