"""Steps to frames: what a viewer is told of a race, while it runs and after it.

A frame is plain JSON. A *delta* carries the calls since the frame before it; a *snapshot* carries
all of them, so a viewer that came late, or lost a delta, is whole again after one. Both have the
same schema, calls are numbered, and a viewer may take frames in any order, any number of times.
Model text is in here as JSON strings only: whoever paints it writes text nodes, never markup.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Literal, NotRequired, Protocol, TypedDict

from space_core.detokenize import Detokenizer
from space_core.settings import Settings
from space_core.trace import Step, Stop, Trace
from space_core.views.lanes import MAIN
from space_core.views.verdict import Verdict, verdict

if TYPE_CHECKING:
    from space_core.model import SpaceModel
    from space_core.talks import Talk

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
    """What races, and under which settings. `source` is there for a race that was not run here."""

    model: str
    device: str
    dtype: str
    k: int
    budget: int
    temperature: float
    prompt: str
    source: NotRequired[Literal["file"]]


class Link(TypedDict):
    """What a permalink asks of the viewer: a note, and the call to go to once its prompt has raced."""

    note: str
    step: int
    prompt: str


class Frame(TypedDict):
    """One message to a viewer. `about` and `verdict` come with snapshots only, `link` without a race."""

    format: Literal["space-frames/1"]
    kind: Literal["delta", "snapshot"]
    race: str
    state: str
    lanes: dict[str, Tally]
    calls: list[Call]
    about: NotRequired[About]
    verdict: NotRequired[Verdict | None]
    link: NotRequired[Link]


class Speller(Protocol):
    """The text of one lane's tokens, asked for step by step and in this order."""

    def emitted(self, step: Step) -> list[str]:
        """A piece for each emitted token; joined with all others they are the lane's text."""

    def drafts(self, step: Step) -> list[str]:
        """A piece for each draft that the step verified, as it would have read."""

    def new_drafts(self, step: Step) -> list[str]:
        """A piece for each new draft, behind what the step emitted."""

    def rest(self) -> str:
        """Text that belongs to no token; asked once, behind the last step."""


class Race:
    """The fold of one race: Steps go in, frames and traces come out. One visitor's, never shared.

    Args:
        lanes: their names (`views.lanes`), in the order in which they are shown; SPACE and vanilla
            among them.
        tokenizer: of transformers, to spell tokens; None where `spellers` do.
        prompt_ids, prompt: what all lanes continue.
        settings: the request.
        model, device, dtype: what runs, as text.
        spellers: of each lane, for a race whose text comes from a file.
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
        spellers: Mapping[str, Speller] | None = None,
    ) -> None:
        self.id = secrets.token_hex(4)
        self.state = State.RUNNING
        self.settings = settings
        self.load = 0 if spellers is None else -1
        """Which of the models that the page has had ran it; -1 for a race from a file."""
        self.talk: Talk | None = None
        """The conversation that it goes on with, if it is one; whoever runs the race knows."""
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
        if spellers is None:
            spellers = {name: Tokens(tokenizer, prompt_ids) for name in lanes}
        else:
            self._about["source"] = "file"
        self._lanes = {name: _Lane(name, spellers[name]) for name in lanes}
        self._calls: list[Call] = []
        self._sent = 0

    @classmethod
    def of(
        cls,
        model: SpaceModel,
        lanes: Sequence[str],
        prompt_ids: Sequence[int],
        prompt: str,
        settings: Settings,
        device: str = "",
    ) -> Race:
        """A race of this model that has not begun. `device`: what to call it, where not by its own name."""
        place = device or str(model.device)
        return cls(lanes, model.tokenizer, prompt_ids, prompt, settings, model.name, place, model.dtype_name)

    @property
    def about(self) -> About:
        return self._about

    @property
    def foreign(self) -> bool:
        """Whether the race was read from a file, and not run here."""
        return "source" in self._about

    @property
    def lanes(self) -> tuple[str, ...]:
        return tuple(self._lanes)

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

    def __init__(self, name: str, speller: Speller) -> None:
        self.name = name
        self.steps: list[Step] = []
        self._speller = speller
        self._pieces: list[str] = []
        self._rest: str | None = None
        self._seconds = 0.0
        self._tokens = 0
        self._pending: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        return "".join(self._pieces) + (self._rest or "")

    def add(self, step: Step) -> Call:
        pieces = self._speller.emitted(step)
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
                call["drafts"] = _guesses(self._speller.drafts(step), step.draft_probs)
        if step.groups:
            call["groups"] = list(step.groups)
        self._pieces.extend(pieces)
        self._seconds += step.seconds
        self._tokens += len(step.emitted)
        self.steps.append(step)
        self._pending = step.new_drafts
        if step.stop is None and step.new_drafts:
            call["pending"] = _guesses(self._speller.new_drafts(step), step.new_draft_probs)
        return call

    def tally(self, over: bool) -> Tally:
        stop = self.steps[-1].stop if self.steps else None
        if self._rest is None and (over or stop):
            self._rest = self._speller.rest()
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


class Tokens:
    """A `Speller` by the tokenizer."""

    def __init__(self, tokenizer: Any, prompt_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer, prompt_ids)
        self._before = list(prompt_ids)
        self._ids = list(prompt_ids)

    def emitted(self, step: Step) -> list[str]:
        self._before = self._ids[-CONTEXT:]
        self._ids.extend(step.emitted)
        return self._detokenizer.feed(step.emitted)

    def drafts(self, step: Step) -> list[str]:
        return Detokenizer(self._tokenizer, self._before).feed(step.drafts)

    def new_drafts(self, step: Step) -> list[str]:
        return Detokenizer(self._tokenizer, self._ids[-CONTEXT:]).feed(step.new_drafts)

    def rest(self) -> str:
        return self._detokenizer.flush()


def _guesses(pieces: Sequence[str], probs: Sequence[float]) -> list[Guess]:
    # In two steps, so that a race that went through a file, whose traces keep six places, says the same.
    known = [round(round(p, 6), 3) for p in probs] + [None] * (len(pieces) - len(probs))
    return list(zip(pieces, known, strict=True))


def empty(state: State) -> Frame:
    """The frame of a race that has no lanes yet: it waits for the model, or was stopped before."""
    return Frame(format=FORMAT, kind="snapshot", race="", state=str(state), lanes={}, calls=[])


def linked(note: str, step: int, prompt: str) -> Frame:
    """What a permalink asks, before any race."""
    frame = empty(State.WAITING)
    frame["link"] = Link(note=note, step=step, prompt=prompt)
    return frame


def encode(value: Any) -> str:
    """A frame (or any JSON) as text that holds no markup, even for someone who takes it for HTML or
    for JavaScript."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for sign in "&<>\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text
