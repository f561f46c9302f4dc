"""Drives headless Chromium by its DevTools protocol, over a pair of pipes.

Needs no package: commands and events are JSON, each ended by a NUL, on file
descriptors 3 and 4 (https://chromedevtools.github.io/devtools-protocol).
"""

import base64
import fcntl
import json
import os
import pathlib
import select
import shutil
import subprocess
import tempfile
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
ROOT = pathlib.Path(__file__).resolve().parents[3]


def find() -> str | None:
  """Returns the browser: KD_CHROMIUM, or the first of NAMES on the PATH."""
  named = os.environ.get("KD_CHROMIUM")
  return named or next(filter(None, map(shutil.which, NAMES)), None)


def axe() -> pathlib.Path | None:
  """Returns axe-core's script: KD_AXE, or where `npm install --no-save
  axe-core` leaves it."""
  own = ROOT / "node_modules" / "axe-core" / "axe.min.js"
  path = pathlib.Path(os.environ.get("KD_AXE", own))
  return path if path.is_file() else None


class Browser:
  """A browser with one tab.

  Attributes:
    events: what the tab reported, until they are cleared.
  """

  def __init__(self, seconds: float = 60.0):
    self.seconds, self.events = seconds, []
    self._buffer, self._id, self._session = b"", 0, None
    self._home = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    theirs, self._out = _far(*os.pipe())
    self._in, answers = _far(*os.pipe())
    command = [
      find(), "--headless", "--remote-debugging-pipe", "--no-sandbox",
      "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
      f"--user-data-dir={self._home.name}", "about:blank",
    ]  # fmt: skip

    def connect():
      os.dup2(theirs, 3)
      os.dup2(answers, 4)

    self._process = subprocess.Popen(
      command,
      preexec_fn=connect,
      pass_fds=(3, 4),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    os.close(theirs)
    os.close(answers)
    found = self.send("Target.getTargets")["targetInfos"]
    tab = next(t["targetId"] for t in found if t["type"] == "page")
    self._session = self.send(
      "Target.attachToTarget", targetId=tab, flatten=True
    )["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
      self.send(f"{domain}.enable")

  def close(self) -> None:
    self._process.kill()
    self._process.wait()
    os.close(self._in)
    os.close(self._out)
    self._home.cleanup()

  def send(self, method: str, **params):
    """Sends a command; returns its result."""
    self._id += 1
    message = {"id": self._id, "method": method, "params": params}
    if self._session:
      message["sessionId"] = self._session
    data = json.dumps(message).encode() + b"\0"
    while data:
      data = data[os.write(self._out, data) :]
    number = self._id
    answer = self._read(lambda m: m.get("id") == number)
    if "error" in answer:
      raise RuntimeError(f"{method}: {answer['error']['message']}")
    return answer["result"]

  def wait(self, method: str):
    """Waits for an event that is still to come."""
    return self._read(lambda m: m.get("method") == method)["params"]

  def _read(self, wanted):
    end = time.monotonic() + self.seconds
    while True:
      while b"\0" not in self._buffer:
        left = end - time.monotonic()
        if left <= 0 or not select.select([self._in], [], [], left)[0]:
          raise TimeoutError(f"the browser said nothing in {self.seconds} s")
        data = os.read(self._in, 1 << 20)
        if not data:
          raise RuntimeError("the browser ended")
        self._buffer += data
      line, _, self._buffer = self._buffer.partition(b"\0")
      message = json.loads(line)
      if "method" in message:
        self.events.append(message)
      if wanted(message):
        return message

  def look(self, width: int, height: int, dark: bool) -> None:
    """Sets the window's size and the scheme that the reader prefers."""
    self.send(
      "Emulation.setDeviceMetricsOverride",
      width=width,
      height=height,
      deviceScaleFactor=1,
      mobile=width < 700,
    )
    scheme = "dark" if dark else "light"
    feature = {"name": "prefers-color-scheme", "value": scheme}
    self.send("Emulation.setEmulatedMedia", features=[feature])

  def open(self, path: str | os.PathLike) -> float:
    """Opens a file; returns the seconds until its first frame after load."""
    self.events.clear()
    began = time.perf_counter()
    self.send("Page.navigate", url=pathlib.Path(path).resolve().as_uri())
    if not any(e["method"] == "Page.loadEventFired" for e in self.events):
      self.wait("Page.loadEventFired")
    frame = "new Promise(done => requestAnimationFrame(() => setTimeout(done)))"
    self.run(frame)
    return time.perf_counter() - began

  def run(self, expression: str):
    """Evaluates JavaScript, a promise too; returns its value."""
    made = self.send(
      "Runtime.evaluate",
      expression=expression,
      awaitPromise=True,
      returnByValue=True,
    )
    if "exceptionDetails" in made:
      raise RuntimeError(json.dumps(made["exceptionDetails"]))
    return made["result"].get("value")

  def press(self, key: str) -> None:
    """Presses a key: Enter, Tab or a space."""
    codes = {"Enter": (13, "\r"), "Tab": (9, ""), " ": (32, " ")}
    code, text = codes[key]
    for kind in ("keyDown", "keyUp"):
      own = {"text": text} if text and kind == "keyDown" else {}
      self.send(
        "Input.dispatchKeyEvent",
        type=kind,
        key=key,
        windowsVirtualKeyCode=code,
        **own,
      )

  def picture(self, whole: bool = True) -> bytes:
    """Returns a PNG of the page."""
    made = self.send(
      "Page.captureScreenshot", format="png", captureBeyondViewport=whole
    )
    return base64.b64decode(made["data"])


def _far(*descriptors: int) -> list[int]:
  """Moves descriptors out of the way of 3 and 4."""
  moved = [fcntl.fcntl(d, fcntl.F_DUPFD_CLOEXEC, 16) for d in descriptors]
  for d in descriptors:
    os.close(d)
  return moved
