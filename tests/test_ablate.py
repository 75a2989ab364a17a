"""`ablate` and `cost`: equal time, every finished training kept, and what is told is what was measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny import tiny_lm

from finetune import ablate as room
from finetune.__main__ import main
from finetune.ablate import VARIANTS, open_base, rate_at, summary, train_for
from finetune.build import build
from finetune.distill import Own
from finetune.masks import Dense, Gated, Paper
from finetune.recipe import MaskTraining, load_recipe

RECIPE = """
seed = 0
[corpus]
stdlib = ["json", "logging", "unittest", "asyncio"]
vocab_size = 300
[base]
hidden = 32
layers = 2
heads = 4
kv_heads = 2
intermediate = 64
context = 128
[pretrain]
steps = 8
batch = 4
seq_len = 32
warmup = 2
decay = 4
[distill]
prompts = 16
prompt_lengths = [8, 12]
new_tokens = 16
batch = 8
loops = 1.0
[masks]
steps = 2
batch = 4
k = 3
rank = 4
groups = 6
warmup = 1
evaluate_prompts = 3
evaluate_tokens = 12
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A recipe, the run of its build, and the checkpoint."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "tiny.toml").write_text(RECIPE)
    build(load_recipe(str(folder / "tiny.toml")), folder / "run", folder / "cache", folder / "tiny")
    return folder


def arguments(home: Path, out: Path, *more: str) -> list[str]:
    return [
        "ablate", "--recipe", str(home / "tiny.toml"), "--base", str(home / "run"), "--cache",
        str(home / "cache"), "--out", str(out), "--seconds", "0.05", "--seeds", "2", "--whole-lr", "1e-3",
        "--gated-lr", "1e-3,2e-3", *more,
    ]  # fmt: skip


def units_of(out: Path) -> set[str]:
    return {path.name for path in (out / "units").iterdir()}


@pytest.mark.more
def test_all_variants_from_one_base_killed_and_resumed(home, tmp_path, monkeypatch):
    out = tmp_path / "out"
    real, done = room.train_for, []

    def dying(*values):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(values)
        return real(*values)

    monkeypatch.setattr(room, "train_for", dying)
    assert main(arguments(home, out)) == 130
    kept = {name: (out / "units" / name).read_bytes() for name in units_of(out)}
    assert len(kept) == 5 and len(json.loads((out / "ablation.json").read_text())["units"]) == 5

    done.clear()
    fitted, fit = [], room.fit_copies
    monkeypatch.setattr(room, "fit_copies", lambda *values: fitted.append(values[0]) or fit(*values))
    monkeypatch.setattr(room, "train_for", lambda *values: done.append(values) or real(*values))
    assert main(arguments(home, out, "--json", str(tmp_path / "copy.json"))) == 0
    tried = set()
    for _, method, draw, *_ in done:
        prompt, texts, _ = draw(0, torch.Generator().manual_seed(0))
        assert texts.shape == (4, {1: 24}.get(prompt, prompt + 16))
        tried.add((type(method), prompt > 1, method.plan.until_fail, method.plan.soft, method.plan.sampler))
    assert tried == {
        (Paper, False, 1.0, 0.0, 0),
        (Dense, False, 1.0, 0.0, 0),
        (Dense, True, 1.0, 0.0, 0),
        (Gated, True, 1.0, 0.0, 0),
        (Gated, True, 0.2, 0.0, 0),
        (Gated, True, 0.2, 0.2, 0),
        (Gated, True, 0.2, 0.2, 512),
    }
    assert len(fitted) == 4 and all(model.masks.copies is not None for model in fitted)
    assert sorted({values[0] for values in done}) == [0.05 * 0.9, 0.05]
    assert len(done) == 21, "3 whole and 5 gated variants, 1 and 2 rates, 2 seeds: 26, and 5 were there"
    assert all((out / "units" / name).read_bytes() == text for name, text in kept.items())
    result = json.loads((tmp_path / "copy.json").read_text())
    assert result == json.loads((out / "ablation.json").read_text())
    assert result["format"] == "space-ablation/1" and result["command"].startswith(
        "python -m finetune ablate"
    )
    assert {"python", "torch", "transformers"} <= result["versions"].keys() and result["date"][:2] == "20"
    assert [row["variant"] for row in result["variants"]] == [variant.name for variant in VARIANTS]
    for row in result["variants"]:
        units = [u for u in result["units"] if (u["variant"], u["lr"]) == (row["variant"], row["lr"])]
        rates = [unit["tokens_per_call"] for unit in units]
        assert row["seeds"] == 2 and row["tokens_per_call"] == pytest.approx(sum(rates) / 2, abs=1e-4)
        assert (row["lowest"], row["highest"]) == (min(rates), max(rates)) and min(rates) >= 1
    by_name = {row["variant"]: row for row in result["variants"]}
    for name in ("gated", "until_fail", "soft", "told", "copied"):
        assert by_name[name]["as_base"] == 1, "a frozen base writes what it wrote"
        assert by_name[name]["rates_tried"] == [1e-3, 2e-3]
    per_step = {name: row["mask_targets"] / row["steps"] for name, row in by_name.items()}
    assert per_step["dense"] > 6 * per_step["paper"]
    done.clear()
    assert main(arguments(home, out, "--seeds", "3", "--variants", "paper,gated")) == 0
    assert [(values[3], values[4]) for values in done] == [(1e-3, 2), (1e-3, 2), (2e-3, 2)]


@pytest.mark.more
def test_another_base_or_budget_is_refused(home, tmp_path, capsys):
    few = ("--variants", "gated", "--seeds", "1", "--gated-lr", "1e-3")
    out = tmp_path / "out"
    assert main(arguments(home, out, *few)) == 0
    capsys.readouterr()
    assert main(arguments(home, out, *few, "--seconds", "0.06")) == 2
    assert "another seconds" in capsys.readouterr().err
    assert units_of(out) == {"gated-0.001-0.json"}


def test_a_checkpoint_serves_as_a_base_without_its_masks(home, tmp_path, capsys):
    few = ("--variants", "gated", "--seeds", "1", "--gated-lr", "1e-3", "--prompts", "8")
    base = ("--base", str(home / "tiny"), "--run", str(home / "run"))
    assert main(arguments(home, tmp_path / "out", *few, *base)) == 0
    (row,) = json.loads((tmp_path / "out" / "ablation.json").read_text())["variants"]
    assert row["as_base"] == 1
    of_run, of_folder = (
        open_base(str(home / name), load_recipe(str(home / "tiny.toml")), torch.device("cpu"))
        for name in ("run", "tiny")
    )
    assert room._digest(of_run.lm) == room._digest(of_folder.lm)
    # Tokens of another tokenizer would be nonsense to it.
    other = tmp_path / "other"
    shutil.copytree(home / "run" / "tokens", other / "tokens")
    meta = json.loads((other / "tokens" / "meta.json").read_text())
    (other / "tokens" / "meta.json").write_text(json.dumps({**meta, "tokenizer_sha256": "x"}))
    capsys.readouterr()
    assert main(arguments(home, tmp_path / "third", *few, *base[:2], "--run", str(other))) == 2
    error = capsys.readouterr().err
    assert "another tokenizer" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--variants", "magic"), "magic"),
        (("--variants", ","), "at least one variant"),
        (("--seconds", "0"), "seconds"),
        (("--seeds", "0"), "seeds"),
        (("--whole-lr", "0"), "whole_lr"),
        (("--whole-lr", "fast"), "--whole-lr"),
        (("--base", "/nowhere"), "/nowhere"),
        (("--recipe", "none"), "none"),
        (("--json", "/nowhere/x.json"), "/nowhere"),
    ],
)
def test_bad_arguments_are_one_clear_line(home, tmp_path, capsys, more, says):
    try:
        code = main(arguments(home, tmp_path / "out", *more))
    except SystemExit as stopped:
        code = stopped.code
    error = capsys.readouterr().err
    assert code == 2 and says in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_training_ends_with_the_time_and_the_rate_with_it(monkeypatch):
    now = {"s": 0.0}

    def clock(device):
        now["s"] += 1.0
        return now["s"]

    monkeypatch.setattr(room, "clock", clock)
    plan = MaskTraining(steps=1, batch=2, k=2, rank=2, groups=2)
    method = Gated(tiny_lm("Llama", torch.float32), plan, 0)
    text = torch.arange(24).repeat(2, 1)
    row = train_for(7.0, method, lambda index, random: Own.of(4, text), 1e-3, 0, False)
    assert (row["steps"], row["seconds"], row["diverged"]) == (7, 7.0, False)
    assert 0 < rate_at(0.01) < rate_at(0.05) == rate_at(0.6) == 1 > rate_at(0.8) > rate_at(0.99) > 0


def test_a_loss_that_is_no_number_ends_the_training(tmp_path):
    plan = MaskTraining(steps=1, batch=2, k=2, rank=2, groups=2)
    method = Gated(tiny_lm("Llama", torch.float32), plan, 0)
    with torch.no_grad():
        method.trained.embeddings.fill_(float("nan"))
    row = train_for(
        60.0, method, lambda index, random: Own.of(4, torch.arange(24).repeat(2, 1)), 1e-3, 0, False
    )
    assert row["diverged"] and row["steps"] == 1


def unit(lr, seed, rate, diverged=False):
    row = {"variant": "paper", "lr": lr, "seed": seed, "diverged": diverged, "steps": 2, "mask_targets": 8}
    if diverged:
        return row
    return row | {
        "tokens_per_call": rate,
        "tokens_per_call_without_loops": None if seed else rate - 0.5,
        "loops": 0.5,
        "as_base": 0.0,
    }


def test_a_variant_is_told_by_its_best_rate_of_those_with_most_seeds():
    units = [unit(1, 0, 2.0), unit(1, 1, 2.5), unit(2, 0, 2.0), unit(2, 1, 2.0), unit(3, 0, 9.0)]
    units += [unit(4, 0, 9.0), unit(4, 1, 0, diverged=True)]
    row = summary(VARIANTS[0], units)
    assert (row["lr"], row["seeds"], row["tokens_per_call"]) == (1, 2, 2.25)
    assert (row["lowest"], row["highest"], row["deviation"]) == (2.0, 2.5, 0.3536)
    assert row["tokens_per_call_without_loops"] == 1.5 and row["rates_tried"] == [1, 2, 3, 4]
    assert summary(VARIANTS[1], units) is None
    assert summary(VARIANTS[0], [unit(4, 0, 0, diverged=True)])["tokens_per_call"] is None


def test_dense_groups_see_and_learn_what_the_papers_cut_does():
    """One group at a known anchor: its masks' loss is the paper's, and so is each real token's."""
    lm = tiny_lm("Llama")
    plan = MaskTraining(steps=1, batch=1, k=3, groups=1, p_ar=0.0)
    torch.manual_seed(0)
    dense = Dense(lm, plan)
    text = torch.randint(64, (1, 12), generator=torch.Generator().manual_seed(1))
    # the group stands behind row 8 or 9
    loss, counted = dense.loss(Own.of(9, text), torch.Generator().manual_seed(0))
    real = -dense.lm(text[:, :-1]).logits.log_softmax(-1)[0, torch.arange(8, 11), text[0, 9:]]
    wanted = []
    for anchor in (8, 9):
        ids = torch.cat([text[0, : anchor + 1], torch.full((3,), dense.token_id)])
        logits = dense.lm(ids[None]).logits[0, anchor + 1 :].log_softmax(-1)
        known = range(min(3, 12 - anchor - 2))
        masks = torch.stack([-logits[j, text[0, anchor + 2 + j]] for j in known])
        wanted.append((((real.sum() + masks.sum()) / (3 + len(known))).item(), len(known)))
    assert any(abs(loss.item() - value) < 1e-5 and counted == n for value, n in wanted)
    loss.backward()
    assert dense.lm.get_input_embeddings().weight.grad[dense.token_id].abs().sum() > 0


def test_the_papers_samples_are_cut_in_one_batch_as_they_are_one_by_one():
    lm = tiny_lm("Llama")
    paper = Paper(lm, MaskTraining(steps=1, batch=1, k=3, p_ar=0.4))
    texts = torch.randint(64, (6, 20), generator=torch.Generator().manual_seed(1))
    loss, counted = paper.loss(Own.of(4, texts), torch.Generator().manual_seed(0))
    random = torch.Generator().manual_seed(0)
    plain = (torch.rand(6, generator=random) < 0.4).tolist()
    each = [
        torch.nn.functional.cross_entropy(paper.lm(row[None, :-1]).logits[0, 3:], row[4:])
        for row, whole in zip(texts, plain, strict=True)
        if whole
    ]
    for row, whole in zip(texts, plain, strict=True):
        if not whole:
            cut = int(torch.randint(4, 17, (), generator=random))
            ids = torch.cat([row[:cut], torch.full((3,), paper.token_id)])
            each.append(
                torch.nn.functional.cross_entropy(paper.lm(ids[None]).logits[0, 3:], row[4 : cut + 4])
            )
    assert 0 < sum(plain) < 6 and counted == 3 * (6 - sum(plain))
    assert loss.item() == pytest.approx(sum(each).item() / 6, abs=1e-9)


def test_cost_gives_both_rivals_as_many_targets(home, tmp_path, capsys):
    path = tmp_path / "cost.json"
    command = [
        "cost", "--base", str(home / "tiny"), "--json", str(path), "--groups", "6", "--batch", "2",
        "--length", "40", "--repetitions", "3", "--k", "3",
    ]  # fmt: skip
    assert main(command) == 0
    result = json.loads(path.read_text())
    assert result["format"] == "space-training-cost/1" and result["versions"]["torch"] == torch.__version__
    ways = {row["way"]: row for row in result["ways"]}
    assert list(ways) == ["dense", "paper", "gated", "gated-one"]
    for row in ways.values():
        assert 0.85 * 36 <= row["targets"] <= 36
        low, middle, high = row["seconds_per_target"]
        assert 0 < low <= middle <= high
    median = {name: row["seconds_per_target"][1] for name, row in ways.items()}
    cheaper = result["cheaper_per_target"]
    assert cheaper["dense"] == pytest.approx(median["paper"] / median["dense"], rel=1e-2)
    assert cheaper["gated"] == pytest.approx(median["gated-one"] / median["gated"], rel=1e-2)
    assert main([*command, "--length", "999"]) == 2
    assert "context" in capsys.readouterr().err
    assert main([*command, "--k", "0"]) == 2
