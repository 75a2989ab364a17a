"""A recorded race: what the page shows before any model is loaded. The contract "space-race/1".

    {"format": "space-race/1",
     "made":    {"date", "model", "device", "processor", "plan"},
     "frame":   the last snapshot of the race (`frames.py`), both lanes' calls with pieces and seconds,
     "reasons": {letter: [seen, sentence]}, "structures": [...], "opened": {lane: [...]}}

`opened` holds every call as `inspect.py` tells it, its `layout` an index into `structures`. Made by
`python -m space_core.views.record`. This room knows the file; it imports neither torch nor a model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from space_core.bundled import ASSETS

FORMAT: Final = "space-race/1"
PATH = ASSETS / "recorded" / "race.json"
MAX_BYTES = 300_000
"""It comes with the page itself, so it stays small."""
PROMPT = '''def binary_search(items, target):
    """Return the index of target in the sorted list items, or -1."""
'''
"""What the recorded race continues, and what stands in the prompt's field when the page opens."""


def encode(recording: dict[str, Any]) -> str:
    """A recording as JSON text that holds no markup, one line for each call, so that diffs can be read."""
    head = {name: value for name, value in recording.items() if name != "opened"}
    lanes = [
        f"{_json(lane)}:[\n" + ",\n".join(_json(call) for call in calls) + "\n]"
        for lane, calls in recording["opened"].items()
    ]
    return _json(head).removesuffix("}") + ',\n"opened":{' + ",\n".join(lanes) + "}}\n"


def read(path: Path = PATH) -> str:
    """The recording as JSON text for the page; empty where there is none, or none that is one."""
    try:
        text = path.read_text(encoding="utf-8")
        recording = json.loads(text)
    except (OSError, ValueError):
        return ""
    return text if isinstance(recording, dict) and recording.get("format") == FORMAT else ""


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
