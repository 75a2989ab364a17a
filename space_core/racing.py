"""Several decoders on one fair clock.

Two decoders on one device slow each other down, and two runs after one another are no race. So one
thread makes one call at a time; each lane is charged its own calls' seconds only, and the lane
whose own clock is behind moves next. What a viewer sees is then true to each lane's own speed.

For a benchmark the lane whose text is behind moves next, a stretch of tokens at a time: all lanes then go
through the same moments of a machine that others use as well, and their ratios are free of its drift.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterator, Mapping
from contextlib import closing
from typing import TypeVar

from space_core.trace import Step

Lane = TypeVar("Lane", bound=Hashable)

STRETCH = 16
"""Tokens. Token by token in turn plain calls took 3.5 % longer than among their like (60 blocks, ± 2; planned
calls 2 % less, ± 2): what the grid's calls leave in the caches is of no use to them."""


def race(lanes: Mapping[str, Iterator[Step]]) -> Generator[tuple[str, Step, float], None, None]:
    """Interleave decoders until all have stopped.

    Args:
        lanes: a decoder under its name; among equals the first moves first.

    Yields:
        (lane, step, clock): the lane's clock in seconds after that step. Closing this generator
        closes every lane.
    """
    clocks = dict.fromkeys(lanes, 0.0)
    with closing(_interleave(lanes, clocks)) as steps:
        for lane, step, _ in steps:
            clocks[lane] += step.seconds
            yield lane, step, clocks[lane]


def abreast(
    lanes: Mapping[Lane, Iterator[Step]], clock: Callable[[], float], stretch: int = STRETCH
) -> Generator[tuple[Lane, Step, float], None, None]:
    """Interleave decoders until all have stopped; each text grows by a stretch at a time.

    Args:
        lanes: as of `race`.
        clock: seconds.
        stretch: tokens.

    Yields:
        (lane, step, seconds): what the lane took from asking for that step to having it. Closing this
        generator closes every lane.
    """
    lengths, stretches = dict.fromkeys(lanes, 0), dict.fromkeys(lanes, 0)
    with closing(_interleave(lanes, stretches, clock)) as steps:
        for lane, step, seconds in steps:
            lengths[lane] += len(step.emitted)
            stretches[lane] = lengths[lane] // stretch
            yield lane, step, seconds


def _interleave(
    lanes: Mapping[Lane, Iterator[Step]],
    places: dict[Lane, float] | dict[Lane, int],
    clock: Callable[[], float] = lambda: 0.0,
) -> Generator[tuple[Lane, Step, float], None, None]:
    """The lane of the least place moves next; one that has stopped loses its place."""
    try:
        while places:
            lane = min(places, key=lambda name: places[name])
            start = clock()
            step = next(lanes[lane], None)
            if step is None:
                del places[lane]
                continue
            yield lane, step, clock() - start
    finally:
        for decoder in lanes.values():
            close = getattr(decoder, "close", None)
            if close is not None:
                close()
