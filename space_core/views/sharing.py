"""A race as a file, and back: the contract "space-shared/1".

    {"format": "space-shared/1", "prompt": text,
     "traces": ["space-trace/1", …],           the lanes' runs, `method` being the lane
     "pieces": {lane: {"calls": [{"tokens": [text], "drafts": [text], "pending": [text]}, …],
                       "rest": text}}}

Token ids and numbers are the traces', read by `space_core.trace`; the pieces are what the lanes
showed, so that a race can be looked at without its model. Counters, marks and the verdict are
computed from the traces again, never believed. A trace of the command line ("space-trace/1") is
read too where the tokenizer at hand spells its text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from space_core.errors import SettingError, TraceError
from space_core.settings import Settings
from space_core.trace import FORMAT as TRACE
from space_core.trace import Step, Stop, Trace
from space_core.views import frames
from space_core.views.lanes import MAIN, NAMES

FORMAT: Final = "space-shared/1"
MAX_BYTES: Final = 1_000_000
MAX_NAME: Final = 80
"""Characters of a model's, dtype's or device's name that are shown."""


def write(race: frames.Race) -> str:
    """The race so far, as JSON text."""
    frame = race.snapshot()
    pieces: dict[str, Any] = {
        lane: {"calls": [], "rest": tally["rest"]} for lane, tally in frame["lanes"].items()
    }
    for call in sorted(frame["calls"], key=lambda call: call["n"]):
        told: dict[str, list[str]] = {"tokens": [piece for piece, _ in call["tokens"]]}
        if "drafts" in call:
            told["drafts"] = [piece for piece, _ in call["drafts"]]
        if "pending" in call:
            told["pending"] = [piece for piece, _ in call["pending"]]
        pieces[call["lane"]]["calls"].append(told)
    return frames.encode(
        {
            "format": FORMAT,
            "prompt": race.about["prompt"],
            "traces": [trace.to_json() for trace in race.traces()],
            "pieces": pieces,
        }
    )


def read(text: Any, tokenizer: Any = None) -> frames.Race:
    """A race from untrusted JSON text, over and ready to be shown.

    Args:
        tokenizer: of the model at hand, which spells a bare "space-trace/1"; None where there is none.

    Raises:
        TraceError: with a sentence for the field.
    """
    if not isinstance(text, str):
        raise TraceError("The file is no text: choose one that was saved here.")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise TraceError("The file is no UTF-8 text: choose one that was saved here.") from None
    if size > MAX_BYTES:
        raise TraceError(f"The file has {size:,} bytes, but at most {MAX_BYTES:,} are read.")
    try:
        data = json.loads(text)
        json.dumps(data, ensure_ascii=False).encode()  # half a surrogate pair, escaped, is no text
    except (ValueError, RecursionError):
        raise TraceError("The file is no JSON: choose one that was saved here.") from None
    kind = data.get("format") if isinstance(data, dict) else None
    if kind == FORMAT:
        return _shared(data)
    if kind == TRACE:
        return _bare(Trace.from_json(data), tokenizer)
    raise TraceError(f"The file is no trace: its format must be {FORMAT!r} or {TRACE!r}.")


def _shared(data: dict[str, Any]) -> frames.Race:
    listed = data.get("traces")
    if not isinstance(listed, list) or len(listed) > len(NAMES):
        raise TraceError("traces must be a list of one trace for each lane")
    traces = [Trace.from_json(row) for row in listed]
    lanes = [trace.method for trace in traces]
    if len({*lanes}) < len(lanes) or not {*lanes} <= {*NAMES}:
        raise TraceError(f"each trace must have another method of {', '.join(NAMES)}")
    if not {*MAIN} <= {*lanes}:
        raise TraceError("a race has a trace of space and one of vanilla")
    if len({(trace.prompt_ids, trace.model) for trace in traces}) > 1:
        raise TraceError("the traces are of different models or prompts")
    pieces = data.get("pieces")
    if not isinstance(pieces, dict):
        raise TraceError("pieces must hold the text of each lane")
    spellers: dict[str, frames.Speller] = {
        trace.method: _Pieces(trace.method, pieces.get(trace.method), trace) for trace in traces
    }
    return _race(traces, _text(data.get("prompt"), "prompt"), spellers)


def _bare(trace: Trace, tokenizer: Any) -> frames.Race:
    """A trace of one lane, whose other lane stays empty."""
    if trace.method not in MAIN:
        raise TraceError(f"a single trace must be of {' or '.join(MAIN)}, not {trace.method!r:.40}")
    other = next(name for name in MAIN if name != trace.method)
    if tokenizer is None:
        raise TraceError("A trace of the command line needs its model’s tokenizer: wait until it is loaded.")
    try:
        prompt, spelled = (
            str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
            for ids in (trace.prompt_ids, trace.output_ids)
        )
    except Exception:  # ids that this tokenizer does not have: each kind fails in its own way
        spelled = None
    if spelled is None or spelled != trace.text:
        raise TraceError(
            f"The model that is loaded does not spell this trace’s text: it was made with "
            f"{_name(trace.model)}, so open it where that is loaded."
        )
    empty = Trace(trace.model, other, 0, trace.dtype, trace.device, trace.prompt_ids, ())
    spellers: dict[str, frames.Speller] = {name: frames.Tokens(tokenizer, trace.prompt_ids) for name in MAIN}
    return _race([trace, empty], prompt, spellers)


def _race(traces: Sequence[Trace], prompt: str, spellers: dict[str, frames.Speller]) -> frames.Race:
    told = next(trace for trace in traces if trace.steps or trace.method == "space")
    race = frames.Race(
        lanes=[*MAIN, *(trace.method for trace in traces if trace.method not in MAIN)],
        tokenizer=None,
        prompt_ids=told.prompt_ids,
        prompt=prompt,
        settings=_settings(told),
        model=_name(told.model),
        device=_name(told.device),
        dtype=_name(told.dtype),
        spellers=spellers,
    )
    for trace in traces:
        for step in trace.steps:
            race.add(trace.method, step)
    stops = {trace.stop for trace in traces if trace.steps}
    race.end(
        frames.State.DEADLINE
        if Stop.DEADLINE in stops
        else frames.State.STOPPED
        if Stop.CANCELLED in stops
        else frames.State.DONE
    )
    return race


def _settings(trace: Trace) -> Settings:
    """The request as the trace tells it, judged as any other."""
    known: dict[str, Any] = {"k": trace.k or Settings().k, **trace.settings}
    known = {name: value for name, value in known.items() if name in Settings.__dataclass_fields__}
    try:
        return Settings(**known)
    except SettingError as error:
        raise TraceError(f"the settings are wrong: {error}") from None


class _Pieces:
    """A lane's text from the file: one piece for each token of its trace, or an error."""

    def __init__(self, lane: str, told: Any, trace: Trace) -> None:
        calls = told.get("calls") if isinstance(told, dict) else None
        if not isinstance(calls, list) or len(calls) != len(trace.steps):
            raise TraceError(f"pieces of {lane} must tell each of its calls")
        self._lane, self._calls = lane, calls
        self._rest = _text(told.get("rest", ""), "rest")
        self._at = -1

    def emitted(self, step: Step) -> list[str]:
        self._at += 1
        return self._read("tokens", len(step.emitted))

    def drafts(self, step: Step) -> list[str]:
        return self._read("drafts", len(step.drafts))

    def new_drafts(self, step: Step) -> list[str]:
        return self._read("pending", len(step.new_drafts))

    def rest(self) -> str:
        return self._rest

    def _read(self, name: str, count: int) -> list[str]:
        call = self._calls[self._at]
        pieces = call.get(name) if isinstance(call, dict) else None
        if not isinstance(pieces, list) or len(pieces) != count:
            raise TraceError(f"call {self._at + 1} of {self._lane} needs {count} pieces as its {name}")
        return [_text(piece, name) for piece in pieces]


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise TraceError(f"{name} must be text")
    return value


def _name(words: str) -> str:
    return " ".join(words.split())[:MAX_NAME] or "a model without a name"
