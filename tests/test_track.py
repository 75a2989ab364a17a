"""`--track`: accelerate's trackers hear the log, and one that is not there is said in one line."""

from __future__ import annotations

import sys
import types

import pytest
from test_sft import arguments, home, log_of, tokenizer  # noqa: F401

from finetune import track
from finetune.__main__ import main
from finetune.track import Trackers
from space_core.errors import SettingError


@pytest.fixture
def written(monkeypatch):
    """A tensorboard that keeps what it is given: accelerate's own tracker writes to it."""
    found = {"scalars": [], "closed": 0}

    class SummaryWriter:
        def __init__(self, folder, **options):
            found["folder"] = folder

        def add_scalar(self, name, value, global_step=None, **options):
            found["scalars"].append((name, value, global_step))

        def add_hparams(self, values, metric_dict):
            found["options"] = values

        def flush(self):
            pass

        def close(self):
            found["closed"] += 1

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    return found


def test_the_tracker_hears_what_is_logged(home, tmp_path, written):  # noqa: F811
    out = tmp_path / "out"
    assert main(arguments(home, "Llama", out, "--no-distil", "--track", "tensorboard")) == 0
    log = [row for row in log_of(tmp_path / "out-run") if row["stage"] in ("masks-gated", "copies")]
    told = {(name, step): value for name, value, step in written["scalars"]}
    numbers = {
        (f"{row['stage']}/{key}", row["step"] + (9 if row["stage"] == "copies" else 0)): value
        for row in log
        for key, value in row.items()
        if key not in ("stage", "step")
    }
    assert told == numbers and ("masks-gated/loss", 9) in told
    assert written["options"]["rank"] == 4 and written["closed"] == 1
    assert written["folder"].startswith(str(tmp_path / "out-run" / "trackers"))


def test_stages_follow_each_other(tmp_path, written):
    trackers = Trackers(("tensorboard",), tmp_path, {})
    for stage, step in (("pretrain", 0), ("pretrain", 30), ("masks", 0), ("masks", 5), ("masks", 5)):
        trackers(stage, step, {"loss": 1, "name": "x"})
    assert [step for _, _, step in written["scalars"]] == [0, 30, 30, 35, 35]
    assert {name for name, _, _ in written["scalars"]} == {"pretrain/loss", "masks/loss"}


@pytest.mark.parametrize(
    ("name", "says"), [("tensorboard", "pip install tensorboard"), ("abacus", "no tracker 'abacus'")]
)
def test_a_tracker_that_is_not_there_is_one_line(home, tmp_path, monkeypatch, capsys, name, says):  # noqa: F811
    for module in ("torch.utils.tensorboard", "tensorboardX"):
        monkeypatch.setitem(sys.modules, module, None)
    assert main(arguments(home, "Llama", tmp_path / "out", "--track", name)) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and not (tmp_path / "out-run" / "log.jsonl").exists()
    recipe = tmp_path / "r.toml"
    recipe.write_text("""
[base]
hidden = 8
layers = 1
heads = 1
kv_heads = 1
intermediate = 8
[pretrain]
steps = 1
batch = 1
seq_len = 8
[distill]
prompts = 1
prompt_lengths = [4]
new_tokens = 4
[masks]
steps = 1
batch = 1
""")
    assert main(["build", "--recipe", str(recipe), "--run", str(tmp_path / "run"), "--track", name]) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_service_that_refuses_is_one_line(tmp_path, written, monkeypatch):
    def refuse(folder, **options):
        raise RuntimeError("no account\nat all")

    monkeypatch.setattr(sys.modules["tensorboardX"], "SummaryWriter", refuse)
    with pytest.raises(SettingError, match=r"does not start: no account$"):
        Trackers(("tensorboard",), tmp_path, {})


def test_without_trackers_accelerate_is_not_asked(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate.tracking", None)
    Trackers((), tmp_path, {"a": track})("stage", 1, {"loss": 1.0})
