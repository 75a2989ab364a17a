"""The command line: `python -m finetune build …`, `sft`, `evaluate`, `ablate`, `cost` and `optimizers`.

Exit code 0 on success, 2 on bad input with one clear line on stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
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
            out = _sft(options)
            if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
                print(f"checkpoint: {out}")
            return 0
        if options.command == "evaluate":
            print(json.dumps(_evaluate(options), indent=1))
            return 0
        if options.command in ("ablate", "cost"):
            typed = shlex.join(sys.argv[1:] if arguments is None else arguments)
            path = (_ablate if options.command == "ablate" else _cost)(options, f"python -m finetune {typed}")
            print(f"result: {path}")
            return 0
        recipe = load_recipe(options.recipe)
        run = options.run or Path("runs") / recipe.name
        if options.command == "optimizers":
            from finetune.compare import compare_optimizers

            for row in compare_optimizers(recipe, run, options.cache, options.steps):
                print(json.dumps(row))
            return 0
        out = run_build(
            recipe, run, options.cache, options.out or run / "checkpoint", options.device, options.track
        )
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
    _add_track(build)
    _add_sft(commands.add_parser("sft", help="masks for a model of yours, from conversations"))
    check = commands.add_parser("evaluate", help="tokens per call and readability on prompts of your own")
    check.add_argument("--model", required=True, help="checkpoint folder or hub id")
    check.add_argument("--prompts", type=Path, required=True, help='JSON lines with a "prompt" each')
    check.add_argument("--k", type=int, default=5)
    check.add_argument("--max-new-tokens", type=int, default=128)
    check.add_argument("--temperature", type=float, default=0.0)
    check.add_argument("--limit", type=int, help="only the first LIMIT prompts")
    check.add_argument("--past-end", action="store_true", help="go on behind a text's end, to the budget")
    check.add_argument(
        "--no-copies", action="store_true", help="guesses are not told what the text so far holds"
    )
    check.add_argument("--dtype", default="float32")
    check.add_argument("--device", default="cpu")
    _add_ablate(commands.add_parser("ablate", help="what each step from the paper's method to ours is worth"))
    _add_cost(
        commands.add_parser("cost", help="seconds for a mask's target, dense groups against one a sample")
    )
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
    _add_track(needed)
    needed.add_argument("--split", help="of a data set of the hub (default train)")
    masks = command.add_argument_group("masks")
    for name, kind, says in (
        ("k", int, "masks of a group (5)"),
        ("rank", int, "of the adapter (64)"),
        ("sampler", int, "width of the sampler head; 0 trains none (512)"),
        ("copy-samples", int, "samples to fit the table of copies on; 0 fits none (256)"),
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


def _add_ablate(command: argparse.ArgumentParser) -> None:
    """Options of `ablate`; those without a default here have the one of `finetune.ablate.Ablation`."""
    command.add_argument("--recipe", default="python-mini", help="corpus, groups, batches, held-out prompts")
    command.add_argument(
        "--base",
        metavar="DIR_OR_HUB_ID",
        help="checkpoint or a build's run (default: the bundled one's base)",
    )
    command.add_argument("--run", type=Path, help="tokens and prompts (default runs/RECIPE, or the base's)")
    command.add_argument("--cache", type=Path, default=Path("cache"), help="downloaded packages")
    command.add_argument(
        "--out", type=Path, help="what was finished, and the result (default runs/ablate-RECIPE)"
    )
    command.add_argument("--json", type=Path, metavar="OUT", help="write the result there too")
    command.add_argument("--seconds", type=float, help="of training for each variant, rate and seed (60)")
    command.add_argument("--seeds", type=int, help="how many (3)")
    command.add_argument("--variants", type=_names, help="with commas (all)")
    command.add_argument(
        "--whole-lr", dest="whole_rates", type=_rates, help="rates to try on all weights (3e-4,1e-3)"
    )
    command.add_argument("--gated-lr", dest="gated_rates", type=_rates, help="and on the adapter (2e-3,5e-3)")
    command.add_argument("--prompts", type=int, help="most that the base continues (the recipe's)")
    command.add_argument("--device", default="cpu")


def _add_cost(command: argparse.ArgumentParser) -> None:
    """Options of `cost`; those without a default here have the one of `finetune.cost.Cost`."""
    command.add_argument(
        "--base", metavar="DIR_OR_HUB_ID", help="checkpoint (default: the bundled one's base)"
    )
    command.add_argument("--json", type=Path, metavar="OUT", required=True, help="write the result there")
    for name, says in (
        ("k", "masks of a group (5)"),
        ("rank", "of the adapter (32)"),
        ("groups", "dense groups behind each text (24)"),
        ("batch", "texts of a batch (12)"),
        ("length", "tokens of a text (256)"),
        ("repetitions", "of each way, in turns (5)"),
    ):
        command.add_argument(f"--{name}", type=int, help=says)
    command.add_argument("--device", default="cpu")


def _add_track(command: Any) -> None:
    command.add_argument(
        "--track", type=_names, default=(), metavar="NAMES", help="tensorboard, wandb, …: hear the log too"
    )


def _rates(text: str) -> tuple[float, ...]:
    return tuple(float(rate) for rate in _names(text))


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _hush() -> None:
    """transformers tells of its own only what went wrong."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _sft(options: argparse.Namespace) -> Path:
    from dataclasses import fields

    from finetune.sft import Sft, sft

    _hush()
    given = {field.name: getattr(options, field.name) for field in fields(Sft)}
    return sft(
        Sft(**{name: value for name, value in given.items() if value is not None}),
        options.run or Path("runs") / f"sft-{options.out.name}",
        options.out,
        options.device,
        merge_base=options.merge_base,
        push_to=options.push_to_hub,
        track=options.track,
    )


def _ablate(options: argparse.Namespace, command: str) -> Path:
    import shutil
    from dataclasses import fields

    from finetune.ablate import RESULT, Ablation, ablate
    from finetune.recipe import load_recipe
    from space_core.bench import check_output
    from space_core.bundled import default_checkpoint

    _hush()
    recipe = load_recipe(options.recipe)
    base = options.base or str(default_checkpoint())
    given = {f.name: getattr(options, f.name) for f in fields(Ablation) if f.name not in ("recipe", "base")}
    plan = Ablation(recipe, base, **{name: value for name, value in given.items() if value is not None})
    if options.json:
        check_output(options.json)
    of_base = Path(base) if (Path(base) / "pretrain.pt").is_file() else Path("runs") / recipe.name
    out: Path = options.out or Path("runs") / f"ablate-{recipe.name}"
    ablate(plan, options.run or of_base, options.cache, out, options.device, command)
    return Path(shutil.copy(out / RESULT, options.json)) if options.json else out / RESULT


def _cost(options: argparse.Namespace, command: str) -> Path:
    from dataclasses import fields

    from finetune.cost import Cost, measure
    from space_core.bench import check_output, write
    from space_core.bundled import default_checkpoint

    _hush()
    path: Path = options.json
    check_output(path)
    given = {field.name: getattr(options, field.name) for field in fields(Cost)}
    given["base"] = options.base or str(default_checkpoint())
    plan = Cost(**{name: value for name, value in given.items() if value is not None})
    write(path, measure(plan, options.device, command))
    return path


def _evaluate(options: argparse.Namespace) -> dict[str, Any]:
    import space_core
    from finetune.evaluate import evaluate, read_prompts

    prompts = read_prompts(options.prompts)[: options.limit]
    model = space_core.load(options.model, options.device, options.dtype)
    if options.no_copies:
        model.masks.copies = None
    if options.past_end:
        model.eos_ids = frozenset()
    return evaluate(model, prompts, options.k, options.max_new_tokens, options.temperature)


if __name__ == "__main__":
    sys.exit(main())
