"""The benchmark: its folds by hand-made traces, its peers, and the command line on a tiny checkpoint."""

from __future__ import annotations

import json
import math
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import output, tiny_lm, trained_like_masks

from space_core import Settings, metrics, peers, race, scores, vanilla
from space_core.__main__ import main
from space_core.bench import Column, Measured, Method, check_output, columns, measure, summarize
from space_core.errors import CheckpointError, PromptError, SettingError
from space_core.model import Masks, SpaceModel
from space_core.prompts import Prompt, read_prompts, turn_ids
from space_core.racing import STRETCH, abreast
from space_core.scores import Run, Skip, Split, report, summary, to_json
from space_core.settings import Plan
from space_core.trace import Step, Stop, Trace

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]


pytestmark = pytest.mark.usefixtures("as_before")


def trace(*steps: Step, k: int = 0) -> Trace:
    return Trace("tiny", "any", k, "float64", "cpu", (1, 2, 3), steps)


def step(emitted: tuple[int, ...], drafts: tuple[int, ...] = (), rows: int = 1) -> Step:
    return Step(emitted, metrics.longest_common_prefix(emitted, drafts), drafts, rows, 1.0)


def plain(ids: range | tuple[int, ...]) -> Trace:
    return trace(*(step((token,)) for token in ids))


def runs(*made: tuple[Trace, float], categories: str = "aab") -> list[Run]:
    return [Run(f"p{i}", categories[i % 3], 0, 0, each, s) for i, (each, s) in enumerate(made)]


FOUR = trace(step((0,), rows=5), step((1, 2, 3), (1, 2), rows=9), k=2)
"""Four tokens in two calls; both drafts stood."""
SAME = trace(step((4,), rows=5), step((5,), (9, 9), rows=9), step((6, 7), (6, 9), rows=7), k=2)


def test_a_summary_counts_tokens_calls_seconds_and_the_ratio_to_vanilla():
    reference = runs((plain(range(4)), 4.0), (plain(range(4, 8)), 4.0))
    line = summary("space", 2, "grid", runs((FOUR, 1.0), (SAME, 3.0)), reference)
    assert (line.tokens, line.calls, line.tokens_per_call) == (8, 5, 1.6)
    assert (line.seconds, line.tokens_per_second, line.speedup) == (4.0, 2.0, 2.0)
    assert line.speedup_spread == (4 / 3, pytest.approx(8 / 3), 4.0)
    assert line.identical_to_vanilla == 1 and line.first_split is None
    assert line.rows_per_call == pytest.approx((9 + 9 + 7) / 3)
    assert line.acceptance_by_position == [2 / 3, 1 / 3]
    assert line.tokens_per_call_histogram == {1: 3, 2: 1, 3: 1}
    assert (line.method, line.k, line.plan, line.dtype) == ("space", 2, "grid", "float64")


def test_outputs_of_another_length_are_compared_by_tokens_per_second():
    line = summary("space", 2, None, runs((plain(range(2)), 1.0)), runs((plain(range(4)), 4.0)))
    assert line.speedup == 2.0
    assert line.identical_to_vanilla == 0 and line.first_split == Split("p0", 0, 2)


def test_seconds_spread_over_repetitions_and_categories_are_folded_apart():
    other = plain((0, 1, 9, 3))
    made = [
        Run(prompt, category, 0, repetition, trace_, seconds)
        for repetition, seconds in enumerate((1.0, 2.0, 4.0))
        for prompt, category, trace_ in (("p", "math", FOUR), ("q", "code", other))
    ]
    reference = [Run(r.prompt, r.category, 0, r.repetition, plain(range(4)), 4.0) for r in made]
    line = summary("space", 2, "auto", made, reference)
    assert line.seconds_spread == (2.0, 4.0, 8.0)
    assert list(line.categories) == ["math", "code"]
    assert line.categories["math"].tokens == 12 and line.categories["math"].calls == 6
    assert line.categories["math"].speedup == pytest.approx(12 / 7)
    assert line.categories["math"].identical_to_vanilla == 1
    assert line.categories["code"].identical_to_vanilla == 0
    assert line.first_split == Split("q", 0, 2)
    assert "first differs" in report([line], []) and "math" in report([line], [])


def test_looping_outputs_are_counted_apart():
    loop = trace(*(step((7, 7, 7), (7, 7), rows=9) for _ in range(4)))
    straight = plain(range(12))
    reference = runs((plain((7,) * 12), 12.0), (straight, 12.0))
    line = summary("space", 2, "grid", runs((loop, 1.0), (straight, 6.0)), reference)
    assert line.loops.share == 0.5
    assert (line.loops.tokens_per_call, line.loops.speedup) == (1.0, 2.0)
    only = summary("space", 2, "grid", runs((loop, 1.0)), reference[:1])
    assert only.loops.tokens_per_call is None and only.loops.speedup is None


def test_json_of_a_summary_is_plain_and_the_table_is_aligned():
    reference = runs((plain(range(4)), 4.0))
    line = summary("prompt-lookup", 0, None, runs((FOUR, 1.0)), reference)
    data = json.loads(json.dumps(to_json([line])))[0]
    assert data["tokens_per_call_histogram"] == {"1": 1, "3": 1} and data["k"] == 2
    assert data["loops"]["share"] == 0 and data["categories"]["a"]["tokens"] == 4
    text = report([line, line], [Skip("p", 0, "too long"), Skip("q", 1, "too long")])
    rows = text.splitlines()[:3]
    assert len({len(row) for row in rows}) == 1
    assert "skipped 2: too long" in text


def test_columns_are_named_once_with_vanilla_first():
    lines = columns(["space", "generate", "space", "space-grid"], (1, 3), "auto")
    assert lines[0] == Column(Method.VANILLA)
    assert [line.k for line in lines] == [0, 1, 3, 0, 1, 3]
    assert lines[1].plan is Plan.AUTO and lines[4].plan is Plan.GRID
    with pytest.raises(SettingError, match="unknown method 'magic': known are vanilla, space"):
        columns(["magic"], (5,), "auto")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not JSON"),
        ("[" * 99_999, "not JSON"),
        ("[]", "not an object"),
        ('{"prompt": "x"}', "neither"),
        ('{"task_id": 1, "prompt": 5}', "prompt must be text"),
        ('{"task_id": 1, "prompt": "  "}', "prompt must be text"),
        ('{"task_id": 1, "prompt": "\\ud800"}', "prompt must be text"),
        ('{"task_id": [], "prompt": "x"}', "task_id must"),
        ('{"question_id": 1, "turns": "x"}', "turns must be a list of text"),
        ('{"question_id": 1, "turns": []}', "turns must be a list of text"),
        ('{"question_id": 1, "category": 3, "turns": ["x"]}', "category must be text"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, says):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"task_id": "a", "prompt": "x"}\n\n' + line + "\n")
    with pytest.raises(PromptError, match=rf"prompts\.jsonl, line 3: .*{says}"):
        read_prompts(path)
    assert len(read_prompts(path, limit=1)) == 1


def test_both_forms_are_read(tmp_path):
    path = tmp_path / "prompts.jsonl"
    rows = [
        {"task_id": "HumanEval/0", "prompt": "x\u2028y", "entry_point": "f"},
        {"question_id": 81, "category": "writing", "turns": ["a", "b"], "reference": []},
    ]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    assert read_prompts(path) == (
        Prompt("HumanEval/0", "all", ("x\u2028y",), chat=False),
        Prompt("81", "writing", ("a", "b"), chat=True),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A random checkpoint with a byte tokenizer; its context holds 128 tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=256, max_position_embeddings=128, bos_token_id=None, eos_token_id=None, **sizes
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)
    path = tmp_path_factory.mktemp("models") / "tiny"
    model.save_pretrained(path)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def opened(folder) -> SpaceModel:
    import space_core

    return space_core.load(folder, dtype="float64")


def test_a_second_turn_holds_the_conversation_so_far(opened):
    prompt = Prompt("1", "all", ("Hi.", "Why?"), chat=True)
    assert opened.decode(turn_ids(opened, prompt, [])) == "Hi."
    assert opened.decode(turn_ids(opened, prompt, ["Yes."])) == "Hi.\n\nYes.\n\nWhy?"
    opened.tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    try:
        text = opened.decode(turn_ids(opened, prompt, ["Yes."]))
        assert text == "[user]Hi.[assistant]Yes.[user]Why?[assistant]"
        assert opened.decode(turn_ids(opened, Prompt("2", "all", ("x",), chat=False), [])) == "x"
        opened.tokenizer.chat_template = "{{ raise_exception('no') }}"
        with pytest.raises(PromptError, match="chat template refuses"):
            turn_ids(opened, prompt, [])
    finally:
        opened.tokenizer.chat_template = None


def test_each_method_goes_on_in_its_own_conversation_and_long_turns_are_skipped(opened):
    prompts = [
        Prompt("1", "a", ("Hello", "Go on"), chat=True),
        Prompt("2", "b", ("x" * 500,), chat=False),
        Prompt("3", "b", ("y", "z" * 120), chat=True),
    ]
    lines = columns(["space-grid"], (2,), "auto")
    calls = []
    settings = Settings(max_new_tokens=6)
    measured = measure(opened, prompts, lines, settings, repetitions=2, progress=lambda: calls.append(0))
    assert len(calls) == 7
    found = measured.runs[lines[1]]
    assert [(run.prompt, run.turn) for run in found] == 2 * [("1", 0), ("1", 1), ("3", 0)]
    answer = opened.decode(found[0].trace.output_ids)
    assert opened.decode(found[1].trace.prompt_ids) == f"Hello\n\n{answer}\n\nGo on"
    assert [(skip.prompt, skip.turn) for skip in measured.skipped] == [("2", 0), ("3", 1)]
    assert all(run.seconds >= run.trace.seconds > 0 for run in found)
    for line in summarize(measured):
        assert line.identical_to_vanilla == 1 and list(line.categories) == ["a", "b"]
    nothing = measure(opened, prompts[1:2], lines, settings)
    with pytest.raises(PromptError, match="no prompt could be decoded: the prompt has 500"):
        summarize(nothing)


def test_columns_that_go_abreast_decode_the_same_and_none_runs_ahead(opened):
    prompts = [Prompt("1", "a", ("Hello",), chat=True), Prompt("2", "b", ("x" * 500,), chat=False)]
    lines, settings = columns(["space-grid", "space"], (2,), "auto"), Settings(max_new_tokens=40)
    moved: list[Column] = []
    measured = measure(opened, prompts, lines, settings, abreast=True, halt=moved.append, warmup=0)
    alone = measure(opened, prompts, lines, settings, warmup=0)
    assert measured.skipped == alone.skipped and len(measured.skipped) == 1
    lengths = dict.fromkeys(lines, 0)
    steps = {line: [s for run in measured.runs[line] for s in run.trace.steps] for line in lines}
    left = {line: iter(found) for line, found in steps.items()}
    for line in moved:
        assert lengths[line] // STRETCH == min(lengths.values()) // STRETCH
        lengths[line] += len(next(left[line]).emitted)
    assert len(moved) == sum(map(len, steps.values()))
    for line in lines:
        pairs = list(zip(measured.runs[line], alone.runs[line], strict=True))
        assert len(pairs) == 1
        for run, single in pairs:
            assert run.trace.output_ids == single.trace.output_ids
            assert run.trace.prompt_ids == single.trace.prompt_ids
            assert (run.trace.method, run.trace.k) == (single.trace.method, single.trace.k)
            assert run.seconds >= run.trace.seconds > 0


def test_a_benchmark_abreast_is_broken_off_and_has_no_methods_of_transformers(opened):
    prompts, settings = [Prompt("1", "a", ("Hello",), chat=True)], Settings(max_new_tokens=6)
    lines = columns(["space"], (2,), "auto")
    measured = measure(opened, prompts, lines, settings, abreast=True, halt=lambda line: line.k == 2)
    assert measured.halted and not any(measured.runs.values())
    with pytest.raises(SettingError, match="call by call"):
        measure(opened, prompts, columns(["generate"], (2,), "auto"), settings, abreast=True)


def test_lanes_abreast_are_charged_for_their_own_calls_alone():
    now, closed = [0.0], []

    def lane(seconds: float, *emitted: int) -> Iterator[Step]:
        try:
            for tokens in emitted:
                now[0] += seconds
                yield step(tuple(range(tokens)))
            now[0] += 100
        finally:
            closed.append(seconds)

    lanes = {"slow": lane(4.0, 1, 1, 1), "fast": lane(1.0, 2, 1)}
    told = [(name, seconds) for name, _, seconds in abreast(lanes, lambda: now[0], 1)]
    assert told == [("slow", 4), ("fast", 1), ("slow", 4), ("slow", 4), ("fast", 1)]
    left = abreast({"slow": lane(5.0, 1, 1), "fast": lane(6.0, 1)}, lambda: now[0], 1)
    next(left), next(left)
    left.close()
    assert closed == [4, 1, 5, 6]


@pytest.fixture(scope="module")
def target() -> SpaceModel:
    lm = tiny_lm()
    return SpaceModel(lm, None, trained_like_masks(lm), eos_ids=())


@pytest.fixture(scope="module")
def other() -> SpaceModel:
    return SpaceModel(tiny_lm(seed=3), None, eos_ids=())


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What transformers logs, also what it would say only once in a process."""
    import logging

    from transformers.utils.logging import warning_once

    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    warning_once.cache_clear()
    logging.getLogger("transformers").addHandler(handler)
    yield lines
    logging.getLogger("transformers").removeHandler(handler)


@pytest.mark.parametrize("method", list(peers.Peer))
def test_peers_write_vanillas_greedy_text(target, other, method, said):
    settings = Settings(max_new_tokens=30)
    expected = output(vanilla(target, PROMPT, settings))
    config = target.lm.generation_config.to_dict()
    random = torch.get_rng_state()
    drafts = [other, target] if method == "assisted" else [None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for draft in drafts:
            whole = peers.run(target, PROMPT, settings, method, draft)
            steps = list(peers.lane(target, PROMPT, settings, method, draft))
            assert list(whole.output_ids) == output(steps) == expected
            assert whole.seconds > 0 and all(step.seconds > 0 for step in steps)
            for mine, theirs in zip(whole.steps, steps, strict=True):
                assert (mine.emitted, mine.drafts, mine.rows) == (theirs.emitted, theirs.drafts, theirs.rows)
            Trace.from_json(whole.to_json())
            assert whole.steps[0].rows >= len(PROMPT) and whole.stop is Stop.MAX_NEW_TOKENS
            if method == "generate":
                assert whole.calls == 30 and whole.k == 0
            elif draft is not other:
                assert whole.calls < 30 and sum(step.accepted for step in steps)
    assert not said
    assert target.lm.generation_config.to_dict() == config and "forward" not in vars(target.lm)
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize("method", list(peers.Peer))
def test_peers_sample_by_their_seed_and_leave_torchs_random_numbers(target, method):
    settings = Settings(max_new_tokens=20, temperature=0.9, top_p=0.9, top_k=20, seed=5)
    random = torch.get_rng_state()
    draft = target if method == "assisted" else None
    whole = peers.run(target, PROMPT, settings, method, draft)
    lanes = {
        "one": peers.lane(target, PROMPT, settings, method, draft),
        "two": peers.lane(target, PROMPT, settings, method, draft),
    }
    outputs: dict[str, list[int]] = {"one": [], "two": []}
    for name, step_, _ in race(lanes):
        outputs[name] += step_.emitted
        assert torch.equal(random, torch.get_rng_state())
    assert outputs["one"] == outputs["two"] == list(whole.output_ids)


@pytest.mark.parametrize("method", list(peers.Peer))
def test_peers_stop_where_vanilla_stops(target, method):
    text = output(vanilla(target, PROMPT, Settings(max_new_tokens=30)))
    end = SpaceModel(target.lm, None, target.masks, eos_ids=[text[9], 63])
    long = [*PROMPT, *text] * 3  # 123 tokens; the context holds 128
    for model, prompt, stop in ((end, PROMPT, Stop.EOS), (target, long, Stop.CONTEXT)):
        for settings in (Settings(max_new_tokens=30), Settings(max_new_tokens=1)):
            expected = list(vanilla(model, prompt, settings))
            draft = target if method == "assisted" else None
            for steps in (
                peers.run(model, prompt, settings, method, draft).steps,
                list(peers.lane(model, prompt, settings, method, draft)),
            ):
                assert output(steps) == output(expected)
                assert steps[-1].stop is expected[-1].stop
            if settings.max_new_tokens > 1:
                assert expected[-1].stop is stop


def test_a_peer_never_writes_the_mask_token(target):
    text = output(vanilla(target, PROMPT, Settings(max_new_tokens=5)))
    model = SpaceModel(target.lm, None, Masks(5, "paper", token_id=text[1]), eos_ids=())
    expected = output(vanilla(model, PROMPT, Settings(max_new_tokens=12)))
    assert text[1] not in expected
    assert list(peers.run(model, PROMPT, Settings(max_new_tokens=12), "generate").output_ids) == expected


def test_closing_a_lane_early_leaves_no_thread_and_no_lock(target):
    before = set(threading.enumerate())
    for method in ("generate", "prompt-lookup"):
        steps = peers.lane(target, PROMPT, Settings(max_new_tokens=30), method)
        next(steps)
        assert set(threading.enumerate()) > before
        steps.close()
        assert set(threading.enumerate()) == before
        list(peers.lane(target, PROMPT, Settings(max_new_tokens=3), method))
        assert set(threading.enumerate()) == before
    assert not target.lock.locked()
    assert output(vanilla(target, PROMPT, Settings(max_new_tokens=3)))


def test_an_error_within_generate_reaches_the_consumer(target, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("out of memory")

    before = set(threading.enumerate())
    monkeypatch.setattr(target.lm, "forward", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        next(iter(peers.lane(target, PROMPT, Settings(), "generate")))
    assert set(threading.enumerate()) == before


def test_a_draft_model_must_fit(target, opened):
    settings = Settings(max_new_tokens=4)
    with pytest.raises(CheckpointError, match="needs a draft model"):
        peers.run(target, PROMPT, settings, "assisted")
    with pytest.raises(CheckpointError, match=r"another vocabulary .*same tokenizer"):
        peers.run(target, PROMPT, settings, "assisted", opened)
    short = SpaceModel(tiny_lm(seed=3), None, eos_ids=())
    short.context = 12
    with pytest.raises(PromptError, match="draft model's context holds 12"):
        next(iter(peers.lane(target, PROMPT, settings, "assisted", short)))
    with pytest.raises(SettingError, match="method must be one of generate"):
        peers.run(target, PROMPT, settings, "magic")


@pytest.fixture
def humaneval(tmp_path) -> Path:
    path = tmp_path / "humaneval.jsonl"
    rows = [{"task_id": f"H/{i}", "prompt": f"def f{i}(x):\n"} for i in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_command_line_measures_every_method(folder, humaneval, tmp_path, capsys):
    out = tmp_path / "out.json"
    names = "space,space-grid,generate,prompt-lookup,assisted"
    typed = ["bench", "--model", str(folder), "--prompts", str(humaneval), "--methods", names]
    typed += ["--draft-model", str(folder), "--dtype", "float64", "--max-new-tokens", "12"]
    typed += ["--k", "2,3", "--limit", "2", "--json", str(out)]
    assert main(typed) == 0
    captured = capsys.readouterr()
    assert captured.err == "" and "prompt-lookup" in captured.out
    data = json.loads(out.read_text())
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert data["format"] == "space-bench/1" and data["prompts"] == 2 and data["skipped"] == []
    assert data["command"].startswith("python -m space_core bench --model")
    assert {"date", "device", "versions", "threads", "model", "dtype", "settings"} <= data.keys()
    lines = {(line["method"], line["k"]): line for line in data["methods"]}
    assert list(lines) == [
        ("vanilla", 0),
        ("space", 2),
        ("space", 3),
        ("space-grid", 2),
        ("space-grid", 3),
        ("generate", 0),
        ("prompt-lookup", 10),
        ("assisted", 20),
    ]
    for line in lines.values():
        assert line["identical_to_vanilla"] == 1 and line["tokens"] == 24
        assert line["tokens_per_call"] == pytest.approx(24 / line["calls"], abs=1e-6)
        assert line["speedup"] > 0 and list(line["categories"]) == ["all"]
        assert math.isclose(line["tokens_per_second"], 24 / line["seconds"], rel_tol=0.01)
    assert lines["vanilla", 0]["speedup"] == 1 and lines["vanilla", 0]["calls"] == 24
    assert 9 < lines["space-grid", 3]["rows_per_call"] <= 16 and lines["space", 2]["plan"] == "auto"


def test_json_to_standard_output_stands_alone_and_keeps_turns_and_categories(folder, tmp_path, capsys):
    path = tmp_path / "spec.jsonl"
    rows = [
        {"question_id": 1, "category": "math", "turns": ["1 + 1?", "And 2?"]},
        {"question_id": 2, "category": "writing", "turns": ["Write."]},
        {"question_id": 3, "category": "math", "turns": ["z" * 300]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    typed = ["bench", "--model", str(folder), "--prompts", str(path), "--methods", "space", "--sweep", "k"]
    typed += ["--dtype", "float64,bfloat16", "--max-new-tokens", "5", "--warmup", "0", "--json", "-"]
    assert main(typed) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["prompts"] == 2 and data["dtype"] == "float64,bfloat16"
    assert [skip["prompt"] for skip in data["skipped"]] == ["3"]
    assert len(data["methods"]) == 2 * 9
    assert [line["k"] for line in data["methods"][:9]] == list(range(9))
    for line in data["methods"][:9]:
        assert line["tokens"] == 15 and line["identical_to_vanilla"] == 1
        assert {name: part["tokens"] for name, part in line["categories"].items()} == {
            "math": 10,
            "writing": 5,
        }


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--prompts", "/nowhere.jsonl"], "/nowhere.jsonl"),
        (["--prompts", "/"], "cannot read"),
        ([], "--prompts"),
        (["--prompts", "GOOD", "--methods", "space,magic"], "known are vanilla, space"),
        (["--prompts", "BAD"], "bad.jsonl, line 1"),
        (["--prompts", "GOOD", "--k", "0"], "at least 1"),
        (["--prompts", "GOOD", "--k", "17"], "k must"),
        (["--prompts", "GOOD", "--k", "x"], "whole number"),
        (["--prompts", "GOOD", "--limit", "0"], "at least 1"),
        (["--prompts", "GOOD", "--warmup", "-1"], "whole number"),
        (["--prompts", "GOOD", "--dtype", "float64,int3"], "dtype"),
        (["--prompts", "GOOD", "--methods", ","], "names nothing"),
        (["--prompts", "GOOD", "--methods", "assisted"], "--draft-model"),
        (["--prompts", "GOOD", "--json", "/nowhere/out.json"], "cannot write"),
        (["--prompts", "GOOD", "--json", "/dev/null"], "cannot write"),
        (["sing"], "sing"),
        (["planner"], "--prompts"),
        (["planner", "--temperatures", "warm"], "warm"),
        (["planner", "--temperatures", "0,-1"], "temperature"),
        (["overhead", "--prompts", "GOOD", "--dtype", "float32,float64"], "one dtype at a time"),
        (["calls", "--shape", "3K"], "known are 16M"),
        (["calls", "--rows", "1,0"], "at least 1"),
        (["calls", "--context", "128"], "do not fit"),
        (["calls", "--shape", "16M", "--device", "abacus"], "abacus"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, says, folder, humaneval, tmp_path, capsys):
    (tmp_path / "bad.jsonl").write_text("{}\n")
    places = {"GOOD": str(humaneval), "BAD": str(tmp_path / "bad.jsonl")}
    typed = ["bench", *(places.get(word, word) for word in arguments)]
    if "--shape" not in typed:
        typed += ["--model", str(folder)]
    try:
        code = main(typed)
    except SystemExit as stopped:
        code = stopped.code
    captured = capsys.readouterr()
    assert code == 2
    assert says in captured.err and captured.err.count("\n") == 1 and not captured.out


def test_calls_are_timed_by_their_rows(folder, tmp_path, capsys):
    out = tmp_path / "calls.json"
    typed = ["bench", "calls", "--model", str(folder), "--rows", "4,5,36", "--dtype", "float64,float32"]
    assert main([*typed, "--json", str(out)]) == 0
    assert "plain calls" in capsys.readouterr().out
    data = json.loads(out.read_text())
    assert data["format"] == "space-bench-calls/1" and "untrained masks, no adapter" in data["model"]
    assert [(call["dtype"], call["rows"]) for call in data["calls"]] == [
        (dtype, rows) for dtype in ("float64", "float32") for rows in (1, 4, 5, 36)
    ]
    for call in data["calls"]:
        assert call["context"] == 64 and call["rows"] == 1 + call["drafts"] + call["masks"]
        low, middle, high = call["seconds"]
        assert 0 < low <= middle <= high
    assert data["calls"][0]["ratio"] == 1 and data["calls"][3]["drafts"] == 5


def test_planned_calls_are_held_against_the_better_of_plain_and_grid(folder, humaneval, tmp_path, capsys):
    out = tmp_path / "planner.json"
    typed = ["bench", "planner", "--model", str(folder), "--prompts", str(humaneval), "--limit", "2"]
    typed += ["--k", "1,3", "--context", "8,20", "--max-new-tokens", "6", "--json", str(out)]
    assert main(typed) == 0
    assert "above 1.05 in" in capsys.readouterr().out
    data = json.loads(out.read_text())
    assert data["format"] == "space-bench-planner/1" and data["abreast"]
    assert [(c["masks"], c["temperature"], c["context"], c["k"]) for c in data["cells"]] == [
        ("untrained", t, n, k) for t in (0, 0.7, 1) for n in (8, 20) for k in (1, 3)
    ]
    assert main([*typed, "--temperatures", "0.5", "--k", "1", "--context", "8"]) == 0
    assert [c["temperature"] for c in json.loads(out.read_text())["cells"]] == [0.5]


def test_batches_are_held_against_plain_decoding_of_the_same_batch(folder, humaneval, tmp_path, capsys):
    out = tmp_path / "batch.json"
    typed = ["bench", "batch", "--model", str(folder), "--prompts", str(humaneval), "--k", "2"]
    typed += ["--batch", "1,3", "--max-new-tokens", "6", "--dtype", "float64", "--repetitions", "2"]
    assert main([*typed, "--json", str(out)]) == 0
    assert "tok/call" in capsys.readouterr().out
    data = json.loads(out.read_text())
    assert data["format"] == "space-bench-batch/1" and data["repetitions"] == 2
    methods = ["vanilla", "space", "space-grid", "generate"]
    lines = {(line["batch"], line["method"]): line for line in data["batches"]}
    assert list(lines) == [(size, method) for size in (1, 3) for method in methods]
    for (size, method), line in lines.items():
        batches = 2 * -(-data["prompts"] // size)
        assert line["batches"] == batches and line["tokens"] == 6 * size * batches
        assert line["identical"] == 1.0 and 0 < line["speedup"][0] <= line["speedup"][2]
        if method == "vanilla":
            assert line["speedup"] == [1, 1, 1] and line["calls"] == 6 * batches and line["rows"] == 1
        if method.startswith("space"):
            assert line["k"] == 2 and line["tokens_per_call"] >= 1 and line["calls"] <= 6 * batches
    assert lines[3, "space-grid"]["rows"] > 3


def test_every_prompt_is_in_some_batch_of_each_size():
    from space_core.crowd import groups

    for count, size in ((5, 2), (2, 5), (4, 4), (1, 1)):
        found = groups(count, size)
        assert {place for group in found for place in group} == set(range(count))
        assert all(len(group) == size for group in found)


def test_batches_that_cannot_be_are_refused(folder, humaneval, capsys):
    assert main(["bench", "batch", "--model", str(folder)]) == 2
    assert "needs prompts" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["bench", "batch", "--prompts", str(humaneval), "--batch", "0"])


def test_overhead_is_what_is_neither_forward_nor_head(folder, humaneval, tmp_path, capsys):
    out = tmp_path / "overhead.json"
    typed = ["bench", "overhead", "--model", str(folder), "--prompts", str(humaneval), "--k", "2"]
    assert main([*typed, "--max-new-tokens", "6", "--json", str(out)]) == 0
    assert "outside forward and heads" in capsys.readouterr().out
    methods = json.loads(out.read_text())["methods"]
    assert [line["method"] for line in methods] == ["vanilla", "space-auto", "space-grid"]
    for line in methods:  # in a model of 32 dimensions most is neither; but forward is never nothing
        low, middle, high = line["share"]
        assert 0 < low <= middle <= high < 0.95


def test_a_slow_forward_leaves_a_small_overhead():
    from space_core.overhead import profile

    model = SpaceModel(tiny_lm("Llama"), eos_ids=())
    before = model._base, model._head, model.lm
    head = model._head
    model._head = lambda rows: (time.sleep(0.02), head(rows))[1]
    found = profile(model, [PROMPT], Settings(k=2, max_new_tokens=5))
    assert all(line.share[1] < 0.5 for line in found)
    model._head = head
    assert (model._base, model._head, model.lm) == before


def test_a_stake_is_a_token_of_planned_time_over_the_better_way():
    from space_core.stakes import cell, report

    lines = columns(["space-grid", "space-auto"], (2,), Plan.AUTO)
    reference = runs((plain(range(4)), 4.0), (plain(range(4, 8)), 4.0))  # 1 s a token
    grid = runs((FOUR, 2.0), (SAME, 8.0))  # 0.5 and 2 s a token: the worse one of the two together
    planned = runs((FOUR, 2.0), (trace(step((4,)), step((5,))), 4.0))  # 0.5 and 2 s a token
    made = cell(
        "trained", 0.0, 64, 2, Measured(dict(zip(lines, (reference, grid, planned), strict=True)), ())
    )
    assert made.stake[1] == 1.25 and made.speedup == 1.25 and made.grid == 1.25
    assert made.tokens_per_call == 1.5
    better = cell(
        "trained", 0.7, 64, 2, Measured(dict(zip(lines, (reference, planned, grid), strict=True)), ())
    )
    assert "worst 1.250, above 1.05 in 2 of 2" in report([made, better])


def test_a_shape_is_made_in_its_own_dtype(monkeypatch, capsys):
    from space_core import calls

    small = calls.Shape(32, 2, 4, 2, 64, 128, tied=True)
    monkeypatch.setitem(calls.SHAPES, "tiny", small)
    model = calls.random_llama("tiny", "cpu", "bfloat16")
    assert {parameter.dtype for parameter in model.lm.parameters()} == {torch.bfloat16}
    assert main(["bench", "calls", "--shape", "tiny", "--rows", "4", "--context", "8"]) == 0
    assert "Llama-shaped tiny, random weights" in capsys.readouterr().out


def test_an_output_is_replaced_whole(tmp_path):
    from space_core.bench import write

    out = tmp_path / "out.json"
    check_output(out)
    write(out, {"a": 1})
    with pytest.raises(TypeError):
        write(out, {"a": object()})
    assert json.loads(out.read_text()) == {"a": 1} and list(tmp_path.iterdir()) == [out]
    assert scores.table([("a", "b"), ("ccc", "1")]) == "a    b\nccc  1"
