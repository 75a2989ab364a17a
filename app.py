"""The page: SPACE races plain decoding on the visitor's own prompt. `python app.py`, then open it.

Top to bottom as the page is. The only file that imports gradio; what a run is, how it decodes and
how it is told are in `space_core`. The page is served at once, the model loads behind it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
# A small model's call is shorter than a time slice. OpenMP's threads spin for each other by default,
# and on a machine with other work they then wait whole slices: 30 times slower calls were measured.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import gradio as gr

from space_core import training
from space_core.bundled import default_checkpoint
from space_core.errors import (
    CheckpointError,
    PromptError,
    ResultError,
    SettingError,
    SpaceError,
    TraceError,
)
from space_core.settings import MAX_K, Plan, Settings
from space_core.views import benchmarks, frames, link, recording, sharing, walk
from space_core.views.lanes import FURTHER, MAIN

if TYPE_CHECKING:
    from space_core.bench import Column
    from space_core.model import SpaceModel
    from space_core.trace import Step
    from space_core.trial import Trial

HERE = Path(__file__).resolve().parent
ASSETS = HERE / "assets"
STYLES = ("page.css", "replay.css", "inspector.css", "share.css", "learn.css", "tabs.css")
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

FRAMES_PER_SECOND = 25
QUEUE = 16
MAX_PROMPT_CHARACTERS = 65_536
PLUMBING: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
"""Of events that answer at once and are nobody's interface."""

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


class Loader:
    """Loads and warms one model in the background; whoever needs it waits here.

    Attributes:
        lanes: the further lanes that can be asked for; `assisted` only where there is a draft model.
        draft: the draft model of `assisted`, once it is loaded.
        loads: how often a model was put in the place of another.
    """

    def __init__(self, source: str, device: str, dtype: str, draft_source: str | None = None) -> None:
        self.source, self.device, self.dtype = source, device, dtype
        self.draft_source = draft_source
        self.lanes = tuple(name for name in FURTHER if draft_source or name != "assisted")
        self.draft: SpaceModel | None = None
        self.loads = 0
        self.done = threading.Event()
        self._model: SpaceModel | None = None
        self._error = ""

    def start(self) -> None:
        threading.Thread(target=self._load, name="load-model", daemon=True).start()

    def switch(self, source: str) -> None:
        """Load another model in the place of this one; whoever asks meanwhile waits."""
        self.done.clear()
        self.loads += 1
        self.source, self._model, self._error = source, None, ""
        self.draft_source, self.draft = None, None  # it drafts for the other one
        self.lanes = tuple(name for name in self.lanes if name != "assisted")
        self.start()

    @property
    def model(self) -> SpaceModel:
        """The model; ask only once `done` is set.

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
            model, dtype = self._model, _dtype_name(self._model)
            title = f"{model.k} trained masks, context of {model.context} tokens"
            if self.draft is not None:
                title += f"; draft model {self.draft.name}"
            return {"state": "ready", "text": f"{model.name} · {model.device} · {dtype}", "title": title}
        if self._error:
            return {"state": "failed", "text": self._error}
        return {"state": "loading", "text": f"loading {Path(self.source).name}"}

    def _load(self) -> None:
        try:
            # torch and transformers take seconds to import: the page is served meanwhile.
            import space_core
            from space_core import peers

            model = space_core.load(self.source, device=self.device, dtype=self.dtype)
            if self.draft_source:
                draft = space_core.load(self.draft_source, device=self.device, dtype=self.dtype)
                self.draft = peers.check_draft(model, draft)
            space_core.tune_threads(model)
            settings = Settings(max_new_tokens=8, k=min(model.k, MAX_K))
            prompt_ids = model.encode("def main():\n")
            for name in (*MAIN, *self.lanes):
                for _ in decoder(name, model, prompt_ids, settings, self.draft):
                    pass
            self._model = model
        except SpaceError as error:
            self._error = str(error)
        except Exception as error:  # whatever a foreign model throws, the page must say it
            self._error = f"The model could not be loaded: {error}"
            raise
        finally:
            if self._error:
                print(self._error, file=sys.stderr)
            self.done.set()


def decoder(
    lane: str, model: SpaceModel, prompt_ids: list[int], settings: Settings, draft: SpaceModel | None
) -> Iterator[Step]:
    """The decoder of a lane, which has not made a call yet.

    Raises:
        SpaceError: for a further lane that cannot run this request.
    """
    import space_core
    from space_core import peers

    if lane == "vanilla":
        return space_core.vanilla(model, prompt_ids, settings)
    if lane == "space":
        return space_core.space(model, prompt_ids, settings)
    return peers.lane(model, prompt_ids, settings, lane, draft)


def _dtype_name(model: SpaceModel) -> str:
    return str(model.dtype).removeprefix("torch.")


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

    def numbers(self) -> dict[str, Any]:
        """The fields that `Settings` judges."""
        return {name: value for name, value in self._asdict().items() if name not in ("prompt", "lanes")}

    def settings(self) -> Settings:
        """Raises SettingError."""
        return Settings(**self.numbers())

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
        for name, value in self.numbers().items():
            try:
                Settings(**{name: value})
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
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise PromptError(
            f"the prompt has {len(prompt):,} characters, but at most {MAX_PROMPT_CHARACTERS:,} are "
            "taken: shorten it"
        )
    if "\0" in prompt or any("\ud800" <= c <= "\udfff" for c in prompt):
        raise PromptError("the prompt holds a character that is no text: remove it")
    return [] if model is None else model.encode(prompt)


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


def choose(name: Any) -> tuple[float, float]:
    """Temperature and top-p of a choice; of the first one for a name that there is not."""
    return CHOICES[name if isinstance(name, str) and name in CHOICES else FIRST_CHOICE]


def chosen(temperature: Any) -> str:
    """The choice that a temperature belongs to."""
    return "sampled" if temperature else "greedy"


class Handlers:
    """The page's events. They keep nothing: a visitor's race lives in that visitor's session."""

    def __init__(self, loader: Loader, deadline: float) -> None:
        self.loader, self.deadline = loader, deadline

    def status(self) -> tuple[str, gr.Timer]:
        return json.dumps(self.loader.status()), gr.Timer(active=not self.loader.done.is_set())

    def check(self, *fields: Any) -> list[dict[str, Any]]:
        """The validator of a race: a message at each field that is wrong."""
        request = Request(*fields)
        loader = self.loader
        problems = request.problems(loader.model if loader.ready else None, loader.lanes)
        return [gr.validate(name not in problems, problems.get(name, "")) for name in Request._fields]

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
    ) -> Iterator[tuple[str, frames.Race | None]]:
        """Race SPACE against plain decoding; yields frames (`space_core.views.frames`)."""
        request = Request(prompt, k, max_new_tokens, temperature, top_p, seed, plan, lanes)
        while not self.loader.done.wait(0.2):
            yield frames.encode(frames.empty(frames.State.WAITING)), None
        model = self.loader.model
        try:
            settings = request.settings()
            prompt_ids = read_prompt(prompt, model)
            further = read_lanes(lanes, self.loader.lanes)
            decoders = {
                name: decoder(name, model, prompt_ids, settings, self.loader.draft)
                for name in ("vanilla", "space", *further)  # the order of their first calls
            }
        except SpaceError as error:
            raise gr.Error(str(error), print_exception=False) from None
        race = frames.Race(
            lanes=(*MAIN, *further),
            tokenizer=model.tokenizer,
            prompt_ids=prompt_ids,
            prompt=prompt,
            settings=settings,
            model=model.name,
            device=str(model.device),
            dtype=_dtype_name(model),
        )
        race.load = self.loader.loads
        yield frames.encode(race.snapshot()), race
        yield from self._run(race, decoders)
        yield frames.encode(race.snapshot()), race

    def _run(
        self, race: frames.Race, decoders: dict[str, Iterator[Step]]
    ) -> Iterator[tuple[str, frames.Race]]:
        """Deltas, at most so many a second. Closing it closes every decoder."""
        import space_core

        deadline = time.monotonic() + self.deadline
        painted = 0.0
        with closing(space_core.race(decoders)) as steps:
            for lane, step, _ in steps:
                race.add(lane, step)
                now = time.monotonic()
                if now > deadline:
                    race.end(frames.State.DEADLINE)
                    return
                if now - painted > 1 / FRAMES_PER_SECOND:
                    yield frames.encode(race.delta()), race
                    painted = time.monotonic()
        race.end()

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
        if race is not None and race.id == asked.get("race") and race.load != self.loader.loads:
            words = "another model ran this race" if race.load >= 0 else "this race came from a file"
            words = f"This call cannot be opened: {words}. Press Race, and the calls of your own can be."
            return frames.encode(inspect.refusal(race.id, str(lane), n if type(n) is int else 0, words))
        if race is None or race.id != asked.get("race") or lane not in race.lanes or type(n) is not int:
            return frames.encode(inspect.refusal("", "", 0, "There is no such call in this race."))
        try:
            told = inspect.answer(self.loader.model, race.trace(lane), n - 1, race.id)
        except SpaceError as error:
            told = inspect.refusal(race.id, lane, n, f"This call cannot be opened: {error}.")
        return frames.encode(told)

    def follow(self, request: gr.Request) -> list[Any]:
        """The page's fields and the arena, as the address asks: nothing runs by itself."""
        loader = self.loader
        linked = link.read(dict(request.query_params), loader.lanes, MAX_PROMPT_CHARACTERS)
        values = [linked.fields.get(name, gr.skip()) for name in Request._fields]
        note = linked.note(loader.name)
        if not note:
            return [*values, gr.skip()]
        told = frames.linked(note, linked.step, linked.fields.get("prompt", EXAMPLES["binary search"]))
        return [*values, frames.encode(told)]

    def share(self, race: frames.Race | None, *fields: Any) -> str:
        """Link, files and code for the visitor's race, or before there is one for what the fields ask."""
        from space_core.views import share

        loader, request = self.loader, Request(*fields)
        if race is not None and race.state is frames.State.RUNNING:
            raise gr.Error("The race is still running: share it when it is over.", print_exception=False)
        try:
            if race is None:
                settings, lanes = request.settings(), read_lanes(request.lanes, loader.lanes)
                read_prompt(request.prompt, None)
                prompt, name, source = request.prompt, loader.name, loader.address
                device, dtype = loader.device, loader.dtype
            else:
                about = race.about
                settings, lanes = race.settings, tuple(name for name in race.lanes if name not in MAIN)
                prompt, name = about["prompt"], about["model"]
                source = name if race.foreign else loader.address
                device, dtype = about["device"], about["dtype"]
        except SpaceError as error:
            raise gr.Error(str(error), print_exception=False) from None
        return frames.encode(share.message(race, prompt, settings, lanes, name, source, device, dtype))

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

    def run(self, count: Any, methods: Any, k: Any, tokens: Any) -> Iterator[tuple[str, Trial | None]]:
        """Measure here; yields messages (`space_core.views.watching`)."""
        from space_core import prompts
        from space_core.trial import Trial
        from space_core.views import watching

        while not self.loader.done.wait(0.2):
            yield frames.encode(watching.waiting()), None
        model = self.loader.model
        try:
            number, lines, settings = self.request(count, methods, k, tokens)
            asked = prompts.read_prompts(BENCH_PROMPTS, number)
            command = (
                "python -m space_core bench --prompts assets/benchmarks/prompts.jsonl "
                f"--limit {number} --methods {','.join(dict.fromkeys(str(line.method) for line in lines))} "
                f"--k {settings.k} --max-new-tokens {settings.max_new_tokens} --model {self.loader.address}"
            )
            trial = Trial(model, self.loader.draft, asked, lines, settings, self.deadline, command)
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

    def show(self) -> list[Any]:
        """How the loaded checkpoint was made: its facts and curves, as far as it brings them."""
        from space_core.views import building, training

        folder = Path(self.loader.source)
        found = training.read(folder / "training_log.jsonl")
        try:
            manifest = json.loads((folder / "space.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            manifest = None
        told = building.shown(folder.name, training.facts(manifest, found))
        drawn = (
            (found.base_loss or found.heldout_loss, training.base_figure),
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

    def adopt(self) -> tuple[str, gr.Timer, Any, gr.Tabs]:
        """Race with the checkpoint that was just made."""
        own = self.training
        if own is None or not own.finished:
            raise gr.Error("There is no new checkpoint to race with.", print_exception=False)
        self.loader.switch(str(own.checkpoint))
        return (
            json.dumps(self.loader.status()),
            gr.Timer(active=True),
            gr.update(visible=False),
            gr.Tabs(selected="race"),
        )


# ---------------------------------------------------------------- the page, top to bottom


def header(handlers: Handlers) -> tuple[gr.HTML, gr.Timer]:
    """The chip, and the timer that asks what it says while a model loads."""
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
    poll.tick(
        handlers.status, None, [chip, poll], queue=False, show_progress="hidden", api_visibility="private"
    )
    return chip, poll


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


def race_tab(page: gr.Blocks, handlers: Handlers) -> None:
    loader = handlers.loader
    with gr.Row(elem_id="request"):
        prompt = prompt_region()
        with gr.Column(scale=10, min_width=300, elem_id="controls"):
            settings = settings_region(loader.lanes)
            with gr.Row(elem_id="buttons"):
                go = gr.Button("Race", variant="primary", elem_id="race")
                halt = gr.Button("Stop", elem_id="stop")
                give = gr.Button("Share", elem_id="share")
    arena = arena_region()
    share = share_region()
    inspector = inspector_region()
    figures = figures_region()
    race = gr.State(None, time_to_live=3600)

    fields = {"prompt": prompt, **settings}
    inputs = [fields[name] for name in Request._fields]
    racing = gr.on(
        [go.click, prompt.submit],
        handlers.race,
        inputs,
        [arena, race],
        validator=handlers.check,
        preprocess=False,  # `Settings` judges the raw values, with better words
        concurrency_limit=1,  # two visitors must never time each other
        concurrency_id="device",
        show_progress="minimal",
        api_name="race",
        api_visibility="private",
    )
    racing.then(handlers.figures, race, figures, **PLUMBING)
    stopping = halt.click(handlers.stop, race, arena, cancels=[racing], **PLUMBING)
    stopping.then(handlers.figures, race, figures, **PLUMBING)
    arena.resend(handlers.resend, race, arena, **PLUMBING)
    inspector.ask(
        handlers.inspect,
        race,
        inspector,
        concurrency_limit=1,
        concurrency_id="device",  # it waits while somebody races
        show_progress="hidden",
        api_visibility="private",
    )
    page.load(handlers.follow, None, [*inputs, arena], **PLUMBING)
    give.click(handlers.share, [race, *inputs], share, preprocess=False, **PLUMBING)
    opening = share.bring(handlers.open_trace, None, [arena, race, share], **PLUMBING)
    opening.then(handlers.figures, race, figures, **PLUMBING)


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


def benchmark_tab(tab: gr.Tab, handlers: Benchmarks) -> None:
    choices = handlers.choices()
    gr.Markdown("## Measured before", elem_classes="section")
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
        [count, methods, k, tokens],
        [panel, trial],
        preprocess=False,
        concurrency_limit=1,
        concurrency_id="device",  # nobody races meanwhile
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


def build_tab(tab: gr.Tab, tabs: gr.Tabs, chip: gr.HTML, poll: gr.Timer, handlers: Builds) -> None:
    gr.Markdown(
        "## The model that races\nA base learns Python and writes its own continuations; its masks learn to "
        "guess those.",
        elem_classes="section",
    )
    made = build_panel("made")
    curves = plots("base-figure", "masks-figure", "tokens-figure")
    tab.select(handlers.show, None, [made, *curves], **PLUMBING)
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
        concurrency_limit=1,
        concurrency_id="device",  # a race beside it would be no race
        show_progress="minimal",
        api_name="train",
        api_visibility="private",
    )
    halt.click(handlers.stop, None, None, **PLUMBING)
    adopt.click(handlers.adopt, None, [chip, poll, adopt, tabs], **PLUMBING)


def build(loader: Loader, deadline: float = 120.0, training: training.Training | None = None) -> gr.Blocks:
    """The page and its events; a race may hold the device for `deadline` seconds."""
    handlers = Handlers(loader, deadline)
    page = gr.Blocks(title="SPACE: same text, fewer calls", analytics_enabled=False)
    with page:
        chip, poll = header(handlers)
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Race", id="race"):
                race_tab(page, handlers)
            with gr.Tab("Learn", id="learn"):
                learn_region()
            with gr.Tab("Benchmark", id="benchmark") as tab:
                benchmark_tab(tab, Benchmarks(loader, deadline))
            with gr.Tab("Build", id="build") as tab:
                build_tab(tab, tabs, chip, poll, Builds(loader, training))
        page.queue(max_size=QUEUE)
    return page


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
    ).set(body_background_fill="#fafafb", body_background_fill_dark="#0c0e13")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Serve the page on which SPACE races plain decoding.")
    env = os.environ.get
    parser.add_argument(
        "--model", default=env("SPACE_MODEL"), help="folder or hub id; the bundled checkpoint by default"
    )
    parser.add_argument("--device", default=env("SPACE_DEVICE", "auto"), help="auto, cpu, cuda or mps")
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
        "--deadline", type=float, default=env("SPACE_DEADLINE", "120"), help="seconds that a race may take"
    )
    parser.add_argument(
        "--allow-training", action="store_true", help="offer training on a hosted page too, where it is off"
    )
    options = parser.parse_args(arguments)
    try:
        source = options.model or str(default_checkpoint())
    except CheckpointError as error:
        parser.error(str(error))

    loader = Loader(source, options.device, options.dtype, options.draft_model)
    own = training.Training(HERE) if training.allowed(os.environ, options.allow_training) else None
    page = build(loader, options.deadline, own)
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
        max_file_size="1mb",
    )
    loader.start()  # behind the served page: importing torch would hold it up
    page.block_thread()


if __name__ == "__main__":
    main()
