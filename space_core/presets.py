"""Published checkpoints that need to be told how to be opened, and what they ask of a machine.

A checkpoint in the paper's official format has no `space.json`: which vocabulary id is [M], and how many
masks a group was trained with, is known only to whoever published it. Imports nothing heavy.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GB = 10**9


@dataclass(frozen=True, slots=True)
class Preset:
    """A model on the hub.

    Attributes:
        source: its hub id.
        mask_token_id, k: what `space_core.load` is told.
        parameters: in words.
        download: bytes of its weight files.
        memory: bytes that a machine should have to run it in half precision, cache included.
    """

    source: str
    mask_token_id: int
    k: int
    parameters: str
    download: int
    memory: int

    @property
    def arguments(self) -> dict[str, Any]:
        """For `space_core.load`."""
        return {"mask_token_id": self.mask_token_id, "k": self.k}

    def words(self) -> str:
        """Its size, for whoever is about to load it."""
        return (
            f"{self.parameters} parameters: a download of {self.download / GB:.1f} GB, and "
            f"{self.memory / GB:.0f} GB of memory in half precision"
        )

    def misfit(self, device: str, memory: int) -> str:
        """Why a device of so much memory should not run it, "" where it may."""
        lacks = [] if memory >= self.memory else [f"has {memory / GB:.0f} GB"]
        if device == "cpu":
            lacks.append("has no GPU, so that each call would take seconds")
        return " and ".join(lacks)


OFFICIAL = Preset("AntMan/vicuna-v1.3-7b-space", 32002, 5, "7 billion", int(13.5 * GB), 20 * GB)
"""The authors' own (arXiv 2402.11809): Llama shape, vicuna v1.3 with 7 billion parameters."""
PRESETS = (OFFICIAL,)


def find(source: str) -> Preset | None:
    """The preset of a hub id; a folder of that name is a folder."""
    if Path(source).is_dir():
        return None
    return next((preset for preset in PRESETS if preset.source == source), None)


def machine_memory(device: str) -> int:
    """Bytes of memory of a device: its own, or on a CPU (and on mps, which shares it) the machine's."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.get_device_properties(torch.device(device)).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not told here: then nothing large is offered
        return 0
