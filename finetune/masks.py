"""Training the masks: the paper's SAR-SFT, and gated dense groups.

A mask sees in training what it sees in decoding: `gated` takes its rows from `space_core.layout`,
and the one group of `paper` stands at the end of its sample, where the causal mask is that rule.

* `paper` (arXiv 2402.11809, §3.1): all weights, one [M] in the vocabulary. A sample keeps the plain
  loss with probability p_ar; otherwise its answer is cut at a random token and k masks stand in.
* `gated`: the base is frozen; mask embeddings and a low-rank adapter of the mask rows are trained.
  A text stays whole and many groups stand behind it, each behind a random token ("dense groups",
  as in BiTA and PARD), drawn anew at every step. The real rows need no gradient at all: they are
  computed once, and the masks look at their keys and values. Targets are what the base itself
  would write: its own continuation, or its argmax behind sampled text; a share of the loss may take
  the base's whole distribution there (its logits are at hand anyway). What stands behind a wrong mask
  could not be accepted, so it may count less ("accept until fail", arXiv 2607.01893).
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import DynamicCache

from finetune.evaluate import decode_prompts
from finetune.optimizer import Optimizers, schedule
from finetune.precision import autocast, bfloat16_is_faster
from finetune.recipe import MaskTraining
from finetune.state import Log, load_state, save_state
from space_core.adapter import GatedAdapter
from space_core.cache import additive
from space_core.layout import Layout
from space_core.metrics import tokens_per_call
from space_core.model import Masks, SpaceModel


class GatedMasks(nn.Module):
    """What the gated method trains: one embedding per slot and the adapter."""

    def __init__(self, lm: Any, plan: MaskTraining, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        mean = lm.get_input_embeddings().weight.detach().mean(0)
        self.embeddings = nn.Parameter(mean.repeat(plan.k, 1))
        self.adapter = GatedAdapter(lm, plan.targets, plan.rank)


def train_masks(
    model_lm: Any,
    tokenizer: Any,
    batches: list[tuple[int, Tensor]],
    prompts: list[list[int]],
    plan: MaskTraining,
    out: Path,
    seed: int,
) -> SpaceModel:
    """Train masks for a base, resuming from what `out` holds.

    Args:
        model_lm: the base; `gated` leaves it as it is, `paper` trains it.
        batches: of `distill`.
        prompts: held-out prompts on which tokens per call are measured by decoding.
        plan: method, steps, rates.
        out: states and log go here.

    Returns:
        The model with its trained masks.
    """
    gated = plan.method == "gated"
    method = _Gated(model_lm, plan, seed) if gated else _Paper(model_lm, plan)
    device = next(model_lm.parameters()).device
    path, step, seconds, targets = out / f"masks-{plan.method}.pt", 0, 0.0, 0
    state = load_state(path)
    half = bfloat16_is_faster(device) if state is None else state["half"]
    optimizers = Optimizers(method.trained, plan.muon_lr, plan.lr, half)
    if state is not None:
        method.trained.load_state_dict(state["trained"])
        optimizers.load_state_dict(state["optimizers"])
        step, seconds, targets = state["step"], state["seconds"], state["targets"]
    log = Log(out / "log.jsonl", f"masks-{plan.method}", step)
    bar = tqdm(total=plan.steps, initial=step, desc=f"masks ({plan.method})", mininterval=2)

    def measure() -> None:
        with torch.no_grad():
            traces = decode_prompts(method.model(tokenizer), prompts, plan.k, plan.evaluate_tokens)
        method.restore()
        rate = tokens_per_call(traces)
        log.write(step, tokens_per_call=round(rate, 4), seconds=round(seconds, 1), mask_targets=targets)
        bar.set_postfix(tokens_per_call=f"{rate:.2f}")

    if step == 0:
        measure()
    while step < plan.steps:
        start = time.perf_counter()
        random = torch.Generator().manual_seed(seed * 1_000_003 + step)
        length, sequences = batches[int(torch.randint(len(batches), (), generator=random))]
        chosen = sequences[torch.randperm(len(sequences), generator=random)[: plan.batch]]
        with autocast(device, half):
            loss, counted = method.loss(chosen, length, random)
        loss.backward()
        optimizers.step(schedule(step, plan.steps, plan.warmup, plan.decay or plan.steps))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise RuntimeError(f"mask training diverged at step {step}: the loss is {value}")
        step, targets = step + 1, targets + counted
        seconds += time.perf_counter() - start
        bar.update()
        if step % 10 == 0 or step == plan.steps:
            log.write(step, loss=round(value, 4), mask_targets=targets, seconds=round(seconds, 1))
        if step % plan.evaluate_every == 0 or step == plan.steps:
            measure()
        if step % plan.save_every == 0 or step == plan.steps:
            save_state(
                path,
                {
                    "trained": method.trained.state_dict(),
                    "optimizers": optimizers.state_dict(),
                    "step": step,
                    "half": half,
                    "seconds": seconds,
                    "targets": targets,
                },
            )
    bar.close()
    return method.model(tokenizer)


class _Gated:
    def __init__(self, lm: Any, plan: MaskTraining, seed: int) -> None:
        self.lm, self.plan = lm.eval().requires_grad_(False), plan
        self.trained = GatedMasks(lm, plan, seed)

    def loss(self, sequences: Tensor, prompt: int, random: torch.Generator) -> tuple[Tensor, int]:
        """Mean cross-entropy of the masks of dense groups. sequences: [batch, length]."""
        lm, plan, trained = self.lm, self.plan, self.trained
        batch, length = sequences.shape
        device = trained.embeddings.device
        sequences = sequences.to(device)
        with torch.no_grad():
            real = lm(sequences, past_key_values=DynamicCache(), use_cache=True)
        # Anchors from the last prompt token on, one set for the batch, so that it shares a mask.
        span = length - prompt - 1
        places = torch.randperm(span, generator=random)[: plan.groups].sort().values + prompt - 1
        anchors = tuple(places.tolist())
        layout = Layout(length, 0, anchors, (plan.k,) * len(anchors))
        offsets, slots = layout.offsets()[length:].to(device), layout.slots().to(device)
        embeddings = trained.embeddings[slots].expand(batch, -1, -1)
        sees = layout.sees()[length:].to(device)
        with trained.adapter.on(0):  # all rows of this second half are masks
            logits = lm(
                inputs_embeds=embeddings,
                attention_mask=additive(sees, embeddings.dtype)[None, None],
                position_ids=offsets[None].expand(batch, -1),
                past_key_values=real.past_key_values,
                use_cache=True,
            ).logits.float()
        # The mask at position t predicts the token behind it; behind the text there is no target.
        known = offsets + 1 < length
        places = offsets.clamp(max=length - 2)
        # What the base itself puts there: equal to the text where the text is its greedy output.
        # Behind a sampled token that is not the base's choice, only the text itself can follow.
        text = sequences[:, places + 1]
        wanted = torch.where(slots == 0, real.logits[:, places].argmax(-1), text)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
        loss = loss.view(batch, -1)
        if plan.soft:
            own = real.logits[:, places].float().softmax(-1)
            # log-softmax of the masks, without a second copy of it: -Σ p log q = lse(q) - Σ p q.
            against = logits.logsumexp(-1) - (own * logits).sum(-1)
            loss = (1 - plan.soft) * loss + plan.soft * against
        weights = known.float().expand(batch, -1)
        if plan.until_fail < 1:
            right = (logits.detach().argmax(-1) == wanted).view(batch, -1, plan.k).float()
            alive = torch.cat([torch.ones_like(right[..., :1]), right.cumprod(-1)[..., :-1]], -1)
            weights = weights * (plan.until_fail + (1 - plan.until_fail) * alive.flatten(1))
        return (loss * weights).sum() / weights.sum(), int(known.sum()) * batch

    def model(self, tokenizer: Any) -> SpaceModel:
        masks = Masks(self.plan.k, "gated", None, self.trained.embeddings.detach(), self.trained.adapter)
        return SpaceModel(self.lm, tokenizer, masks)

    def restore(self) -> None:
        pass


class _Paper:
    def __init__(self, lm: Any, plan: MaskTraining) -> None:
        self.plan = plan
        self.token_id = int(lm.get_input_embeddings().weight.shape[0])
        lm.resize_token_embeddings(self.token_id + 1, mean_resizing=True)
        self.lm = self.trained = lm.requires_grad_(True).train()

    def loss(self, sequences: Tensor, prompt: int, random: torch.Generator) -> tuple[Tensor, int]:
        """SAR-SFT of one batch; the cut is drawn per sample. sequences: [batch, length]."""
        k, losses, counted = self.plan.k, [], 0
        plain = torch.rand(len(sequences), generator=random) < self.plan.p_ar
        sequences = sequences.to(next(self.lm.parameters()).device)
        if bool(plain.any()):
            rows = sequences[plain]
            logits = self.lm(rows[:, :-1], use_cache=False).logits[:, prompt - 1 :]
            losses.append(
                nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, prompt:].flatten()) * len(rows)
            )
        for row in sequences[~plain]:
            cut = int(torch.randint(prompt, len(row) - k, (), generator=random))
            ids = torch.cat([row[:cut], row.new_full((k,), self.token_id)])
            logits = self.lm(ids[None], use_cache=False).logits[0, prompt - 1 :]
            losses.append(nn.functional.cross_entropy(logits, row[prompt : cut + k + 1]))
            counted += k
        return torch.stack(losses).sum() / len(sequences), counted

    def model(self, tokenizer: Any) -> SpaceModel:
        return SpaceModel(self.lm.eval(), tokenizer, Masks(self.plan.k, "paper", self.token_id))

    def restore(self) -> None:
        self.lm.train()
