"""What can be taken away from a race, as one message to the browser: link, files, picture, code.

The contract "space-share/1"; `raced` says whether there is a race to save, and a message with
`error` is the answer to a file that could not be opened.
"""

from __future__ import annotations

import secrets
from typing import Final, Literal, NotRequired, TypedDict

from space_core.conversation import Conversation
from space_core.errors import PromptError
from space_core.settings import Settings
from space_core.views import card, code, frames, link, offline, sharing

FORMAT: Final = "space-share/1"


class Share(TypedDict):
    """`trace`, `page`, `card` are whole files' contents; `trace` is missing where it grew too large.

    No two messages have the same `id`: a browser is told of a value only when it changes.
    """

    format: Literal["space-share/1"]
    id: str
    raced: bool
    most: int
    note: str
    query: str
    link_note: str
    save_note: str
    python: str
    command: str
    curl: str
    code_note: str
    sentence: NotRequired[str]
    trace: NotRequired[str]
    page: NotRequired[str]
    card: NotRequired[str]


class Refusal(TypedDict):
    """A file was not opened, and why."""

    format: Literal["space-share/1"]
    id: str
    error: str


def refusal(sentence: str) -> Refusal:
    return Refusal(format=FORMAT, id=secrets.token_hex(4), error=sentence)


def message(
    race: frames.Race | None,
    prompt: str,
    settings: Settings,
    lanes: tuple[str, ...],
    model: str,
    source: str,
    device: str,
    dtype: str,
    messages: Conversation = (),
    chat: bool | None = None,
) -> Share:
    """What the share panel shows.

    Args:
        race: the visitor's, over; None where there is none yet.
        prompt, settings, lanes: of the race, else of the page's fields; `lanes` are the further ones.
        model: its name.
        source: what `space_core.load` opens.
        messages: of a conversation, if the race was one.
        chat: whether it was one, None where the model cannot hold any.
    """
    told = Share(
        format=FORMAT,
        id=secrets.token_hex(4),
        raced=race is not None,
        most=sharing.MAX_BYTES,
        note="",
        query="",
        link_note="Opens this page with prompt and settings filled in; nothing runs until Race is pressed.",
        save_note="",
        python=code.python(prompt, settings, source, device, dtype, messages),
        command=code.command(prompt, settings, source, device, dtype, "space", messages),
        curl=code.curl(prompt, settings, lanes, messages),
        code_note="Run Python and the command line in the repository’s folder, with its requirements "
        "installed; curl asks this page.",
    )
    try:
        asked = messages[-1].content if messages else prompt
        told["query"] = link.query(asked, settings, lanes, model, chat)
        if len(messages) > 1:
            told["link_note"] += " Earlier turns of the conversation are not in it."
    except PromptError as error:
        told["link_note"] = str(error)
    if race is None:
        told["note"] = "Race first: then its trace, its replay and its verdict can be saved."
        return told
    if race.foreign:
        told["note"] = f"This race came from a file. It says that it was run with {model}."
        told["code_note"] += " The first two name the model as the file does."
    frame = race.snapshot()
    verdict = frame["verdict"]
    told["sentence"] = verdict["sentence"] if verdict else ""
    told["card"] = card.svg(frame)
    told["page"] = offline.page(frame)
    told["save_note"] = "The replay is one file that opens anywhere, without a network."
    trace = sharing.write(race)
    if len(trace.encode()) <= sharing.MAX_BYTES:
        told["trace"] = trace
    else:
        told["save_note"] += (
            f" The trace would have {len(trace.encode()):,} bytes, more than are read here again."
        )
    return told
