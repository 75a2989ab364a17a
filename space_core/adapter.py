"""The gated low-rank adapter: a LoRA update that acts on mask rows only.

Real rows go through the base model's own weights and nothing else, so plain decoding of an adapted
model is the base model's, and SPACE is lossless against the *original* model and not against a
fine-tuned copy. (Idea: Samragh et al., "Your LLM Knows the Future", arXiv 2507.11851.) The mask rows
of a call are its last ones, so "gated" is a slice, and nothing is computed for the real rows.

Low-rank updates: Hu et al., LoRA, arXiv 2106.09685. The files are PEFT's format.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from space_core.errors import CheckpointError
from space_core.placement import runs_on
from space_core.products import Replaced

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
MAX_RANK = 65_536
_PREFIX = "base_model.model."


class GatedAdapter(nn.Module):
    """Low-rank updates for some linear layers of one model.

    Args:
        lm: the model whose layers are to be updated.
        targets: names of the modules to update, by their last component ("q_proj").
        rank: r; each update is B·A with A [r, in] and B [out, r], scaled by alpha / r.
        alpha: scale; defaults to the rank, so that the scale is 1.

    Raises:
        CheckpointError: when no module of the model is called by one of the names.
    """

    def __init__(self, lm: nn.Module, targets: Iterable[str], rank: int, alpha: float | None = None) -> None:
        super().__init__()
        self.targets = tuple(sorted(set(targets)))
        self.rank = rank
        self.alpha = float(rank if alpha is None else alpha)
        self.a = nn.ParameterDict()
        self.b = nn.ParameterDict()
        self._layers: dict[str, nn.Module] = {}
        self._gates: dict[nn.Module, _Gate] = {}
        for name, module in lm.named_modules():
            if name.rpartition(".")[2] in self.targets:
                n_in, n_out = _width(module, name)
                like: dict[str, Any] = {"dtype": _dtype(module, lm), "device": runs_on(module)}
                self._layers[name] = module
                self.a[_key(name)] = nn.Parameter(torch.empty(rank, n_in, **like))
                self.b[_key(name)] = nn.Parameter(torch.zeros(n_out, rank, **like))
                nn.init.kaiming_uniform_(self.a[_key(name)], a=math.sqrt(5))
                self._gates[module] = _Gate(module, self.a[_key(name)], self.b[_key(name)], self.scale)
        if not self._layers:
            raise CheckpointError(
                f"the model has no layers named {', '.join(self.targets)}: the adapter does not fit it"
            )
        self._on = _On(self._gates)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def on(self, first_mask: int, texts: int = 1) -> Replaced:
        """Update the rows from `first_mask` on, of each of so many texts in the call.

        Outside of the `with`, the layers are the base's own.
        So plain decoding, and whoever else uses the model, runs what transformers made, untouched.
        """
        self._on.first_mask, self._on.texts = first_mask, texts
        return self._on

    def save(self, folder: Path, base: str | None) -> None:
        """Write PEFT's `adapter_config.json` and `adapter_model.safetensors`."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {}
        for name in self._layers:
            for part, store in (("lora_A", self.a), ("lora_B", self.b)):
                tensors[f"{_PREFIX}{name}.{part}.weight"] = store[_key(name)].detach().contiguous()
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "target_modules": list(self.targets),
            # PEFT's Activated LoRA: the update acts on the last rows only, as many as each call's
            # `alora_offsets` say. PEFT asks for some token here to switch that on; none is searched for.
            "alora_invocation_tokens": [0],
        }
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def load(cls, lm: nn.Module, folder: Path) -> GatedAdapter:
        """Read an adapter that `save` or PEFT wrote, for a model of the shape it was made for.

        Raises:
            CheckpointError: for missing, damaged or misfitting files.
        """
        try:
            config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
            rank, alpha = int(config["r"]), float(config["lora_alpha"])
            targets = [str(name) for name in config["target_modules"]]
            tensors = load_file(folder / WEIGHTS)
        except (OSError, ValueError, KeyError, TypeError, OverflowError, SafetensorError) as error:
            raise CheckpointError(f"cannot read the adapter: {error}") from None
        if not 1 <= rank <= MAX_RANK or not math.isfinite(alpha):
            raise CheckpointError(f"the adapter's rank must lie in 1..{MAX_RANK}, its alpha be a number")
        adapter = cls(lm, targets, rank, alpha)
        wanted = {
            f"{_PREFIX}{name}.{part}.weight": store[_key(name)]
            for name in adapter._layers
            for part, store in (("lora_A", adapter.a), ("lora_B", adapter.b))
        }
        if wanted.keys() != tensors.keys():
            odd = sorted(wanted.keys() ^ tensors.keys())[0]
            raise CheckpointError(f"the adapter does not fit this model: {odd}")
        with torch.no_grad():
            for name, parameter in wanted.items():
                if parameter.shape != tensors[name].shape:
                    raise CheckpointError(
                        f"the adapter does not fit this model: {name} is {list(tensors[name].shape)}, "
                        f"the model needs {list(parameter.shape)}"
                    )
                if not bool(torch.isfinite(tensors[name]).all()):
                    raise CheckpointError(f"the adapter is damaged: {name} holds numbers that are not finite")
                parameter.copy_(tensors[name])
        return adapter


class _Gate:
    """The forward of a layer with B·A added to the mask rows of its output."""

    def __init__(self, layer: nn.Module, a: Tensor, b: Tensor, scale: float) -> None:
        self.layer, self.a, self.b, self.scale = layer, a, b, scale
        self.kind, self.own = type(layer), type(layer).forward.__get__(layer)
        self.plain: Any = self.own
        self.first_mask, self.texts = 0, 1

    def take(self, hung: Any, first_mask: int, texts: int) -> None:
        """Update what the layer does now: what is hung onto it, or what its class does."""
        if hung is None and type(self.layer) is not self.kind:  # as sharding a model makes it
            self.kind, self.own = type(self.layer), type(self.layer).forward.__get__(self.layer)
        self.plain = self.own if hung is None else hung
        self.first_mask, self.texts = first_mask, texts

    def __call__(self, x: Tensor) -> Tensor:
        """x: [batch, rows, in]; some models flatten it to [batch · rows, in]."""
        if x.ndim == 2 and self.texts > 1:
            return self(x.view(self.texts, -1, x.shape[-1])).flatten(0, 1)
        y: Tensor = self.plain(x)
        first = self.first_mask
        if torch.is_grad_enabled():
            update = nn.functional.linear(nn.functional.linear(x[..., first:, :], self.a), self.b)
            return torch.cat([y[..., :first, :], y[..., first:, :] + self.scale * update], dim=-2)
        # Decoding has one text, and neither copies nor launches to spare: two products, in place.
        if x.ndim == 3 and len(x) == 1:
            low = nn.functional.linear(x[0, first:], self.a)
            y[0, first:].addmm_(low, self.b.t(), alpha=self.scale)
        else:
            update = nn.functional.linear(nn.functional.linear(x[..., first:, :], self.a), self.b)
            y[..., first:, :].add_(update, alpha=self.scale)
        return y


class _On(Replaced):
    """All gates of an adapter."""

    first_mask, texts = 0, 1

    def __init__(self, gates: dict[nn.Module, _Gate]) -> None:
        super().__init__(gates)
        self._gates = list(gates.values())

    def __enter__(self) -> list[Any]:
        own = super().__enter__()
        for gate, hung in zip(self._gates, own, strict=True):
            gate.take(hung, self.first_mask, self.texts)
        return own


def _width(module: nn.Module, name: str) -> tuple[int, int]:
    """(inputs, outputs) of a linear layer; transformers' Conv1D stores its weight transposed."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if type(module).__name__ == "Conv1D":
        return int(module.nx), int(module.nf)  # type: ignore[arg-type]
    raise CheckpointError(f"{name} is no linear layer: the adapter cannot update it")


def _dtype(module: nn.Module, lm: nn.Module) -> torch.dtype:
    """What a layer computes in: a quantised one's weight may be whole numbers."""
    weight = next(module.parameters())
    if weight.is_floating_point():
        return weight.dtype
    dtype: torch.dtype = lm.get_input_embeddings().weight.dtype  # type: ignore[operator, union-attr]
    return dtype


def _key(name: str) -> str:
    # ParameterDict keys become attribute names, which must not hold dots.
    return name.replace(".", "/")
