"""Numbers of finished runs: folds over Traces, no clock and no model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median

from space_core.trace import Trace, longest_common_prefix


def is_loop(ids: Sequence[int], n: int = 4) -> bool:
    """Whether a text runs in circles: fewer than half of its n-grams are distinct."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return len(grams) >= n and 2 * len(set(grams)) < len(grams)


def tokens_per_call(traces: Iterable[Trace]) -> float:
    """All tokens over all calls: long outputs weigh more, as they do on the clock."""
    traces = list(traces)
    calls = sum(trace.calls for trace in traces)
    return sum(len(trace.output_ids) for trace in traces) / calls if calls else 0.0


def calls_histogram(traces: Iterable[Trace]) -> dict[int, int]:
    """How many calls emitted 1, 2, … tokens."""
    counts = Counter(len(step.emitted) for trace in traces for step in trace.steps)
    return dict(sorted(counts.items()))


def acceptance_by_position(traces: Iterable[Trace]) -> list[float]:
    """Share of calls in which draft i was accepted, of the calls that verified a draft i."""
    tried: Counter[int] = Counter()
    stood: Counter[int] = Counter()
    for trace in traces:
        for step in trace.steps:
            tried.update(range(len(step.drafts)))
            stood.update(range(step.accepted))
    return [stood[i] / tried[i] for i in range(len(tried))]


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """(first quartile, median, third quartile), by rank."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return ordered[last // 4], median(ordered), ordered[last - last // 4]


def rows_per_call(traces: Iterable[Trace]) -> float:
    """Mean rows of a call; the first call of each run, which reads the prompt, is left out."""
    rows = [step.rows for trace in traces for step in trace.steps[1:]]
    return sum(rows) / len(rows) if rows else 0.0


def tokens_per_second(tokens: int, seconds: float) -> float:
    return tokens / seconds if seconds > 0 else 0.0


def first_difference(left: Sequence[int], right: Sequence[int]) -> int | None:
    """Index of the first token in which two outputs differ; None for equal ones.

    Where one output is the beginning of the other, that is the length of the shorter one.
    """
    if tuple(left) == tuple(right):
        return None
    return longest_common_prefix(left, right)
