"""Tokens under the keyboard, and the colours of code, which touch neither text nor marks."""

from __future__ import annotations

import keyword
import re
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from served import HOSTILE, ROOT, prompt, race, set_number, text
from test_replay import RECORDED, by_call, picture

# The coloured words of a text by kind, in order: letters of one kind that touch are one word, whatever tokens
# they stand in.
WORDS = """(box) => {
  const words = [];
  let before = "";
  const letters = document.createTreeWalker(box, NodeFilter.SHOW_TEXT);
  while (letters.nextNode()) {
    const node = letters.currentNode;
    const kind = node.parentElement.className.match(/^code-(\\w+)$/)?.[1] ?? "";
    if (kind && kind === before) words.at(-1)[1] += node.data;
    else if (kind) words.push([kind, node.data]);
    before = kind;
  }
  return words;
}"""


def coloured(page: Page, lane: str) -> list[list[str]]:
    """Kind and letters of each coloured word of a lane."""
    return page.locator(f"#text-{lane} .out").evaluate(WORDS)


def focused(page: Page) -> dict[str, Any]:
    return page.evaluate(
        "(({tagName, className, dataset, title, tabIndex, textContent}) => ({tagName, className, "
        "call: dataset.call, slot: dataset.slot, title, tabIndex, textContent}))(document.activeElement)"
    )


# ---------------------------------------------------------------- keyboard


def test_tokens_are_walked_with_the_arrows_and_opened_with_enter(unloaded: Page) -> None:
    unloaded.focus("#text-space")
    before = picture(unloaded)
    unloaded.keyboard.press("Tab")
    last = focused(unloaded)
    calls = RECORDED["frame"]["lanes"]["space"]["calls"]
    assert (last["call"], last["tabIndex"]) == (str(calls), 0)
    assert last["title"].startswith(f"call {calls}")
    unloaded.keyboard.press("ArrowLeft")
    assert focused(unloaded) != last
    unloaded.keyboard.press("ArrowRight")
    assert focused(unloaded)["slot"] == last["slot"] and focused(unloaded)["call"] == last["call"]
    unloaded.keyboard.press("ArrowRight")
    assert focused(unloaded)["call"] == last["call"], "the last one stays"
    unloaded.keyboard.press("ArrowUp")
    assert (focused(unloaded)["call"], focused(unloaded)["slot"]) == (str(calls - 1), "0")
    unloaded.keyboard.press("Home")
    assert (focused(unloaded)["call"], focused(unloaded)["slot"]) == ("1", "0")
    unloaded.keyboard.press("ArrowDown")
    assert focused(unloaded)["call"] == "2"
    assert picture(unloaded) == before, "the replay has not moved"
    assert unloaded.locator("#text-space [tabindex='0']").count() == 1, "one stop a lane"

    unloaded.keyboard.press("Enter")
    expect(unloaded.locator(".inspector .inside-title")).to_have_text(f"Inside call 2 of {calls}, SPACE")
    unloaded.keyboard.press("Escape")
    assert focused(unloaded)["call"] == "2", "and back to the token"
    unloaded.keyboard.press("Escape")
    assert unloaded.evaluate("document.activeElement.id") == "text-space"
    unloaded.keyboard.press("ArrowLeft")
    assert picture(unloaded) != before, "on the lane the arrows are the replay's again"


def test_a_token_that_the_replay_takes_away_gives_the_focus_to_its_lane(unloaded: Page) -> None:
    by_call(unloaded)
    unloaded.focus("#text-space")
    unloaded.keyboard.press("Tab")
    unloaded.keyboard.press("Space")  # plays from the start
    assert unloaded.evaluate("document.activeElement.id") == "text-space"


def test_pending_guesses_are_walked_too(unloaded: Page) -> None:
    by_call(unloaded)
    unloaded.locator("#scrubber").fill("1")
    unloaded.focus("#text-space")
    unloaded.keyboard.press("Tab")
    assert "draft" not in focused(unloaded)["className"]
    unloaded.keyboard.press("End")
    assert "draft" in focused(unloaded)["className"]
    assert "the next call will check it" in focused(unloaded)["title"]


@pytest.mark.more
def test_no_token_is_a_stop_while_a_race_runs(app: Page) -> None:
    app.evaluate(
        "new MutationObserver(() => { if (document.querySelector('.arena').dataset.state === 'running'"
        " && document.querySelector('.out [tabindex]')) window.early = true; })"
        ".observe(document.querySelector('.arena'), {subtree: true, childList: true, attributes: true})"
    )
    race(app)
    assert app.evaluate("window.early") is None
    assert app.locator("#text-space .out [tabindex='0']").count() == 1


# ---------------------------------------------------------------- colours


def test_code_is_coloured_and_text_and_marks_stay(unloaded: Page) -> None:
    assert coloured(unloaded, "space") == coloured(unloaded, "vanilla"), "however it is cut to tokens"
    output = text(unloaded, "vanilla")
    words = coloured(unloaded, "vanilla")
    keywords = [word for kind, word in words if kind == "keyword"]
    assert keywords and all(word in output for _, word in words)
    prose = re.sub(r"(#.*|\"[^\"\n]*\"?|'[^'\n]*'?)", "", re.sub(r'""".*?("""|$)', "", output, flags=re.S))
    assert keywords == re.findall(rf"\b(?:{'|'.join([*keyword.kwlist, 'self'])})\b", prose)
    inside = unloaded.locator("#text-space .out .tok *").evaluate_all(
        "all => all.map(e => [e.tagName, e.className, e.getAttributeNames().length, e.childElementCount])"
    )
    kinds = {"code-keyword", "code-literal", "code-comment"}
    assert all(each == ["I", "break", 1, 0] or each == ["SPAN", each[1], 1, 0] for each in inside)
    assert {name for tag, name, *_ in inside if tag == "SPAN"} <= kinds
    for lane in ("space", "vanilla"):
        calls = RECORDED["frame"]["calls"]
        pieces = [piece for call in calls if call["lane"] == lane for piece, _ in call["tokens"]]
        tokens = unloaded.locator(f"#text-{lane} .out > .tok")
        assert tokens.evaluate_all("all => all.map(t => t.textContent)") == pieces


@pytest.mark.more
def test_colours_go_with_the_replay_and_come_back_the_same(unloaded: Page) -> None:
    end = coloured(unloaded, "space"), coloured(unloaded, "vanilla")
    by_call(unloaded)
    unloaded.focus("#text-space")
    unloaded.keyboard.press("Home")
    assert not coloured(unloaded, "space") and not coloured(unloaded, "vanilla")
    scrubber = unloaded.locator("#scrubber")
    most = int(scrubber.get_attribute("max") or 0)
    for at in (most // 2, most // 3, most - 1, 7, most):
        scrubber.fill(str(at))
    assert (coloured(unloaded, "space"), coloured(unloaded, "vanilla")) == end


def test_words_are_read_over_token_borders(unloaded: Page) -> None:
    """The lexer alone, on text that arrives letter by letter and is taken back."""
    code = "def f(a):\n    '''doc\n  # no comment'''\n    return not_a_word + 0x1F, \"it's\", 'a\\'b' # for\nfor x in y:\n"
    told = unloaded.evaluate(
        """async ([code, source, words]) => {
          const Ink = new Function(source + "; return Ink;")();
          const coloured = eval(words);
          const box = document.createElement("div");
          document.body.append(box);
          const run = (parts) => {
            const ink = new Ink();
            ink.begin("import os\\n");
            box.replaceChildren();
            for (const part of parts) {
              const token = document.createElement("span");
              token.textContent = part;
              box.append(token);
              ink.grow([token]);
            }
            return ink;
          };
          const told = (ink) => ({ marks: structuredClone(ink.marks), words: coloured(box), text: box.textContent });
          const whole = told(run([code]));
          const thirds = told(run(code.match(/[^]{1,3}/g)));
          const letters = run([...code]);
          const first = told(letters);
          for (let at = code.length - 1; at > 40; at -= 1) {
            box.lastChild.remove();
            letters.cut(at);
          }
          for (const letter of code.slice(41)) {
            const token = document.createElement("span");
            token.textContent = letter;
            box.append(token);
            letters.grow([token]);
          }
          const back = told(letters);
          box.remove();
          return { whole, thirds, first, back };
        }""",
        [code, (ROOT / "assets" / "ink.js").read_text(encoding="utf-8"), WORDS],
    )
    assert told["whole"] == told["thirds"] == told["first"] == told["back"]
    assert told["whole"]["text"] == code
    assert told["whole"]["words"] == [
        ["keyword", "def"],
        ["literal", "'''doc\n  # no comment'''"],
        ["keyword", "return"],
        ["literal", "0x1F"],
        ["literal", '"it\'s"'],
        ["literal", "'a\\'b'"],
        ["comment", "# for"],
        ["keyword", "for"],
        ["keyword", "in"],
    ]


@pytest.mark.more
def test_prose_is_not_coloured(app: Page) -> None:
    prompt(app, "Tell me a story for children")
    set_number(app, "budget", 32)
    race(app)
    assert not coloured(app, "space") and not coloured(app, "vanilla")


def test_hostile_tokens_are_coloured_as_text_and_nothing_else(app: Page) -> None:
    race(app)
    shown = text(app, "space")
    for piece in HOSTILE[:5]:
        assert piece in shown
    assert app.locator("#arena img, #arena script, #arena b").count() == 0
