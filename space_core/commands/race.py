"""`race`: SPACE against plain decoding in the terminal, on the fair clock of `space_core.race`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from space_core.commands import options as given

if TYPE_CHECKING:
    from space_core.model import SpaceModel
    from space_core.settings import Settings
    from space_core.trace import Step
    from space_core.views.frames import Race
    from space_core.views.terminal import Lanes

FRAMES_PER_SECOND = 15
WARM_TOKENS = 8


def add(command: argparse.ArgumentParser) -> None:
    command.set_defaults(run=run)
    given.add_prompt(command)
    given.add_space(command)
    given.add_settings(command)
    command.add_argument(
        "--json",
        action="store_true",
        help='print the race as one object, "space-shared/1", which the page opens, with its verdict',
    )
    given.add_model(command)


def run(options: argparse.Namespace) -> int:
    """Race on one prompt; 130 where the user broke it off, with what there was by then."""
    settings = given.settings(options, options.k)
    prompt = given.prompt(options)
    model = given.model(options)
    import space_core
    from space_core.views import frames, sharing, terminal
    from space_core.views.lanes import MAIN

    ids = model.encode(prompt)
    space_core.tune_threads(model)
    for decoder in _decoders(model, ids, replace(settings, max_new_tokens=WARM_TOKENS)).values():
        for _ in decoder:
            pass
    race = frames.Race.of(model, MAIN, ids, prompt, settings)
    lanes = terminal.Lanes(MAIN)
    code = 0
    with _painted(lanes, quiet=options.json) as paint:
        try:
            _run(race, _decoders(model, ids, settings), lanes, paint)
        except KeyboardInterrupt:
            race.end(frames.State.STOPPED)
            code = 130
    lanes.add(race.delta())
    verdict = race.verdict()
    if options.json:
        print(json.dumps({**json.loads(sharing.write(race)), "verdict": verdict}))
        return code
    screen = terminal.console(sys.stdout)
    if _marks(screen):
        screen.print(lanes.whole(screen.width))
        screen.print()
        screen.print(terminal.verdict(verdict))
    else:
        print(f"{lanes.plain()}\n\n{verdict['headline']}, {verdict['badge']}\n{verdict['sentence']}")
    return code


def _decoders(model: SpaceModel, ids: list[int], settings: Settings) -> dict[str, Iterator[Step]]:
    """The lanes in the order of their first calls."""
    import space_core

    return {
        "vanilla": space_core.vanilla(model, ids, settings),
        "space": space_core.space(model, ids, settings),
    }


def _run(
    race: Race, decoders: dict[str, Iterator[Step]], lanes: Lanes, paint: Callable[[], None] | None
) -> None:
    import space_core

    painted = 0.0
    with closing(space_core.race(decoders)) as steps:
        for lane, step, _ in steps:
            race.add(lane, step)
            now = time.monotonic()
            if paint is not None and now - painted > 1 / FRAMES_PER_SECOND:
                lanes.add(race.delta())
                paint()
                painted = now
    race.end()


def _marks(screen: Any) -> bool:
    """Whether tokens can be marked at all. Colour is rich's to judge: NO_COLOR leaves the other cue."""
    return bool(screen.is_terminal) and not screen.is_dumb_terminal


@contextmanager
def _painted(lanes: Lanes, quiet: bool) -> Iterator[Callable[[], None] | None]:
    """How to paint the lanes while they run, on a terminal that can take back what it shows; else None."""
    from rich.live import Live

    from space_core.views import terminal

    screen = terminal.console(sys.stdout)
    if quiet or not sys.stdout.isatty() or not _marks(screen):
        yield None
        return
    with Live(console=screen, auto_refresh=False, transient=True, vertical_overflow="crop") as live:

        def paint() -> None:
            live.update(lanes.live(screen.width, screen.height), refresh=True)

        yield paint
