"""The API as an MCP server, asked by an MCP client; needs the extra, `pip install "gradio[mcp]"`."""

from __future__ import annotations

import ast
import asyncio
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chatting import chat_folder

import space_core
from space_core import Settings

pytest.importorskip("mcp", reason='no MCP here: pip install "gradio[mcp]"')
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def url(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "log.txt"
    command = [
        sys.executable,
        "app.py",
        "--mcp",
        "--model",
        str(folder),
        "--port",
        str(port),
        "--device",
        "cpu",
    ]
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ, stdout=out, stderr=subprocess.STDOUT)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                time.sleep(0.3)
        yield f"http://127.0.0.1:{port}/gradio_api/mcp/"
    finally:
        process.terminate()
        process.wait(20)


def ask(url: str, name: str | None = None, **arguments: Any) -> Any:
    """The tools, or what one of them answers."""
    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    async def talk() -> Any:
        async with streamablehttp_client(url) as (read, write, _), ClientSession(read, write) as session:
            await session.initialize()
            return await (session.list_tools() if name is None else session.call_tool(name, arguments))

    return asyncio.run(talk())


def test_an_agent_finds_the_three_tools_and_what_they_take(url):
    tools = {tool.name: tool for tool in ask(url).tools}
    assert sorted(tools) == ["generate", "models", "race"]
    fields = tools["generate"].inputSchema["properties"]
    assert "16" in fields["k"]["description"] and "Text to continue" in fields["prompt"]["description"]
    assert "fair clock" in tools["race"].description


def test_an_agent_gets_a_run_and_a_sentence_for_what_is_wrong(url, folder):
    told = ask(url, "generate", prompt="what is", max_new_tokens=12, plan="grid")
    assert not told.isError
    run = ast.literal_eval(told.content[0].text)  # gradio writes it as Python does
    model = space_core.load(folder)
    steps = space_core.space(model, model.encode("what is"), Settings(max_new_tokens=12, plan="grid"))
    assert run["output_ids"] == [token for step in steps for token in step.emitted]
    wrong = ask(url, "generate", prompt="what is", k=99)
    assert wrong.isError and "k must lie in 1..16" in wrong.content[0].text
