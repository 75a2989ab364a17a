"""`model.generate(…, custom_generate=space_core.generate)` writes what `model.generate` writes."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import re
import threading
import time
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import ARCHITECTURES, FEW, VOCABULARY, some, tiny_lm, trained_like_masks
from transformers import (
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    SynthIDTextWatermarkingConfig,
    TextIteratorStreamer,
    WatermarkingConfig,
)
from transformers.generation import BaseStreamer

import space_core
from space_core import generation
from space_core.bundled import default_checkpoint
from space_core.checks import chi_square
from space_core.checks import quantile as limit
from space_core.cost import Costs
from space_core.decoders import _Run
from space_core.errors import CheckpointError, SettingError, UnsupportedModelError
from space_core.model import SpaceModel

ONE = torch.tensor([[3, 1, 4, 1, 5]])
SEVERAL = {
    "input_ids": torch.tensor([[0, 0, 3, 1, 4], [9, 2, 6, 5, 3], [0, 0, 0, 0, 1]]),
    "attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]]),
}
PRICES = Costs({6: 1.3, 81: 7.0}, {1: 1.0, 9: 1.2})


def wrapped(architecture="Llama", **options):
    lm = tiny_lm(architecture, **options)
    lm.generation_config.pad_token_id = 0
    model = SpaceModel(lm, None, trained_like_masks(lm), eos_ids=())
    model.costs = {True: PRICES, False: PRICES} | {(g, n): PRICES for g in (True, False) for n in range(2, 9)}
    return model


@pytest.fixture(scope="module")
def model():
    return wrapped()


@pytest.fixture
def good_drafts(monkeypatch, model):
    """Drafts that are nearly always what plain decoding writes: several are accepted in a call.

    Returns a function that decodes by both ways and gives their outputs; keyword arguments go to both.
    """
    truth: dict[tuple[int, ...], list[int]] = {}
    accepted: list[int] = []
    dice = torch.Generator().manual_seed(0)
    fetch = _Run.fetch

    def inject(run, verdict, guessed):
        n, own, guesses = fetch(run, verdict, guessed)
        accepted.append(n)
        start = run.length + n + 1 - len(run.prompt_ids)
        text = truth[tuple(run.prompt_ids)]
        right = [text[start + i] if start + i < len(text) else 0 for i in range(len(guesses))]
        hits = (torch.rand(len(right), generator=dice) < 0.9).tolist()
        ids = tuple(t if hit else (t + 1) % VOCABULARY for t, hit in zip(right, hits, strict=True))
        if not ids:
            return n, own, guesses
        return n, own, replace(guesses, ids=ids, tokens=torch.tensor(ids))

    def both(inputs, plan="grid", **options):
        inputs = {"input_ids": inputs} if isinstance(inputs, torch.Tensor) else inputs
        plain = model.lm.generate(**inputs, **copied(options))
        ids = getattr(plain, "sequences", plain)
        real = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
        width = inputs["input_ids"].shape[1]
        truth.clear()
        for row, prompt, mask in zip(ids, inputs["input_ids"], real, strict=True):
            truth[tuple(prompt[mask == 1].tolist())] = row[width:].tolist()
        accepted.clear()
        with monkeypatch.context() as patch:
            patch.setattr(_Run, "fetch", inject)
            ours = model.lm.generate(
                **inputs, **copied(options), custom_generate=space_core.generate, space=model, plan=plan
            )
        return plain, ours, accepted

    return both


def copied(options):
    """Processors and criteria of one run are not those of the next: some of ours count."""
    return {
        name: value() if callable(value) and name != "prefix_allowed_tokens_fn" else value
        for name, value in options.items()
    }


@pytest.mark.parametrize("architecture", some(ARCHITECTURES, FEW))
def test_greedy_output_is_generates(architecture):
    model = wrapped(architecture)
    ends = [model.lm.generate(ONE, max_new_tokens=9)[0, -1].item(), 7, 11]
    for inputs in ({"input_ids": ONE}, SEVERAL):
        for options in ({}, {"eos_token_id": ends}):
            plain = model.lm.generate(**inputs, **options, max_new_tokens=24)
            for plan in ("grid", "auto"):
                ours = model.lm.generate(
                    **inputs, **options, max_new_tokens=24,
                    custom_generate=space_core.generate, space=model, plan=plan, k=3,
                )  # fmt: skip
                assert torch.equal(plain, ours) and ours.dtype == plain.dtype


class Tilt(LogitsProcessor):
    """A user's own: the sum of the prefix says which tokens are pushed, so a wrong prefix shows at once."""

    def __call__(self, input_ids, scores):
        push = (input_ids.sum(-1, keepdim=True) * 7 + torch.arange(scores.shape[1])) % 5 == 0
        scores[push] += 4.0  # in place, as users do
        return scores


class EndsAt(StoppingCriteria):
    """A user's own: stops behind a token divisible by a number, but not before so many tokens."""

    def __init__(self, number, least=9):
        self.number, self.least, self.asked = number, least, []

    def __call__(self, input_ids, scores, **kwargs):
        self.asked.append(input_ids.shape[1])
        return (input_ids[:, -1] % self.number == 0) & (input_ids.shape[1] >= self.least)


def few(batch, ids):
    return [(int(ids.sum()) * 3 + i * i + batch) % VOCABULARY for i in range(20)]


PROCESSED = {
    "repetition_penalty": {"repetition_penalty": 1.8},
    "no_repeat_ngram": {"no_repeat_ngram_size": 2},
    "min_new_tokens": {"min_new_tokens": 14, "eos_token_id": list(range(0, 64, 3))},
    "min_length": {"min_length": 16, "eos_token_id": list(range(0, 64, 3))},
    "bad_words": {"bad_words_ids": [[i] for i in range(0, 40, 2)] + [[41, 43], [1, 3, 5]]},
    "sequence_bias": {"sequence_bias": [[[7], 6.0], [[7, 9], 9.0], [[9, 7, 1], -9.0]]},
    "forced_eos": {"forced_eos_token_id": 5, "eos_token_id": 5},
    "suppress": {"suppress_tokens": list(range(0, 60, 2)), "begin_suppress_tokens": list(range(1, 60, 4))},
    "decay": {"exponential_decay_length_penalty": (4, 1.5), "eos_token_id": 5},
    "encoder": {"encoder_repetition_penalty": 20.0, "encoder_no_repeat_ngram_size": 2},
    "allowed": {"prefix_allowed_tokens_fn": few},
    "watermark": {"watermarking_config": WatermarkingConfig(bias=6.0)},
    "own": {"logits_processor": lambda: LogitsProcessorList([Tilt()])},
    "all at once": {
        "logits_processor": lambda: LogitsProcessorList([Tilt()]),
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 3,
        "min_new_tokens": 9,
        "eos_token_id": list(range(0, 64, 5)),
        "renormalize_logits": True,
    },
}


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("name", PROCESSED)
def test_each_judged_row_is_processed_with_its_own_prefix(model, good_drafts, name, several):
    untouched = model.lm.generate(**(SEVERAL if several else {"input_ids": ONE}), max_new_tokens=20)
    plain, ours, accepted = good_drafts(SEVERAL if several else ONE, max_new_tokens=20, **PROCESSED[name])
    assert torch.equal(plain, ours)
    assert not torch.equal(plain, untouched), "the option did nothing: this proves nothing"
    assert max(accepted) >= 3


def test_a_processor_with_the_wrong_prefix_would_be_seen(model, good_drafts, monkeypatch):
    """The control: every row gets the text's prefix, as one processor call for all rows would."""
    scores = generation._Guided.scores

    def careless(run, logits, drafts):
        return torch.cat([scores(run, row[None], ()) for row in logits])

    monkeypatch.setattr(generation._Guided, "scores", careless)
    plain, ours, _ = good_drafts(ONE, max_new_tokens=20, **PROCESSED["own"])
    assert not torch.equal(plain, ours)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("number", [2, 3, 5, 7])
def test_the_output_ends_where_a_stopping_criterion_says_so(good_drafts, number, several):
    made = []

    def criteria():
        made.append(EndsAt(number, 12))
        return StoppingCriteriaList([made[-1]])

    plain, ours, accepted = good_drafts(
        SEVERAL if several else ONE, max_new_tokens=24, stopping_criteria=criteria, eos_token_id=62
    )
    assert torch.equal(plain, ours) and max(accepted) >= 2
    if not several:
        assert made[0].asked == made[1].asked  # behind every token, and no further


def test_eos_ids_inside_an_accepted_run(model, good_drafts):
    text = model.lm.generate(ONE, max_new_tokens=20)[0, 5:].tolist()
    for place in range(12):
        plain, ours, _ = good_drafts(ONE, max_new_tokens=20, eos_token_id=[text[place], 62])
        assert torch.equal(plain, ours)
        assert ours.shape[1] == 5 + text.index(text[place]) + 1
    rows = model.lm.generate(**SEVERAL, max_new_tokens=20)[:, 5:].tolist()
    lengths = set()
    for place in range(14):
        ends = [row[place] for row in rows]
        plain, ours, _ = good_drafts(SEVERAL, max_new_tokens=20, eos_token_id=ends, pad_token_id=13)
        assert torch.equal(plain, ours)
        lengths.add(ours.shape[1])
    assert len(lengths) > 3 and (ours == 13).any()


@pytest.mark.parametrize("options", [{"max_new_tokens": 1}, {"max_new_tokens": 7}, {"max_length": 12}, {}])
def test_lengths(good_drafts, options):
    for inputs in (ONE, SEVERAL):
        plain, ours, _ = good_drafts(inputs, **options)
        assert torch.equal(plain, ours)


def test_max_time_stops(model):
    class Slow(LogitsProcessor):
        def __call__(self, input_ids, scores):
            time.sleep(0.02)
            return scores

    ours = model.lm.generate(
        ONE, max_new_tokens=100, max_time=0.1, logits_processor=LogitsProcessorList([Slow()]),
        custom_generate=space_core.generate, space=model, plan="grid",
    )  # fmt: skip
    assert 1 <= ours.shape[1] - 5 < 30


def test_scores_and_logits_are_those_of_plain_decoding(model, good_drafts):
    options = {"output_scores": True, "output_logits": True, "return_dict_in_generate": True}
    plain, ours, accepted = good_drafts(ONE, max_new_tokens=20, repetition_penalty=1.4, **options)
    assert torch.equal(plain.sequences, ours.sequences) and max(accepted) >= 3
    for name in ("scores", "logits"):
        left, right = getattr(plain, name), getattr(ours, name)
        assert len(left) == len(right) == 20
        for a, b in zip(left, right, strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, rtol=0, atol=1e-5)
    assert not torch.equal(ours.scores[0], ours.logits[0])
    bare = model.lm.generate(
        ONE, max_new_tokens=3, return_dict_in_generate=True, custom_generate=space_core.generate, space=model
    )
    assert bare.scores is None and bare.logits is None and bare.sequences.shape == (1, 8)


def test_a_stopping_criterion_may_look_at_the_scores(good_drafts):
    class Sure(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return (scores[-1].softmax(-1).amax(-1) < 0.35) & (len(scores) > 3)

    plain, ours, _ = good_drafts(
        ONE, max_new_tokens=20, stopping_criteria=lambda: StoppingCriteriaList([Sure()]),
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    assert torch.equal(plain.sequences, ours.sequences) and 9 <= ours.sequences.shape[1] < 25


# Sampling


SAMPLED = {"do_sample": True, "temperature": 0.8, "top_k": 4, "repetition_penalty": 1.5, "max_new_tokens": 3}


def small_model():
    lm = tiny_lm("Llama", torch.float32, seed=3)
    with torch.no_grad():
        lm.lm_head.weight.data = lm.lm_head.weight.data.clone() * 0.3
    lm.generation_config.pad_token_id = 0
    model = SpaceModel(lm, None, trained_like_masks(lm), eos_ids=())
    model.costs = {False: Costs({4: 1.3, 9: 2.2}, {1: 1.0})}
    return model


def law_of(model, prompt):
    """The chance of every continuation by three tokens, worked out by other code than ours."""

    def step(text):
        with torch.inference_mode():
            logits = model.lm(torch.tensor([text])).logits[0, -1].double()
        logits = logits.clone()
        seen = sorted(set(text))
        logits[seen] = torch.where(logits[seen] < 0, logits[seen] * 1.5, logits[seen] / 1.5)
        top = (logits / 0.8).topk(4)
        return dict(zip(top.indices.tolist(), top.values.softmax(-1).tolist(), strict=True))

    due = {(): 1.0}
    for _ in range(3):
        due = {(*a, b): p * q for a, p in due.items() for b, q in step([*prompt, *a]).items()}
    return due


def sampled_against_law(model, rounds, copies, **options):
    """(chi-square, its limit) of what `generate` draws with SPACE, so many copies of a prompt at once."""
    prompt = [3, 1, 4]
    due = law_of(model, prompt)
    counts = dict.fromkeys(due, 0)
    torch.manual_seed(0)
    for _ in range(rounds):
        drawn = model.lm.generate(
            torch.tensor([prompt]), num_return_sequences=copies, **SAMPLED,
            custom_generate=space_core.generate, space=model, k=2, **options,
        )  # fmt: skip
        for row in drawn[:, 3:].tolist():
            counts[tuple(row)] += 1
    seen = torch.tensor([float(counts[key]) for key in due])
    value, freedom = chi_square(seen, rounds * copies * torch.tensor(list(due.values())))
    return value, limit(freedom)


@pytest.mark.more
@pytest.mark.parametrize("plan", ["grid", "auto"])
@pytest.mark.parametrize("verification", ["block", "token"])
def test_sampled_tokens_of_one_prompt_follow_the_processed_law(plan, verification):
    value, most = sampled_against_law(small_model(), 700, 1, plan=plan, verification=verification)
    assert value <= most


@pytest.mark.parametrize("verification", some(["block", "token"], ["token"]))
def test_sampled_tokens_of_a_batch_follow_the_processed_law(verification):
    value, most = sampled_against_law(small_model(), 4, 300, plan="grid", verification=verification)
    assert value <= most


def test_a_sampler_with_the_wrong_prefix_is_caught(monkeypatch):
    scores = generation._Guided.scores

    def careless(run, logits, drafts):
        return torch.cat([scores(run, row[None], ()) for row in logits])

    monkeypatch.setattr(generation._Guided, "scores", careless)
    with pytest.raises((KeyError, AssertionError)):  # a token that the law does not have, or too often
        value, most = sampled_against_law(small_model(), 4, 300, plan="grid")
        assert value <= most


def test_the_batchs_sampler_is_caught_when_it_is_biased(monkeypatch):
    monkeypatch.setattr("space_core.verify.residual", lambda p, q: p)
    value, most = sampled_against_law(small_model(), 5, 300, plan="grid", verification="token")
    assert value > most


def test_seeds_and_generators(model):
    def drawn(seed=None, generator=None, inputs=ONE, **options):
        if seed is not None:
            torch.manual_seed(seed)
        return model.lm.generate(
            inputs, do_sample=True, max_new_tokens=12, plan="grid", generator=generator,
            custom_generate=space_core.generate, space=model, **options,
        )  # fmt: skip

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))
    first = drawn(1)
    assert not torch.equal(first, drawn())  # the stream goes on
    torch.manual_seed(9)
    before = torch.get_rng_state()
    own = drawn(generator=torch.Generator().manual_seed(5))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(own, drawn(generator=torch.Generator().manual_seed(5)))
    pair = drawn(1, num_return_sequences=2)
    assert not torch.equal(pair[0], pair[1])


# Streaming


class Heard(BaseStreamer):
    def __init__(self):
        self.values, self.ended = [], 0

    def put(self, value):
        self.values.append(value.tolist())

    def end(self):
        self.ended += 1


def test_a_streamer_hears_what_it_hears_from_plain_decoding(model):
    plain, ours = Heard(), Heard()
    model.lm.generate(ONE, max_new_tokens=12, streamer=plain)
    model.lm.generate(
        ONE, max_new_tokens=12, custom_generate=space_core.generate, space=model, stream_to=ours
    )
    assert ours.values == plain.values and ours.ended == plain.ended == 1 and len(ours.values) == 13


def test_text_comes_while_it_is_written():
    lm = space_core.load(default_checkpoint())
    ids = torch.tensor([lm.encode("def fib(n):\n")])
    streamer = TextIteratorStreamer(lm.tokenizer, skip_prompt=True, timeout=60)
    found = []
    thread = threading.Thread(
        target=lambda: found.append(
            lm.lm.generate(
                ids, max_new_tokens=24, custom_generate=space_core.generate, space=lm, stream_to=streamer
            )
        )
    )
    thread.start()
    text = "".join(streamer)
    thread.join(60)
    assert text == lm.tokenizer.decode(found[0][0, ids.shape[1] :]) and text


# The model and its masks


def test_a_bare_model_is_tried_out_once_and_let_go(monkeypatch):
    lm, probes = tiny_lm("Llama"), []
    probe = generation.probe
    monkeypatch.setattr(generation, "probe", lambda model: probes.append(1) or probe(model))
    for _ in range(3):
        lm.generate(ONE, max_new_tokens=4, custom_generate=space_core.generate, plan="grid")
    assert len(probes) == 1
    assert generation.wrap(lm) is generation.wrap(lm)
    for twin in (copy.deepcopy(lm), pickle.loads(pickle.dumps(lm))):
        assert generation.wrap(twin).lm is twin
    shallow = copy.copy(lm)
    assert generation.wrap(shallow).lm is shallow
    before = len(probes)
    lm.float()
    lm.generate(ONE, max_new_tokens=4, custom_generate=space_core.generate, plan="grid")
    assert len(probes) == before + 1  # other weights, other masks
    watch = weakref.ref(lm)
    del lm, shallow, twin
    gc.collect()
    assert watch() is None


def test_what_is_wrapped_is_the_model_as_it_is(model):
    keys = set(model.lm.state_dict())
    lm = tiny_lm("Llama")
    lm.generate(ONE, max_new_tokens=4, custom_generate=space_core.generate, plan="grid")
    assert set(lm.state_dict()) == keys and all(type(m).forward is not None for m in lm.modules())
    lm.train()
    with pytest.raises(SettingError, match="eval"):
        lm.generate(ONE, max_new_tokens=4, custom_generate=space_core.generate)
    with pytest.raises(SettingError, match="another model"):
        tiny_lm("Llama").generate(ONE, custom_generate=space_core.generate, space=model)
    with pytest.raises(SettingError, match="custom_generate"):
        space_core.generate(lm, ONE)


def test_a_model_that_cannot_run_space_is_refused():
    from transformers import BertConfig, BertLMHeadModel

    config = BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        is_decoder=False,
    )  # fmt: skip
    lm = BertLMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.ndim == 2:
                parameter.mul_(12)
    with pytest.raises(UnsupportedModelError):
        lm.generate(ONE, max_new_tokens=4, custom_generate=space_core.generate)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A checkpoint with masks of its own, and transformers' cache of other people's code out of the way."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    lm = tiny_lm("Llama", torch.float32)
    lm.generation_config.pad_token_id = 0
    space_core.save(tmp_path / "owner-model", SpaceModel(lm, None, trained_like_masks(lm), eos_ids=()))
    return tmp_path / "owner-model"


def opened(folder, **options):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, **options).eval()


def test_masks_are_those_of_the_models_own_folder_or_of_another(folder, tmp_path):
    lm = opened(folder)
    assert generation.wrap(lm).masks.method == "gated"
    other = tmp_path / "other"
    masks = replace(trained_like_masks(lm, k=3, seed=8), k=3)
    space_core.save(other, SpaceModel(lm, None, masks, eos_ids=()), base_id="someone/base")
    plain = lm.generate(ONE, max_new_tokens=20)
    ours = lm.generate(
        ONE, max_new_tokens=20, custom_generate=space_core.generate, space=str(other), plan="grid"
    )
    assert torch.equal(plain, ours) and generation.wrap(lm, other).k == 3
    (other / "space" / "masks.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="SHA-256"):
        generation.wrap(tiny_lm("Llama"), other)
    bare = tmp_path / "bare"
    lm.save_pretrained(bare)
    with pytest.raises(CheckpointError, match=r"no space\.json"):
        generation.wrap(lm, bare)
    assert generation.wrap(opened(bare)).masks.method == "untrained"


def test_attaching_reads_only_spaces_own_files(folder):
    """The base's weights are open already, maybe tens of gigabytes: nobody hashes them again."""
    lm = opened(folder)
    for shard in folder.glob("*.safetensors"):
        shard.write_bytes(b"gone")
    assert generation.wrap(lm).masks.method == "gated"
    with pytest.raises(CheckpointError):
        space_core.load(folder)


def test_a_published_folder_decodes_with_space(folder, monkeypatch):
    assert {p.name for p in (folder / "custom_generate").iterdir()} == {"generate.py", "requirements.txt"}
    lm = opened(folder)
    plain = lm.generate(ONE, max_new_tokens=20)
    seen = []
    decode = generation._decode
    monkeypatch.setattr(generation, "_decode", lambda *args: seen.append(args[0][0]) or decode(*args))
    ours = lm.generate(ONE, max_new_tokens=20, custom_generate=str(folder), trust_remote_code=True)
    assert torch.equal(plain, ours) and seen[0].model.masks.method == "gated"
    several = lm.generate(
        **SEVERAL, max_new_tokens=9, custom_generate=str(folder), trust_remote_code=True, revision="main", k=2
    )
    assert torch.equal(several, lm.generate(**SEVERAL, max_new_tokens=9)) and seen[1].settings.k == 2
    heard, known = Heard(), Heard()
    lm.generate(ONE, max_new_tokens=5, streamer=known)
    lm.generate(ONE, max_new_tokens=5, custom_generate=str(folder), trust_remote_code=True, streamer=heard)
    assert heard.values == known.values and heard.ended == 1
    with pytest.raises(SettingError, match="num_beams"):
        lm.generate(ONE, num_beams=2, custom_generate=str(folder), trust_remote_code=True)
    with pytest.raises(SettingError, match="assistant_model"):
        lm.generate(ONE, assistant_model=lm, custom_generate=str(folder), trust_remote_code=True)


def test_a_model_loaded_with_its_code_decodes_with_space_by_itself(folder, monkeypatch):
    plain = opened(folder).generate(ONE, max_new_tokens=20)
    lm = opened(folder, trust_remote_code=True)
    seen = []
    decode = generation._decode
    monkeypatch.setattr(generation, "_decode", lambda *args: seen.append(1) or decode(*args))
    assert torch.equal(lm.generate(ONE, max_new_tokens=20), plain) and seen == [1]
    assert torch.equal(lm.generate(input_ids=ONE, max_new_tokens=20), plain) and seen == [1, 1]
    ours = lm.generate(ONE, max_new_tokens=20, custom_generate=space_core.generate, k=2)
    assert torch.equal(ours, plain) and len(seen) == 3


def test_stop_strings_in_a_published_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    model = space_core.load(default_checkpoint())
    space_core.save(tmp_path / "mini", model)
    ids = torch.tensor([model.encode("def fib(n):\n")])
    text = model.lm.generate(ids, max_new_tokens=20)[0, ids.shape[1] :]
    word = model.tokenizer.decode(text[8:10])
    options = {"max_new_tokens": 40, "stop_strings": ["no such text", word], "tokenizer": model.tokenizer}
    plain = model.lm.generate(ids, **options)
    ours = model.lm.generate(ids, **options, custom_generate=str(tmp_path / "mini"), trust_remote_code=True)
    assert torch.equal(plain, ours) and ours.shape[1] < ids.shape[1] + 40


# The table of arguments


def given(model):
    """For each honoured argument, what is given to both ways of decoding; {} says what else it needs."""
    end = {"eos_token_id": list(range(0, 64, 3))}
    drawn = {"do_sample": True, "top_k": 1}
    return {
        "inputs": {"inputs": ONE},
        "input_ids": {"input_ids": ONE},
        "attention_mask": SEVERAL,
        "generation_config": {"generation_config": GenerationConfig(max_new_tokens=5, pad_token_id=0)},
        "logits_processor": {"logits_processor": LogitsProcessorList([Tilt()])},
        "stopping_criteria": {"stopping_criteria": StoppingCriteriaList([EndsAt(3)])},
        "prefix_allowed_tokens_fn": {"prefix_allowed_tokens_fn": few},
        "max_new_tokens": {"max_new_tokens": 7},
        "max_length": {"max_length": 11},
        "min_new_tokens": {"min_new_tokens": 9, **end},
        "min_length": {"min_length": 12, **end},
        "max_time": {"max_time": 600.0},
        "eos_token_id": end,
        "pad_token_id": {**SEVERAL, "pad_token_id": 13, **end},
        "bos_token_id": {"inputs": None, "bos_token_id": 9},
        "do_sample": drawn,
        "temperature": {"do_sample": True, "temperature": 0.001, "top_k": 0},
        "top_k": drawn,
        "top_p": {"do_sample": True, "top_p": 1e-9, "top_k": 0},
        "min_p": {"do_sample": True, "min_p": 1.0, "top_k": 0},
        "top_h": {"do_sample": True, "top_h": 1e-9, "top_k": 0},
        "typical_p": {**drawn, "typical_p": 0.5},
        "epsilon_cutoff": {"do_sample": True, "epsilon_cutoff": 0.999, "top_k": 0},
        "eta_cutoff": {**drawn, "eta_cutoff": 0.5},
        "num_return_sequences": {**drawn, "num_return_sequences": 3},
        "repetition_penalty": {"repetition_penalty": 1.8},
        "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
        "bad_words_ids": PROCESSED["bad_words"],
        "sequence_bias": PROCESSED["sequence_bias"],
        "suppress_tokens": {"suppress_tokens": list(range(0, 60, 2))},
        "begin_suppress_tokens": {"begin_suppress_tokens": list(range(0, 60, 2))},
        "forced_bos_token_id": {"inputs": torch.tensor([[3]]), "forced_bos_token_id": 5},
        "forced_eos_token_id": PROCESSED["forced_eos"],
        "exponential_decay_length_penalty": PROCESSED["decay"],
        "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.9},
        "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1},
        "renormalize_logits": {"renormalize_logits": True},
        "remove_invalid_values": {"remove_invalid_values": True},
        "watermarking_config": PROCESSED["watermark"],
        "return_dict_in_generate": {"return_dict_in_generate": True},
        "output_scores": {"return_dict_in_generate": True, "output_scores": True},
        "output_logits": {"return_dict_in_generate": True, "output_logits": True},
    }


def test_every_honoured_argument_does_what_it_does_in_plain_decoding(model):
    cases = given(model)
    assert cases.keys() == generation.HONOURED
    for name, options in cases.items():
        options = dict(options)
        if not options.keys() & {"inputs", "input_ids"}:
            options["inputs"] = ONE
        if name not in ("max_new_tokens", "max_length", "generation_config"):
            options["max_new_tokens"] = 16
        plain = model.lm.generate(**options)
        ours = model.lm.generate(**options, custom_generate=space_core.generate, space=model, plan="grid")
        assert type(plain).__name__ == type(ours).__name__, name
        left, right = getattr(plain, "sequences", plain), getattr(ours, "sequences", ours)
        assert torch.equal(left, right), name


def refusals(model):
    cache = DynamicCache()
    cache.update(torch.zeros(1, 2, 4, 8).double(), torch.zeros(1, 2, 4, 8).double(), 0)
    return {
        "num_beams": {"num_beams": 2},
        "num_beam_groups": {"num_beam_groups": 2},
        "diversity_penalty": {"diversity_penalty": 0.5},
        "constraints": {"constraints": []},
        "force_words_ids": {"force_words_ids": [[3]]},
        "penalty_alpha": {"penalty_alpha": 0.6, "top_k": 4},
        "dola_layers": {"dola_layers": "low"},
        "guidance_scale": {"guidance_scale": 1.5},
        "assistant_model": {"assistant_model": model.lm},
        "prompt_lookup_num_tokens": {"prompt_lookup_num_tokens": 3},
        "assistant_early_exit": {"assistant_early_exit": 1},
        "use_mtp": {"use_mtp": True},
        "is_assistant": {"is_assistant": True},
        "token_healing": {"token_healing": True},
        "stop_strings": {"stop_strings": ["x"]},
        "streamer": {"streamer": Heard()},
        "synced_gpus": {"synced_gpus": True},
        "output_attentions": {"output_attentions": True, "return_dict_in_generate": True},
        "output_hidden_states": {"output_hidden_states": True, "return_dict_in_generate": True},
        "use_cache": {"use_cache": False},
        "cache_implementation": {"cache_implementation": "offloaded"},
        "past_key_values": {"past_key_values": cache},
        "inputs_embeds": {"inputs": None, "inputs_embeds": torch.zeros(1, 3, 32).double()},
    }


# What transformers itself refuses for any callable, before it is called, in its own words.
BEFOREHAND = {
    "stop_strings": (ValueError, "tokenizer"),
    "token_healing": (ValueError, "tokenizer"),
}


def test_every_refused_argument_is_refused_by_its_name(model):
    cases = refusals(model)
    assert cases.keys() == generation.REFUSED.keys()
    for name, options in cases.items():
        kind, words = BEFOREHAND.get(name, (SettingError, re.escape(name)))
        with pytest.raises(kind, match=words) as caught:
            model.lm.generate(
                **{"inputs": ONE, "max_new_tokens": 4, **options},
                custom_generate=space_core.generate,
                space=model,
            )
        if kind is SettingError:
            assert caught.value.field == name


def test_other_requests_that_are_refused(model):
    for field, options in {
        "logits_processor": {
            "watermarking_config": SynthIDTextWatermarkingConfig(ngram_len=5, keys=[1, 2, 3, 4])
        },
        "position_ids": {"position_ids": torch.arange(1, 6)[None]},
        "attention_mask": {"attention_mask": torch.tensor([[1, 1, 1, 0, 0]])},
        "output_scores": {**SEVERAL, "output_scores": True, "return_dict_in_generate": True},
        "output_logits": {**SEVERAL, "output_logits": True, "return_dict_in_generate": True},
        "stream_to": {**SEVERAL, "stream_to": Heard()},
        "token_type_ids": {"token_type_ids": torch.zeros_like(ONE)},
        "k": {"k": 0},
        "plan": {"plan": "best"},
    }.items():
        options = options if "input_ids" in options else {"inputs": ONE, **options}
        lm = model.lm
        if field == "token_type_ids":
            lm = wrapped("GPT2").lm
        with pytest.raises(SettingError) as caught:
            lm.generate(
                **options, max_new_tokens=4, custom_generate=space_core.generate,
                **({"space": model} if lm is model.lm else {}),
            )  # fmt: skip
        assert caught.value.field == field


def test_sequences_of_different_lengths_need_a_pad_id():
    model = wrapped()
    model.lm.generation_config.pad_token_id = None
    with pytest.raises(SettingError, match="pad_token_id"):
        model.lm.generate(
            **SEVERAL, max_new_tokens=20, stopping_criteria=StoppingCriteriaList([EndsAt(3)]),
            custom_generate=space_core.generate, space=model,
        )  # fmt: skip


def test_the_contexts_end_is_told(model):
    room = model.context - 5
    with pytest.warns(UserWarning, match="context"):
        ours = model.lm.generate(
            ONE, max_new_tokens=room + 9, custom_generate=space_core.generate, space=model, plan="grid"
        )
    assert ours.shape[1] == model.context


def test_every_argument_of_generate_is_in_one_table():
    tables = [generation.HONOURED, generation.WITHOUT_EFFECT, set(generation.REFUSED)]
    assert not (tables[0] & tables[1] or tables[0] & tables[2] or tables[1] & tables[2])
    known = set().union(*tables)
    config = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    arguments = set(inspect.signature(GenerationMixin.generate).parameters) - {
        "self",
        "kwargs",
        "custom_generate",
    }
    assert config | arguments <= known, sorted((config | arguments) - known)


def test_the_readme_tells_what_the_code_does():
    """The table of arguments lists exactly what the code honours, ignores and refuses."""
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (honoured|no effect|refused) \| (.*) \|$", readme, re.MULTILINE))
    found = {kind: set(re.findall(r"`(\w+)`", cells)) for kind, cells in rows.items()}
    assert found == {
        "honoured": set(generation.HONOURED),
        "no effect": set(generation.WITHOUT_EFFECT),
        "refused": set(generation.REFUSED),
    }


def test_the_readmes_quick_start_runs(monkeypatch):
    monkeypatch.chdir(Path(__file__).parent.parent)
    readme = Path("README.md").read_text(encoding="utf-8")
    section = readme.partition("## From transformers' own `generate`")[2].partition("\n## ")[0]
    code = re.search(r"^    from transformers import .*?(?=\n\n\S)", section, re.MULTILINE | re.DOTALL)
    assert code is not None
    lines = [line[4:] for line in code.group(0).splitlines()]
    scope: dict[str, object] = {}
    exec("\n".join(lines), scope)
    assert torch.equal(scope["output"], scope["plain"])


def test_the_bundled_checkpoint_has_the_present_files():
    """They are what `save` writes: whoever changes them writes them anew (`write_custom_generate`)."""
    ours = Path(generation.__file__).parent / "custom_generate"
    kept = default_checkpoint() / "custom_generate"
    for name in ("generate.py", "requirements.txt"):
        assert (kept / name).read_bytes() == (ours / name).read_bytes()
