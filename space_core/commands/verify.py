"""`python -m space_core verify`: is decoding lossless with this model, on this device, in this dtype?

Exit code 0: no difference that rounding does not explain; 1: there is one (with --strict any difference);
2: bad input.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from space_core.commands import options as given
from space_core.visible import visible

if TYPE_CHECKING:
    from space_core.model import SpaceModel
    from space_core.trust import Report, Split, Subject, Tally

FORMAT = "space-verify/1"
SECONDS = 300
CASES = 6
TEXTS = (
    "def binary_search(items, target):\n    low, high = 0, len(items)\n",
    "The committee met on Tuesday to discuss the budget, and after two hours",
    '{"name": "Zoë", "langues": ["français", "日本語"], "emoji": "👩‍👩‍👧", "count": ',
)
"""What every model is asked to go on with, beside prompts of random tokens."""
WHAT = {
    "rows": "every row's logits against the paper's table, without a cache",
    "isolation": "all that a row must not see, changed",
    "cache": "steps, rejections and crops at random against a fresh prefill",
    "greedy": "plain decoding and SPACE against one call of the whole text",
    "forced drafts": "right, wrong at one place, right at random",
    "stopping": "end of text at every slot, budgets, the context's last places",
    "sampling": "drawn tokens against the model's law, by chi-square",
    "lanes": "dice of plain decoding and SPACE are independent",
}
MEASURE = {
    "rows": "logits moved by {worst:.2g} of {bound:.2g}",
    "isolation": "logits moved by {worst:.2g} of {bound:.2g}",
    "cache": "logits moved by {worst:.2g} of {bound:.2g}",
    "sampling": "{worst:.2f} of the 1e-9 quantile",
    "lanes": "{worst:.1f} of {bound:.0f} sigmas",
}


def add(command: argparse.ArgumentParser) -> None:
    """What the command takes."""
    command.set_defaults(run=run)
    given.add_model(command)
    command.add_argument(
        "--prompts", metavar="F.jsonl", help="your prompts, in HumanEval's or Spec-Bench's form"
    )
    command.add_argument("--cases", type=_number, default=CASES, help="prompts to try (default: %(default)s)")
    command.add_argument("--max-new-tokens", type=_number, default=48, help="tokens behind each")
    command.add_argument("--k", type=_numbers, help="drafts per call, with commas (default: 1,2,3,5,8)")
    command.add_argument(
        "--seconds", type=_number, default=SECONDS, help="time budget (default: %(default)s)"
    )
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--strict", action="store_true", help="a split that rounding explains fails too")
    command.add_argument("--json", metavar="OUT", help='write the report here, "-" for stdout')


def run(options: argparse.Namespace) -> int:
    """Examine a model and print the report."""
    from tqdm import tqdm

    from space_core.errors import SettingError
    from space_core.settings import MAX_K, MAX_SEED

    if options.k and max(options.k) > MAX_K:
        raise SettingError("k", f"k must lie in 1..{MAX_K}")
    if not 0 <= options.seed <= MAX_SEED:
        raise SettingError("seed", f"seed must lie in 0..{MAX_SEED}")
    import space_core
    from space_core import bench, checks, trust

    if options.json not in (None, "-"):
        bench.check_output(Path(options.json))
    model = given.model(options)
    space_core.tune_threads(model)
    prompts = prompts_of(model, options.prompts, options.cases, options.seed)
    subject = trust.Subject(model, prompts, options.max_new_tokens, options.k or trust.KS, options.seed)
    with tqdm(bar_format="{desc}: {n} cases, {elapsed}", disable=None, leave=False) as bar:

        def progress(check: str, cases: int) -> None:
            bar.set_description(check, refresh=False)
            bar.n = cases
            bar.update(0)

        report = checks.examine(subject, options.seconds, progress)
    result = to_json(report, subject, options, bench.machine(model.device))
    if options.json == "-":
        print(json.dumps(result))
    else:
        if options.json is not None:
            bench.write(Path(options.json), result)
        print(visible(as_text(report, subject, result)))
    return int(not result["ok"])


def prompts_of(model: SpaceModel, file: str | None, count: int, seed: int) -> list[list[int]]:
    """Prompts to try: those of a file, or a few texts and random tokens behind them."""
    import torch

    from space_core.prompts import read_prompts

    if file is not None:
        return [model.encode(prompt.turns[0]) for prompt in read_prompts(Path(file), count)]
    texts = [] if model.tokenizer is None else [model.encode(text) for text in TEXTS]
    random = torch.Generator().manual_seed(seed)
    for index in range(max(1, count - len(texts))):
        ids = torch.randint(model.vocabulary, (3 + 9 * index,), generator=random).tolist()
        texts.append([(i + 1) % model.vocabulary if i == model.mask_token_id else i for i in ids])
    return texts[:count]


def to_json(
    report: Report, subject: Subject, options: argparse.Namespace, machine: dict[str, Any]
) -> dict[str, Any]:
    """The report as JSON; what is infinite or no number is null."""
    margins = [margin for run in report.margins for margin in run]
    result = {
        "format": FORMAT,
        "command": f"python -m space_core {options.typed}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **machine,
        "model": subject.model.name,
        "dtype": subject.model.dtype_name,
        "attention": str(getattr(subject.model.lm.config, "_attn_implementation", "")),
        "masks": subject.model.masks.method,
        "prompts": [list(prompt) for prompt in subject.prompts],
        "tokens": subject.tokens,
        "k": list(subject.ks),
        "seed": options.seed,
        "ok": report.ok and not (options.strict and report.explained),
        "strict": options.strict,
        "complete": report.complete,
        "cases": report.cases,
        "differences": report.differences,
        "explained": report.explained,
        "rounding": report.rounding,
        "smallest_margin": min(margins, default=None),
        "close_steps": sum(margin <= subject.slack for margin in margins),
        "steps": len(margins),
        "checks": [asdict(tally) for tally in report.tallies],
        "margins": [list(run) for run in report.margins],
        "seconds": round(report.seconds, 1),
    }
    finite: dict[str, Any] = _finite(result)
    return finite


def as_text(report: Report, subject: Subject, result: dict[str, Any]) -> str:
    """The report for people."""
    model = subject.model
    lines = [
        f"{model.name}, {result['dtype']}, {result['attention']} attention, {model.masks.method} masks",
        f"{result['device']}, {result['threads']} threads",
        "",
        f"{'check':14}{'cases':>8}{'differences':>13}{'by rounding':>13}  what",
    ]
    for tally in report.tallies:
        what, note = WHAT[tally.name], MEASURE.get(tally.name, "")
        if note:
            what += f": {note.format(worst=tally.worst, bound=tally.bound)}"
        if tally.blind:
            what += " (could not have seen a fault here: its control was not caught)"
        lines.append(f"{tally.name:14}{tally.cases:>8,}{tally.differences:>13}{tally.explained:>13}  {what}")
    lines += ["", _accepted(report.tallies)]
    lines.append(
        f"Rounding: a row's logits move by at most {report.rounding:.2g} between calls of different shapes."
    )
    if result["smallest_margin"] is not None:
        lines.append(
            f"Margin of the best token over the second, in {result['steps']:,} steps of plain decoding: "
            f"{result['smallest_margin']:.2g} at the smallest, within rounding in {result['close_steps']}."
        )
    splits = sorted(report.splits, key=lambda split: split.explained)
    if splits:
        lines.append(f"First split: {_split(splits[0], subject)}")
    lines += [f"DIFFERENCE in {t.name}: {t.first}" for t in report.tallies if t.first]
    if not report.complete:
        lines.append(
            f"The time budget ended some checks early ({report.seconds:.0f} s): --seconds gives more."
        )
    if not result["ok"]:
        verdict = "NOT lossless here: see the differences above."
    elif report.explained:
        verdict = (
            f"Lossless up to the rounding of {result['dtype']}: {report.explained} runs parted at near-ties."
        )
    else:
        verdict = "Lossless: no difference."
    return "\n".join([*lines, f"{verdict} {report.cases:,} cases in {report.seconds:.0f} s."])


def _accepted(tallies: Sequence[Tally]) -> str:
    counts: dict[int, int] = next(
        (t.figures.get("accepted", {}) for t in tallies if t.name == "forced drafts"), {}
    )
    listed = ", ".join(f"{accepted}: {n}" for accepted, n in counts.items())
    return f"Calls by forced drafts that were accepted: {listed or 'none'}."


def _split(split: Split, subject: Subject) -> str:
    def shown(token: int | None) -> str:
        if token is None:
            return "the end"
        return f"{token} {subject.model.decode([token])!r}" if subject.model.tokenizer else str(token)

    why = "explains it" if split.explained else "does NOT explain it"
    return (
        f"{split.run}, token {split.position}: {shown(split.ours)} where plain decoding writes "
        f"{shown(split.plain)}; their margin is {split.margin:.2g}, rounding ({split.rounding:.2g}) {why}."
    )


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(text: str) -> int:
    if not text.strip().isdecimal() or len(text) > 9 or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r:.40} is no whole number above 0")
    return int(text)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(_number(part) for part in text.split(","))
