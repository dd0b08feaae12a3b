"""Unit tests of rules by promtool: Prometheus' own evaluation of series that a test makes up."""

from __future__ import annotations

import copy
import functools
import math
import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from backends import binary

SHIPPED = Path(__file__).parent.parent / "grafana" / "prometheus"
RULES, ALERTS = SHIPPED / "rules.yaml", SHIPPED / "alerts.yaml"

# The same YAML by libyaml, which takes a twentieth of the time; PyYAML may have been built without it.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

# It keeps little, so a quarter of its time would be Go's garbage collection.
FEWER_COLLECTIONS = {"GOGC": "400"}

Labels = Mapping[str, str]
_RECORDED = re.compile(r"ml_model:\w+(?::\w+)?")


def series(name: str, labels: Labels) -> str:
    """A series as promtool writes it."""
    quoted = ", ".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
    return f"{name}{{{quoted}}}"


def rounded(value: float, digits: int = 9) -> float:
    """As Prometheus' round() does it, to the last bit."""
    inverse = 1.0 / float(f"1e{-digits}")
    return math.floor(value * inverse + 0.5) / inverse


@dataclass
class Case:
    """
    One unit test: what is stored, and what must follow.

    Attributes:
        name: What it promises.
        stored: Values of each series, in promtool's notation: ``0+1x60`` are 60 steps of 1.
        interval: Time between the values.
    """

    name: str
    stored: dict[str, str]
    interval: str = "1m"
    expressions: list[dict[str, Any]] = field(default_factory=list)
    alerts: list[dict[str, Any]] = field(default_factory=list)

    def expect(self, name: str, at: str, samples: Iterable[tuple[Labels, float]], digits: int = 9) -> None:
        """At this time the series of a name have these labels and values, and there are no others."""
        self.expressions.append(
            {
                "expr": f"round({name}, 1e{-digits})",
                "eval_time": at,
                "exp_samples": [
                    {"labels": series("", labels), "value": rounded(value, digits)} for labels, value in samples
                ],
            }
        )

    def expect_alert(self, name: str, at: str, *firing: Mapping[str, Any]) -> None:
        """At this time these alerts of a name fire; each has ``exp_labels`` and may have ``exp_annotations``."""
        self.alerts.append({"alertname": name, "eval_time": at, "exp_alerts": list(firing)})


def run(folder: Path, cases: Iterable[Case], rules: Iterable[Path] = (RULES, ALERTS), interval: str = "1m") -> str:
    """
    Let promtool evaluate rules over each case.

    Returns:
        What promtool found wrong; empty if nothing.
    """
    tests = [
        {
            "name": case.name,
            "interval": case.interval,
            "input_series": [{"series": name, "values": values} for name, values in case.stored.items()],
            "promql_expr_test": case.expressions,
            "alert_rule_test": case.alerts,
        }
        for case in cases
    ]
    rules = list(rules)
    content = {
        "rule_files": [str(path) for path in rules],
        # Otherwise promtool takes the groups of one moment in any order: alerts see the sums of the last one, or not.
        "group_eval_order": [group["name"] for path in rules for group in shipped_groups(path)],
        "evaluation_interval": interval,
        "fuzzy_compare": True,
        "tests": tests,
    }
    path = folder / "test.yaml"
    path.write_text(as_yaml(content))
    done = subprocess.run(
        [binary("promtool"), "test", "rules", str(path)],
        env={**os.environ, **FEWER_COLLECTIONS},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def shipped_groups(path: Path) -> list[dict[str, Any]]:
    """The groups of a shipped file; the caller may change what it got."""
    return copy.deepcopy(_groups_in(path.read_text()))


@functools.lru_cache(maxsize=8)
def _groups_in(text: str) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = yaml.load(text, LOADER)["groups"]
    return groups


def needed(folder: Path, *expressions: str) -> Path:
    """
    A file with the shipped rules that these expressions need, and no others: all of them over a month take long.
    """
    groups = shipped_groups(RULES)
    found: set[str] = set()
    wanted = set(_RECORDED.findall(" ".join(expressions)))
    while wanted - found:
        found |= wanted
        for group in groups:
            for rule in group["rules"]:
                if rule["record"] in found:
                    wanted |= set(_RECORDED.findall(rule["expr"]))
    kept = [{**group, "rules": [rule for rule in group["rules"] if rule["record"] in found]} for group in groups]
    return written(folder, [group for group in kept if group["rules"]], "needed.yaml")


def written(folder: Path, groups: list[dict[str, Any]], name: str) -> Path:
    """A file of rules."""
    path = folder / name
    path.write_text(as_yaml({"groups": groups}))
    return path


def as_yaml(content: Any) -> str:
    """What is easily read in the folder of a test that failed."""
    text: str = yaml.dump(content, Dumper=DUMPER, sort_keys=False, allow_unicode=True)
    return text
