"""What followed the last few tokens when they stood in the text before.

As drafts: costs no mask row. Code repeats itself, and where it does a copy is often right for many tokens; it
is used where it promises more than the masks do. (Saxena 2023, prompt lookup decoding.) And as evidence for
what a mask guesses (`copies.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

LENGTHS = (5, 4, 3, 2, 1)
"""Tokens that must have stood there before, the longest first."""
CONFIDENCE = {5: 0.9, 4: 0.8, 3: 0.6, 2: 0.4, 1: 0.25}
"""How sure a copy is to begin with; what it is worth is learned by the planner."""


Follow = Callable[[Tensor], tuple[Any, Any]]
"""Told the next token, int64 [1], says what followed such tokens last, and how many matched (0: none did)."""


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
        start, length = self._found(self._text)
        if length:
            copied = self._text[start : start + count]
            period = len(self._text) - start
            return [copied[i % period] for i in range(count)], CONFIDENCE[length]
        return [], 0.0

    def follow(self, drafts: Sequence[int], accepted: Tensor) -> Follow:
        """What the text up to the last call says of tokens behind it, one after the other.

        Args:
            drafts: that the last call judged; the first `accepted`, int64 [], are what follows the text.

        Returns:
            A function to be told the tokens behind these, in order. It answers with numbers.
        """
        tail = [*self._text[1 - LENGTHS[0] :], *drafts[: int(accepted)]]

        def follow(before: Tensor) -> tuple[int, int]:
            tail.append(int(before))
            end, length = self._found(tail)
            return (self._text[end], length) if length else (0, 0)

        return follow

    def _found(self, tail: Sequence[int]) -> tuple[int, int]:
        """The place behind where the longest of the last tokens stood last, and how many; else 0, 0."""
        for length in LENGTHS:
            end = self._ends.get(tuple(tail[-length:]))
            if end is not None:
                return end, length
        return 0, 0


class DeviceLookup:
    """`Lookup.follow` on a device that would have to wait for the host: the same answers, as tensors."""

    def __init__(self, tokens: Sequence[int], device: torch.device) -> None:
        # Nothing is equal to what stands in front of the text.
        self._text = torch.full((LENGTHS[0],), -1, device=device)
        self.extend(tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens."""
        more = torch.tensor(tokens, dtype=torch.long, device=self._text.device)
        self._text = torch.cat([self._text, more])

    def follow(self, drafts: Tensor, accepted: Tensor) -> Follow:
        """As `Lookup.follow`, of drafts on the device, int64 [n]; it answers with tensors, int64 []."""
        text, most = self._text, LENGTHS[0]
        windows = text.unfold(0, most, 1)[:-1]  # what stands before each token of the text
        place = torch.arange(len(windows), device=text.device)
        newest = torch.cat([text[-most:], drafts])
        last = newest.index_select(0, accepted + torch.arange(most, device=text.device))

        def follow(before: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal last
            last = torch.cat([last[1:], before])
            equal = ((windows == last) & (last >= 0)).flip(1).cumprod(1).sum(1)
            best = (equal * len(windows) + place).argmax().view(1)  # the longest, and of these the last one
            return text.index_select(0, best + most)[0], equal.index_select(0, best)[0]

        return follow
