"""Sampling is exact in distribution: by enumeration, end to end, and the paper's own rule fails."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from tiny import some, tiny_lm, trained_like_masks

import space_core
from space_core import Settings, planner
from space_core.checks import chi_square
from space_core.checks import quantile as limit
from space_core.cost import Costs
from space_core.decoders import _Run
from space_core.layout import Layout
from space_core.lookup import Lookup
from space_core.model import SpaceModel
from space_core.verify import (
    _verify_on_device,
    block_law,
    draw,
    residual,
    verify_block,
    verify_greedy,
    verify_sampled,
)


def test_greedy_accepts_up_to_the_first_wrong_draft():
    for choices, drafts, accepted, own in (
        ([4, 5, 6], [4, 5], 2, 6),
        ([4, 5, 6], [4, 9], 1, 5),
        ([4, 5, 6], [9, 5], 0, 4),
        ([7], [], 0, 7),
    ):
        verdict = verify_greedy(torch.tensor(choices), torch.tensor(drafts, dtype=torch.long))
        assert (int(verdict.accepted), int(verdict.own)) == (accepted, own)
        if drafts:  # what a GPU computes instead
            verdict = _verify_on_device(torch.tensor(choices), torch.tensor(drafts))
            assert (int(verdict.accepted), int(verdict.own)) == (accepted, own)


def test_draw_inverts_the_cumulative_sum_and_never_takes_a_zero():
    weights = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]], dtype=torch.float64)
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 0.999], dtype=torch.float64)
    assert draw(weights.repeat(4, 1), uniforms).tolist() == [1, 1, 3, 3]
    almost_one = torch.tensor([1 - 2**-53], dtype=torch.float64)
    for scale in (1e-300, 1e-9, 1 / 3, 1e9):
        assert draw(weights * scale, almost_one).tolist() == [3]


def test_the_law_is_temperature_then_top_k_then_top_p(llama):
    logits = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0]], dtype=torch.float64)
    for top_k, top_p in ((4, 0.9), (2, 0.95)):  # the nucleus cuts, then top-k does
        settings = Settings(temperature=0.5, top_k=top_k, top_p=top_p)
        found = _Run(llama, [1], settings, stream=0).distribution(logits)[0]
        kept = (logits[0, :top_k] / 0.5).softmax(-1)
        kept = kept[: int((kept.cumsum(-1) < top_p).sum()) + 1]
        assert torch.allclose(found, torch.cat([kept / kept.sum(), torch.zeros(5 - len(kept))]), atol=1e-12)


@pytest.mark.parametrize("judge", [verify_sampled, verify_block])
def test_the_impossible_is_rejected_and_the_certain_accepted_at_every_die(judge):
    """A die may show 0 exactly: `<=` for `<` would then let an impossible token through."""
    q = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64)
    p = torch.tensor([[0.0, 0.4, 0.6], [0.2, 0.3, 0.5]], dtype=torch.float64)
    for die in (0.0, 2**-53, 0.5, 1 - 2**-53):
        dice = torch.tensor([die, 0.5], dtype=torch.float64)
        assert int(judge(p, q, torch.tensor([0]), dice).accepted) == 0
        assert int(judge(torch.cat([q, q]), q, torch.tensor([0]), dice).accepted) == 1
    # Behind an impossible draft nothing stands, however likely.
    pair, sure = torch.tensor([0, 1]), torch.tensor([[0.0, 1.0, 0.0]] * 3, dtype=torch.float64)
    verdict = judge(sure, torch.cat([q, sure[:1]]), pair, torch.zeros(3, dtype=torch.float64))
    assert (int(verdict.accepted), int(verdict.own)) == (0, 1)


def test_every_draft_and_the_own_token_have_a_die_each():
    generator = torch.Generator().manual_seed(3)
    for p, q in pairs(30):
        k = len(q)
        drafts = torch.multinomial(q, 1, generator=generator)[:, 0]
        stands = [float(p[i, c] / q[i, c]) for i, c in enumerate(drafts.tolist())]
        for _ in range(10):
            dice = torch.rand(k + 1, generator=generator, dtype=torch.float64)
            wrong = (i for i in range(k) if dice[i] >= stands[i])
            accepted = next(wrong, k)
            own = p[k] if accepted == k else residual(p[:k], q)[accepted]
            verdict = verify_sampled(p, q, drafts, dice)
            assert int(verdict.accepted) == accepted
            assert int(verdict.own) == int(draw(own[None], dice[k:]))


def distribution_of_next(p, q, rule):
    """The exact distribution of all k + 1 next tokens under an acceptance rule, from its own steps.

    p[i], q[i]: distributions at position i, independent of the tokens before (the sampler cannot
    tell). Unverified positions behind a rejection are filled by p, as later calls would.
    """
    k, vocabulary = len(q), p.shape[1]
    result = torch.zeros((vocabulary,) * (k + 1), dtype=torch.float64)
    ruled = {
        (i, c): rule(p[i], q[i], c) for i, c in itertools.product(range(k), range(vocabulary)) if q[i, c]
    }
    for drafts in itertools.product(range(vocabulary), repeat=k):
        weight = 1.0
        for i, c in enumerate(drafts):
            weight *= float(q[i, c])
        if not weight:
            continue
        alive = weight
        for i, c in enumerate(drafts):
            stands, after_rejection = ruled[i, c]
            rejected = alive * (1 - stands)
            for own in range(vocabulary):
                share = rejected * float(after_rejection[own])
                if share:
                    rest = torch.ones((), dtype=torch.float64)
                    for j in range(i + 1, k + 1):
                        rest = torch.tensordot(rest, p[j], dims=0) if rest.ndim else rest * p[j]
                    result[(*drafts[:i], own)] += share * rest
            alive *= stands
        result[drafts] += alive * p[k]
    return result


def exact_rule(p, q, c):
    """Our rule, read off `verify_sampled` itself: the threshold of its uniform by bisection."""
    low, high = 0.0, 1.0
    both = torch.stack([p, p])

    def accepts(u):
        uniforms = torch.tensor([u, 0.5], dtype=torch.float64)
        return bool(verify_sampled(both, q[None], torch.tensor([c]), uniforms).accepted)

    if accepts(1 - 2**-53):
        low = high = 1.0
    elif not accepts(0.0):
        low = high = 0.0
    else:
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if accepts(middle) else (low, middle)
    rest = residual(p[None], q[None])[0]
    return (low + high) / 2, rest / rest.sum()


def paper_rule(p, q, c):
    """The reference code's rule: accept by p/q, but draw from p itself after a rejection."""
    return min(1.0, float(p[c] / q[c])), p


def always_rule(p, q, c):
    """A biased sampler: accept by min(1, p/q + 0.05)."""
    rest = residual(p[None], q[None])[0]
    return min(1.0, float(p[c] / q[c]) + 0.05), rest / rest.sum()


def pairs(count):
    """Random (p, q) over k positions, with zeros, ties and p = q among them."""
    generator = torch.Generator().manual_seed(0)
    for index in range(count):
        k = 1 + index % 3
        vocabulary = 2 + index % 5
        p = torch.rand(k + 1, vocabulary, generator=generator, dtype=torch.float64)
        q = torch.rand(k, vocabulary, generator=generator, dtype=torch.float64)
        if index % 3 == 0:
            p[torch.rand(p.shape, generator=generator) < 0.3] = 0
            q[torch.rand(q.shape, generator=generator) < 0.3] = 0
        p[:, 0] += 1e-3
        q[:, -1] += 1e-3
        if index % 7 == 0:
            q = p[:-1].clone()
        yield p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)


def block_distribution(p, q, law=block_law):
    """The exact distribution of all k + 1 next tokens under block verification; expected accepted."""
    k, vocabulary = len(q), p.shape[1]
    result, expected = torch.zeros((vocabulary,) * (k + 1), dtype=torch.float64), 0.0
    for drafts in itertools.product(range(vocabulary), repeat=k):
        weight = float(torch.stack([q[i, c] for i, c in enumerate(drafts)]).prod())
        if not weight:
            continue
        chances, own = law(p, q, torch.tensor(drafts))
        own = own / own.sum(-1, keepdim=True)
        later = 1.0
        for i in range(k, -1, -1):
            ends_here = later * (float(chances[i - 1]) if i else 1.0)
            later -= ends_here
            rest = own[i]
            for j in range(i + 1, k + 1):
                rest = torch.tensordot(rest, p[j], dims=0)
            result[drafts[:i]] += weight * ends_here * rest
            expected += weight * ends_here * i
    return result, expected


def token_accepted(p, q):
    """Drafts that stand on average when judged one after the other."""
    stands = torch.minimum(p[:-1], q).sum(-1)
    return float(stands.cumprod(0).sum())


def truth_of(p):
    result = p[0]
    for row in p[1:]:
        result = torch.tensordot(result, row, dims=0)
    return result


def test_sampling_is_exact_by_enumeration():
    for p, q in pairs(50):
        distance = (distribution_of_next(p, q, exact_rule) - truth_of(p)).abs().sum() / 2
        assert distance <= 1e-12


def test_block_verification_is_exact_and_accepts_at_least_as_many():
    gain = 0.0
    for p, q in pairs(60):
        found, accepted = block_distribution(p, q)
        assert (found - truth_of(p)).abs().sum() / 2 <= 1e-12
        assert accepted >= token_accepted(p, q) - 1e-12
        gain += accepted - token_accepted(p, q)
    assert gain > 0.5


def test_block_verification_throws_the_dice_by_its_law():
    generator = torch.Generator().manual_seed(0)
    for p, q in pairs(30):
        k = len(q)
        drafts = torch.multinomial(q, 1, generator=generator)[:, 0]
        chances, own = block_law(p, q, drafts)
        for _ in range(10):
            uniforms = torch.rand(k + 1, generator=generator, dtype=torch.float64)
            accepted = max((i + 1 for i in range(k) if uniforms[i] < chances[i]), default=0)
            verdict = verify_block(p, q, drafts, uniforms)
            assert int(verdict.accepted) == accepted
            assert int(verdict.own) == int(draw(own[accepted][None], uniforms[k:]))


def test_a_wrong_block_law_is_caught_by_enumeration():
    def forgets_the_residual(p, q, drafts):
        return block_law(p, q, drafts)[0], p

    def accepts_one_by_one_with_the_blocks_rest(p, q, drafts):
        places = torch.arange(len(drafts))
        return (p[places, drafts] / q[places, drafts]).clamp(max=1), block_law(p, q, drafts)[1]

    for law in (forgets_the_residual, accepts_one_by_one_with_the_blocks_rest):
        worst = max(
            float((block_distribution(p, q, law)[0] - truth_of(p)).abs().sum() / 2) for p, q in pairs(30)
        )
        assert worst > 0.01


@pytest.mark.parametrize("rule", [paper_rule, always_rule])
def test_a_wrong_rule_is_caught_by_enumeration(rule):
    distances = [
        float((distribution_of_next(p, q, rule) - truth_of(p)).abs().sum() / 2) for p, q in pairs(50)
    ]
    assert max(distances) > 0.01


def test_the_papers_rule_on_its_own_example():
    p, q = (
        torch.tensor([[0.5, 0.5]] * 2, dtype=torch.float64),
        torch.tensor([[0.9, 0.1]], dtype=torch.float64),
    )
    paper = distribution_of_next(p, q, paper_rule).sum(1)
    assert paper.tolist() == pytest.approx([0.7, 0.3])
    assert distribution_of_next(p, q, exact_rule).sum(1).tolist() == pytest.approx([0.5, 0.5])


def small_vocabulary_model():
    lm = tiny_lm("Llama", torch.float32, seed=3, num_hidden_layers=1)
    with torch.no_grad():
        lm.lm_head.weight.data = lm.lm_head.weight.data.clone() * 0.3
    model = SpaceModel(lm, None, trained_like_masks(lm), eos_ids=())
    model.costs = {False: Costs({4: 1.3, 9: 2.2}, {1: 1.0})}  # under which plans differ from call to call
    return model


VARIANTS = {
    "grid, token by token": {"plan": "grid", "verification": "token"},
    "grid, block": {"plan": "grid", "verification": "block"},
    "planned, block": {"plan": "auto", "verification": "block"},
    "planned, token by token": {"plan": "auto", "verification": "token"},
}


def sampled_against_law(draws, **options):
    """(chi-square, its limit) of four tokens behind a prompt, drawn with SPACE many times.

    Four, since the first call writes one, and no draft is judged that could be the last: two drafts at once.
    """
    prompt = [3, 1, 4]
    model = small_vocabulary_model()
    settings = {"k": 2, "max_new_tokens": 4, "temperature": 0.8, "top_k": 3, **options}

    def law(text):
        with torch.inference_mode():
            logits = model.lm(torch.tensor([text])).logits[0, -1].double() / 0.8
        top = logits.topk(3)
        return dict(zip(top.indices.tolist(), top.values.softmax(-1).tolist(), strict=True))

    due = {(): 1.0}
    for _ in range(4):
        due = {(*a, b): p * q for a, p in due.items() for b, q in law([*prompt, *a]).items()}
    counts = dict.fromkeys(due, 0)
    for seed in range(draws):
        text = [
            t for s in space_core.space(model, prompt, Settings(seed=seed, **settings)) for t in s.emitted
        ]
        counts[tuple(text)] += 1
    keys = list(due)
    value, freedom = chi_square(
        torch.tensor([float(counts[key]) for key in keys]), draws * torch.tensor([due[key] for key in keys])
    )
    return value, limit(freedom)


@pytest.mark.parametrize("variant", some(VARIANTS, ["planned, block"]))
def test_sampled_tokens_follow_the_models_distribution(variant):
    value, most = sampled_against_law(1200, **VARIANTS[variant])
    assert value <= most


@pytest.mark.slow
@pytest.mark.trust(7)
@pytest.mark.parametrize("variant", VARIANTS)
def test_sampled_tokens_follow_the_models_distribution_at_full_size(variant, figures):
    """4 × 25,000 = 100,000 draws."""
    value, most = sampled_against_law(25_000, **VARIANTS[variant])
    assert value <= most
    figures(**{variant: f"chi-square {value:.0f}, quantile {most:.0f}"})


@pytest.mark.slow
@pytest.mark.trust(6)
def test_sampling_is_exact_by_enumeration_at_full_size(figures):
    worst = 0.0
    for p, q in pairs(500):
        for found in (distribution_of_next(p, q, exact_rule), block_distribution(p, q)[0]):
            worst = max(worst, float((found - truth_of(p)).abs().sum() / 2))
    assert worst <= 1e-12
    figures(pairs=500, distance=f"{worst:.1g}")


class Wild:
    """Any plan at all that does not look at the drawn tokens."""

    def __init__(self):
        self.random = random.Random(0)
        self.seen = set()

    def first(self, apart):
        return 3

    def next(self, left, guesses, copies=()):
        copied = bool(copies) and self.random.random() < 0.6
        drafts = self.random.randint(0, len(copies if copied else guesses))
        if not copied and guesses and guesses[0] > 0.5:
            drafts = len(guesses)
        layout = Layout.steady(tuple(self.random.choice((0, 0, 1, 2, 3)) for _ in range(drafts + 1)))
        layout = layout.within(left)
        self.seen.add((copied, layout.n_drafts))
        return planner.Plan(layout.n_drafts, layout, copied)

    def learn(self, stood, emitted):
        pass

    def took(self, seconds):
        pass


def wild_against_law(draws, verification, monkeypatch):
    """(chi-square, its limit) of four tokens under wild plans and copies that are often wrong."""
    model, prompt, wild = small_vocabulary_model(), [3, 1, 4, 3, 1, 4, 3, 1], Wild()
    monkeypatch.setattr("space_core.decoders._planner", lambda model, settings: wild)
    monkeypatch.setattr(Lookup, "drafts", lambda lookup, count: (lookup._text[-3:][:count], 0.5))
    settings = {"k": 3, "max_new_tokens": 4, "temperature": 0.8, "top_k": 3, "verification": verification}

    def law(text):
        with torch.inference_mode():
            logits = model.lm(torch.tensor([text])).logits[0, -1].double() / 0.8
        top = logits.topk(3)
        return dict(zip(top.indices.tolist(), top.values.softmax(-1).tolist(), strict=True))

    due = {(): 1.0}
    for _ in range(4):
        due = {(*a, b): p * q for a, p in due.items() for b, q in law([*prompt, *a]).items()}
    counts = dict.fromkeys(due, 0)
    for seed in range(draws):
        steps = space_core.space(model, prompt, Settings(seed=seed, **settings))
        counts[tuple(token for step in steps for token in step.emitted)] += 1
    assert {(False, 2), (True, 2), (True, 1)} <= wild.seen
    seen = torch.tensor([float(counts[key]) for key in due])
    value, freedom = chi_square(seen, draws * torch.tensor(list(due.values())))
    return value, limit(freedom)


@pytest.mark.more
@pytest.mark.parametrize("verification", ["block", "token"])
def test_any_plan_and_any_copies_leave_the_law_as_it_is(verification, monkeypatch):
    value, most = wild_against_law(1200, verification, monkeypatch)
    assert value <= most


@pytest.mark.slow
@pytest.mark.parametrize("verification", ["block", "token"])
def test_any_plan_and_any_copies_leave_the_law_as_it_is_at_full_size(verification, monkeypatch):
    value, most = wild_against_law(25_000, verification, monkeypatch)
    assert value <= most


def test_a_plan_may_know_the_distributions_but_not_the_drawn_token():
    """Why `Drafts.sure` is not `Drafts.probs`: judging only likely draws bends the law."""
    p, q = torch.tensor([0.5, 0.5], dtype=torch.float64), torch.tensor([0.6, 0.4], dtype=torch.float64)

    def law(judged):
        total = torch.zeros(2, dtype=torch.float64)
        for c in range(2):
            if judged(c):
                stands, rest = exact_rule(p, q, c)
                total[c] += q[c] * stands
                total += q[c] * (1 - stands) * rest
            else:
                total += q[c] * p
        return total

    assert torch.allclose(law(lambda c: q.max() > 0.5), p, atol=1e-12)
    assert torch.allclose(law(lambda c: q.max() > 0.9), p, atol=1e-12)
    assert (law(lambda c: q[c] > 0.5) - p).abs().max() > 0.1


@pytest.mark.more
def test_a_biased_sampler_is_caught_end_to_end(monkeypatch):
    monkeypatch.setattr("space_core.verify.residual", lambda p, q: p)
    value, most = sampled_against_law(1500, plan="grid", verification="token")
    assert value > most


def test_the_same_seed_gives_the_same_text_and_lanes_differ(llama):
    settings = Settings(max_new_tokens=20, temperature=1.0, seed=5)
    first = [s.emitted for s in space_core.space(llama, [1, 2], settings)]
    assert first == [s.emitted for s in space_core.space(llama, [1, 2], settings)]
    other = [
        s.emitted
        for s in space_core.space(llama, [1, 2], Settings(max_new_tokens=20, temperature=1.0, seed=6))
    ]
    assert first != other
