"""
`otel-model-metrics check`: what is wrong with an edited rule file is said in one line, and nothing that is right is.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from backends import binary
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from otel_model_metrics import catalog
from otel_model_metrics.provisioning.checking import problems
from otel_model_metrics.provisioning.rules import Settings

ROOT = Path(__file__).parent.parent
SHIPPED = sorted((ROOT / "grafana" / "prometheus").glob("*.yaml"))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """Files are named as they are from here."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(content: Any, name: str = "rules.yaml", **chosen: Any) -> list[str]:
    """The problems of a file with this content, without its name."""
    Path(name).write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    listed = problems([Path(name)], Settings(**chosen))
    assert all(problem.startswith(f"{name}: ") for problem in listed), listed
    return [problem.removeprefix(f"{name}: ") for problem in listed]


def a_file(*rules: Any, **group: Any) -> dict[str, Any]:
    return {"groups": [{"name": "g", **group, "rules": list(rules)}]}


def an_alert(expression: Any = "up == 0", **more: Any) -> dict[str, Any]:
    return {"alert": "A", "expr": expression, **more}


def of_rule(rule: dict[str, Any], **chosen: Any) -> list[str]:
    """The problems of one rule, without where it is."""
    listed = found(a_file(rule), **chosen)
    name = rule.get("alert") or rule.get("record") or "nameless"
    where = f"g, rule 1 ({name}): "
    assert all(problem.startswith(where) for problem in listed), listed
    return [problem.removeprefix(where) for problem in listed]


def of_expression(expression: str, **chosen: Any) -> list[str]:
    return of_rule(an_alert(expression), **chosen)


# What is right


def test_the_shipped_files_have_no_problem():
    """
    Together, and the alerts alone: what the default rules record counts as loaded.
    """
    assert {"alerts.yaml", "rules.yaml"} == {path.name for path in SHIPPED}
    assert [] == problems(SHIPPED)
    for path in SHIPPED:
        assert [] == problems([path])


@pytest.mark.parametrize(
    "rule",
    [
        an_alert("ml_model:f1:1h < 0.9", **{"for": "1h30m", "keep_firing_for": 0}),
        an_alert("vector(1)", labels={"priority": 1, "paged": True, "share": 1.10, "team": None}),
        an_alert("ml_model_latency:p99 > 1", annotations={"summary": "{{ $labels.job }} and {{ $labels.ml_k }}"}),
        an_alert("max by (ml_model_name) (ml_model_roc_auc) < 0.8", annotations=None),
        an_alert("min by (ml_model_name, team) (ml_model_objective{ml_metric='f1'})"),
        an_alert("avg by (ml_model_name) (ml_model:f1:1h)"),
        an_alert("avg by (ml_model_name) (count by (ml_model_name, instance) (ml_model_f1))"),
        an_alert("avg by (ml_model_name) (ml_model_window_rows)"),
        an_alert("absent(ml_model_predictions_total)", labels={"severity": "warning"}),
        {"record": "team:f1:mean", "expr": "sum(ml_model:f1:1h)", "labels": {"ml_metric": "f1"}},
        an_alert(1),
    ],
    ids=lambda rule: str(rule["expr"]),
)
def test_what_prometheus_takes_and_what_means_something_is_no_problem(rule):
    """
    Numbers as the value of a label or an annotation are no problem for Prometheus, so they are none here.
    """
    own = {"record": "ml_model_latency:p99", "expr": "latency"}

    assert [] == found(a_file(own, rule))


def test_promtool_agrees_about_what_is_right(folder):
    """
    Numbers, booleans and nothing as the value of a label; 0 as a duration; any duration in Prometheus' order.
    """
    rule = an_alert(labels={"a": 1, "b": True, "c": None}, **{"for": 0, "keep_firing_for": "1y2w3d4h5m6s7ms"})
    assert [] == of_rule(rule)
    done = subprocess.run([binary("promtool"), "check", "rules", "rules.yaml"], capture_output=True, text=True)

    assert 0 == done.returncode, done.stderr


# The file


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "needs a list under 'groups:' at the top"),
        ("- name: g\n  rules: []\n", "needs a list under 'groups:' at the top"),
        ("groups:\n", "needs a list under 'groups:' at the top"),
        ("groups: {name: g}\n", "needs a list under 'groups:' at the top"),
        (
            "groups: [\n",
            "cannot be read as YAML: line 2: expected the node content, but found '<stream end>'",
        ),
        ("groups: 2026-99-99\n", "cannot be read as YAML: month must be in 1..12"),
        ("groups: !!bool perhaps\n", "cannot be read as YAML: 'perhaps'"),
        (
            "groups: []\n---\ngroups: []\n",
            "cannot be read as YAML: line 2: but found another document",
        ),
        (
            "groups:\n- name: g\n  rules:\n  - alert: A\n    expr: up\n    expr: down\n",
            "cannot be read as YAML: line 6: 'expr' is there twice",
        ),
        ("groups: []\ngroup: []\n", "unknown key 'group'; did you mean groups?"),
        ("groups: [g]\n", "group 1 needs a name"),
        ("groups: [{rules: []}]\n", "group 1 needs a name"),
        ("groups: [{name: 5, rules: []}]\n", "group 1 needs a name"),
        ("groups: [{name: g, rules: []}, {name: g, rules: []}]\n", "two groups are named 'g'"),
        ("groups: [{name: g, rule: [], rules: []}]\n", "group g: unknown key 'rule'; did you mean rules?"),
        ("groups: [{name: g, 7: x, rules: []}]\n", "group g: unknown key 7"),
        (
            "groups: [{name: g, interval: 60, rules: []}]\n",
            "group g: interval must be a duration such as 1m, got 60",
        ),
        ("groups: [{name: g}]\n", "group g: needs a list of rules"),
        ("groups: [{name: g, rules: {alert: A}}]\n", "group g: needs a list of rules"),
        ("groups: [{name: g, rules: [up]}]\n", "group g: rule 1 must be a mapping, got 'up'"),
    ],
)
def test_a_file_that_is_none_says_what_was_expected(content, message):
    """
    The form of the file, of its groups, and of the list of rules.
    """
    assert [message] == found(content)


@pytest.mark.parametrize("name", ["ml-model-quality.yaml", "contact-points.yaml.example", "policies.yaml.example"])
def test_a_file_for_grafana_is_told_in_one_line(name):
    """
    Its rules have other keys, and none of them is the mistake. What else is given is checked as ever.
    """
    text = (ROOT / "grafana" / "provisioning" / "alerting" / name).read_text()
    message = (
        "is a file for Grafana, for it has an apiVersion; this command checks rule files of Prometheus, such as "
        "alerts.yaml"
    )
    assert [message] == found(text)

    Path("other.yaml").write_text(yaml.safe_dump(a_file(an_alert("ml_model_acuracy"))))
    problem = "other.yaml: g, rule 1 (A): there is no metric ml_model_acuracy; did you mean ml_model_accuracy?"
    assert [f"rules.yaml: {message}", problem] == problems([Path("rules.yaml"), Path("other.yaml")])
    assert (1, f"rules.yaml: {message}\n1 problem in 1 file(s).\n", "") == command("rules.yaml")


def test_an_api_version_alone_does_not_make_a_file_one_for_grafana():
    """
    Kubernetes has them, too.
    """
    assert ["needs a list under 'groups:' at the top"] == found("apiVersion: v1\nkind: PrometheusRule\nspec: {}\n")


def test_bytes_that_are_no_text_are_told():
    """
    A picture by mistake, say.
    """
    Path("rules.yaml").write_bytes(b"\x89PNG\xff")

    assert ["rules.yaml: cannot be read as YAML: invalid start byte"] == problems([Path("rules.yaml")])


def test_one_fault_does_not_hide_the_next():
    """
    Broken groups and rules beside good ones, each with its place.
    """
    content = {"groups": ["x", {"name": "g", "rules": [3, an_alert("ml_model_acuracy"), an_alert(labels=[])]}]}

    assert [
        "group 1 needs a name",
        "group g: rule 1 must be a mapping, got 3",
        "g, rule 2 (A): there is no metric ml_model_acuracy; did you mean ml_model_accuracy?",
    ] == found(content)


# A rule


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (an_alert(fro="5m"), "unknown key 'fro'; did you mean for?"),
        (an_alert(anotations={}), "unknown key 'anotations'; did you mean annotations?"),
        (an_alert(xyz=1), "unknown key 'xyz'"),
        ({"expr": "up"}, "needs either 'record:' or 'alert:', got neither"),
        ({"alert": "A", "record": "a", "expr": "up"}, "needs either 'record:' or 'alert:', got both"),
        ({"record": "a b", "expr": "up"}, "record must be a metric name such as ml_model:f1:1h, got 'a b'"),
        ({"record": 5, "expr": "up"}, "record must be a metric name such as ml_model:f1:1h, got 5"),
        ({"record": "a", "expr": "up", "for": "5m"}, "'for:' is for alerts, not for what is recorded"),
        ({"record": "a", "expr": "up", "annotations": {}}, "'annotations:' is for alerts, not for what is recorded"),
        (an_alert(**{"for": 300}), "for must be a duration such as 5m, got 300"),
        (an_alert(**{"for": "5 minutes"}), "for must be a duration such as 5m, got '5 minutes'"),
        (an_alert(**{"for": "30s1h"}), "for must be a duration such as 5m, got '30s1h'"),
        (an_alert(**{"for": ""}), "for must be a duration such as 5m, got ''"),
        (an_alert(**{"for": None}), "for must be a duration such as 5m, got None"),
        (an_alert(keep_firing_for="1.5h"), "keep_firing_for must be a duration such as 5m, got '1.5h'"),
        (an_alert(labels=["severity"]), "labels must map names to texts, got ['severity']"),
        (an_alert(labels={"severity": ["x"]}), "labels must map names to texts, got {'severity': ['x']}"),
        (an_alert(annotations="x"), "annotations must map names to texts, got 'x'"),
        ({"alert": "A"}, "needs an expression under 'expr:'"),
        (an_alert(None), "needs an expression under 'expr:'"),
        (an_alert("  "), "needs an expression under 'expr:'"),
    ],
)
def test_a_rule_that_is_none_says_what_was_expected(rule, message):
    """
    Keys, names, durations, labels and the expression.
    """
    assert [message] == of_rule(rule)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "{{ $labels.ml_model_nam }}",
            "$labels.ml_model_nam: there is no Prometheus label ml_model_nam; did you mean ml_model_name?",
        ),
        (
            "{{ with printf `ml_model:f2:1h{ml_model_name=%q}` $labels.ml_model_name | query }}{{ . }}{{ end }}",
            'the query `ml_model:f2:1h{ml_model_name=""}` in a template: nothing records ml_model:f2:1h, here or by '
            "default; did you mean ml_model:f1:1h?",
        ),
        (
            "{{ with printf `sum(up{job=%q}` $labels.job | query }}{{ . }}{{ end }}",
            'the query `sum(up{job=""}` in a template: no PromQL: unclosed left parenthesis',
        ),
    ],
)
@pytest.mark.parametrize("key", ["labels", "annotations"])
def test_templates_are_checked_too(key, text, message):
    """
    What they look up would be missing from the message, and nobody would know before the alert fires.
    """
    assert [message] == of_rule(an_alert(**{key: {"summary": text, "description": text}}))


def test_a_rule_that_is_there_twice_is_told_with_both_places():
    """
    The later one would win or be counted twice.
    """
    one = {"record": "a", "expr": "up", "labels": {"x": "1", "y": "2"}}
    same = {"record": "a", "expr": "down", "labels": {"y": "2", "x": "1"}}
    other = {"record": "a", "expr": "up", "labels": {"x": "1"}}

    assert ["g, rule 3 (a): is there twice, with the same labels: rules.yaml: g, rule 1 (a)"] == found(
        a_file(one, other, same)
    )
    assert ["g, rule 3 (A): is there twice, with the same labels: rules.yaml: g, rule 1 (A)"] == found(
        a_file(an_alert(), an_alert("up == 1"), an_alert())
    )


def test_alerts_of_one_name_are_told_apart_by_their_metric():
    """
    Most of our alerts are one rule for each metric.
    """
    assert ["g, rule 1 (A f1): there is no metric ml_model_acuracy; did you mean ml_model_accuracy?"] == found(
        a_file(an_alert("ml_model_acuracy", labels={"ml_metric": "f1"}))
    )


# An expression


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("sum(up", "no PromQL: unclosed left parenthesis"),
        ("rate(up)", "no PromQL: expected type matrix in call to function 'rate', got vector"),
        ("increase(up[1m1h])", "no PromQL: not a valid duration string: 1m1h"),
        ("ml_model_acuracy < 1", "there is no metric ml_model_acuracy; did you mean ml_model_accuracy?"),
        (
            "rate(ml_model_outcome_total[5m])",
            "there is no metric ml_model_outcome_total; did you mean ml_model_outcomes_total?",
        ),
        (
            '{__name__="ml_model_outcomes"}',
            "there is no metric ml_model_outcomes; did you mean ml_model_outcomes_total?",
        ),
        ("ml_model_qqqqqqqqqqqqqqqqqqqqqqqq", "there is no metric ml_model_qqqqqqqqqqqqqqqqqqqqqqqq"),
        (
            "ml_model:accurracy:1h",
            "nothing records ml_model:accurracy:1h, here or by default; did you mean ml_model:accuracy:1h?",
        ),
        (
            "ml_model:f1:2h",
            "nothing records ml_model:f1:2h, here or by default; did you mean ml_model:f1:6h?",
        ),
        (
            'ml_model_f1{ml_segment="x"}',
            "there is no Prometheus label ml_segment; did you mean ml_segment_name?",
        ),
        (
            "sum by (ml_modelname) (ml_model_f1)",
            "there is no Prometheus label ml_modelname; did you mean ml_model_name?",
        ),
        (
            "sum without (ml_ks) (ml_model_f1)",
            "there is no Prometheus label ml_ks; did you mean ml_k?",
        ),
        (
            "up * on (ml_verson) group_left () down",
            "there is no Prometheus label ml_verson; did you mean ml_model_version?",
        ),
        (
            "up * on (job) group_left (ml_mertic) down",
            "there is no Prometheus label ml_mertic; did you mean ml_metric?",
        ),
        (
            'ml_model_f1{ml_clas="x"} == ml_model_f1{ml_clas="x"}',
            "there is no Prometheus label ml_clas; did you mean ml_class?",
        ),
        (
            "avg by (ml_model_name) (ml_model_f1) < 0.9",
            "the average of f1 over processes is not that of the fleet; use ml_model:f1:1h or totals",
        ),
        (
            "avg((avg_over_time(ml_model_f1_upper[1h])) > 0)",
            "the average of f1.upper over processes is not that of the fleet; use ml_model:f1_upper:1h or totals",
        ),
        (
            "avg by (ml_model_name) (ml_model_roc_auc)",
            "the average of roc_auc over processes is not that of the fleet; use min or max, or show each process",
        ),
    ],
)
def test_an_expression_that_could_never_work_is_told(expression, message):
    """
    Prometheus refuses the first few, and takes all others without a word.
    """
    assert [message] == of_expression(expression)


@pytest.mark.parametrize("metric", catalog.METRICS, ids=lambda metric: metric.name)
def test_no_advice_names_what_is_not_recorded(metric):
    """
    What stands after "use" can be used.
    """
    for text in of_expression(f"avg(ml_model_{metric.name.replace('.', '_')})"):
        if "ml_model:" in text:
            assert [] == of_expression(text.partition("; use ")[2].removesuffix(" or totals"))


def test_names_have_the_namespace_of_the_collector():
    """
    Without it, or with another one, nothing would be found; recorded names are ours and have none.
    """
    assert [] == of_expression("acme_ml_model_f1 < ml_model:f1:1h", namespace="acme")
    assert ["there is no metric ml_model_f1; did you mean acme_ml_model_f1?"] == of_expression(
        "ml_model_f1", namespace="acme"
    )
    assert ["there is no metric acme_ml_model_acuracy; did you mean acme_ml_model_accuracy?"] == of_expression(
        "acme_ml_model_acuracy", namespace="acme"
    )
    assert [] == of_expression("acme_ml_model_acuracy")


# Several files


def test_what_one_file_records_another_may_use():
    """
    In any order; alone it is a problem. Labels that a recording rule gives exist as well.
    """
    one, other = Path("alerts.yaml"), Path("more.yaml")
    one.write_text(yaml.safe_dump(a_file(an_alert('ml_model:specifity:1h{ml_tier="gold"}'))))
    other.write_text(
        yaml.safe_dump(a_file({"record": "ml_model:specifity:1h", "expr": "up", "labels": {"ml_tier": "gold"}}))
    )

    assert [] == problems([one, other])
    assert [] == problems([other, one])
    assert [
        "alerts.yaml: g, rule 1 (A): nothing records ml_model:specifity:1h, here or by default; did you mean "
        "ml_model:specificity:1h?",
        "alerts.yaml: g, rule 1 (A): there is no Prometheus label ml_tier; did you mean ml_quantile?",
    ] == problems([one])


def test_two_files_with_the_same_rule_are_told():
    """
    Say, a copy that was edited and the original.
    """
    for name in ("a.yaml", "b.yaml"):
        Path(name).write_text(yaml.safe_dump(a_file(an_alert())))

    assert ["b.yaml: g, rule 1 (A): is there twice, with the same labels: a.yaml: g, rule 1 (A)"] == problems(
        [Path("a.yaml"), Path("b.yaml")]
    )


# Anything

TEXTS = st.text(max_size=8) | st.sampled_from(
    ["up", "ml_model_f1", "ml_model:f1:1h", "{{ $labels.ml_k }}", "5m", "avg(ml_model_f1)", "`up` | query", "("]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.binary(max_size=4) | st.dates()
KEYS = st.sampled_from(
    ["groups", "name", "interval", "rules", "record", "alert", "expr", "for", "labels", "annotations", "ml_metric"]
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | SCALARS.filter(bool), inner, max_size=4),
    max_leaves=12,
)
RULES = st.dictionaries(KEYS, ANYTHING, max_size=6)
GROUPS = st.fixed_dictionaries({"name": TEXTS, "rules": st.lists(RULES | ANYTHING, max_size=3)})


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ANYTHING | st.fixed_dictionaries({"groups": st.lists(GROUPS | ANYTHING, max_size=3)}))
@example({"groups": [{"name": "g", "rules": [{"alert": ["A"], "labels": {"ml_metric": {}}, "expr": {}}]}]})
def test_no_structure_raises(content):
    """
    Whatever YAML holds, the answer is a list of lines.
    """
    Path("any.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")

    assert all(line.startswith("any.yaml: ") and "\n" not in line for line in problems([Path("any.yaml")]))


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60) | st.text(alphabet="&*!?|>-:{}[]'\"#%@`, \n\tab01", max_size=60).map(str.encode))
@example(b"groups: &a [*a]")
@example(b"[" * 5_000)
@example(b"groups: [{name: g, rules: &r [{alert: A, expr: up, labels: *r}]}]")
def test_no_bytes_raise(content):
    """
    Whatever a file holds, the answer is a list of lines.
    """
    Path("any.yaml").write_bytes(content)

    assert all(line.startswith("any.yaml: ") and "\n" not in line for line in problems([Path("any.yaml")]))


# The command


def command(*arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors."""
    done = subprocess.run(
        [sys.executable, "-m", "otel_model_metrics", "check", *arguments], capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout, done.stderr


def test_the_command_says_what_it_found_and_fails():
    """
    One line for each problem, a last one that counts them, and an exit code for CI.
    """
    Path("a.yaml").write_text(yaml.safe_dump(a_file(an_alert("ml_model_acuracy"))))
    Path("b.yaml").write_text("")
    Path("c.yaml").write_text("groups: []")

    assert (
        1,
        "b.yaml: needs a list under 'groups:' at the top\n"
        "a.yaml: g, rule 1 (A): there is no metric ml_model_acuracy; did you mean ml_model_accuracy?\n"
        "2 problems in 2 file(s).\n",
        "",
    ) == command("a.yaml", "b.yaml")
    assert (1, "b.yaml: needs a list under 'groups:' at the top\n1 problem in 1 file(s).\n", "") == command("b.yaml")
    assert (0, "0 problems in 1 file(s).\n", "") == command("c.yaml")


def test_the_command_knows_namespaces():
    """
    The same options as those the rules were written with.
    """
    Path("a.yaml").write_text(yaml.safe_dump(a_file(an_alert("acme_ml_model_f1"))))

    assert (0, "0 problems in 1 file(s).\n", "") == command("--namespace", "acme", "--naming", "scrape", "a.yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'FILES...'."),
        (["none.yaml"], "Invalid value for 'FILES...': File 'none.yaml' does not exist."),
        (["."], "Invalid value for 'FILES...': File '.' is a directory."),
        (["--naming", "x", "a.yaml"], "Invalid value for '--naming': 'x' is not one of 'otlp', 'scrape'."),
    ],
)
def test_wrong_usage_says_what_is_right(arguments, message):
    """
    Exit code 2, no traceback.
    """
    Path("a.yaml").write_text("groups: []")

    code, output, errors = command(*arguments)

    assert (2, "", f"Error: {message}") == (code, output, errors.splitlines()[-1])


def test_what_the_given_files_do_not_record_is_not_there(tmp_path):
    """
    Who gives files that record quality has these loaded, and not the default ones.
    """
    records = tmp_path / "rules.yaml"
    records.write_text("groups: [{name: g, rules: [{record: 'ml_model:f1:6hh', expr: vector(1)}]}]")
    uses = tmp_path / "alerts.yaml"
    uses.write_text("groups: [{name: h, rules: [{alert: A, expr: 'ml_model:f1:6h > 1'}]}]")

    where = f"{uses}: h, rule 1 (A)"
    assert [] == problems([uses])
    assert [f"{where}: nothing records ml_model:f1:6h, in these files; did you mean ml_model:f1:6hh?"] == problems(
        [records, uses]
    )


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        (
            {"alert": "A", "expr": 'ml_model_objective{ml_metric="acuracy"} > 1'},
            "ml_metric is never 'acuracy'; did you mean accuracy?",
        ),
        (
            {"alert": "A", "expr": "vector(1)", "labels": {"ml_average": "makro"}},
            "ml_average is never 'makro'; did you mean macro?",
        ),
        (
            {"alert": "A", "expr": "ml_modl:accuracy:1h > 1"},
            "there is no metric ml_modl:accuracy:1h; did you mean ml_model:accuracy:1h?",
        ),
        (
            {"alert": "A", "expr": "mlmodel_objective > 1"},
            "there is no metric mlmodel_objective; did you mean ml_model_objective?",
        ),
    ],
)
def test_a_slip_of_the_pen_is_found_wherever_it_is(tmp_path, rule, problem):
    """
    In the value of a label that has a few only, and at the start of a name.
    """
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "g", "rules": [rule]}]}))

    assert [f"{path}: g, rule 1 (A): {problem}"] == [line.replace(" makro)", ")") for line in problems([path])]
