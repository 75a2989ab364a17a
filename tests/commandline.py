"""The command line as a user calls it, and the same in the tests' own process.

A process of its own takes longer than most commands: one test of each kind is enough there.
"""

from __future__ import annotations

import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from unittest.mock import patch

import warm

from space_core.__main__ import main

Done = subprocess.CompletedProcess[str]


def run(*arguments: str, text: str = "") -> Done:
    """In this process. It sets torch's threads and log levels: the fixture `as_before` puts them back."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    asked = io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8")
    typed = patch.multiple(sys, stdin=asked, argv=["space_core"])
    with redirect_stdout(out), redirect_stderr(err), typed:
        try:
            code = main(list(arguments))
        except SystemExit as end:
            code = end.code
    for stream in (out, err):
        stream.seek(0)
    return subprocess.CompletedProcess(arguments, code, out.read(), err.read())


def run_alone(*arguments: str, text: str = "") -> Done:
    """In a process of its own."""
    return warm.run("-m", "space_core", *arguments, text=text)
