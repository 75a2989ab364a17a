"""The command line: `python -m finetune build --recipe NAME`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0 on success, 2 on bad input with one line on stderr."""
    parser = argparse.ArgumentParser("python -m finetune", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="from nothing to a checkpoint; resumes a killed build")
    build.add_argument("--recipe", required=True, help="smoke, python-mini, python-gpu, or a .toml file")
    build.add_argument("--run", type=Path, help="states and log (default runs/RECIPE)")
    build.add_argument("--cache", type=Path, default=Path("cache"), help="downloaded packages")
    build.add_argument("--out", type=Path, help="the checkpoint (default RUN/checkpoint)")
    build.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)

    from finetune.build import build as run_build
    from finetune.corpus import CorpusError
    from finetune.recipe import RecipeError, load_recipe
    from space_core.errors import SpaceError

    try:
        recipe = load_recipe(options.recipe)
        run = options.run or Path("runs") / recipe.name
        out = run_build(recipe, run, options.cache, options.out or run / "checkpoint", options.device)
    except (RecipeError, CorpusError, SpaceError) as error:
        print(f"finetune: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("finetune: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(f"checkpoint: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
