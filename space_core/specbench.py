"""Spec-Bench (Xia et al., arXiv 2401.07851): its leaderboard's columns, and answers in its own form.

Its questions come from thirteen categories, eight of which (MT-Bench's) make one column. A speed-up there
is the mean over questions of tokens per second, divided by plain decoding's mean; tokens and seconds of a
question's turns are added up first. So a short question weighs as much as a long one, unlike in `scores`.

Its evaluation script counts plain decoding's tokens by tokenizing the answers again, and takes one away
for the sign that begins a text. Here they are counted as they were written, so for a tokenizer without
that sign its speed-ups come out larger than ours by one token in each answer.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from space_core.scores import Run, table

COLUMNS = {
    "multi-turn": (
        *("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"),
        "mt_bench",
    ),
    "translation": ("translation",),
    "summarization": ("summarization",),
    "QA": ("qa",),
    "math": ("math_reasoning",),
    "RAG": ("rag",),
}
"""The leaderboard's columns and the categories that each is made of."""
OVERALL = "overall"


@dataclass(frozen=True, slots=True)
class Standing:
    """A method's line of the leaderboard.

    Attributes:
        speedups: over vanilla, by column; "overall" is always there.
        accepted: "mean accepted tokens": tokens that a call wrote, its own one included; 1 is plain.
    """

    method: str
    k: int
    dtype: str
    speedups: dict[str, float]
    accepted: float


def is_spec_bench(categories: Iterable[str]) -> bool:
    """Whether any category is one of the leaderboard's."""
    known = {category for group in COLUMNS.values() for category in group}
    return any(category in known for category in categories)


def standing(method: str, k: int, runs: Sequence[Run], reference: Sequence[Run]) -> Standing:
    """Fold one method's runs; over several repetitions the speed-ups' mean.

    Args:
        runs: at least one.
        reference: vanilla's runs of the same questions.
    """
    groups = {**COLUMNS, OVERALL: tuple({run.category for run in runs})}
    speedups = {}
    for column, categories in groups.items():
        ratios = []
        for repetition in dict.fromkeys(run.repetition for run in runs):
            ours, plain = (_speeds(side, repetition, categories) for side in (runs, reference))
            if ours and plain and fmean(plain):
                ratios.append(fmean(ours) / fmean(plain))
        if ratios:
            speedups[column] = fmean(ratios)
    accepted = fmean(len(step.emitted) for run in runs for step in run.trace.steps)
    return Standing(method, k, runs[0].trace.dtype, speedups, accepted)


def _speeds(runs: Sequence[Run], repetition: int, categories: Sequence[str]) -> list[float]:
    """Tokens per second of each question."""
    found: dict[str, tuple[int, float]] = {}
    for run in runs:
        if run.repetition == repetition and run.category in categories:
            tokens, seconds = found.get(run.prompt, (0, 0.0))
            found[run.prompt] = tokens + run.tokens, seconds + run.seconds
    return [tokens / seconds for tokens, seconds in found.values() if seconds > 0]


def report(standings: Sequence[Standing]) -> str:
    """The leaderboard's table, as text."""
    rows: list[Sequence[str]] = [("Spec-Bench", "k", "dtype", *COLUMNS, "mean accepted", OVERALL)]
    for line in standings:
        cells = [f"{line.speedups[c]:.2f}x" if c in line.speedups else "-" for c in (*COLUMNS, OVERALL)]
        rows.append(
            (line.method, str(line.k or "-"), line.dtype, *cells[:-1], f"{line.accepted:.2f}", cells[-1])
        )
    return table(rows)


def files(out: Path, names: Sequence[tuple[str, int, str]]) -> dict[tuple[str, int, str], Path]:
    """Where the answers of each (method, k, dtype) go: one file each, since a script compares two files.

    The only method beside vanilla has `out` itself. Otherwise, and for vanilla, the name tells them apart:
    out-vanilla.jsonl, out-space-k5.jsonl, and where several dtypes ran, out-space-k5-float32.jsonl.
    """
    several = len({dtype for *_, dtype in names}) > 1
    others = [name for name in names if name[0] != "vanilla"]
    found = {}
    for name in names:
        method, k, dtype = name
        parts = [out.stem, method, *([f"k{k}"] if k else []), *([dtype] if several else [])]
        alone = others == [name]
        found[name] = out if alone else out.with_name("-".join(parts) + (out.suffix or ".jsonl"))
    return found


def answers(runs: Sequence[Run], model_id: str, text: Callable[[Run], str]) -> list[dict[str, Any]]:
    """A line for each question; its repetitions are its choices.

    Args:
        text: what a run wrote, without special tokens.
    """
    questions: dict[str, dict[int, list[Run]]] = {}
    for run in runs:
        questions.setdefault(run.prompt, {}).setdefault(run.repetition, []).append(run)
    return [
        {
            "question_id": int(name) if name.isdecimal() and str(int(name)) == name else name,
            "category": next(iter(choices.values()))[0].category,
            "answer_id": uuid.uuid4().hex[:22],
            "model_id": model_id,
            "choices": [_choice(index, turns, text) for index, turns in enumerate(choices.values())],
            "tstamp": time.time(),
        }
        for name, choices in questions.items()
    ]


def _choice(index: int, turns: Sequence[Run], text: Callable[[Run], str]) -> Mapping[str, Any]:
    return {
        "index": index,
        "turns": [text(run).strip() for run in turns],
        "decoding_steps": [run.trace.calls for run in turns],
        "new_tokens": [run.tokens for run in turns],
        "wall_time": [run.seconds for run in turns],
        "accept_lengths": [len(step.emitted) for run in turns for step in run.trace.steps],
    }
