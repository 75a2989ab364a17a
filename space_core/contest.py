"""A race as plain Python: what goes in and what comes out can cross to another process.

On ZeroGPU the decoding runs in a process that was forked off this one, which sends its arguments and
gets its results pickled; elsewhere it is a generator like any other. So models are asked for by
their key in the registry, and Steps come in batches.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

from space_core.errors import SpaceError
from space_core.racing import race
from space_core.settings import Settings
from space_core.trace import Step

if TYPE_CHECKING:
    from space_core.memory import Memory
    from space_core.model import SpaceModel

BATCHES_PER_SECOND, ON_A_CPU = 25, 8
"""The latter where decoding shares its cores with whoever serves and paints what it wrote."""

Kind = Literal["steps", "deadline", "error"]
Batch = tuple[Kind, list[tuple[str, Step]], str]
"""What happened since the batch before; the text is an error's sentence."""

_LOADED: Final[dict[str, tuple[SpaceModel, SpaceModel | None]]] = {}
"""The loaded models by their keys, each with its draft model. A forked process has them too."""


def put(key: str, model: SpaceModel, draft: SpaceModel | None) -> None:
    """Take a loaded model into the registry."""
    _LOADED[key] = model, draft


def drop(key: str) -> None:
    _LOADED.pop(key, None)


def get(key: str) -> tuple[SpaceModel, SpaceModel | None]:
    """A model and its draft model. Raises KeyError for one that was never put."""
    return _LOADED[key]


def models() -> list[SpaceModel]:
    """All that are there."""
    return [model for model, _ in list(_LOADED.values())]


def decoder(
    lane: str,
    model: SpaceModel,
    prompt_ids: list[int],
    settings: Settings,
    draft: SpaceModel | None,
    memory: Memory | None = None,
) -> Iterator[Step]:
    """The decoder of a lane, which has not made a call yet.

    Args:
        memory: of a conversation; further lanes read their prompt whole, and heed its end of turn.

    Raises:
        SpaceError: for a further lane that cannot run this request.
    """
    from space_core import decoders, peers

    if lane == "vanilla":
        return decoders.vanilla(model, prompt_ids, settings, memory)
    if lane == "space":
        return decoders.space(model, prompt_ids, settings, memory)
    return peers.lane(model, prompt_ids, settings, lane, draft, memory.eos_ids if memory else ())


def run(
    key: str,
    prompt_ids: list[int],
    settings: dict[str, Any],
    lanes: Sequence[str],
    deadline: float,
    eos_ids: Sequence[int] = (),
    memories: Mapping[str, Memory] = MappingProxyType({}),
) -> Generator[Batch, None, None]:
    """Race the lanes on one device.

    Args:
        key: of the model.
        prompt_ids: what all lanes continue.
        settings: of `Settings`, sound.
        lanes: in the order of their first calls.
        deadline: seconds, checked after each call.
        eos_ids: that end a conversation's turn beside those that end a text.
        memories: of its lanes, for the model of this key. They cannot cross to another process: there
            every turn reads its whole prompt.

    Yields:
        A batch as soon as there is a step and the last one is 1/25 s old (1/8 s on a CPU). An error ends
        the race.
        Closing this ends every decoder before its next call.
    """
    until = time.monotonic() + deadline
    batch: list[tuple[str, Step]] = []
    try:
        model, draft = get(key)
        request = Settings(**settings)
        pause = 1 / (ON_A_CPU if model.device.type == "cpu" else BATCHES_PER_SECOND)
        found = {lane: memories.get(lane) or _memory(model, eos_ids) for lane in lanes}
        decoders = {lane: decoder(lane, model, prompt_ids, request, draft, found[lane]) for lane in lanes}
        with closing(race(decoders)) as steps:
            sent = 0.0
            for lane, step, _ in steps:
                batch.append((lane, step))
                now = time.monotonic()
                if now > until:
                    yield "deadline", batch, ""
                    return
                if now - sent > pause:
                    yield "steps", batch, ""
                    batch, sent = [], time.monotonic()
    except SpaceError as error:
        yield "error", batch, str(error)
        return
    yield "steps", batch, ""


def _memory(model: SpaceModel, eos_ids: Sequence[int]) -> Memory | None:
    """For one run: nothing is known, and nothing kept behind it."""
    from space_core.memory import Memory

    return Memory(model, eos_ids) if eos_ids else None


def duration(
    key: str,
    prompt_ids: list[int],
    settings: dict[str, Any],
    lanes: Sequence[str],
    deadline: float,
    *_: object,
) -> int:
    """Seconds of a GPU that `run` with these arguments asks ZeroGPU for.

    More than it needs, since a run that goes over is cut off; but a visitor's share of the day is
    charged by it. A call is taken at 40 ms, the first ones (kernels, the cost of calls) at 8 s.
    """
    calls = int(settings.get("max_new_tokens", 64)) * len(lanes)
    return max(10, min(int(deadline) + 2, 8 + round(0.04 * calls)))
