"""The number format in which a training step multiplies: measured on the machine, not guessed.

Weights, gradients and optimizer states stay float32; only matrix products run in bfloat16 where that
is faster. Every GPU of today has units for it, and so have some CPUs (AVX512-BF16, AMX): on two such
cores a step of the 5.8 M-parameter base took 1.1 s against 2.0. Others emulate it, many times slower.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager

import torch


def bfloat16_is_faster(device: torch.device | str, margin: float = 1.2) -> bool:
    """Whether matrix products in bfloat16 beat float32 on this device by at least `margin`."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.device(device).type != "cpu":
        return False
    return margin * _seconds(torch.bfloat16) < _seconds(torch.float32)


def autocast(device: torch.device, half: bool) -> AbstractContextManager[None]:
    """Matrix products in bfloat16 if `half`, all else as it is."""
    return torch.autocast(device.type, torch.bfloat16, enabled=half)


def clock(device: torch.device) -> float:
    """Seconds, with the device's work done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def _seconds(dtype: torch.dtype) -> float:
    """Best time of one product of a training step's shape; the best is what noise spares."""
    left, right = torch.ones(2048, 256, dtype=dtype), torch.ones(768, 256, dtype=dtype)
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        torch.nn.functional.linear(left, right)
        best = min(best, time.perf_counter() - start)
    return best
