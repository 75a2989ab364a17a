"""`chat`: a conversation with an instruct model, a line a turn."""

from __future__ import annotations

import argparse
import json
import sys

from space_core.commands import options as given
from space_core.commands.generate import add_method, decoded, summary
from space_core.errors import PromptError
from space_core.visible import visible


def add(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=run)
    command.add_argument("--system", metavar="TEXT", help="what the model is told first")
    command.add_argument("--json", action="store_true", help="print each answer's trace as a line of JSON")
    add_method(command)
    given.add_model(command)


def run(options: argparse.Namespace) -> int:
    """Talk: a line of standard input is what the user says, the answer follows as it comes.

    What was said stays in the cache; a turn reads only what is new. With --json one trace a line.
    """
    settings = given.settings(options, options.k)
    model = given.model(options)
    import space_core
    from space_core import conversation
    from space_core.memory import Memory

    begin: list[conversation.Message] = []
    if options.system:
        begin = [conversation.Message("system", options.system)]
    conversation.prompt(model, [*begin, conversation.Message("user", "well?")])  # fails before anybody types
    space_core.tune_threads(model)
    memory, said = Memory(model, conversation.turn_ends(model)), [*begin]
    asked = sys.stdin is not None and sys.stdin.isatty()
    if asked:
        name = visible(model.name)
        print(f"{name}. An empty line is passed over, /new begins anew, Ctrl-D ends.", file=sys.stderr)
    while (line := _line(asked)) is not None:
        if not line.strip():
            continue
        if line.strip() == "/new":
            said = [*begin]
            continue
        turn = [*said, *conversation.read_messages([{"role": "user", "content": line}])]
        try:
            _, ids = conversation.prompt(model, turn)
        except PromptError as error:
            if not asked:
                raise
            print(f"{visible(str(error))}. /new begins a new conversation.", file=sys.stderr)
            continue
        trace = decoded(model, ids, settings, options.method, memory, told=not options.json)
        if options.json:
            print(json.dumps(trace.to_json()), flush=True)
        else:
            kept = f"; {memory.kept} of {len(ids)} prompt tokens were in the cache" if memory.kept else ""
            print(f"\n{summary(trace)}{kept}", file=sys.stderr)
        said = [*turn, conversation.Message("assistant", conversation.answer(model, trace.output_ids))]
    return 0


def _line(asked: bool) -> str | None:
    """What the user says next; None at the end."""
    if asked:
        print("> ", end="", file=sys.stderr, flush=True)
    try:
        line = sys.stdin.readline() if sys.stdin is not None else ""
    except UnicodeDecodeError:
        raise PromptError("the prompt is not UTF-8 text") from None
    return line.rstrip("\n") if line else None
