"""Record the race that the page opens with: python -m space_core.views.record [--model DIR] …

Races SPACE against vanilla on the bundled checkpoint, opens every call, and writes
assets/recorded/race.json (`recording.py`). Run it again when the bundled checkpoint changes.
"""

from __future__ import annotations

import argparse
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import space_core
from space_core.bundled import default_checkpoint
from space_core.errors import SpaceError
from space_core.inspect import layout_of
from space_core.model import SpaceModel
from space_core.settings import Settings
from space_core.views import frames, inspect, recording
from space_core.views.lanes import MAIN


def record(model: SpaceModel, prompt: str, settings: Settings) -> dict[str, Any]:
    """Run one race and tell it whole, as "space-race/1"."""
    ids = model.encode(prompt)
    race = frames.Race.of(model, MAIN, ids, prompt, settings)
    decoders = {
        "vanilla": space_core.vanilla(model, ids, settings),
        "space": space_core.space(model, ids, settings),
    }
    for lane, step, _ in space_core.race(decoders):
        race.add(lane, step)
    race.end()
    structures, opened = _opened(model, race)
    return {
        "format": recording.FORMAT,
        "made": {
            "date": datetime.now(UTC).date().isoformat(),
            "model": model.name,
            "device": str(model.device),
            "processor": _processor(model),
            "plan": str(settings.plan),
        },
        "frame": race.snapshot(),
        "reasons": inspect.reasons(),
        "structures": structures,
        "opened": opened,
    }


def _opened(
    model: SpaceModel, race: frames.Race
) -> tuple[list[inspect.Structure], dict[str, list[inspect.Opened]]]:
    """Every call of both lanes; a structure that calls share is told once."""
    places: dict[tuple[int, ...], int] = {}
    structures: list[inspect.Structure] = []
    opened: dict[str, list[inspect.Opened]] = {}
    for trace in race.traces():
        opened[trace.method] = []
        for call, step in enumerate(trace.steps):
            layout = layout_of(step)
            if layout.masks not in places:
                places[layout.masks] = len(structures)
                structures.append(inspect.structure(layout))
            told = inspect.open_call(model, trace, call)
            told["layout"] = places[layout.masks]
            opened[trace.method].append(told)
    return structures, opened


def _processor(model: SpaceModel) -> str:
    """What the device is called, for people."""
    if model.device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(model.device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Record the race that the page opens with.")
    parser.add_argument("--model", help="folder or hub id; the bundled checkpoint by default")
    parser.add_argument("--prompt-file", type=Path, help="binary search by default")
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--plan", default="auto", choices=("auto", "grid"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=recording.PATH)
    options = parser.parse_args(arguments)
    try:
        file = options.prompt_file
        prompt = file.read_text(encoding="utf-8") if file else recording.PROMPT
        model = space_core.load(options.model or str(default_checkpoint()), device=options.device)
        space_core.tune_threads(model)
        settings = Settings(k=options.k, max_new_tokens=options.max_new_tokens, plan=options.plan)
        for _ in space_core.space(model, model.encode(prompt), Settings(k=options.k, max_new_tokens=8)):
            pass  # the first calls of a process are slow: not on the race's clock
        told = record(model, prompt, settings)
    except (SpaceError, OSError, ValueError) as error:
        print(f"record: {error}", file=sys.stderr)
        return 2
    text = recording.encode(told)
    size = len(text.encode())
    if size > recording.MAX_BYTES:
        print(f"record: {size:,} bytes are too many: record fewer tokens", file=sys.stderr)
        return 2
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text, encoding="utf-8")
    print(f"{options.out}: {size:,} bytes. {told['frame']['verdict']['sentence']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
