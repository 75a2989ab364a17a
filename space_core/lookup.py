"""Drafts copied from the text so far: what followed the last few tokens when they stood there before.

Costs no mask row. Code repeats itself, and where it does a copy is often right for many tokens; it
is used where it promises more than the masks do. (Saxena 2023, prompt lookup decoding.)
"""

from __future__ import annotations

from collections.abc import Sequence

LENGTHS = (5, 4, 3, 2, 1)
"""Tokens that must have stood there before, the longest first."""
CONFIDENCE = {5: 0.9, 4: 0.8, 3: 0.6, 2: 0.4, 1: 0.25}
"""How sure a copy is to begin with; what it is worth is learned by the planner."""


class Lookup:
    """The text of one run and where its short sequences stood last."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._text: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}
        self.extend(tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens; a sequence is found only once something follows it."""
        for token in tokens:
            end = len(self._text)
            for length in LENGTHS:
                if length <= end:
                    self._ends[tuple(self._text[end - length :])] = end
            self._text.append(token)

    def drafts(self, count: int) -> tuple[list[int], float]:
        """`count` tokens to follow the text, and how sure they are; none where nothing matches.

        A copy that reaches the end of the text goes on in itself, as a text that runs in circles does.
        """
        for length in LENGTHS:
            start = self._ends.get(tuple(self._text[-length:]))
            if start is not None:
                copied = self._text[start : start + count]
                period = len(self._text) - start
                return [copied[i % period] for i in range(count)], CONFIDENCE[length]
        return [], 0.0
