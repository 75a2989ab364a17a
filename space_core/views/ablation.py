"""Result of the ablation to a table and pictures: python -m space_core.views.ablation FILE.json

Prints the table as Markdown; with --readme it goes between that file's two markers. --svg draws the
bars for a README, --html the same as a plotly figure to hover over. Every figure that is shown comes
from the file, "space-ablation/1" (`python -m finetune ablate`). No torch here, and plotly only for --html.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from space_core.errors import ResultError
from space_core.views.benchmarks import (
    WIDTH,
    Head,
    _count,
    _Fields,
    _json,
    _line,
    _rect,
    _section,
    _share,
    _short,
    _svg,
    _text,
    _ticks,
    _whisker,
    insert,
    read_head,
)
from space_core.views.inks import ACCENT, GRID

FORMAT = "space-ablation/1"
START, END = "<!-- ablation -->", "<!-- /ablation -->"


@dataclass(frozen=True, slots=True)
class Line:
    """A variant at its best rate; `lowest` and `highest` of its seeds' tokens per call."""

    name: str
    adds: str
    rate: float
    seeds: int
    tokens_per_call: float
    lowest: float
    highest: float
    straight: float | None
    looping: float
    as_base: float
    steps: int
    targets: int


@dataclass(frozen=True, slots=True)
class Result:
    """A file of "space-ablation/1". `seconds` are of each training."""

    head: Head
    recipe: str
    seconds: float
    k: int
    prompts: int
    new_tokens: int
    lines: tuple[Line, ...]
    diverged: tuple[str, ...]


def parse(name: str, data: Any) -> Result:
    """A result file's content.

    Raises:
        ResultError: naming the file and the first field that is wrong.
    """
    fields = _Fields(f"{name}.json", data)
    if fields.row.get("format") != FORMAT:
        raise ResultError(f'{name}.json is no result of the ablation: its format must be "{FORMAT}"')
    rows = fields.rows("variants")
    return Result(
        head=read_head(name, fields),
        recipe=fields.text("recipe"),
        seconds=fields.number("training_seconds"),
        k=fields.whole("k"),
        prompts=fields.whole("prompts"),
        new_tokens=fields.whole("max_new_tokens"),
        lines=tuple(_variant(row) for row in rows if row.row.get("tokens_per_call") is not None),
        diverged=tuple(row.text("variant") for row in rows if row.row.get("tokens_per_call") is None),
    )


def _variant(fields: _Fields) -> Line:
    key = "tokens_per_call_without_loops"
    return Line(
        name=fields.text("variant"),
        adds=fields.text("adds"),
        rate=fields.number("lr"),
        seeds=fields.whole("seeds"),
        tokens_per_call=fields.number("tokens_per_call"),
        lowest=fields.number("lowest"),
        highest=fields.number("highest"),
        straight=None if fields.row.get(key) is None else fields.number(key),
        looping=fields.number("loops"),
        as_base=fields.number("as_base"),
        steps=fields.whole("steps"),
        targets=fields.whole("mask_targets"),
    )


def markdown(result: Result) -> str:
    """The table, under what it was measured with."""
    names = ["variant", "what is added", "tokens per call (seeds’ range)", "without loops", "looping"]
    names += ["outputs that are the base’s", "steps", "mask targets", "learning rate"]
    rows = [
        [
            line.name,
            line.adds,
            f"{line.tokens_per_call:.2f} ({line.lowest:.2f}–{line.highest:.2f})",
            "–" if line.straight is None else f"{line.straight:.2f}",
            _share(line.looping),
            _share(line.as_base),
            f"{line.steps:,}",
            f"{line.targets:,}",
            f"{line.rate:g}",
        ]
        for line in result.lines
    ]
    counts = sorted({line.seeds for line in result.lines})
    seeds = "–".join(map(str, dict.fromkeys(counts[:1] + counts[-1:]))) or "no"
    seeds += " seed" if counts[-1:] == [1] else " seeds"
    what = (
        f"{result.seconds:g} seconds of training for each variant, {seeds}, recipe {result.recipe}, "
        f"full grid, k = {result.k}, {_count(result.prompts, 'prompt')}, {result.new_tokens} tokens"
    )
    if result.diverged:
        what += f"; at no rate without diverging: {', '.join(result.diverged)}"
    return _section(result.head, what, names, rows)


def svg(result: Result) -> str:
    """A bar for each variant: tokens per call, the range of its seeds as a whisker."""
    left, right, row = 176, WIDTH - 60, 24
    most = max([1.0, *(line.highest for line in result.lines)])
    ticks = _ticks(most)
    top = max(most, ticks[-1])

    def x(value: float) -> float:
        return left + (right - left) * value / top

    first, last = 44, 44 + row * len(result.lines)
    where = f"{result.head.model} on {result.head.device}"
    about = f"tokens per call after {result.seconds:g} s of training: {where}"
    marks = [_text(0, 16, _short(about), bold=True)]
    for tick in ticks:
        marks.append(_line(x(tick), first, x(tick), last, GRID))
        marks.append(_text(x(tick), last + 16, f"{tick:g}", anchor="middle", size=11))
    for number, line in enumerate(result.lines):
        middle = first + row * (number + 0.5)
        marks += [
            _text(left - 10, middle + 4, _short(line.name, 26), anchor="end"),
            _rect(left, middle - 7, x(line.tokens_per_call) - left, 14, ACCENT),
            *(_line(*ends, ACCENT, 2) for ends in _whisker(x(line.lowest), x(line.highest), middle)),
            _text(right + 14, middle + 4, f"{line.tokens_per_call:.2f}", bold=True),
        ]
    return _svg("Tokens per call of each variant after equal training time", last + 28, marks)


def main(arguments: Sequence[str] | None = None) -> int:
    """Show a result file; returns the exit code: 2 for bad input, with one line."""
    parser = argparse.ArgumentParser("python -m space_core.views.ablation", description=__doc__)
    parser.add_argument("file", type=Path, help="of `python -m finetune ablate`")
    parser.add_argument("--readme", type=Path, help=f"put the table between {START} and {END} there")
    parser.add_argument("--svg", type=Path, help="write the bars there")
    parser.add_argument("--html", type=Path, help="write the plotly figure there, a page of its own")
    options = parser.parse_args(arguments)
    try:
        result = parse(options.file.stem, _json(options.file))
        text, page = markdown(result), None
        if options.readme:
            page = insert(options.readme.read_text(encoding="utf-8"), text, START, END)
        if options.svg:
            options.svg.write_text(svg(result), encoding="utf-8")
        if options.html:
            from space_core.views.figures import ablation_figure

            options.html.write_text(ablation_figure(result).to_html(include_plotlyjs=True), encoding="utf-8")
        if page is None:
            print(text)
        else:
            options.readme.write_text(page, encoding="utf-8")
    except (ResultError, OSError, UnicodeError) as error:
        print(f"ablation: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
