"""Links, files and the offline replay in a real browser: there and back, and under attack."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlparse

import pytest
from playwright.sync_api import Page, expect
from served import (
    BUDGET,
    HOSTILE,
    Server,
    choose_grid,
    illustrated,
    inside,
    prompt,
    race,
    set_number,
    text,
)
from test_race import HOSTILE_PROMPT
from test_replay import by_call, counter, picture
from tiny import some


def share(page: Page) -> None:
    page.click("#share")
    expect(page.locator(".share")).to_be_visible()


def save(page: Page, what: str, folder: Path) -> Path:
    with page.expect_download() as download:
        page.click(f"#save-{what}")
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def open_trace(page: Page, path: Path) -> None:
    share(page)
    page.set_input_files("#open-trace", path)


def verdict(page: Page) -> list[str | None]:
    return [page.locator(name).text_content() for name in (".headline", "#badge", "#verdict")]


# ---------------------------------------------------------------- link


def test_a_link_fills_the_fields_and_its_race_stops_at_the_step(
    app: Page, server: Server, watched: Page
) -> None:
    prompt(app, HOSTILE_PROMPT)
    choose_grid(app)
    set_number(app, "k", 3)
    set_number(app, "seed", 7)
    app.check("#lanes input[name=prompt-lookup]")
    race(app)
    by_call(app)
    app.focus("#text-space")
    app.keyboard.press("Home")
    for _ in range(5):
        app.keyboard.press("ArrowRight")
    seen = picture(app)
    share(app)
    address = app.input_value("#share-link")
    assert parse_qs(urlparse(address).query)["step"] == ["5"]

    app.goto(address)
    expect(app.locator("#notice")).to_contain_text("Filled in from a link: press Race")
    expect(app.locator(".arena")).to_have_attribute("data-state", "recorded")  # nothing ran by itself
    assert app.input_value("#prompt textarea") == HOSTILE_PROMPT
    for field, value in (("k", "3"), ("budget", str(BUDGET))):
        assert app.input_value(f"#{field} input[type=number]") == value
    assert app.input_value("#seed input") == "7"
    expect(app.locator('.chip[data-state="ready"]')).to_be_visible()
    race(app)
    expect(app.locator("#notice")).to_be_hidden()
    assert counter(app, "space", "calls") == 5
    by_call(app)
    again = picture(app)
    assert [again[name] for name in ("text", "marks", "bars")] == [
        seen[name] for name in ("text", "marks", "bars")
    ]


@pytest.mark.parametrize("piece", some(HOSTILE[:5], HOSTILE[1:3]))
def test_a_hostile_link_runs_nothing(watched: Page, empty_server: Server, piece: str) -> None:
    names = ("prompt", "model", "k", "plan", "lanes", "seed", "__theme")
    watched.goto(f"{empty_server.url}?{urlencode({'top_p': '0.5', **dict.fromkeys(names, piece)})}")
    expect(watched.locator("#notice")).to_be_visible()
    assert watched.locator("#arena img, #arena script, #prompt img, #notice :is(img, script)").count() == 0
    assert watched.input_value("#prompt textarea") == piece
    filled, *left_out = (watched.locator("#notice").text_content() or "").split("The link’s ")
    assert f"It was made with {piece}" in filled
    for name in ("k", "plan"):
        assert any(part.startswith(f"{name} was left out: ") and piece[:20] in part for part in left_out)
    assert watched.evaluate("window.pwned") is None


def test_a_link_with_a_wrong_part_keeps_the_rest(watched: Page, empty_server: Server) -> None:
    watched.goto(f"{empty_server.url}?k=99&seed=5&prompt={quote('x' * 3)}&nonsense=1")
    expect(watched.locator("#notice")).to_contain_text("The link’s k was left out: k must lie in 1..16.")
    assert watched.input_value("#seed input") == "5"
    assert watched.input_value("#k input[type=number]") == "5"
    assert watched.input_value("#prompt textarea") == "xxx"


def test_an_address_without_a_link_shows_no_notice(unloaded: Page) -> None:
    expect(unloaded.locator("#notice")).to_be_hidden()


@pytest.mark.more
def test_a_prompt_too_long_for_a_link_is_told_and_nothing_is_cut(app: Page) -> None:
    prompt(app, "é" * 900 + "x" * 2000)
    share(app)
    expect(app.locator(".share-link")).to_contain_text("too long for a link")
    expect(app.locator("#share-link")).to_be_hidden()


# ---------------------------------------------------------------- file


def test_export_and_import_show_the_same_picture(
    app: Page, server: Server, empty_server: Server, tmp_path: Path
) -> None:
    prompt(app, HOSTILE_PROMPT)
    app.click("#more > .label-wrap")
    app.check("#lanes input[name=prompt-lookup]")
    race(app)
    by_call(app)
    end, told = picture(app), verdict(app)
    app.focus("#text-space")
    for _ in range(4):
        app.keyboard.press("ArrowLeft")
    middle = picture(app)
    share(app)
    path = save(app, "trace", tmp_path)

    app.goto(empty_server.url)  # no model there, and another page: all comes from the file
    open_trace(app, path)
    expect(app.locator("#source .tag")).to_have_text("file")
    by_call(app)
    assert picture(app) == end
    assert verdict(app) == told
    app.focus("#text-space")
    for _ in range(4):
        app.keyboard.press("ArrowLeft")
    assert picture(app) == middle
    illustrated(app)
    assert app.locator("#arena img, #arena script, #arena b").count() == 0
    share(app)
    again = save(app, "trace", tmp_path / "again")
    assert json.loads(again.read_text()) == json.loads(path.read_text())


@pytest.mark.more
def test_a_call_of_an_imported_race_is_refused_with_a_sentence(app: Page, tmp_path: Path) -> None:
    race(app)
    share(app)
    path = save(app, "trace", tmp_path)
    open_trace(app, path)
    expect(app.locator("#source .tag")).to_have_text("file")
    app.locator("#text-space .tok").last.click()
    expect(app.locator(".inspector .story")).to_contain_text("this race came from a file")
    race(app)
    expect(app.locator("#source .tag")).to_have_text("your race")


@pytest.mark.more
def test_a_trace_of_one_lane_has_no_figures_and_takes_those_before_it_away(app: Page, tmp_path: Path) -> None:
    race(app)
    illustrated(app)
    share(app)
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps(json.loads(save(app, "trace", tmp_path).read_text())["traces"][0]))
    open_trace(app, bare)
    expect(app.locator("#source .tag")).to_have_text("file")
    expect(app.locator("#figures > .block")).to_have_count(0)
    expect(app.locator("#figures")).to_be_hidden()
    race(app)
    illustrated(app)


def hostile_file(path: Path) -> Path:
    """A race whose every text would run, were it markup or a template."""
    step = {"emitted": [1], "accepted": 0, "drafts": [], "rows": 1, "seconds": 0.01}
    drafting = {**step, "groups": [1], "new_drafts": [2], "new_draft_probs": [0.5]}
    ends = {**step, "stop": "eos"}
    traces = [
        {
            "format": "space-trace/1",
            "model": HOSTILE[2],
            "method": lane,
            "k": 1,
            "dtype": HOSTILE[0],
            "device": HOSTILE[3],
            "prompt_ids": [1],
            "steps": [drafting] * len(HOSTILE) + [ends],
        }
        for lane in ("space", "vanilla")
    ]
    calls = [{"tokens": [piece], "pending": [piece]} for piece in HOSTILE] + [{"tokens": ["."]}]
    pieces = {lane: {"calls": calls, "rest": HOSTILE[1]} for lane in ("space", "vanilla")}
    told = {"format": "space-shared/1", "prompt": HOSTILE_PROMPT, "traces": traces, "pieces": pieces}
    path.write_text(json.dumps(told))
    return path


def test_a_hostile_file_is_text_and_nothing_else(unloaded: Page, tmp_path: Path) -> None:
    open_trace(unloaded, hostile_file(tmp_path / "hostile.json"))
    expect(unloaded.locator("#source .made")).to_contain_text(HOSTILE[2])
    assert text(unloaded, "space") == "".join(HOSTILE) + "." + HOSTILE[1]
    by_call(unloaded)
    unloaded.focus("#text-space")
    for _ in range(len(HOSTILE)):
        unloaded.keyboard.press("ArrowLeft")
        for token in unloaded.locator("#text-space .tok").all()[-2:]:
            token.dispatch_event("pointerover")
    share(unloaded)
    expect(unloaded.locator("#code-python")).to_contain_text("window.pwned")
    expect(unloaded.locator(".share-note")).to_contain_text(HOSTILE[2])
    assert unloaded.locator("#arena img, #arena script, #arena b, .share script, .share pre *").count() == 0
    card = ET.fromstring(save(unloaded, "svg", tmp_path).read_text())
    assert {node.tag.partition("}")[2] for node in card.iter()} == {"svg", "title", "rect", "text"}
    assert save(unloaded, "png", tmp_path).read_bytes().startswith(b"\x89PNG")


BAD = [
    (b"", "The file is no JSON"),
    (b"not json", "The file is no JSON"),
    (b"\xff\xfe\x00", "The file is no JSON"),
    (b"[" * 200_000, "The file is no JSON"),
    (b'{"format": "<img src=x onerror=window.pwned=1>"}', "its format must be"),
    (b'{"format": "space-shared/1", "traces": 7}', "traces must be a list"),
    (b'{"format": "space-trace/1", "steps": []}', "trace: k must be a whole number"),
    (b"x" * 1_000_001, "The file has 1,000,001 bytes, but at most 1,000,000 are read"),
]


def test_a_bad_file_gets_a_sentence_at_its_field_and_the_page_lives_on(
    unloaded: Page, empty_server: Server, tmp_path: Path
) -> None:
    before = picture(unloaded)
    share(unloaded)
    for number, (content, words) in enumerate(BAD):
        path = tmp_path / f"{number}.json"
        path.write_bytes(content)
        unloaded.set_input_files("#open-trace", path)
        expect(unloaded.locator("#open-error")).to_contain_text(words)
    expect(unloaded.locator("#open-trace")).to_have_attribute("aria-invalid", "true")
    assert picture(unloaded) == before
    unloaded.set_input_files("#open-trace", hostile_file(tmp_path / "good.json"))
    expect(unloaded.locator("#source .tag")).to_have_text("file")
    assert "Traceback" not in empty_server.log.read_text()


def test_the_server_reads_no_file_over_its_size_whatever_the_page_says(
    app: Page, empty_server: Server, tmp_path: Path
) -> None:
    from app import Handlers, Loader

    class Event:
        def __init__(self, data: Any) -> None:
            self._data = data

    handlers = Handlers(Loader("nowhere", "cpu", "float32"), 1)
    for data in (None, {}, {"text": 7}, {"text": "x" * 1_000_001}, ["text"], {"text": "\ud800"}):
        frame, _, told = handlers.open_trace(Event(data))  # type: ignore[arg-type]
        assert "error" in json.loads(told)
        assert not isinstance(frame, str)


# ---------------------------------------------------------------- offline


def test_the_replay_opens_from_a_disk_without_a_network(app: Page, tmp_path: Path) -> None:
    prompt(app, HOSTILE_PROMPT)
    race(app)
    by_call(app)
    end, told = picture(app), verdict(app)
    app.focus("#text-space")
    for _ in range(6):
        app.keyboard.press("ArrowLeft")
    middle = picture(app)
    share(app)
    path = save(app, "replay", tmp_path)

    asked: list[str] = []
    app.context.set_offline(True)
    try:
        app.on("request", lambda request: asked.append(request.url))
        errors: list[str] = []
        app.on("console", lambda message: message.type == "error" and errors.append(message.text))
        app.goto(path.as_uri())
        by_call(app)
        app.keyboard.press("End")
        app.focus("#text-space")
        app.keyboard.press("End")
        assert picture(app) == end
        assert verdict(app) == told
        for _ in range(6):
            app.keyboard.press("ArrowLeft")
        assert picture(app) == middle
        assert asked == [path.as_uri()]
        assert errors == []
        assert app.locator("main img, main script").count() == 0
        app.set_viewport_size({"width": 390, "height": 844})
        app.wait_for_function("document.documentElement.scrollWidth <= 390", timeout=5000)  # once it settled
    finally:
        app.context.set_offline(False)


def test_before_a_race_only_link_and_code_are_there(app: Page) -> None:
    share(app)
    expect(app.locator(".share-note")).to_contain_text("Race first")
    for what in ("trace", "replay", "svg", "png"):
        expect(app.locator(f"#save-{what}")).to_be_disabled()
    expect(app.locator("#code-command")).to_contain_text("python -m space_core generate")
    app.keyboard.press("Escape")
    expect(app.locator(".share")).to_be_hidden()
    expect(app.locator("#share")).to_be_focused()
    app.keyboard.press("Enter")
    expect(app.locator(".share")).to_be_visible()


@pytest.mark.more
def test_share_fits_a_phone(app: Page) -> None:
    app.set_viewport_size({"width": 390, "height": 844})
    race(app)
    share(app)
    expect(app.locator("#card")).to_be_visible()
    inside(app, "#share", "#race", "#save-png", "#share-link-copy")
