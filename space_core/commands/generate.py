"""`generate`: one prompt or one conversation, decoded."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from space_core.commands import options as given
from space_core.errors import PromptError
from space_core.settings import Settings
from space_core.trace import Trace
from space_core.visible import visible

if TYPE_CHECKING:
    from space_core import conversation
    from space_core.memory import Memory
    from space_core.model import SpaceModel


def add(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=run)
    given.add_prompt(command)
    command.add_argument(
        "--messages",
        metavar="F",
        help='or the JSON of a conversation, [{"role", "content"}, …], "-" for standard input',
    )
    command.add_argument("--chat", action="store_true", help="send the prompt by the model's chat template")
    add_method(command)
    command.add_argument("--json", action="store_true", help='print the run as one object, "space-trace/1"')
    given.add_model(command)


def add_method(command: argparse.ArgumentParser) -> None:
    command.add_argument("--method", choices=("vanilla", "space"), default="space", help="default: space")
    given.add_space(command)
    given.add_settings(command)


def run(options: argparse.Namespace) -> int:
    """Decode one prompt; print the text, or with --json the whole trace."""
    settings = given.settings(options, options.k)
    if options.chat and options.messages is not None:
        raise PromptError("--chat makes a conversation of a prompt, --messages brings one: give one of them")
    if options.messages is not None and not (options.prompt is None and options.prompt_file is None):
        raise PromptError("give a prompt or --messages, not both")
    prompt = given.prompt(options) if options.messages is None else given.read_prompt(options.messages)
    messages: conversation.Conversation = ()
    if options.messages is not None or options.chat:
        from space_core import conversation

        said = [{"role": "user", "content": prompt}]
        chat = options.messages is None
        messages = conversation.read_messages(said) if chat else conversation.parse_messages(prompt)
    model = given.model(options)
    import space_core

    memory = None
    if messages:
        from space_core.memory import Memory

        _, ids = conversation.prompt(model, messages)
        memory = Memory(model, conversation.turn_ends(model))
    else:
        ids = model.encode(prompt)
    space_core.tune_threads(model)
    trace = decoded(model, ids, settings, options.method, memory)
    if options.json:
        print(json.dumps(trace.to_json()))
    else:
        text = conversation.answer(model, trace.output_ids) if messages else trace.text
        # A file or a pipe gets the text as it is.
        print(visible(text) if sys.stdout.isatty() else text)
        print(summary(trace), file=sys.stderr)
    return 0


def decoded(
    model: SpaceModel,
    ids: Sequence[int],
    settings: Settings,
    method: str,
    memory: Memory | None = None,
    told: bool = False,
) -> Trace:
    """One run. `told`: print the text as it comes, without what ends a turn."""
    import space_core
    from space_core.detokenize import Detokenizer

    decode = {"vanilla": space_core.vanilla, "space": space_core.space}[method]
    ends = model.eos_ids | (memory.eos_ids if memory else frozenset())
    shown = Detokenizer(model.tokenizer, ids) if told else None
    collected = []

    def tell(text: str, end: str) -> None:
        print(visible(text) if sys.stdout.isatty() else text, end=end, flush=True)

    for step in decode(model, ids, settings, memory):
        collected.append(step)
        if shown:
            tell("".join(shown.feed([i for i in step.emitted if i not in ends])), "")
    if shown:
        tell(shown.flush(), "\n")
    return Trace(
        model=model.name,
        method=method,
        k=settings.k if method == "space" else 0,
        dtype=model.dtype_name,
        device=str(model.device),
        prompt_ids=tuple(ids),
        steps=tuple(collected),
        text=model.decode([token for step in collected for token in step.emitted]),
        settings=settings.to_json(),
    )


def summary(trace: Trace) -> str:
    return (
        f"{trace.method}: {len(trace.output_ids)} tokens, {trace.calls} calls, "
        f"{trace.tokens_per_call:.2f} tokens per call, {trace.seconds:.2f} s ({trace.stop})"
    )
