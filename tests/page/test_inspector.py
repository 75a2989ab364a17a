"""Inside a call, in a real browser: opened from a token, from a bar, by keyboard; the map's words."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from served import HOSTILE, TIMEOUT, Server, choose_grid, race, set_number

from space_core.views import recording

RECORDED: dict[str, Any] = json.loads(recording.read())


def cell(page: Page, row: str, column: str) -> Any:
    """The map's cell of two rows by their names."""
    names = page.locator(".map [role=rowheader]").evaluate_all("all => all.map(n => n.ariaLabel)")
    at = names.index(column) + 1
    return page.locator(f".map .cell[data-row='{names.index(row)}'][data-column='{at}']")


def asked(page: Page) -> list[str]:
    """Questions to the server, as they come."""
    found: list[str] = []
    page.on("request", lambda request: found.append(request.url) if "queue/join" in request.url else None)
    return found


# ---------------------------------------------------------------- the recording, without a model


def test_a_token_of_the_recording_opens_its_call(unloaded: Page) -> None:
    questions = asked(unloaded)
    expect(unloaded.locator(".inspector")).to_be_hidden()
    token = unloaded.locator("#text-space .tok.accepted").last
    call = int(token.get_attribute("data-call") or 0)
    token.click()
    told = RECORDED["opened"]["space"][call - 1]
    expect(unloaded.locator(".inside-title")).to_have_text(
        f"Inside call {call} of {len(RECORDED['opened']['space'])}, SPACE"
    )
    expect(unloaded.locator(".story")).to_have_text(" ".join(told["story"]))
    rows = RECORDED["structures"][told["layout"]]["rows"]
    expect(unloaded.locator(".inspector .place[data-row]")).to_have_count(len(rows))
    expect(unloaded.locator(".map .cell")).to_have_count(len(rows) * (len(rows) + 1))
    tops = unloaded.locator(".inspector .guesses li:first-child code")
    assert len(tops.all()) == len(told["guesses"])
    expect(unloaded.locator(f".chart .call.open[data-call='{call}']")).to_have_count(1)
    assert unloaded.locator("#text-space .tok.open").count() >= 1
    assert questions == [], "the recording has it all"


def test_every_recorded_call_can_be_walked_through(unloaded: Page) -> None:
    unloaded.focus("#text-space")
    unloaded.keyboard.press("Home")
    unloaded.keyboard.press("Enter")
    expect(unloaded.locator(".inspector")).to_be_hidden()  # no call has been made yet
    unloaded.click("label:has(input[value=calls])")
    unloaded.focus("#text-space")
    unloaded.keyboard.press("ArrowRight")
    unloaded.keyboard.press("Enter")
    expect(unloaded.locator("#call-back")).to_be_disabled()
    calls = RECORDED["opened"]["space"]
    for told in calls[:12]:
        expect(unloaded.locator(".inspector")).to_have_attribute("data-call", str(told["n"]))
        expect(unloaded.locator(".story")).to_have_text(" ".join(told["story"]))
        unloaded.keyboard.press("ArrowRight")
    unloaded.keyboard.press("Escape")
    expect(unloaded.locator(".inspector")).to_be_hidden()
    expect(unloaded.locator("#text-space")).to_be_focused()
    expect(unloaded.locator(".open")).to_have_count(0)


def test_a_vanilla_call_is_one_row(unloaded: Page) -> None:
    unloaded.locator("#text-vanilla .tok").last.click()
    expect(unloaded.locator(".inspector .place")).to_have_count(1)
    expect(unloaded.locator(".map .cell")).to_have_count(2)
    expect(unloaded.locator("figcaption", has_text="The 1 row of this call")).to_be_visible()


# ---------------------------------------------------------------- the visitor's own race


def opened(page: Page, call: int = 3) -> None:
    """A race of the paper's calls, and one of them opened from its bar."""
    choose_grid(page)
    race(page)
    page.locator(f".chart .call[data-call='{call}'] .column").click(force=True)
    expect(page.locator(".map .cell").first).to_be_visible(timeout=TIMEOUT)


@pytest.mark.more
def test_a_call_of_ones_own_race_is_asked_for_once(app: Page) -> None:
    choose_grid(app)
    race(app)
    app.wait_for_timeout(500)
    questions = asked(app)
    token = app.locator("#text-space .tok.corrected").nth(3)
    call = token.get_attribute("data-call")
    token.click()
    expect(app.locator(".inspector")).to_have_attribute("data-call", call or "")
    expect(app.locator(".inspector .place[data-row]")).to_have_count(36, timeout=TIMEOUT)
    expect(app.locator(".map .cell")).to_have_count(36 * 37)
    assert len(questions) == 1
    app.click("#call-forth")
    expect(app.locator(".inspector")).not_to_have_attribute("data-waiting", "", timeout=TIMEOUT)
    app.click("#call-back")
    expect(app.locator(".inspector .place[data-row]")).to_have_count(36)
    assert len(questions) == 2

    # the model's own token is what the row before the rejected draft says; the draft is struck through
    fell = app.locator(".place.real.rejected .row-token")
    assert fell.evaluate("node => getComputedStyle(node).textDecorationLine") == "line-through"
    expect(app.locator(".group.chosen .place.taken")).to_have_count(5)
    chosen = app.locator(".group.chosen").get_attribute("data-group")
    stood = app.locator(".place.real.accepted").count()
    assert chosen == str(stood)


def test_the_map_says_why(app: Page) -> None:
    opened(app)
    why = app.locator("#why")
    for row, column, words in (
        ("mask 2 of group 1", "draft 1", "Mask 2 of group 1 sees draft 1: group 1 stands behind it."),
        (
            "mask 2 of group 1",
            "draft 2",
            "Mask 2 of group 1 does not see draft 2: group 1 assumes it was rejected or not reached.",
        ),
        (
            "draft 2",
            "mask 1 of group 0",
            "Draft 2 does not see mask 1 of group 0: no real row ever sees a mask.",
        ),
        ("mask 3 of group 2", "mask 3 of group 2", "Mask 3 of group 2 sees itself."),
    ):
        cell(app, row, column).hover()
        expect(why).to_have_text(words)
    seen = cell(app, "mask 2 of group 1", "draft 1")
    assert "seen" in (seen.get_attribute("class") or "")

    first = app.locator(".map .cell[tabindex='0']")
    first.focus()
    expect(why).to_contain_text("The newest token sees the ")
    app.keyboard.press("ArrowRight")
    expect(why).to_have_text("The newest token sees itself.")
    app.keyboard.press("ArrowDown")
    expect(why).to_have_text("Draft 1 sees the newest token: it stands before it, as in plain decoding.")
    expect(app.locator(".map .cell[tabindex='0']")).to_have_count(1)


@pytest.mark.more
def test_a_call_of_a_further_lane_opens_and_says_that_it_has_no_masks(app: Page) -> None:
    app.click("#more > .label-wrap")
    app.check("#lanes input[name=prompt-lookup]")
    race(app)
    token = app.locator("#text-prompt-lookup .tok.accepted").last
    call = token.get_attribute("data-call")
    token.click()
    title = app.locator(".inside-title")
    expect(title).to_contain_text(f"Inside call {call} of ")
    expect(title).to_contain_text("prompt lookup")
    expect(app.locator(".story")).to_contain_text(
        "copied from the text so far, by transformers", timeout=TIMEOUT
    )
    rows = app.locator(".inspector .place[data-row]").count()
    assert rows > 1
    assert app.locator(".inspector .place.mask, .inspector .place.pruned").count() == 0
    expect(app.locator(".map .cell")).to_have_count(rows * (rows + 1))
    expect(app.locator(".call-grid .look")).to_contain_text("There are no masks")
    expect(app.locator(".sight .look")).to_contain_text("The triangle of plain decoding")
    expect(app.locator("#text-prompt-lookup .tok.open").first).to_be_visible()


@pytest.mark.more
def test_hostile_tokens_stay_text_in_the_inspector(app: Page) -> None:
    opened(app, 2)
    seen = ""
    for call in range(3, 16):
        app.click("#call-forth")
        expect(app.locator(".inspector")).to_have_attribute("data-call", str(call))
        expect(app.locator(".inspector")).not_to_have_attribute("data-waiting", "", timeout=TIMEOUT)
        seen += app.locator(".inspector").text_content() or ""
    for piece in HOSTILE[:5]:
        assert piece in seen
    assert app.locator("#inspector img, #inspector script, #inspector b b").count() == 0


@pytest.mark.more
def test_a_new_race_closes_what_was_open(app: Page) -> None:
    opened(app)
    set_number(app, "budget", 32)
    race_before = app.locator(".arena").get_attribute("data-race") or ""
    app.click("#race")
    expect(app.locator(".arena")).not_to_have_attribute("data-race", race_before)
    expect(app.locator(".inspector")).to_be_hidden()
    expect(app.locator(".arena")).to_have_attribute("data-state", "done")
    app.locator("#text-space .tok").last.click()
    expect(app.locator(".map .cell").first).to_be_visible(timeout=TIMEOUT)


def test_the_server_opens_only_a_visitors_own_calls(tiny_model: Path, one_thread: None) -> None:
    from app import Handlers, Loader

    loader = Loader(str(tiny_model), "cpu", "float32")
    loader.start()
    assert loader.done.wait(60)
    handlers = Handlers(loader, deadline=60)
    (*_, (_, mine)) = handlers.race("def f():", 3, 16, 0, 1, 0, "grid", [])

    def ask(race: object, data: object) -> dict[str, Any]:
        return json.loads(handlers.inspect(race, SimpleNamespace(_data=data)))  # type: ignore[arg-type]

    good = {"race": mine.id, "lane": "space", "call": 2}
    assert len(ask(mine, good)["call"]["guesses"]) == 16
    assert ask(mine, {**good, "lane": "vanilla"})["call"]["lane"] == "vanilla"
    for whose, data in (
        (None, good),
        (mine, None),
        (mine, [1]),
        (mine, {**good, "race": "other"}),
        (mine, {**good, "lane": "generate"}),
        (mine, {**good, "lane": ["space"]}),
        (mine, {**good, "call": True}),
        (mine, {**good, "call": 1.5}),
        (mine, {**good, "call": 0}),
        (mine, {**good, "call": 10**9}),
    ):
        assert "error" in ask(whose, data), data


def test_the_inspector_fits_a_phone(browser: Any, empty_server: Server) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.goto(empty_server.url)
    page.locator("#text-space .tok").last.click()
    expect(page.locator(".map .cell").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()
