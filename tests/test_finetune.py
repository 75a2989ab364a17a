"""Training: resumes to the bit, learns, and trains the masks that decoding uses."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import warm
from tiny import output, tiny_lm

import space_core
from finetune.__main__ import main
from finetune.build import _masks_to_go_on_from
from finetune.distill import Own, _few_loops
from finetune.evaluate import parses, read_prompts
from finetune.masks import Gated, joint_losses, train_masks
from finetune.optimizer import orthogonalise, schedule
from finetune.pretrain import FUNCTIONS, _new_masks, pretrain
from finetune.recipe import (
    FOLDER,
    Base,
    Corpus,
    Distill,
    MaskTraining,
    Pretrain,
    Recipe,
    RecipeError,
    load_recipe,
)
from finetune.state import load_state, save_state
from space_core import Settings
from space_core.checkpoint import save
from space_core.errors import PromptError

ROOT = Path(__file__).parent.parent


def test_every_recipe_loads():
    for path in FOLDER.glob("*.toml"):
        assert load_recipe(path.stem).name == path.stem


@pytest.mark.parametrize("text", ["[base]\nx = 1", "base = 3", "[base]\nhidden = 1", "x = ["])
def test_wrong_recipes_are_named(tmp_path, text):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(RecipeError):
        load_recipe(str(path))
    with pytest.raises(RecipeError, match="smoke"):
        load_recipe("nothing")


def test_orthogonalise_brings_singular_values_near_one():
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(3, 48, 16)))
    assert values.min() > 0.6 and values.max() < 1.3


def test_schedule_warms_up_holds_and_decays():
    factors = [schedule(step, 100, 10, 20) for step in range(100)]
    assert factors[0] == 0.1 and factors[10:81] == [1.0] * 71 and factors[99] == pytest.approx(0.05)


def test_a_state_is_whole_or_not_there(tmp_path):
    assert load_state(tmp_path / "x.pt") is None
    save_state(tmp_path / "x.pt", {"a": torch.ones(2), "step": 3})
    assert load_state(tmp_path / "x.pt")["step"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"text": "x"}', '{"prompt": 5}', '{"prompt": "x"}\n5'])
def test_wrong_prompt_files_name_file_and_line(tmp_path, text):
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    with pytest.raises(PromptError, match=r"prompts.jsonl"):
        read_prompts(path)


def test_parses_wants_a_whole_statement_of_the_completion():
    assert parses("def f():\n", "    return 1\n  x")
    assert not parses("def f():\n", "    return (\n")


@pytest.mark.more
@pytest.mark.parametrize("method", ["gated", "paper"])
def test_masks_learn_a_text_that_repeats(tmp_path, method):
    """A base that walks in a circle is easy to draft for: accepted drafts must become the rule."""
    lm = tiny_lm("Llama", torch.float32, seed=2)
    prompt = [3, 1, 4, 1]
    text = prompt + output(
        space_core.vanilla(space_core.SpaceModel(lm, eos_ids=()), prompt, Settings(max_new_tokens=44))
    )
    sequences = torch.tensor([text] * 8)
    plan = MaskTraining(
        steps=60,
        batch=4,
        k=3,
        method=method,
        rank=8,
        groups=8,
        lr=1e-2,
        warmup=5,
        evaluate_every=60,
        evaluate_tokens=32,
    )
    before = {name: weight.clone() for name, weight in lm.state_dict().items()}
    model = train_masks(lm, None, [Own.of(4, sequences)], [prompt], plan, tmp_path, seed=0)
    model.eos_ids = frozenset()
    if method == "gated":
        assert all(torch.equal(weight, lm.state_dict()[name]) for name, weight in before.items())
    steps = list(space_core.space(model, prompt, Settings(k=3, max_new_tokens=32, plan="grid")))
    assert output(steps) == output(space_core.vanilla(model, prompt, Settings(max_new_tokens=32)))
    assert 32 / len(steps) > 2
    rates = [
        row["tokens_per_call"]
        for row in map(json.loads, (tmp_path / "log.jsonl").open())
        if "tokens_per_call" in row
    ]
    assert rates[-1] > rates[0]


def joint_recipe(steps, start="", sampler=0, **changes):
    return Recipe(
        name="joint",
        description="",
        corpus=Corpus(),
        base=Base(hidden=32, layers=2, heads=4, kv_heads=2, intermediate=64, context=128, start=start),
        pretrain=Pretrain(
            steps=steps, batch=4, seq_len=32, warmup=2, decay=10, mask_groups=4, save_every=10, **changes
        ),
        distill=Distill(prompts=1, prompt_lengths=(4,), new_tokens=4),
        masks=MaskTraining(steps=1, batch=1, k=2, rank=4, sampler=sampler),
    )


def token_folder(folder, text):
    folder.mkdir()
    for name in ("train", "heldout"):
        (folder / f"{name}.bin").write_bytes(np.asarray(text, dtype="<u2").tobytes())
    return folder


@pytest.mark.more
def test_a_base_that_learns_beside_its_masks_learns_both_and_resumes_to_the_bit(tmp_path):
    tokens = token_folder(tmp_path / "tokens", np.tile(np.arange(2, 34), 200))
    meta = {"vocab_size": 64, "eos_token_id": 0}
    recipe = joint_recipe

    whole = pretrain(recipe(40), tokens, tmp_path / "whole", meta)
    rows = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").open()]
    rows = [row for row in rows if "mask_loss" in row]
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"] and rows[-1]["mask_loss"] < 0.8 * rows[0]["mask_loss"]

    saved = {"n": 0}

    def dying(path, value):
        save_state(path, value)
        saved["n"] += 1
        if saved["n"] == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("finetune.pretrain.save_state", dying)
        with pytest.raises(KeyboardInterrupt):
            pretrain(recipe(40), tokens, tmp_path / "cut", meta)
    again = pretrain(recipe(40), tokens, tmp_path / "cut", meta)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    states = [load_state(tmp_path / name / "pretrain.pt")["masks"] for name in ("whole", "cut")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_functions_share_the_batches_and_the_masks_of_the_start_are_taught_on(tmp_path):
    """Half of each batch stands alone; masks and sampler head begin as the start has them, and learn."""
    lm = tiny_lm("Llama", torch.float32)
    plan = joint_recipe(1, sampler=8).masks
    first = Gated(lm, plan, seed=0)
    torch.manual_seed(3)
    torch.nn.init.normal_(first.trained.sampler.outer.weight, std=0.1)
    save(tmp_path / "start", first.model(None))
    files = token_folder(tmp_path / "tokens", np.tile(np.arange(2, 34), 200))
    token_folder(tmp_path / FUNCTIONS, np.tile([*range(40, 50), 0], 200))
    meta = {"vocab_size": 64, "eos_token_id": 0}
    own = [Own(4, torch.arange(20).repeat(6, 1), torch.tensor([20, 20, 9, 20, 20, 6]))]

    seen = []

    def watched(model, masks, windows, *rest, **options):
        seen.append((windows, options.get("ends"), masks))
        return joint_losses(model, masks, windows, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("finetune.pretrain.joint_losses", watched)
        recipe = joint_recipe(3, str(tmp_path / "start"), sampler=8, functions=0.5, own_batch=4)
        pretrain(recipe, files, tmp_path / "run", meta, own=own)
    batch, _, _ = seen[0]
    alone = batch[2:]
    assert len(batch) == 4 and (batch[:2] >= 2).all() and (batch[:2] < 34).all()
    assert (alone[:, 0] == 40).all() and set(alone.unique().tolist()) == {0, *range(40, 50)}
    assert {len(windows) for windows, _, _ in seen[1::2]} == {4} and all(
        e is not None for _, e, _ in seen[1::2]
    )
    row = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert 0 < row["heldout_loss_of_functions"] != row["heldout_loss"] > 0
    was, now = first.trained.state_dict(), load_state(tmp_path / "run" / "pretrain.pt")["masks"]
    assert was.keys() == now.keys() and not torch.equal(
        was["sampler.outer.weight"], now["sampler.outer.weight"]
    )
    begun = _new_masks(space_core.load(tmp_path / "start").lm, recipe).state_dict()
    assert all(torch.equal(begun[name], tensor) for name, tensor in was.items())
    without = _new_masks(lm, joint_recipe(1, str(tmp_path / "start"))).state_dict()
    assert not any(name.startswith("sampler") for name in without)


def test_beside_the_base_too_nothing_behind_the_end_of_a_text_is_a_target():
    lm = tiny_lm("Llama", torch.float64)
    masks = Gated(lm, MaskTraining(steps=1, batch=2, k=3, rank=2, sampler=8), seed=0).trained
    torch.manual_seed(0)
    torch.nn.init.normal_(masks.sampler.outer.weight, std=0.1)
    texts = torch.randint(64, (2, 20))
    changed = texts.clone()
    changed[1, 11:] = (changed[1, 11:] + 1) % 64

    def loss(windows, *ends):
        random = torch.Generator().manual_seed(1)
        _, value, counted = joint_losses(
            lm, masks, windows, 12, random, 3, plain=False, ends=torch.tensor(ends)
        )
        return value.item(), counted

    assert loss(texts, 20, 11) == loss(changed, 20, 11)
    assert loss(texts, 20, 12)[0] != loss(changed, 20, 12)[0]
    assert loss(texts, 20, 11)[1] < loss(texts, 20, 20)[1]


def test_texts_that_run_in_circles_end_where_they_begin_to():
    straight, circles = list(range(10, 30)), [10, 11, 12] + [1, 2, 3, 4] * 5
    texts = torch.tensor([[7, 8, *straight], [7, 8, *circles[:20]], [7, 8, *circles[:20]]])
    own = _few_loops(texts, 2, 0.5, frozenset())
    assert own.prompt == 2 and own.ends.tolist()[:2] == [22, 22]  # as many loops whole as may be
    assert 2 + 3 + 4 <= own.ends[2] <= 2 + 3 + 8
    assert torch.equal(own.whole(frozenset()).sequences, texts[:2])
    assert _few_loops(texts, 2, 0.0, frozenset()).ends.tolist().count(22) == 1


def test_a_text_that_ended_counts_up_to_its_end_and_is_no_loop():
    ended = [7, 8, 10, 11, 12, 13, *[0] * 16]
    own = _few_loops(torch.tensor([ended, [7, 8, *range(10, 30)]]), 2, 0.0, frozenset({0}))
    assert own.ends.tolist() == [7, 22]
    assert len(own.whole(frozenset({0})).sequences) == 2 and len(own.whole(frozenset()).sequences) == 1


def test_nothing_behind_the_end_of_a_text_is_a_target():
    lm = tiny_lm("Llama", torch.float64)
    plan = MaskTraining(steps=1, batch=2, k=3, rank=2, groups=12, sampler=8, soft=0.3)
    method = Gated(lm, plan, seed=0)
    torch.manual_seed(0)
    texts = torch.randint(64, (2, 20))
    changed = texts.clone()
    changed[1, 11:] = (changed[1, 11:] + 1) % 64

    def loss(sequences, ends):
        value, counted = method.loss(Own(4, sequences, torch.tensor(ends)), torch.Generator().manual_seed(1))
        return value.item(), counted

    assert loss(texts, [20, 11]) == loss(changed, [20, 11])
    assert loss(texts, [20, 12])[0] != loss(changed, [20, 12])[0]
    assert loss(texts, [20, 11])[1] < loss(texts, [20, 20])[1]


def test_masks_are_taught_on_from_those_of_a_checkpoint(tmp_path):
    lm = tiny_lm("Llama", torch.float32)
    text = torch.arange(40).repeat(4, 1) % 64
    plan = MaskTraining(
        steps=4, batch=2, k=2, rank=2, groups=3, sampler=8, evaluate_every=100, evaluate_tokens=4
    )
    first = train_masks(lm, None, [Own.of(4, text)], [[1, 2]], plan, tmp_path / "run", seed=0)
    save(tmp_path / "first", first)
    recipe = load_recipe("python-mini")
    recipe = replace(recipe, base=replace(recipe.base, start=str(tmp_path / "first")))
    assert recipe.pretrain.steps == 0
    state = _masks_to_go_on_from(recipe, tmp_path)
    again = Gated(tiny_lm("Llama", torch.float32), plan, seed=5)
    again.trained.begin(state)
    want = load_state(tmp_path / "run" / "masks-gated.pt")["trained"]
    assert state.keys() == want.keys()
    assert all(torch.equal(again.trained.state_dict()[name], tensor) for name, tensor in want.items())


def test_mask_training_resumes_to_the_bit(tmp_path):
    text = torch.arange(40).repeat(4, 1) % 64

    def train(folder, steps, **changes):
        plan = MaskTraining(
            steps=steps,
            batch=2,
            k=2,
            rank=2,
            groups=3,
            warmup=2,
            decay=4,
            save_every=3,
            evaluate_every=100,
            evaluate_tokens=4,
            **changes,
        )
        lm = tiny_lm("Llama", torch.float32)
        return train_masks(lm, None, [Own.of(4, text)], [[1, 2]], plan, folder, seed=0).masks.embeddings

    whole = train(tmp_path / "whole", 9)
    train(tmp_path / "parts", 9)
    (tmp_path / "again").mkdir()
    state = load_state(tmp_path / "parts" / "masks-gated.pt")
    assert state["step"] == 9
    # Cut the run at step 6 by failing there, as a kill would.
    calls = {"n": 0}
    real = save_state

    def dying(path, value):
        real(path, value)
        calls["n"] += 1
        if calls["n"] == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("finetune.masks.save_state", dying)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "cut", 9)
    assert load_state(tmp_path / "cut" / "masks-gated.pt")["step"] == 6
    assert torch.equal(train(tmp_path / "cut", 9), whole)


def build(recipe, folder):
    """The command that builds a recipe from nothing in a folder."""
    return [
        "-m", "finetune", "build", "--recipe", str(recipe), "--run", str(folder / "run"),
        "--cache", str(folder / "cache"), "--out", str(folder / "checkpoint"),
    ]  # fmt: skip


def log_of(folder):
    """The rows of a built checkpoint's log."""
    return [json.loads(line) for line in (folder / "checkpoint" / "training_log.jsonl").open()]


@pytest.mark.more
def test_a_recipe_from_nothing_killed_once_and_resumed(tmp_path, capsys, as_before):
    smoke = (ROOT / "finetune" / "recipes" / "smoke.toml").read_text(encoding="utf-8")
    shorter = smoke.replace("steps = 150", "steps = 60").replace("prompts = 384", "prompts = 192")
    assert shorter != smoke
    (tmp_path / "shorter.toml").write_text(shorter, encoding="utf-8")
    command = build(tmp_path / "shorter.toml", tmp_path)
    first = warm.Popen(command, tmp_path / "told.txt")
    deadline = time.monotonic() + 300
    while not (tmp_path / "run" / "pretrain.pt").exists() and time.monotonic() < deadline:
        assert first.poll() is None
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not (tmp_path / "checkpoint").exists()
    assert warm.run(*command, timeout=600).returncode == 0
    model = space_core.load(tmp_path / "checkpoint")
    ids = model.encode("def main(argv):\n")
    settings = Settings(max_new_tokens=32)
    assert output(space_core.space(model, ids, settings)) == output(space_core.vanilla(model, ids, settings))
    (tmp_path / "asked.jsonl").write_text(json.dumps({"prompt": "def main(argv):\n"}) + "\n")
    asked = ["--model", str(tmp_path / "checkpoint"), "--prompts", str(tmp_path / "asked.jsonl")]
    assert main(["evaluate", *asked, "--max-new-tokens", "8", "--past-end"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["share_that_ends"] == 0 and figures["identical_to_vanilla"] == 1
    log = log_of(tmp_path)
    losses = [row["heldout_loss"] for row in log if "heldout_loss" in row]
    rates = [row["tokens_per_call"] for row in log if "tokens_per_call" in row]
    assert losses[-1] < losses[0] and rates[-1] > rates[0] + 0.05
    steps = [row["step"] for row in log if row["stage"] == "pretrain" and "loss" in row]
    assert steps == sorted(set(steps))


@pytest.mark.slow
def test_the_smoke_recipe_climbs_to_two_tokens_a_call_in_two_minutes(tmp_path):
    begin = time.monotonic()
    command = [sys.executable, *build("smoke", tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, stderr=subprocess.DEVNULL, timeout=600)
    seconds = time.monotonic() - begin
    rates = [row["tokens_per_call"] for row in log_of(tmp_path) if "tokens_per_call" in row]
    assert rates[0] < 1.3 and rates[-1] >= 2.0 and seconds < 120
    assert sum(later > earlier for earlier, later in pairwise(rates)) >= len(rates) - 2, "it climbs"
