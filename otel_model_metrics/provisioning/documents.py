"""
Files for Prometheus: rules and alerts as YAML, with expressions a reviewer can read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from otel_model_metrics.provisioning.alerts import alert_groups
from otel_model_metrics.provisioning.layout import as_yaml, formatted
from otel_model_metrics.provisioning.rules import Group, Settings, recording_groups
from otel_model_metrics.version import __version__


def rules_file(settings: Settings) -> str:
    """The recording rules."""
    return _file("Quality of the whole fleet, recorded from the totals of all processes.", recording_groups(settings))


def alerts_file(settings: Settings) -> str:
    """The alert rules, which need what the recording rules record."""
    about = "Alerts on what rules.yaml records: load both. What to do about each is in runbooks.md."
    return _file(about, alert_groups(settings))


FILES: dict[str, Callable[[Settings], str]] = {"rules.yaml": rules_file, "alerts.yaml": alerts_file}


def write(folder: Path, choice: Any, files: Mapping[str, Callable[[Any], str]] = FILES) -> list[Path]:
    """
    Write all files into a folder; returns those that changed.

    Args:
        folder: Made if it is not there.
        choice: What the user chose: `Settings` for the rules.
        files: Each file's path within the folder, and what makes its text.
    """
    outdated = _outdated(folder, choice, files)
    for path, text in outdated.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(outdated)


def stale(folder: Path, choice: Any, files: Mapping[str, Callable[[Any], str]] = FILES) -> list[Path]:
    """The files of a folder that are missing, or not what a fresh run would write."""
    return list(_outdated(folder, choice, files))


def _outdated(folder: Path, choice: Any, files: Mapping[str, Callable[[Any], str]]) -> dict[Path, str]:
    """Those files, and what a fresh run would write: made once, for the larger ones take a second."""
    fresh = {folder / name: make(choice) for name, make in files.items()}
    return {path: text for path, text in fresh.items() if not path.exists() or path.read_text(encoding="utf-8") != text}


def _file(about: str, groups: list[Group]) -> str:
    for group in groups:
        for rule in group["rules"]:
            rule["expr"] = formatted(rule["expr"])
    return f"# {about}\n{made_by('rules')}\n{as_yaml({'groups': groups})}"


def made_by(command: str) -> str:
    """A comment that says where a file comes from."""
    return f"# Made by otel-model-metrics {__version__} (otel-model-metrics {command} --help)."
