"""
The command line: ``otel-model-metrics``.

Without the extra `demo` there is no click either, so this file can be imported without it, and says what to install.
A new command is a function in `_group`, below the others; what it needs is imported inside it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from otel_model_metrics.version import __version__

if TYPE_CHECKING:
    import click

# Modules of the optional dependencies, and the extra that installs them.
_EXTRAS = {"click": "demo", "rich": "demo", "sklearn": "demo"}


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Run the command line and exit.

    Args:
        arguments: What follows the name of the program; those of the process by default.
    """
    try:
        _group().main(arguments, prog_name="otel-model-metrics")
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in _EXTRAS:
            raise
        extra = _EXTRAS[module]
        print(
            f"otel-model-metrics: {module} is not installed, which this command needs. "
            f'Install the extra {extra}: pip install "otel-model-metrics[{extra}]"',
            file=sys.stderr,
        )
        sys.exit(1)


def _group() -> click.Group:
    """All commands."""
    import click

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

    return group
