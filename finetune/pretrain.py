"""Pretraining of the base model: a small Llama on the packed tokens.

Knows tokens, a recipe and a folder; masks that learn beside the base are `masks.py`'s. A run can be
killed at any moment and goes on bit for bit (on a CPU): a batch is a function of the step, and the
state is saved atomically.
With the warm-up–stable–decay schedule a finished run can also be *prolonged*: raise `steps` in the
recipe, and training goes on from the last state before the decay.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

import space_core
from finetune.distill import Own
from finetune.masks import GatedMasks, joint_losses, own_texts, state_of
from finetune.optimizer import Optimizers, schedule
from finetune.pack import Texts, Tokens
from finetune.precision import autocast, bfloat16_is_faster
from finetune.recipe import Base, Recipe
from finetune.state import Log, Tell, load_state, save_state

FUNCTIONS = "functions"
"""Folder, beside the tokens', of functions that stand alone."""


def new_base(base: Base, vocab_size: int, eos_token_id: int, seed: int) -> LlamaForCausalLM:
    """A Llama with random weights, or those of the checkpoint to start from."""
    if base.start:
        return LlamaForCausalLM.from_pretrained(base.start, dtype=torch.float32)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=base.hidden,
        intermediate_size=base.intermediate,
        num_hidden_layers=base.layers,
        num_attention_heads=base.heads,
        num_key_value_heads=base.kv_heads,
        max_position_embeddings=base.context,
        tie_word_embeddings=True,
        bos_token_id=eos_token_id,
        eos_token_id=eos_token_id,
        pad_token_id=eos_token_id + 1,
        rms_norm_eps=1e-5,
    )
    return LlamaForCausalLM(config).to(torch.float32)


def pretrain(
    recipe: Recipe,
    tokens: Path,
    out: Path,
    meta: dict[str, Any],
    device: str = "cpu",
    own: list[Own] | None = None,
    tell: Tell | None = None,
) -> LlamaForCausalLM:
    """Train the base of a recipe, resuming from what `out` holds.

    Args:
        tokens: folder of `pack`; beside it, where the recipe wants functions, that of `pack` with them.
        out: states and log go here.
        meta: of `pack`.
        own: of `distill`, for `own_batch`.
        tell: hears what is logged.

    Returns:
        The trained model in evaluation mode.
    """
    plan = recipe.pretrain
    model = new_base(recipe.base, meta["vocab_size"], meta["eos_token_id"], recipe.seed).to(device)
    latest, stable = out / "pretrain.pt", out / "pretrain-stable.pt"
    step, trained, seconds = 0, 0, 0.0
    state = load_state(latest, device)
    if state is not None and state["decaying"] and state["steps"] != plan.steps:
        state = load_state(stable, device)  # prolonged: go on from before the decay
    # A run keeps the format it began with: a resumed one must not change its numbers.
    half = bfloat16_is_faster(device) if state is None else state["half"]
    masks = _new_masks(model, recipe) if plan.mask_groups else None
    trained_parts = nn.ModuleList([model] if masks is None else [model, masks])
    optimizers = Optimizers(trained_parts, plan.muon_lr, plan.adam_lr, half)
    if state is not None:
        model.load_state_dict(state["model"])
        if masks is not None:
            masks.load_state_dict(state["masks"])
        optimizers.load_state_dict(state["optimizers"])
        step, trained, seconds = state["step"], state["trained"], state["seconds"]
    log = Log(out / "log.jsonl", "pretrain", step, tell)
    source = Tokens(tokens / "train.bin")
    heldout = {"heldout_loss": heldout_batches(tokens / "heldout.bin", plan.seq_len)}
    alone = None
    if plan.functions:
        folder = tokens.with_name(FUNCTIONS)
        alone = Texts(folder / "train.bin", meta["eos_token_id"])
        heldout["heldout_loss_of_functions"] = heldout_batches(folder / "heldout.bin", plan.seq_len)
    draw = own_texts(own, plan.own_batch) if own and plan.own_batch else None

    def save(path: Path) -> None:
        save_state(
            path,
            {
                "model": model.state_dict(),
                "masks": None if masks is None else masks.state_dict(),
                "optimizers": optimizers.state_dict(),
                "step": step,
                "steps": plan.steps,
                "half": half,
                "trained": trained,
                "seconds": seconds,
                "decaying": step > plan.steps - plan.decay,
            },
        )

    model.train()
    bar = tqdm(total=plan.steps, initial=step, desc="pretrain", mininterval=2)
    while step < plan.steps:
        start = time.perf_counter()
        long = plan.long_seq_len > 0 and step >= plan.steps - plan.decay
        length = plan.long_seq_len if long else plan.seq_len
        rows = max(1, plan.batch * plan.seq_len // length)
        if step == plan.steps - plan.decay:
            save(stable)
        single = round(rows * plan.functions)
        batch = source.batch(step, rows - single, length, recipe.seed)
        if alone is not None and single:
            batch = torch.cat([batch, alone.batch(step, single, length, recipe.seed)])
        batch = batch.to(device)
        if masks is None:
            loss = whole = language_loss(model, batch, half)
        else:
            random = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
            with autocast(batch.device, half):
                loss, of_masks, _ = joint_losses(model, masks, batch, plan.mask_groups, random)
                if draw is not None:
                    prompt, texts, ends = draw(step, random)
                    texts = texts.to(device)
                    _, copies, _ = joint_losses(
                        model, masks, texts, plan.mask_groups, random, prompt - 1, plain=False, ends=ends
                    )
                    of_masks = (of_masks + copies) / 2
            whole = loss + plan.mask_weight * of_masks
        whole.backward()
        optimizers.step(schedule(step, plan.steps, plan.warmup, plan.decay))
        step, trained = step + 1, trained + rows * length
        value = float(loss.detach())
        if not math.isfinite(value):
            raise RuntimeError(f"pretraining diverged at step {step}: the loss is {value}")
        seconds += time.perf_counter() - start
        bar.update()
        bar.set_postfix(loss=f"{value:.3f}", tok_s=f"{trained / seconds:.0f}", refresh=False)
        if step % 10 == 0 or step == plan.steps:
            extra = {} if masks is None else {"mask_loss": round(float(of_masks.detach()), 4)}
            log.write(step, loss=round(value, 4), **extra, tokens=trained, seconds=round(seconds, 1))
        if step % plan.evaluate_every == 0 or step == plan.steps:
            losses = {name: round(heldout_loss(model, batches), 4) for name, batches in heldout.items()}
            log.write(step, **losses, tokens=trained, seconds=round(seconds, 1))
        if step % plan.save_every == 0 or step == plan.steps:
            save(latest)
    bar.close()
    return model.eval()


def _new_masks(model: LlamaForCausalLM, recipe: Recipe) -> GatedMasks:
    """Masks to be trained beside the base: those of the start, as far as they are of the recipe's shape."""
    start = space_core.load(recipe.base.start).masks if recipe.base.start else None
    # A new sampler head only reads what masks say: it is trained with them afterwards, on the finished base.
    told = start is not None and start.sampler is not None and start.sampler.width == recipe.masks.sampler
    masks = GatedMasks(model, recipe.masks if told else replace(recipe.masks, sampler=0), recipe.seed)
    masks.to(next(model.parameters()).device)
    if start is not None:
        shapes = {name: tensor.shape for name, tensor in masks.state_dict().items()}
        state = state_of(start) or {}
        masks.begin({name: t for name, t in state.items() if shapes.get(name) == t.shape})
    return masks


def language_loss(model: LlamaForCausalLM, batch: Tensor, half: bool = False) -> Tensor:
    """Mean next-token loss of windows [batch, seq_len + 1]."""
    with autocast(batch.device, half):
        hidden = model.model(input_ids=batch[:, :-1], use_cache=False).last_hidden_state
        logits = model.lm_head(hidden)
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())


def heldout_batches(path: Path, seq_len: int, windows: int = 48) -> Tensor:
    """The same held-out windows at every evaluation. [windows, seq_len + 1]"""
    source = Tokens(path)
    return source.batch(0, min(windows, source.windows(seq_len)), seq_len, seed=0)


@torch.no_grad()
def heldout_loss(model: LlamaForCausalLM, batches: Tensor) -> float:
    """Mean held-out loss in nats per token."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    losses = [float(language_loss(model, part.to(device))) * len(part) for part in batches.split(8)]
    model.train(was_training)
    return sum(losses) / len(batches)
