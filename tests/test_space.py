"""The repository as a Hugging Face Space: what the hub asks of it, checked before it is pushed."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from space_core.stubs import absent

ROOT = Path(__file__).parent.parent
NEEDED = {
    "title",
    "emoji",
    "colorFrom",
    "colorTo",
    "sdk",
    "sdk_version",
    "python_version",
    "app_file",
    "short_description",
    "license",
    "pinned",
    "suggested_hardware",
}
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
MOST_BYTES = 10 * 2**20
"""Of a file in git without LFS: the hub refuses larger ones."""


def front_matter(text: str) -> dict[str, str]:
    """The fields at the top of a README, of one line each."""
    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    assert found, "README.md begins with its front matter"
    rows = (line.partition(":") for line in found[1].splitlines())
    return {name.strip(): value.strip().strip("\"'") for name, _, value in rows}


def problems(fields: dict[str, str]) -> list[str]:
    """What the hub would refuse or get wrong."""
    found = [f"{name} is missing" for name in sorted(NEEDED - fields.keys())]
    if len(fields.get("short_description", "")) > 60:
        found.append("short_description has more than 60 characters")
    if fields.get("sdk") != "gradio":
        found.append("sdk must be gradio")
    if not re.fullmatch(r"\d+\.\d+\.\d+", fields.get("sdk_version", "")):
        found.append("sdk_version must name one version")
    if fields.get("python_version") not in ("3.10", "3.12"):
        found.append("ZeroGPU has Python 3.10 and 3.12 only")
    found += [f"{name} is no colour" for name in ("colorFrom", "colorTo") if fields.get(name) not in COLOURS]
    if not (ROOT / fields.get("app_file", "")).is_file():
        found.append("app_file is missing")
    return found


def requirements() -> dict[str, str]:
    rows = (ROOT / "requirements.txt").read_text().split()
    return {re.split(r"[<>=!~]", row)[0]: row for row in rows}


def tracked() -> list[Path]:
    told = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in told.stdout.split("\0") if name]


def test_the_front_matter_is_whole() -> None:
    assert problems(front_matter((ROOT / "README.md").read_text())) == []


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("short_description", "x" * 61, "more than 60"),
        ("sdk", "docker", "sdk must be"),
        ("sdk_version", "6", "one version"),
        ("python_version", "3.11", "3.10 and 3.12"),
        ("colorTo", "teal", "no colour"),
        ("app_file", "main.py", "app_file"),
        ("license", None, "license is missing"),
    ],
)
def test_a_wrong_front_matter_is_noticed(name: str, value: str | None, words: str) -> None:
    fields = front_matter((ROOT / "README.md").read_text())
    fields = {k: v for k, v in fields.items() if k != name} | ({name: value} if value is not None else {})
    assert [words in told for told in problems(fields)] == [True]


def test_what_the_space_installs_is_what_the_requirements_allow() -> None:
    fields, pins = front_matter((ROOT / "README.md").read_text()), requirements()
    version = tuple(map(int, fields["sdk_version"].split(".")))
    low, high = re.fullmatch(r"gradio>=(\d+)\.(\d+),<(\d+)", pins["gradio"]).group(1, 2), 7  # type: ignore[union-attr]
    assert tuple(map(int, low)) <= version[:2] < (high, 0)
    # ZeroGPU has torch 2.8 to 2.11: the requirement must leave those in, and name no single version.
    torch = re.fullmatch(r"torch>=2\.(\d+),<=?2\.(\d+)[.\d]*", pins["torch"])
    assert torch and int(torch[1]) <= 8 and int(torch[2]) >= 11
    assert all("==" not in pin and "@" not in pin and "://" not in pin for pin in pins.values())
    assert all(re.search(r">=", pin) for pin in pins.values())
    assert "spaces" not in pins, "Spaces on ZeroGPU bring it; elsewhere it is not needed"
    python = re.search(r'requires-python = ">=3\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert python and int(fields["python_version"].split(".")[1]) >= int(python[1])


def test_no_file_is_too_large_to_be_pushed() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("no git here")
    large = {path.name: path.stat().st_size for path in tracked() if path.is_file()}
    assert large and max(large.values()) < MOST_BYTES, max(large, key=lambda name: large[name])


def order(source: str) -> list[str]:
    """Modules in the order in which a file imports them at its top level."""
    found: list[str] = []
    for node in ast.parse(source).body:
        inner: list[ast.stmt] = [node, *(node.body if isinstance(node, ast.If | ast.With) else [])]
        for statement in inner:
            if isinstance(statement, ast.Import):
                found += [alias.name.split(".")[0] for alias in statement.names]
            elif isinstance(statement, ast.ImportFrom) and statement.module:
                found.append(statement.module.split(".")[0])
    return found


def test_spaces_is_imported_before_what_it_changes() -> None:
    names = order((ROOT / "app.py").read_text())
    assert names.index("spaces") < names.index("gradio")
    assert "torch" not in names and "transformers" not in names
    before = names[: names.index("gradio")]
    assert before.index("spaces") < before.index("space_core")
    assert before.count("space_core") == 1, "nothing but the import of gradio itself, which brings no torch"


def test_no_share_link_no_debugging_and_no_foreign_page() -> None:
    tree = ast.parse((ROOT / "app.py").read_text())
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        told: dict[str, Any] = {k.arg: getattr(k.value, "value", None) for k in call.keywords if k.arg}
        assert not told.get("share") and not told.get("debug") and not told.get("show_error")
        if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name):
            assert (call.func.value.id, call.func.attr) not in {
                ("gr", "load"),
                ("gr", "FileExplorer"),
                ("gr", "File"),
            }


@pytest.mark.more
def test_the_page_starts_as_a_space_does(tmp_path: Path) -> None:
    """On a Space it is told by variables alone where to listen, and that strangers come."""
    code = (
        "import os, gradio as gr, app\n"
        "told = {}\n"
        "gr.Blocks.launch = lambda self, **named: told.update(named)\n"
        "gr.Blocks.block_thread = lambda self: None\n"
        "app.Loader.start = lambda self, patience: None\n"
        "app.main([])\n"
        "assert app.HOSTING.hosted and told['server_name'] is None and told['server_port'] is None\n"
        "assert told['share'] is False and told['enable_monitoring'] is False and told['ssr_mode'] is False\n"
        "print('started')\n"
    )
    import os

    env = {name: value for name, value in os.environ.items() if not name.startswith("SPACE")}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**env, "SPACE_ID": "a/b"}, capture_output=True, text=True
    )
    assert run.returncode == 0 and "started" in run.stdout, run.stderr[-2000:]


@pytest.mark.more
@pytest.mark.parametrize("source", [None, "", "def create_or_modify_pyi(*_):\n    raise OSError\n"])
def test_gradio_is_imported_without_writing_its_stubs(tmp_path: Path, source: str | None) -> None:
    """The real one, one that has no such function, and one whose function must not be called."""
    if source is not None:
        (tmp_path / "gradio").mkdir()
        caller = (
            "if 'create_or_modify_pyi' in dir(component_meta):\n    component_meta.create_or_modify_pyi(1)\n"
        )
        (tmp_path / "gradio" / "__init__.py").write_text(f"from gradio import component_meta\n{caller}")
        (tmp_path / "gradio" / "component_meta.py").write_text(source)
    code = (
        "import sys; from space_core.stubs import unwritten\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "assert not {'torch', 'transformers', 'gradio'} & set(sys.modules)\n"
        "before = list(sys.meta_path)\n"
        "with unwritten():\n    import gradio\n"
        "from gradio import component_meta as told\n"
        "assert sys.meta_path == before\n"
        "print(getattr(getattr(told, 'create_or_modify_pyi', None), '__module__', None))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.split() == ["None" if source == "" else "space_core.stubs"], run.stderr[-2000:]


def test_a_module_that_is_missing_is_looked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "came_too_late.py").write_text("")
    absent("came_too_late")
    absent("json.decoder")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError):
        importlib.import_module("came_too_late")
    assert importlib.util.find_spec("came_too_late") is None
    assert importlib.import_module("json.decoder").JSONDecoder
    monkeypatch.delitem(sys.modules, "came_too_late")
    assert importlib.import_module("came_too_late")


@pytest.mark.parametrize(
    "environment, words",
    [
        ({"SPACE_HOSTED": "1", "SPACE_MODEL": "owner/name"}, "a hosted page does not load"),
        ({"SPACE_HOSTED": "1", "SPACE_MODEL": "/etc"}, "a hosted page does not load"),
        ({"SPACE_HOSTED": "1", "SPACE_DRAFT_MODEL": "."}, "a hosted page does not load"),
        ({"SPACE_DEVICES": "cpu,cpu"}, "each device once"),
        ({"SPACE_DEADLINE": "0"}, "--deadline must lie in"),
        ({"SPACE_DEADLINE": "nan"}, "--deadline must lie in"),
    ],
)
def test_a_wrong_variable_is_a_line_at_the_start(
    environment: dict[str, str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import app
    from space_core.hosting import Hosting

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(app, "HOSTING", Hosting.read(environment))
    with pytest.raises(SystemExit) as ended:
        app.main([])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("port", ["0", "65536", "99999"])
def test_a_port_that_there_is_not_is_a_line_at_the_start(
    port: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import app

    with pytest.raises(SystemExit) as ended:
        app.main(["--port", port])
    assert ended.value.code == 2
    assert "--port must lie in 1..65535" in capsys.readouterr().err


@pytest.mark.parametrize(
    "told, words",
    [
        (
            "Cannot find empty port in range: 7993-7993. You can",
            "port 7993 is in use: name another one by --port",
        ),
        ("[Errno 99] Cannot assign requested address", "cannot be served: [Errno 99] Cannot assign"),
    ],
)
def test_a_page_that_cannot_be_served_is_a_line(
    told: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import app

    def launch(*_: object, **__: object) -> None:
        raise OSError(told)

    monkeypatch.setattr(app.gr.Blocks, "launch", launch)
    with pytest.raises(SystemExit) as ended:
        app.main(["--port", "7993"])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
