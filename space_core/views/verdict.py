"""What a race showed, in words: a fold over the lanes' traces.

The race is SPACE's against vanilla; a further lane gets one clause behind it.

Nothing is assumed: that the outputs are identical is computed from the token ids, a slow-down is
told as plainly as a gain, and a comparison of unequal outputs says how it was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

from space_core.metrics import is_loop
from space_core.trace import Trace, longest_common_prefix
from space_core.views.lanes import NAMES

EVEN = 0.03
"""Speeds closer than this count as the same: two runs on one machine differ by as much."""
HALF_PRECISION = ("bfloat16", "float16")


class Verdict(TypedDict):
    """The outcome of a race.

    Attributes:
        headline: the speed in two or three words, or what happened instead.
        sentence: the whole verdict, as it is read out.
        badge: what is known of the outputs' identity, in two or three words.
        identical: True or False where greedy outputs were compared, None where they need not agree.
        tone: good, even or bad, by speed and identity.
        speedup: SPACE's tokens per second over vanilla's; None before both have a token.
    """

    headline: str
    sentence: str
    badge: str
    identical: bool | None
    tone: Literal["good", "even", "bad"]
    speedup: float | None


def verdict(space: Trace, vanilla: Trace, others: Sequence[Trace] = (), stopped: bool = False) -> Verdict:
    """Compare the SPACE lane with the plain one, and say in short how the others did.

    Args:
        space, vanilla: the lanes' runs; the settings in `space` say whether they were greedy.
        others: the further lanes' runs, by their `method`.
        stopped: the race was broken off (`space.stop` says why), so the lanes hold what they had.
    """
    if not stopped and bool(space.steps) != bool(vanilla.steps):
        return _alone(space if space.steps else vanilla)
    if not space.steps or not vanilla.steps:
        return Verdict(
            headline="Stopped",
            sentence="Stopped before both lanes had made a call: nothing to compare.",
            badge="not compared",
            identical=None,
            tone="even",
            speedup=None,
        )
    speedup = _speedup(space, vanilla)
    headline, tone = _speed_words(speedup)
    badge, finding, identical = _identity(space, vanilla, stopped)
    if identical and any(_split(other, vanilla, stopped) is not None for other in others):
        badge = "SPACE and vanilla identical" + (" so far" if stopped else "")
    parts = [
        f"SPACE: {_count(space.calls, 'call')}, {space.seconds:.2f} s",
        f"vanilla: {_count(vanilla.calls, 'call')}, {vanilla.seconds:.2f} s",
        f"{space.tokens_per_call:.1f} tokens per call, {headline}{_basis('SPACE', space, vanilla)}",
        finding,
        *(_clause(other, vanilla, stopped) for other in others),
    ]
    sentence = _how_it_ended(space, vanilla, stopped) + "; ".join(parts) + "."
    sentence += _copied(space)
    if identical and is_loop(space.output_ids):
        sentence += " The text loops, and loops are easy to guess."
    if identical is False:
        tone = "bad"
    return Verdict(
        headline=headline,
        sentence=sentence,
        badge=badge,
        identical=identical,
        tone=tone,
        speedup=None if speedup is None else round(speedup, 4),
    )


def _copied(space: Trace) -> str:
    """How many of the drafts that stood no mask had guessed; nothing where there were none."""
    copied = sum(step.accepted for step in space.steps if step.copied)
    if not copied:
        return ""
    stood = sum(step.accepted for step in space.steps)
    if copied == stood:
        who = "The draft that stood was" if stood == 1 else f"All {stood} drafts that stood were"
        return f" {who} copied from the text."
    return f" {copied} of {stood} drafts that stood {'was' if copied == 1 else 'were'} copied from the text."


def _alone(trace: Trace) -> Verdict:
    """A run that nothing ran against."""
    return Verdict(
        headline=f"{trace.tokens_per_call:.1f} tokens per call",
        sentence=(
            f"{NAMES[trace.method]} alone: {_count(len(trace.output_ids), 'token')} in "
            f"{_count(trace.calls, 'call')}, {trace.seconds:.2f} s. Nothing ran against it."
        ),
        badge="not compared",
        identical=None,
        tone="even",
        speedup=None,
    )


def _clause(other: Trace, vanilla: Trace, stopped: bool) -> str:
    """What a further lane showed, held against vanilla."""
    name = NAMES[other.method]
    if not other.steps:
        return f"{name}: no call yet"
    words, tone = _speed_words(_speedup(other, vanilla))
    than = "" if tone == "even" else " than vanilla"
    parts = [
        f"{name}: {_count(other.calls, 'call')}, {other.seconds:.2f} s",
        f"{words}{than}{_basis('it', other, vanilla)}",
    ]
    split = _split(other, vanilla, stopped)
    if split is not None:
        parts.append(f"its output differs from token {split + 1} on{_why(other)}")
    return ", ".join(parts)


def _speedup(ours: Trace, vanilla: Trace) -> float | None:
    """Ratio of tokens per second; with equal counts, the ratio of the seconds."""
    if not ours.seconds or not vanilla.seconds:
        return None
    return (len(ours.output_ids) / ours.seconds) / (len(vanilla.output_ids) / vanilla.seconds)


def _speed_words(speedup: float | None) -> tuple[str, Literal["good", "even", "bad"]]:
    if speedup is None or speedup <= 0:
        return "speed unknown", "even"
    if abs(speedup - 1) <= EVEN:
        return "as fast as vanilla", "even"
    if speedup > 1:
        return f"{_ratio(speedup)}× faster", "good"
    return f"{_ratio(1 / speedup)}× slower", "bad"


def _ratio(value: float) -> str:
    """One decimal place, and a second one where the first would round to 1.0 or hide a third."""
    return f"{value:.1f}" if value >= 1.15 else f"{value:.2f}"


def _basis(who: str, trace: Trace, vanilla: Trace) -> str:
    ours, theirs = len(trace.output_ids), len(vanilla.output_ids)
    if ours == theirs:
        return ""
    return f" by tokens per second ({who} wrote {ours}, vanilla {theirs})"


def _split(ours: Trace, vanilla: Trace, stopped: bool) -> int | None:
    """Where greedy outputs part, from 0; None where they do not, or may."""
    if ours.settings.get("temperature", 0.0):
        return None
    left, right = ours.output_ids, vanilla.output_ids
    shared = longest_common_prefix(left, right)
    if left == right or (stopped and shared == min(len(left), len(right))):
        return None
    return shared


def _why(trace: Trace) -> str:
    if trace.dtype not in HALF_PRECISION:
        return ""
    return f" ({trace.dtype} can flip the choice where two tokens are nearly as likely)"


def _identity(space: Trace, vanilla: Trace, stopped: bool) -> tuple[str, str, bool | None]:
    """Badge, finding and truth value of "the outputs are identical"."""
    if space.settings.get("temperature", 0.0):
        finding = (
            "both lanes draw from the same distribution with dice of their own, "
            "so their texts differ by chance"
        )
        return "same distribution", finding, None
    ours, theirs = space.output_ids, vanilla.output_ids
    split = _split(space, vanilla, stopped)
    if split is not None:
        finding = f"outputs differ from token {split + 1} on{_why(space)}"
        return f"outputs differ at token {split + 1}", finding, False
    if stopped:
        both = _count(min(len(ours), len(theirs)), "token")
        return "identical so far", f"outputs identical for the {both} both have", True
    return "outputs identical", "outputs identical", True


def _how_it_ended(space: Trace, vanilla: Trace, stopped: bool) -> str:
    if not stopped:
        return ""
    budget = space.settings.get("max_new_tokens")
    goal = f" of {budget}" if budget else ""
    deadline = "deadline" in (space.stop, vanilla.stop)
    return (
        f"{'Stopped at the deadline' if deadline else 'Stopped'}, SPACE at {len(space.output_ids)}"
        f"{goal} and vanilla at {len(vanilla.output_ids)}{goal} tokens. "
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
