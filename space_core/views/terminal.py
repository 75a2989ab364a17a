"""A race, and one call's grid, for a terminal: colours where it has them, plain text where it has none.

Each token's colour has a second cue beside it (underlined, bold, italic), so that NO_COLOR, a screen of
one colour and eyes that tell no colours apart lose nothing. Text of models goes through
`space_core.visible`, and never as markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import IO, Any

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from space_core.views.frames import Call, Frame, Tally
from space_core.views.lanes import NAMES
from space_core.views.verdict import Verdict
from space_core.visible import visible

STYLES = {
    "accepted": "green underline",
    "corrected": "bold yellow",
    "bonus": "italic cyan",
    "own": "",
}
"""Of tokens, by `trace.Origin`."""
WORDS = {
    "accepted": "accepted draft",
    "corrected": "corrected",
    "bonus": "bonus",
    "own": "own",
}
TONES = {"good": "bold green", "even": "bold", "bad": "bold red"}
FATES = {"newest": "", "accepted": "green", "rejected": "bold yellow", "unreached": "dim", "cut": "dim"}
SIDE_BY_SIDE = 72
"""Columns of a terminal from which on two lanes stand beside each other."""
GAP = 2
LEAST_LINES = 3
TAB = 4


def console(file: IO[str], width: int | None = None) -> Console:
    """Nothing that it prints is taken for markup, a number to be coloured or an emoji's name."""
    return Console(file=file, markup=False, highlight=False, emoji=False, width=width)


class Lanes:
    """What a race looks like so far; frames of `views.frames` go in, in their order.

    Args:
        lanes: their names, in the order in which they are shown.
    """

    def __init__(self, lanes: Sequence[str]) -> None:
        self.texts = {name: [Text()] for name in lanes}
        """Of each lane the lines so far."""
        self.tallies: dict[str, Tally] = {}

    def add(self, frame: Frame) -> None:
        """Take in a delta."""
        for call in frame["calls"]:
            self._add(call)
        self.tallies = dict(frame["lanes"])

    def _add(self, call: Call) -> None:
        lines = self.texts[call["lane"]]
        for piece, origin in call["tokens"]:
            first, *others = visible(piece).expandtabs(TAB).split("\n")
            lines[-1].append(first, STYLES[origin])
            lines += [Text().append(line, STYLES[origin]) for line in others]

    def live(self, width: int, height: int) -> RenderableType:
        """The ends of all texts, as much as a terminal has lines for."""
        beside = width >= SIDE_BY_SIDE
        columns = len(self.texts) if beside else 1
        inner = max(1, width // columns - GAP) if beside else width
        heads = [_head(name, self.tallies.get(name)) for name in self.texts]
        taken = max(len(_wrapped(head, inner)) for head in heads) + (1 if beside else 2)
        room = height - 3 if beside else (height - 3) // len(self.texts)
        tails = [_tail(lines, inner, max(LEAST_LINES, room - taken)) for lines in self.texts.values()]
        return self._arranged(heads, tails, beside)

    def whole(self, width: int) -> RenderableType:
        """All of each text."""
        heads = [_head(name, self.tallies.get(name)) for name in self.texts]
        return self._arranged(heads, [*self._complete()], width >= SIDE_BY_SIDE)

    def plain(self) -> str:
        """All of each text without any mark: for a pipe or a terminal that has no signs."""
        parts = []
        for name, text in zip(self.texts, self._complete(), strict=True):
            parts.append(f"{_head(name, self.tallies.get(name)).plain}\n{text.plain}")
        return "\n\n".join(parts)

    def _complete(self) -> Iterable[Text]:
        for name, lines in self.texts.items():
            rest = self.tallies[name]["rest"] if name in self.tallies else ""
            yield Text("\n").join([*lines[:-1], lines[-1] + Text(visible(rest))])

    @staticmethod
    def _arranged(heads: Sequence[Text], bodies: Sequence[Text], beside: bool) -> RenderableType:
        legend = Text("  ").join(Text(WORDS[name], style) for name, style in STYLES.items())
        if not beside:
            parts: list[RenderableType] = []
            for head, body in zip(heads, bodies, strict=True):
                parts += [head, Text(), body, Text()]
            return Group(*parts, legend)
        grid = Table.grid(expand=True, padding=(0, GAP, 0, 0))
        for _ in heads:
            grid.add_column(ratio=1, overflow="fold")
        grid.add_row(*heads)
        grid.add_row()
        grid.add_row(*bodies)
        return Group(grid, Text(), legend)


def _head(name: str, tally: Tally | None) -> Text:
    head = Text().append(NAMES[name], "bold")
    if tally is None or not tally["calls"]:
        return head.append(": no call yet")
    calls, tokens = tally["calls"], tally["tokens"]
    return head.append(
        f": {tokens} tokens in {calls} {'call' if calls == 1 else 'calls'}, "
        f"{tally['tokens_per_call']:.2f} per call, {tally['seconds']:.2f} s, "
        f"{tally['tokens_per_second']:.0f} tokens/s"
    )


def _wrapped(text: Text, width: int) -> list[Text]:
    return list(text.wrap(console=_MEASURE, width=width, overflow="fold"))


def _tail(lines: Sequence[Text], width: int, most: int) -> Text:
    # Of a long text only the end is broken into lines, or a frame would cost more with each token.
    shown = [part for line in lines[-most:] for part in _wrapped(line, width) or [Text()]]
    return Text("\n").join(shown[-most:])


def verdict(told: Verdict) -> Text:
    """The outcome in colour and words."""
    text = Text().append(told["headline"], TONES[told["tone"]])
    return text.append(f", {told['badge']}\n").append(told["sentence"])


def call(told: dict[str, Any], signs: bool = True) -> Text:
    """One opened call (`views.inspect.answer`): what happened, its rows, and who sees whom.

    Args:
        signs: whether what reads it can show more than ASCII.
    """
    opened = told["call"]
    rows, before = opened["structure"]["rows"], opened["before"]
    where = "in the cache" if opened["cached"] else "read by this same call"
    head = (
        f"Call {opened['n']} of {NAMES[opened['lane']]}: {_count(len(rows), 'row')}, "
        f"{_count(before, 'token')} before {'it' if len(rows) == 1 else 'them'} ({where})"
    )
    parts = [Text(head, "bold"), Text(visible("\n".join(opened["story"]))), _rows(opened)]
    parts.append(_mask(opened["structure"], told["reasons"], signs))
    return Text("\n\n").join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _rows(opened: dict[str, Any]) -> Text:
    """A line for each row: what it is, where it stands, what became of it, what it predicted."""
    cells: list[tuple[str, ...]] = [
        ("row", "what it is", "position", "holds", "what became of it", "predicts")
    ]
    styles = ["bold"]
    for index, row in enumerate(opened["structure"]["rows"]):
        real = index < len(opened["chain"])
        fate = opened["fates"][index] if real else ""
        if index in opened["chosen"]:
            fate = "guesses the next call’s draft"
        cells.append(
            (
                str(index),
                row["name"],
                str(opened["before"] + row["offset"]),
                _quoted(opened["chain"][index]) if real else "[M]",
                "" if fate == "newest" else fate,
                "  ".join(f"{_quoted(piece)} {share:.0%}" for piece, share in opened["guesses"][index]),
            )
        )
        styles.append("cyan" if index in opened["chosen"] else FATES.get(fate, "" if real else "dim"))
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for line, style in zip(cells, styles, strict=True):
        padded = [cell + " " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True)]
        lines.append(Text("  ".join(padded).rstrip(), style))
    return Text("\n").join(lines)


def _mask(structure: dict[str, Any], reasons: dict[str, tuple[bool, str]], signs: bool) -> Text:
    """A sign for each cell: a line is who looks, a column is who is seen, with a gap before each group."""
    yes, no = ("■", "·") if signs else ("#", ".")
    rows, width = structure["rows"], max(len(row["name"]) for row in structure["rows"])
    gaps = {n for n, row in enumerate(rows) if row["slot"] == 1} | {0}
    text = Text().append("Who sees whom", "bold")
    text.append(f": {yes} sees, {no} does not; all that stands before, then the rows in order")
    for row, whys in zip(rows, structure["whys"], strict=True):
        text.append(f"\n{row['name'].ljust(width)}  ")
        for column, letter in enumerate(whys):
            seen = reasons[letter][0]
            text.append(" " if column - 1 in gaps else "")
            text.append(yes if seen else no, "green" if seen else "dim")
    return text


def _quoted(piece: str) -> str:
    """A piece on one line, between quotes."""
    return "“" + visible(piece).replace("\n", "↵").replace("\t", "⇥") + "”"


_MEASURE = Console(width=80, markup=False, highlight=False, emoji=False)
"""Breaks text into lines; prints nothing."""
