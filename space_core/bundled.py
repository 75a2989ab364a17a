"""Where the page and the checkpoints that come with the code lie. Imports nothing heavy.

In a checkout they are `app.py` and `assets/` at its top; an installed copy has both in `space_core/page/`.
"""

from __future__ import annotations

from pathlib import Path

from space_core.errors import CheckpointError

_HERE = Path(__file__).resolve().parent
ROOT = _HERE / "page" if (_HERE / "page").is_dir() else _HERE.parent
"""The folder of `app.py` and `assets/`."""
ASSETS = ROOT / "assets"
CHECKPOINTS = ASSETS / "checkpoints"
BEST_FIRST = ("python-gpu", "python-mini", "smoke")


def default_checkpoint() -> Path:
    """The best bundled checkpoint.

    Raises:
        CheckpointError: when this installation holds none.
    """
    for name in BEST_FIRST:
        if (CHECKPOINTS / name / "space.json").is_file():
            return CHECKPOINTS / name
    raise CheckpointError("no bundled checkpoint here: name a model with --model DIR_OR_HUB_ID")


def page() -> Path:
    """The program that serves the page.

    Raises:
        CheckpointError: when this installation holds none.
    """
    if not (ROOT / "app.py").is_file():
        raise CheckpointError("the page is not part of this installation: run it from a checkout")
    return ROOT / "app.py"
