"""Several decoders on one fair clock.

Two decoders on one device slow each other down, and two runs after one another are no race. So one
thread makes one call at a time; each lane is charged its own calls' seconds only, and the lane
whose own clock is behind moves next. What a viewer sees is then true to each lane's own speed.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping

from space_core.trace import Step


def race(lanes: Mapping[str, Iterator[Step]]) -> Generator[tuple[str, Step, float], None, None]:
    """Interleave decoders until all have stopped.

    Args:
        lanes: a decoder under its name; among equals the first moves first.

    Yields:
        (lane, step, clock): the lane's clock in seconds after that step. Closing this generator
        closes every lane.
    """
    clocks = dict.fromkeys(lanes, 0.0)
    try:
        while clocks:
            lane = min(clocks, key=lambda name: clocks[name])
            step = next(lanes[lane], None)
            if step is None:
                del clocks[lane]
                continue
            clocks[lane] += step.seconds
            yield lane, step, clocks[lane]
    finally:
        for decoder in lanes.values():
            close = getattr(decoder, "close", None)
            if close is not None:
                close()
