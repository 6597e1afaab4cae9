"""A page in headless Chromium: its messages on the console, its network requests, and the values of scripts in it.

It uses the DevTools protocol through a pipe, so it needs no package and no port.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --remote-debugging-pipe --window-size=1200,900"
).split()


@dataclass
class Visit:
    """Errors and warnings on the console, addresses that the page requested, and the values of scripts."""

    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    values: list[object] = field(default_factory=list)

    def outside(self, page: Path) -> list[str]:
        """Every requested address except the page itself and data inside it."""
        return [url for url in self.requests if url != page.as_uri() and not url.startswith(("data:", "blob:"))]


class _Pipe:
    """Messages to and from the browser: JSON that ends in a zero byte, on its file descriptors 3 and 4."""

    def __init__(self, profile: str) -> None:
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        # moved above 3 and 4, so that putting one in place cannot overwrite the other
        high = [fcntl.fcntl(handle, fcntl.F_DUPFD, 20) for handle in (theirs_in, theirs_out)]
        self.process = subprocess.Popen(
            [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(3, 4),
            preexec_fn=lambda: (os.dup2(high[0], 3), os.dup2(high[1], 4)),
        )
        for handle in (theirs_in, theirs_out, *high):
            os.close(handle)
        self.out, self.source = ours_out, ours_in
        self.waiting = b""
        self.sent = 0

    def send(self, method: str, session: str | None = None, **params: object) -> int:
        self.sent += 1
        message = {"id": self.sent, "method": method, "params": params, **({"sessionId": session} if session else {})}
        os.write(self.out, json.dumps(message).encode() + b"\0")
        return self.sent

    def receive(self, seconds: float) -> dict | None:
        until = time.monotonic() + seconds
        while b"\0" not in self.waiting:
            ready, _, _ = select.select([self.source], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                return None
            self.waiting += os.read(self.source, 1 << 16)
        message, _, self.waiting = self.waiting.partition(b"\0")
        return json.loads(message)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.out)
        os.close(self.source)


def visit(page: Path, *scripts: str, seconds: float = 60, settle: float = 1.0) -> Visit:
    """Open the page, wait until it has loaded and been quiet for `settle` seconds, and evaluate the scripts in it."""
    report = Visit()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        pipe = _Pipe(profile)
        try:
            _drive(pipe, page, scripts, report, seconds, settle)
        finally:
            pipe.close()
    return report


def _drive(pipe: _Pipe, page: Path, scripts: tuple[str, ...], report: Visit, seconds: float, settle: float) -> None:
    until = time.monotonic() + seconds

    def answer(number: int) -> dict:
        while time.monotonic() < until:
            message = pipe.receive(until - time.monotonic())
            if message and message.get("id") == number:
                return message.get("result", {})
            _record(message, report)
        raise TimeoutError(f"Chromium did not answer within {seconds} s")

    target = answer(pipe.send("Target.createTarget", url="about:blank"))["targetId"]
    session = answer(pipe.send("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
        answer(pipe.send(f"{domain}.enable", session))
    answer(pipe.send("Page.navigate", session, url=page.as_uri()))
    loaded = False
    while not loaded:
        message = pipe.receive(until - time.monotonic())
        if message is None:
            raise TimeoutError(f"{page} was not loaded within {seconds} s")
        loaded = message.get("method") == "Page.loadEventFired"
        _record(message, report)
    while (message := pipe.receive(settle)) is not None:
        _record(message, report)
    for script in scripts:
        outcome = answer(
            pipe.send("Runtime.evaluate", session, expression=script, returnByValue=True, awaitPromise=True)
        )
        if "exceptionDetails" in outcome:
            report.complaints.append(f"script: {outcome['exceptionDetails']['text']}")
        report.values.append(outcome.get("result", {}).get("value"))
    while (message := pipe.receive(settle)) is not None:
        _record(message, report)


def _record(message: dict | None, report: Visit) -> None:
    """Record an event."""
    method, params = (message or {}).get("method"), (message or {}).get("params", {})
    if method == "Network.requestWillBeSent":
        report.requests.append(params["request"]["url"])
    elif method == "Runtime.exceptionThrown":
        details = params["exceptionDetails"]
        report.complaints.append(f"exception: {details.get('exception', {}).get('description', details['text'])}")
    elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
        report.complaints.append(f"console: {[item.get('value') for item in params['args']]}")
    elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
        report.complaints.append(f"log: {params['entry']['text']}")
