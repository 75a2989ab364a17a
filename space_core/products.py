"""The products of a CPU: weights laid out for oneDNN, where that multiplies faster.

torch gives float32 products on a CPU to MKL, whose time for the few rows of a call grows with the
rows almost from the first on. oneDNN's, on weights laid out beforehand, hardly does: 256 x 768
weights times 1, 6, 13, 36 rows took 18, 46, 71, 141 µs by MKL and 20, 23, 36, 67 µs by oneDNN; the
head of 4,096 words 230 and 90 µs for one row (one core of an AMD EPYC Zen 5, torch 2.13,
2026-11-24). So which of the two a layer takes is measured, by its shape and by rows. Every lane
decodes through these products, plain decoding and transformers' own `generate` too.

The operator is the one that torch.compile gives linear layers on CPUs. It is not part of torch's
public interface: where it is missing, fails or does not agree with torch's own product, the layers
stay as they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

MOST_BYTES = 2**30
"""Weights above which nothing is laid out twice."""
ROWS = (16, 8, 4, 2, 1)
WARM_ROWS = 40
"""oneDNN compiles for each shape when it first meets it, 0.3 ms each: done beforehand up to so many rows."""
REPETITIONS = 4
SAMPLE = 6
"""Layers of one shape that are timed: more than one, since decoding does not find them in the cache."""
BUDGET = 0.3
"""Seconds that measuring may take; shapes left over go by GUESS."""
GUESS, NEVER = 2, 2**62
_Operator = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Replaced:
    """Other forwards for some modules within a `with`, which have their own again outside of it.

    So whoever else uses the model runs what transformers made, untouched. A call of a small model takes
    2 ms, and enters this twice: nothing is looked up here that was known before.
    """

    def __init__(self, forwards: Mapping[nn.Module, Callable[[Tensor], Tensor]]) -> None:
        self._places = [(module.__dict__, forward) for module, forward in forwards.items()]
        self._own: list[list[Any]] = []

    def __enter__(self) -> list[Any]:
        """Returns the forwards that were hung onto the modules; None where there was but the class's."""
        own = [place.get("forward") for place, _ in self._places]
        self._own.append(own)
        for place, forward in self._places:
            place["forward"] = forward
        return own

    def __exit__(self, *error: object) -> None:
        for (place, _), forward in zip(self._places, self._own.pop(), strict=True):
            if forward is None:
                del place["forward"]
            else:  # a wrapper around the layer that was there before, accelerate's for example
                place["forward"] = forward


class Products:
    """The linear layers of one model in both layouts.

    Args:
        lm: a model on its device; on others than the CPU, in other dtypes than float32 and above
            MOST_BYTES there is nothing to lay out.
    """

    def __init__(self, lm: nn.Module) -> None:
        self._layers: dict[nn.Module, _Product] = {}
        self._on, self._stale = Replaced({}), 0
        self._measured: dict[int, list[int]] = {}
        operator = _operator()
        layers = [m for m in lm.modules() if type(m) is nn.Linear and _plain(m)]
        if operator is None or sum(m.weight.nbytes for m in layers) > MOST_BYTES:
            return
        self._layers = {m: _Product(m, operator) for m in layers}
        self._on = Replaced(self._layers)
        self.measure()

    def __len__(self) -> int:
        return len(self._layers)

    def head(self, head: Any) -> Callable[[Tensor], Tensor]:
        """The fast forward of a layer, or the layer itself."""
        product = self._layers.get(head)
        return head if product is None else lambda rows: (product if product.fresh() else head)(rows)

    def refresh(self) -> None:
        """Leave out layers that got new weights: to be called before each text, as looking takes time."""
        stale = sum(not product.fresh() for product in self._layers.values())
        if stale != self._stale:
            self._stale = stale
            self._on = Replaced({module: p for module, p in self._layers.items() if p.fresh()})

    def on(self) -> Replaced:
        """The layers multiply as is fastest, within the `with`; those with new weights as they are."""
        return self._on

    @torch.inference_mode()
    def measure(self) -> None:
        """From how many rows on the other layout is faster, by shape and for torch's threads as they are.

        Looked at once for each number of threads.
        """
        threads = torch.get_num_threads()
        if known := self._measured.get(threads):
            for product, least in zip(self._layers.values(), known, strict=True):
                product.least = least
            return
        shapes: dict[tuple[int, ...], list[_Product]] = {}
        for product in self._layers.values():
            shapes.setdefault(tuple(product.weight.shape), []).append(product)
        begin = time.perf_counter()
        for products in shapes.values():
            least = NEVER
            for rows in ROWS:
                x = torch.randn(1, rows, products[0].inputs)
                plain, packed = _race(products[:SAMPLE], x)
                if packed >= plain:
                    break
                least = rows
            for product in products:
                product.least = least
            for rows in range(least, WARM_ROWS + 1):
                products[0].operator(torch.zeros(1, rows, products[0].inputs), products[0].packed, None)
            if time.perf_counter() - begin > BUDGET:
                break
        self._measured[threads] = [product.least for product in self._layers.values()]


class _Product:
    """The forward of a linear layer: by MKL for fewer than `least` rows, else by oneDNN."""

    def __init__(self, layer: nn.Linear, operator: _Operator) -> None:
        self.layer, self.operator, self.least = layer, operator, GUESS
        self.weight, self.bias = layer.weight, layer.bias
        self.made_of = (self.weight.data_ptr(), self.weight._version)
        self.packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), None)
        self.inputs = layer.in_features

    def fresh(self) -> bool:
        """Whether the layer's weight is still the one that was laid out."""
        weight = self.layer._parameters["weight"]
        return weight is self.weight and (weight.data_ptr(), weight._version) == self.made_of

    def __call__(self, x: Tensor) -> Tensor:
        if x.numel() < self.least * self.inputs or torch.is_grad_enabled():
            return nn.functional.linear(x, self.weight, self.bias)
        return self.operator(x, self.packed, self.bias)


def _race(products: list[_Product], x: Tensor) -> tuple[float, float]:
    """Best seconds of the layers one after the other, by MKL and by oneDNN."""
    best = [float("inf"), float("inf")]
    for _ in range(REPETITIONS):
        for way in (0, 1):
            start = time.perf_counter()
            for p in products:
                p.operator(x, p.packed, p.bias) if way else nn.functional.linear(x, p.weight, p.bias)
            best[way] = min(best[way], time.perf_counter() - start)
    return best[0], best[1]


def _plain(layer: nn.Linear) -> bool:
    """Whether this is torch's own layer in float32 on a CPU, with nothing hung onto it."""
    weight = layer.weight
    return (
        type(weight) is nn.Parameter  # and no quantised one
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and not weight.is_inference()
        and "forward" not in layer.__dict__
    )


def _operator() -> _Operator | None:
    """oneDNN's product x · Wᵀ + b on a laid-out W, if torch has it and it is right."""
    try:
        raw = torch.ops.mkldnn._linear_pointwise.default
        pack = torch.ops.mkldnn._reorder_linear_weight

        def operator(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            result: Tensor = raw(x, weight, bias, "none", [], "")
            return result

        random = torch.Generator().manual_seed(0)
        x, w, b = (torch.randn(*n, generator=random) for n in ((1, 3, 64), (96, 64), (96,)))
        with torch.inference_mode():
            right = torch.allclose(
                operator(x, pack(w, None), b), nn.functional.linear(x, w, b), rtol=1e-4, atol=1e-4
            )
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return None
    return operator if right else None
