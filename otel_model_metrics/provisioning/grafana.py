"""
Files for Grafana: dashboards, what provisions them, and ways to start it all with Docker and in Kubernetes.

Together they are a folder that needs nothing else: paths in them are relative to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
        "Leave this out if Grafana knows your Prometheus already, and give its uid to --datasource instead.",
        "timeInterval is how often processes export: with a shorter one rates over short ranges are empty.",
    )
    source = {
        "name": "Prometheus",
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
        "annotation, for which a dashboard may be too large. The sidecar for alerts is off by default:",
        "sidecar.alerts.enabled. The folder below is taken with sidecar.dashboards.folderAnnotation: grafana_folder",
        "and foldersFromFilesStructure: true.",
    )
    maps = [
        {
            "name": f"{_NAME}-{uid.removeprefix('ml-quality-')}",
            "files": [f"dashboards/{uid}.json"],
            "options": {"labels": {"grafana_dashboard": "1"}, "annotations": {"grafana_folder": choice.folder}},
        }
        for uid in pages.PAGES
    ]
    maps.append(
        {
            "name": f"{_NAME}-alerts",
            "files": [f"provisioning/alerting/{_NAME}.yaml"],
            "options": {"labels": {"grafana_alert": "1"}},
        }
    )
    content = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["kubernetes/prometheus-rules.yaml"],
        "generatorOptions": {"disableNameSuffixHash": True},
        "configMapGenerator": maps,
    }
    return _yaml(about, content)


def prometheus_rules(choice: Choice) -> str:
    """The rules for the operator of Prometheus, a resource for each group so that none is too large."""
    about = (
        "The same as prometheus/rules.yaml and alerts.yaml, for the operator of Prometheus. It takes those whose "
        "labels",
        "its ruleSelector names: of kube-prometheus-stack, release: <name of the Helm release>.",
    )
    settings = choice.settings
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
        for kind, groups in (("rules", recording_groups(settings)), ("alerts", alert_groups(settings)))
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
    return f"""# Dashboards and alerts

Made by `otel-model-metrics grafana`; see its `--help` for your own data source, folder, window, naming and models.

| dashboard | uid | what it answers |
|---|---|---|
{table}

They ask for raw metrics only, so they need no recording rules; alerts do. Any Grafana from 10.4 on, with Prometheus, Mimir,
Thanos or VictoriaMetrics behind it.

| you have | do |
|---|---|
| Docker, and want to look | `docker compose -f compose.yaml up`, then http://localhost:3000; `compose/` has settings for it |
| a Grafana of your own | import `dashboards/*.json`, or mount `dashboards/` at `{_DASHBOARDS}` and `provisioning/` at `/etc/grafana/provisioning` |
| Prometheus, Mimir, Thanos, vmalert | `prometheus/rules.yaml` and `prometheus/alerts.yaml` in `rule_files` |
| Grafana's own alerting | `prometheus/rules.yaml`, and `provisioning/alerting/{_NAME}.yaml` instead of `alerts.yaml` |
| Kubernetes with the charts grafana or kube-prometheus-stack | `kubectl apply --server-side -k .`, which takes `kustomization.yaml` and `kubernetes/prometheus-rules.yaml` |
| Kubernetes with grafana-operator | the same, and `kubernetes/grafana-operator.yaml` as an example |

A file in `provisioning/alerting/` that Grafana cannot read keeps it from starting: try it where that does no harm. The two
`.example` files there say whom to tell; read them before you rename them, for policies replace those you have.
"""  # noqa: E501 - lines of a Markdown table


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
    "kubernetes/grafana-operator.yaml": operator_example,
}
