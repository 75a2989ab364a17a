"""The command line: `python -m space_core generate …`, `chat …` and `bench …`.

Exit code 0 on success, 2 on bad input with one clear line on stderr.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from space_core.bundled import default_checkpoint
from space_core.errors import PromptError, SettingError, SpaceError
from space_core.settings import Settings
from space_core.trace import Trace

if TYPE_CHECKING:
    from space_core import conversation
    from space_core.memory import Memory
    from space_core.model import SpaceModel

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
    options.typed = shlex.join(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show a letter gets a sign for it
            stream.reconfigure(errors="replace")
    try:
        result: int = options.run(options)
        sys.stdout.flush()
        return result
    except SpaceError as error:
        print(f"space_core: {error}", file=sys.stderr)
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


def generate(options: argparse.Namespace) -> int:
    """Decode one prompt; print the text, or with --json the whole trace."""
    settings = _settings(options, options.k)
    if options.chat and options.messages is not None:
        raise PromptError("--chat makes a conversation of a prompt, --messages brings one: give one of them")
    prompt = read_prompt(options.prompt_file if options.messages is None else options.messages)
    messages: conversation.Conversation = ()
    if options.messages is not None or options.chat:
        from space_core import conversation

        said = [{"role": "user", "content": prompt}]
        chat = options.messages is None
        messages = conversation.read_messages(said) if chat else conversation.parse_messages(prompt)
    _quiet()
    import space_core

    model = space_core.load(_model(options), options.device, options.dtype, options.mask_token_id)
    memory = None
    if messages:
        from space_core.memory import Memory

        _, ids = conversation.prompt(model, messages)
        memory = Memory(model, conversation.turn_ends(model))
    else:
        ids = model.encode(prompt)
    space_core.tune_threads(model)
    trace = _decoded(model, ids, settings, options.method, memory)
    if options.json:
        print(json.dumps(trace.to_json()))
    else:
        print(conversation.answer(model, trace.output_ids) if messages else trace.text)
        print(_summary(trace), file=sys.stderr)
    return 0


def chat(options: argparse.Namespace) -> int:
    """Talk: a line of standard input is what the user says, the answer follows as it comes.

    What was said stays in the cache; a turn reads only what is new. With --json one trace a line.
    """
    settings = _settings(options, options.k)
    _quiet()
    import space_core
    from space_core import conversation
    from space_core.memory import Memory

    model = space_core.load(_model(options), options.device, options.dtype, options.mask_token_id)
    begin: list[conversation.Message] = []
    if options.system:
        begin = [conversation.Message("system", options.system)]
    conversation.prompt(model, [*begin, conversation.Message("user", "well?")])  # fails before anybody types
    space_core.tune_threads(model)
    memory, said = Memory(model, conversation.turn_ends(model)), [*begin]
    asked = sys.stdin is not None and sys.stdin.isatty()
    if asked:
        print(f"{model.name}. An empty line is passed over, /new begins anew, Ctrl-D ends.", file=sys.stderr)
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
            print(f"{error}. /new begins a new conversation.", file=sys.stderr)
            continue
        trace = _decoded(model, ids, settings, options.method, memory, told=not options.json)
        if options.json:
            print(json.dumps(trace.to_json()), flush=True)
        else:
            kept = f"; {memory.kept} of {len(ids)} prompt tokens were in the cache" if memory.kept else ""
            print(f"\n{_summary(trace)}{kept}", file=sys.stderr)
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


def _decoded(
    model: SpaceModel,
    ids: Sequence[int],
    settings: Settings,
    method: str,
    memory: Memory | None,
    told: bool = False,
) -> Trace:
    """One run. `told`: print the text as it comes, without what ends a turn."""
    import space_core
    from space_core.detokenize import Detokenizer

    decode = {"vanilla": space_core.vanilla, "space": space_core.space}[method]
    ends = model.eos_ids | (memory.eos_ids if memory else frozenset())
    shown = Detokenizer(model.tokenizer, ids) if told else None
    collected = []
    for step in decode(model, ids, settings, memory):
        collected.append(step)
        if shown:
            print("".join(shown.feed([i for i in step.emitted if i not in ends])), end="", flush=True)
    if shown:
        print(shown.flush(), flush=True)
    return Trace(
        model=model.name,
        method=method,
        k=settings.k if method == "space" else 0,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        prompt_ids=tuple(ids),
        steps=tuple(collected),
        text=model.decode([token for step in collected for token in step.emitted]),
        settings=settings.to_json(),
    )


def _summary(trace: Trace) -> str:
    return (
        f"{trace.method}: {len(trace.output_ids)} tokens, {trace.calls} calls, "
        f"{trace.tokens_per_call:.2f} tokens per call, {trace.seconds:.2f} s ({trace.stop})"
    )


def bench(options: argparse.Namespace) -> int:
    """Run the benchmark; print a table, or JSON."""
    if options.json not in (None, "-"):
        from space_core.bench import check_output

        check_output(Path(options.json))
    run = RUNS[options.what]
    result, text = run(options)
    if options.json == "-":
        print(json.dumps(result))
        return 0
    if options.json is not None:
        from space_core.bench import write

        write(Path(options.json), result)
    print(text)
    return 0


def bench_prompts(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Prompts × methods: the result as JSON ("space-bench/1"), and as a table."""
    if options.prompts is None:
        raise PromptError("bench needs prompts: --prompts F.jsonl")
    ks = tuple(range(1, 9)) if options.sweep else options.k or (Settings().k,)
    settings, *_ = (_settings(options, k) for k in ks)
    _quiet()
    import space_core
    from space_core import bench, prompts, scores

    lines = bench.columns(options.methods, ks, options.plan)
    asked = prompts.read_prompts(Path(options.prompts), options.limit)
    found: list[scores.Summary] = []
    skipped: dict[scores.Skip, None] = {}
    from tqdm import tqdm

    warmup = min(options.warmup, len(asked))
    with tqdm(total=len(options.dtype) * (warmup + options.repetitions * len(asked)), disable=None) as bar:
        for dtype in _dtypes(options.dtype):
            model = space_core.load(_model(options), options.device, dtype, options.mask_token_id)
            if not found:  # one number of threads for all dtypes
                space_core.tune_threads(model)
            draft = None
            if options.draft_model is not None:
                draft = space_core.load(options.draft_model, options.device, dtype)
            measured = bench.measure(
                model,
                asked,
                lines,
                settings,
                repetitions=options.repetitions,
                warmup=warmup,
                draft=draft,
                prompt_tokens=options.prompt_tokens,
                progress=bar.update,
            )
            found += bench.summarize(measured)
            skipped |= dict.fromkeys(measured.skipped)
    result = bench.result(
        model,
        draft,
        options.dtype,
        settings,
        options.repetitions,
        len(asked),
        found,
        skipped,
        _head(options)["command"],
    )
    tables = scores.report(found, [*skipped], settings.greedy)
    return result, f"{_title(result)}, {result['prompts']} prompts\n\n{tables}"


def _opened(options: argparse.Namespace, settings: Settings) -> tuple[Any, Any, dict[str, Any]]:
    """Prompts, model and the head of the result, of a benchmark that takes one dtype."""
    if options.prompts is None:
        raise PromptError(f"bench {options.what} needs prompts: --prompts F.jsonl")
    (dtype,) = _dtypes(options.dtype[:1])
    _quiet()
    import space_core
    from space_core import bench, prompts

    asked = prompts.read_prompts(Path(options.prompts), options.limit)
    model = space_core.load(_model(options), options.device, dtype, options.mask_token_id)
    space_core.tune_threads(model)
    about = {
        **_head(options),
        **bench.machine(model.device),
        "model": model.name,
        "dtype": dtype,
        "settings": settings.to_json(),
        "prompts": len(asked),
    }
    return asked, model, about


def bench_planner(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Planned SPACE against the better of plain decoding and the grid ("space-bench-planner/1")."""
    from space_core import scores, stakes

    ks = options.k or stakes.KS
    settings, *_ = (_settings(options, k) for k in ks)
    asked, model, about = _opened(options, settings)
    lengths = options.context or stakes.LENGTHS
    temperatures = stakes.TEMPERATURES
    from tqdm import tqdm

    kinds = 1 if model.masks.method == "untrained" else 2
    with tqdm(total=kinds * len(ks) * len(lengths) * len(temperatures), disable=None) as bar:
        cells = stakes.play(
            model,
            asked,
            settings,
            ks=ks,
            temperatures=temperatures,
            lengths=lengths,
            repetitions=options.repetitions,
            progress=bar.update,
        )
    result = {"format": stakes.FORMAT, **about, "cells": scores.to_json(cells)}
    return result, f"{_title(result)}, {len(asked)} prompts\n\n{stakes.report(cells)}"


def bench_overhead(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The share of a run that is neither forward nor head ("space-bench-overhead/1")."""
    from space_core import overhead, scores

    settings = _settings(options, (options.k or (Settings().k,))[0])
    asked, model, about = _opened(options, settings)
    found = overhead.profile(model, [model.encode(prompt.turns[0]) for prompt in asked], settings)
    result = {"format": overhead.FORMAT, **about, "methods": scores.to_json(found)}
    return result, f"{_title(result)}, {len(asked)} prompts\n\n{overhead.report(found)}"


def bench_calls(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Seconds of a call by its rows: the result as JSON ("space-bench-calls/1"), and as a table."""
    if options.model and options.shape:
        raise SettingError("shape", "--shape makes a model, --model opens one: give one of them")
    _quiet()
    import space_core
    from space_core import bench, calls, scores

    found: list[calls.CallTime] = []
    for dtype in _dtypes(options.dtype):
        if options.shape:
            model = calls.random_llama(options.shape, options.device, dtype)
        else:
            model = space_core.load(_model(options), options.device, dtype, options.mask_token_id)
        if not found:
            space_core.tune_threads(model)
        rows = options.rows or calls.ROWS
        found += calls.measure(model, rows, calls.contexts_for(model, options.context, rows))
    result = {
        "format": calls.FORMAT,
        **_head(options),
        **bench.machine(model.device),
        "model": calls.describe(model),
        "calls": scores.to_json(found),
    }
    return result, f"{_title(result)}\n\n{calls.report(found)}"


RUNS = {
    "prompts": bench_prompts,
    "calls": bench_calls,
    "planner": bench_planner,
    "overhead": bench_overhead,
}


def _title(result: dict[str, Any]) -> str:
    return f"{result['model']}\n{result['device']}, {result['threads']} threads"


def _model(options: argparse.Namespace) -> str | Path:
    return default_checkpoint() if options.model is None else options.model


def _head(options: argparse.Namespace) -> dict[str, str]:
    return {
        "command": f"python -m space_core {options.typed}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _dtypes(names: Sequence[str]) -> Sequence[str]:
    """The names, all known: the last one is not to fail after an hour."""
    from space_core.checkpoint import DTYPES

    for name in names:
        if name not in DTYPES:
            raise SettingError("dtype", f"dtype must be one of {', '.join(DTYPES)}, not {name!r:.40}")
    return names


def read_prompt(name: str) -> str:
    """A prompt from a file, or from standard input for "-".

    Raises:
        PromptError: when it cannot be read as UTF-8 text, or is far too long.
    """
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


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("python -m space_core", description="SPACE decoding on the command line.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    command = commands.add_parser("generate", help="decode one prompt")
    command.set_defaults(run=generate)
    prompts = command.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt-file", metavar="F", help='text file, "-" for stdin')
    prompts.add_argument(
        "--messages", metavar="F", help='JSON of a conversation, [{"role", "content"}, …], "-" for stdin'
    )
    command.add_argument("--chat", action="store_true", help="send the prompt by the model's chat template")
    command.add_argument("--json", action="store_true", help="print the trace as one JSON object")
    _add_decoding(command)
    command = commands.add_parser("chat", help="talk with an instruct model, a line a turn")
    command.set_defaults(run=chat)
    command.add_argument("--system", metavar="TEXT", help="what the model is told first")
    command.add_argument("--json", action="store_true", help="print each answer's trace as a line of JSON")
    _add_decoding(command)
    _add_bench(commands.add_parser("bench", help="measure methods on prompts, or calls by their rows"))
    return parser


def _add_decoding(command: argparse.ArgumentParser) -> None:
    command.add_argument("--method", choices=("vanilla", "space"), default="space")
    command.add_argument("--plan", choices=("auto", "grid"), default="auto", help="rows of a call")
    command.add_argument("--k", type=int, default=Settings().k, help="drafts per call")
    _add_model(command)
    _add_settings(command)


def _add_bench(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=bench)
    command.add_argument(
        "what",
        nargs="?",
        choices=tuple(RUNS),
        default="prompts",
        help="prompts × methods (the default); seconds of a call by its rows; planned calls against "
        "plain ones and the grid over k, temperature, context and masks; time outside the model",
    )
    command.add_argument("--json", metavar="OUT", help='write the result here, "-" for stdout')
    _add_model(command, dtypes=True)
    of_prompts = command.add_argument_group("prompts")
    of_prompts.add_argument("--prompts", metavar="F.jsonl", help="in HumanEval's or Spec-Bench's form")
    of_prompts.add_argument("--methods", type=_names, default=("space",), help="with commas")
    of_prompts.add_argument("--draft-model", metavar="DIR", help="the draft model of assisted")
    of_prompts.add_argument("--plan", choices=("auto", "grid"), default="auto", help="rows of space")
    of_prompts.add_argument("--k", type=_counts, help="drafts per call; several with commas")
    of_prompts.add_argument("--sweep", choices=("k",), help="every space method with k = 1..8")
    of_prompts.add_argument("--limit", type=_count, help="only so many prompts")
    of_prompts.add_argument("--repetitions", type=_count, default=1)
    of_prompts.add_argument(
        "--prompt-tokens", type=_count, help="lengthen (by the other prompts) or cut each prompt to this"
    )
    of_prompts.add_argument("--warmup", type=_whole, default=1, help="prompts decoded before the clock")
    _add_settings(of_prompts)
    of_calls = command.add_argument_group("calls")
    of_calls.add_argument("--shape", help="random weights of this size: 16M, 100M, 1B or 7B")
    of_calls.add_argument("--rows", type=_counts, help="with commas")
    of_calls.add_argument(
        "--context", type=_counts, help="tokens in the cache (planner: of the prompts); with commas"
    )


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise argparse.ArgumentTypeError("names nothing")
    return names


def _counts(text: str) -> tuple[int, ...]:
    return tuple(_count(part) for part in text.split(","))


def _count(text: str) -> int:
    number = _whole(text)
    if not number:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _whole(text: str) -> int:
    if not text.strip().isdecimal() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r:.40} is no whole number")
    return int(text)


def _add_model(command: argparse.ArgumentParser, dtypes: bool = False) -> None:
    command.add_argument("--model", metavar="DIR_OR_HUB_ID", help="default: the bundled checkpoint")
    names = "float64, float32, bfloat16 or float16"
    if dtypes:
        command.add_argument("--dtype", type=_names, default=("float32",), help=f"{names}; with commas")
    else:
        command.add_argument("--dtype", default="float32", help=names)
    command.add_argument("--device", default="cpu", help="cpu, cuda, mps or auto")
    command.add_argument("--mask-token-id", type=int, help="id of [M] in an official-format checkpoint")


def _add_settings(command: argparse._ActionsContainer) -> None:
    defaults: Any = Settings()
    command.add_argument("--max-new-tokens", type=int, default=defaults.max_new_tokens)
    command.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    command.add_argument("--top-p", type=float, default=1.0)
    command.add_argument("--top-k", type=int, default=0)
    command.add_argument("--seed", type=int, default=0)


def _settings(options: argparse.Namespace, k: int) -> Settings:
    return Settings(
        k=k,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        seed=options.seed,
        plan=options.plan,
    )


def _quiet() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
