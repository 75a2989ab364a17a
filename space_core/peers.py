"""Other ways to decode the same weights, through transformers' own `generate`.

`generate` is plain decoding, `prompt-lookup` copies drafts from the text so far, `assisted` drafts
with a second, smaller model (speculative decoding). `run` makes one whole call of `lm.generate` and
is for the benchmark; `lane` gives the same run Step by Step and is for the race.

This room runs what transformers has and tells what it did, as Steps. It adds no method of its own.
transformers takes float32 logits to choose from, whatever the model's dtype.
"""

from __future__ import annotations

import copy
import functools
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation import BaseStreamer

from space_core.errors import CheckpointError, PromptError, SettingError
from space_core.model import SpaceModel
from space_core.settings import Settings
from space_core.trace import Step, Stop, Trace, longest_common_prefix

LOOKUP_TOKENS = 10
"""Drafts of a prompt-lookup call: the reference implementation's number, and Spec-Bench's."""
ASSISTANT_TOKENS = 20
"""Most drafts of an assisted call where the draft model names no number: transformers' default."""


class Peer(StrEnum):
    """The methods of this room, by their names on the command line."""

    GENERATE = "generate"
    PROMPT_LOOKUP = "prompt-lookup"
    ASSISTED = "assisted"


def run(
    model: SpaceModel,
    prompt_ids: Sequence[int],
    settings: Settings,
    method: Peer | str,
    draft: SpaceModel | None = None,
    watch: Callable[[], object] | None = None,
) -> Trace:
    """Decode with one call of `lm.generate`, without a streamer, timed as a whole.

    Args:
        method: a `Peer`.
        draft: the smaller model of `assisted`, with the model's own vocabulary.
        watch: called before each call of `model`; what it raises ends the run.

    Returns:
        A trace with one step per call of `model`; calls of `draft` are in the seconds only. What
        each call emitted is exact, but seconds are known of the whole alone: every step holds the
        same share of them.

    Raises:
        PromptError: for a prompt that is empty or fills the context.
        CheckpointError: for `assisted` without a draft model, or with one of another vocabulary.
    """
    request = _Request(model, prompt_ids, settings, method, draft, watch)
    with request.dice:
        start = model.clock()
        output = request.generate()
        seconds = model.clock() - start
    return Trace(
        model=model.name,
        method=str(request.method),
        k=request.k,
        dtype=model.dtype_name,
        device=str(model.device),
        prompt_ids=tuple(prompt_ids),
        steps=request.split(output, seconds),
        settings=settings.to_json(),
    )


def lane(
    model: SpaceModel,
    prompt_ids: Sequence[int],
    settings: Settings,
    method: Peer | str,
    draft: SpaceModel | None = None,
    eos_ids: Iterable[int] = (),
) -> Iterator[Step]:
    """The same as a decoder: one `Step` per call of `model`, as `lm.generate` makes it.

    `generate` runs in a thread of its own that computes only while the consumer waits in `next`. A
    step's seconds are that thread's own, from one hand-over to the next, device synchronised at
    both ends; a draft model's time is part of the step that verified its drafts. Closing this
    generator ends the thread before another call is made.

    Arguments and errors are those of `run`; a request that cannot run fails here, not at its first step.
    `eos_ids` end the run beside those of the model.
    """
    return _steps(_Request(model, prompt_ids, settings, method, draft, eos_ids=eos_ids))


def _steps(request: _Request) -> Iterator[Step]:
    worker = _Worker(request)
    try:
        while True:
            step = worker.next()
            yield step
            if step.stop:
                return
    finally:
        worker.close()


@torch.inference_mode()
def generate_batch(
    model: SpaceModel, prompts: Sequence[Sequence[int]], settings: Settings
) -> list[list[int]]:
    """The new tokens of several prompts by one plain `lm.generate`, padded on the left.

    Raises:
        PromptError: for a prompt that is empty or fills the context.
    """
    for prompt in prompts:
        model.check_prompt(prompt)
    longest = max(map(len, prompts))
    fill = [longest - len(prompt) for prompt in prompts]
    ids = [[0] * blank + list(prompt) for blank, prompt in zip(fill, prompts, strict=True)]
    real = [[0] * blank + [1] * len(prompt) for blank, prompt in zip(fill, prompts, strict=True)]
    eos = sorted(model.eos_ids)
    config: dict[str, Any] = {
        "max_new_tokens": min(settings.max_new_tokens, model.context - longest),
        "do_sample": not settings.greedy,
        "eos_token_id": eos or None,
        "pad_token_id": eos[0] if eos else 0,
    }
    if not settings.greedy:
        config |= {name: getattr(settings, name) for name in ("temperature", "top_p", "top_k")}
    if model.mask_token_id is not None:
        config["suppress_tokens"] = [model.mask_token_id]
    with _Dice(None if settings.greedy else settings.seed, model.device), _silence():
        found = _twin(model, None).generate(
            torch.tensor(ids, device=model.device),
            attention_mask=torch.tensor(real, device=model.device),
            generation_config=GenerationConfig(**config),
        )
    outputs: list[list[int]] = found[:, longest:].tolist()
    for output in outputs:
        end = next((i + 1 for i, token in enumerate(output) if token in model.eos_ids), len(output))
        del output[end:]
    return outputs


def check_draft(model: SpaceModel, draft: SpaceModel | None) -> SpaceModel:
    """The draft model, if it can draft for `model`.

    Raises:
        CheckpointError: where there is none, or it reads other ids.
    """
    advice = "give a smaller model with the same tokenizer"
    if draft is None:
        raise CheckpointError(f"assisted decoding needs a draft model: {advice} (--draft-model DIR)")
    ours, theirs = (m.lm.config.get_text_config().vocab_size for m in (model, draft))
    same = ours == theirs
    if same and model.tokenizer is not None and draft.tokenizer is not None:
        same = model.tokenizer.get_vocab() == draft.tokenizer.get_vocab()
    if not same:
        raise CheckpointError(
            f"the draft model {draft.name} has another vocabulary ({theirs} ids) than {model.name} "
            f"({ours} ids): {advice}"
        )
    return draft


class _Request:
    """One call of `generate`, and what it did.

    Attributes:
        fed: the ids of every call of the target model so far. [1, rows] each
        dice: the run's own random numbers, to be entered wherever `generate` computes.
    """

    def __init__(
        self,
        model: SpaceModel,
        prompt_ids: Sequence[int],
        settings: Settings,
        method: Peer | str,
        draft: SpaceModel | None,
        watch: Callable[[], object] | None = None,
        eos_ids: Iterable[int] = (),
    ) -> None:
        try:
            self.method = Peer(method)
        except ValueError:
            raise SettingError("method", f"method must be one of {', '.join(Peer)}") from None
        model.check_prompt(prompt_ids)
        self.model, self.prompt = model, list(prompt_ids)
        self.eos_ids = model.eos_ids.union(eos_ids)
        room = model.context - len(self.prompt)
        self.left = min(settings.max_new_tokens, room)
        self.at_budget = Stop.CONTEXT if room < settings.max_new_tokens else Stop.MAX_NEW_TOKENS
        self.fed: list[Tensor] = []
        self.told = 0
        """Calls that have become steps."""
        self.k = 0
        lm = _twin(model, self.fed, watch)
        ids = torch.tensor([self.prompt], device=model.device)
        arguments: dict[str, Any] = {
            "attention_mask": torch.ones_like(ids),
            "generation_config": self._config(settings),
        }
        if self.method is Peer.PROMPT_LOOKUP:
            self.k = LOOKUP_TOKENS
        if self.method is Peer.ASSISTED:
            draft = check_draft(model, draft)
            if draft.context < len(self.prompt) + self.left:
                raise PromptError(
                    f"prompt and output may have {len(self.prompt) + self.left} tokens, but the draft "
                    f"model's context holds {draft.context}: ask for fewer tokens"
                )
            assistant = _twin(draft, None)
            self.k = assistant.generation_config.num_assistant_tokens
            arguments["assistant_model"] = assistant
        streams = {peer: number for number, peer in enumerate(Peer, start=2)}
        seed = (8 * settings.seed + streams[self.method]) % 2**63
        self.dice = _Dice(None if settings.greedy else seed, model.device)
        self._generate = functools.partial(lm.generate, ids, **arguments)

    def _config(self, settings: Settings) -> GenerationConfig:
        eos, tokenizer = sorted(self.eos_ids), self.model.tokenizer
        pad = getattr(tokenizer, "pad_token_id", None)
        config: dict[str, Any] = {
            "max_new_tokens": self.left,
            "use_cache": True,
            "do_sample": not settings.greedy,
            "eos_token_id": eos or None,
            "pad_token_id": pad if pad is not None else eos[0] if eos else 0,
        }
        if not settings.greedy:
            config |= {
                "temperature": settings.temperature,
                "top_p": settings.top_p,
                "top_k": settings.top_k,
            }
        if self.model.mask_token_id is not None:
            config["suppress_tokens"] = [self.model.mask_token_id]
        if self.method is Peer.PROMPT_LOOKUP:
            config["prompt_lookup_num_tokens"] = LOOKUP_TOKENS
        return GenerationConfig(**config)

    @torch.inference_mode()
    def generate(self, streamer: BaseStreamer | None = None) -> list[int]:
        """The new tokens."""
        with _silence():
            ids: list[int] = self._generate(streamer=streamer)[0].tolist()
        return ids[len(self.prompt) :]

    def drafts(self) -> list[int]:
        """The drafts of the next call to be told: what it was fed behind the newest token."""
        known = 1 if self.told else len(self.prompt)
        ids: list[int] = self.fed[self.told][0].tolist()
        return ids[known:]

    def step(self, tokens: Sequence[int], seconds: float) -> Step:
        """The next call's step.

        A call's own token never equals the draft in its place, so the tokens that do are accepted
        drafts: that holds greedily, and for both of transformers' sampling rules.
        """
        drafts, rows = self.drafts(), int(self.fed[self.told].shape[1])
        emitted, stop = self._cut(list(tokens))
        self.told += 1
        accepted = longest_common_prefix(emitted, drafts)
        return Step(tuple(emitted), accepted, tuple(drafts), rows, seconds, stop=stop)

    def split(self, output: list[int], seconds: float) -> tuple[Step, ...]:
        """The steps of a finished run, from its output and what its calls were fed."""
        steps: list[Step] = []
        share, start = seconds / max(len(self.fed), 1), 0
        while self.told < len(self.fed):
            end = start + longest_common_prefix(output[start:], self.drafts()) + 1
            steps.append(self.step(output[start:end], share))
            start = end
            if steps[-1].stop:
                break
        if not steps or not steps[-1].stop:
            raise RuntimeError(f"{self.method} ended before its budget or an end-of-sequence token")
        # On mps, generate is one call ahead of its own stopping rule: that call counts, and gives nothing.
        wasted = [Step((), 0, (), int(ids.shape[1]), share) for ids in self.fed[self.told :]]
        return (*steps[:-1], *wasted, steps[-1])

    def _cut(self, tokens: list[int]) -> tuple[list[int], Stop | None]:
        tokens = tokens[: self.left]
        for index, token in enumerate(tokens):
            if token in self.eos_ids:
                return tokens[: index + 1], Stop.EOS
        self.left -= len(tokens)
        return tokens, None if self.left else self.at_budget


def _twin(model: SpaceModel, fed: list[Tensor] | None, watch: Callable[[], object] | None = None) -> Any:
    """The same transformers model as another object, which shares every weight and module.

    It has a generation config of its own, since `generate` fills what a request leaves open from
    the model's (penalties, suppressed tokens, …), which our decoders do not read, and sometimes
    writes to it. Its forward notes the ids it is fed, takes the model's lock and multiplies as our lanes do.
    """
    lm = copy.copy(model.lm)
    own = model.lm.generation_config
    lm.generation_config = GenerationConfig(
        num_assistant_tokens=getattr(own, "num_assistant_tokens", None) or ASSISTANT_TOKENS
    )
    plain = model.lm.forward
    model.refresh()

    @functools.wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if watch is not None:
            watch()
        if fed is not None:
            fed.append(kwargs["input_ids"])
        with model.lock, model.fast():
            return plain(*args, **kwargs)

    lm.forward = forward
    return lm


@contextmanager
def _silence() -> Iterator[None]:
    """No warnings of `generate` from this thread: assisted decoding warns of how it calls itself."""
    thread = threading.get_ident()

    def elsewhere(record: logging.LogRecord) -> bool:
        return record.thread != thread or record.levelno > logging.WARNING

    log = logging.getLogger("transformers.generation.utils")
    log.addFilter(elsewhere)
    try:
        yield
    finally:
        log.removeFilter(elsewhere)


class _Dice:
    """A run's own random numbers, put in place of torch's global ones, which `generate` draws from.

    Args:
        seed: of the stream; None where nothing is drawn, and nothing is replaced.
        device: where `generate` draws.
    """

    def __init__(self, seed: int | None, device: torch.device) -> None:
        self.seed, self.device = seed, device
        self._own: list[Tensor] | None = None
        self._outside: list[Tensor] = []

    def __enter__(self) -> None:
        if self.seed is None:
            return
        self._outside = self._states()
        if self._own is not None:
            self._restore(self._own)
            return
        torch.default_generator.manual_seed(self.seed)
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                torch.cuda.manual_seed(self.seed)
        elif self.device.type == "mps":
            torch.mps.manual_seed(self.seed)

    def __exit__(self, *error: object) -> None:
        if self.seed is not None:
            self._own = self._states()
            self._restore(self._outside)

    def _states(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        if self.device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self.device))
        elif self.device.type == "mps":
            states.append(torch.mps.get_rng_state())
        return states

    def _restore(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(states[1], self.device)
        elif self.device.type == "mps":
            torch.mps.set_rng_state(states[1])


class _Closed(Exception):
    """The consumer has gone: unwinds `generate` from within its streamer."""


class _Worker(BaseStreamer):  # type: ignore[misc]
    """The thread that runs `generate`, and its streamer.

    Either the thread computes or the consumer does, never both: each waits for the other's
    semaphore. The last step is handed over only when `generate` has returned, so what it does
    behind its last token is in the clock too.
    """

    def __init__(self, request: _Request) -> None:
        self.request = request
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._closed = False
        self._prompt_seen = False
        self._tokens: list[int] = []
        self._step: Step | None = None
        self._error: BaseException | None = None
        self._start = 0.0
        # A daemon, so that a generator which nobody closes cannot keep the interpreter alive.
        self._thread = threading.Thread(target=self._work, name="generate", daemon=True)
        self._thread.start()

    def next(self) -> Step:
        """Let the thread compute until it has the next step. For the consumer."""
        self._go.release()
        self._done.acquire()
        if self._error is not None:
            raise self._error
        step, self._step = self._step, None
        if step is None:
            raise RuntimeError("generate ended before its budget or an end-of-sequence token")
        return step

    def close(self) -> None:
        """End the thread. For the consumer."""
        self._closed = True
        self._go.release()
        self._thread.join()

    def put(self, value: Tensor) -> None:
        """Take new tokens, [n] or [1, n], one call's each time; the prompt comes first of all."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        if self._step is not None:  # the run has ended already
            return
        seconds = self.request.model.clock() - self._start
        self._step = self.request.step(value.flatten().tolist(), seconds)
        if self._step.stop is None:
            self._hand_over()

    def end(self) -> None:
        """Nothing: the run ends where `generate` returns."""

    def _hand_over(self) -> None:
        self.request.dice.__exit__()
        self._done.release()
        self._wait()

    def _wait(self) -> None:
        self._go.acquire()
        if self._closed:
            raise _Closed
        self.request.dice.__enter__()
        self._start = self.request.model.clock()

    def _work(self) -> None:
        try:
            self._wait()
            self.request.generate(self)
            if self._step is not None:
                self._step = replace(self._step, seconds=self.request.model.clock() - self._start)
        except _Closed:
            return
        except BaseException as error:
            self._error = error
        self.request.dice.__exit__()
        self._done.release()
