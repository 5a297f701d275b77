"A Chromium that a test drives as a person does: it opens pages, clicks, types and looks, by the DevTools protocol."
import itertools
import json
import re
import shutil
import subprocess
import time
import urllib.request
from contextlib import contextmanager

import pytest


class Page:
    "One page of a running Chromium."
    def __init__(self, address):
        import websocket
        self._socket = websocket.create_connection(address, timeout=60)
        self._ids, self.problems = itertools.count(1), []
        for domain in ("Page", "Runtime", "Log", "Network"): self.send(f"{domain}.enable")

    def send(self, method, **params):
        id = next(self._ids)
        self._socket.send(json.dumps(dict(id=id, method=method, params=params)))
        while True:
            said = json.loads(self._socket.recv())
            if said.get("method") == "Runtime.exceptionThrown":
                self.problems.append(said["params"]["exceptionDetails"].get("exception", {}).get("description", "?"))
            if said.get("method") == "Log.entryAdded" and said["params"]["entry"]["source"] == "security":
                self.problems.append(said["params"]["entry"]["text"])
            if said.get("id") == id:
                assert "error" not in said, f"{method}: {said['error']}"
                return said["result"]

    def size(self, width, height=900, dark=False):
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 600)
        self.send("Emulation.setEmulatedMedia",
                  features=[dict(name="prefers-color-scheme", value="dark" if dark else "light")])

    def open(self, url):
        self.look("window.isOld = true")
        self.send("Page.navigate", url=url)
        self.until("!window.isOld && document.readyState === 'complete'")

    def look(self, script):
        "The value of an expression of JavaScript."
        found = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, script, seconds=120):
        "Wait until an expression holds; gives its value."
        limit = time.monotonic() + seconds
        while not (found := self._try(script)):
            assert time.monotonic() < limit, f"it did not come: {script}\n{self.look('document.body.innerText')[:3000]}"
            time.sleep(.05)
        return found

    def _try(self, script): # a page that is not there yet has no elements
        try: return self.look(script)
        except AssertionError: return None

    def press(self, key, shift=False):
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32}
        text = {"Enter": "\r", " ": " "}.get(key, "")
        what = dict(key=key, windowsVirtualKeyCode=codes[key], modifiers=8 * shift)
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **what)
        self.send("Input.dispatchKeyEvent", type="keyUp", **what)

    def type(self, text): self.send("Input.insertText", text=text)

    def click(self, selector):
        "Press the mouse in the middle of an element."
        self.until(f"!!document.querySelector({json.dumps(selector)})")
        x, y = self.look("(e => { e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect(); "
                         "return [r.x + r.width / 2, r.y + r.height / 2]; })"
                         f"(document.querySelector({json.dumps(selector)}))")
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def picture(self, path):
        import base64
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", captureBeyondViewport=True)["data"]))


@contextmanager
def chromium(folder):
    "A Chromium of its own for a test; skips where none is installed."
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None: pytest.skip("no Chromium is installed")
    log = folder / "chromium.log"
    with open(log, "wb") as out:
        process = subprocess.Popen([browser, "--headless=new", "--no-sandbox", "--disable-gpu",
                                    "--disable-dev-shm-usage", "--remote-debugging-port=0", "--remote-allow-origins=*",
                                    f"--user-data-dir={folder / 'browser'}", "about:blank"], stdout=out, stderr=out)
    try:
        limit = time.monotonic() + 120
        while not (found := re.search(r"ws://([\d.:]+)/", log.read_text(errors="replace"))):
            assert process.poll() is None and time.monotonic() < limit, log.read_text(errors="replace")[-2000:]
            time.sleep(.05)
        while True:
            pages = json.load(urllib.request.urlopen(f"http://{found[1]}/json", timeout=60))
            if pages := [p for p in pages if p["type"] == "page"]: break
        yield Page(pages[0]["webSocketDebuggerUrl"])
    finally:
        process.kill()
        process.wait()
