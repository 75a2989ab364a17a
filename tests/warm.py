"""Processes that begin where their imports are over.

torch, transformers and gradio take longer to import than most of what a test asks of a process (nine seconds
on a slow core, where the command that was asked for took one). Here a process of the standard library's fork
server imports them once, and each that is started is its fork and does what `python` would with the same
arguments. What is about starting, about imports, or about a process's own memory starts a real one.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path

ROOT = Path(__file__).parent.parent
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["warm_imports"])


class Popen:
    """What the tests use of `subprocess.Popen`. `command` has no interpreter in front: -c, -m or a file comes first.

    Output goes to the files `out` and `err`, or all to the one; the environment is the tests' own by default.
    """

    def __init__(
        self,
        command: Sequence[str | os.PathLike[str]],
        out: Path,
        err: Path | None = None,
        *,
        cwd: Path = ROOT,
        env: Mapping[str, str] | None = None,
        typed: Path | None = None,
    ) -> None:
        _start_server()
        streams = [os.fspath(typed or os.devnull), os.fspath(out), os.fspath(err or out)]
        words = [os.fspath(word) for word in command]
        asked = (words, os.fspath(cwd), dict(os.environ if env is None else env), streams)
        self._process: ForkServerProcess = _CONTEXT.Process(target=_run, args=asked)
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a warm process", timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def start(
    command: Sequence[str], out: Path, env: Mapping[str, str], *, alone: bool = False
) -> Popen | subprocess.Popen[bytes]:
    """Such a process; `alone` a real one, which shares no memory with others and has imported nothing."""
    if not alone:
        return Popen(command, out, env=env)
    with out.open("wb") as log:
        return subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT
        )


def run(
    *command: str | os.PathLike[str],
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    text: str = "",
    timeout: float = 400,
) -> subprocess.CompletedProcess[str]:
    """Run such a command to its end, with `text` as its input."""
    with tempfile.TemporaryDirectory() as folder:
        typed, out, err = (Path(folder, name) for name in ("in", "out", "err"))
        typed.write_text(text, encoding="utf-8")
        process = Popen(command, out, err, cwd=cwd, env=env, typed=typed)
        try:
            code = process.wait(timeout)
        except BaseException:
            process.kill()
            process.wait()
            raise
        said, told = (path.read_text(encoding="utf-8") for path in (out, err))
    return subprocess.CompletedProcess(command, code, said, told)


def _start_server() -> None:
    """It finds what it is to import by PYTHONPATH alone, and would say nothing if it did not."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), str(ROOT)])
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before


def _run(command: list[str], cwd: str, env: dict[str, str], streams: list[str]) -> None:
    """In the fork: be `python` with these arguments."""
    if "warm_imports" not in sys.modules:
        raise ImportError("the fork server could not import warm_imports: try it alone")
    for number, path in enumerate(streams):
        how = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
        os.dup2(os.open(path, how, 0o644), number)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", buffering=1, closefd=False)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    multiprocessing.set_start_method(None, force=True)  # whatever is Python's default
    sys.dont_write_bytecode = bool(env.get("PYTHONDONTWRITEBYTECODE"))
    for name in ("warm", "warm_imports"):  # a copy of the repository has its own
        del sys.modules[name]
    atexit._clear()
    first, *rest = command
    kind = first if first in ("-c", "-m") else "file"
    if kind != "file":
        first, *rest = rest
    sys.path[:] = [cwd if kind != "file" else str(Path(first).parent.resolve()), *_elsewhere(env)]
    sys.argv[:] = [kind if kind == "-c" else first, *rest]
    try:
        if kind == "-c":
            exec(compile(first, "<string>", "exec"), {"__name__": "__main__"})
        elif kind == "-m":
            runpy.run_module(first, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(first, run_name="__main__")
    except SystemExit as end:  # what is no number is a message, and multiprocessing's own ends say nothing
        if end.code is not None and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
            raise SystemExit(1) from None
        raise
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()


def _elsewhere(env: Mapping[str, str]) -> list[str]:
    """Where a process of its own would look: not where the tests are, but by its own PYTHONPATH."""
    ours = {str(Path(__file__).parent), str(Path(__file__).parent / "page"), str(ROOT), ""}
    named = [place for place in env.get("PYTHONPATH", "").split(os.pathsep) if place]
    return [*named, *(place for place in sys.path if place not in ours)]
