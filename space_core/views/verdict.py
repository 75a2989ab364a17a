"""What a race showed, in words: a fold over the two lanes' traces.

Nothing is assumed: that the outputs are identical is computed from the token ids, a slow-down is
told as plainly as a gain, and a comparison of unequal outputs says how it was made.
"""

from __future__ import annotations

from typing import Literal, TypedDict

from space_core.trace import Trace, longest_common_prefix

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


def verdict(space: Trace, vanilla: Trace, stopped: bool = False) -> Verdict:
    """Compare the SPACE lane with the plain one.

    Args:
        space, vanilla: the lanes' runs; the settings in `space` say whether they were greedy.
        stopped: the race was broken off (`space.stop` says why), so the lanes hold what they had.
    """
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
    parts = [
        f"SPACE: {_count(space.calls, 'call')}, {space.seconds:.2f} s",
        f"vanilla: {_count(vanilla.calls, 'call')}, {vanilla.seconds:.2f} s",
        f"{space.tokens_per_call:.1f} tokens per call, {headline}{_basis(space, vanilla)}",
        finding,
    ]
    sentence = _how_it_ended(space, vanilla, stopped) + "; ".join(parts) + "."
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


def _speedup(space: Trace, vanilla: Trace) -> float | None:
    """Ratio of tokens per second; with equal counts, the ratio of the seconds."""
    if not space.seconds or not vanilla.seconds:
        return None
    return (len(space.output_ids) / space.seconds) / (len(vanilla.output_ids) / vanilla.seconds)


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


def _basis(space: Trace, vanilla: Trace) -> str:
    ours, theirs = len(space.output_ids), len(vanilla.output_ids)
    if ours == theirs:
        return ""
    return f" by tokens per second (SPACE wrote {ours}, vanilla {theirs})"


def _identity(space: Trace, vanilla: Trace, stopped: bool) -> tuple[str, str, bool | None]:
    """Badge, finding and truth value of "the outputs are identical"."""
    if space.settings.get("temperature", 0.0):
        finding = (
            "both lanes draw from the same distribution with dice of their own, "
            "so their texts differ by chance"
        )
        return "same distribution", finding, None
    ours, theirs = space.output_ids, vanilla.output_ids
    shared = longest_common_prefix(ours, theirs)
    if stopped and shared == min(len(ours), len(theirs)):
        return "identical so far", f"outputs identical for the {_count(shared, 'token')} both have", True
    if ours == theirs:
        return "outputs identical", "outputs identical", True
    why = ""
    if space.dtype in HALF_PRECISION:
        why = f" ({space.dtype} can flip the choice where two tokens are nearly as likely)"
    return f"outputs differ at token {shared + 1}", f"outputs differ from token {shared + 1} on{why}", False


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
