"""The page's scripts without a browser: their pure functions, by node's own test runner."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NODE = shutil.which("node")


def test_pure_functions() -> None:
    if NODE is None:
        pytest.skip("no node on this machine: node --test tests/js runs these where there is one")
    env = {name: value for name, value in os.environ.items() if not name.startswith("NODE_")}
    done = subprocess.run(
        [NODE, "--test", "tests/js/pure.test.mjs"], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "# fail 0" in done.stdout or "fail 0" in done.stdout, "the runner told of no test"
