"""How many CPU threads serve a model best: measured, since more is not faster for a small one.

A small model's products are shorter than waking a second thread: on two cores a call of 12 rows of a
5.8 M-parameter model took 15 ms with two (passively waiting) threads and 4.7 ms with one, a call of
one row 2.4 ms with either. A large model wants them all. Changes a setting of the whole process, so
the command line and the page do it, and a library user only by calling it.

The numbers are tried in turn, and the ratio in the middle of such rounds decides. The best of seven
calls each, one number after the other, was a toss on a shared machine: two threads looked faster for
one row in half of the trials, where decoding took 11.7 ms a plain call with one and 12.2 with two, and
15.1 and 21.1 ms a planned one (an EPYC whose memory is slow, 2026-11-28). Of 300 rounds there any eight
in a row would have taken two threads in 2 % of the cases, by medians over all calls in 6 %. In other
hours of that machine two threads took 0.93 of the time for many rows and the same for one: the second
core then gains next to nothing by decoding, and the page and its browser are in want of it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from statistics import median

import torch

from space_core.cache import BlockCache
from space_core.cost import layout_of
from space_core.layout import Layout
from space_core.model import SpaceModel

ROUNDS = 8
PLAIN, MANY = 2, 1
"""Calls of a round that count."""
BUDGET, SLOW = 1.5, 0.25
"""Seconds behind which no further round begins; and those of a call that is not made twice a round."""
CONTEXT = 64
MANY_ROWS = 12
EQUAL, WORTH = 1.05, 0.85
"""Over the best number's time, calls of one row that are equally fast; over fewer threads', calls of many
rows that earn more of them."""


def tune_threads(model: SpaceModel) -> int:
    """Set torch's number of threads to what suits this model; returns it.

    Plain decoding decides, so that it is not slowed for SPACE's sake; among numbers under which it
    is equally fast (within 5 %) the smallest, unless a call of many rows gains 15 % by more: a thread
    that gains less keeps a core from everything else. Left alone: other devices than the CPU, and a
    number that OMP_NUM_THREADS gives.
    """
    most = torch.get_num_threads()
    if model.device.type != "cpu" or most == 1 or "OMP_NUM_THREADS" in os.environ:
        return most
    ratios = _measure(model, sorted({1, max(1, most // 2), most}))
    fastest = min(plain for plain, _ in ratios.values())
    best, *more = sorted(n for n, (plain, _) in ratios.items() if plain <= EQUAL * fastest)
    for n in more:
        if ratios[n][1] <= WORTH * ratios[best][1]:
            best = n
    _set(model, best)
    return best


def _set(model: SpaceModel, threads: int) -> None:
    torch.set_num_threads(threads)
    if model.products:
        model.products.measure()


def _measure(model: SpaceModel, candidates: Sequence[int]) -> dict[int, tuple[float, float]]:
    """Time of a call of one row and of one of many rows over what the first number takes, by numbers."""
    context = min(CONTEXT, model.context // 2)
    ids, cache = [1 % model.vocabulary] * context, BlockCache()
    model.call(Layout.plain(context), ids, cache)

    def seconds(layout: Layout, repetitions: int) -> float:
        times = []
        for _ in range(1 + repetitions):
            start = model.clock()
            model.call(layout, ids[: layout.n_real], cache)
            times.append(model.clock() - start)
            cache.commit(context)
            if times[-1] > SLOW:
                return times[-1]
        return median(times[1:])  # the first one warms up

    rounds: list[dict[int, tuple[float, float]]] = []
    for n in candidates:
        _set(model, n)  # its products are measured
    begin = model.clock()
    while len(rounds) < ROUNDS and model.clock() - begin <= BUDGET:
        rounds.append({})
        for n in candidates:
            _set(model, n)
            rounds[-1][n] = seconds(Layout.plain(1), PLAIN), seconds(layout_of(MANY_ROWS), MANY)

    def over_first(n: int, kind: int) -> float:
        return median(r[n][kind] / r[candidates[0]][kind] for r in rounds)

    return {n: (over_first(n, 0), over_first(n, 1)) for n in candidates}
