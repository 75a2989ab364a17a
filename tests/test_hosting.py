"""What strangers may ask of a hosted page, which models it takes, what its log says; devices."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import traceback
from pathlib import Path

import pytest

from space_core import devices, hosting
from space_core.bundled import CHECKPOINTS, default_checkpoint
from space_core.errors import CheckpointError, PromptError, SettingError
from space_core.hosting import HOSTED, LOCAL, Hosting
from space_core.settings import Settings
from space_core.training import allowed

COMMIT = "0123456789abcdef0123456789abcdef01234567"


# ---------------------------------------------------------------- when it is on


@pytest.mark.parametrize(
    "environment, hosted",
    [
        ({}, False),
        ({"SPACE_HOSTED": "1"}, True),
        ({"SPACE_HOSTED": "0"}, False),
        ({"SPACE_HOSTED": ""}, False),
        ({"SPACE_ID": "owner/name"}, True),
        ({"SPACE_ID": "owner/name", "SPACE_HOSTED": "0"}, False),
        ({"SPACE_ID": "owner/name", "SPACE_HOSTED": "1"}, True),
    ],
)
def test_hosted_mode_is_on_where_strangers_are(environment: dict[str, str], hosted: bool) -> None:
    found = Hosting.read(environment)
    assert found.hosted is hosted
    assert found.limits is (HOSTED if hosted else LOCAL)
    assert allowed(environment, asked=False) is not hosted
    assert allowed(environment, asked=True)


# ---------------------------------------------------------------- models


@pytest.mark.parametrize(
    "name",
    [
        "owner/name",
        "owner/name@main",
        f"owner/other@{COMMIT}",
        f"owner/name@{COMMIT[:-1]}0",
        ".",
        "/etc",
        str(CHECKPOINTS),
        str(CHECKPOINTS.parent),
        str(CHECKPOINTS / ".." / ".."),
        str(CHECKPOINTS / "python-mini" / "space"),
        "assets/checkpoints/../../runs",
        "",
    ],
)
def test_a_hosted_page_refuses_a_model_that_is_not_on_its_list(name: str) -> None:
    hosted = Hosting.read({"SPACE_HOSTED": "1", "SPACE_MODELS": f"owner/model@{COMMIT}"})
    with pytest.raises(CheckpointError, match="SPACE_MODELS lists"):
        hosted.source(name)


def test_a_hosted_page_takes_bundled_and_listed_models() -> None:
    hosted = Hosting.read({"SPACE_HOSTED": "1", "SPACE_MODELS": f"owner/model@{COMMIT}, a/b@{COMMIT}"})
    assert hosted.source("owner/model") == ("owner/model", COMMIT)
    assert hosted.source(f"a/b@{COMMIT}") == ("a/b", COMMIT)
    bundled = str(default_checkpoint())
    assert hosted.source(bundled) == (bundled, None)


def test_a_local_page_loads_what_its_owner_names() -> None:
    assert Hosting().source("/any/folder") == ("/any/folder", None)
    assert Hosting().source("owner/name") == ("owner/name", None)
    assert Hosting().source(f"owner/name@{COMMIT}") == ("owner/name", COMMIT)


@pytest.mark.parametrize("name", ["owner/name", "owner/name@main", f"../x@{COMMIT}0", "name", f"@{COMMIT}"])
def test_the_list_holds_pinned_models_only(name: str) -> None:
    with pytest.raises(CheckpointError, match="is not pinned: write owner/name@"):
        Hosting.read({"SPACE_MODELS": name})


def test_a_base_that_a_hosted_checkpoint_names_is_pinned_too() -> None:
    hosted = Hosting.read({"SPACE_HOSTED": "1"})
    for base in ({"id": "a/b"}, {"id": "a/b", "revision": None}, {"id": "a/b", "revision": "main"}):
        with pytest.raises(CheckpointError, match="a base without a commit"):
            hosted.manifest({"base": base})
        Hosting().manifest({"base": base})
    for manifest in (None, {}, {"base": {"id": None}}, {"base": {"id": "a/b", "revision": COMMIT}}):
        hosted.manifest(manifest)


def test_nothing_here_trusts_code_from_a_checkpoint(tmp_path: Path) -> None:
    """A folder whose config names its own code is refused, and the code does not run."""
    import space_core

    (tmp_path / "config.json").write_text(
        json.dumps(
            {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
        )
    )
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(CheckpointError, match="cannot open the model"):
        space_core.load(str(tmp_path))
    assert not (tmp_path / "ran").exists()
    root = Path(__file__).parent.parent
    files = {root / "app.py", *root.glob("space_core/**/*.py"), *root.glob("finetune/**/*.py")}
    for path in files - {*root.glob("space_core/custom_generate/*.py")}:  # says to others how it is called
        assert "trust_remote_code=True" not in path.read_text(), path


# ---------------------------------------------------------------- limits


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_prompts_at_the_cap(over: int) -> None:
    for most, check, make in (
        (HOSTED.characters, HOSTED.text, lambda n: "x" * n),
        (HOSTED.prompt_tokens, HOSTED.ids, lambda n: [1] * n),
    ):
        if over > 0:
            with pytest.raises(PromptError, match=f"{most + over:,} .*at most {most:,}.*shorten it"):
                check(make(most + over))
        else:
            check(make(most + over))


@pytest.mark.parametrize("name, most", [("k", HOSTED.k), ("max_new_tokens", HOSTED.new_tokens)])
def test_settings_at_the_cap(name: str, most: int) -> None:
    settings = Settings(**{name: most})
    assert HOSTED.settings(settings) is settings
    LOCAL.settings(Settings(**{name: most + 1}))
    with pytest.raises(SettingError, match=f"{name} must lie in 1..{most} on this hosted page") as caught:
        HOSTED.settings(Settings(**{name: most + 1}))
    assert caught.value.field == name


# ---------------------------------------------------------------- the log

PROMPT = "the visitor wrote this"


def fail(words: str) -> BaseException:
    try:
        try:
            raise KeyError(words)
        except KeyError as error:
            raise RuntimeError(f"cannot do {words}") from error
    except RuntimeError as error:
        return error


def test_a_hosted_log_has_kinds_and_places_and_no_words(capsys: pytest.CaptureFixture[str]) -> None:
    reference = hosting.report(fail(PROMPT), hosted=True)
    told = capsys.readouterr().err
    assert PROMPT not in told
    assert reference in told and "RuntimeError at test_hosting.py:" in told and "after KeyError at" in told
    hosting.report(fail(PROMPT), hosted=False)  # the owner's own log tells all
    assert PROMPT in capsys.readouterr().err
    assert reference in hosting.sorry(reference) and PROMPT not in hosting.sorry(reference)


def test_tracebacks_that_others_print_lose_their_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def printed() -> str:
        try:
            raise ValueError(PROMPT)
        except ValueError:
            traceback.print_exc()
            record = logging.LogRecord("uvicorn", logging.ERROR, "", 0, "failed", None, sys.exc_info())
            print(logging.Formatter().format(record), file=sys.stderr)
        return capsys.readouterr().err

    assert printed().count(PROMPT) == 2
    monkeypatch.setattr(traceback, "print_exc", traceback.print_exc)
    monkeypatch.setattr(logging.Formatter, "formatException", logging.Formatter.formatException)
    hosting.keep_words_out_of_the_log()
    told = printed()
    assert PROMPT not in told
    assert told.count("ValueError at test_hosting.py:") == 2


# ---------------------------------------------------------------- devices


@pytest.mark.parametrize(
    "text, found",
    [("cpu", ("cpu",)), (" cuda:0, cuda:1 ", ("cuda:0", "cuda:1")), ("cuda:0,cpu", ("cuda:0", "cpu"))],
)
def test_devices_are_read(text: str, found: tuple[str, ...]) -> None:
    assert devices.parse(text) == found


@pytest.mark.parametrize("text", ["", " , ", "cpu,cpu", "cuda,cuda:0", "auto,cpu"])
def test_devices_that_cannot_race_beside_each_other_are_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match="SPACE_DEVICES"):
        devices.parse(text)


@pytest.mark.parametrize("text", ["tpu", "cuda:", "cuda:x", "cpu:-1", "auto:0", "<b>"])
def test_devices_of_no_kind_are_told_at_the_start(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    import app

    for name, several in (("--device", text), ("--devices", f"cpu,{text}")):
        with pytest.raises(SystemExit) as ended:
            app.main([name, several])
        assert ended.value.code == 2
        assert (
            capsys.readouterr()
            .err.splitlines()[-1]
            .endswith(f"no device is called {text!r}: use auto or one of cpu, cuda, mps")
        )


def test_one_run_on_each_device_at_a_time_and_all_of_them_work() -> None:
    slots = devices.Slots(("a", "b", "c"))
    lock, busy, worst, used = threading.Lock(), [0] * 3, [0] * 3, []

    def run() -> None:
        for _ in range(20):
            with slots.taken() as number:
                with lock:
                    busy[number] += 1
                    worst[number] = max(worst[number], busy[number])
                    used.append(number)
                time.sleep(0.001)
                with lock:
                    busy[number] -= 1

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert worst == [1, 1, 1]
    assert slots.free == 3
    assert min(map(used.count, range(3))) > 20


def test_a_run_that_fails_gives_its_device_back() -> None:
    slots = devices.Slots(("a",))
    with pytest.raises(ZeroDivisionError), slots.taken():
        raise ZeroDivisionError
    with slots.taken() as number:
        assert number == 0 and slots.free == 0
