"""What a run is: one `Step` per model call, all steps of a run as a `Trace`, JSON both ways.

This room knows token ids and numbers. It imports nothing of ours but the error class; the page,
the command line, the benchmark and the tests are all folds over Steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from space_core.errors import TraceError

FORMAT = "space-trace/1"


class Stop(StrEnum):
    """Why a run ended."""

    EOS = "eos"
    MAX_NEW_TOKENS = "max_new_tokens"
    CONTEXT = "context"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"


class Origin(StrEnum):
    """Where an emitted token came from."""

    ACCEPTED = "accepted"
    """A draft that the model would have written itself."""
    CORRECTED = "corrected"
    """The model's own token in place of a rejected draft."""
    BONUS = "bonus"
    """The model's own token behind drafts that all stood."""
    OWN = "own"
    """The model's own token of a call that verified no draft (vanilla, and the prompt's call)."""


@dataclass(frozen=True, slots=True)
class Step:
    """One model call.

    Attributes:
        emitted: new tokens, in order: the accepted drafts, then one token of the model's own
            (missing only where the run stopped inside the accepted drafts).
        accepted: how many of `drafts` were accepted and emitted.
        drafts: the tokens this call verified, guessed by the call before.
        rows: rows (tokens and masks) fed to the model in this call; the prompt's rows included.
        seconds: wall-clock of the whole call, device synchronised at both ends.
        draft_probs: probability its mask row gave each of `drafts`; same length, but empty for drafts
            that were copied from the text so far.
        copied: whether `drafts` were copied from the text so far, and not guessed by masks.
        groups: masks fed per mask group; groups[g] stands behind g accepted drafts. Empty for
            plain decoding.
        new_drafts: the guesses that the next call will verify; empty when the run stopped here.
        new_draft_probs: probability of each of `new_drafts`.
        stop: why the run ended, on its last step only.
    """

    emitted: tuple[int, ...]
    accepted: int
    drafts: tuple[int, ...]
    rows: int
    seconds: float
    draft_probs: tuple[float, ...] = ()
    groups: tuple[int, ...] = ()
    new_drafts: tuple[int, ...] = ()
    new_draft_probs: tuple[float, ...] = ()
    stop: Stop | None = None
    copied: bool = False

    @property
    def origins(self) -> tuple[Origin, ...]:
        """The origin of each emitted token."""
        own = len(self.emitted) - self.accepted
        if not own:
            return (Origin.ACCEPTED,) * self.accepted
        if not self.drafts:
            last = Origin.OWN
        elif self.accepted == len(self.drafts):
            last = Origin.BONUS
        else:
            last = Origin.CORRECTED
        return (Origin.ACCEPTED,) * self.accepted + (last,) * own

    @property
    def rejected(self) -> tuple[int, ...]:
        """Drafts that were not emitted: the first wrong one and all behind it, or what a stop cut."""
        return self.drafts[self.accepted :]

    def to_json(self) -> dict[str, Any]:
        return {
            "emitted": list(self.emitted),
            "accepted": self.accepted,
            "drafts": list(self.drafts),
            "rows": self.rows,
            "seconds": self.seconds,
            "draft_probs": [round(p, 6) for p in self.draft_probs],
            "groups": list(self.groups),
            "new_drafts": list(self.new_drafts),
            "new_draft_probs": [round(p, 6) for p in self.new_draft_probs],
            "copied": self.copied,
            "stop": None if self.stop is None else str(self.stop),
        }

    @classmethod
    def from_json(cls, data: Any) -> Step:
        """Read a step from untrusted JSON.

        Raises:
            TraceError: for fields that are missing, malformed or at odds with each other.
        """
        row = _mapping(data, "step")
        step = cls(
            emitted=_ids(row, "emitted"),
            accepted=_count(row, "accepted"),
            drafts=_ids(row, "drafts"),
            rows=_count(row, "rows"),
            seconds=_seconds(row, "seconds"),
            draft_probs=_probabilities(row, "draft_probs"),
            groups=_ids(row, "groups", required=False),
            new_drafts=_ids(row, "new_drafts", required=False),
            new_draft_probs=_probabilities(row, "new_draft_probs"),
            stop=_stop(row.get("stop")),
            copied=row.get("copied") is True,
        )
        if step.accepted > min(len(step.drafts), len(step.emitted)):
            raise TraceError("trace: a step accepts more drafts than it has")
        if step.emitted[: step.accepted] != step.drafts[: step.accepted]:
            raise TraceError("trace: a step's accepted tokens are not its drafts")
        if len(step.emitted) > step.accepted + 1:
            raise TraceError("trace: a step emits more than its accepted drafts and one token")
        for drafts, probs in ((step.drafts, step.draft_probs), (step.new_drafts, step.new_draft_probs)):
            if len(probs) not in (0, len(drafts)):
                raise TraceError("trace: a step has as many draft probabilities as drafts, or none")
        if sum(step.groups) > step.rows:
            raise TraceError("trace: a step has more masks than rows")
        return step


@dataclass(frozen=True, slots=True)
class Trace:
    """All steps of one run of one decoder.

    Attributes:
        model, method, dtype, device: what ran, as text.
        k: drafts per call that were asked for; 0 for plain decoding.
        prompt_ids: the prompt.
        steps: one per call, the call that read the prompt first.
        text: `output_ids` as text, empty where no tokenizer was at hand.
        settings: the request, as `Settings.to_json` gives it.
    """

    model: str
    method: str
    k: int
    dtype: str
    device: str
    prompt_ids: tuple[int, ...]
    steps: tuple[Step, ...]
    text: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    stopped: Stop | None = None
    """The reason given from outside, for a run that was cut off between two steps."""

    @property
    def output_ids(self) -> tuple[int, ...]:
        return tuple(token for step in self.steps for token in step.emitted)

    @property
    def calls(self) -> int:
        return len(self.steps)

    @property
    def seconds(self) -> float:
        return math.fsum(step.seconds for step in self.steps)

    @property
    def tokens_per_call(self) -> float:
        """Emitted tokens over calls, all calls counted; an end-of-sequence token counts as one."""
        return len(self.output_ids) / self.calls if self.steps else 0.0

    @property
    def stop(self) -> Stop:
        last = self.steps[-1].stop if self.steps else None
        return last or self.stopped or Stop.CANCELLED

    def to_json(self) -> dict[str, Any]:
        """The contract "space-trace/1"."""
        return {
            "format": FORMAT,
            "model": self.model,
            "method": self.method,
            "k": self.k,
            "dtype": self.dtype,
            "device": self.device,
            "prompt_ids": list(self.prompt_ids),
            "output_ids": list(self.output_ids),
            "text": self.text,
            "stop": str(self.stop),
            "calls": self.calls,
            "tokens_per_call": self.tokens_per_call,
            "seconds": self.seconds,
            "settings": dict(self.settings),
            "steps": [step.to_json() for step in self.steps],
        }

    @classmethod
    def from_json(cls, data: Any) -> Trace:
        """Read a trace from untrusted JSON; derived fields are computed again, not believed.

        Raises:
            TraceError: naming the first field that is wrong.
        """
        row = _mapping(data, "trace")
        if row.get("format") != FORMAT:
            raise TraceError(f"trace: format must be {FORMAT!r}")
        texts = {}
        for name in ("model", "method", "dtype", "device", "text"):
            texts[name] = row.get(name, "")
            if not isinstance(texts[name], str):
                raise TraceError(f"trace: {name} must be text")
        steps = row.get("steps")
        if not isinstance(steps, list):
            raise TraceError("trace: steps must be a list")
        trace = cls(
            **texts,
            k=_count(row, "k"),
            prompt_ids=_ids(row, "prompt_ids"),
            steps=tuple(Step.from_json(step) for step in steps),
            settings=_mapping(row.get("settings", {}), "settings"),
            stopped=_stop(row.get("stop")),
        )
        if "output_ids" in row and _ids(row, "output_ids") != trace.output_ids:
            raise TraceError("trace: output_ids is not what the steps emitted")
        if any(step.stop for step in trace.steps[:-1]):
            raise TraceError("trace: a step follows the end of the run")
        return trace


def longest_common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many leading tokens two outputs share."""
    count = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        count += 1
    return count


def _mapping(data: Any, what: str) -> dict[str, Any]:
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise TraceError(f"trace: {what} must be an object")
    return data


def _ids(row: dict[str, Any], name: str, required: bool = True) -> tuple[int, ...]:
    values = row.get(name, None if required else [])
    if not isinstance(values, list) or not all(_is_count(value) for value in values):
        raise TraceError(f"trace: {name} must be a list of whole numbers")
    return tuple(values)


def _count(row: dict[str, Any], name: str) -> int:
    value = row.get(name)
    if not _is_count(value):
        raise TraceError(f"trace: {name} must be a whole number")
    return int(value)  # type: ignore[arg-type]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _seconds(row: dict[str, Any], name: str) -> float:
    value: Any = row.get(name)
    if not _is_finite(value) or value < 0:
        raise TraceError(f"trace: {name} must be a number of seconds")
    return float(value)


def _probabilities(row: dict[str, Any], name: str) -> tuple[float, ...]:
    values: Iterable[Any] = row.get(name, [])
    if not isinstance(values, list) or not all(_is_finite(p) and 0 <= p <= 1 for p in values):
        raise TraceError(f"trace: {name} must be a list of probabilities")
    return tuple(float(p) for p in values)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _stop(value: Any) -> Stop | None:
    if value is None:
        return None
    try:
        return Stop(value)
    except ValueError:
        raise TraceError("trace: stop is no known reason") from None
