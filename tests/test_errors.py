"""What a user can cause has one base class; and each line of SECURITY.md has its test."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

from space_core import errors
from space_core.errors import SpaceError

ROOT = Path(__file__).parent.parent
DEFECTS = {
    "ValueError",  # of values that only our own code makes
    "RuntimeError",
    "AssertionError",
    "AttributeError",
    "NotImplementedError",  # both of these are caught where they are raised
    "argparse.ArgumentTypeError",
    "_Halt",
    "_Closed",
}
HUB = ROOT / "space_core" / "custom_generate"  # goes to the hub as it is, and may find no space_core
FILES = [
    *sorted(set((ROOT / "space_core").rglob("*.py")) - set(HUB.glob("*.py"))),
    *sorted((ROOT / "finetune").glob("*.py")),
]


def raised(path: Path) -> set[str]:
    """Names of what a file raises anew."""
    calls = (n.exc for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Raise))
    return {ast.unparse(exc.func) for exc in calls if isinstance(exc, ast.Call)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_errors_are_of_one_family(path: Path) -> None:
    names = {name for name in raised(path) - DEFECTS if "." not in name}
    if not names:
        return
    module = importlib.import_module(path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."))
    for name in names:
        kind = getattr(module, name, None) or getattr(errors, name)
        assert issubclass(kind, SpaceError), f"{name} in {path.name} is no SpaceError"


def test_a_stray_error_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "room.py"
    path.write_text("def f():\n    raise KeyError('prompt')\n")
    assert raised(path) - DEFECTS == {"KeyError"}


def test_every_threat_has_a_test_that_exists() -> None:
    rows = re.findall(
        r"^\| (?!threat|---)(.+?) \| (.+?) \| (.+?) \|$", (ROOT / "SECURITY.md").read_text(), re.M
    )
    assert len(rows) > 20
    for threat, _, test in rows:
        found = re.fullmatch(r"`(tests/\S+\.py)::(test_\w+)`", test)
        assert found, threat
        source = (ROOT / found[1]).read_text()
        assert f"def {found[2]}(" in source, test
        marked = re.search(rf"@pytest\.mark\.slow[^\n]*\ndef {found[2]}\(", source)
        assert not marked, f"{test} runs in the slow tier only"
