"""Inside a call: structure and words against the layout, probabilities against the run itself."""

from __future__ import annotations

import dataclasses
import json
import random

import pytest
import torch

import space_core
from space_core import peers
from space_core.errors import TraceError
from space_core.inspect import guesses, layout_of
from space_core.layout import Layout
from space_core.settings import Settings
from space_core.trace import Step, Stop, Trace
from space_core.views import frames, inspect, recording
from space_core.views.inspect import REASONS, Why

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
MASKS = [(0,), (5,), (2, 2, 2), (3, 0, 1), (0, 0, 4), (5,) * 6, (1, 2, 3, 4)]


def run(model, method: str = "space", **settings: object) -> Trace:
    request = Settings(**{"k": 3, "max_new_tokens": 24, "plan": "grid", **settings})
    steps = tuple(getattr(space_core, method)(model, PROMPT, request))
    k = request.k if method == "space" else 0
    return Trace(model.name, method, k, "float64", "cpu", tuple(PROMPT), steps, settings=request.to_json())


# ---------------------------------------------------------------- structure and words


@pytest.mark.parametrize("masks", MASKS)
def test_reasons_are_the_layouts_visibility(masks: tuple[int, ...]) -> None:
    layout = Layout.steady(masks)
    told = inspect.structure(layout)
    seen = [[REASONS[Why(letter)][0] for letter in row[1:]] for row in told["whys"]]
    assert seen == layout.sees().tolist()
    assert [row["offset"] for row in told["rows"]] == layout.offsets().tolist()
    assert all(REASONS[Why(row[0])][0] for row in told["whys"]), "the cache is seen by all"


def test_words_say_why() -> None:
    rows = {row["name"]: row for row in inspect.structure(Layout.steady((2, 2, 2)))["rows"]}

    def say(row: str, column: str) -> str:
        return inspect.words(rows[row], rows[column])

    assert say("mask 2 of group 1", "draft 1") == "mask 2 of group 1 sees draft 1: group 1 stands behind it"
    assert say("mask 2 of group 1", "draft 2") == (
        "mask 2 of group 1 does not see draft 2: group 1 assumes it was rejected or not reached"
    )
    assert say("draft 2", "mask 1 of group 0").endswith("no real row ever sees a mask")
    assert say("draft 2", "draft 1").endswith("it stands before it, as in plain decoding")
    assert say("the newest token", "draft 1").endswith("it comes later in the text")
    assert say("mask 2 of group 1", "mask 1 of group 1").endswith("an earlier mask of its own group")
    assert say("mask 1 of group 1", "mask 2 of group 1").endswith("a later mask of its own group")
    assert "another group" in say("mask 1 of group 2", "mask 1 of group 1")
    assert (
        inspect.words(rows["draft 1"], None) == "draft 1 sees the cache: every row sees all that is settled"
    )


def test_every_reason_has_one_letter_and_a_sentence() -> None:
    assert set(REASONS) == set(Why)
    assert len({str(why) for why in Why}) == len(Why)
    assert all(len(why) == 1 for why in Why)
    for why, (seen, sentence) in REASONS.items():
        assert ("does not see" in sentence) != seen, why


def opened(**changes: object) -> inspect.Opened:
    base = {
        "lane": "space",
        "n": 2,
        "before": 10,
        "cached": True,
        "chain": ["a", "b", "c", "d"],
        "fates": ["newest", "accepted", "rejected", "unreached"],
        "own": "x\n",
        "origin": "corrected",
        "group": 1,
        "chosen": [6, 7],
        "next": "masks",
        "guesses": [],
        "story": [],
    }
    return {**base, **changes}  # type: ignore[return-value]


def test_the_story_of_a_corrected_call() -> None:
    assert " ".join(inspect.story(opened())) == (
        "Draft 1 stood: the row before it says the same. Draft 2, “c”, fell: the row before it says “x↵”, and "
        "that is the call’s own token. Draft 3 came behind a wrong token, so nobody asks whether it was right. "
        "So group 1, which assumes that only draft 1 stands, was right: its first 2 guesses are the next call’s drafts."
    )


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"fates": ["newest"] + ["accepted"] * 3, "group": 3}, "Drafts 1 to 3 stood"),
        ({"fates": ["newest"] + ["accepted"] * 3, "group": 3}, "one token of the model’s own came on top"),
        ({"group": 0}, "the tail of group 0 guesses on in its place"),
        ({"next": "copied", "group": None}, "copied from the text so far"),
        ({"next": "none", "group": None}, "The next call checks no draft."),
        ({"next": "end", "group": None}, "The run ended here"),
        ({"fates": ["newest"], "group": 0}, "No draft went into this call"),
        ({"fates": ["newest"], "group": 0, "cached": False}, "This call read the prompt"),
        ({"fates": ["newest"], "lane": "vanilla"}, "one row goes in"),
        ({"fates": ["newest"], "lane": "generate"}, "one row goes in"),
        (
            {"lane": "prompt-lookup", "next": "elsewhere"},
            "copied from the text so far, by transformers. Draft 1",
        ),
        (
            {"lane": "prompt-lookup", "next": "elsewhere"},
            "No mask went into this call: for the next drafts the text",
        ),
        ({"lane": "assisted", "next": "elsewhere"}, "The drafts are the draft model’s"),
        ({"chain": ["a", "b", "  \t    "]}, "“␣␣⇥␣×4”"),
    ],
)
def test_the_story_tells(changes: dict[str, object], words: str) -> None:
    assert words in " ".join(inspect.story(opened(**changes)))


@pytest.mark.parametrize("method", list(peers.Peer))
def test_calls_of_transformers_lanes_open_too(llama, method: str) -> None:
    model = llama
    request = Settings(k=3, max_new_tokens=40)
    draft = model if method == "assisted" else None
    steps = tuple(peers.lane(model, PROMPT * 3, request, method, draft))
    trace = Trace(
        model.name, method, 0, "float64", "cpu", tuple(PROMPT * 3), steps, settings=request.to_json()
    )
    checked = 0
    for n, step in enumerate(steps):
        told = inspect.open_call(model, trace, n)
        best = [row[0].token for row in guesses(model, trace, n)]
        assert best[: len(step.emitted)] == list(step.emitted), "each token is what the row before it says"
        assert len(told["chain"]) == len(told["guesses"]) == 1 + len(step.drafts)
        assert not told["chosen"] and told["group"] is None
        checked += len(step.drafts)
        last = n == len(steps) - 1
        assert told["next"] in (("end",) if last else ("elsewhere", "none"))
    assert (checked > 0) == (method != "generate")


def test_the_story_of_a_sampled_call_names_the_draw() -> None:
    told = " ".join(inspect.story(opened(), sampled=True, copied=True))
    assert "it passed the draw" in told
    assert "the call drew “x↵” instead" in told
    assert told.startswith("The drafts were copied")


def test_what_a_stop_leaves_behind_is_cut() -> None:
    step = Step((5, 6), 2, (5, 6, 7), 9, 0.1, groups=(2, 2, 2, 2), stop=Stop.EOS)
    assert inspect.fates(step) == ["accepted", "accepted", "cut"]


# ---------------------------------------------------------------- probabilities


@pytest.mark.parametrize("settings", [{}, {"k": 1}, {"plan": "auto"}], ids=str)
def test_rows_predict_what_the_run_wrote_and_drafted(llama, settings: dict[str, object]) -> None:
    trace = run(llama, **settings)
    for call, step in enumerate(trace.steps):
        rows = guesses(llama, trace, call)
        layout = layout_of(step)
        assert len(rows) == layout.rows
        assert all(row[0].probability >= row[1].probability >= row[2].probability for row in rows)
        written = [row[0].token for row in rows[: len(step.emitted)]]
        assert written == list(step.emitted)
        told = inspect.open_call(llama, trace, call)
        following = trace.steps[call + 1] if call + 1 < trace.calls else None
        if following and following.drafts and not following.copied:
            drafting = [rows[row][0] for row in told["chosen"]]
            assert tuple(guess.token for guess in drafting) == following.drafts
            assert [g.probability for g in drafting] == pytest.approx(following.draft_probs, abs=1e-6)
        else:
            assert told["chosen"] == []


def test_a_vanilla_call_is_one_row(llama) -> None:
    trace = run(llama, "vanilla")
    for call in (0, 1, trace.calls - 1):
        ((best, *_),) = guesses(llama, trace, call)
        assert (best.token,) == trace.steps[call].emitted
        told = inspect.answer(llama, trace, call, "r")
        assert told["call"]["structure"]["whys"] == [Why.BEFORE + Why.ITSELF]
        assert told["call"]["before"] == len(PROMPT) + call - 1


def test_a_sampled_run_can_be_opened(llama) -> None:
    trace = run(llama, temperature=1.0, seed=3)
    dice = random.Random(0)
    for call in dice.sample(range(trace.calls), 3):
        assert inspect.open_call(llama, trace, call)["n"] == call + 1


@pytest.mark.parametrize("call", [-1, 10_000])
def test_a_call_that_is_not_there_is_refused(llama, call: int) -> None:
    with pytest.raises(TraceError, match="there is no call"):
        guesses(llama, run(llama), call)


def test_another_models_run_is_refused(llama) -> None:
    trace = run(llama)
    with pytest.raises(TraceError, match="this run is other's"):
        guesses(llama, dataclasses.replace(trace, model="other"), 1)
    with pytest.raises(TraceError, match="does not fit"):
        guesses(llama, dataclasses.replace(trace, prompt_ids=(999,)), 1)
    step = trace.steps[1]
    wrong = dataclasses.replace(step, emitted=(*step.emitted[:-1], (step.emitted[-1] + 1) % 64))
    with pytest.raises(TraceError, match="another model's"):
        guesses(llama, dataclasses.replace(trace, steps=(trace.steps[0], wrong)), 1)
    odd = dataclasses.replace(step, groups=(*step.groups, 1))
    with pytest.raises(TraceError, match="one mask group more"):
        guesses(llama, dataclasses.replace(trace, steps=(trace.steps[0], odd)), 1)


def test_looking_changes_no_run(llama) -> None:
    trace = run(llama)
    state = torch.random.get_rng_state()
    guesses(llama, trace, 2)
    assert torch.equal(state, torch.random.get_rng_state())
    assert run(llama).output_ids == trace.output_ids


# ---------------------------------------------------------------- the bundled recording


def test_the_bundled_recording_is_whole_and_small() -> None:
    text = recording.read()
    assert 0 < len(text.encode()) < recording.MAX_BYTES
    assert not set("<>&") & set(text)
    told = json.loads(text)
    assert told["format"] == recording.FORMAT
    assert told["frame"]["format"] == frames.FORMAT
    assert told["frame"]["state"] == "done"
    assert told["frame"]["verdict"]["identical"] is True
    assert told["frame"]["about"]["prompt"] == recording.PROMPT
    assert {"date", "model", "device"} <= set(told["made"])
    for lane, tally in told["frame"]["lanes"].items():
        calls = [call for call in told["frame"]["calls"] if call["lane"] == lane]
        assert [call["n"] for call in calls] == list(range(1, tally["calls"] + 1))
        for call, inside in zip(calls, told["opened"][lane], strict=True):
            structure = told["structures"][inside["layout"]]
            assert inside["n"] == call["n"]
            assert len(inside["guesses"]) == len(structure["rows"]) == len(structure["whys"])
            assert len(inside["chain"]) == len(inside["fates"]) == 1 + call.get("verified", 0)


def test_no_recording_is_no_error(tmp_path) -> None:
    assert recording.read(tmp_path / "none.json") == ""
    for text in ("{", "[]", '{"format": "space-trace/1"}'):
        (tmp_path / "bad.json").write_text(text)
        assert recording.read(tmp_path / "bad.json") == ""


def test_an_encoded_recording_is_the_recording() -> None:
    told = {
        "format": recording.FORMAT,
        "frame": {"space": []},
        "opened": {"space": [{"own": '</a>"&'}, {}], "vanilla": []},
    }
    text = recording.encode(told)
    assert json.loads(text) == told
    assert not set("<>&") & set(text)


def test_recording_takes_one_line(tmp_path) -> None:
    from space_core.views.record import main

    out = tmp_path / "race.json"
    assert main(["--max-new-tokens", "12", "--out", str(out)]) == 0
    told = json.loads(recording.read(out))
    assert told["frame"]["lanes"]["space"]["tokens"] == 12
    assert main(["--model", str(tmp_path), "--out", str(out)]) == 2
