"""The verdict as a picture to send: one SVG, drawn from a race's last frame. Text is escaped, and there
is no script, no font and no address in it.
"""

from __future__ import annotations

import re
from typing import Final
from xml.sax.saxutils import escape

from space_core.views.frames import Frame
from space_core.views.lanes import NAMES

WIDTH, HEIGHT = 1200, 630
LEFT, RIGHT = 72, 1128
INK, MUTED, LINE, PAPER = "#111827", "#5b6475", "#e6e8ec", "#ffffff"
LANES: Final = {"space": "#4f46e5"}
OTHER: Final = "#8b93a3"
BADGES: Final = {True: "#009e73", False: "#d55e00", None: "#8b93a3"}
SANS = "IBM Plex Sans, Helvetica, Arial, sans-serif"
MONO = "IBM Plex Mono, Menlo, Consolas, monospace"
MAX_LANES: Final = 4


def svg(frame: Frame) -> str:
    """The card of a race that is over; `frame` is a snapshot with its verdict."""
    verdict, about = frame.get("verdict"), frame.get("about")
    if verdict is None or about is None:
        raise ValueError("a card is drawn of a race that is over")
    lanes = {name: tally for name, tally in frame["lanes"].items() if tally["calls"]}
    shown = dict(list(lanes.items())[:MAX_LANES])
    longest = max([1e-9, *(tally["seconds"] for tally in shown.values())])
    color = BADGES[verdict["identical"]]
    pill = 40 + 11 * len(verdict["badge"])  # about: the font is whatever the viewer has
    marks = [
        _rect(0, 0, WIDTH, HEIGHT, PAPER),
        _rect(0, 0, WIDTH, 12, LANES["space"]),
        _text(LEFT, 82, "SPACE: one call drafts and verifies", 26, MUTED),
        _text(LEFT, 172, _cut(verdict["headline"], 34), 72, INK, bold=True),
        f'<rect x="{LEFT}" y="204" width="{pill:.0f}" height="44" rx="22" '
        f'fill="none" stroke="{color}" stroke-width="2"/>',
        _text(LEFT + pill / 2, 233, verdict["badge"], 22, INK, anchor="middle"),
    ]
    step = min(96, 236 // max(1, len(shown)))
    for number, (name, tally) in enumerate(shown.items()):
        y = 296 + step * number
        words = f"{tally['tokens']} tokens in {tally['calls']} calls, {tally['seconds']:.2f} s"
        width = (RIGHT - LEFT) * tally["seconds"] / longest
        marks += [
            _text(LEFT, y + 16, NAMES.get(name, name), 24, LANES.get(name, INK), bold=True),
            _text(RIGHT, y + 16, words, 24, INK, anchor="end"),
            _rect(LEFT, y + 28, RIGHT - LEFT, 16, LINE),
            _rect(LEFT, y + 28, width, 16, LANES.get(name, OTHER)),
        ]
    prompt = next((line for line in about["prompt"].splitlines() if line.strip()), "")
    source = "from a file: " if "source" in about else ""
    marks += [
        _text(LEFT, 546, _cut(prompt.strip(), 70), 24, INK, font=MONO),
        _text(
            LEFT,
            588,
            _cut(f"{source}{about['model']} on {about['device']}, {about['dtype']}, k = {about['k']}", 80),
            22,
            MUTED,
        ),
        _text(RIGHT, 588, "arXiv 2402.11809", 22, MUTED, anchor="end"),
    ]
    title = escape(_clean(verdict["sentence"]))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" role="img">\n<title>{title}</title>\n' + "\n".join(marks) + "\n</svg>\n"
    )


def _text(
    x: float,
    y: float,
    words: str,
    size: int,
    fill: str,
    bold: bool = False,
    anchor: str = "start",
    font: str = SANS,
) -> str:
    weight = ' font-weight="700"' if bold else ""
    return (
        f'<text x="{x:g}" y="{y:g}" font-family="{font}" font-size="{size}" fill="{fill}" '
        f'text-anchor="{anchor}" xml:space="preserve"{weight}>{escape(_clean(words))}</text>'
    )


def _rect(x: float, y: float, width: float, height: float, fill: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{width:.1f}" height="{height}" fill="{fill}"/>'


def _cut(words: str, most: int) -> str:
    return words if len(words) <= most else words[: most - 1] + "…"


def _clean(words: str) -> str:
    """Without what XML cannot hold, not even escaped."""
    return re.sub("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", words)
