"""A page that strangers open: what they may ask for, which models it has, what its log may say.

Hosted mode is on with SPACE_HOSTED=1 and on Hugging Face Spaces, where SPACE_ID is set; SPACE_HOSTED=0
turns it off there too. This room judges values; it knows neither gradio nor torch.
"""

from __future__ import annotations

import re
import secrets
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from space_core.bundled import CHECKPOINTS
from space_core.errors import CheckpointError, PromptError, SettingError
from space_core.settings import MAX_K, MAX_NEW_TOKENS, Settings

PINNED: Final = re.compile(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", re.ASCII)
"""A hub id and the commit that it is taken at."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one visitor may ask for, and all of them together.

    Attributes:
        characters, prompt_tokens: of a prompt.
        new_tokens, k: of a run. A call's attention mask has (k+1)² × context cells.
        seconds: that a run may hold the device.
        waiting: runs in the queue; whoever comes then is told at once.
        sessions: visitors whose last race is kept; the longest idle goes first.
        body: bytes of a request that asks for a run.
    """

    characters: int
    prompt_tokens: int
    new_tokens: int
    k: int
    seconds: float
    waiting: int
    sessions: int
    body: int

    def text(self, prompt: str) -> None:
        """Raises PromptError for a prompt of too many characters, before anything reads it."""
        if len(prompt) > self.characters:
            raise PromptError(
                f"the prompt has {len(prompt):,} characters, but at most {self.characters:,} are "
                "taken: shorten it"
            )

    def ids(self, prompt_ids: list[int]) -> list[int]:
        """The prompt's ids as they are; raises PromptError for too many."""
        if len(prompt_ids) > self.prompt_tokens:
            raise PromptError(
                f"the prompt has {len(prompt_ids):,} tokens, but at most {self.prompt_tokens:,} are "
                "taken here: shorten it"
            )
        return prompt_ids

    def settings(self, settings: Settings) -> Settings:
        """The settings as they are; raises SettingError for what only a page of one's own may do."""
        for name, most in (("k", self.k), ("max_new_tokens", self.new_tokens)):
            if getattr(settings, name) > most:
                raise SettingError(
                    name,
                    f"{name} must lie in 1..{most} on this hosted page: a copy of your own takes more",
                )
        return settings


LOCAL: Final = Limits(65_536, 2**31, MAX_NEW_TOKENS, MAX_K, 120.0, 16, 1_000, 4_000_000)
HOSTED: Final = Limits(8_192, 2_048, 512, 8, 60.0, 8, 32, 200_000)


@dataclass(frozen=True, slots=True)
class Hosting:
    """How this page is served.

    Attributes:
        hosted: strangers open it.
        limits: what a visitor may ask for.
        models: hub ids that a hosted page may load, with the commit of each.
        zero: it runs on ZeroGPU, where a GPU is lent for one call at a time.
    """

    hosted: bool = False
    limits: Limits = LOCAL
    models: tuple[tuple[str, str], ...] = ()
    zero: bool = False

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Hosting:
        """As the environment says: SPACE_HOSTED, SPACE_ID, SPACE_MODELS, SPACES_ZERO_GPU.

        Raises:
            CheckpointError: for a model in SPACE_MODELS that is not pinned.
        """
        hosted = is_hosted(environment)
        models = []
        for name in environment.get("SPACE_MODELS", "").replace(",", " ").split():
            if not PINNED.fullmatch(name):
                raise CheckpointError(
                    f"SPACE_MODELS: {name[:80]!r} is not pinned: write owner/name@<40 hex digits of a commit>"
                )
            owner_and_name, _, revision = name.partition("@")
            models.append((owner_and_name, revision))
        zero = environment.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
        return cls(hosted, HOSTED if hosted else LOCAL, tuple(models), zero)

    def source(self, name: str) -> tuple[str, str | None]:
        """What to load for a model's name: a folder or a hub id, and its commit if that is known.

        On a hosted page only checkpoints that came with it and models of the allow-list are loaded.

        Raises:
            CheckpointError: for any other.
        """
        for model, revision in self.models:
            if name in (model, f"{model}@{revision}"):
                return model, revision
        if not self.hosted:
            model, at, revision = name.partition("@")
            return (model, revision) if at and PINNED.fullmatch(name) else (name, None)
        if Path(name).resolve().parent == CHECKPOINTS:
            return name, None
        raise CheckpointError(
            f"a hosted page does not load {name[:80]!r}: it takes its bundled checkpoints and what "
            "SPACE_MODELS lists (owner/name@<40 hex digits of a commit>)"
        )

    def manifest(self, manifest: dict[str, Any] | None) -> None:
        """Raises CheckpointError where a hosted page's checkpoint names a base that is not pinned."""
        base = (manifest or {}).get("base") or {}
        if self.hosted and base.get("id") and not re.fullmatch("[0-9a-f]{40}", base.get("revision") or ""):
            raise CheckpointError(
                f"a hosted page does not load a base without a commit: give {str(base['id'])[:80]!r} a "
                "revision in space.json"
            )


def is_hosted(environment: Mapping[str, str]) -> bool:
    """Whether strangers open the page: as SPACE_HOSTED says, else on a Space."""
    told = environment.get("SPACE_HOSTED", "")
    return told != "0" if told else bool(environment.get("SPACE_ID"))


def report(error: BaseException, hosted: bool) -> str:
    """Write a defect to the log; returns the reference under which it stands there.

    A hosted page's log has its kind and place, never its words: they may hold what a visitor wrote.
    """
    reference = secrets.token_hex(4)
    if hosted:
        print(f"[{reference}] {places(error)}", file=sys.stderr, flush=True)
    else:
        print(f"[{reference}] {''.join(traceback.format_exception(error))}", file=sys.stderr, flush=True)
    return reference


def sorry(reference: str) -> str:
    """What a visitor reads then."""
    return f"Something failed here. Try again; if it fails again, tell the page’s owner: {reference}"


def places(error: BaseException) -> str:
    """Kind and place of an error and of what led to it, without a word of theirs."""
    told: list[str] = []
    at: BaseException | None = error
    while at is not None and len(told) < 4:
        frames = traceback.extract_tb(at.__traceback__)[-4:]
        where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
        told.append(f"{type(at).__name__} at {where}" if where else type(at).__name__)
        at = at.__cause__ or at.__context__
    return ", after ".join(told)


def keep_words_out_of_the_log() -> None:
    """From now on tracebacks that other code prints have kinds and places only.

    gradio prints tracebacks of its own accord, and its messages quote what was sent. It has no
    switch for that, so the functions that print are replaced, for the whole process.
    """
    import logging

    def print_exc(limit: int | None = None, file: Any = None, chain: bool = True) -> None:
        error = sys.exc_info()[1]
        if error is not None:
            print(places(error), file=file or sys.stderr, flush=True)

    def formatted(self: logging.Formatter, info: Any) -> str:
        return places(info[1]) if info and info[1] is not None else ""

    traceback.print_exc = print_exc
    logging.Formatter.formatException = formatted  # type: ignore
