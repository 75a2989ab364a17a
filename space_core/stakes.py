"""Does the planner ever lose? Planned SPACE against the better of plain decoding and the full grid.

Over masks (trained, untrained), temperatures, lengths of the prompt and k: each cell is a benchmark of
its own, whose three ways decode a prompt abreast, some tokens each in turn. (One after another, pairs of runs
of a second differ by a third on a shared machine, and cells so measured tell little.) A cell's *stake* is
planned SPACE's time for a token over that of the better one of the other two, as the median over prompts
and repetitions; below 1 it wins. No text ends before its budget: a sampled one that did would share its
prompt's time among fewer tokens. ("space-bench-planner/1")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from space_core import metrics
from space_core.bench import Column, Measured, Method, measure
from space_core.model import SpaceModel, untrained_masks
from space_core.prompts import Prompt
from space_core.scores import Run, Spread, table
from space_core.settings import Plan, Settings

FORMAT = "space-bench-planner/1"
KS = tuple(range(1, 9))
TEMPERATURES = (0.0, 0.7, 1.0)
LENGTHS = (64, 512, 1500)


@dataclass(frozen=True, slots=True)
class Cell:
    """One line of the table.

    Attributes:
        masks: "trained" or "untrained".
        context: tokens of the prompt.
        stake: quartiles of planned seconds a token over the better of vanilla's and the grid's.
        speedup, grid: of planned SPACE and of the grid against vanilla, medians.
        tokens_per_call: of planned SPACE.
    """

    masks: str
    temperature: float
    context: int
    k: int
    stake: Spread
    speedup: float
    grid: float
    tokens_per_call: float


def play(
    model: SpaceModel,
    prompts: Sequence[Prompt],
    settings: Settings,
    *,
    ks: Sequence[int] = KS,
    temperatures: Sequence[float] = TEMPERATURES,
    lengths: Sequence[int] = LENGTHS,
    repetitions: int = 1,
    progress: Callable[[], object] = lambda: None,
) -> tuple[Cell, ...]:
    """Measure every cell.

    Args:
        settings: the request; k, temperature and plan are the cells'.
        progress: called after each cell.
    """
    found = []
    for masks in ("trained", "untrained"):
        if masks == "trained" and model.masks.method == "untrained":
            continue
        with _masks(model, masks):
            for temperature in temperatures:
                for length in lengths:
                    for k in ks:
                        lines = (
                            Column(Method.VANILLA),
                            Column(Method.SPACE_GRID, k, Plan.GRID),
                            Column(Method.SPACE_AUTO, k, Plan.AUTO),
                        )
                        measured = measure(
                            model,
                            prompts,
                            lines,
                            replace(settings, temperature=temperature),
                            repetitions=repetitions,
                            prompt_tokens=length,
                            abreast=True,
                        )
                        found.append(cell(masks, temperature, length, k, measured))
                        progress()
    return tuple(found)


def cell(masks: str, temperature: float, context: int, k: int, measured: Measured) -> Cell:
    """Fold the runs of one cell."""
    vanilla, grid, planned = ([_pace(run) for run in runs] for runs in measured.runs.values())
    traces = [run.trace for run in tuple(measured.runs.values())[2]]
    # The better one of the two is chosen for the whole cell: nobody could choose it run by run.
    rival = min(vanilla, grid, key=sum)
    return Cell(
        masks,
        temperature,
        context,
        k,
        metrics.spread([ours / theirs for ours, theirs in zip(planned, rival, strict=True)]),
        median(plain / ours for plain, ours in zip(vanilla, planned, strict=True)),
        median(plain / ours for plain, ours in zip(vanilla, grid, strict=True)),
        metrics.tokens_per_call(traces),
    )


def _pace(run: Run) -> float:
    return run.seconds / max(run.tokens, 1)


@contextmanager
def _masks(model: SpaceModel, kind: str) -> Any:
    """The model's own masks, or none that anybody trained; and no token that ends a text."""
    own, costs, eos_ids = model.masks, model.costs, model.eos_ids
    model.eos_ids = frozenset()
    if kind == "untrained":
        model.masks, model.costs = untrained_masks(model.lm, own.k), {}
    try:
        yield
    finally:
        model.masks, model.costs, model.eos_ids = own, costs, eos_ids


def report(cells: Sequence[Cell], allowed: float = 1.05) -> str:
    """The worst cells and the whole, as text."""
    rows: list[Sequence[str]] = [
        ("masks", "T", "context", "k", "planned / better", "quartiles", "speed-up", "grid", "tok/call")
    ]
    worst = sorted(cells, key=lambda c: -c.stake[1])
    for c in worst[:12]:
        rows.append(
            (
                c.masks,
                f"{c.temperature:g}",
                str(c.context),
                str(c.k),
                f"{c.stake[1]:.3f}",
                f"{c.stake[0]:.2f}-{c.stake[2]:.2f}",
                f"{c.speedup:.2f}",
                f"{c.grid:.2f}",
                f"{c.tokens_per_call:.2f}",
            )
        )
    stakes = [c.stake[1] for c in worst]
    over = sum(stake > allowed for stake in stakes)
    return (
        f"the {len(rows) - 1} worst of {len(cells)} cells:\n{table(rows)}\n\n"
        f"planned over the better of vanilla and grid: median {median(stakes):.3f}, worst {stakes[0]:.3f}, "
        f"above {allowed:g} in {over} of {len(cells)}"
    )
