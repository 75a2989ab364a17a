"""How many CPU threads serve a model best: measured, since more is not faster for a small one.

A small model's products are shorter than waking a second thread: on two cores a call of 12 rows of a
5.8 M-parameter model took 15 ms with two (passively waiting) threads and 4.7 ms with one, a call of
one row 2.4 ms with either. A large model wants them all. Changes a setting of the whole process, so
the command line and the page do it, and a library user only by calling it.
"""

from __future__ import annotations

import os

import torch

from space_core.cache import BlockCache
from space_core.cost import layout_of
from space_core.layout import Layout
from space_core.model import SpaceModel

REPETITIONS = 7
CONTEXT = 64
MANY_ROWS = 12
EQUAL = 1.05


def tune_threads(model: SpaceModel) -> int:
    """Set torch's number of threads to what suits this model; returns it.

    Plain decoding decides, so that it is not slowed for SPACE's sake; among numbers under which it
    is equally fast (within 5 %), a call of many rows does. Left alone: other devices than the CPU,
    and a number that OMP_NUM_THREADS gives.
    """
    most = torch.get_num_threads()
    if model.device.type != "cpu" or most == 1 or "OMP_NUM_THREADS" in os.environ:
        return most
    candidates = sorted({1, max(1, most // 2), most})
    seconds = {n: _seconds(model, n) for n in candidates}
    fastest = min(plain for plain, _ in seconds.values())
    best = min((n for n in candidates if seconds[n][0] <= EQUAL * fastest), key=lambda n: (seconds[n][1], n))
    _set(model, best)
    return best


def _set(model: SpaceModel, threads: int) -> None:
    torch.set_num_threads(threads)
    if model.products:
        model.products.measure()


def _seconds(model: SpaceModel, threads: int) -> tuple[float, float]:
    """Best seconds of a call of one row, and of one of many rows."""
    _set(model, threads)
    context = min(CONTEXT, model.context // 2)
    ids, cache = [1 % model.vocabulary] * context, BlockCache()
    model.call(Layout.plain(context), ids, cache)
    best = []
    for layout in (Layout.plain(1), layout_of(MANY_ROWS)):
        times = []
        for _ in range(REPETITIONS):
            start = model.clock()
            model.call(layout, ids[: layout.n_real], cache)
            times.append(model.clock() - start)
            cache.commit(context)
            if sum(times) > 0.5:  # a large model: once is enough
                break
        best.append(min(times))
    return best[0], best[1]
