"""The house itself: imports run one way, and nothing keeps state between visitors."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {
    "errors": set(),
    "bundled": {"errors"},
    "settings": {"errors"},
    "trace": {"errors"},
    "layout": set(),
    "verify": set(),
    "cache": set(),
    "detokenize": set(),
    "race": {"trace"},
    "metrics": {"trace"},
    "inspect": {"cache", "errors", "layout", "model", "trace"},
    "products": set(),
    "adapter": {"errors", "products"},
    "model": {"errors", "layout", "cache", "adapter", "products"},
    "checkpoint": {"errors", "adapter", "model"},
    "lookup": set(),
    "planner": {"layout"},
    "cost": {"layout"},
    "threads": {"cache", "cost", "layout", "model"},
    "decoders": {
        *("cache", "cost", "errors", "layout", "lookup", "memory"),
        *("model", "planner", "settings", "trace", "verify"),
    },
    "memory": {"cache", "model", "trace"},
    "conversation": {"errors", "model"},
    "talks": {"conversation", "memory", "model"},
    "presets": set(),
    "prompts": {"conversation", "errors", "model"},
    "scores": {"metrics", "trace"},
    "peers": {"errors", "model", "settings", "trace"},
    "bench": {
        *("conversation", "decoders", "errors", "model", "peers", "prompts", "scores", "settings", "trace"),
    },
    "overhead": {"bench", "decoders", "metrics", "model", "scores", "settings"},
    "stakes": {"bench", "metrics", "model", "prompts", "scores", "settings"},
    "trial": {"bench", "errors", "model", "prompts", "settings"},
    "hosting": {"bundled", "errors", "settings"},
    "guard": {"errors", "hosting"},
    "devices": {"errors"},
    "contest": {"decoders", "errors", "memory", "model", "peers", "race", "settings", "trace"},
    "training": {"hosting"},
    "calls": {"cache", "checkpoint", "cost", "errors", "layout", "metrics", "model", "scores"},
}


def imports(path: Path) -> set[str]:
    """Modules that a file imports, outside `if TYPE_CHECKING`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_knows_only_the_rooms_below_it(room):
    names = imports(ROOT / "space_core" / f"{room}.py")
    known = {name.split(".")[1] for name in names if name.startswith("space_core.")}
    assert known <= ROOMS[room]


def test_library_and_training_run_without_the_page():
    for path in [*(ROOT / "space_core").glob("*.py"), *(ROOT / "finetune").glob("*.py")]:
        tops = {name.split(".")[0] for name in imports(path)}
        assert not tops & {"gradio", "plotly", "app"}, path
        if path.parent.name == "space_core":
            assert "finetune" not in tops, path


def test_only_the_page_knows_gradio():
    for path in (ROOT / "space_core").rglob("*.py"):
        assert "gradio" not in {name.split(".")[0] for name in imports(path)}, path
