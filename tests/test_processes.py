"""Two processes on CPUs train what one trains, to rounding; FSDP too, and what it saves opens."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_sft import arguments, home, log_of, tokenizer  # noqa: F401

import space_core
from finetune import masks
from finetune.__main__ import main
from finetune.processes import ALONE, launched
from finetune.state import load_state
from space_core.errors import SettingError

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "finetune" / "configs"
# Rows of a batch that two processes cannot share evenly, and a last one that only one of them has.
UNEVEN = ("--batch", "3", "--no-pack", "--distil", "31")


def launch(options: list[str], *command: str) -> None:
    """Run a command of `finetune` in two processes, as `accelerate launch` does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    start = [sys.executable, "-m", "accelerate.commands.launch", *options, "--num_processes", "2"]
    start += ["--main_process_port", port, "-m", "finetune", *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        start, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("checkpoint: ") == 1


PLAIN = ["--config_file", str(CONFIGS / "several.yaml")]
FSDP = ["--config_file", str(CONFIGS / "fsdp.yaml")]


def largest_difference(left: dict, right: dict) -> float:
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def rows_of(run: Path, stage: str) -> list[dict]:
    return [{**row, "seconds": 0} for row in log_of(run) if row["stage"] == stage]


def killed(home, tmp_path, monkeypatch, out: str, *more: str) -> None:  # noqa: F811
    """A single process that dies between the state of step 3 and that of step 6."""
    calls = {"n": 0}
    real = masks.Optimizers.step

    def dying(self, *values):
        calls["n"] += 1
        if calls["n"] == 5:
            raise KeyboardInterrupt
        real(self, *values)

    with monkeypatch.context() as patch:
        patch.setattr(masks.Optimizers, "step", dying)
        assert main(arguments(home, "Llama", tmp_path / out, *more)) == 130


@pytest.mark.more
def test_two_processes_train_what_one_does(home, tmp_path):  # noqa: F811
    assert main(arguments(home, "Llama", tmp_path / "one", *UNEVEN)) == 0
    launch(PLAIN, *arguments(home, "Llama", tmp_path / "two", *UNEVEN))
    for part in ("adapter_model.safetensors", "masks.safetensors"):
        one, two = (load_file(tmp_path / name / "space" / part) for name in ("one", "two"))
        assert largest_difference(one, two) < 1e-5
    assert rows_of(tmp_path / "one-run", "masks-gated") == rows_of(tmp_path / "two-run", "masks-gated")
    texts = [load_state(tmp_path / f"{name}-run" / "distill.pt")["batches"] for name in ("one", "two")]
    assert len(texts[0]) == 4 and all(torch.equal(a, b) for a, b in zip(*texts, strict=True))
    (row,) = rows_of(tmp_path / "two-run", "processes")
    assert (row["processes"], row["share_of_base_held"]) == (2, 1.0)
    assert space_core.load(tmp_path / "two").masks.method == "gated"


@pytest.mark.more
def test_fsdp_goes_on_where_one_process_was_killed(home, tmp_path, monkeypatch):  # noqa: F811
    """The paper's method, whose weights and optimizer states are spread: taken up, trained, put together."""
    more = ("--method", "paper", "--accumulate", "2", *UNEVEN)
    assert main(arguments(home, "Llama", tmp_path / "one", *more)) == 0
    killed(home, tmp_path, monkeypatch, "two", *more)
    assert load_state(tmp_path / "two-run" / "masks-paper.pt")["step"] == 3
    launch(FSDP, *arguments(home, "Llama", tmp_path / "two", *more))
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert largest_difference(one, two) < 1e-4
    assert rows_of(tmp_path / "one-run", "masks-paper") == rows_of(tmp_path / "two-run", "masks-paper")
    states = [load_state(tmp_path / f"{name}-run" / "masks-paper.pt") for name in ("one", "two")]
    assert states[1]["step"] == 9 and largest_difference(*(state["trained"] for state in states)) < 1e-4
    for left, right in zip(*(state["optimizers"][0]["state"].values() for state in states), strict=True):
        assert left["step"] == right["step"] == 9 and largest_difference(left, right) < 1e-4
    (row,) = rows_of(tmp_path / "two-run", "processes")
    assert row["processes"] == 2 and 0.4 < row["share_of_base_held"] < 0.6
    assert space_core.load(tmp_path / "two").mask_token_id is not None


@pytest.mark.slow
@pytest.mark.parametrize("base", ["Llama", "GPT2"])
def test_fsdp_with_a_frozen_base_and_checkpointed_layers(home, tmp_path, monkeypatch, base):  # noqa: F811
    more = ("--gradient-checkpointing", "--patience", "9", "--evaluate-every", "4", *UNEVEN)
    more = (*more, "--sampler", "0")  # which is what sharded weights have to do without
    assert main(arguments(home, base, tmp_path / "one", *more)) == 0
    launch(FSDP, *arguments(home, base, tmp_path / "two", *more))
    for part in ("adapter_model.safetensors", "masks.safetensors"):
        one, two = (load_file(tmp_path / name / "space" / part) for name in ("one", "two"))
        assert largest_difference(one, two) < 1e-4
    (row,) = rows_of(tmp_path / "two-run", "processes")
    assert 0.4 < row["share_of_base_held"] < 0.6
    assert space_core.load(tmp_path / "two").masks.adapter is not None


@pytest.mark.slow
def test_two_processes_train_the_papers_method(home, tmp_path):  # noqa: F811
    more = ("--method", "paper", "--gradient-checkpointing", *UNEVEN)
    assert main(arguments(home, "Llama", tmp_path / "one", *more)) == 0
    launch(PLAIN, *arguments(home, "Llama", tmp_path / "two", *more))
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert largest_difference(one, two) < 1e-4


def test_launches_that_cannot_train_are_one_line(monkeypatch):
    assert launched("cpu") is ALONE

    class Started:
        distributed_type = type("Kind", (), {"value": "FSDP"})
        process_index, num_processes = 0, 2

        def __init__(self, cpu=False):
            pass

    monkeypatch.setattr("accelerate.Accelerator", Started)
    for name, value in (("WORLD_SIZE", "2"), ("ACCELERATE_USE_FSDP", "true"), ("FSDP_VERSION", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingError, match="fsdp_version: 2"):
        launched("cpu")
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert launched("cpu").sharded
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    with pytest.raises(SettingError, match="fsdp_offload_params"):
        launched("cpu")
    Started.distributed_type.value = "DEEPSPEED"
    with pytest.raises(SettingError, match="DEEPSPEED"):
        launched("cpu")
