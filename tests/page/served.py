"""What the browser tests and the screenshots share: the browser, its flags, the served page."""

from __future__ import annotations

import shutil
import socket
import urllib.request
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

HOSTILE = (
    "${window.pwned=1}",
    "`${window.pwned=1}`",
    "<img src=x onerror=window.pwned=1>",
    "</script><script>window.pwned=1</script>",
    "{{value}}",
    "{{{window.pwned}}}",
    "C:\\users\\n",
    '"\\u0022&lt;b&gt;',
    "${'\n    '}",
    "é漢🙂",
)
"""Tokens that the tiny model writes, one after the other."""


@dataclass(frozen=True)
class Server:
    """The running page. `seconds_to_200` is from the start of the process."""

    url: str
    seconds_to_200: float
    log: Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    """Whether the page is served."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except OSError:
        return False
