"""A tiny instruct model: random weights, a chat-template tokenizer, an end of turn of its own."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny import ARCHITECTURES, tiny_lm, trained_like_masks

from finetune.tokenizer import train_tokenizer
from space_core.model import SpaceModel

VOCABULARY = 320
CHAT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def chat_tokenizer(folder: Path, template: str | None = CHAT):
    """Letters and a few words; <|endoftext|> ends a text and begins a conversation, <|end|> a turn."""
    made = train_tokenizer(["what is one and one? it is two. "] * 20, 300, folder, model_max_length=512)
    roles = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    made.add_special_tokens({"additional_special_tokens": roles})
    made.chat_template = template
    made.save_pretrained(folder)
    assert len(made) <= VOCABULARY
    return made


def chat_lm(architecture: str = "Llama", dtype: torch.dtype = torch.float64, seed: int = 0):
    """Random, but not constant; ends neither text nor turn by itself."""
    places = {"max_position_embeddings", "n_positions"} & ARCHITECTURES[architecture].keys()
    return tiny_lm(architecture, dtype, seed, vocab_size=VOCABULARY, **dict.fromkeys(places, 512))


def chat_model(folder: Path, architecture: str = "Llama", template: str | None = CHAT) -> SpaceModel:
    lm = chat_lm(architecture)
    return SpaceModel(lm, chat_tokenizer(folder, template), trained_like_masks(lm), "tiny-chat", eos_ids=())


def chat_folder(folder: Path) -> Path:
    """The same as a checkpoint folder, in float32."""
    chat_lm(dtype=torch.float32).save_pretrained(folder)
    chat_tokenizer(folder)
    return folder
