"""Prompt files of the benchmark, and what a conversation is to a model.

Two forms are read, line by line: HumanEval's {"task_id", "prompt"}, a text to be continued, and
Spec-Bench's {"question_id", "category", "turns": […]}, what a user says turn by turn.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from space_core.conversation import Message, can_chat
from space_core.conversation import prompt as rendered
from space_core.errors import PromptError
from space_core.model import SpaceModel

MAX_FILE_BYTES = 256_000_000
ALL = "all"
"""The category of prompts that name none."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One line of a prompt file.

    Attributes:
        id: `task_id` or `question_id`, as text.
        category: as the file names it, else "all".
        turns: what the user says, turn by turn.
        chat: whether the turns are a conversation (Spec-Bench form) and not text to continue.
    """

    id: str
    category: str
    turns: tuple[str, ...]
    chat: bool


def read_prompts(path: Path, limit: int | None = None) -> tuple[Prompt, ...]:
    """Prompts of a JSON-lines file in HumanEval's or Spec-Bench's form.

    Args:
        limit: how many to take, from the beginning.

    Raises:
        PromptError: naming file and line, for anything else.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise PromptError(f"{path} is longer than {MAX_FILE_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise PromptError(f"cannot read the prompts {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise PromptError(f"{path} is not UTF-8 text") from None
    prompts: list[Prompt] = []
    # Not splitlines: JSON text may hold U+2028 and the like unescaped.
    for number, line in enumerate(text.split("\n"), start=1):
        if len(prompts) == limit:
            break
        if line.strip():
            prompts.append(_prompt(line, f"{path}, line {number}"))
    if not prompts:
        raise PromptError(f"{path} holds no prompts")
    return tuple(prompts)


def _prompt(line: str, where: str) -> Prompt:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise PromptError(f"{where}: not JSON") from None
    if not isinstance(row, dict):
        raise PromptError(f"{where}: not an object")
    for form, name in (("prompt", "task_id"), ("turns", "question_id")):
        if form in row and name in row:
            break
    else:
        raise PromptError(
            f'{where}: neither {{"task_id", "prompt"}} nor {{"question_id", "category", "turns"}}'
        )
    turns = [row["prompt"]] if form == "prompt" else row["turns"]
    if not isinstance(turns, list) or not turns or not all(map(_is_text, turns)):
        raise PromptError(f"{where}: {form} must be {'' if form == 'prompt' else 'a list of '}text")
    label, category = row[name], row.get("category", ALL)
    if isinstance(label, bool) or not (isinstance(label, int) or _is_text(label)):
        raise PromptError(f"{where}: {name} must be text or a number")
    if not _is_text(category):
        raise PromptError(f"{where}: category must be text")
    return Prompt(str(label), category, tuple(turns), chat=form == "turns")


def _is_text(value: Any) -> bool:
    """Text that is not blank and is real Unicode: JSON can spell half a surrogate pair."""
    if not isinstance(value, str) or not value.strip():
        return False
    return not any("\ud800" <= letter <= "\udfff" for letter in value)


def turn_ids(model: SpaceModel, prompt: Prompt, answers: Sequence[str]) -> list[int]:
    """Ids of the next turn: the conversation so far and what the user says now.

    Raises:
        PromptError: for what does not fit the model's context, or its chat template.
    """
    turns = prompt.turns[: len(answers) + 1]
    if not (prompt.chat and can_chat(model)):
        parts = [text for pair in zip(turns, answers, strict=False) for text in pair]
        return model.encode("\n\n".join([*parts, turns[-1]]))
    messages = [Message("user", turns[0])]
    for answer, text in zip(answers, turns[1:], strict=True):
        messages += [Message("assistant", answer), Message("user", text)]
    return rendered(model, messages)[1]
