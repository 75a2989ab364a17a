"""What decoding costs beside the model: the share of a run's seconds outside forward and heads.

The model's part, its head and the sampler head's products are timed where they are called; the rest is
ours: layouts, masks, embedding, verifying, drafting, planning, the fetch. First calls, which read the
prompt, are left out.
("space-bench-overhead/1")
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from space_core import metrics
from space_core.bench import Column, Method
from space_core.decoders import space, vanilla
from space_core.model import SpaceModel
from space_core.scores import Spread, table
from space_core.settings import Plan, Settings

FORMAT = "space-bench-overhead/1"


@dataclass(frozen=True, slots=True)
class Overhead:
    """One way to decode.

    Attributes:
        seconds: of a call, mean over all runs.
        share: quartiles over runs of what is neither forward nor a head.
        sampler: mean share of the sampler head, which is not in `share`.
    """

    method: str
    k: int
    calls: int
    seconds: float
    share: Spread
    sampler: float


def profile(model: SpaceModel, texts: Sequence[Sequence[int]], settings: Settings) -> tuple[Overhead, ...]:
    """Decode each text in each way, interleaved; the first text once more beforehand, uncounted."""
    lines = (
        Column(Method.VANILLA),
        Column(Method.SPACE_AUTO, settings.k, Plan.AUTO),
        Column(Method.SPACE_GRID, settings.k, Plan.GRID),
    )
    shares: dict[Column, list[float]] = {line: [] for line in lines}
    calls, seconds = dict.fromkeys(lines, 0), dict.fromkeys(lines, 0.0)
    told = dict.fromkeys(lines, 0.0)
    with _timed(model) as spent:
        for counted, text in [(False, texts[0]), *((True, text) for text in texts)]:
            for line in lines:
                if line.plan is None:
                    steps = vanilla(model, text, settings)
                else:
                    steps = space(model, text, replace(settings, plan=line.plan))
                next(steps)
                inside, of_sampler, whole, count = sum(spent), spent[1], 0.0, 0
                for step in steps:
                    whole, count = whole + step.seconds, count + 1
                if counted and count:
                    shares[line].append(1 - (sum(spent) - inside) / whole)
                    calls[line], seconds[line] = calls[line] + count, seconds[line] + whole
                    told[line] += spent[1] - of_sampler
    return tuple(
        Overhead(
            str(line.method),
            line.k,
            calls[line],
            seconds[line] / max(calls[line], 1),
            metrics.spread(found),
            told[line] / seconds[line],
        )
        for line, found in shares.items()
        if found
    )


@contextmanager
def _timed(model: SpaceModel) -> Iterator[list[float]]:
    """Seconds within the model's forward and head, and within its sampler head.

    Calls are launched one by one: a recorded one has no forward that could be watched.
    """
    spent = [0.0, 0.0]
    sampler = model.masks.sampler
    base, head, lm, graphs = model._base, model._head, model.lm, model.graphs

    def watched(part: Any, place: int = 0) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = model.clock()
            result = part(*args, **kwargs)
            spent[place] += model.clock() - start
            return result

        return call

    if sampler is not None:
        steps = watched(sampler.steps, 1)
        vars(sampler)["steps"] = lambda hidden: watched(steps(hidden), 1)

    model._base, model.lm, model.graphs = watched(base), lm, None
    model._head = None if head is None else watched(head)
    if head is None:
        model._base, model.lm = base, watched(lm)
    try:
        yield spent
    finally:
        model._base, model._head, model.lm, model.graphs = base, head, lm, graphs
        if sampler is not None:
            del vars(sampler)["steps"]


def report(found: Sequence[Overhead]) -> str:
    rows: list[Sequence[str]] = [
        ("method", "k", "calls", "ms a call", "outside forward and heads", "quartiles", "sampler head")
    ]
    for line in found:
        low, middle, high = line.share
        rows.append(
            (
                line.method,
                str(line.k or "-"),
                str(line.calls),
                f"{1000 * line.seconds:.2f}",
                f"{middle:.1%}",
                f"{low:.1%}-{high:.1%}",
                f"{line.sampler:.1%}",
            )
        )
    return table(rows)
