"""A build as the page shows it: its checkpoint's recipe, or one that runs now ("space-build/1")."""

from __future__ import annotations

from typing import Final, Literal, NotRequired, TypedDict

from space_core.views.training import Curves, Point, thinned

FORMAT: Final = "space-build/1"
State = Literal["shown", "running", "done", "stopped", "failed"]
STAGES: Final = {
    "": "reading the corpus",
    "pretrain": "training the base",
    "distil": "writing its own outputs",
}
LIVE_POINTS: Final = 120


class Series(TypedDict):
    name: str
    points: list[Point]


class Build(TypedDict):
    """What the panel shows: a line of words, facts, and a few short series to draw."""

    format: Literal["space-build/1"]
    state: State
    words: str
    facts: NotRequired[list[tuple[str, str]]]
    series: NotRequired[list[Series]]


def shown(name: str, facts: list[tuple[str, str]]) -> Build:
    """The checkpoint that comes with the page."""
    words = f"How {name} was made." if facts else f"{name} says nothing of its making."
    return Build(format=FORMAT, state="shown", words=words, facts=facts)


def running(found: Curves, seconds: float) -> Build:
    stage = "training the masks" if found.stage.startswith("masks") else STAGES.get(found.stage, found.stage)
    at = f", step {found.step}" if found.stage else ""
    return Build(
        format=FORMAT,
        state="running",
        words=f"{stage}{at} · {seconds:.0f} s",
        series=series(found),
    )


def ended(state: Literal["done", "stopped", "failed"], found: Curves, words: str) -> Build:
    return Build(format=FORMAT, state=state, words=words, series=series(found))


def series(found: Curves) -> list[Series]:
    return [
        Series(name=name, points=thinned(points, LIVE_POINTS))
        for name, points in (
            ("loss of the base", found.base_loss),
            ("held-out loss", found.heldout_loss),
            ("loss of the masks", found.masks_loss),
            ("tokens per call", found.tokens_per_call),
        )
        if len(points) > 1
    ]
