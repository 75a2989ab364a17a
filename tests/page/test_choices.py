"""Whose model, whose device: a visitor's own choice, several devices, a page that goes; no browser."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from chatting import chat_folder
from test_build import CODE
from visiting import fields, hosting, text

import app
from app import Builds, Handlers, Loader
from space_core import contest
from space_core.bundled import default_checkpoint
from space_core.devices import Slots
from space_core.hosting import HOSTED, Hosting


def loaded(source: Path | str, slots: Slots | None = None) -> Loader:
    loader = Loader(str(source), "cpu", "float32", slots=slots)
    loader.load()
    assert loader.ready
    return loader


def last(told: Iterator[tuple[str, Any]]) -> tuple[dict[str, Any], Any]:
    *_, (frame, race) = told
    return json.loads(frame), race


# ---------------------------------------------------------------- a choice is one visitor's


def test_racing_with_a_made_model_changes_nobody_elses(tiny_model: Path, one_thread: None) -> None:
    loader = loaded(tiny_model)
    handlers = Handlers(loader, 60)
    asked = fields(tokens=8)[:-2]
    before, mine = last(handlers.race(*asked))
    made = SimpleNamespace(finished=True, checkpoint=default_checkpoint())
    choice, chip, *_ = Builds(loader, made).adopt()  # type: ignore[arg-type]
    assert json.loads(chip)["text"] == "loading python-mini"

    his, race = last(handlers.race(*asked, choice))
    assert his["about"]["model"] == "python-mini"
    after, _ = last(handlers.race(*asked))
    assert after["about"]["model"] == before["about"]["model"] == "tiny"
    assert text(after, "space") == text(before, "space")
    assert "tiny" in handlers.status()[0] and "python-mini" in handlers.status(choice)[0]
    assert "tiny" in handlers.share(None, *asked) and "python-mini" in handlers.share(None, *asked, choice)

    for one in (mine, race):  # each call is opened by the model that made it
        event = SimpleNamespace(_data={"race": one.id, "lane": "space", "call": 2})
        opened = json.loads(handlers.inspect(one, event))  # type: ignore[arg-type]
        assert "error" not in opened and opened["call"]["lane"] == "space"


def test_a_choice_that_nobody_made_is_the_pages_model(tiny_model: Path) -> None:
    loader = Loader(str(tiny_model), "cpu", "float32")
    for choice in ("/etc", str(default_checkpoint()), "owner/name"):
        assert loader.chosen(choice) is loader


def test_few_models_are_kept_beside_the_pages_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Loader, "start", lambda self: contest.put(self.key(0), None, None))  # type: ignore[arg-type]
    before = set(contest._LOADED)
    loader = Loader("own", "cpu", "float32")
    others = [loader.beside(f"made-{n}") for n in range(Loader.KEPT + 2)]
    assert len({other.number for other in others}) == len(others)
    assert loader.chosen("made-0") is loader and loader.chosen("made-4") is others[4]
    assert {*contest._LOADED} - before == {other.key(0) for other in others[-Loader.KEPT :]}
    for other in others:
        contest.drop(other.key(0))


# ---------------------------------------------------------------- several devices


@pytest.fixture
def two(tiny_model: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch) -> Loader:
    """Two devices, both this machine's processor under other names."""
    plain = app.open_model
    monkeypatch.setattr(app, "open_model", lambda source, device, dtype: plain(source, "cpu", dtype))
    return loaded(tiny_model, Slots(("cuda:0", "cuda:1")))


@pytest.mark.more
def test_races_on_two_devices_run_beside_each_other_and_are_those_of_one(two: Loader) -> None:
    handlers = Handlers(two, 60)
    prompts = [f"def job_{n}(): return" for n in range(6)]
    solo = [last(handlers.race(*fields(prompt, tokens=24)[:-2]))[0] for prompt in prompts]
    models = {id(contest.get(two.key(slot))[0]) for slot in (0, 1)}
    assert len(models) == 2, "each device has weights of its own"

    most, lock, beside = [0], threading.Lock(), [0]
    plain, found = contest.run, {}

    def watched(key: str, *rest: Any) -> Iterator[Any]:
        with lock:
            beside[0] += 1
            most[0] = max(most[0], beside[0])
        try:
            for batch in plain(key, *rest):
                time.sleep(0.01)
                yield batch
        finally:
            with lock:
                beside[0] -= 1

    def visit(n: int) -> None:
        found[n] = last(handlers.race(*fields(prompts[n], tokens=24)[:-2]))[0]

    original, app.run_race = app.run_race, watched
    try:
        threads = [threading.Thread(target=visit, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        app.run_race = original
    assert most[0] == 2, "as many at once as there are devices, and no more"
    assert two.slots.free == 2
    for n in range(6):
        for lane in ("space", "vanilla"):
            assert text(found[n], lane) == text(solo[n], lane)


def test_a_race_that_is_broken_off_gives_its_device_back(two: Loader) -> None:
    told = Handlers(two, 60).race(*fields(k=8, tokens=512)[:-2])
    next(told)
    next(told)
    assert two.slots.free == 1
    told.close()
    assert two.slots.free == 2


def test_the_queue_lets_in_as_many_as_there_are_devices(two: Loader) -> None:
    on_device = [fn for fn in app.build(two).fns.values() if fn.concurrency_id == "device"]
    assert len(on_device) >= 3
    assert {fn.concurrency_limit for fn in on_device} == {2}


# ---------------------------------------------------------------- limits before the model is asked


def test_what_is_too_much_never_reaches_the_model(
    tiny_model: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from space_core.model import SpaceModel

    loader = loaded(tiny_model)
    limits = replace(HOSTED, characters=300, prompt_tokens=200)
    monkeypatch.setattr(app, "HOSTING", Hosting(hosted=True, limits=limits))
    calls: list[int] = []
    plain = SpaceModel.call
    monkeypatch.setattr(SpaceModel, "call", lambda self, *a: calls.append(1) or plain(self, *a))
    handlers = Handlers(loader, 60)
    letter = "a"  # of one token in this model
    assert len(loader.model.encode(letter * 200)) == 200
    for prompt, good in (
        (letter * 199, True),
        (letter * 200, True),
        (letter * 201, False),
        (letter * 300, False),
        (letter * 301, False),
        (letter * 3000, False),
        ("", False),
        (" \n", False),
    ):
        calls.clear()
        asked = fields(prompt, tokens=1)[:-2]
        assert all(told["is_valid"] for told in handlers.check(*asked)) is good
        if good:
            assert last(handlers.race(*asked))[0]["state"] == "done"
            assert calls
        else:
            with pytest.raises(app.gr.Error, match=r"shorten it|is empty"):
                list(handlers.race(*asked))
            assert not calls, "refused before prefill"
    for asked in (fields(k=9), fields(tokens=513)):
        with pytest.raises(app.gr.Error, match="on this hosted page"):
            list(handlers.race(*asked[:-2]))


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_folder(tmp_path_factory.mktemp("chat"))


def test_the_api_obeys_a_hosted_pages_limits(
    chatty: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    loader = loaded(chatty)
    limits = replace(HOSTED, characters=90, prompt_tokens=40)
    monkeypatch.setattr(app, "HOSTING", Hosting(hosted=True, limits=limits))
    api = app.Api(Handlers(loader, 60))
    said = [{"role": "user", "content": "one?"}]
    long = [{"role": "user", "content": "w" * 38}]
    assert len(loader.model.encode(long[0]["content"])) < 40, "only with its template it is too long"
    earlier = [*said, {"role": "assistant", "content": "w" * 90}, *said]
    for asked, title, words in (
        ({"k": 9}, "SettingError: k", "on this hosted page"),
        ({"max_new_tokens": 513, "top_k": 3}, "SettingError: max_new_tokens", "on this hosted page"),
        ({"top_k": -1}, "SettingError: top_k", "top_k"),
        ({"prompt": "w" * 91}, "PromptError", "91 characters"),
        ({"prompt": "w" * 90}, "PromptError", "90 tokens"),
        ({"prompt": "", "messages": long}, "PromptError", "at most 40"),
        ({"prompt": "", "messages": earlier}, "PromptError", "characters"),
    ):
        for endpoint in (api.race, api.generate):
            with pytest.raises(app.gr.Error, match=words) as caught:
                list(endpoint(**{"prompt": "x", "max_new_tokens": 2, **asked}))
            assert caught.value.title == title
    assert list(api.generate(messages=said, max_new_tokens=2, top_k=3))[-1]["settings"]["top_k"] == 3
    told = api.models()["limits"]
    assert told == {
        **{"k": 8, "max_new_tokens": 512, "prompt_characters": 90, "prompt_tokens": 40},
        **{"seconds": 60, "queue": HOSTED.waiting},
    }


# ---------------------------------------------------------------- conversations


def turn(handlers: Handlers, words: str, earlier: Any = None, choice: str = "") -> Any:
    """The race of a turn, over."""
    frame, race = last(handlers.race(*fields(words, tokens=6)[:-2], choice, earlier))
    assert frame["verdict"]["identical"] is True
    return race


def test_a_conversation_is_not_the_choice_of_another_model(
    chatty: Path, tiny_model: Path, one_thread: None
) -> None:
    loader = loaded(chatty)
    handlers = Handlers(loader, 60)
    mine = turn(handlers, "one?")
    other = loader.beside(str(tiny_model))
    assert other.done.wait(60) and handlers.offer_talk(str(tiny_model))["visible"] is False
    assert handlers.offer_talk()["visible"] is True
    his = turn(handlers, "one?", mine, str(tiny_model))
    assert his.talk is None and his.load == other.number
    second = turn(handlers, "two?", mine)
    assert (second.talk.turns, len(handlers.talks.shelf)) == (2, 1)
    assert second.talk.known > 0, "a race with another model takes nobody's cache"
    assert turn(handlers, "three?", his).talk.turns == 1

    loader.beside("/nowhere/at-all").done.wait(60)
    assert "failed" in handlers.status("/nowhere/at-all")[0] and "failed" not in handlers.status()[0]
    assert loader.beside("/nowhere/at-all").number != other.number + 1, "what failed is tried again"
    loader._forget()
    handlers.talks.know(contest.models())
    assert len(handlers.talks.shelf) == 0, "a model that goes is not kept by its caches"


def test_a_conversation_goes_on_on_any_device(
    chatty: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = app.open_model
    monkeypatch.setattr(app, "open_model", lambda source, device, dtype: plain(source, "cpu", dtype))
    loader = loaded(chatty, Slots(("cuda:0", "cuda:1")))
    handlers = Handlers(loader, 60)
    first = turn(handlers, "one?")
    slot = first.talk.slot
    again = turn(handlers, "two?", first)
    assert again.talk.slot == slot and again.talk.known > 0, "where its cache lies, while that is free"
    with loader.slots.taken(slot):
        away = turn(handlers, "two?", first)
    assert away.talk.slot == 1 - slot and away.talk.known == 0, "a cache never goes to another device"
    for lane in ("space", "vanilla"):
        assert away.trace(lane).output_ids == again.trace(lane).output_ids


# ---------------------------------------------------------------- a page that goes

TRAINS = """
import os, pathlib, sys, time
pathlib.Path(sys.argv[1], "pid").write_text(str(os.getpid()))
time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_page_that_is_ended_ends_its_training(tiny_model: Path, tmp_path: Path) -> None:
    arguments = [TRAINS, "unused", str(tmp_path), "--model", str(tiny_model), "--device", "cpu"]
    with hosting(tmp_path / "log.txt", *arguments, code=CODE) as host:
        visitor = host.visitor()
        assert visitor.join(visitor.event("train"), []).status == 200
        with visitor.stream() as messages:
            for message in messages:
                if message["msg"] == "process_generating":
                    break
            found: list[Path] = []
            until = time.monotonic() + 30
            while not found and time.monotonic() < until:
                found = [p for p in tmp_path.rglob("pid") if p.read_text()]
                time.sleep(0.05)
            pid = int(found[0].read_text())
            assert alive(pid)
            host.process.terminate()
            host.process.wait(20)
        assert not alive(pid)
