"""The decoders: generators that yield one `Step` per model call.

A decoder knows token ids and nothing else: no text, no page, no clock but that of its own calls.
Vanilla and SPACE run through the same call code, so neither has an advantage beside its rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from space_core.cache import BlockCache
from space_core.layout import Layout
from space_core.model import SpaceModel
from space_core.settings import Settings
from space_core.trace import Step, Stop
from space_core.verify import Verdict, draw, verify_greedy, verify_sampled


def vanilla(model: SpaceModel, prompt_ids: Sequence[int], settings: Settings) -> Iterator[Step]:
    """Plain decoding: one call, one token.

    Raises:
        PromptError: for a prompt that is empty or fills the context.
    """
    run = _Run(model, prompt_ids, settings, stream=0)
    fed = list(prompt_ids)
    while True:
        start = model.clock()
        layout = Layout.plain(len(fed))
        logits = model.forward(layout, fed, run.cache)
        fed, stop = run.emit([run.choose(logits)])
        yield Step(tuple(fed), 0, (), layout.rows, model.clock() - start, stop=stop)
        if stop:
            return


def space(model: SpaceModel, prompt_ids: Sequence[int], settings: Settings) -> Iterator[Step]:
    """SPACE: each call verifies the drafts of the call before and drafts the next ones.

    Greedy output equals `vanilla`'s; sampled output has the same distribution.

    Raises:
        PromptError: for a prompt that is empty or fills the context.
    """
    run = _Run(model, prompt_ids, settings, stream=1)
    layout = Layout.first(len(prompt_ids), settings.k)
    last, drafts = list(prompt_ids), list[int]()
    probs: tuple[float, ...] = ()
    while True:
        start = model.clock()
        committed = run.cache.length + len(last)
        logits = model.forward(layout, last + drafts, run.cache)
        verdict = run.verify(logits[: 1 + len(drafts)], drafts)
        emitted, stop = run.emit([*drafts[: verdict.accepted], verdict.own])
        accepted = min(verdict.accepted, len(emitted))
        run.cache.commit(committed + verdict.accepted)
        new, new_probs = ([], ()) if stop else run.draft(logits[layout.group_rows(verdict.accepted)])
        yield Step(
            emitted=tuple(emitted),
            accepted=accepted,
            drafts=tuple(drafts),
            rows=layout.rows,
            seconds=model.clock() - start,
            draft_probs=probs,
            groups=layout.masks,
            new_drafts=tuple(new),
            new_draft_probs=new_probs,
            stop=stop,
        )
        if stop:
            return
        last, drafts, probs = emitted[-1:], new, new_probs
        layout = Layout.grid(settings.k)


class _Run:
    """What both decoders keep for one run: cache, budget, random numbers, warpers."""

    def __init__(self, model: SpaceModel, prompt_ids: Sequence[int], settings: Settings, stream: int) -> None:
        model.check_prompt(prompt_ids)
        self.model, self.settings = model, settings
        self.cache = BlockCache()
        room = model.context - len(prompt_ids)
        self.left = min(settings.max_new_tokens, room)
        self.at_budget = Stop.CONTEXT if room < settings.max_new_tokens else Stop.MAX_NEW_TOKENS
        # Random numbers are drawn on the CPU, so that a seed means the same on every device. Each
        # decoder has a stream of its own: lanes of one race are independent draws.
        self.random = torch.Generator().manual_seed(2 * settings.seed % 2**63 + stream)
        self.q: Tensor | None = None
        """Distributions the pending drafts were drawn from. [drafts, V]"""
        self.warpers = LogitsProcessorList(_warpers(settings))

    def distribution(self, logits: Tensor) -> Tensor:
        """Probabilities after temperature, top-k and top-p. [n, V] to float64 (float32 on mps)."""
        wide = logits.float() if logits.device.type == "mps" else logits.double()
        # These warpers look at each row alone; transformers' signature wants the text so far.
        no_text: Any = None
        probabilities: Tensor = self.warpers(no_text, wide).softmax(-1)
        return probabilities

    def uniforms(self, count: int) -> Tensor:
        return torch.rand(count, generator=self.random, dtype=torch.float64).to(self.model.device)

    def choose(self, logits: Tensor) -> int:
        """The model's own token after one row. [1, V]"""
        return self.verify(logits, []).own

    def verify(self, logits: Tensor, drafts: list[int]) -> Verdict:
        """Judge the drafts by the logits of the real rows. [1 + len(drafts), V]"""
        if self.settings.greedy:
            return verify_greedy(logits.argmax(-1).tolist(), drafts)
        p = self.distribution(logits)
        q = p[:0] if self.q is None else self.q
        return verify_sampled(p, q, drafts, self.uniforms(1 + len(drafts)))

    def draft(self, logits: Tensor) -> tuple[list[int], tuple[float, ...]]:
        """New drafts from the mask rows of one group, and the probability of each. [masks, V]"""
        if self.settings.greedy:
            top, ids = logits.max(-1)
            probs = (top - logits.logsumexp(-1)).exp()
        else:
            self.q = self.distribution(logits)
            ids = torch.tensor(draw(self.q, self.uniforms(len(self.q))), device=self.q.device)
            probs = self.q.gather(-1, ids[:, None])[:, 0]
        return ids.tolist(), tuple(probs.tolist())

    def emit(self, tokens: list[int]) -> tuple[list[int], Stop | None]:
        """Cut new tokens at the first end-of-sequence id and at the budget."""
        tokens = tokens[: self.left]
        for index, token in enumerate(tokens):
            if token in self.model.eos_ids:
                return tokens[: index + 1], Stop.EOS
        self.left -= len(tokens)
        return tokens, None if self.left else self.at_budget


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
