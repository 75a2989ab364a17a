"""Steps to frames: what a viewer is told of a race, while it runs and after it.

A frame is plain JSON. A *delta* carries the calls since the frame before it; a *snapshot* carries
all of them, so a viewer that came late, or lost a delta, is whole again after one. Both have the
same schema, calls are numbered, and a viewer may take frames in any order, any number of times.
Model text is in here as JSON strings only: whoever paints it writes text nodes, never markup.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final, Literal, NotRequired, TypedDict

from space_core.detokenize import Detokenizer
from space_core.settings import Settings
from space_core.trace import Step, Stop, Trace
from space_core.views.lanes import MAIN
from space_core.views.verdict import Verdict, verdict

FORMAT: Final = "space-frames/1"
CONTEXT = 8
"""Tokens before a draft that are decoded with it, so that its piece reads as it will in the text."""


class State(StrEnum):
    """Where a race stands."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"
    DEADLINE = "deadline"


Piece = tuple[str, str]
"""A token's text and its origin (`trace.Origin`)."""
Guess = tuple[str, float | None]
"""A draft's text and the probability that its mask row gave it; None if it was copied from the text."""


class Call(TypedDict):
    """One model call of one lane; what follows `seconds` is there where it verified or drafted.

    `pending` are the new drafts. The next call verifies the first `verified` of them, and has
    `drafts` of its own only where it verified other ones.
    """

    lane: str
    n: int
    tokens: list[Piece]
    rows: int
    seconds: float
    verified: NotRequired[int]
    accepted: NotRequired[int]
    drafts: NotRequired[list[Guess]]
    groups: NotRequired[list[int]]
    pending: NotRequired[list[Guess]]


class Tally(TypedDict):
    """A lane's counters. `rest` is text that belongs to no token: a character never completed."""

    calls: int
    tokens: int
    seconds: float
    tokens_per_second: float
    tokens_per_call: float
    rest: str
    stop: str | None


class About(TypedDict):
    """What races, and under which settings."""

    model: str
    device: str
    dtype: str
    k: int
    budget: int
    temperature: float
    prompt: str


class Frame(TypedDict):
    """One message to a viewer. `about` and `verdict` come with snapshots only."""

    format: Literal["space-frames/1"]
    kind: Literal["delta", "snapshot"]
    race: str
    state: str
    lanes: dict[str, Tally]
    calls: list[Call]
    about: NotRequired[About]
    verdict: NotRequired[Verdict | None]


class Race:
    """The fold of one race: Steps go in, frames and traces come out. One visitor's, never shared.

    Args:
        lanes: their names (`views.lanes`), in the order in which they are shown; SPACE and vanilla
            among them.
        tokenizer: of transformers, to spell tokens.
        prompt_ids, prompt: what all lanes continue.
        settings: the request.
        model, device, dtype: what runs, as text.
    """

    def __init__(
        self,
        lanes: Sequence[str],
        tokenizer: Any,
        prompt_ids: Sequence[int],
        prompt: str,
        settings: Settings,
        model: str = "",
        device: str = "",
        dtype: str = "",
    ) -> None:
        self.id = secrets.token_hex(4)
        self.state = State.RUNNING
        self.settings = settings
        self._prompt_ids = tuple(prompt_ids)
        self._about = About(
            model=model,
            device=device,
            dtype=dtype,
            k=settings.k,
            budget=settings.max_new_tokens,
            temperature=settings.temperature,
            prompt=prompt,
        )
        self._lanes = {name: _Lane(name, tokenizer, prompt_ids) for name in lanes}
        self._calls: list[Call] = []
        self._sent = 0

    def add(self, lane: str, step: Step) -> None:
        """Take in the next step of a lane. One that was under way when the race ended counts no more."""
        if self.state is not State.RUNNING:
            return
        self._calls.append(self._lanes[lane].add(step))

    def end(self, state: State = State.DONE) -> None:
        """The race is over; a second end changes nothing."""
        if self.state is State.RUNNING:
            self.state = state

    def delta(self) -> Frame:
        """The calls since the last frame."""
        # Stop may ask for a snapshot while a last call is being added, so read the list once.
        calls = self._calls[self._sent :]
        self._sent += len(calls)
        return self._frame("delta", calls)

    def snapshot(self) -> Frame:
        """The whole race so far, and its verdict once it is over."""
        calls = list(self._calls)
        self._sent = len(calls)
        frame = self._frame("snapshot", calls)
        frame["about"] = self._about
        frame["verdict"] = None if self.state is State.RUNNING else self.verdict()
        return frame

    def verdict(self) -> Verdict:
        space, vanilla, *others = self.traces()
        return verdict(space, vanilla, others, stopped=self.state != State.DONE)

    def traces(self) -> list[Trace]:
        """All runs so far: SPACE's, vanilla's, and the further lanes' in their order."""
        return [self.trace(name) for name in (*MAIN, *(name for name in self._lanes if name not in MAIN))]

    def trace(self, lane: str) -> Trace:
        """The lane's run so far."""
        steps = tuple(self._lanes[lane].steps)
        output = [token for step in steps for token in step.emitted]
        return Trace(
            model=self._about["model"],
            method=lane,
            k=self.settings.k if lane == "space" else 0,
            dtype=self._about["dtype"],
            device=self._about["device"],
            prompt_ids=self._prompt_ids,
            steps=steps,
            text=self._lanes[lane].text if output else "",
            settings=self.settings.to_json(),
            stopped=Stop.DEADLINE if self.state is State.DEADLINE else Stop.CANCELLED,
        )

    def _frame(self, kind: Literal["delta", "snapshot"], calls: list[Call]) -> Frame:
        return Frame(
            format=FORMAT,
            kind=kind,
            race=self.id,
            state=str(self.state),
            lanes={
                name: lane.tally(over=self.state is not State.RUNNING) for name, lane in self._lanes.items()
            },
            calls=calls,
        )


class _Lane:
    """One lane: its steps, its text, its counters."""

    def __init__(self, name: str, tokenizer: Any, prompt_ids: Sequence[int]) -> None:
        self.name = name
        self.steps: list[Step] = []
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer, prompt_ids)
        self._ids = list(prompt_ids)
        self._pieces: list[str] = []
        self._rest: str | None = None
        self._seconds = 0.0
        self._tokens = 0
        self._pending: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        return "".join(self._pieces) + (self._rest or "")

    def add(self, step: Step) -> Call:
        pieces = self._detokenizer.feed(step.emitted)
        call = Call(
            lane=self.name,
            n=len(self.steps) + 1,
            tokens=list(zip(pieces, map(str, step.origins), strict=True)),
            rows=step.rows,
            seconds=round(step.seconds, 6),
        )
        if step.drafts:
            call["verified"] = len(step.drafts)
            call["accepted"] = step.accepted
            if self._pending[: len(step.drafts)] != step.drafts:
                call["drafts"] = self._spell(step.drafts, step.draft_probs)
        if step.groups:
            call["groups"] = list(step.groups)
        self._ids.extend(step.emitted)
        self._pieces.extend(pieces)
        self._seconds += step.seconds
        self._tokens += len(step.emitted)
        self.steps.append(step)
        self._pending = step.new_drafts
        if step.stop is None and step.new_drafts:
            call["pending"] = self._spell(step.new_drafts, step.new_draft_probs)
        return call

    def tally(self, over: bool) -> Tally:
        stop = self.steps[-1].stop if self.steps else None
        if self._rest is None and (over or stop):
            self._rest = self._detokenizer.flush()
        calls, tokens, seconds = len(self.steps), self._tokens, self._seconds
        return Tally(
            calls=calls,
            tokens=tokens,
            seconds=round(seconds, 6),
            tokens_per_second=round(tokens / seconds, 2) if seconds else 0.0,
            tokens_per_call=round(tokens / calls, 3) if calls else 0.0,
            rest=self._rest or "",
            stop=None if stop is None else str(stop),
        )

    def _spell(self, drafts: Sequence[int], probs: Sequence[float]) -> list[Guess]:
        """Drafts as they would read behind the text so far."""
        pieces = Detokenizer(self._tokenizer, self._ids[-CONTEXT:]).feed(drafts)
        known = [round(p, 3) for p in probs] + [None] * (len(drafts) - len(probs))
        return list(zip(pieces, known, strict=True))


def empty(state: State) -> Frame:
    """The frame of a race that has no lanes yet: it waits for the model, or was stopped before."""
    return Frame(format=FORMAT, kind="snapshot", race="", state=str(state), lanes={}, calls=[])


def encode(frame: Frame) -> str:
    """A frame as JSON text that holds no markup, even for someone who takes it for HTML."""
    text = json.dumps(frame, ensure_ascii=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
