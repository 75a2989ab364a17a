"""The command line: `python -m finetune build --recipe NAME`, `python -m finetune evaluate …`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0 on success, 2 on bad input with one line on stderr."""
    # Before torch is imported: spinning OpenMP threads starve each other on a busy small machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    parser = argparse.ArgumentParser("python -m finetune", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="from nothing to a checkpoint; resumes a killed build")
    build.add_argument("--recipe", required=True, help="smoke, python-mini, python-gpu, or a .toml file")
    build.add_argument("--run", type=Path, help="states and log (default runs/RECIPE)")
    build.add_argument("--cache", type=Path, default=Path("cache"), help="downloaded packages")
    build.add_argument("--out", type=Path, help="the checkpoint (default RUN/checkpoint)")
    build.add_argument("--device", default="cpu")
    check = commands.add_parser("evaluate", help="tokens per call and readability on prompts of your own")
    check.add_argument("--model", required=True, help="checkpoint folder or hub id")
    check.add_argument("--prompts", type=Path, required=True, help='JSON lines with a "prompt" each')
    check.add_argument("--k", type=int, default=5)
    check.add_argument("--max-new-tokens", type=int, default=128)
    check.add_argument("--temperature", type=float, default=0.0)
    check.add_argument("--limit", type=int, help="only the first LIMIT prompts")
    check.add_argument("--dtype", default="float32")
    check.add_argument("--device", default="cpu")
    rivals = commands.add_parser("optimizers", help="train the base under several optimizers, and compare")
    rivals.add_argument("--recipe", required=True)
    rivals.add_argument("--run", type=Path, help="tokens (default runs/RECIPE)")
    rivals.add_argument("--cache", type=Path, default=Path("cache"), help="downloaded packages")
    rivals.add_argument("--steps", type=int, help="fewer than the recipe has")
    options = parser.parse_args(arguments)

    from finetune.build import build as run_build
    from finetune.corpus import CorpusError
    from finetune.recipe import RecipeError, load_recipe
    from space_core.errors import SpaceError

    try:
        if options.command == "evaluate":
            print(json.dumps(_evaluate(options), indent=1))
            return 0
        recipe = load_recipe(options.recipe)
        run = options.run or Path("runs") / recipe.name
        if options.command == "optimizers":
            from finetune.compare import compare_optimizers

            for row in compare_optimizers(recipe, run, options.cache, options.steps):
                print(json.dumps(row))
            return 0
        out = run_build(recipe, run, options.cache, options.out or run / "checkpoint", options.device)
    except (RecipeError, CorpusError, SpaceError) as error:
        print(f"finetune: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("finetune: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(f"checkpoint: {out}")
    return 0


def _evaluate(options: argparse.Namespace) -> dict[str, Any]:
    import space_core
    from finetune.evaluate import evaluate, read_prompts

    prompts = read_prompts(options.prompts)[: options.limit]
    model = space_core.load(options.model, options.device, options.dtype)
    return evaluate(model, prompts, options.k, options.max_new_tokens, options.temperature)


if __name__ == "__main__":
    sys.exit(main())
