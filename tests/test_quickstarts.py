"""What a newcomer copies out, run as it stands: the README's library and command line, and the notebook.

The notebook's cells are plain Python, so they are run in one namespace here: a kernel (ipykernel, pyzmq,
jupyter_client, nbclient) would be nine more packages for the tests and would show no more.
"""

from __future__ import annotations

import ast
import io
import json
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
import warm
from commandline import run
from tiny import some

from space_core.bundled import CHECKPOINTS

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "assets" / "space.ipynb"
SECTION = "## As a library and on the command line"
pytestmark = pytest.mark.skipif(
    not any(CHECKPOINTS.glob("*/space.json")), reason="no bundled checkpoint in this checkout"
)


def blocks() -> list[str]:
    """The indented blocks of the section, each without its indent."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text[text.index(SECTION) + len(SECTION) :]
    section = section[: section.index("\n## ")]
    found = re.findall(r"(?:^    .*\n)+", section, re.MULTILINE)
    return ["".join(line[4:] for line in block.splitlines(keepends=True)) for block in found]


def test_the_library_block_runs():
    (program,) = [block for block in blocks() if block.startswith("import space_core")]
    result = warm.run("-c", program)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) > 3
    counts, pieces = zip(*(line.split(" ", 1) for line in lines), strict=True)
    assert sum(map(int, counts)) + len(lines) >= 64 and all(
        isinstance(ast.literal_eval(p), str) for p in pieces
    )


def commands() -> list[str]:
    (block,) = [block for block in blocks() if " race " in block]
    return block.splitlines()


@pytest.mark.parametrize(
    "line",
    some(commands(), [line for line in commands() if " bench " not in line]),
    ids=lambda line: line.split("space_core ")[1].split(" #")[0].strip(),
)
def test_each_line_of_the_command_line_block_runs(line, as_before, monkeypatch):
    monkeypatch.chdir(ROOT)
    if "|" in line:  # by a shell, as it stands
        shell = f'export PATH="{Path(sys.executable).parent}:$PATH"\n{line}'
        result = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=300)
    else:
        python, module, name, *arguments = shlex.split(line, comments=True)
        assert (python, module, name) == ("python", "-m", "space_core")
        result = run(*arguments)
    assert result.returncode == 0, result.stderr
    if "--json" in line:
        data = json.loads(result.stdout)
        assert data["format"] == "space-trace/1" and len(data["output_ids"]) == 64
    elif " race " in line:
        assert "outputs identical" in result.stdout and "tokens per call" in result.stdout
    elif " inspect " in line:
        assert "36 rows" in result.stdout and "Who sees whom" in result.stdout
    elif "calls" in line:
        assert "plain calls" in result.stdout
    else:
        assert "speed-up" in result.stdout and "generate" in result.stdout


def cells(kind: str) -> list[str]:
    data = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in data["cells"] if cell["cell_type"] == kind]


def run_cell(source: str, names: dict[str, Any]) -> tuple[Any, str]:
    """Run a cell as a kernel does: what its last line is worth, and what it printed."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    told = io.StringIO()
    with redirect_stdout(told):
        exec(compile(tree, "cell", "exec"), names)
        value = None
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    return value, told.getvalue()


def test_the_notebook_runs_through():
    threads = torch.get_num_threads()
    names: dict[str, Any] = {"__name__": "__main__"}
    try:
        done = [run_cell(source, names) for source in cells("code")]
    finally:
        torch.set_num_threads(threads)
    assert names["identical"] is True and len(names["output"]) == 96
    assert len(names["steps"]) < len(names["plain"]) == 96
    printed = "".join(text for _, text in done)
    assert "identical: True" in printed and "Who sees whom" in printed
    (figure,) = [value for value, _ in done if type(value).__name__ == "Figure"]
    bars = [trace for trace in figure.data if trace.type == "bar"]
    assert sum(sum(bar.y) for bar in bars) == 96


def test_the_notebook_is_one_clean_page():
    data = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (data["nbformat"], data["metadata"]["kernelspec"]["name"]) == (4, "python3")
    assert data["nbformat_minor"] >= 5 and len({cell["id"] for cell in data["cells"]}) == len(data["cells"])
    for cell in data["cells"]:
        assert cell["cell_type"] in ("code", "markdown") and isinstance(cell["source"], list)
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
    assert not any(line.startswith(("%", "!")) for source in cells("code") for line in source.splitlines())
    assert "(assets/space.ipynb)" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert NOTEBOOK.stat().st_size < 20_000
