"""A served page with a tiny model, and a Chromium to look at it.

The model is made on the fly: it continues a known cycle of tokens, and most of those tokens are
strings that would run if a page ever took model text for markup or for a template.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import warm
from cycle import cycle_model
from playwright.sync_api import Browser, BrowserContext, Page, expect
from served import (
    BUDGET,
    CHROMIUM,
    FLAGS,
    HOSTILE,
    TIMEOUT,
    Server,
    alarmed,
    answers,
    free_port,
    set_number,
)

expect.set_options(timeout=TIMEOUT / 2)  # five seconds are too few on a machine that does other things

PACED = """
import sys, time
from contextlib import closing
import app
from space_core import contest

race = contest.race

def paced(lanes):
    with closing(race(lanes)) as steps:
        for n, step in enumerate(steps):
            yield step
            if n > 150:
                time.sleep(0.008)

contest.race = paced
app.main(sys.argv[1:])
"""
"""The page, but that a long race lasts, however fast the machine: a test wants to look in the midst of it."""


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args: dict) -> dict:
    """Debian's Chromium. In CI a missing browser is a failure, elsewhere the tests are skipped."""
    if CHROMIUM is None:
        no_browser = "no chromium on this machine: apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(no_browser)
        pytest.skip(no_browser)
    return {**browser_type_launch_args, "executable_path": CHROMIUM, "args": FLAGS}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder whose greedy output is "!", then HOSTILE in order, and round again."""
    return cycle_model(tmp_path_factory.mktemp("models") / "tiny", HOSTILE)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch on one thread: on a busy machine two would spend the test waiting for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def server(
    browser_type_launch_args: dict, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The page as a user starts it, on a free port; long races are slowed."""
    command = ["-c", PACED, "--model", str(tiny_model), "--device", "cpu"]
    yield from serve(command, tmp_path_factory.mktemp("server") / "log.txt")


EMPTY = """
import sys, app
app.PATIENCE, status = 3600, app.Handlers.status
def opened(self, choice=""):
    print("opened", flush=True)
    return status(self, choice)
app.Handlers.status = opened
app.Loader.load = lambda self: print("loading", flush=True)
app.main(sys.argv[1:])
"""


@pytest.fixture(scope="session")
def empty_server(
    browser_type_launch_args: dict, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The same page, whose model never comes; its log tells when it would begin to load."""
    command = ["-c", EMPTY, "--model", str(tiny_model), "--device", "cpu"]
    yield from serve(command, tmp_path_factory.mktemp("empty") / "log.txt")


def serve(command: list[str], log: Path, *, alone: bool = False) -> Iterator[Server]:
    """Run python with these arguments and a free port, until the test is over; as `warm.start` does."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    env = {name: value for name, value in os.environ.items() if not name.startswith("SPACE_")}
    command = [*command, "--port", str(port)]
    started = time.monotonic()
    process = warm.start(command, log, env, alone=alone)
    try:
        while not answers(url):
            if process.poll() is not None or time.monotonic() - started > 60:
                pytest.fail(f"the page did not start:\n{log.read_text()}")
            time.sleep(0.1)
        yield Server(url, time.monotonic() - started, log, process.pid)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


@pytest.fixture(scope="session")
def kept(browser: Browser, browser_context_args: dict) -> Iterator[BrowserContext]:
    context = browser.new_context(**browser_context_args)
    yield context
    context.close()


@pytest.fixture
def context(kept: BrowserContext) -> Iterator[BrowserContext]:
    """One for all tests of a worker: they need not read and compile the page's scripts anew, each of them. A test of
    first visits makes its own."""
    yield kept
    for page in kept.pages:
        page.close()
    kept.clear_cookies()


@pytest.fixture
def watched(page: Page) -> Iterator[Page]:
    """A page not yet opened; dialogs, page errors and text that ran fail the test."""
    alarms = alarmed(page)
    page.set_default_timeout(TIMEOUT)
    yield page
    assert page.evaluate("window.pwned") is None
    assert alarms == []


@pytest.fixture
def app(watched: Page, server: Server) -> Page:
    """The page, opened and with its model loaded."""
    watched.goto(server.url)
    expect(watched.locator('.chip[data-state="ready"]')).to_be_visible(timeout=60_000)
    set_number(watched, "budget", BUDGET)
    return watched


@pytest.fixture
def unloaded(watched: Page, empty_server: Server) -> Page:
    """The page, opened, with no model behind it: what it shows is its recording."""
    watched.goto(empty_server.url)
    expect(watched.locator('.arena[data-state="recorded"]')).to_be_visible()
    return watched
