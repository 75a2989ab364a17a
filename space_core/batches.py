"""Several prompts at once: one model call verifies the drafts of all and drafts for all.

Each sequence is a run of its own, exactly as if it decoded alone: its text, budget, drafts, random
numbers and verdicts (`decoders.py`). What they share is the call. Of every sequence it holds the rows of
its own `Layout`; where these differ, filler rows stand behind the drafts and behind the masks:

    sequence 0   last c1 c2 c3   M M M M M
    sequence 1   last c1 ·  ·    M M M · ·
    sequence 2   last c1 c2 ·    M M M M ·

so that the masks of all begin at one row, where the gated adapter wants them. No row sees a filler, nor
any row of another sequence. Prompts of different lengths need no padding: every sequence fills its own
slots of the cache from 0 on and commits as many rows as stood (`cache.RaggedCache`). A sequence that has
ended leaves, and the others go on without its rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from space_core import cost
from space_core.batch_drafts import draft
from space_core.batch_planner import Ask, AutoBatch, BatchPlanner, GridBatch, PlainBatch
from space_core.cache import RaggedCache, additive
from space_core.decoders import Drafts, _planner, _Run
from space_core.errors import PromptError
from space_core.layout import Layout
from space_core.model import Judged, SpaceModel
from space_core.planner import Plan as PlannedCall
from space_core.settings import MAX_NEW_TOKENS, Plan, Settings
from space_core.trace import Step

CONTEXT = 64
"""Tokens before a measured call: fewer than a single sequence's, since all prompts are read each time."""
CHUNK = 256
"""Rows of each prompt that are read in one call: what who sees whom costs grows with them."""


def batch(
    model: SpaceModel, prompts: Sequence[Sequence[int]], settings: Settings
) -> Iterator[tuple[Step | None, ...]]:
    """SPACE on several prompts at once.

    Each sequence's greedy output is what `space` and `vanilla` write for it alone; sampled output has the
    same distribution, from a stream of random numbers of its own that depends on the seed and its place.

    Yields:
        For each call, the step of each sequence in the prompts' order; None for those that had ended
        before. Steps of one call have the same seconds: the call's. Reading the prompts is the first
        call's.

    Raises:
        PromptError: at the first step, where there is no prompt, or one is empty or fills the context.
    """
    yield from decode(runs(model, prompts, settings), planner(model, settings, len(prompts)))


def plain_batch(
    model: SpaceModel, prompts: Sequence[Sequence[int]], settings: Settings
) -> Iterator[tuple[Step | None, ...]]:
    """Plain decoding of several prompts at once, through the same calls: one row for each sequence."""
    yield from decode(runs(model, prompts, settings), PlainBatch())


def runs(model: SpaceModel, prompts: Sequence[Sequence[int]], settings: Settings) -> list[_Run]:
    """One run for each prompt, each with a stream of random numbers of its own."""
    if not prompts:
        raise PromptError("there is no prompt: give at least one")
    seeds = torch.randint(2**62, (len(prompts),), generator=torch.Generator().manual_seed(settings.seed))
    found = [_Run(model, prompt, settings, stream=1) for prompt in prompts]
    for run, seed in zip(found, seeds.tolist(), strict=True):
        run.random.manual_seed(seed)
    return found


def planner(model: SpaceModel, settings: Settings, sequences: int) -> BatchPlanner:
    """The planner that the settings ask for.

    What calls cost is measured once for each model and number of sequences, in half a second or so.
    """
    k = settings.k
    if settings.plan is Plan.GRID:
        return GridBatch(k)
    costs = _costs(model, settings, sequences)
    most = sequences * (k + 1) ** 2
    bare = costs.bare or {1: 1.0}  # a context too small to measure in: rows count as free
    masks = {1: bare[min(bare)]} | costs.masks
    trained = model.masks.method != "untrained"
    corrected = costs.timed and settings.greedy  # as for a single sequence
    return AutoBatch(k, cost.curve(masks, most), cost.curve(bare, most), trained, corrected)


def _costs(model: SpaceModel, settings: Settings, sequences: int) -> cost.Costs:
    """Seconds of calls by all their rows: of this many sequences, and below that of a single one."""
    key = settings.greedy, sequences
    found: cost.Costs | None = model.costs.get(key)
    if found is None:
        _planner(model, replace(settings, plan=Plan.AUTO))  # measures a single one, if nobody has yet
        alone: cost.Costs = model.costs[settings.greedy]
        fewer = ({n: t for n, t in best.items() if n < sequences} for best in (alone.masks, alone.bare))
        found = model.costs[key] = cost.Costs(next(fewer), next(fewer), timed=True)
        measured = cost.measure(lambda layouts: _seconds(model, settings, sequences, layouts))
        for best, each in ((found.masks, measured.masks), (found.bare, measured.bare)):
            best.update({sequences * rows: seconds for rows, seconds in each.items()})
    return found


def _seconds(
    model: SpaceModel, settings: Settings, sequences: int, layouts: Sequence[Layout]
) -> Iterator[tuple[int, bool, float]]:
    """Rows of a sequence, whether there are masks, and seconds of calls, on texts that mean nothing."""
    length = min(CONTEXT, model.context // 2)
    prompts = [[1 % model.vocabulary] * length] * sequences
    members = runs(model, prompts, replace(settings, max_new_tokens=MAX_NEW_TOKENS))
    for run in members:
        run.eos_ids, run.thrifty = frozenset(), False
    script = _Script(layouts, max(settings.k, *(max(layout.masks) for layout in layouts)))
    for call in islice(decode(members, script), 1, 1 + len(layouts)):
        steps = [step for step in call if step]
        real = max(1 + len(step.drafts) for step in steps)
        masks = max(sum(step.groups) for step in steps)
        yield real + masks, bool(masks), steps[0].seconds


class _Script:
    """A planner that follows a list; another one plans beside it, for what planning costs."""

    def __init__(self, layouts: Sequence[Layout], k: int) -> None:
        self._layouts, self._k = iter(layouts), k
        self._beside: AutoBatch | None = None

    def first(self, sequences: int) -> int:
        return self._k

    def next(self, asks: Sequence[Ask]) -> list[PlannedCall]:
        if self._beside is None:
            flat = np.ones(len(asks) * (self._k + 1) ** 2 + 1)
            self._beside = AutoBatch(self._k, flat, flat)
        self._beside.next(asks)
        layout = next(self._layouts, Layout.steady((0,)))
        found = []
        for ask in asks:  # the call before may have stopped where there were fewer masks
            masks = layout.within(ask.left).masks[: 1 + len(ask.guesses)]
            found.append(PlannedCall(len(masks) - 1, Layout.steady(masks)))
        return found

    def learn(self, stood: Sequence[Sequence[bool]], emitted: int) -> None:
        if self._beside is not None:
            self._beside.learn(stood, emitted)

    def took(self, seconds: float) -> None:
        if self._beside is not None:
            self._beside.took(seconds)


@dataclass(slots=True)
class _Member:
    """A sequence that is still there.

    Attributes:
        place: among the prompts.
        drafts, tried: those that the next call judges, and those at hand, of which they were chosen.
        plan: of the next call.
    """

    place: int
    run: _Run
    last: int
    plan: PlannedCall
    drafts: Drafts
    tried: Drafts


def decode(runs: Sequence[_Run], planner: BatchPlanner) -> Iterator[tuple[Step | None, ...]]:
    """Decode the runs together until the last one has ended."""
    model = runs[0].model
    start = model.clock()
    calls = Calls(model, len(runs))
    calls.read([run.prompt_ids for run in runs])
    plain = isinstance(planner, PlainBatch)
    for run in () if plain else runs:
        run.index()
    masks = planner.first(len(runs))
    members = [
        _Member(
            place,
            run,
            run.prompt_ids[-1],
            PlannedCall(0, Layout.steady((min(masks, run.left - 1),))),
            Drafts(),
            Drafts(),
        )
        for place, run in enumerate(runs)
    ]
    while members:
        layouts = [m.plan.layout for m in members]
        answers = calls.run(layouts, [[m.last, *m.drafts.ids] for m in members])
        steps: list[Step] = []
        stood, kept, asks = [], [], []
        verdicts = [m.run.verify(judged.real, m.drafts) for m, judged in zip(members, answers, strict=True)]
        drafted = draft([m.run for m in members], answers, verdicts, layouts, [m.drafts for m in members])
        for m, layout, verdict, guessed in zip(members, layouts, verdicts, drafted, strict=True):
            accepted, own, guesses = m.run.fetch(verdict, guessed)
            emitted, stop = m.run.emit([*m.drafts.ids[:accepted], own])
            stood.append(m.run.stood(m.tried, len(m.drafts), accepted, own))
            kept.append(1 + accepted)
            steps.append(
                Step(
                    emitted=tuple(emitted),
                    accepted=min(accepted, len(emitted)),
                    drafts=tuple(m.drafts.ids),
                    rows=layout.rows,
                    seconds=0.0,
                    draft_probs=m.drafts.probs,
                    groups=() if plain else layout.masks,
                    stop=stop,
                    copied=m.drafts.copied,
                )
            )
            m.drafts = m.tried = Drafts()
            if stop:
                continue
            m.last = emitted[-1]
            m.tried = guesses.first(len(layout.drafting_rows(accepted)))
            m.run.note(emitted)
            copies = ids, sure = m.run.copies()
            asks.append((m, copies, Ask(m.run.left, m.tried.sure, (sure,) * len(ids))))
        planner.learn(stood, sum(len(step.emitted) for step in steps))
        calls.cache.commit(kept)
        if 0 < len(asks) < len(members):
            calls.cache.keep([i for i, step in enumerate(steps) if not step.stop])
        plans = planner.next([ask for *_, ask in asks]) if asks else []
        for (m, copies, _), m.plan in zip(asks, plans, strict=True):
            m.tried = m.run.tried(m.plan, m.tried, *copies)
            m.drafts = m.tried.first(m.plan.drafts)
        seconds = model.clock() - start
        planner.took(seconds)
        found: list[Step | None] = [None] * len(runs)
        for m, step in zip(members, steps, strict=True):
            found[m.place] = replace(
                step, seconds=seconds, new_drafts=tuple(m.drafts.ids), new_draft_probs=m.drafts.probs
            )
        yield tuple(found)
        start = model.clock()
        members = [m for m, *_ in asks]


class Calls:
    """Forwards of several layouts at once, on one model and one cache.

    Attributes:
        cache: what was committed of each sequence.
    """

    def __init__(self, model: SpaceModel, sequences: int) -> None:
        self.model, self.cache = model, RaggedCache(sequences)
        model.refresh()

    def read(self, prompts: Sequence[Sequence[int]]) -> None:
        """Put all prompts into the cache, but for their last tokens."""
        longest = max(len(prompt) for prompt in prompts) - 1
        for start in range(0, longest, CHUNK):
            parts = [prompt[start : min(start + CHUNK, len(prompt) - 1)] for prompt in prompts]
            layouts = [Layout.plain(max(1, len(part))) for part in parts]
            self._forward(layouts, [part or prompt[-1:] for part, prompt in zip(parts, prompts, strict=True)])
            self.cache.commit([len(part) for part in parts])

    def run(self, layouts: Sequence[Layout], real_ids: Sequence[Sequence[int]]) -> list[Judged]:
        """One call: steady layouts and the tokens of their real rows, one for each sequence left.

        Its rows stand in the cache behind what is committed, until the next call: commit them.
        """
        rows = self._forward(layouts, real_ids)
        model, width = self.model, rows.shape[1]
        flat = rows.reshape(-1, rows.shape[-1])
        real = [i * width + row for i, layout in enumerate(layouts) for row in range(layout.n_real)]
        with torch.inference_mode():
            logits = model.logits(flat[torch.tensor(real, device=flat.device)])
        first_mask = max(layout.n_real for layout in layouts)
        parts = torch.split(logits, [layout.n_real for layout in layouts])
        return [
            Judged(part, flat, _drafting(layout, first_mask).to(flat.device) + i * width, model)
            for i, (part, layout) in enumerate(zip(parts, layouts, strict=True))
        ]

    @torch.inference_mode()
    def _forward(self, layouts: Sequence[Layout], real_ids: Sequence[Sequence[int]]) -> Tensor:
        """Hidden states of all rows; logits where the model's head cannot be taken apart. [n, rows, …]"""
        model, device = self.model, self.model.device
        n_real = max(layout.n_real for layout in layouts)
        n_masks = max(layout.n_masks for layout in layouts)
        ids = torch.tensor([[*part, *[0] * (n_real - len(part))] for part in real_ids], device=device)
        inputs: dict[str, Any] = {"input_ids": ids}
        if n_masks:
            inputs = {"inputs_embeds": self._embedded(ids, layouts, n_masks)}
        rules, offsets = zip(*(_framed(layout, n_real, n_masks) for layout in layouts), strict=True)
        lengths = self.cache.place(n_real + n_masks, device)
        inputs["attention_mask"] = self._sees(lengths, torch.stack(rules).to(device))
        inputs["position_ids"] = torch.stack(offsets).to(device) + lengths[:, None]
        adapter = model.masks.adapter
        gate = adapter.on(n_real, len(layouts)) if adapter and n_masks else nullcontext()
        with model.lock, model.fast(), gate:
            inputs[model._cache_argument] = self.cache
            if model._head is None:
                logits: Tensor = model.lm(**inputs, use_cache=True).logits
                return logits
            hidden: Tensor = model._base(**inputs, use_cache=True).last_hidden_state
            return hidden

    def _embedded(self, ids: Tensor, layouts: Sequence[Layout], n_masks: int) -> Tensor:
        """Input embeddings of real rows and masks. [n, rows, hidden]"""
        real = self.model._embed(ids)
        masks = real.new_zeros(len(layouts), n_masks, real.shape[-1])
        for row, layout in enumerate(layouts):
            if layout.n_masks:
                masks[row, : layout.n_masks] = self.model._mask_embeddings(layout)
        return torch.cat([real, masks], dim=1)

    def _sees(self, lengths: Tensor, rules: Tensor) -> Tensor:
        """The additive attention mask: the committed, then the call's own rows. [n, 1, rows, slots]"""
        n, rows, _ = rules.shape
        committed = torch.arange(self.cache.width, device=lengths.device) < lengths[:, None]
        sees = committed[:, None, :].repeat(1, rows, 1)
        sees.scatter_(2, self.cache.slots[:, None, :].expand(n, rows, rows), rules)
        return additive(sees, self.model.dtype)[:, None]


@lru_cache(maxsize=512)
def _framed(layout: Layout, n_real: int, n_masks: int) -> tuple[Tensor, Tensor]:
    """Who sees whom among the rows of a call that holds this layout, and their offsets.

    Fillers see themselves, since a row that sees nothing has no attention; their offset is 0, which is
    a position that the context has. bool [rows, rows], int64 [rows], rows = n_real + n_masks.
    """
    rows = n_real + n_masks
    place = torch.tensor([*range(layout.n_real), *range(n_real, n_real + layout.n_masks)])
    sees, offsets = torch.eye(rows, dtype=torch.bool), torch.zeros(rows, dtype=torch.long)
    sees[place[:, None], place] = layout.sees()
    offsets[place] = layout.offsets()
    return sees, offsets


@lru_cache(maxsize=512)
def _drafting(layout: Layout, n_real: int) -> Tensor:
    """For each number of accepted drafts the rows of the call to draft from, padded. int64 [stops, width]

    `Layout.drafting_rows` counts judged rows, which in a steady call are all rows without the fillers.
    """
    ahead = n_real - layout.n_real
    groups = [[row + ahead for row in layout.drafting_rows(stop)] for stop in range(len(layout.anchors))]
    width = max(map(len, groups), default=0)
    return torch.tensor([[*rows, *[0] * (width - len(rows))] for rows in groups], dtype=torch.long)
