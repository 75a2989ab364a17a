"""One validated request: how to decode. The limits of the product stand here and nowhere else."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from space_core.errors import SettingError

MAX_K = 16
MAX_NEW_TOKENS = 8192
MAX_TEMPERATURE = 5.0
MAX_TOP_K = 1_000_000
MAX_SEED = 2**31 - 1
"""torch's CPU generator tells apart 2³² seeds, and each of two lanes has one of its own."""


class Plan(StrEnum):
    """Which rows a steady-state call has."""

    AUTO = "auto"
    """Only the drafts and mask groups that are worth their rows on this device."""
    GRID = "grid"
    """The paper's full grid of (k+1)² rows."""


class Verification(StrEnum):
    """How drafts are judged when sampling; both are exact, greedy decoding knows only one way."""

    BLOCK = "block"
    """As a whole (arXiv 2403.10444): accepts at least as many."""
    TOKEN = "token"
    """One after the other (arXiv 2211.17192)."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to decode one prompt.

    Attributes:
        k: drafts per call (1..16), the paper's k.
        max_new_tokens: budget of new tokens (1..8192); never overshot.
        temperature: 0 decodes greedily; above 0 samples from softmax(logits / temperature).
        top_p: nucleus, in (0, 1]; 1 keeps every token.
        top_k: keep this many most likely tokens; 0 keeps all.
        seed: of the sampling; the same seed, model and device give the same output.
        plan: "auto" or "grid"; does not change greedy output, nor the distribution of sampled output.
            With "auto" the rows depend on measured times, so a seed fixes the text only under "grid".
        verification: "block" or "token", for sampling.

    Raises:
        SettingError: naming the field, for any value of the wrong type or out of range.
    """

    k: int = 5
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    plan: Plan | str = Plan.AUTO
    verification: Verification | str = Verification.BLOCK

    def __post_init__(self) -> None:
        for name, low, high in (
            ("k", 1, MAX_K),
            ("max_new_tokens", 1, MAX_NEW_TOKENS),
            ("top_k", 0, MAX_TOP_K),
            ("seed", 0, MAX_SEED),
        ):
            object.__setattr__(self, name, _whole(name, getattr(self, name), low, high))
        temperature = _real("temperature", self.temperature)
        if not 0.0 <= temperature <= MAX_TEMPERATURE:
            raise SettingError(
                "temperature", f"temperature must lie in 0..{MAX_TEMPERATURE:g}, not {temperature:g}"
            )
        if 0.0 < temperature < 1e-3:
            raise SettingError(
                "temperature", "temperature must be 0 (greedy) or at least 0.001: below that, use 0"
            )
        top_p = _real("top_p", self.top_p)
        if not 0.0 < top_p <= 1.0:
            raise SettingError("top_p", f"top_p must lie in (0, 1], not {top_p:g}")
        object.__setattr__(self, "temperature", temperature)
        object.__setattr__(self, "top_p", top_p)
        for name, kind in (("plan", Plan), ("verification", Verification)):
            object.__setattr__(self, name, _choice(name, getattr(self, name), kind))

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "plan": str(self.plan), "verification": str(self.verification)}


def _choice(name: str, value: Any, kind: type[StrEnum]) -> StrEnum:
    try:
        return kind(value)
    except ValueError:
        raise SettingError(name, f"{name} must be {' or '.join(kind)}, not {value!r:.40}") from None


def _real(name: str, value: Any) -> float:
    # bool is an int in Python, but `temperature=True` is always a mistake.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SettingError(name, f"{name} must be a number, not {value!r:.40}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise SettingError(name, f"{name} must be a finite number")
    return number


def _whole(name: str, value: Any, low: int, high: int) -> int:
    """A whole number in low..high. 5.0 counts as 5, since browsers send sliders as floats."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SettingError(name, f"{name} must be a whole number, not {value!r:.40}")
    if isinstance(value, float) and not value.is_integer():
        raise SettingError(name, f"{name} must be a whole number, not {value:g}")
    if not low <= value <= high:
        raise SettingError(name, f"{name} must lie in {low}..{high}")
    return int(value)
