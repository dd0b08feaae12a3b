"""What OpenTelemetry receives: looked at through an in-memory reader, as a backend would see it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
import threading

import pytest
from conftest import Exports
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import DropAggregation, View

from otel_model_metrics import BinaryMonitor, MulticlassMonitor, RegressionMonitor, Window, get_monitor, instruments

MODEL = {"ml.model.name": "model", "ml.model.version": "unversioned"}


def series(**attributes):
    return frozenset({**MODEL, **{key.replace("__", "."): value for key, value in attributes.items()}}.items())


def series_of_total(task, **attributes):
    return series(ml__model__task=task, **attributes)


def run(script: str, **environment: str) -> str:
    """Output of a Python script in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )
    assert 0 == done.returncode, done.stderr
    return done.stdout + done.stderr


def test_an_export_carries_values_bounds_objective_and_window(make, exports, clock):
    """
    Everything a binary model exports, under its exported names.
    """
    monitor = make(BinaryMonitor, objectives={"f1": 0.9})
    monitor.record_batch([True, True, False, False], [True, False, False, True])
    clock.tick(5.0)

    found = exports.collect()

    assert 0.5 == found["ml.model.accuracy"][series()]
    assert 0.15 < found["ml.model.accuracy.lower"][series()] < 0.5 < found["ml.model.accuracy.upper"][series()]
    assert {series(ml__metric="f1"): 0.9} == found["ml.model.objective"]
    assert {series(): 4.0} == found["ml.model.window.rows"]
    assert {series(): 5.0} == found["ml.model.window.age"]
    assert "ml.model.roc_auc" not in found


def test_a_total_is_born_at_zero_and_has_its_value_in_the_next_export(make, exports):
    """
    increase() loses the first value of a series, so that value is 0.
    """
    monitor = make(BinaryMonitor)
    monitor.record(True, True)
    outcome = series_of_total(
        "binary", **{"ml__class__actual": "positive", "ml__class__predicted": "positive", "ml__outcome": "correct"}
    )

    first, second = exports.collect(), exports.collect()

    assert 0.0 == first["ml.model.outcomes"][outcome]
    assert 1.0 == second["ml.model.outcomes"][outcome]
    assert 4 == len(first["ml.model.outcomes"])  # every cell there can be, from the first export on
    assert set(second["ml.model.rejected"].values()) == {0.0}


def test_a_class_met_later_is_born_at_zero_and_disturbs_no_other(make, exports):
    """
    Totals of classes grow in two directions; what was introduced stays introduced.
    """
    monitor = make(MulticlassMonitor)
    monitor.record_batch(["a", "b"], ["a", "a"])
    exports.collect()
    exports.collect()
    monitor.record_batch(["c", "a"], ["b", "a"])

    first, second = exports.collect(), exports.collect()

    def outcome(found, actual, predicted):
        kind = "correct" if actual == predicted else "wrong"
        return found["ml.model.outcomes"][
            series_of_total(
                "multiclass", **{"ml__class__actual": actual, "ml__class__predicted": predicted, "ml__outcome": kind}
            )
        ]

    assert (2.0, 1.0, 0.0) == (outcome(first, "a", "a"), outcome(first, "a", "b"), outcome(first, "b", "c"))
    assert (2.0, 1.0, 1.0) == (outcome(second, "a", "a"), outcome(second, "a", "b"), outcome(second, "b", "c"))
    assert 2.0 == first["ml.model.predictions"][series_of_total("multiclass", ml__class__predicted="a")]
    assert 0.0 == first["ml.model.predictions"][series_of_total("multiclass", ml__class__predicted="c")]


def test_each_reader_sees_its_own_zeros_and_the_same_values():
    """
    Two readers export the same process; neither takes the zeros of the other.
    """
    one, two = InMemoryMetricReader(), InMemoryMetricReader()
    provider = MeterProvider([one, two], shutdown_on_exit=False)
    monitor = BinaryMonitor("model", meter_provider=provider)
    monitor.record(True, True)
    exports = Exports()
    predicted = series_of_total("binary", ml__class__predicted="positive")

    counts = [exports.collect(reader)["ml.model.predictions"][predicted] for reader in (one, one, two, two, one)]

    assert [0.0, 1.0, 0.0, 1.0, 1.0] == counts


def test_all_values_of_one_export_are_of_the_same_rows(make, exports):
    """
    A writer keeps recording right answers in pairs; in no export do the totals of one moment contradict each other.
    """
    monitor = make(BinaryMonitor, window=Window(rows=1000), clock=__import__("time").time)
    stop = threading.Event()

    def write():
        while not stop.is_set():
            monitor.record_batch([True, False], [True, True])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(50):
            found = exports.collect()
            if not found or not found["ml.model.window.rows"]:
                continue
            rows = found["ml.model.window.rows"][series()]
            if rows:
                assert 0.5 == found["ml.model.accuracy"][series()]
                assert 0.5 == found["ml.model.recall"][series()]
            outcomes = found["ml.model.outcomes"].values()
            assert len(set(outcomes) - {0.0}) <= 1
    finally:
        stop.set()
        writer.join()


def test_nothing_is_lost_under_eight_threads(make, exports):
    """
    Rows recorded = rows in totals + rejected, whatever the threads do.
    """
    monitor = make(BinaryMonitor, window=Window(rows=100))
    barrier = threading.Barrier(8)

    def write(number: int):
        barrier.wait()
        for row in range(5000):
            monitor.record(row % 2 == 0, "bad" if row % 10 == 0 else True, segments={"thread": number})

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        exports.collect()
        thread.join()
    exports.collect()
    found = exports.collect()

    overall = [value for key, value in found["ml.model.predictions"].items() if "ml.segment.name" not in dict(key)]
    assert 36_000 == sum(overall)
    assert 4_000 == sum(found["ml.model.rejected"].values())
    assert 36_000 == sum(found["ml.model.predictions"].values()) - sum(overall)


def test_monitors_may_be_made_while_others_are_exported(exports):
    """
    The SDK's lock and ours are never taken in opposite orders.
    """
    script = """
        import sys, threading
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from otel_model_metrics import BinaryMonitor, RegressionMonitor
        sys.setswitchinterval(1e-6)
        for turn in range(40):
            reader = InMemoryMetricReader()
            provider = MeterProvider([reader], shutdown_on_exit=False)
            BinaryMonitor(f"first {turn}", meter_provider=provider).record(True, True)
            def collect():
                for _ in range(20):
                    reader.get_metrics_data()
            exporting = threading.Thread(target=collect, daemon=True)
            exporting.start()
            RegressionMonitor(f"second {turn}", meter_provider=provider).record(1.0, 1.0)
            exporting.join(20)
            assert not exporting.is_alive(), "deadlock"
        print("done")
    """
    assert "done\n" == run(script)


def test_a_process_that_recorded_nothing_exports_nothing(make, exports):
    """
    The parent of forked workers makes monitors but records no row.
    """
    make(BinaryMonitor, objectives={"f1": 0.9})

    assert {} == exports.collect()


def test_one_faulty_monitor_hides_no_other(make, exports, monkeypatch, caplog):
    """
    Each monitor is guarded by itself, and nothing is raised into the SDK.
    """
    faulty, sound = make(BinaryMonitor, "faulty"), make(BinaryMonitor, "model")
    for monitor in (faulty, sound):
        monitor.record(True, True)
    monkeypatch.setattr(faulty, "collect", lambda: 1 / 0)

    assert {series(): 1.0} == exports.collect()["ml.model.accuracy"]
    assert "could not collect model {'ml.model.name': 'faulty'" in caplog.text


def test_two_monitors_share_instruments_without_a_warning(make, exports, caplog):
    """
    Creating an observable instrument twice would drop the second callback.
    """
    make(BinaryMonitor, "one").record(True, True)
    make(RegressionMonitor, "two").record(1.0, 2.0)
    make(BinaryMonitor, "three").record(True, False)

    found = exports.collect()

    assert {"one", "three"} == {dict(key)["ml.model.name"] for key in found["ml.model.accuracy"]}
    assert {"two"} == {dict(key)["ml.model.name"] for key in found["ml.model.rmse"]}
    assert "" == caplog.text


def test_the_same_name_and_version_twice_is_an_error(make):
    """
    Two monitors of one name would export the same series twice.
    """
    first = make(BinaryMonitor, "fraud", version="1")

    with pytest.raises(
        ValueError, match=r"^There is a monitor for model 'fraud' version '1' already, and two would ex"
    ):
        make(BinaryMonitor, "fraud", version="1")

    assert first is get_monitor("fraud", "1")
    first.close()
    with pytest.raises(
        LookupError, match=r"^No monitor for model 'fraud' version '1'\. Monitors of this process: none\.$"
    ):
        get_monitor("fraud", "1")


def test_a_closed_monitor_is_exported_no_more(make, exports):
    """
    close() detaches; another monitor of that name may follow.
    """
    monitor = make(BinaryMonitor)
    monitor.record(True, True)
    monitor.close()

    assert {} == exports.collect()

    make(BinaryMonitor).record(True, False)
    assert {series(): 0.0} == exports.collect()["ml.model.accuracy"]


def test_views_may_drop_and_rename(clock):
    """
    The user's Views are the user's right.
    """
    exports = Exports(
        views=[
            View(instrument_name="ml.model.precision*", aggregation=DropAggregation()),
            View(instrument_name="ml.model.recall", name="tpr"),
        ]
    )
    BinaryMonitor("model", meter_provider=exports.provider, clock=clock).record(True, True)

    found = exports.collect()

    assert "ml.model.precision" not in found
    assert "ml.model.precision.lower" not in found
    assert {series(): 1.0} == found["tpr"]
    assert {series(): 1.0} == found["ml.model.f1"]


def test_a_provider_may_be_set_after_the_monitors_or_before():
    """
    Monitors of the global provider report whenever it is set, and all of them through one set of instruments.
    """
    script = """
        import logging; logging.basicConfig()
        from opentelemetry import metrics
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from otel_model_metrics import BinaryMonitor, RegressionMonitor
        reader = InMemoryMetricReader()
        BinaryMonitor("before").record(True, True)
        provider = MeterProvider([reader])
        BinaryMonitor("explicit", meter_provider=provider).record(True, True)
        metrics.set_meter_provider(provider)
        BinaryMonitor("after").record(True, True)
        RegressionMonitor("other").record(1.0, 1.0)
        BinaryMonitor("explicit after", meter_provider=provider).record(True, True)
        for metric in reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics:
            if metric.name in ("ml.model.accuracy", "ml.model.mae"):
                print(metric.name, sorted(point.attributes["ml.model.name"] for point in metric.data.data_points))
    """
    lines = set(run(script).splitlines())

    assert {"ml.model.accuracy ['after', 'before', 'explicit', 'explicit after']", "ml.model.mae ['other']"} == lines


def test_a_disabled_sdk_costs_nothing_and_raises_nothing():
    """
    OTEL_SDK_DISABLED: record as ever, export nothing, bounded memory.
    """
    script = """
        from otel_model_metrics import BinaryMonitor, configure
        configure("service")
        monitor = BinaryMonitor("model")
        for _ in range(100_000):
            monitor.record(True, True)
        print(monitor.snapshot().rows, len(monitor._staged) < 100_000)
    """
    assert "10000 True\n" == run(script, OTEL_SDK_DISABLED="true")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_starts_empty_and_the_parent_goes_on():
    """
    Workers forked from a parent that has rows export only their own.
    """
    script = """
        import os, threading
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from otel_model_metrics import BinaryMonitor, monitors
        reader = InMemoryMetricReader()
        monitor = BinaryMonitor("model", meter_provider=MeterProvider([reader]))
        for _ in range(100):
            monitor.record(True, True)
        reader.get_metrics_data(); reader.get_metrics_data()
        monitor._recorder._lock.acquire()          # held by another thread at the moment of the fork
        monitors._monitors_lock.acquire()          # and this by one that is making a monitor
        def totals():
            data = reader.get_metrics_data()
            if data is None:
                return None
            metrics = {m.name: m for m in data.resource_metrics[0].scope_metrics[0].metrics}
            return sum(point.value for point in metrics["ml.model.predictions"].data.data_points)
        pid = os.fork()
        if pid == 0:
            before = totals()
            monitor.record(True, False)
            BinaryMonitor("made by the child")
            print("child", before, totals(), totals(), monitor.snapshot().rows, flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
        monitor._recorder._lock.release()
        print("parent", totals(), monitor.snapshot().rows)
    """
    assert "child None 0.0 1.0 1\nparent 100.0 100\n" == run(script)


def test_many_series_of_one_instrument_are_warned_of_once(make, exports, caplog):
    """
    The SDK merges what is beyond 2,000 attribute sets: that must not happen in silence.
    """
    monitor = make(BinaryMonitor, max_segment_values=3000)
    monitor.record_batch([True] * 2500, [True] * 2500, segments={"user": [str(n) for n in range(2500)]})
    with caplog.at_level(logging.WARNING):
        exports.collect()
        exports.collect()

    assert 1 == caplog.text.count("ml.model.accuracy has 2501 series.")


def test_the_reader_is_recognised():
    """
    If a new SDK hides the reader, this fails first, and all readers share their zeros until it is mended.
    """
    seen = []
    exports = Exports()

    class Spy(BinaryMonitor):
        def collect(self):
            seen.append(instruments._collecting_reader())
            return super().collect()

    Spy("model", meter_provider=exports.provider)
    exports.collect()

    assert [exports.reader] == seen
