"""kill -9 in training: resumed weights are bit-equal to an uninterrupted run's, and nothing half is loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def killed(kills, seed):
    script = Path(__file__).with_name("killed.py")
    command = [sys.executable, str(script), str(kills), str(seed)]
    paths = os.pathsep.join((str(script.parent.parent), str(script.parent)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths}
    result = subprocess.run(command, capture_output=True, text=True, timeout=1500, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["kills"] == kills and found["tensors"] >= 3
    assert not found["different"] and not found["unreadable"] and not found["half_loaded"], found
    return found


@pytest.mark.more
def test_three_kills_while_saving():
    assert killed(3, 0)["while_saving"] == 3


@pytest.mark.slow
@pytest.mark.trust(15)
def test_thirty_kills(figures):
    found = killed(30, 1)
    assert found["while_saving"] >= 15
    figures(kills=found["kills"], while_saving=found["while_saving"], different=0)
