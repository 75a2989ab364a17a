"""Conversations to token ids, with what is learnt marked: the answers, never the prompts.

Where the answers' tokens stand is found by rendering: what the template makes of the conversation up to
an answer is a prefix of what it makes of the conversation with it, and the rest is the answer. That
needs nothing of the template but that it renders. A template that marks answers itself ({% generation %})
is believed. One that rewrites the past (drops earlier thoughts, moves the system message) gives one
sample for each answer instead of one for all, each with the past as the model will see it.

A tokenizer without a template gets the plain form of the benchmark: contents joined by an empty line;
the response of a prompt–response pair follows its prompt directly, and the text ends with end-of-text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from finetune.data import Conversation, DataError, Message
from space_core.errors import first_line

_MARKS = re.compile(r"\{%-?\s*generation\b")
FEWEST = 2
"""Answer tokens below which a sample teaches no mask."""

Messages = tuple[Message, ...]


@dataclass(frozen=True, slots=True, eq=False)  # tensors do not compare to one truth
class Sample:
    """One text to learn from.

    Attributes:
        ids: int64 [length].
        learn: which tokens belong to an answer. bool [length]
        prompts: what the model is given before each answer; may differ from the ids' beginning
            where the template's prompt does.
    """

    ids: Tensor
    learn: Tensor
    prompts: tuple[Tensor, ...]


@dataclass(slots=True)
class Counts:
    """What became of the conversations.

    Attributes:
        shortened: lost whole turns, being too long.
        cut: a single turn was too long and lost its end; texts: were split into pieces.
        dropped: the prompt alone was too long, or the answer too short.
    """

    conversations: int = 0
    samples: int = 0
    shortened: int = 0
    cut: int = 0
    dropped: int = 0

    def __str__(self) -> str:
        return (
            f"{self.conversations} conversations, {self.samples} samples; {self.shortened} lost whole turns, "
            f"{self.cut} cut within a turn, {self.dropped} dropped"
        )


@dataclass(slots=True)
class Renderer:
    """Turns conversations into samples for one tokenizer.

    Attributes:
        tokenizer: of the base model.
        max_length: most tokens of a sample.
        eos_ids: ids that end an answer; what a template writes behind one is not learnt.
        truncate: which turns a long conversation loses, whole: those at its "front" or "back".
        counts: of all conversations so far.
    """

    tokenizer: Any
    max_length: int
    eos_ids: frozenset[int] = frozenset()
    truncate: str = "front"
    counts: Counts = field(default_factory=Counts)

    def samples(self, conversation: Conversation) -> list[Sample]:
        """What to learn from a conversation; empty where nothing of it fits.

        Raises:
            DataError: naming file and line, where the template refuses the conversation.
        """
        self.counts.conversations += 1
        if conversation.text:
            found = self._pieces(conversation.text)
        else:
            head, groups = conversation.system, conversation.exchanges()
            while groups and all(m.role == "assistant" for m in groups[0]):
                # An answer that nobody asked for is given, not learnt.
                head, groups = head + groups[0], groups[1:]
            if self._keeps_the_past(conversation, head, groups):
                found = self._fit(conversation, head, groups, last=False)
            else:
                upto = range(1, len(groups) + 1)
                found = [s for n in upto for s in self._fit(conversation, head, groups[:n], last=True)]
        kept = [sample for sample in found if int(sample.learn.sum()) >= FEWEST]
        self.counts.dropped += len(found) - len(kept)
        self.counts.samples += len(kept)
        return kept

    def prompt(self, conversation: Conversation) -> list[int]:
        """What the model is given to write the first answer; of a text, its first half."""
        if conversation.text:
            ids = self._encode(conversation.text)[: self.max_length]
            return ids[: max(1, len(ids) // 2)]
        head, groups = conversation.system, conversation.exchanges()
        first = next((n for n, g in enumerate(groups) if any(m.role == "user" for m in g)), 0)
        messages = (*head, *(m for group in groups[: first + 1] for m in group))
        return self._render(conversation, messages[: _last_answer(messages)], True)

    def _keeps_the_past(self, conversation: Conversation, head: Messages, groups: list[Messages]) -> bool:
        messages, wholes = head, []
        for group in groups:
            messages = messages + group
            wholes.append(self._render(conversation, messages, False))
        return all(wholes[-1][: len(whole)] == whole for whole in wholes)

    def _fit(
        self, conversation: Conversation, head: Messages, groups: list[Messages], last: bool
    ) -> list[Sample]:
        """One sample of at most max_length tokens. last: learn the last answer only."""
        sample = self._sample(conversation, head, groups, last)
        lost = False
        while len(sample.ids) > self.max_length and len(groups) > 1:
            lost = True
            if self.truncate == "back" and last:
                break  # the answer to be learnt is itself what lies too far back
            groups = groups[:-1] if self.truncate == "back" else groups[1:]
            sample = self._sample(conversation, head, groups, last)
        self.counts.shortened += lost
        if len(sample.ids) <= self.max_length:
            return [sample]
        if len(groups) > 1:
            return []
        ids, learn = sample.ids[: self.max_length], sample.learn[: self.max_length]
        if int(learn.sum()) < FEWEST:
            self.counts.dropped += 1
            return []
        self.counts.cut += 1
        return [Sample(ids, learn, sample.prompts)]

    def _sample(
        self, conversation: Conversation, head: Messages, groups: list[Messages], last: bool
    ) -> Sample:
        messages = (*head, *(m for group in groups for m in group))
        ids = self._render(conversation, messages, False)
        learn = torch.zeros(len(ids), dtype=torch.bool)
        marked = None if last else self._marked(messages, ids)
        prompts, upto = [], len(head)
        for number, group in enumerate(groups):
            upto += len(group)
            if last and number < len(groups) - 1:
                continue
            prompt = self._render(conversation, messages[: _last_answer(messages[:upto])], True)
            whole = self._render(conversation, messages[:upto], False)
            start = _common(prompt, whole)
            if not 0 < start < len(whole):
                raise DataError(f"{conversation.where}: the chat template hides where answers begin")
            learn[start : len(whole)] = True
            self._stop_at_eos(ids, learn, start, len(whole))
            prompts.append(torch.tensor(prompt))
        return Sample(torch.tensor(ids), learn if marked is None else marked, tuple(prompts))

    def _stop_at_eos(self, ids: list[int], learn: Tensor, start: int, stop: int) -> None:
        for place in range(start, stop):
            if ids[place] in self.eos_ids:
                learn[place + 1 : stop] = False
                return

    def _marked(self, messages: Messages, ids: list[int]) -> Tensor | None:
        """The template's own marks, bool [length]; None where it has none."""
        template = getattr(self.tokenizer, "chat_template", None)
        if not isinstance(template, str) or not _MARKS.search(template):
            return None
        try:
            made = self.tokenizer.apply_chat_template(
                _plain(messages), return_dict=True, return_assistant_tokens_mask=True
            )
            marks = torch.tensor(made["assistant_masks"], dtype=torch.bool)
        except (ValueError, KeyError, TypeError, NotImplementedError):
            return None  # slow tokenizers know no places of characters
        same = list(made["input_ids"]) == ids
        return marks if same and bool(marks.any()) else None

    def _render(self, conversation: Conversation, messages: Messages, generation: bool) -> list[int]:
        """Ids of messages; with `generation`, up to where the assistant begins to write."""
        if not getattr(self.tokenizer, "chat_template", None):
            between = "" if conversation.completion else "\n\n"
            text = between.join(m.content for m in messages)
            if generation:
                return self._encode(text + between)
            eos = self.tokenizer.eos_token_id
            return self._encode(text) + ([] if eos is None else [int(eos)])
        from jinja2 import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                _plain(messages), tokenize=False, add_generation_prompt=generation
            )
        except (TemplateError, ValueError, TypeError) as error:
            said = first_line(error)
            raise DataError(f"{conversation.where}: the chat template refuses it: {said}") from None
        made = self.tokenizer(text, add_special_tokens=False, verbose=False)
        return [int(i) for i in made["input_ids"]]

    def _encode(self, text: str) -> list[int]:
        """As `SpaceModel.encode`: specials spelled out in the text stay plain text."""
        return [int(i) for i in self.tokenizer(text, split_special_tokens=True, verbose=False)["input_ids"]]

    def _pieces(self, text: str) -> list[Sample]:
        eos = self.tokenizer.eos_token_id
        ids = torch.tensor(self._encode(text) + ([] if eos is None else [int(eos)]))
        pieces = ids.split(self.max_length)
        self.counts.cut += len(pieces) > 1
        found = []
        for piece in pieces:
            learn = torch.ones(len(piece), dtype=torch.bool)
            learn[0] = False  # nothing stands before it
            found.append(Sample(piece, learn, (piece[: max(1, len(piece) // 2)],)))
        return found


def render_all(renderer: Renderer, conversations: Iterable[Conversation]) -> list[Sample]:
    """The samples of all conversations, in their order."""
    return [sample for conversation in conversations for sample in renderer.samples(conversation)]


def _last_answer(messages: Sequence[Message]) -> int:
    """Index of the first of the answers at the end."""
    index = len(messages)
    while index and messages[index - 1].role == "assistant":
        index -= 1
    return index


def _plain(messages: Messages) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in messages]


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common beginning."""
    length = min(len(left), len(right))
    return next((i for i in range(length) if left[i] != right[i]), length)
