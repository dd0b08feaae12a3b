"""
The commands of ``otel-model-metrics``: what each takes, and what it says. What only one needs is imported inside it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from otel_model_metrics.version import __version__

if TYPE_CHECKING:
    from otel_model_metrics.provisioning.rules import Settings


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def group() -> None:
    """Windowed quality metrics of machine-learning models, exported through OpenTelemetry."""


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


@group.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default="prometheus",
    show_default=True,
    help="Folder for rules.yaml and alerts.yaml.",
)
@click.option(
    "--window",
    "windows",
    multiple=True,
    default=("1h", "6h"),
    show_default=True,
    help="Compare quality with its objective over this window, e.g. 30m; again for more. The shortest one is "
    "critical, the others warn.",
)
@click.option(
    "--min-rows",
    default=100,
    show_default=True,
    help="No alert on quality below so many labelled rows in the window.",
)
@_naming
@_namespace
@click.option(
    "--by",
    multiple=True,
    metavar="LABEL",
    help="Prometheus label that splits a fleet beside model and version, e.g. deployment_environment_name.",
)
@click.option("--runbooks", metavar="URL", default=None, help="Where your copy of runbooks.md is to be read.")
@click.option("--check", is_flag=True, help="Write nothing; say what is missing or stale, and exit with 1.")
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

    where = {"runbooks": runbooks} if runbooks else {}
    settings = _settings(windows=windows, min_rows=min_rows, naming=naming, namespace=namespace, by=by, **where)
    changed = documents.stale(out, settings) if check else documents.write(out, settings)
    for name in documents.FILES:
        same, different = ("up to date", "stale") if check else ("up to date", "written")
        click.echo(f"{out / name}: {different if out / name in changed else same}")
    sys.exit(1 if check and changed else 0)


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


def _settings(**chosen: Any) -> Settings:
    """What was chosen, or a message that says what is wrong with it."""
    from otel_model_metrics.provisioning.rules import Settings

    try:
        return Settings(**chosen)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
