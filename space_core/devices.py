"""Several devices, each for one run at a time: whoever comes next gets one that is free."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from space_core.errors import CheckpointError

KINDS = ("cpu", "cuda", "mps")


def one(name: str) -> str:
    """A device as --device names it: "cuda:1", or "auto". Whether it is to be had here is found out later.

    Raises:
        CheckpointError: for one of a kind that there is no code for.
    """
    kind, _, number = name.partition(":")
    whole = name == kind or number.isdecimal()
    if name != "auto" and (kind not in KINDS or not whole):
        raise CheckpointError(f"no device is called {name!r:.40}: use auto or one of {', '.join(KINDS)}")
    return name


def parse(text: str) -> tuple[str, ...]:
    """Devices as SPACE_DEVICES names them: "cuda:0,cuda:1".

    Raises:
        CheckpointError: for none, or for one that is named twice: two runs on one device would slow
            each other down; and as `one`.
    """
    names = tuple(one(name.strip()) for name in text.split(",") if name.strip())
    if not names:
        raise CheckpointError("SPACE_DEVICES names no device: write for example cuda:0,cuda:1")
    same = [f"{name}:0" if name == "cuda" else name for name in names]
    if len(set(same)) < len(same) or (len(names) > 1 and "auto" in names):
        raise CheckpointError("SPACE_DEVICES must name each device once, and none of them auto")
    return names


class Slots:
    """Who has which device. For any number of threads.

    Args:
        devices: their names, at least one.
    """

    def __init__(self, devices: Sequence[str]) -> None:
        self.devices = tuple(devices)
        self._free = list(range(len(self.devices)))
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self.devices)

    @property
    def free(self) -> int:
        """How many nobody has."""
        return len(self._free)

    @contextmanager
    def taken(self, wanted: int | None = None) -> Iterator[int]:
        """The number of a device that is this caller's within the `with`; waits until one is free.

        The one that has been idle longest comes first, so that all of them work; the `wanted` one (of a
        conversation, whose cache lies there) before all, if it is free.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._free)
            number = wanted if wanted is not None and wanted in self._free else self._free[0]
            self._free.remove(number)
        try:
            yield number
        finally:
            with self._changed:
                self._free.append(number)
                self._changed.notify()
