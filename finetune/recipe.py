"""Recipes: every number of a build, in one TOML file."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from space_core.errors import SpaceError

FOLDER = Path(__file__).parent / "recipes"


class RecipeError(SpaceError, ValueError):
    """A recipe is missing or holds a wrong key or value."""


@dataclass(frozen=True, slots=True)
class Corpus:
    stdlib: bool | tuple[str, ...] = True
    packages: str | tuple[str, ...] = ()
    vocab_size: int = 4096


@dataclass(frozen=True, slots=True)
class Base:
    """Shape of the base. `start` is a checkpoint to go on from (weights, masks and tokenizer), if any."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    context: int = 2048
    start: str = ""


@dataclass(frozen=True, slots=True)
class Pretrain:
    """`steps` of `batch` windows; the last `decay` steps use windows of `long_seq_len`.

    With `mask_groups` the base learns beside its masks, `mask_weight` being the share of their loss: so
    many dense groups stand behind each window, shaped as the recipe's masks are; `own_batch` more windows
    are the base's own texts, which have the masks' loss alone. `functions` is the share of a batch that are
    functions standing alone, and what follows them, instead of windows of files.
    """

    steps: int
    batch: int
    seq_len: int
    warmup: int = 100
    decay: int = 200
    long_seq_len: int = 0
    muon_lr: float | None = 0.02
    adam_lr: float = 3e-3
    mask_groups: int = 0
    mask_weight: float = 0.3
    own_batch: int = 0
    functions: float = 0.0
    save_every: int = 50
    evaluate_every: int = 200


@dataclass(frozen=True, slots=True)
class Distill:
    """The model's own continuations: `prompts`, equally many of each length in `prompt_lengths`.

    Attributes:
        alone: prompts besides, each one function's signature and docstring with nothing in front, as
            people give them.
        loops: share of the texts that count whole which may run in circles; the others that do count
            up to where the circles begin.
    """

    prompts: int
    prompt_lengths: tuple[int, ...]
    new_tokens: int
    alone: int = 0
    batch: int = 64
    loops: float = 0.15
    sampled_share: float = 0.2
    temperature: float = 0.8


@dataclass(frozen=True, slots=True)
class MaskTraining:
    """Training of the masks.

    `groups`, `until_fail`, `soft`, `sampler` and `copy_batches` are for the gated method, `p_ar` for the
    paper's.

    Attributes:
        sampler: width of the sampler head; 0 trains none.
        copy_batches: of own texts on which the table of copies is fitted at the end; 0 fits none.
        groups: dense groups behind each text.
        until_fail: weight of a mask behind a wrong one, whose guess could not have stood (1: as any
            other).
        soft: share of the loss against the base's own distribution, the rest against its token.
        accumulate: batches whose gradients make one step.
        cosine: the rate falls by half a cosine instead of `decay`'s line.
        patience: stop after so many evaluations without more tokens per call, and take the best masks;
            0 trains to the end and takes the last.
    """

    steps: int
    batch: int
    k: int = 5
    method: str = "gated"
    rank: int = 32
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    sampler: int = 0
    copy_batches: int = 0
    groups: int = 24
    until_fail: float = 1.0
    soft: float = 0.0
    lr: float = 2e-3
    muon_lr: float | None = None
    p_ar: float = 0.5
    warmup: int = 50
    decay: int = 0
    accumulate: int = 1
    cosine: bool = False
    patience: int = 0
    save_every: int = 50
    evaluate_every: int = 200
    evaluate_prompts: int = 16
    evaluate_tokens: int = 64


@dataclass(frozen=True, slots=True)
class Recipe:
    name: str
    description: str
    corpus: Corpus
    base: Base
    pretrain: Pretrain
    distill: Distill
    masks: MaskTraining
    seed: int = 0


def load_recipe(name: str) -> Recipe:
    """A recipe by its name, or by the path of a TOML file.

    Raises:
        RecipeError: with a sentence.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.toml")))
        raise RecipeError(f"there is no recipe {name!r}: choose from {known}, or give a .toml file")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: {error}") from None
    parts = {
        "corpus": Corpus,
        "base": Base,
        "pretrain": Pretrain,
        "distill": Distill,
        "masks": MaskTraining,
    }
    values: dict[str, Any] = {"name": path.stem, "description": "", **data}
    for key, kind in parts.items():
        values[key] = _build(kind, values.get(key, {}), f"{path.name}: [{key}]")
    return _build(Recipe, values, path.name)


def _build(kind: type, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise RecipeError(f"{where}: must be a table")
    odd = values.keys() - {field.name for field in dataclasses.fields(kind)}
    if odd:
        raise RecipeError(f"{where}: unknown key {sorted(odd)[0]}")
    frozen = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    try:
        return kind(**frozen)
    except TypeError as error:
        raise RecipeError(f"{where}: {error}") from None
