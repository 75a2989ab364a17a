"""What a call costs by its rows, measured on this model and this device.

The planner needs ratios, not truth: the best of a few repetitions each, as noise only adds. Kept
with the model; measured when it is first asked for, within BUDGET seconds where calls are that fast.
"""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import torch

from space_core.cache import BlockCache
from space_core.layout import Layout
from space_core.model import SpaceModel

BUDGET = 0.5
"""Seconds that measuring may take."""
ROWS = (1, 6, 12, 24, 36, 81, 2, 4, 9, 16, 49, 64, 3, 8)
"""Measured in this order, as far as the time reaches; in between, straight lines."""
BARE_ROWS = (1, 6, 3)
REPETITIONS = 5
CONTEXT = 96


def call_cost(model: SpaceModel, most_rows: int, masks: bool = True) -> npt.NDArray[np.float64]:
    """Seconds of a call by rows: float64 [most_rows + 1], index 0 unused; never falls with rows.

    Args:
        masks: of calls with masks (those of one row have none), or of drafts alone.
    """
    if not model.seconds_by_rows:
        model.seconds_by_rows, model.seconds_bare = measure(model)
    bare = not masks and len(model.seconds_bare) > 1
    return curve(model.seconds_bare if bare else model.seconds_by_rows, most_rows)


def measure(model: SpaceModel) -> tuple[dict[int, float], dict[int, float]]:
    """Best seconds of calls of so many rows, with masks and without any.

    At least 1 and 6 rows are measured, each once; without masks perhaps none.
    """
    context = min(CONTEXT, model.context // 2)
    ids = [1 % model.vocabulary] * context
    cache = BlockCache()
    model.call(Layout.plain(context), ids, cache)
    first_group = torch.zeros((), dtype=torch.long, device=model.device)
    found: tuple[dict[int, float], dict[int, float]] = {}, {}
    layouts = [(found[0], layout_of(rows)) for rows in ROWS]
    layouts[3:3] = [(found[1], Layout(rows, rows - 1)) for rows in BARE_ROWS]
    begin = time.perf_counter()
    for repetition in range(REPETITIONS + 1):
        for best, layout in layouts:
            rows = layout.rows
            if context + rows > model.context:
                continue
            late = time.perf_counter() - begin > BUDGET
            if late and {1, 6} <= found[0].keys():
                return found
            start = model.clock()
            judged = model.call(layout, ids[:1] * layout.n_real, cache)
            judged.real.argmax(-1)
            if layout.n_masks:
                judged.guesses(first_group).max(-1)
            seconds = model.clock() - start
            cache.commit(context)
            if repetition or late:  # the first round warms up
                best[rows] = min(seconds, best.get(rows, seconds))
            elif rows not in best and time.perf_counter() - begin > BUDGET / 2:
                best[rows] = seconds  # calls so slow that there will be one round only
    return found


def layout_of(rows: int) -> Layout:
    """A call of exactly so many rows, as near to square as the planner's are."""
    drafts = max(0, int(rows**0.5) - 1)
    masks, more = divmod(rows - 1 - drafts, drafts + 1)
    return Layout.steady(tuple(masks + (group < more) for group in range(drafts + 1)))


def curve(best: dict[int, float], most_rows: int) -> npt.NDArray[np.float64]:
    """The measured points joined by straight lines, made monotone, prolonged as they end."""
    rows = np.array(sorted(best))
    seconds = np.maximum.accumulate(np.array([best[r] for r in sorted(best)]))
    wanted = np.arange(most_rows + 1)
    result = np.interp(wanted, rows, seconds)
    slope = (seconds[-1] - seconds[0]) / max(1, rows[-1] - rows[0])
    return np.where(wanted > rows[-1], seconds[-1] + slope * (wanted - rows[-1]), result)
