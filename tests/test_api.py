"""The API as its users meet it: the README's examples run, and everything that can be asked wrongly."""

from __future__ import annotations

import json
import re
import subprocess
import textwrap
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import warm
from chatting import chat_folder
from tiny import output

import space_core
from space_core import Settings, Trace, conversation
from space_core.conversation import Message
from space_core.views import events

gradio_client = pytest.importorskip("gradio_client")
ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:7860"


class Served:
    """A page in this process, its model, and what its model was asked."""

    def __init__(self, folder: Path) -> None:
        import app

        self.loader = app.Loader(str(folder), "cpu", "float64")
        self.page = app.build(self.loader, deadline=60)
        self.page.launch(prevent_thread_lock=True, quiet=True, run_history=False, ssr_mode=False)
        self.url = self.page.local_url.rstrip("/")
        self.loader.start()
        assert self.loader.done.wait(120)
        self.model = self.loader.model
        self.calls = 0
        self.pause = 0.0
        self.caches: list[Any] = []
        call = self.model.call

        def counted(*arguments: Any) -> Any:
            self.calls += 1
            self.caches.append(arguments[2])
            time.sleep(self.pause)
            return call(*arguments)

        self.model.call = counted  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    one = Served(chat_folder(tmp_path_factory.mktemp("model")))
    yield one
    one.page.close()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def client(served: Served) -> Any:
    return gradio_client.Client(served.url, verbose=False)


def example(begins: str) -> str:
    """The README's code block that begins with this line, as somebody copies it."""
    found = re.search(rf"(?m)^(    {re.escape(begins)}.*\n(?:(?:    .*)?\n)*)", README)
    assert found, f"no example in the README begins with {begins}"
    return textwrap.dedent(found[1])


def post(url: str, body: Any) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=200) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def ask(served: Served, name: str, **body: Any) -> list[tuple[str, Any]]:
    """All messages of a call over HTTP, as (event, data)."""
    status, answer = post(f"{served.url}/gradio_api/call/v2/{name}", body)
    assert status == 200, answer
    told = []
    url = f"{served.url}/gradio_api/call/{name}/{answer['event_id']}"
    with urllib.request.urlopen(url, timeout=300) as stream:
        event = ""
        for line in stream.read().decode().splitlines():
            if line.startswith("event: "):
                event = line[7:]
            elif line.startswith("data: "):
                told.append((event, json.loads(line[6:])))
    return [one for one in told if one[0] != "heartbeat"]


def numbered(event: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The calls of an event, if it tells any."""
    if event["type"] == "calls":
        for lane, calls in event["calls"].items():
            for number, call in calls.items():
                yield lane, number, call


def idle(served: Served) -> None:
    """Wait until no call was made for a while."""
    while True:
        before = served.calls
        time.sleep(0.3 + 2 * served.pause)
        if served.calls == before:
            return


# ---------------------------------------------------------------- the examples


def test_the_readmes_python_example_runs_as_it_stands(served, tmp_path):
    program = example("from gradio_client import Client")
    assert ADDRESS in program
    path = tmp_path / "example.py"
    path.write_text(program.replace(ADDRESS, served.url), encoding="utf-8")
    done = warm.run(path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "outputs identical" in lines[-1]
    expected = list(
        space_core.space(served.model, served.model.encode("def fib(n):\n"), Settings(max_new_tokens=48))
    )
    assert served.model.decode(output(expected)) in done.stdout
    assert {line.split()[0] for line in lines if "[" in line} >= {"space", "vanilla"}


def test_the_readmes_curl_example_runs_as_it_stands(served, tmp_path):
    program = example("url=http").replace(ADDRESS, served.url)
    done = subprocess.run(["sh", "-c", program], capture_output=True, text=True, timeout=400, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    *_, last = [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("data: [")]
    assert last[0]["type"] == "end" and last[0]["verdict"]["badge"] == "outputs identical"


def test_the_curl_of_share_is_the_race_that_was_run(served, tmp_path):
    from space_core.views import code

    settings = Settings(k=3, max_new_tokens=12, temperature=0.8, seed=4, plan="grid")
    for prompt, messages in (('it\'s `a` $HOME "é漢" \\n\n', ()), ("", (Message("user", "it's $1?"),))):
        told = code.curl(prompt, settings, ("generate",), messages)
        program = f"url='{served.url}/gradio_api/call'\n{told}"
        done = subprocess.run(
            ["sh", "-c", program], capture_output=True, text=True, timeout=400, cwd=tmp_path
        )
        data = [json.loads(line[6:])[0] for line in done.stdout.splitlines() if line.startswith("data: [")]
        about = next(event for event in data if event["type"] == "start")["about"]
        sent = conversation.prompt(served.model, messages)[0] if messages else prompt
        assert (about["prompt"], about["k"], about["budget"], about["temperature"]) == (sent, 3, 12, 0.8)
        assert [*data[-1]["lanes"]] == ["space", "vanilla", "generate"]
        ids = conversation.prompt(served.model, messages)[1] if messages else served.model.encode(prompt)
        expected = output(space_core.space(served.model, ids, settings))
        assert data[-1]["texts"]["space"] == served.model.decode(expected)


# ---------------------------------------------------------------- what is offered


def test_only_the_three_endpoints_are_shown_and_each_is_documented(client, served):
    shown = client.view_api(return_format="dict")
    assert sorted(shown["named_endpoints"]) == ["/generate", "/models", "/race"]
    assert not shown["unnamed_endpoints"]
    for endpoint in shown["named_endpoints"].values():
        assert len(endpoint["description"]) > 30
    fields = {p["parameter_name"] for p in shown["named_endpoints"]["/race"]["parameters"]}
    assert fields == {
        *(
            "prompt",
            "k",
            "max_new_tokens",
            "temperature",
            "top_p",
            "top_k",
            "seed",
            "plan",
            "lanes",
            "messages",
        )
    }
    private = [fn.api_name for fn in served.page.fns.values() if fn.api_visibility == "private"]
    assert len(private) > 10
    for name in private[:3]:
        with pytest.raises(ValueError):
            client.predict(api_name=f"/{name}")


def test_models_says_what_is_there(client, served):
    told = client.predict(api_name="/models")
    assert told["format"] == "space-models/1"
    (model,) = told["models"]
    assert model["state"] == "ready" and model["chat"] is True
    assert (model["name"], model["k"], model["context"]) == (served.model.name, 5, 512)
    assert told["methods"] == ["space", "vanilla"] and told["lanes"] == ["generate", "prompt-lookup"]
    assert told["limits"]["k"] == 16


def test_a_race_is_a_stream_of_typed_events_that_add_up(client, served):
    told = list(
        client.submit(
            prompt="what is", max_new_tokens=40, k=3, plan="grid", lanes=["generate"], api_name="/race"
        )
    )
    assert {event["format"] for event in told} == {events.FORMAT}
    kinds = [event["type"] for event in told]
    assert kinds[0] == "start" and kinds.count("start") == 1 and "calls" in kinds
    assert kinds[-1] == "end" and set(kinds[1:-1]) <= {"calls", "end"}
    start, end = told[0], told[-1]
    assert start["lanes"] == ["space", "vanilla", "generate"]
    assert start["prompt_tokens"] == len(served.model.encode("what is"))
    assert start["about"] | {"k": 3, "budget": 40, "prompt": "what is"} == start["about"]
    texts: dict[str, str] = {}
    count: dict[str, int] = {}
    for event in told:
        for lane, number, call in numbered(event):
            assert (call["lane"], str(call["n"])) == (lane, number)
            count[lane] = count.get(lane, 0) + 1
            assert call["n"] == count[lane], "each call once, in order"
            texts[lane] = texts.get(lane, "") + "".join(text for text, _ in call["tokens"])
    settings = Settings(k=3, max_new_tokens=40, plan="grid")
    expected = served.model.decode(
        output(space_core.vanilla(served.model, served.model.encode("what is"), settings))
    )
    for lane in start["lanes"]:
        assert end["texts"][lane] == texts[lane] + end["lanes"][lane]["rest"] == expected
        assert end["lanes"][lane] | {"calls": count[lane], "tokens": 40} == end["lanes"][lane]
    assert end["state"] == "done" and end["verdict"]["identical"] is True


@pytest.mark.parametrize("method", ["space", "vanilla"])
def test_generate_gives_the_command_lines_trace(client, served, method):
    asked = {"k": 2, "max_new_tokens": 30, "temperature": 0.7, "top_k": 9, "seed": 3, "plan": "grid"}
    *progress, last = client.submit(prompt="what is", method=method, api_name="/generate", **asked)
    trace = Trace.from_json(last)
    decode = getattr(space_core, method)
    steps = list(decode(served.model, served.model.encode("what is"), Settings(**asked)))
    assert (trace.output_ids, trace.calls, trace.method) == (tuple(output(steps)), len(steps), method)
    assert last["text"] == served.model.decode(trace.output_ids)
    assert last["settings"] | asked == last["settings"]
    assert "".join(event["text"] for event in progress if event != last) == last["text"]
    assert {event["type"] for event in progress if event != last} == {"progress"}
    assert (
        client.predict(prompt="what is", method=method, api_name="/generate", **asked)["output_ids"]
        == last["output_ids"]
    )


@pytest.mark.more
def test_what_the_client_puts_together_is_what_curl_gets(client, served):
    """gradio sends its client differences, and takes those of nested lists wrongly."""
    for seed in range(4):
        asked = {
            "prompt": "what is",
            "max_new_tokens": 60,
            "k": 4,
            "plan": "grid",
            "temperature": 0.9,
            "seed": seed,
        }
        served.pause = (0.0, 0.004, 0.01, 0.02)[seed]
        told = list(client.submit(api_name="/race", **asked))
        whole = [data[0] for kind, data in ask(served, "race", **asked) if kind == "generating"]
        served.pause = 0.0
        ours, theirs = (
            [
                (lane, number, call["tokens"], call.get("pending"))
                for event in stream
                for lane, number, call in numbered(event)
            ]
            for stream in (told, whole)
        )
        assert sorted(ours) == sorted(theirs)


def test_messages_are_sent_by_the_chat_template(client, served):
    talk = [Message("system", "be brief"), Message("user", "one?")]
    run = client.predict(messages=conversation.to_json(talk), max_new_tokens=5, api_name="/generate")
    text, ids = conversation.prompt(served.model, talk)
    assert run["prompt_ids"] == ids
    start, *_ = client.submit(messages=conversation.to_json(talk), max_new_tokens=5, api_name="/race")
    assert start["about"]["prompt"] == text


def test_only_the_pages_conversations_keep_their_caches(served):
    """A program sends its whole conversation: nobody comes back for what is kept."""
    import app

    handlers = app.Handlers(served.loader, 60)
    api, rows = app.Api(handlers), [{"role": "user", "content": "one?"}]
    for told in (api.generate(messages=rows, max_new_tokens=3), api.race(messages=rows, max_new_tokens=3)):
        assert len(list(told)) >= 1
    assert len(handlers.talks.shelf) == 0
    asked = ("one?", 5, 3, 0, 1, 0, "auto", [])
    *_, (_, race) = handlers.race(*asked, True)
    *_, (_, after) = handlers.race(*asked, True, "", race)
    assert len(handlers.talks.shelf) == 1
    assert after.talk.turns == 2 and after.talk.known >= len(race.trace("space").prompt_ids) - 1
    *_, (_, beside) = handlers.race(*asked[:-1], ["generate"], True, "", after)
    assert beside.talk.turns == 3 and beside.verdict()["identical"] is True
    rows = [
        beside.trace(lane).steps[0].rows - sum(beside.trace(lane).steps[0].groups) for lane in beside.lanes
    ]
    assert rows == [len(beside.trace("space").prompt_ids)] * 3, "beside a lane that cannot, none reuses"


# ---------------------------------------------------------------- what is asked wrongly


BAD = [
    ({"k": 0}, "SettingError: k", "k must lie in 1..16"),
    ({"k": 17}, "SettingError: k", "k must lie in 1..16"),
    ({"k": True}, "SettingError: k", "k must be a whole number"),
    ({"k": None}, "SettingError: k", "k must be a whole number"),
    ({"k": [5]}, "SettingError: k", "k must be a whole number"),
    ({"max_new_tokens": 8193}, "SettingError: max_new_tokens", "must lie in 1..8192"),
    ({"max_new_tokens": 1e308}, "SettingError: max_new_tokens", "must lie in 1..8192"),
    ({"temperature": "hot"}, "SettingError: temperature", "must be a number"),
    ({"temperature": -1}, "SettingError: temperature", "must lie in 0..5"),
    ({"top_p": 0}, "SettingError: top_p", "must lie in (0, 1]"),
    ({"top_k": -1}, "SettingError: top_k", "must lie in 0.."),
    ({"top_k": "many"}, "SettingError: top_k", "must be a whole number"),
    ({"seed": 2**31}, "SettingError: seed", "must lie in"),
    ({"plan": "best"}, "SettingError: plan", "plan must be auto or grid"),
    ({"prompt": ""}, "PromptError", "the prompt is empty"),
    ({"prompt": None}, "PromptError", "the prompt must be text"),
    ({"prompt": 7}, "PromptError", "the prompt must be text"),
    ({"prompt": "x" * 65_537}, "PromptError", "65,537 characters"),
    ({"prompt": "well " * 600}, "PromptError", "context"),
    ({"prompt": "a\0b"}, "PromptError", "no text"),
    ({"messages": [{"role": "user", "content": "x"}]}, "PromptError", "not both"),
    ({"prompt": "", "messages": "x"}, "PromptError", "messages must be a list"),
    (
        {"prompt": "", "messages": [{"role": "user", "content": "x" * 65_537}]},
        "PromptError",
        "65,537 characters",
    ),
]


@pytest.mark.parametrize("number", range(len(BAD)))
@pytest.mark.parametrize("name", ["race", "generate"])
def test_what_is_wrong_is_told_by_kind_field_and_sentence(served, name, number):
    body, title, words = BAD[number]
    start = time.monotonic()
    ((kind, told),) = ask(served, name, **{"prompt": "what is", "max_new_tokens": 4, **body})
    assert kind == "error"
    assert told["title"] == title and words in told["error"]
    assert time.monotonic() - start < 30


def test_lanes_and_methods_that_there_are_not(served):
    for lanes in (["assisted"], ["space"], "generate", [7], 0, False):
        ((kind, told),) = ask(served, "race", prompt="x", lanes=lanes)
        assert (kind, told["title"]) == ("error", "SettingError: lanes")
    ((kind, told),) = ask(served, "generate", prompt="x", method="magic")
    assert (kind, told["title"]) == ("error", "SettingError: method")


def test_the_python_client_is_told_the_same(client):
    with pytest.raises(Exception, match="k must lie in") as caught:
        client.predict(prompt="x", k=99, api_name="/generate")
    assert caught.value.title == "SettingError: k"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"data": {}}', b'{"data": ["x"]}', b"\xff", b'{"nonsense": 1}']
)
def test_posts_that_are_none_are_refused_and_the_next_one_is_served(served, body):
    for url in ("call/race", "call/v2/race", "call/generate"):
        status, answer = post(f"{served.url}/gradio_api/{url}", body)
        if status == 200:  # taken in, and told in the stream
            with urllib.request.urlopen(
                f"{served.url}/gradio_api/call/race/{answer['event_id']}", timeout=30
            ) as stream:
                assert b"event: complete" not in stream.read()
    assert ask(served, "generate", prompt="x", max_new_tokens=2)[-1][0] == "complete"


# ---------------------------------------------------------------- one queue, and clients that go away


def test_a_client_that_goes_away_stops_its_run_within_a_call(served):
    idle(served)
    served.pause = 0.1  # one call lasts longer than a frame
    try:
        for name in ("race", "generate"):
            before = served.calls
            _, answer = post(
                f"{served.url}/gradio_api/call/v2/{name}", {"prompt": "what is", "max_new_tokens": 400}
            )
            stream = urllib.request.urlopen(
                f"{served.url}/gradio_api/call/{name}/{answer['event_id']}", timeout=30
            )
            while served.calls < before + 4:
                stream.readline()
            stream.close()
            left = served.calls
            idle(served)
            # The one under way, and one more that began before the server heard of it.
            assert served.calls <= left + 2, name
        assert not served.model.lock.locked()
    finally:
        served.pause = 0.0
    assert ask(served, "generate", prompt="x", max_new_tokens=2)[-1][0] == "complete"


def test_calls_wait_for_each_other_and_both_are_right(client, served):
    """One device: the second begins when the first is over, whichever endpoint it came by."""
    last: dict[str, Any] = {}

    def run(name: str, **asked: Any) -> None:
        last[name] = client.predict(api_name=name, **asked)

    served.caches.clear()
    served.pause = 0.02
    try:
        threads = [
            threading.Thread(target=run, args=("/race",), kwargs={"prompt": "what is", "max_new_tokens": 30}),
            threading.Thread(
                target=run, args=("/generate",), kwargs={"prompt": "it is", "max_new_tokens": 30}
            ),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        served.pause = 0.0
    caches = list(dict.fromkeys(served.caches))
    assert len(caches) == 3
    # The race's two lanes alternate; the lone run's calls stand before all of theirs, or behind.
    lone = caches[0] if served.caches[:3].count(served.caches[0]) == 3 else caches[-1]
    own = [cache == lone for cache in served.caches]
    assert sum(a != b for a, b in pairwise(own)) == 1
    assert last["/race"]["verdict"]["identical"] is True
    settings = Settings(max_new_tokens=30)
    assert last["/generate"]["output_ids"] == output(
        space_core.vanilla(served.model, served.model.encode("it is"), settings)
    )


def test_a_full_queue_is_told_at_once_and_empties(served):
    idle(served)
    served.pause = 0.1
    url = f"{served.url}/gradio_api/call/v2/generate"
    try:
        first, _ = post(url, {"prompt": "what is", "max_new_tokens": 40})
        answers = [post(url, {"prompt": "what is", "max_new_tokens": 1}) for _ in range(24)]
    finally:
        served.pause = 0.0
    told = [status for status, _ in answers]
    assert first == 200 and set(told) == {200, 503}
    assert told.count(200) in (15, 16, 17), "as many as may wait"
    assert all("full" in str(answer) for status, answer in answers if status == 503)
    idle(served)
    assert ask(served, "generate", prompt="x", max_new_tokens=2)[-1][0] == "complete"


# ---------------------------------------------------------------- agents


def test_mcp_without_its_extra_is_one_clear_line():
    hidden = "import sys; sys.modules['mcp'] = None; import importlib.util as u; find = u.find_spec\n"
    hidden += "u.find_spec = lambda name, *a: None if name == 'mcp' else find(name, *a)\n"
    program = hidden + "import app; app.main(['--mcp'])"
    done = warm.run("-c", program)
    assert done.returncode == 2
    assert 'pip install "gradio[mcp]"' in done.stderr and "Traceback" not in done.stderr
