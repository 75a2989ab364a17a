"""Runs of the benchmark to numbers, and numbers to a table: no clock and no model.

Every run is paired with vanilla's run of the same prompt, turn and repetition.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from space_core import metrics
from space_core.trace import Trace

Spread = tuple[float, float, float]
"""First quartile, median, third quartile."""


@dataclass(frozen=True, slots=True)
class Run:
    """One output of one method.

    Attributes:
        turn: from 0.
        seconds: wall-clock of the whole run.
    """

    prompt: str
    category: str
    turn: int
    repetition: int
    trace: Trace
    seconds: float

    @property
    def tokens(self) -> int:
        return len(self.trace.output_ids)

    @property
    def looping(self) -> bool:
        return metrics.is_loop(self.trace.output_ids)


@dataclass(frozen=True, slots=True)
class Skip:
    """A turn that some method could not decode, and that counts for none therefore."""

    prompt: str
    turn: int
    reason: str


@dataclass(frozen=True, slots=True)
class Split:
    """The first output that differs from vanilla's. `position` counts new tokens from 0."""

    prompt: str
    turn: int
    position: int


@dataclass(frozen=True, slots=True)
class Loops:
    """Outputs that run in circles.

    Attributes:
        share: of all outputs.
        tokens_per_call, speedup: of the other outputs, where vanilla's does not loop either; None
            where there are none.
    """

    share: float
    tokens_per_call: float | None
    speedup: float | None


@dataclass(frozen=True, slots=True)
class Category:
    """Numbers of the prompts of one category."""

    tokens: int
    calls: int
    tokens_per_call: float
    seconds: float
    tokens_per_second: float
    speedup: float
    identical_to_vanilla: float


@dataclass(frozen=True, slots=True)
class Summary:
    """What one method's runs come to; `speedup` and what is like it are against vanilla.

    Attributes:
        speedup: ratio of tokens per second over all runs; the ratio of seconds where outputs agree.
        speedup_spread: quartiles of the same ratio of each run alone.
        seconds_spread: quartiles of all prompts' seconds, over repetitions.
        rows_per_call: mean, the calls that read a prompt left out.
        identical_to_vanilla: share of outputs. A conversation that has split stays split.
    """

    method: str
    k: int
    plan: str | None
    dtype: str
    tokens: int
    calls: int
    tokens_per_call: float
    seconds: float
    tokens_per_second: float
    speedup: float
    speedup_spread: Spread
    seconds_spread: Spread
    rows_per_call: float
    acceptance_by_position: list[float]
    tokens_per_call_histogram: dict[int, int]
    identical_to_vanilla: float
    first_split: Split | None
    loops: Loops
    categories: dict[str, Category]


def summary(method: str, k: int, plan: str | None, runs: Sequence[Run], reference: Sequence[Run]) -> Summary:
    """Fold one method's runs.

    Args:
        k: drafts per call; 0 takes the traces' own.
        runs: at least one.
        reference: vanilla's runs of the same prompts, turns and repetitions, in the same order.
    """
    pairs = list(zip(runs, reference, strict=True))
    traces = [run.trace for run in runs]
    whole = _category(pairs)
    seconds: defaultdict[int, float] = defaultdict(float)
    for run in runs:
        seconds[run.repetition] += run.seconds
    return Summary(
        method=method,
        k=k or traces[0].k,
        plan=None if plan is None else str(plan),
        dtype=traces[0].dtype,
        tokens=whole.tokens,
        calls=whole.calls,
        tokens_per_call=whole.tokens_per_call,
        seconds=whole.seconds,
        tokens_per_second=whole.tokens_per_second,
        speedup=whole.speedup,
        speedup_spread=metrics.spread([_speedup([pair]) for pair in pairs]),
        seconds_spread=metrics.spread(list(seconds.values())),
        rows_per_call=metrics.rows_per_call(traces),
        acceptance_by_position=metrics.acceptance_by_position(traces),
        tokens_per_call_histogram=metrics.calls_histogram(traces),
        identical_to_vanilla=whole.identical_to_vanilla,
        first_split=_first_split(pairs),
        loops=_loops(pairs),
        categories={
            name: _category([pair for pair in pairs if pair[0].category == name])
            for name in dict.fromkeys(run.category for run in runs)
        },
    )


Pairs = Sequence[tuple[Run, Run]]
"""Runs of a method, each with vanilla's of the same prompt."""


def _category(pairs: Pairs) -> Category:
    tokens = sum(run.tokens for run, _ in pairs)
    calls = sum(run.trace.calls for run, _ in pairs)
    seconds = sum(run.seconds for run, _ in pairs)
    same = sum(run.trace.output_ids == plain.trace.output_ids for run, plain in pairs)
    return Category(
        tokens=tokens,
        calls=calls,
        tokens_per_call=tokens / calls if calls else 0.0,
        seconds=seconds,
        tokens_per_second=metrics.tokens_per_second(tokens, seconds),
        speedup=_speedup(pairs),
        identical_to_vanilla=same / len(pairs),
    )


def _speedup(pairs: Pairs) -> float:
    ours, plain = (
        metrics.tokens_per_second(sum(run.tokens for run in side), sum(run.seconds for run in side))
        for side in zip(*pairs, strict=True)
    )
    return ours / plain if plain else 0.0


def _loops(pairs: Pairs) -> Loops:
    straight = [pair for pair in pairs if not any(run.looping for run in pair)]
    share = sum(run.looping for run, _ in pairs) / len(pairs)
    if not straight:
        return Loops(share, None, None)
    return Loops(share, metrics.tokens_per_call(run.trace for run, _ in straight), _speedup(straight))


def _first_split(pairs: Pairs) -> Split | None:
    for run, plain in pairs:
        position = metrics.first_difference(run.trace.output_ids, plain.trace.output_ids)
        if position is not None:
            return Split(run.prompt, run.turn, position)
    return None


def to_json(row: Any) -> Any:
    """A dataclass (or what is in one) as JSON; floats to a microsecond's precision."""
    if isinstance(row, float):
        return round(row, 6)
    if isinstance(row, dict):
        return {str(key): to_json(value) for key, value in row.items()}
    if isinstance(row, list | tuple):
        return [to_json(value) for value in row]
    return row if row is None or isinstance(row, str | int) else to_json(asdict(row))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Cells in aligned columns: the first to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def report(summaries: Sequence[Summary], skipped: Sequence[Skip], greedy: bool = True) -> str:
    """The tables of a benchmark, as text.

    Args:
        greedy: where outputs were sampled, that they differ is no news.
    """
    head = ("method", "k", "dtype", "tokens", "calls", "tok/call", "seconds", "tok/s", "speed-up")
    rows: list[Sequence[str]] = [(*head, "quartiles", "rows/call", "identical", "looping")]
    for line in summaries:
        low, _, high = line.speedup_spread
        rows.append(
            (
                line.method,
                str(line.k or "-"),
                line.dtype,
                str(line.tokens),
                str(line.calls),
                f"{line.tokens_per_call:.2f}",
                f"{line.seconds:.2f}",
                f"{line.tokens_per_second:.1f}",
                f"{line.speedup:.2f}",
                f"{low:.2f}-{high:.2f}",
                f"{line.rows_per_call:.1f}",
                f"{line.identical_to_vanilla:.1%}",
                f"{line.loops.share:.1%}",
            )
        )
    parts = [table(rows)]
    if any(len(line.categories) > 1 for line in summaries):
        rows = [("category", "method", "k", "dtype", "tok/call", "speed-up", "identical")]
        for line in summaries:
            for name, part in line.categories.items():
                numbers = (f"{part.tokens_per_call:.2f}", f"{part.speedup:.2f}")
                same = f"{part.identical_to_vanilla:.1%}"
                rows.append((name, line.method, str(line.k or "-"), line.dtype, *numbers, same))
        parts.append(table([rows[0], *sorted(rows[1:], key=lambda row: row[0])]))
    for line in summaries:
        if greedy and line.first_split is not None:
            at = line.first_split
            parts.append(
                f"{line.method} (k {line.k}, {line.dtype}) first differs from vanilla at prompt "
                f"{at.prompt}, turn {at.turn + 1}, token {at.position + 1}"
            )
    for reason, count in Counter(skip.reason for skip in skipped).items():
        parts.append(f"skipped {count}: {reason}")
    return "\n\n".join(parts)
