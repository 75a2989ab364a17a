"""What a visit begins with, two of them at once, and what marks and choices do, in a real browser."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from conftest import serve
from playwright.sync_api import Page, expect
from served import TIMEOUT, Server, choose_grid, prompt, race, set_number, text, under_way
from test_replay import RECORDED
from walking import learn, solve

from app import CHOICES, Handlers, Loader, choose, chosen

# ---------------------------------------------------------------- the first page

FIRST_PAGE = 2.0
"""Seconds that the first page may take once the address answers."""
TIMES_A_BARE_PAGE = 4.0
"""The same over what Gradio's own page of one text box takes, where that takes more than half a second: on a
machine that is slow or has much else to do. (Measured on an idle one: 0.56 over 0.25 seconds.)"""
BARE = """
import sys
import gradio
with gradio.Blocks() as page:
    gradio.Textbox(elem_id="box")
page.launch(server_port=int(sys.argv[-1]), quiet=True)
"""


def visited(browser: Any, url: str, usable: Callable[[Page], None], times: int = 3) -> list[float]:
    """Seconds of visits with empty caches, from asking for the address until the page is usable."""
    took = []
    for _ in range(times):
        context = browser.new_context()
        page = context.new_page()
        page.set_default_timeout(TIMEOUT)
        start = time.monotonic()
        page.goto(url, wait_until="commit")
        usable(page)
        took.append(time.monotonic() - start)
        context.close()
    return took


def test_the_first_page_is_usable_soon_and_before_the_model(
    browser: Any, empty_server: Server, tmp_path: Path
) -> None:
    """The best of three visits, since a busy machine may delay one of them."""

    def replays(page: Page) -> None:
        page.wait_for_selector('.arena[data-state="recorded"] #replay-play:enabled')
        page.focus("#text-space")
        page.keyboard.press("Home")
        page.keyboard.press("ArrowRight")
        page.wait_for_function("document.querySelectorAll('.out .tok').length === 1")
        expect(page.locator('.chip[data-state="loading"]')).to_be_visible()

    took = visited(browser, empty_server.url, replays)
    if min(took) >= FIRST_PAGE:
        for server in serve(["-c", BARE], tmp_path / "log.txt"):
            bare = visited(browser, server.url, lambda page: page.wait_for_selector("#box textarea"))
        took += visited(browser, empty_server.url, replays)
        assert min(took) < max(FIRST_PAGE, TIMES_A_BARE_PAGE * min(bare)), (took, bare)


def test_a_page_that_rests_asks_for_few_pictures(browser: Any, server: Server) -> None:
    """Of Gradio alone one asks for each of sixty a second: the clock of its "Loading…" is never stopped."""
    context = browser.new_context()
    page = context.new_page()
    page.add_init_script(
        "const ask = requestAnimationFrame; window.asked = 0;"
        "window.requestAnimationFrame = (draws) => { window.asked += 1; return ask(draws); };"
    )
    page.goto(server.url)
    expect(page.locator('.chip[data-state="ready"]')).to_be_visible(timeout=TIMEOUT)
    seconds: list[int] = []
    while not seconds or (seconds[-1] > 8 and len(seconds) < 15):  # at first something moves
        before = page.evaluate("window.asked")
        page.wait_for_timeout(1000)
        seconds.append(page.evaluate("window.asked") - before)
    assert seconds[-1] <= 8, seconds
    context.close()


ASKS = {
    "a page that opens": lambda handlers: handlers.status(),
    "a race through the API": lambda handlers: list(handlers.race("def f():", 5, 8, 0, 1, 0, "auto", [])),
    "nobody": lambda handlers: None,
}


@pytest.mark.parametrize("who", ASKS)
def test_the_model_is_loaded_once_somebody_wants_it_or_nobody_comes(
    monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    begun = threading.Event()
    monkeypatch.setattr(Loader, "load", lambda self: begun.set())
    loader = Loader("a model", "cpu", "float32")
    loader.start(patience=1.0 if who == "nobody" else 60.0)
    assert not begun.wait(0.1)

    def ask() -> None:
        with suppress(gr.Error):  # for what is loaded here is no model
            ASKS[who](Handlers(loader, 60))

    asker = threading.Thread(target=ask, daemon=True)
    asker.start()
    assert begun.wait(10)
    loader.done.set()
    asker.join(10)


def test_the_first_page_has_the_processor_for_itself(empty_server: Server, browser: Any) -> None:
    page = browser.new_page()
    page.goto(empty_server.url)
    expect(page.locator('.chip[data-state="loading"]')).to_be_visible()
    page.close()
    told = [line for line in empty_server.log.read_text().splitlines() if line in ("opened", "loading")]
    assert told[:2] == ["opened", "loading"] and told.count("loading") == 1


@pytest.mark.more
def test_a_loaded_model_is_told_as_the_page_opens_and_not_at_the_next_tick(app: Page) -> None:
    app.add_init_script("window.setInterval = () => 0")
    app.reload()
    expect(app.locator('.chip[data-state="ready"]')).to_be_visible()


@pytest.mark.skipif(sys.platform != "linux", reason="reads the processor time of a process from /proc")
def test_a_page_that_nobody_looks_at_takes_next_to_no_processor_time(empty_server: Server) -> None:
    """Gradio would look into its queue 1,000 times a second: 6 to 10 % of a core, from every decoder beside it."""

    def spent() -> float:
        fields = Path(f"/proc/{empty_server.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    shares = []
    for _ in range(3):  # a visitor who left just now may still be tidied up behind
        before, start = spent(), time.monotonic()
        time.sleep(2)
        shares.append((spent() - before) / (time.monotonic() - start))
        if shares[-1] < 0.04:
            return
    pytest.fail(f"an idle page takes these shares of a core: {shares}")


def test_every_tab_and_no_other_host_is_asked(browser: Any, empty_server: Server) -> None:
    """Without a network but for the page's own address, all that needs no model is there."""
    context = browser.new_context()
    asked: list[str] = []
    own = ("data:", "blob:", empty_server.url)

    def check(route: Any) -> None:
        if route.request.url.startswith(own):
            route.continue_()
        else:
            asked.append(route.request.url)
            route.abort()

    context.route("**/*", check)
    page = context.new_page()
    page.set_default_timeout(TIMEOUT)
    page.goto(empty_server.url)
    page.locator("#text-space .tok").last.click()
    expect(page.locator(".map .cell").first).to_be_visible()
    page.click("#share")
    expect(page.locator(".share")).to_be_visible()
    learn(page)
    solve(page, "rows")
    for name, figure in (("Benchmark", "#paper-figure"), ("Build", "#made-words")):
        page.get_by_role("tab", name=name).click()
        expect(page.locator(figure)).to_be_visible()
    page.wait_for_timeout(500)
    context.close()
    assert asked == []


# ---------------------------------------------------------------- two visitors


@pytest.fixture
def visitors(browser: Any, server: Server) -> Any:
    contexts = [browser.new_context() for _ in range(2)]
    pages = [context.new_page() for context in contexts]
    for page in pages:
        page.set_default_timeout(TIMEOUT)
        page.goto(server.url)
        expect(page.locator('.chip[data-state="ready"]')).to_be_visible(timeout=60_000)
    yield pages
    for context in contexts:
        context.close()


@pytest.mark.more
def test_two_visitors_at_once_wait_for_each_other_and_see_their_own(visitors: list[Page]) -> None:
    one, two = visitors
    choose_grid(one)
    set_number(one, "k", 8)
    set_number(one, "budget", 512)
    prompt(one, "def one():\n")
    prompt(two, "def two():\n")
    set_number(two, "budget", 32)
    one.click("#race")
    under_way(one, 8)
    two.click("#race")
    expect(two.locator("#arena [data-testid=status-tracker]")).to_contain_text("queue", timeout=TIMEOUT)
    expect(two.locator("#source .tag")).to_have_text("recording")  # what is there stays meanwhile
    assert one.locator(".arena").get_attribute("data-state") == "running"
    one.click("#stop")
    for page, words, state in ((one, "one", "stopped"), (two, "two", "done")):
        expect(page.locator(".arena")).to_have_attribute("data-state", state, timeout=TIMEOUT)
        assert page.locator("#text-space .prompt-text").text_content() == f"def {words}():\n"
    assert two.locator("#text-vanilla .tok").count() == 32
    assert one.locator("#text-vanilla .tok").count() > 8
    # each opens a call of his own race
    for page, words in ((one, "one"), (two, "two")):
        page.locator("#text-space .tok").first.click()
        expect(page.locator(".map .cell").first).to_be_visible(timeout=TIMEOUT)
        assert page.locator("#text-space .prompt-text").text_content() == f"def {words}():\n"


# ---------------------------------------------------------------- greedy or sampled


@pytest.mark.more
def test_a_choice_sets_temperature_and_top_p_and_follows_them(app: Page) -> None:
    heat = app.locator("#temperature input[type=number]")
    expect(app.locator("#choice input[value=greedy]")).to_be_checked()
    app.click("#choice label:has-text('sampled')")
    expect(heat).to_have_value("0.7")
    app.click("#more > .label-wrap")
    expect(app.locator("#top-p input[type=number]")).to_have_value("0.95")
    expect(app.locator("#more")).to_contain_text("loops are easy to guess")
    race(app)
    expect(app.locator("#badge")).to_have_text("same distribution")
    app.click("#choice label:has-text('greedy')")
    expect(heat).to_have_value("0")
    expect(app.locator("#top-p input[type=number]")).to_have_value("1")
    race_before = app.locator(".arena").get_attribute("data-race") or ""
    app.click("#race")
    expect(app.locator(".arena")).not_to_have_attribute("data-race", race_before)
    expect(app.locator("#badge")).to_have_text("outputs identical")
    set_number(app, "temperature", 1.2)
    expect(app.locator("#choice input[value=sampled]")).to_be_checked()
    expect(heat).to_have_value("1.2")  # and nothing sets it back
    set_number(app, "temperature", 0)
    expect(app.locator("#choice input[value=greedy]")).to_be_checked()


@pytest.mark.more
def test_a_greedy_text_that_loops_is_said_to(app: Page) -> None:
    set_number(app, "budget", 64)  # the tiny model's cycle has eleven tokens
    race(app)
    expect(app.locator("#verdict")).to_contain_text("The text loops, and loops are easy to guess")


def test_a_choice_that_there_is_not_is_the_first() -> None:
    for name in ("hot", None, 7, ["sampled"], {"sampled": 1}):
        assert choose(name) == CHOICES["greedy"]
    assert choose("sampled") == (0.7, 0.95)
    assert [chosen(heat) for heat in (0, 0.0, 0.1, "1")] == ["greedy", "greedy", "sampled", "sampled"]


# ---------------------------------------------------------------- marks


@pytest.mark.parametrize("mark", ["accepted", "copied"])
def test_the_legend_filters_marks(unloaded: Page, mark: str) -> None:
    like = {"accepted": ".accepted:not(.copied)", "copied": ".accepted.copied"}
    (other,) = like.keys() - {mark}
    style = "node => { const s = getComputedStyle(node); return [s.borderBottomColor, s.backgroundColor]; }"
    clear = "rgba(0, 0, 0, 0)"
    token = unloaded.locator(f"#text-space .out .tok{like[mark]}").last
    others = [unloaded.locator(f"#text-space .out .tok{each}").last for each in (like[other], ".bonus")]
    bar = unloaded.locator(f".chart rect{like[mark]}").first
    key = unloaded.locator(f".legend button.{mark}")
    words = text(unloaded, "space")
    assert token.evaluate(style)[0] != clear
    before = [each.evaluate(style) for each in others]
    key.press("Enter")
    expect(key).to_have_attribute("aria-pressed", "false")
    assert token.evaluate(style) == [clear, clear]
    assert [each.evaluate(style) for each in others] == before, "the others stay"
    assert float(bar.evaluate("node => getComputedStyle(node).opacity")) < 0.5
    unloaded.focus("#text-space")
    unloaded.keyboard.press("Home")
    unloaded.keyboard.press("End")
    assert token.evaluate(style) == [clear, clear], "also what the replay writes anew"
    assert text(unloaded, "space") == words
    key.click()
    expect(key).to_have_attribute("aria-pressed", "true")
    assert token.evaluate(style)[0] != clear


def test_copied_guesses_that_stood_are_told_from_the_masks(unloaded: Page) -> None:
    calls = [call for call in RECORDED["frame"]["calls"] if call["lane"] == "space"]
    copied: dict[bool, int] = {True: 0, False: 0}
    for before, call in pairwise(calls):
        drafts = call.get("drafts") or before.get("pending", [])
        for slot, (_, origin) in enumerate(call["tokens"]):
            if origin == "accepted":
                copied[drafts[slot][1] is None] += 1
    assert min(copied.values()) > 0, "the recorded race has both"
    expect(unloaded.locator("#text-space .out .tok.copied")).to_have_count(copied[True])
    expect(unloaded.locator("#text-space .out .tok.accepted:not(.copied)")).to_have_count(copied[False])
    expect(unloaded.locator("#text-vanilla .out .tok.copied")).to_have_count(0)
    token = unloaded.locator("#text-space .out .tok.copied").last
    token.hover()
    assert "copied from the text so far · accepted" in (token.get_attribute("title") or "")


def test_a_corrected_token_shows_the_guess_that_fell(unloaded: Page) -> None:
    calls = [call for call in RECORDED["frame"]["calls"] if call["lane"] == "space"]
    token = unloaded.locator("#text-space .out .tok.corrected").last
    call = calls[int(token.get_attribute("data-call") or 0) - 1]
    drafts = call.get("drafts") or calls[call["n"] - 2]["pending"]
    fell = drafts[call["accepted"]][0]
    above = (
        "node => { const s = getComputedStyle(node, '::after'); return [s.content, s.textDecorationLine]; }"
    )
    assert token.evaluate(above)[0] in ("none", "normal")
    token.hover()
    content, line = token.evaluate(above)
    assert json.loads(content).replace("␣", " ").strip() == fell.replace("\n", "↵").strip()
    assert line == "line-through"
    unloaded.mouse.move(0, 0)
    assert token.evaluate(above)[0] in ("none", "normal")
    # and by keyboard
    unloaded.focus("#text-space")
    unloaded.keyboard.press("Tab")
    for _ in range(200):
        if "corrected" in (unloaded.evaluate("document.activeElement.className") or ""):
            break
        unloaded.keyboard.press("ArrowLeft")
    assert token.evaluate(above)[1] == "line-through"


SCROLL_UP = """() => {
  const box = document.querySelector("#text-space");
  const look = () => {
    const running = document.querySelector(".arena").dataset.state === "running";
    const tokens = box.querySelectorAll(".tok").length;
    if (!running || tokens < 80) return requestAnimationFrame(look);
    window.seen = [box.scrollTop, tokens];
    setTimeout(() => box.scrollTo(0, 0)); // as a hand does: not in the middle of a painting
  };
  look();
}"""


@pytest.mark.more
def test_a_lane_that_is_scrolled_up_stays_there(app: Page) -> None:
    choose_grid(app)
    set_number(app, "k", 8)
    set_number(app, "budget", 256)
    app.evaluate(SCROLL_UP)
    app.click("#race")
    app.wait_for_function(
        "window.seen && document.querySelector('.arena').dataset.state === 'done'", timeout=120_000
    )
    top, tokens = app.evaluate("window.seen")
    assert top > 0, "it followed the text until then"
    assert tokens < 250
    assert app.locator("#text-space").evaluate("b => b.scrollTop") == 0
    assert app.locator("#text-vanilla").evaluate("b => b.scrollHeight - b.scrollTop - b.clientHeight < 24")
