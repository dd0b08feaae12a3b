"""
The commands of ``otel-model-metrics``: what each takes, and what it says. What only one needs is imported inside it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from otel_model_metrics.evaluate_command import evaluate
from otel_model_metrics.version import __version__

if TYPE_CHECKING:
    from otel_model_metrics.labels_files import LabelFile, Tally
    from otel_model_metrics.provisioning.rules import Settings


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def group() -> None:
    """Windowed quality metrics of machine-learning models, exported through OpenTelemetry."""


group.add_command(evaluate)


@group.command()
@click.option("--seconds", default=40.0, show_default=True, help="How long to serve: half healthy, half disturbed.")
def demo(seconds: float) -> None:
    """
    Serve and monitor four real models on this machine.

    Half-way their inputs are disturbed. Metrics go to a receiver inside the demo, which shows them, and to
    OTEL_EXPORTER_OTLP_ENDPOINT if that is set.
    """
    from otel_model_metrics.demo.run import run

    try:
        code = run(seconds)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--seconds") from error
    sys.exit(code)


@group.command()
@click.argument("readme", type=click.Path(exists=True, dir_okay=False, path_type=Path), default="README.md")
def docs(readme: Path) -> None:
    """
    Rebuild the generated tables of a Markdown file, in place.
    """
    from otel_model_metrics import reference

    click.echo(f"{readme}: {'rebuilt' if reference.update(readme) else 'up to date'}")


_naming = click.option(
    "--naming",
    type=click.Choice(["otlp", "scrape"]),
    default="otlp",
    show_default=True,
    help="How metrics come to Prometheus: over OTLP, or scraped from the Python exporter. Our names are the same.",
)
_namespace = click.option("--namespace", default="", help="What your Collector or exporter puts in front of names.")
_windows = click.option(
    "--window",
    "windows",
    multiple=True,
    default=("1h", "6h"),
    show_default=True,
    help="Compare quality with its objective over this window, e.g. 30m; again for more. The shortest one is "
    "critical, the others warn.",
)
_min_rows = click.option(
    "--min-rows",
    default=100,
    show_default=True,
    help="No alert on quality below so many labelled rows in the window.",
)
_by = click.option(
    "--by",
    multiple=True,
    metavar="LABEL",
    help="Prometheus label that splits a fleet beside model and version, e.g. deployment_environment_name.",
)
_runbooks = click.option(
    "--runbooks", metavar="URL", default=None, help="Where your copy of runbooks.md is to be read."
)
_check = click.option("--check", is_flag=True, help="Write nothing; say what is missing or stale, and exit with 1.")


@group.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default="prometheus",
    show_default=True,
    help="Folder for rules.yaml and alerts.yaml.",
)
@_windows
@_min_rows
@_naming
@_namespace
@_by
@_runbooks
@_check
def rules(
    out: Path,
    windows: tuple[str, ...],
    min_rows: int,
    naming: Any,
    namespace: str,
    by: tuple[str, ...],
    runbooks: str | None,
    check: bool,
) -> None:
    """
    Write recording rules and alert rules for Prometheus, Mimir, Thanos or vmalert.
    """
    from otel_model_metrics.provisioning import documents

    settings = _settings(
        windows=windows, min_rows=min_rows, naming=naming, namespace=namespace, by=by, runbooks=runbooks
    )
    _write_or_check(out, settings, documents.FILES, check)


def _write_or_check(out: Path, choice: Any, files: Mapping[str, Callable[[Any], str]], check: bool) -> None:
    """Write files, or say which of them are stale, and exit."""
    from otel_model_metrics.provisioning import documents

    missing = {out / name for name in files if not (out / name).exists()}
    changed = (documents.stale if check else documents.write)(out, choice, files)
    for path in (out / name for name in files):
        different = ("missing" if path in missing else "stale") if check else "written"
        click.echo(f"{path}: {different if path in changed else 'up to date'}")
    sys.exit(1 if check and changed else 0)


@group.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default="grafana",
    show_default=True,
    help="Folder for all files, those of `rules` among them.",
)
@click.option(
    "--datasource", metavar="UID", default="prometheus", show_default=True, help="Uid of the data source in Grafana."
)
@click.option(
    "--datasource-url",
    metavar="URL",
    default=None,
    help="Where Grafana finds it; with --datasource, only if Grafana does not know it yet.  [default: "
    "http://prometheus:9090, without --datasource]",
)
@click.option("--interval", default="60s", show_default=True, help="How often your processes export.")
@click.option(
    "--folder", metavar="TITLE", default="ML model quality", show_default=True, help="Folder for dashboards and alerts."
)
@click.option("--folder-uid", metavar="UID", default="ml-model-quality", show_default=True, help="Its uid.")
@click.option(
    "--models",
    metavar="REGEX",
    default="",
    help="Only models whose whole name matches, e.g. 'fraud|churn-.*', on dashboards and in Grafana's alerts.",
)
@click.option(
    "--dashboard-window",
    "window",
    default="1h",
    show_default=True,
    help="Over which dashboards show quality until another window is chosen there.",
)
@_windows
@_min_rows
@_naming
@_namespace
@_by
@_runbooks
@_check
def grafana(
    out: Path,
    datasource: str,
    datasource_url: str | None,
    check: bool,
    runbooks: str | None,
    windows: tuple[str, ...],
    min_rows: int,
    naming: Any,
    namespace: str,
    by: tuple[str, ...],
    **chosen: str,
) -> None:
    """
    Write dashboards and alerts for Grafana, with what provisions them, and the rules for Prometheus.
    """
    from otel_model_metrics.provisioning import grafana as made
    from otel_model_metrics.provisioning.choice import Choice

    settings = _settings(
        windows=windows, min_rows=min_rows, naming=naming, namespace=namespace, by=by, runbooks=runbooks
    )
    if datasource_url is not None:
        chosen["datasource_url"] = datasource_url
    elif datasource != Choice().datasource:
        chosen["datasource_url"] = ""  # Grafana knows it
    try:
        choice = Choice(settings, datasource, **chosen)
        _write_or_check(out, choice, made.files_of(choice), check)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


@group.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_naming
@_namespace
def check(files: tuple[Path, ...], naming: Any, namespace: str) -> None:
    """
    Check rule files that you have edited: their form, their PromQL, and that every metric and label exists.
    """
    from otel_model_metrics.provisioning import checking

    found = checking.problems(files, _settings(naming=naming, namespace=namespace))
    for problem in found:
        click.echo(problem)
    click.echo(f"{len(found)} problem{'' if len(found) == 1 else 's'} in {len(files)} file(s).")
    sys.exit(1 if found else 0)


@group.command()
@click.argument("files", nargs=-1, required=True)
@click.option("--store", required=True, metavar="URL", help="The service's store: sqlite:///PATH or redis://HOST.")
@click.option("--model", required=True, help="Name of the model.")
@click.option("--version", default=None, help="Version of the model; without it, that of the prediction with the id.")
@click.option("--id", "id_", default="id", show_default=True, metavar="COLUMN", help="Column of the ids.")
@click.option("--label", default="label", show_default=True, metavar="COLUMN", help="Column of the labels.")
@click.option(
    "--time",
    default=None,
    metavar="COLUMN",
    help="Column of the times: seconds since 1970, or ISO 8601 with a time zone.  [default: time, if there is one]",
)
@click.option("--text", is_flag=True, help='Keep labels of CSV files as they are written, such as the class "007".')
def labels(
    files: tuple[str, ...],
    store: str,
    model: str,
    version: str | None,
    id_: str,
    label: str,
    time: str | None,
    text: bool,
) -> None:
    """
    Feed labels from CSV, JSONL or Parquet files, folders or patterns into a store.

    A running service takes them from there. Rows without a label are passed over, so the same file may come again
    with more of them: a second run changes nothing else.

    Exits with 0 if the store has labels of these files now; 1 if it cannot be reached; 2 if there was nothing to feed.
    """
    from otel_model_metrics import labels_files
    from otel_model_metrics.ground_truth.inbox import open_inbox

    columns = labels_files.Columns(id_, label, time, text)
    try:
        found = [labels_files.LabelFile(path, columns) for path in labels_files.find(files)]
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    tally = labels_files.Tally(len(found))
    with contextlib.ExitStack() as stack:
        try:
            inbox = stack.enter_context(open_inbox(store))
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--store") from error
        except OSError as error:
            why = str(error).rstrip(".")
            raise click.ClickException(f"The store cannot be reached: {why}. Nothing was handed over.") from error
        stack.enter_context(_progress(found, tally))
        try:
            labels_files.feed(inbox, model, version, found, tally)
        except labels_files.ModelError as error:
            raise click.UsageError(str(error)) from error
        except labels_files.StoreError as error:
            raise click.ClickException(str(error)) from error
    for problem in tally.problems:
        click.echo(problem, err=True)
    click.echo(tally)
    sys.exit(0 if tally.fed else 2)


def _progress(files: list[LabelFile], tally: Tally) -> contextlib.AbstractContextManager[Any]:
    """A bar on a terminal; elsewhere nothing, for the log of a nightly job has no use for it."""
    if not sys.stderr.isatty():
        return contextlib.nullcontext()
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    class Bar(Progress):
        # Asks how far it is whenever it is drawn, so that reading never stops to tell.
        def get_renderables(self) -> Any:
            for task in self.tasks:
                rows, seconds = tally.rows, task.elapsed or 0.0
                self.update(
                    task.id,
                    completed=sum(file.position for file in files),
                    rows=f"{rows:,} rows, {rows / seconds if seconds else 0.0:,.0f} rows/s",
                )
            yield from super().get_renderables()

    bar = Bar(BarColumn(), TextColumn("{task.fields[rows]}"), TimeRemainingColumn(), console=Console(stderr=True))
    bar.add_task("labels", total=sum(file.size for file in files), rows="")
    return bar


def _settings(**chosen: Any) -> Settings:
    """What was chosen, or a message that says what is wrong with it."""
    from otel_model_metrics.provisioning.rules import Settings

    try:
        return Settings(**{name: value for name, value in chosen.items() if value is not None})
    except ValueError as error:
        raise click.UsageError(str(error)) from error
