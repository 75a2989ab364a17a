"""What a copied token's logit shall gain: the table of `space_core.copies`, fitted when masks are trained.

Behind a model's own texts stand dense groups, as in training, and each guess is told the true tokens in
front of it. `space_core.lookup`, which decoding asks, says what followed these in the text up to the group.
Of a guess two numbers are kept, the log-probability of that token and of the right one. The likelihood
of the right ones is concave in the table, so a few steps of L-BFGS find its best; a slight pull to zero
holds what was hardly ever seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from finetune.distill import Own
from finetune.masks import Gated
from finetune.recipe import MaskTraining
from space_core.copies import CopyBias
from space_core.errors import SpaceError
from space_core.lookup import LENGTHS
from space_core.model import SpaceModel

PULL = 1e-5
"""Weight of the table's squares beside the mean log-likelihood."""


def fit_copies(
    model: SpaceModel,
    draw: Callable[[int, torch.Generator], Own],
    batches: int,
    plan: MaskTraining,
    seed: int,
) -> dict[str, Any]:
    """Give the model's masks the table that suits its own texts best.

    Args:
        model: with gated masks, trained.
        draw: batch number n of texts, a function of n and of random numbers that depend on n alone.
        batches: how many to look at.
        plan: `k` and `groups`.

    Returns:
        For the log: how many guesses there were behind which something matched, and their mean loss without
        the table and with it; nothing where no text repeats itself, and the masks get no table.
    """
    method, found = Gated(model.lm, plan, seed, model.masks), []
    for index in range(batches):
        random = torch.Generator().manual_seed(seed * 1_000_003 + index)
        found.append(_examples(method, draw(index, random), random))
    slots, lengths, copied, right, same = (torch.cat(column) for column in zip(*found, strict=True))
    if not len(slots):
        return {}
    copied = copied.clamp(max=-1e-9)
    table = torch.zeros(plan.k, max(LENGTHS), dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([table], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        # exp(b) of the copied token's share comes in, 1 of it goes out.
        gain = table[slots, lengths - 1]
        whole = torch.log1p(copied.exp() * torch.expm1(gain))
        return (whole - right - torch.where(same, gain, 0.0)).mean()

    def closure() -> Tensor:
        search.zero_grad()
        value = loss() + PULL * (table**2).sum()
        value.backward()
        return value

    search.step(closure)
    with torch.no_grad():
        after = float(loss())
    if not torch.isfinite(table).all():
        raise SpaceError("the table of copies cannot be fitted: the masks' logits are not finite")
    model.masks.copies = CopyBias(table.detach().float()).to(model.device)
    before = float(-right.mean())
    return {"guesses": len(slots), "told_loss": round(after, 4), "untold_loss": round(before, 4)}


def _examples(
    method: Gated, batch: Own, random: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of each guess behind which something matched, on the CPU: its slot, the length that matched,
    log-probability of the copied and of the right token, whether they are one. [guesses] each"""
    k = method.plan.k
    with torch.no_grad():
        seen = method.behind(batch, random)
        logits = method.logits(method.told(seen.hidden, seen.before)).float().log_softmax(-1)
    tokens, lengths = seen.copied(batch.sequences, k)
    slots = (torch.arange(tokens.shape[1], device=tokens.device) % k).expand_as(tokens)
    copied, right = (logits.gather(-1, of[..., None])[..., 0].double() for of in (tokens, seen.text))
    counts = seen.known & (lengths > 0)
    columns = slots, lengths, copied, right, tokens == seen.text
    slots, lengths, copied, right, same = (column[counts].cpu() for column in columns)
    return slots, lengths, copied, right, same
