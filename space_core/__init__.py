"""SPACE (arXiv 2402.11809): one model drafts several tokens and verifies them in one call.

    model = space_core.load("assets/checkpoints/python-mini")
    settings = space_core.Settings(k=5, max_new_tokens=64)
    for step in space_core.space(model, model.encode("def fib(n):"), settings):
        print(step.accepted, model.decode(step.emitted))

Names are loaded when they are first used: the settings and traces cost no import of torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from space_core.batches import batch
    from space_core.checkpoint import load, save, write_custom_generate
    from space_core.decoders import space, vanilla
    from space_core.generation import generate
    from space_core.model import Masks, SpaceModel
    from space_core.racing import race
    from space_core.settings import Settings
    from space_core.threads import tune_threads
    from space_core.trace import Step, Stop, Trace

__version__ = "0.1.0"
__all__ = [
    "Masks",
    "Settings",
    "SpaceModel",
    "Step",
    "Stop",
    "Trace",
    "batch",
    "generate",
    "load",
    "race",
    "save",
    "space",
    "tune_threads",
    "vanilla",
    "write_custom_generate",
]

_ROOMS = {
    "Masks": "model",
    "Settings": "settings",
    "SpaceModel": "model",
    "Step": "trace",
    "Stop": "trace",
    "Trace": "trace",
    "batch": "batches",
    "generate": "generation",
    "load": "checkpoint",
    "race": "racing",
    "save": "checkpoint",
    "space": "decoders",
    "tune_threads": "threads",
    "vanilla": "decoders",
    "write_custom_generate": "checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'space_core' has no attribute {name!r}")
    # No public name may equal a room's: importing the room would set the attribute to the module.
    module = importlib.import_module(f"space_core.{_ROOMS[name]}")
    value = getattr(module, name)
    globals()[name] = value
    return value
