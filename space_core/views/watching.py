"""A benchmark while it runs and after it, as messages to the browser: the contract "space-bench-view/1"."""

from __future__ import annotations

import json
from typing import Any, Final, Literal, NotRequired, TypedDict

from space_core.views import benchmarks, results

FORMAT: Final = "space-bench-view/1"
State = Literal["waiting", "running", "done", "stopped", "deadline", "failed"]
ENDS: Final = {
    "done": "All prompts are done.",
    "stopped": "Stopped. Only prompts that every method has finished count.",
    "deadline": "Ended at the deadline. Only prompts that every method has finished count.",
}


class View(TypedDict):
    """What the panel shows. `table` has a head and lines; `csv` and `json` are whole files' contents."""

    format: Literal["space-bench-view/1"]
    state: State
    words: str
    share: float
    table: NotRequired[list[list[str]]]
    csv: NotRequired[str]
    json: NotRequired[str]


def waiting() -> View:
    return View(format=FORMAT, state="waiting", words="Waiting for the model to load.", share=0.0)


def failed(sentence: str) -> View:
    return View(format=FORMAT, state="failed", words=sentence, share=0.0)


def running(done: int, total: int, line: str, calls: int) -> View:
    """Progress: prompts done of all, and the method whose calls count up now."""
    where = "warming up" if not done else f"prompt {min(done, total - 1)} of {total - 1}"
    now = f" · {line} · call {calls}" if line else ""
    return View(format=FORMAT, state="running", words=f"{where}{now}", share=done / total)


def over(end: Literal["done", "stopped", "deadline"], result: dict[str, Any] | None) -> View:
    """The end; `result` is "space-bench/1", or None where no prompt was finished."""
    if result is None:
        words = "Stopped" if end == "stopped" else "Ended at the deadline"
        return View(
            format=FORMAT, state=end, words=f"{words} before the first prompt was finished.", share=0.0
        )
    bench = benchmarks.parse("here", result)
    assert isinstance(bench, benchmarks.Bench)
    return View(
        format=FORMAT,
        state=end,
        words=f"{ENDS[end]} {results.label(bench)}.",
        share=1.0,
        table=results.table(bench),
        csv=results.as_csv(bench),
        json=json.dumps(result, indent=1) + "\n",
    )
