"""Frames, verdict and figures: folds over hand-made Steps."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from space_core.settings import Settings
from space_core.trace import Origin, Step, Stop, Trace
from space_core.views import figures, frames
from space_core.views.lanes import FURTHER, MAIN, NAMES
from space_core.views.verdict import verdict


class Letters:
    """A tokenizer whose token i is chr(i); 0x100 + b is the lone byte b."""

    def decode(self, ids: Sequence[int], **_: object) -> str:
        data = b"".join(bytes([i - 0x100]) if 0x100 <= i < 0x200 else chr(i).encode() for i in ids)
        return data.decode("utf-8", errors="replace")


def ids(text: str) -> tuple[int, ...]:
    return tuple(map(ord, text))


SPACE = (
    Step(ids("a"), 0, (), 8, 0.02, groups=(2,), new_drafts=ids("bX"), new_draft_probs=(0.9, 0.4)),
    Step(ids("bc"), 1, ids("bX"), 9, 0.01, (0.9, 0.4), (2, 2, 2), ids("de"), (0.8, 0.7)),
    Step(ids("def"), 2, ids("de"), 9, 0.01, (0.8, 0.7), (2, 2, 2), (), (), Stop.MAX_NEW_TOKENS),
)
VANILLA = tuple(Step((i,), 0, (), 1, 0.02, stop=None) for i in ids("abcde")) + (
    Step(ids("f"), 0, (), 1, 0.02, stop=Stop.MAX_NEW_TOKENS),
)


def run(
    steps: Sequence[Step],
    method: str,
    temperature: float = 0.0,
    dtype: str = "float32",
    stop: Stop | None = None,
) -> Trace:
    settings = Settings(k=2, max_new_tokens=6, temperature=temperature).to_json()
    return Trace("m", method, 2, dtype, "cpu", (1,), tuple(steps), settings=settings, stopped=stop)


def race(**settings: object) -> frames.Race:
    request = Settings(**{"k": 2, "max_new_tokens": 6, **settings})
    return frames.Race(("space", "vanilla"), Letters(), ids("p"), "p", request, "m", "cpu", "float32")


def add_all(fold: frames.Race) -> None:
    for lane, steps in (("space", SPACE), ("vanilla", VANILLA)):
        for step in steps:
            fold.add(lane, step)


# ---------------------------------------------------------------- frames


def test_a_call_tells_tokens_origins_and_guesses() -> None:
    fold = race()
    add_all(fold)
    first, second, third = (c for c in fold.snapshot()["calls"] if c["lane"] == "space")
    assert first["tokens"] == [("a", "own")]
    assert first["pending"] == [("b", 0.9), ("X", 0.4)]
    assert "verified" not in first
    assert second["tokens"] == [("b", "accepted"), ("c", "corrected")]
    assert (second["verified"], second["accepted"]) == (2, 1)
    assert "drafts" not in second, "they are the first call's pending ones"
    assert third["tokens"] == [("d", "accepted"), ("e", "accepted"), ("f", "bonus")]
    assert "pending" not in third
    assert [c["n"] for c in (first, second, third)] == [1, 2, 3]
    assert third["rows"] == 9
    assert third["groups"] == [2, 2, 2]


def test_counters() -> None:
    fold = race()
    add_all(fold)
    tally = fold.snapshot()["lanes"]["space"]
    assert (tally["calls"], tally["tokens"], tally["stop"]) == (3, 6, "max_new_tokens")
    assert tally["seconds"] == pytest.approx(0.04)
    assert tally["tokens_per_second"] == pytest.approx(150)
    assert tally["tokens_per_call"] == pytest.approx(2)


@pytest.mark.parametrize("seed", range(20))
def test_deltas_folded_are_the_snapshot(seed: int) -> None:
    """However the calls are cut into frames, their sum is what the last snapshot says."""
    dice = random.Random(seed)
    fold, told = race(), []
    lanes = {"space": list(SPACE), "vanilla": list(VANILLA)}
    while any(lanes.values()):
        lane = dice.choice([name for name, left in lanes.items() if left])
        fold.add(lane, lanes[lane].pop(0))
        if dice.random() < 0.4:
            told.append(fold.snapshot() if dice.random() < 0.2 else fold.delta())
    told.append(fold.delta())
    fold.end()
    last = fold.snapshot()
    seen = {(c["lane"], c["n"]): c for frame in told for c in frame["calls"]}
    assert seen == {(c["lane"], c["n"]): c for c in last["calls"]}
    deltas = [c for frame in told if frame["kind"] == "delta" for c in frame["calls"]]
    assert len(deltas) == len({(c["lane"], c["n"]) for c in deltas}), "a delta repeats a call"
    assert told[-1]["lanes"] == last["lanes"]


def test_frames_are_one_schema_and_plain_json() -> None:
    fold = race()
    add_all(fold)
    delta = fold.delta()
    fold.end()
    snapshot = fold.snapshot()
    assert set(snapshot) - set(delta) == {"about", "verdict"}
    for frame in (delta, snapshot, frames.empty(frames.State.WAITING)):
        assert json.loads(frames.encode(frame)) == json.loads(json.dumps(frame))
        assert frame["format"] == frames.FORMAT
    assert delta["race"] == snapshot["race"] != race().id
    assert snapshot["state"] == "done"


def test_text_is_whole_where_characters_are_split_over_tokens() -> None:
    fold = race()
    word = "é漢🙂"
    for byte in word.encode():
        fold.add("space", Step((0x100 + byte,), 0, (), 1, 0.01))
    pieces = [piece for c in fold.delta()["calls"] for piece, _ in c["tokens"]]
    assert "".join(pieces) == word
    assert pieces.count("") == len(word.encode()) - len(word)
    assert fold.trace("space").text == word


def test_a_character_never_completed_is_the_rest() -> None:
    fold = race()
    fold.add("space", Step((0x100 + "é".encode()[0],), 0, (), 1, 0.01))
    assert fold.delta()["lanes"]["space"]["rest"] == ""
    fold.end(frames.State.STOPPED)
    assert fold.snapshot()["lanes"]["space"]["rest"] == "\ufffd"


def test_encoded_frames_hold_no_markup() -> None:
    fold = race()
    hostile = "</script><img src=x onerror=alert(1)>&lt;${alert(1)}`\u2028"
    for letter in hostile:
        fold.add("vanilla", Step((ord(letter),), 0, (), 1, 0.01))
    text = frames.encode(fold.snapshot())
    assert not set("<>&") & set(text)
    assert "".join(piece for c in json.loads(text)["calls"] for piece, _ in c["tokens"]) == hostile


def test_drafts_are_told_again_only_where_they_changed() -> None:
    fold = race()
    fold.add("space", SPACE[0])
    fold.add("space", Step(ids("bc"), 1, ids("b"), 9, 0.01, (0.9,)))
    pruned = fold.delta()["calls"][1]
    assert pruned["verified"] == 1
    assert "drafts" not in pruned
    fold = race()
    fold.add("space", SPACE[0])
    fold.add("space", Step(ids("z"), 0, ids("yz"), 9, 0.01, (0.5,)))
    assert fold.delta()["calls"][1]["drafts"] == [("y", 0.5), ("z", None)]


def test_ending_twice_keeps_the_first_end() -> None:
    fold = race()
    add_all(fold)
    fold.end()
    fold.end(frames.State.STOPPED)
    fold.add("vanilla", VANILLA[0])
    assert fold.snapshot()["state"] == "done"
    assert fold.snapshot()["lanes"]["vanilla"]["calls"] == 6, "a call behind the end"
    assert fold.trace("space").text == "abcdef"
    assert fold.trace("vanilla").output_ids == ids("abcdef")


# ---------------------------------------------------------------- verdict


def test_a_won_race() -> None:
    result = verdict(run(SPACE, "space"), run(VANILLA, "vanilla"))
    assert result["sentence"] == (
        "SPACE: 3 calls, 0.04 s; vanilla: 6 calls, 0.12 s; 2.0 tokens per call, 3.0× faster; "
        "outputs identical."
    )
    assert (result["headline"], result["badge"], result["identical"]) == (
        "3.0× faster",
        "outputs identical",
        True,
    )
    assert result["tone"] == "good"
    assert result["speedup"] == pytest.approx(3)


def test_drafts_that_no_mask_guessed_are_told_apart() -> None:
    stood = [step.accepted for step in SPACE]
    assert "copied" not in verdict(run(SPACE, "space"), run(VANILLA, "vanilla"))["sentence"]
    steps = [replace(step, copied=at == 1) for at, step in enumerate(SPACE)]
    sentence = verdict(run(steps, "space"), run(VANILLA, "vanilla"))["sentence"]
    were = "was" if stood[1] == 1 else "were"
    assert f"{stood[1]} of {sum(stood)} drafts that stood {were} copied from the text." in sentence
    steps = [replace(step, copied=True) for step in SPACE]
    assert (
        f"All {sum(stood)} drafts that stood were copied"
        in verdict(run(steps, "space"), run(VANILLA, "vanilla"))["sentence"]
    )


def scaled(steps: Sequence[Step], factor: float) -> list[Step]:
    return [
        Step(s.emitted, s.accepted, s.drafts, s.rows, s.seconds * factor, s.draft_probs, s.groups)
        for s in steps
    ]


@pytest.mark.parametrize(
    "factor, headline, tone",
    [
        (1, "3.0× faster", "good"),
        (2.8, "1.07× faster", "good"),
        (3, "as fast as vanilla", "even"),
        (3.06, "as fast as vanilla", "even"),
        (3.9, "1.3× slower", "bad"),
        (30, "10.0× slower", "bad"),
    ],
)
def test_a_slow_down_is_told_as_plainly_as_a_gain(factor: float, headline: str, tone: str) -> None:
    result = verdict(run(scaled(SPACE, factor), "space"), run(VANILLA, "vanilla"))
    assert (result["headline"], result["tone"]) == (headline, tone)
    assert headline in result["sentence"]


def test_outputs_that_differ_say_where() -> None:
    other = (*VANILLA[:3], Step(ids("Z"), 0, (), 1, 0.02), *VANILLA[4:])
    result = verdict(run(SPACE, "space"), run(other, "vanilla"))
    assert result["identical"] is False
    assert result["badge"] == "outputs differ at token 4"
    assert "outputs differ from token 4 on" in result["sentence"]
    assert result["tone"] == "bad"
    half = verdict(run(SPACE, "space", dtype="bfloat16"), run(other, "vanilla", dtype="bfloat16"))
    assert "bfloat16 can flip" in half["sentence"]


def test_a_shorter_output_is_not_identical() -> None:
    result = verdict(run(SPACE, "space"), run(VANILLA[:4], "vanilla"))
    assert result["identical"] is False
    assert result["badge"] == "outputs differ at token 5"


def test_unequal_counts_are_compared_by_tokens_per_second() -> None:
    result = verdict(run(SPACE, "space"), run(VANILLA[:3], "vanilla"), stopped=True)
    assert "3.0× faster by tokens per second (SPACE wrote 6, vanilla 3)" in result["sentence"]
    assert result["speedup"] == pytest.approx(3)


def test_sampled_outputs_need_not_be_identical() -> None:
    result = verdict(run(SPACE, "space", 0.8), run(VANILLA[:5], "vanilla", 0.8))
    assert result["identical"] is None
    assert "differ by chance" in result["sentence"]
    assert "identical" not in result["sentence"]
    assert result["tone"] == "good"


@pytest.mark.parametrize(
    "stop, words", [(Stop.CANCELLED, "Stopped, "), (Stop.DEADLINE, "Stopped at the deadline, ")]
)
def test_a_stopped_race_says_how_far_it_came(stop: Stop, words: str) -> None:
    result = verdict(run(SPACE[:2], "space", stop=stop), run(VANILLA[:2], "vanilla", stop=stop), stopped=True)
    assert result["sentence"].startswith(words + "SPACE at 3 of 6 and vanilla at 2 of 6 tokens. ")
    assert "outputs identical for the 2 tokens both have" in result["sentence"]
    assert (result["badge"], result["identical"]) == ("identical so far", True)


def test_stopped_before_both_lanes_moved() -> None:
    for space, vanilla in (((), ()), (SPACE[:1], ()), ((), VANILLA[:1])):
        result = verdict(run(space, "space"), run(vanilla, "vanilla"), stopped=True)
        assert result["identical"] is None
        assert result["speedup"] is None
        assert "nothing to compare" in result["sentence"]


def test_no_seconds_is_no_speed() -> None:
    result = verdict(run(scaled(SPACE, 0), "space"), run(VANILLA, "vanilla"))
    assert result["headline"] == "speed unknown"
    assert result["speedup"] is None


LOOKUP = (
    Step(ids("a"), 0, (), 7, 0.02),
    Step(ids("bcdef"), 4, ids("bcdeX"), 6, 0.02, stop=Stop.MAX_NEW_TOKENS),
)


def test_lanes_are_the_peers_and_have_words() -> None:
    from space_core.peers import Peer

    assert list(FURTHER) == list(Peer)
    assert [*NAMES] == [*MAIN, *FURTHER] == [*figures.DASHES] == [*figures.LANES]


def test_a_further_lane_gets_a_clause_behind_the_verdict() -> None:
    space, vanilla = run(SPACE, "space"), run(VANILLA, "vanilla")
    alone = verdict(space, vanilla)
    result = verdict(space, vanilla, [run(LOOKUP, "prompt-lookup"), run(VANILLA, "generate")])
    assert result["sentence"] == (
        alone["sentence"].removesuffix(".")
        + "; prompt lookup: 2 calls, 0.04 s, 3.0× faster than vanilla"
        + "; generate: 6 calls, 0.12 s, as fast as vanilla."
    )
    assert {**result, "sentence": ""} == {**alone, "sentence": ""}, "the race is SPACE against vanilla"


def test_a_further_lane_that_differs_is_told_and_leaves_the_badge_to_the_two() -> None:
    other = (*VANILLA[:3], Step(ids("Z"), 0, (), 1, 0.02), *VANILLA[4:])
    space, vanilla = run(SPACE, "space"), run(VANILLA, "vanilla")
    result = verdict(space, vanilla, [run(other, "assisted")])
    assert result["sentence"].endswith(
        "; assisted: 6 calls, 0.12 s, as fast as vanilla, its output differs from token 4 on."
    )
    assert (result["badge"], result["identical"]) == ("SPACE and vanilla identical", True)
    half = verdict(space, vanilla, [run(other, "assisted", dtype="float16")])
    assert "its output differs from token 4 on (float16 can flip" in half["sentence"]
    sampled = [
        run(steps, name, 0.8) for steps, name in ((SPACE, "space"), (VANILLA, "vanilla"), (other, "assisted"))
    ]
    result = verdict(*sampled[:2], sampled[2:])
    assert (result["badge"], "token 4" in result["sentence"]) == ("same distribution", False)


def test_a_further_lane_of_a_stopped_race() -> None:
    traces = [
        run(steps, name, stop=Stop.CANCELLED)
        for steps, name in (
            (SPACE[:2], "space"),
            (VANILLA[:2], "vanilla"),
            (LOOKUP[:1], "prompt-lookup"),
            ((), "assisted"),
        )
    ]
    result = verdict(traces[0], traces[1], traces[2:], stopped=True)
    assert result["sentence"].endswith(
        "; prompt lookup: 1 call, 0.02 s, as fast as vanilla by tokens per second (it wrote 1, vanilla 2); "
        "assisted: no call yet."
    )
    assert result["badge"] == "identical so far"


def test_a_race_of_three_lanes() -> None:
    request = Settings(k=2, max_new_tokens=6)
    fold = frames.Race((*MAIN, "prompt-lookup"), Letters(), ids("p"), "p", request, "m", "cpu", "float32")
    for lane, steps in zip(("prompt-lookup", "vanilla", "space"), (LOOKUP, VANILLA, SPACE), strict=True):
        for step in steps:
            fold.add(lane, step)
    fold.end()
    last = fold.snapshot()
    assert list(last["lanes"]) == ["space", "vanilla", "prompt-lookup"]
    copied = [c for c in last["calls"] if c["lane"] == "prompt-lookup"][1]
    assert copied["drafts"] == [(letter, None) for letter in "bcdeX"]
    assert copied["tokens"][-2:] == [("e", "accepted"), ("f", "corrected")]
    assert [trace.method for trace in fold.traces()] == list(last["lanes"])
    assert "prompt lookup: 2 calls" in last["verdict"]["sentence"]
    figure = figures.clock_figure(*fold.traces())
    assert [line.name for line in figure.data] == ["vanilla", "prompt lookup", "SPACE"]
    assert (
        len({line.line.color for line in figure.data}) == len({line.line.dash for line in figure.data}) == 3
    )


# ---------------------------------------------------------------- figures


def test_calls_figure_stacks_origins_under_the_ceiling() -> None:
    figure = figures.calls_figure(run(SPACE, "space"))
    bars = {trace.name: list(trace.y) for trace in figure.data if trace.type == "bar"}
    assert bars == {
        figures.WORDS[Origin.OWN]: [1, 0, 0],
        figures.WORDS[Origin.ACCEPTED]: [0, 1, 2],
        figures.WORDS[Origin.CORRECTED]: [0, 1, 0],
        figures.WORDS[Origin.BONUS]: [0, 0, 1],
    }
    mean = next(trace for trace in figure.data if trace.name == "mean so far")
    assert list(mean.y) == [1, 1.5, 2]
    assert figure.layout.shapes[0].y0 == 3
    assert figure.layout.paper_bgcolor == figure.layout.plot_bgcolor == "rgba(0,0,0,0)"


def test_calls_figure_tells_copied_drafts_from_those_of_masks() -> None:
    steps = [replace(step, copied=at == 2) for at, step in enumerate(SPACE)]
    figure = figures.calls_figure(run(steps, "space"))
    bars = {trace.name: list(trace.y) for trace in figure.data if trace.type == "bar"}
    assert bars[figures.WORDS[Origin.ACCEPTED]] == [0, 1, 0] and bars[figures.COPIED] == [0, 0, 2]
    assert bars[figures.WORDS[Origin.BONUS]] == [0, 0, 1]


def test_clock_figure_ends_at_both_lanes_totals() -> None:
    figure = figures.clock_figure(run(SPACE, "space"), run(VANILLA, "vanilla"))
    ends = {trace.name: (round(trace.x[-1], 6), trace.y[-1]) for trace in figure.data}
    assert ends == {"vanilla": (0.12, 6), "SPACE": (0.04, 6)}


def test_running_mean() -> None:
    assert figures.running_mean([]) == []
    assert figures.running_mean([3, 1, 2]) == [3, 2, 2]
