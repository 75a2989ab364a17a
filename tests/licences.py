"""Licences of the packages that the requirements name (and with --all of those that these need).

python tests/licences.py            # a table in Markdown, from what is installed here
"""

from __future__ import annotations

import argparse
import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILES = ("requirements.txt", "requirements-dev.txt")


def named(lines: list[str]) -> list[str]:
    """Names of the packages in requirement lines, without extras that nobody asked for."""
    found = []
    for line in lines:
        name = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line.strip())
        if name and "extra ==" not in line:
            found.append(re.sub(r"[-_.]+", "-", name[0]).lower())
    return found


def licence(name: str) -> tuple[str, str]:
    """(version, licence) of an installed package, as it says itself."""
    try:
        about = distribution(name).metadata
    except PackageNotFoundError:
        return "–", "not installed"
    said = about.get("License-Expression") or (about.get("License") or "").strip().partition("\n")[0]
    kinds = [c.rpartition(" :: ")[2] for c in about.get_all("Classifier") or [] if c.startswith("License ::")]
    if not said or len(said) > 60:
        said = ", ".join(kinds) or "see its LICENSE file"
    return str(about["Version"]), said


def closure(names: list[str]) -> list[str]:
    """The packages and all that they need, as far as it is installed."""
    found, left = set(), list(names)
    while left:
        name = left.pop()
        if name in found:
            continue
        found.add(name)
        try:
            left += named(distribution(name).requires or [])
        except PackageNotFoundError:
            found.discard(name)
    return sorted(found)


def main() -> int:
    parser = argparse.ArgumentParser("python tests/licences.py")
    parser.add_argument("--all", action="store_true", help="what the packages need, too")
    options = parser.parse_args()
    print("| package | for | version | licence |\n|---|---|---|---|")
    seen: set[str] = set()
    for file, purpose in zip(FILES, ("running", "development"), strict=True):
        names = [name for name in named((ROOT / file).read_text().splitlines()) if name != "r"]
        for name in closure(names) if options.all else names:
            if name not in seen:
                seen.add(name)
                print(f"| {name} | {purpose} | {' | '.join(licence(name))} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
