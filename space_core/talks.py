"""The conversations of a page's visitors: which race goes on from which, and what the caches keep.

A conversation lives in its last race (`frames.Race.talk`), so it is the visitor's own and ends with the
session. Only caches are kept here, for the few conversations that were used last; one that is forgotten costs
time, never words. Imports nothing heavy before a model is there.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from space_core.conversation import Conversation, Message, answer, can_chat, turn_ends
from space_core.conversation import prompt as rendered

if TYPE_CHECKING:
    from space_core.memory import Memory, Shelf
    from space_core.model import SpaceModel


@dataclass(slots=True)
class Talk:
    """A conversation as far as one race sends it.

    Attributes:
        messages: the last one is what the user said now.
        known: tokens of the prompt that SPACE's lane did not have to read again.
        tokens: of the prompt.
        over: a new conversation was asked for, none goes on from here.
        slot: the device that it runs on (`space_core.devices`), where its caches lie.
    """

    messages: Conversation
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    tokens: int = 0
    known: int = 0
    over: bool = False
    slot: int | None = None

    @property
    def turns(self) -> int:
        """What the user has said so far."""
        return sum(message.role == "user" for message in self.messages)


class Talks:
    """What goes on from what, on one page. For any number of threads."""

    def __init__(self) -> None:
        self._shelf: Shelf | None = None

    @property
    def shelf(self) -> Shelf:
        if self._shelf is None:
            from space_core.memory import Shelf

            self._shelf = Shelf()
        return self._shelf

    def next(self, model: SpaceModel, load: int, words: str, earlier: Any) -> Talk | None:
        """The conversation with what the user says now; None for a model that has no chat template.

        Args:
            load: which of the page's models it is.
            earlier: the visitor's race before (`frames.Race`), or None. One without a conversation, with
                one that is over, or with another model begins anew.
        """
        if not can_chat(model):
            return None
        said = Message("user", words)
        before = None if earlier is None or earlier.load != load else earlier.talk
        if before is None or before.over:
            return Talk((said,))
        told = Message("assistant", answer(model, earlier.trace("space").output_ids))
        return Talk((*before.messages, told, said), before.id, slot=before.slot)

    def memories(self, model: SpaceModel, talk: Talk, lanes: Sequence[str]) -> dict[str, Memory]:
        """Of each lane, which know what the turn before read, if it was read by this copy of the model."""
        from space_core.memory import Memory

        ends = turn_ends(model)
        return self.shelf.lanes(talk.id, lanes, lambda: Memory(model, ends))

    @contextmanager
    def tidying(self, talk: Talk | None) -> Iterator[None]:
        """Around a run: afterwards, however it ends, no more is kept than may be."""
        try:
            yield
        finally:
            if talk is not None:
                talk.known = self.shelf.known(talk.id, "space")
                self.shelf.tidy()

    def end(self, talk: Talk) -> None:
        """A new conversation is asked for."""
        talk.over = True
        self.shelf.forget(talk.id)

    def know(self, models: Sequence[SpaceModel]) -> None:
        """Which models there are: what was kept for another goes, and that model with it."""
        if self._shelf is not None:
            self._shelf.keep(models)


def prompt(model: SpaceModel, talk: Talk) -> tuple[str, list[int]]:
    """What is sent, and its ids. Raises PromptError as `conversation.prompt`."""
    text, ids = rendered(model, talk.messages)
    talk.tokens = len(ids)
    return text, ids
