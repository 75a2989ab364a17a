"""Conversations with an instruct model: messages to a prompt, by the model's own chat template.

This room knows messages, templates and where an answer ends. What is sent is plain token ids like any
prompt's, so decoders, races and traces need not know that it was a conversation.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from space_core.errors import PromptError, first_line

if TYPE_CHECKING:
    from space_core.model import SpaceModel

ROLES = ("system", "user", "assistant")
MAX_MESSAGES = 256


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `role` is one of ROLES."""

    role: str
    content: str


Conversation = tuple[Message, ...]


def read_messages(value: Any) -> Conversation:
    """Messages from untrusted JSON: [{"role", "content"}, …], the last one what the user says now.

    Raises:
        PromptError: naming the message that is wrong.
    """
    if not isinstance(value, list) or not value:
        raise PromptError('messages must be a list of {"role", "content"}')
    if len(value) > MAX_MESSAGES:
        raise PromptError(f"messages has {len(value)} turns, but at most {MAX_MESSAGES} are taken")
    found = []
    for number, row in enumerate(value, start=1):
        role, content = (row.get("role"), row.get("content")) if isinstance(row, dict) else (None, None)
        if role not in ROLES:
            raise PromptError(f"message {number}: role must be one of {', '.join(ROLES)}")
        # An answer may be empty: a model may have nothing to say.
        if not isinstance(content, str) or not (content.strip() or role == "assistant"):
            raise PromptError(f"message {number}: content must be text that is not blank")
        if "\0" in content or any("\ud800" <= letter <= "\udfff" for letter in content):
            raise PromptError(f"message {number} holds a character that is no text: remove it")
        found.append(Message(role, content))
    if found[-1].role != "user":
        raise PromptError("the last message must be the user's: the model answers it")
    return tuple(found)


def parse_messages(text: str) -> Conversation:
    """The same from JSON text; an object with the key "messages" is taken too.

    Raises:
        PromptError
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise PromptError('the messages are no JSON: write [{"role": "user", "content": "…"}]') from None
    return read_messages(value["messages"] if isinstance(value, dict) and "messages" in value else value)


def to_json(messages: Iterable[Message]) -> list[dict[str, str]]:
    return [asdict(message) for message in messages]


def can_chat(model: SpaceModel) -> bool:
    """Whether the model brings a chat template."""
    return bool(getattr(model.tokenizer, "chat_template", None))


def prompt(model: SpaceModel, messages: Sequence[Message]) -> tuple[str, list[int]]:
    """What is sent: the rendered text, up to where the assistant begins to write, and its ids.

    Special tokens are those of the template, and of messages that spell them, as everywhere in
    transformers: whoever takes messages from strangers has no secrets from them in the others.

    Raises:
        PromptError: for a model without a template, a conversation that its template refuses, or one
            that leaves no room in the context.
    """
    if not can_chat(model):
        raise PromptError(f"{model.name} has no chat template: send it plain text to continue")
    text = _render(model.tokenizer, messages, True)
    ids = [int(i) for i in model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
    model.check_prompt(ids)
    return text, ids


def answer(model: SpaceModel, output_ids: Sequence[int]) -> str:
    """What a model said, as the next turn's prompt repeats it: without special tokens."""
    text: str = model.tokenizer.decode(
        list(output_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text


def turn_ends(model: SpaceModel) -> frozenset[int]:
    """Ids that end an answer beside those that end a text.

    The tokenizer's end-of-sequence token, and the special token that the template writes behind an
    answer: some models are published with the end of a text only in their generation config.
    """
    tokenizer = model.tokenizer
    if not can_chat(model):
        return frozenset()
    ends = {tokenizer.eos_token_id}
    said = "fine"
    try:
        whole = _render(tokenizer, (Message("user", "well?"), Message("assistant", said)), False)
    except PromptError:
        whole = ""
    _, found, behind = whole.rpartition(said)
    if found and behind.strip():
        first = tokenizer(behind.lstrip(), add_special_tokens=False, verbose=False)["input_ids"][:1]
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        ends |= special.union(tokenizer.all_special_ids).intersection(first)
    return frozenset(int(i) for i in ends if i is not None)


def _render(tokenizer: Any, messages: Sequence[Message], generation: bool) -> str:
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(
            to_json(messages), tokenize=False, add_generation_prompt=generation
        )
    except (TemplateError, ValueError, TypeError) as error:
        raise PromptError(f"the chat template refuses it: {first_line(error)}") from None
    return str(text)
