"""Result files of the benchmark to pictures and tables: python -m space_core.views.benchmarks FOLDER

Writes FOLDER/speedup.svg and FOLDER/calls.svg from every result file in the folder and prints their
tables as Markdown; with --readme they go between that file's two markers. Every figure that is
shown comes from the files: "space-bench/1" (`space_core.bench`) and "space-bench-calls/1"
(`space_core.calls`). No plotly here, and no torch.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from space_core.errors import ResultError
from space_core.views.inks import ACCENT, FONT, GRID, INK, LANES

BENCH = "space-bench/1"
CALLS = "space-bench-calls/1"
MAKES = {
    BENCH: "python -m space_core bench --prompts F.jsonl",
    CALLS: "python -m space_core bench calls",
}
"""The command that makes a file of each format."""
START, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"
WIDTH = 760


# ---------------------------------------------------------------- result files


@dataclass(frozen=True, slots=True)
class Head:
    """Where the numbers of a file come from. `name` is the file's, without its suffix."""

    name: str
    model: str
    device: str
    threads: int
    date: str
    versions: tuple[tuple[str, str], ...]
    command: str


@dataclass(frozen=True, slots=True)
class Score:
    """One method's line; `quartiles` are the first and the third of its speed-up, run by run.

    `acceptance`: share of calls whose draft i stood, of those that verified a draft i. `histogram`: calls
    by their tokens. Both may be empty.
    """

    method: str
    k: int
    dtype: str
    tokens_per_call: float
    rows_per_call: float
    speedup: float
    quartiles: tuple[float, float]
    identical: float
    looping: float
    tokens_per_second: float = 0.0
    acceptance: tuple[float, ...] = ()
    histogram: tuple[tuple[int, int], ...] = ()

    @property
    def name(self) -> str:
        return f"{self.method}, k = {self.k}" if self.k else self.method


@dataclass(frozen=True, slots=True)
class Bench:
    """A file of "space-bench/1"."""

    head: Head
    prompts: int
    repetitions: int
    skipped: int
    greedy: bool
    scores: tuple[Score, ...]


@dataclass(frozen=True, slots=True)
class Time:
    """A kind of call: its median milliseconds, and as a multiple of a plain call's."""

    dtype: str
    context: int
    rows: int
    milliseconds: float
    ratio: float


@dataclass(frozen=True, slots=True)
class Calls:
    """A file of "space-bench-calls/1"."""

    head: Head
    times: tuple[Time, ...]

    def lines(self) -> Iterator[tuple[str, int, tuple[Time, ...]]]:
        """(dtype, context, times by rows), in the file's order."""
        for dtype, context in dict.fromkeys((time.dtype, time.context) for time in self.times):
            chosen = (time for time in self.times if (time.dtype, time.context) == (dtype, context))
            yield dtype, context, tuple(sorted(chosen, key=lambda time: time.rows))


def read(folder: Path) -> tuple[list[Bench], list[Calls]]:
    """All result files of a folder, by name.

    Raises:
        ResultError: where either format has no file, or a JSON file is of neither.
    """
    if not folder.is_dir():
        raise ResultError(f"{folder} is no folder: name the one that holds the result files")
    results = [parse(path.stem, _json(path)) for path in sorted(folder.glob("*.json"))]
    benches = [result for result in results if isinstance(result, Bench)]
    calls = [result for result in results if isinstance(result, Calls)]
    for name, found in ((BENCH, benches), (CALLS, calls)):
        if not found:
            raise ResultError(
                f'{folder} has no result file "{name}": {MAKES[name]} --json {folder}/NAME.json makes one'
            )
    return benches, calls


def read_head(name: str, fields: _Fields) -> Head:
    """What every result says of its model and its machine.

    Raises:
        ResultError: for what is missing or of another kind.
    """
    versions = fields.row.get("versions")
    if not isinstance(versions, dict) or not versions:
        raise fields.wrong("versions")
    return Head(
        name=name,
        model=fields.text("model"),
        device=fields.text("device"),
        threads=fields.whole("threads"),
        date=fields.text("date")[:10],
        versions=tuple((key, _Fields(fields.file, versions).text(key)) for key in versions),
        command=fields.text("command"),
    )


def parse(name: str, data: Any) -> Bench | Calls:
    """A result file's content.

    Raises:
        ResultError: naming the file and the first field that is wrong.
    """
    fields = _Fields(f"{name}.json", data)
    kind = fields.row.get("format")
    if kind not in (BENCH, CALLS):
        raise ResultError(f'{name}.json is no result file: its format must be "{BENCH}" or "{CALLS}"')
    head = read_head(name, fields)
    if kind == CALLS:
        return Calls(head, tuple(map(_time, fields.rows("calls"))))
    skipped = fields.row.get("skipped", [])
    if not isinstance(skipped, list):
        raise fields.wrong("skipped")
    return Bench(
        head=head,
        prompts=fields.whole("prompts"),
        repetitions=fields.whole("repetitions"),
        skipped=len(skipped),
        greedy=fields.inside("settings").number("temperature") == 0,
        scores=tuple(map(_score, fields.rows("methods"))),
    )


def _score(fields: _Fields) -> Score:
    low, _, high = fields.spread("speedup_spread")
    return Score(
        method=fields.text("method"),
        k=fields.whole("k"),
        dtype=fields.text("dtype"),
        tokens_per_call=fields.number("tokens_per_call"),
        rows_per_call=fields.number("rows_per_call"),
        speedup=fields.number("speedup"),
        quartiles=(low, high),
        identical=fields.number("identical_to_vanilla"),
        looping=fields.inside("loops").number("share"),
        tokens_per_second=fields.number("tokens_per_second") if "tokens_per_second" in fields.row else 0.0,
        acceptance=fields.shares("acceptance_by_position"),
        histogram=fields.counts("tokens_per_call_histogram"),
    )


def _time(fields: _Fields) -> Time:
    if not (rows := fields.whole("rows")):
        raise fields.wrong("rows")
    return Time(
        dtype=fields.text("dtype"),
        context=fields.whole("context"),
        rows=rows,
        milliseconds=1000 * fields.spread("seconds")[1],
        ratio=fields.number("ratio"),
    )


class _Fields:
    """Reads one JSON object, field by field, and says what is wrong with it."""

    def __init__(self, file: str, row: Any) -> None:
        self.file = file
        if not isinstance(row, dict):
            raise ResultError(f"{file} is no result file: it must hold JSON objects")
        self.row: dict[str, Any] = row

    def wrong(self, name: str) -> ResultError:
        return ResultError(
            f"{self.file} is no result file as it stands: its {name!r:.40} is missing or wrong"
        )

    def text(self, name: str) -> str:
        """One line, and none that could be taken for a marker."""
        value = self.row.get(name)
        if not isinstance(value, str) or not value.strip() or "<!--" in value:
            raise self.wrong(name)
        return " ".join(value.split())

    def whole(self, name: str) -> int:
        value = self.row.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self.wrong(name)
        return value

    def number(self, name: str) -> float:
        return self._number(name, self.row.get(name))

    def spread(self, name: str) -> tuple[float, float, float]:
        """Quartiles."""
        values = self.row.get(name)
        if not isinstance(values, list) or len(values) != 3:
            raise self.wrong(name)
        low, middle, high = (self._number(name, value) for value in values)
        return low, middle, high

    def shares(self, name: str) -> tuple[float, ...]:
        """A list of numbers, empty where there is none."""
        values = self.row.get(name, [])
        if not isinstance(values, list):
            raise self.wrong(name)
        return tuple(self._number(name, value) for value in values)

    def counts(self, name: str) -> tuple[tuple[int, int], ...]:
        """Numbers by a whole number, which JSON writes as text; empty where there are none."""
        values = self.row.get(name, {})
        if not isinstance(values, dict) or not all(
            key.isascii() and key.isdecimal() and len(key) < 7 for key in values
        ):
            raise self.wrong(name)
        counts = _Fields(self.file, values)
        return tuple(sorted((int(key), counts.whole(key)) for key in values))

    def inside(self, name: str) -> _Fields:
        return _Fields(self.file, self.row.get(name))

    def rows(self, name: str) -> list[_Fields]:
        values = self.row.get(name)
        if not isinstance(values, list) or not values:
            raise self.wrong(name)
        return [_Fields(self.file, value) for value in values]

    def _number(self, name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name)
        if not 0 <= value < 1e9:
            raise self.wrong(name)
        return float(value)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise ResultError(f"{path.name} is no result file: it is no JSON") from None


# ---------------------------------------------------------------- tables


def markdown(benches: Sequence[Bench], calls: Sequence[Calls]) -> str:
    """A table for each file, under what it was measured with."""
    return "\n\n".join([*map(_bench_table, benches), *map(_calls_table, calls)])


def _bench_table(bench: Bench) -> str:
    several = len({score.dtype for score in bench.scores}) > 1
    head = ["method", "k", "tokens per call", "rows per call", "speed-up (quartiles)", "identical", "looping"]
    rows = []
    for score in bench.scores:
        low, high = score.quartiles
        rows.append(
            [
                f"{score.method}, {score.dtype}" if several else score.method,
                str(score.k or "–"),
                f"{score.tokens_per_call:.2f}",
                f"{score.rows_per_call:.1f}",
                f"{score.speedup:.2f} ({low:.2f}–{high:.2f})",
                _share(score.identical) if bench.greedy else "sampled",
                _share(score.looping),
            ]
        )
    asked = f"{_count(bench.prompts, 'prompt')}, {_count(bench.repetitions, 'repetition')}"
    if bench.skipped:
        asked += f", {_count(bench.skipped, 'turn')} skipped"
    dtype = "" if several else f", {bench.scores[0].dtype}"
    return _section(bench.head, f"{asked}{dtype}", head, rows)


def _calls_table(calls: Calls) -> str:
    lines = list(calls.lines())
    several = len({dtype for dtype, _, _ in lines}) > 1
    head = ["rows of a call"]
    head += [f"{context} tokens before{f', {dtype}' if several else ''}" for dtype, context, _ in lines]
    cells = [
        {time.rows: f"{time.ratio:.2f}× ({time.milliseconds:.2f} ms)" for time in t} for _, _, t in lines
    ]
    counts = sorted({time.rows for time in calls.times})
    rows = [[str(count), *(column.get(count, "–") for column in cells)] for count in counts]
    dtype = "" if several else f", {lines[0][0]}"
    return _section(calls.head, f"time of a call over a plain one’s{dtype}", head, rows)


def _section(head: Head, what: str, names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in head.versions)
    lines = [
        f"**{_cell(head.name)}**: {_cell(what)}. {_cell(head.model)} on {_cell(head.device)}, "
        f"{_count(head.threads, 'thread')}, {_cell(head.date)}; {_cell(versions)}.",
        "",
        f"    {head.command}",
        "",
        f"| {' | '.join(map(_cell, names))} |",
        f"|---|{'---:|' * (len(names) - 1)}",
        *(f"| {' | '.join(map(_cell, row))} |" for row in rows),
    ]
    return "\n".join(lines)


def _cell(words: str) -> str:
    """Text that Markdown takes for nothing else."""
    for sign in "\\`*_[]<|":
        words = words.replace(sign, "&lt;" if sign == "<" else f"\\{sign}")
    return words


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _share(value: float) -> str:
    """Per cent; what is not all is never rounded to all, nor what is something to nothing."""
    if 0.9995 <= value < 1:
        return "> 99.9%"
    if 0 < value < 0.0005:
        return "< 0.1%"
    return f"{value:.1%}".replace(".0%", "%")


def insert(readme: str, text: str, first: str = START, last: str = END) -> str:
    """The README with the text between two markers.

    Raises:
        ResultError: where it has not one of each, in this order.
    """
    start, end = readme.find(first), readme.find(last)
    if not 0 <= start < end or readme.count(first) != 1 or readme.count(last) != 1:
        raise ResultError(f"the README needs the markers {first} and {last}, once each and in this order")
    return f"{readme[: start + len(first)]}\n{text}\n{readme[end:]}"


# ---------------------------------------------------------------- pictures


def speedup_svg(benches: Sequence[Bench]) -> str:
    """A bar for each method: its speed-up, quartiles as whiskers, tokens per call as a diamond.

    The diamond is on the bar's scale: where a call of many rows costs no more than a plain one, the
    bar reaches it.
    """
    shown = [(bench, [score for score in bench.scores if score.method != "vanilla"]) for bench in benches]
    scores = [score for _, some in shown for score in some]
    left, right, row = 176, WIDTH - 150, 24
    most = max([1.0, *(max(s.speedup, s.quartiles[1], s.tokens_per_call) for s in scores)])
    ticks = _ticks(most)
    top = max(most, ticks[-1])

    def x(value: float) -> float:
        return left + (right - left) * value / top

    marks: list[str] = [
        _rect(left, 9, 16, 10, ACCENT),
        *(_line(*ends, ACCENT, 2) for ends in _whisker(left + 8, left + 24, 14)),
        _text(left + 30, 18, "speed-up, quartiles over runs"),
        _diamond(left + 238, 14),
        _text(left + 250, 18, "tokens per call"),
    ]
    y = 44
    for bench, some in shown:
        several = len({score.dtype for score in bench.scores}) > 1
        about = f"{bench.head.model} on {bench.head.device}" + (
            "" if several else f", {bench.scores[0].dtype}"
        )
        marks.append(_text(0, y, _short(about), bold=True))
        first, last = y + 28, y + 28 + row * len(some)
        for tick in ticks:
            marks.append(_line(x(tick), first, x(tick), last, GRID))
            marks.append(_text(x(tick), last + 16, f"{tick:g}×", anchor="middle", size=11))
        for number, score in enumerate(some):
            middle = first + row * (number + 0.5)
            color = ACCENT if score.method.startswith("space") else LANES.get(score.method, INK)
            low, high = (x(value) for value in score.quartiles)
            name = (
                score.method
                + (f", k = {score.k}" if score.k else "")
                + (f", {score.dtype}" if several else "")
            )
            marks += [
                _text(left - 10, middle + 4, _short(name, 26), anchor="end"),
                _rect(left, middle - 7, x(score.speedup) - left, 14, color),
                *(_line(*ends, color, 2) for ends in _whisker(low, high, middle)),
                _diamond(x(score.tokens_per_call), middle),
                _text(right + 14, middle + 4, f"{score.speedup:.2f}×", bold=True),
                _text(right + 62, middle + 4, f"{score.tokens_per_call:.2f} tok/call", size=11),
            ]
        marks.append(_line(x(1), first - 4, x(1), last + 4, INK, dash="4 3"))
        marks.append(_text(x(1), first - 7, "vanilla", anchor="middle", size=11))
        y = last + 48
    return _svg("Speed-up against vanilla and tokens per call, by method", y - 24, marks)


def calls_svg(calls: Sequence[Calls]) -> str:
    """What a call of so many rows costs in plain calls: a line for each file, dtype and context."""
    lines = [(found.head, *line) for found in calls for line in found.lines()]
    left, right, top, bottom = 40, WIDTH - 12, 34, 314
    ticks = _ticks(max([1.0, *(time.ratio for *_, times in lines for time in times)]))
    highest = max([ticks[-1], *(time.ratio for *_, times in lines for time in times)])
    counts = sorted({time.rows for *_, times in lines for time in times})

    def x(rows: int) -> float:
        return left + (right - left - 12) * math.log(rows) / max(math.log(counts[-1]), 1e-9)

    def y(ratio: float) -> float:
        return bottom - (bottom - top) * ratio / highest

    marks = [_text(0, 16, "time of a call, in plain calls of one row", bold=True)]
    for tick in ticks:
        marks.append(_line(left, y(tick), right, y(tick), GRID))
        marks.append(_text(left - 8, y(tick) + 4, f"{tick:g}", anchor="end", size=11))
    marks.append(_line(left, y(1), right, y(1), INK, dash="4 3"))
    marks.append(_text(right, y(1) + 14, "a plain call", anchor="end", size=11))
    for count in _apart(counts, x, 22):
        marks.append(_text(x(count), bottom + 17, str(count), anchor="middle", size=11))
    marks.append(_text(right, bottom + 36, "rows of the call", anchor="end"))
    colors = [LANES[name] for name in ("space", "prompt-lookup", "generate", "assisted")]
    seen: dict[str, int] = {}
    for number, (head, dtype, context, times) in enumerate(lines):
        color = colors[seen.setdefault(head.name, len(seen)) % len(colors)]
        dash = ("", "6 3", "2 3", "9 3 2 3")[sum(line[0] == head for line in lines[:number]) % 4]
        points = " ".join(f"{x(time.rows):.1f},{y(time.ratio):.1f}" for time in times)
        marks.append(f'<polyline points="{points}" fill="none" stroke="{color}" {_pen(2, dash)}/>')
        for time in times:
            marks.append(f'<circle cx="{x(time.rows):.1f}" cy="{y(time.ratio):.1f}" r="3" fill="{color}"/>')
        below = bottom + 60 + 19 * number
        about = f"{head.device}, {dtype}, {context} tokens before: {head.model}"
        marks.append(_line(0, below - 4, 28, below - 4, color, width=2, dash=dash))
        marks.append(_text(left, below, _short(about)))
    return _svg("Time of a call by its rows, in plain calls", bottom + 56 + 19 * len(lines), marks)


def _ticks(most: float) -> list[float]:
    """Round values from 0 to about `most`, eight at most."""
    rough = most / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    return [round(step * number, 9) for number in range(math.ceil(most / step - 1e-9) + 1)]


def _apart(counts: Sequence[int], x: Callable[[int], float], pixels: float) -> list[int]:
    """Those whose labels do not touch, the last one among them."""
    kept: list[int] = []
    for count in reversed(counts):
        if not kept or x(kept[-1]) - x(count) >= pixels:
            kept.append(count)
    return kept


def _short(words: str, most: int = 104) -> str:
    return words if len(words) <= most else words[: most - 1] + "…"


def _svg(title: str, height: float, marks: Iterable[str]) -> str:
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
        f'height="{height:.0f}" role="img" font-family="{FONT}">',
        f"<title>{escape(title)}</title>",
        *marks,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _text(x: float, y: float, words: str, anchor: str = "start", size: int = 12, bold: bool = False) -> str:
    weight = ' font-weight="700"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{INK}"{weight}>'
        f"{escape(words)}</text>"
    )


def _rect(x: float, y: float, width: float, height: float, color: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect {place} fill="{color}" fill-opacity="0.5"/>'


def _line(x1: float, y1: float, x2: float, y2: float, color: str, width: float = 1, dash: str = "") -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{color}" {_pen(width, dash)}/>'


def _whisker(low: float, high: float, y: float) -> list[tuple[float, float, float, float]]:
    return [(low, y, high, y), (low, y - 4, low, y + 4), (high, y - 4, high, y + 4)]


def _pen(width: float, dash: str) -> str:
    return f'stroke-width="{width:g}"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _diamond(x: float, y: float) -> str:
    points = f"M{x - 5:.1f} {y:.1f}l5 -5 5 5 -5 5z"
    return f'<path d="{points}" fill="none" stroke="{INK}" stroke-width="1.5"/>'


# ---------------------------------------------------------------- the command


def main(arguments: list[str] | None = None) -> int:
    """Draw a folder's result files; returns the exit code: 2 for bad input, with one line."""
    parser = argparse.ArgumentParser("python -m space_core.views.benchmarks", description=__doc__)
    parser.add_argument("folder", type=Path, help="holds the result files, and takes the pictures")
    parser.add_argument("--readme", type=Path, help=f"put the tables between {START} and {END} there")
    options = parser.parse_args(arguments)
    try:
        benches, calls = read(options.folder)
        text = markdown(benches, calls)
        page = insert(options.readme.read_text(encoding="utf-8"), text) if options.readme else None
        for name, picture in (("speedup", speedup_svg(benches)), ("calls", calls_svg(calls))):
            (options.folder / f"{name}.svg").write_text(picture, encoding="utf-8")
        if page is None:
            print(text)
        else:
            options.readme.write_text(page, encoding="utf-8")
    except ResultError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    except (OSError, UnicodeError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
