"""Look into one call of a finished run: what each of its rows predicted, and how surely.

The call is computed once more from its trace: the tokens before it go into a fresh cache, and its
own rows are fed as the `Step` tells them. This room knows ids and probabilities; what a row stands
for is said in `views/inspect.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from space_core.cache import BlockCache
from space_core.errors import TraceError
from space_core.layout import Layout
from space_core.lookup import Lookup
from space_core.model import Judged, SpaceModel
from space_core.trace import Step, Trace

TOP = 3
NEARLY = 0.9
"""A greedy choice computed again may lose to a neighbour by rounding, but by no more than this factor."""


@dataclass(frozen=True, slots=True)
class Guess:
    """A token and the probability that a row gives it, before temperature and top-p."""

    token: int
    probability: float


def layout_of(step: Step) -> Layout:
    """The rows of a call from the newest token on: itself, its drafts, its mask groups.

    A prompt's earlier tokens, though read by the first call itself, count as what stands before.

    Raises:
        TraceError: for a step whose groups and drafts make no call.
    """
    masks = step.groups or (0,) * (1 + len(step.drafts))
    if len(masks) != 1 + len(step.drafts):
        raise TraceError("trace: a call has one mask group more than it has drafts, or none")
    return Layout.steady(masks)


@torch.inference_mode()
def guesses(model: SpaceModel, trace: Trace, call: int, top: int = TOP) -> tuple[tuple[Guess, ...], ...]:
    """What the rows of one call predicted, computed again.

    Args:
        model: the model that made the trace.
        trace: a run of `vanilla` or `space`, finished or stopped.
        call: which call, from 0.
        top: how many tokens of each row.

    Returns:
        For each row of `layout_of(trace.steps[call])` its likeliest tokens, the best first.

    Raises:
        TraceError: for a call that is not there, or a trace that this model did not write.
    """
    if not 0 <= call < trace.calls:
        raise TraceError(f"trace: there is no call {call + 1}, the run has {trace.calls}")
    if trace.model != model.name:
        raise TraceError(f"this run is {trace.model}'s, and the model here is {model.name}")
    step = trace.steps[call]
    layout = layout_of(step)
    before = [*trace.prompt_ids, *(token for s in trace.steps[:call] for token in s.emitted)]
    ids = [*before, *step.drafts, *step.emitted]
    if not before or max(ids) >= model.vocabulary or len(before) > model.context:
        raise TraceError(f"this run does not fit {model.name}: it has other tokens, or more of them")
    cache = BlockCache()
    if len(before) > 1:
        model.forward(Layout.plain(len(before) - 1), before[:-1], cache)
    if not model.masks.told:
        logits = model.forward(layout, [before[-1], *step.drafts], cache)
    else:
        judged = model.call(layout, [before[-1], *step.drafts], cache)
        logits = _told(judged, layout, step, Lookup(before))
    probabilities = logits.to(torch.float32 if logits.device.type == "mps" else torch.float64).softmax(-1)
    _check(probabilities[: 1 + len(step.drafts)].cpu(), step, trace, model)
    best = probabilities.topk(min(top, probabilities.shape[-1]))
    return tuple(
        tuple(Guess(token, min(1.0, p)) for token, p in zip(tokens, row, strict=True))
        for tokens, row in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    )


def _told(judged: Judged, layout: Layout, step: Step, text: Lookup) -> torch.Tensor:
    """Logits of the judged rows, each mask told the tokens in front of its guess. [judged rows, V]

    In the group that was chosen these are the tokens that were drafted; in the others what would have
    been, had the run gone there: the chain's own token, then the likeliest.
    """
    own = judged.real.argmax(-1)
    logits = torch.cat([judged.real, judged.real.new_zeros(layout.n_masks, judged.real.shape[-1])])
    for group, masks in enumerate(layout.masks):
        if masks:
            place = layout.group_rows(group)
            rows = judged.rows(range(place.start, place.stop))
            follow = text.follow(step.drafts, torch.tensor(group))
            logits[place] = judged.chain(rows, own[group], lambda row: row.argmax(-1), follow=follow)[1]
    drafts = step.new_drafts if step.new_draft_probs else ()  # copies have no probabilities, and no rows
    chosen = list(layout.drafting_rows(step.accepted))[: len(drafts)]
    if chosen:
        script = iter(torch.tensor(drafts, device=own.device)[:, None])
        last = torch.tensor(step.emitted[-1], device=own.device)
        follow = text.follow(step.drafts, torch.tensor(step.accepted))
        logits[chosen] = judged.chain(judged.rows(chosen), last, lambda row: next(script), follow=follow)[1]
    return logits


def _check(real: torch.Tensor, step: Step, trace: Trace, model: SpaceModel) -> None:
    """A greedy run must come out again. `real`: probabilities of the chain's rows. [1 + drafts, V]"""
    if trace.settings.get("temperature", 0.0):
        return
    for row, token in zip(real, step.emitted, strict=False):
        if float(row[token]) < NEARLY * float(row.max()):
            raise TraceError(f"{model.name} writes something else here: this run is another model's")
