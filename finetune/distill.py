"""The model's own continuations: what the masks are trained on.

The masks shall predict what the *model* will write, not what people wrote. So prompts from the
corpus are continued by the model itself, greedily or sampled (for decoding with temperature, and
because a small model decoded greedily runs in circles: 78 % of the continuations of a half-trained
5.8 M-parameter base did, on which masks learn to repeat and nothing else; most of those are dropped).
All prompts of a batch have one length, so nothing is padded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from finetune.recipe import Distill
from finetune.state import load_state, save_state
from space_core.metrics import is_loop


def distill(
    lm: Any, prompts: dict[int, Tensor], plan: Distill, out: Path, seed: int
) -> list[tuple[int, Tensor]]:
    """Continue the prompts, resuming from what `out` holds.

    Args:
        lm: the base model.
        prompts: by prompt length, int64 [count, length].
        plan: how many new tokens, which share sampled.

    Returns:
        (prompt length, sequences [n, length + new_tokens]) for each length; a sequence that ended
        early is filled with end-of-text. Of those that run in circles at most the plan's share is left.
    """
    path = out / "distill.pt"
    state = load_state(path) or {"batches": []}
    done: list[list[Any]] = state["batches"]
    parts = [part for length in sorted(prompts) for part in prompts[length].split(plan.batch)]
    device = next(lm.parameters()).device
    for index in tqdm(range(len(done), len(parts)), desc="distill", mininterval=2):
        part = parts[index].to(device)
        torch.manual_seed(seed * 1_000_003 + index)
        sampled = (index * plan.sampled_share) % 1 + plan.sampled_share > 1 - 1e-9
        options = {"do_sample": True, "temperature": plan.temperature} if sampled else {"do_sample": False}
        with torch.inference_mode():
            whole = lm.generate(
                part,
                attention_mask=torch.ones_like(part),
                max_new_tokens=plan.new_tokens,
                min_new_tokens=1,
                **options,
            )
        width = part.shape[1] + plan.new_tokens
        padded = torch.full((len(part), width), int(lm.config.eos_token_id), dtype=torch.int32)
        padded[:, : whole.shape[1]] = whole.cpu()
        done.append([part.shape[1], padded])
        if index % 4 == 3 or index == len(parts) - 1:
            save_state(path, {"batches": done})
    return [
        (length, _few_loops(torch.cat([part.long() for n, part in done if n == length]), length, plan.loops))
        for length in sorted(prompts)
    ]


def _few_loops(sequences: Tensor, prompt: int, share: float) -> Tensor:
    """Without the looping sequences that are more than `share` of the result."""
    loops = [is_loop(row[prompt:]) for row in sequences.tolist()]
    room = int(share / (1 - share) * (len(loops) - sum(loops))) if share < 1 else len(loops)
    kept = []
    for index, loop in enumerate(loops):
        room -= loop
        if not loop or room >= 0:
            kept.append(index)
    return sequences[kept]
