"""
The command ``otel-model-metrics evaluate``: its options, and what it says.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from otel_model_metrics.catalog import TASKS
from otel_model_metrics.evaluate_outputs import Outputs, bar
from otel_model_metrics.otlp import PROTOCOLS

REFUSED, NOTHING, MISSED = 1, 2, 3  # exit codes
_LONGEST = 1800.0  # seconds since when the totals of --now are zero, at most: stores refuse what is older than an hour
_COUNT = click.IntRange(min=1)
_SECTION = "tool.otel-model-metrics.evaluate"


def _from_config(context: click.Context, parameter: click.Parameter, value: Path | None) -> None:
    """Options that the command line does not have come from the file."""
    if value is None:
        return
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        table: Any = tomllib.loads(value.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise click.BadParameter(f"{value} cannot be read as TOML: {error}.") from error
    for key in _SECTION.split("."):
        table = table.get(key) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        raise click.BadParameter(f"{value} has no table [{_SECTION}].")
    known = {
        option.removeprefix("--"): one
        for one in context.command.params
        if isinstance(one, click.Option) and one is not parameter
        for option in one.opts
    }
    defaults: dict[str, Any] = {}
    for key, given in table.items():
        if key == "files":
            defaults["files"] = [given] if isinstance(given, str) else given
            continue
        if key not in known:
            raise click.BadParameter(
                f"{value}: [{_SECTION}] has no option {key!r}. There are: files, {', '.join(sorted(known))}."
            )
        if isinstance(given, Mapping) and key != "objective":
            raise click.BadParameter(f"{value}: {key} must be a value, not a table; got {given!r}.")
        if isinstance(given, Mapping):  # objective = {f1 = 0.85}
            given = [f"{name}={level}" for name, level in given.items()]
        elif known[key].multiple and not isinstance(given, list):
            given = [given]
        defaults[known[key].name or key] = given
    context.default_map = {**(context.default_map or {}), **defaults}


@click.command()
@click.argument("files", nargs=-1)
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=_from_config,
    help=f"TOML file whose table [{_SECTION}] has options that are not given here, and files.",
)
@click.option("--task", type=click.Choice(TASKS), required=True, help="What the model does.")
@click.option("--model", default="model", show_default=True, help="Name of the model.")
@click.option("--version", default="unversioned", show_default=True, help="Version of the model.")
@click.option("--prediction", metavar="COLUMN", help="Column of the predictions.")
@click.option("--label", metavar="COLUMN", default="label", show_default=True, help="Column of the labels.")
@click.option(
    "--score",
    "scores",
    metavar="COLUMN",
    multiple=True,
    help="Column of the probabilities; for multiclass again for each --class.",
)
@click.option("--id", metavar="COLUMN", help="Column of the ids, in files of predictions and of --labels.")
@click.option("--label-id", metavar="COLUMN", help="Its name in the files of --labels, if it is another.")
@click.option(
    "--labels", metavar="FILE", multiple=True, help="File of labels, if they are not in those of the predictions."
)
@click.option("--time", metavar="COLUMN", help="Column of the times: ISO 8601 or seconds since 1970.")
@click.option("--every", metavar="LENGTH", default="1h", show_default=True, help="Length of a window, e.g. 30m, 1d.")
@click.option("--timezone", metavar="NAME", help="Where times are from that do not say it, e.g. UTC, Europe/Berlin.")
@click.option("--segment", "segments", metavar="COLUMN", multiple=True, help="Column whose values are segments.")
@click.option(
    "--max-segment-values", type=_COUNT, default=50, show_default=True, help="Values told apart for each segment."
)
@click.option(
    "--objective", "objectives", metavar="METRIC=LEVEL", multiple=True, help="The level a metric should hold."
)
@click.option("--metric", "metrics", metavar="METRIC", multiple=True, help="Only these metrics.  [default: all]")
@click.option(
    "--segment-metric", "segment_metrics", metavar="METRIC", multiple=True, help="Metrics that segments have too."
)
@click.option("--positive", metavar="VALUE", help="The value that means positive, if it is not true or 1.")
@click.option("--threshold", default=0.5, show_default=True, help="A score alone predicts positive from this on.")
@click.option("--class", "classes", metavar="VALUE", multiple=True, help="A class; all of them, in order, or none.")
@click.option("--k", "ks", type=int, multiple=True, help="Cut-off of metrics at k.")
@click.option(
    "--exact-rows", type=_COUNT, default=100_000, show_default=True, help="Rows of a window up to which all is exact."
)
@click.option("--delimiter", default=",", show_default=True, help="What separates the cells of CSV files.")
@click.option(
    "--workers", type=_COUNT, default=1, show_default=True, help="Processes to use. The result is the same to the bit."
)
@click.option("--dask", metavar="ADDRESS", help="Use the workers of this Dask cluster, e.g. tcp://scheduler:8786.")
@click.option("--json", "json_file", metavar="FILE", help="Write all values there as JSON; - for standard output.")
@click.option("--html", "html_file", metavar="FILE", help="Write a report with charts there: one file to mail around.")
@click.option("--otlp", is_flag=True, help="Send the points of all windows, with their own times, to an OTLP receiver.")
@click.option("--endpoint", metavar="URL", help="Where to send.  [default: OTEL_EXPORTER_OTLP_ENDPOINT]")
@click.option("--protocol", type=click.Choice(PROTOCOLS), help="How to send.  [default: http/protobuf]")
@click.option(
    "--openmetrics", "openmetrics_file", metavar="FILE", help="Write these points there, for Prometheus' promtool."
)
@click.option(
    "--instance", metavar="NAME", help="service.instance.id of the points.  [default: made of the files' names]"
)
@click.option(
    "--now",
    is_flag=True,
    help="All rows are one window, whatever --time says, and --otlp sends it as that of this moment; "
    "exit with 3 if an objective is missed with confidence.",
)
@click.option(
    "--min-rows", type=_COUNT, default=1, show_default=True, help="Labelled rows that --now needs to pass judgement."
)
def evaluate(
    files: tuple[str, ...],
    labels: tuple[str, ...],
    workers: int,
    dask: str | None,
    now: bool,
    min_rows: int,
    positive: str | None,
    **chosen: Any,
) -> None:
    """
    Evaluate files of predictions and labels: Parquet, CSV, JSONL or Arrow files, folders or patterns.

    Exits with 0; 1 if points were refused; 2 if nothing could be evaluated; with --now also 2 if an objective could not
    be judged, and 3 if one is missed with confidence.
    """
    from otel_model_metrics.batch import running
    from otel_model_metrics.batch.job import Job
    from otel_model_metrics.batch.processes import WorkerError
    from otel_model_metrics.files import InputError

    began = time.time()
    if not files:
        raise click.UsageError("There must be files: predictions.parquet, a folder, or a pattern.")
    outputs = Outputs(**{name: chosen.pop(name) for name in [field.name for field in dataclasses.fields(Outputs)]})
    scores, ks, classes = chosen.pop("scores"), chosen.pop("ks"), chosen.pop("classes")
    for name in ("metrics", "segment_metrics"):
        chosen[name] = chosen[name] or None
    chosen["score"] = scores[0] if len(scores) == 1 else scores or None
    chosen["objectives"] = dict(_level(one) for one in chosen["objectives"])
    if now:
        chosen["time"] = None
        if not chosen["objectives"] and not outputs.have_points:
            raise click.UsageError(
                "--now passes judgement by objectives, or sends what it finds: give an objective, such as "
                "--objective f1=0.85, or --otlp."
            )
    elif chosen["time"] is None and outputs.have_points:
        raise click.UsageError(
            "Points need a time: name the column of times with --time, or give --now for this moment."
        )
    try:
        job = Job(**chosen, positive=_value(positive), classes=tuple(map(_value, classes)) or None, k=ks or None)
    except (ValueError, TypeError) as error:
        raise click.UsageError(str(error)) from error
    context = click.get_current_context()
    if job.time is None and not now and context.get_parameter_source("every") is not ParameterSource.DEFAULT:
        raise click.UsageError("--every is the length of a window of time: name the column of times with --time.")
    outputs.check(job)
    try:
        with bar(_size_of((*files, *labels)), "rows") as progress:
            found = running.evaluate(files, job, labels=labels or None, workers=workers, dask=dask, progress=progress)
    except InputError as error:
        raise click.UsageError(str(error)) from error
    except WorkerError as error:
        raise click.ClickException(str(error)) from error
    outputs.show(found)
    if not found.predictions:
        click.echo("Nothing could be evaluated.", err=True)
        sys.exit(NOTHING)
    unjudged: list[str] = []
    if now:
        unjudged = found.unjudged() if found.overall.rows >= min_rows else list(job.selection.objectives)
    if unjudged:
        click.echo(
            f"Not judged, for want of labelled rows: {', '.join(unjudged)}. There are {found.overall.rows:,}.", err=True
        )
    span = (max(began, time.time() - _LONGEST), time.time()) if now else None
    arrived = outputs.deliver(found, files, span)
    if unjudged:
        sys.exit(NOTHING)
    if now and found.missed():
        sys.exit(MISSED)
    sys.exit(0 if arrived else REFUSED)


def _size_of(files: Sequence[str]) -> int:
    """Bytes of all files, where they are needed: for a bar."""
    from otel_model_metrics.batch.reading import ENDINGS
    from otel_model_metrics.files import find_files

    return sum(path.stat().st_size for path in find_files(files, ENDINGS)) if sys.stderr.isatty() else 0


def _level(text: str) -> tuple[str, float]:
    name, _, level = text.partition("=")
    try:
        return name.strip(), float(level)
    except ValueError:
        raise click.BadParameter(
            f"expected a metric and its level, such as f1=0.85, got {text!r}.", param_hint="--objective"
        ) from None


def _value(text: str | None) -> Any:
    """A class as files have it: a number if it looks like one."""
    from otel_model_metrics.cells import value_of

    return None if text is None else value_of(text)
