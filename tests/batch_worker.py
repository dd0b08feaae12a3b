"""
Functions that tests have other processes call; these import this file, so it needs nothing of the tests.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from otel_model_metrics.files import InputError

SECONDS = 20.0  # more than any test takes


def elsewhere(argument: dict[str, Any], told: Any) -> bool:
    """Whether this is another process. Here it waits, and gives up when told."""
    if os.getpid() != argument["parent"]:
        Path(argument["folder"], str(os.getpid())).touch()
        return True
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and not (argument["give_up"] and any(Path(argument["folder"]).iterdir())):
        told(0, 0)
        time.sleep(0.01)
    return False


def modules(argument: dict[str, Any], told: Any) -> list[str]:
    print("this is no result", file=sys.stderr if os.getpid() == argument["parent"] else sys.stdout, flush=True)
    return sorted({name.split(".")[0] for name in sys.modules}) if elsewhere(argument, told) else []


def killed(argument: dict[str, Any], told: Any) -> None:
    if elsewhere(argument, told):
        os.kill(os.getpid(), signal.SIGKILL)


def without_memory(argument: dict[str, Any], told: Any) -> None:
    if elsewhere(argument, told):
        raise MemoryError("9 EiB")


def refusing(argument: dict[str, Any], told: Any) -> None:
    if elsewhere(argument, told):
        raise InputError("There are too many windows.")


def faulty(argument: dict[str, Any], told: Any) -> None:
    if elsewhere(argument, told):
        raise KeyError("no such thing")


def unsendable(argument: dict[str, Any], told: Any) -> Any:
    return (lambda: None) if elsewhere(argument, told) else None


def endless(argument: dict[str, Any], told: Any) -> None:
    elsewhere(argument, told)
    while True:
        told(0, 0)
        time.sleep(0.01)


def gone(part: Any) -> None:
    os._exit(1)


def wrong(part: Any) -> None:
    raise KeyError("no such thing")


def without_memory_here(argument: dict[str, Any], told: Any) -> None:
    raise MemoryError("9 EiB")
