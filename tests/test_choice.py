"""
What a user may choose for Grafana: whatever would break its files is refused, with a reason.
"""

from __future__ import annotations

import pytest

from otel_model_metrics.provisioning.choice import Choice

UID = "a uid: at most 40 letters, digits, - and _, the first a letter or digit"
FOLDER = "folder must be a title on one line, without / and $"
MODELS = (
    'models must be a regular expression on one line, without ", ` and $ (it is compared with the whole name anyway)'
)
REGEX = "models must be a regular expression as Prometheus takes it, such as fraud|churn-.*"
DURATION = "A duration is a number and a unit (s, m, h, d, w), such as 30m, 6h or 1h30m"
ADDRESS = "datasource_url must be an address such as http://prometheus:9090"


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"datasource": ""}, f"datasource must be {UID}; got ''."),
        ({"datasource": "${datasource}"}, f"datasource must be {UID}; got '${{datasource}}'."),
        ({"datasource": "prometheus\n"}, f"datasource must be {UID}; got 'prometheus\\n'."),
        ({"datasource": "-x"}, f"datasource must be {UID}; got '-x'."),
        ({"folder_uid": "x" * 41}, f"folder_uid must be {UID}; got '{'x' * 41}'."),
        ({"folder": " "}, f"{FOLDER}; got ' '."),
        ({"folder": "models/churn"}, f"{FOLDER}; got 'models/churn'."),
        ({"folder": "$HOME"}, f"{FOLDER}; got '$HOME'."),
        ({"folder": "two\nlines"}, f"{FOLDER}; got 'two\\nlines'."),
        ({"window": "an hour"}, f"{DURATION}; got 'an hour'."),
        ({"window": "0s"}, "A duration must be longer than 0, got '0s'."),
        ({"interval": "1x"}, f"{DURATION}; got '1x'."),
        ({"datasource_url": "prometheus:9090"}, f"{ADDRESS}, got 'prometheus:9090'."),
        ({"datasource_url": "http://$HOST"}, f"{ADDRESS}, got 'http://$HOST'."),
        ({"models": 'a"b'}, f"{MODELS}; got 'a\"b'."),
        ({"models": "a`b"}, f"{MODELS}; got 'a`b'."),
        ({"models": "a\nb"}, f"{MODELS}; got 'a\\nb'."),
        ({"models": "^fraud$"}, f"{MODELS}; got '^fraud$'."),
        ({"models": "a("}, f"{REGEX}; got 'a(': illegal regex for a(."),
        ({"models": "a(?=b)"}, f"{REGEX}; got 'a(?=b)': illegal regex for a(?=b)."),
    ],
)
def test_a_bad_choice_is_refused_with_a_reason(chosen, message):
    """
    What was expected and what came.
    """
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the whole message is compared
        Choice(**chosen)

    assert message == str(raised.value)


@pytest.mark.parametrize(
    ("models", "matchers"),
    [
        ("", ()),
        ("fraud|churn-.*", ('ml_model_name=~"fraud|churn-.*"',)),
        (r"v1\.0", (r'ml_model_name=~"v1\\.0"',)),
        ("Prüfung.*", ('ml_model_name=~"Prüfung.*"',)),
    ],
)
def test_models_are_selected_by_one_matcher(models, matchers):
    """
    Or by none, for all models; a backslash is one for PromQL, too.
    """
    assert matchers == Choice(models=models).matchers
