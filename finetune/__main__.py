"""The command line: `python -m finetune build …`, `sft …`, `evaluate …` and `optimizers …`.

Exit code 0 on success, 2 on bad input with one clear line on stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage: what is wrong is what the user wants to know."""
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0 on success, 2 on bad input with one line on stderr."""
    # Before torch is imported: spinning OpenMP threads starve each other on a busy small machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    options = _parser().parse_args(arguments)

    from finetune.build import build as run_build
    from finetune.corpus import CorpusError
    from finetune.recipe import RecipeError, load_recipe
    from space_core.errors import SpaceError

    try:
        if options.command == "sft":
            print(f"checkpoint: {_sft(options)}")
            return 0
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


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("python -m finetune", description="Train models and masks for SPACE.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    build = commands.add_parser("build", help="from nothing to a checkpoint; resumes a killed build")
    build.add_argument("--recipe", required=True, help="smoke, python-mini, python-gpu, or a .toml file")
    build.add_argument("--run", type=Path, help="states and log (default runs/RECIPE)")
    build.add_argument("--cache", type=Path, default=Path("cache"), help="downloaded packages")
    build.add_argument("--out", type=Path, help="the checkpoint (default RUN/checkpoint)")
    build.add_argument("--device", default="cpu")
    _add_sft(commands.add_parser("sft", help="masks for a model of yours, from conversations"))
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
    return parser


def _add_sft(command: argparse.ArgumentParser) -> None:
    """Options of `sft`; those without a default here have the one of `finetune.sft.Sft`."""
    needed = command.add_argument_group("what")
    needed.add_argument("--base", required=True, metavar="DIR_OR_HUB_ID", help="the model")
    needed.add_argument("--data", required=True, metavar="F.jsonl_OR_HUB_ID", help="conversations or texts")
    needed.add_argument("--method", choices=("gated", "paper"), help="gated leaves the base as it is")
    needed.add_argument("--out", required=True, type=Path, metavar="DIR", help="the checkpoint")
    needed.add_argument("--run", type=Path, metavar="DIR", help="states and log (default runs/sft-OUT)")
    needed.add_argument("--device", default="auto", help="cpu, cuda, mps or auto")
    needed.add_argument("--merge-base", action="store_true", help="copy the base's weights into OUT")
    needed.add_argument("--push-to-hub", metavar="OWNER/NAME", help="upload OUT")
    needed.add_argument("--revision", help="of the base on the hub")
    needed.add_argument("--split", help="of a data set of the hub (default train)")
    masks = command.add_argument_group("masks")
    for name, kind, says in (
        ("k", int, "masks of a group (5)"),
        ("rank", int, "of the adapter (64)"),
        ("groups", int, "dense groups a row (64)"),
        ("until-fail", float, "weight of masks behind a wrong one (0.2)"),
        ("soft", float, "share of the loss against the base's distribution (0.3)"),
        ("p-ar", float, "paper: share of samples with the plain loss (0.5)"),
    ):
        masks.add_argument(f"--{name}", type=kind, help=says)
    masks.add_argument("--targets", type=_names, help="modules to adapt, with commas")
    own = command.add_argument_group("the model's own continuations (gated)")
    own.add_argument("--distil", type=int, metavar="N", help="prompts that the model continues (4096)")
    own.add_argument("--no-distil", dest="distil", action="store_const", const=0, help="the data's answers")
    own.add_argument("--distil-tokens", type=int, help="new tokens of each (256)")
    own.add_argument("--distil-batch", type=int, help="prompts at a time (32)")
    own.add_argument("--sampled-share", type=float, help="how many are sampled (0.2)")
    own.add_argument("--temperature", type=float, help="of those (0.8)")
    data = command.add_argument_group("samples")
    data.add_argument("--max-length", type=int, help="tokens (2048, or the context)")
    data.add_argument("--truncate", choices=("front", "back"), help="whole turns are lost there (front)")
    data.add_argument("--no-pack", dest="pack", action="store_false", default=None, help="one sample a row")
    steps = command.add_argument_group("training")
    for name, kind, says in (
        ("lr", float, "peak rate (gated 5e-4, paper 5e-5)"),
        ("epochs", int, "over the samples (3)"),
        ("steps", int, "instead of epochs"),
        ("batch", int, "rows of a batch (4)"),
        ("accumulate", int, "batches of a step (1)"),
        ("warmup", float, "share of the steps (0.03)"),
        ("evaluate-every", int, "steps (100)"),
        ("evaluate-prompts", int, "held out (16)"),
        ("evaluate-tokens", int, "of each (64)"),
        ("patience", int, "evaluations without gain before it stops; 0 never does (5)"),
        ("save-every", int, "steps (100)"),
        ("seed", int, "of everything drawn (0)"),
    ):
        steps.add_argument(f"--{name}", type=kind, help=says)
    steps.add_argument("--dtype", choices=("auto", "float32", "bfloat16"))
    steps.add_argument(
        "--gradient-checkpointing", dest="checkpointing", action="store_true", help="less memory, more time"
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _sft(options: argparse.Namespace) -> Path:
    from dataclasses import fields

    from transformers.utils import logging

    from finetune.sft import Sft, sft

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    given = {field.name: getattr(options, field.name) for field in fields(Sft)}
    return sft(
        Sft(**{name: value for name, value in given.items() if value is not None}),
        options.run or Path("runs") / f"sft-{options.out.name}",
        options.out,
        options.device,
        merge_base=options.merge_base,
        push_to=options.push_to_hub,
    )


def _evaluate(options: argparse.Namespace) -> dict[str, Any]:
    import space_core
    from finetune.evaluate import evaluate, read_prompts

    prompts = read_prompts(options.prompts)[: options.limit]
    model = space_core.load(options.model, options.device, options.dtype)
    return evaluate(model, prompts, options.k, options.max_new_tokens, options.temperature)


if __name__ == "__main__":
    sys.exit(main())
