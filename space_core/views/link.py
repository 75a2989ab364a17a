"""A race as a link: its prompt and settings in a query string, and back.

What comes in is anybody's: every field is read by itself, a wrong one is left out with a sentence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlencode

from space_core.errors import PromptError, SettingError
from space_core.settings import Settings

MAX_QUERY: Final = 6_000
"""Characters of a query string: servers and proxies on the way commonly take 8,192 for the whole line."""
NUMBERS: Final = ("k", "max_new_tokens", "temperature", "top_p", "seed")
MAX_STEP: Final = 100_000


@dataclass(frozen=True, slots=True)
class Linked:
    """What a link asks for.

    Attributes:
        fields: values for the page's fields, only those that the link names and that are sound.
        model: the name of the model it was made with, "" where it does not say.
        step: the call to go to after the race, 0 for its end.
        problems: a sentence for each part that was left out.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    model: str = ""
    step: int = 0
    problems: tuple[str, ...] = ()

    def note(self, loaded: str) -> str:
        """What the page says about it; `loaded` names the model that is there, or will be."""
        words = []
        if self.fields:
            words.append("Filled in from a link: press Race to run it.")
        if self.step:
            words.append(f"The replay then goes to call {self.step}.")
        if self.model and loaded and self.model != loaded:
            words.append(f"It was made with {self.model}; here it runs on {loaded}.")
        return " ".join((*words, *self.problems))


def query(prompt: str, settings: Settings, lanes: Sequence[str], model: str, chat: bool | None = None) -> str:
    """The query string of a race, without its step.

    Args:
        chat: whether the prompt is sent as a turn of a conversation; None with a model that holds none.

    Raises:
        PromptError: where it would be too long for a link.
    """
    values: dict[str, Any] = {"prompt": prompt}
    values |= {name: f"{getattr(settings, name):g}" for name in NUMBERS if name != "seed"}
    values |= {"seed": settings.seed, "plan": str(settings.plan)}
    if lanes:
        values["lanes"] = ",".join(lanes)
    if chat is not None:
        values["chat"] = int(chat)
    values["model"] = model
    text = urlencode(values)
    if len(text) > MAX_QUERY:
        raise PromptError(
            f"This prompt is too long for a link ({len(text):,} characters as part of an address, at "
            f"most {MAX_QUERY:,} arrive everywhere): send the trace instead."
        )
    return text


def read(parameters: Mapping[str, str], offered: Sequence[str], most_prompt: int) -> Linked:
    """A link's parameters, judged one by one; names that are none of ours are passed over.

    Args:
        offered: the further lanes that there are.
        most_prompt: characters that a prompt may have.
    """
    fields: dict[str, Any] = {}
    problems: list[str] = []

    def left_out(name: str, reason: str) -> None:
        problems.append(f"The link’s {name} was left out: {reason}.")

    if "prompt" in parameters:
        prompt = parameters["prompt"]
        if len(prompt) > most_prompt:
            left_out("prompt", f"it has more than {most_prompt:,} characters")
        elif "\0" in prompt or any("\ud800" <= c <= "\udfff" for c in prompt):
            left_out("prompt", "it holds a character that is no text")
        elif prompt.strip():
            fields["prompt"] = prompt
    for name in (*NUMBERS, "plan"):
        if name not in parameters:
            continue
        value: Any = parameters[name]
        if name != "plan":
            value = _number(value)
        try:
            fields[name] = getattr(Settings(**{name: value}), name)
        except SettingError as error:
            left_out(name, str(error))
    if "plan" in fields:
        fields["plan"] = str(fields["plan"])
    if parameters.get("lanes"):
        names = parameters["lanes"][:200].split(",")
        if all(name in offered for name in names):
            fields["lanes"] = [name for name in offered if name in names]
        else:
            left_out("lanes", f"here are {', '.join(offered)}")
    if parameters.get("chat") in ("0", "1"):
        fields["chat"] = parameters["chat"] == "1"
    elif "chat" in parameters:
        left_out("chat", "it must be 0 or 1")
    step = _number(parameters.get("step", ""))
    return Linked(
        fields=fields,
        model=" ".join(parameters.get("model", "").split())[:80] if fields else "",
        step=int(step) if fields and isinstance(step, float) and 0 < step <= MAX_STEP else 0,
        problems=tuple(problems),
    )


def _number(text: str) -> float | str:
    """A number if it is one; what is none is judged by `Settings`, whose sentence names it."""
    try:
        return float(text) if len(text) <= 24 else text
    except ValueError:
        return text
