"""A model under examination: what it computes otherwise than by our calls, and what a check finds.

The other way is a call of the whole text as transformers runs it, without a cache or a mask of ours, and
for mask rows the paper's table, written out cell by cell. Numbers are only as exact as the dtype, so it is
measured by how much a row's logits move between calls of different shapes ("rounding"). Two outputs may
part only where the model's best two tokens lie closer than that, and what follows is then judged on its
own text.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from space_core.cache import BlockCache
from space_core.decoders import vanilla
from space_core.layout import Layout
from space_core.model import SpaceModel
from space_core.settings import Settings
from space_core.trace import Step, longest_common_prefix

KS = (1, 2, 3, 5, 8)
TOKENS = 48
PRECISE = 1e-12
"""Rounding that is granted to float64, however small the logits are."""


@dataclass(frozen=True, slots=True)
class Split:
    """Where an output parts from plain decoding's.

    Attributes:
        run: which one, for people.
        position: of the first other token in the output, from 0.
        plain, ours: the two tokens; None where an output ended.
        margin: logit of the model's best token there less that of its second best.
        rounding: margin up to which rounding can exchange the two.
        explained: rounding explains this split, and all that is written behind it is what the model
            itself would write there.
    """

    run: str
    position: int
    plain: int | None
    ours: int | None
    margin: float
    rounding: float
    explained: bool


@dataclass(slots=True)
class Tally:
    """What one check found.

    Attributes:
        differences: what rounding does not explain.
        explained: splits that it does.
        worst: the largest deviation seen, where the check measures one, and `bound` what it may be.
        blind: the check could not have seen a fault here, as its own control shows.
        first: the first difference, for people.
    """

    name: str
    cases: int = 0
    differences: int = 0
    explained: int = 0
    worst: float = 0.0
    bound: float = 0.0
    blind: bool = False
    first: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    splits: list[Split] = field(default_factory=list)

    def wrong(self, what: str) -> None:
        self.differences += 1
        self.first = self.first or what

    def measure(self, what: str, deviation: float, bound: float) -> None:
        """A deviation that must lie within a bound; NaN does not."""
        if math.isnan(deviation) or deviation > self.worst:
            self.worst = deviation
        self.bound = max(self.bound, bound)
        if not deviation <= bound:
            self.wrong(f"{what}: {deviation:.2g}, allowed {bound:.2g}")


@dataclass(frozen=True, slots=True)
class Report:
    """All checks of one model. `ok`: no difference that rounding does not explain."""

    tallies: tuple[Tally, ...]
    rounding: float
    margins: tuple[tuple[float, ...], ...]
    seconds: float
    complete: bool

    @property
    def differences(self) -> int:
        return sum(tally.differences for tally in self.tallies)

    @property
    def explained(self) -> int:
        return sum(tally.explained for tally in self.tallies)

    @property
    def cases(self) -> int:
        return sum(tally.cases for tally in self.tallies)

    @property
    def ok(self) -> bool:
        return not self.differences

    @property
    def splits(self) -> tuple[Split, ...]:
        return tuple(split for tally in self.tallies for split in tally.splits)


@dataclass(frozen=True, slots=True)
class Text:
    """An output as the whole-text call sees it: best less second best logit, and best less own, by token."""

    margins: tuple[float, ...]
    gaps: tuple[float, ...]


class Subject:
    """A model under examination.

    Args:
        model: is left as it is; ends of text are ignored but where they are tried.
        prompts: token ids; cut where the context leaves no room.
        tokens: to decode behind each.
        ks: drafts per call to try.
    """

    def __init__(
        self,
        model: SpaceModel,
        prompts: Sequence[Sequence[int]],
        tokens: int = TOKENS,
        ks: Sequence[int] = KS,
        seed: int = 0,
    ) -> None:
        self.model = copy.copy(model)
        self.model.eos_ids = frozenset()
        self.tokens = max(2, min(tokens, model.context // 2))
        self.prompts = [tuple(p)[: model.context - self.tokens] for p in prompts]
        self.ks = tuple(ks)
        self.random = torch.Generator().manual_seed(seed)
        self.noise = 0.0
        self.spread = 0.0
        self.margins: dict[tuple[int, ...], tuple[float, ...]] = {}
        self._plain: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._texts: dict[tuple[int, ...], Text] = {}

    def token(self) -> int:
        """Any token but [M]."""
        token = int(torch.randint(self.model.vocabulary, (), generator=self.random))
        return self.other(token - 1)

    def other(self, token: int) -> int:
        """A token that is another one, and not [M]."""
        following = (token + 1) % self.model.vocabulary
        return following if following != self.model.mask_token_id else (token + 2) % self.model.vocabulary

    def tokens_of(self, count: int) -> list[int]:
        return [self.token() for _ in range(count)]

    def number(self, low: int, high: int) -> int:
        """Any of low..high."""
        return int(torch.randint(low, high + 1, (), generator=self.random))

    def allowed(self) -> float:
        """Most that rounding may move a logit before it is no rounding: as `model.probe` has it."""
        eps = torch.finfo(self.model.dtype).eps
        return max(PRECISE, self.spread * min(2e3 * eps, 0.05))

    @property
    def slack(self) -> float:
        """Margin up to which rounding can exchange two tokens: both may move."""
        return 2 * min(self.noise, self.allowed())

    def moved(self, tally: Tally, what: str, ours: Tensor, reference: Tensor) -> None:
        """Compare logits that must be equal but for rounding, and learn how large that is. [n, V] each"""
        known = torch.isfinite(reference)
        self.spread = max(self.spread, float(reference[known].abs().max()))
        gap = float((ours - reference)[known].abs().max()) if known.any() else math.nan
        self.noise = max(self.noise, gap)
        tally.measure(what, gap, self.allowed())

    @torch.inference_mode()
    def whole(self, ids: Sequence[int], rows: int) -> Tensor:
        """Logits behind the last `rows` tokens of a text by one plain call of it. float64 [rows, V]"""
        text = torch.tensor([list(ids)], device=self.model.device)
        return self.known(self.model.lm(input_ids=text, use_cache=False, logits_to_keep=rows).logits[0])

    @torch.inference_mode()
    def by_hand(self, text: Sequence[int], drafts: Sequence[int], masks: Sequence[int]) -> Tensor:
        """Logits of the mask rows of a steady call, from the paper's table and without a cache.

        Args:
            text: all committed tokens. The call's first row is the last of them.
            masks: in the group behind each number of accepted drafts.

        Returns:
            float64 [sum(masks), V].
        """
        model = self.model
        positions, sees = table(masks)
        past, real = len(text) - 1, 1 + len(drafts)
        rows = past + len(positions)
        seen = torch.zeros(rows, rows, dtype=torch.bool)
        seen[:past, :past] = torch.ones(past, past).tril().bool()
        seen[past:, :past] = True
        seen[past:, past:] = torch.tensor(sees)
        hidden = torch.finfo(model.dtype).min
        added = torch.zeros(seen.shape, dtype=model.dtype).masked_fill(~seen, hidden).to(model.device)
        embed, own = model.lm.get_input_embeddings(), model.masks.embeddings
        fed = embed(torch.tensor([*text, *drafts], device=model.device))
        slots = [slot for count in masks for slot in range(count)]
        if own is None:
            mask_rows = embed(torch.full((len(slots),), model.mask_token_id or 0, device=model.device))
        else:
            mask_rows = torch.stack([own[min(slot, len(own) - 1)] for slot in slots])
        inputs = {
            "inputs_embeds": torch.cat([fed, mask_rows])[None],
            "attention_mask": added[None, None],
            "position_ids": torch.tensor(
                [[*range(past), *(past + position for position in positions)]], device=model.device
            ),
        }
        adapter = model.masks.adapter
        if adapter is None:
            return self.known(model.lm(**inputs, use_cache=False).logits[0, past + real :])
        with model.lock, adapter.on(past + real):
            return self.known(model.lm(**inputs, use_cache=False).logits[0, past + real :])

    def known(self, logits: Tensor) -> Tensor:
        """On the CPU in float64, [M] at -inf."""
        wide = logits.to("cpu").double()
        if self.model.mask_token_id is not None:
            wide[..., self.model.mask_token_id] = -torch.inf
        return wide

    def plain(self, prompt: tuple[int, ...]) -> tuple[int, ...]:
        """What plain decoding writes behind a prompt."""
        if prompt not in self._plain:
            settings = Settings(max_new_tokens=self.tokens)
            output = tuple(output_of(vanilla(self.model, prompt, settings)))
            self._plain[prompt] = output
            self.margins[prompt] = self.text(prompt, output).margins
        return self._plain[prompt]

    def text(self, prompt: tuple[int, ...], output: tuple[int, ...]) -> Text:
        """An output judged by one call of prompt and output, without a cache."""
        ids = (*prompt, *output)
        if ids not in self._texts:
            logits = self.whole(ids[:-1], len(output))
            best = logits.topk(2).values
            own = logits.gather(1, torch.tensor(output)[:, None])[:, 0]
            self._texts[ids] = Text(
                tuple((best[:, 0] - best[:, 1]).tolist()), tuple((best[:, 0] - own).tolist())
            )
        return self._texts[ids]

    def compare(self, tally: Tally, run: str, prompt: tuple[int, ...], output: Sequence[int]) -> bool:
        """Whether an output begins as plain decoding's does; a split is judged and kept."""
        output, plain = tuple(output), self.plain(prompt)[: len(output)]
        if output == plain:
            return True
        at = longest_common_prefix(output, plain)
        margin, slack, explained = 0.0, self.slack, False
        if at < len(plain):
            margin = self.text(prompt, plain).margins[at]
            slack = 2 * min(max(self.noise, self._noise_behind((*prompt, *plain[:at]))), self.allowed())
            gaps = (*self.text(prompt, plain).gaps, *self.text(prompt, output).gaps)
            explained = max(gaps) <= slack
        split = Split(
            run,
            at,
            plain[at] if at < len(plain) else None,
            output[at] if at < len(output) else None,
            margin,
            slack,
            explained,
        )
        tally.splits.append(split)
        if explained:
            tally.explained += 1
        else:
            tally.wrong(f"{run}: another token at {at}")
        return False

    def _noise_behind(self, ids: tuple[int, ...]) -> float:
        """By how much the last row's logits move between a call of the text and one of its last token."""
        if len(ids) < 2:
            return 0.0
        cache = BlockCache()
        self.model.call(Layout.plain(len(ids) - 1), ids[:-1], cache)
        last = self.model.call(Layout.plain(1), ids[-1:], cache).real
        moved = (self.known(last) - self.whole(ids, 1))[torch.isfinite(self.whole(ids, 1))]
        return float(moved.abs().max())


def table(masks: Sequence[int]) -> tuple[list[int], list[list[bool]]]:
    """Positions and visibility of a steady call, from the paper's table and not from `layout.py`.

    Row (g, 0) is the newest token (g = 0) or draft g, row (g, j) mask j behind g accepted drafts.
    """
    rows = [(g, 0) for g in range(len(masks))]
    rows += [(g, j) for g, count in enumerate(masks) for j in range(1, count + 1)]

    def sees(looking: tuple[int, int], seen: tuple[int, int]) -> bool:
        (g, j), (h, i) = looking, seen
        if not i:
            return h <= g
        return bool(j) and h == g and i <= j

    return [g + j for g, j in rows], [[sees(a, b) for b in rows] for a in rows]


def gap(ours: Tensor, reference: Tensor) -> float:
    """The largest difference of finite logits; NaN stays."""
    known = torch.isfinite(reference)
    return float((ours - reference)[known].abs().max())


def output_of(steps: Iterable[Step]) -> list[int]:
    """All tokens of a run."""
    return [token for step in steps for token in step.emitted]
