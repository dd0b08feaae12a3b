"""
Files for Grafana: dashboards, what provisions them, and ways to start it all with Docker and in Kubernetes.

Together they are a folder that needs nothing else: paths in them are relative to it.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from otel_model_metrics.provisioning import documents, grafana_alerts
from otel_model_metrics.provisioning.alerts import alert_groups
from otel_model_metrics.provisioning.choice import Choice
from otel_model_metrics.provisioning.dashboards import pages
from otel_model_metrics.provisioning.layout import as_yaml
from otel_model_metrics.provisioning.rules import recording_groups

# Where Grafana looks for our dashboards, in its container.
_DASHBOARDS = "/var/lib/grafana/dashboards/ml-model-quality"
_NAME = "ml-model-quality"
# The image that has Grafana, Prometheus and a Collector in one. Its Grafana is 13.2.
_LGTM_IMAGE = "grafana/otel-lgtm:0.34.0"
_LGTM = "/otel-lgtm"


def _yaml(about: Iterable[str], *contents: Any) -> str:
    comment = "".join(f"# {line}\n" for line in about)
    return f"{comment}{documents.made_by('grafana')}\n" + "---\n".join(as_yaml(content) for content in contents)


# Provisioning


def dashboards_provider(choice: Choice) -> str:
    """Tells Grafana where our dashboards are, and in which folder to show them."""
    provider = {
        "name": _NAME,
        "orgId": 1,
        "folder": choice.folder,
        "folderUid": choice.folder_uid,
        "type": "file",
        "disableDeletion": False,
        "updateIntervalSeconds": 30,
        "allowUiUpdates": False,
        "options": {"path": _DASHBOARDS, "foldersFromFilesStructure": False},
    }
    return _yaml(["Mount dashboards/ at the path below."], {"apiVersion": 1, "providers": [provider]})


def datasource(choice: Choice) -> str:
    """Tells Grafana where the metrics are."""
    about = (
        "Leave this out if Grafana knows your Prometheus already: give its uid to --datasource, without a URL.",
        "timeInterval is how often processes export: with a shorter one rates over short ranges are empty.",
    )
    source = {
        "name": "Prometheus" if choice.datasource == Choice().datasource else choice.datasource,
        "uid": choice.datasource,
        "type": "prometheus",
        "access": "proxy",
        "url": choice.datasource_url,
        # POST, for some queries are longer than an address may be.
        "jsonData": {"httpMethod": "POST", "timeInterval": choice.interval},
    }
    return _yaml(about, {"apiVersion": 1, "datasources": [source]})


# Docker


def compose(choice: Choice) -> str:
    """Grafana, Prometheus and a Collector in one container, and the demo, whose models degrade, in another."""
    about = (
        "docker compose -f compose.yaml up, then http://localhost:3000: the dashboards, alive, with the demo's models.",
        "Half of each hour they are healthy, and disturbed in the other half; alerts fire some minutes later.",
        "The demo is installed from the folder above this one, a checkout of the library; or set DEMO_SOURCE to "
        "another.",
        "Grafana's own log is shown if ENABLE_LOGS_GRAFANA=true is set.",
        "Anybody who reaches port 3000 is an administrator: for a look on your own machine only.",
    )
    provisioning = f"{_LGTM}/grafana/conf/provisioning"
    lgtm = {
        "image": f"${{LGTM_IMAGE:-{_LGTM_IMAGE}}}",
        "ports": ["127.0.0.1:3000:3000", "127.0.0.1:4317:4317", "127.0.0.1:4318:4318", "127.0.0.1:9090:9090"],
        "environment": {
            "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH": f"{_DASHBOARDS}/ml-quality-overview.json",
            # Else the image drops what Grafana says, also why it does not start.
            "ENABLE_LOGS_GRAFANA": "${ENABLE_LOGS_GRAFANA:-false}",
        },
        "volumes": [
            f"./dashboards:{_DASHBOARDS}:ro",
            # Files, not their folders, for these have files of the image too.
            f"./provisioning/dashboards/{_NAME}.yaml:{provisioning}/dashboards/{_NAME}.yaml:ro",
            f"./provisioning/alerting/{_NAME}.yaml:{provisioning}/alerting/{_NAME}.yaml:ro",
            f"./compose/prometheus.yaml:{_LGTM}/prometheus.yaml:ro",
            f"./prometheus/rules.yaml:{_LGTM}/rules/rules.yaml:ro",
        ],
    }
    demo = {
        "image": "python:3.13-slim",
        "depends_on": {"lgtm": {"condition": "service_healthy"}},
        "environment": {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://lgtm:4318",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=demo",
            "PIP_ROOT_USER_ACTION": "ignore",
        },
        "volumes": ["${DEMO_SOURCE:-..}:/source:ro"],
        "command": ["sh", "-c", "pip install --quiet '/source[demo]' && exec otel-model-metrics demo --seconds 3600"],
        "restart": "always",
    }
    return _yaml(about, {"name": _NAME, "services": {"lgtm": lgtm, "demo": demo}})


def lgtm_prometheus(choice: Choice) -> str:
    """The Prometheus of that container, with our recording rules."""
    promoted = ["service.name", "service.instance.id", "service.namespace", "deployment.environment.name"]
    content = {
        "global": {"evaluation_interval": "15s"},
        "otlp": {"keep_identifying_resource_attributes": True, "promote_resource_attributes": promoted},
        "rule_files": [f"{_LGTM}/rules/*.yaml"],
        "storage": {"tsdb": {"out_of_order_time_window": "10m"}},
    }
    return _yaml(["Replaces /otel-lgtm/prometheus.yaml, which loads no rules."], content)


# Kubernetes


def kustomization(choice: Choice) -> str:
    """ConfigMaps with the labels that the sidecars of Grafana's chart look for, and the rules for Prometheus."""
    about = (
        "kubectl apply --server-side -k . makes ConfigMaps that the sidecars of the charts grafana and",
        "kube-prometheus-stack load, and PrometheusRules. Without --server-side it keeps a copy of each in an",
        "annotation, for which a dashboard may be too large. The folder below is taken with the chart's values",
        "sidecar.dashboards.folderAnnotation: grafana_folder and foldersFromFilesStructure: true.",
        "For Grafana's own alerts instead of those of Prometheus, take prometheus-alerts.yaml out of the resources and",
        f"add a ConfigMap of provisioning/alerting/{_NAME}.yaml with the label grafana_alert: '1'; the sidecar for it",
        "is off by default (sidecar.alerts.enabled).",
    )
    maps = [
        {
            "name": f"{_NAME}-{uid.removeprefix('ml-quality-')}",
            "files": [f"dashboards/{uid}.json"],
            "options": {"labels": {"grafana_dashboard": "1"}, "annotations": {"grafana_folder": choice.folder}},
        }
        for uid in pages.PAGES
    ]
    content = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["kubernetes/prometheus-rules.yaml", "kubernetes/prometheus-alerts.yaml"],
        "generatorOptions": {"disableNameSuffixHash": True},
        "configMapGenerator": maps,
    }
    return _yaml(about, content)


def prometheus_rules(choice: Choice) -> str:
    """The recording rules for the operator of Prometheus."""
    return _prometheus_rules("rules", recording_groups(choice.settings))


def prometheus_alerts(choice: Choice) -> str:
    """The alert rules for the operator of Prometheus."""
    return _prometheus_rules("alerts", alert_groups(choice.settings))


def _prometheus_rules(kind: str, groups: Iterable[dict[str, Any]]) -> str:
    about = (
        f"The same as prometheus/{kind}.yaml, for the operator of Prometheus: a resource for each group, so that none",
        "is too large. It takes those whose labels its ruleSelector names: of kube-prometheus-stack, release: <name of",
        "the Helm release>.",
    )
    resources = [
        {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PrometheusRule",
            "metadata": {
                "name": f"{_NAME}-{kind}-{group['name'].removeprefix('ml_model:')}",
                "labels": {"release": "kube-prometheus-stack"},
            },
            "spec": {"groups": [group]},
        }
        for group in groups
    ]
    return _yaml(about, *resources)


def operator_example(choice: Choice) -> str:
    """An example for the operator of Grafana: our folder, and dashboards from the ConfigMaps of the kustomization."""
    about = (
        "An example for grafana-operator: the dashboards of the ConfigMaps that kustomization.yaml makes. Put the",
        "labels of your own Grafana resource in. Alerts: its GrafanaAlertRuleGroup has other fields than a file;",
        "PrometheusRules need none.",
    )
    which = {"matchLabels": {"dashboards": "grafana"}}
    version = "grafana.integreatly.org/v1beta1"
    folder = {
        "apiVersion": version,
        "kind": "GrafanaFolder",
        "metadata": {"name": _NAME},
        "spec": {"instanceSelector": which, "title": choice.folder, "uid": choice.folder_uid},
    }
    made = [
        {
            "apiVersion": version,
            "kind": "GrafanaDashboard",
            "metadata": {"name": uid},
            "spec": {
                "instanceSelector": which,
                "folderRef": _NAME,
                "configMapRef": {"name": f"{_NAME}-{uid.removeprefix('ml-quality-')}", "key": f"{uid}.json"},
            },
        }
        for uid in pages.PAGES
    ]
    return _yaml(about, folder, *made)


# What is what


def readme(choice: Choice) -> str:
    """What each file is for."""
    about = {uid: make(choice).build() for uid, make in pages.PAGES.items()}
    table = "\n".join(
        f"| [`{uid}.json`](dashboards/{uid}.json) | `{uid}` | {page.description} |" for uid, page in about.items()
    )
    known = "" if choice.datasource_url else f", and of a data source with the uid `{choice.datasource}`"
    mounted = "".join(
        f"| `{path}` | `/etc/grafana/{path}` |\n"
        for path in files_of(choice)
        if path.startswith("provisioning/") and path.endswith(".yaml")
    )
    return f"""# Dashboards and alerts

Made by `{command_of(choice)}`.

| dashboard | uid | what it answers |
|---|---|---|
{table}

They ask for raw metrics only, so they need no recording rules; alerts do. They need Grafana 10.4 or newer{known}, with
Prometheus, Mimir, Thanos or VictoriaMetrics behind it.

| you have | do |
|---|---|
| Docker, and want to look | `docker compose -f compose.yaml up`, then http://localhost:3000; `compose/` has settings for it |
| a Grafana of your own | import `dashboards/*.json`, or mount files as below |
| Prometheus, Thanos, vmalert | `prometheus/rules.yaml` and `prometheus/alerts.yaml` in `rule_files` |
| Mimir | the same two files by `mimirtool rules load`, with `ruler_max_rules_per_rule_group` at 200 or more |
| Grafana's own alerting | `prometheus/rules.yaml`, and `provisioning/alerting/{_NAME}.yaml` instead of `alerts.yaml` |
| Kubernetes with the charts grafana or kube-prometheus-stack | `kubectl apply --server-side -k .`, which takes `kustomization.yaml` and the rules in `kubernetes/` |
| Kubernetes with grafana-operator | the same, and `kubernetes/grafana-operator.yaml` as an example |

Files are mounted one by one, because a folder that is mounted hides what Grafana has in its place:

| file | in the container |
|---|---|
| `dashboards/` | `{_DASHBOARDS}` |
{mounted}
A file in `provisioning/alerting/` that Grafana cannot read keeps it from starting: try it where that does no harm. The two
`.example` files there say whom to tell; read them before you rename them, for policies replace those you have.

The stack of `compose.yaml` has the data source `prometheus` and promotes no labels, so it is for files made without options.
"""  # noqa: E501 - lines of a Markdown table


def command_of(choice: Choice) -> str:
    """
    The command that makes these files.

    >>> command_of(Choice(datasource="mimir", datasource_url="", folder="ML models"))
    "otel-model-metrics grafana --datasource mimir --folder 'ML models'"
    """
    standard = Choice()
    if choice.datasource != standard.datasource:
        standard = replace(standard, datasource_url="")  # as the command does
    usual = _options(standard)
    words = ["otel-model-metrics", "grafana"]
    for option, values in _options(choice).items():
        if values != usual[option]:
            for value in values:
                words += [f"--{option}", value]
    return shlex.join(words)


def _options(choice: Choice) -> dict[str, tuple[str, ...]]:
    """What is said of a choice on the command line."""
    settings = choice.settings
    return {
        "datasource": (choice.datasource,),
        "datasource-url": (choice.datasource_url,),
        "interval": (choice.interval,),
        "folder": (choice.folder,),
        "folder-uid": (choice.folder_uid,),
        "models": (choice.models,),
        "dashboard-window": (choice.window,),
        "window": settings.windows,
        "min-rows": (str(settings.min_rows),),
        "naming": (settings.naming,),
        "namespace": (settings.namespace,),
        "by": settings.by,
        "runbooks": (settings.runbooks,),
    }


def files_of(choice: Choice) -> dict[str, Callable[[Choice], str]]:
    """The files for a choice: a data source that Grafana knows already has none."""
    return {path: make for path, make in FILES.items() if make is not datasource or choice.datasource_url}


FILES: dict[str, Callable[[Choice], str]] = {
    "README.md": readme,
    **{f"dashboards/{name}": make for name, make in pages.FILES.items()},
    f"provisioning/dashboards/{_NAME}.yaml": dashboards_provider,
    "provisioning/datasources/prometheus.yaml": datasource,
    f"provisioning/alerting/{_NAME}.yaml": grafana_alerts.alerting_file,
    "provisioning/alerting/contact-points.yaml.example": grafana_alerts.contact_points_example,
    "provisioning/alerting/policies.yaml.example": grafana_alerts.policies_example,
    "prometheus/rules.yaml": lambda choice: documents.rules_file(choice.settings),
    "prometheus/alerts.yaml": lambda choice: documents.alerts_file(choice.settings),
    "compose.yaml": compose,
    "compose/prometheus.yaml": lgtm_prometheus,
    "kustomization.yaml": kustomization,
    "kubernetes/prometheus-rules.yaml": prometheus_rules,
    "kubernetes/prometheus-alerts.yaml": prometheus_alerts,
    "kubernetes/grafana-operator.yaml": operator_example,
}
