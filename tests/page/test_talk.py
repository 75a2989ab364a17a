"""A conversation on the page, with a tiny model that has a chat template."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from chatting import chat_folder
from conftest import serve
from playwright.sync_api import Page, expect
from served import TIMEOUT, Server, inside, prompt, race, set_number, text


@pytest.fixture(scope="module")
def talkative(browser_type_launch_args: dict, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = chat_folder(tmp_path_factory.mktemp("chat"))
    log = tmp_path_factory.mktemp("log") / "log.txt"
    yield from serve(["app.py", "--model", str(folder), "--device", "cpu", "--dtype", "float64"], log)


@pytest.fixture
def talk(watched: Page, talkative: Server) -> Page:
    watched.goto(talkative.url)
    expect(watched.locator('.chip[data-state="ready"]')).to_be_visible(timeout=120_000)
    expect(watched.locator("#chat input")).to_be_visible(timeout=TIMEOUT)
    set_number(watched, "budget", 16)
    return watched


def sent(page: Page, lane: str) -> str:
    return page.locator(f"#text-{lane} .prompt-text").text_content() or ""


def test_a_conversation_goes_on_and_is_shown_as_it_was_sent(talk: Page) -> None:
    prompt(talk, "what is one?")
    race(talk)
    first = "<|endoftext|><|user|>what is one?<|end|>\n<|assistant|>"
    assert sent(talk, "space") == sent(talk, "vanilla") == first
    answer = text(talk, "space")
    assert answer == text(talk, "vanilla")
    expect(talk.locator("#badge")).to_have_text("outputs identical")
    expect(talk.locator("#talk-told")).to_contain_text("Turn 1 is answered")
    expect(talk.locator("#prompt textarea")).to_have_value("")
    prompt(talk, "and <b>two</b>?")
    race_again(talk)
    assert sent(talk, "space").startswith(first)
    assert sent(talk, "space").endswith("<|end|>\n<|user|>and <b>two</b>?<|end|>\n<|assistant|>")
    expect(talk.locator("#talk-told")).to_contain_text("Turn 2 is answered")
    expect(talk.locator("#talk-told")).to_contain_text("of them still in the cache")
    expect(talk.locator("#badge")).to_have_text("outputs identical")
    assert talk.locator("#arena b").count() == 0

    talk.click("#share")
    expect(talk.locator("#code-curl")).to_contain_text("url='http://127.0.0.1")
    expect(talk.locator("#code-curl")).to_contain_text(
        '"messages": [{"role": "user", "content": "what is one?"}'
    )
    assert "chat=1" in talk.input_value("#share-link")
    talk.click("#share-close")

    talk.click("#talk-end")
    expect(talk.locator("#talk-told")).to_contain_text("begins a new conversation")
    prompt(talk, "hello")
    race_again(talk)
    assert sent(talk, "space") == "<|endoftext|><|user|>hello<|end|>\n<|assistant|>"


def race_again(page: Page) -> None:
    """A race that is not the one on the page."""
    before = page.locator(".arena").get_attribute("data-race") or ""
    page.click("#race")
    expect(page.locator(".arena")).not_to_have_attribute("data-race", before, timeout=TIMEOUT)
    expect(page.locator(".arena")).to_have_attribute("data-state", "done", timeout=TIMEOUT)


def test_without_the_box_the_text_is_sent_as_it_is(talk: Page) -> None:
    talk.uncheck("#chat input")
    prompt(talk, "what is one?")
    race(talk)
    assert sent(talk, "space") == "what is one?"
    expect(talk.locator("#prompt textarea")).to_have_value("what is one?")


@pytest.mark.more
def test_two_visitors_hold_two_conversations(talk: Page, page: Page, talkative: Server) -> None:
    other = page.context.new_page()
    other.goto(talkative.url)
    expect(other.locator("#chat input")).to_be_visible(timeout=120_000)
    set_number(other, "budget", 16)
    for one, words in ((talk, "mine"), (other, "yours"), (talk, "mine again"), (other, "yours again")):
        prompt(one, words)
        race_again(one)
        expect(one.locator("#prompt textarea")).to_have_value("")
    assert "yours" not in sent(talk, "space") and "mine" not in sent(other, "space")
    assert sent(other, "space").count("<|user|>yours") == 2


@pytest.mark.more
def test_a_phone_has_room_for_the_conversation(talk: Page) -> None:
    talk.set_viewport_size({"width": 390, "height": 844})
    prompt(talk, "what is one?")
    race(talk)
    expect(talk.locator("#talk-end")).to_be_visible()
    inside(talk, "#talk", "#talk-end", "#chat")
