"""The benchmark: prompts × methods on one model ("space-bench/1").

All methods decode each prompt one after another, and the order rotates from prompt to prompt, so
that a machine which grows warm or busy hurts them alike; or, where every method can, all of them at
once, a stretch each in turn. A run's seconds are the wall-clock from handing over the prompt ids to the
last token, for every method. Vanilla runs in every benchmark: speed-ups and differences are against its
runs of the same prompts in the same minutes.

This room runs decoders; what is made of their traces is in `scores`.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from itertools import product
from pathlib import Path
from typing import Any

import torch
import transformers

import space_core
from space_core import peers, racing
from space_core.conversation import answer
from space_core.decoders import space, vanilla
from space_core.errors import PromptError, SettingError
from space_core.model import SpaceModel
from space_core.prompts import Prompt, turn_ids
from space_core.scores import Run, Skip, Summary, summary, to_json
from space_core.settings import MAX_SEED, Plan, Settings
from space_core.trace import Step, Trace

FORMAT = "space-bench/1"


class Method(StrEnum):
    """Ways to decode, by their names on the command line."""

    VANILLA = "vanilla"
    SPACE = "space"
    SPACE_GRID = "space-grid"
    SPACE_AUTO = "space-auto"
    GENERATE = "generate"
    PROMPT_LOOKUP = "prompt-lookup"
    ASSISTED = "assisted"


PEERS = {
    Method.GENERATE: peers.Peer.GENERATE,
    Method.PROMPT_LOOKUP: peers.Peer.PROMPT_LOOKUP,
    Method.ASSISTED: peers.Peer.ASSISTED,
}


@dataclass(frozen=True, slots=True)
class Column:
    """One way to decode: a line of the table.

    Attributes:
        k: drafts per call of SPACE; 0 for the other methods.
        plan: rows of SPACE's calls; None for the other methods.
    """

    method: Method
    k: int = 0
    plan: Plan | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """Runs of each column, in the same order of prompts, turns and repetitions for all of them.

    `halted`: it was broken off; the turn under way counts for no column.
    """

    runs: dict[Column, tuple[Run, ...]]
    skipped: tuple[Skip, ...]
    halted: bool = False


class _Halt(Exception):
    """Breaks a run off, between two of its calls."""


def columns(names: Iterable[str], ks: Sequence[int], plan: Plan | str) -> tuple[Column, ...]:
    """The table's lines: vanilla first, SPACE once for each k.

    Args:
        names: of methods, as a user writes them.
        plan: what "space" means.

    Raises:
        SettingError: for a name that is no method.
    """
    plans = {
        Method.SPACE: Plan(plan),
        Method.SPACE_GRID: Plan.GRID,
        Method.SPACE_AUTO: Plan.AUTO,
    }
    found = [Column(Method.VANILLA)]
    for name in names:
        if name not in list(Method):
            raise SettingError("methods", f"unknown method {name!r:.40}: known are {', '.join(Method)}")
        method = Method(name)
        if method in plans:
            found += [Column(method, k, plans[method]) for k in ks]
        else:
            found.append(Column(method))
    return tuple(dict.fromkeys(found))


def measure(
    model: SpaceModel,
    prompts: Sequence[Prompt],
    lines: Sequence[Column],
    settings: Settings,
    *,
    repetitions: int = 1,
    warmup: int = 1,
    draft: SpaceModel | None = None,
    prompt_tokens: int | None = None,
    abreast: bool = False,
    progress: Callable[[], object] = lambda: None,
    halt: Callable[[Column], bool] | None = None,
) -> Measured:
    """Run every column on every prompt.

    Args:
        settings: the request; k and plan are the columns'. When sampling, each repetition has a
            seed of its own.
        warmup: prompts that are decoded once beforehand and not counted.
        draft: the draft model of `assisted`.
        prompt_tokens: give every prompt this length: the end of it, behind the prompts before it in
            the list, as often as it takes.
        abreast: decode each prompt in all columns at once, some tokens each in turn, rather than in one after
            another. On a machine that others use pairs of runs then differ by a twentieth, not by a third;
            transformers' own methods cannot be had so.
        progress: called after each prompt, warm-up included.
        halt: asked at every call of the model, for the column under way; True breaks the benchmark off.

    Raises:
        CheckpointError: for `assisted` without a draft model of the same vocabulary.
        SettingError: for columns that cannot go abreast.
    """
    if abreast and any(line.method in PEERS for line in lines):
        raise SettingError("methods", "transformers' own methods cannot decode call by call in turn")
    if any(line.method is Method.ASSISTED for line in lines):
        peers.check_draft(model, draft)
    runs: dict[Column, list[Run]] = {line: [] for line in lines}
    skipped: dict[Skip, None] = {}
    filler: list[int] = []
    if prompt_tokens is not None:
        texts = [model.encode(prompt.turns[0]) for prompt in prompts]
        while len(filler) < prompt_tokens:
            filler += [token for text in texts for token in text]
    todo: list[tuple[Prompt, int | None]] = [(prompt, None) for prompt in prompts[:warmup]]
    todo += [(prompt, repetition) for repetition, prompt in product(range(repetitions), prompts)]
    for count, (prompt, repetition) in enumerate(todo):
        shift = count % len(lines)
        request = settings
        if not settings.greedy:
            request = replace(settings, seed=(settings.seed + (repetition or 0)) % (MAX_SEED + 1))
        said: dict[Column, list[str]] = {line: [] for line in lines}
        for turn in range(len(prompt.turns)):
            try:
                asked = {
                    line: [*filler, *turn_ids(model, prompt, said[line])][-(prompt_tokens or 0) :]
                    for line in (*lines[shift:], *lines[:shift])
                }
                if abreast:
                    done = _decode_abreast(model, asked, request, halt)
                else:
                    done = {
                        line: _decode(model, ids, request, line, draft, halt) for line, ids in asked.items()
                    }
            except PromptError as error:
                skipped[Skip(prompt.id, turn, str(error))] = None
                break
            except _Halt:
                return _measured(runs, skipped, halted=True)
            for line, (trace, seconds) in done.items():
                said[line].append(answer(model, trace.output_ids))
                if repetition is not None:
                    runs[line].append(Run(prompt.id, prompt.category, turn, repetition, trace, seconds))
        progress()
    return _measured(runs, skipped)


def _measured(runs: dict[Column, list[Run]], skipped: Iterable[Skip], halted: bool = False) -> Measured:
    return Measured({line: tuple(found) for line, found in runs.items()}, tuple(skipped), halted)


def _decode(
    model: SpaceModel,
    ids: list[int],
    settings: Settings,
    line: Column,
    draft: SpaceModel | None,
    halt: Callable[[Column], bool] | None,
) -> tuple[Trace, float]:
    """One run, and its seconds on the clock."""
    peer = PEERS.get(line.method)
    if peer is not None:
        trace = peers.run(model, ids, settings, peer, draft, lambda: _watch(halt, line))
        return trace, trace.seconds
    settings = _settings(settings, line)
    steps: list[Step] = []
    start = model.clock()
    for step in _decoder(model, ids, settings, line):
        steps.append(step)
        _watch(halt, line)
    seconds = model.clock() - start
    return _trace(model, ids, settings, line, steps), seconds


def _decode_abreast(
    model: SpaceModel,
    asked: dict[Column, list[int]],
    settings: Settings,
    halt: Callable[[Column], bool] | None,
) -> dict[Column, tuple[Trace, float]]:
    """One run of each column, in turn, and their own seconds on the clock."""
    lanes = {line: _decoder(model, ids, _settings(settings, line), line) for line, ids in asked.items()}
    steps: dict[Column, list[Step]] = {line: [] for line in lanes}
    taken = dict.fromkeys(lanes, 0.0)
    with closing(racing.abreast(lanes, model.clock)) as found:
        for line, step, seconds in found:
            steps[line].append(step)
            taken[line] += seconds
            _watch(halt, line)
    return {
        line: (_trace(model, ids, _settings(settings, line), line, steps[line]), taken[line])
        for line, ids in asked.items()
    }


def _watch(halt: Callable[[Column], bool] | None, line: Column) -> None:
    if halt is not None and halt(line):
        raise _Halt


def _settings(settings: Settings, line: Column) -> Settings:
    return settings if line.plan is None else replace(settings, k=line.k, plan=line.plan)


def _decoder(model: SpaceModel, ids: list[int], settings: Settings, line: Column) -> Iterator[Step]:
    return (vanilla if line.plan is None else space)(model, ids, settings)


def _trace(
    model: SpaceModel, ids: list[int], settings: Settings, line: Column, steps: Sequence[Step]
) -> Trace:
    return Trace(
        model=model.name,
        method=str(line.method),
        k=line.k,
        dtype=model.dtype_name,
        device=str(model.device),
        prompt_ids=tuple(ids),
        steps=tuple(steps),
        settings=settings.to_json(),
    )


def summarize(measured: Measured) -> tuple[Summary, ...]:
    """One summary for each column.

    Raises:
        PromptError: where no prompt could be decoded at all.
    """
    if not any(measured.runs.values()):
        raise PromptError(f"no prompt could be decoded: {measured.skipped[0].reason}")
    reference = measured.runs[Column(Method.VANILLA)]
    return tuple(
        summary(str(line.method), line.k, line.plan, runs, reference) for line, runs in measured.runs.items()
    )


def result(
    model: SpaceModel,
    draft: SpaceModel | None,
    dtypes: Sequence[str],
    settings: Settings,
    repetitions: int,
    asked: int,
    found: Sequence[Summary],
    skipped: Iterable[Skip],
    command: str,
) -> dict[str, Any]:
    """A benchmark as JSON ("space-bench/1").

    Args:
        asked: prompts that were to be decoded.
        command: what makes the same once more.
    """
    left_out = tuple(skipped)
    return {
        "format": FORMAT,
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **machine(model.device),
        "model": model.name,
        "draft": None if draft is None else draft.name,
        "dtype": ",".join(dtypes),
        "settings": settings.to_json(),
        "repetitions": repetitions,
        "prompts": asked - len({skip.prompt for skip in left_out if skip.turn == 0}),
        "skipped": to_json(list(left_out)),
        "methods": to_json(list(found)),
    }


def machine(device: torch.device) -> dict[str, Any]:
    """What numbers of a benchmark depend on, for the head of its JSON."""
    return {
        "device": device_name(device),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "space_core": space_core.__version__,
        },
        "threads": torch.get_num_threads(),
    }


def device_name(device: torch.device) -> str:
    """The GPU's or the processor's name, for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def check_output(path: Path, field: str = "json") -> None:
    """Whether a file can be written there: asked before hours of work, not behind them.

    Raises:
        SettingError: where it cannot.
    """
    path = path.resolve()
    writable = path.parent.is_dir() and os.access(path.parent, os.W_OK)
    if not writable or (path.exists() and not path.is_file()):
        raise SettingError(field, f"cannot write {path}: name a file in a folder that exists")


def write(path: Path, data: dict[str, Any]) -> None:
    """JSON to a file, whole or not at all."""
    _replace(path, json.dumps(data, indent=1) + "\n")


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """JSON lines to a file, whole or not at all."""
    _replace(path, "".join(json.dumps(row) + "\n" for row in rows))


def _replace(path: Path, text: str) -> None:
    path = path.resolve()  # a link is kept, and what it points to replaced
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
