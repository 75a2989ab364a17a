"""A benchmark that is watched: whole, broken off, at its deadline; its figures, table and files."""

from __future__ import annotations

import csv
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tiny import tiny_lm, trained_like_masks

from space_core import bench
from space_core.errors import SpaceError
from space_core.model import SpaceModel
from space_core.prompts import Prompt
from space_core.settings import Settings
from space_core.trial import End, Trial
from space_core.views import benchmarks, paper, results, watching


class Letters:
    """Spells and reads ids 1 … 60 as letters."""

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [1 + ord(letter) % 60 for letter in text]}

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(chr(64 + i) for i in ids)


PROMPTS = tuple(Prompt(str(n), "all", ("abc" * (n + 1),), False) for n in range(3))


@pytest.fixture(scope="module")
def model() -> Any:
    lm = tiny_lm("Llama", torch.float32)
    return SpaceModel(lm, Letters(), trained_like_masks(lm, 2), eos_ids=())


def trial(model: Any, methods: tuple[str, ...] = ("space", "generate"), deadline: float = 60.0) -> Trial:
    settings = Settings(k=2, max_new_tokens=12)
    return Trial(model, None, PROMPTS, bench.columns(methods, [2], "grid"), settings, deadline, "the command")


def test_a_trial_to_its_end_is_a_result_file(model: Any) -> None:
    watched = trial(model)
    told = list(watched.run())
    assert watched.end is End.DONE
    assert told[0].total == 4
    assert watched.progress().done == 4
    assert watched.result is not None
    found = benchmarks.parse("here", json.loads(json.dumps(watched.result)))
    assert isinstance(found, benchmarks.Bench)
    assert [score.method for score in found.scores] == ["vanilla", "space", "generate"]
    assert found.prompts == 3
    assert {score.identical for score in found.scores} == {1.0}
    assert found.head.command == "the command"


@contextmanager
def at_each_call(model: Any, act: Callable[[int], object]) -> Iterator[list[int]]:
    """Do something as each call of the model begins, with its number; gives the list of the numbers."""
    calls: list[int] = []

    def hook(*_: Any) -> None:
        calls.append(len(calls) + 1)
        act(calls[-1])

    handle = model.lm.model.register_forward_pre_hook(hook)
    try:
        yield calls
    finally:
        handle.remove()


@pytest.mark.parametrize("methods", [("space",), ("generate",), ("prompt-lookup",)])
@pytest.mark.parametrize("at", [1, 5, 17, 31])
def test_a_trial_stops_at_the_next_call(model: Any, methods: tuple[str, ...], at: int) -> None:
    watched = trial(model, methods)
    with at_each_call(model, lambda call: watched.cancel() if call == at else None) as calls:
        list(watched.run())
    assert watched.end is End.STOPPED
    # vanilla and ours ask behind a call, generate before it: no more than one other call begins.
    assert at <= len(calls) <= at + 1
    assert watched.result is None or watched.result["prompts"] < 3


def test_a_stopped_trial_keeps_whole_prompts_only(model: Any) -> None:
    watched = trial(model)
    with at_each_call(model, lambda _: watched.cancel() if watched.progress().done == 3 else None):
        list(watched.run())
    assert watched.end is End.STOPPED
    assert watched.result is not None and watched.result["prompts"] == 2
    assert {line["tokens"] for line in watched.result["methods"]} == {24}


def test_a_trial_ends_at_its_deadline(model: Any) -> None:
    watched = trial(model, deadline=0.3)
    started = time.monotonic()
    with at_each_call(model, lambda _: time.sleep(0.02)):
        list(watched.run())
    assert watched.end is End.DEADLINE
    assert time.monotonic() - started < 2


def test_a_closed_trial_leaves_no_thread(model: Any) -> None:
    watched = trial(model)
    before = set(threading.enumerate())
    with at_each_call(model, lambda _: time.sleep(0.01)):
        told = watched.run()
        next(told)
        assert set(threading.enumerate()) > before
        told.close()
    assert set(threading.enumerate()) == before


def test_a_trial_that_cannot_run_says_why(model: Any) -> None:
    watched = Trial(model, None, PROMPTS, bench.columns(["assisted"], [2], "auto"), Settings(), 60)
    with pytest.raises(SpaceError, match="needs a draft model"):
        list(watched.run())
    long = (Prompt("long", "all", ("x" * 500,), False),)
    watched = Trial(model, None, long, bench.columns(["space"], [2], "auto"), Settings(), 60)
    with pytest.raises(SpaceError, match="context"):
        list(watched.run())


# ---------------------------------------------------------------- what is shown


def line(method: str, k: int, speedup: float, **more: Any) -> dict[str, Any]:
    return {
        "method": method,
        "k": k,
        "dtype": "float32",
        "tokens_per_call": 2.5,
        "rows_per_call": 9.0,
        "tokens_per_second": 100.0,
        "speedup": speedup,
        "speedup_spread": [speedup * 0.9, speedup, speedup * 1.2],
        "identical_to_vanilla": 1.0,
        "loops": {"share": 0.5},
        **more,
    }


def result(**head: Any) -> dict[str, Any]:
    drafting = {"acceptance_by_position": [0.9, 0.5], "tokens_per_call_histogram": {"1": 30, "3": 10}}
    return {
        "format": "space-bench/1",
        "command": "c",
        "date": "2026-01-02T00:00:00",
        "device": "a chip",
        "versions": {"python": "3"},
        "threads": 1,
        "model": "m",
        "settings": {"temperature": 0.0},
        "repetitions": 1,
        "prompts": 3,
        "methods": [line("vanilla", 0, 1.0), line("space", 2, 1.5, **drafting)],
        **head,
    }


def parsed(**head: Any) -> benchmarks.Bench:
    found = benchmarks.parse("here", result(**head))
    assert isinstance(found, benchmarks.Bench)
    return found


def test_figures_show_the_files_numbers() -> None:
    found = parsed()
    figure = results.speedup_figure(found)
    bars, diamonds = figure.data
    assert list(bars.y) == ["space, k = 2", "vanilla"]
    assert list(bars.x) == [1.5, 1.0]
    assert list(bars.error_x.array) == pytest.approx([0.3, 0.2])
    assert list(diamonds.x) == [2.5, 2.5]
    (shares,) = results.histogram_figure(found).data
    assert list(shares.x) == [1, 3] and list(shares.y) == [0.75, 0.25]
    (stood,) = results.acceptance_figure(found).data
    assert list(stood.x) == [1, 2] and list(stood.y) == [0.9, 0.5]


def test_results_without_drafts_and_older_files_draw_too() -> None:
    found = parsed(methods=[line("vanilla", 0, 1.0)])
    assert len(results.histogram_figure(found).data) == len(results.acceptance_figure(found).data) == 0
    assert len(results.speedup_figure(found).data) == 2


@pytest.mark.parametrize(
    "name, value",
    [
        ("acceptance_by_position", {"1": 0.5}),
        ("acceptance_by_position", [float("nan")]),
        ("tokens_per_call_histogram", {"<b>": 3}),
        ("tokens_per_call_histogram", {"1": -3}),
        ("tokens_per_call_histogram", [1, 2]),
    ],
)
def test_a_wrong_field_of_a_result_is_named(name: str, value: Any) -> None:
    with pytest.raises(SpaceError, match=f"{name}|'1'"):
        parsed(methods=[line("space", 2, 1.0, **{name: value})])


def test_the_rows_figure_has_a_line_for_each_context() -> None:
    times = [
        {"dtype": "float32", "context": c, "rows": r, "seconds": [0.1, 0.2, 0.3], "ratio": float(r)}
        for c in (64, 512)
        for r in (1, 4, 9)
    ]
    told = {**result(), "format": "space-bench-calls/1", "calls": times}
    calls = benchmarks.parse("calls", told)
    assert isinstance(calls, benchmarks.Calls)
    figure = results.calls_figure([calls])
    assert [trace.name for trace in figure.data] == [
        "64 tokens before, float32, a chip",
        "512 tokens before, float32, a chip",
    ]
    assert list(figure.data[1].y) == [1.0, 4.0, 9.0]


def test_the_papers_figures_are_labelled_as_the_papers() -> None:
    figure = results.paper_figure()
    assert "paper" in figure.layout.title.text and "2402.11809" in figure.layout.title.text
    bars = [trace for trace in figure.data if trace.type == "bar"]
    assert [trace.name for trace in bars] == list(paper.DATASETS)
    assert list(bars[1].y)[1] == 3.18 and list(bars[1].customdata)[1] == 3.54  # LLaMA-2-7B on HumanEval-X


def test_table_and_files_tell_the_same_result() -> None:
    told = watching.over("done", result())
    assert told["table"][0][:2] == ["method", "k"]
    assert told["table"][2][:5] == ["space", "2", "2.50", "100", "1.50×"]
    rows = list(csv.DictReader(io.StringIO(told["csv"])))
    assert [row["method"] for row in rows] == ["vanilla", "space"]
    assert float(rows[1]["speedup"]) == 1.5
    assert json.loads(told["json"]) == result()


def test_a_spreadsheet_takes_no_name_for_a_formula() -> None:
    rows = list(csv.reader(io.StringIO(results.as_csv(parsed(model='=HYPERLINK("x")')))))
    assert rows[1][0].startswith("'=")


def test_an_end_before_any_prompt_has_no_table() -> None:
    told = watching.over("stopped", None)
    assert "table" not in told and "before the first prompt" in told["words"]


def test_progress_counts_prompts_without_the_warm_up() -> None:
    assert watching.running(0, 4, "vanilla", 3)["words"] == "warming up · vanilla · call 3"
    assert watching.running(1, 4, "space, k = 5", 9)["words"] == "prompt 1 of 3 · space, k = 5 · call 9"
    assert watching.running(4, 4, "", 0)["words"] == "prompt 3 of 3"
