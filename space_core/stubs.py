"""Import gradio without its typing stubs being written, and have it look for what is missing once.

Whenever it is imported, Gradio 6 parses the source of each of its components and writes a stub (.pyi) beside
it, though the stub is there: half of its import (5.7 seconds against 3.0, medians of three on a slow core,
2026-11-27), spent before a page can answer. And it tries to import matplotlib before and after each step of a
generator. Where there is none, all of sys.path is looked through each time, since Python remembers no import
that failed: a sixth of what a message of a stream costs the server (2026-11-28). Also here: how a script
comes before Gradio's own (`assets/frames.js`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

WRITER = "gradio.component_meta"
WRITE = "create_or_modify_pyi"


@contextmanager
def unwritten() -> Iterator[None]:
    """Within it gradio is imported without writing; a gradio that writes nothing is imported as it is."""
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        if finder in sys.meta_path:
            sys.meta_path.remove(finder)


def absent(name: str) -> None:
    """Have imports of this module fail at once, if there is none."""
    if name not in sys.modules and find_spec(name) is None:
        sys.modules[name] = None  # type: ignore[assignment]  # Python's own sign for it


def first(templates: Environment, script: str) -> None:
    """Have the page run a script before Gradio's own, behind which `head=` comes.

    Args:
        templates: Gradio's, of which the page is made.
    """
    from jinja2 import FunctionLoader

    plain = templates.loader
    if plain is not None:
        head = f"<head><script>{{% raw %}}{script}{{% endraw %}}</script>"
        templates.loader = FunctionLoader(lambda name: _with(head, plain.get_source(templates, name)))


class _Finder(MetaPathFinder):
    """Finds one module as everybody else would, and takes one function out of it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != WRITER:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_without(module: ModuleType) -> None:
                execute(module)
                if hasattr(module, WRITE):
                    setattr(module, WRITE, _nothing)

            spec.loader.exec_module = execute_without  # type: ignore[method-assign]
        return spec


def _nothing(*_: Any) -> None:
    """In the place of the writer."""


def _with(head: str, template: tuple[str, Any, Any]) -> tuple[str, Any, Any]:
    source, file, current = template
    return source.replace("<head>", head, 1), file, current
