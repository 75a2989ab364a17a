"""The installed copy: what is in it, the command `space`, the page, and types, far from any checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tarfile
import time
import tomllib
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "venv", "runs", "cache", "dist", "build", "__pycache__", "*.egg-info", ".*_cache"
)


def built(kind: str, source: Path, out: Path) -> Path:
    """The wheel or sdist of a folder, by the build backend that is installed here: no network."""
    program = f"import setuptools.build_meta as b, sys; print(b.build_{kind}(sys.argv[1]))"
    command = [sys.executable, "-c", program, str(out)]
    result = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return out / result.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the checkout, since building leaves its traces."""
    folder = tmp_path_factory.mktemp("source") / "space"
    shutil.copytree(ROOT, folder, ignore=LEFT_OUT)
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    return built("wheel", source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def scratch(wheel, tmp_path_factory) -> Path:
    """A virtual environment with the wheel in it; the requirements are this environment's."""
    folder = tmp_path_factory.mktemp("scratch") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    asked = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())
    (packages / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--no-deps",
        "--no-index",
        "--no-compile",
    ]
    result = subprocess.run([*install, str(wheel)], capture_output=True, text=True, timeout=300)
    if "No module named pip" in result.stderr:
        pytest.skip("no pip here")
    assert result.returncode == 0, result.stderr
    return folder


def run(scratch: Path, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    place = {**os.environ, "PATH": f"{scratch / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    place.pop("PYTHONPATH", None)
    return subprocess.run(
        [str(scratch / "bin" / command[0]), *command[1:]],
        cwd=cwd,
        env=place,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_wheel_holds_code_types_page_and_checkpoint(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / "space_core").rglob("*.py"):
        assert path.relative_to(ROOT).as_posix() in names
    assert "space_core/py.typed" in names and "space_core/page/app.py" in names
    for path in (ROOT / "assets").rglob("*"):
        name = path.relative_to(ROOT)
        if path.is_file() and name.parts[1] != "screenshots":
            assert f"space_core/page/{name.as_posix()}" in names, name
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"space_core"}
    assert wheel.stat().st_size < 100_000_000


@pytest.mark.more
def test_the_command_runs_far_from_the_checkout(scratch, tmp_path):
    result = run(scratch, "space", "race", "def fib(n):", "--max-new-tokens", "16", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    data = json.loads(result.stdout)
    assert data["verdict"]["identical"] is True and data["traces"][0]["model"] == "python-mini"
    told = run(scratch, "space", "--help", cwd=tmp_path)
    assert told.returncode == 0 and told.stdout.startswith("usage: space ") and "  space race" in told.stdout
    wrong = run(scratch, "space", "race", cwd=tmp_path)
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1


def test_what_is_installed_is_the_copy_and_not_the_checkout(scratch, tmp_path):
    program = "import space_core, space_core.bundled as b; print(space_core.__file__); print(b.default_checkpoint())"
    result = run(scratch, "python", "-c", program, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for line in result.stdout.splitlines():
        assert Path(line).is_relative_to(scratch), line
    assert "/page/assets/checkpoints/" in result.stdout


def test_versions_and_requirements_agree():
    import space_core

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == space_core.__version__
    assert project["scripts"] == {"space": "space_core.__main__:main"}


@pytest.mark.slow
def test_the_installed_page_is_served_with_its_assets(scratch, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(scratch / "bin" / "space"), "app", "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False"}
    environment.pop("PYTHONPATH", None)
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        page = ""
        deadline = time.monotonic() + 120
        while not page and time.monotonic() < deadline and process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/config", timeout=10) as answer:
                    page = answer.read().decode()
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.5)
        assert page, process.communicate(timeout=5)[0] if process.poll() is not None else "it did not answer"
        config = json.loads(page)
        assert (ROOT / "assets" / "page.css").read_text()[:200] in config["css"]
        labels = {part["props"].get("label") for part in config["components"]}
        assert {"Race", "Learn", "Benchmark", "Build"} <= labels
        assert "Training is switched off here" in page
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


@pytest.mark.slow
def test_the_sdist_is_whole_and_builds_the_same_wheel(source, wheel, tmp_path):
    archive = built("sdist", source, tmp_path)
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path / "unpacked", filter="data")
    (folder,) = (tmp_path / "unpacked").iterdir()
    for name in ("app.py", "requirements-dev.txt", "finetune/recipes/smoke.toml", "tests/tiny.py", "LICENSE"):
        assert (folder / name).is_file(), name
    again = built("wheel", folder, tmp_path)
    assert set(zipfile.ZipFile(again).namelist()) == set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.slow
def test_type_hints_come_along(scratch, tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(
        "import space_core\n\n"
        "model = space_core.load('x')\n"
        "for step in space_core.space(model, [1], space_core.Settings()):\n"
        "    reveal_type(step.emitted)\n"
        "space_core.load(5)\n"
    )
    # Others' libraries take minutes and tell nothing of ours.
    others = "[mypy-torch.*,transformers.*,safetensors.*,numpy.*]\nfollow_imports = skip\n"
    (tmp_path / "mypy.ini").write_text(f"[mypy]\nignore_missing_imports = True\n{others}")
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--python-executable",
        str(scratch / "bin" / "python"),
        "user.py",
    ]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert re.search(r"user\.py:5: note: Revealed type is .*tuple\[.*int, \.\.\.\]", result.stdout), (
        result.stdout
    )
    assert "user.py:6: error" in result.stdout and "Found 1 error" in result.stdout
