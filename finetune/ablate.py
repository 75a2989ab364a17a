"""What each step from the paper's method to this one is worth: `python -m finetune ablate`.

    paper       all weights, [M] in the vocabulary, one group that cuts each sample; texts of the corpus
    dense       the same with many groups behind each whole text (`finetune.masks.Dense`)
    distilled   the same on the base's own continuations
    gated       the base frozen: mask embeddings and a low-rank adapter of the mask rows
    until_fail  masks behind a wrong one count a fifth
    soft        a fifth of the loss against the base's whole distribution
    told        a sampler head tells each guess the token in front of it
    copied      a table of copies, fitted in the last tenth of the time

Each line has what those above it have, and one thing more. All start from the same base and train for
the same number of *seconds* on the same device, evaluation not counted: a step of one is many steps of
another. So numbers of steps, and with them results, differ a little from run to run; what is drawn does
not. AdamW trains all of them. A rate that suits all weights does not suit an adapter, and a rival with
the wrong rate proves nothing: several rates are tried, all results are kept, and each variant is told
by its best (chosen on the prompts that it is told on, which flatters all alike). The base's own
continuations are made once, before the clock runs; the result says how long that took.

Tokens per call are measured by decoding held-out prompts on the full grid. Where all weights are
trained the model also writes other texts than the base did: `as_base` is the share of outputs that
are still the base's, to the token.

This room knows methods, texts and a clock; pictures are `space_core.views.ablation`'s.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoTokenizer

import space_core
from finetune.build import base_prompts, base_tokens
from finetune.copying import fit_copies
from finetune.distill import Own, distill, ends_of_text
from finetune.evaluate import decode_prompts
from finetune.masks import Dense, Draw, Gated, Method, Paper, own_texts
from finetune.optimizer import Optimizers, schedule
from finetune.pack import Tokens, read_meta, tokenizer_hash
from finetune.precision import autocast, bfloat16_is_faster, clock
from finetune.pretrain import new_base
from finetune.recipe import MaskTraining, Recipe, RecipeError
from finetune.state import check_same, load_state, write_json
from space_core import Settings, checkpoint
from space_core.bench import machine
from space_core.errors import CheckpointError, SettingError
from space_core.metrics import is_loop, tokens_per_call

FORMAT = "space-ablation/1"
RESULT = "ablation.json"
OPTIONS = "ablate.json"
"""What decides about a result, in its folder."""
WHOLE_RATES = (3e-4, 1e-3)
GATED_RATES = (2e-3, 5e-3)
SAMPLER = 512
"""Width of the sampler head where the recipe has none."""
FITTING = 0.1
"""Share of the time in which a table of copies is fitted, where there is one."""
STEPS_A_BATCH = 6
"""Steps of training for each batch that it is fitted on: what that takes fills this share, more or less."""
SEED = 1_000_003
"""Steps that a seed has to itself."""
WARMUP, DECAY = 50, 400
"""Thousandths of the time over which the rate rises, and falls to 0."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One line of the table.

    Attributes:
        adds: what it has that the line above has not, for people.
        method: class of `finetune.masks`.
        own: trained on the base's own continuations, not on texts of the corpus.
        changes: of the recipe's `MaskTraining`.
    """

    name: str
    adds: str
    method: type[Paper] | type[Gated]
    own: bool
    until_fail: float = 1.0
    soft: float = 0.0
    told: bool = False
    copied: bool = False

    @property
    def whole(self) -> bool:
        """Whether all weights are trained."""
        return self.method is not Gated


VARIANTS = (
    Variant("paper", "all weights, one group a sample, corpus texts", Paper, own=False),
    Variant("dense", "many groups behind each text", Dense, own=False),
    Variant("distilled", "the base's own continuations", Dense, own=True),
    Variant("gated", "frozen base, adapter on mask rows", Gated, own=True),
    Variant("until_fail", "masks behind a wrong one count 0.2", Gated, own=True, until_fail=0.2),
    Variant("soft", "0.2 of the loss against the base's distribution", Gated, True, 0.2, 0.2),
    Variant("told", "a sampler head", Gated, True, 0.2, 0.2, told=True),
    Variant("copied", "a table of copies", Gated, True, 0.2, 0.2, told=True, copied=True),
)


@dataclass(frozen=True, slots=True)
class Ablation:
    """What is compared.

    Attributes:
        recipe: corpus, shape of the masks, batches and groups, held-out prompts.
        base: checkpoint (folder or hub id; its masks are left out), or the folder of a build's run.
        seconds: of training for each variant, rate and seed.
        seeds: how many, from 0.
        variants: names, of `VARIANTS`.
        whole_rates, gated_rates: peak learning rates to try where all weights are trained, and where not.
        prompts: most prompts that the base continues; 0 takes all of the recipe's.
    """

    recipe: Recipe
    base: str
    seconds: float = 60.0
    seeds: int = 3
    variants: tuple[str, ...] = tuple(variant.name for variant in VARIANTS)
    whole_rates: tuple[float, ...] = WHOLE_RATES
    gated_rates: tuple[float, ...] = GATED_RATES
    prompts: int = 0

    def __post_init__(self) -> None:
        known = [variant.name for variant in VARIANTS]
        for name in self.variants:
            if name not in known:
                raise SettingError("variants", f"there is no variant {name!r:.40}: {', '.join(known)}")
        for name, rates in (("whole_lr", self.whole_rates), ("gated_lr", self.gated_rates)):
            if not rates or not all(0 < rate < math.inf for rate in rates):
                raise SettingError(name, f"{name} needs learning rates above 0")
        if not self.variants:
            raise SettingError("variants", f"name at least one variant of {', '.join(known)}")
        if not 0 < self.seconds < math.inf:
            raise SettingError("seconds", "seconds must be above 0, and not endless")
        for name, least in (("seeds", 1), ("prompts", 0)):
            if getattr(self, name) < least:
                raise SettingError(name, f"{name} must be at least {least}")

    def units(self) -> Iterator[tuple[Variant, float, int]]:
        """All trainings; one seed of every variant before the next seed of any."""
        for seed in range(self.seeds):
            for variant in VARIANTS:
                if variant.name in self.variants:
                    for rate in self.whole_rates if variant.whole else self.gated_rates:
                        yield variant, rate, seed


@dataclass(frozen=True, slots=True)
class Start:
    """A base without masks.

    Attributes:
        name: for people.
        source: checkpoint from which a recipe would start; empty: its run's own tokenizer and base.
        texts: folder of a run that has the base's own continuations already, or None.
    """

    lm: Any
    tokenizer: Any
    name: str
    source: str
    texts: Path | None = None


@dataclass(frozen=True, slots=True)
class Ground:
    """What all variants share.

    Attributes:
        lm: the base; variants train copies.
        corpus, own: how batches are drawn from the corpus, and from the base's own continuations.
        watch: held-out prompts.
        plain: what the base itself writes behind them.
    """

    lm: Any
    tokenizer: Any
    name: str
    corpus: Draw
    own: Draw
    watch: list[list[int]]
    plain: list[tuple[int, ...]]


def ablate(
    plan: Ablation, run: Path, cache: Path, out: Path, device: str = "cpu", command: str = ""
) -> dict[str, Any]:
    """Train and measure all variants; returns the result, which also stands in `out`.

    A killed ablation goes on with what it had finished, each (variant, rate, seed) by itself, and more
    seeds, rates or variants may be asked for later. The result is written anew after each of them.

    Args:
        run: tokens and prompts of the recipe, as `build` makes them; made where they are missing.
        cache: downloaded packages.
        command: how this was called, for the result.

    Raises:
        SpaceError, RecipeError: with one sentence, for bases, runs and settings that do not serve.
    """
    place = checkpoint.find_device(device)
    start = open_base(plan.base, plan.recipe, place)
    mine = json.loads(
        json.dumps(
            {
                "base": _digest(start.lm),
                "recipe": asdict(plan.recipe),
                "seconds": plan.seconds,
                "prompts": plan.prompts,
                "machine": machine(place),
            }
        )
    )
    check_same(out / OPTIONS, mine)
    write_json(out / OPTIONS, mine)
    ground = _ground(plan, start, run, cache, out)
    half = bfloat16_is_faster(place)
    result: dict[str, Any] = {}
    for variant, rate, seed in tqdm(list(plan.units()), desc="ablate", mininterval=0):
        path = out / "units" / f"{variant.name}-{rate:g}-{seed}.json"
        if not path.is_file():
            write_json(path, _unit(plan, ground, variant, rate, seed, half))
        result = _result(plan, ground, out, place, command)
        write_json(out / RESULT, result)
    return result


def open_base(base: str, recipe: Recipe, device: torch.device) -> Start:
    """The base that an ablation starts from.

    Args:
        base: checkpoint (folder or hub id), or the folder of a build's run.

    Raises:
        CheckpointError: for what is neither.
    """
    folder = Path(base)
    state = load_state(folder / "pretrain.pt")
    if state is None:
        model = space_core.load(base, str(device))
        if model.masks.method == "paper":
            raise CheckpointError(f"{base} has its masks in the vocabulary: name the model it was made from")
        if model.tokenizer is None:
            raise CheckpointError(f"{base} has no tokenizer that can be read")
        return Start(model.lm, model.tokenizer, model.name, str(checkpoint.fetch(base)))
    meta = read_meta(folder / "tokens")
    if meta is None:
        raise CheckpointError(f"{folder} has no tokens: it is no build's run as it stands")
    lm = new_base(recipe.base, meta["vocab_size"], meta["eos_token_id"], 0)
    try:
        lm.load_state_dict(state["model"])
    except RuntimeError:
        raise CheckpointError(f"{folder} holds a base of another shape than the recipe's") from None
    source = recipe.base.start
    tokenizer = AutoTokenizer.from_pretrained(source or folder / "tokenizer")
    texts = folder if (folder / "distill.pt").is_file() else None
    return Start(lm.to(device).eval(), tokenizer, folder.resolve().name, source, texts)


def rate_at(through: float) -> float:
    """Share of the peak learning rate when this share of the time is through."""
    return schedule(int(1000 * through), 1000, WARMUP, DECAY)


def train_for(
    seconds: float, method: Method, draw: Draw, rate: float, seed: int, half: bool
) -> dict[str, Any]:
    """Train until the time is through; a step that has begun is finished.

    Returns:
        "seconds" that were used, "steps", "mask_targets", and whether the loss "diverged".
    """
    device = next(method.trained.parameters()).device
    optimizers = Optimizers(method.trained, None, rate, half)
    step, targets, spent, value = 0, 0, 0.0, 0.0
    while spent < seconds and math.isfinite(value):
        start = clock(device)
        random = torch.Generator().manual_seed(seed * SEED + step)
        batch = draw(step, random)
        with autocast(device, half):
            loss, counted = method.loss(batch, random)
        loss.backward()
        optimizers.step(rate_at(spent / seconds))
        value = float(loss.detach())
        step, targets = step + 1, targets + counted
        spent += clock(device) - start
    return {
        "seconds": round(spent, 2),
        "steps": step,
        "mask_targets": targets,
        "diverged": not math.isfinite(value),
    }


def _unit(
    plan: Ablation, ground: Ground, variant: Variant, rate: float, seed: int, half: bool
) -> dict[str, Any]:
    """One variant at one rate, trained and measured."""
    masks = replace(
        plan.recipe.masks,
        method="paper" if variant.whole else "gated",
        until_fail=variant.until_fail,
        soft=variant.soft,
        sampler=(plan.recipe.masks.sampler or SAMPLER) if variant.told else 0,
    )
    method = _method(variant, copy.deepcopy(ground.lm), masks, seed)
    draw = ground.own if variant.own else ground.corpus
    row = {"variant": variant.name, "lr": rate, "seed": seed}
    share = 1 - FITTING if variant.copied else 1.0
    row |= train_for(share * plan.seconds, method, draw, rate, seed, half)
    if row["diverged"]:
        return row
    model = method.model(ground.tokenizer)
    if variant.copied:
        start = clock(model.device)
        fit_copies(model, draw, max(1, row["steps"] // STEPS_A_BATCH), masks, seed)
        row["seconds"] = round(row["seconds"] + clock(model.device) - start, 2)
    with torch.no_grad():
        traces = decode_prompts(model, ground.watch, masks.k, masks.evaluate_tokens)
    straight = [trace for trace in traces if not is_loop(trace.output_ids)]
    same = sum(trace.output_ids == ids for trace, ids in zip(traces, ground.plain, strict=True))
    return row | {
        "tokens_per_call": round(tokens_per_call(traces), 4),
        "tokens_per_call_without_loops": round(tokens_per_call(straight), 4) if straight else None,
        "loops": round(1 - len(straight) / len(traces), 4),
        "as_base": round(same / len(traces), 4),
    }


def _method(variant: Variant, lm: Any, masks: MaskTraining, seed: int) -> Method:
    torch.manual_seed(seed)  # of [M]'s first embedding
    if variant.method is Gated:
        return Gated(lm, masks, seed)
    return variant.method(lm, masks)


def _ground(plan: Ablation, start: Start, run: Path, cache: Path, out: Path) -> Ground:
    recipe = replace(plan.recipe, base=replace(plan.recipe.base, start=start.source))
    corpus, meta, _ = base_tokens(recipe, run, cache)
    if meta["tokenizer_sha256"] != tokenizer_hash(start.tokenizer):
        raise RecipeError(
            f"{run} holds tokens of another tokenizer than the base's: name another folder with --run"
        )
    prompts = base_prompts(recipe, run, corpus, start.tokenizer)
    texts = _continuations(plan, start, prompts.windows, out)
    request = Settings(max_new_tokens=recipe.masks.evaluate_tokens)
    model = space_core.SpaceModel(start.lm, start.tokenizer)
    plain = [
        tuple(token for step in space_core.vanilla(model, ids, request) for token in step.emitted)
        for ids in prompts.watched
    ]
    rows, lengths = recipe.masks.batch, [own.sequences.shape[1] for own in texts]
    sources = [Tokens(run / "tokens" / "train.bin") for _ in lengths]

    def windows(index: int, random: torch.Generator) -> Own:
        """Texts of the corpus, as long as the continuations with their prompts; nothing is a prompt."""
        turn = index % len(lengths)
        return Own.of(1, sources[turn].batch(index, rows, lengths[turn] - 1, random.initial_seed() // SEED))

    ends = ends_of_text(start.lm)
    whole = own_texts([own.whole(ends) for own in texts], rows)  # as `Paper` and `Dense` need them
    return Ground(start.lm, start.tokenizer, start.name, windows, whole, prompts.watched, plain)


def _continuations(plan: Ablation, start: Start, prompts: dict[int, Tensor], out: Path) -> list[Own]:
    """The base's own continuations; the seconds they took here are kept, all calls together."""
    share = plan.prompts // len(prompts) if plan.prompts else None
    windows = {length: ids[:share] for length, ids in prompts.items()}
    texts = start.texts if start.texts is not None and share is None else out
    before, began = _distill_seconds(out), time.perf_counter()
    try:
        return distill(start.lm, windows, plan.recipe.distill, texts, plan.recipe.seed)
    finally:
        write_json(out / "distill.json", {"seconds": round(before + time.perf_counter() - began, 2)})


def _distill_seconds(out: Path) -> float:
    path = out / "distill.json"
    return float(json.loads(path.read_text())["seconds"]) if path.is_file() else 0.0


def _result(plan: Ablation, ground: Ground, out: Path, device: torch.device, command: str) -> dict[str, Any]:
    units = [json.loads(path.read_text()) for path in sorted((out / "units").glob("*.json"))]
    masks = plan.recipe.masks
    return {
        "format": FORMAT,
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **machine(device),
        "model": ground.name,
        "recipe": plan.recipe.name,
        "training_seconds": plan.seconds,
        "distill_seconds": _distill_seconds(out),
        "k": masks.k,
        "batch": masks.batch,
        "groups": masks.groups,
        "rank": masks.rank,
        "prompts": len(ground.watch),
        "max_new_tokens": masks.evaluate_tokens,
        "variants": [row for variant in VARIANTS if (row := summary(variant, units)) is not None],
        "units": units,
    }


def summary(variant: Variant, units: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """A variant at the best of its rates; None where nothing of it is finished.

    Of the rates those with the most seeds are compared, so that a lucky first seed is no winner.
    A rate that diverged once is out.
    """
    rates: dict[float, list[dict[str, Any]]] = {}
    for unit in units:
        if unit["variant"] == variant.name:
            rates.setdefault(unit["lr"], []).append(unit)
    if not rates:
        return None
    sound = {rate: found for rate, found in rates.items() if not any(unit["diverged"] for unit in found)}
    row: dict[str, Any] = {"variant": variant.name, "adds": variant.adds, "rates_tried": sorted(rates)}
    if not sound:
        return row | {"lr": None, "seeds": 0, "tokens_per_call": None}
    most = max(map(len, sound.values()))
    values = {
        rate: [unit["tokens_per_call"] for unit in found]
        for rate, found in sound.items()
        if len(found) == most
    }
    best = max(values, key=lambda rate: mean(values[rate]))
    units, numbers = sound[best], values[best]
    straight = [u["tokens_per_call_without_loops"] for u in units if u["tokens_per_call_without_loops"]]
    return row | {
        "lr": best,
        "seeds": most,
        "tokens_per_call": round(mean(numbers), 4),
        "lowest": min(numbers),
        "highest": max(numbers),
        "deviation": round(stdev(numbers), 4) if most > 1 else None,
        "tokens_per_call_without_loops": round(mean(straight), 4) if straight else None,
        "loops": round(mean(unit["loops"] for unit in units), 4),
        "as_base": round(mean(unit["as_base"] for unit in units), 4),
        "steps": round(mean(unit["steps"] for unit in units)),
        "mask_targets": round(mean(unit["mask_targets"] for unit in units)),
    }


def _digest(lm: Any) -> str:
    """SHA-256 of a model's weights."""
    whole = hashlib.sha256()
    for name, tensor in sorted(lm.state_dict().items()):
        whole.update(name.encode())
        whole.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return whole.hexdigest()
