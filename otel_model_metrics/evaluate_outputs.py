"""
What ``otel-model-metrics evaluate`` does with an evaluation: what it prints, which files it writes, what it sends.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

if TYPE_CHECKING:
    from otel_model_metrics.batch.evaluation import Evaluation
    from otel_model_metrics.batch.job import Job
    from otel_model_metrics.batch.points import Points

Span = tuple[float, float]


@dataclass(frozen=True)
class Outputs:
    """
    Where an evaluation goes, by the options of the command; None for nowhere.

    Attributes:
        json_file: JSON; ``-`` for standard output, which then has nothing else.
        html_file: The report.
        openmetrics_file: All points as OpenMetrics text.
        otlp: Whether all points are sent.
        endpoint, protocol: Where to, and how.
        instance: Whose series the points are.
    """

    json_file: str | None
    html_file: str | None
    openmetrics_file: str | None
    otlp: bool
    endpoint: str | None
    protocol: str | None
    instance: str | None

    @property
    def have_points(self) -> bool:
        """Whether points are wanted, which need a time."""
        return self.otlp or self.openmetrics_file is not None

    def check(self, job: Job) -> None:
        """
        Find mistakes before hours of reading.

        Raises:
            UsageError: For options that do not go together, and for folders that are not there.
        """
        files = {"--json": self.json_file, "--html": self.html_file, "--openmetrics": self.openmetrics_file}
        for option, name in files.items():
            if name is not None and (option, name) != ("--json", "-") and not Path(name).parent.is_dir():
                raise click.BadParameter(f"there is no folder {Path(name).parent}.", param_hint=option)
        if not self.otlp and (self.endpoint or self.protocol):
            raise click.UsageError("--endpoint and --protocol say where --otlp sends points: give --otlp too.")
        if self.instance and not self.have_points:
            raise click.UsageError("--instance names the series of --otlp and --openmetrics: give one of these too.")
        if self.otlp:
            from otel_model_metrics.otlp import protocol_of

            try:
                protocol_of(self.protocol)
            except ValueError as error:  # of the environment
                raise click.UsageError(str(error)) from error

    def show(self, evaluation: Evaluation) -> None:
        """Print tables, or JSON, and write the files with all values."""
        if self.json_file is not None:
            text = json.dumps(evaluation.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
            if self.json_file == "-":
                click.echo(text, nl=False)
            else:
                with _written(self.json_file) as file:
                    file.write(text)
        if self.html_file is not None:
            from otel_model_metrics.batch import html

            with _written(self.html_file) as file:
                file.write(html.report(evaluation))
        from otel_model_metrics.batch import terminal

        if self.json_file == "-":
            for line in terminal.remarks(evaluation):
                click.echo(line, err=True)
        else:
            from rich.console import Console

            terminal.show(evaluation, Console(soft_wrap=not sys.stdout.isatty()))

    def deliver(self, evaluation: Evaluation, files: Sequence[str], span: Span | None) -> bool:
        """
        Write or send the points.

        Returns:
            Whether all of them arrived.
        """
        if not self.have_points:
            return True
        from otel_model_metrics.batch.identity import prometheus_target, resource_of
        from otel_model_metrics.batch.points import points

        found = points(evaluation, span)
        resource = resource_of(self.instance, files, evaluation.job)
        if self.openmetrics_file is not None:
            from otel_model_metrics.batch import openmetrics

            with _written(self.openmetrics_file) as file, bar(found.count, "points") as progress:
                openmetrics.write(found, prometheus_target(resource.attributes), file, progress)
            self._say(f"Wrote {found.count:,} points to {self.openmetrics_file}.")
        return not self.otlp or self._send(found, resource, span)

    def _send(self, found: Points, resource: Any, span: Span | None) -> bool:
        from otel_model_metrics.batch import sending
        from otel_model_metrics.batch.evaluation import iso
        from otel_model_metrics.batch.identity import INSTANCE_ID

        with bar(found.count, "points") as progress:
            sent = sending.send(found, resource, endpoint=self.endpoint, protocol=self.protocol, progress=progress)
        until = "" if span is not None or sent.until is None else f", all windows until {iso(sent.until)}"
        if sent.refusal is None:
            self._say(f"Sent {sent.points:,} points{until}, as {resource.attributes[INSTANCE_ID]}.")
            if note := sending.note(found):
                self._say(f"Note: {note}")
            return True
        click.echo(f"Sending stopped: {sent.refusal}", err=True)
        click.echo(f"Accepted before that: {sent.points:,} of {sent.of:,} points{until}.", err=True)
        return False

    def _say(self, text: str) -> None:
        click.echo(text, err=self.json_file == "-")


@contextlib.contextmanager
def bar(total: int, what: str) -> Iterator[Callable[..., None] | None]:
    """
    A bar on a terminal; elsewhere nothing, for the log of a nightly job has no use for it.

    Yields:
        A function to be called with how far it went, and how many things that were if that is not the same.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = BarColumn(), TextColumn("{task.fields[done]}"), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=total, done="")
        count = 0

        def progress(advance: int, things: int | None = None) -> None:
            nonlocal count
            count += advance if things is None else things
            seconds = shown.tasks[task].elapsed or 0.0
            rate = count / seconds if seconds else 0.0
            shown.update(task, advance=advance, done=f"{count:,} {what}, {rate:,.0f} {what}/s")

        yield progress


@contextlib.contextmanager
def _written(name: str) -> Iterator[TextIO]:
    """A text file that takes its name only when it is complete."""
    unfinished = Path(f"{name}.{os.getpid()}.part")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            yield file
        unfinished.replace(name)
    except OSError as error:
        raise click.FileError(name, error.strerror or str(error)) from error
    finally:
        unfinished.unlink(missing_ok=True)
