"""The race page in a real browser: to its end, stopped, under attack, with bad input."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
from conftest import serve
from playwright.sync_api import Page, expect
from served import (
    BUDGET,
    HOSTILE,
    TIMEOUT,
    Server,
    choose_grid,
    illustrated,
    ink,
    prompt,
    race,
    set_number,
    text,
    under_way,
)
from tiny import some

import space_core
from space_core.settings import Settings

HOSTILE_PROMPT = "".join(
    (
        "def f():\n    ${alert(1)} ` ${window.pwned=1} `\n",
        "    <img src=x onerror=alert(1)> </script><script>window.pwned=1</script>\n",
        "    C:\\users\\new {{value}} {{{value}}} \\${1} &lt;b&gt; \\\n",
    )
)


# ---------------------------------------------------------------- a race to its end


def test_few_components_are_told_of_each_message(server: Server) -> None:
    """Gradio 6.31 copies all of a component that was ever to show progress at each message of a race."""
    with urllib.request.urlopen(f"{server.url}config", timeout=30) as answer:
        config = json.load(answer)
    kinds = {component["id"]: component["props"].get("elem_id") for component in config["components"]}
    shown = {event["api_name"]: event["show_progress_on"] for event in config["dependencies"]}
    assert [kinds[target] for target in shown["page_race"]] == ["arena"]
    quick = [event for event in config["dependencies"] if event["backend_fn"] and event["queue"] is False]
    assert len(quick) > 10
    others = [event["api_name"] for event in quick if event["show_progress_on"] != [] and event["outputs"]]
    assert others == ["load_example"], "Gradio's own, of the example chips"


def test_race_to_its_end(app: Page, tiny_model: Path, one_thread: None) -> None:
    prompt(app, "def f(x):\n")
    choose_grid(app)
    race(app)

    model = space_core.load(str(tiny_model), device="cpu", dtype="float32")
    ids = model.encode("def f(x):\n")
    settings = Settings(k=5, max_new_tokens=BUDGET, plan="grid")
    plain = [token for step in space_core.vanilla(model, ids, settings) for token in step.emitted]
    steps = list(space_core.space(model, ids, settings))

    assert text(app, "vanilla") == model.decode(plain)
    assert text(app, "space") == text(app, "vanilla")
    assert app.locator("#text-space .prompt-text").text_content() == "def f(x):\n"
    expect(app.locator("#badge")).to_have_text("outputs identical")
    expect(app.locator("#verdict")).to_contain_text(f"SPACE: {len(steps)} calls")
    expect(app.locator("#verdict")).to_contain_text(f"vanilla: {BUDGET} calls")
    expect(app.locator(".chart .call")).to_have_count(len(steps))
    expect(app.locator(".lane-space [data-counter=calls]")).to_have_text(str(len(steps)))
    expect(app.locator(".lane-vanilla [data-counter=tokens]")).to_have_text(str(BUDGET))

    origins = [str(origin) for step in steps for origin in step.origins]
    for mark in ("accepted", "corrected", "own"):
        expect(app.locator(f"#text-space .tok.{mark}")).to_have_count(origins.count(mark))
    assert app.locator("#text-space .pending .tok").count() == 0

    accepted = app.locator("#text-space .tok.accepted").last
    accepted.hover()
    assert "guess 1 of 5" in (accepted.get_attribute("title") or "")

    plotly = "performance.getEntriesByType('resource').some(entry => entry.name.includes('Plotly'))"
    assert not app.evaluate(plotly), "the browser reads plotly where its figures are in sight"
    illustrated(app)
    assert app.evaluate(plotly)
    app.evaluate("scrollTo(0, 0)")
    set_number(app, "budget", 32)
    race(app)
    app.wait_for_function(  # from then on they follow each race
        "most => document.querySelector('#clock-figure .js-plotly-plot')"
        ".data.every(line => Math.max(...line.y) <= most)",
        arg=32,
    )


@pytest.mark.more
def test_a_further_lane_races_to_its_end(app: Page) -> None:
    expect(app.locator(".lane")).to_have_count(2)
    app.click("#more > .label-wrap")
    expect(app.locator("#lanes input")).to_have_count(2)  # no draft model, no assisted lane
    app.check("#lanes input[name=prompt-lookup]")
    race(app)
    expect(app.locator(".lane")).to_have_count(3)
    assert text(app, "prompt-lookup") == text(app, "vanilla") == text(app, "space")
    calls = app.locator(".lane-prompt-lookup [data-counter=calls]").text_content()
    assert 0 < int(calls or 0) < BUDGET, "the cycle of the tiny model can be copied"
    expect(app.locator("#verdict")).to_contain_text(f"outputs identical; prompt lookup: {calls} calls, ")
    expect(app.locator("#badge")).to_have_text("outputs identical")
    accepted = app.locator("#text-prompt-lookup .tok.accepted").last
    accepted.hover()
    assert "of 10 · copied from the text so far · accepted" in (accepted.get_attribute("title") or "")
    assert app.locator("#arena img, #arena script, #arena b").count() == 0
    illustrated(app)
    expect(app.locator("#clock-figure .legendtext")).to_have_text(["vanilla", "prompt lookup", "SPACE"])

    app.uncheck("#lanes input[name=prompt-lookup]")
    race_again = app.locator(".arena").get_attribute("data-race")
    app.click("#race")
    expect(app.locator(".arena")).not_to_have_attribute("data-race", race_again or "", timeout=TIMEOUT)
    expect(app.locator(".lane")).to_have_count(2)


def test_the_assisted_lane_needs_a_draft_model(tiny_model: Path, one_thread: None) -> None:
    from app import Handlers, Loader

    loader = Loader(str(tiny_model), "cpu", "float32", str(tiny_model))
    loader.start()
    assert loader.done.wait(60)
    assert loader.lanes == ("generate", "prompt-lookup", "assisted")
    asked = ["assisted", "prompt-lookup", "assisted", "generate"]
    told = list(Handlers(loader, deadline=60).race("def f():", 5, 24, 0, 1, 0, "auto", asked))
    last = json.loads(told[-1][0])
    assert list(last["lanes"]) == ["space", "vanilla", "generate", "prompt-lookup", "assisted"]
    assert {tally["tokens"] for tally in last["lanes"].values()} == {24}
    assert last["lanes"]["assisted"]["calls"] < 24
    assert last["verdict"]["badge"] == "outputs identical"
    assert "differs" not in last["verdict"]["sentence"]


def test_a_closed_race_of_further_lanes_leaves_no_thread(tiny_model: Path, one_thread: None) -> None:
    from app import Handlers, Loader

    loader = Loader(str(tiny_model), "cpu", "float32")
    loader.start()
    assert loader.done.wait(60)
    before = set(threading.enumerate())
    told = Handlers(loader, 60).race("def f():", 5, 512, 0, 1, 0, "auto", ["generate", "prompt-lookup"])
    for frame, _ in told:
        if all(tally["calls"] for tally in json.loads(frame)["lanes"].values()):
            break
    assert set(threading.enumerate()) > before
    told.close()
    assert set(threading.enumerate()) == before


@pytest.mark.more
def test_every_bonus_token_is_marked_where_one_guess_stands(app: Page) -> None:
    set_number(app, "k", 1)
    choose_grid(app)  # planned calls check a draft where their measured time allows it
    race(app)
    assert app.locator("#text-space .tok.bonus").count() > 0
    assert text(app, "space") == text(app, "vanilla")


@pytest.mark.more
def test_sampling_says_that_the_texts_may_differ(app: Page) -> None:
    set_number(app, "temperature", 1)
    race(app)
    expect(app.locator("#badge")).to_have_text("same distribution")
    expect(app.locator("#verdict")).to_contain_text("differ by chance")


def test_model_text_is_spoken_once_and_only_at_the_end(app: Page) -> None:
    for lane in ("space", "vanilla"):
        box = app.locator(f"#text-{lane}")
        expect(box).to_have_attribute("role", "log")
        expect(box).to_have_attribute("aria-live", "off")
    spoken = app.locator("#verdict")
    expect(spoken).to_have_attribute("aria-live", "polite")
    expect(spoken).to_have_text("")
    race(app)
    expect(spoken).to_contain_text("tokens per call")


LOSE_ONE_DELTA = """
const parse = JSON.parse;
JSON.parse = (text, ...rest) => {
  const frame = parse(text, ...rest);
  if (frame?.format !== "space-frames/1") return frame;
  if (frame.kind === "delta" && frame.calls.length && !window.lost) {
    window.lost = frame.calls.length;
    frame.calls = [];
  }
  if (frame.kind === "snapshot" && frame.state === "running" && frame.calls.length) window.healed = true;
  return frame;
};
"""


@pytest.mark.more
def test_a_lost_delta_is_sent_again_in_mid_race(app: Page) -> None:
    app.evaluate(LOSE_ONE_DELTA)
    choose_grid(app)  # the paper's calls take longer: time to be in the middle
    set_number(app, "k", 8)
    set_number(app, "budget", 512)
    app.click("#race")
    app.wait_for_function("window.healed", timeout=TIMEOUT)
    assert app.evaluate("window.lost") > 0
    under_way(app, 40)
    app.click("#stop")
    expect(app.locator("#badge")).to_have_text("identical so far")
    for lane in ("space", "vanilla"):
        calls = app.locator(f"#text-{lane} .out .tok").evaluate_all("all => all.map(t => +t.dataset.call)")
        assert sorted(set(calls)) == list(range(1, max(calls) + 1))
        assert calls == sorted(calls)


# ---------------------------------------------------------------- stop


def test_stop_in_mid_race_keeps_the_lanes_and_the_next_race_runs(app: Page) -> None:
    choose_grid(app)  # the paper's calls take longer: time to be in the middle
    set_number(app, "k", 8)
    set_number(app, "budget", 512)
    resting = ink(app, "#stop")
    app.click("#race")
    under_way(app, 8)
    seen = ink(app, ".lane-clock")
    assert seen != resting
    expect(app.locator("#stop"), "it asks to be seen").to_have_css("color", seen)  # Gradio fades it in
    app.click("#stop")
    expect(app.locator(".arena")).to_have_attribute("data-state", "stopped")
    expect(app.locator("#stop")).to_have_css("color", resting)
    expect(app.locator("#verdict")).to_contain_text("Stopped, SPACE at ")
    expect(app.locator("#badge")).to_have_text("identical so far")
    kept = app.locator("#text-vanilla .tok").count()
    assert 8 < kept < 512
    app.wait_for_timeout(500)
    assert app.locator("#text-vanilla .tok").count() == kept, "a stopped lane still grows"

    set_number(app, "budget", 32)
    race(app)
    expect(app.locator("#badge")).to_have_text("outputs identical")
    assert app.locator("#text-vanilla .tok").count() == 32


def test_stop_before_any_race_does_no_harm(app: Page) -> None:
    app.click("#stop")
    race(app)
    expect(app.locator("#badge")).to_have_text("outputs identical")


def test_a_race_ends_at_its_deadline(tiny_model: Path, one_thread: None) -> None:
    from app import Handlers, Loader

    loader = Loader(str(tiny_model), "cpu", "float32")
    loader.start()
    assert loader.done.wait(60)
    told = list(Handlers(loader, deadline=0.05).race("def f():", 5, 512, 0, 1, 0, "auto", []))
    last = json.loads(told[-1][0])
    assert last["state"] == "deadline"
    assert last["verdict"]["sentence"].startswith("Stopped at the deadline, SPACE at ")


def test_a_closed_tab_frees_the_device(app: Page, page: Page, server: Server) -> None:
    other = page.context.new_page()
    other.goto(server.url)
    set_number(other, "budget", 512)
    other.click("#race")
    under_way(other, 8)
    other.close()
    set_number(app, "budget", 16)
    race(app)
    expect(app.locator("#badge")).to_have_text("outputs identical")


# ---------------------------------------------------------------- hostile text


def test_hostile_prompt_comes_back_as_text(app: Page) -> None:
    prompt(app, HOSTILE_PROMPT)
    race(app)
    for lane in ("space", "vanilla"):
        assert app.locator(f"#text-{lane} .prompt-text").text_content() == HOSTILE_PROMPT
    assert app.locator("#arena img, #arena script").count() == 0


@pytest.mark.more
def test_hostile_model_output_is_text_and_nothing_else(app: Page) -> None:
    race(app)
    shown = text(app, "space")
    for piece in HOSTILE:
        assert piece in shown
    assert app.locator("#text-space .tok .break").count() > 0, "marked line breaks are shown"
    assert app.locator("#arena img, #arena script, #arena b").count() == 0
    for token in app.locator("#text-space .tok").all()[:24]:
        token.dispatch_event("pointerover")
    assert app.locator("#arena img, #arena script, #arena b").count() == 0


# ---------------------------------------------------------------- bad input


def test_a_bad_field_gets_its_message_and_the_page_lives_on(app: Page) -> None:
    prompt(app, "   ")
    app.click("#race")
    expect(app.locator("#prompt")).to_contain_text("the prompt is empty")
    prompt(app, "x " * 3000)
    app.click("#race")
    expect(app.locator("#prompt")).to_contain_text("the model's context holds 1024")
    prompt(app, "def f():")
    set_number(app, "seed", -1)
    app.click("#race")
    expect(app.locator("#seed")).to_contain_text("seed must lie in 0..")
    set_number(app, "seed", 7)
    race(app)
    expect(app.locator("#badge")).to_have_text("outputs identical")


GOOD = ["def f():", 5, 16, 0, 1, 0, "auto", ["generate"], True, None, None]  # the last two are the server's
BAD: list[tuple[int, Any, str]] = [
    (0, "", "empty"),
    (0, None, "must be text"),
    (0, 17, "must be text"),
    (0, "x" * 1_000_000, "characters"),
    (0, "a\0b", "no text"),
    (1, 0, "k must lie in 1..16"),
    (1, True, "k must be a whole number"),
    (1, "5", "k must be a whole number"),
    (1, 2.5, "k must be a whole number"),
    (2, 1e308, "max_new_tokens must lie in"),
    (2, -1, "max_new_tokens must lie in"),
    (2, [16], "max_new_tokens must be a whole number"),
    (3, float("nan"), "temperature must be a finite number"),
    (3, float("inf"), "temperature must be a finite number"),
    (3, "hot", "temperature must be a number"),
    (3, -0.5, "temperature must lie in"),
    (4, 0, "top_p must lie in"),
    (4, {"a": 1}, "top_p must be a number"),
    (5, 2**70, "seed must lie in"),
    (5, None, "seed must be a whole number"),
    (6, "everything", "plan must be auto or grid"),
    (6, 1, "plan must be auto or grid"),
    (7, None, "lanes must be a list of names"),
    (7, "generate", "lanes must be a list of names"),
    (7, [["generate"]], "lanes must be a list of names"),
    (7, {"generate": True}, "lanes must be a list of names"),
    (7, ["generate", "<b>"], "known are generate, prompt-lookup"),
    (7, ["space"], "unknown lane"),
    (7, ["assisted"], "unknown lane"),
    (8, "yes", "chat must be true or false"),
    (8, None, "chat must be true or false"),
]


def post(server: Server, data: list[Any], session: str) -> dict[str, Any]:
    """What the server answers to a race posted without the page; an error body is an answer too."""
    with urllib.request.urlopen(server.url + "config", timeout=30) as response:
        config = json.load(response)
    fn = next(d["id"] for d in config["dependencies"] if d["api_name"] == "page_race")
    body = json.dumps({"data": data, "fn_index": fn, "session_hash": session, "trigger_id": None})
    request = urllib.request.Request(
        server.url + "gradio_api/queue/join", body.encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        return json.loads(error.read())


def last_frame(server: Server, session: str) -> dict[str, Any]:
    """Read a posted race's stream to its end."""
    frame: dict[str, Any] = {}
    url = f"{server.url}gradio_api/queue/data?session_hash={session}"
    with urllib.request.urlopen(url, timeout=60) as stream:
        for line in stream:
            if not line.startswith(b"data:"):
                continue
            message = json.loads(line[5:])
            if message["msg"] == "process_completed":
                assert message["success"], message
                frame = json.loads(message["output"]["data"][0])
            if message["msg"] == "close_stream":
                break
    return frame


@pytest.mark.more
def test_raw_posts_are_judged_again_and_the_server_lives_on(app: Page, server: Server) -> None:
    for number, (field, value, words) in enumerate(BAD):
        data = [value if i == field else good for i, good in enumerate(GOOD)]
        answer = json.dumps(post(server, data, f"bad{number}"))
        assert words in answer, (field, value, answer[:300])
    assert "event_id" in post(server, GOOD, "good")
    frame = last_frame(server, "good")
    assert frame["state"] == "done"
    assert frame["verdict"]["identical"] is True
    race(app)
    assert "Traceback" not in server.log.read_text()


@pytest.mark.more
def test_missing_arguments_are_an_error_and_no_crash(app: Page, server: Server) -> None:
    post(server, [], "none")
    post(server, GOOD * 3, "many")
    race(app)


# ---------------------------------------------------------------- no other host, every screen


@pytest.mark.more
def test_no_request_leaves_for_another_host(page: Page, server: Server) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server.url)
    expect(page.locator('.chip[data-state="ready"]')).to_be_visible(timeout=60_000)
    race(page)
    illustrated(page)
    hosts = {urlparse(url).hostname for url in asked if urlparse(url).scheme not in ("data", "blob")}
    assert hosts == {"127.0.0.1"}


@pytest.mark.parametrize(
    "scheme, width, height",
    some([("dark", 390, 844), ("light", 1280, 800)], [("dark", 390, 844)]),
)
def test_nothing_overflows(browser: Any, server: Server, scheme: str, width: int, height: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.goto(server.url)
    expect(page.locator('.chip[data-state="ready"]')).to_be_visible(timeout=60_000)
    if width >= 1280:
        assert page.evaluate("document.documentElement.scrollHeight") <= height, "first screen scrolls"
    set_number(page, "budget", 64)
    race(page)
    illustrated(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.evaluate("getComputedStyle(document.querySelector('.lane')).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    context.close()


def test_reduced_motion_is_respected(page: Page, empty_server: Server) -> None:
    """The one thing that moves by itself is the dot of a model that loads."""
    moves = "getComputedStyle(document.querySelector('.chip .dot')).animationName"
    for motion, name in (("no-preference", "breathe"), ("reduce", "none")):
        page.emulate_media(reduced_motion=motion)
        page.goto(empty_server.url)
        page.wait_for_selector('.chip[data-state="loading"] .dot', state="attached")
        assert page.evaluate(moves) == name


@pytest.mark.more
def test_the_page_is_served_soon(tmp_path: Path) -> None:
    for server in serve(["app.py", "--device", "cpu"], tmp_path / "log.txt", alone=True):
        assert server.seconds_to_200 < 15


@pytest.mark.more
def test_a_model_without_a_template_offers_no_conversation(app: Page) -> None:
    expect(app.locator("#talk")).to_be_hidden()
