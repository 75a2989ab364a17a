"""A race as typed events, for programs: the contract "space-events/1", which `/race` and `/generate` stream.

    {"format", "type": "waiting"}                 the model is still loading
    {"format", "type": "start", "race", "lanes": [name], "about": {…}, "prompt_tokens"}
    {"format", "type": "calls", "calls": {name: {number: {…}}}, "lanes": {name: {…}}}
                                                  the calls since the event before, and all counters
    {"format", "type": "end", "state": "done"|"deadline", "lanes": {name: {…}}, "texts": {name: text},
     "verdict": {…}}
    {"format", "type": "progress", "tokens", "calls", "text"}     of `/generate`: `text` is what is new

`about`, `calls` and `lanes` are those of a frame (`frames.py`); `about.prompt` is the prompt as it was
sent, a conversation rendered by its chat template. New fields may come, what is here keeps its
meaning. An error is no event: the call fails with a sentence, and its `title` names the kind and the
field (`refusal`).

Calls are told by their numbers and not as a list: of a stream gradio sends its own clients what changed
since the event before, and takes that wrongly where lists within lists grow shorter. A number never
comes twice.
"""

from __future__ import annotations

from typing import Final, Literal, NotRequired, TypedDict

from space_core.errors import SettingError, SpaceError
from space_core.views import frames
from space_core.views.verdict import Verdict

FORMAT: Final = "space-events/1"


class Event(TypedDict):
    """One event; which fields it has depends on its type, as this room's head says."""

    format: Literal["space-events/1"]
    type: Literal["waiting", "start", "calls", "end", "progress"]
    race: NotRequired[str]
    about: NotRequired[frames.About]
    prompt_tokens: NotRequired[int]
    calls: NotRequired[dict[str, dict[str, frames.Call]] | int]
    lanes: NotRequired[dict[str, frames.Tally] | list[str]]
    state: NotRequired[str]
    texts: NotRequired[dict[str, str]]
    verdict: NotRequired[Verdict | None]
    tokens: NotRequired[int]
    text: NotRequired[str]


def waiting() -> Event:
    return Event(format=FORMAT, type="waiting")


class Fold:
    """One race's frames to events: frames in their order in, events out."""

    def __init__(self) -> None:
        self._told = 0
        self._texts: dict[str, list[str]] = {}

    def take(self, frame: frames.Frame, prompt_tokens: int) -> list[Event]:
        """What a frame tells that was not told yet."""
        found: list[Event] = []
        if not frame["race"]:
            return [waiting()]
        if not self._texts:
            self._texts = {name: [] for name in frame["lanes"]}
            start = Event(format=FORMAT, type="start", race=frame["race"], lanes=[*self._texts])
            start["about"], start["prompt_tokens"] = frame["about"], prompt_tokens
            found.append(start)
        # A snapshot holds all calls from the first on, a delta those since the frame before.
        calls = frame["calls"][self._told :] if frame["kind"] == "snapshot" else frame["calls"]
        self._told += len(calls)
        numbered: dict[str, dict[str, frames.Call]] = {}
        for call in calls:
            self._texts[call["lane"]] += [piece for piece, _ in call["tokens"]]
            numbered.setdefault(call["lane"], {})[str(call["n"])] = call
        if calls:
            found.append(Event(format=FORMAT, type="calls", calls=numbered, lanes=frame["lanes"]))
        if frame["state"] != frames.State.RUNNING and frame["kind"] == "snapshot":
            end = Event(format=FORMAT, type="end", state=frame["state"], lanes=frame["lanes"])
            end["texts"] = {
                name: "".join(pieces) + frame["lanes"][name]["rest"] for name, pieces in self._texts.items()
            }
            end["verdict"] = frame.get("verdict")
            found.append(end)
        return found


def progress(frame: frames.Frame, lane: str) -> Event:
    """A delta of a run with one lane."""
    tally = frame["lanes"][lane]
    text = "".join(piece for call in frame["calls"] for piece, _ in call["tokens"])
    event = Event(format=FORMAT, type="progress", tokens=tally["tokens"], calls=tally["calls"])
    event["text"] = text + tally["rest"]
    return event


def refusal(error: SpaceError) -> str:
    """The kind of an error and its field, for a program: "SettingError: k", "PromptError"."""
    kind = type(error).__name__
    return f"{kind}: {error.field}" if isinstance(error, SettingError) else kind
