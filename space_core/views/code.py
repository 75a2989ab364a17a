"""A run as something to paste: Python with the library, and the command line. Model text is quoted
as each language quotes it, so that what is pasted is the prompt and never a part of the program.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any

from space_core.conversation import Message, to_json
from space_core.settings import Settings

_DEFAULTS = Settings()


def python(
    prompt: str,
    settings: Settings,
    model: str,
    device: str,
    dtype: str,
    messages: Sequence[Message] = (),
) -> str:
    """The SPACE lane of a race as a program; `model` is what `space_core.load` opens.

    Args:
        messages: of a conversation, which are then sent, and not the prompt.
    """
    asked = [
        f"{name}={value!r}"
        for name, value in settings.to_json().items()
        if name in ("k", "max_new_tokens") or value != getattr(_DEFAULTS, name)
    ]
    heading, asked_for, memory = ["import space_core", ""], f"prompt = {_literal(prompt)}", ""
    encoded = "model.encode(prompt)"
    if messages:
        rows = "".join(f"    {row!r},\n" for row in to_json(messages))
        heading = ["import space_core", "from space_core import conversation, memory", ""]
        asked_for = f"messages = conversation.read_messages([\n{rows}])"
        encoded = "ids"
        memory = ", memory.Memory(model, conversation.turn_ends(model))"
    return "\n".join(
        [
            *heading,
            asked_for,
            f"model = space_core.load({model!r}, device={device!r}, dtype={dtype!r})",
            *(["text, ids = conversation.prompt(model, messages)"] if messages else []),
            "space_core.tune_threads(model)",
            f"settings = space_core.Settings({', '.join(asked)})",
            f"for step in space_core.space(model, {encoded}, settings{memory}):",
            "    print(step.accepted, repr(model.decode(step.emitted)))",
            "",
        ]
    )


def _literal(prompt: str) -> str:
    """A string literal, one line of it for each line of the prompt."""
    lines = prompt.splitlines(keepends=True)
    if len(lines) < 2:
        return repr(prompt)
    return "(\n" + "".join(f"    {line!r}\n" for line in lines) + ")"


def command(
    prompt: str,
    settings: Settings,
    model: str,
    device: str,
    dtype: str,
    method: str,
    messages: Sequence[Message] = (),
) -> str:
    """One lane of a race in a POSIX shell."""
    fed, name = (json.dumps(to_json(messages)), "--messages") if messages else (prompt, "--prompt-file")
    asked = {
        "--method": method,
        "--plan": str(settings.plan),
        "--k": str(settings.k),
        "--max-new-tokens": str(settings.max_new_tokens),
        "--temperature": f"{settings.temperature:g}",
        "--top-p": f"{settings.top_p:g}",
        "--seed": str(settings.seed),
        "--model": shlex.quote(model),
        "--device": shlex.quote(device),
        "--dtype": shlex.quote(dtype),
    }
    options = " ".join(f"{name} {value}" for name, value in asked.items())
    return f"printf %s {shlex.quote(fed)} | \\\n  python -m space_core generate {name} - {options}\n"


def curl(prompt: str, settings: Settings, lanes: Sequence[str], messages: Sequence[Message] = ()) -> str:
    """The race over HTTP in a POSIX shell, where $url is the address of the API (`…/gradio_api/call`)."""
    asked: dict[str, Any] = {"messages": to_json(messages)} if messages else {"prompt": prompt}
    asked |= {
        name: value
        for name, value in settings.to_json().items()
        if name in ("k", "max_new_tokens") or (name != "verification" and value != getattr(_DEFAULTS, name))
    }
    if lanes:
        asked["lanes"] = list(lanes)
    return (
        "id=$(curl -s $url/v2/race -H 'Content-Type: application/json' \\\n"
        f"  -d {shlex.quote(json.dumps(asked))} | cut -d'\"' -f4)\n"
        "curl -sN $url/race/$id\n"
    )
