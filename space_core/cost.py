"""What a decoding call costs by its rows, measured on this model and this device.

The planner needs ratios, not truth: the best of a few repetitions each, as noise only adds. They are
taken from decoding itself, on a made-up text: timed alone, calls of 16 rows came out at 3.3 ms that
cost 4.1 ms in a run (its verifying, drafting and planning, a longer context, caches that others used),
and the planner fed more masks than it should.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from space_core.layout import Layout

BUDGET = 0.6
"""Seconds that measuring may take, where calls are that fast; twice as many for a second look."""
REPETITIONS = 5
CONTEXT = 256


def layout_of(rows: int) -> Layout:
    """A call of exactly so many rows, as near to square as the planner's are."""
    drafts = max(0, int(rows**0.5) - 1)
    masks, more = divmod(rows - 1 - drafts, drafts + 1)
    return Layout.steady(tuple(masks + (group < more) for group in range(drafts + 1)))


# A call's drafts are those that the call before it made.
_FIVE = (Layout.steady((5,)), Layout.steady((0,) * 6), Layout.steady((0,)))
_NEEDED = ((1, False), (6, False), (6, True))
_FIRST = (*_FIVE, layout_of(16), layout_of(81))
"""What warms up; of a slow model the first three are all that is measured."""
_FEW = (
    *_FIVE,
    *(Layout.steady((3,)), Layout.steady((0,) * 3), Layout.steady((0,))),
    *(Layout.steady((1,)), Layout.steady((0,) * 2), Layout.steady((0,))),
    *(layout_of(rows) for rows in (3, 4, 6, 9, 12, 16)),
)
"""What most calls are: measured twice as often. Two rows and three are not one row and a bit more: products
of one row are made another way."""
_MANY = tuple(layout_of(rows) for rows in (24, 36, 49, 64, 81))


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
    found, times = Costs(timed=True), Counter[tuple[int, bool]]()
    begin = clock()
    for repetition in range(REPETITIONS + 1):
        for rows, masked, seconds in decode((*_FEW, *_MANY, *_FEW) if repetition else _FIRST):
            found.note(rows, masked, seconds)
            times[rows, masked] += 1
            # One call that was disturbed would spoil every plan: a second look is worth its time.
            seen, spent = min(times[each] for each in _NEEDED), clock() - begin
            if seen and spent > (BUDGET if seen > 1 else 2 * BUDGET):
                return found
    return found


def curve(best: dict[int, float], most_rows: int) -> npt.NDArray[np.float64]:
    """The measured points joined by straight lines, made monotone, prolonged as they end.

    Where a call of more rows took less, the one of fewer was disturbed: noise only adds.
    """
    rows = np.array(sorted(best))
    seconds = np.minimum.accumulate(np.array([best[r] for r in sorted(best)])[::-1])[::-1]
    wanted = np.arange(most_rows + 1)
    result = np.interp(wanted, rows, seconds)
    slope = (seconds[-1] - seconds[0]) / max(1, rows[-1] - rows[0])
    return np.where(wanted > rows[-1], seconds[-1] + slope * (wanted - rows[-1]), result)
