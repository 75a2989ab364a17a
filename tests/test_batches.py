"""Several prompts at once: each is decoded as if it were alone."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_sampler import told_model
from tiny import ARCHITECTURES, FEW, VOCABULARY, oracle, some, tiny_lm, trained_like_masks

import space_core
from space_core import Settings
from space_core.adapter import GatedAdapter
from space_core.batch_drafts import draft
from space_core.batch_planner import Ask, AutoBatch, GridBatch, PlainBatch
from space_core.batches import Calls, decode, plain_batch, planner, runs
from space_core.cache import BlockCache, RaggedCache
from space_core.cost import Costs
from space_core.decoders import Drafts, _Run
from space_core.errors import PromptError
from space_core.layout import Layout
from space_core.model import SpaceModel
from space_core.planner import CREDIT, MOST_CREDIT, TRIES
from space_core.settings import Plan
from space_core.trace import Stop

PROMPTS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7, 9, 3, 2], [1]]
TARGETS = {
    **dict.fromkeys(ARCHITECTURES, ("q_proj", "down_proj")),
    "Phi": ("q_proj", "fc1"),
    "Starcoder2": ("q_proj", "c_fc"),
    "GPT2": ("c_attn", "c_fc"),
    "GPTNeoX": ("query_key_value", "dense_h_to_4h"),
    "OPT": ("q_proj", "fc1", "fc2"),
}


def adapted(architecture="Llama", k=5, **options) -> SpaceModel:
    """A float64 model whose mask rows go through a random adapter, and whose calls have a price."""
    lm = tiny_lm(architecture)
    masks = trained_like_masks(lm, k)
    masks.adapter = GatedAdapter(lm, TARGETS[architecture], rank=4)
    with torch.no_grad():
        for parameter in masks.adapter.b.values():
            parameter.normal_()
    masks.adapter.requires_grad_(False)
    model = SpaceModel(lm, None, masks, eos_ids=(), **options)
    # Under which a planned call of up to four sequences is neither plain nor the full grid.
    prices = Costs({6: 1.3, 24: 2.2, 144: 7.0}, {1: 1.0, 24: 1.6})
    model.costs = {(True, n): prices for n in range(1, 9)} | {(False, n): prices for n in range(1, 9)}
    return model


def outputs(calls, count) -> list[list[int]]:
    found = [[] for _ in range(count)]
    for steps in calls:
        for output, step in zip(found, steps, strict=True):
            if step is not None:
                output += step.emitted
    return found


@pytest.mark.parametrize("architecture", some(ARCHITECTURES, FEW))
def test_greedy_equals_each_prompts_own_cacheless_argmax_loop(architecture):
    model = adapted(architecture)
    expected = [oracle(model.lm, prompt, 24) for prompt in PROMPTS]
    assert outputs(plain_batch(model, PROMPTS, Settings(max_new_tokens=24)), 4) == expected
    for k, plan in itertools.product((1, 3, 5), Plan):
        settings = Settings(k=k, max_new_tokens=24, plan=plan)
        assert outputs(space_core.batch(model, PROMPTS, settings), 4) == expected, (k, plan)


def drafting(monkeypatch, draft):
    """Let `draft(prompt, position)` choose every draft; position counts the tokens committed before it."""
    fetch = _Run.fetch

    def inject(run, verdict, guessed):
        accepted, own, guesses = fetch(run, verdict, guessed)
        start = run.length + accepted + 1
        ids = tuple(draft(tuple(run.prompt_ids), start + i) for i in range(len(guesses)))
        if not ids:
            return accepted, own, guesses
        return accepted, own, replace(guesses, ids=ids, tokens=torch.tensor(ids, dtype=torch.long))

    monkeypatch.setattr(_Run, "fetch", inject)


@pytest.mark.parametrize("plan", Plan)
def test_every_sequence_has_its_own_accepted_count(monkeypatch, plan):
    """Drafts that are right as often as a coin says, another one for each sequence."""
    model = adapted()
    truth = {tuple(p): p + oracle(model.lm, p, 50) for p in PROMPTS}
    dice = torch.Generator().manual_seed(0)
    share = dict(zip(truth, (0.5, 0.9, 1.0, 0.0), strict=True))

    def draft(prompt, position):
        right = truth[prompt][position] if position < len(truth[prompt]) else 0
        return right if float(torch.rand((), generator=dice)) < share[prompt] else (right + 1) % VOCABULARY

    drafting(monkeypatch, draft)
    calls = list(space_core.batch(model, PROMPTS, Settings(k=3, max_new_tokens=40, plan=plan)))
    assert outputs(calls, 4) == [truth[tuple(p)][len(p) : len(p) + 40] for p in PROMPTS]
    together = {tuple(step.accepted for step in steps if step) for steps in calls}
    assert {n for counts in together for n in counts} == {0, 1, 2, 3}
    assert any(len(set(counts)) >= 3 for counts in together)
    if plan is Plan.GRID:  # the one that is always right is done first, the one that never is last
        lengths = [sum(steps[i] is not None for steps in calls) for i in range(4)]
        assert lengths[2] == min(lengths) <= 14 and lengths[3] == max(lengths) == 40


def test_planned_calls_of_sequences_that_differ_are_ragged():
    """Fillers are really there: otherwise the tests above would not try them."""
    model = adapted()
    shapes = set()
    for steps in space_core.batch(model, PROMPTS, Settings(k=5, max_new_tokens=40)):
        here = {(len(step.drafts), sum(step.groups)) for step in steps if step}
        shapes.add(len(here) > 1)
    assert shapes == {True, False}


def test_who_has_ended_leaves(monkeypatch):
    """Budgets by context and end-of-sequence ids: outputs are as alone, and rows are no longer fed."""
    lm = tiny_lm("Llama")
    truth = [oracle(lm, prompt, 40) for prompt in PROMPTS]
    model = SpaceModel(lm, None, trained_like_masks(lm), eos_ids=(truth[0][6], truth[3][11]))
    settings = Settings(k=3, max_new_tokens=40, plan="grid")
    alone = [[s for s in space_core.space(model, prompt, settings)] for prompt in PROMPTS]
    expected = [[token for step in steps for token in step.emitted] for steps in alone]
    assert len({len(output) for output in expected}) > 1
    fed = []
    forward = Calls._forward
    monkeypatch.setattr(
        Calls, "_forward", lambda calls, *args: fed.append(len(args[0])) or forward(calls, *args)
    )
    calls = list(space_core.batch(model, PROMPTS, settings))
    assert outputs(calls, 4) == expected
    assert fed[1:] == [sum(step is not None for step in steps) for steps in calls]  # the first reads
    for place, steps in enumerate(zip(*calls, strict=True)):
        there = [step for step in steps if step is not None]
        assert list(steps[: len(there)]) == there  # nobody comes back
        assert [step.stop for step in there] == [None] * (len(there) - 1) + [alone[place][-1].stop]


@pytest.mark.parametrize("plan", Plan)
def test_budgets_and_the_contexts_end(plan):
    model = adapted()
    prompts = [[1, 2, 3], [i % VOCABULARY for i in range(model.context - 3)], [5]]
    for budget in (1, 2, 5):
        calls = list(space_core.batch(model, prompts, Settings(k=3, max_new_tokens=budget, plan=plan)))
        found = outputs(calls, 3)
        assert [len(output) for output in found] == [budget, min(3, budget), budget]
        assert found == [oracle(model.lm, p, min(budget, model.context - len(p))) for p in prompts]
    assert [s.stop for s in calls[-1] if s] and calls[0][1].stop in (None, Stop.CONTEXT)


def test_a_prompt_of_several_chunks_beside_a_short_one():
    lm = tiny_lm("Llama")
    lm.config.max_position_embeddings = 2048
    model = SpaceModel(lm, None, trained_like_masks(lm), eos_ids=())
    prompts = [[(7 * i * i + 3) % VOCABULARY for i in range(600)], [4, 2], list(range(60)) * 4 + [1] * 18]
    assert len(prompts[2]) == 258  # its last chunk is a token long
    settings = Settings(k=2, max_new_tokens=12, plan="grid")
    assert outputs(space_core.batch(model, prompts, settings), 3) == [oracle(lm, p, 12) for p in prompts]


def test_a_model_that_changes_its_logits_behind_the_head():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, head_dim=8, final_logit_softcapping=3.0, sliding_window=64,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    lm = Gemma2ForCausalLM(config).double()
    model = SpaceModel(lm, None, eos_ids=())
    settings = Settings(k=2, max_new_tokens=16, plan="grid")
    assert outputs(space_core.batch(model, PROMPTS, settings), 4) == [oracle(lm, p, 16) for p in PROMPTS]


def test_the_mask_token_is_never_written():
    lm = tiny_lm("Llama")
    favourite = oracle(lm, PROMPTS[0], 1)[0]
    masks = replace(trained_like_masks(lm), method="paper", token_id=favourite, embeddings=None)
    model = SpaceModel(lm, None, masks, eos_ids=())
    for options in ({}, {"temperature": 1.5}):
        settings = Settings(k=3, max_new_tokens=20, plan="grid", **options)
        calls = list(space_core.batch(model, PROMPTS, settings))
        assert not any(favourite in output for output in outputs(calls, 4))
        assert not any(favourite in step.drafts for steps in calls for step in steps if step)
        if not options:
            assert outputs(plain_batch(model, PROMPTS, settings), 4) == outputs(calls, 4)


def test_the_ragged_cache_equals_a_fresh_prefill():
    """Steps with random drafts and random commits, sequences leaving: logits stay those of the text alone."""
    model = adapted()
    dice = torch.Generator().manual_seed(7)

    def number(low, high):
        return int(torch.randint(low, high, (), generator=dice))

    for _ in range(6):
        texts = [torch.randint(VOCABULARY, (number(1, 9),), generator=dice).tolist() for _ in range(4)]
        calls = Calls(model, 4)
        calls.read(texts)
        for _ in range(8):
            layouts, fed = [], []
            for text in texts:
                d = number(0, 4)
                layouts.append(Layout.steady(tuple(number(0, 3) for _ in range(d + 1))))
                fed.append([text[-1], *torch.randint(VOCABULARY, (d,), generator=dice).tolist()])
            answers = calls.run(layouts, fed)
            stops = [number(0, layout.n_drafts + 1) for layout in layouts]
            for text, layout, ids, stop, answer in zip(texts, layouts, fed, stops, answers, strict=True):
                cache = BlockCache()
                if len(text) > 1:
                    model.forward(Layout.plain(len(text) - 1), text[:-1], cache)
                alone = model.call(layout, ids, cache)
                assert (answer.real - alone.real).abs().max() <= 1e-12
                rows = len(layout.drafting_rows(stop))
                guess, same = (one.guesses(one.masks(torch.tensor(stop)))[:rows] for one in (answer, alone))
                assert rows == 0 or (guess - same).abs().max() <= 1e-12
            calls.cache.commit([1 + stop for stop in stops])
            for text, ids, stop in zip(texts, fed, stops, strict=True):
                text += [*ids[1 : 1 + stop], number(0, VOCABULARY)]
            assert calls.cache.lengths == [len(text) - 1 for text in texts]
            if len(texts) > 1 and number(0, 4) == 0:
                gone = number(0, len(texts))
                keep = [i for i in range(len(texts)) if i != gone]
                calls.cache.keep(keep)
                texts = [texts[i] for i in keep]


def test_slots_that_nobody_wrote_hold_no_numbers_that_spread(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda t, shape: torch.full(shape, torch.nan))
    cache = RaggedCache(2)
    cache.commit([3, 0])
    cache.place(2, torch.device("cpu"))
    keys, values = cache.update(torch.ones(2, 1, 2, 4), torch.ones(2, 1, 2, 4), 0)
    assert keys.shape == (2, 1, 5, 4)
    assert keys[0, 0, :, 0].tolist() == [0, 0, 0, 1, 1] and values[1, 0, :, 0].tolist() == [1, 1, 0, 0, 0]


def test_sampled_text_of_a_sequence_does_not_depend_on_its_companions():
    model = adapted()
    settings = Settings(k=3, max_new_tokens=20, temperature=1.0, seed=5, plan="grid")
    here = outputs(space_core.batch(model, [PROMPTS[0], PROMPTS[1], PROMPTS[1]], settings), 3)
    there = outputs(space_core.batch(model, [PROMPTS[0], PROMPTS[2]], settings), 2)
    assert here[0] == there[0]
    assert here[1] != here[2]  # one prompt, two streams
    again = outputs(space_core.batch(model, [PROMPTS[0], PROMPTS[1], PROMPTS[1]], settings), 3)
    other = outputs(space_core.batch(model, [PROMPTS[0]], replace(settings, seed=6)), 1)
    assert again == here and other[0] != here[0]


def test_no_prompt_is_refused():
    model = adapted()
    for prompts in ([], [[1], []], [[1], [1] * model.context]):
        with pytest.raises(PromptError):
            next(space_core.batch(model, prompts, Settings()))


def test_the_price_of_a_call_is_measured_once_for_each_number_of_sequences(llama):
    llama.costs = {}
    settings = Settings(k=2, max_new_tokens=4)
    first = planner(llama, settings, 3)
    measured = llama.costs[True, 3]
    assert planner(llama, settings, 3).cost.tolist() == first.cost.tolist()
    assert llama.costs[True, 3] is measured
    assert set(measured.bare) >= {1, 3} and 18 in measured.masks
    assert len(first.cost) == len(first.bare) == 1 + 3 * 9
    llama.costs = {}


def shape(plans):
    return max(p.layout.n_drafts for p in plans), max(p.layout.n_masks for p in plans)


def linear(row, n, k=3):
    """Seconds of a call where each row costs this share of a plain one-row call."""
    rows = np.arange(n * (k + 1) ** 2 + 1)
    return 1 + row * np.maximum(rows - 1, 0)


def test_where_rows_are_free_all_sequences_get_the_full_grid():
    for n in (1, 4):
        free = AutoBatch(3, linear(0.0, n), linear(0.0, n))
        plans = free.next([Ask(50, (0.8, 0.7, 0.6))] * n)
        assert shape(plans) == (3, 12) and len(plans) == n


def test_the_more_sequences_the_fewer_rows():
    found = []
    for n in (1, 4, 16):
        plans = AutoBatch(3, linear(0.03, n), linear(0.03, n)).next([Ask(50, (0.8, 0.7, 0.6))] * n)
        drafts, masks = shape(plans)
        found.append(1 + drafts + masks)
    assert found == sorted(found, reverse=True) and found[0] > found[-1]


@pytest.mark.parametrize("row", [0.01, 0.05, 0.1, 0.3])
@pytest.mark.parametrize("n", [1, 3, 8])
def test_no_other_shape_is_worth_more(row, n):
    """Against all drafts and masks tried out one by one by the rule as it is written."""
    confidences, k = (0.9, 0.6, 0.5), 3
    price = linear(row, n)
    planned = AutoBatch(k, price, price)
    (first, *others) = [p.layout for p in planned.next([Ask(50, confidences)] * n)]
    assert all(layout == first for layout in others)
    stands = np.cumprod([1.0, *confidences])
    token = price[n] / (1.3 * n)
    judge = (price[n * (k + 1)] - price[n]) / (n * k)
    slots = np.maximum(planned.learned.worth[False].value * token - judge, 0)

    def value(masks):
        d = len(masks) - 1
        total = stands[: d + 1].sum() * token
        for g, count in enumerate(masks):
            stop = stands[g] - (stands[g + 1] if g < d else 0)
            total += stop * slots[:count].sum()
        return n * total - price[n * (1 + d + sum(masks))]

    best = max(value(masks) for d in range(k + 1) for masks in itertools.product(range(k + 1), repeat=d + 1))
    assert value(first.masks) == pytest.approx(best, abs=1e-12)


def test_where_rows_cost_a_call_each_nothing_but_the_newest_token_is_fed():
    n = 2
    dear = AutoBatch(3, linear(2.0, n), linear(2.0, n))
    assert shape(dear.next([Ask(50, (0.5, 0.4, 0.3))] * n)) == (0, 0)


def test_all_share_the_shape_that_is_best_for_all():
    """One sequence with good drafts among many with bad ones does not make all pay for its rows."""
    good, bad = Ask(50, (0.95, 0.95, 0.95)), Ask(50, (0.05, 0.02, 0.01))
    n = 8
    few = AutoBatch(3, linear(0.1, n), linear(0.1, n)).next([good, *[bad] * 7])
    many = AutoBatch(3, linear(0.1, n), linear(0.1, n)).next([good] * 7 + [bad])
    assert shape(few)[0] < shape(many)[0] == 3
    drafts, masks = shape(many)
    assert all(p.layout.n_drafts <= drafts and p.layout.n_masks <= masks for p in many)


def test_no_row_serves_a_token_behind_the_budget():
    free = AutoBatch(3, linear(0.0, 3), linear(0.0, 3))
    for plans in (
        free.next([Ask(1, (0.9, 0.9, 0.9)), Ask(2, (0.9, 0.9)), Ask(50)]),
        GridBatch(3).next([Ask(1), Ask(2), Ask(50)]),
    ):
        for plan, left in zip(plans, (1, 2, 50), strict=True):
            assert plan.layout.n_drafts < left
            assert all(g + masks < left for g, masks in enumerate(plan.layout.masks) if masks)


@pytest.mark.parametrize(("row", "pays"), [(0.2, True), (0.5, False)])
def test_masks_that_were_given_up_are_tried_again(row, pays, monkeypatch):
    """On credit; and never where they could not pay if they were right. Copies are judged all the same."""
    n, tried = 2, []
    for share in (TRIES, 1.0):  # of the time: with the second all that the pauses allow
        monkeypatch.setattr("space_core.planner.TRIES", share)
        planner = AutoBatch(3, linear(row, n), linear(row, n))
        assert planner.first(n) == (3 if pays else 0)
        tried.append(0)
        for _ in range(240):
            plans = planner.next([Ask(50)] * n)
            tried[-1] += any(p.layout.n_masks for p in plans)
            planner.learn([[]] * n, n)
    assert (0 < tried[0] < tried[1]) if pays else tried == [0, 0]
    plans = planner.next([Ask(50, (), (0.99,) * 3)] * n)
    assert all(plan.copied and plan.drafts == 3 for plan in plans)


def test_a_batch_books_what_masks_cost_and_what_their_guesses_bring():
    n, price = 4, linear(0.05, 4)
    planner = AutoBatch(3, price, price)
    planner.first(n)
    left = CREDIT - (price[4 * n] - price[n]) / price[n]
    planner.learn([[]] * n, n)
    assert planner.credit.left == pytest.approx(left)
    sure = Ask(50, (0.9, 0.9, 0.9))
    for asks, stood in (
        ([sure] * n, [[True, True, True], [True, False], [False], [True, True, True]]),
        (
            [sure, sure, *[Ask(50, (), (0.99,) * 3)] * 2],
            [[True, False], [False], [True, True, True], [False]],
        ),
    ):
        plans = planner.next(asks)
        assert [plan.drafts for plan in plans] == [3] * n
        won = sum(sum(known) for known, plan in zip(stood, plans, strict=True) if not plan.copied)
        planner.learn(stood, n + sum(map(sum, stood)))
        bare, judging = price[4 * n], sum(not plan.copied for plan in plans)
        whole = price[n * (4 + max(plan.layout.n_masks for plan in plans))]
        lost = (bare - price[n]) * judging / n + whole - bare - TRIES * whole
        left = min(left + won / n - lost / price[n], MOST_CREDIT)
        assert planner.credit.left == pytest.approx(left)


def test_untrained_masks_open_a_batch_only_where_they_are_free():
    for row, trained, opening in ((0.1, False, 0), (0.1, True, 3), (0.001, False, 3)):
        assert AutoBatch(3, linear(row, 2), linear(row, 2), trained).first(2) == opening
    assert GridBatch(3).first(2) == 3 and PlainBatch().first(2) == 0


def crowd(planner, price, n, chance, sure, masked=1.0, calls=200, seed=0):
    """Seconds a token over plain decoding's, for texts whose drafts stand by chance.

    masked: by how much calls with masks take longer than their price.
    """
    dice = random.Random(seed)
    guesses, seconds, tokens = [()] * n, 0.0, 0
    for _ in range(calls):
        plans = planner.next([Ask(999, held) for held in guesses])
        drafts, masks = shape(plans)
        took = price[n * (1 + drafts + masks)] * (masked if masks else 1.0)
        stood = []
        for place, plan in enumerate(plans):
            right = [dice.random() < chance for _ in range(plan.drafts)]
            accepted = next((i for i, r in enumerate(right) if not r), len(right))
            stood.append(right[: accepted + 1])
            tokens += accepted + 1
            guesses[place] = (sure,) * len(plan.layout.drafting_rows(accepted))
        planner.learn(stood, sum(1 + sum(known) for known in stood))
        planner.took(took)
        seconds += took
    return seconds / tokens / (price[n] / n)


@pytest.mark.parametrize("n", [2, 8])
def test_worthless_masks_cost_a_batch_little_and_good_ones_pay(n):
    price = linear(0.05, n)
    assert crowd(AutoBatch(3, price, price), price, n, chance=0.02, sure=0.9) < 1.1
    assert crowd(AutoBatch(3, price, price), price, n, chance=0.9, sure=0.9) < 0.95


@pytest.mark.parametrize("n", [2, 8])
def test_a_batch_hears_what_its_calls_take(n):
    price = linear(0.03, n)
    hearing, deaf = (
        crowd(AutoBatch(3, price, price, timed=timed), price, n, chance=0.6, sure=0.6, masked=2.5)
        for timed in (True, False)
    )
    assert hearing < 1.2 < 1.5 < deaf


def test_a_run_is_what_is_decoded(llama):
    """`decode` takes any runs: their own budgets hold."""
    settings = Settings(k=2, max_new_tokens=9, plan="grid")
    members = runs(llama, PROMPTS[:2], settings)
    members[0].left = 4
    found = outputs(decode(members, GridBatch(2)), 2)
    assert [len(output) for output in found] == [4, 9]


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("plan", ["auto", "grid"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_guesses_made_together_are_those_of_each_alone(told, plan, temperature):
    """The same tokens from the same laws by the same dice, whatever the others guess."""
    model = told_model() if told else adapted()
    settings = Settings(k=3, max_new_tokens=30, temperature=temperature, plan=plan)
    members = runs(model, PROMPTS, settings)
    for run in members:
        run.index()
    calls = Calls(model, len(PROMPTS))
    calls.read(PROMPTS)
    layouts = [Layout.steady((masks,)) for masks in (1, 3, 0, 2)]
    answers = calls.run(layouts, [prompt[-1:] for prompt in PROMPTS])
    verdicts = [run.verify(judged.real, Drafts()) for run, judged in zip(members, answers, strict=True)]
    dice = [run.random.get_state() for run in members]
    together = draft(members, answers, verdicts, layouts, [Drafts()] * len(PROMPTS))
    assert [guessed is None for guessed in together] == [False, False, True, False]
    lengths = set()
    for run, judged, verdict, layout, state, ours in zip(
        members, answers, verdicts, layouts, dice, together, strict=True
    ):
        if ours is None:
            continue
        after = run.random.get_state()
        run.random.set_state(state)
        alone = run.draft(judged, verdict, layout, Drafts())
        assert torch.equal(run.random.get_state(), after)
        assert torch.equal(ours.tokens, alone.tokens)
        for one, other in ((ours.probs, alone.probs), (ours.sure, alone.sure), (ours.q, alone.q)):
            assert (one is None) == (other is None)
            assert one is None or torch.allclose(one, other, atol=1e-12)
        lengths.add(len(ours.tokens))
    assert max(lengths) > 1 or (told and plan == "auto")  # where hopeless guesses end a chain


def test_no_guesses_where_no_group_has_a_mask_behind_the_run():
    """Every draft falls, and masks stand only behind those that would have stood."""
    model = told_model()
    members = runs(model, PROMPTS[:2], Settings(k=2, max_new_tokens=30))
    calls = Calls(model, 2)
    calls.read(PROMPTS[:2])
    layouts, wrong = [Layout.steady((0, 2))] * 2, []
    for prompt in PROMPTS[:2]:
        wrong.append((oracle(model.lm, prompt, 1)[0] + 1) % VOCABULARY)
    fed = [[prompt[-1], token] for prompt, token in zip(PROMPTS, wrong, strict=False)]
    answers = calls.run(layouts, fed)
    drafts = [run.copied([token], 0.5) for run, token in zip(members, wrong, strict=True)]
    verdicts = [
        run.verify(judged.real, tried) for run, judged, tried in zip(members, answers, drafts, strict=True)
    ]
    assert [int(verdict.accepted) for verdict in verdicts] == [0, 0]
    found = draft(members, answers, verdicts, layouts, drafts)
    assert [len(guessed.tokens) for guessed in found] == [0, 0]
