"""A headless Chromium driven by its DevTools protocol (https://chromedevtools.github.io/devtools-protocol)."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TIMEOUT_SECONDS = 30
_KEY_CODES = {"ArrowLeft": 37, "ArrowRight": 39, "Enter": 13, "Backspace": 8, "End": 35, "Home": 36, "Escape": 27}


class Browser:
    """One browser with one page, its profile in `folder`.

    `errors` are the errors on the page's console, `requested` the addresses it has loaded.
    """

    def __init__(self, folder: Path):
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        flags += ["--disable-background-networking", "--remote-debugging-port=0", f"--user-data-dir={folder}"]
        self.process = subprocess.Popen([PROGRAM, *flags, "about:blank"], stderr=subprocess.DEVNULL)
        port_file = folder / "DevToolsActivePort"
        wait_until(lambda: port_file.exists() and "\n" in port_file.read_text(), "the browser to start")
        port, path = port_file.read_text().split("\n")[:2]
        self.opened = ExitStack()
        self.socket = self.opened.enter_context(connect(f"ws://127.0.0.1:{port}{path}", max_size=None))
        self.number = 0  # of the last command
        self.session = None
        self.errors: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.resize(1280, 900)
        self.requested = []

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self.opened.close()
        self.process.terminate()
        self.process.wait(TIMEOUT_SECONDS)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        self.socket.send(json.dumps(message))
        while True:
            received = json.loads(self.socket.recv(TIMEOUT_SECONDS))
            if received.get("id") == self.number:
                assert "error" not in received, received
                return received["result"]
            self._record_event(received)

    def _record_event(self, event: dict[str, Any]) -> None:
        if event["method"] == "Runtime.exceptionThrown":
            self.errors.append(event["params"]["exceptionDetails"])
        if event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
            self.errors.append(event["params"]["entry"])
        if event["method"] == "Network.requestWillBeSent":
            self.requested.append(event["params"]["request"]["url"])

    def resize(self, width: int, height: int, dark: bool = False) -> None:
        """Set the size of the screen, and whether its owner prefers dark pages."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def value(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, expression: str) -> None:
        wait_until(lambda: self.value(expression), expression)

    def press(self, key: str) -> None:
        """Press a key as a person does: a letter, a digit, or a key's name."""
        if key.isdigit():
            code = f"Digit{key}"
        elif len(key) == 1:
            code = f"Key{key.upper()}"
        else:
            code = key
        number = _KEY_CODES.get(key) or ord(key.upper())
        event = {"key": key, "code": code, "windowsVirtualKeyCode": number}
        text = {}
        if key == "Enter":
            text = {"text": "\r"}
        elif len(key) == 1:
            text = {"text": key}
        self.call("Input.dispatchKeyEvent", type="keyDown", **event, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def click(self, selector: str) -> None:
        """Click the middle of an element, wherever it is on the screen."""
        middle = f"(() => {{ const b = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
        middle += " return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        x, y = self.value(middle)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def print_with_style(self, is_printing: bool = True) -> None:
        """Show the page as it is printed, or as on the screen."""
        self.call("Emulation.setEmulatedMedia", media="print" if is_printing else "", features=[])

    def run_scripts(self, is_running: bool) -> None:
        """Whether pages that are opened from now on run their scripts."""
        self.call("Emulation.setScriptExecutionDisabled", value=not is_running)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


def wait_until(condition: Callable[[], Any], description: str) -> None:
    end = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < end, f"waited {TIMEOUT_SECONDS} s for {description}"
        time.sleep(0.02)


def keep_screenshot(browser: Browser, name: str) -> None:
    """Keep a picture for a person to look at, in the folder that HF_LLM_SCREENSHOTS names."""
    if folder := os.environ.get("HF_LLM_SCREENSHOTS"):
        browser.value("window.scrollTo(0, 0)")
        wait_until(lambda: browser.value("scrollY === 0"), "the top")
        browser.screenshot(Path(folder) / f"{name}.png")
