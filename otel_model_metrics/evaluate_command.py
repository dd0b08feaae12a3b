"""
The command ``otel-model-metrics evaluate``: its options, and what it says.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from otel_model_metrics.catalog import TASKS

NOTHING, MISSED = 2, 3  # exit codes
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
@click.option("--workers", type=_COUNT, default=1, show_default=True, help="Processes to use.")
@click.option("--json", "json_file", metavar="FILE", help="Write all values there as JSON; - for standard output.")
@click.option(
    "--now",
    is_flag=True,
    help="All rows are one window, whatever --time says; exit with 3 if an objective is missed with confidence.",
)
def evaluate(
    files: tuple[str, ...], workers: int, json_file: str | None, now: bool, positive: str | None, **chosen: Any
) -> None:
    """
    Evaluate files of predictions and labels: Parquet, CSV, JSONL or Arrow files, folders or patterns.

    Exits with 0; 2 if nothing could be evaluated; with --now 3 if an objective is missed with confidence.
    """
    from otel_model_metrics.batch import evaluation, running, terminal
    from otel_model_metrics.batch.job import Job
    from otel_model_metrics.files import InputError

    if not files:
        raise click.UsageError("There must be files: predictions.parquet, a folder, or a pattern.")
    scores, ks, classes = chosen.pop("scores"), chosen.pop("ks"), chosen.pop("classes")
    for name in ("metrics", "segment_metrics"):
        chosen[name] = chosen[name] or None
    chosen["score"] = scores[0] if len(scores) == 1 else scores or None
    chosen["objectives"] = dict(_level(one) for one in chosen["objectives"])
    if now and not chosen["objectives"]:
        raise click.UsageError("--now passes judgement by objectives: give one, such as --objective f1=0.85.")
    if now:
        chosen["time"] = None
    if json_file not in (None, "-") and not Path(str(json_file)).parent.is_dir():  # known before hours of reading
        raise click.BadParameter(f"there is no folder {Path(str(json_file)).parent}.", param_hint="--json")
    try:
        job = Job(**chosen, positive=_value(positive), classes=tuple(map(_value, classes)) or None, k=ks or None)
    except (ValueError, TypeError) as error:
        raise click.UsageError(str(error)) from error
    try:
        with _progress(files) as progress:
            found: evaluation.Evaluation = running.evaluate(files, job, workers=workers, progress=progress)
    except InputError as error:
        raise click.UsageError(str(error)) from error
    if json_file is not None:
        text = json.dumps(found.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        if json_file == "-":
            click.echo(text, nl=False)
        else:
            try:
                Path(json_file).write_text(text, encoding="utf-8")
            except OSError as error:
                raise click.FileError(json_file, error.strerror or str(error)) from error
    if json_file == "-":
        for line in terminal.remarks(found):
            click.echo(line, err=True)
    else:
        from rich.console import Console

        terminal.show(found, Console(soft_wrap=not sys.stdout.isatty()))
    if not found.predictions:
        click.echo("Nothing could be evaluated.", err=True)
        sys.exit(NOTHING)
    sys.exit(MISSED if now and found.missed() else 0)


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


@contextlib.contextmanager
def _progress(files: tuple[str, ...]) -> Any:
    """A bar on a terminal; elsewhere nothing, for the log of a nightly job has no use for it."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from otel_model_metrics.batch.reading import ENDINGS
    from otel_model_metrics.files import find_files

    total = sum(path.stat().st_size for path in find_files(files, ENDINGS))
    columns = BarColumn(), TextColumn("{task.fields[rows]}"), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("rows", total=total, rows="")
        read = 0

        def progress(size: int, rows: int) -> None:
            nonlocal read
            read += rows
            seconds = bar.tasks[task].elapsed or 0.0
            bar.update(task, advance=size, rows=f"{read:,} rows, {read / seconds if seconds else 0.0:,.0f} rows/s")

        yield progress
