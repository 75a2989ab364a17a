"""One call told row by row: what each row is, where it stands, whom it sees and why, what became of it.

A fold over a Step and the number of tokens before it. Structure and words need no model; what the
rows predicted (`space_core.inspect`) is handed in. Who sees whom is stated here once more, as
reasons that can be read: the tests hold them against `Layout.sees`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final, Literal, NotRequired, TypedDict

from space_core.detokenize import Detokenizer
from space_core.inspect import guesses, layout_of
from space_core.layout import Layout
from space_core.model import SpaceModel
from space_core.trace import Origin, Step, Trace
from space_core.views import phrases

FORMAT: Final = "space-call/1"
CONTEXT = 8
"""Tokens before a row's guess that are decoded with it, so that its piece reads as it will in the text."""


class Why(StrEnum):
    """Why a row may or may not see a column; one letter, since a call has over a thousand cells."""

    BEFORE = "b"
    ITSELF = "i"
    EARLIER = "e"
    LATER = "l"
    MASK = "m"
    ANCHORED = "a"
    ASSUMED_AWAY = "w"
    OWN_GROUP = "o"
    OWN_LATER = "n"
    OTHER_GROUP = "x"


REASONS: Final[dict[Why, tuple[bool, str]]] = {
    Why.BEFORE: (True, "{row} sees {column}: every row sees all that is settled"),
    Why.ITSELF: (True, "{row} sees itself"),
    Why.EARLIER: (True, "{row} sees {column}: it stands before it, as in plain decoding"),
    Why.LATER: (False, "{row} does not see {column}: it comes later in the text"),
    Why.MASK: (False, "{row} does not see {column}: no real row ever sees a mask"),
    Why.ANCHORED: (True, "{row} sees {column}: {group} stands behind it"),
    Why.ASSUMED_AWAY: (
        False,
        "{row} does not see {column}: {group} assumes it was rejected or not reached",
    ),
    Why.OWN_GROUP: (True, "{row} sees {column}: an earlier mask of its own group"),
    Why.OWN_LATER: (False, "{row} does not see {column}: a later mask of its own group"),
    Why.OTHER_GROUP: (
        False,
        "{row} does not see {column}: another group, which assumes another number of standing drafts",
    ),
}
"""Whether a cell is seen, and the sentence for it. The first letter is not yet a capital."""


class Row(TypedDict):
    """A row of a call. `at`: its place in the chain, for a mask that of its anchor; `slot`: 0 for real
    rows, j for the j-th mask of its group; `offset`: its position behind the newest token's."""

    name: str
    at: int
    slot: int
    offset: int


class Structure(TypedDict):
    """What calls of one layout have in common.

    `whys` has one string for each row: the letter of its reason for the column of all that stands
    before the call, and then for each row of the call as a column.
    """

    masks: list[int]
    rows: list[Row]
    whys: list[str]


ELSEWHERE: Final = {
    "prompt-lookup": "were copied from the text so far, by transformers",
    "assisted": "are the draft model’s: it wrote them one by one, in calls of its own",
}
"""Where the drafts of a lane that has no masks come from."""


Fate = Literal["newest", "accepted", "rejected", "unreached", "cut"]


class Opened(TypedDict):
    """One call, opened. Text of the model is in `chain`, `own` and `guesses`.

    Attributes:
        before: tokens that stand before the newest one; they are its position.
        cached: whether those were in the cache, or the prompt that this same call read.
        chain: text of the newest token and of each draft.
        fates: what became of them.
        own: text of the model's own token, None where the run ended inside the accepted drafts.
        group: the mask group whose guesses were taken for the next call, None if none was.
        chosen: its rows (with a shared group only the tail of them).
        next: where the next call's drafts came from; `elsewhere` in transformers' lanes: they have no masks.
        guesses: for each row its likeliest tokens and their probabilities.
        story: what happened, in sentences.
    """

    lane: str
    n: int
    before: int
    cached: bool
    chain: list[str]
    fates: list[Fate]
    own: str | None
    origin: str | None
    group: int | None
    chosen: list[int]
    next: Literal["masks", "copied", "elsewhere", "none", "end"]
    guesses: list[list[tuple[str, float]]]
    story: list[str]
    layout: NotRequired[int]
    structure: NotRequired[Structure]


def structure(layout: Layout) -> Structure:
    """The rows of a decoding call (`space_core.inspect.layout_of`), and for each cell its reason."""
    chain = [Row(name=_real(at), at=at, slot=0, offset=at) for at in range(layout.n_real)]
    masks = [
        Row(name=f"mask {slot} of group {group}", at=group, slot=slot, offset=group + slot)
        for group, count in enumerate(layout.masks)
        for slot in range(1, count + 1)
    ]
    rows = [*chain, *masks]
    return Structure(
        masks=list(layout.masks),
        rows=rows,
        whys=["".join([Why.BEFORE, *(why(row, column) for column in rows)]) for row in rows],
    )


def why(row: Row, column: Row) -> Why:
    """Why `row` may or may not see `column`, both of one call."""
    if row == column:
        return Why.ITSELF
    if not row["slot"]:
        if column["slot"]:
            return Why.MASK
        return Why.EARLIER if column["at"] < row["at"] else Why.LATER
    if not column["slot"]:
        return Why.ANCHORED if column["at"] <= row["at"] else Why.ASSUMED_AWAY
    if column["at"] != row["at"]:
        return Why.OTHER_GROUP
    return Why.OWN_GROUP if column["slot"] < row["slot"] else Why.OWN_LATER


def words(row: Row, column: Row | None, before: str = "the cache") -> str:
    """The sentence of a cell; the column None is all that stands before the call."""
    reason = Why.BEFORE if column is None else why(row, column)
    names = {"row": row["name"], "column": before if column is None else column["name"]}
    return REASONS[reason][1].format(**names, group=f"group {row['at']}")


def open_call(model: SpaceModel, trace: Trace, call: int) -> Opened:
    """A call of a run (from 0) with all that can be told of it but its structure.

    Raises:
        TraceError: for a call that is not there, or a trace that `model` did not write.
    """
    rows = guesses(model, trace, call)
    step = trace.steps[call]
    layout = layout_of(step)
    text = [*trace.prompt_ids, *(token for s in trace.steps[:call] for token in s.emitted)]
    following = trace.steps[call + 1] if call + 1 < trace.calls else None
    chosen, source = _chosen(layout, step, following, trace.method)
    at = [row["at"] for row in structure(layout)["rows"]]
    spell = _Speller(model.tokenizer, text)
    opened = Opened(
        lane=trace.method,
        n=call + 1,
        before=len(text) - 1,
        cached=call > 0,
        chain=[spell.newest(), *spell.drafts(step.drafts)],
        fates=["newest", *fates(step)],
        own=None,
        origin=None,
        group=at[chosen[0]] if chosen else None,
        chosen=list(chosen),
        next=source,
        guesses=[
            [(spell.behind(step.drafts[:g], guess.token), round(guess.probability, 3)) for guess in row]
            for g, row in zip(at, rows, strict=True)
        ],
        story=[],
    )
    if len(step.emitted) > step.accepted:
        opened["own"] = spell.behind(step.drafts[: step.accepted], step.emitted[-1])
        opened["origin"] = str(step.origins[-1])
    opened["story"] = story(opened, bool(trace.settings.get("temperature", 0.0)), step.copied)
    return opened


def answer(model: SpaceModel, trace: Trace, call: int, race: str) -> dict[str, Any]:
    """A whole message to the browser about one call of one race; raises as `open_call` does."""
    opened = open_call(model, trace, call)
    opened["structure"] = structure(layout_of(trace.steps[call]))
    return {"format": FORMAT, "race": race, "reasons": reasons(), "call": opened}


def refusal(race: str, lane: str, n: int, sentence: str) -> dict[str, Any]:
    """The message for a call that cannot be opened."""
    return {"format": FORMAT, "race": race, "lane": lane, "n": n, "error": sentence}


def reasons() -> dict[str, tuple[bool, str]]:
    """`REASONS` for the browser, which fills in the names."""
    return {str(letter): reason for letter, reason in REASONS.items()}


def story(call: Opened, sampled: bool = False, copied: bool = False) -> list[str]:
    """What happened in a call, in sentences for somebody who looks at its rows.

    Args:
        call: all but its story.
        sampled: tokens were drawn, and drafts judged, by chance.
        copied: its drafts were copied from the text so far, and not guessed by masks.
    """
    if call["lane"] in ("vanilla", "generate"):
        own = _quoted(call["own"] or "")
        if not call["cached"]:
            return [f"Plain decoding: the first call reads the prompt and writes one token, {own}."]
        return [f"Plain decoding: one row goes in, and one token comes out, {own}."]
    words = ELSEWHERE.get(call["lane"], "were copied from the text so far" if copied else "")
    source = [f"The drafts {words}."] if words and len(call["fates"]) > 1 else []
    return [*source, *_checked(call, sampled), _onward(call)]


def _checked(call: Opened, sampled: bool) -> list[str]:
    """What became of the drafts, and where the call's own token comes from."""
    fates, own = call["fates"][1:], call["own"]
    wrote = "nothing more" if own is None else _quoted(own)
    if not fates:
        if call["cached"]:
            return [f"No draft went into this call: it wrote one token, {wrote}, as plain decoding does."]
        return [f"This call read the prompt and wrote {wrote}. There was no draft to check yet."]
    told, stood = [], fates.count("accepted")
    if stood:
        who, them = phrases.drafts(1, stood), "it" if stood == 1 else "each of them"
        reason = "it passed the draw" if stood == 1 else "they passed the draw"
        told.append(f"{who} stood: " + (reason if sampled else f"the row before {them} says the same") + ".")
    if "rejected" in fates:
        text = _quoted(call["chain"][stood + 1])
        reason = f"the call drew {wrote} instead" if sampled else f"the row before it says {wrote}"
        told.append(f"Draft {stood + 1}, {text}, fell: {reason}, and that is the call’s own token.")
    elif own is not None:
        told.append(f"Since all stood, one token of the model’s own came on top, {wrote}.")
    lost = fates.count("unreached")
    if lost:
        what, it = phrases.drafts(stood + 2, stood + 1 + lost), "it was" if lost == 1 else "they were"
        told.append(f"{what} came behind a wrong token, so nobody asks whether {it} right.")
    return told


def _onward(call: Opened) -> str:
    """Where the next call's drafts come from."""
    stood, group = call["fates"].count("accepted"), call["group"]
    if call["next"] == "end":
        return "The run ended here, so no guess was needed any more."
    if call["next"] == "elsewhere":
        who = "the text once more" if call["lane"] == "prompt-lookup" else "the draft model once more"
        return f"No mask went into this call: for the next drafts {who} is asked."
    if call["next"] == "copied":
        return "The next call checks drafts that were copied from the text so far: they promised more."
    if call["next"] == "none" or group is None:
        return "The next call checks no draft."
    if group != stood:
        return f"Group {stood} was not fed: the tail of group {group} guesses on in its place."
    if not call["cached"]:
        return "Group 0 guesses what follows: the next call checks it."
    assumed = {0: "no draft stands", 1: "only draft 1 stands"}.get(group, f"exactly {group} drafts stand")
    count = len(call["chosen"])
    taken = "first guess is the next call’s draft"
    if count > 1:
        taken = f"first {count} guesses are the next call’s drafts"
    return f"So group {group}, which assumes that {assumed}, was right: its {taken}."


def _quoted(piece: str) -> str:
    """A piece on one line, its breaks and the blanks at its ends to be seen, as in assets/dom.js."""

    def blanks(run: re.Match[str]) -> str:
        return f"␣×{len(run[0])}" if len(run[0]) > 3 else "␣" * len(run[0])

    text = piece.replace("\n", "↵").replace("\t", "⇥")
    return "“" + re.sub("^ +| +$", blanks, text) + "”"


def _real(at: int) -> str:
    return f"draft {at}" if at else "the newest token"


def fates(step: Step) -> list[Fate]:
    """Of each draft: accepted, the first wrong one, those behind it, or those a stop left behind."""
    fates: list[Fate] = ["accepted"] * step.accepted
    left = len(step.drafts) - step.accepted
    if left and Origin.CORRECTED in step.origins:
        fates.append("rejected")
        fates += ["unreached"] * (left - 1)
    else:
        fates += ["cut"] * left
    return fates


def _chosen(
    layout: Layout, step: Step, following: Step | None, lane: str
) -> tuple[tuple[int, ...], Literal["masks", "copied", "elsewhere", "none", "end"]]:
    """The rows whose guesses the next call verified, and where those came from."""
    if step.stop or following is None:
        return (), "end"
    if not following.drafts:
        return (), "none"
    if lane in ELSEWHERE:
        return (), "elsewhere"
    if following.copied:
        return (), "copied"
    return tuple(layout.drafting_rows(step.accepted))[: len(following.drafts)], "masks"


class _Speller:
    """Tokens as they would read behind a text."""

    def __init__(self, tokenizer: Any, text: Sequence[int]) -> None:
        self._tokenizer, self._text = tokenizer, list(text[-CONTEXT:])

    def newest(self) -> str:
        return self._pieces(self._text[:-1], self._text[-1:])[0]

    def drafts(self, ids: Sequence[int]) -> list[str]:
        return self._pieces(self._text, ids)

    def behind(self, drafts: Sequence[int], token: int) -> str:
        return self._pieces([*self._text, *drafts], [token])[0]

    def _pieces(self, before: Sequence[int], ids: Sequence[int]) -> list[str]:
        if self._tokenizer is None:
            return [f"#{token}" for token in ids]
        return Detokenizer(self._tokenizer, before).feed(ids)
