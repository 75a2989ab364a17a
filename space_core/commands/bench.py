"""`bench`: methods on prompts, calls by their rows, and what else is measured."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from space_core.commands import options as given
from space_core.errors import PromptError, SettingError
from space_core.settings import Settings
from space_core.visible import visible

if TYPE_CHECKING:
    from space_core.bench import Column
    from space_core.model import SpaceModel
    from space_core.scores import Run


def run(options: argparse.Namespace) -> int:
    """Run the benchmark; print a table, or JSON."""
    if options.json not in (None, "-"):
        from space_core.bench import check_output

        check_output(Path(options.json))
    result, text = RUNS[options.what](options)
    if options.json == "-":
        print(json.dumps(result))
        return 0
    if options.json is not None:
        from space_core.bench import write

        write(Path(options.json), result)
    print(visible(text))
    return 0


def bench_prompts(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Prompts × methods: the result as JSON ("space-bench/1"), and as a table."""
    if options.prompts is None:
        raise PromptError("bench needs prompts: --prompts F.jsonl")
    ks = tuple(range(1, 9)) if options.sweep else options.k or (Settings().k,)
    settings, *_ = (given.settings(options, k) for k in ks)
    import space_core
    from space_core import bench, prompts, scores, specbench

    lines = bench.columns(options.methods, ks, options.plan)
    places = _answer_files(options, lines)
    asked = prompts.read_prompts(Path(options.prompts), options.limit)
    found: list[scores.Summary] = []
    board: list[specbench.Standing] = []
    skipped: dict[scores.Skip, None] = {}
    from tqdm import tqdm

    warmup = min(options.warmup, len(asked))
    with tqdm(total=len(options.dtype) * (warmup + options.repetitions * len(asked)), disable=None) as bar:
        for dtype in given.dtypes(options.dtype):
            model = given.model(options, dtype)
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
            if specbench.is_spec_bench(prompt.category for prompt in asked):
                reference = measured.runs[lines[0]]
                for line, runs in measured.runs.items():
                    board.append(specbench.standing(str(line.method), line.k, runs, reference))
            for line, runs in measured.runs.items():
                if places:
                    _write_answers(places[str(line.method), line.k, dtype], model, line, dtype, runs)
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
    if board:
        result["spec_bench"] = scores.to_json(board)
        tables += f"\n\n{specbench.report(board)}"
    return result, f"{_title(result)}, {result['prompts']} prompts\n\n{tables}"


def _answer_files(options: argparse.Namespace, lines: Sequence[Column]) -> dict[tuple[str, int, str], Path]:
    """Where each method's answers go; empty where none are asked for.

    Raises:
        SettingError: where a file cannot be written.
    """
    if options.answers is None:
        return {}
    from space_core import bench, specbench

    names = [(str(line.method), line.k, dtype) for dtype in options.dtype for line in lines]
    places = specbench.files(Path(options.answers), names)
    for path in places.values():
        bench.check_output(path, "answers")
    return places


def _write_answers(path: Path, model: SpaceModel, line: Column, dtype: str, runs: Sequence[Run]) -> None:
    from space_core import bench, conversation, specbench

    name = "-".join([model.name, str(line.method), *([f"k{line.k}"] if line.k else []), dtype])
    told = specbench.answers(runs, name, lambda run: conversation.answer(model, run.trace.output_ids))
    bench.write_lines(path, told)
    print(f"answers of {name}: {path}", file=sys.stderr)


def _opened(options: argparse.Namespace, settings: Settings) -> tuple[Any, Any, dict[str, Any]]:
    """Prompts, model and the head of the result, of a benchmark that takes one dtype.

    Raises:
        SpaceError: without prompts, for more than one dtype, or when something cannot be opened.
    """
    if options.prompts is None:
        raise PromptError(f"bench {options.what} needs prompts: --prompts F.jsonl")
    if len(options.dtype) > 1:
        raise SettingError("dtype", f"bench {options.what} measures one dtype at a time")
    (dtype,) = given.dtypes(options.dtype)
    import space_core
    from space_core import bench, prompts

    asked = prompts.read_prompts(Path(options.prompts), options.limit)
    model = given.model(options, dtype)
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
    settings, *_ = (given.settings(options, k) for k in ks)
    temperatures = options.temperatures or stakes.TEMPERATURES
    for temperature in temperatures:
        replace(settings, temperature=temperature)  # before anything is loaded
    asked, model, about = _opened(options, settings)
    lengths = options.context or stakes.LENGTHS
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
    result = {"format": stakes.FORMAT, **about, "abreast": True, "cells": scores.to_json(cells)}
    return result, f"{_title(result)}, {len(asked)} prompts\n\n{stakes.report(cells)}"


def bench_overhead(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The share of a run that is neither forward nor head ("space-bench-overhead/1")."""
    from space_core import overhead, scores

    settings = given.settings(options, (options.k or (Settings().k,))[0])
    asked, model, about = _opened(options, settings)
    found = overhead.profile(model, [model.encode(prompt.turns[0]) for prompt in asked], settings)
    result = {"format": overhead.FORMAT, **about, "methods": scores.to_json(found)}
    return result, f"{_title(result)}, {len(asked)} prompts\n\n{overhead.report(found)}"


def bench_calls(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Seconds of a call by its rows: the result as JSON ("space-bench-calls/1"), and as a table."""
    if options.model and options.shape:
        raise SettingError("shape", "--shape makes a model, --model opens one: give one of them")
    import space_core
    from space_core import bench, calls, scores

    found: list[calls.CallTime] = []
    for dtype in given.dtypes(options.dtype):
        if options.shape:
            given.quiet()
            model = calls.random_llama(options.shape, options.device, dtype)
        else:
            model = given.model(options, dtype)
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


def bench_batch(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """SPACE against plain decoding of the same batch, by its size ("space-bench-batch/1")."""
    from space_core import crowd, scores

    settings = given.settings(options, (options.k or (Settings().k,))[0])
    asked, model, about = _opened(options, settings)
    texts = [model.encode(prompt.turns[0]) for prompt in asked]
    sizes = options.batch or crowd.SIZES
    from tqdm import tqdm

    turns = sum(1 + options.repetitions * len(crowd.groups(len(texts), size)) for size in sizes)
    with tqdm(total=turns, disable=None) as bar:
        gains = crowd.measure(model, texts, settings, sizes, options.repetitions, progress=bar.update)
    result = {
        "format": crowd.FORMAT,
        **about,
        "repetitions": options.repetitions,
        "batches": scores.to_json(gains),
    }
    return result, f"{_title(result)}, {len(asked)} prompts\n\n{crowd.report(gains)}"


RUNS = {
    "prompts": bench_prompts,
    "calls": bench_calls,
    "planner": bench_planner,
    "overhead": bench_overhead,
    "batch": bench_batch,
}


def _title(result: dict[str, Any]) -> str:
    return f"{result['model']}\n{result['device']}, {result['threads']} threads"


def _head(options: argparse.Namespace) -> dict[str, str]:
    return {
        "command": f"python -m space_core {options.typed}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def add(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=run)
    command.add_argument(
        "what",
        nargs="?",
        choices=tuple(RUNS),
        default="prompts",
        help="prompts × methods (the default); seconds of a call by its rows; planned calls against "
        "plain ones and the grid over k, temperature, context and masks; time outside the model; several "
        "prompts at once, by their number",
    )
    command.add_argument("--json", metavar="OUT", help='write the result here, "-" for stdout')
    given.add_model(command, dtypes=True)
    of_prompts = command.add_argument_group("prompts")
    of_prompts.add_argument("--prompts", metavar="F.jsonl", help="in HumanEval's or Spec-Bench's form")
    of_prompts.add_argument("--methods", type=given.names, default=("space",), help="with commas")
    of_prompts.add_argument(
        "--answers",
        metavar="OUT.jsonl",
        help="write what was answered as Spec-Bench does, for its own evaluation script; vanilla's answers "
        "go to OUT-vanilla.jsonl, those of several methods to OUT-METHOD-kK.jsonl",
    )
    of_prompts.add_argument("--draft-model", metavar="DIR", help="the draft model of assisted")
    of_prompts.add_argument("--plan", choices=("auto", "grid"), default="auto", help="rows of space")
    of_prompts.add_argument("--k", type=given.counts, help="drafts per call; several with commas")
    of_prompts.add_argument("--sweep", choices=("k",), help="every space method with k = 1..8")
    of_prompts.add_argument("--limit", type=given.count, help="only so many prompts")
    of_prompts.add_argument("--repetitions", type=given.count, default=1)
    of_prompts.add_argument(
        "--prompt-tokens", type=given.count, help="lengthen (by the other prompts) or cut each prompt to this"
    )
    of_prompts.add_argument("--warmup", type=given.whole, default=1, help="prompts decoded before the clock")
    given.add_settings(of_prompts)
    of_prompts.add_argument(
        "--temperatures", type=given.decimals, help="of planner, with commas (0,0.7,1); it takes no other"
    )
    of_prompts.add_argument("--batch", type=given.counts, help="prompts at once (batch); several with commas")
    of_calls = command.add_argument_group("calls")
    of_calls.add_argument("--shape", help="random weights of this size: 16M, 100M, 1B or 7B")
    of_calls.add_argument("--rows", type=given.counts, help="with commas")
    of_calls.add_argument(
        "--context", type=given.counts, help="tokens in the cache (planner: of the prompts); with commas"
    )
