"""What the browser tests and the screenshots share: the browser, its flags, the served page."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import FrameLocator, Page, expect

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # where pictures are made, nobody has set them as pytest does
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
"""The first that is there. The shell is Chromium without the toolbars that a window of each visitor renders."""
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

HOSTILE = (
    "${window.pwned=1}",
    "`${window.pwned=1}`",
    "<img src=x onerror=window.pwned=1>",
    "</script><script>window.pwned=1</script>",
    "{{value}}",
    "{{{window.pwned}}}",
    "C:\\users\\n",
    '"\\u0022&lt;b&gt;',
    "${'\n    '}",
    "é漢🙂",
)
"""Tokens that the tiny model writes, one after the other."""


TIMEOUT = 30_000
BUDGET = 64


@dataclass(frozen=True)
class Server:
    """The running page. `seconds_to_200` is from the start of the process `pid`."""

    url: str
    seconds_to_200: float
    log: Path
    pid: int


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    """Whether the page is served."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


@contextmanager
def serving(model: str | None) -> Iterator[str]:
    """The address of a page of one's own, for who makes pictures of it; the bundled model by default."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    command = [sys.executable, "app.py", "--port", str(port)]
    command += ["--model", model] if model else []
    server = subprocess.Popen(command, cwd=ROOT)
    try:
        while not answers(url):
            if server.poll() is not None:
                sys.exit("the page did not start")
            time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        server.wait(10)


# ---------------------------------------------------------------- what a visitor does


def text(page: Page, lane: str) -> str:
    """What a lane has written, without its prompt."""
    parts = (page.locator(f"#text-{lane} .{part}").text_content() or "" for part in ("out", "rest"))
    return "".join(parts)


def race(page: Page, state: str = "done") -> None:
    page.click("#race")
    expect(page.locator(".arena")).to_have_attribute("data-state", state, timeout=TIMEOUT)


def illustrated(page: Page | FrameLocator) -> None:
    """Go to the figures of the race that is over; they are drawn when their place is in sight."""
    page.locator("#figures").scroll_into_view_if_needed()
    for figure in ("calls", "clock"):
        expect(page.locator(f"#{figure}-figure .js-plotly-plot")).to_be_visible(timeout=TIMEOUT)


def under_way(page: Page, tokens: int) -> None:
    """Wait until the vanilla lane of a live race has more than so many tokens."""
    page.wait_for_function(
        "n => document.querySelector('.arena').dataset.state === 'running'"
        " && document.querySelectorAll('#text-vanilla .tok').length > n",
        arg=tokens,
    )


def ink(page: Page, key: str) -> str:
    """The colour that letters have now."""
    return page.locator(key).first.evaluate("key => getComputedStyle(key).color")


def set_number(page: Page, field: str, value: float) -> None:
    box = page.locator(f"#{field} input[type=number]")
    box.fill(str(value))
    box.press("Tab")


def alarmed(page: Page) -> list[str]:
    """Filled by dialogs and page errors from now on."""
    alarms: list[str] = []
    page.on("dialog", lambda dialog: (alarms.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("pageerror", lambda error: alarms.append(f"page error: {error}"))
    return alarms


def prompt(page: Page, words: str) -> None:
    page.fill("#prompt textarea", words)


def choose_grid(page: Page) -> None:
    """The paper's calls: with the planner's the rows depend on measured times."""
    page.click("#more > .label-wrap")
    page.check("#plan input[value=grid]")


def inside(page: Page, *names: str) -> None:
    """Nothing scrolls sideways, and these stand within the window: what overflows can be hidden."""
    width = page.evaluate("document.documentElement.clientWidth")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for name in names:
        box = page.locator(name).bounding_box()
        assert box is not None, name
        assert box["x"] >= 0 and box["x"] + box["width"] <= width, (name, box)
