"""
What a user may choose for Grafana: where its files belong, and what they show.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import promql_parser

from otel_model_metrics.prometheus_names import escaped
from otel_model_metrics.provisioning import promql
from otel_model_metrics.provisioning.rules import Settings

_UID = re.compile("[a-zA-Z0-9][a-zA-Z0-9_-]{0,39}")


@dataclass(frozen=True)
class Choice:
    """
    What a user may choose for Grafana.

    Attributes:
        settings: What the recording rules were made with, on which alerts and dashboards rest.
        datasource: The uid of the data source that has these rules. Alerts cannot choose it by a variable.
        folder: The title of the folder in which Grafana keeps alerts and dashboards.
        folder_uid: Its uid.
        window: Over which dashboards show quality, until somebody chooses another window there.
        datasource_url: Where Grafana finds that data source; empty if it knows it already.
        interval: How often processes export, so that rates look at two exports at least.
        models: A regular expression that a model's whole name must match; empty for all models.
    """

    settings: Settings = field(default_factory=Settings)
    datasource: str = "prometheus"
    folder: str = "ML model quality"
    folder_uid: str = "ml-model-quality"
    datasource_url: str = "http://prometheus:9090"
    interval: str = "60s"
    window: str = "1h"
    models: str = ""

    def __post_init__(self) -> None:
        for what, uid in (("datasource", self.datasource), ("folder_uid", self.folder_uid)):
            if not _UID.fullmatch(uid):
                raise ValueError(
                    f"{what} must be a uid: at most 40 letters, digits, - and _, the first a letter or digit; "
                    f"got {uid!r}."
                )
        # Grafana takes a slash for a folder in a folder, and $NAME for an environment variable.
        if not self.folder.strip() or not self.folder.isprintable() or set("/$") & set(self.folder):
            raise ValueError(f"folder must be a title on one line, without / and $; got {self.folder!r}.")
        for duration in (self.window, self.interval):
            promql.seconds(duration)
        if self.datasource_url and not re.fullmatch(r"https?://[^\s$]+", self.datasource_url):
            raise ValueError(
                f"datasource_url must be an address such as http://prometheus:9090, got {self.datasource_url!r}."
            )
        self._check_models()

    def _check_models(self) -> None:
        # Grafana takes $name for a variable, and Prometheus asks for the whole name anyway.
        if set('"`$') & set(self.models) or (self.models and not self.models.isprintable()):
            raise ValueError(
                'models must be a regular expression on one line, without ", ` and $ (it is compared with the whole '
                f"name anyway); got {self.models!r}."
            )
        try:
            promql_parser.parse(promql.selector("up", more=self.matchers))
        except ValueError as error:
            why = str(error).strip().splitlines()
            raise ValueError(
                f"models must be a regular expression as Prometheus takes it, such as fraud|churn-.*; "
                f"got {self.models!r}: {why[-1] if why else 'it is none'}."
            ) from error

    @property
    def matchers(self) -> tuple[str, ...]:
        """
        The matchers that select these models, as PromQL writes them.

        >>> Choice(models="fraud|churn-.*").matchers
        ('ml_model_name=~"fraud|churn-.*"',)
        """
        return (f'{promql.MODEL}=~"{escaped(self.models)}"',) if self.models else ()
