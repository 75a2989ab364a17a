"""A build's log and recipe as shown, and a training run started, watched and stopped."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from space_core.training import Training, allowed
from space_core.views import building, training

LOG = "\n".join(
    [
        *(
            json.dumps({"stage": "pretrain", "step": s, "loss": 8 - s / 10, "seconds": float(s)})
            for s in (10, 20)
        ),
        json.dumps({"stage": "pretrain", "step": 20, "heldout_loss": 5.5, "seconds": 21.0}),
        json.dumps({"stage": "masks-gated", "step": 0, "tokens_per_call": 1.1, "seconds": 0.0}),
        json.dumps({"stage": "masks-gated", "step": 10, "loss": 4.0, "seconds": 7.0}),
        json.dumps({"stage": "masks-gated", "step": 10, "tokens_per_call": 1.9, "seconds": 7.5}),
        "not json",
        '{"stage": "masks-gated", "step": 20, "loss": NaN}',
        '{"stage": "masks-gated", "step": true, "loss": 1}',
        '{"stage": 7, "step": 1}',
        '{"stage": "masks-gated", "step": 20, "lo',
    ]
)


def test_a_log_becomes_curves_and_broken_lines_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(LOG)
    found = training.read(tmp_path / "log.jsonl")
    assert found.base_loss == ((10, 7.0), (20, 6.0))
    assert found.heldout_loss == ((20, 5.5),)
    assert found.masks_loss == ((10, 4.0),)
    assert found.tokens_per_call == ((0, 1.1), (10, 1.9))
    assert found.seconds == 28.5
    assert (found.stage, found.step) == ("masks-gated", 20)
    assert training.read(tmp_path / "missing.jsonl") == training.Curves()


def test_rounds_that_followed_each_other_become_one(tmp_path: Path) -> None:
    first, then = tmp_path / "first.jsonl", tmp_path / "then.jsonl"
    first.write_text(LOG)
    rows = [
        {"step": 0, "tokens_per_call": 1.8},
        {"step": 5, "loss": 3.5},
        {"step": 5, "tokens_per_call": 2.2},
    ]
    then.write_text("\n".join(json.dumps({"stage": "masks-gated", "seconds": 2.0} | row) for row in rows))
    found = training.read(first, tmp_path / "missing.jsonl", then)
    assert found.base_loss == ((10, 7.0), (20, 6.0)) and found.heldout_loss == ((20, 5.5),)
    assert found.masks_loss == ((10, 4.0), (15, 3.5))
    assert found.tokens_per_call == ((0, 1.1), (10, 1.9), (10, 1.8), (15, 2.2))
    assert (found.seconds, found.stage, found.step) == (30.5, "masks-gated", 5)
    assert training.read(tmp_path / "missing.jsonl", then) == training.read(then)


def test_where_another_round_of_masks_began_is_drawn(tmp_path: Path) -> None:
    first, then = tmp_path / "first.jsonl", tmp_path / "then.jsonl"
    first.write_text(LOG)
    then.write_text("\n".join(line for line in LOG.splitlines() if "masks" in line))
    assert training.read(first).joints == ()
    found = training.read(first, then)
    assert found.joints == (max(step for step, _ in training.read(first).tokens_per_call),)
    for figure in (training.masks_figure(found), training.tokens_figure(found)):
        assert [shape.x0 for shape in figure.layout.shapes if shape.x0 == shape.x1] == list(found.joints)
    copies = json.dumps({"stage": "copies", "step": 0, "tokens_per_call": 2.5})
    then.write_text(copies)
    assert training.read(first, then).joints == ()


def test_curves_are_broken_between_rounds_whose_texts_are_others(tmp_path: Path) -> None:
    first, then = tmp_path / "first.jsonl", tmp_path / "then.jsonl"
    rows = [(0, None, 1.2), *((s, 4.0 - s / 10, None) for s in (10, 20)), (20, None, 1.9)]
    log = "\n".join(
        json.dumps(
            {"stage": "masks-gated", "step": step}
            | ({"loss": loss} if loss else {})
            | ({"tokens_per_call": tokens} if tokens else {})
        )
        for step, loss, tokens in rows
    )
    first.write_text(log)
    then.write_text(log + "\n" + json.dumps({"stage": "copies", "step": 0, "tokens_per_call": 2.5}))
    found = training.read(first, then)
    tokens, copied = training.tokens_figure(found).data
    assert list(tokens.y) == [1.2, 1.9, None, 1.2, 1.9] and list(tokens.x) == [0, 20, 20, 20, 40]
    assert list(copied.x) == [40] and list(copied.y) == [2.5] and copied.name == "with a table of copies"
    _, mean = training.masks_figure(found).data
    assert list(mean.y) == [3.0, 2.0, None, 3.0, 2.0]
    many = tuple((float(step), 1.0) for step in range(2 * training.MAX_POINTS))
    _, mean = training.masks_figure(training.Curves(masks_loss=many, joints=(500.0,))).data
    assert None in mean.y and len(mean.y) <= training.MAX_POINTS + 1, "also where points are thinned out"


def test_what_a_base_went_on_from_is_told() -> None:
    recipe = {"pretrain": {"steps": 200}}
    assert training.base_start({"recipe": recipe}) == "" == training.base_start(None)
    start = {"name": "first", "recipe": {"pretrain": {"steps": 3300}}}
    taught = {"recipe": recipe, "start": start}
    assert training.base_start(taught) == "first"
    left = {"recipe": {"pretrain": {"steps": 0}}, "start": taught}
    assert training.base_start(left) == "first"
    assert dict(training.facts(left, training.Curves()))["base goes on from"] == "first, 3,300 steps"
    assert "base goes on from" not in dict(training.facts({"recipe": recipe}, training.Curves()))
    figure = training.base_figure(training.Curves(base_loss=((1, 2.0),)), "first")
    assert figure.layout.xaxis.title.text == "step, on from first"


def test_what_a_table_of_copies_brings_stands_behind_the_masks_last_step() -> None:
    row = {"stage": "copies", "step": 0, "tokens_per_call": 2.5, "told_loss": 1.0}
    found = training.curves([*LOG.splitlines(), json.dumps(row)])
    assert found.tokens_per_call == ((0, 1.1), (10, 1.9), (20, 2.5))
    assert found.base_loss == ((10, 7.0), (20, 6.0))
    assert training.curves([json.dumps(row)]).tokens_per_call == ((0, 2.5),)


def test_where_only_masks_were_taught_on_the_bases_steps_are_told() -> None:
    masks = {"steps": 300}
    start = {"recipe": {"pretrain": {"steps": 200, "batch": 8}, "masks": {"steps": 100}}}
    manifest = {"recipe": {"pretrain": {"steps": 0}, "masks": masks, "distill": {"prompts": 9, "alone": 3}}}
    told = dict(training.facts({**manifest, "start": start}, training.Curves()))
    assert told["base steps"] == "200, 8 windows each"
    assert told["masks’ steps"] == "100 + 300" and told["own outputs"] == "12"
    assert dict(training.facts(manifest, training.Curves()))["masks’ steps"] == "300"
    fitted = {
        "recipe": {
            "pretrain": {"steps": 0},
            "masks": {"steps": 0, "copy_batches": 60},
            "distill": {"prompts": 1},
        }
    }
    told = dict(training.facts({**fitted, "start": {**manifest, "start": start}}, training.Curves()))
    assert told["base steps"] == "200, 8 windows each" and "a table of copies" in told["masks"]
    assert told["masks’ steps"] == "100 + 300" and told["own outputs"] == "12"


def test_curves_are_drawn_as_they_are() -> None:
    found = training.curves(LOG.splitlines())
    batches, heldout = training.base_figure(found).data
    assert list(batches.y) == [7.0, 6.0]
    assert list(heldout.x) == [20] and list(heldout.y) == [5.5]
    (tokens,) = training.tokens_figure(found).data
    assert list(tokens.y) == [1.1, 1.9]
    assert list(training.masks_figure(found).data[0].y) == [4.0]


def test_the_masks_mean_is_over_the_last_losses() -> None:
    points = tuple((float(i), float(i % 2)) for i in range(40))
    _, mean = training.masks_figure(training.Curves(masks_loss=points)).data
    assert list(mean.y)[:3] == [0.0, 0.5, 0.5]


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    points = [(float(i), 0.0) for i in range(10_001)]
    drawn = training.thinned(points, 400)
    assert len(drawn) == 400
    assert (drawn[0], drawn[-1]) == (points[0], points[-1])
    assert drawn == sorted(set(drawn))
    assert training.thinned(points[:3], 400) == points[:3]


def test_facts_are_the_manifests() -> None:
    manifest = {
        "parameters": 5_800_000,
        "recipe": {"name": "mini", "base": {"layers": 6, "hidden": 256}, "masks": {"k": 5, "rank": 32}},
        "evaluation": {"heldout_loss": 2.5, "heldout_prompts": {"tokens_per_call": 3.25}},
    }
    told = dict(training.facts(manifest, training.curves(LOG.splitlines())))
    assert told["recipe"] == "mini"
    assert told["parameters"] == "5,800,000"
    assert told["base"] == "6 layers, 256 hidden"
    assert told["masks"] == "5 guesses a group, rank 32"
    assert told["tokens per call, held-out"] == "3.25"
    assert "masks’ steps" not in told


@pytest.mark.parametrize("manifest", [None, [], {}, {"recipe": 7}, {"recipe": {"base": []}, "evaluation": 1}])
def test_a_checkpoint_that_says_nothing_has_no_facts(manifest: object) -> None:
    assert training.facts(manifest, training.Curves()) == []
    assert "says nothing" in building.shown("m", [])["words"]


def test_a_running_build_tells_stage_step_and_series() -> None:
    told = building.running(training.curves(LOG.splitlines()), 12.3)
    assert told["words"] == "training the masks, step 20 · 12 s"
    assert [series["name"] for series in told["series"]] == ["loss of the base", "tokens per call"]
    assert building.running(training.Curves(), 1)["words"] == "reading the corpus · 1 s"


@pytest.mark.parametrize(
    "environment, asked, may",
    [
        ({}, False, True),
        ({"SPACE_HOSTED": "1"}, False, False),
        ({"SPACE_HOSTED": "0"}, False, True),
        ({"SPACE_ID": "someone/space"}, False, False),
        ({"SPACE_ID": "someone/space", "SPACE_HOSTED": "1"}, True, True),
    ],
)
def test_training_is_the_owners(environment: dict[str, str], asked: bool, may: bool) -> None:
    assert allowed(environment, asked) is may


class Quick(Training):
    """Runs a script of the test's in the place of a build."""

    script = ""

    def command(self) -> list[str]:
        return [sys.executable, "-c", self.script, str(self._run_folder())]


def drain(own: Training) -> str:
    told = own.run()
    while True:
        try:
            next(told)
        except StopIteration as stopped:
            return str(stopped.value)


FINISH = (
    "import pathlib, sys; out = pathlib.Path(sys.argv[1]) / 'checkpoint'; out.mkdir(exist_ok=True);"
    "(out / 'space.json').write_text('{}')"
)


def test_a_run_to_its_end_and_the_next_one_is_another(tmp_path: Path) -> None:
    own = Quick(tmp_path)
    own.script = FINISH
    assert drain(own) == "done"
    first = own.checkpoint
    assert own.finished and (first / "space.json").is_file()
    own.script = "raise SystemExit('the corpus is gone')"
    told = own.run()
    next(told, None)
    told.close()
    assert own.checkpoint.parent.parent == tmp_path / "runs"


def test_a_run_that_fails_tells_its_last_line(tmp_path: Path) -> None:
    own = Quick(tmp_path)
    own.script = "print('first'); raise SystemExit('the corpus is gone')"
    assert drain(own) == "the corpus is gone"
    own.script = "raise SystemExit(0)"
    assert "exit code 0" in drain(own), "ended well, but there is no checkpoint"


def test_a_run_is_stopped_and_goes_on_in_its_folder(tmp_path: Path) -> None:
    own = Quick(tmp_path)
    own.script = "import time; time.sleep(60)"
    told = own.run()
    next(told)
    time.sleep(0.3)
    own.stop()
    with pytest.raises(StopIteration) as end:
        while True:
            next(told)
    assert end.value.value == "stopped"
    folder = own.checkpoint
    own.script = FINISH
    assert drain(own) == "done"
    assert own.checkpoint == folder


def test_closing_a_run_ends_its_process(tmp_path: Path) -> None:
    own = Quick(tmp_path)
    own.script = "import time; time.sleep(60)"
    told = own.run()
    next(told)
    process = own.process
    assert process is not None and process.poll() is None
    told.close()
    assert process.poll() is not None


def test_the_command_is_one_that_finetune_takes(tmp_path: Path) -> None:
    from finetune.__main__ import _parser

    options = _parser().parse_args(Training(tmp_path).command()[3:])
    assert (options.command, options.recipe) == ("build", "smoke")
