"""The page: SPACE races plain decoding on the visitor's own prompt. `python app.py`, then open it.

Top to bottom as the page is. The only file that imports gradio; what a run is, how it decodes and
how it is told are in `space_core`. The page is served at once, the model loads behind it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
# A small model's call is shorter than a time slice. OpenMP's threads spin for each other by default,
# and on a machine with other work they then wait whole slices: 30 times slower calls were measured.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# gradio keeps the last 10,000 events and draws a table of all of them after each one.
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")

if os.environ.get("SPACES_ZERO_GPU"):  # a Space on ZeroGPU, where the package is installed
    import spaces  # before gradio and torch: it changes both
else:
    spaces = None

from space_core.stubs import absent, first, unwritten

with unwritten():  # half of its import was this
    import gradio as gr
from gradio.routes import templates
from starlette.middleware import Middleware

from space_core import contest, devices, hosting, presets, talks, training
from space_core.bundled import default_checkpoint
from space_core.contest import decoder
from space_core.conversation import Conversation, Message, can_chat, read_messages, turn_ends
from space_core.devices import Slots
from space_core.errors import (
    CheckpointError,
    PromptError,
    ResultError,
    SettingError,
    SpaceError,
    TraceError,
)
from space_core.guard import Guard
from space_core.settings import MAX_K, Plan, Settings
from space_core.views import benchmarks, events, frames, link, recording, sharing, walk
from space_core.views.lanes import FURTHER, MAIN

if TYPE_CHECKING:
    from space_core.bench import Column
    from space_core.memory import Memory
    from space_core.model import SpaceModel
    from space_core.talks import Talk
    from space_core.trace import Trace
    from space_core.trial import Trial

HERE = Path(__file__).resolve().parent
ASSETS = HERE / "assets"
STYLES = ("page.css", "replay.css", "inspector.css", "share.css", "learn.css", "tabs.css", "talk.css")
ARENA = ("dom.js", "ink.js", "lane.js", "chart.js", "replay.js", "race.js")
INSPECTOR = ("dom.js", "call.js", "inspector.js")
LEARN = ("dom.js", "call.js", "lessons.js", "lessons-call.js", "learn.js")
SHARE = ("dom.js", "share.js")
BENCH = ("dom.js", "bench.js")
BUILD = ("dom.js", "build.js")
BENCHMARKS = ASSETS / "benchmarks"
BENCH_PROMPTS = BENCHMARKS / "prompts.jsonl"
MAX_BENCH_PROMPTS = 8
MAX_BENCH_TOKENS = 256

try:
    HOSTING = hosting.Hosting.read(os.environ)
except CheckpointError as wrong:
    sys.exit(f"app.py: {wrong}")
PLUMBING: dict[str, Any] = {
    "queue": False,
    "show_progress": "hidden",
    "show_progress_on": [],
    "api_visibility": "private",
}
"""Of events that answer at once and are nobody's interface. They show progress nowhere: Gradio 6.31 copies
all components that were ever to show it, hidden or not, at each message of any stream."""

METHOD_CHOICES = {
    "space": "SPACE, planned",
    "space-grid": "SPACE, the paper’s grid",
    "generate": "plain decoding by transformers",
    "prompt-lookup": "prompt lookup",
    "assisted": "assisted by the draft model",
}

LANE_CHOICES = {
    "generate": "plain decoding",
    "prompt-lookup": "prompt lookup",
    "assisted": "assisted by the draft model",
}

CHOICES = {"greedy": (0.0, 1.0), "sampled": (0.7, 0.95)}
"""Ways to choose a token: temperature and top-p. The first one is the page's when it opens."""
FIRST_CHOICE = next(iter(CHOICES))

EXAMPLES = {
    "binary search": recording.PROMPT,
    "is prime": '''def is_prime(n: int) -> bool:
    """Return True if n is a prime number.

    >>> is_prime(7)
    True
    """
''',
    "stack class": '''class Stack:
    """A last-in, first-out stack."""

    def __init__(self):
''',
    "read a CSV": '''import csv


def read_rows(path):
    """Read a CSV file and return its rows as a list of dictionaries."""
''',
    "hostile text": r'''def escape(text):
    """Make `${alert(1)}` and <img src=x onerror="alert(1)"> harmless.

    >>> escape("C:\\users</script>")
    """
''',
}


# ---------------------------------------------------------------- the model behind the page


IMPORTING = threading.Lock()
"""Held by who imports transformers: a second thread that does so meanwhile finds names missing in it."""


PATIENCE = 10.0
"""Seconds, once the page is served, for which the model leaves the processor to the first visitor's page:
loaded at once, it made that page take 2.9 seconds instead of 1.6 on two slow cores."""


class Loader:
    """Loads and warms one model in the background, once for each device; whoever needs it waits here.

    Attributes:
        slots: the devices, and who has which.
        lanes: the further lanes that can be asked for; `assisted` only where there is a draft model.
        draft: the draft model of `assisted`, once it is loaded.
        number: 0 for the page's own model, then those that visitors have put beside it.
        done: it is there, or could not be loaded.
        wanted: somebody waits for it.
    """

    KEPT = 3
    """Models beside the page's own; the oldest goes first."""

    def __init__(
        self,
        source: str,
        device: str,
        dtype: str,
        draft_source: str | None = None,
        slots: Slots | None = None,
        number: int = 0,
    ) -> None:
        self.source, self.device, self.dtype = source, device, dtype
        self.draft_source = draft_source
        self.slots = slots or Slots((device,))
        self.lanes = tuple(name for name in FURTHER if draft_source or name != "assisted")
        self.draft: SpaceModel | None = None
        self.number = number
        self.done = threading.Event()
        self.wanted = threading.Event()
        self._id = secrets.token_hex(4)
        self._model: SpaceModel | None = None
        self._error = ""
        self._beside: dict[str, Loader] = {}
        self._beside_so_far = 0
        self._lock = threading.Lock()

    def start(self, patience: float = 0.0) -> None:
        """Load in the background, once somebody wants the model or so many seconds are over."""

        def begin() -> None:
            self.wanted.wait(patience)
            self.load()

        threading.Thread(target=begin, name="load-model", daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Whether the model is there, or has failed, within so many seconds; whoever asks wants it."""
        self.wanted.set()
        return self.done.wait(seconds)

    def beside(self, source: str) -> Loader:
        """Another model, for whoever chooses it; nobody else's changes."""
        with self._lock:
            known = self._beside.get(source)
            if known is not None and not known.failed:
                return known
            self._beside.pop(source, None)
            while len(self._beside) >= self.KEPT:
                self._beside.pop(next(iter(self._beside)))._forget()
            self._beside_so_far += 1
            # No draft model: the one that was named drafts for the page's own.
            other = Loader(source, self.device, self.dtype, None, self.slots, self._beside_so_far)
            self._beside[source] = other
        other.start()
        return other

    def chosen(self, choice: str = "") -> Loader:
        """The model of a visitor's choice; the page's own without one, or when it is there no more."""
        return self._beside.get(choice, self)

    def of(self, race: frames.Race) -> Loader | None:
        """The model that ran a race; None for a race from a file, or when it is there no more."""
        return next((one for one in (self, *self._beside.values()) if one.number == race.load), None)

    def key(self, slot: int) -> str:
        """Of the model on a device, in the registry (`space_core.contest`)."""
        return f"{self._id}/{slot}"

    @property
    def model(self) -> SpaceModel:
        """The model, on the first device; ask only once `done` is set.

        Raises:
            gr.Error: when it could not be loaded, saying why.
        """
        if self._model is None:
            raise gr.Error(self._error or "The model is still loading.", print_exception=False)
        return self._model

    @property
    def ready(self) -> bool:
        return self._model is not None

    @property
    def failed(self) -> bool:
        return self.done.is_set() and not self.ready

    @property
    def name(self) -> str:
        """The model's name, also before it is there."""
        return self._model.name if self._model is not None else Path(self.source).name

    @property
    def address(self) -> str:
        """What a visitor's own `space_core.load` would open; no folder of this machine is told."""
        folder = Path(self.source).resolve()
        if folder.is_relative_to(HERE):
            return folder.relative_to(HERE).as_posix()
        return folder.name if folder.exists() else self.source

    def status(self) -> dict[str, str]:
        """What the chip says."""
        if self._model is not None:
            model, dtype = self._model, self._model.dtype_name
            title = f"{model.k} trained masks, context of {model.context} tokens"
            if self.draft is not None:
                title += f"; draft model {self.draft.name}"
            where = _device_name(model) if len(self.slots) == 1 else f"{len(self.slots)} devices"
            return {"state": "ready", "text": f"{model.name} · {where} · {dtype}", "title": title}
        if self._error:
            return {"state": "failed", "text": self._error}
        return {"state": "loading", "text": f"loading {Path(self.source).name}"}

    def load(self) -> None:
        """Load now, and warm up; a failure is told by `status` and `model`."""
        try:
            loaded = [self._load(slot) for slot in range(len(self.slots))]
            # On ZeroGPU there is no GPU before somebody races.
            if not HOSTING.zero:
                self._warm(*loaded[0])
            self._model, self.draft = loaded[0]
        except SpaceError as error:
            self._error = str(error)
        except Exception as error:  # whatever a foreign model throws, the page must say it
            self._error = f"The model could not be loaded: {error}"
            raise
        finally:
            if self._error:
                print(self._error, file=sys.stderr)
            self.done.set()

    def _load(self, slot: int) -> tuple[SpaceModel, SpaceModel | None]:
        # torch and transformers take seconds to import: the page is served meanwhile.
        with IMPORTING:
            from space_core import checkpoint, peers  # noqa: F401

        device = self.slots.devices[slot]
        model, draft = open_model(self.source, device, self.dtype), None
        if self.draft_source:
            draft = peers.check_draft(model, open_model(self.draft_source, device, self.dtype))
        contest.put(self.key(slot), model, draft)
        return model, draft

    def _warm(self, model: SpaceModel, draft: SpaceModel | None) -> None:
        import space_core

        space_core.tune_threads(model)
        settings = Settings(max_new_tokens=8, k=min(model.k, MAX_K))
        prompt_ids = model.encode("def main():\n")
        for name in (*MAIN, *self.lanes):
            for _ in decoder(name, model, prompt_ids, settings, draft):
                pass

    def _forget(self) -> None:
        for slot in range(len(self.slots)):
            contest.drop(self.key(slot))


def open_model(source: str, device: str, dtype: str) -> SpaceModel:
    """A model by its name, as far as this page may load it (`space_core.hosting`).

    Raises:
        SpaceError: for one that it may not, or cannot.
    """
    import space_core
    from space_core import checkpoint

    name, revision = HOSTING.source(source)
    if revision is None and not HOSTING.hosted:
        return space_core.load(name, device=device, **preset_arguments(name, device, dtype))
    folder = checkpoint.fetch(name, revision)
    HOSTING.manifest(checkpoint.read_manifest(folder))
    model = space_core.load(str(folder), device=device, **preset_arguments(name, device, dtype))
    model.name = name if revision else model.name
    return model


def preset_arguments(source: str, device: str, dtype: str) -> dict[str, Any]:
    """How a model is opened: a published one as its preset says, and in half precision where that is a
    choice that nobody made."""
    preset = presets.find(source)
    if preset is None:
        return {"dtype": dtype}
    if dtype == "float32":  # the page's default, made for small models
        from space_core.checkpoint import find_device

        dtype = "bfloat16" if find_device(device).type == "cpu" else "float16"
    return {"dtype": dtype, **preset.arguments}


def _device_name(model: SpaceModel) -> str:
    # There the model that this process has is on no device: a run's own process brings it to its GPU.
    return "ZeroGPU" if HOSTING.zero else str(model.device)


# ---------------------------------------------------------------- what the buttons do


class Request(NamedTuple):
    """The fields of one request, in the order of the page's inputs; untrusted until checked."""

    prompt: Any
    k: Any
    max_new_tokens: Any
    temperature: Any
    top_p: Any
    seed: Any
    plan: Any
    lanes: Any
    chat: Any = False

    def numbers(self) -> dict[str, Any]:
        """The fields that `Settings` judges."""
        others = ("prompt", "lanes", "chat")
        return {name: value for name, value in self._asdict().items() if name not in others}

    def settings(self, **further: Any) -> Settings:
        """With what the page has no field for. Raises SettingError."""
        read_switch("chat", self.chat)
        return HOSTING.limits.settings(Settings(**self.numbers(), **further))

    def problems(self, model: SpaceModel | None, offered: Sequence[str]) -> dict[str, str]:
        """What is wrong, by field; `offered` are the further lanes that there are."""
        found = {}
        try:
            read_prompt(self.prompt, model)
        except PromptError as error:
            found["prompt"] = str(error)
        try:
            read_lanes(self.lanes, offered)
        except SettingError as error:
            found[error.field] = str(error)
        try:
            read_switch("chat", self.chat)
        except SettingError as error:
            found[error.field] = str(error)
        for name, value in self.numbers().items():
            try:
                HOSTING.limits.settings(Settings(**{name: value}))
            except SettingError as error:
                found[error.field] = str(error)
        return found


def read_prompt(prompt: Any, model: SpaceModel | None) -> list[int]:
    """The prompt's ids; without a model, only what can be said without one is checked.

    Raises:
        PromptError: with a sentence for the field.
    """
    if not isinstance(prompt, str):
        raise PromptError("the prompt must be text")
    if not prompt.strip():
        raise PromptError("the prompt is empty: write a few words for the model to continue")
    HOSTING.limits.text(prompt)
    if "\0" in prompt or any("\ud800" <= c <= "\udfff" for c in prompt):
        raise PromptError("the prompt holds a character that is no text: remove it")
    return [] if model is None else HOSTING.limits.ids(model.encode(prompt))


def read_lanes(names: Any, offered: Sequence[str]) -> tuple[str, ...]:
    """The further lanes that are asked for, each once and in the order in which they are shown.

    Raises:
        SettingError: with a sentence for the field.
    """
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise SettingError("lanes", f"lanes must be a list of names, not {names!r:.40}")
    for name in names:
        if name not in offered:
            raise SettingError("lanes", f"unknown lane {name!r:.40}: known are {', '.join(offered)}")
    return tuple(name for name in offered if name in names)


def read_switch(name: str, value: Any) -> bool:
    """Raises SettingError for what is neither true nor false."""
    if not isinstance(value, bool):
        raise SettingError(name, f"{name} must be true or false, not {value!r:.40}")
    return value


def choose(name: Any) -> tuple[float, float]:
    """Temperature and top-p of a choice; of the first one for a name that there is not."""
    return CHOICES[name if isinstance(name, str) and name in CHOICES else FIRST_CHOICE]


def chosen(temperature: Any) -> str:
    """The choice that a temperature belongs to."""
    return "sampled" if temperature else "greedy"


FIELDS = len(Request._fields)


class Handlers:
    """The page's events. They keep nothing: a visitor's race lives in that visitor's session."""

    def __init__(self, loader: Loader, deadline: float) -> None:
        self.loader, self.deadline = loader, deadline
        self.talks = talks.Talks()

    def status(self, choice: str = "") -> tuple[str, gr.Timer]:
        loader = self.loader.chosen(choice)
        loader.wanted.set()  # the visitor's page stands
        return json.dumps(loader.status()), gr.Timer(active=not loader.done.is_set())

    def check(self, *fields: Any) -> list[dict[str, Any]]:
        """The validator of a race: a message at each field that is wrong."""
        # What the server keeps, the choice and the race before, follows the fields.
        request, loader = Request(*fields[:FIELDS]), self.loader.chosen(*fields[FIELDS : FIELDS + 1])
        problems = request.problems(loader.model if loader.ready else None, loader.lanes)
        told = [gr.validate(name not in problems, problems.get(name, "")) for name in Request._fields]
        return told + [gr.validate(True, "")] * (len(fields) - FIELDS)

    def race(
        self,
        prompt: str,
        k: float,
        max_new_tokens: float,
        temperature: float,
        top_p: float,
        seed: float,
        plan: str,
        lanes: list[str],
        chat: bool = False,
        choice: str = "",
        earlier: frames.Race | None = None,
    ) -> Iterator[tuple[str, frames.Race | None]]:
        """Race SPACE against plain decoding; yields frames (`space_core.views.frames`).

        Args:
            chat: send the prompt as what the user says next in a conversation, to a model that can.
            choice: the visitor's own model.
            earlier: the visitor's race before, whose conversation goes on.
        """
        request = Request(prompt, k, max_new_tokens, temperature, top_p, seed, plan, lanes, chat)
        loader = self.loader.chosen(choice)
        if not loader.done.is_set():
            # Told once: a frame that is on its way when somebody presses Stop would come behind the last one.
            yield frames.encode(frames.empty(frames.State.WAITING)), None
        while not loader.wait(0.2):
            yield gr.skip(), gr.skip()
        model = loader.model
        try:
            settings, talk = request.settings(), None
            if chat:
                read_prompt(prompt, None)
                talk = self.talks.next(model, loader.number, prompt, earlier)
            race = self.prepare(loader, request, settings, talk, MAIN)
        except SpaceError as error:
            raise gr.Error(str(error), print_exception=False) from None
        yield frames.encode(race.snapshot()), race
        problem = ""
        with closing(self.run(loader, race)) as told:
            try:
                for frame in told:
                    yield frames.encode(frame), race
            except SpaceError as error:
                problem = str(error)
        yield frames.encode(race.snapshot()), race
        if problem:
            raise gr.Error(problem, print_exception=False)

    def prepare(
        self,
        loader: Loader,
        request: Request,
        settings: Settings,
        talk: Talk | None,
        main: Sequence[str],
    ) -> frames.Race:
        """A race that has not begun.

        Args:
            loader: of the model that races; it is there.
            talk: the conversation; its last message is sent, and not the request's prompt.
            main: the lanes beside the further ones that are asked for.

        Raises:
            SpaceError: for a request that cannot run.
        """
        model = loader.model
        self.talks.know(contest.models())
        further = read_lanes(request.lanes, loader.lanes)
        if talk is None:
            sent, prompt_ids = request.prompt, read_prompt(request.prompt, model)
        else:
            read_prompt("\n".join(message.content for message in talk.messages), None)  # all of it counts
            sent, prompt_ids = talks.prompt(model, talk)
            HOSTING.limits.ids(prompt_ids)  # the template's own tokens too
        race = frames.Race.of(model, (*main, *further), prompt_ids, sent, settings, _device_name(model))
        race.load, race.talk = loader.number, talk
        return race

    def run(
        self, loader: Loader, race: frames.Race, goes_on: bool = True
    ) -> Generator[frames.Frame, None, None]:
        """The deltas of a race that was prepared; it has ended when they have.

        Closing this ends every lane before its next call.

        Args:
            goes_on: whether its conversation may have a next turn, for which caches are kept.

        Raises:
            SpaceError: when it is over, for a lane that could not run.
        """
        talk, main = race.talk, [name for name in race.lanes if name in MAIN]
        further = [name for name in race.lanes if name not in MAIN]
        names = (*reversed(main), *further)  # the order of their first calls
        wanted = None if talk is None else talk.slot
        with loader.slots.taken(wanted) as slot, self.talks.tidying(talk):
            key, ids = loader.key(slot), list(race.trace(names[0]).prompt_ids)
            ends: tuple[int, ...] = ()
            memories: dict[str, Memory] = {}
            if talk is not None:
                model, talk.slot = contest.get(key)[0], slot
                ends = tuple(sorted(turn_ends(model)))
                # A lane that cannot reuse what it read would race those that do unfairly; and what a
                # process on a lent GPU has read ends with that process.
                if goes_on and not further and not HOSTING.zero:
                    memories = self.talks.memories(model, talk, names)
            told = run_race(key, ids, race.settings.to_json(), names, self.deadline, ends, memories)
            problem, end = "", frames.State.DONE
            with closing(told):
                for kind, steps, words in told:
                    problem = words or problem
                    for lane, step in steps:
                        race.add(lane, step)
                    if kind != "steps":
                        end = frames.State.DEADLINE if kind == "deadline" else frames.State.STOPPED
                    elif steps:
                        yield race.delta()
        race.end(end)
        if problem:
            raise SpaceError(problem)

    def offer_talk(self, choice: str = "") -> dict[str, Any]:
        """Whether the visitor's model is there and can hold a conversation."""
        loader = self.loader.chosen(choice)
        return gr.update(visible=loader.ready and can_chat(loader.model))

    def turn(self, race: frames.Race | None) -> tuple[Any, Any, Any]:
        """After a race: what its conversation has come to, a field for what comes next, and its end."""
        talk = None if race is None else race.talk
        if talk is None or talk.over:
            return "", gr.skip(), gr.update(visible=False)
        told = f"Turn {talk.turns} is answered: {talk.tokens:,} tokens were sent"
        told += f", {talk.known:,} of them still in the cache." if talk.known else "."
        return told, gr.update(value=""), gr.update(visible=True)

    def end_talk(self, race: frames.Race | None) -> tuple[str, Any]:
        """The next race begins a conversation; the one on the page stays to be looked at."""
        if race is not None and race.talk is not None:
            self.talks.end(race.talk)
        return "The next race begins a new conversation.", gr.update(visible=False)

    def stop(self, race: frames.Race | None) -> str:
        """The last frame of a race that was cancelled: the lanes keep what they have."""
        if race is None:
            return frames.encode(frames.empty(frames.State.STOPPED))
        race.end(frames.State.STOPPED)
        return frames.encode(race.snapshot())

    def resend(self, race: frames.Race | None) -> str | dict[str, Any]:
        """The whole race once more, for a browser that missed a frame."""
        return gr.skip() if race is None else frames.encode(race.snapshot())

    def inspect(self, race: frames.Race | None, event: gr.EventData) -> str:
        """One call of the visitor's own race, opened: its rows computed once more, untrusted until found."""
        from space_core.views import inspect

        asked = event._data if isinstance(event._data, dict) else {}
        lane, n = asked.get("lane"), asked.get("call")
        if race is None or race.id != asked.get("race") or lane not in race.lanes or type(n) is not int:
            return frames.encode(inspect.refusal("", "", 0, "There is no such call in this race."))
        loader = self.loader.of(race)
        if loader is None or not loader.ready:
            words = (
                "this race came from a file" if race.foreign else "the model that ran it is loaded no more"
            )
            words = f"This call cannot be opened: {words}. Press Race, and the calls of your own can be."
            return frames.encode(inspect.refusal(race.id, str(lane), n, words))
        with loader.slots.taken() as slot:
            return frames.encode(examine(loader.key(slot), race.trace(lane), n, race.id))

    def follow(self, request: gr.Request) -> list[Any]:
        """The page's fields and the arena, as the address asks: nothing runs by itself."""
        loader = self.loader
        linked = link.read(dict(request.query_params), loader.lanes, HOSTING.limits.characters)
        values = [linked.fields.get(name, gr.skip()) for name in Request._fields]
        note = linked.note(loader.name)
        if not note:
            return [*values, gr.skip()]
        told = frames.linked(note, linked.step, linked.fields.get("prompt", EXAMPLES["binary search"]))
        return [*values, frames.encode(told)]

    def share(self, race: frames.Race | None, *fields: Any) -> str:
        """Link, files and code for the visitor's race, or before there is one for what the fields ask."""
        from space_core.views import share

        request, loader = Request(*fields[:FIELDS]), self.loader.chosen(*fields[FIELDS:])
        messages: Conversation = ()
        if race is not None and race.state is frames.State.RUNNING:
            raise gr.Error("The race is still running: share it when it is over.", print_exception=False)
        try:
            if race is None:
                settings, lanes = request.settings(), read_lanes(request.lanes, loader.lanes)
                read_prompt(request.prompt, None)
                prompt, name, source = request.prompt, loader.name, loader.address
                can_talk = loader.ready and can_chat(loader.model)
                if can_talk and request.chat:
                    messages = (Message("user", prompt),)
                device, dtype = loader.device, loader.dtype
            else:
                about = race.about
                settings, lanes = race.settings, tuple(name for name in race.lanes if name not in MAIN)
                messages = race.talk.messages if race.talk else ()
                prompt, name = about["prompt"], about["model"]
                ran = self.loader.of(race)
                can_talk = bool(messages) or (ran is not None and ran.ready and can_chat(ran.model))
                source = ran.address if ran is not None else name
                device, dtype = "auto" if HOSTING.zero else about["device"], about["dtype"]
        except SpaceError as error:
            raise gr.Error(str(error), print_exception=False) from None
        chat = bool(messages) if can_talk else None
        told = share.message(race, prompt, settings, lanes, name, source, device, dtype, messages, chat)
        return frames.encode(told)

    def open_trace(self, event: gr.EventData) -> tuple[Any, Any, Any]:
        """A race from a visitor's file: to the arena, the state, or a sentence at its field."""
        from space_core.views import share

        asked = event._data if isinstance(event._data, dict) else {}
        loader = self.loader
        try:
            race = sharing.read(asked.get("text"), loader.model.tokenizer if loader.ready else None)
        except TraceError as error:
            return gr.skip(), gr.skip(), frames.encode(share.refusal(str(error)))
        return frames.encode(race.snapshot()), race, gr.skip()

    def figures(self, race: frames.Race | None) -> tuple[dict[str, Any], dict[str, Any]]:
        """What stands still after a race."""
        from space_core.views.figures import calls_figure, clock_figure

        if race is None or not race.trace("space").steps or not race.trace("vanilla").steps:
            return gr.update(visible=False), gr.update(visible=False)
        traces = race.traces()
        return (
            gr.update(value=calls_figure(traces[0]), visible=True),
            gr.update(value=clock_figure(*traces), visible=True),
        )


class Benchmarks:
    """Events of the benchmark tab: results that come with the page, and a small one measured here."""

    def __init__(self, loader: Loader, deadline: float) -> None:
        self.loader, self.deadline = loader, deadline
        self.methods = tuple(name for name in METHOD_CHOICES if name != "assisted" or loader.draft_source)
        self.benches, self.calls = self._bundled()

    @staticmethod
    def _bundled() -> tuple[dict[str, benchmarks.Bench], list[benchmarks.Calls]]:
        try:
            benches, calls = benchmarks.read(BENCHMARKS)
        except ResultError as error:
            print(error, file=sys.stderr)
            return {}, []
        return {bench.head.name: bench for bench in benches}, calls

    def choices(self) -> list[tuple[str, str]]:
        from space_core.views.results import label

        return [(label(bench), name) for name, bench in self.benches.items()]

    def show(self, name: Any) -> list[Any]:
        """The figures of a bundled result; of the first one for a name that there is not."""
        from space_core.views import results

        bench = self.benches.get(name) if isinstance(name, str) else None
        bench = bench or next(iter(self.benches.values()), None)
        paper = gr.update(value=results.paper_figure(), visible=True)
        if bench is None:
            return [gr.update(visible=False)] * 4 + [paper]
        drawn = [
            results.speedup_figure(bench),
            results.calls_figure(self.calls),
            results.histogram_figure(bench),
            results.acceptance_figure(bench),
        ]
        return [*(gr.update(value=figure, visible=True) for figure in drawn), paper]

    def request(
        self, count: Any, methods: Any, k: Any, tokens: Any
    ) -> tuple[int, tuple[Column, ...], Settings]:
        """The fields, judged.

        Raises:
            SettingError: naming the field.
        """
        from space_core import bench

        for name, value, most in (
            ("prompts", count, MAX_BENCH_PROMPTS),
            ("tokens", tokens, MAX_BENCH_TOKENS),
        ):
            whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
            if not whole or not 1 <= value <= most:
                raise SettingError(name, f"{name} must be a whole number in 1..{most}")
        if not isinstance(methods, list) or not methods:
            raise SettingError("methods", "choose at least one method to hold against vanilla")
        for name in methods:
            if name not in self.methods:
                raise SettingError(
                    "methods", f"unknown method {name!r:.40}: known are {', '.join(self.methods)}"
                )
        settings = Settings(k=k, max_new_tokens=tokens)
        chosen = [name for name in self.methods if name in methods]
        return int(count), bench.columns(chosen, [settings.k], settings.plan), settings

    def run(
        self, count: Any, methods: Any, k: Any, tokens: Any, choice: str = ""
    ) -> Iterator[tuple[str, Trial | None]]:
        """Measure here; yields messages (`space_core.views.watching`)."""
        from space_core import prompts
        from space_core.trial import Trial
        from space_core.views import watching

        if HOSTING.zero:
            words = "A GPU is lent here for one run at a time: measure on your own machine."
            yield frames.encode(watching.failed(words)), None
            return
        loader = self.loader.chosen(choice)
        while not loader.wait(0.2):
            yield frames.encode(watching.waiting()), None
        if not loader.ready:
            yield frames.encode(watching.failed(loader.status()["text"])), None
            return
        try:
            number, lines, settings = self.request(count, methods, k, tokens)
            asked = prompts.read_prompts(BENCH_PROMPTS, number)
            command = (
                "python -m space_core bench --prompts assets/benchmarks/prompts.jsonl "
                f"--limit {number} --methods {','.join(dict.fromkeys(str(line.method) for line in lines))} "
                f"--k {settings.k} --max-new-tokens {settings.max_new_tokens} --model {loader.address}"
            )
            with loader.slots.taken() as slot:
                model, draft = contest.get(loader.key(slot))
                trial = Trial(model, draft, asked, lines, settings, self.deadline, command)
                with closing(trial.run()) as told:
                    for progress in told:
                        view = watching.running(progress.done, progress.total, progress.line, progress.calls)
                        yield frames.encode(view), trial
            assert trial.end is not None
            yield frames.encode(watching.over(trial.end.value, trial.result)), trial
        except SpaceError as error:
            yield frames.encode(watching.failed(f"{error}.")), None

    def stop(self, trial: Trial | None) -> None:
        """End a benchmark before its next call; it then shows what it has."""
        if trial is not None:
            trial.cancel()

    def figures(self, trial: Trial | None) -> list[Any]:
        from space_core.views import results

        if trial is None or trial.result is None:
            return [gr.update(visible=False)] * 2
        bench = benchmarks.parse("here", trial.result)
        return [
            gr.update(
                value=results.speedup_figure(bench, "Measured here: speed-up, tokens per call (◇)"),
                visible=True,
            ),
            gr.update(value=results.histogram_figure(bench), visible=True),
        ]


class Builds:
    """Events of the build tab. `training` is None where the page may not train."""

    def __init__(self, loader: Loader, training: training.Training | None) -> None:
        self.loader, self.training = loader, training

    def show(self, choice: str = "") -> list[Any]:
        """How the loaded checkpoint was made: its facts and curves, as far as it brings them."""
        from space_core.views import building, training

        folder = Path(self.loader.chosen(choice).source)
        found = training.read(*sorted(folder.glob("training_log_[0-9].jsonl")), folder / "training_log.jsonl")
        try:
            manifest = json.loads((folder / "space.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            manifest = None
        told = building.shown(folder.name, training.facts(manifest, found))
        drawn = (
            (
                found.base_loss or found.heldout_loss,
                lambda curves: training.base_figure(curves, training.base_start(manifest)),
            ),
            (found.masks_loss, training.masks_figure),
            (found.tokens_per_call, training.tokens_figure),
        )
        return [
            frames.encode(told),
            *(gr.update(value=draw(found) if there else None, visible=bool(there)) for there, draw in drawn),
        ]

    def run(self) -> Iterator[tuple[str, Any]]:
        """Train the smoke recipe; yields messages, and at the end whether there is a checkpoint to race."""
        from space_core.views import building, training

        own = self.training
        if own is None:
            raise gr.Error("Training is switched off on this page.", print_exception=False)
        told = own.run()
        end = ""
        with closing(told):
            while not end:
                try:
                    seconds = next(told)
                except StopIteration as stopped:
                    end = stopped.value
                else:
                    yield frames.encode(building.running(training.read(own.log), seconds)), gr.skip()
        found = training.read(own.log)
        words = {
            "done": "Done: a model and its masks, made from nothing. Race it, and see what it can.",
            "stopped": "Stopped. “Train” goes on from here.",
        }
        state = end if end in words else "failed"
        message = building.ended(state, found, words.get(end, f"The training failed: {end}"))
        yield frames.encode(message), gr.update(visible=end == "done")

    def stop(self) -> None:
        if self.training is not None:
            self.training.stop()

    def adopt(self) -> tuple[str, str, gr.Timer, Any, gr.Tabs]:
        """Race with the checkpoint that was just made: the choice of whoever asks, and of nobody else."""
        own = self.training
        if own is None or not own.finished:
            raise gr.Error("There is no new checkpoint to race with.", print_exception=False)
        choice = str(own.checkpoint)
        return (
            choice,
            json.dumps(self.loader.beside(choice).status()),
            gr.Timer(active=True),
            gr.update(visible=False),
            gr.Tabs(selected="race"),
        )


class Api:
    """The named endpoints, for programs; each is documented by its docstring, which `view_api` shows.

    They are the page's own races, on the page's own model: the same queue, the same limits, one run at a
    time on a device.
    """

    def __init__(self, handlers: Handlers) -> None:
        self.handlers, self.loader = handlers, handlers.loader

    def _start(self, request: Request, messages: Any, top_k: Any, main: Sequence[str]) -> frames.Race:
        """The race of a call; raises SpaceError."""
        settings, talk = request.settings(top_k=top_k), None
        if messages is not None:
            if request.prompt not in ("", None):
                raise PromptError("give a prompt or messages, not both")
            talk = talks.Talk(read_messages(messages))
        return self.handlers.prepare(self.loader, request, settings, talk, main)

    def _race(self, request: Request, messages: Any, top_k: Any) -> Iterator[dict[str, Any]]:
        while not self.loader.wait(0.2):
            yield dict(events.waiting())
        with titled():
            race = self._start(request, messages, top_k, MAIN)
            fold, tokens = events.Fold(), len(race.trace("space").prompt_ids)
            yield from map(dict, fold.take(race.snapshot(), tokens))
            with closing(self.handlers.run(self.loader, race, goes_on=False)) as told:
                for frame in told:
                    yield from map(dict, fold.take(frame, tokens))
            yield from map(dict, fold.take(race.snapshot(), tokens))

    def _generate(self, request: Request, messages: Any, top_k: Any, method: Any) -> Iterator[dict[str, Any]]:
        while not self.loader.wait(0.2):
            yield dict(events.waiting())
        with titled():
            if method not in MAIN:
                raise SettingError("method", f"method must be {' or '.join(MAIN)}, not {method!r:.40}")
            race = self._start(request, messages, top_k, (method,))
            with closing(self.handlers.run(self.loader, race, goes_on=False)) as told:
                for frame in told:
                    yield dict(events.progress(frame, method))
            rest = race.delta()
            if rest["calls"]:
                yield dict(events.progress(rest, method))
            yield race.trace(method).to_json()

    def race(
        self,
        prompt: str = "",
        k: int = 5,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        plan: Literal["auto", "grid"] = "auto",
        lanes: list[str] | None = None,
        messages: list[dict[str, str]] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Race SPACE against plain decoding of the same model on one fair clock, and stream what happens
        as events of "space-events/1": waiting, start, calls, end.

        Args:
            prompt: Text to continue.
            k: Guesses per call, 1 to 16; a hosted page takes fewer, as models says.
            max_new_tokens: Most new tokens of a lane, 1 to 8192; a hosted page takes fewer.
            temperature: 0 is greedy; above, tokens are sampled.
            top_p: Nucleus of sampling, above 0 and at most 1.
            top_k: Keep so many likeliest tokens when sampling; 0 keeps all.
            seed: Of the sampling.
            plan: Rows of a call: auto for those that are worth their time, grid for the paper's.
            lanes: Further lanes, of those that models names.
            messages: A conversation in place of the prompt, as role and content; needs a chat model.

        Returns:
            Events, whose last one has texts, counters and the verdict.
        """
        request = Request(
            prompt, k, max_new_tokens, temperature, top_p, seed, plan, [] if lanes is None else lanes
        )
        yield from self._race(request, messages, top_k)

    def generate(
        self,
        prompt: str = "",
        method: Literal["space", "vanilla"] = "space",
        k: int = 5,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        plan: Literal["auto", "grid"] = "auto",
        messages: list[dict[str, str]] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Continue a prompt with one method; the last answer is the whole run, text and every call, as
        "space-trace/1", and those before it are events of type progress.

        Args:
            prompt: Text to continue.
            method: space, or vanilla for plain decoding.
            k: Guesses per call, 1 to 16; a hosted page takes fewer, as models says.
            max_new_tokens: Most new tokens, 1 to 8192; a hosted page takes fewer.
            temperature: 0 is greedy; above, tokens are sampled.
            top_p: Nucleus of sampling, above 0 and at most 1.
            top_k: Keep so many likeliest tokens when sampling; 0 keeps all.
            seed: Of the sampling.
            plan: Rows of a call: auto for those that are worth their time, grid for the paper's.
            messages: A conversation in place of the prompt, as role and content; needs a chat model.

        Returns:
            A trace of "space-trace/1"; before it, events whose text is what is new.
        """
        request = Request(prompt, k, max_new_tokens, temperature, top_p, seed, plan, [])
        yield from self._generate(request, messages, top_k, method)

    def models(self) -> dict[str, Any]:
        """The model that answers here, what it can do, and what may be asked of it.

        Returns:
            An object of "space-models/1": models, methods, lanes, limits.
        """
        loader, limits = self.loader, HOSTING.limits
        model: dict[str, Any] = {"name": loader.name, "source": loader.address, **loader.status()}
        del model["text"]
        model.pop("title", None)
        if loader.ready:
            found = loader.model
            model |= {
                "device": _device_name(found),
                "dtype": found.dtype_name,
                "k": found.k,
                "context": found.context,
                "masks": found.masks.method,
                "chat": can_chat(found),
            }
        return {
            "format": "space-models/1",
            "models": [model],
            "methods": list(MAIN),
            "lanes": list(loader.lanes),
            "limits": {
                "k": limits.k,
                "max_new_tokens": limits.new_tokens,
                "prompt_characters": limits.characters,
                "prompt_tokens": limits.prompt_tokens if HOSTING.hosted else None,  # else its context
                "seconds": self.handlers.deadline,
                "queue": limits.waiting,
            },
        }


@contextmanager
def titled() -> Iterator[None]:
    """An error of ours becomes one whose title names its kind and field."""
    try:
        yield
    except SpaceError as error:
        raise gr.Error(str(error), title=events.refusal(error), print_exception=False) from None


def api_region(handlers: Handlers) -> None:
    """The endpoints. They share the page's queue: an API call waits while somebody races, and the reverse."""
    api = Api(handlers)
    device = on_device(handlers.loader)
    gr.api(api.race, api_name="race", **device)
    gr.api(api.generate, api_name="generate", **device)
    gr.api(api.models, api_name="models", concurrency_limit=None)


class Presets:
    """Events of the published model that the build tab offers, on the owner's own machine."""

    def __init__(self, loader: Loader, preset: presets.Preset) -> None:
        self.loader, self.preset = loader, preset

    def misfit(self) -> str:
        """Why this machine should not run it, "" where it may."""
        with IMPORTING:
            from space_core.checkpoint import find_device

        device = str(find_device(self.loader.device))
        return self.preset.misfit(device, presets.machine_memory(device))

    def offer(self) -> tuple[str, Any, Any]:
        """Its words, its button (off where it does not fit), and the box that allows it all the same."""
        words, why = f"`{self.preset.source}` has {self.preset.words()}.", self.misfit()
        if why:
            words += f" This machine {why}: it is off here."
        return words, gr.update(interactive=not why), gr.update(visible=bool(why), value=False)

    def allow(self, anyway: Any) -> dict[str, Any]:
        return gr.update(interactive=anyway is True or not self.misfit())

    def load(self, anyway: Any) -> tuple[str, str, gr.Timer, gr.Tabs]:
        """Race with it: the choice of whoever asks. The page's own model stays, whatever becomes of this."""
        why = "" if anyway is True else self.misfit()
        if why:
            words = f"{self.preset.source} has {self.preset.words()}, and this machine {why}."
            raise gr.Error(words, print_exception=False)
        choice = self.preset.source
        chip = json.dumps(self.loader.beside(choice).status())
        return choice, chip, gr.Timer(active=True), gr.Tabs(selected="race")


# ---------------------------------------------------------------- on whose GPU, and what fails there


def on_gpu(task: Callable[..., Any], duration: Any) -> Callable[..., Any]:
    """On ZeroGPU the task with a GPU lent for its time (seconds, or from its arguments); else the task."""
    return task if spaces is None else spaces.GPU(duration=duration)(task)  # type: ignore[no-any-return]


def open_call(key: str, trace: Trace, n: int, race_id: str) -> dict[str, Any]:
    """A message about call n of a finished run, from 1: its rows are computed once more."""
    from space_core.views import inspect

    try:
        return inspect.answer(contest.get(key)[0], trace, n - 1, race_id)
    except SpaceError as error:
        return {**inspect.refusal(race_id, trace.method, n, f"This call cannot be opened: {error}.")}


run_race = on_gpu(contest.run, contest.duration)
examine = on_gpu(open_call, 15)


class Page(gr.Blocks):
    """Blocks whose every event fails in words: an error of ours says it, a defect goes to the log."""

    async def process_api(self, block_fn: Any, inputs: list[Any], *args: Any, **named: Any) -> dict[str, Any]:
        if isinstance(block_fn, int):
            block_fn = self.fns[block_fn]
        if not isinstance(inputs, list) or len(inputs) < len(block_fn.inputs):
            words = f"This event takes {len(block_fn.inputs)} values as its data: /config lists them."
            raise gr.Error(words, print_exception=False)
        try:
            return await super().process_api(block_fn, inputs, *args, **named)
        except gr.Error:
            raise
        except SpaceError as error:
            words = str(error)
        except Exception as error:
            words = hosting.sorry(hosting.report(error, HOSTING.hosted))
        raise gr.Error(words, print_exception=False)


# ---------------------------------------------------------------- the page, top to bottom


def header(page: gr.Blocks, handlers: Handlers, choice: gr.State) -> tuple[gr.HTML, gr.Timer, Any]:
    """The chip, the timer that asks what it says while a model loads, and the event of asking.

    Asked as the page opens, too: the page was made before the model was there.
    """
    with gr.Row(elem_id="header", equal_height=True):
        gr.Markdown(
            "# SPACE\n"
            "One model call checks the guesses of the last call and makes the next ones: "
            "**the same text in fewer calls.**",
            elem_id="title",
        )
        chip = gr.HTML(
            value=json.dumps(handlers.loader.status()),
            html_template="<span class='chip'></span>",
            js_on_load=scripts(["chip.js"]),
            apply_default_css=False,
            elem_id="chip",
        )
        poll = gr.Timer(0.7)
    asking = gr.on([page.load, poll.tick], handlers.status, choice, [chip, poll], **PLUMBING)
    return chip, poll, asking


def prompt_region() -> gr.Textbox:
    with gr.Column(scale=11, min_width=300, elem_id="ask"):
        prompt = gr.Textbox(
            value=EXAMPLES["binary search"],
            label="Prompt (Shift + Enter races)",
            lines=5,
            max_lines=5,
            elem_id="prompt",
            html_attributes=gr.InputHTMLAttributes(spellcheck=False, autocapitalize="off", autocorrect="off"),
        )
        gr.Examples(
            examples=[[text] for text in EXAMPLES.values()],
            example_labels=list(EXAMPLES),
            inputs=[prompt],
            label="Examples",
            elem_id="examples",
            api_visibility="private",
        )
    return prompt


class TalkRow(NamedTuple):
    """The row of a model that can hold a conversation; hidden with any other."""

    row: gr.Row
    chat: gr.Checkbox
    told: gr.Markdown
    end: gr.Button


def talk_region() -> TalkRow:
    with gr.Row(visible=False, elem_id="talk") as row:
        chat = gr.Checkbox(True, label="As a conversation", min_width=150, scale=0, elem_id="chat")
        told = gr.Markdown("", elem_id="talk-told")
        end = gr.Button("New conversation", visible=False, size="sm", scale=0, elem_id="talk-end")
    return TalkRow(row, chat, told, end)


def settings_region(further: Sequence[str]) -> dict[str, gr.components.Component]:
    """The knobs, by the request's fields; `further` are the lanes that can be added."""
    heat, mass = CHOICES[FIRST_CHOICE]
    with gr.Row(elem_classes="knobs"):
        k = gr.Slider(1, 8, 5, step=1, label="Guesses per call (k)", min_width=120, elem_id="k")
        budget = gr.Slider(16, 512, 128, step=16, label="New tokens", min_width=120, elem_id="budget")
    with gr.Row(elem_classes="knobs"):
        temperature = gr.Slider(
            0, 1.5, heat, step=0.1, label="Temperature (0 = greedy)", min_width=120, elem_id="temperature"
        )
        seed = gr.Number(0, precision=0, label="Seed", min_width=120, elem_id="seed")
    choice = gr.Radio(
        [("greedy: both texts equal", "greedy"), ("sampled: fewer loops", "sampled")],
        value=FIRST_CHOICE,
        show_label=False,
        label="How the next token is chosen",
        container=False,
        elem_id="choice",
    )
    with gr.Accordion("More settings", open=False, elem_id="more"):
        gr.Markdown(
            "Greedy texts can be compared token by token. But a small model then often writes in loops, "
            "and loops are easy to guess: the gain flatters. Sampled (temperature 0.7, top-p 0.95) it "
            "seldom does; both lanes draw from the same distribution, and their texts differ by chance."
        )
        with gr.Row(elem_classes="knobs"):
            top_p = gr.Slider(0.05, 1, mass, step=0.05, label="Top-p", min_width=120, elem_id="top-p")
            plan = gr.Radio(
                [("only rows worth their time", str(Plan.AUTO)), ("the paper’s (k+1)² grid", str(Plan.GRID))],
                value=str(Plan.AUTO),
                label="Rows of a call",
                info="The first also checks copies of the text; the second is SPACE as published.",
                min_width=120,
                elem_id="plan",
            )
        more_lanes = gr.CheckboxGroup(
            [(LANE_CHOICES[name], name) for name in further],
            value=[],
            label="Further lanes, by transformers’ own generate",
            elem_id="lanes",
        )
    choice.input(choose, choice, [temperature, top_p], preprocess=False, **PLUMBING)
    temperature.change(chosen, temperature, choice, preprocess=False, **PLUMBING)
    return {
        "k": k,
        "max_new_tokens": budget,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "plan": plan,
        "lanes": more_lanes,
    }


def scripts(names: Sequence[str]) -> str:
    """Files of assets/ as one function body, which is what gr.HTML takes."""
    return "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in names)


def arena_region() -> gr.HTML:
    return gr.HTML(
        html_template="<div class='arena'></div>",
        js_on_load=scripts(ARENA),
        recording=recording.read(),  # comes with the page: replayed before any model is there
        apply_default_css=False,
        elem_id="arena",
    )


def inspector_region() -> gr.HTML:
    """Empty until the arena opens a call in it."""
    return gr.HTML(
        html_template="<section class='inspector' hidden></section>",
        js_on_load=scripts(INSPECTOR),
        apply_default_css=False,
        elem_id="inspector",
    )


def share_region() -> gr.HTML:
    """Empty until it is asked for."""
    return gr.HTML(
        html_template="<section class='share' hidden></section>",
        js_on_load=scripts(SHARE),
        apply_default_css=False,
        elem_id="share-panel",
    )


def figures_region() -> list[gr.Plot]:
    with gr.Row(elem_id="figures"):
        return [
            gr.Plot(visible=False, show_label=False, min_width=320, elem_id=name)
            for name in ("calls-figure", "clock-figure")
        ]


def race_tab(page: gr.Blocks, handlers: Handlers, choice: gr.State, asking: Any) -> None:
    loader = handlers.loader
    with gr.Row(elem_id="request"):
        prompt = prompt_region()
        with gr.Column(scale=10, min_width=300, elem_id="controls"):
            settings = settings_region(loader.lanes)
            with gr.Row(elem_id="buttons"):
                go = gr.Button("Race", variant="primary", elem_id="race")
                halt = gr.Button("Stop", elem_id="stop")
                give = gr.Button("Share", elem_id="share")
    talk = talk_region()
    arena = arena_region()
    share = share_region()
    inspector = inspector_region()
    figures = figures_region()
    race = gr.State(None, time_to_live=3600)

    fields = {"prompt": prompt, **settings, "chat": talk.chat}
    inputs = [fields[name] for name in Request._fields]
    racing = gr.on(
        [go.click, prompt.submit],
        handlers.race,
        [*inputs, choice, race],
        [arena, race],
        validator=handlers.check,
        preprocess=False,  # `Settings` judges the raw values, with better words
        **on_device(loader),
        show_progress="minimal",
        show_progress_on=arena,
        api_name="page_race",
        api_visibility="private",
    )
    arena.illustrate(handlers.figures, race, figures, trigger_mode="always_last", **PLUMBING)
    talking(handlers, talk, prompt, race, choice, asking, racing)
    halt.click(handlers.stop, race, arena, cancels=[racing], **PLUMBING)
    arena.resend(handlers.resend, race, arena, **PLUMBING)
    inspector.ask(
        handlers.inspect,
        race,
        inspector,
        **on_device(loader),  # it waits while somebody races
        show_progress="hidden",
        api_visibility="private",
    )
    page.load(handlers.follow, None, [*inputs, arena], **PLUMBING)
    give.click(handlers.share, [race, *inputs, choice], share, preprocess=False, **PLUMBING)
    share.bring(handlers.open_trace, None, [arena, race, share], **PLUMBING)


def talking(
    handlers: Handlers,
    talk: TalkRow,
    prompt: gr.Textbox,
    race: gr.State,
    choice: gr.State,
    asking: Any,
    racing: Any,
) -> None:
    """Events of a conversation: offered by a model that can, told after each race, ended by its button."""
    asking.then(handlers.offer_talk, choice, talk.row, **PLUMBING)
    racing.then(handlers.turn, race, [talk.told, prompt, talk.end], **PLUMBING)
    talk.end.click(handlers.end_talk, race, [talk.told, talk.end], **PLUMBING)


def learn_region() -> gr.HTML:
    return gr.HTML(
        html_template="<section class='learn'></section>",
        js_on_load=scripts(LEARN),
        walk=walk.page(),  # recorded: it needs no model
        apply_default_css=False,
        elem_id="learn",
    )


def plots(*names: str) -> list[gr.Plot]:
    """A row of figures that are drawn when they are known."""
    with gr.Row(elem_classes="figures"):
        return [gr.Plot(visible=False, show_label=False, min_width=320, elem_id=name) for name in names]


def benchmark_tab(tab: gr.Tab, handlers: Benchmarks, choice: gr.State) -> None:
    choices = handlers.choices()
    gr.Markdown(
        "## Measured before\n"
        "*space* feeds the rows that are worth their time and checks copies of the text too, *space-grid* "
        "feeds the paper’s (k+1)² rows. By transformers on the same weights: *generate*, plain decoding; "
        "*prompt-lookup*, drafts copied from the text; *assisted*, drafts of a smaller model. Whiskers: "
        "quartiles over prompts.",
        elem_classes="section",
    )
    chosen = gr.Dropdown(
        choices,
        value=choices[0][1] if choices else None,
        label="Result",
        elem_id="bench-result",
        filterable=False,
        visible=bool(choices),
    )
    figures = [
        *plots("speedup-figure", "rows-figure"),
        *plots("histogram-figure", "acceptance-figure"),
    ]
    gr.Markdown("## Measure here", elem_classes="section")
    with gr.Row(elem_classes="knobs", elem_id="bench-knobs"):
        count = gr.Slider(
            1, MAX_BENCH_PROMPTS, 3, step=1, label="Bundled prompts", min_width=120, elem_id="bench-prompts"
        )
        k = gr.Slider(1, 8, 5, step=1, label="Guesses per call (k)", min_width=120, elem_id="bench-k")
        tokens = gr.Slider(
            16, MAX_BENCH_TOKENS, 64, step=16, label="New tokens", min_width=120, elem_id="bench-tokens"
        )
    methods = gr.CheckboxGroup(
        [(METHOD_CHOICES[name], name) for name in handlers.methods],
        value=["space", "prompt-lookup"],
        label="Held against plain decoding",
        elem_id="bench-methods",
    )
    with gr.Row(elem_id="bench-buttons"):
        go = gr.Button("Measure", variant="primary", elem_id="bench-run")
        halt = gr.Button("Stop", elem_id="bench-stop")
    panel = gr.HTML(
        html_template="<section class='bench' hidden></section>",
        js_on_load=scripts(BENCH),
        apply_default_css=False,
        elem_id="bench-panel",
    )
    here = plots("here-speedup-figure", "here-histogram-figure")
    gr.Markdown(
        "## As the paper reports\n"
        "Yi et al., [arXiv 2402.11809](https://arxiv.org/abs/2402.11809), greedy decoding, k = 5. "
        "Bars are speed-ups, open marks tokens per call. None of it was measured here.",
        elem_classes="section",
    )
    figures += plots("paper-figure")
    trial = gr.State(None, time_to_live=3600)

    tab.select(handlers.show, chosen, figures, **PLUMBING)
    chosen.input(handlers.show, chosen, figures, preprocess=False, **PLUMBING)
    running = go.click(
        handlers.run,
        [count, methods, k, tokens, choice],
        [panel, trial],
        preprocess=False,
        **on_device(handlers.loader),  # nobody races there meanwhile
        show_progress="minimal",
        api_name="benchmark",
        api_visibility="private",
    )
    running.then(handlers.figures, trial, here, **PLUMBING)
    halt.click(handlers.stop, trial, None, **PLUMBING)


def build_panel(name: str) -> gr.HTML:
    return gr.HTML(
        html_template=f"<section class='build' data-words='{name}-words' hidden></section>",
        js_on_load=scripts(BUILD),
        apply_default_css=False,
        elem_id=f"{name}-panel",
    )


def build_tab(
    tab: gr.Tab, tabs: gr.Tabs, chip: gr.HTML, poll: gr.Timer, handlers: Builds, choice: gr.State
) -> None:
    gr.Markdown(
        "## The model that races\nA base learns Python and writes its own continuations; its masks learn to "
        "guess those.",
        elem_classes="section",
    )
    made = build_panel("made")
    curves = plots("base-figure", "masks-figure", "tokens-figure")
    tab.select(handlers.show, choice, [made, *curves], **PLUMBING)
    if handlers.training is None:
        gr.Markdown(
            "## Build your own\nTraining is switched off here. On a machine of your own: "
            "`python -m finetune build --recipe smoke`, or `python app.py` and this tab.",
            elem_classes="section",
            elem_id="build-off",
        )
        return
    gr.Markdown(
        "## Build your own\nThe smoke recipe, from nothing to a toy that races, takes minutes on two "
        "cores. Races wait while it trains.",
        elem_classes="section",
    )
    with gr.Row(elem_id="build-buttons"):
        go = gr.Button("Train", variant="primary", elem_id="build-run")
        halt = gr.Button("Stop", elem_id="build-stop")
        adopt = gr.Button("Race with it", visible=False, elem_id="build-adopt")
    live = build_panel("build")
    go.click(
        handlers.run,
        None,
        [live, adopt],
        **on_device(handlers.loader),  # a race beside it would be no race
        show_progress="minimal",
        api_name="train",
        api_visibility="private",
    )
    halt.click(handlers.stop, None, None, **PLUMBING)
    adopt.click(handlers.adopt, None, [choice, chip, poll, adopt, tabs], **PLUMBING)


def on_device(loader: Loader) -> dict[str, Any]:
    """Of events that use a device: as many at once as there are, so that no two time each other."""
    return {"concurrency_limit": len(loader.slots), "concurrency_id": "device"}


def preset_region(
    tab: gr.Tab, tabs: gr.Tabs, chip: gr.HTML, poll: gr.Timer, handlers: Presets, choice: gr.State
) -> None:
    gr.Markdown("## The authors’ own model", elem_classes="section")
    told = gr.Markdown("", elem_classes="section", elem_id="preset-told")
    with gr.Row(elem_id="preset-buttons"):
        go = gr.Button("Load and race with it", interactive=False, elem_id="preset-load")
        anyway = gr.Checkbox(False, label="Load it all the same", visible=False, elem_id="preset-anyway")
    tab.select(handlers.offer, None, [told, go, anyway], **PLUMBING)
    anyway.input(handlers.allow, anyway, go, preprocess=False, **PLUMBING)
    go.click(handlers.load, anyway, [choice, chip, poll, tabs], preprocess=False, **PLUMBING)


def build(loader: Loader, deadline: float = 120.0, training: training.Training | None = None) -> gr.Blocks:
    """The page and its events; a race may hold the device for `deadline` seconds."""
    handlers = Handlers(loader, deadline)
    page = Page(title="SPACE: same text, fewer calls", analytics_enabled=False)
    with page:
        choice = gr.State("")  # the model that this visitor races with, where it is not the page's own
        chip, poll, asking = header(page, handlers, choice)
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Race", id="race"):
                race_tab(page, handlers, choice, asking)
            with gr.Tab("Learn", id="learn"):
                learn_region()
            with gr.Tab("Benchmark", id="benchmark") as tab:
                benchmark_tab(tab, Benchmarks(loader, deadline), choice)
            with gr.Tab("Build", id="build") as tab:
                build_tab(tab, tabs, chip, poll, Builds(loader, training), choice)
                if training is not None and not HOSTING.hosted:  # the owner's own machine
                    preset_region(tab, tabs, chip, poll, Presets(loader, presets.OFFICIAL), choice)
        api_region(handlers)
        page.queue(max_size=HOSTING.limits.waiting)
    seldom(page)
    return page


def seldom(page: gr.Blocks) -> None:
    """Let the queue be looked into 50 times a second. Gradio does so 1,000 times, for which an idle page
    takes 6 % of a core, and a decoder has to wait as often; an event starts 10 ms later, on average."""
    page._queue.sleep_when_free = 0.02
    page._queue.progress_update_sleep_when_free = 0.1


def theme() -> gr.themes.Base:
    # Weights 400 and 700 are whole fonts in gradio's own folder, others are subsets; no font is
    # fetched from anywhere else.
    return gr.themes.Base(
        primary_hue=gr.themes.colors.indigo,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        spacing_size=gr.themes.sizes.spacing_sm,
        text_size=gr.themes.sizes.text_sm,
        font=[gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700)), "system-ui", "sans-serif"],
        font_mono=[gr.themes.LocalFont("IBM Plex Mono", weights=(400, 700)), "ui-monospace", "monospace"],
    ).set(
        body_background_fill="#fafafb",
        body_background_fill_dark="#0c0e13",
        block_info_text_color="*neutral_600",  # Gradio's own is too faint to read
        block_info_text_color_dark="*neutral_300",
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Serve the page on which SPACE races plain decoding.")
    env = os.environ.get
    parser.add_argument(
        "--model", default=env("SPACE_MODEL"), help="folder or hub id; the bundled checkpoint by default"
    )
    parser.add_argument("--device", default=env("SPACE_DEVICE", "auto"), help="auto, cpu, cuda or mps")
    parser.add_argument(
        "--devices",
        default=env("SPACE_DEVICES"),
        metavar="D,D",
        help="several, such as cuda:0,cuda:1: one race on each at a time, visitors spread over them",
    )
    parser.add_argument(
        "--dtype",
        default=env("SPACE_DTYPE", "float32"),
        choices=("float64", "float32", "bfloat16", "float16"),
    )
    parser.add_argument(
        "--draft-model",
        default=env("SPACE_DRAFT_MODEL"),
        metavar="DIR",
        help="a smaller model with the same tokenizer: offers the lane of assisted decoding",
    )
    parser.add_argument("--host", default=None, help="address to serve on; this machine only by default")
    parser.add_argument("--port", type=int, default=None, help="7860 by default, or the next free one")
    parser.add_argument(
        "--deadline",
        type=float,
        default=env("SPACE_DEADLINE", str(HOSTING.limits.seconds)),
        help="seconds that a race may take",
    )
    parser.add_argument(
        "--allow-training", action="store_true", help="offer training on a hosted page too, where it is off"
    )
    parser.add_argument(
        "--mcp", action="store_true", help='offer the API to agents, as an MCP server (needs "gradio[mcp]")'
    )
    options = parser.parse_args(arguments)
    if not 0 < options.deadline <= 3600:
        parser.error("--deadline must lie in 0..3600 seconds")
    if options.port is not None and not 1 <= options.port <= 65_535:
        parser.error("--port must lie in 1..65535")
    if options.mcp and importlib.util.find_spec("mcp") is None:
        parser.error('--mcp needs an extra that is not installed here: pip install "gradio[mcp]"')
    try:
        source = options.model or str(default_checkpoint())
        slots = Slots(devices.parse(options.devices) if options.devices else (devices.one(options.device),))
        for name in filter(None, (source, options.draft_model)):
            HOSTING.source(name)
    except CheckpointError as error:
        parser.error(str(error))
    if HOSTING.hosted:
        hosting.keep_words_out_of_the_log()

    loader = Loader(source, slots.devices[0], options.dtype, options.draft_model, slots)
    trains = (HERE / "finetune").is_dir()  # an installed copy has no recipes
    trains = trains and training.allowed(os.environ, options.allow_training)
    own = training.Training(HERE) if trains else None
    page = build(loader, options.deadline, own)
    if HOSTING.zero:
        loader.load()  # launching packs what is loaded for the processes that get a GPU
    absent("matplotlib")
    first(templates.env, scripts(["frames.js"]))
    try:
        page.launch(
            server_name=options.host,
            server_port=options.port,
            prevent_thread_lock=True,
            theme=theme(),
            css_paths=[ASSETS / name for name in STYLES],
            favicon_path=ASSETS / "favicon.svg",
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            share=False,
            max_file_size="1mb",
            enable_monitoring=False,
            state_session_capacity=HOSTING.limits.sessions,
            app_kwargs={"middleware": [Middleware(Guard, HOSTING.hosted, HOSTING.limits.body, page.fns)]},
            mcp_server=options.mcp,
        )
    except OSError as error:
        taken = f"port {options.port} is" if options.port else "all usual ports are"
        taken += " in use: name another one by --port"
        parser.error(taken if "empty port" in str(error) else f"the page cannot be served: {error}")
    if not HOSTING.zero:
        loader.start(PATIENCE)  # behind the served page: importing torch would hold it up
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that what follows is done then too
    try:
        page.block_thread()
    finally:
        if own is not None:
            own.close()


if __name__ == "__main__":
    main()
