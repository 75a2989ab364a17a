"""One forward of a `Layout` on any causal LM of transformers with full attention.

This room puts tokens and masks into rows, calls the model once and gives back the logits of the
judged rows. It knows nothing of drafts being right or wrong, of budgets or of text.
"""

from __future__ import annotations

import inspect
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from space_core.adapter import GatedAdapter
from space_core.cache import BlockCache, additive, cache_argument
from space_core.copies import CopyBias
from space_core.errors import PromptError, UnsupportedModelError
from space_core.graphs import Graphs, wanted
from space_core.layout import Layout
from space_core.lookup import Follow
from space_core.placement import devices, is_spread, runs_on, weights_here
from space_core.products import Products
from space_core.sampler import SamplerHead

MASK_BLOCK = 512
"""Cache slots by which a call's attention mask grows."""
LONG_CALL = 256
"""Rows of a call above which nothing is kept for the next one of its shape."""
GROUPED = "TRANSFORMERS_SDPA_FORCE_GQA"
"""transformers' switch for attention that shares keys among queries without copying them. With a mask it is
off, for the sake of GPUs; on a CPU, copying took a third of a call's attention (6 rows, 300 tokens)."""
NOTHING = nullcontext()
SHAPE_BYTES = 64 * 2**20
"""Attention masks kept per model; the oldest go first."""


@dataclass(slots=True)
class Masks:
    """What stands in a mask row.

    Attributes:
        k: masks a group was trained with; more may be asked for.
        method: "paper" ([M] is a vocabulary id), "gated" (own embeddings and adapter) or
            "untrained".
        token_id: vocabulary id of [M], for "paper".
        embeddings: one row per slot, for the others. [slots, hidden]
        adapter: low-rank update of the mask rows, or None.
        sampler: tells a mask's guess the token in front of it, or None.
        copies: tells it what followed such tokens in the text so far, or None.
    """

    k: int
    method: str
    token_id: int | None = None
    embeddings: Tensor | None = None
    adapter: GatedAdapter | None = None
    sampler: SamplerHead | None = None
    copies: CopyBias | None = None

    @property
    def told(self) -> bool:
        """Whether a guess is told anything of the tokens in front of it."""
        return self.sampler is not None or self.copies is not None


@dataclass(frozen=True, slots=True)
class _Shape:
    """A layout on the device.

    Attributes:
        room: cache length up to which `sees` reaches.
        offsets: positions relative to the first real row. int64 [1, rows].
        masks: embeddings of the mask rows, or None without any. [n_masks, hidden].
        sees: additive attention mask, or None where none is needed. float [1, 1, rows, room + rows].
        drafting: for each number of accepted drafts the judged rows to draft from, padded. int64
            [stops, width].
    """

    layout: Layout
    room: int
    offsets: Tensor
    masks: Tensor | None
    sees: Tensor | None
    drafting: Tensor

    @property
    def bytes(self) -> int:
        return 0 if self.sees is None else self.sees.nbytes


@dataclass(frozen=True, slots=True)
class Judged:
    """What a call says.

    Attributes:
        real: logits of the newest token and the drafts. float [1 + drafts, V], [M] at -inf.
    """

    real: Tensor
    _rows: Tensor
    _drafting: Tensor
    _model: SpaceModel

    @property
    def told(self) -> bool:
        """Whether a guess is to be told the tokens in front of it."""
        return self._model.masks.told

    @torch.inference_mode()
    def masks(self, accepted: Tensor) -> Tensor:
        """What the model's head is to read of the masks that guess behind so many accepted drafts.

        All stops have one width, so that no device has to tell the host which one it is: of the rows
        only the first `len(layout.drafting_rows(accepted))` mean anything.

        Args:
            accepted: int64 [].

        Returns:
            float [width, hidden].
        """
        if not self._drafting.numel():
            return self._rows[:0]
        # index_select, since indexing with a tensor of no dimension would fetch it to the host.
        rows = self._drafting.index_select(0, accepted[None])[0]
        return self._rows.index_select(0, rows)

    def rows(self, rows: Sequence[int]) -> Tensor:
        """The same of judged rows by their numbers, as the layout counts them. [n, hidden]"""
        return self._rows[list(rows)]

    @torch.inference_mode()
    def guesses(self, masks: Tensor) -> Tensor:
        """Their logits, told nothing. [n, hidden] → float [n, V], [M] at -inf"""
        return self._model.logits(masks)

    @torch.inference_mode()
    def chain(
        self,
        masks: Tensor,
        own: Tensor,
        choose: Callable[[Tensor], Tensor],
        end: Callable[[Tensor], bool] | None = None,
        follow: Follow | None = None,
        untold: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Guesses one after the other, each told the tokens in front of it.

        Args:
            masks: of one group. [n, hidden]
            own: the token in front of the first. int64 []
            choose: a token from logits. float [1, V] → int64 [1]
            end: whether no further guess is wanted behind the one from these logits; None: never.
            follow: what followed such tokens in the text so far; None: nothing is copied.
            untold: what `guesses` says of the masks, if it is known already.

        Returns:
            The tokens, int64 [up to n], and the logits that they were chosen from, float [up to n, V].
        """
        sampler, copies = self._model.masks.sampler, self._model.masks.copies
        step = None if sampler is None else sampler.steps(masks)
        if step is None and untold is None:
            untold = self._model.logits(masks)
        before = own[None]
        tokens, logits = [], []
        for row in range(len(masks)):
            here = slice(row, row + 1)
            if step is not None:
                logits.append(self._model.logits(step(here, self._model.embed(before))))
            elif untold is not None:
                logits.append(untold[here].clone())  # copies are added to it
            if follow is not None and copies is not None:
                copies.lean(logits[-1], row, *follow(before))
            before = choose(logits[-1])
            tokens.append(before)
            if end is not None and end(logits[-1]):
                break
        return torch.cat(tokens), torch.cat(logits)


class _Grouping:
    """Attention that shares keys, within the `with`, unless the environment says so or otherwise anyway."""

    def __init__(self) -> None:
        self._set: list[bool] = []

    def __enter__(self) -> None:
        self._set.append(GROUPED not in os.environ)
        if self._set[-1]:
            os.environ[GROUPED] = "1"

    def __exit__(self, *error: object) -> None:
        if self._set.pop():
            del os.environ[GROUPED]


GROUPING = _Grouping()


class SpaceModel:
    """A causal LM with its masks, on one device or spread over several. Make one with `space_core.load`.

    Layers that lie elsewhere fetch what they need; tokens, masks, positions and logits are on `device`.

    Attributes:
        lm: the transformers model, which plain decoding runs as it is.
        tokenizer: its tokenizer; None for a model that is fed ids only.
        masks: what mask rows hold.
        name: for people: a hub id or the folder's name.
        context: most tokens that prompt and output may have together.
        eos_ids: ids that end a text; may be empty.
    """

    def __init__(
        self,
        lm: Any,
        tokenizer: Any = None,
        masks: Masks | None = None,
        name: str = "model",
        eos_ids: Sequence[int] | None = None,
    ) -> None:
        self.lm = lm.eval()
        self.tokenizer = tokenizer
        self.masks = masks or untrained_masks(lm)
        self.name = name
        self.context = context_window(lm.config)
        self.eos_ids = frozenset(_eos_ids(lm) if eos_ids is None else eos_ids)
        self.lock = threading.Lock()
        """Held during each call: the adapter is switched on for one call at a time."""
        self._embed: Any = lm.get_input_embeddings()
        self._shapes: dict[tuple[Any, ...], _Shape] = {}
        self.costs: dict[Any, Any] = {}
        """What calls were seen to cost, greedy or not: `cost.Costs`, filled by `decoders.py`; and for several
        sequences at once, by `batches.py`."""
        self._devices = devices(lm) if is_spread(lm) else None
        base, head = split_head(lm)
        self._base, self._head = base, self._at_home(head)
        self._cache_argument = cache_argument(lm)
        self.products: Products | None = None
        """How linear layers multiply on a CPU; None: as torch does."""
        self._waits = self.device.type != "cpu" or self._devices is not None
        """Whether a clock has to wait for a device."""
        self.graphs: Graphs | None = None
        """Recorded calls, of which all lanes make use; None: each call is launched anew."""

    def pack(self) -> None:
        """Make calls fast in the ways that this device has. `load` does it.

        On a CPU the weights are laid out a second time where that is faster (`products.py`). On CUDA steady
        calls are recorded and replayed (`graphs.py`), if the environment says SPACE_GRAPHS=1.
        """
        self.graphs = Graphs() if wanted(self.device, os.environ) else None
        self.products = Products(self.lm)
        if self._head is not None:
            self._head = self._at_home(self.products.head(self.lm.get_output_embeddings()))

    def _at_home(self, head: Any) -> Any:
        """The head of a spread model, its logits where the tokens are."""
        if head is None or self._devices is None:
            return head
        return lambda rows: self._home(head(rows))

    def _home(self, rows: Tensor) -> Tensor:
        return rows if self._devices is None else rows.to(self.device)

    @property
    def device(self) -> torch.device:
        """Where tokens go in; of a spread model the device that embeds them."""
        if self._devices is not None:
            return runs_on(self._embed)
        device: torch.device = self._embed.weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self._embed.weight.dtype
        return dtype

    @property
    def dtype_name(self) -> str:
        """Of the weights, as `load` takes it: "float32"."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def vocabulary(self) -> int:
        """Ids that can be embedded."""
        return int(self._embed.weight.shape[0])

    @property
    def has_plain_head(self) -> bool:
        """Whether logits are nothing but the head's product with hidden states."""
        return self._head is not None

    @property
    def k(self) -> int:
        """Masks a group was trained with."""
        return self.masks.k

    @property
    def mask_token_id(self) -> int | None:
        """Vocabulary id of [M], which is never drafted nor emitted; None where [M] has none."""
        return self.masks.token_id

    @torch.inference_mode()
    def call(self, layout: Layout, real_ids: Sequence[int], cache: BlockCache) -> Judged:
        """Run one call and append its rows to the cache.

        Args:
            layout: the rows of the call.
            real_ids: tokens of its real rows, layout.n_real of them.
            cache: what was committed so far; grows by layout.rows, of a recorded call by the real ones.

        Returns:
            The real rows' logits; those of a mask group are computed when they are asked for, since
            only one group's are needed. A long prompt is fed ahead of its mask group: one call in what
            it does, two forwards in how.
        """
        if not cache.length and layout.n_masks and layout.n_real > LONG_CALL:
            # A long prompt goes ahead without masks, on the path that needs no matrix of who sees whom.
            self.call(Layout.plain(layout.n_real - 1), real_ids[:-1], cache)
            layout, real_ids = Layout.first(1, layout.n_masks), real_ids[-1:]
        shape = self._shape(layout, cache.length)
        rows = None if self.graphs is None else self.graphs.rows(self, layout, real_ids, cache)
        if rows is None:
            rows = self._rows(shape, real_ids, cache)
        return Judged(self.logits(rows[: 1 + layout.n_drafts]), rows, shape.drafting, self)

    def _rows(self, shape: _Shape, real_ids: Sequence[int], cache: BlockCache) -> Tensor:
        """What the head is to read of the judged rows. [n_judged, hidden], or logits without a plain head"""
        n_judged = shape.layout.n_judged
        if self._head is None:
            return self._home(self._run(self.lm, shape, real_ids, cache, logits_to_keep=n_judged).logits[0])
        return self._home(self._run(self._base, shape, real_ids, cache).last_hidden_state[0][-n_judged:])

    def logits(self, rows: Tensor) -> Tensor:
        """What `call` left for the head, as logits. [n, hidden] → float [n, V], [M] at -inf"""
        return _without(rows if self._head is None else self._head(rows), self.mask_token_id)

    def embed(self, tokens: Tensor) -> Tensor:
        """Input embeddings. int64 [n] → float [n, hidden]"""
        embeddings: Tensor = self._embed(tokens)
        return embeddings

    @torch.inference_mode()
    def forward(self, layout: Layout, real_ids: Sequence[int], cache: BlockCache) -> Tensor:
        """The logits of all judged rows at once, by the model's own head: for tests and inspection.

        Arguments as in `call`; returns float [layout.n_judged, vocabulary], [M] at -inf.
        """
        shape = self._shape(layout, cache.length)
        logits: Tensor = self._run(self.lm, shape, real_ids, cache, logits_to_keep=layout.n_judged).logits[0]
        return _without(self._home(logits), self.mask_token_id)

    def _run(
        self, part: Any, shape: _Shape, real_ids: Sequence[int], cache: BlockCache, **options: Any
    ) -> Any:
        layout, past = shape.layout, cache.length
        if not past:
            self.refresh()
        inputs: dict[str, Any] = {}
        if shape.masks is None:
            inputs["input_ids"] = torch.tensor([list(real_ids)], device=self.device)
        else:
            inputs["inputs_embeds"] = self._embedded(real_ids, shape.masks)
        if shape.sees is not None:
            inputs["attention_mask"] = shape.sees[..., shape.room - past :]
        adapter = self.masks.adapter
        gate = adapter.on(layout.n_real) if adapter and layout.n_masks else NOTHING
        products = self.products.on() if self.products else NOTHING
        grouped = GROUPING if shape.sees is not None and self.device.type == "cpu" else NOTHING
        with self.lock, products, grouped, gate:
            inputs[self._cache_argument] = cache
            return part(**inputs, position_ids=shape.offsets + past, use_cache=True, **options)

    def refresh(self) -> None:
        """Before each text: weights that were changed since they were laid out are multiplied as they are."""
        self._waits = self.device.type != "cpu" or self._devices is not None
        if self.products:
            self.products.refresh()

    @contextmanager
    def fast(self) -> Iterator[None]:
        """Within it whoever runs `lm` multiplies and attends as the decoders do. Hold the lock."""
        products = self.products.on() if self.products else NOTHING
        with products, GROUPING if self.device.type == "cpu" else NOTHING:
            yield

    def row_embeddings(self, layout: Layout, real_ids: Sequence[int]) -> Tensor:
        """Input embeddings of the call's rows. [1, rows, hidden]"""
        return self._embedded(real_ids, self._mask_embeddings(layout))

    def _embedded(self, real_ids: Sequence[int], masks: Tensor) -> Tensor:
        return torch.cat([self._embed(torch.tensor(list(real_ids), device=self.device)), masks])[None]

    def _mask_embeddings(self, layout: Layout) -> Tensor:
        """Embeddings of the mask rows; slots beyond the trained ones take the last one. [n_masks, hidden]"""
        slots, embeddings = layout.slots().to(self.device), self.masks.embeddings
        if embeddings is not None:
            return embeddings[slots.clamp_(max=len(embeddings) - 1)]
        masks: Tensor = self._embed(torch.full_like(slots, self.masks.token_id or 0))
        return masks

    def _shape(self, layout: Layout, past: int) -> _Shape:
        """What a layout needs on the device, built once for it and a block of cache lengths."""
        room = -(-past // MASK_BLOCK) * MASK_BLOCK
        if layout.rows > LONG_CALL:  # a prompt's shape is used once
            return self._new_shape(layout, room)
        # A model that was moved or cast meanwhile, or got other masks, needs other tensors.
        key = (layout, room, self.dtype, self.device, id(self.masks.embeddings))
        with self.lock:
            shape = self._shapes.get(key)
            if shape is None:
                shape = self._shapes[key] = self._new_shape(layout, room)
                while len(self._shapes) > 1 and sum(s.bytes for s in self._shapes.values()) > SHAPE_BYTES:
                    del self._shapes[next(iter(self._shapes))]
        return shape

    def _new_shape(self, layout: Layout, room: int) -> _Shape:
        sees = None
        # A single row sees everything, and without a cache real rows are causal: then no mask at all
        # is the fastest path of every implementation.
        if layout.n_masks or (room and layout.rows > 1):
            rule = additive(layout.sees(), self.dtype)
            # All of the cache is seen: zeros to the left of the rule. A call takes the last `past` of them.
            sees = torch.cat([rule.new_zeros(layout.rows, room), rule], dim=1)[None, None].to(self.device)
        groups = [layout.drafting_rows(stop) for stop in range(len(layout.anchors))]
        width = max(map(len, groups), default=0)
        drafting = torch.tensor([[*rows, *[0] * (width - len(rows))] for rows in groups], dtype=torch.long)
        return _Shape(
            layout,
            room,
            layout.offsets()[None].to(self.device),
            self._mask_embeddings(layout) if layout.n_masks else None,
            sees,
            drafting.to(self.device),
        )

    def synchronize(self) -> None:
        """Wait until the device has done all its work, so that a clock tells the truth."""
        for device in self._devices or (self.device,):
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            elif device.type == "mps":
                torch.mps.synchronize()

    def clock(self) -> float:
        """Seconds, with the device's work done; those of recording a call, once for each shape, left out."""
        if self._waits:
            self.synchronize()
        return time.perf_counter() - (0.0 if self.graphs is None else self.graphs.spent)

    def encode(self, text: str) -> list[int]:
        """Prompt text to ids; special tokens spelled out in the text stay plain text.

        Raises:
            PromptError: for a prompt that is empty or leaves no room in the context.
        """
        if self.tokenizer is None:
            raise PromptError("this model has no tokenizer: give it token ids")
        ids = [int(i) for i in self.tokenizer(text, split_special_tokens=True, verbose=False)["input_ids"]]
        self.check_prompt(ids)
        return ids

    def check_prompt(self, prompt_ids: Sequence[int]) -> None:
        """Raise PromptError unless at least one token can follow the prompt."""
        if not prompt_ids:
            raise PromptError("the prompt is empty: write a few words for the model to continue")
        if len(prompt_ids) >= self.context:
            raise PromptError(
                f"the prompt has {len(prompt_ids)} tokens, but the model's context holds "
                f"{self.context}: shorten the prompt"
            )
        size = self.vocabulary
        if not all(0 <= token < size for token in prompt_ids):
            raise PromptError(f"the prompt holds an id outside the vocabulary of {size}")

    def decode(self, ids: Sequence[int]) -> str:
        """Ids to text, special tokens shown."""
        if self.tokenizer is None:
            return ""
        return str(
            self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )


def untrained_masks(lm: Any, k: int = 5) -> Masks:
    """Masks nobody trained: the mean of the vocabulary. SPACE stays lossless, at about 1 a call."""
    embed = lm.get_input_embeddings()
    with torch.no_grad(), weights_here(embed):
        mean = embed.weight.float().mean(0, keepdim=True)
    return Masks(k, "untrained", embeddings=mean.to(device=runs_on(embed), dtype=embed.weight.dtype))


def context_window(config: Any) -> int:
    """Tokens the model can attend to with full attention.

    A sliding window counts as the context: within it, sliding equals full attention.
    """
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    limits = [getattr(text, name, None) for name in ("max_position_embeddings", "n_positions")]
    if getattr(text, "use_sliding_window", True):
        limits.append(getattr(text, "sliding_window", None))
    limits += [getattr(text, "attention_chunk_size", None)]
    ropes = getattr(text, "rope_parameters", None) or {}
    for rope in (ropes, *ropes.values()):
        # Long-range factors are chosen for a whole call by its farthest row, so that a draft would move
        # the rows before it.
        if isinstance(rope, dict) and rope.get("rope_type") == "longrope":
            limits.append(rope.get("original_max_position_embeddings"))
            limits.append(getattr(text, "original_max_position_embeddings", None))
    return min([int(limit) for limit in limits if limit] or [2048])


def _eos_ids(lm: Any) -> set[int]:
    """All ids that end a text, as the generation config or else the config names them."""
    for config in (getattr(lm, "generation_config", None), lm.config):
        eos = getattr(config, "eos_token_id", None)
        if eos is not None:
            return {i for i in (eos if isinstance(eos, list | tuple) else [eos]) if isinstance(i, int)}
    return set()


@torch.inference_mode()
def probe(model: SpaceModel) -> None:
    """Try the three things SPACE asks of a model, on a few rows, before anybody relies on them.

    Explicit positions and masks must be obeyed (a call with drafts and mask groups gives the real
    rows plain decoding's logits), and the cache must roll back (cropping it and going on gives what
    was there before).

    Raises:
        UnsupportedModelError: with a sentence, for a model that fails.
    """
    config = model.lm.config
    kind = type(model.lm).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{kind} is an encoder-decoder: SPACE needs a decoder-only causal LM")
    if getattr(model.lm, "_is_stateful", False):
        raise UnsupportedModelError(
            f"{kind} keeps a recurrent state that cannot be rolled back when a draft is rejected: "
            "SPACE needs full attention"
        )
    if "position_ids" not in inspect.signature(model.lm.forward).parameters:
        raise UnsupportedModelError(
            f"{kind} takes no explicit positions, but counts the rows it is fed: SPACE's mask rows would "
            "stand elsewhere than they should"
        )
    size = model.vocabulary
    ids = [(7 * i + 3) % size for i in range(6)]
    wrong_draft = (ids[5] + 1) % size
    try:
        five = model.forward(Layout.plain(5), ids[:5], BlockCache())[-1]
        six = model.forward(Layout.plain(6), ids, BlockCache())[-1]
        astray = model.forward(Layout.plain(6), [*ids[:5], wrong_draft], BlockCache())[-1]
        cache = BlockCache()
        model.forward(Layout.first(4, 2), ids[:4], cache)
        cache.commit(4)
        with_masks = model.forward(Layout.steady((2, 1)), [ids[4], wrong_draft], cache)
        cache.commit(5)
        rolled_back = model.forward(Layout.steady((2,)), ids[5:], cache)[0]
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, NotImplementedError) as error:
        text = str(error).strip().splitlines()
        raise UnsupportedModelError(
            f"{kind} does not take explicit masks, positions and a cache that can be rolled back "
            f"({text[0][:160] if text else type(error).__name__})"
        ) from None
    known = torch.arange(size, device=six.device) != (
        -1 if model.mask_token_id is None else model.mask_token_id
    )
    wide = torch.float32 if six.device.type == "mps" else torch.float64
    spread = float(six[..., : len(known)][known].abs().max()) + 1e-6
    tolerance = spread * min(max(2e3 * torch.finfo(model.dtype).eps, 1e-9), 0.05)
    for left, right in ((with_masks[0], five), (with_masks[1], astray), (rolled_back, six)):
        gap = (left[..., : len(known)][known].to(wide) - right[..., : len(known)][known].to(wide)).abs().max()
        if not float(gap) <= tolerance:  # NaN is not
            raise UnsupportedModelError(
                f"{kind} does not obey explicit masks, positions or cache roll-back, or overflows in "
                f"{model.dtype_name} (logits differ by {float(gap):.2g}): SPACE would not be lossless on it"
            )


def _without(logits: Tensor, token_id: int | None) -> Tensor:
    """[M] made impossible, in place."""
    if token_id is not None:
        logits[..., token_id] = -torch.inf
    return logits


@torch.inference_mode()
def split_head(lm: Any) -> tuple[Any, Any]:
    """The model below its head, and the head, where logits are nothing but head(hidden).

    Some models scale or cap their logits behind the head. A trial on two tokens tells; for those
    (and any that cannot be tried) the head is None, and every judged row goes through the model's own.
    """
    base, head = getattr(lm, "base_model", lm), lm.get_output_embeddings()
    if base is lm or head is None:
        return lm, None
    ids = torch.tensor([[0, 1]], device=runs_on(lm.get_input_embeddings()))
    try:
        whole = lm(input_ids=ids, use_cache=False).logits
        parts = head(base(input_ids=ids, use_cache=False).last_hidden_state)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, NotImplementedError):
        return lm, None  # `probe` says what is wrong with it
    return (base, head) if torch.equal(whole, parts.to(whole.device)) else (lm, None)


@lru_cache(maxsize=1)
def best_device() -> str:
    """cuda or mps where there is one, else cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
