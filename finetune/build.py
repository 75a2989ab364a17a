"""One command from nothing to a checkpoint: corpus → tokenizer → base → own outputs → masks.

Every stage leaves its result in the run's folder and is skipped or resumed when it stands there,
so a build that was killed goes on where it was. Weights are saved in float32,
as they were trained.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from finetune.card import model_card
from finetune.corpus import Document, collect, split
from finetune.distill import distill
from finetune.evaluate import evaluate
from finetune.masks import train_masks
from finetune.pack import Tokens, pack, prompt_windows, read_meta
from finetune.pretrain import heldout_batches, heldout_loss, pretrain
from finetune.recipe import Recipe
from finetune.state import load_state, save_state
from finetune.tokenizer import train_tokenizer
from space_core.checkpoint import MANIFEST, save


def build(recipe: Recipe, run: Path, cache: Path, out: Path, device: str = "cpu") -> Path:
    """Build the checkpoint of a recipe in the folder `out`; returns `out`.

    Args:
        run: states, tokens and log of this build; a killed build resumes from it.
        cache: downloaded packages, shared by all builds.
        out: the checkpoint; replaced when it holds one.
    """
    run.mkdir(parents=True, exist_ok=True)
    corpus = _Corpus(recipe, cache)
    tokenizer = _tokenizer(recipe, run, corpus)
    meta = read_meta(run / "tokens") or pack(corpus.documents(), tokenizer, run / "tokens")
    lm = pretrain(recipe, run / "tokens", run, meta, device)
    loss = heldout_loss(lm, heldout_batches(run / "tokens" / "heldout.bin", recipe.pretrain.seq_len))
    heldout = meta["heldout"]
    bits = loss / 0.6931471805599453 * heldout["tokens"] / heldout["text_bytes"]

    prompts = _prompts(recipe, run, corpus, tokenizer)
    batches = distill(lm, {int(n): ids for n, ids in prompts.items()}, recipe.distill, run, recipe.seed)
    watch = _watched(recipe, run)
    model = train_masks(lm, tokenizer, batches, watch, recipe.masks, run, recipe.seed)

    texts = [tokenizer.decode(ids) for ids in watch]
    figures = evaluate(model, texts, recipe.masks.k, recipe.masks.evaluate_tokens)
    about = {
        "name": recipe.name,
        "recipe": asdict(recipe),
        "parameters": sum(p.numel() for p in lm.parameters()),
        "training_data": {"sources": meta["sources"], "licences": meta["licences"]},
        "licence": "Apache-2.0",
        "evaluation": {
            "heldout_loss": round(loss, 4),
            "bits_per_byte": round(bits, 4),
            "heldout_prompts": figures,
        },
        "made": {
            "date": datetime.date.today().isoformat(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    model.name = recipe.name
    save(part, model, about=about)
    shutil.copy(run / "log.jsonl", part / "training_log.jsonl")
    (part / "README.md").write_text(model_card(json.loads((part / MANIFEST).read_text())), encoding="utf-8")
    old = out.with_name(out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.replace(out, old)
    out.parent.mkdir(parents=True, exist_ok=True)
    os.replace(part, out)
    shutil.rmtree(old, ignore_errors=True)
    return out


class _Corpus:
    """The documents of a recipe, collected when they are first needed."""

    def __init__(self, recipe: Recipe, cache: Path) -> None:
        self._recipe, self._cache = recipe, cache
        self._documents: list[Document] | None = None

    def documents(self) -> list[Document]:
        if self._documents is None:
            spec = self._recipe.corpus
            packages: Any = spec.packages
            self._documents = collect(spec.stdlib, packages, self._cache)
        return self._documents


def _tokenizer(recipe: Recipe, run: Path, corpus: _Corpus) -> PreTrainedTokenizerFast:
    folder = run / "tokenizer"
    if not (folder / "tokenizer_config.json").is_file():
        train, _ = split(corpus.documents())
        part = run / "tokenizer.part"
        shutil.rmtree(part, ignore_errors=True)
        train_tokenizer(
            (d.text for d in train), recipe.corpus.vocab_size, part, model_max_length=recipe.base.context
        )
        os.replace(part, folder)
    return AutoTokenizer.from_pretrained(folder)


def _prompts(recipe: Recipe, run: Path, corpus: _Corpus, tokenizer: Any) -> dict[str, Any]:
    path = run / "prompts.pt"
    state = load_state(path)
    if state is None:
        plan = recipe.distill
        share = plan.prompts // len(plan.prompt_lengths)
        state = {
            str(length): prompt_windows(corpus.documents(), tokenizer, length, share, recipe.seed + i)
            for i, length in enumerate(plan.prompt_lengths)
        }
        save_state(path, state)
    return state


def _watched(recipe: Recipe, run: Path) -> list[list[int]]:
    """Held-out windows on which tokens per call are watched during training."""
    length = recipe.distill.prompt_lengths[0]
    tokens = Tokens(run / "tokens" / "heldout.bin")
    count = min(recipe.masks.evaluate_prompts, tokens.windows(length))
    return [row[:length].tolist() for row in tokens.batch(0, count, length, seed=1)]
