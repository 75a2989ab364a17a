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

from space_core.bundled import default_checkpoint
from space_core.errors import CheckpointError, PromptError, SettingError, SpaceError
from space_core.settings import MAX_K, Plan, Settings
from space_core.views import frames, recording, walk
from space_core.views.lanes import FURTHER, MAIN

if TYPE_CHECKING:
    from space_core.model import SpaceModel
    from space_core.trace import Step

HERE = Path(__file__).parent
ASSETS = HERE / "assets"
STYLES = ("page.css", "replay.css", "inspector.css", "learn.css")
ARENA = ("dom.js", "lane.js", "chart.js", "replay.js", "race.js")
INSPECTOR = ("dom.js", "call.js", "inspector.js")
LEARN = ("dom.js", "call.js", "lessons.js", "lessons-call.js", "learn.js")

FRAMES_PER_SECOND = 25
QUEUE = 16
MAX_PROMPT_CHARACTERS = 65_536

LANE_CHOICES = {
    "generate": "plain decoding",
    "prompt-lookup": "prompt lookup",
    "assisted": "assisted by the draft model",
}

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
    """

    def __init__(self, source: str, device: str, dtype: str, draft_source: str | None = None) -> None:
        self.source, self.device, self.dtype = source, device, dtype
        self.draft_source = draft_source
        self.lanes = tuple(name for name in FURTHER if draft_source or name != "assisted")
        self.draft: SpaceModel | None = None
        self.done = threading.Event()
        self._model: SpaceModel | None = None
        self._error = ""

    def start(self) -> None:
        threading.Thread(target=self._load, name="load-model", daemon=True).start()

    @property
    def model(self) -> SpaceModel:
        """The model; ask only once `done` is set.

        Raises:
            gr.Error: when it could not be loaded, saying why.
        """
        if self._model is None:
            raise gr.Error(self._error or "The model is still loading.", print_exception=False)
        return self._model

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
        ready = loader.done.is_set() and loader.status()["state"] == "ready"
        problems = request.problems(loader.model if ready else None, loader.lanes)
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
        if race is None or race.id != asked.get("race") or lane not in MAIN or type(n) is not int:
            return frames.encode(inspect.refusal("", "", 0, "There is no such call in this race."))
        try:
            told = inspect.answer(self.loader.model, race.trace(lane), n - 1, race.id)
        except SpaceError as error:
            told = inspect.refusal(race.id, lane, n, f"This call cannot be opened: {error}.")
        return frames.encode(told)

    def figures(self, race: frames.Race | None) -> tuple[dict[str, Any], dict[str, Any]]:
        """What stands still after a race."""
        from space_core.views.figures import calls_figure, clock_figure

        if race is None or not race.trace("space").steps:
            return gr.update(visible=False), gr.update(visible=False)
        traces = race.traces()
        return (
            gr.update(value=calls_figure(traces[0]), visible=True),
            gr.update(value=clock_figure(*traces), visible=True),
        )


# ---------------------------------------------------------------- the page, top to bottom


def header(handlers: Handlers) -> None:
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
    with gr.Row(elem_classes="knobs"):
        k = gr.Slider(1, 8, 5, step=1, label="Guesses per call (k)", min_width=120, elem_id="k")
        budget = gr.Slider(16, 512, 128, step=16, label="New tokens", min_width=120, elem_id="budget")
    with gr.Row(elem_classes="knobs"):
        temperature = gr.Slider(
            0, 1.5, 0, step=0.1, label="Temperature (0 = greedy)", min_width=120, elem_id="temperature"
        )
        seed = gr.Number(0, precision=0, label="Seed", min_width=120, elem_id="seed")
    with gr.Accordion("More settings", open=False, elem_id="more"):
        with gr.Row(elem_classes="knobs"):
            top_p = gr.Slider(0.05, 1, 1, step=0.05, label="Top-p", min_width=120, elem_id="top-p")
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


def figures_region() -> list[gr.Plot]:
    with gr.Row(elem_id="figures"):
        return [
            gr.Plot(visible=False, show_label=False, min_width=320, elem_id=name)
            for name in ("calls-figure", "clock-figure")
        ]


def learn_region() -> gr.HTML:
    return gr.HTML(
        html_template="<section class='learn'></section>",
        js_on_load=scripts(LEARN),
        walk=walk.page(),  # recorded: it needs no model
        apply_default_css=False,
        elem_id="learn",
    )


def build(loader: Loader, deadline: float = 120.0) -> gr.Blocks:
    """The page and its events; a race may hold the device for `deadline` seconds."""
    handlers = Handlers(loader, deadline)
    page = gr.Blocks(title="SPACE: same text, fewer calls", analytics_enabled=False)
    with page:
        header(handlers)
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Race", id="race"):
                with gr.Row(elem_id="request"):
                    prompt = prompt_region()
                    with gr.Column(scale=10, min_width=300, elem_id="controls"):
                        settings = settings_region(loader.lanes)
                        with gr.Row(elem_id="buttons"):
                            go = gr.Button("Race", variant="primary", elem_id="race")
                            halt = gr.Button("Stop", elem_id="stop")
                arena = arena_region()
                inspector = inspector_region()
                figures = figures_region()
            with gr.Tab("Learn", id="learn"):
                learn_region()
        race = gr.State(None, time_to_live=3600)

        plumbing: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        inputs = {"prompt": prompt, **settings}
        racing = gr.on(
            [go.click, prompt.submit],
            handlers.race,
            [inputs[name] for name in Request._fields],
            [arena, race],
            validator=handlers.check,
            preprocess=False,  # `Settings` judges the raw values, with better words
            concurrency_limit=1,  # two visitors must never time each other
            concurrency_id="device",
            show_progress="minimal",
            api_name="race",
            api_visibility="private",
        )
        racing.then(handlers.figures, race, figures, **plumbing)
        stopping = halt.click(handlers.stop, race, arena, cancels=[racing], **plumbing)
        stopping.then(handlers.figures, race, figures, **plumbing)
        arena.resend(handlers.resend, race, arena, **plumbing)
        inspector.ask(
            handlers.inspect,
            race,
            inspector,
            concurrency_limit=1,
            concurrency_id="device",  # it waits while somebody races
            show_progress="hidden",
            api_visibility="private",
        )
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
    options = parser.parse_args(arguments)
    try:
        source = options.model or str(default_checkpoint())
    except CheckpointError as error:
        parser.error(str(error))

    loader = Loader(source, options.device, options.dtype, options.draft_model)
    page = build(loader, options.deadline)
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
