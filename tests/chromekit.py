"""A real browser for tests of pages: headless Chromium, spoken to through a pipe, without a network."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--remote-debugging-pipe", "--disable-dev-shm-usage",
)  # fmt: skip
_TIMEOUT_S = 60.0
#: Puts two ends of pipes where the browser looks for them and becomes the browser.
_START = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3)
os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def found() -> str | None:
    """The browser of this machine; None where there is none."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


@dataclass
class Tab:
    """One page that was opened: what it asked for, what it complained of."""

    chrome: Chrome
    session: str
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page."""
        params = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        result = self.chrome.call("Runtime.evaluate", params, self.session)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, expression: str) -> Any:
        """The value of an expression as soon as it is one."""
        end = time.monotonic() + _TIMEOUT_S
        while (value := self.evaluate(expression)) in (None, False, ""):
            assert time.monotonic() < end, f"{expression} stayed {value!r}; {self.complaints}"
            time.sleep(0.05)
        return value

    def picture(self, path: Path) -> None:
        """A screenshot of the whole page."""
        params = {"format": "png", "captureBeyondViewport": True}
        path.write_bytes(base64.b64decode(self.chrome.call("Page.captureScreenshot", params, self.session)["data"]))


class Chrome:
    """A browser; close it. Messages are JSON, each ended by a zero byte, on file descriptors 3 and 4."""

    def __init__(self, folder: Path) -> None:
        program = found()
        assert program is not None
        read_end, self._out = os.pipe()
        self._in, write_end = os.pipe()
        start = [sys.executable, "-c", _START, str(read_end), str(write_end)]
        command = [*start, program, *_FLAGS, f"--user-data-dir={folder}", "about:blank"]
        quiet = subprocess.DEVNULL
        env = {**os.environ, "HOME": str(folder)}
        self._process = subprocess.Popen(
            command, pass_fds=(read_end, write_end), stdin=quiet, stdout=quiet, stderr=quiet, env=env
        )
        os.close(read_end)
        os.close(write_end)
        self._rest, self._count, self._tabs = b"", 0, dict[str, Tab]()

    def close(self) -> None:
        """End it."""
        os.close(self._out)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)

    def open(
        self, page: Path, *, width: int = 1280, height: int = 900, scripts: bool = True, scheme: str = "light"
    ) -> Tab:
        """Open a file and wait until it is there."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        tab = self._tabs[session] = Tab(self, session)
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable", {}, session)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.call("Emulation.setDeviceMetricsOverride", size, session)
        self.call("Emulation.setScriptExecutionDisabled", {"value": not scripts}, session)
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", {"features": media}, session)
        self.call("Page.navigate", {"url": page.resolve().as_uri()}, session)
        tab.wait("document.readyState === 'complete' && document.title !== ''")
        return tab

    def call(self, method: str, params: Mapping[str, Any], session: str | None = None) -> Any:
        """Call a method of the protocol; its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": dict(params)}
        if session is not None:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        while True:
            told = self._next()
            if told.get("id") == self._count:
                assert "error" not in told, (method, told["error"])
                return told["result"]
            self._event(told)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], _TIMEOUT_S)
            assert ready, "the browser says nothing"
            piece = os.read(self._in, 1 << 20)
            assert piece, "the browser has ended"
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\0")
        value = json.loads(line)
        assert isinstance(value, dict)
        return value

    def _event(self, told: Mapping[str, Any]) -> None:
        tab = self._tabs.get(str(told.get("sessionId")))
        if tab is None:
            return
        params = told["params"]
        if told["method"] == "Network.requestWillBeSent":
            tab.requests.append(str(params["request"]["url"]))
        elif told["method"] == "Runtime.exceptionThrown":
            tab.complaints.append(str(params["exceptionDetails"]))
        elif told["method"] == "Runtime.consoleAPICalled":
            tab.complaints.append(f"console.{params['type']}: {params['args']}")
        elif told["method"] == "Log.entryAdded":
            tab.complaints.append(str(params["entry"]))
