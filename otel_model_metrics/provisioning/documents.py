"""
Files for Prometheus: rules and alerts as YAML, with expressions a reviewer can read.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import promql_parser
import yaml

from otel_model_metrics.provisioning.alerts import alert_groups
from otel_model_metrics.provisioning.rules import Group, Settings, recording_groups
from otel_model_metrics.version import __version__

_WIDTH = 116


def rules_file(settings: Settings) -> str:
    """The recording rules."""
    return _file("Quality of the whole fleet, recorded from the totals of all processes.", recording_groups(settings))


def alerts_file(settings: Settings) -> str:
    """The alert rules, which need what the recording rules record."""
    about = "Alerts on what rules.yaml records: load both. What to do about each is in runbooks.md."
    return _file(about, alert_groups(settings))


FILES: dict[str, Callable[[Settings], str]] = {"rules.yaml": rules_file, "alerts.yaml": alerts_file}


def write(folder: Path, settings: Settings) -> list[Path]:
    """Write all files into a folder; returns those that changed."""
    folder.mkdir(parents=True, exist_ok=True)
    changed = stale(folder, settings)
    for path in changed:
        path.write_text(FILES[path.name](settings), encoding="utf-8")
    return changed


def stale(folder: Path, settings: Settings) -> list[Path]:
    """The files of a folder that are missing, or not what a fresh run would write."""
    return [
        path
        for name, make in FILES.items()
        if not (path := folder / name).exists() or path.read_text(encoding="utf-8") != make(settings)
    ]


def formatted(expression: str) -> str:
    """An expression on one line if it fits, else with its parts below each other."""
    if len(expression) <= _WIDTH:
        return expression
    pretty: str = promql_parser.parse(expression).prettify()
    return pretty


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Writes texts of several lines as they are, and never repeats a part by reference."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _Dumper, value: str) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def _file(about: str, groups: list[Group]) -> str:
    for group in groups:
        for rule in group["rules"]:
            rule["expr"] = formatted(rule["expr"])
    body = yaml.dump({"groups": groups}, Dumper=_Dumper, sort_keys=False, width=100_000, allow_unicode=True)
    return f"# {about}\n# Made by otel-model-metrics {__version__} (otel-model-metrics rules --help).\n{body}"
