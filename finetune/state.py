"""Training state on disk: written whole or not at all, read as data only.

A state is one file, written beside its place, flushed to the disk and renamed, so that a process
killed at any moment leaves the state before or the state after, never a part of one.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch


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


def replace_folder(part: Path, out: Path) -> None:
    """Put a finished folder in its place; what stood there goes only when it stands."""
    old = out.with_name(out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.replace(out, old)
    out.parent.mkdir(parents=True, exist_ok=True)
    os.replace(part, out)
    shutil.rmtree(old, ignore_errors=True)


class Log:
    """Training log, JSON lines; a resumed run drops the lines behind the step it resumes from."""

    def __init__(self, path: Path, stage: str, step: int) -> None:
        self._path, self._stage = path, stage
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
        with self._path.open("a") as file:
            file.write(json.dumps({"stage": self._stage, "step": step, **values}) + "\n")


def _behind(line: str, stage: str, step: int) -> bool:
    try:
        row = json.loads(line)
    except ValueError:
        return True
    return row.get("stage") == stage and row.get("step", 0) > step
