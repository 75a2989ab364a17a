"""`sft`: data in any form, any template, both methods on several architectures, resumed to the bit."""

from __future__ import annotations

import json
import re
import shlex
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny import ARCHITECTURES, oracle, output, some, tiny_lm
from transformers import AutoModelForCausalLM, AutoTokenizer

import space_core
from finetune import masks
from finetune.__main__ import _parser, main
from finetune.chat import Renderer, Sample
from finetune.data import DataError, Message, conversation, read_data
from finetune.distill import continuations
from finetune.optimizer import cosine
from finetune.packed import (
    NONE,
    Batches,
    PackedGated,
    PackedPaper,
    guesses,
    masked,
    pack_rows,
    plain,
)
from finetune.recipe import Distill, MaskTraining
from finetune.sft import Sft, push, target_modules
from finetune.state import load_state
from finetune.tokenizer import train_tokenizer
from space_core import Settings
from space_core.cache import BlockCache
from space_core.errors import CheckpointError, SettingError
from space_core.layout import Layout
from space_core.model import Masks, SpaceModel

ROOT = Path(__file__).parent.parent
LINES = 200
VOCABULARY = 320

CHAT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% if m.role == 'assistant' %}<|end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKED = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Writes a thought into the last answer only, so that an answer reads otherwise once it is past.
REWRITING = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'assistant' and loop.last %}hm. {% endif %}{{ m.content }}"
    "{% if m.role == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Knows no prompt for the assistant: the answer begins with the words that announce it.
UNPROMPTED = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|end|>{% endfor %}"

TALK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "what is 1 plus 2?"},
    {"role": "assistant", "content": "the sum is 3."},
    {"role": "user", "content": "sure?"},
    {"role": "assistant", "content": "yes, 3."},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    texts = [
        f"what is {a} plus {b}? the sum of {a} and {b} is {a + b}." for a in range(20) for b in range(10)
    ]
    made = train_tokenizer(texts, 300, tmp_path_factory.mktemp("tokenizer"), model_max_length=128)
    special = ["<|system|>", "<|user|>", "<|assistant|>"]
    made.add_special_tokens({"additional_special_tokens": special, "eos_token": "<|end|>"})
    made.chat_template = CHAT
    assert len(made) <= VOCABULARY
    return made


@pytest.fixture(scope="module")
def home(tmp_path_factory, tokenizer):
    """A folder with bases by architecture, and data in all forms."""
    folder = tmp_path_factory.mktemp("home")
    for name in ("Llama", "Qwen3", "GPT2", "Gemma"):
        shape = {**ARCHITECTURES[name], "vocab_size": VOCABULARY}
        config = getattr(transformers, f"{name}Config")(**shape)
        config.bos_token_id, config.eos_token_id, config.pad_token_id = 0, tokenizer.eos_token_id, 1
        torch.manual_seed(0)
        lm = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in lm.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(4)
        lm.save_pretrained(folder / "tiny" / name)
        tokenizer.save_pretrained(folder / "tiny" / name)
    rows = []
    for i in range(LINES):
        question = {"role": "user", "content": f"what is {i % 20} plus {i // 20}?"}
        answer = f"the sum of {i % 20} and {i // 20} is {i % 20 + i // 20}."
        rows.append(
            (
                {"prompt": question["content"], "response": answer},
                {"messages": [TALK[0], question, {"role": "assistant", "content": answer}, *TALK[3:]]},
                {"text": f"{question['content']} {answer}"},
            )[i % 3]
        )
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


def arguments(home, base, out, *more):
    return [
        "sft", "--base", str(home / "tiny" / base), "--data", str(home / "data.jsonl"), "--out", str(out),
        "--run", str(out.with_name(out.name + "-run")), "--device", "cpu", "--max-length", "96", "--k", "3",
        "--rank", "4", "--groups", "8", "--steps", "9", "--save-every", "3", "--evaluate-every", "9",
        "--evaluate-tokens", "12", "--evaluate-prompts", "3", "--distil", "48", "--distil-tokens", "24",
        "--distil-batch", "8", "--lr", "1e-2", *more,
    ]  # fmt: skip


def log_of(run):
    return [json.loads(line) for line in (run / "log.jsonl").open()]


# --- data ---


def test_all_forms_are_read(home):
    found, digest = read_data(str(home / "data.jsonl"))
    assert len(found) == LINES and len(digest) == 64
    assert [m.role for m in found[0].messages] == ["user", "assistant"] and found[0].completion
    assert [m.role for m in found[1].messages] == [m["role"] for m in TALK]
    assert found[2].text.startswith("what is 2") and found[2].where.endswith("data.jsonl, line 3")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not JSON"),
        ("[1]", "not an object"),
        ("{}", "has no keys"),
        ('{"instruction": "a", "output": "b"}', "has instruction, output"),
        ('{"prompt": "a"}', "a prompt but no response"),
        ('{"response": "a", "prompt": null}', "a response but no prompt"),
        ('{"prompt": "a", "response": 5}', "response must be text, not int"),
        ('{"prompt": "a", "response": " "}', "response is empty"),
        ('{"text": ["a"]}', "text must be text"),
        ('{"text": "\\ud800"}', "surrogate"),
        ('{"messages": {}}', "a list"),
        ('{"messages": [5]}', r"messages\[0\]: not an object"),
        ('{"messages": [{"role": "human", "content": "a"}]}', r"messages\[0\]: role must be .* not 'human'"),
        ('{"messages": [{"role": "user", "content": null}]}', r"messages\[0\]: content must be text"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "no answer"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "no question"),
        (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "a"}]}',
            r"messages\[1\]: a system message",
        ),
        (b'{"text": "\xff"}', "not UTF-8"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, says):
    path = tmp_path / "wrong.jsonl"
    line = line if isinstance(line, bytes) else line.encode()
    path.write_bytes(b'{"text": "fine"}\n\n' + line + b"\n")
    with pytest.raises(DataError, match=rf"wrong\.jsonl, line 3: .*{says}") as caught:
        read_data(str(path))
    assert "\n" not in str(caught.value)


def test_data_sets_of_the_hub_are_an_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="pip install datasets"):
        read_data("someone/talks")
    with pytest.raises(DataError, match="cannot read"):
        read_data(str(tmp_path / "nothing.jsonl"))
    with pytest.raises(DataError, match="is a folder"):
        read_data(str(tmp_path))
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        if name != "someone/talks":
            raise ConnectionError("offline\nand more")
        return [{"messages": TALK, "text": None}, {"messages": None, "text": None}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(DataError, match=r"someone/talks \(test\), row 2: has no keys"):
        read_data("someone/talks", "test")
    with pytest.raises(DataError, match=r"cannot be read: offline$"):
        read_data("someone/else")
    assert asked == [("someone/talks", "test"), ("someone/else", "train")]


# --- templates ---


def learnt(tokenizer, sample: Sample) -> list[str]:
    """The runs of tokens that are learnt, as text."""
    runs, last = [], False
    for token, learn in zip(sample.ids.tolist(), sample.learn.tolist(), strict=True):
        if learn and not last:
            runs.append([])
        if learn:
            runs[-1].append(token)
        last = learn
    return [tokenizer.decode(run) for run in runs]


ANSWERS = ["the sum is 3.<|end|>", "yes, 3.<|end|>"]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHAT, [ANSWERS]),
        (MARKED, [ANSWERS]),
        (REWRITING, [["hm. " + ANSWERS[0]], ["hm. " + ANSWERS[1]]]),
        (UNPROMPTED, [["assistant: " + answer for answer in ANSWERS]]),
        (None, [["the sum is 3.<|end|>"], ["yes, 3.<|end|>"]]),
    ],
    ids=["plain", "marked", "rewriting", "unprompted", "none"],
)
def test_only_answers_are_learnt(tokenizer, monkeypatch, template, expected):
    monkeypatch.setattr(tokenizer, "chat_template", template)
    renderer = Renderer(tokenizer, 512, frozenset({tokenizer.eos_token_id}))
    samples = renderer.samples(conversation({"messages": TALK}, "here"))
    assert [learnt(tokenizer, sample) for sample in samples] == expected
    messages = tuple(Message(**message) for message in TALK)
    assert (renderer._marked(messages, samples[0].ids.tolist()) is not None) == (template == MARKED)
    prompts = [tokenizer.decode(p) for sample in samples for p in sample.prompts]
    assert len(prompts) == 2 and "sure?" not in prompts[0] and "3." in prompts[1]
    if template and template != UNPROMPTED:
        assert all(prompt.endswith("<|assistant|>") for prompt in prompts)
    assert renderer.prompt(conversation({"messages": TALK}, "here")) == samples[0].prompts[0].tolist()


def test_without_a_template_a_response_follows_its_prompt_directly(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    row = {"prompt": "the sum of 1 and", "response": " 2 is 3.<|end|>"}
    (sample,) = Renderer(tokenizer, 512).samples(conversation(row, "here"))
    assert tokenizer.decode(sample.ids) == "the sum of 1 and 2 is 3.<|end|><|end|>"
    # The one that the data spells is plain text, the last one is the token.
    assert sample.ids.tolist().count(tokenizer.eos_token_id) == 1
    assert learnt(tokenizer, sample) == [" 2 is 3.<|end|><|end|>"]


def test_a_template_that_refuses_is_told_with_the_line(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('no system please') }}")
    with pytest.raises(DataError, match=r"data, line 7: .*no system please"):
        Renderer(tokenizer, 64).samples(conversation({"messages": TALK}, "data, line 7"))


def test_long_conversations_lose_whole_turns(tokenizer):
    def told(truncate, length, messages=TALK):
        renderer = Renderer(tokenizer, length, frozenset({tokenizer.eos_token_id}), truncate)
        found = renderer.samples(conversation({"messages": messages}, "here"))
        return [tokenizer.decode(sample.ids) for sample in found], renderer.counts

    (whole,), counts = told("front", 512)
    length = len(tokenizer(whole, add_special_tokens=False)["input_ids"])
    assert (counts.shortened, counts.cut, counts.dropped) == (0, 0, 0)
    (text,), counts = told("front", length - 1)
    assert "be brief" in text and "sum" not in text and "yes, 3." in text and counts.shortened == 1
    (text,), counts = told("back", length - 1)
    assert "be brief" in text and "the sum is 3." in text and "sure" not in text and counts.shortened == 1
    long = [*TALK[:2], {"role": "assistant", "content": "so it is " * 100}]
    (text,), counts = told("front", 64, long)
    assert text.endswith("so it is") or "so it" in text[-12:]
    assert counts.cut == 1 and len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 64
    none, counts = told("front", 12, long)
    assert not none and counts.dropped == 1
    renderer = Renderer(tokenizer, 32)
    pieces = renderer.samples(conversation({"text": "the sum of 1 and 2 is 3. " * 20}, "here"))
    assert [len(p.ids) for p in pieces[:-1]] == [32] * (len(pieces) - 1) and len(pieces) > 2


# --- packing ---


def some_samples(count=23, longest=20):
    random = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        length = int(torch.randint(6, longest + 1, (), generator=random))
        ids = torch.randint(64, (length,), generator=random)
        found.append(Sample(ids, torch.arange(length) >= 2, (ids[:2],)))
    return found


@pytest.mark.parametrize("pack", [True, False])
def test_an_epoch_has_every_sample_once_and_batches_depend_on_their_number(pack):
    samples = some_samples()
    batches = Batches(samples, 48, 3, 0, pack)
    ends = [batches.until(n) for n in (1, 2, 3)]
    for start, end in zip([0, *ends], ends, strict=False):
        rows = [row for index in range(start, end) for row in batches.batch(index)]
        assert sorted(id(s) for row in rows for s in row) == sorted(map(id, samples))
        assert all(sum(len(s.ids) for s in row) <= 48 for row in rows)
        assert (max(map(len, rows)) > 1) == pack
    again = Batches(samples, 48, 3, 0, pack)
    for index in (ends[1], 1, 0, ends[0]):
        assert again.batch(index) == batches.batch(index)
    assert batches.batch(0) != batches.batch(ends[0])


def test_cosine_warms_up_and_falls_to_a_tenth():
    rates = [cosine(step, 50, 5) for step in range(50)]
    assert rates[0] == pytest.approx(0.2) and max(rates) == rates[4] == 1
    assert rates[-1] == pytest.approx(0.1) and rates[5:] == sorted(rates[5:], reverse=True)


@pytest.mark.parametrize("architecture", ["Llama", "GPT2", "Gemma"])
def test_a_packed_mask_is_the_mask_of_decoding(architecture, monkeypatch):
    """Logits of every mask of two packed samples, against a call of the decoder behind that token."""
    lm = tiny_lm(architecture)
    plan = MaskTraining(steps=1, batch=1, k=3, rank=2, groups=99, targets=target_modules(lm))
    method = PackedGated(lm, plan, 0)
    method.trained.double()
    with torch.no_grad():
        method.trained.embeddings.normal_()
        for b in method.trained.adapter.b.values():
            b.normal_()
    seen = {}
    monkeypatch.setattr(
        "finetune.masks.guess_loss",
        lambda logits, own, text, first, known, plan, team: (
            seen.update(logits=logits, own=own, known=known, text=text) or logits.sum()
        ),
    )
    row = some_samples(2, 9)
    method.loss([row, row[:1]], torch.Generator().manual_seed(0))
    model = SpaceModel(lm, None, Masks(3, "gated", None, method.trained.embeddings, method.trained.adapter))
    row_logits, known, text = (
        seen[name][0].view(-1, 3, *seen[name].shape[2:]) for name in ("logits", "known", "text")
    )
    group = 0
    for sample in row:
        ids = sample.ids.tolist()
        for anchor in range(1, len(ids) - 2):  # the token before the answer is the first anchor
            expected = model.forward(Layout.first(anchor + 1, 3), ids[: anchor + 1], BlockCache())[1:]
            assert (row_logits[group] - expected).abs().max() < 1e-5
            targets = ids[anchor + 2 : anchor + 5]
            assert known[group].tolist() == [1] * len(targets) + [0] * (3 - len(targets))
            assert text[group][: len(targets)].tolist() == targets
            group += 1
    assert group == len(row_logits)
    assert not seen["known"][1].view(-1, 3)[len(row[0].ids) - 3 :].any()  # a shorter row has fewer groups


def test_masks_of_other_samples_and_prompts_do_not_count():
    learn = torch.tensor([0, 0, 1, 1, 0, 1, 1, 1], dtype=torch.bool)
    rows = pack_rows([[plain(Sample(torch.arange(8), learn, ()))] * 2])
    assert rows.labels[0].tolist() == [NONE, 2, 3, NONE, 5, 6, 7, NONE] * 2
    assert rows.positions[0].tolist() == [*range(8)] * 2
    assert rows.sees()[0, 9].tolist() == [False] * 8 + [True] * 2 + [False] * 6
    anchors, counts = masks_of(rows, 9)
    assert anchors[0].tolist() == [1, 4, 5, 9, 12, 13] and counts.all()
    behind = guesses(rows, anchors, counts, 3)
    assert behind.known[0].view(-1, 3).tolist() == [[1, 0, 0], [1, 1, 0], [1, 0, 0]] * 2
    assert behind.positions[0, 9:12].tolist() == [2, 3, 4]
    assert not behind.sees[0, 9, :8].any() and behind.sees[0, 9, 8:10].all()


def masks_of(rows, groups):
    from finetune.packed import draw_anchors

    return draw_anchors(rows, groups, torch.Generator().manual_seed(0))


def test_the_papers_cut_has_k_masks_and_their_targets():
    learn = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1], dtype=torch.bool)
    sample = Sample(torch.arange(8), learn, ())
    cuts = set()
    for seed in range(20):
        ids, labels = masked(sample, 3, 99, torch.Generator().manual_seed(seed))
        cut = len(ids) - 3
        cuts.add(cut)
        assert ids.tolist() == [*range(cut), 99, 99, 99]
        assert labels.tolist() == [NONE, NONE, *range(3, cut + 4)]
    assert cuts == {3, 4}
    assert masked(sample, 5, 99, torch.Generator()) is None


@pytest.mark.parametrize("method", ["gated", "paper"])
def test_checkpointed_layers_give_the_same_gradients(method):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        lm = tiny_lm("Llama")
        plan = MaskTraining(steps=1, batch=1, k=3, rank=2, groups=4, method=method)
        if method == "gated":
            trainer = PackedGated(lm, plan, 0, checkpointing)
            trainer.trained.double()
            with torch.no_grad():
                for b in trainer.trained.adapter.b.values():
                    b.fill_(0.01)
        else:
            trainer = PackedPaper(lm, plan, checkpointing)
        loss, counted = trainer.loss([some_samples(3)], torch.Generator().manual_seed(0))
        loss.backward()
        assert counted > 0
        gradients.append([p.grad for p in trainer.trained.parameters()])
        assert not any("forward" in module.__dict__ for module in lm.modules())
    for left, right in zip(*gradients, strict=True):
        assert left is not None and (left - right).abs().max() < 1e-12


# --- the model's own words ---


def test_continuations_are_what_the_model_writes(tmp_path):
    lm = tiny_lm("Llama")
    lm.generation_config.repetition_penalty = 3.0  # the argmax is wanted, whatever the model's makers advise
    prompts = [torch.tensor(ids) for ids in ([3, 1, 4], [1, 5, 9, 2, 6], [5, 3])]
    plan = Distill(3, (), 12, batch=2, loops=1.0, sampled_share=0.0)
    expected = {tuple(p.tolist()): oracle(lm, p.tolist(), 12) for p in prompts}
    stop = expected[3, 1, 4][5]
    for eos in (frozenset(), frozenset({stop})):
        found = continuations(lm, prompts, plan, eos, 64, tmp_path / str(len(eos)), 0)
        assert len(found) == 3
        for prompt, text in found:
            whole = expected[tuple(prompt.tolist())]
            if eos and stop in whole:
                whole = whole[: whole.index(stop) + 1]
            assert text.tolist() == whole
    assert lm.generation_config.repetition_penalty == 3.0
    assert all(len(text) == 4 for _, text in continuations(lm, prompts[1:2], plan, eos, 9, tmp_path / "c", 0))


# --- the command ---


@pytest.mark.parametrize(
    ("base", "method"),
    some(
        [(base, method) for base in ("Llama", "Qwen3", "GPT2", "Gemma") for method in ("gated", "paper")],
        [("Llama", "gated"), ("GPT2", "paper")],
    ),
)
def test_trained_saved_loaded_and_lossless(home, tmp_path, monkeypatch, base, method):
    weights = home / "tiny" / base / "model.safetensors"
    before = weights.read_bytes()
    out = tmp_path / "someone" / "model"
    assert main(arguments(home, base, out, "--method", method)) == 0
    assert weights.read_bytes() == before
    monkeypatch.chdir(tmp_path)  # so that the folder is called as an id is
    model = space_core.load("someone/model", dtype="float64")
    assert model.k == 3 and model.masks.method == method
    manifest = json.loads((out / "space.json").read_text())
    assert manifest["base"]["id"] == str(home / "tiny" / base)
    assert (out / "config.json").exists() == (method == "paper")
    plain_lm = AutoModelForCausalLM.from_pretrained(
        out if method == "paper" else home / "tiny" / base, dtype=torch.float64, attn_implementation="sdpa"
    )
    if method == "gated":
        assert all(torch.equal(w, model.lm.state_dict()[n]) for n, w in plain_lm.state_dict().items())
    else:
        assert model.mask_token_id == VOCABULARY and model.vocabulary == VOCABULARY + 1
    model.eos_ids = frozenset()
    for prompt in ([0, 5, 9, 40, 41], model.encode("what is 3 plus 4?")):
        for plan in ("grid", "auto"):
            settings = Settings(k=3, max_new_tokens=24, plan=plan)
            written = output(space_core.space(model, prompt, settings))
            assert written == output(space_core.vanilla(model, prompt, settings))
        if VOCABULARY not in (expected := oracle(plain_lm, prompt, 24)):
            assert written == expected
        assert VOCABULARY not in written
    lanes = {
        "vanilla": space_core.vanilla(model, prompt, settings),
        "space": space_core.space(model, prompt, settings),
    }
    raced = {lane: [] for lane in lanes}
    for lane, step, _ in space_core.race(lanes):
        raced[lane] += step.emitted
    assert raced["vanilla"] == raced["space"] == written
    card = (out / "README.md").read_text()
    assert str(home) not in card and "outputs identical to plain decoding's | 3 of 3" in card


@pytest.mark.parametrize(
    ("base", "method"), some([("Llama", "gated"), ("GPT2", "paper")], [("Llama", "gated")])
)
def test_a_killed_run_goes_on_to_the_bit(home, tmp_path, base, method):
    """GPT-2 has dropout: what a step draws must not depend on the steps before it."""
    more = (
        "--method",
        method,
        "--accumulate",
        "2",
        "--batch",
        "2",
        "--patience",
        "9",
        "--evaluate-every",
        "4",
    )
    assert main(arguments(home, base, tmp_path / "whole", *more)) == 0
    calls = {"n": 0}
    real = masks.Optimizers.step

    def dying(self, *values):
        calls["n"] += 1
        if calls["n"] == 5:  # between the state of step 3 and that of step 6
            raise KeyboardInterrupt
        real(self, *values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks.Optimizers, "step", dying)
        assert main(arguments(home, base, tmp_path / "cut", *more)) == 130
    state = f"masks-{method}.pt"
    assert load_state(tmp_path / "cut-run" / state)["step"] == 3
    assert not (tmp_path / "cut").exists()
    assert main(arguments(home, base, tmp_path / "cut", *more)) == 0
    for part in (
        ("model.safetensors",)
        if method == "paper"
        else ("space/adapter_model.safetensors", "space/masks.safetensors")
    ):
        whole, cut = (load_file(tmp_path / name / part) for name in ("whole", "cut"))
        assert all(torch.equal(tensor, cut[key]) for key, tensor in whole.items())
    steps = [
        [
            {**row, "seconds": 0}
            for row in log_of(tmp_path / f"{name}-run")
            if row["stage"] == f"masks-{method}"
        ]
        for name in ("whole", "cut")
    ]
    assert steps[0] == steps[1]


@pytest.mark.more
def test_killed_while_distilling(home, tmp_path, monkeypatch):
    assert main(arguments(home, "Llama", tmp_path / "whole")) == 0
    from finetune import distill

    real = distill.save_state

    def dying(path, state):
        real(path, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(distill, "save_state", dying)
        assert main(arguments(home, "Llama", tmp_path / "cut")) == 130
    assert len(load_state(tmp_path / "cut-run" / "distill.pt")["batches"]) == 4
    assert main(arguments(home, "Llama", tmp_path / "cut")) == 0
    whole, cut = (load_state(tmp_path / f"{name}-run" / "distill.pt")["batches"] for name in ("whole", "cut"))
    assert len(whole) == 6 and all(torch.equal(a, b) for a, b in zip(whole, cut, strict=True))


@pytest.mark.more
def test_it_stops_early_and_keeps_the_best(home, tmp_path, monkeypatch):
    rates = iter([1.0, 1.5, 2.0, 1.9, 1.8, 3.0])
    monkeypatch.setattr(masks, "tokens_per_call", lambda traces: next(rates))
    more = ("--steps", "40", "--evaluate-every", "2", "--patience", "2", "--save-every", "2", "--no-distil")
    assert main(arguments(home, "Llama", tmp_path / "out", *more)) == 0
    run = tmp_path / "out-run"
    *_, last, copies = log_of(run)
    assert last | {"stage": ""} == {"stage": "", "step": 8, "stopped_early": True, "best_step": 4}
    assert copies["stage"] == "copies" and copies["told_loss"] < copies["untold_loss"]
    told = json.loads((tmp_path / "out" / "space.json").read_text())["training_data"]["told"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert told.startswith("197 conversations") and told in card and "a table of copies" in card
    assert (tmp_path / "out" / "space" / "copies.safetensors").is_file()
    best = load_state(run / "masks-gated-best.pt")
    saved = load_file(tmp_path / "out" / "space" / "masks.safetensors")["embeddings"]
    assert torch.equal(saved, best["trained"]["embeddings"])
    assert not torch.equal(saved, load_state(run / "masks-gated.pt")["trained"]["embeddings"])
    # The same command again trains no further.
    assert main(arguments(home, "Llama", tmp_path / "out", *more)) == 0
    assert load_state(run / "masks-gated.pt")["step"] == 8 and next(rates) == 3.0


@pytest.mark.parametrize("method", ["gated", "paper"])
def test_masks_learn_what_the_base_writes(tmp_path, method):
    """A base that walks in a circle is easy to draft for, on packed rows too."""
    lm = tiny_lm("Llama", torch.float32, seed=2)
    prompt = [3, 1, 4, 1]
    text = torch.tensor(prompt + oracle(lm, prompt, 44))
    cuts = (30, 48, 40, 24, 48, 36)
    samples = [Sample(text[:n], torch.arange(n) >= 4, (text[:4],)) for n in cuts]
    batches = Batches(samples, 96, 2, 0, True)
    plan = MaskTraining(
        steps=60,
        batch=2,
        k=3,
        method=method,
        rank=8,
        groups=16,
        lr=1e-2,
        warmup=5,
        cosine=True,
        soft=0.3,
        until_fail=0.2,
        evaluate_every=60,
        evaluate_tokens=32,
    )
    trainer = PackedGated(lm, plan, 0) if method == "gated" else PackedPaper(lm, plan)
    masks.train(trainer, lambda n, _: batches.batch(n), None, [prompt], plan, tmp_path, 0, half=False)
    rates = [row["tokens_per_call"] for row in log_of(tmp_path) if "tokens_per_call" in row]
    assert len(rates) == 2 and rates[1] > 2.5 > 2 > rates[0]


@pytest.mark.more
def test_in_bfloat16_what_is_trained_stays_float32(home, tmp_path):
    more = ("--dtype", "bfloat16", "--steps", "2", "--no-distil", "--no-pack", "--gradient-checkpointing")
    for method in ("gated", "paper"):
        out = tmp_path / method
        assert main(arguments(home, "Llama", out, "--method", method, *more)) == 0
        state = load_state(tmp_path / f"{method}-run" / f"masks-{method}.pt")
        assert state["half"] and all(t.dtype == torch.float32 for t in state["trained"].values())
        (file, *_) = sorted(out.rglob("*.safetensors"))
        assert {t.dtype for t in load_file(file).values()} == {torch.bfloat16}
        space_core.load(out, dtype="bfloat16")


@pytest.mark.more
def test_merged_with_its_base_the_folder_is_the_plain_model(home, tmp_path):
    out = tmp_path / "merged"
    assert main(arguments(home, "Llama", out, "--merge-base", "--steps", "1", "--no-distil")) == 0
    base = home / "tiny" / "Llama"
    assert (out / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()
    manifest = json.loads((out / "space.json").read_text())
    assert "model.safetensors" in manifest["files"] and manifest["method"] == "gated"
    assert AutoTokenizer.from_pretrained(out).chat_template == CHAT
    assert space_core.load(out).masks.adapter is not None
    again = arguments(home, "Llama", tmp_path / "again", "--steps", "1", "--no-distil")
    again[2] = str(out)  # a merged folder serves as a base
    assert main(again) == 0


def test_push_uploads_the_folder_or_says_why_not(home, tmp_path, monkeypatch, capsys):
    calls = []

    class Hub:
        def create_repo(self, name, **options):
            calls.append((name, options["private"]))

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            calls.append((repo_id, sorted(p.name for p in Path(folder_path).iterdir())))
            if repo_id == "someone/else":
                raise OSError("not yours\nat all")

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    more = ("--steps", "1", "--no-distil", "--push-to-hub", "someone/model")
    for token, extra, says in (
        ("x", (), "--merge-base"),
        (None, ("--merge-base",), "hf auth login"),
        ("x", ("--merge-base", "--push-to-hub", "model"), "OWNER/NAME"),
    ):
        monkeypatch.setattr("huggingface_hub.get_token", lambda token=token: token)
        assert main(arguments(home, "Llama", tmp_path / "out", *more, *extra)) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1 and not calls
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "x")
    assert main(arguments(home, "Llama", tmp_path / "out", *more, "--merge-base")) == 0
    assert calls[0] == ("someone/model", True)
    assert {"README.md", "space.json", "model.safetensors", "space"} <= set(calls[1][1])
    with pytest.raises(CheckpointError, match=r"not yours$"):
        push(tmp_path / "out", "someone/else")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (("--method", "magic"), "--method"),
        (("--k", "0"), "k must"),
        (("--k", "17"), "k must"),
        (("--k", "many"), "--k"),
        (("--lr", "nan"), "lr must"),
        (("--epochs", "0"), "epochs must"),
        (("--soft", "2"), "soft must"),
        (("--truncate", "middle"), "--truncate"),
        (("--dtype", "int8"), "--dtype"),
        (("--max-length", "5"), "max_length"),
        (("--temperature", "0", "--distil", "8"), "temperature"),
        (("--data", "/nowhere.jsonl"), "/nowhere.jsonl"),
        (("--base", "/nowhere"), "/nowhere"),
        (("--device", "abacus"), "abacus"),
        (("--targets", "no_proj"), "no_proj"),
        (("--max-length", "12"), "--max-length"),
        (("--bogus",), "--bogus"),
    ],
)
def test_bad_arguments_are_one_clear_line_and_exit_code_2(home, tmp_path, capsys, changes, says):
    try:
        code = main(arguments(home, "Llama", tmp_path / "out", "--no-distil", *changes))
    except SystemExit as stopped:
        code = stopped.code
    error = capsys.readouterr().err
    assert code == 2 and says in error
    if says != "no_proj":  # is found when the model is there and the data has been told of
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_other_folders_and_runs_are_left_alone(home, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert main(arguments(home, "Llama", tmp_path / "out")) == 2
    assert "will not be replaced" in capsys.readouterr().err
    out = tmp_path / "new"
    assert main(arguments(home, "Llama", out, "--steps", "1", "--no-distil")) == 0
    capsys.readouterr()
    assert main(arguments(home, "Llama", out, "--steps", "1", "--no-distil", "--soft", "0")) == 2
    assert "a run with another soft" in capsys.readouterr().err
    adapter = arguments(home, "Llama", tmp_path / "third")
    adapter[2] = str(out)
    assert main(adapter) == 2 and "adapter only" in capsys.readouterr().err
    with pytest.raises(SettingError, match="--targets"):
        target_modules(torch.nn.Sequential(torch.nn.Linear(2, 2)))


def test_too_little_data_is_said(home, tmp_path, capsys):
    path = tmp_path / "one.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n')
    command = arguments(home, "Llama", tmp_path / "out")
    command[4] = str(path)
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "one.jsonl: 0 samples" in error and error.count("\n") == 1


def test_options_are_those_of_the_command_line():
    given = _parser().parse_args(["sft", "--base", "a", "--data", "b", "--out", "c"])
    fields = {name for name in Sft.__dataclass_fields__ if not hasattr(given, name)}
    assert not fields
    assert replace(Sft("a", "b"), k=3).k == 3


def test_the_guides_commands_are_ones_that_exist():
    text = (ROOT / "finetune" / "README.md").read_text()
    commands = re.findall(r"^    (python -m finetune (?:.*\\\n)*.*)", text, re.MULTILINE)
    assert sum(" sft " in command for command in commands) >= 2
    for command in commands:
        _parser().parse_args(shlex.split(command.replace("\\\n", " "), comments=True)[3:])


# --- the official form ---


PROMPT = [1, 300, 17, 4000]


@pytest.fixture(scope="module")
def official(tmp_path_factory, tokenizer):
    """A folder of the form of AntMan/vicuna-v1.3-7b-space: Llama, [M] = 32002 in the vocabulary, no space.json."""
    folder = tmp_path_factory.mktemp("official")
    config = transformers.LlamaConfig(
        vocab_size=32003,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
        hidden = lm.model(torch.tensor([PROMPT])).last_hidden_state[0, -1]
        lm.lm_head.weight[32002] = hidden  # left alone, it would write [M] here
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_official_form_loads_is_lossless_and_never_writes_its_mask(official):
    model = space_core.load(official, dtype="float64", mask_token_id=32002, k=5)
    assert (model.k, model.mask_token_id, model.masks.method) == (5, 32002, "paper")
    model.eos_ids = frozenset()
    lm = AutoModelForCausalLM.from_pretrained(official, dtype=torch.float64, attn_implementation="sdpa")
    assert oracle(lm, PROMPT, 1) == [32002]
    ids = list(PROMPT)
    with torch.inference_mode():
        for _ in range(24):
            ids.append(int(lm(torch.tensor([ids])).logits[0, -1, :32002].argmax()))
    for plan in ("grid", "auto"):
        steps = list(space_core.space(model, PROMPT, Settings(k=5, max_new_tokens=24, plan=plan)))
        assert output(steps) == ids[4:]
        assert all(32002 not in step.drafts for step in steps)
    assert output(space_core.vanilla(model, PROMPT, Settings(max_new_tokens=24))) == ids[4:]
    sampled = Settings(k=5, max_new_tokens=24, temperature=1.0)
    for decode in (space_core.vanilla, space_core.space):
        assert 32002 not in output(decode(model, PROMPT, sampled))


def test_the_official_form_on_the_command_line(official, tmp_path, capsys):
    from space_core.__main__ import main as generate

    prompt = tmp_path / "prompt.txt"
    prompt.write_text("what is 1 plus 2?")
    texts = []
    for method in ("vanilla", "space"):
        command = [
            "generate",
            "--prompt-file",
            str(prompt),
            "--model",
            str(official),
            "--mask-token-id",
            "32002",
        ]
        assert (
            generate([*command, "--method", method, "--dtype", "float64", "--max-new-tokens", "12", "--json"])
            == 0
        )
        data = json.loads(capsys.readouterr().out)
        assert 32002 not in data["output_ids"]
        texts.append(data["output_ids"])
    assert texts[0] == texts[1]
    assert generate([*command[:-1], "32003"]) == 2
    assert "mask token id" in capsys.readouterr().err
