"""The only room that knows the KV cache of transformers: growing in blocks, commit by crop.

transformers' dynamic cache concatenates all keys and values at every call. Here each layer keeps
a buffer that grows by blocks, a call writes its rows behind the committed ones, and committing
keeps the accepted rows, which already lie in their final slots (see `layout.py`).
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

BLOCK = 256
"""Slots by which a layer's buffer grows, at the least."""


class BlockLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer: [batch, heads, slots, head_dim], the first `length` in use."""

    def __init__(self) -> None:
        super().__init__()
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = key_states.new_empty((*key_states.shape[:2], 0, key_states.shape[3]))
        self.values = value_states.new_empty((*value_states.shape[:2], 0, value_states.shape[3]))
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write new rows behind the committed ones; return all rows, as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self.length, self.length + key_states.shape[2]
        if end > self.keys.shape[2]:
            self._grow(end)
        self.keys[:, :, start:end] = key_states
        self.values[:, :, start:end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def _grow(self, needed: int) -> None:
        # Half as much again, so that a long run copies each slot a bounded number of times.
        slots = max(needed, self.length * 3 // 2) + BLOCK
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_empty((*old.shape[:2], slots, old.shape[3]))
            new[:, :, : self.length] = old[:, :, : self.length]
            setattr(self, name, new)

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` rows (transformers counts negatively)."""
        self.length -= abs(tokens_to_remove)

    def reset(self) -> None:
        super().reset()
        self.length = 0


class BlockCache(Cache):  # type: ignore[misc]
    """The KV cache of one run on one model."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=BlockLayer)

    @property
    def length(self) -> int:
        """Rows in the cache, the same in every layer that has any."""
        return max((layer.length for layer in self.layers), default=0)

    def commit(self, length: int) -> None:
        """Keep the first `length` rows and forget what lies behind them."""
        for layer in self.layers:
            if layer.length < length:
                raise ValueError(f"cannot commit {length} rows of {layer.length}")
            layer.length = length


def cache_argument(lm: Any) -> str:
    """What a model's forward calls its cache: "past_key_values" up to transformers 5.23, "cache" since."""
    return "cache" if "cache" in inspect.signature(lm.forward).parameters else "past_key_values"


def additive(sees: Tensor, dtype: torch.dtype) -> Tensor:
    """A visibility matrix as the float mask that every attention implementation adds: 0 or lowest.

    (A boolean 4-D mask is right with sdpa, but silently wrong with eager attention.)
    """
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill(~sees, torch.finfo(dtype).min)
