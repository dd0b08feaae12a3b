"""
`otel-model-metrics evaluate`: the values are those of scikit-learn, and what cannot be used is told with file and row.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, precision_score, roc_auc_score

from otel_model_metrics.commands import group

BINARY = ("--task", "binary", "--prediction", "predicted")


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def evaluate(*arguments: str) -> Result:
    return CliRunner().invoke(group, ["evaluate", *arguments], env={"COLUMNS": "240"})


def evaluated(*arguments: str) -> dict[str, Any]:
    """The JSON of a run that went well."""
    result = evaluate(*arguments, "--json", "-")
    assert result.exit_code == 0, result.output
    data: dict[str, Any] = json.loads(result.stdout)
    return data


def parquet(name: str, **columns: Any) -> None:
    pq.write_table(pa.table(columns), name)


def rows(count: int = 240, seed: int = 0) -> dict[str, Any]:
    """Two hours of predictions, three in four of them right."""
    random = np.random.default_rng(seed)
    label = random.integers(0, 2, count)
    return {
        "predicted": np.where(random.random(count) < 0.75, label, 1 - label),
        "label": label,
        "score": np.round(0.6 * random.random(count) + 0.4 * label, 3),
        "country": random.choice(["DE", "FR"], count),
        "at": np.arange(count) * 7200.0 / count,
    }


def csv(name: str, *lines: str) -> None:
    Path(name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_values_are_those_of_scikit_learn():
    """
    Of all rows, of a segment, and of a window.
    """
    data = rows()
    parquet("a.parquet", **data)
    found = evaluated(
        "a.parquet", *BINARY, "--score", "score", "--time", "at", "--segment", "country", "--segment-metric", "f1"
    )
    y, p = data["label"], data["predicted"]
    expected = [f1_score(y, p), precision_score(y, p), roc_auc_score(y, data["score"])]
    values = found["overall"]["values"]
    assert pytest.approx(expected) == [values[name] for name in ("f1", "precision", "roc_auc")]
    german, late = data["country"] == "DE", data["at"] >= 3600
    segment = found["overall"]["segments"]["country=DE"]
    assert pytest.approx(f1_score(y[german], p[german])) == segment["f1"]
    window = found["windows"][1]
    assert ("1970-01-01T01:00:00Z", int(late.sum())) == (window["start"], window["rows"])
    assert pytest.approx(f1_score(y[late], p[late])) == window["values"]["f1"]


def test_standard_output_is_json_only_and_remarks_go_to_standard_error():
    """
    So that it can be piped.
    """
    csv("a.csv", "predicted,label", "1,1", "1,maybe")
    result = evaluate("a.csv", *BINARY, "--json", "-")
    assert 2 == json.loads(result.stdout)["rows"]
    assert "Not used" in result.stderr


def test_a_terminal_shows_all_rows_segments_windows_and_their_course():
    """
    A table for each, and a sparkline.
    """
    parquet("a.parquet", **rows())
    result = evaluate("a.parquet", *BINARY, "--time", "at", "--segment", "country")
    assert 0 == result.exit_code
    absent = [
        word for word in ("All rows", "Segments", "Windows of 1h", "DE", "T02:00:00Z") if word not in result.output
    ]
    assert [] == absent
    assert any(bars in result.output for bars in ("▁█", "█▁"))


def test_a_missing_column_names_the_near_one():
    """
    It is a mistake in the use: 2.
    """
    parquet("a.parquet", **rows())
    result = evaluate("a.parquet", "--task", "binary", "--prediction", "predicte")
    assert (2, True) == (result.exit_code, "'predicted'" in result.stderr), result.stderr


def test_a_wrong_delimiter_is_told_and_the_right_one_works():
    """
    The message says what separates the cells instead.
    """
    csv("a.csv", "predicted;label", "1;1", "0;1")
    result = evaluate("a.csv", *BINARY)
    assert (2, True) == (result.exit_code, "separated by commas, not by semicolons" in result.stderr), result.stderr
    assert 0.5 == evaluated("a.csv", *BINARY, "--delimiter", ";")["overall"]["values"]["accuracy"]


def test_a_label_that_is_none_is_rejected_with_file_and_row():
    """
    The others are kept.
    """
    csv("a.csv", "predicted,label", "1,1", "1,maybe", "0,0")
    found = evaluated("a.csv", *BINARY)
    (rejected,) = found["rejected"].values()
    assert (1, 2) == (rejected["rows"], found["labelled"])
    assert all(word in rejected["first"] for word in ("a.csv", "row 2", "maybe")), rejected


def test_rows_without_a_label_count_as_predictions():
    """
    They lower the coverage and are not rejected.
    """
    csv("a.csv", "predicted,label", "1,1", "1,", "0,0", "0,")
    parquet("b.parquet", predicted=[1, 1, 0, 0], label=[1.0, float("nan"), 0.0, None])
    for file in ("a.csv", "b.parquet"):
        found = evaluated(file, *BINARY)
        assert (4, 2, {}) == (found["predictions"], found["labelled"], found["rejected"]), file
        assert 0.5 == found["overall"]["values"]["label.coverage"]


def test_the_order_of_rows_does_not_matter():
    """
    Times may be unsorted and come twice.
    """
    data = rows()
    data["at"] = np.floor(data["at"] / 600) * 600
    parquet("a.parquet", **data)
    order = np.random.default_rng(1).permutation(240)
    parquet("b.parquet", **{name: column[order] for name, column in data.items()})
    options = (*BINARY, "--score", "score", "--time", "at", "--segment", "country")
    one, two = evaluated("a.parquet", *options), evaluated("b.parquet", *options)
    assert pytest.approx(one["overall"]["values"]) == two["overall"]["values"]
    assert one["overall"]["segments"].keys() == two["overall"]["segments"].keys()
    for before, after in zip(one["windows"], two["windows"], strict=True):
        assert (before["start"], before["rows"]) == (after["start"], after["rows"])
        assert pytest.approx(before["values"]) == after["values"]


def test_times_without_a_zone_need_one():
    """
    Guessing would put rows in the wrong windows.
    """
    csv("a.csv", "predicted,label,at", "1,1,2024-07-01T12:30:00")
    result = evaluate("a.csv", *BINARY, "--time", "at")
    assert (2, True) == (result.exit_code, "timezone" in result.stderr + result.stdout), result.output
    found = evaluated("a.csv", *BINARY, "--time", "at", "--timezone", "Europe/Berlin")
    assert ["2024-07-01T10:00:00Z"] == [window["start"] for window in found["windows"]]


@pytest.mark.parametrize("time", ["2024-07-01T12:30:00+02:00", "2024-07-01T10:30:00Z", "1719829800"])
def test_times_may_be_iso_with_a_zone_or_seconds(time):
    """
    All of these are the same moment.
    """
    csv("a.csv", "predicted,label,at", f"1,1,{time}")
    found = evaluated("a.csv", *BINARY, "--time", "at")
    assert ["2024-07-01T10:00:00Z"] == [window["start"] for window in found["windows"]]


def test_milliseconds_are_rejected_with_file_and_row():
    """
    They are no seconds of any time near.
    """
    csv("a.csv", "predicted,label,at", "1,1,1719829800", "1,1,1719829800000")
    rejected = evaluated("a.csv", *BINARY, "--time", "at")["rejected"]
    assert ["invalid_timestamp"] == list(rejected)
    assert all(word in rejected["invalid_timestamp"]["first"] for word in ("a.csv", "row 2")), rejected


@pytest.mark.parametrize("broken", ["empty.csv", "cut.parquet"])
def test_a_broken_file_next_to_a_good_one_is_a_problem_told(broken):
    """
    The good one is evaluated.
    """
    parquet("good.parquet", **rows())
    content = Path("good.parquet").read_bytes()
    Path(broken).write_bytes(b"" if broken == "empty.csv" else content[: len(content) // 2])
    found = evaluated(broken, "good.parquet", *BINARY)
    assert 240 == found["labelled"]
    assert [True] == [broken in problem for problem in found["problems"]]


def test_an_empty_file_alone_is_nothing():
    """
    An exit code for the nightly job.
    """
    Path("a.csv").touch()
    result = evaluate("a.csv", *BINARY)
    assert (2, True) == (result.exit_code, "Nothing could be evaluated." in result.stderr), result.output


def test_a_segment_of_very_many_values_is_bounded_and_told():
    """
    The overall values do not suffer.
    """
    data = rows(3_000)
    data["country"] = [f"c{number}" for number in range(3_000)]
    parquet("a.parquet", **data)
    found = evaluated("a.parquet", *BINARY, "--segment", "country", "--max-segment-values", "5")
    assert pytest.approx(accuracy_score(data["label"], data["predicted"])) == found["overall"]["values"]["accuracy"]
    assert len(found["overall"]["segments"]) <= 6
    assert any("'country'" in note for note in found["notes"])


def test_options_and_files_may_come_from_a_file():
    """
    What the command line has wins.
    """
    parquet("a.parquet", **rows())
    csv(
        "job.toml",
        "[tool.otel-model-metrics.evaluate]",
        'files = ["a.parquet"]',
        'task = "binary"\nprediction = "predicted"\nmodel = "fraud"\nversion = "1"',
        "objective = {f1 = 0.99}",
    )
    found = evaluated("--config", "job.toml", "--version", "2")
    assert ("fraud", "2", 0.99) == (found["model"], found["version"], found["missed"][0]["objective"])


def test_an_unknown_option_of_a_file_names_the_known():
    """
    A typo is no silence.
    """
    csv("job.toml", "[tool.otel-model-metrics.evaluate]", 'modle = "fraud"')
    result = evaluate("--config", "job.toml")
    assert (2, True) == (result.exit_code, "'modle'" in result.stderr and "model, " in result.stderr), result.stderr


def test_only_objectives_may_be_a_table_of_a_file():
    """
    A table would become the name of a column.
    """
    csv("job.toml", "[tool.otel-model-metrics.evaluate]", "prediction = {name = 'predicted'}")
    result = evaluate("--config", "job.toml")
    assert (2, True) == (result.exit_code, "prediction must be a value" in result.stderr), result.stderr


def test_a_folder_that_is_not_there_is_told_before_anything_is_read():
    """
    Not as a traceback when all has been read.
    """
    parquet("a.parquet", **rows())
    result = evaluate("a.parquet", *BINARY, "--json", "away/a.json")
    assert (2, True, "") == (result.exit_code, "no folder away" in result.stderr, result.stdout), result.output


@pytest.mark.parametrize(("count", "level", "code"), [(240, 0.95, 3), (240, 0.3, 0), (3, 0.9, 0)])
def test_judgement_is_passed_with_confidence_only(count, level, code):
    """
    3 if missed beyond doubt; 0 if met, or if there are too few rows to tell.
    """
    parquet("a.parquet", **rows(count, seed=3))
    result = evaluate("a.parquet", *BINARY, "--now", "--objective", f"accuracy={level}")
    assert code == result.exit_code, result.output


def test_judgement_needs_an_objective():
    """
    Without one all is well always.
    """
    parquet("a.parquet", **rows())
    result = evaluate("a.parquet", *BINARY, "--now")
    assert (2, True) == (result.exit_code, "--objective" in result.stderr)


@pytest.mark.parametrize("named", [("in/a.parquet", "in/b.parquet"), ("in",), ("in/*.parquet",)])
def test_files_folders_and_patterns_are_the_same(named):
    """
    All rows of all of them.
    """
    Path("in").mkdir()
    parquet("in/a.parquet", **rows(100))
    parquet("in/b.parquet", **rows(140, seed=1))
    assert 240 == evaluated(*named, *BINARY)["rows"]


def test_workers_do_not_change_a_byte():
    """
    However many there are.
    """
    parquet("a.parquet", **rows(100))
    parquet("b.parquet", **rows(140, seed=1))
    options = ("a.parquet", "b.parquet", *BINARY, "--score", "score", "--time", "at", "--json")
    assert 0 == evaluate(*options, "one.json", "--workers", "1").exit_code
    assert 0 == evaluate(*options, "two.json", "--workers", "2").exit_code
    assert Path("one.json").read_bytes() == Path("two.json").read_bytes()


def test_regression():
    """
    The mean error is that of scikit-learn.
    """
    label, predicted = [1.0, 2.0, 4.0, 8.0], [1.5, 2.0, 3.0, 9.0]
    parquet("a.parquet", label=label, predicted=predicted)
    found = evaluated("a.parquet", "--task", "regression", "--prediction", "predicted")
    assert pytest.approx(mean_absolute_error(label, predicted)) == found["overall"]["values"]["mae"]


def test_multiclass():
    """
    Classes may be text.
    """
    csv("a.csv", "predicted,label", "cat,cat", "dog,cat", "dog,dog", "owl,owl")
    found = evaluated("a.csv", "--task", "multiclass", "--prediction", "predicted")
    assert 0.75 == found["overall"]["values"]["accuracy"]


def test_ranking():
    """
    Items are lists: the first relevant one is the first, and the second.
    """
    parquet("a.parquet", predicted=[["a", "b"], ["c", "d"]], label=[["a"], ["d"]])
    found = evaluated("a.parquet", "--task", "ranking", "--prediction", "predicted", "--k", "2")
    values = found["overall"]["values"]
    assert (0.75, 0.5) == (values["mrr"], values["precision_at_k{k=2}"])


def test_without_the_extra_it_is_named():
    """
    One line and an exit code, no traceback.
    """
    code = (
        "import sys; sys.modules['pyarrow'] = None; from otel_model_metrics.cli import main; "
        "main(['evaluate', 'a.parquet', '--task', 'binary', '--prediction', 'p'])"
    )
    parquet("a.parquet", p=[1], label=[1])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (1, "") == (done.returncode, done.stdout), done.stderr
    assert 'pip install "otel-model-metrics[batch]"' in done.stderr


def test_labels_of_other_files_are_joined_by_id():
    """
    And it is said what became of them.
    """
    columns = rows()
    label = columns.pop("label")
    parquet("rows.parquet", id=list(range(240)), **columns)
    csv("labels.csv", "id,label", *(f"{row},{value}" for row, value in enumerate(label[:200])), "9999,1")

    data = evaluated("rows.parquet", *BINARY, "--labels", "labels.csv", "--id", "id")

    assert accuracy_score(label[:200], columns["predicted"][:200]) == pytest.approx(
        data["overall"]["values"]["accuracy"]
    )
    assert {"matched": 200, "unmatched": 1} == {name: count for name, count in data["labels"].items() if count}


def test_labels_need_an_id():
    """
    The mistake is told as one of options.
    """
    parquet("rows.parquet", **rows())

    result = evaluate("rows.parquet", *BINARY, "--labels", "rows.parquet")

    assert 2 == result.exit_code
    assert "--id" in result.stderr


def test_the_report_is_a_page():
    """
    Beside the tables.
    """
    parquet("rows.parquet", **rows())

    result = evaluate("rows.parquet", *BINARY, "--time", "at", "--html", "report.html")

    assert 0 == result.exit_code, result.output
    assert Path("report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_worker_that_is_gone_is_told_without_a_traceback(monkeypatch):
    """
    It is no mistake of the options either.
    """
    from otel_model_metrics.batch import processes, running

    parquet("rows.parquet", **rows())

    def evaluate_badly(*_: Any, **__: Any) -> None:
        raise processes.WorkerError("A process that read rows.parquet was killed.")

    monkeypatch.setattr(running, "evaluate", evaluate_badly)
    result = evaluate("rows.parquet", *BINARY)

    assert 1 == result.exit_code
    assert "Error: A process that read rows.parquet was killed.\n" == result.stderr


def test_a_gate_that_could_not_judge_does_not_let_pass():
    """
    Such as with the labels of another day: there is a row, but nothing that tells of the objective.
    """
    columns = rows()
    columns["label"] = pa.nulls(240, pa.int64())
    parquet("rows.parquet", **columns)

    result = evaluate("rows.parquet", *BINARY, "--now", "--objective", "f1=0.5")

    assert 2 == result.exit_code
    assert "Not judged, for want of labelled rows: f1. There are 0." in result.stderr


def test_a_gate_may_ask_for_rows():
    """
    A verdict on a few labels of many predictions is none, whichever way it goes.
    """
    parquet("rows.parquet", **rows())
    gate = ("rows.parquet", *BINARY, "--now", "--objective")

    codes = {
        (level, least): evaluate(*gate, f"accuracy={level}", "--min-rows", least).exit_code
        for level in ("0.5", "0.99")
        for least in ("240", "241")
    }

    assert {("0.5", "240"): 0, ("0.5", "241"): 2, ("0.99", "240"): 3, ("0.99", "241"): 2} == codes


def test_windows_need_times():
    """
    A length that would have no effect is a mistake.
    """
    parquet("rows.parquet", **rows())

    result = evaluate("rows.parquet", *BINARY, "--every", "1d")

    assert 2 == result.exit_code
    assert "--every is the length of a window of time: name the column of times with --time." in result.stderr


def test_the_newest_windows_are_seen_on_a_narrow_terminal():
    """
    The course of a metric is cut at its beginning.
    """
    columns = rows()
    columns["at"] = np.arange(240) * 1800.0
    columns["predicted"] = np.where(np.arange(240) < 200, columns["label"], 1 - columns["label"])
    parquet("rows.parquet", **columns)

    wide, narrow = (
        CliRunner().invoke(
            group, ["evaluate", "rows.parquet", *BINARY, "--time", "at", "--every", "5h"], env={"COLUMNS": columns}
        )
        for columns in ("160", "80")
    )

    for result in (wide, narrow):
        (line,) = [line for line in result.output.splitlines() if line.lstrip().startswith("accuracy")]
        assert line.rstrip().endswith("█▁▁▁▁")


def test_the_column_of_ids_may_have_another_name_in_files_of_labels():
    """
    And is asked for by its own option.
    """
    columns = rows()
    label = columns.pop("label")
    parquet("rows.parquet", id=list(range(240)), **columns)
    parquet("labels.parquet", customer=list(range(240)), label=label)
    options = ("rows.parquet", *BINARY, "--labels", "labels.parquet", "--id", "id", "--label-id")

    data = evaluated(*options, "customer")
    result = evaluate(*options, "custoner")

    assert 240 == data["labels"]["matched"]
    assert 2 == result.exit_code
    assert "did you mean 'customer'" in result.stderr
    assert "--label-id" in result.stderr
