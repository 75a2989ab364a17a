"""The page on ZeroGPU, by a stand-in that forks and pickles as the real package does; no browser."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chatting import chat_folder
from served import ROOT
from visiting import Host, fields, hosting, text

from space_core import contest

STAND_IN = ROOT / "tests" / "zero"
ZERO = {"SPACES_ZERO_GPU": "true", "SPACE_ID": "owner/name", "OMP_NUM_THREADS": "1"}


def notes(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def environment(log: Path) -> dict[str, str]:
    return {**ZERO, "ZERO_LOG": str(log), "PYTHONPATH": str(STAND_IN)}


@pytest.fixture(scope="module")
def zero(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Path]]:
    folder = tmp_path_factory.mktemp("zero")
    log = folder / "zero.jsonl"
    with hosting(folder / "log.txt", **environment(log), alone=True) as host:
        yield host, log
    assert "Traceback" not in (folder / "log.txt").read_text()


@pytest.mark.more
def test_a_race_runs_in_a_process_that_is_lent_a_gpu(zero: tuple[Host, Path]) -> None:
    host, log = zero
    visitor = host.visitor()
    race = visitor.event("page_race")
    frame = visitor.race(race, fields("def fib(n):\n", k=3, tokens=24))
    assert frame["state"] == "done" and frame["verdict"]["identical"] is True
    assert frame["lanes"]["space"]["tokens"] == 24
    assert text(frame, "space") == text(frame, "vanilla") != ""

    launch, schedule, worked = (
        [n for n in notes(log) if n["event"] == e] for e in ("launch", "schedule", "worked")
    )
    assert launch[0]["loaded"] == 1, "the model is there before the page is launched"
    assert schedule[0]["pid"] == launch[0]["pid"] == host.process.pid
    assert worked[0]["pid"] != host.process.pid
    assert worked[0]["results"] >= 1
    assert schedule[0]["seconds"] == contest.duration(
        "", [], {"max_new_tokens": 24}, ("vanilla", "space"), 60
    )

    # transformers' own lanes, which decode in a thread, run there too; so does the inspector
    asked = fields("def fib(n):\n", tokens=8)
    asked[7] = ["generate", "prompt-lookup"]
    assert {lane["tokens"] for lane in visitor.race(race, asked)["lanes"].values()} == {8}


@pytest.mark.more
def test_an_open_call_and_a_benchmark(zero: tuple[Host, Path]) -> None:
    host, log = zero
    visitor = host.visitor()
    frame = visitor.race(visitor.event("page_race"), fields(tokens=8))
    inspect = next(d for d in visitor.config()["dependencies"] if d["targets"][0][1] == "ask")
    body = {
        "data": [None],
        "event_data": {"race": frame["race"], "lane": "space", "call": 2},
        "fn_index": inspect["id"],
        "session_hash": visitor.session,
    }
    assert visitor.ask("POST", "/gradio_api/queue/join", json.dumps(body).encode()).status == 200
    with visitor.stream() as messages:
        end = next(m for m in messages if m["msg"] == "process_completed")
    told = json.loads(end["output"]["data"][0])
    assert told["call"]["lane"] == "space" and "error" not in told
    assert any(n["event"] == "worked" and n["task"] == "open_call" for n in notes(log))

    told = visitor.run(visitor.event("benchmark"), [1, ["space"], 2, 16, None])
    assert "one run at a time" in told["output"]["data"][0]


@pytest.mark.more
def test_a_stop_ends_the_worker_and_the_next_race_runs(zero: tuple[Host, Path]) -> None:
    host, log = zero
    gone = host.visitor()
    race = gone.event("page_race")
    before = len(notes(log))
    assert gone.join(race, fields(k=8, tokens=512)).status == 200
    with gone.stream() as messages:
        heard = 0
        for message in messages:
            heard += message["msg"] == "process_generating"
            if heard > 2:
                break
    assert host.visitor().race(race, fields(tokens=4))["state"] == "done"
    until = time.monotonic() + 30
    while len(ends := [n for n in notes(log)[before:] if n["event"] == "release"]) < 2:
        assert time.monotonic() < until
        time.sleep(0.1)
    assert not any(n["alive"] for n in ends)


@pytest.mark.more
def test_a_conversation_reads_its_whole_prompt(tmp_path: Path) -> None:
    """A cache would have to come back from a process that ends; the end of a turn must go there."""
    log = tmp_path / "zero.jsonl"
    log.touch()
    folder = chat_folder(tmp_path)
    arguments = ["--model", str(folder)]
    with hosting(tmp_path / "log.txt", *arguments, **environment(log), SPACE_HOSTED="0", alone=True) as host:
        visitor = host.visitor()
        race = visitor.event("page_race")
        prompts = []
        for words in ("one?", "two?"):
            frame = visitor.race(race, fields(words, tokens=6))
            assert frame["state"] == "done" and frame["verdict"]["identical"] is True
            prompts.append(frame["about"]["prompt"])
        assert prompts[1].startswith(prompts[0]) and prompts[1].endswith("<|user|>two?<|end|>\n<|assistant|>")
        turn = next(d["id"] for d in visitor.config()["dependencies"] if d["api_name"] == "turn")
        told = visitor.call(turn, [None]).body["data"][0]
        assert "Turn 2 is answered" in told and "cache" not in told
    assert not any(note["event"] == "error" for note in notes(log))


FAULTS = {
    "gradio before spaces": ("import gradio", "import spaces before"),
    "no model before the launch": ("import app; app.Loader.load = lambda self: self.start()", "loaded"),
    "a tensor crosses": (
        "import app, torch; plain = app.contest.run\n"
        "def run(*a):\n"
        "    for kind, steps, words in plain(*a): yield kind, [(lane, torch.ones(1)) for lane, _ in steps], words\n"
        "app.run_race = app.on_gpu(run, 10)",
        "PicklingError",
    ),
    "an error of ours crosses": (
        "import app; from space_core.errors import PromptError\n"
        "def run(*a):\n    raise PromptError('shorten it')\n    yield\n"
        "app.run_race = app.on_gpu(run, 10)",
        "PromptError",
    ),
}


@pytest.mark.slow  # each starts a page
@pytest.mark.parametrize("name", FAULTS)
def test_the_stand_in_catches(tmp_path: Path, name: str) -> None:
    """Faults that only show on ZeroGPU, planted."""
    planted, words = FAULTS[name]
    log = tmp_path / "zero.jsonl"
    log.touch()
    code = f"{planted}\nimport sys, app\napp.main(sys.argv[1:])"
    if name == "gradio before spaces":
        with (
            pytest.raises(AssertionError, match=words),
            hosting(tmp_path / "log.txt", code=code, **environment(log), alone=True),
        ):
            pass
        return
    with hosting(tmp_path / "log.txt", code=code, **environment(log), alone=True) as host:
        if name == "no model before the launch":
            assert notes(log)[0]["loaded"] == 0
            return
        visitor = host.visitor()
        told = visitor.run(visitor.event("page_race"), fields(tokens=4))
        assert not told["success"] and told["output"]["error"] == words
