"""The model's own continuations: what the masks are trained on.

The masks shall predict what the *model* will write, not what people wrote. So prompts from the
corpus are continued by the model itself, greedily or sampled (for decoding with temperature, and
because a small model decoded greedily runs in circles: 78 % of the continuations of a half-trained
5.8 M-parameter base did, on which masks learn to repeat and nothing else; most of those are dropped).
In `distill` all prompts of a batch have one length, so nothing is padded; in `continuations`, for
prompts of all lengths, those of a batch are padded on the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig

from finetune.processes import ALONE, Team
from finetune.recipe import Distill
from finetune.state import load_state, save_state
from space_core.metrics import is_loop


class Own(NamedTuple):
    """What the model wrote behind prompts of one length.

    Attributes:
        prompt: length of the prompts.
        sequences: prompts and continuations. int64 [n, prompt + new]
        ends: where each sequence ends, or begins to run in circles. int64 [n]
    """

    prompt: int
    sequences: Tensor
    ends: Tensor

    @classmethod
    def of(cls, prompt: int, sequences: Tensor) -> Own:
        """All of them whole."""
        return cls(prompt, sequences, torch.full((len(sequences),), sequences.shape[1]))

    def whole(self, eos_ids: frozenset[int]) -> Own:
        """Only the sequences that run to their last place, or to an end of text, and not in circles."""
        last = self.sequences.gather(1, self.ends[:, None] - 1)[:, 0]
        chosen = (self.ends == self.sequences.shape[1]) | torch.isin(last, torch.tensor(sorted(eos_ids)))
        return Own.of(self.prompt, self.sequences[chosen])


def ends_of_text(lm: Any) -> frozenset[int]:
    """The ids that end a text, as the model's configuration names them: one, several or none."""
    eos = lm.config.eos_token_id
    return frozenset(eos if isinstance(eos, list | tuple) else () if eos is None else (eos,))


def distill(lm: Any, prompts: dict[int, Tensor], plan: Distill, out: Path, seed: int) -> list[Own]:
    """Continue the prompts, resuming from what `out` holds.

    Args:
        lm: the base model.
        prompts: by prompt length, int64 [count, length].
        plan: how many new tokens, which share sampled.

    Returns:
        For each length. A sequence that ended early is filled with end-of-text, of which the first counts.
        Of those that run in circles the plan's share is left whole; the others end where the circles begin.
    """
    path = out / "distill.pt"
    state = load_state(path) or {"batches": []}
    done: list[list[Any]] = state["batches"]
    parts = [part for length in sorted(prompts) for part in prompts[length].split(plan.batch)]
    device = next(lm.parameters()).device
    for index in tqdm(range(len(done), len(parts)), desc="distill", mininterval=2):
        part = parts[index].to(device)
        torch.manual_seed(seed * 1_000_003 + index)
        options = _sampling(index, plan)
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
        _few_loops(
            torch.cat([part.long() for n, part in done if n == length]),
            length,
            plan.loops,
            ends_of_text(lm),
        )
        for length in sorted(prompts)
    ]


def continuations(
    lm: Any,
    prompts: Sequence[Tensor],
    plan: Distill,
    eos_ids: frozenset[int],
    max_length: int,
    out: Path,
    seed: int,
    team: Team = ALONE,
) -> list[tuple[Tensor, Tensor]]:
    """What the model writes behind prompts of any lengths, resuming from what `out` holds.

    Several processes take turns at the batches, each of which is what a single process writes.

    Args:
        prompts: int64 [length] each, every one shorter than max_length.
        plan: how many new tokens at most, which share sampled. The model's own generation settings
            (top-p, penalties) do not apply: greedy is the argmax, as in decoding here.
        eos_ids: ids that end a text; a continuation ends with the first of them.
        max_length: most tokens of prompt and continuation.

    Returns:
        (prompt, continuation), int64 [length] each, shortest prompts first. Of those that run in circles
        the plan's share is left whole; the others end where the circles begin.
    """
    path = out / "distill.pt"
    state = load_state(path) or {"batches": []}
    done: list[Tensor] = state["batches"]
    ordered = sorted(prompts, key=len)
    parts = [ordered[i : i + plan.batch] for i in range(0, len(ordered), plan.batch)]
    device = lm.get_input_embeddings().weight.device
    fill = min(eos_ids, default=0)
    first = len(done)
    for at in tqdm(range(first, len(parts), team.size), desc="distill", mininterval=2, disable=not team.main):
        index = min(at + team.rank, len(parts) - 1)  # in the last round the last ones all do the last one
        part = parts[index]
        width = len(part[-1])
        ids, real = torch.full((len(part), width), fill), torch.zeros(len(part), width, dtype=torch.long)
        for row, prompt in enumerate(part):
            ids[row, width - len(prompt) :], real[row, width - len(prompt) :] = prompt, 1
        torch.manual_seed(seed * 1_000_003 + index)
        config = GenerationConfig(
            max_new_tokens=min(plan.new_tokens, max_length - width),
            eos_token_id=sorted(eos_ids) or None,
            pad_token_id=fill,
            top_k=0,
            top_p=1.0,
            **_sampling(index, plan),
        )
        # Handed to `generate`, a configuration is completed from the model's own; as the model's, not.
        own, lm.generation_config = lm.generation_config, config
        try:
            with torch.inference_mode():
                whole = lm.generate(ids.to(device), attention_mask=real.to(device))
        finally:
            lm.generation_config = own
        written = team.gather(whole[:, width:].to("cpu", torch.int32))
        done += written[: len(parts) - at]
        if team.main and (len(done) // 4 > at // 4 or len(done) == len(parts)):
            save_state(path, {"batches": done})
    rows = [row.long() for batch in done for row in batch]
    texts = [row[: _end(row.tolist(), eos_ids)] for row in rows]
    straight = [text[:end] for text, end in zip(texts, _ends(texts, plan.loops), strict=True)]
    return [(prompt, text) for prompt, text in zip(ordered, straight, strict=True) if len(text)]


def _sampling(index: int, plan: Distill) -> dict[str, Any]:
    """Options of `generate` for a batch: sampled batches are spread evenly."""
    sampled = (index * plan.sampled_share) % 1 + plan.sampled_share > 1 - 1e-9
    return {"do_sample": True, "temperature": plan.temperature} if sampled else {"do_sample": False}


def _end(ids: Sequence[int], eos_ids: frozenset[int]) -> int:
    """How many ids there are up to the first end-of-sequence, which counts."""
    return next((i + 1 for i, token in enumerate(ids) if token in eos_ids), len(ids))


def _circles(ids: Sequence[int], n: int = 4, run: int = 8) -> int:
    """Where a text begins to run in circles: the first of `run` n-grams in a row that stood before."""
    seen: set[tuple[int, ...]] = set()
    old = 0
    for i in range(len(ids) - n + 1):
        gram = tuple(ids[i : i + n])
        old = old + 1 if gram in seen else 0
        seen.add(gram)
        if old == run:
            return i - run + 1 + n - 1
    return len(ids)


def _few_loops(sequences: Tensor, prompt: int, share: float, eos_ids: frozenset[int]) -> Own:
    """Sequences of which those that loop and are more than `share` of the whole ones end early."""
    texts = [row[: _end(row.tolist(), eos_ids)] for row in sequences[:, prompt:]]
    return Own(prompt, sequences, prompt + torch.tensor(_ends(texts, share)))


def _ends(texts: Sequence[Tensor] | Tensor, share: float) -> list[int]:
    """Up to where each text counts: to its end, or where it begins to run in circles if too many do."""
    ids = [text.tolist() for text in texts]
    whole = set(_kept([is_loop(text) for text in ids], share))
    return [len(text) if i in whole else _circles(text) for i, text in enumerate(ids)]


def _kept(loops: Sequence[bool], share: float) -> list[int]:
    """Indices of all that do not loop and of as many loops as may be `share` of the result."""
    room = int(share / (1 - share) * (len(loops) - sum(loops))) if share < 1 else len(loops)
    kept = []
    for index, loop in enumerate(loops):
        room -= loop
        if not loop or room >= 0:
            kept.append(index)
    return kept
