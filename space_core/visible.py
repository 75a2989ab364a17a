"""Text that a terminal shows and never obeys. Imports nothing of ours.

A model may write any character, the escape that moves a cursor, renames a window or fills a clipboard
among them. Whoever prints its text for people prints it through here.
"""

from __future__ import annotations

import re

_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but line feed and tab, delete, C1
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # what breaks or turns a line
    "\ud800-\udfff]"  # halves of pairs, which no encoding writes
)


def visible(text: str) -> str:
    """Line feeds and tabs stay; whatever else a terminal acts upon is shown as a picture or a number."""
    return _OBEYED.sub(_shown, text)


def _shown(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
