"""The only room that knows the KV cache of transformers: growing in blocks, commit by crop.

transformers' dynamic cache concatenates all keys and values at every call. Here each layer keeps
a buffer that grows by blocks, a call writes its rows behind the committed ones, and committing
keeps the accepted rows, which already lie in their final slots (see `layout.py`). Several sequences
decoded together share one such cache, each with a length of its own.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Sequence
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
        for layer in self.layers:
            if layer.length:
                return int(layer.length)
        return 0

    def commit(self, length: int) -> None:
        """Keep the first `length` rows and forget what lies behind them."""
        for layer in self.layers:
            if layer.length < length:
                raise ValueError(f"cannot commit {length} rows of {layer.length}")
            layer.length = length


class RaggedCache(Cache):  # type: ignore[misc]
    """The KV cache of several sequences of different lengths, decoded together.

    Each sequence fills its own slots from 0 on. A call writes its rows behind what is committed of
    each, so that committing moves nothing here either; what lies behind is hidden by the attention mask.

    Attributes:
        lengths: committed rows of each sequence.
        slots: where the rows of the call under way go. int64 [sequences, rows]
        width: slots that this call sees.
    """

    def __init__(self, sequences: int) -> None:
        super().__init__(layer_class_to_replicate=lambda: RaggedLayer(self))
        self.lengths = [0] * sequences
        self.slots = torch.empty(0, 0, dtype=torch.long)
        self.width = 0

    def place(self, rows: int, device: torch.device) -> Tensor:
        """Make room for a call of so many rows for each sequence; returns the committed lengths. int64 [n]"""
        lengths = torch.tensor(self.lengths, device=device)
        self.slots = lengths[:, None] + torch.arange(rows, device=device)
        self.width = max(self.lengths) + rows
        return lengths

    def commit(self, rows: Sequence[int]) -> None:
        """Keep so many of the last call's rows of each sequence, the first ones."""
        self.lengths = [length + more for length, more in zip(self.lengths, rows, strict=True)]

    def keep(self, sequences: Sequence[int]) -> None:
        """Forget all other sequences."""
        self.lengths = [self.lengths[i] for i in sequences]
        for layer in self.layers:
            layer.keep(sequences)


class RaggedLayer(BlockLayer):
    """Keys and values of one layer: [sequences, heads, slots, head_dim], `length` of them ever in use."""

    def __init__(self, cache: RaggedCache) -> None:
        super().__init__()
        self.cache = cache

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write each sequence's new rows into its own slots; return what the call sees, as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        slots, width = self.cache.slots, self.cache.width
        if width > self.keys.shape[2]:
            self._grow(width)
        each = torch.arange(len(slots), device=slots.device)[:, None]
        self.keys[each, :, slots] = key_states.transpose(1, 2)
        self.values[each, :, slots] = value_states.transpose(1, 2)
        self.length = max(self.length, width)
        return self.keys[:, :, :width], self.values[:, :, :width]

    def _grow(self, needed: int) -> None:
        used = self.length
        super()._grow(needed)
        # Slots that a shorter sequence has not reached are hidden by a weight of 0, and 0 times whatever
        # lay in fresh memory need not be 0.
        self.keys[:, :, used:] = 0
        self.values[:, :, used:] = 0

    def keep(self, sequences: Sequence[int]) -> None:
        index = torch.tensor(sequences, device=self.keys.device)
        self.keys, self.values = self.keys.index_select(0, index), self.values.index_select(0, index)


class FixedCache(Cache):  # type: ignore[misc]
    """Storage of one size at one place, in which a `BlockCache` stays as a guest: for `graphs.py`.

    The guest's layers keep their rows in this storage. So calls on the guest and calls on this cache can take
    turns on one text. A call on this one is told as data where its rows go, and sees all slots; what is not
    of the text is for the attention mask to hide. A guest that grows beyond the storage leaves it by itself.

    Args:
        like: a cache of the same model that has been used.
        size: slots.
    """

    def __init__(self, like: BlockCache, size: int) -> None:
        super().__init__(layers=[FixedLayer(layer, size) for layer in like.layers])
        self.size = size
        self._guest: Callable[[], BlockCache | None] = lambda: None

    def holds(self, cache: BlockCache) -> bool:
        """Whether a cache's rows lie here."""
        return self._guest() is cache and all(
            ours.keys is theirs.keys for ours, theirs in zip(self.layers, cache.layers, strict=True)
        )

    @property
    def free(self) -> bool:
        """Whether there is no guest, or none any more."""
        guest = self._guest()
        return guest is None or not self.holds(guest)

    def take(self, cache: BlockCache) -> None:
        """Take a cache in; a guest that is here goes, with all that it committed."""
        guest = self._guest()
        if guest is not None and self.holds(guest):
            for layer in guest.layers:
                layer.keys = layer.keys[:, :, : layer.length].clone()
                layer.values = layer.values[:, :, : layer.length].clone()
        for ours, theirs in zip(self.layers, cache.layers, strict=True):
            for name in ("keys", "values"):
                store, rows = getattr(ours, name), getattr(theirs, name)[:, :, : theirs.length]
                store[:, :, : theirs.length] = rows
                # What lies behind is hidden by a weight of 0, and 0 times an overflow is no 0.
                store[:, :, theirs.length :] = 0
                setattr(theirs, name, store)
        self._guest = weakref.ref(cache)

    def place(self, slots: Tensor) -> None:
        """Say where the rows of the next call go. int64 [rows]"""
        for layer in self.layers:
            layer.slots = slots


class FixedLayer(BlockLayer):
    """Keys and values of one layer: [1, heads, size, head_dim], all of them seen."""

    def __init__(self, like: BlockLayer, size: int) -> None:
        super().__init__()
        self.lazy_initialization(like.keys, like.values)
        self.keys = like.keys.new_zeros((*like.keys.shape[:2], size, like.keys.shape[3]))
        self.values = like.values.new_zeros((*like.values.shape[:2], size, like.values.shape[3]))
        self.slots = torch.empty(0, dtype=torch.long)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write new rows into their slots; return all slots."""
        self.keys.index_copy_(2, self.slots, key_states)
        self.values.index_copy_(2, self.slots, value_states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.keys.shape[2], 0


def cache_argument(lm: Any) -> str:
    """What a model's forward calls its cache: "past_key_values" up to transformers 5.23, "cache" since."""
    return "cache" if "cache" in inspect.signature(lm.forward).parameters else "past_key_values"


def additive(sees: Tensor, dtype: torch.dtype) -> Tensor:
    """A visibility matrix as the float mask that every attention implementation adds: 0 or lowest.

    (A boolean 4-D mask is right with sdpa, but silently wrong with eager attention.)
    """
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill(~sees, torch.finfo(dtype).min)
