"""A run as something to paste: Python with the library, and the command line. Model text is quoted
as each language quotes it, so that what is pasted is the prompt and never a part of the program.
"""

from __future__ import annotations

import shlex

from space_core.settings import Settings

_DEFAULTS = Settings()


def python(prompt: str, settings: Settings, model: str, device: str, dtype: str) -> str:
    """The SPACE lane of a race as a program; `model` is what `space_core.load` opens."""
    asked = [
        f"{name}={value!r}"
        for name, value in settings.to_json().items()
        if name in ("k", "max_new_tokens") or value != getattr(_DEFAULTS, name)
    ]
    return "\n".join(
        [
            "import space_core",
            "",
            f"prompt = {_literal(prompt)}",
            f"model = space_core.load({model!r}, device={device!r}, dtype={dtype!r})",
            "space_core.tune_threads(model)",
            f"settings = space_core.Settings({', '.join(asked)})",
            "for step in space_core.space(model, model.encode(prompt), settings):",
            "    print(step.accepted, repr(model.decode(step.emitted)))",
            "",
        ]
    )


def _literal(prompt: str) -> str:
    """A string literal, one line of it for each line of the prompt."""
    lines = prompt.splitlines(keepends=True)
    if len(lines) < 2:
        return repr(prompt)
    return "(\n" + "".join(f"    {line!r}\n" for line in lines) + ")"


def command(prompt: str, settings: Settings, model: str, device: str, dtype: str, method: str) -> str:
    """One lane of a race in a POSIX shell."""
    asked = {
        "--method": method,
        "--plan": str(settings.plan),
        "--k": str(settings.k),
        "--max-new-tokens": str(settings.max_new_tokens),
        "--temperature": f"{settings.temperature:g}",
        "--top-p": f"{settings.top_p:g}",
        "--seed": str(settings.seed),
        "--model": shlex.quote(model),
        "--device": shlex.quote(device),
        "--dtype": shlex.quote(dtype),
    }
    options = " ".join(f"{name} {value}" for name, value in asked.items())
    return (
        f"printf %s {shlex.quote(prompt)} | \\\n  python -m space_core generate --prompt-file - {options}\n"
    )
