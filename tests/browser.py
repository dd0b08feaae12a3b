"""A real Chromium without a window, told what to do by its DevTools protocol, through a pipe."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backends import binary

_SECONDS = 60.0  # a machine that does much else may be slow


class Page:
    """One tab. `events` are all that it told, in order; `width` is that of its window."""

    def __init__(self, write: int, read: int, log: Path) -> None:
        self.events: list[dict[str, Any]] = []
        self.width = 0
        self._write, self._read, self._log = write, read, log
        self._session: str | None = None
        self._last = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self._rest = b""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Tell the browser something, and wait for its answer."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + _SECONDS
        while self._last not in self._answers:
            self._receive(deadline)
        answer = self._answers.pop(self._last)
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, path: Path, width: int, scheme: str, height: int = 900) -> None:
        """Show a file in a window of this size, to one who prefers `scheme`, light or dark; forget earlier events."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.width = width
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        deadline = time.monotonic() + _SECONDS
        while not self.told("Page.loadEventFired"):
            self._receive(deadline)

    def told(self, method: str) -> list[dict[str, Any]]:
        """What events of a kind said."""
        return [event["params"] for event in self.events if event["method"] == method]

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def screenshot(self, whole: bool = True) -> bytes:
        """What it looks like, as PNG."""
        taken = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(taken["data"])

    def _receive(self, deadline: float) -> None:
        ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
        content = os.read(self._read, 1 << 16) if ready else b""
        assert content, f"Chromium does not answer:\n{self._log.read_text(errors='replace')[-4000:]}"
        *messages, self._rest = (self._rest + content).split(b"\0")
        for text in messages:
            message = json.loads(text)
            if "id" in message:
                self._answers[message["id"]] = message
            else:
                self.events.append(message)


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[Page]:
    """A browser with one tab; `folder` is for its profile and log."""
    program = binary("chromium")
    to_browser, of_browser = os.pipe(), os.pipe()
    log = folder / "chromium.log"
    # The browser reads from file 3 and writes to file 4; a shell puts them there, for these numbers may be in use.
    script = f'exec "$0" "$@" 3<&{to_browser[0]} 4>&{of_browser[1]}'
    command = [
        *("bash", "-c", script, program, "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}"),
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
    ]
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(to_browser[0], of_browser[1]),
            start_new_session=True,
            env={**os.environ, "HOME": str(folder)},
        )
    os.close(to_browser[0])
    os.close(of_browser[1])
    try:
        yield Page(to_browser[1], of_browser[0], log)
    finally:
        os.close(to_browser[1])  # which ends it
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        os.close(of_browser[0])
