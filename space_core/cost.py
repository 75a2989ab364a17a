"""What a decoding call costs by its rows, measured on this model and this device.

The planner needs ratios, not truth: the best of a few repetitions each, as noise only adds. They are
taken from decoding itself, on a made-up text: timed alone, calls of 16 rows came out at 3.3 ms that
cost 4.1 ms in a run (its verifying, drafting and planning, a longer context, caches that others used),
and the planner fed more masks than it should.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from space_core.layout import Layout

BUDGET = 0.6
"""Seconds that measuring may take, where calls are that fast."""
REPETITIONS = 5
CONTEXT = 256

_FIRST = (Layout.steady((5,)), Layout.steady((0,) * 6), Layout.steady((0,)))
"""What is measured at the least, each once. A call's drafts are those that the call before it made."""


def layout_of(rows: int) -> Layout:
    """A call of exactly so many rows, as near to square as the planner's are."""
    drafts = max(0, int(rows**0.5) - 1)
    masks, more = divmod(rows - 1 - drafts, drafts + 1)
    return Layout.steady(tuple(masks + (group < more) for group in range(drafts + 1)))


_REST = (
    *(layout_of(1 + 8), *(layout_of(rows) for rows in (81, 64, 49, 36, 24, 16, 12, 9, 6, 4, 3, 2))),
    *(Layout.steady((3,)), Layout.steady((0,) * 3), Layout.steady((0,))),
)


@dataclass(slots=True)
class Costs:
    """Best seconds by rows.

    Attributes:
        masks: of calls with masks.
        bare: of calls of real rows alone; one row is plain decoding's call.
        timed: whether this device took them, so that what calls take later can correct them; else they are
            given, and plans depend on nothing but the text.
    """

    masks: dict[int, float] = field(default_factory=dict)
    bare: dict[int, float] = field(default_factory=dict)
    timed: bool = False

    def note(self, rows: int, masked: bool, seconds: float) -> None:
        best = self.masks if masked else self.bare
        best[rows] = min(seconds, best.get(rows, seconds))

    def curves(self, k: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Seconds with masks for up to (k + 1)² rows, and without for up to k + 1; index 0 unused."""
        bare = self.bare or {1: 1.0}  # a context too small to measure in: rows count as free
        return curve({1: bare.get(1, 0.0)} | self.masks, (k + 1) ** 2), curve(bare, k + 1)


def measure(
    decode: Callable[[Sequence[Layout]], Iterable[tuple[int, bool, float]]],
    clock: Callable[[], float] = time.perf_counter,
) -> Costs:
    """Measure calls of many shapes.

    Args:
        decode: makes decoding calls of these layouts, one after the other; yields of each
            its rows, whether it had masks, and its seconds.
        clock: what the budget is counted on.
    """
    warm, best = Costs(timed=True), Costs(timed=True)
    begin = clock()
    layouts = (*_FIRST, *_REST)
    for repetition in range(REPETITIONS + 1):
        found = best if repetition else warm  # which is what is left of calls too slow to repeat
        for rows, masked, seconds in decode(layouts):
            found.note(rows, masked, seconds)
            if clock() - begin > BUDGET and 1 in found.bare and 6 in found.masks:
                return found
    return best


def curve(best: dict[int, float], most_rows: int) -> npt.NDArray[np.float64]:
    """The measured points joined by straight lines, made monotone, prolonged as they end."""
    rows = np.array(sorted(best))
    seconds = np.maximum.accumulate(np.array([best[r] for r in sorted(best)]))
    wanted = np.arange(most_rows + 1)
    result = np.interp(wanted, rows, seconds)
    slope = (seconds[-1] - seconds[0]) / max(1, rows[-1] - rows[0])
    return np.where(wanted > rows[-1], seconds[-1] + slope * (wanted - rows[-1]), result)
