"""The checks of `verify` at their sizes, on small models; the command; and that it sees what is wrong."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from tiny import ARCHITECTURES, VOCABULARY, oracle, output, tiny_lm, trained_like_masks

import space_core
from space_core import Settings, checks, trust
from space_core.__main__ import main
from space_core.cost import Costs
from space_core.errors import PromptError
from space_core.model import SpaceModel
from space_core.verify import Verdict

# Costs under which a planned call is neither plain nor the full grid.
COSTS = Costs({6: 1.3, 81: 7.0}, {1: 1.0})


def tiny_subject(architecture="Llama", dtype=torch.float64, prompts=3, context=None, seed=0, **options):
    lm = tiny_lm(architecture, dtype)
    if context:  # rotary positions know no end
        lm.config.max_position_embeddings = context
    model = SpaceModel(lm, None, trained_like_masks(lm), eos_ids=())
    model.costs = {True: COSTS, False: COSTS}
    random = torch.Generator().manual_seed(seed)
    asked = [torch.randint(VOCABULARY, (4 + i % 9,), generator=random).tolist() for i in range(prompts)]
    return trust.Subject(model, asked, seed=seed, **options)


def run(check, subject, **options):
    tally = trust.Tally("")
    for _ in check(subject, tally, **options):
        pass
    return tally


def sound(tally):
    assert not tally.differences and not tally.blind and not tally.explained, tally.first
    return tally


# --- every row of a call, and what it must not see ---


def rows(count):
    worst = 0.0
    for architecture in ARCHITECTURES:
        found = sound(run(checks.check_rows, tiny_subject(architecture), count=count))
        assert found.cases == count
        worst = max(worst, found.worst)
    return worst


def test_every_row_gives_what_the_papers_table_gives_without_a_cache():
    assert rows(10) <= 1e-12


def test_the_adapters_rows_too():
    from test_checkpoint import gated_model

    subject = trust.Subject(gated_model(torch.float64), [[3, 1, 4, 1, 5]])
    assert sound(run(checks.check_rows, subject, count=10)).worst <= 1e-12
    sound(run(checks.check_isolation, subject, count=20))


@pytest.mark.slow
@pytest.mark.trust(1)
def test_every_row_gives_what_the_papers_table_gives_at_full_size(figures):
    figures(rows=f"logits off the paper's table by at most {rows(100):.1g}")


def isolation(count):
    worst, cases = 0.0, 0
    for architecture in ARCHITECTURES:
        found = sound(run(checks.check_isolation, tiny_subject(architecture), count=count))
        worst, cases = max(worst, found.worst), cases + found.cases
    return worst, cases


def test_no_row_moves_when_a_row_it_must_not_see_changes():
    worst, cases = isolation(10)
    assert worst <= 1e-12 and cases == 110


@pytest.mark.slow
@pytest.mark.trust(4)
def test_no_row_moves_when_a_row_it_must_not_see_changes_at_full_size(figures):
    worst, cases = isolation(91)
    assert worst <= 1e-12
    figures(cases=cases, moved=worst)


# --- the cache ---


def test_the_cache_after_any_steps_and_crops_is_that_of_a_fresh_prefill():
    found = sound(run(checks.check_cache, tiny_subject(context=2048), count=20))
    assert found.worst <= 1e-12 and set(found.figures["starts"]) == {2, 256, 512}


@pytest.mark.slow
@pytest.mark.trust(5)
def test_the_cache_after_any_steps_and_crops_at_full_size(figures):
    found = sound(run(checks.check_cache, tiny_subject(context=2048), count=200))
    assert found.worst <= 1e-12
    figures(runs=found.cases, steps=30, moved=found.worst)


# --- forced drafts ---


def test_forced_drafts_are_accepted_exactly_as_far_as_they_are_right():
    found = sound(run(checks.check_forced, tiny_subject(), prompts=1))
    assert found.cases == 44 and set(found.figures["accepted"]) == set(range(9))


def test_forced_drafts_of_masks_that_are_told_the_tokens_in_front_of_them():
    """A planned run on a CPU gives such guesses up where they are hopeless; a forced one needs all of them."""
    from test_sampler import told_model

    subject = trust.Subject(told_model(), [[3, 1, 4, 1, 5]])
    found = sound(run(checks.check_forced, subject))
    assert set(found.figures["accepted"]) == set(range(9))
    sound(run(checks.check_stopping, subject))


@pytest.mark.slow
@pytest.mark.trust(2)
def test_forced_drafts_at_full_size(figures):
    found = sound(run(checks.check_forced, tiny_subject(prompts=16)))
    counts = found.figures["accepted"]
    assert found.cases >= 600 and all(counts[accepted] >= 20 for accepted in range(9))
    figures(runs=found.cases, mismatches=0, accepted=counts)


# --- other dtypes ---


def greedy_in(dtype, prompts):
    """Greedy runs in a dtype: (cases, splits). What is not at a near-tie, as measured, is a difference."""
    subject = tiny_subject(dtype=dtype, prompts=prompts)
    run(checks.check_rows, subject, count=20)  # which measures the rounding
    found = run(checks.check_greedy, subject)
    assert not found.differences, found.first
    return found.cases, found.splits


def test_float32_parts_from_plain_decoding_only_at_near_ties():
    cases, splits = greedy_in(torch.float32, 3)
    assert cases == 33 and all(split.margin <= 1e-5 for split in splits)


def test_bfloat16_tells_where_it_parts_and_by_which_margin():
    cases, splits = greedy_in(torch.bfloat16, 3)
    assert cases == 33
    assert all(split.explained and split.margin <= split.rounding for split in splits)


@pytest.mark.slow
@pytest.mark.trust(3)
def test_other_dtypes_at_full_size(figures):
    cases, splits = greedy_in(torch.float32, 28)
    assert cases >= 300 and all(split.margin <= 1e-5 for split in splits)
    figures(float32=f"{len(splits)} splits in {cases} runs")
    cases, splits = greedy_in(torch.bfloat16, 28)
    assert cases >= 300 and splits
    worst = max(split.margin for split in splits)
    figures(bfloat16=f"{len(splits)} splits in {cases} runs, at margins up to {worst:.2g}")


# --- stopping, and prompts at the cap ---


@pytest.mark.trust(8)
def test_ends_of_text_budgets_and_the_contexts_last_places(figures):
    found = sound(run(checks.check_stopping, tiny_subject(ks=range(1, 9))))
    assert found.cases > 200
    figures(cases=found.cases, k="1..8")


def test_all_ids_that_end_a_text_are_known():
    lm = tiny_lm("Llama")
    lm.generation_config.eos_token_id = [7, 9]
    assert SpaceModel(lm, None, trained_like_masks(lm)).eos_ids == {7, 9}
    lm.generation_config.eos_token_id = None
    lm.config.eos_token_id = 5
    assert SpaceModel(lm, None, trained_like_masks(lm)).eos_ids == {5}


class Words:
    """A tokenizer of one token a word."""

    def __call__(self, text, **_):
        return {"input_ids": [len(word) % VOCABULARY for word in text.split()]}


@pytest.mark.trust(18)
@pytest.mark.parametrize("decode", [space_core.vanilla, space_core.space])
def test_prompts_at_the_cap(monkeypatch, figures, decode):
    """One token too many is refused before the model sees any of them."""
    lm = tiny_lm("Llama")
    model = SpaceModel(lm, Words(), trained_like_masks(lm), eos_ids=())
    fed = []
    call = SpaceModel.call
    monkeypatch.setattr(SpaceModel, "call", lambda *a: fed.append(a[1].rows) or call(*a))
    cap = model.context - 1
    settings = Settings(max_new_tokens=20, plan="grid")
    tried = 0
    for text in ("", " ", "\n\t ", "a " * (cap + 1), "a " * (cap + 2), "a " * (10 * cap)):
        with pytest.raises(PromptError):
            model.encode(text)
        with pytest.raises(PromptError):
            next(decode(model, Words()(text)["input_ids"], settings))
        tried += 1
    assert not fed
    for length in (cap - 1, cap):
        steps = list(decode(model, model.encode("a " * length), settings))
        assert len(output(steps)) == model.context - length
        tried += 1
    assert max(fed) <= cap + 6 and max((s.bytes for s in model._shapes.values()), default=0) < 2**20
    figures(prompts=tried)


# --- sampling ---


@pytest.mark.more
def test_sampling_follows_the_law():
    """So few draws that the control may stay below the quantile; `test_verify.py` has another one."""
    found = run(checks.check_sampling, tiny_subject(), draws=300)
    assert found.cases == 1800 and not found.differences
    assert found.figures["control"]["chi_square"] > 0.5 * found.figures["control"]["limit"]


@pytest.mark.slow
@pytest.mark.trust(7)
def test_sampling_follows_the_law_at_full_size(figures):
    subject = tiny_subject(seed=1)
    lm, small = subject.model.lm, 16  # the other words are made impossible
    with torch.no_grad():
        lm.lm_head.weight = torch.nn.Parameter(lm.lm_head.weight.clone())
        lm.lm_head.weight[small:] = lm.lm_head.weight[:1]
    found = sound(run(checks.check_sampling, subject, draws=16_700))
    assert found.cases >= 100_000
    figures(draws=found.cases, worst=f"{found.worst:.2f} of the 1e-9 quantile")


def test_the_lanes_throw_dice_of_their_own():
    assert sound(run(checks.check_lanes, tiny_subject())).cases == checks.LANES


def test_chi_square_takes_rare_outcomes_together_and_knows_its_quantile():
    even = torch.tensor([100.0, 100.0, 3.0, 3.0])
    assert checks.chi_square(even, even) == (0.0, 2)
    value, freedom = checks.chi_square(torch.tensor([160.0, 40.0, 3.0, 3.0]), even)
    assert (value, freedom) == (72.0, 2) and value > checks.quantile(2) > 41  # -2 ln 1e-9 = 41.4
    assert checks.against_law(Counter({(1,): 5}), {(2,): 1.0}, 5)[0] == float("inf")


# --- the reference itself ---


def test_what_a_text_is_judged_by_is_plain_decoding_without_a_cache():
    subject = tiny_subject()
    for prompt in subject.prompts:
        expected = tuple(oracle(subject.model.lm, list(prompt), subject.tokens))
        assert subject.plain(prompt) == expected
        assert max(subject.text(prompt, expected).gaps) == 0.0
        wrong = (*expected[:5], (expected[5] + 1) % VOCABULARY, *expected[6:])
        assert subject.text(prompt, wrong).gaps[5] > 1e-6


def test_the_table_is_the_papers_grid():
    from test_layout import by_hand

    for k in range(1, 6):
        assert trust.table([k] * (k + 1)) == by_hand(k)


def test_a_split_is_explained_only_by_rounding_and_only_if_the_rest_is_right():
    subject = tiny_subject(dtype=torch.float32)
    prompt = subject.prompts[0]
    plain = subject.plain(prompt)[:9]
    # By the call of the same text that the split is judged by, since calls of other shapes round otherwise.
    logits = subject.whole((*prompt, *plain[:-1]), 9)[3]
    second = int(logits.topk(2).indices[1])
    other = (*plain[:3], second)
    rest = oracle(subject.model.lm, [*prompt, *other], 9 - len(other))
    tally = trust.Tally("")
    assert not subject.compare(tally, "far", prompt, (*other, *rest))
    assert tally.differences == 1 and not tally.splits[0].explained
    assert tally.splits[0].margin == pytest.approx(float(logits.max() - logits[second]))
    subject.noise, subject.spread = 1e9, 1e12  # a machine that rounds as coarsely as that
    assert not subject.compare(tally, "near", prompt, (*other, *rest))
    assert tally.explained == 1 and tally.splits[1].explained


# --- the command ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("verify") / "tiny"
    tiny_lm("Llama", torch.float32).save_pretrained(path)
    return path


def command(folder, *more):
    return [
        "verify",
        "--model",
        str(folder),
        "--dtype",
        "float64",
        "--cases",
        "1",
        "--k",
        "1,3",
        "--max-new-tokens",
        "10",
        *more,
    ]


@pytest.fixture
def examined_once(monkeypatch):
    """A second command on the same model tells what the first one found."""
    found, examine = [], checks.examine

    def once(*asked):
        if not found:
            found.append(examine(*asked))
        return found[0]

    monkeypatch.setattr(checks, "examine", once)


def test_the_command_examines_a_model_and_says_so(folder, tmp_path, examined_once, capsys):
    out = tmp_path / "report.json"
    assert main(command(folder, "--seconds", "2", "--json", str(out))) == 0
    text = capsys.readouterr().out
    assert "Lossless: no difference." in text and "Margin of the best token" in text
    for check in checks.CHECKS:
        assert check in text
    report = json.loads(out.read_text())
    assert report["format"] == "space-verify/1" and report["ok"] and not report["differences"]
    assert [check["name"] for check in report["checks"]] == list(checks.CHECKS)
    assert all(check["cases"] > 0 for check in report["checks"])
    assert len(report["margins"][0]) == 10 and report["smallest_margin"] == min(report["margins"][0])

    assert main(command(folder, "--json", "-")) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["checks"] == report["checks"] and told["margins"] == report["margins"]


@pytest.mark.more
def test_no_time_still_leaves_each_check_a_few_steps():
    model = SpaceModel(tiny_lm("Llama"), None, eos_ids=())
    report = checks.examine(trust.Subject(model, [[3, 1, 4, 1, 5]], tokens=8, ks=(1, 3)), 0.0)
    assert not report.complete and [tally.name for tally in report.tallies] == [*checks.CHECKS]
    cases = {tally.name: tally.cases for tally in report.tallies}
    assert cases["greedy"] == 1 + checks.FEWEST and cases["cache"] >= checks.FEWEST


@pytest.mark.more
def test_the_command_finds_a_wrong_decoder(folder, examined_once, monkeypatch, capsys):
    """Drafts that are taken on trust."""
    monkeypatch.setattr(
        "space_core.decoders.verify_greedy",
        lambda choices, drafts: Verdict(torch.tensor(len(drafts)), choices[-1]),
    )
    assert main(command(folder, "--seconds", "1")) == 1
    text = capsys.readouterr().out
    assert "NOT lossless" in text and "First split: " in text and "does NOT explain it" in text
    assert main(command(folder, "--seconds", "1", "--json", "-")) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["ok"] and report["differences"]
    assert {check["name"] for check in report["checks"] if check["differences"]} >= {
        "greedy",
        "forced drafts",
    }


@pytest.mark.parametrize(
    "more",
    [
        ("--prompts", "/nowhere.jsonl"),
        ("--cases", "0"),
        ("--k", "0"),
        ("--k", "99"),
        ("--seed", "-1"),
        ("--seconds", "soon"),
        ("--model", "/nowhere"),
        ("--dtype", "int3"),
        ("--json", "/nowhere/at/all.json"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(folder, capsys, more):
    try:
        code = main(command(folder, *more))
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr()
    assert code == 2 and said.err.count("\n") == 1 and not said.out
