"""Training data of `sft`: JSON lines, or a data set of the hub, to conversations.

This room knows files and forms; it knows no token. A line has one of three forms, each line its own:

    {"prompt": "…", "response": "…"}
    {"messages": [{"role": "system" | "user" | "assistant", "content": "…"}, …]}
    {"text": "…"}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from space_core.errors import SpaceError

ROLES = ("system", "user", "assistant")
FORMS = '{"prompt", "response"}, {"messages": [{"role", "content"}, …]} or {"text"}'


class DataError(SpaceError):
    """Training data cannot be read; the message names the file and the line."""


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """One line of training data.

    Attributes:
        where: file and line, for messages to people.
        messages: from the first to the last answer; empty for a text.
        text: of the text form, else "".
        completion: the line had the prompt–response form: without a chat template, the response
            follows its prompt directly.
    """

    where: str
    messages: tuple[Message, ...] = ()
    text: str = ""
    completion: bool = False

    @property
    def system(self) -> tuple[Message, ...]:
        """What stands before the first exchange."""
        return self.messages[: next(i for i, m in enumerate(self.messages) if m.role != "system")]

    @property
    def question(self) -> tuple[Message, ...] | str:
        """What stands before the first answer; of a text, all of it."""
        if self.text:
            return self.text
        return self.messages[: next(i for i, m in enumerate(self.messages) if m.role == "assistant")]

    def exchanges(self) -> list[tuple[Message, ...]]:
        """Groups of messages that end with an answer, without what stands before the first."""
        groups: list[tuple[Message, ...]] = []
        start = len(self.system)
        for index, message in enumerate(self.messages):
            following = self.messages[index + 1 : index + 2]
            if message.role == "assistant" and not (following and following[0].role == "assistant"):
                groups.append(self.messages[start : index + 1])
                start = index + 1
        return groups


def read_data(name: str, split: str = "train") -> tuple[list[Conversation], str]:
    """Conversations of a JSON-lines file, or of a data set of the Hugging Face hub.

    Args:
        name: a path, or the id of a data set (needs the package `datasets`).
        split: which split of the data set.

    Returns:
        The conversations, and a SHA-256 of what they hold.

    Raises:
        DataError: naming file and line, for anything that is in none of the forms.
    """
    path = Path(name)
    rows: Iterable[tuple[str, Any]]
    if path.is_file() or path.suffix in (".jsonl", ".json"):
        rows = _lines(path)
    elif path.exists():
        raise DataError(f"{name} is a folder: give a JSON-lines file or the id of a data set")
    else:
        rows = _hub_rows(name, split)
    found, digest = [], hashlib.sha256()
    for where, row in tqdm(rows, desc="read data", mininterval=2, unit=" lines", disable=None):
        found.append(conversation(row, where))
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    if not found:
        raise DataError(f"{name} holds no training data")
    return found, digest.hexdigest()


def conversation(row: Any, where: str) -> Conversation:
    """One row in one of the forms.

    Raises:
        DataError: beginning with `where`, for anything else.
    """
    if not isinstance(row, dict):
        raise DataError(f"{where}: not an object, but needs {FORMS}")
    # A data set's rows have all columns; those that do not apply hold null.
    keys = {key for key, value in row.items() if value is not None}
    if "messages" in keys:
        return Conversation(where, _messages(row["messages"], where))
    if {"prompt", "response"} <= keys:
        prompt, response = (_text(row[key], f"{where}: {key}") for key in ("prompt", "response"))
        pair = (Message("user", prompt), Message("assistant", response))
        return Conversation(where, pair, completion=True)
    if "text" in keys:
        return Conversation(where, text=_text(row["text"], f"{where}: text"))
    for one, other in (("prompt", "response"), ("response", "prompt")):
        if one in keys:
            raise DataError(f"{where}: has a {one} but no {other}")
    names = ", ".join(sorted(map(str, keys)))
    raise DataError(f"{where}: has {f'{names:.80}' if names else 'no keys'}, but needs {FORMS}")


def _messages(value: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: messages must be a list of messages")
    messages: list[Message] = []
    for index, entry in enumerate(value):
        place = f"{where}: messages[{index}]"
        if not isinstance(entry, dict):
            raise DataError(f"{place}: not an object with role and content")
        role = entry.get("role")
        if role not in ROLES:
            raise DataError(f"{place}: role must be system, user or assistant, not {role!r:.40}")
        if role == "system" and index:
            raise DataError(f"{place}: a system message can only be the first")
        messages.append(Message(role, _text(entry.get("content"), f"{place}: content")))
    while messages and messages[-1].role != "assistant":
        messages.pop()  # nobody answered these
    if not messages:
        raise DataError(f"{where}: messages hold no answer of the assistant")
    if not any(message.role == "user" for message in messages):
        raise DataError(f"{where}: messages hold no question of the user")
    return tuple(messages)


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{place} must be text, not {type(value).__name__}")
    if not value.strip():
        raise DataError(f"{place} is empty")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise DataError(f"{place} holds half a surrogate pair: that is no Unicode text")
    return value


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                where = f"{path}, line {number}"
                if not line.strip():
                    continue
                try:
                    yield where, json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                except UnicodeDecodeError:
                    raise DataError(f"{where}: not UTF-8 text") from None
                except (ValueError, RecursionError) as error:
                    reason = getattr(error, "msg", None) or type(error).__name__
                    raise DataError(f"{where}: not JSON ({reason}): one object a line is needed") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None


def _hub_rows(name: str, split: str) -> Iterator[tuple[str, Any]]:
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"there is no file {name}; if it is a data set of the hub, install the package that reads "
            "those: pip install datasets"
        ) from None
    try:
        rows = datasets.load_dataset(name, split=split)
    # Whatever the library, the network or the hub has against it: it is the user's to read.
    except Exception as error:
        text = str(error).strip().splitlines()
        reason = text[0][:200] if text else type(error).__name__
        raise DataError(f"there is no file {name}, and as a data set it cannot be read: {reason}") from None
    for number, row in enumerate(rows, 1):
        yield f"{name} ({split}), row {number}", row
