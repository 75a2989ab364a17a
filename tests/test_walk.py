"""The lessons: what is recorded, and sentences that follow the figures and not one checkpoint."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from typing import Any

import pytest
from tiny import oracle

from space_core.layout import Layout
from space_core.trace import Step, Trace
from space_core.views import benchmarks, inspect, lessons, walk

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
LAYOUT = Layout.grid(2)


@pytest.fixture
def told() -> dict[str, Any]:
    recorded = walk.read()
    assert recorded is not None
    return recorded


def machine(*ratios: tuple[int, float]) -> dict[str, Any]:
    return {"name": "box", "words": "model on box", "points": list(ratios)}


FLAT = machine((1, 1.0), (36, 1.0), (81, 1.0))
STEEP = machine((1, 1.0), (36, 36.0), (81, 81.0))


def told_walk(told: dict[str, Any], *machines: dict[str, Any]) -> dict[str, Any]:
    steps = walk.walk(told, list(machines), [])
    return {step["id"]: step for step in steps["steps"]} | {"questions": steps["questions"]}


# ---------------------------------------------------------------- rules


@pytest.mark.parametrize("rule", ["space", "order", "assume"])
def test_a_rule_that_leaves_real_rows_alone_leaves_the_text_alone(llama, rule) -> None:
    calls = lessons.ruled_decode(llama, PROMPT, 3, 40, rule)
    assert [token for call in calls for token in call] == oracle(llama.lm, PROMPT, 40)
    assert len(calls) <= 40


@pytest.mark.parametrize("rule", ["ahead", "masks"])
def test_a_rule_that_leaks_into_real_rows_breaks_the_text(llama, rule) -> None:
    calls = lessons.ruled_decode(llama, PROMPT, 3, 40, rule)
    assert [token for call in calls for token in call] != oracle(llama.lm, PROMPT, 40)


def test_a_rules_map_tells_what_it_leaks() -> None:
    right, plain = LAYOUT.sees().tolist(), inspect.structure(LAYOUT)["whys"]
    reasons = {**inspect.reasons(), **lessons.REASONS}
    for rule, sees in lessons.RULES.items():
        told = lessons.whys(LAYOUT, rule)
        for r, line in enumerate(sees(LAYOUT).tolist()):
            assert [reasons[letter][0] for letter in told[r][1:]] == line, rule
            for c, seen in enumerate(line):
                if seen == right[r][c]:
                    assert told[r][c + 1] == plain[r][c + 1]
                else:
                    assert told[r][c + 1] == (lessons.LEAK if seen else lessons.LOST)
    assert lessons.whys(LAYOUT, "space") == plain


def test_ruled_decoding_ends_at_the_budget_and_at_an_end_token(llama, monkeypatch) -> None:
    free = oracle(llama.lm, PROMPT, 12)
    for budget in (1, 2, 7):
        calls = lessons.ruled_decode(llama, PROMPT, 3, budget, "space")
        assert [token for call in calls for token in call] == free[:budget]
    monkeypatch.setattr(llama, "eos_ids", frozenset([free[5]]))
    calls = lessons.ruled_decode(llama, PROMPT, 3, 12, "space")
    assert [token for call in calls for token in call] == free[: free.index(free[5]) + 1]


# ---------------------------------------------------------------- what is counted


def test_trust_counts_drafts_up_to_the_first_that_fell() -> None:
    steps = (
        Step((1, 2, 9), 2, (1, 2, 3, 4), 9, 0.0, (1.0, 0.9, 0.1, 0.95)),
        Step((8,), 0, (5, 6), 9, 0.0, (0.5, 0.99)),
        Step((8,), 0, (), 1, 0.0),
    )
    trace = Trace("m", "space", 4, "float32", "cpu", (1,), steps)
    counts = {row[0]: row[2:] for row in lessons.trust([trace])}
    assert counts == {0.0: (1, 0), 0.2: (0, 0), 0.4: (1, 0), 0.6: (0, 0), 0.8: (2, 2)}


def test_cost_lies_on_the_measured_line() -> None:
    box = machine((1, 1.0), (4, 1.6), (16, 2.8))
    assert walk.cost(box, 4) == 1.6
    assert walk.cost(box, 10) == pytest.approx(2.2)
    assert walk.cost(box, 28) == pytest.approx(4.0), "behind the last point its slope goes on"
    assert walk.cost(machine((1, 1.0)), 9) == 1.0


# ---------------------------------------------------------------- the recording


def test_the_bundled_recording_is_whole_and_small(told: dict[str, Any]) -> None:
    text = walk.PATH.read_text(encoding="utf-8")
    assert 0 < len(text.encode()) < walk.MAX_BYTES
    assert not set("<>&") & set(text)
    assert walk.encode(told) == text
    close = told["close"]
    opened = close["opened"]
    assert "".join(piece for call in close["calls"] for piece, _ in call) == "".join(close["plain"])
    assert len(close["asked"]) == len(opened["chain"]) - 1
    assert opened["chain"][0] == close["plain"][close["written"] - 1]
    assert [piece for piece, _ in close["calls"][close["call"] - 1][:-1]] == [
        piece for piece, fate in zip(opened["chain"], opened["fates"], strict=True) if fate == "accepted"
    ]
    assert {rule["id"] for rule in told["rules"]["rules"]} == set(lessons.RULES)
    assert len(told["rounds"]) > 1
    for table in (told["gains"]["trained"], told["gains"]["untrained"]):
        assert [len(line) for line in table] == [len(lessons.KS)] * len(lessons.TEMPERATURES)
        assert all(gain >= 1 for line in table for gain in line)


def test_spaces_rule_was_recorded_without_a_break_and_a_leaky_one_with(told: dict[str, Any]) -> None:
    broken = {rule["id"]: rule["broken"] for rule in told["rules"]["rules"]}
    assert broken["space"] == 0
    assert broken["masks"] > 0


def test_no_recording_is_no_error(tmp_path) -> None:
    assert walk.read(tmp_path / "none.json") is None
    assert walk.page(tmp_path / "none.json") == ""
    for text in ("{", "[]", '{"format": "space-race/1"}'):
        (tmp_path / "bad.json").write_text(text)
        assert walk.page(tmp_path / "bad.json") == ""


def test_the_walk_needs_no_benchmark(tmp_path) -> None:
    told = json.loads(walk.page(results=tmp_path))
    assert told["steps"][0]["machine"] is None
    assert [place["name"] for place in told["steps"][-1]["places"]] == [
        "a machine whose rows are free (imagined)"
    ]


def test_the_page_gets_the_walk_without_torch() -> None:
    code = (
        "import sys; from space_core.views import walk; assert walk.page(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_recording_takes_one_line(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(lessons, "KS", range(1, 3))
    monkeypatch.setattr(lessons, "TEMPERATURES", (0.0,))
    out, prompts = tmp_path / "lessons.json", tmp_path / "prompts.txt"
    prompts.write_text("def f(x):\n    return x\n---\nimport os\n")
    line = ["--max-new-tokens", "20", "--prompts", str(prompts), "--out", str(out)]
    assert lessons.main(line) == 0
    told = walk.read(out)
    assert told is not None and told["gains"]["prompts"] == 2
    assert json.loads(walk.page(out))["format"] == walk.WALK
    assert lessons.main(["--model", str(tmp_path), "--out", str(out)]) == 2
    assert lessons.main(["--max-new-tokens", "1", "--prompts", str(prompts), "--out", str(out)]) == 2


# ---------------------------------------------------------------- words follow figures


def test_no_sentence_knows_a_token(told: dict[str, Any]) -> None:
    """Other tokens in the same shape: every title, task and verdict stays as it is."""

    def renamed(value: Any) -> Any:
        if isinstance(value, str):
            return f"<{value}>"
        if isinstance(value, list):
            return [renamed(each) for each in value]
        return value

    other = copy.deepcopy(told)
    close, opened = other["close"], other["close"]["opened"]
    for name in ("prompt", "plain", "anchor"):
        close[name] = renamed(close[name])
    close["asked"] = [[[renamed(piece), p] for piece, p in row] for row in close["asked"]]
    close["calls"] = [[[renamed(piece), origin] for piece, origin in call] for call in close["calls"]]
    opened["chain"], opened["own"] = renamed(opened["chain"]), renamed(opened["own"])
    opened["guesses"] = [[[renamed(piece), p] for piece, p in row] for row in opened["guesses"]]
    before, after = told_walk(told, FLAT), told_walk(other, FLAT)
    for name in before:
        if name == "questions":
            assert before[name] == after[name]
            continue
        for field in ("title", "lead", "task", "right", "wrong", "hits", "chosen", "end", "learned", "heat"):
            assert before[name].get(field) == after[name].get(field), (name, field)
    text = json.dumps(after["verify"]["chain"])
    assert "<" in text, "the tokens themselves are the other ones"
    assert not set("<>&") & set(walk._text(other))


@pytest.mark.parametrize(
    ("fates", "words"),
    [
        (["newest", "accepted", "accepted", "accepted"], "All 3 drafts stood"),
        (["newest", "rejected", "unreached", "unreached"], "Draft 1 fell, so none stood"),
        (["newest", "accepted", "rejected", "unreached"], "Draft 1 stood, draft 2 fell"),
        (["newest", "accepted", "accepted", "rejected"], "Drafts 1 and 2 stood, draft 3 fell"),
    ],
)
def test_every_outcome_of_a_call_can_be_told(told: dict[str, Any], fates: list[str], words: str) -> None:
    opened = told["close"]["opened"]
    opened["fates"], opened["group"] = fates, fates.count("accepted")
    steps = told_walk(told, FLAT)
    assert words in steps["verify"]["right"]
    assert words in steps["grid"]["chosen"]
    assert words in steps["keep"]["task"]
    assert ("thrown away unread" in steps["verify"]["right"]) == ("unreached" in fates)
    kept = 1 + fates.count("accepted")
    assert steps["keep"]["right"].startswith(f"{kept} row{'s' if kept > 1 else ''} of 16 stay")


def test_a_machine_where_rows_cost_calls_is_told_plainly(told: dict[str, Any]) -> None:
    steep, flat = told_walk(told, STEEP), told_walk(told, FLAT)
    assert "more rows save nothing" in steep["rows"]["measured"]
    assert "SPACE puts guesses into it" in flat["rows"]["measured"]
    goals = {
        name: [goal["id"] for goal in steps["train"]["goals"]]
        for name, steps in (("steep", steep), ("flat", flat))
    }
    assert goals == {"steep": ["slower", "best"], "flat": ["faster", "best"]}
    slower = {q["question"]: q["answer"] for q in steep["questions"]}["Why can it be slower on a CPU?"]
    assert "costs 36.0 plain calls" in slower and slower.count("× slower") == 2
    fast = {q["question"]: q["answer"] for q in flat["questions"]}["Why can it be slower on a CPU?"]
    assert "costs 1.00 plain calls" in fast and "× slower" not in fast
    gains = told["gains"]
    rates = {masks: [line[4] for line in gains[masks]] for masks in ("trained", "untrained")}
    best = max(rates["trained"])
    assert fast.endswith(f"trained masks, greedy: {walk._number(best)} tokens a call, {walk._speed(best)}.")


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("abc", "All 3 masks were right"),
        ("xyz", "None of the masks was right"),
        (
            "abx",
            "2 of 3 masks were right this time. The further on a mask asks, the more tokens it does not see.",
        ),
        ("axc", "before the first wrong one would count: 1."),
        ("xbc", "before the first wrong one would count: 0."),
    ],
)
def test_of_right_masks_those_behind_a_wrong_one_do_not_count(written: str, words: str) -> None:
    told = walk._hits([[[piece, 0.5]] for piece in "abc"], list(written))
    assert words in told and ("count" in words) == ("count" in told)


def test_where_the_chart_flatters_it_is_said(told: dict[str, Any]) -> None:
    benches, calls = benchmarks.read(walk.BENCHMARKS)
    drawn = max(told["gains"]["trained"][0])
    for gain, less in ((drawn, True), (0.1, False)):
        told["gains"]["trained"] = [[gain] * 8 for _ in told["gains"]["trained"]]
        words = walk.walk(told, walk.machines(calls), benches)["steps"][-1]["planner"]
        assert ("less than the bar above" in words) == less


def outcome(told: dict[str, Any], name: str, **changes: Any) -> str:
    rules = told["rules"]
    for rule in rules["rules"]:
        if rule["id"] == name:
            rule.update(changes)
    return next(r for r in told_walk(told, FLAT)["sight"]["rules"] if r["id"] == name)["outcome"]


def test_what_a_rule_did_is_said_as_it_was(told: dict[str, Any]) -> None:
    assert "another text came out" in outcome(copy.deepcopy(told), "masks", broken=2)
    assert "by luck" in outcome(copy.deepcopy(told), "masks", broken=0)
    assert "check is sound" in outcome(copy.deepcopy(told), "order", broken=0)
    worse = outcome(copy.deepcopy(told), "order", broken=0, calls=500, tokens=600)
    assert "guesses got worse" in worse and "1.20 tokens a call" in worse
    better = outcome(copy.deepcopy(told), "order", broken=0, calls=100, tokens=600)
    assert "a little better" in better and "6.0 tokens a call" in better
    assert "nearly as likely" in outcome(copy.deepcopy(told), "order", broken=1)
    assert "nearly as likely" in outcome(copy.deepcopy(told), "space", broken=1)


def test_texts_that_part_are_not_called_the_same(told: dict[str, Any]) -> None:
    assert told_walk(told)["keep"]["end"].startswith("Token for token the same text")
    told["close"]["equal"] = False
    assert "same text" not in told_walk(told)["keep"]["end"]


def test_how_the_masks_were_trained_is_said(told: dict[str, Any]) -> None:
    leads = set()
    for method in ("gated", "paper", "untrained"):
        told["masks"]["method"] = method
        leads.add(told_walk(told)["train"]["lead"][0])
    assert len(leads) == 3


def test_all_that_was_trained_is_said(told: dict[str, Any]) -> None:
    words = {}
    for sampler in (True, False):
        for copies in (True, False):
            told["masks"] |= {"method": "gated", "sampler": sampler, "copies": copies}
            steps = told_walk(told)
            words[sampler, copies] = steps["train"]["lead"][0]
            assert ("a sampler head" in words[sampler, copies]) == sampler
            assert ("a small table" in words[sampler, copies]) == copies
            assert ("each guess is told" in steps["guess"]["lead"][0]) == (sampler or copies)
    assert (
        "Beside them learn a sampler head" in words[True, True] and " and a small table" in words[True, True]
    )
    told["masks"] |= {"method": "untrained", "sampler": True}
    assert "sampler" not in told_walk(told)["train"]["lead"][0]


def test_rows_that_are_not_free_are_not_called_so(told: dict[str, Any]) -> None:
    def words(ratio: float) -> str:
        machine = {"name": "a machine", "words": "it", "points": [(1, 1.0), (36, ratio)]}
        steps = walk.walk(told, [machine], [])["steps"]
        return str(steps[0]["measured"])

    assert "worth it only if it writes more than 2.7 tokens" in words(2.7)
    assert "not free" not in words(1.0) and "stays empty" in words(1.0)
    assert "save nothing" in words(34.0)


def test_heat_and_loops_follow_the_figures(told: dict[str, Any]) -> None:
    told["gains"]["trained"] = [[2.0] * 8, [1.5] * 8, [1.2] * 8]
    told["gains"]["looping"] = 0
    train = told_walk(told)["train"]
    assert "fewer guesses stand" in train["heat"] and "run in circles" not in train["basis"]
    told["gains"]["trained"] = [[2.0] * 8] * 3
    told["gains"]["looping"] = 2
    train = told_walk(told)["train"]
    assert "changes little" in train["heat"] and "2 of the 6 greedy texts run in circles" in train["basis"]


def test_a_trust_without_drafts_and_with_one_bin(told: dict[str, Any]) -> None:
    told["trust"] = [[0.0, 0.2, 0, 0], [0.2, 0.4, 0, 0]]
    assert told_walk(told)["guess"]["trusted"] == "No draft was judged in these runs."
    told["trust"] = [[0.0, 0.2, 0, 0], [0.2, 0.4, 8, 2]]
    assert told_walk(told)["guess"]["trusted"] == "Of 8 judged drafts in all recorded runs, 25% stood."


def test_the_benchmarks_own_figures_are_quoted(told: dict[str, Any]) -> None:
    benches, calls = benchmarks.read(walk.BENCHMARKS)
    steps = walk.walk(told, walk.machines(calls), benches)["steps"]
    grid, planned = (
        next(score for bench in benches for score in bench.scores if (score.method, score.k) == (method, 5))
        for method in ("space-grid", "space")
    )
    assert f"{grid.speedup:.2f}×" in steps[-1]["planner"]
    assert f"{planned.speedup:.2f}×" in steps[-1]["planner"]
    first = next(calls[0].lines())[2]
    asked = steps[0]["asked"]
    assert steps[0]["ratio"] == pytest.approx(next(t.ratio for t in first if t.rows == asked), abs=1e-3)
