"""What SPACE gains on several prompts at once, by their number ("space-bench-batch/1").

A batch of plain decoding already shares the reading of the weights among its prompts, so SPACE's further
rows are less and less for free. Every prompt is decoded at every size; of one batch all methods decode
the same prompts one after another, and the order rotates. A speed-up is against plain decoding of the same
batch, through the same code and in the same minutes. `generate` is transformers' own, on padded prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from space_core import metrics, peers
from space_core.batches import batch, plain_batch
from space_core.model import SpaceModel
from space_core.scores import Spread, table
from space_core.settings import Plan, Settings
from space_core.trace import Step

FORMAT = "space-bench-batch/1"
SIZES = (1, 2, 4, 8, 16)
METHODS = ("vanilla", "space", "space-grid", "generate")


@dataclass(frozen=True, slots=True)
class Gain:
    """One method at one size of batch.

    Attributes:
        batch: prompts at once.
        batches: how many such batches were decoded.
        calls: of the model, each of which serves all prompts that are left.
        tokens_per_call: tokens of a sequence over the calls it took part in. 0 where nobody counts.
        rows: mean rows of a sequence in a call, the first one left out. 0 where nobody counts.
        speedup: quartiles over batches of plain decoding's seconds over this method's.
        identical: share of outputs that are plain decoding's of the same batch.
    """

    batch: int
    method: str
    k: int
    batches: int
    tokens: int
    calls: int
    seconds: float
    tokens_per_call: float
    rows: float
    tokens_per_second: float
    speedup: Spread
    identical: float


@dataclass(slots=True)
class _Line:
    """Sums of one method at one size."""

    tokens: int = 0
    calls: int = 0
    turns: int = 0
    later: int = 0
    rows: int = 0
    same: int = 0
    outputs: int = 0


def groups(count: int, size: int) -> list[list[int]]:
    """Every prompt in some batch of this size; the last one is filled up from the beginning."""
    return [[(start + i) % count for i in range(size)] for start in range(0, count, size)]


def measure(
    model: SpaceModel,
    texts: Sequence[Sequence[int]],
    settings: Settings,
    sizes: Sequence[int] = SIZES,
    repetitions: int = 1,
    methods: Sequence[str] = METHODS,
    progress: Callable[[], object] = lambda: None,
) -> tuple[Gain, ...]:
    """Decode the texts in batches of each size, by each method.

    Args:
        settings: the request; the plan is the method's.
        progress: called after each batch, and after each size's warm-up.
    """
    found: list[Gain] = []
    for size in sizes:
        lines = {method: _Line() for method in methods}
        seconds: dict[str, list[float]] = {method: [] for method in methods}
        todo = groups(len(texts), size) * repetitions
        for turn, places in enumerate([todo[0], *todo]):  # the first one warms up, uncounted
            prompts = [texts[place] for place in places]
            shift = turn % len(methods)
            outputs = {}
            for method in (*methods[shift:], *methods[:shift]):
                line = lines[method] if turn else _Line()
                start = model.clock()
                outputs[method] = _decode(model, prompts, settings, method, line)
                if turn:
                    seconds[method].append(model.clock() - start)
            for method, texts_out in outputs.items() if turn else ():
                line = lines[method]
                pairs = list(zip(texts_out, outputs["vanilla"], strict=True))
                line.same += sum(ours == plain for ours, plain in pairs)
                line.outputs += len(pairs)
                line.tokens += sum(len(ours) for ours in texts_out)
            progress()
        for method, line in lines.items():
            whole = sum(seconds[method])
            pairs_of_seconds = zip(seconds["vanilla"], seconds[method], strict=True)
            found.append(
                Gain(
                    batch=size,
                    method=method,
                    k=settings.k if method.startswith("space") else 0,
                    batches=len(todo),
                    tokens=line.tokens,
                    calls=line.calls,
                    seconds=whole,
                    tokens_per_call=line.tokens / line.turns if line.turns else 0.0,
                    rows=line.rows / line.later if line.later else 0.0,
                    tokens_per_second=metrics.tokens_per_second(line.tokens, whole),
                    speedup=metrics.spread([plain / ours for plain, ours in pairs_of_seconds]),
                    identical=line.same / line.outputs,
                )
            )
    return tuple(found)


def _decode(
    model: SpaceModel, prompts: Sequence[Sequence[int]], settings: Settings, method: str, line: _Line
) -> list[list[int]]:
    """The new tokens of each prompt; what the calls did is added to `line`."""
    if method == "generate":
        return peers.generate_batch(model, prompts, settings)
    steps: Iterable[tuple[Step | None, ...]]
    if method == "vanilla":
        steps = plain_batch(model, prompts, settings)
    else:
        plan = Plan.GRID if method == "space-grid" else Plan.AUTO
        steps = batch(model, prompts, replace(settings, plan=plan))
    outputs: list[list[int]] = [[] for _ in prompts]
    calls = list(steps)
    for call in calls:
        for output, step in zip(outputs, call, strict=True):
            if step is not None:
                output += step.emitted
                line.turns += 1
    for call in islice(calls, 1, None):
        here = [step.rows for step in call if step is not None]
        line.later, line.rows = line.later + len(here), line.rows + sum(here)
    line.calls += len(calls)
    return outputs


def report(gains: Sequence[Gain]) -> str:
    """The table, as text."""
    head = ("batch", "method", "k", "tok/s", "speed-up", "quartiles", "tok/call", "rows", "identical")
    rows: list[Sequence[Any]] = [head]
    for gain in gains:
        low, middle, high = gain.speedup
        rows.append(
            (
                str(gain.batch),
                gain.method,
                str(gain.k or "-"),
                f"{gain.tokens_per_second:.1f}",
                f"{middle:.2f}",
                f"{low:.2f}-{high:.2f}",
                f"{gain.tokens_per_call:.2f}" if gain.calls else "-",
                f"{gain.rows:.1f}" if gain.rows else "-",
                f"{gain.identical:.1%}",
            )
        )
    return table(rows)
