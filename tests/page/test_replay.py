"""Replay in a real browser: the recording, a finished race and a stopped one, by keyboard and by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from served import HOSTILE, Server, choose_grid, race, set_number, text, under_way

from space_core.views import recording

RECORDED: dict[str, Any] = json.loads(recording.read())
CALLS = {lane: tally["calls"] for lane, tally in RECORDED["frame"]["lanes"].items()}
TOKENS = {
    lane: [
        piece for call in RECORDED["frame"]["calls"] if call["lane"] == lane for piece, _ in call["tokens"]
    ]
    for lane in CALLS
}


def counter(page: Page, lane: str, name: str) -> float:
    return float(page.locator(f".lane-{lane} [data-counter={name}]").text_content() or "nan")


def picture(page: Page) -> dict[str, Any]:
    """All that a position decides."""
    return page.evaluate(
        """() => ({
          text: [...document.querySelectorAll(".lane-text")].map((box) => box.innerText),
          marks: [...document.querySelectorAll(".out .tok, .pending .tok")].map((t) => t.className),
          counters: [...document.querySelectorAll("[data-counter], .lane-clock")].map((c) => c.textContent),
          mean: document.querySelector(".chart .mean").getAttribute("points"),
          bars: document.querySelectorAll(".chart .call:not(.ahead)").length,
          flags: [...document.querySelectorAll(".lane-flag")].map((f) => f.textContent),
        })"""
    )


def by_call(page: Page) -> None:
    # The label is what is seen and clicked; a forced click on the radio could miss while the page settles.
    page.click("label:has(input[value=calls])")
    assert page.is_checked("input[value=calls]")


# ---------------------------------------------------------------- the recording


def test_a_step_is_laid_out_once_and_restyles_little(unloaded: Page) -> None:
    """A rule with `:has` on what holds the lanes, or a size asked for in the midst of writing, costs much more."""
    by_call(unloaded)
    unloaded.focus("#text-space")
    unloaded.keyboard.press("Home")
    session = unloaded.context.browser.new_browser_cdp_session()
    events: list[dict[str, Any]] = []
    ended: list[Any] = []
    session.on("Tracing.dataCollected", lambda told: events.extend(told["value"]))
    session.on("Tracing.tracingComplete", lambda told: ended.append(told))
    session.send(
        "Tracing.start",
        {"traceConfig": {"includedCategories": ["devtools.timeline"]}, "transferMode": "ReportEvents"},
    )
    steps = 20
    for _ in range(steps):
        unloaded.keyboard.press("ArrowRight")
        unloaded.evaluate("() => new Promise(requestAnimationFrame)")
    session.send("Tracing.end")
    while not ended:
        unloaded.wait_for_timeout(50)
    layouts, styles = (
        [event for event in events if event["name"] == name and event["ph"] == "X"]
        for name in ("Layout", "UpdateLayoutTree")
    )
    restyled = [event["args"]["elementCount"] for event in styles]
    assert steps <= len(layouts) <= 1.5 * steps
    assert sum(restyled) / steps < 80, restyled


def test_the_recording_stands_there_before_any_model(unloaded: Page) -> None:
    expect(unloaded.locator('.chip[data-state="loading"]')).to_be_visible()
    made = RECORDED["made"]
    expect(unloaded.locator("#source .tag")).to_have_text("recording")
    expect(unloaded.locator("#source .made")).to_contain_text(f"{made['model']} on {made['device']}, ")
    expect(unloaded.locator("#source .made")).to_contain_text(made["date"][:4])
    for lane in CALLS:
        assert text(unloaded, lane) == "".join(TOKENS[lane])
        assert counter(unloaded, lane, "calls") == CALLS[lane]
    expect(unloaded.locator(".headline")).to_have_text(RECORDED["frame"]["verdict"]["headline"])
    expect(unloaded.locator("#recorded-verdict")).to_have_text(RECORDED["frame"]["verdict"]["sentence"])
    expect(unloaded.locator("#verdict")).to_have_text("")  # nothing is read out for it
    expect(unloaded.locator(".chart .call")).to_have_count(CALLS["space"])
    whole = (
        "boxes => boxes.map(b => [getComputedStyle(b), b.clientHeight]).every(([s, height]) =>"
        " (height - parseFloat(s.paddingBottom)) % parseFloat(s.lineHeight) === 0)"
    )
    assert unloaded.locator(".lane-text").evaluate_all(whole), "at its end a lane shows whole lines"


def test_replay_by_keyboard_alone_and_without_a_request(unloaded: Page) -> None:
    asked: set[Any] = set()
    # The page's own: whether the model is there (at load and at each tick; behind it whether it holds
    # conversations), and what its address asks (at load).
    own = unloaded.evaluate(
        "() => { const all = window.gradio_config.dependencies;"
        " const own = all.filter(d => d.targets.some(t => ['load', 'tick'].includes(t[1]))).map(d => d.id);"
        " return [...own, ...all.filter(d => own.includes(d.trigger_after)).map(d => d.id)]; }"
    )
    assert len(own) == 3
    unloaded.on(
        "request",
        lambda request: (
            asked.add((request.post_data_json or {}).get("fn_index", request.url))
            if request.method == "POST"
            else None
        ),
    )
    end = picture(unloaded)
    unloaded.focus("#text-space")
    unloaded.keyboard.press("Home")
    assert unloaded.locator(".out .tok").count() == 0
    assert counter(unloaded, "space", "calls") == counter(unloaded, "vanilla", "calls") == 0
    expect(unloaded.locator(".chart .call.ahead")).to_have_count(CALLS["space"])
    expect(unloaded.locator(".headline")).to_be_hidden()

    for moved in range(1, 6):  # by the fair clock one call of one lane is over at each step
        unloaded.keyboard.press("ArrowRight")
        assert counter(unloaded, "space", "calls") + counter(unloaded, "vanilla", "calls") == moved
    unloaded.keyboard.press("ArrowLeft")
    assert counter(unloaded, "space", "calls") + counter(unloaded, "vanilla", "calls") == 4
    expect(unloaded.locator(".note")).to_contain_text("SPACE")

    unloaded.keyboard.press("Space")
    expect(unloaded.locator("#replay-play")).to_have_attribute("aria-label", "Pause (space)")
    unloaded.wait_for_function("document.querySelectorAll('#text-vanilla .tok').length > 12")
    unloaded.keyboard.press("Space")
    expect(unloaded.locator("#replay-play")).to_have_attribute("aria-label", "Play (space)")
    still = picture(unloaded)
    unloaded.wait_for_timeout(300)
    assert picture(unloaded) == still

    unloaded.keyboard.press("End")
    assert picture(unloaded) == end
    expect(unloaded.locator(".headline")).to_be_visible()
    assert asked <= set(own), "nothing but the page's own questions"


@pytest.mark.more
def test_slow_motion_goes_by_call_in_both_lanes(unloaded: Page) -> None:
    by_call(unloaded)
    unloaded.focus("#scrubber")
    unloaded.keyboard.press("Home")
    unloaded.keyboard.press("ArrowRight")
    unloaded.keyboard.press("ArrowRight")
    assert counter(unloaded, "space", "calls") == counter(unloaded, "vanilla", "calls") == 2
    unloaded.click("#replay-play")
    unloaded.wait_for_function(
        "document.querySelector('.lane-space [data-counter=calls]').textContent === '4'"
    )
    unloaded.click("#replay-play")
    assert counter(unloaded, "vanilla", "calls") == 4
    unloaded.click("#replay-forth")
    unloaded.click("#replay-forth")
    unloaded.click("#replay-back")
    assert counter(unloaded, "space", "calls") == counter(unloaded, "vanilla", "calls") == 5


def test_the_scrubber_goes_anywhere_and_any_way_to_a_place_shows_the_same(unloaded: Page) -> None:
    by_call(unloaded)
    scrubber = unloaded.locator("#scrubber")
    calls = max(CALLS.values())
    expect(scrubber).to_have_attribute("max", str(calls))
    seen = {}
    for at in (calls, 1, 7, 3, 9):
        scrubber.fill(str(at))
        seen[at] = picture(unloaded)
        assert counter(unloaded, "space", "calls") == min(at, CALLS["space"])
        tokens = int(counter(unloaded, "vanilla", "tokens"))
        assert text(unloaded, "vanilla") == "".join(TOKENS["vanilla"][:tokens])
    unloaded.focus("#text-vanilla")
    for at in (8, 7, 6, 5, 4, 3):
        unloaded.keyboard.press("ArrowLeft")
        if at in seen:
            assert picture(unloaded) == seen[at]
    expect(scrubber).to_have_attribute("aria-valuetext", unloaded.locator(".note").text_content() or "")
    unloaded.check("input[value=true]", force=True)
    assert counter(unloaded, "space", "calls") == 3, "another clock keeps SPACE's place"


def test_arrows_in_a_field_are_the_fields_own(unloaded: Page) -> None:
    unloaded.focus("#prompt textarea")
    before = picture(unloaded)
    unloaded.keyboard.press("ArrowLeft")
    unloaded.keyboard.press("Home")
    assert picture(unloaded) == before


def test_less_motion_goes_by_call(watched: Page, empty_server: Server) -> None:
    watched.emulate_media(reduced_motion="reduce")
    watched.goto(empty_server.url)
    expect(watched.locator("input[value=calls]")).to_be_checked()


@pytest.mark.more
def test_a_race_that_waits_for_the_model_leaves_the_recording_to_be_replayed(unloaded: Page) -> None:
    unloaded.click("#race")
    expect(unloaded.locator(".arena")).to_have_attribute("data-state", "waiting")
    expect(unloaded.locator(".note")).to_contain_text("Waiting for the model to load")
    unloaded.focus("#text-space")
    unloaded.keyboard.press("Home")
    unloaded.keyboard.press("ArrowRight")
    assert unloaded.locator(".out .tok").count() == 1
    unloaded.click("#stop")
    expect(unloaded.locator(".arena")).to_have_attribute("data-state", "stopped")


@pytest.fixture
def hostile(tiny_model: Path, one_thread: None) -> str:
    """A recording of the model that writes what would run if anybody took it for markup."""
    import space_core
    from space_core.settings import Settings
    from space_core.views.record import record

    model = space_core.load(str(tiny_model), device="cpu")
    told = record(model, "".join(HOSTILE), Settings(k=3, max_new_tokens=40, plan="grid"))
    told["made"]["model"] = told["made"]["processor"] = HOSTILE[2]
    return recording.encode(told)


@pytest.mark.more
def test_a_hostile_recording_is_text_and_nothing_else(
    watched: Page, empty_server: Server, hostile: str
) -> None:
    watched.add_init_script(
        f"const told = {hostile.strip()}; const parse = JSON.parse;"
        "JSON.parse = (...all) => { const value = parse(...all);"
        " return value?.format === 'space-race/1' ? told : value; };"
    )
    watched.goto(empty_server.url)
    expect(watched.locator("#source .made")).to_contain_text(HOSTILE[2])
    assert watched.locator("#text-space .prompt-text").text_content() == "".join(HOSTILE)
    for piece in HOSTILE:
        assert piece in text(watched, "space")
    watched.click("#text-space .tok.accepted >> nth=1")
    expect(watched.locator(".inspector .cell").first).to_be_visible()
    shown = ""
    for _ in range(12):
        watched.click("#call-forth")
        shown += watched.locator(".inspector").text_content() or ""
        for token in watched.locator(".inspector code, .inspector .row-token").all()[:20]:
            token.dispatch_event("pointerover")
    for piece in HOSTILE[:5]:
        assert piece in shown
    assert watched.locator("#arena img, #arena script, #inspector img, #inspector script").count() == 0


# ---------------------------------------------------------------- the visitor's own race


@pytest.mark.more
def test_a_live_race_resets_the_controls_and_they_wake_at_its_end(app: Page) -> None:
    expect(app.locator("#replay-play")).to_be_enabled()
    choose_grid(app)  # a race that lasts: the tiny model's planned one is over before a busy machine looks
    set_number(app, "budget", 320)
    app.click("#race")
    under_way(app, 8)
    expect(app.locator("#source .tag")).to_have_text("live")
    for control in ("#replay-play", "#replay-back", "#replay-forth", "#scrubber"):
        expect(app.locator(control)).to_be_disabled()
    before = counter(app, "vanilla", "calls")
    app.focus("#text-space")
    app.keyboard.press("Home")
    assert counter(app, "vanilla", "calls") >= before, "keys do nothing while it runs"
    expect(app.locator(".arena")).to_have_attribute("data-state", "done", timeout=30_000)
    expect(app.locator("#source .tag")).to_have_text("your race")
    expect(app.locator("#replay-play")).to_be_enabled()

    end = picture(app)
    app.keyboard.press("Home")
    assert app.locator(".out .tok").count() == 0
    app.keyboard.press("ArrowRight")
    assert app.locator(".out .tok").count() == 1
    app.keyboard.press("End")
    assert picture(app) == end
    expect(app.locator("#badge")).to_have_text("outputs identical")


@pytest.mark.more
def test_a_stopped_race_can_be_replayed(app: Page) -> None:
    choose_grid(app)
    set_number(app, "k", 8)  # slow calls: the race is to last until the click
    set_number(app, "budget", 512)
    app.click("#race")
    under_way(app, 8)
    app.click("#stop")
    expect(app.locator(".arena")).to_have_attribute("data-state", "stopped")
    expect(app.locator("#replay-play")).to_be_enabled()
    end = picture(app)
    app.focus("#text-space")
    app.keyboard.press("Home")
    by_call(app)
    app.focus("#text-space")
    app.keyboard.press("ArrowRight")
    assert app.locator("#text-space .pending .tok").count() == 8, "its first call's guesses wait again"
    app.keyboard.press("End")
    assert picture(app) == end


@pytest.mark.more
def test_the_same_race_again_is_painted_by_the_same_code(app: Page) -> None:
    race(app)
    first = app.locator(".arena").get_attribute("data-race")
    assert first
    app.focus("#text-space")
    app.keyboard.press("Home")
    race_again = app.locator(".arena")
    app.click("#race")
    expect(race_again).not_to_have_attribute("data-race", first)
    expect(race_again).to_have_attribute("data-state", "done")
    assert app.locator("#text-vanilla .tok").count() == 64
