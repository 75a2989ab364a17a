"""Seconds for a mask's target: dense groups against one group a sample: `python -m finetune cost`.

A dense step gives `batch · groups · k` targets or a few less (a mask behind the text's end has none).
Its rival gives as many from samples with one group each:

* `dense` against `paper`: all weights learn. The rival's samples are cut behind a random token, as in the
  paper (§3.1, no sample set aside for the plain loss). They are sorted by their lengths before they are
  put into batches of as many rows, so that hardly anything is padded.
* `gated` against `gated-one`: the base is frozen. The rival has one group behind each text.

Timed are forward and backward passes of all samples, the update of the weights is not: it is one in
either case. The four take turns, repetition by repetition; medians and quartiles are told. Random
tokens serve as texts: what is computed does not depend on them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import space_core
from finetune.chat import Sample
from finetune.distill import Own
from finetune.masks import Dense, Gated
from finetune.packed import PackedPaper, masked
from finetune.precision import autocast, bfloat16_is_faster, clock
from finetune.recipe import MaskTraining
from finetune.sft import target_modules
from space_core import checkpoint
from space_core.bench import machine
from space_core.errors import CheckpointError, SettingError
from space_core.metrics import spread

FORMAT = "space-training-cost/1"


@dataclass(frozen=True, slots=True)
class Cost:
    """What is measured.

    Attributes:
        base: checkpoint, folder or hub id; its masks are left out.
        k, groups: masks of a group, and dense groups behind each text.
        rank: of the gated adapter.
        batch, length: texts of a batch, and tokens of each.
    """

    base: str
    k: int = 5
    rank: int = 32
    groups: int = 24
    batch: int = 12
    length: int = 256
    repetitions: int = 5

    def __post_init__(self) -> None:
        for name in ("k", "rank", "groups", "batch", "repetitions"):
            if getattr(self, name) < 1:
                raise SettingError(name, f"{name} must be at least 1")
        if self.length < self.k + 3:
            raise SettingError("length", f"length must be at least {self.k + 3}")


def measure(plan: Cost, device: str = "cpu", command: str = "") -> dict[str, Any]:
    """Time all ways; returns the result ("space-training-cost/1").

    Raises:
        SpaceError: with one sentence, for bases and settings that do not serve.
    """
    model = space_core.load(plan.base, device)
    if model.masks.method == "paper":
        raise CheckpointError(f"{plan.base} has its masks in the vocabulary: name the model it was made from")
    if plan.length > model.context:
        raise SettingError("length", f"the model's context holds {model.context} tokens, not {plan.length}")
    place = checkpoint.find_device(device)
    half = bfloat16_is_faster(place)
    ways = _ways(plan, model.lm)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    targets: dict[str, list[int]] = {name: [] for name in ways}
    for index in tqdm(range(-1, plan.repetitions), desc="cost", mininterval=0):  # the first one warms up
        order = list(ways)
        turn = index % len(order)
        for name in order[turn:] + order[:turn]:
            random = torch.Generator().manual_seed(index + 1)
            run = ways[name](random)
            start = clock(place)
            with autocast(place, half):
                counted = run()
            took = clock(place) - start
            if index >= 0:
                seconds[name].append(took)
                targets[name].append(counted)
    rows = []
    for name in ways:
        each = [s / n for s, n in zip(seconds[name], targets[name], strict=True)]
        rows.append(
            {
                "way": name,
                "targets": round(sum(targets[name]) / plan.repetitions),
                "seconds": [round(value, 6) for value in spread(seconds[name])],
                "seconds_per_target": [float(f"{value:.4g}") for value in spread(each)],
            }
        )
    median = {row["way"]: row["seconds_per_target"][1] for row in rows}
    return {
        "format": FORMAT,
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **machine(place),
        "model": model.name,
        "parameters": sum(p.numel() for p in model.lm.parameters()),
        "bfloat16": half,
        "k": plan.k,
        "rank": plan.rank,
        "groups": plan.groups,
        "batch": plan.batch,
        "length": plan.length,
        "repetitions": plan.repetitions,
        "ways": rows,
        "cheaper_per_target": {
            "dense": round(median["paper"] / median["dense"], 3),
            "gated": round(median["gated-one"] / median["gated"], 3),
        },
    }


Way = Callable[[torch.Generator], Callable[[], int]]
"""Draws what is to be learnt, and gives back the work that is timed, which says how many targets it had."""


def _ways(plan: Cost, lm: Any) -> dict[str, Way]:
    masks = MaskTraining(
        steps=1,
        batch=plan.batch,
        k=plan.k,
        rank=plan.rank,
        groups=plan.groups,
        targets=target_modules(lm),
        p_ar=0.0,
    )
    dense, paper = Dense(copy.deepcopy(lm), masks), PackedPaper(copy.deepcopy(lm), masks)
    gated = Gated(copy.deepcopy(lm), masks, 0)
    one = Gated(gated.lm, replace(masks, groups=1), 0)
    size = int(lm.get_input_embeddings().weight.shape[0])

    def texts(random: torch.Generator) -> Tensor:
        return torch.randint(size, (plan.batch, plan.length), generator=random)

    def step(method: Dense | Gated, batch: Tensor, random: torch.Generator) -> int:
        loss, counted = method.loss(Own.of(1, batch), random)
        loss.backward()
        return counted

    def once(method: Dense | Gated) -> Way:
        def prepare(random: torch.Generator) -> Callable[[], int]:
            batch = texts(random)
            method.trained.zero_grad(set_to_none=True)
            return lambda: step(method, batch, random)

        return prepare

    def often(random: torch.Generator) -> Callable[[], int]:
        batches = [texts(random) for _ in range(plan.groups)]
        one.trained.zero_grad(set_to_none=True)
        return lambda: sum(step(one, batch, random) for batch in batches)

    def cut(random: torch.Generator) -> Callable[[], int]:
        pieces = []
        for _ in range(plan.groups):
            for ids in texts(random):
                sample = Sample(ids, torch.arange(plan.length) >= 1, ())
                piece = masked(sample, plan.k, paper.token_id, random)
                assert piece is not None  # the text is longer than k
                pieces.append(piece)
        paper.trained.zero_grad(set_to_none=True)
        pieces.sort(key=lambda piece: len(piece[0]))

        def work() -> int:
            for at in range(0, len(pieces), plan.batch):
                paper.learn([[piece] for piece in pieces[at : at + plan.batch]], random).backward()
            return plan.k * len(pieces)

        return work

    return {"dense": once(dense), "paper": cut, "gated": once(gated), "gated-one": often}
