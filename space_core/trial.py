"""A small benchmark that somebody watches: it tells how far it is, ends when asked to, and by itself
at a deadline. What is measured, and how, is `bench`'s.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from space_core import bench
from space_core.errors import SpaceError
from space_core.model import SpaceModel
from space_core.prompts import Prompt
from space_core.settings import Settings

WARMUP = 1
TICK = 0.1
"""Seconds between two looks: watching must not cost the calls that are timed."""


class End(StrEnum):
    """How a trial ended."""

    DONE = "done"
    STOPPED = "stopped"
    DEADLINE = "deadline"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a trial is: prompts done, warm-up included, and the line that decodes now."""

    done: int
    total: int
    line: str
    calls: int


class Trial:
    """One benchmark in a thread of its own.

    Args:
        lines: of the table (`bench.columns`).
        deadline: seconds.
        command: what makes about the same on the command line.

    Attributes:
        end: how it ended, None before.
        result: "space-bench/1", None before the end, or where no prompt was done.
    """

    def __init__(
        self,
        model: SpaceModel,
        draft: SpaceModel | None,
        prompts: Sequence[Prompt],
        lines: Sequence[bench.Column],
        settings: Settings,
        deadline: float,
        command: str = "",
    ) -> None:
        self.model, self.draft, self.prompts, self.lines = model, draft, tuple(prompts), tuple(lines)
        self.settings, self.deadline, self.command = settings, deadline, command
        self.end: End | None = None
        self.result: dict[str, Any] | None = None
        self._cancelled = threading.Event()
        self._over: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._done, self._line, self._calls = 0, "", 0
        self._until = 0.0

    def cancel(self) -> None:
        """End it before the next call of the model. From any thread, at any time, more than once."""
        self._cancelled.set()

    def run(self) -> Generator[Progress, None, None]:
        """Measure; yields now and then. Closing this ends the measurement.

        Raises:
            SpaceError: for prompts or lines that cannot be decoded.
        """
        self._until = time.monotonic() + self.deadline
        worker = threading.Thread(target=self._work, name="trial", daemon=True)
        worker.start()
        try:
            while True:
                yield self.progress()
                try:
                    error = self._over.get(timeout=TICK)
                except queue.Empty:
                    continue
                if error is not None:
                    raise error
                return
        finally:
            self.cancel()
            worker.join()

    def progress(self) -> Progress:
        return Progress(self._done, len(self.prompts) + WARMUP, self._line, self._calls)

    def _work(self) -> None:
        error: BaseException | None = None
        try:
            measured = bench.measure(
                self.model,
                self.prompts,
                self.lines,
                self.settings,
                warmup=WARMUP,
                draft=self.draft,
                progress=self._prompt_done,
                halt=self._halt,
            )
            self.end = self._why() if measured.halted else End.DONE
            if all(measured.runs.values()):
                done = {run.prompt for runs in measured.runs.values() for run in runs}
                left_out = {skip.prompt for skip in measured.skipped if skip.turn == 0}
                self.result = bench.result(
                    self.model,
                    self.draft,
                    [self.model.dtype_name],
                    self.settings,
                    1,
                    len(done | left_out),
                    bench.summarize(measured),
                    measured.skipped,
                    self.command,
                )
            elif not measured.halted and measured.skipped:
                raise SpaceError(measured.skipped[0].reason)
        except BaseException as caught:  # raised again where `run` waits
            error = caught
        self._over.put(error)

    def _prompt_done(self) -> None:
        self._done += 1

    def _halt(self, line: bench.Column) -> bool:
        name = f"{line.method}, k = {line.k}" if line.k else str(line.method)
        if name != self._line:
            self._line, self._calls = name, 0
        self._calls += 1
        return self._cancelled.is_set() or time.monotonic() > self._until

    def _why(self) -> End:
        return End.STOPPED if self._cancelled.is_set() else End.DEADLINE
