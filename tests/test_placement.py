"""Models spread over devices: layers on disk write what the whole model writes, masks and adapter too."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_sampler import told_masks
from tiny import output, some, tiny_lm, trained_like_masks

import space_core
from space_core import Settings
from space_core.adapter import GatedAdapter
from space_core.cache import BlockCache
from space_core.errors import CheckpointError
from space_core.layout import Layout
from space_core.model import SpaceModel
from space_core.placement import devices, is_spread, runs_on, weights_here

PROMPT = [3, 1, 4, 1, 5]
PARTS = (
    "model.embed_tokens",
    "model.norm",
    "model.rotary_emb",
    "lm_head",
    "model.layers.0",
    "model.layers.1",
)
LAYER, EMBEDDING, ALL = ("model.layers.1",), ("model.embed_tokens", "lm_head", "model.layers.0"), PARTS


def on_disk(*names: str) -> dict[str, str]:
    return {name: "disk" if name in names else "cpu" for name in PARTS}


def gated(lm, targets=("q_proj", "down_proj")) -> SpaceModel:
    masks = trained_like_masks(lm)
    torch.manual_seed(2)
    masks.adapter = GatedAdapter(lm, targets, rank=4)
    with torch.no_grad():
        for parameter in masks.adapter.b.values():
            parameter.normal_()
    masks.adapter.requires_grad_(False)
    return SpaceModel(lm, None, masks, eos_ids=())


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Checkpoints in float64: a plain base without masks, masks alone, with a gated adapter, and told of the text."""
    made = {}
    for name in ("untrained", "plain", "gated", "told"):
        made[name] = folder = tmp_path_factory.mktemp("checkpoints") / name
        lm = tiny_lm("Llama")
        if name == "untrained":
            lm.save_pretrained(folder)
        elif name == "told":
            space_core.save(folder, SpaceModel(lm, None, told_masks(lm)))
        else:
            space_core.save(
                folder, gated(lm) if name == "gated" else SpaceModel(lm, None, trained_like_masks(lm))
            )
    return made


def opened(folder, **options) -> SpaceModel:
    model = space_core.load(folder, dtype="float64", **options)
    model.eos_ids = frozenset()
    return model


def facts(model: SpaceModel, settings: Settings) -> list:
    return [(s.emitted, s.accepted, s.drafts, s.rows) for s in space_core.space(model, PROMPT, settings)]


DISKS = {"layer": LAYER, "embedding": EMBEDDING, "all": ALL}
KINDS = ("untrained", "plain", "gated", "told")


@pytest.mark.parametrize(
    ("kind", "disk"),
    some(
        [(kind, disk) for kind in KINDS for disk in DISKS],
        [(kind, "all") for kind in KINDS],
    ),
)
def test_layers_on_disk_write_what_the_whole_model_writes(folders, kind, disk):
    disk = DISKS[disk]
    whole, spread = opened(folders[kind]), opened(folders[kind], device_map=on_disk(*disk))
    meta = {name for name, p in spread.lm.named_parameters() if p.device.type == "meta"}
    assert meta and all(name.startswith(disk) for name in meta)
    assert is_spread(spread.lm) and not is_spread(whole.lm)
    assert spread.device == torch.device("cpu") and devices(spread.lm) == (torch.device("cpu"),)
    expected = output(space_core.vanilla(whole, PROMPT, Settings(max_new_tokens=24)))
    assert len(expected) == 24
    for settings in (
        Settings(k=3, max_new_tokens=24, plan="grid"),
        Settings(k=3, max_new_tokens=24, plan="grid", temperature=1.0, seed=4),
    ):
        assert facts(spread, settings) == facts(whole, settings)
    assert output(space_core.vanilla(spread, PROMPT, Settings(max_new_tokens=24))) == expected
    assert output(space_core.space(spread, PROMPT, Settings(k=3, max_new_tokens=24))) == expected


def test_masks_and_adapter_follow_their_layers(folders):
    whole, spread = opened(folders["gated"]), opened(folders["gated"], device_map=on_disk(*ALL))
    layout = Layout.grid(3)
    rows = []
    for model in (whole, spread):
        cache = BlockCache()
        model.forward(Layout.plain(5), PROMPT, cache)
        rows.append(model.forward(layout, [1, 2, 3, 4], cache))
    assert torch.equal(*rows)
    adapter = spread.masks.adapter
    assert {p.device.type for p in adapter.parameters()} == {"cpu"}
    assert spread.masks.embeddings.device == runs_on(spread.lm.get_input_embeddings())


def test_an_adapter_can_be_hung_onto_a_spread_model_and_saved(folders, tmp_path):
    spread = opened(folders["untrained"], device_map=on_disk(*LAYER))
    model, whole = gated(spread.lm), gated(tiny_lm("Llama"))
    model.masks.embeddings = whole.masks.embeddings
    settings = Settings(k=3, max_new_tokens=16, plan="grid")
    assert facts(model, settings) == facts(whole, settings)
    space_core.save(tmp_path / "parts", model, base_id=str(folders["untrained"]))
    assert facts(opened(tmp_path / "parts"), settings) == facts(whole, settings)


def test_packed_products_stay_off_where_weights_are_elsewhere(tmp_path):
    space_core.save(tmp_path / "single", gated(tiny_lm("Llama", torch.float32)))
    whole = space_core.load(tmp_path / "single")
    spread = space_core.load(tmp_path / "single", device_map=on_disk("model.layers.1", "lm_head"))
    layers = [m for m in spread.lm.modules() if isinstance(m, torch.nn.Linear)]
    here = [m for m in layers if m.weight.device.type == "cpu"]
    assert whole.products is not None and spread.products is not None
    assert len(whole.products) == len(layers) and 0 < len(here) < len(layers)
    assert len(spread.products) <= len(here)
    with spread.lock, spread.fast():
        assert all(type(m.__dict__.get("forward")).__name__ != "_Product" for m in layers if m not in here)
    settings = Settings(k=3, max_new_tokens=24)
    for model in (whole, spread):
        model.eos_ids = frozenset()
    plain = output(space_core.vanilla(whole, PROMPT, settings))
    assert output(space_core.space(spread, PROMPT, settings)) == plain


def test_a_map_that_accelerate_draws(folders, tmp_path):
    model = opened(
        folders["gated"],
        device_map="auto",
        max_memory={"cpu": 150_000},
        offload_folder=tmp_path / "offloaded",
    )
    assert "disk" in model.lm.hf_device_map.values() and "cpu" in model.lm.hf_device_map.values()
    settings = Settings(k=3, max_new_tokens=12, plan="grid")
    assert facts(model, settings) == facts(opened(folders["gated"]), settings)


def test_damage_on_disk_is_found_before_the_first_token(folders, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in folders["untrained"].iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj.*not finite"):
        opened(broken, device_map=on_disk(*LAYER))


def test_weights_are_here_only_within(folders):
    lm = opened(folders["plain"], device_map=on_disk(*ALL)).lm
    embed = lm.get_input_embeddings()
    assert embed.weight.device.type == "meta"
    with weights_here(embed):
        assert embed.weight.device.type == "cpu"
    assert embed.weight.device.type == "meta"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"device_map": "everywhere"}, "device_map must be auto"),
        ({"device_map": {}}, "device_map must give"),
        ({"device_map": {"model": "attic"}}, "device_map must give"),
        ({"device_map": {"model": True}}, "device_map must give"),
        ({"device_map": ["cpu"]}, "device_map must give"),
        ({"device_map": {"": 77}}, "cannot open the model"),
        ({"device_map": "auto", "max_memory": "much"}, "max_memory must"),
        ({"max_memory": {"cpu": 1}}, "need a device_map"),
        ({"offload_folder": "x"}, "need a device_map"),
    ],
)
def test_a_wrong_map_is_refused_with_a_sentence(folders, options, says):
    with pytest.raises(CheckpointError, match=says):
        opened(folders["plain"], **options)


def test_a_quantised_base_is_opened_as_it_was_saved(folders, tmp_path):
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import AutoModelForCausalLM, TorchAoConfig

    base = tmp_path / "int8"
    AutoModelForCausalLM.from_pretrained(
        folders["untrained"],
        dtype=torch.float32,
        quantization_config=TorchAoConfig(Int8WeightOnlyConfig()),
        device_map={"": "cpu"},
    ).save_pretrained(base)
    masks = space_core.load(folders["gated"])
    space_core.save(tmp_path / "parts", masks, base_id=str(base))
    for folder, method in ((base, "untrained"), (tmp_path / "parts", "gated")):
        model = space_core.load(folder)
        model.eos_ids = frozenset()
        weight = model.lm.model.layers[0].mlp.up_proj.weight
        assert type(weight) is not torch.nn.Parameter and model.masks.method == method
        settings = Settings(k=3, max_new_tokens=24)
        plain = output(space_core.vanilla(model, PROMPT, settings))
        assert output(space_core.space(model, PROMPT, settings)) == plain and len(plain) == 24
