"""Train the byte-level BPE tokenizer of the models that are built here.

It is made for code: a newline is one token, an indent is one token, every digit stands alone,
and since all 256 bytes are in the alphabet, any text comes back as it went in.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"

# Words with the one sign or blank before them, single digits, runs of signs, line ends with the
# blanks before them, and runs of blanks; the last blank before a word belongs to the word.
PIECES = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, out: Path, *, model_max_length: int = 1024
) -> PreTrainedTokenizerFast:
    """Train on `texts`, save to the folder `out`, and return what AutoTokenizer opens from it.

    The same texts in the same order give the same files. `<|endoftext|>` has id 0 and both
    begins and ends a text, `<|pad|>` has id 1; neither is added by encoding.

    A text that *spells* `<|endoftext|>` is encoded as that token, as everywhere in transformers.
    For text of strangers pass `split_special_tokens=True` when calling the tokenizer, and it is
    encoded letter by letter.

    Raises:
        ValueError: the vocabulary has no room for 256 bytes and the two special tokens.
    """
    if vocab_size < 258:
        raise ValueError(f"vocab_size must be at least 258 (bytes and specials), not {vocab_size}")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        model_max_length=model_max_length,
        clean_up_tokenization_spaces=False,
    )
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(out)
    return tokenizer
