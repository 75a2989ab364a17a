"""New drafts for several sequences: one product of the model's head for all of them.

Every sequence guesses what it would guess alone (`decoders._Run.draft`), with its own random numbers. Where
each guess is told the tokens in front of it, guesses come one after the other, but the first ones of all
sequences together, then the second ones: a step reads the head's weights once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, count
from typing import Any

import torch
from torch import Tensor

from space_core.decoders import HOPELESS, Drafts, Guessed, _Run, hopeful, surest
from space_core.layout import Layout
from space_core.lookup import Follow
from space_core.model import Judged
from space_core.verify import Verdict, draw, likeliest


@torch.inference_mode()
def draft(
    runs: Sequence[_Run],
    judged: Sequence[Judged],
    verdicts: Sequence[Verdict],
    layouts: Sequence[Layout],
    drafts: Sequence[Drafts],
) -> list[Guessed | None]:
    """Guesses from the mask rows of the groups that the verdicts on the drafts chose.

    Returns:
        For each run, in their order; None where the call had no masks for it.
    """
    found: list[Guessed | None] = [None] * len(runs)
    places, masks = [], []
    for place, (call, verdict, layout) in enumerate(zip(judged, verdicts, layouts, strict=True)):
        if layout.n_masks:
            rows = call.masks(verdict.accepted)
            if call.told and rows.device.type == "cpu":  # where looking costs nothing, no step is in vain
                rows = rows[: len(layout.drafting_rows(int(verdict.accepted)))]
            places.append(place)
            masks.append(rows)
    if places:
        owns = torch.stack([verdicts[place].own for place in places])
        chosen = [runs[place] for place in places]
        if judged[0].told:
            follows = [runs[place].follow(drafts[place], verdicts[place].accepted) for place in places]
            guesses = _in_turn(chosen, masks, owns, follows)
        else:
            guesses = _at_once(chosen, masks, owns)
        for place, guessed in zip(places, guesses, strict=True):
            found[place] = guessed
    return found


def _at_once(runs: Sequence[_Run], masks: Sequence[Tensor], owns: Tensor) -> list[Guessed]:
    """Guesses that know nothing of each other. masks: of each run, [n, hidden]; owns: int64 [runs]"""
    first, sizes = runs[0], [len(rows) for rows in masks]
    logits = first.model.logits(torch.cat(list(masks)))
    if first.settings.greedy:
        parts = zip(torch.split(likeliest(logits), sizes), torch.split(surest(logits), sizes), strict=True)
        return [Guessed(tokens, sure, sure, None) for tokens, sure in parts]
    law = first.distribution(logits)
    dice = torch.cat([run.dice(size) for run, size in zip(runs, sizes, strict=True)])
    tokens = draw(law, dice.to(law))
    probs, sure = law.gather(-1, tokens[:, None])[:, 0], law.amax(-1)
    columns = [torch.split(column, sizes) for column in (tokens, probs, sure, law)]
    return [Guessed(*parts) for parts in zip(*columns, strict=True)]


def _in_turn(
    runs: Sequence[_Run], masks: Sequence[Tensor], owns: Tensor, follows: Sequence[Follow | None]
) -> list[Guessed]:
    """Guesses that are told the tokens in front of them. Arguments as above; what the texts say of these."""
    first, model = runs[0], runs[0].model
    sampler, copies, greedy = model.masks.sampler, model.masks.copies, first.settings.greedy
    flat, sizes = torch.cat(list(masks)), [len(rows) for rows in masks]
    starts = [0, *accumulate(sizes)]
    plain = model.logits(flat) if sampler is None or not greedy else None
    if not greedy and plain is not None:
        # As of a single run: how sure a draft is, and how many there are, may depend on no drawn token.
        untold = torch.split(first.distribution(plain).amax(-1), sizes)
        if first.thrifty:
            sizes = [hopeful(part) for part in untold]
    # The longest first: those that go on are the first ones of those before, and no device waits.
    order = sorted((run for run, size in enumerate(sizes) if size), key=lambda run: -sizes[run])
    before = owns[torch.tensor(order, dtype=torch.long, device=flat.device)]
    step = None if sampler is None else sampler.steps(flat)
    first_rows = torch.tensor([starts[run] for run in order], dtype=torch.long, device=flat.device)
    chances = [1.0] * len(runs)
    told: list[list[tuple[Tensor, Tensor]]] = [[] for _ in runs]  # by steps: a token; how sure, or its law
    for slot in count():
        if not order:
            break
        rows = first_rows + slot
        if step is not None:
            logits = model.logits(step(rows, model.embed(before)))
        elif plain is not None:
            logits = plain[rows]  # a copy, to which copies are added
        for at, run in enumerate(order):
            follow = follows[run]
            if follow is not None and copies is not None:
                copies.lean(logits[at : at + 1], slot, *follow(before[at : at + 1]))
        if greedy:
            tokens, of_each = likeliest(logits), surest(logits)
            if first.thrifty:
                for run, sure in zip(order, of_each.tolist(), strict=True):
                    chances[run] *= sure
        else:
            of_each = first.distribution(logits)
            tokens = draw(of_each, torch.cat([runs[run].dice(1) for run in order]).to(of_each))
        for run, token, its in zip(order, torch.split(tokens, 1), torch.split(of_each, 1), strict=True):
            told[run].append((token, its))
        going = [at for at, run in enumerate(order) if slot + 1 < sizes[run] and chances[run] >= HOPELESS]
        # A list as an index would be fetched by the device; it is one only on a CPU, where hope is looked at.
        kept: Any = slice(len(going)) if going == [*range(len(going))] else going
        before, first_rows, order = tokens[kept], first_rows[kept], [order[at] for at in going]
    return [_guessed(parts, None if greedy else untold[run], flat, greedy) for run, parts in enumerate(told)]


def _guessed(
    parts: Sequence[tuple[Tensor, Tensor]], untold: Tensor | None, masks: Tensor, greedy: bool
) -> Guessed:
    """One run's guesses, from its steps."""
    if not parts:
        return Guessed(
            torch.empty(0, dtype=torch.long, device=masks.device), masks[:0, 0], masks[:0, 0], None
        )
    tokens, of_each = (torch.cat(column) for column in zip(*parts, strict=True))
    if greedy or untold is None:
        return Guessed(tokens, of_each, of_each, None)
    sure = torch.cat([of_each[0].amax()[None], untold[1 : len(tokens)]])
    return Guessed(tokens, of_each.gather(-1, tokens[:, None])[:, 0], sure, of_each)
