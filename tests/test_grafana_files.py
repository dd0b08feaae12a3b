"""
What else is in grafana/ beside dashboards, alerts and rules: files that Grafana, Docker and Kubernetes read.

None of them can be started here: .github/workflows/grafana.yaml does that. Here their readers' rules are applied.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from backends import binary
from click import Context
from promtool import ALERTS, LOADER, RULES, shipped_groups, written

from otel_model_metrics.commands import group as commands

ROOT = Path(__file__).parent.parent
GRAFANA = ROOT / "grafana"
# Written by hand, for our own folder.
BY_HAND = {"otel-collector.yaml", "runbooks.md", "dashboards/.lint"}
MADE = sorted(
    name
    for path in GRAFANA.rglob("*")
    if path.is_file() and (name := path.relative_to(GRAFANA).as_posix()) not in BY_HAND
)
DASHBOARDS = {
    path.relative_to(GRAFANA).as_posix(): json.loads(path.read_text()) for path in GRAFANA.glob("dashboards/*.json")
}
FOLDER = ("ML model quality", "ml-model-quality")
# What the API of Kubernetes takes in annotations, where kubectl apply keeps a copy of what it applied.
LARGEST_ANNOTATION = 262_144
DNS_NAME = re.compile("[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
# Labels are of the form [prefix/]name.
LABEL = re.compile(r"([a-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")


def content_of(name: str) -> Any:
    return yaml.load((GRAFANA / name).read_text(), LOADER)


def documents_of(name: str) -> list[dict[str, Any]]:
    return list(yaml.load_all((GRAFANA / name).read_text(), LOADER))


# Provisioning


def test_the_provider_has_what_grafana_needs_and_shows_dashboards_in_the_folder_of_alerts():
    """
    No key that Grafana does not know: it would be passed over without a word.
    """
    assert {
        "apiVersion": 1,
        "providers": [
            {
                "name": "ml-model-quality",
                "orgId": 1,
                "folder": FOLDER[0],
                "folderUid": FOLDER[1],
                "type": "file",
                "disableDeletion": False,
                "updateIntervalSeconds": 30,
                "allowUiUpdates": False,
                "options": {
                    "path": "/var/lib/grafana/dashboards/ml-model-quality",
                    "foldersFromFilesStructure": False,
                },
            }
        ],
    } == content_of("provisioning/dashboards/ml-model-quality.yaml")
    groups = content_of("provisioning/alerting/ml-model-quality.yaml")["groups"]
    assert {FOLDER[0]} == {group["folder"] for group in groups}


def test_the_data_source_is_the_one_that_alerts_ask():
    """
    By POST, for queries may be longer than a URL; with the interval at which processes export by default.
    """
    assert {
        "apiVersion": 1,
        "datasources": [
            {
                "name": "Prometheus",
                "uid": "prometheus",
                "type": "prometheus",
                "access": "proxy",
                "url": "http://prometheus:9090",
                "jsonData": {"httpMethod": "POST", "timeInterval": "60s"},
            }
        ],
    } == content_of("provisioning/datasources/prometheus.yaml")
    groups = content_of("provisioning/alerting/ml-model-quality.yaml")["groups"]
    asked = {query["datasourceUid"] for group in groups for rule in group["rules"] for query in rule["data"]}
    assert {"prometheus", "__expr__"} == asked


# Docker


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    content: dict[str, Any] = content_of("compose.yaml")
    return content


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """Where in a container our files are: without the substitution of variables, which have defaults."""
    found = {}
    for volume in service["volumes"]:
        source, target, mode = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", volume).split(":")
        assert "ro" == mode, volume
        found[target] = source
    return found


def test_what_is_mounted_is_there_and_where_it_is_looked_for(compose):
    """
    Docker would make an empty folder of a file that is missing.
    """
    lgtm, demo = (mounts(compose["services"][name]) for name in ("lgtm", "demo"))

    assert {True} == {(GRAFANA / source).exists() for source in (*lgtm.values(), *demo.values())}
    provider = content_of("provisioning/dashboards/ml-model-quality.yaml")["providers"][0]
    assert "./dashboards" == lgtm[provider["options"]["path"]]
    home = compose["services"]["lgtm"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    folder, _, name = home.rpartition("/")
    assert (GRAFANA / lgtm[folder] / name).is_file()
    assert (ROOT / "pyproject.toml").samefile(GRAFANA / demo["/source"] / "pyproject.toml")
    # Files, for in a folder of ours those that the image has there would be hidden.
    assert ["/var/lib/grafana/dashboards/ml-model-quality"] == [
        target for target, source in lgtm.items() if not (GRAFANA / source).is_file()
    ]


def test_nothing_is_reached_from_other_machines(compose):
    """
    For whoever reaches this Grafana is its administrator. Services find each other by their names.
    """
    services = compose["services"]

    assert {"lgtm", "demo"} == services.keys()
    assert ["127.0.0.1:3000:3000", "127.0.0.1:4317:4317", "127.0.0.1:4318:4318", "127.0.0.1:9090:9090"] == services[
        "lgtm"
    ]["ports"]
    assert "ports" not in services["demo"]
    assert {"lgtm": {"condition": "service_healthy"}} == services["demo"]["depends_on"]
    assert "http://lgtm:4318" == services["demo"]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"]


def test_images_are_of_one_version(compose):
    """
    What was tried is what is started; without a version it would be another one every month.
    """
    images = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", service["image"]) for service in compose["services"].values()]

    assert [] == [image for image in images if not re.search(r":\d+\.\d+", image)]


def test_the_demo_is_started_by_a_command_that_there_is(compose):
    """
    With an extra and an option that there are.
    """
    shell, flag, line = compose["services"]["demo"]["command"]
    installed = re.fullmatch(r"pip install --quiet '/source\[(\w+)\]' && exec otel-model-metrics (.+)", line)

    assert ("sh", "-c") == (shell, flag)
    assert installed is not None
    assert f"\n{installed[1]} = [" in (ROOT / "pyproject.toml").read_text()
    name, *arguments = installed[2].split()
    command = commands.get_command(Context(commands), name)
    assert command is not None
    assert {"seconds": 3600.0} == command.make_context(name, arguments).params


def test_the_image_s_prometheus_takes_its_configuration_and_finds_our_rules(compose, tmp_path):
    """
    By promtool, with the rules where they are here.
    """
    content = content_of("compose/prometheus.yaml")
    lgtm = mounts(compose["services"]["lgtm"])
    assert "./compose/prometheus.yaml" == lgtm["/otel-lgtm/prometheus.yaml"]
    (pattern,) = content["rule_files"]
    assert ["./prometheus/rules.yaml"] == [source for target, source in lgtm.items() if Path(target).match(pattern)]

    config = tmp_path / "prometheus.yaml"
    config.write_text(json.dumps({**content, "rule_files": [str(RULES)]}))  # which is YAML too
    done = subprocess.run([binary("promtool"), "check", "config", str(config)], capture_output=True, text=True)

    assert 0 == done.returncode, done.stdout + done.stderr
    assert "SUCCESS: 1 rule files found" in done.stdout


# Kubernetes


def test_the_kustomization_makes_config_maps_that_the_sidecars_load_and_kubectl_can_apply():
    """
    One for each dashboard, and none with alerts of Grafana, which are instead of those of Prometheus; each small enough
    even for what kubectl keeps of it.
    """
    content = content_of("kustomization.yaml")
    assert {"apiVersion", "kind", "resources", "generatorOptions", "configMapGenerator"} == content.keys()
    assert ("kustomize.config.k8s.io/v1beta1", "Kustomization") == (content["apiVersion"], content["kind"])
    assert {"disableNameSuffixHash": True} == content["generatorOptions"]  # others refer to the names
    assert ["kubernetes/prometheus-rules.yaml", "kubernetes/prometheus-alerts.yaml"] == content["resources"]
    assert {True} == {(GRAFANA / resource).is_file() for resource in content["resources"]}

    labels = {}
    for made in content["configMapGenerator"]:
        assert {"name", "files", "options"} == made.keys()
        assert DNS_NAME.fullmatch(made["name"])
        (file,) = made["files"]
        labels[file] = made["options"]["labels"]
        assert {"grafana_folder": FOLDER[0]} == made["options"]["annotations"]
        assert len(applied(made)) < LARGEST_ANNOTATION, made["name"]
    assert {file: {"grafana_dashboard": "1"} for file in DASHBOARDS} == labels
    names = [made["name"] for made in content["configMapGenerator"]]
    assert len(set(names)) == len(names)


def test_the_kustomization_says_how_to_take_the_alerts_of_grafana_instead():
    """
    What to take out is in it, and what to add is there, and small enough for a ConfigMap.
    """
    text = (GRAFANA / "kustomization.yaml").read_text()
    comment = " ".join(re.sub("(?m)^# ?", "", text.partition("apiVersion")[0]).split())
    asked = re.search(
        r"For Grafana's own alerts instead of those of Prometheus, take (\S+) out of the resources and add a ConfigMap "
        r"of (\S+) with the label (\w+): '(\d)'; the sidecar for it is off by default \(sidecar\.alerts\.enabled\)\.",
        comment,
    )

    assert asked is not None
    out, file, label, value = asked.groups()
    resources = content_of("kustomization.yaml")["resources"]
    assert ["kubernetes/prometheus-rules.yaml"] == [one for one in resources if Path(one).name != out]
    assert ("provisioning/alerting/ml-model-quality.yaml", "grafana_alert", "1") == (file, label, value)
    made = {"name": "ml-model-quality-alerts", "files": [file], "options": {"labels": {label: value}}}
    assert len(applied(made)) < LARGEST_ANNOTATION


def applied(made: dict[str, Any]) -> bytes:
    """The ConfigMap of an entry of the generator, as kubectl keeps it."""
    data = {Path(file).name: (GRAFANA / file).read_text() for file in made["files"]}
    metadata = {"name": made["name"], "namespace": "default", "annotations": {}, **made["options"]}
    content = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()


RESOURCES = {"kubernetes/prometheus-rules.yaml": RULES, "kubernetes/prometheus-alerts.yaml": ALERTS}


@pytest.mark.parametrize("name", RESOURCES)
def test_the_rules_for_the_operator_are_those_of_the_files(tmp_path, name):
    """
    All groups of rules.yaml or alerts.yaml, each a resource that can be applied; promtool takes them.
    """
    documents = documents_of(name)
    for document in documents:
        assert {"apiVersion", "kind", "metadata", "spec"} == document.keys()
        assert ("monitoring.coreos.com/v1", "PrometheusRule") == (document["apiVersion"], document["kind"])
        assert {"name", "labels"} == document["metadata"].keys()
        assert DNS_NAME.fullmatch(document["metadata"]["name"])
        assert {"release": "kube-prometheus-stack"} == document["metadata"]["labels"]
        assert len(json.dumps(document, separators=(",", ":")).encode()) < LARGEST_ANNOTATION

    groups = [group for document in documents for group in document["spec"]["groups"]]
    expected = shipped_groups(RESOURCES[name])
    for group in (*groups, *expected):
        for rule in group["rules"]:
            rule["expr"] = promql_parser.parse(rule["expr"]).prettify()
    assert expected == groups

    path = written(tmp_path, [group for document in documents for group in document["spec"]["groups"]], "rules.yaml")
    done = subprocess.run(
        [binary("promtool"), "check", "rules", "--lint=all", "--lint-fatal", str(path)], capture_output=True, text=True
    )
    assert 0 == done.returncode, done.stdout + done.stderr


def test_resources_of_both_files_have_names_of_their_own():
    """
    Of two of one name only the latter would be there.
    """
    names = [document["metadata"]["name"] for file in RESOURCES for document in documents_of(file)]

    assert len(set(names)) == len(names)


def test_the_example_for_the_operator_of_grafana_refers_to_what_there_is():
    """
    To keys of ConfigMaps that the kustomization makes, and to its own folder.
    """
    folder, *dashboards = documents_of("kubernetes/grafana-operator.yaml")
    maps = {
        made["name"]: [Path(file).name for file in made["files"]]
        for made in content_of("kustomization.yaml")["configMapGenerator"]
    }

    assert "GrafanaFolder" == folder["kind"]
    assert FOLDER == (folder["spec"]["title"], folder["spec"]["uid"])
    for document in (folder, *dashboards):
        assert {"apiVersion", "kind", "metadata", "spec"} == document.keys()
        assert "grafana.integreatly.org/v1beta1" == document["apiVersion"]
        assert DNS_NAME.fullmatch(document["metadata"]["name"])
        assert all(LABEL.fullmatch(label) for label in document["spec"]["instanceSelector"]["matchLabels"])
    assert {"GrafanaDashboard"} == {document["kind"] for document in dashboards}
    found = {}
    for document in dashboards:
        spec = document["spec"]
        assert {"instanceSelector", "folderRef", "configMapRef"} == spec.keys()
        assert folder["metadata"]["name"] == spec["folderRef"]
        key = spec["configMapRef"]["key"]
        assert [key] == maps[spec["configMapRef"]["name"]]
        found[f"dashboards/{key}"] = document["metadata"]["name"]
    assert {file: content["uid"] for file, content in DASHBOARDS.items()} == found


# All of it


def test_the_readme_names_every_file_or_its_folder_and_every_dashboard():
    """
    Nobody finds what it does not name, and it names nothing that is not there.
    """
    text = (GRAFANA / "README.md").read_text()
    named = {word for quoted in re.findall("`([^`]+)`", text) for word in quoted.split()}
    named |= set(re.findall(r"\]\(([\w./-]+)\)", text))

    def is_named(name: str) -> bool:
        return name in named or any(f"{parent}/" in named for parent in Path(name).parents)

    assert ["README.md"] == [name for name in MADE if not is_named(name)]
    for content in DASHBOARDS.values():
        assert f"`{content['uid']}`" in text
        assert content["description"] in text
    paths = {name for name in named if re.fullmatch(r"[\w*-]+(/[\w.*-]*)+", name)}
    assert {"dashboards/", "provisioning/alerting/", "compose/", "kubernetes/", "prometheus/rules.yaml"} <= paths
    assert [] == sorted(name for name in paths if not list(GRAFANA.glob(name)))


def test_the_readme_says_where_grafana_looks_for_each_file():
    """
    Those of provisioning one by one: a folder that is mounted hides what the image has there. What is an example is
    not mounted.
    """
    text = (GRAFANA / "README.md").read_text()
    provider = content_of("provisioning/dashboards/ml-model-quality.yaml")["providers"][0]
    provisioning = [name for name in MADE if name.startswith("provisioning/") and name.endswith(".yaml")]

    told = dict(re.findall(r"(?m)^\| `([\w./-]+)` \| `(/[\w./-]+)` \|$", text))

    assert 3 == len(provisioning)
    assert {
        "dashboards/": provider["options"]["path"],
        **{name: f"/etc/grafana/{name}" for name in provisioning},
    } == told


SECRET = re.compile(r"(?i)\b(?:password|passwd|secret|token|api_?key|authorization|bearer)\b")
# Where a file was made, and by whom.
MACHINE = re.compile(r"(?<![\w/.])/(?:home|root|Users|tmp|work|mnt|workspace)/|\b\d{1,3}(?:\.\d{1,3}){3}\b|file://")


@pytest.mark.parametrize("name", MADE)
def test_nothing_in_a_file_is_secret_or_of_the_machine_on_which_it_was_made(name):
    """
    They are public, and the same wherever they are made.
    """
    text = (GRAFANA / name).read_text()

    assert [] == SECRET.findall(text)
    assert [] == [found for found in MACHINE.findall(text) if found != "127.0.0.1"]
    assert socket.gethostname() not in re.findall(r"[\w.-]+", text)
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    assert "\r" not in text
