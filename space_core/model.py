"""One forward of a `Layout` on any causal LM of transformers with full attention.

This room puts tokens and masks into rows, calls the model once and gives back the logits of the
judged rows. It knows nothing of drafts being right or wrong, of budgets or of text.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from space_core.adapter import GatedAdapter
from space_core.cache import BlockCache, additive
from space_core.errors import PromptError, UnsupportedModelError
from space_core.layout import Layout

MASK_BLOCK = 512


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
    """

    k: int
    method: str
    token_id: int | None = None
    embeddings: Tensor | None = None
    adapter: GatedAdapter | None = None


class SpaceModel:
    """A causal LM with its masks, on one device. Make one with `space_core.load`.

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
        self._embed: Any = lm.get_input_embeddings()
        self._lock = threading.Lock()
        self._attention_masks: dict[tuple[Layout, int], Tensor] = {}
        if self.masks.adapter is not None:
            self.masks.adapter.attach()

    @property
    def device(self) -> torch.device:
        device: torch.device = self._embed.weight.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self._embed.weight.dtype
        return dtype

    @property
    def k(self) -> int:
        """Masks a group was trained with."""
        return self.masks.k

    @property
    def mask_token_id(self) -> int | None:
        """Vocabulary id of [M], which is never drafted nor emitted; None where [M] has none."""
        return self.masks.token_id

    @torch.inference_mode()
    def forward(self, layout: Layout, real_ids: Sequence[int], cache: BlockCache) -> Tensor:
        """Run one call and append its rows to the cache.

        Args:
            layout: the rows of the call.
            real_ids: tokens of its real rows, layout.n_real of them.
            cache: what was committed so far; grows by layout.rows.

        Returns:
            Logits of the judged rows, float [layout.n_judged, vocabulary], [M] at -inf.
        """
        past, device = cache.length, self.device
        # Rows behind the context's end only serve drafts that the budget cuts: any position will do.
        positions = (past + layout.offsets()).clamp_(max=self.context - 1).to(device)
        inputs: dict[str, Any] = {}
        if layout.n_masks:
            inputs["inputs_embeds"] = self.row_embeddings(layout, real_ids)
            inputs["attention_mask"] = self.attention_mask(layout, past)
        else:
            # No mask at all is causal to every implementation, and the fastest path of each.
            inputs["input_ids"] = torch.tensor([list(real_ids)], device=device)
        adapter = self.masks.adapter
        with self._lock:
            if adapter is not None:
                adapter.first_mask = layout.n_real if layout.n_masks else None
            logits: Tensor = self.lm(
                **inputs,
                position_ids=positions[None],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=layout.n_judged,
            ).logits[0]
            if adapter is not None:
                adapter.first_mask = None
        if self.mask_token_id is not None:
            logits[:, self.mask_token_id] = -torch.inf
        return logits

    def row_embeddings(self, layout: Layout, real_ids: Sequence[int]) -> Tensor:
        """Input embeddings of the call's rows. [1, rows, hidden]"""
        ids = torch.tensor(list(real_ids), device=self.device)
        embeddings = self.masks.embeddings
        if embeddings is None:
            masks = torch.full((layout.n_masks,), self.masks.token_id or 0, device=self.device)
            rows: Tensor = self._embed(torch.cat([ids, masks]))[None]
            return rows
        slots = layout.slots().clamp_(max=len(embeddings) - 1)  # slots beyond the trained ones
        return torch.cat([self._embed(ids), embeddings[slots]])[None]

    def attention_mask(self, layout: Layout, past: int) -> Tensor:
        """Float mask [1, 1, rows, past + rows]: all of the cache, and the layout's own rule.

        Built once for each layout and block of cache lengths: a longer "all zero" past is kept to
        the left of the rule, and a call takes the last `past` columns of it as a view.
        """
        room = -(-past // MASK_BLOCK) * MASK_BLOCK
        key = (layout, room)
        mask = self._attention_masks.get(key)
        if mask is None:
            if len(self._attention_masks) > 64:
                self._attention_masks.clear()
            rule = additive(layout.sees(), self.dtype)
            mask = torch.cat([rule.new_zeros(layout.rows, room), rule], dim=1).to(self.device)[None, None]
            if layout.rows <= 4 * MASK_BLOCK:  # a long prompt's mask is used once
                self._attention_masks[key] = mask
        return mask[..., room - past :]

    def synchronize(self) -> None:
        """Wait until the device has done all its work, so that a clock tells the truth."""
        kind = self.device.type
        if kind == "cuda":
            torch.cuda.synchronize(self.device)
        elif kind == "mps":
            torch.mps.synchronize()

    def clock(self) -> float:
        """Seconds, with the device's work done."""
        self.synchronize()
        return time.perf_counter()

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
        size = self._embed.weight.shape[0]
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
    with torch.no_grad():
        mean = lm.get_input_embeddings().weight.float().mean(0, keepdim=True)
    return Masks(k, "untrained", embeddings=mean.to(lm.get_input_embeddings().weight.dtype))


def context_window(config: Any) -> int:
    """Tokens the model can attend to with full attention.

    A sliding window counts as the context: within it, sliding equals full attention.
    """
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    limits = [getattr(text, name, None) for name in ("max_position_embeddings", "n_positions")]
    if getattr(text, "use_sliding_window", True):
        limits.append(getattr(text, "sliding_window", None))
    limits += [getattr(text, "attention_chunk_size", None)]
    return min([int(limit) for limit in limits if limit] or [2048])


def _eos_ids(lm: Any) -> set[int]:
    """All ids that end a text, as the generation config or else the config names them."""
    for config in (getattr(lm, "generation_config", None), lm.config):
        eos = getattr(config, "eos_token_id", None)
        if eos is not None:
            return {int(i) for i in (eos if isinstance(eos, list | tuple) else [eos])}
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
    size = int(model._embed.weight.shape[0])
    ids = [(7 * i + 3) % size for i in range(6)]
    try:
        five = model.forward(Layout.plain(5), ids[:5], BlockCache())[-1]
        six = model.forward(Layout.plain(6), ids, BlockCache())[-1]
        cache = BlockCache()
        model.forward(Layout.first(4, 2), ids[:4], cache)
        cache.commit(4)
        wrong_draft = (ids[5] + 1) % size
        with_masks = model.forward(Layout.steady((2, 1)), [ids[4], wrong_draft], cache)[0]
        cache.commit(5)
        rolled_back = model.forward(Layout.steady((2,)), ids[5:], cache)[0]
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, NotImplementedError) as error:
        text = str(error).strip().splitlines()
        raise UnsupportedModelError(
            f"{kind} does not take explicit masks, positions and a cache that can be rolled back "
            f"({text[0][:160] if text else type(error).__name__})"
        ) from None
    spread = float(six.float().nan_to_num(neginf=0).abs().max()) + 1e-6
    tolerance = spread * max(2e3 * torch.finfo(model.dtype).eps, 1e-9)
    for left, right in ((with_masks, five), (rolled_back, six)):
        difference = (left.float() - right.float()).nan_to_num().abs().max()
        if not float(difference) <= tolerance:
            raise UnsupportedModelError(
                f"{kind} does not obey explicit masks, positions or cache roll-back "
                f"(logits differ by {float(difference):.2g}): SPACE would not be lossless on it"
            )


@lru_cache(maxsize=1)
def best_device() -> str:
    """cuda or mps where there is one, else cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
