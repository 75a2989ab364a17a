"""Training state on disk: written whole or not at all, read as data only.

A state is one file, written beside its place, flushed to the disk and renamed, so that a process
killed at any moment leaves the state before or the state after, never a part of one.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from space_core.errors import SettingError


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values to `path`, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_state(path: Path, device: str | torch.device = "cpu") -> dict[str, Any] | None:
    """What `save_state` wrote, or None where there is nothing. Runs no code of the file."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    return state


def write_json(path: Path, value: Any) -> None:
    """Write `path`, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".tmp")
    part.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def check_same(path: Path, mine: dict[str, Any]) -> None:
    """Refuse to go on from another command's states.

    Args:
        path: the options that the run in that folder began with, if one did.
        mine: these options, as JSON would give them back.

    Raises:
        SettingError: naming the first that is another.
    """
    if not path.is_file():
        return
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        theirs = {}
    odd = [key for key in mine if theirs.get(key) != mine[key]]
    if odd:
        raise SettingError(
            "run",
            f"{path.parent} holds a run with another {odd[0]}: name another folder with --run, or delete it",
        )


def made() -> dict[str, str]:
    """When and with which versions: an entry of a checkpoint's manifest."""
    return {
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def replace_folder(part: Path, out: Path) -> None:
    """Put a finished folder in its place; what stood there goes only when it stands."""
    old = out.with_name(out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.replace(out, old)
    out.parent.mkdir(parents=True, exist_ok=True)
    os.replace(part, out)
    shutil.rmtree(old, ignore_errors=True)


Tell = Callable[[str, int, dict[str, Any]], None]
"""Hears of an entry of the log: stage, step and values."""


class Log:
    """Training log, JSON lines; a resumed run drops the lines behind the step it resumes from.

    Without a path nothing is written: another process does. `tell` hears of each entry too.
    """

    def __init__(self, path: Path | None, stage: str, step: int, tell: Tell | None = None) -> None:
        self._path, self._stage, self._tell = path, stage, tell
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [
            line
            for line in (path.read_text().splitlines(keepends=True) if path.exists() else [])
            if line.endswith("\n") and not _behind(line, stage, step)
        ]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(kept))
        os.replace(temporary, path)

    def write(self, step: int, **values: Any) -> None:
        if self._path is None:
            return
        with self._path.open("a") as file:
            file.write(json.dumps({"stage": self._stage, "step": step, **values}) + "\n")
        if self._tell is not None:
            self._tell(self._stage, step, values)


def _behind(line: str, stage: str, step: int) -> bool:
    try:
        row = json.loads(line)
    except ValueError:
        return True
    return row.get("stage") == stage and row.get("step", 0) > step
