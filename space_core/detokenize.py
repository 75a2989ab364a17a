"""Ids to pieces of text that can be shown as they come, characters split over tokens included.

A token may hold a part of a UTF-8 character, and some tokenizers decode a token differently behind
another one. So new tokens are decoded together with the piece before them, which began where the
text was whole; a piece is what the text grew by. A token that ends inside a character has an empty
piece, and the token that completes the character shows it.

Vocabularies that fall back to bytes (`<0xE6>`, as Llama 2's) need more patience: their decoder takes bytes
in a row as a whole, and shows none of its characters while the last one is incomplete. What such a run
says is known at its end. (A byte that is a character by itself, a line's end above all, is shown at once.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

REPLACEMENT = "\ufffd"
CONTEXT = 16
"""Tokens of the prompt that the first piece is decoded behind."""


class Detokenizer:
    """Turns the tokens of one run into pieces; joined, they are the decoded output.

    Args:
        tokenizer: of transformers.
        prompt_ids: the text before, from which the first piece continues.
    """

    def __init__(self, tokenizer: Any, prompt_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        start = max(0, len(prompt_ids) - CONTEXT)
        self._before = list(prompt_ids[self._begins(prompt_ids, start) :])
        self._pending: list[int] = []
        self._shown = self._decode(self._before)

    def feed(self, ids: Sequence[int]) -> list[str]:
        """One piece for each id; empty while a character is incomplete."""
        return [self._one(token) for token in ids]

    def flush(self) -> str:
        """What is left at the end: replacement characters for a character never completed."""
        text = self._decode(self._before + self._pending)
        piece = text[len(self._shown) :]
        self._shown = text
        return piece

    def _one(self, token: int) -> str:
        self._pending.append(token)
        if self._in_run(token):
            return ""
        text = self._decode(self._before + self._pending)
        # A UTF-8 character has at most 4 bytes: no more than its first 3 can still be waiting.
        waiting = 0
        while waiting < 3 and text[len(text) - waiting - 1 : len(text) - waiting] == REPLACEMENT:
            waiting += 1
        stable = text[: len(text) - waiting]
        if len(stable) < len(self._shown):
            return ""
        piece = stable[len(self._shown) :]
        if waiting:
            self._shown = stable
        else:
            ids = self._before + self._pending
            self._before, self._pending = ids[self._begins(ids, len(self._before)) :], []
            self._shown = self._decode(self._before)
        return piece

    def _begins(self, ids: Sequence[int], start: int) -> int:
        """Where the run of bytes begins that the token at `start` is of; without one, `start`."""
        while 0 < start < len(ids) and self._in_run(ids[start]):
            start -= 1
        return start

    def _in_run(self, token: int) -> bool:
        """Whether a token is one byte of a longer character."""
        names = getattr(self._tokenizer, "convert_ids_to_tokens", None)
        name = names(int(token)) if names else None
        return isinstance(name, str) and len(name) == 6 and name[:3] == "<0x" and name[3] in "89ABCDEF"

    def _decode(self, ids: Sequence[int]) -> str:
        return str(
            self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )
