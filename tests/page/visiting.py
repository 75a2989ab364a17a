"""A visitor without a browser: what gradio's page sends, sent by hand. For tests and for `visitors.py`."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import warm
from served import answers, free_port

JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Answer:
    """What came back: the body as JSON where it is some, else as text."""

    status: int
    body: Any
    headers: dict[str, str]
    seconds: float

    @property
    def words(self) -> str:
        return self.body if isinstance(self.body, str) else json.dumps(self.body, ensure_ascii=False)


@dataclass
class Visitor:
    """One session on a served page."""

    url: str
    session: str = field(default_factory=lambda: secrets.token_hex(6))

    def connect(self, timeout: float = 60) -> http.client.HTTPConnection:
        place = urlparse(self.url)
        return http.client.HTTPConnection(place.hostname or "", place.port or 80, timeout=timeout)

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """One request; `path` is sent as it stands."""
        started = time.monotonic()
        with closing(self.connect()) as connection:
            connection.request(method, path, body, headers or (JSON if body is not None else {}))
            response = connection.getresponse()
            raw = response.read()
        seconds = time.monotonic() - started
        try:
            told: Any = json.loads(raw)
        except ValueError:
            told = raw.decode("utf-8", "replace")
        names = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, told, names, seconds)

    def config(self) -> dict[str, Any]:
        told: dict[str, Any] = self.ask("GET", "/config").body
        return told

    def event(self, name: str) -> int:
        """The number of an event by its name; the first where there are several."""
        return next(int(d["id"]) for d in self.config()["dependencies"] if d["api_name"] == name)

    def join(self, event: int, data: Any) -> Answer:
        body = {"data": data, "fn_index": event, "session_hash": self.session, "trigger_id": None}
        return self.ask("POST", "/gradio_api/queue/join", json.dumps(body).encode())

    def call(self, event: int, data: Any) -> Answer:
        """An event that is not queued, answered at once."""
        body = {"data": data, "fn_index": event, "session_hash": self.session}
        return self.ask("POST", "/gradio_api/run/predict", json.dumps(body).encode())

    @contextmanager
    def stream(self, timeout: float = 60) -> Iterator[Iterator[dict[str, Any]]]:
        """The messages of what this session joined; leaving closes the connection, as a closed tab does."""
        connection = self.connect(timeout)
        try:
            connection.request("GET", f"/gradio_api/queue/data?session_hash={self.session}")
            yield _messages(connection.getresponse())
        finally:
            if connection.sock is not None:
                connection.sock.close()
            connection.close()

    def run(self, event: int, data: list[Any], timeout: float = 120) -> dict[str, Any]:
        """Join and read to the end; the message of the end, with the last output in `last`.

        Streams send differences; here only whole outputs are kept, which the first one and the end have.
        """
        answer = self.join(event, data)
        if answer.status != 200:
            return {"refused": answer}
        last: Any = None
        with self.stream(timeout) as messages:
            for message in messages:
                if message["msg"] == "process_generating" and message["output"].get("data"):
                    last = message["output"]["data"]
                if message["msg"] == "process_completed":
                    return {**message, "last": last}
        raise AssertionError("the stream ended before its event did")

    def race(self, event: int, fields: list[Any]) -> dict[str, Any]:
        """A race's last frame."""
        told = self.run(event, fields)
        assert told.get("success"), told
        frame: dict[str, Any] = json.loads(told["output"]["data"][0])
        return frame


def _messages(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in response:
        if line.startswith(b"data:"):
            message = json.loads(line[5:])
            yield message
            if message["msg"] == "close_stream":
                return


def fields(
    prompt: str = "def f():", k: Any = 3, tokens: Any = 16, seed: Any = 0, temperature: Any = 0
) -> list[Any]:
    """The fields of a race, the paper's calls: what they emit does not depend on measured times."""
    return [prompt, k, tokens, temperature, 1, seed, "grid", [], True, None, None]


def text(frame: dict[str, Any], lane: str) -> str:
    """What a lane has written, by a snapshot."""
    calls = sorted((c for c in frame["calls"] if c["lane"] == lane), key=lambda c: c["n"])
    return "".join(piece for call in calls for piece, _ in call["tokens"]) + frame["lanes"][lane]["rest"]


@dataclass(frozen=True)
class Host:
    """A served page whose process is known."""

    url: str
    log: Path
    process: subprocess.Popen[bytes] | warm.Popen

    def visitor(self) -> Visitor:
        return Visitor(self.url)

    def wait_for_the_model(self, seconds: float = 120) -> None:
        """Until a race of one token has run."""
        visitor, until = self.visitor(), time.monotonic() + seconds
        event = visitor.event("page_race")
        while "refused" in visitor.run(event, fields(tokens=1)):
            assert time.monotonic() < until, "no race yet"
            time.sleep(0.2)

    def memory(self) -> int:
        """Bytes of the process that are its own and in memory."""
        for line in Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Private_Dirty:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no Private_Dirty in smaps_rollup")


@contextmanager
def hosting(
    log: Path, *arguments: str, code: str | None = None, alone: bool = False, **environment: str
) -> Iterator[Host]:
    """`python app.py` (or python with this code) on a free port, until the end of the `with`; as `warm.start` does."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    env = {name: value for name, value in os.environ.items() if not name.startswith("SPACE")}
    start = ["-c", code] if code else ["app.py"]
    command, env = [*start, *arguments, "--port", str(port)], {**env, **environment}
    process = warm.start(command, log, env, alone=alone)
    try:
        started = time.monotonic()
        while not answers(url):
            if process.poll() is not None or time.monotonic() - started > 90:
                raise AssertionError(f"the page did not start:\n{log.read_text()}")
            time.sleep(0.1)
        yield Host(url, log, process)
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
