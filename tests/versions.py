"""Run the core of the tests with other versions of the dependencies.

    python tests/versions.py transformers==5.17.0                 # the oldest that requirements.txt allows
    python tests/versions.py "transformers<6"                     # the newest
    python tests/versions.py torch==2.8.0 --index-url INDEX_OF_CPU_BUILDS
    python tests/versions.py gradio==6.31.0 --tests tests/page/test_race.py

A virtual environment is made in a temporary folder (or --keep FOLDER), sees the packages of this one, and
has what is named here in front of them. Exit code 0 if the tests pass.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
CORE = (
    "test_layout.py",
    "test_lossless.py",
    "test_verify.py",
    "test_trust.py",
    "test_checkpoint.py",
    "test_cli.py",
)


def main() -> int:
    parser = argparse.ArgumentParser("python tests/versions.py")
    parser.add_argument("packages", nargs="+", metavar="PACKAGE==VERSION")
    parser.add_argument("--tests", nargs="+", default=[f"tests/{name}" for name in CORE])
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="make the environment here, and leave it")
    parser.add_argument("--index-url", help="for pip")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.keep or Path(temporary) / "venv").resolve()
        venv.create(folder, with_pip=True)
        python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
        places = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True,
            capture_output=True,
            text=True,
        )
        (Path(places.stdout.strip()) / "above.pth").write_text(sysconfig.get_path("purelib") + "\n")
        index = ["--index-url", options.index_url] if options.index_url else []
        subprocess.run([python, "-m", "pip", "install", "-q", *index, *options.packages], check=True)
        names = ["torch", "transformers", "gradio", "numpy", "peft", "accelerate"]
        code = "import importlib.metadata as m, sys; print(*(f'{n} {m.version(n)}' for n in sys.argv[1:]), sep=', ')"
        subprocess.run([python, "-c", code, *names], check=True)
        return subprocess.run([python, "-m", "pytest", "-q", *options.tests], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
