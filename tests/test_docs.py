"""The README tells the truth: its Python runs, its output is what it says, its tables are those of the catalogue."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from backends import binary
from promtool import ALERTS, RULES

from otel_model_metrics import reference

README = Path(__file__).parent.parent / "README.md"


def test_every_python_block_of_the_readme_runs_and_prints_what_it_says(tmp_path):
    """
    All blocks in one process, top to bottom, as a reader would.
    """
    text = README.read_text()
    blocks = re.findall(r"(<!-- not run[^\n]*\n)?```python\n(.*?)```", text, re.DOTALL)
    script = tmp_path / "readme.py"
    script.write_text("\n".join(code for skipped, code in blocks if not skipped))
    expected = "".join(re.findall(r"```text\n(.*?)```", text, re.DOTALL))

    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, cwd=tmp_path)

    assert len(blocks) >= 5
    assert (0, expected) == (done.returncode, done.stdout), done.stderr


def test_alertmanager_takes_the_configuration_of_the_readme(tmp_path):
    """
    Alerts of one model are one message.
    """
    (block,) = [one for one in re.findall(r"```yaml\n(.*?)```", README.read_text(), re.DOTALL) if "receivers" in one]
    path = tmp_path / "alertmanager.yaml"
    path.write_text(block)

    done = subprocess.run([binary("amtool"), "check-config", str(path)], capture_output=True, text=True, timeout=60)

    assert 0 == done.returncode, done.stderr


def test_prometheus_takes_the_configuration_of_the_readme(tmp_path):
    """
    With the rules beside it, which it names.
    """
    (block,) = [one for one in re.findall(r"```yaml\n(.*?)```", README.read_text(), re.DOTALL) if "rule_files" in one]
    path = tmp_path / "prometheus.yml"
    path.write_text(block)
    for rules in (RULES, ALERTS):
        shutil.copy(rules, tmp_path)

    done = subprocess.run(
        [binary("promtool"), "check", "config", str(path)], capture_output=True, text=True, timeout=60
    )

    assert 0 == done.returncode, done.stderr
    assert 2 == done.stdout.count("rules found"), done.stdout


def test_the_generated_tables_are_those_of_a_fresh_run():
    """
    If this fails: make docs.
    """
    assert reference.rebuilt(README.read_text()) == README.read_text(), "make docs"


@pytest.mark.parametrize("make", reference.GENERATED.values(), ids=list(reference.GENERATED))
def test_the_readme_has_each_generated_part(make):
    """
    A part that is generated and shown nowhere helps nobody.
    """
    assert make() in README.read_text(), "make docs"
