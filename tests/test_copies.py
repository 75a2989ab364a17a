"""Guesses that lean on what the text so far holds: what followed, how much it gains, and how that is fitted."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from test_sampler import told_masks, told_model
from tiny import ARCHITECTURES, FEW, VOCABULARY, oracle, output, some, tiny_lm, trained_like_masks
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import space_core
from finetune.__main__ import main as finetune
from finetune.copying import PULL, fit_copies
from finetune.distill import Own
from finetune.masks import Gated
from finetune.recipe import MaskTraining
from space_core import Settings
from space_core.cache import BlockCache
from space_core.checkpoint import load, save
from space_core.copies import WEIGHTS, CopyBias
from space_core.decoders import _Run
from space_core.errors import CheckpointError
from space_core.layout import Layout
from space_core.lookup import LENGTHS, DeviceLookup, Lookup
from space_core.model import Masks, SpaceModel
from space_core.settings import Plan

ASSETS = Path(__file__).parent.parent / "assets"
TOKENS = st.lists(st.integers(0, 3), max_size=24)


def what_followed(text, tail):
    """By looking everywhere: the longest of the last tokens that stands in the text, where it does so last."""
    whole = [*text, *tail]
    for length in LENGTHS:
        for end in range(len(text) - 1, length - 1, -1):
            if length <= len(whole) and text[end - length : end] == whole[-length:]:
                return text[end], length
    return None, 0


@settings(max_examples=150, deadline=None)
@given(text=TOKENS.filter(bool), more=TOKENS, drafts=TOKENS, accepted=st.integers(0, 24), told=TOKENS)
def test_what_followed_such_tokens_last(text, more, drafts, accepted, told):
    """Both ways of asking against a search by hand, behind accepted drafts and tokens told one by one."""
    accepted = min(accepted, len(drafts))
    here, device = Lookup(text), DeviceLookup(text, torch.device("cpu"))
    for lookup in (here, device):
        lookup.extend(more)
    on_device = torch.tensor(drafts, dtype=torch.long)
    follows = [here.follow(drafts, torch.tensor(accepted)), device.follow(on_device, torch.tensor(accepted))]
    tail = drafts[:accepted]
    for token in told:
        tail = [*tail, token]
        due, length = what_followed([*text, *more], tail)
        for follow in follows:
            found, matched = map(int, follow(torch.tensor([token])))
            assert matched == length and (found == due or not length)


def test_a_text_that_is_asked_stays_as_it_is():
    lookup = Lookup([1, 2, 3])
    follow = lookup.follow([7], torch.tensor(1))
    assert [follow(torch.tensor(token)) for token in (1, 2)] == [(2, 1), (3, 2)]
    assert lookup.follow([], torch.tensor(0))(torch.tensor(7)) == (0, 0)  # what was told is no text yet


def test_a_device_is_never_waited_for():
    """On tensors that have shapes and no numbers, asking for one is an error."""
    with FakeTensorMode():
        lookup = DeviceLookup([1, 2, 3, 1], torch.device("cpu"))
        lookup.extend([2])
        follow = lookup.follow(torch.zeros(3, dtype=torch.long), torch.zeros((), dtype=torch.long))
        token, length = follow(torch.zeros(1, dtype=torch.long))
        assert token.shape == length.shape == ()
        with pytest.raises(DataDependentOutputException):
            int(length)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_one_token_gains_by_slot_and_length(dtype):
    table = torch.arange(1.0, 11.0).view(2, 5)
    copies = CopyBias(table)
    for slot, length, gain in ((0, 1, 1), (0, 5, 5), (1, 2, 7), (4, 2, 7), (0, 0, 0)):
        for as_tensor in (False, True):
            logits = torch.zeros(1, 9, dtype=dtype)
            said = map(torch.tensor, (3, length)) if as_tensor else (3, length)
            copies.lean(logits, slot, *said)
            assert logits[0].tolist() == [gain if token == 3 else 0 for token in range(9)]


@pytest.mark.parametrize("told", [True, False])
def test_each_guess_leans_on_what_followed(told):
    """Against the formula, with a sampler head and without: text 1 2 3 1 2, accepted 3, own 1."""
    model = told_model()
    if not told:
        model.masks.sampler = None
    cache = BlockCache()
    text, drafts = [1, 2, 3, 1, 2], [3, 9]
    model.call(Layout.plain(4), text[:-1], cache)
    judged = model.call(Layout.grid(2), [2, *drafts], cache)
    accepted, own = torch.tensor(1), torch.tensor(1)
    masks = judged.masks(accepted)
    plain = judged.chain(masks, own, lambda row: row.argmax(-1))[1]
    script = iter([torch.tensor([2]), torch.tensor([5])])
    follow = Lookup(text).follow(drafts, accepted)
    logits = judged.chain(masks, own, lambda row: next(script), follow=follow)[1]
    expected = plain[0].clone()
    expected[2] += model.masks.copies.table[0, 3]  # "1 2 3 1" stood there before, and "2" followed
    assert torch.allclose(logits[0], expected)
    second = judged.chain(masks[1:], torch.tensor(2), lambda row: row.argmax(-1))[1][0].clone()
    second[3] += model.masks.copies.table[1, 1]  # of "3 1 2" nothing followed yet, but of "1 2"
    assert torch.allclose(logits[1], second)


@pytest.mark.parametrize("architecture", some(ARCHITECTURES, FEW))
def test_greedy_output_is_plain_decodings(architecture):
    """Without a sampler head, on the paths of both lookups (with one: `test_sampler.py`)."""
    lm = tiny_lm(architecture, torch.float64)
    masks = dataclasses.replace(trained_like_masks(lm), copies=told_masks(lm).copies)
    model = SpaceModel(lm, None, masks, eos_ids=())
    model.costs = told_model().costs
    for prompt in ([3, 1, 4], [5, 5, 9, 2, 6]):
        for plan in Plan:
            request = Settings(k=4, max_new_tokens=24, plan=plan)
            assert output(space_core.space(model, prompt, request)) == oracle(lm, prompt, 24)


def test_masks_of_the_papers_kind_and_a_head_that_cannot_be_taken_apart():
    """[M] in the vocabulary is never drafted however often it stands in the text; logits are nobody's buffer."""
    lm = tiny_lm("Llama", torch.float64)
    table = told_masks(lm).copies
    paper = SpaceModel(lm, None, Masks(3, "paper", VOCABULARY - 1, copies=table), eos_ids=())
    whole = SpaceModel(lm, None, dataclasses.replace(trained_like_masks(lm), copies=table), eos_ids=())
    whole._base, whole._head = None, None
    for model in (paper, whole):
        model.costs = told_model().costs
        prompt = [3, VOCABULARY - 1, 4, 3, VOCABULARY - 1, 4]
        plain = output(space_core.vanilla(model, prompt, Settings(max_new_tokens=24)))
        for request in (Settings(k=3, max_new_tokens=24, plan=plan) for plan in Plan):
            steps = list(space_core.space(model, prompt, request))
            assert output(steps) == plain
            assert model is whole or all(VOCABULARY - 1 not in step.drafts for step in steps)


def test_generate_with_guesses_that_copy():
    """transformers' `generate`, whose processors judge drafts by their own prefixes."""
    model = told_model()
    prompt = torch.tensor([[3, 1, 4, 3, 1]])
    options = {"max_new_tokens": 24, "repetition_penalty": 1.3, "do_sample": False, "pad_token_id": 0}
    plain = model.lm.generate(prompt, **options)
    found = model.lm.generate(
        prompt, custom_generate=space_core.generate, space=model, k=3, plan="grid", **options
    )
    assert torch.equal(found, plain)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_devices_lookup_gives_the_same_drafts(told, temperature, monkeypatch):
    model = told_model()
    if not told:
        model.masks.sampler = None
    request = Settings(k=4, max_new_tokens=40, plan="grid", temperature=temperature, seed=3)
    here = [step.drafts for step in space_core.space(model, [3, 1, 4], request)]
    plain = _Run.index

    def on_device(run):
        plain(run)
        run.device_lookup = DeviceLookup(run.prompt_ids, run.model.device)

    monkeypatch.setattr(_Run, "index", on_device)
    monkeypatch.setattr(Lookup, "follow", None)
    assert [step.drafts for step in space_core.space(model, [3, 1, 4], request)] == here
    model.masks.copies = None
    monkeypatch.setattr(_Run, "index", plain)
    assert [step.drafts for step in space_core.space(model, [3, 1, 4], request)] != here


@pytest.mark.parametrize("told", [True, False])
def test_sequences_of_a_batch_lean_each_on_its_own_text(told):
    """Greedy drafts of a batch are those of each prompt alone, and others than without the table."""
    model = told_model()
    if not told:
        model.masks.sampler = None
    prompts = [[3, 1, 4, 3, 1], [5, 5, 5], [7, 2, 7, 2, 7]]
    request = Settings(k=3, max_new_tokens=24, plan="grid")

    def together():
        drafts = [[] for _ in prompts]
        for steps in space_core.batch(model, prompts, request):
            for mine, step in zip(drafts, steps, strict=True):
                mine += [step.drafts] if step else []
        return drafts

    def alone():
        return [[step.drafts for step in space_core.space(model, prompt, request)] for prompt in prompts]

    with_copies = together()
    assert [mine[1:] for mine in with_copies] == [mine[1:] for mine in alone()]
    model.masks.copies = None
    without = together()
    assert all(mine != other for mine, other in zip(with_copies, without, strict=True))


def test_a_checkpoint_keeps_its_table(tmp_path):
    for name in ("told", "untold"):
        model = told_model()
        if name == "untold":
            model.masks.sampler = None
        save(tmp_path / name, model)
        again = load(tmp_path / name, dtype="float64", device="cpu")
        assert torch.equal(again.masks.copies.table, model.masks.copies.table)
        request = Settings(k=3, max_new_tokens=16, plan="grid")
        steps = [list(space_core.space(m, [3, 1, 4], request)) for m in (model, again)]
        assert [s.drafts for s in steps[0]] == [s.drafts for s in steps[1]]
    wrong = tmp_path / "told" / "space"
    (wrong / WEIGHTS).write_bytes(b"x" * 64)
    with pytest.raises(CheckpointError, match="SHA-256"):
        load(tmp_path / "told", dtype="float64")
    with pytest.raises(CheckpointError, match="table of copies cannot be read"):
        CopyBias.load(wrong)
    for table, word in (
        (torch.zeros(2, 4), "needs"),
        (torch.zeros(5), "needs"),
        (torch.zeros(0, 5), "needs"),
        (torch.full((2, 5), torch.nan), "finite"),
        (torch.zeros(2, 5, dtype=torch.long), "finite"),
    ):
        save_file({"table": table}, wrong / WEIGHTS)
        with pytest.raises(CheckpointError, match=word):
            CopyBias.load(wrong)


# ---------------------------------------------------------------- the fit

PLAN = MaskTraining(steps=1, batch=4, k=3, groups=12)


def fitted(texts, sampler=False):
    """A model with random masks, and what fitting its table on these texts told."""
    lm = tiny_lm("Llama", torch.float32)
    masks = told_masks(lm) if sampler else trained_like_masks(lm)
    adapter = space_core.adapter.GatedAdapter(lm, ["q_proj"], 2)
    masks = dataclasses.replace(masks, k=3, embeddings=masks.embeddings[:3], adapter=adapter, copies=None)
    model = SpaceModel(lm, None, masks, eos_ids=())
    told = fit_copies(model, lambda index, random: texts[index % len(texts)], 6, PLAN, seed=1)
    return model, told


def repeating(seed, wrong=False):
    """Texts of which each half holds the same; with `wrong`, but for each second token."""
    random = torch.Generator().manual_seed(seed)
    half = torch.randint(0, 64, (4, 30), generator=random)
    again = half.clone()
    if wrong:
        again[:, 1::2] = torch.randint(0, 64, (4, 15), generator=random)
    return Own.of(30, torch.cat([half, again], dim=1))


@pytest.mark.parametrize("sampler", [True, False])
def test_what_repeats_itself_is_leant_on(sampler):
    """Where copies are right the table lifts them; where they are not, it does not: random masks know nothing."""
    model, told = fitted([repeating(n) for n in range(6)], sampler)
    assert told["told_loss"] < told["untold_loss"] / 2 and told["guesses"] > 500
    table = model.masks.copies.table
    assert table.shape == (3, 5) and float(table[:, 4].min()) > 3
    astray, worse = fitted([repeating(n, wrong=True) for n in range(6)], sampler)
    assert float(astray.masks.copies.table[:, 0].max()) < float(table[:, 0].min())
    assert worse["told_loss"] <= worse["untold_loss"]


def test_the_fit_is_the_best_there_is():
    """No neighbour of the table is better by what is minimised, computed here from whole logits."""
    texts = [repeating(n, wrong=n % 2 == 0) for n in range(6)]
    model, told = fitted(texts)
    method = Gated(model.lm, PLAN, 1, model.masks)

    def loss(table):
        total = []
        for index in range(6):
            random = torch.Generator().manual_seed(1_000_003 + index)
            seen = method.behind(texts[index], random)
            logits = method.logits(seen.hidden).double()
            tokens, lengths = seen.copied(texts[index].sequences, 3)
            for place in (seen.known & (lengths > 0)).nonzero().tolist():
                row = logits[*place].clone()
                row[tokens[*place]] += table[place[1] % 3, lengths[*place] - 1]
                total.append(float(row.logsumexp(-1) - row[seen.text[*place]]))
        return sum(total) / len(total), len(total), PULL * float((table**2).sum())

    with torch.no_grad():
        best, count, pull = loss(model.masks.copies.table.double())
        assert count == told["guesses"] and best == pytest.approx(told["told_loss"], abs=1e-3)
        for slot, length in ((0, 0), (1, 4), (2, 2)):
            for change in (-0.5, 0.5):
                other = model.masks.copies.table.double().clone()
                other[slot, length] += change
                worse, _, its = loss(other)
                assert worse + its > best + pull


@pytest.mark.parametrize("architecture", ["GPT2", "OPT"])
def test_a_text_that_fills_the_context_can_be_fitted_on(architecture):
    """Masks behind it have no position of their own, and no target."""
    lm = tiny_lm(architecture, torch.float32)
    adapter = space_core.adapter.GatedAdapter(lm, ["out_proj" if architecture == "OPT" else "c_proj"], 2)
    masks = dataclasses.replace(trained_like_masks(lm), adapter=adapter)
    model = SpaceModel(lm, None, masks, eos_ids=())
    text = Own.of(8, torch.arange(8).repeat(16)[None])
    assert text.sequences.shape[1] == model.context
    plan = MaskTraining(steps=1, batch=1, k=3, groups=200)
    assert fit_copies(model, lambda index, random: text, 1, plan, seed=1)["guesses"] > 100


def test_texts_that_never_repeat_themselves_give_no_table():
    texts = [Own.of(8, torch.arange(60).view(1, -1))]
    model, told = fitted(texts)
    assert told == {} and model.masks.copies is None


@pytest.mark.more
def test_evaluate_tells_what_the_table_is_worth(capsys):
    """On the bundled checkpoint and prompts."""
    asked = ["--model", str(ASSETS / "checkpoints/python-mini"), "--limit", "3", "--max-new-tokens", "64"]
    asked += ["--prompts", str(ASSETS / "benchmarks/prompts.jsonl")]
    rates = []
    for more in ([], ["--no-copies"]):
        assert finetune(["evaluate", *asked, *more]) == 0
        figures = json.loads(capsys.readouterr().out)
        assert figures["identical_to_vanilla"] == 3
        rates.append(figures["tokens_per_call"])
    assert rates[0] > rates[1] + 0.1
