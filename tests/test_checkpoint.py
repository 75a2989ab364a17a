"""Checkpoints: saved, loaded, damaged, misfitting; the gated adapter leaves real rows alone."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import output, tiny_lm, trained_like_masks
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import space_core
from space_core import Settings
from space_core.adapter import GatedAdapter
from space_core.cache import BlockCache, additive
from space_core.errors import CheckpointError
from space_core.layout import Layout
from space_core.model import SpaceModel

PROMPT = [3, 1, 4, 1, 5]


def gated_model(dtype=torch.float32, targets=("q_proj", "down_proj")) -> SpaceModel:
    lm = tiny_lm("Llama", dtype)
    masks = trained_like_masks(lm)
    masks.adapter = GatedAdapter(lm, targets, rank=4)
    with torch.no_grad():
        for parameter in masks.adapter.b.values():
            parameter.normal_()
    masks.adapter.requires_grad_(False)
    return SpaceModel(lm, None, masks, eos_ids=())


@pytest.fixture
def folder(tmp_path):
    space_core.save(tmp_path / "checkpoint", gated_model(), about={"licence": "Apache-2.0"})
    return tmp_path / "checkpoint"


def test_a_saved_checkpoint_decodes_as_before(folder):
    before, after = gated_model(), space_core.load(folder)
    assert after.k == 5 and after.masks.method == "gated"
    for settings in (Settings(plan="grid"), Settings(temperature=1.0, seed=3, plan="grid")):
        for decode in (space_core.vanilla, space_core.space):
            assert list(map(_facts, decode(before, PROMPT, settings))) == list(
                map(_facts, decode(after, PROMPT, settings))
            )


def _facts(step):
    return step.emitted, step.accepted, step.drafts, step.rows


def test_transformers_opens_it_as_the_model_of_the_vanilla_lane(folder):
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    lm.generation_config.eos_token_id = None
    expected = lm.generate(torch.tensor([PROMPT]), max_new_tokens=30, do_sample=False)[0, 5:].tolist()
    model = space_core.load(folder, dtype="float64")
    model.eos_ids = frozenset()
    for decode in (space_core.vanilla, space_core.space):
        assert output(decode(model, PROMPT, Settings(max_new_tokens=30))) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_adapter_leaves_real_rows_bit_equal_and_moves_mask_rows(dtype):
    model = gated_model(dtype)
    bare = SpaceModel(model.lm, None, replace(model.masks, adapter=None), eos_ids=())
    layout = Layout.grid(3)

    def logits(of):
        cache = BlockCache()
        of.forward(Layout.plain(5), PROMPT, cache)
        return of.forward(layout, [1, 2, 3, 4], cache)

    with_adapter, without = logits(model), logits(bare)
    assert torch.equal(with_adapter[:4], without[:4])
    assert (with_adapter[4:] - without[4:]).abs().max() > 1e-3


def test_outside_a_call_the_layers_are_the_bases_own():
    model = gated_model()
    plain = {name: module.__dict__.get("forward") for name, module in model.lm.named_modules()}
    with model.masks.adapter.on(1):
        changed = [name for name, m in model.lm.named_modules() if m.__dict__.get("forward") != plain[name]]
    assert len(changed) == 4  # two layers, two targets
    assert {name: m.__dict__.get("forward") for name, m in model.lm.named_modules()} == plain


def test_peft_opens_the_adapter_and_computes_the_same(folder):
    """PEFT's Activated LoRA, told that the last rows are the masks, is our gated adapter."""
    peft = pytest.importorskip("peft")
    layout = Layout.first(5, 3)
    ours = gated_model().forward(layout, PROMPT, BlockCache())
    embeddings = gated_model().row_embeddings(layout, PROMPT)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, folder / "space").eval()
    rows = {
        "attention_mask": additive(layout.sees(), torch.float32)[None, None],
        "position_ids": layout.offsets()[None],
    }
    with torch.inference_mode():
        logits = theirs(inputs_embeds=embeddings, alora_offsets=[3], **rows).logits[0, -4:]
        elsewhere = theirs(inputs_embeds=embeddings, alora_offsets=[4], **rows).logits[0, -4:]
    assert (logits - ours).abs().max() < 1e-4
    assert (elsewhere - ours).abs().max() > 1e-2


def test_a_folder_without_masks_opens_untrained(tmp_path):
    tiny_lm("Llama", torch.float32).save_pretrained(tmp_path)
    model = space_core.load(tmp_path)
    assert model.masks.method == "untrained"
    plain = output(space_core.vanilla(model, PROMPT, Settings()))
    assert output(space_core.space(model, PROMPT, Settings())) == plain


def test_the_official_format_has_its_mask_in_the_vocabulary(tmp_path):
    tiny_lm("Llama", torch.float32).save_pretrained(tmp_path)
    model = space_core.load(tmp_path, mask_token_id=63, k=4)
    assert (model.k, model.mask_token_id, model.masks.method) == (4, 63, "paper")
    with pytest.raises(CheckpointError, match="mask token id"):
        space_core.load(tmp_path, mask_token_id=64)


def test_only_the_parts_name_their_base(tmp_path, folder, monkeypatch):
    model = gated_model()
    space_core.save(tmp_path / "parts", model, base_id="someone/base")
    assert not (tmp_path / "parts" / "config.json").exists()
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str(folder))
    again = space_core.load(tmp_path / "parts")
    assert output(space_core.space(again, PROMPT, Settings())) == output(
        space_core.space(model, PROMPT, Settings())
    )


def _flip(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))


def _manifest(folder, **changes):
    path = folder / "space.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _reshape(folder):
    path = folder / "space" / "masks.safetensors"
    save_file({"embeddings": load_file(path)["embeddings"][:, :5].contiguous()}, path)
    files = json.loads((folder / "space.json").read_text())["files"]
    files["space/masks.safetensors"] = space_core.checkpoint.sha256(path)
    _manifest(folder, files=files)


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: _flip(f / "model.safetensors"),
        lambda f: _flip(f / "space" / "adapter_model.safetensors"),
        lambda f: (f / "space" / "masks.safetensors").unlink(),
        lambda f: (f / "model.safetensors").write_bytes(b""),
        lambda f: (f / "space.json").write_text("{"),
        lambda f: (f / "space.json").write_text('{"format": "space-checkpoint/9"}'),
        lambda f: (f / "config.json").write_text("{}"),
        lambda f: (f / "config.json").unlink(),
        lambda f: _manifest(f, k=0),
        lambda f: _manifest(f, files={"../../etc/passwd": "0"}),
        _reshape,
    ],
)
def test_damaged_checkpoints_are_refused_with_one_sentence(folder, damage):
    damage(folder)
    with pytest.raises(CheckpointError) as caught:
        space_core.load(folder)
    assert "\n" not in str(caught.value)


def _rehash(folder):
    """The manifest as it would be if the damage had been done before saving."""
    files = json.loads((folder / "space.json").read_text())["files"]
    found = {name: space_core.checkpoint.sha256(folder / name) for name in files if (folder / name).is_file()}
    _manifest(folder, files=found)


class _Bomb:
    """What unpickling it would do is seen on the disk."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


WEIGHTS = ("model.safetensors", "space/masks.safetensors", "space/adapter_model.safetensors")


def damage_at_random(folder, dice, bomb):
    """One damage of a checkpoint; its name."""
    kind = dice.choice(("truncated", "flipped", "missing", "shape", "nan", "pickle", "appended"))
    names = [*json.loads((folder / "space.json").read_text())["files"]]
    path = folder / dice.choice(WEIGHTS if kind in ("shape", "nan", "pickle") else names)
    data = bytearray(path.read_bytes())
    if kind == "truncated":
        path.write_bytes(data[: dice.randrange(len(data))])
    elif kind == "flipped":
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        path.write_bytes(data)
    elif kind == "appended":
        path.write_bytes(data + b"\0")
    elif kind == "missing":
        path.unlink()
    elif kind == "pickle":
        torch.save({"weight": _Bomb(bomb)}, path)
        _rehash(folder)
    else:
        tensors = load_file(path)
        name = dice.choice(sorted(tensors))
        if kind == "shape":
            tensors[name] = tensors[name][..., :-1].contiguous()
        else:
            tensors[name].flatten()[dice.randrange(tensors[name].numel())] = dice.choice(
                (float("nan"), float("inf"))
            )
        save_file(tensors, path, metadata={"format": "pt"})
        _rehash(folder)
    return f"{kind} {path.name}"


def corrupted(folder, tmp_path, count, seed):
    dice, bomb, seen = random.Random(seed), tmp_path / "bomb", Counter()
    for index in range(count):
        broken = tmp_path / f"broken-{index}"
        shutil.copytree(folder, broken)
        name = damage_at_random(broken, dice, bomb)
        with pytest.raises(CheckpointError) as caught:
            space_core.load(broken)
        assert "\n" not in str(caught.value) and not bomb.exists(), name
        shutil.rmtree(broken)
        seen[name.split()[0]] += 1
    return seen


def test_ten_damages_at_random(folder, tmp_path):
    corrupted(folder, tmp_path, 10, 0)


@pytest.mark.slow
@pytest.mark.trust(16)
def test_a_hundred_damages_at_random(folder, tmp_path, figures):
    seen = corrupted(folder, tmp_path, 100, 1)
    assert len(seen) == 7
    figures(damages=100, refused=100, **seen)


def test_the_bomb_goes_off_where_pickles_are_read(tmp_path):
    torch.save({"weight": _Bomb(tmp_path / "bomb")}, tmp_path / "pickle")
    torch.load(tmp_path / "pickle", weights_only=False)
    assert (tmp_path / "bomb").exists()


def _json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _tensors(path, change):
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def _large_tokenizer(folder):
    core = Tokenizer(models.WordLevel({f"w{i}": i for i in range(200)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=core).save_pretrained(folder)


MISFITS = {
    "masks of another width": lambda f: _tensors(f / WEIGHTS[1], lambda t: {"embeddings": torch.ones(5, 48)}),
    "masks of no width": lambda f: _tensors(f / WEIGHTS[1], lambda t: {"embeddings": torch.ones(5)}),
    "masks by another name": lambda f: _tensors(f / WEIGHTS[1], lambda t: {"masks": torch.ones(5, 32)}),
    "an adapter of another rank": lambda f: _json(f / "space/adapter_config.json", r=8),
    "an adapter of other layers": lambda f: _json(
        f / "space/adapter_config.json", target_modules=["q_proj", "up_proj"]
    ),
    "an adapter of layers there are not": lambda f: _json(
        f / "space/adapter_config.json", target_modules=["c_attn"]
    ),
    "an adapter of a deeper model": lambda f: _tensors(
        f / WEIGHTS[2], lambda t: t | {k.replace("layers.0", "layers.7"): v.clone() for k, v in t.items()}
    ),
    "a model with more layers": lambda f: _json(f / "config.json", num_hidden_layers=3),
    "a model of another width": lambda f: _json(f / "config.json", hidden_size=48, head_dim=12),
    "a model of another vocabulary": lambda f: _json(f / "config.json", vocab_size=65),
    "[M] outside the vocabulary": lambda f: _manifest(f, mask_token_id=64),
    "more masks than there can be": lambda f: _manifest(f, k=65),
    "a tokenizer larger than the model": _large_tokenizer,
}


@pytest.mark.trust(17)
@pytest.mark.parametrize("misfit", MISFITS)
def test_what_does_not_belong_together_is_refused(folder, misfit):
    """With hashes that are right: these files are whole, but not each other's."""
    MISFITS[misfit](folder)
    _rehash(folder)
    with pytest.raises(CheckpointError) as caught:
        space_core.load(folder)
    assert "\n" not in str(caught.value)


def test_another_models_tokenizer_or_configuration_is_refused(folder):
    for name in ("config.json", "generation_config.json"):
        before = (folder / name).read_text()
        _json(folder / name, eos_token_id=9)
        with pytest.raises(CheckpointError, match=name):
            space_core.load(folder)
        (folder / name).write_text(before)
    space_core.load(folder)


def test_what_was_not_saved_to_the_end_is_not_loaded(folder, tmp_path, monkeypatch):
    def cut(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(space_core.checkpoint, "_flush", cut)
    with pytest.raises(KeyboardInterrupt):
        space_core.save(tmp_path / "new", gated_model())
    assert not (tmp_path / "new").exists()
    with pytest.raises(CheckpointError, match="cut short"):
        space_core.load(tmp_path / "new.saving")
    (folder / "space.json").unlink()
    with pytest.raises(CheckpointError, match="incomplete"):
        space_core.load(folder)


def test_saving_beside_a_bases_files_keeps_them(tmp_path):
    model = gated_model()
    model.lm.save_pretrained(tmp_path / "merged")
    space_core.save(tmp_path / "merged", model, base_id="someone/base")
    assert output(space_core.space(space_core.load(tmp_path / "merged"), PROMPT, Settings())) == output(
        space_core.space(model, PROMPT, Settings())
    )
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
    with pytest.raises(CheckpointError, match="already"):
        space_core.save(tmp_path / "merged", model)


def test_pickles_are_not_read(tmp_path):
    lm = tiny_lm("Llama", torch.float32)
    lm.config.save_pretrained(tmp_path)
    torch.save(lm.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError):
        space_core.load(tmp_path)


@pytest.mark.parametrize("name", ["/nowhere/at/all", "", "./nowhere", "a/b/c"])
def test_missing_folders_are_named(name):
    with pytest.raises(CheckpointError):
        space_core.load(name)


@pytest.mark.parametrize("arguments", [{"dtype": "int8"}, {"device": "abacus"}, {"device": "cuda:99"}])
def test_unknown_devices_and_dtypes_are_refused(folder, arguments):
    with pytest.raises(CheckpointError):
        space_core.load(folder, **arguments)
