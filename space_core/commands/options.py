"""What several commands take: the prompt, the model, the settings of a run; and how they are read."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from space_core.bundled import default_checkpoint
from space_core.errors import PromptError, SettingError
from space_core.settings import Settings

if TYPE_CHECKING:
    from space_core.model import SpaceModel

MAX_PROMPT_BYTES = 4_000_000


def add_prompt(command: argparse.ArgumentParser) -> None:
    command.add_argument("prompt", nargs="?", help="the text to go on from, in quotes")
    command.add_argument("--prompt-file", metavar="F", help='or a text file, "-" for standard input')


def add_model(command: argparse.ArgumentParser, dtypes: bool = False) -> None:
    group = command.add_argument_group("model")
    group.add_argument("--model", metavar="DIR_OR_HUB_ID", help="default: the bundled checkpoint")
    floats = "float64, float32, bfloat16 or float16"
    if dtypes:
        group.add_argument("--dtype", type=names, default=("float32",), help=f"{floats}; with commas")
    else:
        group.add_argument("--dtype", default="float32", help=floats)
    group.add_argument("--device", default="cpu", help="cpu, cuda, mps or auto")
    group.add_argument(
        "--device-map",
        type=device_map,
        metavar="MAP",
        help='for a model larger than one device: "auto", or a JSON object of modules and devices, "disk" '
        "among them; layers are spread over GPUs, CPU and disk",
    )
    group.add_argument(
        "--max-memory",
        type=memory,
        metavar="JSON",
        help='most bytes of each device for it: {"0": "20GiB", "cpu": "60GiB"}',
    )
    group.add_argument("--offload-folder", metavar="DIR", help="where layers on disk are written, if need be")
    group.add_argument("--mask-token-id", type=int, help="id of [M] in an official-format checkpoint")


def add_settings(command: argparse._ActionsContainer) -> None:
    defaults: Any = Settings()
    command.add_argument("--max-new-tokens", type=int, default=defaults.max_new_tokens, help="the budget")
    command.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    command.add_argument("--top-p", type=float, default=1.0, help="1 keeps every token")
    command.add_argument("--top-k", type=int, default=0, help="0 keeps every token")
    command.add_argument("--seed", type=int, default=0, help="of sampling")


def add_space(command: argparse.ArgumentParser) -> None:
    command.add_argument("--k", type=int, default=Settings().k, help="drafts per call")
    command.add_argument(
        "--plan",
        choices=("auto", "grid"),
        default="auto",
        help="rows of a call: those worth their time here, or the paper's (k+1)²",
    )


def settings(options: argparse.Namespace, k: int) -> Settings:
    """Raises SettingError."""
    return Settings(
        k=k,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        seed=options.seed,
        plan=options.plan,
    )


def prompt(options: argparse.Namespace) -> str:
    """The prompt, typed or from a file.

    Raises:
        PromptError: unless there is exactly one of them, and it is text.
    """
    if (options.prompt is None) == (options.prompt_file is None):
        raise PromptError('give one prompt: in quotes, or as --prompt-file F ("-" for standard input)')
    if options.prompt is None:
        return read_prompt(options.prompt_file)
    if any("\ud800" <= letter <= "\udfff" for letter in options.prompt):
        raise PromptError("the prompt is not UTF-8 text")
    return str(options.prompt)


def read_prompt(name: str) -> str:
    """A prompt from a file, or from standard input for "-".

    Raises:
        PromptError: when it cannot be read as UTF-8 text, or is far too long.
    """
    if not name:
        raise PromptError("the name of the prompt file is empty")
    try:
        if name == "-" and sys.stdin is None:
            raise PromptError("there is no standard input to read the prompt from")
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


def model(options: argparse.Namespace, dtype: str | None = None) -> SpaceModel:
    """The model that was asked for, without transformers' talk; `dtype` in place of the options'.

    Raises:
        SpaceError: when it cannot be opened.
    """
    source = default_checkpoint() if options.model is None else options.model
    quiet()
    import space_core

    return space_core.load(
        source,
        options.device,
        dtype or options.dtype,
        options.mask_token_id,
        device_map=options.device_map,
        max_memory=options.max_memory,
        offload_folder=options.offload_folder,
    )


def quiet() -> None:
    import logging as python

    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    python.getLogger("accelerate").setLevel(python.ERROR)


def dtypes(asked: Sequence[str]) -> Sequence[str]:
    """The names, all known: the last one is not to fail after an hour."""
    from space_core.checkpoint import DTYPES

    for name in asked:
        if name not in DTYPES:
            raise SettingError("dtype", f"dtype must be one of {', '.join(DTYPES)}, not {name!r:.40}")
    return asked


def device_map(text: str) -> str | dict[str, Any]:
    return _object(text) if text.lstrip().startswith("{") else text


def memory(text: str) -> dict[int | str, Any]:
    """Most bytes by device; JSON has no whole numbers as keys, and accelerate counts GPUs by them."""
    return {int(name) if name.isdecimal() else name: most for name, most in _object(text).items()}


def _object(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise argparse.ArgumentTypeError(f"{text!r:.60} is no JSON object")
    return data


def names(text: str) -> tuple[str, ...]:
    found = tuple(name.strip() for name in text.split(",") if name.strip())
    if not found:
        raise argparse.ArgumentTypeError("names nothing")
    return found


def counts(text: str) -> tuple[int, ...]:
    return tuple(count(part) for part in text.split(","))


def decimals(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r:.40} is no number, nor several with commas") from None


def count(text: str) -> int:
    number = whole(text)
    if not number:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def whole(text: str) -> int:
    if not text.strip().isdecimal() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r:.40} is no whole number")
    return int(text)
