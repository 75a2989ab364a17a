"""Make corpus.lock.json: one pinned wheel a package, its SHA-256 and its licence.

    python -m finetune.lock --cache DIR NAME [NAME ...]     lock these packages' newest wheels
    python -m finetune.lock --cache DIR                     bring every locked package up to date

Only wheels: reading one runs nobody's code, while pip must run a source distribution's build
to learn its name. Compiled packages are pinned to one Linux wheel on every platform, because
only the `.py` files in it are read. A licence that is not known to be permissive is refused.
What is done with the files is corpus.py's business.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from email import message_from_bytes
from email.message import Message
from pathlib import Path

from tqdm import tqdm

from space_core.errors import SpaceError

LOCK_FILE = Path(__file__).with_name("corpus.lock.json")
FORMAT = "space-corpus-lock/1"

PERMISSIVE = frozenset(
    {"MIT", "MIT-0", "MIT-CMU", "BSD-2-Clause", "BSD-3-Clause", "0BSD", "Apache-2.0", "PSF-2.0"}
    | {"Python-2.0", "ISC", "Zlib", "CC0-1.0", "Unlicense"}
)
COPYLEFT = re.compile(r"\b[AL]?GPL|\bMPL|mozilla|gnu |eupl|copyleft|cc-by", re.IGNORECASE)

# What maintainers write in the free-text field or the trove classifier, most specific first.
_WORDINGS = (
    (r"apache", "Apache-2.0"),
    (r"\bmit-0\b|no attribution", "MIT-0"),
    (r"\bmit\b|expat", "MIT"),
    (r"bsd[- ]?2|2-clause|simplified bsd", "BSD-2-Clause"),
    (r"bsd[- ]?3|3-clause|new bsd|modified bsd", "BSD-3-Clause"),
    (r"python software foundation|\bpsf", "PSF-2.0"),
    (r"\bisc\b", "ISC"),
    (r"\bbsd\b", "BSD"),
)

# Wheels of CPython 3.11 on glibc Linux, whatever machine asks: the lock names files, and the
# same files must come back everywhere.
WHEEL_OPTIONS = (
    "--only-binary=:all:",
    "--python-version=3.11",
    "--implementation=cp",
    "--platform=manylinux_2_28_x86_64",
    "--platform=manylinux_2_17_x86_64",
    "--platform=manylinux2014_x86_64",
)


class LicenceRefused(SpaceError, ValueError):
    """The package's metadata names no licence of the permissive list."""


@dataclass(frozen=True, slots=True)
class Pin:
    """One package of the corpus: exactly this file, under this SPDX licence."""

    name: str
    version: str
    filename: str
    sha256: str
    size: int
    licence: str


def read_lock(path: Path = LOCK_FILE) -> tuple[Pin, ...]:
    """The pins of a lock file, by name.

    Raises:
        ValueError: the file is not a lock, or one of its licences is not permissive.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("format") != FORMAT:
        raise ValueError(f"{path.name} is not a {FORMAT} file")
    pins = tuple(sorted((Pin(**entry) for entry in content["packages"]), key=lambda p: p.name))
    for pin in pins:
        if not permits(pin.licence):
            raise ValueError(f"{path.name}: {pin.name} has the licence {pin.licence!r}")
    return pins


def write_lock(pins: Iterable[Pin], path: Path = LOCK_FILE) -> None:
    """Write one package a line, sorted, so that a change of the lock reads as a diff."""
    lines = (json.dumps(asdict(pin)) for pin in sorted(pins, key=lambda p: p.name))
    body = ",\n  ".join(lines)
    path.write_text(f'{{"format": "{FORMAT}", "packages": [\n  {body}\n]}}\n', encoding="utf-8", newline="\n")


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def permits(expression: str) -> bool:
    """Whether an SPDX expression leaves us a way that is permissive throughout.

    Where OR and AND are mixed, every name has to be permissive: precedence isn't worth a parser.
    """
    plain = re.sub(r"[()]", " ", expression)
    mixed = re.search(r"\bOR\b", plain) and re.search(r"\bAND\b", plain)
    ways = [re.sub(r"\bOR\b", "AND", plain)] if mixed else re.split(r"\bOR\b", plain)
    return any(all(name.strip() in PERMISSIVE for name in re.split(r"\bAND\b", way)) for way in ways)


def licence_of(metadata: Message, licence_text: str = "") -> str:
    """The SPDX expression of a wheel's METADATA.

    The modern `License-Expression` field is taken at its word. Older packages are read from the
    `License` field and the classifiers; a bare "BSD" is told apart by the licence's text.

    Raises:
        LicenceRefused: copyleft, proprietary, unknown or missing.
    """
    if expression := str(metadata.get("License-Expression") or ""):
        if permits(expression):
            return expression
        raise LicenceRefused(f"licence {expression!r} is not on the permissive list")
    classifiers = [
        str(c).rsplit("::", 1)[-1].strip()
        for c in metadata.get_all("Classifier", [])
        if str(c).startswith("License ::")
    ]
    free_text = str(metadata.get("License") or "").strip()
    statements = [*classifiers, free_text[:80].splitlines()[0] if free_text else ""]
    if any(COPYLEFT.search(statement) for statement in statements):
        raise LicenceRefused(f"copyleft among {statements}")
    for statement in filter(None, statements):
        for wording, spdx in _WORDINGS:
            if re.search(wording, statement, re.IGNORECASE):
                return _which_bsd(free_text + licence_text) if spdx == "BSD" else spdx
    raise LicenceRefused(f"no permissive licence among {statements}")


def _which_bsd(text: str) -> str:
    return "BSD-2-Clause" if "edistribution" in text and "either" not in text else "BSD-3-Clause"


def pin_wheel(path: Path) -> Pin:
    """Read name, version and licence out of a wheel, without installing it."""
    with zipfile.ZipFile(path) as wheel:
        names = [n for n in wheel.namelist() if re.match(r"[^/]+\.dist-info/", n)]
        metadata = message_from_bytes(
            wheel.read(next(n for n in names if n.endswith("/METADATA") and n.count("/") == 1))
        )
        licences = (n for n in names if re.search(r"/(licen[cs]e|copying)[^/]*$", n, re.IGNORECASE))
        text = "".join(wheel.read(n).decode("utf-8", "replace") for n in licences)
    return Pin(
        name=re.sub(r"[-_.]+", "-", metadata["Name"]).lower(),
        version=metadata["Version"],
        filename=path.name,
        sha256=sha256_file(path),
        size=path.stat().st_size,
        licence=licence_of(metadata, text),
    )


def pip_download(requirements: Iterable[str], into: Path) -> subprocess.CompletedProcess[str]:
    """Let pip fetch wheels: it knows this machine's index, proxy and certificates; we don't."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(into), *WHEEL_OPTIONS, *requirements]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def lock_packages(
    names: Iterable[str], cache: Path, max_bytes: int = 20_000_000, workers: int = 4
) -> tuple[list[Pin], dict[str, str]]:
    """Pin the newest wheel of each name; accepted wheels are left in `cache`.

    Returns the pins, and for each refused name the reason.
    """
    cache.mkdir(parents=True, exist_ok=True)
    pins: list[Pin] = []
    refused: dict[str, str] = {}

    def lock_one(name: str) -> Pin | str:
        with tempfile.TemporaryDirectory(dir=cache) as temporary:
            outcome = pip_download([name], Path(temporary))
            wheels = list(Path(temporary).glob("*.whl"))
            if outcome.returncode or not wheels:
                return (outcome.stderr.strip().splitlines() or ["pip found no wheel"])[-1]
            if wheels[0].stat().st_size > max_bytes:
                return f"{wheels[0].name} has more than {max_bytes} bytes"
            try:
                pin = pin_wheel(wheels[0])
            except LicenceRefused as reason:
                return str(reason)
            wheels[0].replace(cache / pin.filename)
            return pin

    names = list(names)
    with ThreadPoolExecutor(workers) as pool:
        found = tqdm(pool.map(lock_one, names), total=len(names), desc="lock", unit="package")
        for name, result in zip(names, found, strict=True):
            if isinstance(result, Pin):
                pins.append(result)
            else:
                refused[name] = result
    return pins, refused


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m finetune.lock", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--cache", type=Path, required=True, help="folder the wheels are kept in")
    parser.add_argument("--lock", type=Path, default=LOCK_FILE)
    options = parser.parse_args(arguments)

    locked = {pin.name: pin for pin in read_lock(options.lock)} if options.lock.exists() else {}
    pins, refused = lock_packages(options.names or sorted(locked), options.cache)
    locked.update((pin.name, pin) for pin in pins)
    write_lock(locked.values(), options.lock)
    for name, reason in refused.items():
        print(f"refused {name}: {reason}", file=sys.stderr)
    print(f"{len(locked)} packages, {sum(p.size for p in locked.values()) / 1e6:.0f} MB of wheels")
    return 0


if __name__ == "__main__":
    sys.exit(main())
