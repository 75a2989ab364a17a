"""Where the checkpoints that come with the repository lie. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

from space_core.errors import CheckpointError

CHECKPOINTS = Path(__file__).resolve().parent.parent / "assets" / "checkpoints"
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
