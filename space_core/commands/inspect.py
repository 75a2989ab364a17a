"""`inspect`: one call opened, its rows and who sees whom, of a run made here or of a saved one."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from space_core.commands import options as given
from space_core.commands.generate import decoded
from space_core.errors import TraceError

if TYPE_CHECKING:
    from space_core.model import SpaceModel
    from space_core.trace import Trace

MAX_TRACE_BYTES = 64_000_000


def add(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=run)
    given.add_prompt(command)
    command.add_argument(
        "--trace", metavar="F.json", help="a run that generate, race or the page saved, in place of a prompt"
    )
    command.add_argument("--lane", choices=("space", "vanilla"), default="space", help="of a saved race")
    command.add_argument(
        "--call", type=given.count, metavar="N", help="from 1; default: the one that wrote most tokens"
    )
    given.add_space(command)
    given.add_settings(command)
    command.add_argument("--json", action="store_true", help='print the call as one object, "space-call/1"')
    given.add_model(command)


def run(options: argparse.Namespace) -> int:
    """Print one call of a run."""
    if options.trace is None:
        settings = given.settings(options, options.k)
        prompt = given.prompt(options)
        model = given.model(options)
        trace = _decoded(model, prompt, settings, options.lane)
    else:
        if options.prompt is not None or options.prompt_file is not None:
            raise TraceError("give a prompt or a trace, not both")
        trace = read(options.trace, options.lane)
        model = given.model(options)
    from space_core.views import inspect, terminal

    call = options.call or 1 + max(range(trace.calls), key=lambda n: len(trace.steps[n].emitted), default=0)
    told = inspect.answer(model, trace, call - 1, race="")
    if options.json:
        print(json.dumps(told))
        return 0
    text = terminal.call(told, signs=_shows("■·“↵", sys.stdout.encoding))
    screen = terminal.console(sys.stdout)
    if screen.is_terminal and not screen.is_dumb_terminal:
        screen.print(text, soft_wrap=True)
    else:
        print(text.plain)
    return 0


def _decoded(model: SpaceModel, prompt: str, settings: Any, lane: str) -> Trace:
    import space_core

    ids = model.encode(prompt)
    space_core.tune_threads(model)
    return decoded(model, ids, settings, lane)


def read(name: str, lane: str) -> Trace:
    """A run of a file: a bare trace, or one lane of a race.

    Raises:
        TraceError: for a file that holds none.
    """
    from space_core.trace import Trace

    path = Path(name)
    try:
        if path.stat().st_size > MAX_TRACE_BYTES:
            raise TraceError(f"{name} is longer than {MAX_TRACE_BYTES} bytes")
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TraceError(f"cannot read the trace {name}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise TraceError(f"{name} is no JSON") from None
    traces = data.get("traces") if isinstance(data, dict) else None
    if not isinstance(traces, list):
        return Trace.from_json(data)
    for trace in map(Trace.from_json, traces):
        if trace.method == lane:
            return trace
    raise TraceError(f"{name} holds no run of {lane}")


def _shows(signs: str, encoding: str | None) -> bool:
    try:
        signs.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
