"""A race as one HTML file that opens from a disk: the page's own lanes, replay and chart, and no network.

Styles, script and race lie inside the file. The race is JSON in a script element that no browser
runs, without a `<` in it; the only script that may run is the one whose hash the file's policy
names, and nothing may be fetched from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import Final

from space_core.bundled import ASSETS
from space_core.views import frames

STYLES: Final = ("page.css", "replay.css", "offline.css")
SCRIPTS: Final = ("dom.js", "ink.js", "lane.js", "chart.js", "replay.js", "race.js")


def page(frame: frames.Frame) -> str:
    """The file for a race that is over; `frame` is its snapshot."""
    about = frame.get("about")
    title = " ".join(f"SPACE replay: {about['model'] if about else ''}".split())
    style = "\n".join(_asset(name) for name in STYLES)
    script = _asset("offline.js").replace("/* arena */", "\n".join(_asset(name) for name in SCRIPTS))
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{_hash(script)}'"
    )
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{style}</style>",
            "</head>",
            '<body class="gradio-container">',
            '<main class="offline">',
            "<header><h1>SPACE</h1><p>A race of one model against itself, plainly and with SPACE: play it, "
            "or walk through it with the arrow keys.</p></header>",
            '<div class="arena"></div>',
            "</main>",
            f'<script type="application/json" id="race">{frames.encode(frame)}</script>',
            f"<script>{script}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _asset(name: str) -> str:
    text = (ASSETS / name).read_text(encoding="utf-8")
    if "</s" in text.lower() or "<!--" in text:
        raise ValueError(f"assets/{name} would end the element that it is put into")
    return text


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
