"""What leaves a race and what comes back: link, file, card, offline page, code."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl

import pytest
from test_views import Letters, add_all, ids, race

from space_core.conversation import Message, read_messages
from space_core.errors import PromptError, TraceError
from space_core.settings import Settings
from space_core.trace import Step, Stop
from space_core.views import card, code, frames, link, offline, share, sharing

HOSTILE = "</script><script>alert(1)</script><!-- ]]>\u2028 ${x} ' \" \\ \x01 & é"


def finished() -> frames.Race:
    fold = race()
    add_all(fold)
    fold.end()
    return fold


def looks(fold: frames.Race) -> dict[str, Any]:
    """All that a viewer paints, but the race's own number and its source."""
    frame: dict[str, Any] = json.loads(frames.encode(fold.snapshot()))
    del frame["race"]
    frame["about"].pop("source", None)
    frame["calls"].sort(key=lambda call: (call["lane"], call["n"]))
    return frame


def hostile_race() -> frames.Race:
    fold = frames.Race(
        ("space", "vanilla"), Letters(), ids("p"), HOSTILE, Settings(k=2), HOSTILE, "cpu", HOSTILE
    )
    for lane in ("space", "vanilla"):
        for letter in HOSTILE:
            fold.add(lane, Step(ids(letter), 0, (), 1, 0.01))
        fold.add(lane, Step(ids("."), 0, (), 1, 0.01, stop=Stop.EOS))
    fold.end()
    return fold


# ---------------------------------------------------------------- link


def test_a_link_goes_out_and_comes_back() -> None:
    settings = Settings(k=3, max_new_tokens=48, temperature=0.7, top_p=0.9, seed=2**31 - 1, plan="grid")
    prompt = 'def f():\n    """${a} & = ? # % + é漢🙂"""\n'
    text = link.query(prompt, settings, ("generate",), "m & n")
    linked = link.read({**dict(parse_qsl(text)), "step": "12"}, ("generate", "prompt-lookup"), 1000)
    assert linked.problems == ()
    assert linked.fields.pop("prompt") == prompt
    assert linked.fields.pop("lanes") == ["generate"]
    assert Settings(**linked.fields) == settings
    assert (linked.model, linked.step) == ("m & n", 12)
    note = linked.note("other")
    assert "call 12" in note
    assert "made with m & n; here it runs on other" in note
    assert "made with" not in linked.note("m & n")


@pytest.mark.parametrize(
    "parameters, words",
    [
        ({"k": "99"}, "k must lie in 1..16"),
        ({"k": "nan"}, "k must"),
        ({"k": "9" * 400}, "k must be a whole number"),
        ({"temperature": "inf"}, "temperature must be a finite number"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"seed": "1e400"}, "seed must"),
        ({"plan": "<b>"}, "plan must be auto or grid"),
        ({"lanes": "generate,assisted"}, "here are generate"),
        ({"prompt": "x" * 1001}, "more than 1,000 characters"),
        ({"prompt": "a\0b"}, "no text"),
    ],
)
def test_what_is_wrong_in_a_link_is_left_out_with_a_sentence(parameters: dict[str, str], words: str) -> None:
    linked = link.read({"top_p": "0.5", **parameters}, ("generate",), 1000)
    assert linked.fields == {"top_p": 0.5}, "the rest stands"
    assert len(linked.problems) == 1
    assert words in linked.problems[0]
    assert linked.problems[0] in linked.note("m")


def test_an_address_without_a_link_asks_for_nothing() -> None:
    linked = link.read({"__theme": "dark", "step": "3", "model": "m"}, (), 1000)
    assert linked.fields == {}
    assert linked.note("other") == ""


@pytest.mark.parametrize("step", ["-1", "0", "1e9", "x", "nan", ""])
def test_a_step_that_is_none_is_the_end(step: str) -> None:
    assert link.read({"k": "3", "step": step}, (), 1000).step == 0


def test_a_prompt_too_long_for_a_link_is_told() -> None:
    with pytest.raises(PromptError, match="too long for a link"):
        link.query("é" * 1_200, Settings(), (), "m")
    assert len(link.query("é" * 800, Settings(), (), "m")) <= link.MAX_QUERY
    told = share.message(finished(), "é" * 1_200, Settings(), (), "m", "m", "cpu", "float32")
    assert told["query"] == ""
    assert "too long for a link" in told["link_note"]


# ---------------------------------------------------------------- file


def test_a_race_goes_through_a_file_and_looks_the_same() -> None:
    fold = finished()
    back = sharing.read(sharing.write(fold))
    assert looks(back) == looks(fold)
    assert back.foreign and not fold.foreign
    assert [trace.to_json() for trace in back.traces()] == [trace.to_json() for trace in fold.traces()]
    assert looks(sharing.read(sharing.write(back))) == looks(fold), "and once more"


def test_a_stopped_race_with_other_drafts_and_half_a_character_goes_through_a_file() -> None:
    fold = race()
    fold.add("space", Step((0x1C3,), 0, (), 8, 0.02, groups=(2,), new_drafts=ids("bX")))
    fold.add("space", Step(ids("c"), 0, ids("Y"), 9, 0.0123456789, (0.1234996,), (), ids("de"), (0.8, 0.7)))
    fold.add("vanilla", Step((0x1C3,), 0, (), 1, 0.02))
    fold.end(frames.State.STOPPED)
    back = sharing.read(sharing.write(fold))
    assert looks(back) == looks(fold)
    assert looks(back)["state"] == "stopped"


def test_probabilities_are_shown_alike_before_and_behind_a_file() -> None:
    fold = race()
    odd = 0.12349996  # six places, then three, give 0.124; three at once 0.123
    fold.add(
        "space", Step(ids("a"), 0, (), 8, 0.02, groups=(1,), new_drafts=ids("b"), new_draft_probs=(odd,))
    )
    fold.add("vanilla", Step(ids("a"), 0, (), 1, 0.02))
    fold.end(frames.State.STOPPED)
    assert looks(sharing.read(sharing.write(fold))) == looks(fold)


def test_hostile_text_goes_through_a_file_as_text() -> None:
    fold = hostile_race()
    text = sharing.write(fold)
    assert "<" not in text and "\u2028" not in text
    back = sharing.read(text)
    assert back.about["prompt"] == HOSTILE
    assert "".join(piece for call in back.snapshot()["calls"] for piece, _ in call["tokens"]) == 2 * (
        HOSTILE + "."
    )


def shared() -> dict[str, Any]:
    return json.loads(sharing.write(finished()))


def broken(change: Any) -> str:
    data = shared()
    change(data)
    return json.dumps(data)


BAD = [
    (None, "no text"),
    ("", "no JSON"),
    ("{", "no JSON"),
    ("[" * 100_000, "no JSON"),
    ("[]", "its format must be"),
    ('{"format": "space-race/1"}', "its format must be"),
    ("1" * 5000, "no JSON"),
    ("x" * 1_000_001, "at most 1,000,000"),
    ("é" * 500_001, "at most 1,000,000"),
    ('"\\ud800"', "no JSON"),
    ("\ud800", "no UTF-8"),
    (broken(lambda d: d.pop("traces")), "traces must be"),
    (broken(lambda d: d["traces"].pop(0)), "one of vanilla"),
    (broken(lambda d: d["traces"].append(d["traces"][0])), "another method"),
    (broken(lambda d: d["traces"][0].update(method="<b>")), "another method"),
    (broken(lambda d: d["traces"][0].update(model="n")), "different models"),
    (broken(lambda d: d["traces"][0]["steps"][0].update(seconds=-1)), "number of seconds"),
    (broken(lambda d: d["traces"][0]["steps"][0].update(seconds=float("nan"))), "number of seconds"),
    (broken(lambda d: d["traces"][0]["steps"][1].update(accepted=2)), "accepts more|not its drafts"),
    (broken(lambda d: d["traces"][0]["settings"].update(k=99)), "k must lie in"),
    (broken(lambda d: d["traces"][0]["settings"].update(temperature="hot")), "temperature must be"),
    (broken(lambda d: d.pop("pieces")), "pieces must hold"),
    (broken(lambda d: d["pieces"]["space"]["calls"].pop()), "each of its calls"),
    (broken(lambda d: d["pieces"]["space"]["calls"][0].update(tokens=["a", "b"])), "call 1 of space needs 1"),
    (broken(lambda d: d["pieces"]["space"]["calls"][0].update(tokens=[7])), "tokens must be text"),
    (broken(lambda d: d["pieces"]["space"]["calls"][0].pop("pending")), "needs 2 pieces as its pending"),
    (broken(lambda d: d["pieces"]["vanilla"].update(rest=[])), "rest must be text"),
    (broken(lambda d: d.update(prompt=None)), "prompt must be text"),
]


@pytest.mark.parametrize("text, words", BAD, ids=range(len(BAD)))
def test_a_bad_file_gets_a_sentence(text: Any, words: str) -> None:
    with pytest.raises(TraceError, match=words):
        sharing.read(text)


def test_what_a_file_says_of_itself_is_computed_again() -> None:
    data = shared()
    for trace in data["traces"]:
        trace.update(calls=1, tokens_per_call=99.0, seconds=1e-9, text="lies")
    back = sharing.read(json.dumps(data))
    assert looks(back) == looks(finished())


def test_a_trace_of_the_command_line_is_read_with_its_tokenizer() -> None:
    trace = finished().trace("space").to_json()
    back = sharing.read(json.dumps(trace), Letters())
    frame = back.snapshot()
    assert frame["lanes"]["space"]["tokens"] == 6
    assert frame["lanes"]["vanilla"]["calls"] == 0
    assert frame["verdict"] and frame["verdict"]["sentence"].startswith("SPACE alone: 6 tokens in 3 calls")
    assert frame["state"] == "done"
    with pytest.raises(TraceError, match="needs its model’s tokenizer"):
        sharing.read(json.dumps(trace))
    with pytest.raises(TraceError, match="does not spell"):
        sharing.read(json.dumps({**trace, "text": "other"}), Letters())
    with pytest.raises(TraceError, match="does not spell"):  # an id that is no letter at all
        odd = {**trace, "prompt_ids": [2**40]}
        sharing.read(json.dumps(odd), Letters())


# ---------------------------------------------------------------- card, page, code


def test_the_card_is_xml_with_the_verdict_in_it() -> None:
    fold = finished()
    root = ET.fromstring(card.svg(fold.snapshot()))
    words = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    verdict = fold.verdict()
    assert verdict["headline"] in words
    assert verdict["badge"] in words
    assert any(word and word.startswith("6 tokens in 3 calls") for word in words)


def test_the_card_takes_hostile_text_for_text() -> None:
    svg = card.svg(hostile_race().snapshot())
    root = ET.fromstring(svg)
    assert {node.tag.partition("}")[2] for node in root.iter()} == {"svg", "title", "rect", "text"}
    assert any("</script>" in (node.text or "") for node in root.iter())
    assert "\x01" not in svg


def test_the_offline_page_holds_the_race_and_nothing_that_ends_its_script() -> None:
    fold = hostile_race()
    page = offline.page(fold.snapshot())
    assert page.count("</script>") == 2 and page.count("<script") == 2
    assert "<!--" not in page and "\u2028" not in page
    found = re.search(r'<script type="application/json" id="race">(.*?)</script>', page, re.DOTALL)
    assert found and json.loads(found[1]) == json.loads(json.dumps(fold.snapshot()))
    assert "<title>SPACE replay: &lt;/script&gt;" in page
    for address in ("http://", "https://", "//cdn"):
        assert address not in page.replace("http://www.w3.org/2000/svg", "")


def test_the_offline_page_lets_only_its_own_script_run() -> None:
    import base64
    import hashlib

    page = offline.page(finished().snapshot())
    script = page.rpartition("<script>")[2].partition("</script>")[0]
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{allowed}'" in page
    assert "default-src 'none'" in page


@pytest.mark.parametrize(
    "prompt", ["def f():\n    '''é \"\\n'''\n", "one line ' $HOME `id`", HOSTILE, "a\r\nb"]
)
def test_python_to_paste_means_this_prompt_and_these_settings(prompt: str) -> None:
    settings = Settings(k=3, max_new_tokens=9, temperature=0.5, seed=4, plan="grid", verification="token")
    tree = ast.parse(code.python(prompt, settings, "folder/it's", "cpu", "float32"))
    assigned = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}  # type: ignore[attr-defined]
    assert ast.literal_eval(assigned["prompt"]) == prompt
    call = assigned["settings"]
    assert isinstance(call, ast.Call)
    assert Settings(**{k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg}) == settings


@pytest.mark.parametrize(
    "prompt", ["def f():\n    '''é \"\\n'''\n", "one $HOME `id` $(id) %s \\x41 !", "--help"]
)
def test_the_command_to_paste_feeds_this_prompt(prompt: str) -> None:
    told = code.command(prompt, Settings(k=3), "it's here", "cpu", "float32", "space")
    feed, _, asked = told.rpartition("| \\\n")
    assert subprocess.run(["sh", "-c", feed], capture_output=True, check=True).stdout.decode() == prompt
    from space_core.__main__ import _parser

    words = subprocess.run(
        ["sh", "-c", f"python() {{ printf '%s\\n' \"$@\"; }}\n{asked}"],
        capture_output=True,
        check=True,
        text=True,
    ).stdout.splitlines()
    options = _parser().parse_args(words[2:])
    assert words[:2] == ["-m", "space_core"]
    assert (options.k, options.model, options.plan) == (3, "it's here", "auto")


def test_without_a_race_there_is_a_link_and_code_but_nothing_to_save() -> None:
    told = share.message(None, "p", Settings(), (), "m", "hub/m", "cpu", "float32")
    assert not told["raced"]
    assert "trace" not in told and "page" not in told and "card" not in told
    assert parse_qs(told["query"])["model"] == ["m"]
    assert "hub/m" in told["python"] and "Race first" in told["note"]


# ---------------------------------------------------------------- a conversation

TALK = (
    Message("system", "it's `brief`"),
    Message("user", "one?"),
    Message("assistant", "1 $HOME"),
    Message("user", HOSTILE),
)


@pytest.mark.parametrize("chat, told", [(True, True), (False, False), (None, None)])
def test_a_link_says_whether_its_prompt_is_a_turn_of_a_conversation(
    chat: bool | None, told: bool | None
) -> None:
    text = link.query("p", Settings(), (), "m", chat)
    assert link.read(dict(parse_qsl(text)), (), 1000).fields.get("chat") is told
    wrong = link.read({"prompt": "p", "chat": "<b>"}, (), 1000)
    assert wrong.problems == ("The link’s chat was left out: it must be 0 or 1.",)
    assert "chat" not in wrong.fields


def test_a_conversations_share_has_its_last_words_in_the_link_and_says_so() -> None:
    told = share.message(None, "rendered", Settings(), (), "m", "m", "cpu", "float32", TALK, True)
    assert parse_qs(told["query"])["prompt"] == [HOSTILE]
    assert "Earlier turns of the conversation are not in it." in told["link_note"]
    one = share.message(None, "rendered", Settings(), (), "m", "m", "cpu", "float32", TALK[1:2], True)
    assert "Earlier turns" not in one["link_note"]


def test_code_to_paste_means_this_conversation() -> None:
    settings = Settings(k=3, temperature=0.5)
    program = code.python("rendered", settings, "m", "cpu", "float32", TALK)
    assert "rendered" not in program
    tree = ast.parse(program)
    call = next(node.value for node in tree.body if isinstance(node, ast.Assign))
    assert isinstance(call, ast.Call)
    assert read_messages(ast.literal_eval(call.args[0])) == TALK

    told = code.command("rendered", settings, "m", "cpu", "float32", "space", TALK)
    feed, _, asked = told.rpartition("| \\\n")
    fed = subprocess.run(["sh", "-c", feed], capture_output=True, check=True).stdout.decode()
    assert read_messages(json.loads(fed)) == TALK
    assert "generate --messages - " in asked


@pytest.mark.parametrize("messages", [(), TALK])
def test_curl_to_paste_asks_for_this_race(messages: tuple[Message, ...], tmp_path: Path) -> None:
    settings = Settings(k=3, max_new_tokens=9, top_p=0.5, verification="token")
    told = code.curl(HOSTILE, settings, ("generate",), messages)
    # Shells see a `curl` that prints its last argument, then the body that -d was given.
    shell = 'curl() { for a; do [ "$last" = -d ] && printf %s "$a" > body; last=$a; done; echo \'{"event_id":"id7"}\'; }\n'
    done = subprocess.run(
        ["sh", "-c", f"{shell}url=here\n{told}echo $id"], capture_output=True, check=True, cwd=tmp_path
    )
    assert done.stdout.decode().split()[-1] == "id7"
    body = json.loads((tmp_path / "body").read_text())
    assert body.pop("lanes") == ["generate"]
    if messages:
        assert read_messages(body.pop("messages")) == TALK
    else:
        assert body.pop("prompt") == HOSTILE
    assert body == {"k": 3, "max_new_tokens": 9, "top_p": 0.5}, "the API has no choice of verification"
