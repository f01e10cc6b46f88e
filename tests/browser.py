"""Debian's Chromium without a window and without a network, for tests of pages: what it requests, reports and shows."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

PROGRAM = "chromium"
# Own programs of the browser would ask for updates; nothing here needs a sandbox, a key ring or shared memory.
_OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--password-store=basic", "--hide-scrollbars"),
)
# Whatever a page shows smaller than this, in pixels, is hard to read.
SMALLEST_TEXT = 9.0
NARROWEST_CELL = 48.0
"""A word in a narrower cell has a letter on each line."""
_MEASURE = """(() => {
  const smallest = [...document.querySelectorAll('body *')]
    .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) && e.checkVisibility())
    .map(e => { const box = e.ownerSVGElement;
      const scale = box ? box.getBoundingClientRect().width / box.viewBox.baseVal.width : 1;
      return parseFloat(getComputedStyle(e).fontSize) * scale; });
  const cells = [...document.querySelectorAll('td, th')]
    .filter(e => e.checkVisibility() && e.textContent.trim().length > 3).map(e => e.clientWidth);
  return {width: document.documentElement.scrollWidth, height: document.documentElement.scrollHeight,
          narrowest: Math.min(...cells), smallest: Math.min(...smallest), scripts: document.scripts.length};
})()"""


@dataclass
class PageView:
    """What a browser makes of a page.

    Attributes:
        requests: the addresses that it asked for, without the page's own.
        errors: what it reported of the page.
        width, height: of the page's content, in pixels.
        smallest: the height of the smallest text, in pixels.
        narrowest: the width of the narrowest cell of a table that has a word, in pixels.
    """

    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    width: float = 0
    height: float = 0
    smallest: float = 0
    narrowest: float = 0
    scripts: int = 0
    picture: bytes = b""


class Browser:
    """A running browser, which is told what to do through two pipes."""

    def __init__(self, to_browser: BinaryIO, from_browser: BinaryIO) -> None:
        self._to, self._from = to_browser, from_browser
        self._number = 0
        self._events: list[dict[str, Any]] = []

    def show(self, page: Path, *, width: int, dark: bool = False, on_paper: bool = False) -> PageView:
        """Open a page in a window of `width` pixels."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self._call(f"{domain}.enable", session)
        window = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", session, **window)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        media = "print" if on_paper else "screen"
        self._call("Emulation.setEmulatedMedia", session, media=media, features=[scheme])
        self._events.clear()
        self._call("Page.navigate", session, url=page.resolve().as_uri())
        self._wait_for("Page.loadEventFired")
        measured = self._call("Runtime.evaluate", session, expression=_MEASURE, returnByValue=True)["result"]["value"]
        view = PageView(**measured)
        clip = {"x": 0, "y": 0, "width": width, "height": min(view.height, 6000), "scale": 1}
        picture = self._call("Page.captureScreenshot", session, clip=clip, captureBeyondViewport=True)
        view.picture = base64.b64decode(picture["data"])
        for event in self._events:
            parameters = event["params"]
            if event["method"] == "Network.requestWillBeSent":
                view.requests.append(parameters["request"]["url"])
            elif event["method"] == "Log.entryAdded":
                view.errors.append(parameters["entry"]["text"])
            elif event["method"] in {"Runtime.exceptionThrown", "Runtime.consoleAPICalled"}:
                view.errors.append(json.dumps(parameters))
        view.requests.remove(page.resolve().as_uri())
        self._call("Target.closeTarget", targetId=target)
        return view

    def _call(self, method: str, session: str | None = None, **parameters: Any) -> Mapping[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        self._to.write(json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        self._to.flush()
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer}"
                result: Mapping[str, Any] = answer["result"]
                return result
            self._events.append(answer)

    def _wait_for(self, method: str) -> None:
        while not any(event.get("method") == method for event in self._events):
            self._events.append(self._next())

    def _next(self) -> dict[str, Any]:
        text = bytearray()
        while (byte := self._from.read(1)) != b"\0":
            assert byte, "the browser has ended"
            text += byte
        message: dict[str, Any] = json.loads(text)
        return message


@contextmanager
def open_browser(profile: Path) -> Iterator[Browser]:
    """Start a browser whose files are in `profile`, in a network namespace that has no network."""
    without_network = ("unshare", "--net") if os.geteuid() == 0 and shutil.which("unshare") else ()
    command_read, command_write = os.pipe()
    answer_read, answer_write = os.pipe()
    # The browser reads commands from descriptor 3 and writes answers to 4.
    shell = f'exec 3<&{command_read} 4>&{answer_write}; exec "$@"'
    words = (*without_network, PROGRAM, *_OPTIONS, "--remote-debugging-pipe", f"--user-data-dir={profile}")
    process = subprocess.Popen(
        ["bash", "-c", shell, "bash", *words],
        pass_fds=(command_read, answer_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(command_read)
    os.close(answer_write)
    with process, os.fdopen(command_write, "wb") as to_browser, os.fdopen(answer_read, "rb") as from_browser:
        try:
            yield Browser(to_browser, from_browser)
        finally:
            process.kill()
