"""
What the way in for labels promises: its limits and words, and the OpenAPI description made of them.

The description says exactly what `labels_http.py` does; tests hold both against each other, with generated requests.
"""

from __future__ import annotations

from typing import Any

from otel_model_metrics.ground_truth.ids import MAX_LENGTH as MAX_ID_LENGTH
from otel_model_metrics.ground_truth.outcomes import LabelOutcome
from otel_model_metrics.version import __version__

LABELS_PATH = "/v1/labels"
OPENAPI_PATH = "/openapi.json"
METHODS = {LABELS_PATH: ("OPTIONS", "POST"), OPENAPI_PATH: ("GET", "HEAD", "OPTIONS")}

REQUIRED = ("model", "id", "label")
FIELDS = ("model", "version", "id", "label", "timestamp")

# Integers that every JSON library reads as they are written; longer ids are sent as strings, which are the same ids.
MIN_ID, MAX_ID = -(2**63), 2**63 - 1
# In the year 5138; milliseconds since 1970 are beyond it.
MAX_TIMESTAMP = 100_000_000_000
# Of arrays and objects in a body. A ranking, the deepest label there is, needs four.
MAX_DEPTH = 64


def describe(*, prefix: str, secured: bool, max_labels: int, max_body: int) -> dict[str, Any]:
    """
    The OpenAPI 3.1 description of one application.

    It names no model, so nothing in it is secret. What a request may bring at most is told with the answer 413.

    Args:
        prefix: Path under which the application is mounted, without a slash at its end.
        secured: Whether a token is asked for.
        max_labels: How many labels one request may bring.
        max_body: How many bytes one request may bring.
    """
    description: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "Labels of otel-model-metrics",
            "version": __version__,
            "description": "Tells a service what became of its predictions.",
        },
        "servers": [{"url": prefix or "/"}],
        "paths": {
            LABELS_PATH: {"post": _post(secured, max_labels, max_body)},
            OPENAPI_PATH: {"get": _get()},
        },
        "components": {"schemas": _schemas()},
    }
    if secured:
        description["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return description


def _post(secured: bool, max_labels: int, max_body: int) -> dict[str, Any]:
    responses = {
        "200": _answer("What became of each label, in the order sent.", "Outcomes"),
        "400": _answer("The body as a whole cannot be read; nothing of it was taken.", "Error"),
        "405": _answer("Only POST is answered here.", "Error", _allow(LABELS_PATH)),
        "411": _answer("The server cannot tell where the body ends: send Content-Length.", "Error"),
        "413": _answer(f"More than {max_body} bytes or {max_labels} labels; nothing of it was taken.", "Error"),
        "415": _answer("Not application/json in UTF-8, or compressed.", "Error"),
        "422": _answer("Not one of the labels is as described; each is told why.", "Outcomes"),
    }
    if secured:
        challenge = {"WWW-Authenticate": {"required": True, "schema": {"type": "string", "pattern": "^Bearer"}}}
        responses["401"] = _answer("No token, or not a right one.", "Error", challenge)
    return {
        "operationId": "recordLabels",
        "summary": "Labels for predictions made earlier",
        "description": (
            "One label, an array of labels, or an object with such an array. A label that is not as described, or "
            "whose model is not known, is rejected alone: the others are kept, and the answer is 200 unless none "
            "of them was as described. To send labels again does no harm: they are answered with duplicate."
        ),
        "security": [{"token": []}] if secured else [],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"anyOf": [_ref("Label"), _ref("LabelBatch"), _ref("LabelArray")]},
                    "examples": {
                        "one": {"value": {"model": "fraud", "id": "txn-1", "label": True}},
                        "many": {
                            "value": {
                                "labels": [
                                    {"model": "fraud", "version": "2026.11", "id": "txn-1", "label": True},
                                    {"model": "fraud", "id": 2, "label": False, "timestamp": 1790000000.5},
                                ]
                            }
                        },
                    },
                }
            },
        },
        "responses": responses,
    }


def _get() -> dict[str, Any]:
    return {
        "operationId": "describe",
        "summary": "This description",
        "security": [],
        "responses": {
            "200": {
                "description": "An OpenAPI document.",
                "content": {"application/json": {"schema": {"type": "object", "required": ["openapi", "paths"]}}},
            },
            "405": _answer("Only GET and HEAD are answered here.", "Error", _allow(OPENAPI_PATH)),
        },
    }


def _schemas() -> dict[str, Any]:
    outcome = {"type": "string", "enum": [outcome.value for outcome in LabelOutcome]}
    return {
        "Label": {
            "type": "object",
            "required": list(REQUIRED),
            "additionalProperties": False,
            "properties": {
                "model": {"type": "string", "description": "Name of the model."},
                "version": {
                    "type": ["string", "null"],
                    "description": (
                        "Its version. Without it, every version of the model gets the label that knows the "
                        "prediction; if none does, the one made last keeps it until the prediction comes."
                    ),
                },
                "id": {
                    "description": (
                        "That of the prediction; 42 and '42' are one id. An integer beyond 2^53 must be written with "
                        "all its digits, not as 1e17."
                    ),
                    "anyOf": [
                        {"type": "string", "minLength": 1, "maxLength": MAX_ID_LENGTH, "pattern": r"^[^\u0000]+$"},
                        {"type": "integer", "format": "int64", "minimum": MIN_ID, "maximum": MAX_ID},
                    ],
                },
                "label": {
                    "description": "What was right, as the monitor takes it. Not null: send it when it is known.",
                    "type": ["string", "number", "boolean", "array", "object"],
                },
                "timestamp": {
                    "type": ["number", "null"],
                    "minimum": 0,
                    "maximum": MAX_TIMESTAMP,
                    "description": "When the label became known, seconds since 1970; now by default.",
                },
            },
        },
        "LabelArray": {
            "description": "At least one item is a Label; items that are none are rejected alone. Or no items.",
            "type": "array",
            "anyOf": [{"maxItems": 0}, {"contains": _ref("Label")}],
        },
        "LabelBatch": {
            "type": "object",
            "required": ["labels"],
            "additionalProperties": False,
            "properties": {"labels": _ref("LabelArray")},
        },
        "Outcomes": {
            "type": "object",
            "required": ["outcomes", "counts"],
            "additionalProperties": False,
            "properties": {
                "outcomes": {"type": "array", "items": _ref("Outcome")},
                "counts": {
                    "description": "How many labels had each outcome; those that none had are left out.",
                    "type": "object",
                    "propertyNames": outcome,
                    "additionalProperties": {"type": "integer", "minimum": 1},
                },
            },
        },
        "Outcome": {
            "type": "object",
            "required": ["id", "model", "version", "outcome"],
            "additionalProperties": False,
            "properties": {
                "id": {"type": ["string", "integer", "null"], "description": "As sent; null if it was no id."},
                "model": {"type": ["string", "null"], "description": "As sent; null if it was no string."},
                "version": {
                    "type": ["string", "null"],
                    "description": "The version that got the label; null if none did, or several.",
                },
                "outcome": {**outcome, "description": "If several versions got it, the one that needs most attention."},
                "error": {"type": "string", "description": "Why it was rejected: what was expected, what came."},
                "versions": {
                    "description": "What became of it in each version, if several got it.",
                    "type": "array",
                    "minItems": 2,
                    "items": {
                        "type": "object",
                        "required": ["version", "outcome"],
                        "additionalProperties": False,
                        "properties": {"version": {"type": "string"}, "outcome": outcome, "error": {"type": "string"}},
                    },
                },
            },
        },
        "Error": {
            "type": "object",
            "required": ["error"],
            "additionalProperties": False,
            "properties": {"error": {"type": "string"}},
        },
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _answer(description: str, schema: str, headers: dict[str, Any] | None = None) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "description": description,
        "content": {"application/json": {"schema": _ref(schema)}},
    }
    if headers:
        answer["headers"] = headers
    return answer


def _allow(path: str) -> dict[str, Any]:
    return {"Allow": {"required": True, "schema": {"type": "string", "const": ", ".join(METHODS[path])}}}
