"""Many visitors, one after the other and beside each other: nobody goes unanswered, memory stays flat."""

from __future__ import annotations

from pathlib import Path

import pytest
from visiting import hosting
from visitors import MOST_GROWTH, Tally, crowd


@pytest.mark.slow
def test_six_hundred_visitors(tmp_path: Path) -> None:
    """A few of them: `test_visitors.py`."""
    log = tmp_path / "log.txt"
    with hosting(log, "--device", "cpu", SPACE_HOSTED="1", alone=True) as host:
        host.wait_for_the_model()
        tally = crowd(host, lambda t: t.races >= 600, sample=15)
    assert tally.failures == []
    assert "Traceback" not in log.read_text()
    assert tally.growth() < MOST_GROWTH, tally.memory


def test_growth_is_noticed() -> None:
    flat, leaking = Tally(), Tally()
    for n in range(60):
        flat.memory.append((n, n, 100_000_000 + n % 3))
        leaking.memory.append((n, n, 100_000_000 + 200_000 * n))
    assert abs(flat.growth()) < 0.001
    assert leaking.growth() > MOST_GROWTH
