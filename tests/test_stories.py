"""
From record() to the answer of a real time-series store, over both paths, compared with scikit-learn.
"""

from __future__ import annotations

import math

import numpy as np
import prometheus_client
import pytest
from backends import Store, eventually, prometheus, victoria_metrics
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from sklearn import metrics as sklearn_metrics

from otel_model_metrics import BinaryMonitor, MulticlassMonitor, RankingMonitor, RegressionMonitor

ROWS = 400


class Traffic:
    """Rows of four models, and what scikit-learn makes of them."""

    def __init__(self) -> None:
        rng = np.random.default_rng(7)
        self.labels = rng.random(ROWS) < 0.3
        self.scores = np.clip(rng.normal(np.where(self.labels, 0.6, 0.4), 0.2), 0, 1)
        self.predictions = self.scores >= 0.5
        self.countries = rng.choice(["DE", "FR"], ROWS)
        self.species = rng.choice(["cat", "dog", "fox"], ROWS)
        self.guesses = np.where(rng.random(ROWS) < 0.7, self.species, "cat")
        self.prices = rng.normal(100, 20, ROWS)
        self.estimates = self.prices + rng.normal(3, 8, ROWS)
        self.places = rng.integers(1, 6, ROWS)  # where in the list the relevant item is; 5 is not at all

    def record(self, provider: MeterProvider) -> list:
        binary = BinaryMonitor("fraud", version="1", objectives={"f1": 0.8}, meter_provider=provider)
        binary.record_batch(
            self.predictions, self.labels, scores=self.scores, segments={"country": list(self.countries)}
        )
        multiclass = MulticlassMonitor("species", version="1", meter_provider=provider)
        multiclass.record_batch(list(self.guesses), list(self.species))
        regression = RegressionMonitor("price", version="1", meter_provider=provider)
        regression.record_batch(self.estimates, self.prices)
        ranking = RankingMonitor("search", version="1", k=2, meter_provider=provider)
        for place in self.places.tolist():
            ranking.record([1, 2, 3, 4], place)
        return [binary, multiclass, regression, ranking]

    def expected(self) -> dict[str, float]:
        """PromQL -> what scikit-learn says."""
        of_de = self.countries == "DE"
        fraud, price, search = '{ml_model_name="fraud",%s}', '{ml_model_name="price"}', '{ml_model_name="search"}'
        overall = fraud % 'ml_segment_name=""'
        german = fraud % 'ml_segment_name="country",ml_segment_value="DE"'
        errors = self.estimates - self.prices
        reciprocal = np.where(self.places <= 4, 1 / self.places, 0.0)
        outcomes = 'ml_model_outcomes_total{ml_model_name="fraud",ml_segment_name="",%s}'
        return {
            f"ml_model_accuracy{overall}": sklearn_metrics.accuracy_score(self.labels, self.predictions),
            f"ml_model_f1{overall}": sklearn_metrics.f1_score(self.labels, self.predictions),
            f"ml_model_f1{german}": sklearn_metrics.f1_score(self.labels[of_de], self.predictions[of_de]),
            f"ml_model_roc_auc{overall}": sklearn_metrics.roc_auc_score(self.labels, self.scores),
            f"ml_model_log_loss{overall}": sklearn_metrics.log_loss(self.labels, self.scores),
            f"ml_model_window_rows{overall}": ROWS,
            'ml_model_objective{ml_metric="f1"}': 0.8,
            f"sum({outcomes % 'ml_outcome=`correct`'}) / sum({outcomes % ''})".replace("`", '"'): (
                sklearn_metrics.accuracy_score(self.labels, self.predictions)
            ),
            'ml_model_f1{ml_average="macro"}': sklearn_metrics.f1_score(self.species, self.guesses, average="macro"),
            'ml_model_recall{ml_class="fox"}': sklearn_metrics.recall_score(
                self.species, self.guesses, labels=["fox"], average="macro"
            ),
            f"ml_model_rmse{price}": sklearn_metrics.root_mean_squared_error(self.prices, self.estimates),
            f"sum(ml_model_error_squared_total{price}) / sum(ml_model_outcomes_total{price})": np.square(errors).mean(),
            f"ml_model_mean_error{price}": errors.mean(),
            f"ml_model_mrr{search}": reciprocal.mean(),
            'ml_model_hit_rate_at_k{ml_k="2"}': (self.places <= 2).mean(),
            'sum(ml_model_rank_reciprocal_total) / sum(ml_model_outcomes_total{ml_model_name="search"})': (
                reciprocal.mean()
            ),
        }


@pytest.fixture
def traffic() -> Traffic:
    return Traffic()


def assert_equal(store: Store, expected: dict[str, float]) -> None:
    for expression, value in expected.items():
        eventually(
            lambda expression=expression, value=value: math.isclose(
                store.number(expression), value, rel_tol=1e-9, abs_tol=1e-9
            ),
            f"{expression} should be {value}",
        )


def names_and_values(store: Store) -> dict[tuple, float]:
    """Every series of ours, by name and ml_* labels (the others differ by path)."""
    found = {}
    for labels, value in store.query('{__name__=~"ml_model_.+"}'):
        key = (labels["__name__"], *sorted((k, v) for k, v in labels.items() if k.startswith("ml_")))
        if labels["__name__"] != "ml_model_window_age_seconds":  # the only value that changes by itself
            found[key] = value
    return found


def test_otlp_and_scrape_give_the_same_names_and_the_values_of_scikit_learn(traffic, tmp_path):
    """
    One process pushes over OTLP/HTTP to VictoriaMetrics and is scraped by Prometheus; both answer as scikit-learn.
    """
    registry = prometheus_client.CollectorRegistry()
    scraped = PrometheusMetricReader(registry=registry)
    with victoria_metrics(tmp_path) as pushed_to:
        exporter = OTLPMetricExporter(endpoint=f"{pushed_to.url}/opentelemetry/v1/metrics")
        pushing = PeriodicExportingMetricReader(exporter, export_interval_millis=500)
        provider = MeterProvider(
            [scraped, pushing], resource=Resource.create({"service.name": "story"}), shutdown_on_exit=False
        )
        server, thread = prometheus_client.start_http_server(0, addr="127.0.0.1", registry=registry)
        try:
            with prometheus(tmp_path, f"127.0.0.1:{server.server_port}") as scraping:
                traffic.record(provider)

                assert_equal(pushed_to, traffic.expected())
                assert_equal(scraping, traffic.expected())
                over_otlp, over_scrape = names_and_values(pushed_to), names_and_values(scraping)
                assert set(over_otlp) == set(over_scrape)
                assert over_otlp == pytest.approx(over_scrape)
        finally:
            provider.shutdown()
            server.shutdown()
            server.server_close()
            thread.join()
