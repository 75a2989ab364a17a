"""Conversations: what is sent, where a turn ends, and what the cache keeps between turns."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import pytest
import torch
import warm
from chatting import CHAT, chat_folder, chat_lm, chat_model
from commandline import run, run_alone
from tiny import oracle, output, some, trained_like_masks

import space_core
from space_core import Settings, Trace, conversation, peers
from space_core.conversation import Message
from space_core.cost import Costs
from space_core.decoders import _Run
from space_core.errors import PromptError
from space_core.memory import Memory, Shelf
from space_core.model import SpaceModel

ROOT = Path(__file__).parent.parent
DECODERS = {"vanilla": space_core.vanilla, "space": space_core.space}
TALK = (Message("system", "be brief"), Message("user", "what is one and one?"))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> SpaceModel:
    return chat_model(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return chat_folder(tmp_path_factory.mktemp("folder"))


# ---------------------------------------------------------------- what is sent


def test_what_is_sent_is_the_template_word_for_word(model):
    text, ids = conversation.prompt(model, TALK)
    assert (
        text == "<|endoftext|><|system|>be brief<|end|>\n<|user|>what is one and one?<|end|>\n<|assistant|>"
    )
    assert model.decode(ids) == text
    special = {model.tokenizer.convert_tokens_to_ids(t) for t in ("<|system|>", "<|user|>", "<|assistant|>")}
    assert special <= {*ids}, "the template's signs are tokens, and not spelled letter by letter"
    assert ids.count(model.tokenizer.bos_token_id) == 1


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "must be a list"),
        ([], "must be a list"),
        ("hello", "must be a list"),
        (["hello"], "message 1: role"),
        ([{"role": "user"}], "message 1: content"),
        ([{"role": "user", "content": "  "}], "message 1: content"),
        ([{"role": "user", "content": 7}], "message 1: content"),
        ([{"role": "assistant", "content": None}], "message 1: content"),
        ([{"role": "god", "content": "x"}], "message 1: role must be one of system, user, assistant"),
        ([{"role": ["user"], "content": "x"}], "message 1: role"),
        ([{"role": "user", "content": "x"}, {"role": "user", "content": "a\0"}], "message 2 holds"),
        ([{"role": "user", "content": "\ud800"}], "message 1 holds"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "last message must be"),
        ([{"role": "user", "content": "x"}] * 257, "257 turns"),
    ],
)
def test_messages_that_are_none_get_a_sentence(value, words):
    with pytest.raises(PromptError, match=words):
        conversation.read_messages(value)


def test_messages_are_read_from_json_bare_or_under_their_name():
    rows = conversation.to_json(TALK)
    assert conversation.parse_messages(json.dumps(rows)) == TALK
    assert conversation.parse_messages(json.dumps({"messages": rows})) == TALK
    with pytest.raises(PromptError, match="no JSON"):
        conversation.parse_messages("hello")


def test_a_model_without_a_template_and_a_template_that_refuses_are_told(tmp_path):
    with pytest.raises(PromptError, match="tiny-chat has no chat template"):
        conversation.prompt(chat_model(tmp_path / "a", template=None), TALK)
    picky = chat_model(tmp_path / "b", template="{{ raise_exception('no system, please') }}")
    with pytest.raises(PromptError, match="refuses it: no system, please"):
        conversation.prompt(picky, TALK)
    assert conversation.turn_ends(picky) == {picky.tokenizer.eos_token_id}


def test_a_conversation_that_fills_the_context_is_refused(model):
    with pytest.raises(PromptError, match="context"):
        conversation.prompt(model, [Message("user", "well " * 600)])


# ---------------------------------------------------------------- where a turn ends


def test_the_templates_own_end_of_turn_ends_an_answer(model):
    end = model.tokenizer.convert_tokens_to_ids("<|end|>")
    assert conversation.turn_ends(model) == {model.tokenizer.eos_token_id, end}
    assert end != model.tokenizer.eos_token_id and not model.eos_ids


@pytest.mark.parametrize("lane", [*DECODERS, "generate", "prompt-lookup"])
@pytest.mark.parametrize("k", [1, 4])
def test_a_run_of_a_conversation_stops_at_its_turns_end_and_others_do_not(model, lane, k):
    _, ids = conversation.prompt(model, TALK)
    text = oracle(model.lm, ids, 24)
    end = text[9]
    first = text.index(end)
    settings = Settings(k=k, max_new_tokens=24)
    if lane in DECODERS:
        steps = list(DECODERS[lane](model, ids, settings, Memory(model, {end})))
        free = DECODERS[lane](model, ids, settings)
    else:
        steps = list(peers.lane(model, ids, settings, lane, eos_ids={end}))
        free = peers.lane(model, ids, settings, lane)
    assert output(steps) == text[: first + 1]
    assert steps[-1].stop == "eos"
    assert output(free) == text


# ---------------------------------------------------------------- the cache between turns


def turns(model: SpaceModel, decode, settings: Settings, memory: Memory | None, cut: int | None = None):
    """Three turns of a conversation, each with the answer before it; `cut`: calls of the second turn."""
    said, told, answer = list(TALK), [], ""
    for number, words in enumerate(("", "and two and two? is it more than it was?", "sure?")):
        if words:
            said += [Message("assistant", answer), Message("user", words)]
        _, ids = conversation.prompt(model, said)
        run = decode(model, ids, settings, memory) if memory else decode(model, ids, settings)
        steps = list(islice(run, cut)) if number == 1 and cut else list(run)
        run.close()
        told.append((ids, steps, memory.kept if memory else 0))
        answer = conversation.answer(model, output(steps))
    return told


@pytest.mark.parametrize(("name", "plan"), [("vanilla", "grid"), ("space", "grid"), ("space", "auto")])
@pytest.mark.parametrize("architecture", some(["Llama", "Qwen3", "GPT2"], ["Llama", "GPT2"]))
def test_turns_that_reuse_the_cache_write_what_whole_prompts_write(tmp_path, architecture, name, plan):
    model = chat_model(tmp_path, architecture)
    # Given, not measured: on a busy machine one mask may look as if it could never pay, and is not fed then.
    model.costs = {True: Costs({81: 1.0}, {1: 1.0})}
    for k in (1, 3, 5):
        settings = Settings(k=k, max_new_tokens=17, plan=plan)
        memory = Memory(model)
        fresh = turns(model, DECODERS[name], settings, None)
        kept = turns(model, DECODERS[name], settings, memory)
        masks = 0 if name == "vanilla" else k
        for (ids, steps, _), (same, again, known) in zip(fresh, kept, strict=True):
            assert same == ids and output(again) == output(steps) == oracle(model.lm, ids, 17)
            assert steps[0].rows == len(ids) + masks
            assert again[0].rows == len(ids) - known + masks
        assert kept[0][2] == 0
        for before, (_, _, known) in pairwise(kept):
            # At the least all of the prompt before; the answer as far as its text is the same tokens.
            assert known >= len(before[0])
        assert kept[2][1][0].rows < fresh[2][1][0].rows / 2, "measurable"


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("cut", [1, 2])
def test_a_turn_that_was_stopped_leaves_a_cache_that_is_right(model, name, cut):
    settings = Settings(k=4, max_new_tokens=17, plan="grid")
    fresh = turns(model, DECODERS[name], settings, None, cut)
    kept = turns(model, DECODERS[name], settings, Memory(model), cut)
    assert [output(steps) for _, steps, _ in kept] == [output(steps) for _, steps, _ in fresh]
    assert kept[2][2] >= len(kept[1][0])


@pytest.mark.parametrize("budget", range(1, 9))
def test_a_budget_that_cuts_accepted_drafts_leaves_a_cache_that_is_right(model, monkeypatch, budget):
    """The cache then holds rows of drafts that stood and were never emitted."""
    _, ids = conversation.prompt(model, TALK)
    text = oracle(model.lm, ids, 40)
    memory, settings = Memory(model), Settings(k=5, max_new_tokens=budget, plan="grid")
    with monkeypatch.context() as patch:  # every guess right, as far as the text is known
        fetch = _Run.fetch

        def right(run, verdict, guessed):
            accepted, own, drafts = fetch(run, verdict, guessed)
            start = run.length + accepted + 1 - len(ids)
            told = tuple(text[start : start + len(drafts)])
            return accepted, own, replace(drafts, ids=told, tokens=torch.tensor(told, dtype=torch.long))

        patch.setattr(_Run, "fetch", right)
        steps = list(space_core.space(model, ids, settings, memory))
    assert output(steps) == text[:budget] and len(steps) == 1 + -(-(budget - 1) // 6)
    wrong = [(text[budget // 2] + 1) % 300, 8]
    for following in (ids + text[:budget], ids + text[: budget // 2] + wrong, ids[: len(ids) // 2], ids):
        again = list(space_core.space(model, following, Settings(k=5, max_new_tokens=9, plan="grid"), memory))
        assert output(again) == oracle(model.lm, following, 9)
        assert 0 < memory.kept <= len(following) - 1


def test_a_sampled_turn_draws_the_same_with_and_without_the_cache(model):
    settings = Settings(k=3, max_new_tokens=17, temperature=0.9, seed=5, plan="grid")
    for decode in DECODERS.values():
        fresh = turns(model, decode, settings, None)
        kept = turns(model, decode, settings, Memory(model))
        assert [output(steps) for _, steps, _ in kept] == [output(steps) for _, steps, _ in fresh]


def test_a_planned_sampled_turn_draws_the_same_with_and_without_the_cache_of_a_long_prompt(
    model, monkeypatch
):
    """Where masks are fed may not depend on how much of the prompt lies in the cache."""
    linear = {rows: 1 + 0.02 * rows for rows in (1, 2, 16)}
    monkeypatch.setattr(model, "costs", {False: Costs(linear, linear)})
    before = [(7 * i * i + 3) % 300 for i in range(270)]
    for seed in range(4):
        settings = Settings(k=3, max_new_tokens=17, temperature=0.9, seed=seed)
        memory = Memory(model)
        list(space_core.space(model, before, settings, memory))
        prompt = [*before, 5, 6, 7]
        kept = list(space_core.space(model, prompt, settings, memory))
        fresh = list(space_core.space(model, prompt, settings))
        assert kept[0].rows < len(prompt) == fresh[0].rows
        assert output(kept) == output(fresh) and any(sum(step.groups) for step in kept)


def test_two_runs_at_once_never_share_a_cache(model):
    settings = Settings(k=3, max_new_tokens=17, plan="grid")
    memory = Memory(model)
    _, ids = conversation.prompt(model, TALK)
    list(space_core.space(model, ids, settings, memory))
    one, other = (space_core.space(model, [*ids, 9], settings, memory) for _ in range(2))
    steps = [[], []]
    for pair in zip(one, other, strict=False):
        for told, step in zip(steps, pair, strict=True):
            told.append(step)
    steps[0] += one
    steps[1] += other
    assert output(steps[0]) == output(steps[1]) == oracle(model.lm, [*ids, 9], 17)


def test_a_call_that_fails_half_way_leaves_no_torn_cache(model, monkeypatch):
    settings = Settings(k=3, max_new_tokens=17, plan="grid")
    memory = Memory(model)
    _, ids = conversation.prompt(model, TALK)
    for calls in (0, 2):
        run = space_core.space(model, ids, settings, memory)
        for _ in range(calls):
            next(run)
        with monkeypatch.context() as patch:
            layer = model.lm.model.layers[1]

            def fail(*_: object, **__: object) -> None:
                raise RuntimeError("out of memory")

            patch.setattr(layer, "forward", fail)
            with pytest.raises(RuntimeError, match="out of memory"):
                next(run)
        again = list(space_core.space(model, [*ids, 5], settings, memory))
        assert output(again) == oracle(model.lm, [*ids, 5], 17)


def test_another_model_finds_nothing(model, tmp_path):
    settings = Settings(max_new_tokens=9, plan="grid")
    memory = Memory(model)
    _, ids = conversation.prompt(model, TALK)
    list(space_core.vanilla(model, ids, settings, memory))
    lm = chat_lm(seed=3)
    other = SpaceModel(lm, model.tokenizer, trained_like_masks(lm), eos_ids=())
    assert output(space_core.vanilla(other, ids, settings, memory)) == oracle(lm, ids, 9)
    assert memory.kept == 0


def test_the_shelf_keeps_what_fits_and_forgets_the_oldest(model):
    _, ids = conversation.prompt(model, TALK)
    shelf = Shelf(most=10**9)

    def talk(name: str) -> Memory:
        memory = shelf.lanes(name, ["space"], lambda: Memory(model))["space"]
        list(space_core.space(model, ids, Settings(max_new_tokens=3, plan="grid"), memory))
        shelf.tidy()
        return memory

    for name in ("a", "b", "a", "c"):
        size = talk(name).bytes
    assert size > 0 and len(shelf) == 3
    assert talk("a").kept == len(ids) - 1
    shelf.most = 2 * size
    assert talk("d").kept == 0
    assert len(shelf) == 2
    assert talk("b").kept == 0, "not used for longest"
    shelf.most = 0
    talk("e")
    assert len(shelf) == 0, "a single conversation may be too large, too"


# ---------------------------------------------------------------- the command line


def test_generate_chat_sends_the_prompt_as_a_message(folder, as_before):
    asked = ("--model", str(folder), "--dtype", "float64", "--max-new-tokens", "9", "--json")
    result = run("generate", "--prompt-file", "-", "--chat", *asked, text="what is one?")
    assert result.returncode == 0, result.stderr
    one = Trace.from_json(json.loads(result.stdout))
    messages = json.dumps([{"role": "user", "content": "what is one?"}])
    result = run("generate", "--messages", "-", *asked, text=messages)
    assert Trace.from_json(json.loads(result.stdout)).output_ids == one.output_ids
    opened = space_core.load(folder, dtype="float64")
    assert opened.decode(one.prompt_ids) == "<|endoftext|><|user|>what is one?<|end|>\n<|assistant|>"


@pytest.mark.more
def test_chat_goes_on_turn_by_turn_and_reads_only_what_is_new(folder, as_before):
    asked = ("--model", str(folder), "--dtype", "float64", "--max-new-tokens", "9", "--system", "be brief")
    result = run_alone("chat", *asked, "--json", text="what is one?\n\nand two?\n")
    assert result.returncode == 0, result.stderr
    first, second = (Trace.from_json(json.loads(line)) for line in result.stdout.splitlines())
    opened = space_core.load(folder, dtype="float64")
    said = [Message("system", "be brief"), Message("user", "what is one?")]
    assert first.prompt_ids == tuple(conversation.prompt(opened, said)[1])
    said += [Message("assistant", conversation.answer(opened, first.output_ids)), Message("user", "and two?")]
    assert second.prompt_ids == tuple(conversation.prompt(opened, said)[1])
    assert second.steps[0].rows <= len(second.prompt_ids) - len(first.prompt_ids) + second.k
    plain = run("chat", *asked, text="what is one?\n")
    assert plain.returncode == 0 and plain.stdout.strip() == first.text.strip()
    assert "tokens per call" in plain.stderr


def test_the_code_of_share_writes_the_conversations_answer(folder):
    from space_core.views import code

    settings = Settings(k=3, max_new_tokens=9, plan="grid")
    program = code.python("", settings, str(folder), "cpu", "float64", TALK)
    done = warm.run("-c", program)
    assert done.returncode == 0, done.stderr
    opened = space_core.load(folder, dtype="float64")
    steps = space_core.space(opened, conversation.prompt(opened, TALK)[1], settings)
    assert done.stdout.splitlines() == [f"{s.accepted} {opened.decode(s.emitted)!r}" for s in steps]


@pytest.mark.parametrize(
    ("arguments", "text", "says"),
    [
        (("generate", "--messages", "-"), "hello", "no JSON"),
        (("generate", "--messages", "-"), "[]", "must be a list"),
        (("generate", "--messages", "-", "--prompt-file", "-"), "[]", "not both"),
        (("generate", "--messages", "-", "--chat"), "[]", "--chat"),
        (("chat",), "hello\n" * 300, "context"),
    ],
)
def test_bad_conversations_are_one_clear_line(folder, as_before, arguments, text, says):
    result = run(*arguments, "--model", str(folder), "--max-new-tokens", "2", text=text)
    assert result.returncode == 2
    assert says in result.stderr.splitlines()[-1] and "Traceback" not in result.stderr


def test_a_model_without_a_template_says_so_at_once(tmp_path, as_before):
    chat_lm(dtype=torch.float32).save_pretrained(tmp_path)
    from chatting import chat_tokenizer

    chat_tokenizer(tmp_path, None)
    result = run("chat", "--model", str(tmp_path), text="hello\n")
    assert result.returncode == 2 and "has no chat template" in result.stderr
    assert CHAT not in result.stderr
