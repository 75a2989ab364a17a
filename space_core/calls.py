"""What a call costs by its rows: the other half of SPACE's speed-up, measured without any text.

Tokens per call tell how many calls SPACE saves; this tells what a call of so many rows costs in
plain one-row calls. Kinds of calls take turns, so that a busy machine slows all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from space_core import metrics
from space_core.cache import BlockCache
from space_core.checkpoint import DTYPES, find_device
from space_core.cost import layout_of
from space_core.errors import SettingError
from space_core.layout import Layout
from space_core.model import SpaceModel
from space_core.scores import Spread, table

FORMAT = "space-bench-calls/1"
ROWS = (1, 4, 9, 16, 25, 36, 49, 64, 81)
CONTEXTS = (64, 512)
REPETITIONS = 15
WARMUP = 3


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Llama."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int
    tied: bool


SHAPES = {
    "16M": Shape(384, 7, 6, 6, 1024, 8192, tied=True),
    "100M": Shape(768, 12, 12, 12, 2048, 16384, tied=True),
    "1B": Shape(2048, 22, 32, 4, 5632, 32000, tied=False),  # TinyLlama's
    "7B": Shape(4096, 32, 32, 32, 11008, 32000, tied=False),  # LLaMA-2-7B's
}


@dataclass(frozen=True, slots=True)
class CallTime:
    """Seconds of one kind of call.

    Attributes:
        context: tokens in the cache before the call.
        rows, drafts, masks: of the call; rows = 1 + drafts + masks.
        seconds: quartiles over repetitions.
        ratio: median seconds over those of a plain one-row call.
    """

    dtype: str
    context: int
    rows: int
    drafts: int
    masks: int
    seconds: Spread
    ratio: float


def contexts_for(model: SpaceModel, wanted: Sequence[int] | None, rows: Sequence[int]) -> tuple[int, ...]:
    """Cache lengths to measure at: as wanted, or those of the default that fit the model with the rows.

    Raises:
        SettingError: for rows or a wanted length that do not fit.
    """
    room = model.context - max(rows)
    if room < 1:
        raise SettingError("rows", f"{max(rows)} rows do not fit the model's context of {model.context}")
    if wanted is None:
        return tuple(length for length in CONTEXTS if length <= room) or (room,)
    for length in wanted:
        if length > room:
            raise SettingError(
                "context",
                f"a context of {length} tokens and {max(rows)} rows do not fit the model's {model.context}",
            )
    return tuple(wanted)


def measure(
    model: SpaceModel,
    rows: Sequence[int] = ROWS,
    contexts: Sequence[int] = CONTEXTS,
    repetitions: int = REPETITIONS,
    warmup: int = WARMUP,
) -> tuple[CallTime, ...]:
    """Time calls of these many rows behind these many tokens. A plain call is always among them."""
    layouts = [Layout.plain(1), *(layout_of(count) for count in sorted({*rows} - {1}))]
    found: list[CallTime] = []
    for context in contexts:
        seconds: dict[Layout, list[float]] = {layout: [] for layout in layouts}
        cache = BlockCache()
        _call(model, Layout.plain(context), cache)
        for repetition in range(-warmup, repetitions):
            shift = repetition % len(layouts)
            for layout in (*layouts[shift:], *layouts[:shift]):
                start = model.clock()
                _call(model, layout, cache)
                if repetition >= 0:
                    seconds[layout].append(model.clock() - start)
                else:
                    model.synchronize()
                cache.commit(context)
        spreads = {layout: metrics.spread(times) for layout, times in seconds.items()}
        plain = spreads[layouts[0]][1]
        found += [
            CallTime(
                dtype=model.dtype_name,
                context=context,
                rows=layout.rows,
                drafts=layout.n_drafts,
                masks=layout.n_masks,
                seconds=spread,
                ratio=spread[1] / plain,
            )
            for layout, spread in spreads.items()
        ]
    return tuple(found)


def _call(model: SpaceModel, layout: Layout, cache: BlockCache) -> None:
    """What a decoder asks of a call: the real rows' logits and those of one group."""
    ids = [(7 * i + 3) % model.vocabulary for i in range(layout.n_real)]
    judged = model.call(layout, ids, cache)
    judged.real.argmax(-1)
    if layout.n_masks:
        first = torch.zeros((), dtype=torch.long, device=model.device)
        masks = judged.masks(first)
        if judged.told:
            judged.chain(masks, first, lambda row: row.argmax(-1))
        else:
            judged.guesses(masks).argmax(-1)


def random_llama(name: str, device: str, dtype: str) -> SpaceModel:
    """A Llama of one of `SHAPES` with random weights, made in its dtype on its device.

    Args:
        device, dtype: as `load` takes them.

    Raises:
        SettingError: for an unknown shape.
        CheckpointError: for a device that is not there.
    """
    shape = SHAPES.get(name)
    if shape is None:
        raise SettingError("shape", f"unknown shape {name!r:.40}: known are {', '.join(SHAPES)}")
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.mlp,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=None,
    )
    with find_device(device):
        lm = AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype], attn_implementation="sdpa")
    model = SpaceModel(lm.requires_grad_(False), name=f"Llama-shaped {name}, random weights")
    model.pack()
    return model


def describe(model: SpaceModel) -> str:
    """The model and what its mask rows pay for, in one line."""
    count = sum(parameter.numel() for parameter in model.lm.parameters())
    adapter = model.masks.adapter
    rank = "no adapter" if adapter is None else f"adapter of rank {adapter.rank}"
    return f"{model.name}: {count / 1e6:.1f} M parameters; {model.masks.method} masks, {rank}"


def report(times: Sequence[CallTime]) -> str:
    """The table, as text."""
    rows = [("rows", "drafts", "masks", "context", "dtype", "ms", "quartiles", "plain calls")]
    for time in times:
        low, middle, high = (1000 * seconds for seconds in time.seconds)
        rows.append(
            (
                str(time.rows),
                str(time.drafts),
                str(time.masks),
                str(time.context),
                time.dtype,
                f"{middle:.2f}",
                f"{low:.2f}-{high:.2f}",
                f"{time.ratio:.2f}",
            )
        )
    return table(rows)
