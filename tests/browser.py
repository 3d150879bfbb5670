"""Headless Chromium over a pipe, by its DevTools protocol: what a page looks like once opened."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import threading

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PHONE, DESKTOP = (390, 844), (1280, 800)


def find():
    """The browser's path; None where none is installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One tab. It reads replies one by one; events in between are kept in `events`."""

    def __init__(self, to_browser, from_browser):
        self._to, self._from, self._number, self.events = to_browser, from_browser, 0, []
        self._session = None
        (target,) = [
            t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"
        ]
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        """The result of a command."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        while (reply := self._read()).get("id") != self._number:
            self.events.append(reply)
        assert "error" not in reply, reply
        return reply["result"]

    def open(self, path, *, size=DESKTOP, scheme="light"):
        """Opens a file and waits until it is loaded."""
        width, height = size
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=size == PHONE,
        )  # fmt: skip
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.events = []
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def value(self, expression):
        """What a JavaScript expression, or its promise, comes to."""
        result = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def first_paint(self):
        """Milliseconds from the start of the navigation to the first contentful paint."""
        return self.value(
            "new Promise(done => new PerformanceObserver(list => list.getEntries().forEach(e => "
            "e.name == 'first-contentful-paint' && done(e.startTime)))"
            ".observe({type: 'paint', buffered: true}))"
        )

    def screenshot(self, path, *, top=0):
        """What is visible after scrolling down to `top` pixels, as PNG."""
        self.value(f"window.scrollTo(0, {top})")
        self.value("new Promise(done => requestAnimationFrame(() => setTimeout(done, 200)))")
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def complaints(self):
        """What the browser logged, and what it asked the network for."""
        asked = [
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
        ]
        logged = [event for event in self.events if event.get("method") == "Log.entryAdded"]
        return logged, [url for url in asked if not url.startswith(("file:", "data:"))]

    def _read(self):
        text = bytearray()
        while (byte := self._from.read(1)) != b"\0":
            assert byte, "the browser has ended"
            text += byte
        return json.loads(text)


@contextlib.contextmanager
def start(path, *, seconds=300):
    """A browser at `path` with a profile of its own; it ends with the block, or after `seconds`."""
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = (
            "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu",
            "--no-first-run", "--disable-dev-shm-usage", "--hide-scrollbars",
            f"--user-data-dir={profile}", "about:blank",
        )  # fmt: skip
        # The protocol is spoken on descriptors 3 and 4.
        command = f'exec "$0" "$@" 3<&{to_read} 4>&{from_write}'
        process = subprocess.Popen(
            ["bash", "-c", command, path, *options],
            pass_fds=(to_read, from_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(from_write)
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        try:
            with os.fdopen(to_write, "wb") as to, os.fdopen(from_read, "rb") as back:
                yield Browser(to, back)
        finally:
            timer.cancel()
            process.terminate()
            process.wait(30)
