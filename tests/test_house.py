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
    "racing": {"trace"},
    "metrics": {"trace"},
    "inspect": {"cache", "errors", "layout", "lookup", "model", "trace"},
    "products": set(),
    "sampler": {"errors"},
    "copies": {"errors", "lookup"},
    "placement": {"errors"},
    "adapter": {"errors", "placement", "products"},
    "graphs": {"cache", "layout", "model", "placement"},
    "model": {
        *("adapter", "cache", "copies", "errors", "graphs", "layout", "lookup", "placement", "products"),
        "sampler",
    },
    "checkpoint": {"errors", "adapter", "copies", "devices", "model", "placement", "sampler"},
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
    "batch_drafts": {"decoders", "layout", "lookup", "model", "verify"},
    "batch_planner": {"layout", "planner"},
    "batches": {
        *("batch_drafts", "batch_planner", "cache", "cost", "decoders", "errors", "layout"),
        *("model", "planner", "settings", "trace"),
    },
    "generation": {
        *("batches", "checkpoint", "decoders", "errors", "model", "settings", "trace", "verify"),
    },
    "prompts": {"conversation", "errors", "model"},
    "scores": {"metrics", "trace"},
    "specbench": {"scores"},
    "visible": set(),
    "peers": {"errors", "model", "settings", "trace"},
    "bench": {
        *("conversation", "decoders", "errors", "model", "peers", "prompts", "racing", "scores"),
        *("settings", "trace"),
    },
    "overhead": {"bench", "decoders", "metrics", "model", "scores", "settings"},
    "crowd": {"batches", "metrics", "model", "peers", "scores", "settings", "trace"},
    "stakes": {"bench", "metrics", "model", "prompts", "scores", "settings"},
    "trust": {"cache", "decoders", "layout", "model", "settings", "trace"},
    "checks": {
        *(
            "cache",
            "decoders",
            "errors",
            "layout",
            "model",
            "planner",
            "settings",
            "trace",
            "trust",
            "verify",
        ),
    },
    "trial": {"bench", "errors", "model", "prompts", "settings"},
    "hosting": {"bundled", "errors", "settings"},
    "guard": {"errors", "hosting"},
    "devices": {"errors"},
    "contest": {"decoders", "errors", "memory", "model", "peers", "racing", "settings", "trace"},
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


CHANGES = {
    *("add", "append", "clear", "discard", "extend", "insert", "pop", "popitem", "remove", "setdefault"),
    *("sort", "reverse", "update"),
}
WRITTEN_ANEW = {("space_core/__init__.py", "globals"), ("space_core/contest.py", "_LOADED")}
"""The library's own names, bound when they are first used; and the loaded models, which hold nobody's text."""


def kept_state(source: str) -> list[str]:
    """What a module keeps between calls: `global`, or something of its top level that a function changes."""
    tree = ast.parse(source)
    tops = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    found = []
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        arguments = {a.arg for a in ast.walk(function) if isinstance(a, ast.arg)}
        local = arguments | {
            n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
        }
        for node in ast.walk(function):
            changed = None
            if isinstance(node, ast.Global):
                found += node.names
            elif isinstance(node, ast.Subscript | ast.Attribute) and isinstance(
                node.ctx, ast.Store | ast.Del
            ):
                changed = node.value
            elif (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in CHANGES
            ):
                changed = node.func.value
            if isinstance(changed, ast.Call) and isinstance(changed.func, ast.Name):
                found += [changed.func.id] if changed.func.id == "globals" else []
            while isinstance(changed, ast.Subscript | ast.Attribute):
                changed = changed.value
            if isinstance(changed, ast.Name) and changed.id in tops - local:
                found.append(changed.id)
    return found


@pytest.mark.trust(19)
def test_nothing_is_kept_between_visitors_in_a_module(figures):
    files = [*(ROOT / "space_core").rglob("*.py"), *(ROOT / "finetune").glob("*.py"), ROOT / "app.py"]
    kept = {
        (path.relative_to(ROOT).as_posix(), name) for path in files for name in kept_state(path.read_text())
    }
    assert kept <= WRITTEN_ANEW
    figures(modules=len(files))


@pytest.mark.parametrize(
    "source",
    [
        "SEEN = []\ndef f(x):\n    SEEN.append(x)",
        "SEEN = {}\ndef f(x):\n    SEEN[x] = 1",
        "SEEN: dict = {}\ndef f(x):\n    SEEN.setdefault(x, []).append(x)",
        "n = 0\ndef f():\n    global n\n    n += 1",
        "class Box: pass\nbox = Box()\ndef f(x):\n    box.last = x",
    ],
)
def test_kept_state_is_seen(source):
    assert kept_state(source)
    assert not kept_state(
        "LIMITS = {}\ndef f(x):\n    found = dict(LIMITS)\n    found[x] = 1\n    return found"
    )


def test_no_public_name_is_a_rooms():
    """Importing the room would put the module in the name's place: `space_core.race(…)` failed like that."""
    import space_core

    assert not set(space_core.__all__) & {path.stem for path in (ROOT / "space_core").glob("*.py")}
