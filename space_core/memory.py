"""What a conversation keeps between two turns: the cache of the turn before.

The next turn's prompt begins with what was said so far, whose keys and values already lie in the cache;
only what is new has to be read. This room knows which rows of a cache belong to which tokens, and how much
all conversations together may keep. It knows nothing of messages or text.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from space_core.cache import BlockCache
from space_core.model import SpaceModel
from space_core.trace import longest_common_prefix

SHELF_BYTES = 2**30


class Memory:
    """One decoder's cache between the turns of one conversation, on one model.

    A run takes the cache when it begins and gives it back when it is over, whichever way it ends. A run
    that begins meanwhile finds nothing and reads its whole prompt, so two can never write into one cache.

    Attributes:
        eos_ids: ids that end a turn beside those that end a text.
        kept: tokens of the last run's prompt that it did not have to read.
    """

    def __init__(self, model: SpaceModel, eos_ids: Iterable[int] = ()) -> None:
        self.model, self.eos_ids = model, frozenset(eos_ids)
        self.kept = 0
        self._cache: BlockCache | None = None
        self._ids: list[int] = []

    def take(self, model: SpaceModel, prompt_ids: Sequence[int]) -> BlockCache:
        """A cache that holds the longest beginning of the prompt that is known; its last token never is,
        since a call needs a row. Empty for another model."""
        cache, self._cache = self._cache, None
        self.kept = 0
        if cache is None or model is not self.model:
            return BlockCache()
        known = min(longest_common_prefix(self._ids, prompt_ids), len(prompt_ids) - 1)
        # A call that failed half-way left rows in some layers only.
        self.kept = min(known, *(layer.length for layer in cache.layers))
        cache.commit(self.kept)
        return cache

    def give(self, cache: BlockCache, ids: list[int]) -> None:
        """The cache back; `ids` are the tokens of its first rows, or of more than there are."""
        self._cache, self._ids = cache, ids

    @property
    def bytes(self) -> int:
        """Of the cache's tensors."""
        layers = [] if self._cache is None else self._cache.layers
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)


class Shelf:
    """The memories of several conversations, of all lanes each; the ones not used for longest go first."""

    def __init__(self, most: int = SHELF_BYTES) -> None:
        self.most = most
        self._kept: OrderedDict[str, dict[str, Memory]] = OrderedDict()
        self._lock = threading.Lock()

    def lanes(self, conversation: str, names: Iterable[str], make: Callable[[], Memory]) -> dict[str, Memory]:
        """A memory for each lane, those of the turn before where they are still there."""
        with self._lock:
            found = self._kept.pop(conversation, {})
            fresh = make()
            old = {name: memory for name, memory in found.items() if memory.model is fresh.model}
            self._kept[conversation] = {name: old.get(name) or make() for name in names}
            return self._kept[conversation]

    def known(self, conversation: str, lane: str) -> int:
        """Tokens of the last prompt that a lane did not have to read."""
        with self._lock:
            memory = self._kept.get(conversation, {}).get(lane)
            return memory.kept if memory else 0

    def tidy(self) -> None:
        """Forget conversations until the others are small enough; what is forgotten is read again."""
        with self._lock:
            sizes = {name: sum(m.bytes for m in lanes.values()) for name, lanes in self._kept.items()}
            while self._kept and sum(sizes[name] for name in self._kept) > self.most:
                self._kept.popitem(last=False)

    def forget(self, conversation: str) -> None:
        with self._lock:
            self._kept.pop(conversation, None)

    def keep(self, models: Sequence[SpaceModel]) -> None:
        """Forget conversations with any model but these."""
        with self._lock:
            gone = [
                name
                for name, lanes in self._kept.items()
                if any(all(memory.model is not model for model in models) for memory in lanes.values())
            ]
            for name in gone:
                del self._kept[name]

    def __len__(self) -> int:
        return len(self._kept)
