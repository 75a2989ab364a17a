"""Ids to pieces of text that can be shown as they come, characters split over tokens included.

A token may hold a part of a UTF-8 character, and some tokenizers decode a token differently behind
another one. So each token is decoded together with the tokens before it, back to the last point
where the text was whole, and its piece is what the text grew by; a token that ends inside a
character has an empty piece, and the token that completes the character shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

REPLACEMENT = "\ufffd"
PATIENCE = 16
"""Tokens to wait for the rest of a character before the bytes count as invalid."""


class Detokenizer:
    """Turns the tokens of one run into pieces; "".join of all pieces is the decoded output.

    Args:
        tokenizer: of transformers.
        prompt_ids: the text before, from which the first piece continues.
    """

    def __init__(self, tokenizer: Any, prompt_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt_ids)[-PATIENCE:]
        self._start = 0
        self._shown = self._decode(self._ids)

    def feed(self, ids: Sequence[int]) -> list[str]:
        """One piece for each id; empty while a character is incomplete."""
        return [self._one(token) for token in ids]

    def flush(self) -> str:
        """What is left at the end: replacement characters for a character never completed."""
        text = self._decode(self._ids[self._start :])
        piece = text[len(self._shown) :] if text.startswith(self._shown) else ""
        self._shown = text
        return piece

    def _one(self, token: int) -> str:
        self._ids.append(token)
        text = self._decode(self._ids[self._start :])
        if text.endswith(REPLACEMENT) and len(self._ids) - self._start < 2 * PATIENCE:
            return ""
        piece = text[len(self._shown) :]
        # The text is whole here: decode from this token on, to keep the cost of a token constant.
        self._ids = self._ids[-1:]
        self._start = 0
        self._shown = self._decode(self._ids)
        return piece

    def _decode(self, ids: Sequence[int]) -> str:
        return str(
            self._tokenizer.decode(
                list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )
