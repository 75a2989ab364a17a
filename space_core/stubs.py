"""Import gradio without its typing stubs being written.

Whenever it is imported, Gradio 6 parses the source of each of its components and writes a stub (.pyi) beside
it, though the stub is there: half of its import (5.7 seconds against 3.0, medians of three on a slow core,
2026-11-27), spent before a page can answer.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

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
