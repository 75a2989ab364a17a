"""One training run as a process of its own, started and stopped from the page on its owner's machine.

This room knows a command and a folder; what is trained, and how, is `finetune`'s, which it does not
import.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from datetime import datetime
from pathlib import Path

from space_core.hosting import is_hosted

RECIPE = "smoke"
TICK = 0.5
"""Seconds between two looks at the log."""
GRACE = 10.0
"""Seconds that a stopped process has to end by itself."""


def allowed(environment: Mapping[str, str], asked: bool) -> bool:
    """Whether the page may train: on its owner's machine, or where that was asked for."""
    return asked or not is_hosted(environment)


class Training:
    """A build of the smoke recipe in a new folder; one that was stopped goes on in its own.

    Args:
        root: the repository, from which the command runs.
        device: where it trains.

    Attributes:
        process: the one that runs now, if any.
    """

    def __init__(self, root: Path, device: str = "cpu") -> None:
        self.root, self.device = root, device
        self.process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None
        self._stopped = False

    @property
    def log(self) -> Path:
        return self._run_folder() / "log.jsonl"

    @property
    def checkpoint(self) -> Path:
        return self._run_folder() / "checkpoint"

    @property
    def finished(self) -> bool:
        return (self.checkpoint / "space.json").is_file()

    def command(self) -> list[str]:
        run = self._run_folder()
        return [
            *(sys.executable, "-m", "finetune", "build", "--recipe", RECIPE, "--run", str(run)),
            *("--cache", str(self.root / "cache"), "--device", self.device),
        ]

    def run(self) -> Generator[float, None, str]:
        """Train; yields the seconds so far, now and then. Closing this stops the process.

        Returns:
            "done", "stopped", or the process's last words where it failed.
        """
        if self._folder is not None and self.finished:
            self._folder = None
        self._stopped = False
        folder = self._run_folder()
        folder.mkdir(parents=True, exist_ok=True)
        words = folder / "output.txt"
        started = time.monotonic()
        with words.open("wb") as out:
            process = subprocess.Popen(
                self.command(),
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        self.process = process
        try:
            while process.poll() is None:
                yield time.monotonic() - started
                time.sleep(TICK)
        finally:
            self._end(process)
            self.process = None
        if self._stopped:
            return "stopped"
        if process.returncode == 0 and self.finished:
            return "done"
        lines = words.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else f"it ended with exit code {process.returncode}"

    def stop(self) -> None:
        """Ask the process to end; its state stays, and the next run goes on from it."""
        process = self.process
        if process is not None:
            self._stopped = True
            # A build's states are whole at any moment; a SIGINT would be ignored by a page in the background.
            process.terminate()

    def close(self) -> None:
        """End the process, if one runs, and wait until it has: the page goes."""
        process = self.process
        if process is not None:
            self._stopped = True
            self._end(process)

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _run_folder(self) -> Path:
        if self._folder is None:
            now = datetime.now().strftime("%Y%m%d-%H%M%S")
            self._folder = self.root / "runs" / f"page-{now}-{os.getpid()}"
        return self._folder
