"""Which optimizer learns most: the same base, batches and steps under several of them.

    python -m finetune optimizers --recipe smoke

Held-out loss after equal tokens, with the seconds it took; AdamW at several rates, since a rival
with the wrong rate proves nothing.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune.build import base_tokens
from finetune.pretrain import heldout_batches, heldout_loss, pretrain
from finetune.recipe import Recipe

ADAM_RATES = (1e-3, 2e-3, 4e-3, 8e-3)


def compare_optimizers(
    recipe: Recipe, run: Path, cache: Path, steps: int | None = None
) -> list[dict[str, Any]]:
    """One row for each optimizer, best first: name, held-out loss, tokens, seconds."""
    meta = base_tokens(recipe, run, cache)[1]
    plan = recipe.pretrain
    steps = steps or plan.steps
    shorter = steps / plan.steps
    plan = replace(
        plan,
        steps=steps,
        warmup=max(1, int(plan.warmup * shorter)),
        decay=int(plan.decay * shorter),
        save_every=steps,
        evaluate_every=steps,
    )
    contenders = [("Muon + AdamW", plan)]
    contenders += [(f"AdamW {rate:g}", replace(plan, muon_lr=None, adam_lr=rate)) for rate in ADAM_RATES]
    rows = []
    for name, contender in contenders:
        with tempfile.TemporaryDirectory() as folder:
            trained = pretrain(replace(recipe, pretrain=contender), run / "tokens", Path(folder), meta)
            last = json.loads((Path(folder) / "log.jsonl").read_text().splitlines()[-1])
        loss = heldout_loss(trained, heldout_batches(run / "tokens" / "heldout.bin", plan.seq_len))
        rows.append(
            {
                "optimizer": name,
                "heldout_loss": round(loss, 4),
                "tokens": last["tokens"],
                "seconds": last["seconds"],
            }
        )
    return sorted(rows, key=lambda row: row["heldout_loss"])
