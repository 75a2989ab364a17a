"""Several processes that train as one: `accelerate launch -m finetune sft …`.

All of them read the same data and draw the same random numbers for the whole batch; each then does its
share of the batch's rows. A loss is a sum over targets divided by how many there are *in all processes*,
and gradients are added, so that a step is the single process's to the rounding of sums. (With dropout
it is another draw.) The main process alone writes states, logs and the checkpoint; the others read them
when a run is resumed, so `--run` must lie where all can see it.

Weights are on every process, or, where the launcher's configuration says FSDP, each process holds a
share of the base's and collects a layer when it needs it. The paper's method trains these shares; in the
gated one they are frozen, and what is trained, being small, is on every process. Decoding to measure, and
saving, are done by the main process on a whole copy of the model, which its memory has to hold beside its
share. Torch's `fully_shard` is used as it is, since accelerate passes FSDP over where there is no
accelerator (it takes such a launch for plain processes): here the same code runs on CPUs and on GPUs.
`fsdp_version: 1` is refused: it turns parameters into flat ones, and only the whole model may be called.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from space_core.errors import SettingError


class Team:
    """The processes of one training, from inside one of them. Without an accelerator there is one.

    Attributes:
        rank: which one this is, from 0.
        size: how many there are.
        sharded: whether each holds only a share of the base's weights.
    """

    def __init__(self, accelerator: Any = None, reshard: bool | None = None) -> None:
        """reshard: whether a layer is dropped again behind its forward pass; None: nothing is sharded."""
        self._accelerator = accelerator
        self.rank = 0 if accelerator is None else int(accelerator.process_index)
        self.size = 1 if accelerator is None else int(accelerator.num_processes)
        self.sharded, self._reshard = reshard is not None, bool(reshard)

    @property
    def main(self) -> bool:
        return self.rank == 0

    def device(self, asked: str) -> str:
        """This process's device, where one may choose."""
        if self._accelerator is None or asked != "auto":
            return asked
        return str(self._accelerator.device)

    def share(self, rows: int) -> list[int]:
        """This process's rows of a batch; may be none."""
        return list(range(self.rank, rows, self.size))

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, without a gradient."""
        if self.size == 1:
            return value
        total = value.detach().clone()
        torch.distributed.all_reduce(total)
        return total

    def from_main(self, value: Any) -> Any:
        """The main process's value, in all of them."""
        return self.gather(value)[0]

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in all of them, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, value)
        return found

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            self._accelerator.wait_for_everyone()

    def end(self) -> None:
        """Part, once all are here; a process that ends in the middle of the others' words may abort."""
        self.wait()
        if self.size > 1:
            self._accelerator.end_training()

    def shard(self, lm: Any) -> tuple[Any, Any]:
        """The model with its weights spread over the processes, and the main process's whole copy.

        Where nothing is sharded both are the model as it is; other processes have no copy (None).
        """
        if not self.sharded:
            return lm, lm
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        whole = copy.deepcopy(lm) if self.main else None
        mesh = init_device_mesh(lm.get_input_embeddings().weight.device.type, (self.size,))
        layers = set(getattr(lm, "_no_split_modules", None) or ())
        for module in [m for m in lm.modules() if type(m).__name__ in layers]:
            fully_shard(module, mesh=mesh, reshard_after_forward=self._reshard)
        fully_shard(lm, mesh=mesh, reshard_after_forward=self._reshard)
        return lm, whole

    def held(self, lm: nn.Module) -> float:
        """Which share of a model's weights this process holds."""
        own = [p.to_local() if _spread(p) else p for p in lm.parameters()]
        return sum(p.numel() for p in own) / sum(p.numel() for p in lm.parameters())

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Gradients become their sum over all processes. All must have the same parameters."""
        if self.size == 1:
            return
        own = []
        for parameter in parameters:
            if not parameter.requires_grad:
                continue
            if _spread(parameter):
                if parameter.grad is not None:
                    parameter.grad.mul_(self.size)  # FSDP has taken their mean
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            own.append(parameter.grad)
        if own:
            flat = self.sum(torch.cat([grad.flatten() for grad in own]))
            for grad, part in zip(own, flat.split([grad.numel() for grad in own]), strict=True):
                grad.copy_(part.view_as(grad))

    def whole(self, state: Any) -> Any:
        """A state with all spread tensors put together, on the CPU. Every process must ask."""
        if not self.sharded:
            return state
        if isinstance(state, dict):
            return {key: self.whole(value) for key, value in state.items()}
        if isinstance(state, list | tuple):
            return type(state)(self.whole(value) for value in state)
        return state.full_tensor().cpu() if _spread(state) else state

    @torch.no_grad()
    def load(self, module: nn.Module, state: dict[str, Tensor]) -> None:
        """Give a module a whole state; each process takes its share."""
        if not self.sharded:
            module.load_state_dict(state)
            return
        mine = module.state_dict()
        if mine.keys() != state.keys():
            raise ValueError("a state of another module")
        for name, tensor in mine.items():
            tensor.copy_(_like(tensor, state[name]))

    def load_optimizers(self, optimizers: Any, states: list[dict]) -> None:
        """The same for `finetune.optimizer.Optimizers`."""
        optimizers.load_state_dict(states)
        for optimizer in optimizers.all if self.sharded else ():
            for parameter, state in optimizer.state.items():
                for name, value in state.items():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        state[name] = _like(parameter, value)


ALONE = Team()
"""A training of one process."""


def launched(device: str) -> Team:
    """The team that a launcher (`accelerate launch`, torchrun) has started, or one process.

    Raises:
        SettingError: for a launch that cannot train here.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True) if device == "cpu" else Accelerator()
    kind = accelerator.distributed_type.value
    if kind not in ("FSDP", "MULTI_CPU", "MULTI_GPU"):
        raise SettingError("launch", f"training is not launched as {kind}: see finetune/configs")
    if not _flag("ACCELERATE_USE_FSDP"):
        return Team(accelerator)
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise SettingError("launch", "FSDP needs fsdp_version: 2, as in finetune/configs/fsdp.yaml")
    for name in ("FSDP_OFFLOAD_PARAMS", "FSDP_ACTIVATION_CHECKPOINTING", "FSDP_CPU_RAM_EFFICIENT_LOADING"):
        if _flag(name):
            raise SettingError("launch", f"{name.lower()} does not work here: see finetune/configs/fsdp.yaml")
    return Team(accelerator, reshard=_flag("FSDP_RESHARD_AFTER_FORWARD", "true"))


def _flag(name: str, default: str = "false") -> bool:
    return os.environ.get(name, default).lower() in ("true", "1")


def _spread(value: Any) -> bool:
    return isinstance(value, Tensor) and hasattr(value, "full_tensor")


def _like(sharded: Tensor, whole: Tensor) -> Tensor:
    """A whole tensor's share, as another tensor is spread."""
    if not _spread(sharded):
        return whole.to(sharded)
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(sharded, DTensor)
    mesh, placements = sharded.device_mesh, sharded.placements
    return distribute_tensor(whole.to(sharded.device, sharded.dtype), mesh, placements, src_data_rank=None)
