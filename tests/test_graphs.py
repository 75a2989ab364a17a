"""Recorded calls: padded, in fixed storage, replayed; the text is that of plain calls.

There is no GPU here. Most tests run the recorded calls' code with the function itself in the recording's
place; those that use `tape` record the tensor operations and replay these, and nothing else, as CUDA does:
what Python computed while recording is baked in, and a look at a tensor's value is an error.
"""

from __future__ import annotations

import gc
import logging
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_checkpoint import gated_model
from test_sampler import told_model
from test_trust import run, sound, tiny_subject
from tiny import ARCHITECTURES, FEW, VOCABULARY, output, some, tiny_lm, trained_like_masks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import space_core
from space_core import Settings, checks, graphs
from space_core.adapter import GatedAdapter
from space_core.cache import BlockCache, FixedCache
from space_core.cost import Costs
from space_core.graphs import Graphs, obstacle, wanted
from space_core.layout import Layout
from space_core.memory import Memory
from space_core.model import Masks, SpaceModel
from space_core.settings import Plan, Verification

RECORDABLE = some([name for name in ARCHITECTURES if name != "Mistral"], FEW)
"""Mistral's windows slide."""
COSTS = Costs({6: 1.3, 81: 7.0}, {1: 1.0})
DECODERS = {"vanilla": space_core.vanilla, "space": space_core.space}


def ready(model: SpaceModel) -> SpaceModel:
    model.costs = {True: COSTS, False: COSTS}
    model.graphs = Graphs()
    return model


def tiny_model(architecture="Llama", masks: Masks | None = None) -> SpaceModel:
    lm = tiny_lm(architecture)
    return ready(SpaceModel(lm, None, masks or trained_like_masks(lm), eos_ids=()))


def plainly(model, decode, *arguments) -> list[int]:
    """A text by the same decoder, each call launched anew."""
    kept, model.graphs = model.graphs, None
    try:
        return output(decode(model, *arguments))
    finally:
        model.graphs = kept


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def generated(lm, prompt: list[int], count: int) -> list[int]:
    text = torch.tensor([prompt])
    return lm.generate(text, max_new_tokens=count, do_sample=False)[0, len(prompt) :].tolist()


def shapes(model) -> list[tuple[int, int, int]]:
    """What was recorded and is kept: slots, real rows, mask rows."""
    return [(store.cache.size, *rows) for store in model.graphs._stores for rows in store.calls]


@pytest.fixture
def calls(monkeypatch):
    """Layouts of the calls that did not take the plain path."""
    made, plain = [], Graphs._run

    def watched(self, model, layout, *rest):
        rows = plain(self, model, layout, *rest)
        made.append(layout)
        return rows

    monkeypatch.setattr(Graphs, "_run", watched)
    return made


# --- the text ---


@pytest.mark.parametrize("architecture", RECORDABLE)
def test_greedy_text_is_that_of_generate(architecture, calls):
    model = tiny_model(architecture)
    for length in (1, 5, 12):
        prompt = prompt_of(length)
        expected = generated(model.lm, prompt, 24)
        assert output(space_core.vanilla(model, prompt, Settings(max_new_tokens=24))) == expected
        for k in (1, 3, 5, 8):
            for plan in Plan:
                settings = Settings(k=k, max_new_tokens=24, plan=plan)
                before = len(calls)
                steps = list(space_core.space(model, prompt, settings))
                assert output(steps) == expected
                # All but the call that reads the prompt, which may go on behind its last token.
                assert len(calls) - before >= len(steps) - 1
    assert model.graphs.refused is None
    assert any(graphs.padded(layout) != (layout.n_real, layout.n_masks) for layout in calls)


@pytest.mark.more
@pytest.mark.parametrize("plan", Plan)
@pytest.mark.parametrize("verification", Verification)
def test_sampled_text_is_that_of_plain_calls(plan, verification, calls):
    model = tiny_model()
    for seed in range(6):
        settings = Settings(
            k=4,
            max_new_tokens=30,
            plan=plan,
            verification=verification,
            temperature=0.9,
            top_p=0.95,
            seed=seed,
        )
        for decode in DECODERS.values():
            expected = plainly(model, decode, prompt_of(4), settings)
            assert output(decode(model, prompt_of(4), settings)) == expected
    assert calls and model.graphs.refused is None


@pytest.mark.more
@pytest.mark.parametrize("architecture", ["Llama", "GPT2"])
def test_a_cache_outgrows_its_storage(architecture, monkeypatch, calls):
    """Also one that stands at a border when the call comes: the storage holds the padding too."""
    monkeypatch.setattr(graphs, "LEAST_SLOTS", 16)
    for length in range(3, 12):
        model, prompt = tiny_model(architecture), prompt_of(length)
        expected = generated(model.lm, prompt, 60)
        for decode in DECODERS.values():
            settings = Settings(k=3, max_new_tokens=60, plan="grid")
            assert output(decode(model, prompt, settings)) == expected
        assert {16, 32, 64, 128} <= {store.cache.size for store in model.graphs._stores}
        assert model.graphs.refused is None


def test_the_last_tokens_of_the_context():
    for context in range(20, 28):
        model, prompt = tiny_model("GPT2"), prompt_of(6)
        model.context = context
        for plan in Plan:
            steps = list(space_core.space(model, prompt, Settings(k=3, max_new_tokens=99, plan=plan)))
            assert output(steps) == generated(model.lm, prompt, context - 6) and steps[-1].stop == "context"
        assert model.graphs.refused is None


@pytest.mark.parametrize("lane", DECODERS)
def test_a_conversation_goes_on_in_its_storage(lane, calls):
    """Three talks on two storages, turn by turn: each moves the one that waits longest out."""
    model, decode, settings = tiny_model(), DECODERS[lane], Settings(k=3, max_new_tokens=12)
    talks = [(Memory(model), prompt_of(5 + i, seed=i)) for i in range(3)]
    for turn in range(3):
        for number, (memory, text) in enumerate(talks):
            expected = plainly(model, decode, text, settings)
            assert output(decode(model, text, settings, memory)) == expected
            assert bool(memory.kept) == bool(turn)
            text += [*expected, *prompt_of(2 + number, seed=turn)]
    assert len(calls) > 40 and len(model.graphs._stores) == graphs.LANES


def test_lanes_take_turns_each_in_its_own_storage(calls):
    """Two of a race, and a third text: with as many storages as lanes they do not move."""
    model, settings = tiny_model(), Settings(k=3, max_new_tokens=30, plan="grid")
    prompts = [prompt_of(5, seed=i) for i in range(3)]
    expected = [plainly(model, space_core.space, prompt, settings) for prompt in prompts]
    for lanes in (2, 3):
        running = [space_core.space(model, prompt, settings) for prompt in prompts[:lanes]]
        texts = [[] for _ in running]
        for _ in range(settings.max_new_tokens):
            for text, steps in zip(texts, running, strict=True):
                step = next(steps, None)
                text += step.emitted if step else ()
        assert texts == expected[:lanes]
        assert len(model.graphs._stores) == 2
    assert model.graphs.refused is None


def test_a_sampler_head_reads_the_masks_of_a_recorded_call(calls):
    model = ready(told_model())
    for settings in (
        *(Settings(k=k, max_new_tokens=24, plan=plan) for k in (2, 5) for plan in Plan),
        *(Settings(k=3, max_new_tokens=24, temperature=1.0, seed=seed, plan="grid") for seed in range(3)),
    ):
        plain = model.graphs
        model.graphs = None
        expected = [(step.emitted, step.drafts) for step in space_core.space(model, prompt_of(4), settings)]
        model.graphs = plain
        found = [(step.emitted, step.drafts) for step in space_core.space(model, prompt_of(4), settings)]
        assert found == expected
    assert calls and model.graphs.refused is None


def test_a_model_that_changes_its_logits_behind_its_head(calls):
    from transformers import AutoModelForCausalLM, CohereConfig

    config = CohereConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, logit_scale=0.3, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(config, dtype=torch.float64, attn_implementation="sdpa").eval()
    model = ready(SpaceModel(lm, None, trained_like_masks(lm), eos_ids=()))
    assert not model.has_plain_head
    prompt = prompt_of(4)
    for plan in Plan:
        text = output(space_core.space(model, prompt, Settings(k=3, max_new_tokens=20, plan=plan)))
        assert text == generated(lm, prompt, 20)
    assert calls and model.graphs.refused is None


def test_the_paper_s_mask_token_is_fed_and_never_written(calls):
    lm = tiny_lm()
    model = tiny_model(masks=Masks(3, "paper", token_id=int(generated(lm, prompt_of(4), 1)[0])))
    for plan in Plan:
        settings = Settings(k=3, max_new_tokens=20, plan=plan)
        text = output(space_core.space(model, prompt_of(4), settings))
        assert text == plainly(model, space_core.space, prompt_of(4), settings)
        assert model.mask_token_id not in text
    assert calls


# --- rows and slots ---


@pytest.mark.parametrize("architecture", ["Llama", "GPT2", "OPT"])
def test_every_row_is_that_of_a_plain_call(architecture):
    """Masks too, whom no text shows; with an adapter, where a row beside the masks would move the text."""
    targets = {"Llama": ("q_proj", "down_proj"), "GPT2": ("c_attn",), "OPT": ("v_proj", "fc1", "fc2")}
    model = tiny_model(architecture)
    model.masks.adapter = adapter = GatedAdapter(model.lm, targets[architecture], rank=4)
    torch.nn.init.normal_(next(iter(adapter.b.values())))
    adapter.requires_grad_(False)
    plain, recorded, past = BlockCache(), BlockCache(), 5
    for cache in (plain, recorded):
        model.forward(Layout.plain(5), prompt_of(5), cache)
    for number, masks in enumerate(
        [(3, 3, 3, 3), (0, 2, 5), (4,), (0,), (0, 0, 0), (8, 8), (1, 0, 9, 0, 2, 1)]
    ):
        layout = Layout.steady(masks)
        ids = prompt_of(layout.n_real, seed=number)
        ours = model.graphs.rows(model, layout, ids, recorded)
        with torch.inference_mode():
            theirs = model._rows(model._shape(layout, past), ids, plain)
        assert ours.shape == theirs.shape == (layout.rows, 32)
        assert (ours - theirs).abs().max() <= 1e-12
        past += 1 + layout.n_drafts // 2
        plain.commit(past)
        recorded.commit(past)
        for mine, other in zip(recorded.layers, plain.layers, strict=True):
            for name in ("keys", "values"):
                gap = getattr(mine, name)[:, :, :past] - getattr(other, name)[:, :, :past]
                assert gap.abs().max() <= 1e-12
    assert model.graphs.refused is None


def test_the_adapter_moves_mask_rows_and_no_other(monkeypatch):
    """Real rows and the padding behind them are bit-equal to those of the model without it."""
    model = ready(gated_model(torch.float64))
    bare = ready(SpaceModel(model.lm, None, replace(model.masks, adapter=None), eos_ids=()))
    layout, found = Layout.steady((2, 2, 2)), []
    assert graphs.padded(layout) == (4, 8)
    for one in (model, bare):
        cache = BlockCache()
        one.call(Layout.plain(4), prompt_of(4), cache)
        one.call(layout, prompt_of(3), cache)
        call = one.graphs._stores[0].calls[4, 8]
        assert call._layout == layout
        with torch.inference_mode():
            found.append(call.replay())
    assert torch.equal(found[0][:4], found[1][:4])
    assert ((found[0][4:10] - found[1][4:10]).abs().amax(-1) > 1e-3).all()


def test_padding_is_seen_by_no_row_and_sees_something():
    model = tiny_model()
    for masks in ((1, 0, 2), (0,), (0, 0, 0), (8,), (3, 3, 3, 3, 3)):
        layout = Layout.steady(masks)
        real, padding = graphs.padded(layout)
        offsets, embeddings, rule = graphs.inputs(model, layout)
        rows = real + padding
        assert rule.shape == (rows, rows + 2) and len(offsets) == rows and len(embeddings) == padding
        kept = [*range(layout.n_real), *range(real, real + layout.n_masks)]
        fill = [row for row in range(rows) if row not in kept]
        sees = rule == 0
        assert sees[:, 0].all() and not sees[:, -1].any()
        assert torch.equal(sees[:, 1:-1][kept][:, kept], layout.sees())
        assert not sees[:, 1:-1][kept][:, fill].any()
        assert torch.equal(sees[:, 1:-1][fill].nonzero()[:, 1], torch.tensor(fill, dtype=torch.long))


def test_a_storage_is_clean_for_each_guest():
    """Hidden slots weigh nothing, but nothing times an overflow is no number."""
    model, settings = tiny_model(), Settings(k=3, max_new_tokens=20, plan="grid")
    expected = output(space_core.space(model, prompt_of(4), settings))
    gc.collect()
    with torch.inference_mode():
        for layer in (layer for store in model.graphs._stores for layer in store.cache.layers):
            layer.keys.fill_(float("nan"))
            layer.values.fill_(float("inf"))
    assert len(model.graphs._stores) == 1
    assert output(space_core.space(model, prompt_of(4), settings)) == expected
    assert len(model.graphs._stores) == 1


def test_a_guest_comes_goes_and_takes_its_rows_along():
    model, one, two = tiny_model(), BlockCache(), BlockCache()
    for cache, seed in ((one, 0), (two, 1)):
        model.forward(Layout.plain(6), prompt_of(6, seed), cache)
    rows = [[(a.keys[:, :, :6] * 1, a.values[:, :, :6] * 1) for a in c.layers] for c in (one, two)]

    def whole(cache, number):
        return all(
            torch.equal(layer.keys[:, :, :6], keys) and torch.equal(layer.values[:, :, :6], values)
            for layer, (keys, values) in zip(cache.layers, rows[number], strict=True)
        )

    store = FixedCache(one, 16)
    with torch.inference_mode():
        assert store.free and not store.holds(one)
        store.take(one)
        assert store.holds(one) and not store.free and whole(one, 0)
        store.take(two)
        assert store.holds(two) and not store.holds(one) and whole(one, 0) and whole(two, 1)
        assert one.layers[0].keys.data_ptr() != two.layers[0].keys.data_ptr()
    model.forward(Layout.plain(12), prompt_of(12), two)  # beyond the 16 slots
    assert store.free and whole(two, 1)
    with torch.inference_mode():
        store.take(one)
        assert store.holds(one)
    del one, cache
    gc.collect()
    assert store.free


def test_any_steps_and_crops_leave_the_cache_of_the_committed_text(calls):
    subject = tiny_subject(context=2048)
    subject.model.graphs = Graphs()
    found = sound(run(checks.check_cache, subject, count=12))
    assert found.worst <= 1e-12 and len(calls) > 100
    assert {256, 512, 1024} <= {store.cache.size for store in subject.model.graphs._stores}


# --- recording ---


LOOKS = [getattr(torch.ops.aten, name).default for name in ("item", "is_nonzero", "_local_scalar_dense")]


def address(value):
    """Where a tensor's numbers lie now: a recording does not follow one that is moved."""
    return value.detach() if isinstance(value, torch.Tensor) else value


class Tape(TorchDispatchMode):
    """A CUDA graph for the CPU: the operations of a recording, on the very tensors it used.

    As on CUDA, a recording gives no results: what it computed is made not a number until it is replayed.
    """

    def __init__(self):
        super().__init__()
        self.played, self.operations = 0, []

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        if function in LOOKS:
            raise RuntimeError("operation not permitted when stream is capturing")
        result = function(*arguments, **(named or {}))
        self.operations.append((function, *tree_map(address, (arguments, named or {}, result))))
        return result

    def replay(self):
        self.played += 1
        for function, arguments, named, result in self.operations:
            again = function(*arguments, **named)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

    def forget(self):
        """Spoil what was made while recording; inputs and storage were there before."""
        for function, _, _, result in self.operations:
            if not any(argument.alias_info for argument in function._schema.arguments):
                for tensor in tree_leaves(result):
                    if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                        tensor.fill_(float("nan"))


@pytest.fixture
def tape(monkeypatch):
    """torch.cuda as far as `Recorder` uses it, by tapes; gives the tapes made."""
    made = []

    class Recording:
        def __init__(self, graph, pool, stream, capture_error_mode):
            assert pool == "pool" and isinstance(stream, Stream) and capture_error_mode == "thread_local"
            self.graph = graph

        def __enter__(self):
            made.append(self.graph)
            self.graph.__enter__()

        def __exit__(self, *error):
            self.graph.__exit__(*error)
            if error[0] is None:
                self.graph.forget()

    class Stream:
        def wait_stream(self, other):
            assert isinstance(other, Stream)

    fakes = {
        "device": lambda device: nullcontext(),
        "Stream": Stream,
        "stream": lambda stream: nullcontext(),
        "current_stream": Stream,
        "graph_pool_handle": lambda: "pool",
        "CUDAGraph": Tape,
        "graph": Recording,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    recorder = graphs.Recorder
    monkeypatch.setattr(graphs, "Recorder", lambda device: recorder(torch.device("cuda")))
    return made


@pytest.mark.parametrize("architecture", RECORDABLE)
def test_a_shape_is_recorded_once_and_replayed_from_then_on(architecture, tape, calls):
    model = tiny_model(architecture)
    for seed in range(3):
        prompt = prompt_of(4 + seed, seed)
        expected = generated(model.lm, prompt, 24)
        for decode in DECODERS.values():
            for plan in Plan:
                settings = Settings(k=3, max_new_tokens=24, plan=plan)
                assert output(decode(model, prompt, settings)) == expected
    assert model.graphs.refused is None
    assert len(tape) == len(set(shapes(model))) == len(shapes(model)) <= 9
    assert sum(graph.played for graph in tape) == len(calls) > 150


def test_a_replay_reads_its_adapter_its_masks_and_where_it_stands(tape):
    model = ready(gated_model(torch.float64))
    for plan in Plan:
        for seed in range(3):
            settings = Settings(k=3, max_new_tokens=24, plan=plan, temperature=1.0, seed=seed)
            expected = plainly(model, space_core.space, prompt_of(5), settings)
            assert output(space_core.space(model, prompt_of(5), settings)) == expected
    assert tape and model.graphs.refused is None


def test_what_a_call_said_is_kept_when_the_next_one_is_replayed(tape):
    model, cache = tiny_model(), BlockCache()
    model.call(Layout.plain(4), prompt_of(4), cache)
    for layout in (Layout.plain(1), Layout.grid(1)):
        said = []
        for token in (3, 7, 9):
            judged = model.call(layout, [token, 5][: layout.n_real], cache)
            said.append((judged._rows, judged.real, judged._rows.clone(), judged.real.clone()))
        for rows, real, rows_then, real_then in said:
            assert torch.equal(rows, rows_then) and torch.equal(real, real_then)
        assert not torch.equal(said[1][0], said[2][0])
    assert len(tape) == 2 and model.graphs.refused is None


def test_other_masks_are_recorded_anew(tape):
    model, settings = ready(gated_model(torch.float64)), Settings(k=3, max_new_tokens=20, plan="grid")

    def drafts():
        found = [step.drafts for step in space_core.space(model, prompt_of(5), settings)]
        kept, model.graphs = model.graphs, None
        assert found == [step.drafts for step in space_core.space(model, prompt_of(5), settings)]
        model.graphs = kept
        return found

    texts = [drafts()]
    model.masks.adapter = None
    texts.append(drafts())
    model.masks.embeddings = model.masks.embeddings.flip(0)
    texts.append(drafts())
    assert len({str(text) for text in texts}) == 3 and model.graphs.refused is None


def test_weights_that_moved_are_recorded_anew(tape):
    model, settings = tiny_model(), Settings(max_new_tokens=20)
    first = output(space_core.vanilla(model, prompt_of(5), settings))
    for ours, theirs in zip(model.lm.parameters(), tiny_lm(seed=5).parameters(), strict=True):
        ours.data = theirs.data  # as a move to another device does: the same parameters, elsewhere
    second = output(space_core.vanilla(model, prompt_of(5), settings))
    assert second == generated(model.lm, prompt_of(5), 20) != first


@pytest.mark.parametrize("error", [RuntimeError("stream capture failed"), torch.OutOfMemoryError("full")])
def test_what_cannot_be_recorded_takes_the_plain_path_and_is_told_once(
    error, tape, monkeypatch, caplog, calls
):
    attempts = []

    def fails(*_, **__):
        attempts.append(1)
        raise error

    monkeypatch.setattr(torch.cuda, "graph", fails)
    model = tiny_model()
    with caplog.at_level(logging.WARNING, "space_core.graphs"):
        for decode in DECODERS.values():
            text = output(decode(model, prompt_of(4), Settings(k=3, max_new_tokens=24)))
            assert text == generated(model.lm, prompt_of(4), 24)
    assert len(attempts) == 1 and not calls and model.graphs.refused == str(error)
    assert [record.getMessage() for record in caplog.records] == [
        f"calls are not recorded, but launched one by one: {error}"
    ]


def test_a_recording_that_fails_in_the_middle_of_a_text(tape, monkeypatch, caplog):
    """The third shape does: the text goes on in the storage it has, by plain calls."""
    model, recording = tiny_model(), torch.cuda.graph

    def fails(*arguments, **named):
        if len(tape) == 3:
            raise RuntimeError("out of memory")
        return recording(*arguments, **named)

    monkeypatch.setattr(torch.cuda, "graph", fails)
    steps = list(space_core.space(model, prompt_of(4), Settings(k=5, max_new_tokens=60, plan="grid")))
    assert output(steps) == generated(model.lm, prompt_of(4), 60)
    assert model.graphs.refused == "out of memory" and len(caplog.records) == 1
    assert not model.graphs._stores


def looks_at_a_value(forward):
    def other(self, x, position_ids, *rest, **named):
        assert int(position_ids.max()) >= 0
        return forward(self, x, position_ids, *rest, **named)

    return other


def counts_in_python(forward):
    seen = []

    def other(self, x, position_ids, *rest, **named):
        seen.append(1)
        return forward(self, x, position_ids + min(len(seen), 40) // 4, *rest, **named)

    return other


@pytest.mark.parametrize(
    "change, says", [(looks_at_a_value, "not permitted"), (counts_in_python, "differ from plain")]
)
def test_a_model_that_thinks_in_python_is_found_by_the_trial(change, says, tape, monkeypatch):
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    model = tiny_model()
    monkeypatch.setattr(LlamaRotaryEmbedding, "forward", change(LlamaRotaryEmbedding.forward))
    list(space_core.vanilla(model, prompt_of(4), Settings(max_new_tokens=4)))
    assert says in model.graphs.refused


def test_the_clock_leaves_recording_out(monkeypatch):
    """100 s each: on nobody's clock, whose calls are timed by a clock that otherwise stands."""
    now, record = [0.0], graphs.Recorder.record

    def slow(self, function):
        now[0] += 100
        return record(self, function)

    monkeypatch.setattr(graphs.Recorder, "record", slow)
    monkeypatch.setattr("space_core.model.time", SimpleNamespace(perf_counter=lambda: now[0]))
    model = tiny_model()
    steps = list(space_core.space(model, prompt_of(4), Settings(k=3, max_new_tokens=24, plan="grid")))
    assert [step.seconds for step in steps] == [0.0] * len(steps)
    assert model.graphs.spent == now[0] >= 300


# --- for which models, and when ---


def test_models_that_take_the_plain_path(caplog):
    def changed(change):
        model = tiny_model()
        change(model)
        told = obstacle(model)
        expected = plainly(model, space_core.space, prompt_of(4), Settings(max_new_tokens=8))
        assert output(space_core.space(model, prompt_of(4), Settings(max_new_tokens=8))) == expected
        assert model.graphs.refused == told and not model.graphs._stores
        return told

    def config(**values):
        return lambda model: [setattr(model.lm.config, name, value) for name, value in values.items()]

    assert obstacle(tiny_model()) is None
    assert "whole text" in obstacle(tiny_model("Mistral"))
    assert "whole text" in changed(config(sliding_window=64))
    assert "whole text" in changed(config(layer_types=["full_attention", "sliding_attention"]))
    assert "whole text" in changed(config(attention_chunk_size=64))
    assert "rotations" in changed(config(rope_parameters={"rope_type": "dynamic", "factor": 2.0}))
    assert "rotations" in changed(config(rope_parameters={"a": {"rope_type": "longrope"}}))
    assert "experts" in changed(config(num_local_experts=4))
    assert "LlamaMLP" in changed(lambda m: m.lm.model.layers[1].mlp.register_forward_hook(lambda *_: None))
    assert "Linear" in changed(lambda m: m.lm.lm_head.register_forward_pre_hook(lambda *_: None))
    assert "several devices" in changed(lambda m: setattr(m.lm.lm_head, "_hf_hook", SimpleNamespace()))
    model = tiny_model()
    model.lm.config._attn_implementation = "flex_attention"
    assert "no mask of numbers" in obstacle(model)


@pytest.mark.parametrize(
    "values", [{"sliding_window": 64, "use_sliding_window": False}, {"layer_types": ["full_attention"] * 2}]
)
def test_windows_that_are_switched_off_are_none(values):
    model = tiny_model()
    for name, value in values.items():
        setattr(model.lm.config, name, value)
    assert obstacle(model) is None


def test_a_context_too_short_to_try():
    model = tiny_model()
    model.context = 11
    text = output(space_core.vanilla(model, prompt_of(4), Settings(max_new_tokens=9)))
    assert text == generated(model.lm, prompt_of(4), 7) and "context" in model.graphs.refused


def test_what_is_hung_onto_a_model_later_is_not_passed_over():
    model, seen = tiny_model(), []
    list(space_core.vanilla(model, prompt_of(4), Settings(max_new_tokens=8)))
    assert model.graphs.refused is None
    model.lm.model.layers[0].register_forward_hook(lambda *_: seen.append(1))
    list(space_core.vanilla(model, prompt_of(4), Settings(max_new_tokens=8)))
    assert len(seen) == 8 and "LlamaDecoderLayer" in model.graphs.refused


def test_it_is_off_unless_asked_for():
    cuda, cpu = torch.device("cuda:1"), torch.device("cpu")
    assert wanted(cuda, {"SPACE_GRAPHS": "1"})
    assert not any(wanted(cuda, asked) for asked in ({}, {"SPACE_GRAPHS": ""}, {"SPACE_GRAPHS": "0"}))
    assert not wanted(cpu, {"SPACE_GRAPHS": "1"})


def test_load_asks(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        "space_core.model.wanted", lambda device, environment: asked.append(device.type) or True
    )
    tiny_lm("Llama", torch.float32).save_pretrained(tmp_path)
    model = space_core.load(tmp_path)
    assert asked == ["cpu"] and isinstance(model.graphs, Graphs)
    monkeypatch.undo()
    assert space_core.load(tmp_path).graphs is None


def test_a_prompt_and_many_rows_take_the_plain_path(calls):
    model, cache = tiny_model(), BlockCache()
    model.call(Layout.plain(5), prompt_of(5), cache)
    model.call(Layout.plain(3), prompt_of(3), cache)
    model.call(Layout.first(2, 3), prompt_of(2), cache)
    cache.commit(10)
    model.call(Layout.grid(11), prompt_of(12), cache)
    cache.commit(10)
    assert not calls and not model.graphs._tried
    model.call(Layout.grid(2), prompt_of(3), cache)
    assert calls[-1] == Layout.grid(2) and cache.length == 13
