"""
Windowed quality metrics of machine-learning models, exported through OpenTelemetry.

>>> from otel_model_metrics import BinaryMonitor
"""

from otel_model_metrics.ground_truth.outcomes import LabelOutcome
from otel_model_metrics.labels_http.doors import labels_app, labels_wsgi_app
from otel_model_metrics.monitors import (
    BinaryMonitor,
    MulticlassMonitor,
    RankingMonitor,
    RegressionMonitor,
    get_monitor,
)
from otel_model_metrics.otlp import configure
from otel_model_metrics.snapshot import Snapshot
from otel_model_metrics.version import __version__
from otel_model_metrics.window import Window

__all__ = [
    "BinaryMonitor",
    "LabelOutcome",
    "MulticlassMonitor",
    "RankingMonitor",
    "RegressionMonitor",
    "Snapshot",
    "Window",
    "__version__",
    "configure",
    "get_monitor",
    "labels_app",
    "labels_wsgi_app",
]
