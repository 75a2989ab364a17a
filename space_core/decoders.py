"""The decoders: generators that yield one `Step` per model call.

A decoder knows token ids and nothing else: no text, no page, no clock but that of its own calls.
Vanilla and SPACE run through the same call code, so neither has an advantage beside its rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from space_core import cost
from space_core.cache import BlockCache
from space_core.errors import UnsupportedModelError
from space_core.layout import Layout
from space_core.lookup import DeviceLookup, Follow, Lookup
from space_core.memory import Memory
from space_core.model import LONG_CALL, Judged, SpaceModel
from space_core.planner import AutoPlanner, GridPlanner, Planner
from space_core.planner import Plan as PlannedCall
from space_core.settings import MAX_NEW_TOKENS, Plan, Settings, Verification
from space_core.trace import Step, Stop
from space_core.verify import Verdict, draw, likeliest, verify_block, verify_greedy, verify_sampled

HOPELESS, HOPELESS_UNTOLD = 0.1, 0.02
"""Chance that all drafts so far stand below which a CPU asks for no further one: each is a product of the
head, and one in ten of them would be right. Masks that were told nothing are less sure than they could be."""


def vanilla(
    model: SpaceModel, prompt_ids: Sequence[int], settings: Settings, memory: Memory | None = None
) -> Iterator[Step]:
    """Plain decoding: one call, one token.

    Args:
        memory: of a conversation whose earlier turns need not be read again; changes no output.

    Raises:
        PromptError: at the first step, for a prompt that is empty or fills the context.
    """
    with _Run(model, prompt_ids, settings, stream=0, memory=memory) as run:
        yield from _vanilla(run)


def _vanilla(run: _Run) -> Iterator[Step]:
    model, fed = run.model, list(run.prompt_ids[run.known :])
    while True:
        start = model.clock()
        layout = Layout.plain(len(fed))
        judged = model.call(layout, fed, run.cache)
        fed, stop = run.emit([run.undrafted(judged.real)])
        yield Step(tuple(fed), 0, (), layout.rows, model.clock() - start, stop=stop)
        if stop:
            return


def space(
    model: SpaceModel, prompt_ids: Sequence[int], settings: Settings, memory: Memory | None = None
) -> Iterator[Step]:
    """SPACE: each call verifies the drafts of the call before and drafts the next ones.

    Greedy output equals `vanilla`'s; sampled output has the same distribution. What calls cost on this
    device is measured once for each model, before the first planned run: in half a second, which is on
    nobody's clock.

    Args:
        memory: of a conversation whose earlier turns need not be read again; changes no output.

    Raises:
        PromptError: at the first step, for a prompt that is empty or fills the context.
    """
    with _Run(model, prompt_ids, settings, stream=1, memory=memory) as run:
        yield from _space(run, _planner(model, settings))


def _space(run: _Run, planner: Planner) -> Iterator[Step]:
    model, prompt_ids = run.model, run.prompt_ids
    last = list(prompt_ids[run.known :])
    # By the whole prompt, whatever of it lies in the cache already: that changes no output.
    masks = planner.first(apart=len(prompt_ids) > LONG_CALL)
    layout = Layout.first(len(last), min(masks, run.left - 1))
    drafts = tried = Drafts()  # those that are judged, and those at hand, of which the planner chose them
    start = model.clock()
    run.index()
    while True:
        judged = model.call(layout, [*last, *drafts.ids], run.cache)
        if drafts or layout.n_masks:
            verdict = run.verify(judged.real, drafts)
            guessed = run.draft(judged, verdict, layout, drafts) if layout.n_masks else None
            accepted, own, guesses = run.fetch(verdict, guessed)
        else:
            accepted, own, guesses = 0, run.undrafted(judged.real), Drafts()
        run.cache.commit(run.length + accepted)
        emitted, stop = run.emit([*drafts.ids[:accepted], own])
        guesses = guesses.first(len(layout.drafting_rows(accepted)))
        planner.learn(run.stood(tried, len(drafts), accepted, own), len(emitted))
        run.note(emitted)
        copies, sure = run.copies()
        if not stop:
            plan = planner.next(run.left, guesses.sure, (sure,) * len(copies) if copies else ())
            tried = run.tried(plan, guesses, copies, sure)
        chosen = Drafts() if stop else tried.first(plan.drafts)
        seconds = model.clock() - start
        planner.took(seconds)
        yield Step(
            emitted=tuple(emitted),
            accepted=min(accepted, len(emitted)),
            drafts=tuple(drafts.ids),
            rows=layout.rows,
            seconds=seconds,
            draft_probs=drafts.probs,
            groups=layout.masks,
            new_drafts=tuple(chosen.ids),
            new_draft_probs=chosen.probs,
            stop=stop,
            copied=drafts.copied,
        )
        if stop:
            return
        start = model.clock()
        last, drafts, layout = emitted[-1:], chosen, plan.layout


@dataclass(frozen=True, slots=True)
class Drafts:
    """Guesses that wait for a call to verify them.

    Attributes:
        ids: the tokens.
        probs: probability of each under the distribution it was drawn from; none for copies.
        sure: largest probability of each distribution, or of one that knows less: it depends on no token
            of the drafts when sampling.
        tokens: `ids` on the device. int64 [n], or None without drafts.
        q: distributions they were drawn from, when sampling. float [n, V].
        copied: copied from the text so far.
    """

    ids: tuple[int, ...] = ()
    probs: tuple[float, ...] = ()
    sure: tuple[float, ...] = ()
    tokens: Tensor | None = None
    q: Tensor | None = None
    copied: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    def first(self, count: int) -> Drafts:
        """Only the first `count`."""
        if count >= len(self.ids):
            return self
        if not count:
            return Drafts()
        return Drafts(
            self.ids[:count],
            self.probs[:count],
            self.sure[:count],
            None if self.tokens is None else self.tokens[:count],
            None if self.q is None else self.q[:count],
            self.copied,
        )


@dataclass(frozen=True, slots=True)
class Guessed:
    """Drafts that are still on the device. int64 [n], float [n] twice, float [n, V] or None."""

    tokens: Tensor
    probs: Tensor
    sure: Tensor
    q: Tensor | None


class _Run:
    """What both decoders keep for one run: cache, budget, random numbers, warpers.

    Attributes:
        known: tokens of the prompt that lie in the cache from the turn before.
        written: what was emitted.
    """

    def __init__(
        self,
        model: SpaceModel,
        prompt_ids: Sequence[int],
        settings: Settings,
        stream: int,
        memory: Memory | None = None,
    ) -> None:
        model.check_prompt(prompt_ids)
        self.model, self.settings, self.prompt_ids = model, settings, prompt_ids
        self.memory = memory
        self.eos_ids = model.eos_ids if memory is None else model.eos_ids | memory.eos_ids
        self.cache = BlockCache() if memory is None else memory.take(model, prompt_ids)
        self.known = self.cache.length
        self.written: list[int] = []
        self.length = len(prompt_ids)
        """Tokens of the text so far: the prompt and what was emitted."""
        room = model.context - self.length
        self.left = min(settings.max_new_tokens, room)
        self.at_budget = Stop.CONTEXT if room < settings.max_new_tokens else Stop.MAX_NEW_TOKENS
        # Random numbers are drawn on the CPU, so that a seed means the same on every device. Each
        # decoder has a stream of its own: lanes of one race are independent draws.
        self.random = torch.Generator().manual_seed(2 * settings.seed + stream)
        self.warpers = _warpers(settings)
        self.no_tokens = torch.empty(0, dtype=torch.long, device=model.device)
        self.vocabulary = 0
        """Width of the logits, known from the first call on."""
        self.thrifty = settings.plan is Plan.AUTO and model.device.type == "cpu"
        """Whether guesses end where they have become hopeless."""
        self.judge = verify_block if settings.verification is Verification.BLOCK else verify_sampled
        self.lookup: Lookup | None = None
        self.device_lookup: DeviceLookup | None = None

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the cache to the next turn, unless not even the prompt was read."""
        if self.memory is not None and self.written:
            self.memory.give(self.cache, [*self.prompt_ids, *self.written])

    def distribution(self, logits: Tensor) -> Tensor:
        """Probabilities after temperature, top-k and top-p. [n, V] to float64 (float32 on mps)."""
        wide = logits.float() if logits.device.type == "mps" else logits.double()
        # These warpers look at each row alone; transformers' signature wants the text so far. One after the
        # other: its list of them looks up the signature of each, at each call.
        no_text: Any = None
        for warper in self.warpers:
            wide = warper(no_text, wide)
        return wide.softmax(-1)

    def uniforms(self, count: int, like: Tensor) -> Tensor:
        return self.dice(count).to(like)

    def dice(self, count: int) -> Tensor:
        """Uniform random numbers of this run, on the CPU. float64 [count]"""
        return torch.rand(count, generator=self.random, dtype=torch.float64)

    def verify(self, logits: Tensor, drafts: Drafts) -> Verdict:
        """Judge the drafts by the logits of the real rows. [1 + len(drafts), V]"""
        self.vocabulary = logits.shape[-1]
        tokens = drafts.tokens
        if tokens is None:
            tokens = self.no_tokens
        if self.settings.greedy:
            return verify_greedy(likeliest(logits), tokens)
        p = self.distribution(logits)
        uniforms = self.uniforms(1 + len(drafts), p)
        if drafts.q is None:  # nothing to judge: this takes a third as long, and gives the same token
            return Verdict(tokens.new_zeros(()), draw(p, uniforms)[0])
        return self.judge(p, drafts.q, tokens, uniforms)

    def undrafted(self, logits: Tensor) -> int:
        """The token of a plain call. [1, V]"""
        if self.settings.greedy and logits.device.type == "cpu":  # a few tensors fewer than a verdict
            return int(likeliest(logits))
        return int(self.verify(logits, Drafts()).own)

    def index(self) -> None:
        """Note what stands where in the prompt, if copies of it serve as drafts or as evidence for them."""
        on_cpu, told = self.model.device.type == "cpu", self.model.masks.copies is not None
        if self.settings.plan is Plan.AUTO or (told and on_cpu):
            self.lookup = Lookup(self.prompt_ids)
        if told and not on_cpu:
            self.device_lookup = DeviceLookup(self.prompt_ids, self.model.device)

    def follow(self, drafts: Drafts, accepted: Tensor) -> Follow | None:
        """What the text so far says of what may come behind the drafts that were accepted."""
        if self.model.masks.copies is None:
            return None
        if self.device_lookup is not None:
            tokens = self.no_tokens if drafts.tokens is None else drafts.tokens
            return self.device_lookup.follow(tokens, accepted)
        return None if self.lookup is None else self.lookup.follow(drafts.ids, accepted)

    def draft(self, judged: Judged, verdict: Verdict, layout: Layout, drafts: Drafts) -> Guessed:
        """New drafts from the mask rows of the group that the verdict on `drafts` chose."""
        masks = judged.masks(verdict.accepted)
        if judged.told:
            if self.model.device.type == "cpu":  # where looking costs nothing, no step is taken in vain
                masks = masks[: len(layout.drafting_rows(int(verdict.accepted)))]
            if not len(masks):
                return Guessed(self.no_tokens, masks[:, 0], masks[:, 0], None)
            return self._draft_in_turn(judged, masks, verdict.own, self.follow(drafts, verdict.accepted))
        logits = judged.guesses(masks)
        if self.settings.greedy:
            sure = surest(logits)
            return Guessed(likeliest(logits), sure, sure, None)
        q = self.distribution(logits)
        tokens = draw(q, self.uniforms(len(q), q))
        return Guessed(tokens, q.gather(-1, tokens[:, None])[:, 0], q.amax(-1), q)

    def _draft_in_turn(
        self, judged: Judged, masks: Tensor, own: Tensor, follow: Follow | None = None
    ) -> Guessed:
        """Drafts that know the ones before. [n, hidden], int64 []"""
        if self.settings.greedy:
            told: list[Tensor] = []
            chance = 1.0

            def hopeless(logits: Tensor) -> bool:
                nonlocal chance
                told.append(surest(logits))
                chance *= float(told[-1])
                return chance < HOPELESS

            tokens, logits = judged.chain(masks, own, likeliest, hopeless if self.thrifty else None, follow)
            sure = torch.cat(told) if told else surest(logits)
            return Guessed(tokens, sure, sure, None)
        # How sure a draft is may not depend on the drafts drawn before it, or the planner would leave
        # those out because of what they are: all but the first are as sure as their mask was, told nothing.
        # Nor may the number of drafts.
        logits = judged.guesses(masks)
        untold = self.distribution(logits).amax(-1)
        if self.thrifty:
            masks = masks[: hopeful(untold)]
        rows: list[Tensor] = []

        def choose(logits: Tensor) -> Tensor:
            rows.append(self.distribution(logits))
            return draw(rows[-1], self.uniforms(1, rows[-1]))

        tokens, _ = judged.chain(masks, own, choose, follow=follow, untold=logits)
        q = torch.cat(rows)
        sure = torch.cat([q[0].amax()[None], untold[1 : len(q)]])
        return Guessed(tokens, q.gather(-1, tokens[:, None])[:, 0], sure, q)

    def fetch(self, verdict: Verdict, guessed: Guessed | None) -> tuple[int, int, Drafts]:
        """Everything the host must know of a call, in one transfer: the call's only wait."""
        told = [verdict.accepted, verdict.own]
        if guessed is not None:
            told += [guessed.tokens, guessed.probs, guessed.sure]
        if verdict.own.device.type == "cpu":  # nothing waits, and small tensors are read faster than joined
            flat = [number for part in told for number in part.view(-1).tolist()]
        else:  # float32 holds every id exactly: no vocabulary reaches 2**24
            flat = torch.cat([part.view(-1).float() for part in told]).tolist()
        accepted, own = int(flat[0]), int(flat[1])
        if guessed is None:
            return accepted, own, Drafts()
        if not math.isfinite(sum(flat)):
            dtype = self.model.dtype_name
            raise UnsupportedModelError(f"the model's logits overflow in {dtype}: load it in another dtype")
        n = len(guessed.tokens)
        ids, probs, sure = flat[2 : 2 + n], flat[2 + n : 2 + 2 * n], flat[2 + 2 * n :]
        drafts = Drafts(tuple(map(int, ids)), tuple(probs), tuple(sure), guessed.tokens, guessed.q)
        return accepted, own, drafts

    def note(self, emitted: Sequence[int]) -> None:
        """Add what was emitted to what copies are taken from."""
        if self.lookup is not None:
            self.lookup.extend(emitted)
        if self.device_lookup is not None:
            self.device_lookup.extend(emitted)

    def copies(self) -> tuple[list[int], float]:
        """Drafts from the text so far, and how sure each of them is; none but where calls are planned."""
        if self.lookup is None or self.settings.plan is not Plan.AUTO:
            return [], 0.0
        ids, sure = self.lookup.drafts(self.settings.k)
        if self.model.mask_token_id in ids:  # where a prompt spells [M]
            ids = ids[: ids.index(self.model.mask_token_id)]
        return ids, sure

    def tried(self, plan: PlannedCall, guesses: Drafts, ids: list[int], sure: float) -> Drafts:
        """Of the guesses and the copies at hand those that the plan prefers."""
        if not plan.copied:
            return guesses
        if plan.drafts:
            # Of copies that no call judges nothing is learned when sampling; each is a whole distribution.
            return self.copied(ids if self.settings.greedy else ids[: plan.drafts], sure)
        return Drafts(tuple(ids), (), (sure,) * len(ids), copied=True)

    def copied(self, ids: list[int], sure: float) -> Drafts:
        """Drafts that are certain of one token each: their distribution has no other."""
        if not ids:
            return Drafts()
        device, size = self.model.device, self.vocabulary
        tokens = torch.tensor(ids, device=device)
        q = None
        if not self.settings.greedy:
            dtype = torch.float32 if device.type == "mps" else torch.float64
            q = torch.zeros(len(ids), size, dtype=dtype, device=device).scatter_(1, tokens[:, None], 1)
        return Drafts(tuple(ids), (), (sure,) * len(ids), tokens, q, copied=True)

    def stood(self, tried: Drafts, judged: int, accepted: int, own: int) -> list[bool]:
        """Of the drafts that were at hand, which were right, up to the first wrong one.

        Greedy decoding also tells of the first draft behind those that were judged: it was right if it
        is what the model wrote. When sampling, only a judgement tells.
        """
        known = [True] * accepted
        if accepted < judged:
            return [*known, False]
        if self.settings.greedy and accepted < len(tried):
            return [*known, tried.ids[accepted] == own]
        return known

    def emit(self, tokens: list[int]) -> tuple[list[int], Stop | None]:
        """Cut new tokens at the first end-of-sequence id and at the budget."""
        tokens = tokens[: self.left]
        for index, token in enumerate(tokens):
            if token in self.eos_ids:
                self.written += tokens[: index + 1]
                return tokens[: index + 1], Stop.EOS
        self.written += tokens
        self.left -= len(tokens)
        self.length += len(tokens)
        return tokens, None if self.left else self.at_budget


def hopeful(untold: Tensor) -> int:
    """How many masks of a group are worth a step on a CPU, from how sure they are. float [n]"""
    return min(len(untold), 1 + int((untold.cumprod(0)[:-1] >= HOPELESS_UNTOLD).sum()))


def surest(logits: Tensor) -> Tensor:
    """Probability of the likeliest token of each row. [n, V] → float [n]"""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide.softmax(-1).amax(-1)


def _planner(model: SpaceModel, settings: Settings) -> Planner:
    k = settings.k
    if settings.plan is Plan.GRID:
        return GridPlanner(k)
    costs = model.costs.get(settings.greedy)
    if costs is None:
        measured = cost.measure(lambda layouts: _seconds(model, settings, layouts), model.clock)
        costs = model.costs[settings.greedy] = measured
    with_masks, bare = costs.curves(k)
    # When sampling a plan shapes the text: one seed shall give one text as long as the model is loaded.
    corrected = costs.timed and settings.greedy
    return AutoPlanner(k, with_masks, bare, model.masks.method != "untrained", corrected)


def _seconds(
    model: SpaceModel, settings: Settings, layouts: Sequence[Layout]
) -> Iterator[tuple[int, bool, float]]:
    """Rows, whether there are masks, and seconds of decoding calls, on a text that means nothing."""
    length = min(cost.CONTEXT, model.context // 2)
    run = _Run(model, [1 % model.vocabulary] * length, replace(settings, max_new_tokens=MAX_NEW_TOKENS), 1)
    run.eos_ids, run.thrifty = frozenset(), False
    script = _Script(layouts, max(settings.k, *(max(layout.masks) for layout in layouts)))
    for step in islice(_space(run, script), 1, 1 + len(layouts)):
        yield step.rows, any(step.groups), step.seconds


class _Script:
    """A planner that follows a list; it plans beside it, for what planning costs."""

    def __init__(self, layouts: Sequence[Layout], k: int) -> None:
        self._layouts, self._k = iter(layouts), k
        flat = np.ones((k + 1) ** 2 + 1)
        self._beside = AutoPlanner(k, flat, flat)

    def first(self, apart: bool) -> int:
        return self._k

    def next(self, left: int, guesses: Sequence[float], copies: Sequence[float] = ()) -> PlannedCall:
        self._beside.next(left, guesses, copies)
        layout = next(self._layouts, Layout.steady((0,))).within(left)
        # The call before may have stopped where there were fewer masks.
        layout = Layout.steady(layout.masks[: 1 + len(guesses)])
        return PlannedCall(layout.n_drafts, layout)

    def learn(self, stood: Sequence[bool], emitted: int) -> None:
        self._beside.learn(stood, emitted)

    def took(self, seconds: float) -> None:
        self._beside.took(seconds)


def _warpers(settings: Settings) -> list[Any]:
    """transformers' own warpers, in the order of its `generate`."""
    if settings.greedy:
        return []
    warpers: list[Any] = []
    if settings.temperature != 1.0:
        warpers.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        warpers.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1.0:
        warpers.append(TopPLogitsWarper(settings.top_p))
    return warpers
