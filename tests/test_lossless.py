"""Greedy SPACE equals plain decoding, whatever the masks say and whatever the model is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import ARCHITECTURES, VOCABULARY, oracle, output, tiny_lm, trained_like_masks

import space_core
from space_core import Settings
from space_core.cache import BlockCache
from space_core.decoders import _Run
from space_core.errors import PromptError, UnsupportedModelError
from space_core.layout import Layout
from space_core.model import SpaceModel, probe
from space_core.trace import Origin, Stop

TOKENS = 32


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_equals_a_cacheless_argmax_loop_and_generate(architecture):
    lm = tiny_lm(architecture)
    model = SpaceModel(lm, None, trained_like_masks(lm), eos_ids=())
    probe(model)
    for seed in range(2):
        torch.manual_seed(seed)
        prompt = torch.randint(VOCABULARY, (5 + 4 * seed,)).tolist()
        expected = oracle(lm, prompt, TOKENS)
        generated = lm.generate(torch.tensor([prompt]), max_new_tokens=TOKENS, do_sample=False)
        assert generated[0, len(prompt) :].tolist() == expected
        assert output(space_core.vanilla(model, prompt, Settings(max_new_tokens=TOKENS))) == expected
        for k in (1, 2, 3, 5, 8):
            settings = Settings(k=k, max_new_tokens=TOKENS, plan="grid")
            assert output(space_core.space(model, prompt, settings)) == expected, f"k={k}"


def drafting(monkeypatch, draft):
    """Let `draft(position)` choose every draft: position counts the tokens committed before it."""

    def inject(run, logits):
        count = len(logits)
        # The cache holds all but the newest token; a draft stands one position behind it.
        start = run.cache.length + 1
        return [draft(start + i) for i in range(count)], (0.5,) * count

    monkeypatch.setattr(_Run, "draft", inject)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 8])
def test_injected_drafts_are_accepted_exactly_as_far_as_they_are_right(llama, monkeypatch, k):
    prompt = [3, 1, 4, 1, 5]
    truth = prompt + oracle(llama.lm, prompt, 60)
    seen = set()
    for share in (0.0, 0.3, 0.7, 0.9, 0.95, 0.97, 1.0):
        generator = torch.Generator().manual_seed(int(100 * share))

        def draft(position, share=share, generator=generator):
            right = truth[position] if position < len(truth) else 0
            hit = float(torch.rand((), generator=generator)) < share
            return right if hit else (right + 1) % VOCABULARY

        drafting(monkeypatch, draft)
        steps = list(space_core.space(llama, prompt, Settings(k=k, max_new_tokens=40, plan="grid")))
        assert prompt + output(steps) == truth[:45]
        for step in steps:
            wrong = next((i for i, d in enumerate(step.drafts) if step.rejected and i == step.accepted), None)
            if step.rejected and step.stop is None:
                assert step.drafts[wrong] != step.emitted[step.accepted]
                assert step.origins[-1] is Origin.CORRECTED
            seen.add(step.accepted)
        if share == 1.0:
            assert [len(step.emitted) for step in steps[1:-1]] == [k + 1] * (len(steps) - 2)
            assert all(step.rows == (k + 1) ** 2 for step in steps[1:])
    assert seen == set(range(k + 1))


def test_no_row_moves_when_a_row_it_must_not_see_changes(llama):
    """Change every token or mask a row does not see; its logits stay as they were."""
    torch.manual_seed(0)
    layout = Layout.grid(3)
    prompt, chain = [9, 8, 7], [1, 2, 3, 4]
    base = torch.randn(1, layout.rows, 32, dtype=torch.float64)
    sees = layout.sees()

    def run(embeddings):
        cache = BlockCache()
        llama.forward(Layout.plain(3), prompt, cache)
        model = SpaceModel(llama.lm, None, llama.masks, eos_ids=())
        model.row_embeddings = lambda *_: embeddings
        return model.forward(layout, chain, cache)

    before = run(base)
    for row in range(layout.rows):
        changed = base.clone()
        hidden = ~sees[row]
        changed[0, hidden] = torch.randn(int(hidden.sum()), 32, dtype=torch.float64)
        assert (run(changed)[row] - before[row]).abs().max() <= 1e-12
    # The control: a row that is seen does move the one that sees it.
    changed = base.clone()
    changed[0, 0] += 1
    assert (run(changed)[1] - before[1]).abs().max() > 1e-6


def test_cache_after_any_commits_equals_a_fresh_prefill(llama):
    generator = torch.Generator().manual_seed(7)
    for _ in range(10):
        text, cache = [5, 6, 7], BlockCache()
        llama.forward(Layout.plain(2), text[:2], cache)
        for _ in range(12):
            k = int(torch.randint(1, 6, (), generator=generator))
            drafts = torch.randint(VOCABULARY, (k,), generator=generator).tolist()
            llama.forward(Layout.grid(k), [text[-1], *drafts], cache)
            accepted = int(torch.randint(k + 1, (), generator=generator))
            cache.commit(len(text) + accepted)
            text += [*drafts[:accepted], int(torch.randint(VOCABULARY, (), generator=generator))]
            assert cache.length == len(text) - 1
        fresh = llama.forward(Layout.plain(len(text)), text, BlockCache())[-1]
        stepped = llama.forward(Layout.plain(1), text[-1:], cache)[-1]
        assert (fresh - stepped).abs().max() <= 1e-12


@pytest.mark.parametrize("method", ["vanilla", "space"])
def test_budget_is_never_overshot(llama, method):
    decode = getattr(space_core, method)
    for budget in range(1, 9):
        steps = list(decode(llama, [1, 2, 3], Settings(k=5, max_new_tokens=budget)))
        assert len(output(steps)) == budget
        assert [step.stop for step in steps] == [None] * (len(steps) - 1) + [Stop.MAX_NEW_TOKENS]


@pytest.mark.parametrize("method", ["vanilla", "space"])
@pytest.mark.parametrize("room", [1, 2, 7])
def test_context_is_filled_and_not_more(llama, method, room):
    prompt = [i % VOCABULARY for i in range(llama.context - room)]
    steps = list(getattr(space_core, method)(llama, prompt, Settings(max_new_tokens=50)))
    assert len(output(steps)) == room
    assert steps[-1].stop is Stop.CONTEXT


def test_a_prompt_without_room_is_refused(llama):
    for prompt in ([], [1] * llama.context, [VOCABULARY]):
        with pytest.raises(PromptError):
            next(space_core.space(llama, prompt, Settings()))


@pytest.mark.parametrize("k", range(1, 9))
def test_end_of_sequence_inside_an_accepted_run_ends_the_text(llama, monkeypatch, k):
    prompt = [3, 1, 4, 1, 5]
    truth = prompt + oracle(llama.lm, prompt, 40)
    drafting(monkeypatch, lambda position: truth[position] if position < len(truth) else 0)
    for place in range(1, 2 * k + 3):
        eos = truth[len(prompt) + place]
        model = SpaceModel(llama.lm, None, llama.masks, eos_ids=(eos, VOCABULARY + 5))
        expected = truth[len(prompt) : truth.index(eos, len(prompt)) + 1]
        steps = list(space_core.space(model, prompt, Settings(k=k, max_new_tokens=40)))
        assert output(steps) == expected
        assert steps[-1].stop is Stop.EOS
        assert output(space_core.vanilla(model, prompt, Settings(max_new_tokens=40))) == expected


def test_the_mask_token_is_never_written():
    lm = tiny_lm("Llama")
    prompt = [3, 1, 4]
    favourite = oracle(lm, prompt, 1)[0]
    masks = trained_like_masks(lm)
    masks = replace(masks, method="paper", token_id=favourite, embeddings=None)
    model = SpaceModel(lm, None, masks, eos_ids=())
    for settings in (Settings(max_new_tokens=40), Settings(max_new_tokens=40, temperature=1.5)):
        plain = output(space_core.vanilla(model, prompt, settings))
        steps = list(space_core.space(model, prompt, settings))
        assert favourite not in plain + output(steps)
        assert all(favourite not in step.drafts for step in steps)
        if settings.greedy:
            assert plain == output(steps)


def test_float32_equals_plain_decoding_but_for_near_ties():
    lm = tiny_lm("Llama", torch.float32)
    model = SpaceModel(lm, None, trained_like_masks(lm), eos_ids=())
    for seed in range(6):
        torch.manual_seed(seed)
        prompt = torch.randint(VOCABULARY, (6,)).tolist()
        plain = output(space_core.vanilla(model, prompt, Settings(max_new_tokens=TOKENS)))
        ours = output(space_core.space(model, prompt, Settings(max_new_tokens=TOKENS)))
        if plain != ours:
            split = space_core.trace.longest_common_prefix(plain, ours)
            with torch.inference_mode():
                logits = lm(torch.tensor([prompt + plain[:split]])).logits[0, -1]
            first, second = logits.topk(2).values.tolist()
            assert first - second <= 1e-5


def test_models_that_cannot_roll_back_are_refused():
    from transformers import MambaConfig, MambaForCausalLM

    lm = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, state_size=4))
    with pytest.raises(UnsupportedModelError, match="Mamba"):
        probe(SpaceModel(lm, None, eos_ids=()))
