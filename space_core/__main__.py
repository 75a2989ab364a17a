"""The command line: `python -m space_core generate …`.

Exit code 0 on success, 2 on bad input with one clear line on stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from space_core.bundled import default_checkpoint
from space_core.errors import PromptError, SpaceError
from space_core.settings import Settings
from space_core.trace import Step, Trace

MAX_PROMPT_BYTES = 4_000_000


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage: what is wrong is what the user wants to know."""
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    # Before torch is imported: spinning OpenMP threads starve each other on a busy small machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    options = _parser().parse_args(arguments)
    try:
        result: int = options.run(options)
        return result
    except SpaceError as error:
        print(f"space_core: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 0


def generate(options: argparse.Namespace) -> int:
    """Decode one prompt; print the text, or with --json the whole trace."""
    settings = Settings(
        k=options.k,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        seed=options.seed,
        plan=options.plan,
    )
    prompt = read_prompt(options.prompt_file)
    _quiet()
    import space_core

    model = space_core.load(
        options.model or default_checkpoint(), options.device, options.dtype, options.mask_token_id
    )
    ids = model.encode(prompt)
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
        print(trace.text)
        print(
            f"{options.method}: {len(output)} tokens, {trace.calls} calls, "
            f"{trace.tokens_per_call:.2f} tokens per call, {trace.seconds:.2f} s ({trace.stop})",
            file=sys.stderr,
        )
    return 0


def read_prompt(name: str) -> str:
    """A prompt from a file, or from standard input for "-".

    Raises:
        PromptError: when it cannot be read as UTF-8 text, or is far too long.
    """
    try:
        if name == "-":
            data = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)
        else:
            with Path(name).open("rb") as file:
                data = file.read(MAX_PROMPT_BYTES + 1)
    except OSError as error:
        raise PromptError(f"cannot read the prompt file {name}: {error.strerror}") from None
    if len(data) > MAX_PROMPT_BYTES:
        raise PromptError(f"the prompt is longer than {MAX_PROMPT_BYTES} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise PromptError("the prompt is not UTF-8 text") from None


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("python -m space_core", description="SPACE decoding on the command line.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    command = commands.add_parser("generate", help="decode one prompt")
    command.set_defaults(run=generate)
    command.add_argument("--prompt-file", required=True, metavar="F", help='text file, "-" for stdin')
    command.add_argument("--method", choices=("vanilla", "space"), default="space")
    command.add_argument("--plan", choices=("auto", "grid"), default="auto", help="rows of a call")
    command.add_argument("--json", action="store_true", help="print the trace as one JSON object")
    _add_model(command)
    _add_settings(command)
    return parser


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", metavar="DIR_OR_HUB_ID", help="default: the bundled checkpoint")
    command.add_argument("--dtype", default="float32", help="float64, float32, bfloat16 or float16")
    command.add_argument("--device", default="cpu", help="cpu, cuda, mps or auto")
    command.add_argument("--mask-token-id", type=int, help="id of [M] in an official-format checkpoint")


def _add_settings(command: argparse.ArgumentParser) -> None:
    defaults: Any = Settings()
    command.add_argument("--k", type=int, default=defaults.k, help="drafts per call")
    command.add_argument("--max-new-tokens", type=int, default=defaults.max_new_tokens)
    command.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    command.add_argument("--top-p", type=float, default=1.0)
    command.add_argument("--top-k", type=int, default=0)
    command.add_argument("--seed", type=int, default=0)


def _quiet() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
