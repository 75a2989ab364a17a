"""Pieces join to the full decode, characters split over tokens included."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from space_core.bundled import default_checkpoint
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


@pytest.fixture(scope="module")
def fallback():
    """Words with a mark for the space before them, and bytes for what they cannot spell (as Llama 2 has)."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "c", "▁a", "ab", "▁ab"]
    core = Tokenizer(
        models.BPE(
            vocab={word: i for i, word in enumerate(words)},
            merges=[("▁", "a"), ("a", "b"), ("▁a", "b")],
            byte_fallback=True,
            unk_token="<unk>",
        )
    )
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False)


@pytest.fixture(scope="module")
def bundled():
    return AutoTokenizer.from_pretrained(default_checkpoint())


TOKENIZERS = ("tokenizer", "fallback", "bundled")
texts = st.lists(
    st.one_of(st.sampled_from(ALPHABETS), st.text(st.characters(codec="utf-8"), max_size=6)), max_size=6
)


def join_to_the_full_decode(tokenizer, text, data):
    """Pieces behind a prompt, in steps of any length, are what the whole decode grows by."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    cut = data.draw(st.integers(0, len(ids)))
    prompt, rest = ids[:cut], ids[cut:]
    before = tokenizer.decode(prompt, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    whole = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    pieces = pieces_of(tokenizer, rest, prompt, data.draw(st.integers(1, 6)))
    if not whole.startswith(before):  # the prompt ends within a character: the rest is its owner's to show
        return
    assert before + "".join(pieces) == whole


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_text_comes_back(request, name, data):
    text = "".join(data.draw(texts))
    join_to_the_full_decode(request.getfixturevalue(name), text, data)


@pytest.mark.slow
@pytest.mark.trust(9)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_any_text_comes_back_at_full_size(request, name, figures):
    tokenizer = request.getfixturevalue(name)

    @settings(max_examples=700, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def check(data):
        join_to_the_full_decode(tokenizer, "".join(data.draw(texts)), data)

    check()
    figures(**{name: "700 strings"})


@pytest.mark.parametrize("name", TOKENIZERS)
def test_any_bytes_come_back_as_the_decoder_shows_them(request, name):
    """Ids in any order: bytes that are no text, words cut in two."""
    tokenizer, dice = request.getfixturevalue(name), random.Random(1)
    for _ in range(100):
        words = range(min(262, len(tokenizer)))
        if name == "fallback":  # where a bad run takes even the line's end before it, which is shown at once
            words = [i for i in words if not 1 <= i <= 128]
        ids = dice.choices(words, k=dice.randrange(1, 40))
        whole = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert "".join(pieces_of(tokenizer, ids)) == whole


def test_a_prompt_may_end_within_a_character_that_is_a_replacement(fallback):
    ids = fallback("\ufffd\0𝒳", add_special_tokens=False)["input_ids"]
    whole = fallback.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    before = fallback.decode(ids[:2], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert before == "\ufffd" and before + "".join(pieces_of(fallback, ids[2:], ids[:2])) == whole


def test_a_run_of_bytes_is_shown_at_its_end(fallback):
    ids = fallback("日本a", add_special_tokens=False)["input_ids"]
    assert [len(piece) for piece in pieces_of(fallback, ids)] == [0] * (len(ids) - 1) + [3, 0]
    line = fallback("a\nab", add_special_tokens=False)["input_ids"]
    assert pieces_of(fallback, line) == ["a", "\n", "ab", ""]


def test_a_character_appears_with_the_token_that_completes_it(tokenizer):
    ids = tokenizer("é👍")["input_ids"]
    assert pieces_of(tokenizer, ids, steps=1) == ["", "é", "", "", "", "👍", ""]
