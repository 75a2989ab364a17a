"""Training that is killed and goes on: run by `test_killed.py`, as a process of its own.

    OMP_NUM_THREADS=1 PYTHONPATH=.:tests python tests/killed.py KILLS SEED

A toy is trained once without interruption, then again and again with SIGKILL at a random moment or in the
middle of writing a state or a checkpoint, and resumed each time. Forks of one process, so that torch is
imported once; one thread, so that forking is safe and sums come in one order. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from tiny import tiny_lm

import space_core
from finetune import state
from finetune.distill import Own
from finetune.masks import train_masks
from finetune.recipe import MaskTraining
from space_core import checkpoint
from space_core.errors import CheckpointError

PLAN = MaskTraining(
    steps=8,
    batch=2,
    k=2,
    rank=2,
    groups=3,
    warmup=2,
    decay=3,
    save_every=1,
    evaluate_every=100,
    evaluate_tokens=4,
)


def train(folder: Path) -> None:
    """The whole way: states in `run`, then the checkpoint."""
    text = torch.arange(40).repeat(4, 1) % 64
    lm = tiny_lm("Llama", torch.float32)
    model = train_masks(lm, None, [Own.of(4, text)], [[1, 2]], PLAN, folder / "run", seed=0)
    if not (folder / "checkpoint").exists():
        checkpoint.save(folder / "checkpoint", model)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def plant(where: str, dice: random.Random) -> None:
    """Die in this process in the middle of some write: of a state, of the checkpoint, before a rename."""
    left = [dice.randrange(1, PLAN.steps)]

    def due() -> bool:
        left[0] -= 1
        return left[0] < 0

    if where == "state half written":
        save = torch.save

        def half(value, file):
            if not due():
                return save(value, file)
            whole = Path(tempfile.mkdtemp()) / "state"
            save(value, whole)
            data = whole.read_bytes()
            shutil.rmtree(whole.parent)
            file.write(data[: dice.randrange(1, len(data))])
            file.flush()
            die()

        state.torch.save = half
    elif where == "before a state's rename":
        replace = os.replace

        def never(source, target):
            if str(target).endswith(".pt") and due():
                die()
            replace(source, target)

        os.replace = never
    else:  # the checkpoint: after some of its files
        left[0] = dice.randrange(4)
        names = {"save_file": checkpoint.save_file, "sha256": checkpoint.sha256, "_flush": checkpoint._flush}
        for name, real in names.items():

            def cut(*arguments, real=real, **options):
                if due():
                    die()
                return real(*arguments, **options)

            setattr(checkpoint, name, cut)


def forked(folder: Path, where: str | None, seconds: float, dice: random.Random) -> bool:
    """Train in a child; whether it was killed before its end."""
    child = os.fork()
    if not child:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            if where:
                plant(where, dice)
            train(folder)
            code = 0
        finally:
            os._exit(code)
    if where is None and seconds:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit(f"training failed by itself in {folder}, {where or 'undisturbed'}")
    return os.WIFSIGNALED(status)


def result(folder: Path) -> dict[str, torch.Tensor]:
    trained = state.load_state(folder / "run" / "masks-gated.pt")
    found = (
        {f"state.{name}": tensor for name, tensor in trained["masks"].items()} if "masks" in trained else {}
    )
    for path in sorted((folder / "checkpoint" / "space").glob("*.safetensors")):
        found |= {f"{path.name}.{name}": tensor for name, tensor in load_file(path).items()}
    return found


def half_loaded(folder: Path) -> int:
    """How many folders that a kill left open as a checkpoint, though they are none."""
    count = 0
    for path in folder.iterdir():
        if path.name in ("run", "checkpoint.saving"):  # one that is being written says so by its name
            continue
        try:
            space_core.load(path)
        except CheckpointError:
            continue
        count += not (path / checkpoint.MANIFEST).is_file()
    return count


def main() -> None:
    kills, dice = int(sys.argv[1]), random.Random(int(sys.argv[2]))
    torch.set_num_threads(1)
    found = {"kills": 0, "while_saving": 0, "different": [], "half_loaded": 0, "unreadable": []}
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name) / "whole"
        begin = time.monotonic()
        forked(whole, None, 0, dice)
        seconds = time.monotonic() - begin
        expected = result(whole)
        places = ("state half written", "before a state's rename", "checkpoint", None)
        attempt = 0
        while found["kills"] < kills:
            folder, where = Path(name) / str(attempt), places[attempt % len(places)]
            attempt += 1
            killed = forked(folder, where, dice.uniform(0.05, 0.95) * seconds, dice)
            found["kills"] += killed
            found["while_saving"] += killed and where is not None
            if folder.is_dir():
                found["half_loaded"] += half_loaded(folder)
            try:
                if (folder / "run").is_dir():
                    state.load_state(folder / "run" / "masks-gated.pt")
            except Exception as error:
                found["unreadable"].append(f"{where}: {type(error).__name__}")
                shutil.rmtree(folder)
                continue
            forked(folder, None, 0, dice)
            again = result(folder)
            if again.keys() != expected.keys() or not all(torch.equal(again[k], expected[k]) for k in again):
                found["different"].append(where or "at any moment")
            shutil.rmtree(folder)
    found["tensors"] = len(expected)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
