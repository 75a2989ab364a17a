"""Synthetic visitors: races finished, broken off and stopped, bad requests, links and files, for as long as asked.

    python tests/page/visitors.py --minutes 60
    python tests/page/visitors.py --races 200

Starts a hosted page of its own with the bundled checkpoint, and prints one JSON object: who came, what
became of them, and what the page's memory did. Ends with 1 where memory grew by more than 5 % after the
first third, or a request went unanswered.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from visiting import Host, Visitor, fields, hosting

MOST_GROWTH = 0.05
AT_ONCE = 3
PROMPTS = (
    "def fib(n):\n",
    "class Stack:\n    def __init__(self):\n",
    "import csv\n\n\ndef read_rows(path):\n",
    "${alert(1)} <img src=x onerror=alert(1)>\n",
    "é漢🙂 " * 40,
)


@dataclass
class Tally:
    """What became of all of them; filled by several threads."""

    kinds: Counter[str] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)
    memory: list[tuple[int, float, int]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def races(self) -> int:
        """Races that were let in."""
        return sum(self.kinds[kind] for kind in ("finished", "broken off", "stopped"))

    def growth(self) -> float:
        """By what part memory grew: from the second sixth, when caches are full, to the last."""
        sizes = [size for _, _, size in self.memory]
        part = max(1, len(sizes) // 6)
        early, late = sizes[2 * part : 3 * part] or sizes[:1], sizes[-part:]
        return statistics.median(late) / statistics.median(early) - 1

    def told(self, seconds: float) -> dict[str, Any]:
        waits = sorted(self.waits) or [0.0]
        sizes = [size for _, _, size in self.memory]
        return {
            "seconds": round(seconds),
            "races": self.races,
            **{kind.replace(" ", "_"): count for kind, count in sorted(self.kinds.items())},
            "first_frame_seconds": {
                "median": round(statistics.median(waits), 3),
                "p95": round(waits[int(0.95 * (len(waits) - 1))], 3),
                "most": round(waits[-1], 3),
            },
            "memory_mb": [round(size / 1e6, 1) for size in sizes[:: max(1, len(sizes) // 12)]],
            "memory_growth_percent": round(100 * self.growth(), 2),
            "failures": self.failures[:5],
        }


def visit(host: Host, race: int, share: int, dice: random.Random, tally: Tally) -> str:
    """One visitor from beginning to end; what became of him."""
    visitor = host.visitor()
    mood = dice.random()
    if mood < 0.1:
        answer = visitor.join(race, fields(dice.choice(["", "x" * 9_000]), k=dice.choice([3, 99])))
        return "turned away" if answer.status == 422 else f"odd answer {answer.status}"
    asked = fields(
        dice.choice(PROMPTS),
        k=dice.randint(1, 8),
        tokens=dice.choice([16, 64, 256]),
        seed=dice.randint(0, 99),
        temperature=dice.choice([0, 0, 0.8]),
    )
    asked[6] = dice.choice(["grid", "auto"])
    came = time.monotonic()
    answer = visitor.join(race, asked)
    if answer.status == 503:
        return "queue full"
    if answer.status != 200:
        return f"odd answer {answer.status}"
    event = answer.body["event_id"]
    patience = dice.randint(1, 6) if mood < 0.4 else 10**6
    heard = 0
    with visitor.stream() as messages:
        for message in messages:
            if message["msg"] == "process_generating":
                heard += 1
                if heard == 1:
                    with tally.lock:
                        tally.waits.append(time.monotonic() - came)
            if heard >= patience:
                if mood < 0.25:
                    return "broken off"
                body = {"session_hash": visitor.session, "fn_index": race, "event_id": event}
                visitor.ask("POST", "/gradio_api/cancel", json.dumps(body).encode())
                return "stopped"
            if message["msg"] == "process_completed":
                if not message["success"]:
                    return f"odd end {message['output']}"
                break
    if mood > 0.8 and visitor.call(share, [None, *asked[:-1]]).status != 200:
        return "odd share"
    return "finished"


def crowd(host: Host, enough: Callable[[Tally], bool], seed: int = 0, sample: int = 5) -> Tally:
    """Visitors, a few at once, until there were enough."""
    tally = Tally()
    config = Visitor(host.url).config()["dependencies"]
    race, share = (next(d["id"] for d in config if d["api_name"] == name) for name in ("page_race", "share"))
    started = time.monotonic()

    def come(number: int) -> None:
        dice = random.Random(seed * 1000 + number)
        while not enough(tally):
            try:
                kind = visit(host, race, share, dice, tally)
            except Exception as error:
                kind = f"odd {type(error).__name__}: {error}"
            with tally.lock:
                if kind.startswith("odd"):
                    tally.failures.append(kind[:300])
                    kind = "failed"
                tally.kinds[kind] += 1
                if tally.races % sample == 0 and (not tally.memory or tally.memory[-1][0] != tally.races):
                    tally.memory.append((tally.races, time.monotonic() - started, host.memory()))

    threads = [threading.Thread(target=come, args=(number,)) for number in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=None)
    parser.add_argument("--races", type=int, default=None, help="200 where nothing else is asked")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.minutes is None and options.races is None:
        options.races = 200
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.txt"
        with hosting(log, "--device", "cpu", SPACE_HOSTED="1", alone=True) as host:
            host.wait_for_the_model()
            started = time.monotonic()
            until = started + 60 * (options.minutes or 1e6)
            tally = crowd(
                host,
                lambda t: (
                    time.monotonic() > until or (options.races is not None and t.races >= options.races)
                ),
                options.seed,
            )
            told = tally.told(time.monotonic() - started)
        told["log_lines"] = len(log.read_text().splitlines())
    print(json.dumps(told, indent=1))
    return int(bool(tally.failures) or tally.growth() > MOST_GROWTH)


if __name__ == "__main__":
    sys.exit(main())
