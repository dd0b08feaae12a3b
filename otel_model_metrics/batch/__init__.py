"""
Batch mode: files of predictions and labels become the metrics that a monitor would have exported.

>>> from otel_model_metrics.batch import Job
>>> job = Job("binary", prediction="predicted", label="fraud", time="time", segments=("country",), every="1h")
>>> job.window_seconds
3600.0

`evaluate("predictions/*.parquet", job).overall.value("f1")` is what follows.
"""

from otel_model_metrics.batch.evaluation import EvaluatedWindow, Evaluation, Missed
from otel_model_metrics.batch.job import Job
from otel_model_metrics.batch.running import evaluate, merged
from otel_model_metrics.batch.statistics import Statistics

__all__ = ["EvaluatedWindow", "Evaluation", "Job", "Missed", "Statistics", "evaluate", "merged"]
