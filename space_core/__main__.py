"""The command line: `python -m space_core COMMAND …`, or `space COMMAND …` where it is installed.

Exit code 0 on success, 2 on bad input with one clear line on stderr, 130 when it was broken off with
Ctrl-C. What each command takes and does is in `space_core/commands/`.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import shlex
import sys
from pathlib import Path
from typing import NoReturn

from space_core.bundled import page
from space_core.commands import bench, chat, generate, inspect, race, verify
from space_core.errors import SpaceError
from space_core.visible import visible

ABOUT = """\
SPACE decoding: one language model drafts several tokens and verifies them in the same call.

A call is fed the newest token, the drafts of the call before, and groups of mask tokens. The drafts that
say what the model itself says stand; one token of its own follows them; and the masks behind the last
one that stands guess the next drafts. The text is that of plain decoding, in fewer calls.
"""
EXAMPLES = """\
examples:
  {prog} race "def fib(n):"                      both ways live, and the verdict
  {prog} generate "def fib(n):" --json           one run, every call told
  printf 'def fib(n):' | {prog} generate --prompt-file - --method vanilla
  {prog} inspect "def fib(n):" --call 3          the rows of a call, and who sees whom
  {prog} verify --model DIR_OR_HUB_ID            is decoding lossless with your model?
  {prog} bench --prompts prompts.jsonl --methods space,space-grid,generate
  {prog} app                                     the page, in a browser

Every command takes --help. The bundled model writes Python; --model takes any causal LM of
transformers, a folder or a hub id. Exit codes: 0 done, 2 bad input (one line says what), 130 Ctrl-C.
"""
RACE = """\
Race SPACE against plain decoding on one prompt, on a fair clock: one call at a time, each lane charged
its own seconds only, the lane that is behind moves next.

Marks, each with a cue beside its colour:
  green, underlined   an accepted draft: guessed by masks (or copied), and what the model says itself
  yellow, bold        corrected: a draft was wrong here, and this is the model's own token in its place
  cyan, italic        bonus: all drafts stood, and one token of the model's own came on top
  unmarked            the model's own, without any draft

NO_COLOR=1 leaves the cues. In a pipe, and where TERM=dumb, the text comes plain. Control characters that
a model writes are shown, never obeyed.
"""
GENERATE = """\
Decode one prompt. The text goes to standard output, one line of numbers to standard error; with --json a
whole run goes to standard output: every call with its drafts, what stood, rows and seconds.
"""
CHAT = """\
Talk with a model that has a chat template: each line of standard input is a turn. What was said stays in
the cache, so a turn reads only what is new. /new begins anew, Ctrl-D ends.
"""
INSPECT = """\
Open one call: what each row is, where it stands, what it predicted, what became of it, and the attention
mask, a line for each row that looks. The call is computed once more from the run, by the model that made
it. `--plan grid` shows the paper's (k+1)² rows; the default feeds only those worth their time.
"""
VERIFY = """\
Is decoding lossless with this model, on this device, in this dtype? Eight checks through the code that
decodes: rows, isolation, cache, greedy outputs, forced drafts, stopping, sampling, lanes. The report tells
cases, differences, margins and the first split; exit code 1 where something differs that rounding does not
explain.
"""
BENCH = """\
Measure: methods on a file of prompts (the default), calls by their rows, planned calls against the
better of plain ones and the grid, or the time outside the model. Prompts come in HumanEval's form
({"task_id", "prompt"}) or Spec-Bench's ({"question_id", "category", "turns"}), whose leaderboard is
printed too, and whose evaluation script reads what --answers writes.
"""
APP = "serve the page; what follows goes to it, `app --help` tells"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage: what is wrong is what the user wants to know."""
        self.exit(2, f"{self.prog}: {visible(' '.join(message.split()))}\n")


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    # Before torch is imported: spinning OpenMP threads starve each other on a busy small machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    typed = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show a letter gets a sign for it
            stream.reconfigure(errors="replace")
    parser = _parser()
    options, rest = parser.parse_known_args(typed)
    options.typed = shlex.join(typed)
    options.rest = rest
    if rest and options.command != "app":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        result: int = options.run(options)
        sys.stdout.flush()
        return result
    except SpaceError as error:
        print(f"space_core: {visible(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # What reads our output has seen enough; the interpreter must not try to flush it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"space_core: cannot write the output: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2


def app(options: argparse.Namespace) -> int:
    """Serve the page of this checkout or of the installed copy; ends with it.

    Raises:
        CheckpointError: where it was left out of the installation.
    """
    spec = importlib.util.spec_from_file_location("app", page())
    assert spec is not None and spec.loader is not None
    module = sys.modules["app"] = importlib.util.module_from_spec(spec)
    sys.argv = [f"{_name()} app", *options.rest]
    spec.loader.exec_module(module)
    module.main(options.rest)
    return 0


def _name() -> str:
    """What the user typed to get here."""
    return "space" if Path(sys.argv[0]).stem == "space" else "python -m space_core"


def _parser() -> argparse.ArgumentParser:
    prog = _name()
    layout = argparse.RawDescriptionHelpFormatter
    parser = _Parser(prog, description=ABOUT, epilog=EXAMPLES.format(prog=prog), formatter_class=layout)
    commands = parser.add_subparsers(
        dest="command", required=True, parser_class=_Parser, metavar="command", title="commands"
    )
    for add, name, short, about in (
        (race.add, "race", "SPACE against plain decoding, live in the terminal", RACE),
        (generate.add, "generate", "decode one prompt", GENERATE),
        (chat.add, "chat", "talk with an instruct model, a line a turn", CHAT),
        (inspect.add, "inspect", "one call: its rows, and who sees whom", INSPECT),
        (verify.add, "verify", "is decoding lossless with this model, on this device?", VERIFY),
        (bench.add, "bench", "measure methods on prompts, or calls by their rows", BENCH),
    ):
        add(commands.add_parser(name, help=short, description=about, formatter_class=layout))
    served = commands.add_parser("app", help=APP, add_help=False)
    served.set_defaults(run=app)
    return parser


if __name__ == "__main__":
    sys.exit(main())
