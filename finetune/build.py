"""One command from nothing to a checkpoint: corpus → tokenizer → base → own outputs → masks.

Every stage leaves its result in the run's folder and is skipped or resumed when it stands there,
so a build that was killed goes on where it was. Weights are saved in float32,
as they were trained.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from finetune.card import completions, model_card
from finetune.copying import fit_copies
from finetune.corpus import Document, collect, split
from finetune.distill import distill
from finetune.evaluate import evaluate
from finetune.masks import own_texts, state_of, train_masks
from finetune.pack import lone_prompts, pack, prompt_windows, read_meta
from finetune.pretrain import FUNCTIONS, heldout_batches, heldout_loss, new_base, pretrain
from finetune.recipe import Recipe
from finetune.state import Log, load_state, made, replace_folder, save_state
from finetune.tokenizer import train_tokenizer
from finetune.track import Trackers
from space_core.checkpoint import MANIFEST, load, save

HELDOUT, ALONE = "heldout", "alone-"
"""Names in a run's file of prompts: of those watched, and before the lengths of those that stand alone."""
LOG, EARLIER_LOG = "training_log.jsonl", "training_log_{}.jsonl"
"""A checkpoint's log, and those of the rounds before it, from 1."""
COMPLETIONS = 10
"""Completions that the model card quotes: of the first prompts, whatever they are."""


def build(
    recipe: Recipe, run: Path, cache: Path, out: Path, device: str = "cpu", track: Sequence[str] = ()
) -> Path:
    """Build the checkpoint of a recipe in the folder `out`; returns `out`.

    Args:
        run: states, tokens and log of this build; a killed build resumes from it.
        cache: downloaded packages, shared by all builds.
        out: the checkpoint; replaced when it holds one.
        track: accelerate's trackers that hear what is logged.

    Raises:
        SettingError: for a tracker that is not to be had.
    """
    options = {f"{part}.{k}": v for part in ("pretrain", "masks") for k, v in asdict(recipe)[part].items()}
    trackers = Trackers(track, run, {"recipe": recipe.name, **options})
    corpus, meta, tokenizer = base_tokens(recipe, run, cache)
    if recipe.pretrain.functions and not read_meta(run / FUNCTIONS):
        pack(corpus.documents(), tokenizer, run / FUNCTIONS, functions=True)
    prompts = base_prompts(recipe, run, corpus, tokenizer)
    watched, own = prompts.watched, None
    if recipe.base.start and recipe.pretrain.own_batch:
        first = new_base(recipe.base, meta["vocab_size"], meta["eos_token_id"], recipe.seed).to(device).eval()
        own = distill(first, prompts.windows, recipe.distill, run / "start", recipe.seed)
        own += distill(first, prompts.alone, recipe.distill, run / "start-alone", recipe.seed)
    lm = pretrain(recipe, run / "tokens", run, meta, device, own, trackers)
    loss = heldout_loss(lm, heldout_batches(run / "tokens" / "heldout.bin", recipe.pretrain.seq_len))
    heldout = meta["heldout"]
    bits = loss / 0.6931471805599453 * heldout["tokens"] / heldout["text_bytes"]

    texts = distill(lm, prompts.windows, recipe.distill, run, recipe.seed)
    texts += distill(lm, prompts.alone, recipe.distill, run / "alone", recipe.seed)
    start = _masks_to_go_on_from(recipe, run)
    model = train_masks(lm, tokenizer, texts, watched, recipe.masks, run, recipe.seed, start, trackers)
    copies: dict[str, Any] = {}
    if recipe.masks.copy_batches and recipe.masks.method == "gated":
        draw = own_texts(texts, recipe.masks.batch)
        copies = fit_copies(model, draw, recipe.masks.copy_batches, recipe.masks, recipe.seed)

    model.name = recipe.name
    written = [tokenizer.decode(ids) for ids in watched]
    figures = evaluate(model, written, recipe.masks.k, recipe.masks.evaluate_tokens)
    if copies:
        log = Log(run / "log.jsonl", "copies", -1, trackers)
        log.write(0, tokens_per_call=figures["tokens_per_call"], **copies)
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
        "made": made(),
    }
    if recipe.base.start:
        about["start"] = _start(Path(recipe.base.start))
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    save(part, model, about=about)
    shutil.copy(run / "log.jsonl", part / LOG)
    for earlier, path in enumerate(_logs(Path(recipe.base.start)) if recipe.base.start else (), 1):
        shutil.copy(path, part / EARLIER_LOG.format(earlier))
    card = model_card(json.loads((part / MANIFEST).read_text()), completions(model, watched[:COMPLETIONS]))
    (part / "README.md").write_text(card, encoding="utf-8")
    replace_folder(part, out)
    trackers.finish()
    return out


def _masks_to_go_on_from(recipe: Recipe, run: Path) -> dict[str, Tensor] | None:
    """State of `GatedMasks`: of those taught with the base here, or of the start that is only taught on."""
    if recipe.base.start and not recipe.pretrain.steps:
        return state_of(load(recipe.base.start).masks)
    return (load_state(run / "pretrain.pt") or {}).get("masks")


def _logs(folder: Path) -> list[Path]:
    """Logs of a checkpoint's rounds, in their order."""
    return [*sorted(folder.glob(EARLIER_LOG.format("[0-9]"))), *folder.glob(LOG)]


def _start(folder: Path) -> dict[str, Any]:
    """What the checkpoint that a build goes on from says of itself."""
    path = folder / MANIFEST
    manifest = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {
        key: manifest[key] for key in ("name", "recipe", "made", "evaluation", "start") if key in manifest
    }


def base_tokens(recipe: Recipe, run: Path, cache: Path) -> tuple[_Corpus, dict[str, Any], Any]:
    """Corpus, tokens' description and tokenizer of a recipe, made where `run` does not hold them."""
    run.mkdir(parents=True, exist_ok=True)
    corpus = _Corpus(recipe, cache)
    tokenizer = _tokenizer(recipe, run, corpus)
    meta = read_meta(run / "tokens") or pack(corpus.documents(), tokenizer, run / "tokens")
    return corpus, meta, tokenizer


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
    if recipe.base.start:
        return AutoTokenizer.from_pretrained(recipe.base.start)
    if not (folder / "tokenizer_config.json").is_file():
        train, _ = split(corpus.documents())
        part = run / "tokenizer.part"
        shutil.rmtree(part, ignore_errors=True)
        train_tokenizer(
            (d.text for d in train), recipe.corpus.vocab_size, part, model_max_length=recipe.base.context
        )
        os.replace(part, folder)
    return AutoTokenizer.from_pretrained(folder)


class Prompts(NamedTuple):
    """Prompts of one build.

    Attributes:
        windows: to distil, cut out of files; by length, int64 [n, length].
        alone: to distil, functions' heads with nothing in front, likewise.
        watched: held-out ones on which the build is measured.
    """

    windows: dict[int, Tensor]
    alone: dict[int, Tensor]
    watched: list[list[int]]


def base_prompts(recipe: Recipe, run: Path, corpus: _Corpus, tokenizer: Any) -> Prompts:
    """The prompts of a recipe, made where `run` does not hold them."""
    path = run / "prompts.pt"
    state = load_state(path)
    if state is None:
        plan, masks = recipe.distill, recipe.masks
        train, heldout = split(corpus.documents())
        share = plan.prompts // len(plan.prompt_lengths)
        state = {
            str(length): prompt_windows(train, tokenizer, length, share, recipe.seed + i)
            for i, length in enumerate(plan.prompt_lengths)
        }
        length = plan.prompt_lengths[len(plan.prompt_lengths) // 2]
        state[HELDOUT] = prompt_windows(heldout, tokenizer, length, masks.evaluate_prompts, recipe.seed)
        if plan.alone:
            for length, ids in lone_prompts(train, tokenizer, plan.alone, recipe.seed).items():
                state[f"{ALONE}{length}"] = ids
        save_state(path, state)
    watched = state.pop(HELDOUT).tolist()
    alone = {int(n.removeprefix(ALONE)): state.pop(n) for n in list(state) if n.startswith(ALONE)}
    return Prompts({int(n): ids for n, ids in state.items()}, alone, watched)
