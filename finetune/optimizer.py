"""Muon for the hidden matrices, AdamW for the rest, one warm-up–stable–decay schedule for both.

Muon: Jordan et al. 2024; its update is the momentum with all singular values brought near 1 by a
Newton–Schulz iteration. `torch.optim.Muon` runs that iteration in bfloat16, which a CPU without
bfloat16 units emulates: there one step of a 5.8 M-parameter model took 14 s, against 0.3 s in
float32 (two AVX2 cores, torch 2.13). So CPUs get the iteration below, in the format that is fast
on them (0.1 s in bfloat16 on two AVX512-BF16 cores); GPUs torch's own.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic, as in torch.optim.Muon


class Muon(torch.optim.Optimizer):
    """Muon with matrices of one shape in one batch, and a choice of the iteration's format.

    Args:
        params: 2-D parameters.
        lr: step; scaled by sqrt(max(1, rows / columns)) as in the original.
        momentum: of the Nesterov momentum.
        dtype: in which the Newton–Schulz iteration multiplies.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                updates = []
                for parameter in parameters:
                    state = self.state[parameter]
                    if "momentum_buffer" not in state:
                        state["momentum_buffer"] = torch.zeros_like(parameter)
                    buffer = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
                    updates.append(parameter.grad.lerp(buffer, group["momentum"]))
                scale = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                whole = orthogonalise(torch.stack(updates).to(self.dtype))
                for parameter, update in zip(parameters, whole, strict=True):
                    parameter.sub_(update, alpha=scale)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Bring the singular values of each matrix near 1. [n, rows, columns]"""
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Optimizers:
    """The optimizers of one model, stepped together.

    Args:
        model: its 2-D weights outside embeddings and head go to Muon where `muon_lr` is given.
        muon_lr: peak learning rate of Muon, or None for AdamW everywhere.
        adam_lr: peak learning rate of AdamW.
        half: let Muon multiply in bfloat16.
    """

    def __init__(self, model: nn.Module, muon_lr: float | None, adam_lr: float, half: bool = False) -> None:
        hidden, rest = [], []
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            outer = "embed" in name or "lm_head" in name
            muon = muon_lr is not None and parameter.ndim == 2 and not outer
            (hidden if muon else rest).append(parameter)
        self.parameters = hidden + rest
        fused = bool(rest) and rest[0].device.type == "cuda"
        self.all: list[torch.optim.Optimizer] = []
        if rest:
            self.all.append(
                torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.01, fused=fused)
            )
        if hidden:
            assert muon_lr is not None
            self.all.append(_muon(hidden, muon_lr, half))
        self.peaks = [[group["lr"] for group in opt.param_groups] for opt in self.all]

    def step(self, factor: float, clip: float = 1.0) -> None:
        """One update with all learning rates at `factor` of their peak; clears the gradients."""
        torch.nn.utils.clip_grad_norm_(self.parameters, clip)
        for opt, peaks in zip(self.all, self.peaks, strict=True):
            for group, peak in zip(opt.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            opt.step()
            opt.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict]:
        return [opt.state_dict() for opt in self.all]

    def load_state_dict(self, states: list[dict]) -> None:
        for opt, state in zip(self.all, states, strict=True):
            opt.load_state_dict(state)


def _muon(parameters: list[Tensor], lr: float, half: bool) -> torch.optim.Optimizer:
    if parameters[0].device.type == "cpu":
        return Muon(parameters, lr, dtype=torch.bfloat16 if half else torch.float32)
    return torch.optim.Muon(parameters, lr=lr, momentum=0.95, weight_decay=0.0, adjust_lr_fn="original")


def schedule(step: int, steps: int, warmup: int, decay: int) -> float:
    """Warm-up, stable, linear decay to 0 over the last `decay` of `steps`; step from 0."""
    if step < warmup:
        return (step + 1) / warmup
    return min(1.0, (steps - step) / max(1, decay))


def cosine(step: int, steps: int, warmup: int, floor: float = 0.1) -> float:
    """Warm-up, then half a cosine from 1 to `floor` at the last of `steps`; step from 0."""
    if step < warmup:
        return (step + 1) / warmup
    through = (step - warmup) / max(1, steps - 1 - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, through)))
