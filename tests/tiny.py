"""Small models with random weights and real architectures, made where a test needs them."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from space_core.model import Masks

VOCABULARY = 64
_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
}
_OWN = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
ARCHITECTURES = {
    "Llama": _SHAPE,
    "Mistral": _SHAPE,
    "Qwen2": _SHAPE,
    "Qwen3": {**_SHAPE, "head_dim": 8},
    "Gemma": {**_SHAPE, "head_dim": 8},
    "Phi": _SHAPE,
    "StableLm": _SHAPE,
    "Starcoder2": _SHAPE,
    "GPT2": {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "GPTNeoX": {**_OWN, "intermediate_size": 64},
    "OPT": {**_OWN, "ffn_dim": 64, "word_embed_proj_dim": 32},
}

FEW = ("Llama", "Gemma", "GPT2", "OPT")
"""Positions that turn, a scaled embedding, positions that are learned, and those with an offset."""


def some(names, often):
    """Parameters of a test: these always, the others with `-m more`."""
    assert set(often) <= set(names), "a parameter that there is not"
    more = pytest.mark.more
    return [
        name if name in often else pytest.param(*(name if isinstance(name, tuple) else (name,)), marks=more)
        for name in names
    ]


def tiny_lm(architecture: str = "Llama", dtype: torch.dtype = torch.float64, seed: int = 0, **shape: int):
    """A causal LM whose text is not constant: weights larger than a fresh model's."""
    config = getattr(transformers, f"{architecture}Config")(**{**ARCHITECTURES[architecture], **shape})
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, None)
    torch.manual_seed(seed)
    lm = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)
    return lm.eval().requires_grad_(False)


def trained_like_masks(lm, k: int = 5, seed: int = 1) -> Masks:
    """Random per-slot mask embeddings: drafts that differ by slot."""
    torch.manual_seed(seed)
    weight = lm.get_input_embeddings().weight
    return Masks(k, "gated", embeddings=weight[torch.randint(len(weight), (k,))] * 1.0)


def oracle(lm, prompt: list[int], count: int) -> list[int]:
    """Plain decoding by other code than the product's: no cache, the argmax of a whole forward."""
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            ids.append(int(lm(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def output(steps) -> list[int]:
    return [token for step in steps for token in step.emitted]
