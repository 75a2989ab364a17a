"""Steady calls as CUDA graphs: recorded once for each shape, then replayed by one launch.

A call of a small model is a few hundred kernels of a few microseconds, and launching them from Python takes
longer than they do. A recorded call is launched whole. What it needs for that:

- Fixed shapes. Real rows are padded to a power of two, mask rows to a multiple of 8, each behind its own
  kind, so that the adapter starts at the same row always. A padding row sees the cache and itself, and no row
  of the call sees it.
- Fixed places. The text's cache moves into storage of a fixed size (`cache.FixedCache`), and every input is
  copied into a tensor that stays. A cache that outgrows its storage moves into one of twice the size.
- Nothing but data may change from call to call: the number of committed tokens too is a tensor, from which
  positions, slots to write and the attention mask over the whole storage are computed within the recording.
  Slots behind the committed rows hold what earlier calls left there (rejected drafts, masks, padding): the
  mask hides those that this call does not write itself.

Reading a prompt, models that `obstacle` names, those that fail the trial, and all calls after one that could
not be recorded take the plain path. All lanes call through here, plain decoding as well. Off unless the
environment says SPACE_GRAPHS=1: **this has never been run on a GPU**. Elsewhere than on CUDA the same
calls on the same tensors are made anew each time: nothing is gained by that, but it can be tested.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from space_core.cache import BlockCache, FixedCache, additive
from space_core.layout import Layout
from space_core.placement import devices, is_spread

if TYPE_CHECKING:
    from space_core.model import SpaceModel

LEAST_SLOTS = 256
MASK_STEP = 8
MOST_ROWS = 128
"""Rows above which a call is long enough to hide its launches."""
LANES = 2
"""Storages of one size, each with recordings of its own: a race has two lanes. A third text moves one out."""
WARM_UP = 2
MOST_LAYOUTS = 256
TRIAL_POSITIONS = 12
ERRORS = (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError)

_log = logging.getLogger(__name__)


def wanted(device: torch.device, environment: Mapping[str, str]) -> bool:
    """Whether calls on this device are to be recorded: on CUDA, by SPACE_GRAPHS=1."""
    return device.type == "cuda" and environment.get("SPACE_GRAPHS") == "1"


def obstacle(model: SpaceModel) -> str | None:
    """Why the calls of a model cannot be recorded, as far as looking at it tells; None: nothing known."""
    lm = model.lm
    text = lm.config.get_text_config(decoder=True)
    if model.context < TRIAL_POSITIONS:
        return "its context is too short to try"
    if is_spread(lm) or len(devices(lm)) > 1:
        return "its layers lie on several devices"
    if getattr(lm.config, "_attn_implementation", None) not in ("sdpa", "eager"):
        return "its attention takes no mask of numbers"
    windows = [getattr(text, "attention_chunk_size", None)]
    windows += [getattr(text, "sliding_window", None)] if getattr(text, "use_sliding_window", True) else []
    if any(windows) or set(getattr(text, "layer_types", None) or ()) - {"full_attention"}:
        return "it has layers that do not see the whole text"
    ropes = getattr(text, "rope_parameters", None) or {}
    for rope in (ropes, *ropes.values()):
        if isinstance(rope, dict) and rope.get("rope_type") in ("dynamic", "longrope"):
            return "its rotations depend on the length of the text"
    if any("experts" in name and isinstance(value, int) and value for name, value in vars(text).items()):
        return "which of its experts run depends on the text"
    for module in lm.modules():
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return f"something hangs on its {type(module).__name__}"
    return None


class Graphs:
    """The recorded calls of one model.

    Attributes:
        refused: why this model's calls take the plain path, None as long as they need not.
        spent: seconds that recording and the trial took; `SpaceModel.clock` leaves them out, for every lane.
    """

    def __init__(self) -> None:
        self.refused: str | None = None
        self.spent = 0.0
        self._tried, self._trying = False, threading.RLock()
        self._recorder: Recorder | None = None
        self._masks: tuple[Any, Any] = None, None
        self._weights: list[int] = []
        self._stores: list[_Store] = []  # those used last are last
        self._padded: dict[Layout, tuple[Tensor, Tensor, Tensor]] = {}

    def rows(
        self, model: SpaceModel, layout: Layout, real_ids: Sequence[int], cache: BlockCache
    ) -> Tensor | None:
        """Run a call, recorded when its shape is new.

        Args:
            layout, real_ids, cache: as `SpaceModel.call` takes them. The cache grows by the real rows; masks
                leave nothing in it.

        Returns:
            What `SpaceModel._rows` does, or None where that must run the call: the cache is as it was.
        """
        steady = layout.n_real == 1 + layout.n_drafts and layout.rows <= MOST_ROWS and cache.length
        if not steady or self.refused:
            return None
        with self._trying:
            if not self._tried:
                self._tried = True
                start = model.clock()
                try:
                    reason = obstacle(model) or self._trial(model)
                except ERRORS as error:
                    reason = _told(error)
                self.spent += model.clock() - start
                if reason:
                    self._refuse(reason)
        with model.lock:
            try:
                return None if self.refused else self._run(model, layout, real_ids, cache)
            except ERRORS as error:
                self._refuse(_told(error))
                return None

    def _run(self, model: SpaceModel, layout: Layout, real_ids: Sequence[int], cache: BlockCache) -> Tensor:
        n, real, masks, past = layout.n_real, *padded(layout), cache.length
        store = self._home(model, cache, past + real + masks)
        call = store.calls.get((real, masks))
        if call is None:
            call = store.calls[real, masks] = _Call(model, store.cache, real, masks)
        call.feed(layout, self._inputs(model, layout), past, real_ids)
        if call.replay is None:
            start = model.clock()
            if self._recorder is None:
                self._recorder = Recorder(model.device)
            call.replay = self._recorder.record(partial(call.forward, model))
            self.spent += model.clock() - start
        found = call.replay()
        # A copy, since the next replay writes there.
        rows = torch.cat([found[:n], found[real : real + layout.n_masks]])
        for layer in cache.layers:
            layer.length = past + n
        return rows

    def _refuse(self, reason: str) -> None:
        if self.refused is None:
            self.refused = reason
            _log.warning("calls are not recorded, but launched one by one: %s", reason)
        self._stores, self._padded = [], {}

    def _home(self, model: SpaceModel, cache: BlockCache, slots: int) -> _Store:
        """The storage in which a cache lies, or moves now."""
        masks = model.masks.adapter, model.masks.embeddings
        if masks[0] is not self._masks[0] or masks[1] is not self._masks[1]:
            self._masks, self._stores, self._padded = masks, [], {}
        for store in self._stores:
            if store.cache.size >= slots and store.cache.holds(cache):
                self._stores.remove(store)
                self._stores.append(store)
                return store
        # A text that is new here: what takes too long for each call is looked at now.
        reason = obstacle(model)
        if reason:
            raise ValueError(reason)
        weights = [p.data_ptr() for part in (model.lm, masks[0]) if part for p in part.parameters()]
        if weights != self._weights:  # the model was moved or cast meanwhile
            self._weights, self._stores, self._padded = weights, [], {}
        size = max(LEAST_SLOTS, _power_of_two(slots))
        fitting = [store for store in self._stores if store.cache.size == size]
        found = next((store for store in fitting if store.cache.free), None)
        if found is None and len(fitting) < LANES:
            found = _Store(FixedCache(cache, size))
        elif found is None:
            found = fitting[0]
        self._stores = [*(store for store in self._stores if store is not found), found]
        found.cache.take(cache)
        return found

    def _inputs(self, model: SpaceModel, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
        found = self._padded.get(layout)
        if found is None:
            if len(self._padded) >= MOST_LAYOUTS:
                self._padded = {}
            found = self._padded[layout] = inputs(model, layout)
        return found

    def _trial(self, model: SpaceModel) -> str | None:
        """What recorded calls say on a few rows must be what plain ones do, each recording used twice."""
        plain, recorded = BlockCache(), BlockCache()
        ids = [(7 * i + 3) % model.vocabulary for i in range(TRIAL_POSITIONS)]
        for cache in (plain, recorded):
            model._rows(model._shape(Layout.plain(4), 0), ids[:4], cache)
        layouts = (Layout.steady((2, 1)), Layout.steady((0, 3)), Layout.plain(1), Layout.plain(1))
        for past, layout in enumerate(layouts, start=4):
            fed = ids[past : past + layout.n_real]
            ours = self.rows(model, layout, fed, recorded)
            if ours is None:
                return self.refused
            theirs = model._rows(model._shape(layout, past), fed, plain)
            plain.commit(past + 1)
            recorded.commit(past + 1)
            wide = torch.float32 if ours.device.type == "mps" else torch.float64
            gap = float((ours.to(wide) - theirs.to(wide)).abs().max())
            spread = float(theirs.abs().max()) + 1e-6
            if not gap <= spread * min(max(2e3 * torch.finfo(model.dtype).eps, 1e-9), 0.05):  # NaN is not
                return f"recorded calls differ from plain ones by {gap:.2g}"
        return None


@dataclass(slots=True)
class _Store:
    """Storage for one text at a time, and the calls recorded on it by their padded rows."""

    cache: FixedCache
    calls: dict[tuple[int, int], _Call] = field(default_factory=dict)


class _Call:
    """A call of one shape: the tensors that stay, what is computed from them, and its recording.

    Args:
        cache: the storage it sees and writes.
        real, masks: its rows, padding included.
    """

    def __init__(self, model: SpaceModel, cache: FixedCache, real: int, masks: int) -> None:
        self.cache, self.real, self.masks = cache, real, masks
        self.replay: Callable[[], Tensor] | None = None
        self._layout: Layout | None = None
        rows, device = real + masks, model.device
        hidden = model._embed.weight.shape[1]
        self.fed = torch.zeros(1 + real, dtype=torch.long, device=device)  # committed tokens, then ids
        self.offsets = torch.zeros(rows, dtype=torch.long, device=device)
        self.embeddings = torch.zeros(masks, hidden, dtype=model.dtype, device=device)
        self.rule = torch.zeros(rows, rows + 2, dtype=model.dtype, device=device)
        self.order = torch.arange(rows, device=device)
        self.columns = torch.arange(cache.size, device=device)

    def feed(
        self, layout: Layout, given: tuple[Tensor, Tensor, Tensor], past: int, ids: Sequence[int]
    ) -> None:
        """Copy a call's inputs to where the recording reads them."""
        if layout != self._layout:
            for mine, theirs in zip((self.offsets, self.embeddings, self.rule), given, strict=True):
                mine.copy_(theirs)
            self._layout = layout
        self.fed.copy_(torch.tensor([past, *ids, *[0] * (self.real - len(ids))]))

    def forward(self, model: SpaceModel) -> Tensor:
        """What is recorded; the model's lock must be held. [rows, hidden], or logits without a plain head"""
        past, ids = self.fed[:1], self.fed[1:]
        self.cache.place(past + self.order)
        # Each slot's column of the rule: the first for committed ones, the last for those behind the call's.
        column = (self.columns - past + 1).clamp(0, len(self.order) + 1)
        given: dict[str, Any] = {
            "attention_mask": self.rule.index_select(1, column)[None, None],
            "position_ids": (self.offsets + past)[None],
            model._cache_argument: self.cache,
        }
        if self.masks:
            given["inputs_embeds"] = torch.cat([model.embed(ids), self.embeddings])[None]
        else:
            given["input_ids"] = ids[None]
        adapter = model.masks.adapter
        with adapter.on(self.real) if adapter and self.masks else nullcontext():
            if model.has_plain_head:
                rows: Tensor = model._base(**given, use_cache=True).last_hidden_state[0]
            else:
                rows = model.lm(**given, use_cache=True).logits[0]
        return rows


class Recorder:
    """Records functions of tensors that stay, on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream: Any = None
        self._pool: Any = None

    def record(self, function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """A function that does what this one does to the same tensors, and returns the same tensor each time.

        Where there are no CUDA graphs it is the function itself, and the tensor a new one.

        Raises:
            RuntimeError: where the function waits for the device, or else cannot be recorded.
        """
        if self.device.type != "cuda":
            function()
            return function
        with torch.cuda.device(self.device):
            if self._stream is None:
                # One pool for all recordings: no two run at once, and none reads what another left.
                self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
                self._pool = torch.cuda.graph_pool_handle()
            self._stream.wait_stream(torch.cuda.current_stream())
            # Libraries make themselves ready beforehand, which must not be recorded.
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UP):
                    function()
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads may go on using the device meanwhile.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                found = function()

        def replay() -> Tensor:
            graph.replay()
            return found

        return replay


def padded(layout: Layout) -> tuple[int, int]:
    """Real rows and mask rows of a steady call with padding."""
    return _power_of_two(layout.n_real), -(-layout.n_masks // MASK_STEP) * MASK_STEP


def inputs(model: SpaceModel, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """What a layout gives its padded call.

    Returns:
        Positions relative to the committed tokens, int64 [rows]; embeddings of the mask rows, float
        [masks, hidden]; and who sees whom, additive float [rows, 1 + rows + 1]: the committed rows, which
        are all seen, the call's own, and all slots behind, which are not.
    """
    real, masks = padded(layout)
    rows = real + masks
    at = torch.cat([torch.arange(layout.n_real), real + torch.arange(layout.n_masks)])
    offsets = torch.zeros(rows, dtype=torch.long)
    offsets[at] = layout.offsets()
    own = torch.eye(rows, dtype=torch.bool)  # so that a padding row sees itself
    own[at[:, None], at] = layout.sees()
    sees = torch.cat([own.new_ones(rows, 1), own, own.new_zeros(rows, 1)], dim=1)
    embeddings = model._mask_embeddings(layout) if masks else torch.empty(0, model._embed.weight.shape[1])
    padding = embeddings.new_zeros(masks - len(embeddings), embeddings.shape[1])
    device = model.device
    return (
        offsets.to(device),
        torch.cat([embeddings, padding]).to(device),
        additive(sees, model.dtype).to(device),
    )


def _told(error: Exception) -> str:
    """An error's first line."""
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()
