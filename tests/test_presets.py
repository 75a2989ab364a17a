"""The official published checkpoint by the page's preset: a tiny folder of its form, and a stand-in for the hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import warm
from tiny import oracle
from transformers import LlamaConfig, LlamaForCausalLM

import app
from finetune.tokenizer import train_tokenizer
from space_core import presets
from space_core.presets import GB, OFFICIAL

MASK = 32002


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """Llama shape, a vocabulary of 32,003 whose last id is [M], no space.json: as it lies on the hub."""
    folder = tmp_path_factory.mktemp("hub")
    config = LlamaConfig(
        vocab_size=MASK + 1,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    lm = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)
        # Were [M] an ordinary token, it would be written at once and drafted by every mask.
        lm.lm_head.weight[MASK] = 50.0 * lm.lm_head.weight[:100].sum(0)
    lm.save_pretrained(folder)
    train_tokenizer(["def main():"] * 4, 300, folder)
    return folder


@pytest.fixture
def hub(monkeypatch, published):
    """The hub, with one model on it; notes what it is asked for."""
    asked = []

    def snapshot(name: str, **options: object) -> str:
        asked.append((name, options))
        if name != "AntMan/vicuna-v1.3-7b-space":
            raise ValueError("no such model")
        return str(published)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    return asked


@pytest.fixture
def loader(hub) -> app.Loader:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    one = app.Loader("AntMan/vicuna-v1.3-7b-space", "cpu", "float64")
    one.start()
    assert one.done.wait(300)
    yield one
    torch.set_num_threads(threads)


def test_the_preset_is_the_published_models(hub):
    assert OFFICIAL.source == "AntMan/vicuna-v1.3-7b-space"
    assert OFFICIAL.arguments == {"mask_token_id": 32002, "k": 5}
    assert presets.find(OFFICIAL.source) is OFFICIAL
    assert presets.find("AntMan/another") is None


def test_the_page_opens_it_with_its_mask_and_races(loader, hub):
    model = loader.model
    assert (model.mask_token_id, model.k, model.masks.method) == (MASK, 5, "paper")
    assert [name for name, _ in hub] == [OFFICIAL.source]
    assert loader.status()["text"].startswith("AntMan/vicuna-v1.3-7b-space · cpu")
    *_, (last, race) = app.Handlers(loader, 60).race("def main():", 5, 24, 0, 1, 0, "grid", [])
    frame = json.loads(last)
    assert frame["verdict"]["badge"] == "outputs identical"
    trace = race.trace("space")
    assert trace.steps[0].groups == (5,), "five masks behind the prompt"
    tokens = {token for step in trace.steps for token in (*step.emitted, *step.drafts, *step.new_drafts)}
    assert MASK not in tokens
    head = model.lm.lm_head.weight
    with torch.inference_mode():  # the same text from a model that has no [M] at all
        row = head[MASK].clone()
        ids = list(race.trace("vanilla").prompt_ids)
        head.data[MASK] = 0
        logits = model.lm(torch.tensor([ids])).logits[0, -1]
        assert int(logits.argmax()) == trace.output_ids[0]
        assert len(oracle(model.lm, ids, 3)) == 3
        head.data[MASK] = row


def test_a_small_machine_is_told_and_asked_twice(hub, monkeypatch):
    loader = app.Loader("nowhere", "cpu", "float32")
    handlers = app.Presets(loader, OFFICIAL)
    monkeypatch.setattr(presets, "machine_memory", lambda device: 16 * GB)
    words, button, box = handlers.offer()
    assert "7 billion parameters: a download of 13.5 GB, and 20 GB of memory" in words
    assert "This machine has 16 GB and has no GPU, so that each call would take seconds: it is off" in words
    assert button["interactive"] is False and box["visible"] is True and box["value"] is False
    for never in (False, None, "yes", 1):
        with pytest.raises(app.gr.Error, match="this machine has 16 GB"):
            handlers.load(never)
        assert handlers.allow(never)["interactive"] is False
    assert hub == [] and loader.source == "nowhere"
    assert handlers.allow(True)["interactive"] is True
    choice, *_ = handlers.load(True)
    other = loader.chosen(choice)
    assert other is not loader and loader.source == "nowhere", "the page's own model stays"
    assert other.done.wait(300)
    assert other.model.mask_token_id == MASK
    assert other.model.dtype is torch.bfloat16, "half precision, where nobody chose"


@pytest.mark.parametrize(
    ("device", "memory", "fits"),
    [
        ("cuda:0", 80, True),
        ("cuda:0", 20, True),
        ("cuda:0", 16, False),
        ("cpu", 512, False),
        ("mps", 24, True),
    ],
)
def test_a_large_machine_is_offered_it_at_once(monkeypatch, device, memory, fits):
    handlers = app.Presets(app.Loader("nowhere", device, "float32"), OFFICIAL)
    monkeypatch.setattr(presets, "machine_memory", lambda device: memory * GB)
    monkeypatch.setattr("space_core.checkpoint.find_device", torch.device)
    words, button, box = handlers.offer()
    assert button["interactive"] is fits and box["visible"] is not fits
    assert ("off here" in words) is not fits


def test_the_machines_memory_is_a_number_that_can_be():
    assert GB / 2 < presets.machine_memory("cpu") < 100_000 * GB


def test_strangers_are_not_offered_it():
    names = {fn.api_name for fn in app.build(app.Loader("nowhere", "cpu", "float32")).fns.values()}
    own = {
        fn.api_name
        for fn in app.build(
            app.Loader("nowhere", "cpu", "float32"), training=app.training.Training(Path("nowhere"))
        ).fns.values()
    }
    assert {"allow", "load", "offer"} & names == set()
    assert {"allow", "load", "offer"} <= own


def test_it_is_offered_while_the_pages_own_model_loads():
    """Both import transformers, which bears one thread at a time."""
    program = (
        "import app; from space_core import bundled, presets\n"
        "loader = app.Loader(str(bundled.default_checkpoint()), 'cpu', 'float32')\n"
        "loader.start()\n"
        "print(app.Presets(loader, presets.OFFICIAL).offer()[0])\n"
        "loader.done.wait()\n"
        "print(loader.status()['state'])"
    )
    done = warm.run("-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "ready"
