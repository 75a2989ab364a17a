"""Where the layers of a model are, which accelerate may have spread over GPUs, the CPU and the disk.

A layer that is too many for its device keeps its weights elsewhere: between calls its parameters are
on "meta", and a hook brings them to the device on which it runs. This room reads those hooks; what
they do is accelerate's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from space_core.errors import CheckpointError

MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
"""The maps that accelerate draws itself."""


def runs_on(module: nn.Module) -> torch.device:
    """The device on which a module computes, wherever its weights lie between two calls."""
    hook: Any = getattr(module, "_hf_hook", None)
    for part in getattr(hook, "hooks", (hook,)):
        device = getattr(part, "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next(module.parameters()).device


def devices(lm: nn.Module) -> tuple[torch.device, ...]:
    """All devices on which a model computes, each once."""
    found = {parameter.device for parameter in lm.parameters()}
    found |= {runs_on(module) for module in lm.modules() if hasattr(module, "_hf_hook")}
    return tuple(sorted((device for device in found if device.type != "meta"), key=str))


def is_spread(lm: nn.Module) -> bool:
    """Whether hooks carry rows or weights between devices. Such a model cannot be moved."""
    return any(hasattr(module, "_hf_hook") for module in lm.modules())


@contextmanager
def weights_here(module: nn.Module) -> Iterator[None]:
    """Within it a module's own parameters are there, offloaded or not."""
    if getattr(module, "_hf_hook", None) is None:
        yield
        return
    from accelerate.utils import align_module_device

    with align_module_device(module):
        yield


def check_map(device_map: Any, max_memory: Any) -> None:
    """Raise CheckpointError for what is no map of devices at all; accelerate judges the rest."""
    if isinstance(device_map, str):
        if device_map not in MAPS:
            raise CheckpointError(
                f"device_map must be {', '.join(MAPS)} or a dict of module names and devices, "
                f"not {device_map!r:.40}"
            )
    elif not (
        isinstance(device_map, Mapping)
        and device_map
        and all(isinstance(name, str) for name in device_map)
        and all(_is_device(place) for place in device_map.values())
    ):
        raise CheckpointError(f"device_map must give each module a device, not {device_map!r:.60}")
    if max_memory is not None and not (isinstance(max_memory, Mapping) and max_memory):
        raise CheckpointError(f"max_memory must give devices their most bytes, not {max_memory!r:.40}")


def _is_device(place: Any) -> bool:
    if place == "disk" or (isinstance(place, int) and not isinstance(place, bool)):
        return True
    try:
        torch.device(place)
    except (RuntimeError, TypeError):
        return False
    return True
