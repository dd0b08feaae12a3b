"""
Who an evaluation says it is: the same files of the same model are the same series, however often they are evaluated.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from otel_model_metrics.batch.job import Job

SERVICE_NAME, SERVICE_NAMESPACE, INSTANCE_ID = "service.name", "service.namespace", "service.instance.id"
DEFAULT_SERVICE = "otel-model-metrics-evaluate"

_NAMESPACE = uuid.UUID("6d2c9f0e-5f0e-5d0c-9b43-3f3b8f6f7a11")


def instance_of(files: Sequence[str | Path], job: Job) -> str:
    """
    The ``service.instance.id`` of an evaluation: one for each model, version and set of files as they are named.

    >>> from otel_model_metrics.batch import Job
    >>> instance_of(["june.csv"], Job("binary", "predicted", model="fraud"))
    '3b0b5cad-3ad5-56e7-9e03-e72a900496d5'
    """
    known = [sorted(os.path.normpath(file) for file in files), job.model, job.version]
    return str(uuid.uuid5(_NAMESPACE, json.dumps(known)))


def resource_of(instance: str | None, files: Sequence[str | Path], job: Job) -> Any:
    """
    The resource of OpenTelemetry to which points belong.

    Args:
        instance: Its ``service.instance.id``. Without one it is that of ``OTEL_RESOURCE_ATTRIBUTES``, or else
            `instance_of` the files and the job.

    ``OTEL_SERVICE_NAME`` and ``OTEL_RESOURCE_ATTRIBUTES`` are heeded.
    """
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    resource = Resource.create({})
    said = OTELResourceDetector().detect().attributes.get(INSTANCE_ID)
    own = {INSTANCE_ID: instance or str(said or instance_of(files, job))}
    if str(resource.attributes.get(SERVICE_NAME, "unknown_service")).startswith("unknown_service"):
        own[SERVICE_NAME] = DEFAULT_SERVICE
    return resource.merge(Resource(own))


def prometheus_target(attributes: Mapping[str, Any]) -> dict[str, str]:
    """
    The labels ``job`` and ``instance`` that Prometheus derives from a resource.

    >>> prometheus_target({"service.namespace": "shop", "service.name": "fraud", "service.instance.id": "a"})
    {'job': 'shop/fraud', 'instance': 'a'}
    """
    names = (attributes.get(name) for name in (SERVICE_NAMESPACE, SERVICE_NAME))
    return {"job": "/".join(str(name) for name in names if name), "instance": str(attributes[INSTANCE_ID])}
