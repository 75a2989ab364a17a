"""The build tab in a real browser: the bundled checkpoint's making, and a training that is watched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import serve
from playwright.sync_api import Page, expect
from served import TIMEOUT, Server, inside, race
from test_benchmark import open_tab

from app import build
from space_core.bundled import default_checkpoint
from space_core.training import Training

# A build that takes seconds: it writes a log as a build does, and its checkpoint is the bundled one.
FAKE = """
import json, pathlib, shutil, sys, time
run, made = map(pathlib.Path, sys.argv[1:])
log = (run / "log.jsonl").open("a")
def write(**row):
    log.write(json.dumps(row) + "\\n"); log.flush(); time.sleep(0.15)
if not (run / "half").exists():
    for step in range(12):
        write(stage="pretrain", step=step, loss=8 - step / 4, seconds=step)
    (run / "half").touch()
    time.sleep(WAIT)
for step in range(6):
    write(stage="masks-gated", step=step, tokens_per_call=1 + step / 5, seconds=step)
shutil.copytree(made, run / "checkpoint")
"""
CODE = """
import sys, app
from space_core.training import Training
script, made, root = sys.argv[1:4]
Training.command = lambda self: [sys.executable, "-c", script, str(self.checkpoint.parent), made]
plain = Training.__init__
Training.__init__ = lambda self, *rest: plain(self, app.Path(root))
app.main(sys.argv[4:])
"""


@pytest.fixture(scope="module")
def training_server(
    browser_type_launch_args: dict, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("training")
    made = str(default_checkpoint())
    script = FAKE.replace("WAIT", "30")
    command = ["-c", CODE, script, made, str(folder), "--model", str(tiny_model), "--device", "cpu"]
    yield from serve(command, folder / "log.txt")


def test_the_loaded_checkpoints_making_is_shown(watched: Page, training_server: Server) -> None:
    watched.goto(training_server.url)
    open_tab(watched, "Build")
    expect(watched.locator("#made-words")).to_have_text("tiny says nothing of its making.")
    expect(watched.locator("#tokens-figure")).to_have_count(0)


@pytest.mark.more
def test_training_is_watched_stopped_goes_on_and_its_checkpoint_races(
    watched: Page, training_server: Server
) -> None:
    page = watched
    page.goto(training_server.url)
    expect(page.locator('.chip[data-state="ready"]')).to_be_visible(timeout=60_000)
    open_tab(page, "Build")
    expect(page.locator("#build-adopt")).to_be_hidden()
    page.click("#build-run")
    expect(page.locator("#build-words")).to_contain_text("training the base, step 11", timeout=TIMEOUT)
    expect(page.locator("#build-panel .curve")).to_have_count(1)
    expect(page.locator("#build-panel .curve strong")).to_have_text("5.25")
    page.click("#build-stop")
    expect(page.locator("#build-words")).to_contain_text("Stopped", timeout=TIMEOUT)
    page.click("#build-run")
    expect(page.locator("#build-words")).to_contain_text("Done", timeout=TIMEOUT)
    expect(page.locator("#build-panel .curve")).to_have_count(2)
    page.click("#build-adopt")
    expect(page.locator("#race")).to_be_visible()
    expect(page.locator('.chip[data-state="ready"]')).to_contain_text("checkpoint", timeout=60_000)
    race(page)
    expect(page.locator("#badge")).to_have_text("outputs identical")
    open_tab(page, "Build")
    expect(page.locator("#made-panel .facts dd").first).to_be_visible()
    expect(page.locator("#tokens-figure .js-plotly-plot")).to_be_visible(timeout=TIMEOUT)
    page.set_viewport_size({"width": 390, "height": 844})
    inside(page, "#build-run", "#build-stop", "#made-panel")
    assert "Traceback" not in training_server.log.read_text()


def test_a_hosted_page_has_no_training_at_all(tiny_model: Path) -> None:
    from app import Loader

    loader = Loader(str(tiny_model), "cpu", "float32")
    names = {fn.api_name for fn in build(loader).fns.values()}
    assert "train" not in names and "race" in names
    with_it = {fn.api_name for fn in build(loader, training=Training(tiny_model)).fns.values()}
    assert "train" in with_it
