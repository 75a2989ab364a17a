"""Pieces join to the full decode, characters split over tokens included."""

from __future__ import annotations

import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from space_core.detokenize import Detokenizer

ALPHABETS = (
    "abc \n\t",
    "äöüßé",
    "日本語テキスト",
    "👩‍👩‍👧‍👦🏳️‍🌈👍🏽",
    "e\u0301a\u0308\u200d",
    "שלום مرحبا",
    "\ufffd\x00𝒳",
)


@pytest.fixture(scope="module")
def tokenizer():
    """A byte-level tokenizer without merges: every byte is a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False)


def pieces_of(tokenizer, ids, prompt=(), steps=3):
    detokenizer = Detokenizer(tokenizer, prompt)
    pieces = []
    for start in range(0, len(ids), steps):
        pieces += detokenizer.feed(ids[start : start + steps])
    assert len(pieces) == len(ids)
    return [*pieces, detokenizer.flush()]


def test_any_text_comes_back(tokenizer):
    dice = random.Random(0)
    for _ in range(200):
        text = "".join(dice.choice(dice.choice(ALPHABETS)) for _ in range(dice.randrange(1, 30)))
        ids = tokenizer(text)["input_ids"]
        cut = dice.randrange(len(ids))
        prompt, rest = tokenizer.decode(ids[:cut]), ids[cut:]
        if "\ufffd" not in prompt:
            assert prompt + "".join(pieces_of(tokenizer, rest, ids[:cut], dice.randrange(1, 6))) == text


def test_any_bytes_come_back_as_the_decoder_shows_them(tokenizer):
    dice = random.Random(1)
    for _ in range(200):
        ids = [dice.randrange(256) for _ in range(dice.randrange(1, 40))]
        assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids)


def test_a_character_appears_with_the_token_that_completes_it(tokenizer):
    ids = tokenizer("é👍")["input_ids"]
    assert pieces_of(tokenizer, ids, steps=1) == ["", "é", "", "", "", "👍", ""]
