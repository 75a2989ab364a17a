"""Greedy SPACE equals plain decoding, whatever the masks say and whatever the model is."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from tiny import ARCHITECTURES, VOCABULARY, oracle, output, some, tiny_lm, trained_like_masks

import space_core
from space_core import Settings
from space_core.bundled import default_checkpoint
from space_core.cache import BlockCache
from space_core.checks import Forced
from space_core.cost import Costs
from space_core.decoders import _Run, _space
from space_core.errors import PromptError, UnsupportedModelError
from space_core.layout import Layout
from space_core.model import SpaceModel, probe
from space_core.planner import GridPlanner
from space_core.settings import Plan
from space_core.trace import Origin, Stop
from space_core.trust import Subject

TOKENS = 32


# Costs under which a planned call is neither plain nor the full grid.
COSTS = Costs({6: 1.3, 81: 7.0}, {1: 1.0})


def greedy_differences(architecture, seeds, tokens):
    """(runs, mismatches) of vanilla and SPACE against a cache-free argmax loop, in float64."""
    lm = tiny_lm(architecture)
    model = SpaceModel(lm, None, trained_like_masks(lm), eos_ids=())
    model.costs = {True: COSTS, False: COSTS}
    probe(model)
    runs, wrong = 0, []
    for seed in seeds:
        torch.manual_seed(seed)
        prompt = torch.randint(VOCABULARY, (3 + seed % 11,)).tolist()
        expected = oracle(lm, prompt, tokens)
        generated = lm.generate(torch.tensor([prompt]), max_new_tokens=tokens, do_sample=False)
        if generated[0, len(prompt) :].tolist() != expected:
            wrong.append((seed, "generate"))
        if output(space_core.vanilla(model, prompt, Settings(max_new_tokens=tokens))) != expected:
            wrong.append((seed, "vanilla"))
        for k in (1, 2, 3, 5, 8):
            for plan in Plan:
                settings = Settings(k=k, max_new_tokens=tokens, plan=plan)
                runs += 1
                if output(space_core.space(model, prompt, settings)) != expected:
                    wrong.append((seed, k, plan))
    return runs, wrong


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_equals_a_cacheless_argmax_loop_and_generate(architecture):
    runs, wrong = greedy_differences(architecture, range(3), TOKENS)
    assert runs == 30 and not wrong


@pytest.mark.slow
@pytest.mark.trust(1)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_equality_at_full_size(architecture, figures):
    """3,080 runs of 48 tokens over all architectures."""
    runs, wrong = greedy_differences(architecture, range(100, 128), 48)
    assert runs == 280 and not wrong
    figures(**{architecture: f"{runs} runs, {len(wrong)} mismatches"})


def test_a_planned_run_feeds_neither_plain_calls_nor_the_grid_only(llama):
    llama.costs = {True: COSTS, False: COSTS}
    steps = list(space_core.space(llama, [3, 1, 4], Settings(k=5, max_new_tokens=60)))
    llama.costs = {}
    assert len({step.rows for step in steps}) > 2


@pytest.mark.parametrize(
    ("dtype", "whole"),
    some(
        [(dtype, whole) for dtype in ("float64", "float32") for whole in (False, True)], [("float64", False)]
    ),
)
def test_the_bundled_checkpoint_is_decoded_losslessly(dtype, whole):
    """Every k with each prompt, its plans in turn; all with all, and in float32, with `-m more`."""
    turns = itertools.cycle(Plan)
    model = space_core.load(default_checkpoint(), dtype=dtype)
    for prompt in (
        "def fib(n):\n",
        "import os\n\n\nclass Stack:\n    def push(self, item):\n",
        'x = "é漢🙂"',
    ):
        ids = model.encode(prompt)
        text = torch.tensor([ids])
        expected = model.lm.generate(
            text, attention_mask=torch.ones_like(text), max_new_tokens=48, do_sample=False
        )[0, len(ids) :].tolist()
        assert output(space_core.vanilla(model, ids, Settings(max_new_tokens=48))) == expected
        for k in (1, 2, 3, 5, 8):
            for plan in Plan if whole else [next(turns)]:
                settings = Settings(k=k, max_new_tokens=48, plan=plan)
                assert output(space_core.space(model, ids, settings)) == expected


def test_the_lazy_head_gives_the_models_own_logits():
    """`call` computes the head of the chosen rows only; `forward` runs the model as it is."""
    for architecture in ARCHITECTURES:
        lm = tiny_lm(architecture)
        model = SpaceModel(lm, None, trained_like_masks(lm), eos_ids=())
        for layout in (Layout.grid(3), Layout.steady((0, 2, 0, 3)), Layout.steady((2,)), Layout.plain(1)):
            results = []
            for run in (model.forward, model.call):
                cache = BlockCache()
                model.forward(Layout.plain(4), [9, 8, 7, 6], cache)
                results.append(run(layout, [1, 2, 3, 4][: layout.n_real], cache))
            whole, judged = results
            real = len(judged.real)
            assert (whole[layout.n_real - layout.n_drafts - 1 :][:real] - judged.real).abs().max() <= 1e-12
            for stop in range(len(layout.anchors)):
                rows = layout.drafting_rows(stop)
                guesses = judged.guesses(judged.masks(torch.tensor(stop)))[: len(rows)]
                assert torch.allclose(guesses, whole[list(rows)], rtol=0, atol=1e-12)


def test_no_row_stands_behind_what_may_still_be_written(llama):
    """Near the budget or the context's end, rows that nothing could come of are not fed."""
    for k in (1, 3, 5, 8):
        for plan in Plan:
            for budget in range(1, 2 * k + 3):
                steps = list(
                    space_core.space(llama, [1, 2, 3], Settings(k=k, max_new_tokens=budget, plan=plan))
                )
                written = 0
                for step in steps:
                    left = budget - written
                    assert len(step.drafts) < left or not step.drafts
                    assert all(g + masks < left for g, masks in enumerate(step.groups) if masks)
                    written += len(step.emitted)
                assert written == budget


def test_a_model_that_counts_its_rows_itself_is_refused():
    from transformers import BartConfig, BartForCausalLM

    config = BartConfig(
        vocab_size=64, d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=64,
        max_position_embeddings=32, is_decoder=True, is_encoder_decoder=False,
    )  # fmt: skip
    with pytest.raises(UnsupportedModelError, match="positions"):
        probe(SpaceModel(BartForCausalLM(config), None, eos_ids=()))


def test_long_rope_ends_the_context_where_its_factors_change():
    from transformers import Phi3Config, Phi3ForCausalLM

    half = 4
    config = Phi3Config(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=128, original_max_position_embeddings=32,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * half,
            "long_factor": [4.0] * half, "original_max_position_embeddings": 32,
        },
        bos_token_id=None, eos_token_id=None, pad_token_id=None, sliding_window=None,
    )  # fmt: skip
    torch.manual_seed(0)
    lm = Phi3ForCausalLM(config).double()
    model = SpaceModel(lm, None, trained_like_masks(lm), eos_ids=())
    assert model.context == 32
    prompt = [3, 1, 4, 1, 5]
    plain = output(space_core.vanilla(model, prompt, Settings(max_new_tokens=60)))
    assert output(space_core.space(model, prompt, Settings(max_new_tokens=60, plan="grid"))) == plain


def test_a_long_prompt_needs_no_square_mask_and_changes_nothing():
    lm = tiny_lm("Llama")
    lm.config.max_position_embeddings = 2048
    model = SpaceModel(lm, None, trained_like_masks(lm), eos_ids=())
    prompt = [(7 * i * i + 3) % VOCABULARY for i in range(700)]
    expected = oracle(lm, prompt, 12)
    assert output(space_core.vanilla(model, prompt, Settings(max_new_tokens=12))) == expected
    # The grid's masks are fed behind the prompt, in a second forward; planned ones wait for the next call.
    for plan, rows in ((Plan.GRID, 705), (Plan.AUTO, 700)):
        steps = list(space_core.space(model, prompt, Settings(max_new_tokens=12, plan=plan)))
        assert output(steps) == expected and steps[0].rows == rows
    assert max(shape.bytes for shape in model._shapes.values()) < 2**20


def test_a_model_that_was_cast_meanwhile_is_decoded_right():
    lm = tiny_lm("Llama", torch.float32)
    model = SpaceModel(lm, None, trained_like_masks(lm), eos_ids=())
    list(space_core.space(model, [1, 2, 3], Settings(plan="grid")))
    lm.double()
    model.masks.embeddings = model.masks.embeddings.double()
    plain = output(space_core.vanilla(model, [1, 2, 3], Settings()))
    assert output(space_core.space(model, [1, 2, 3], Settings(plan="grid"))) == plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_that_ignores_masks_is_refused_in_every_dtype(dtype):
    from transformers import BertConfig, BertLMHeadModel

    config = BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, is_decoder=False,
    )  # fmt: skip
    torch.manual_seed(0)
    lm = BertLMHeadModel(config).to(dtype)
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.ndim == 2:
                parameter.mul_(12)
    with pytest.raises(UnsupportedModelError):
        probe(SpaceModel(lm, None, eos_ids=()))


def test_one_transfer_to_the_host_in_a_call(llama):
    """Nothing but `fetch` waits for the device, greedy or sampled."""
    from torch.utils._python_dispatch import TorchDispatchMode

    waits = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten._local_scalar_dense.default:
                waits.append(function)
            return function(*args, **(kwargs or {}))

    for options in ({}, {"temperature": 1.0}, {"temperature": 1.0, "verification": "token"}):
        steps = space_core.space(llama, [1, 2, 3], Settings(max_new_tokens=30, plan="grid", **options))
        next(steps)
        with Watch():
            next(steps)
        assert not waits


def test_a_model_that_changes_its_logits_behind_the_head_goes_through_it_whole():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, head_dim=8, final_logit_softcapping=3.0, sliding_window=64,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    lm = Gemma2ForCausalLM(config).double()
    model = SpaceModel(lm, None, eos_ids=())
    prompt = [3, 1, 4]
    for plan in Plan:
        assert output(space_core.space(model, prompt, Settings(plan=plan, max_new_tokens=24))) == oracle(
            lm, prompt, 24
        )
    logits = model.call(Layout.plain(3), prompt, BlockCache()).real
    assert float(logits.abs().max()) <= 3.0


def drafting(monkeypatch, draft):
    """Let `draft(position)` choose every draft: position counts the tokens committed before it."""
    fetch = _Run.fetch

    def inject(run, verdict, guessed):
        accepted, own, guessed = fetch(run, verdict, guessed)
        if not guessed:
            return accepted, own, guessed
        # What is committed but for the drafts that this call accepts and its own token.
        start = run.length + accepted + 1
        ids = tuple(draft(start + i) for i in range(len(guessed)))
        return accepted, own, replace(guessed, ids=ids, tokens=torch.tensor(ids, dtype=torch.long))

    monkeypatch.setattr(_Run, "fetch", inject)


@pytest.mark.parametrize("k", some([1, 2, 3, 5, 8], [1, 3, 8]))
def test_injected_drafts_are_accepted_exactly_as_far_as_they_are_right(llama, monkeypatch, k):
    prompt = [3, 1, 4, 1, 5]
    truth = prompt + oracle(llama.lm, prompt, 60)
    seen = set()
    for share, seed in itertools.product((0.0, 0.3, 0.7, 0.9, 0.95, 1.0), range(4)):
        generator = torch.Generator().manual_seed(int(100 * share) + seed)

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
            # Near the budget's end the grid is smaller: no row serves a token behind it.
            assert all(step.rows == (k + 1) ** 2 for step in steps[1 : 1 + (39 - 2 * k) // (k + 1)])
    assert seen == set(range(k + 1))


def test_drafts_are_the_guesses_of_the_group_behind_what_stood(llama):
    """The masks behind the accepted drafts, as the paper's table has them, and no others."""
    prompt, subject = [3, 1, 4, 1, 5], Subject(llama, [[3, 1, 4, 1, 5]])
    truth = prompt + oracle(llama.lm, prompt, 40)
    sure = iter([0, 1, 3, 2, 0, 3, 1] * 9)  # how many drafts of each call are to stand
    right = {}

    def choose(place, slot):
        if not slot:
            right["n"] = next(sure)
        return truth[place] if place < len(truth) and slot < right["n"] else 63 - truth[place % len(truth)]

    run = Forced(llama, prompt, Settings(k=3, max_new_tokens=30, plan="grid"), stream=1)
    run.choose, guessed, seen, text = choose, [], set(), list(prompt)
    draft = run.draft
    run.draft = lambda *parts: guessed.append(draft(*parts)) or guessed[-1]
    for step in _space(run, GridPlanner(3)):
        if step.groups and not step.stop:
            rows = subject.by_hand(text, step.drafts, step.groups)
            first = sum(step.groups[: step.accepted])
            due = rows[first : first + step.groups[step.accepted]].argmax(-1).tolist()
            assert guessed[-1].tokens.tolist()[: len(due)] == due
            seen.add(step.accepted)
        text += step.emitted
    assert seen == {0, 1, 2, 3}


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


@pytest.mark.parametrize("k", some(range(1, 9), [1, 3, 8]))
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


def test_models_that_cannot_roll_back_are_refused():
    from transformers import MambaConfig, MambaForCausalLM

    lm = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, state_size=4))
    with pytest.raises(UnsupportedModelError, match="Mamba"):
        probe(SpaceModel(lm, None, eos_ids=()))
