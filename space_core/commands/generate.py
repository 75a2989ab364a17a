"""`generate`: one prompt, decoded."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator

from space_core.commands import options as given
from space_core.trace import Step, Trace
from space_core.visible import visible


def add(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=run)
    given.add_prompt(command)
    command.add_argument("--method", choices=("vanilla", "space"), default="space", help="default: space")
    given.add_space(command)
    given.add_settings(command)
    command.add_argument("--json", action="store_true", help='print the run as one object, "space-trace/1"')
    given.add_model(command)


def run(options: argparse.Namespace) -> int:
    """Decode one prompt; print the text, or with --json the whole trace."""
    settings = given.settings(options, options.k)
    prompt = given.prompt(options)
    model = given.model(options)
    import space_core

    ids = model.encode(prompt)
    space_core.tune_threads(model)
    method = {"vanilla": space_core.vanilla, "space": space_core.space}[options.method]
    steps: Iterator[Step] = method(model, ids, settings)
    collected = tuple(steps)
    output = [token for step in collected for token in step.emitted]
    trace = Trace(
        model=model.name,
        method=options.method,
        k=settings.k if options.method == "space" else 0,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        prompt_ids=tuple(ids),
        steps=collected,
        text=model.decode(output),
        settings=settings.to_json(),
    )
    if options.json:
        print(json.dumps(trace.to_json()))
    else:
        # A file or a pipe gets the text as it is.
        print(visible(trace.text) if sys.stdout.isatty() else trace.text)
        print(
            f"{options.method}: {len(output)} tokens, {trace.calls} calls, "
            f"{trace.tokens_per_call:.2f} tokens per call, {trace.seconds:.2f} s ({trace.stop})",
            file=sys.stderr,
        )
    return 0
