"""The sampler head: drafts that know the ones before, and an output that does not change for it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny import ARCHITECTURES, FEW, VOCABULARY, oracle, output, some, tiny_lm, trained_like_masks

import space_core
from space_core import Settings, planner
from space_core.adapter import GatedAdapter
from space_core.cache import BlockCache
from space_core.checkpoint import load, save
from space_core.checks import chi_square
from space_core.checks import quantile as limit
from space_core.copies import CopyBias
from space_core.cost import Costs
from space_core.decoders import _Run
from space_core.errors import CheckpointError
from space_core.inspect import guesses
from space_core.layout import Layout
from space_core.model import Masks, SpaceModel
from space_core.overhead import profile
from space_core.sampler import WEIGHTS, SamplerHead
from space_core.settings import Plan
from space_core.trace import Trace


def told_masks(lm, width=48, seed=2) -> Masks:
    """Random masks, sampler head and table of copies, strong enough to change what is drafted."""
    masks = trained_like_masks(lm)
    like = lm.get_input_embeddings().weight
    torch.manual_seed(seed)
    sampler = SamplerHead(like.shape[1], width).to(like)
    torch.nn.init.normal_(sampler.outer.weight, std=float(like.std()) * 3)
    copies = CopyBias(torch.rand(3, 5).to(like) * float(like.std()) * 40)
    return dataclasses.replace(masks, sampler=sampler.requires_grad_(False), copies=copies)


def told_model(architecture="Llama", dtype=torch.float64) -> SpaceModel:
    lm = tiny_lm(architecture, dtype)
    model = SpaceModel(lm, None, told_masks(lm), eos_ids=())
    costs = Costs({6: 1.3, 81: 7.0}, {1: 1.0})
    model.costs = {True: costs, False: costs}
    return model


def test_a_new_head_changes_nothing_and_steps_are_the_forward():
    sampler = SamplerHead(16, 24).double()
    hidden, before = torch.randn(5, 16).double(), torch.randn(5, 16).double()
    assert torch.equal(sampler(hidden, before), hidden)
    torch.nn.init.normal_(sampler.outer.weight)
    step = sampler.steps(hidden)
    by_rows = torch.cat([step(slice(row, row + 1), before[row : row + 1]) for row in range(5)])
    assert torch.allclose(by_rows, sampler(hidden, before), atol=1e-12)
    assert not torch.allclose(by_rows, hidden)


def test_each_guess_is_told_the_token_in_front_of_it():
    """Against the formula, written out: own token first, then each guess the one before it."""
    model, layout = told_model(), Layout.grid(3)
    cache = BlockCache()
    model.call(Layout.plain(4), [9, 8, 7, 6], cache)
    judged = model.call(layout, [1, 2, 3, 4], cache)
    head, sampler = model.lm.get_output_embeddings(), model.masks.sampler
    for accepted in range(4):
        masks, own = judged.masks(torch.tensor(accepted)), torch.tensor(5 + accepted)
        tokens, logits = judged.chain(masks, own, lambda row: row.argmax(-1))
        before = int(own)
        for row, token in enumerate(tokens.tolist()):
            told = head(sampler(masks[row], model.embed(torch.tensor(before))))
            assert torch.allclose(logits[row], told, atol=1e-10)
            assert int(told.argmax()) == token
            before = token
        untold = judged.guesses(masks).argmax(-1)
        assert tokens.tolist() != untold.tolist()


def test_its_products_are_told_apart_from_what_decoding_costs():
    model = told_model()
    found = {line.method: line for line in profile(model, [[3, 1, 4]], Settings(k=3, max_new_tokens=12))}
    assert found["vanilla"].sampler == 0 < found["space-grid"].sampler < 0.9
    assert found["space-grid"].share[1] + found["space-grid"].sampler < 1
    assert "steps" not in vars(model.masks.sampler)


@pytest.mark.parametrize("architecture", some(ARCHITECTURES, FEW))
def test_greedy_output_is_plain_decodings(architecture):
    model = told_model(architecture)
    for prompt in ([3, 1, 4], [5, 5, 9, 2, 6]):
        expected = oracle(model.lm, prompt, 24)
        for k in (1, 3, 5, 8):
            for plan in Plan:
                settings = Settings(k=k, max_new_tokens=24, plan=plan)
                assert output(space_core.space(model, prompt, settings)) == expected


@pytest.mark.parametrize("architecture", ["Llama", "OPT"])
def test_several_prompts_at_once(architecture):
    model = told_model(architecture)
    prompts = [[3, 1, 4], [5, 5, 9, 2, 6], [7]]
    for plan in Plan:
        texts = [[] for _ in prompts]
        for steps in space_core.batch(model, prompts, Settings(k=3, max_new_tokens=20, plan=plan)):
            for text, step in zip(texts, steps, strict=True):
                text += step.emitted if step else ()
        assert texts == [oracle(model.lm, prompt, 20) for prompt in prompts]


class Shrewd:
    """Judges all drafts or none, as the last ones' confidences say: whether they are above `line`."""

    def __init__(self, line):
        self.line, self.judged = line, {True: 0, False: 0}

    def first(self, apart):
        return 2

    def next(self, left, guesses, copies=()):
        sure = len(guesses) > 1 and guesses[1] > self.line
        self.judged[sure] += bool(guesses)
        drafts = len(guesses) if sure else 0
        layout = Layout.steady((2,) * (drafts + 1)).within(left)
        return planner.Plan(layout.n_drafts, layout)

    def learn(self, stood, emitted):
        pass

    def took(self, seconds):
        pass


def told_against_law(draws, monkeypatch, prompt=(3, 1, 4), line=0.41, without=None):
    """(chi-square, its limit) of the text behind a prompt, under plans that look at all confidences."""
    model, tokens, shrewd = told_model(dtype=torch.float32), 4, Shrewd(line)
    if without:
        setattr(model.masks, without, None)
    monkeypatch.setattr("space_core.decoders._planner", lambda model, settings: shrewd)
    settings = {"k": 2, "max_new_tokens": tokens, "temperature": 0.8, "top_k": 3}

    def law(text):
        with torch.inference_mode():
            logits = model.lm(torch.tensor([text])).logits[0, -1].double() / 0.8
        top = logits.topk(3)
        return dict(zip(top.indices.tolist(), top.values.softmax(-1).tolist(), strict=True))

    due = {(): 1.0}
    for _ in range(tokens):
        due = {(*a, b): p * q for a, p in due.items() for b, q in law([*prompt, *a]).items()}
    counts = dict.fromkeys(due, 0)
    for seed in range(draws):
        steps = space_core.space(model, prompt, Settings(seed=seed, **settings))
        counts[tuple(token for step in steps for token in step.emitted)] += 1
    assert min(shrewd.judged.values()) > draws / 20
    seen = torch.tensor([float(counts[key]) for key in due])
    value, freedom = chi_square(seen, draws * torch.tensor(list(due.values())))
    return value, limit(freedom)


@pytest.mark.more
@pytest.mark.parametrize(
    ("prompt", "line", "without"),
    [((3, 1, 4), 0.41, "copies"), ((3, 4, 3, 4, 3), 0.434, None), ((3, 4, 3, 4, 3), 0.434, "sampler")],
)
def test_sampled_text_follows_the_models_distribution(monkeypatch, prompt, line, without):
    """Behind a text that repeats itself, where copies gain, too."""
    value, most = told_against_law(800, monkeypatch, prompt=prompt, line=line, without=without)
    assert value <= most


@pytest.mark.slow
def test_sampled_text_follows_the_models_distribution_at_full_size(monkeypatch):
    value, most = told_against_law(25_000, monkeypatch, prompt=(3, 4, 3, 4, 3), line=0.434)
    assert value <= most


@pytest.mark.more
def test_confidences_that_know_drawn_drafts_bend_the_law(monkeypatch):
    """Why the planner sees what the masks say untold: else it leaves drafts out for what they are."""
    honest = _Run._draft_in_turn

    def leaks(run, judged, masks, own, follow):
        guessed = honest(run, judged, masks, own, follow)
        return guessed if guessed.q is None else dataclasses.replace(guessed, sure=guessed.q.amax(-1))

    monkeypatch.setattr(_Run, "_draft_in_turn", leaks)
    value, most = told_against_law(1500, monkeypatch)
    assert value > most


def test_confidences_do_not_depend_on_the_drafts(monkeypatch):
    model = told_model()
    run = _Run(model, [1, 2, 3], Settings(k=4, temperature=1.0), 1)
    judged = model.call(Layout.first(3, 4), [1, 2, 3], run.cache)
    masks, own = judged.masks(torch.tensor(0)), torch.tensor(7)
    drawn = [run._draft_in_turn(judged, masks, own) for _ in range(20)]
    assert len({tuple(d.tokens.tolist()) for d in drawn}) > 1
    assert all(torch.equal(d.sure, drawn[0].sure) for d in drawn)


def test_a_checkpoint_keeps_its_head(tmp_path):
    model = told_model()
    model.masks.adapter = GatedAdapter(model.lm, ["q_proj"], 2)
    save(tmp_path / "told", model)
    again = load(tmp_path / "told", dtype="float64")
    for name, tensor in model.masks.sampler.state_dict().items():
        assert torch.equal(again.masks.sampler.state_dict()[name], tensor)
    settings = Settings(k=3, max_new_tokens=16, plan="grid")
    steps = [list(space_core.space(m, [3, 1, 4], settings)) for m in (model, again)]
    assert [s.drafts for s in steps[0]] == [s.drafts for s in steps[1]]

    wrong = tmp_path / "told" / "space" / WEIGHTS
    for fault, word in ((b"", "sampler head"), (b"x" * 64, "sampler head")):
        wrong.write_bytes(fault)
        with pytest.raises(CheckpointError, match=r"SHA-256|sampler"):
            load(tmp_path / "told", dtype="float64")
        with pytest.raises(CheckpointError, match=word):
            SamplerHead.load(wrong.parent, 32)
    SamplerHead(8, 4).save(wrong.parent)
    with pytest.raises(CheckpointError, match="does not fit"):
        SamplerHead.load(wrong.parent, 32)
    sampler = SamplerHead(32, 4)
    sampler.inner.bias.data.fill_(float("nan"))
    sampler.save(wrong.parent)
    with pytest.raises(CheckpointError, match="finite"):
        SamplerHead.load(wrong.parent, 32)


def test_a_call_looked_into_shows_the_drafts_that_were_made():
    model = told_model()
    costs = Costs({6: 1.05, 81: 1.2}, {1: 1.0})  # rows are cheap: planned calls have masks
    model.costs = {True: costs, False: costs}
    for options in ({"plan": "grid"}, {"plan": "auto"}, {"plan": "grid", "temperature": 1.0}):
        seen = 0
        settings = Settings(k=3, max_new_tokens=20, **options)
        prompt = [3, 1, 4]
        steps = tuple(space_core.space(model, prompt, settings))
        trace = Trace(
            model.name, "space", 3, "float64", "cpu", tuple(prompt), steps, settings=settings.to_json()
        )
        for call, step in enumerate(steps[:-1]):
            rows = guesses(model, trace, call, top=VOCABULARY)
            layout = Layout.steady(step.groups)
            chosen = list(layout.drafting_rows(step.accepted))[: len(step.new_drafts)]
            if not step.new_draft_probs:
                continue
            for row, draft, probability in zip(chosen, step.new_drafts, step.new_draft_probs, strict=True):
                found = {guess.token: guess.probability for guess in rows[row]}
                assert found[draft] == pytest.approx(probability, rel=1e-4)
                seen += 1
        assert seen > 3
