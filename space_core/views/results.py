"""Plotly figures of benchmark results, bundled or measured just now, and of the paper's own figures.

Result files are read by `benchmarks`, which draws the README's pictures of the same numbers.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import NamedTuple

import plotly.graph_objects as go

from space_core.views import paper
from space_core.views.benchmarks import Bench, Calls, Score
from space_core.views.figures import base
from space_core.views.inks import ACCENT, GRID, INK, LANES

SHADES = ("#6366f1", "#0d9488", "#b7791f", "#c2574f", "#3b8fc4", "#a855f7", "#8b93a3")
DASHES = ("solid", "dash", "dot", "dashdot", "9px,2px")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star")


def label(bench: Bench) -> str:
    """A result in one line, to choose it by."""
    dtypes = ", ".join(dict.fromkeys(score.dtype for score in bench.scores))
    return (
        f"{bench.head.model} on {bench.head.device}, {_count(bench.head.threads, 'thread')}, {dtypes}, "
        f"{'greedy' if bench.greedy else 'sampled'}, {_count(bench.prompts, 'prompt')}, {bench.head.date}"
    )


def speedup_figure(bench: Bench, title: str = "Speed-up (bars) and tokens per call (◇)") -> go.Figure:
    """A bar for each method and k: its speed-up with quartiles over prompts; diamonds are tokens per call."""
    names = _names(bench.scores)
    scores = bench.scores[::-1]
    most = max([1.0, *(max(s.speedup, s.quartiles[1], s.tokens_per_call) for s in scores)])
    figure = base(title, "× plain, tokens (◇)", None, height=96 + 34 * max(5, len(scores)))
    figure.add_bar(
        orientation="h",
        y=names[::-1],
        x=[score.speedup for score in scores],
        name="speed-up",
        marker={"color": [_color(score) for score in scores], "line": {"width": 0}},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [max(0.0, score.quartiles[1] - score.speedup) for score in scores],
            "arrayminus": [max(0.0, score.speedup - score.quartiles[0]) for score in scores],
            "color": INK,
            "thickness": 1.4,
            "width": 4,
        },
        text=[f"{score.speedup:.2f}×" for score in scores],
        textposition="inside",
        insidetextanchor="start",
        textangle=0,
        constraintext="none",
        textfont={"color": "#ffffff"},
        hovertemplate="%{y}: %{x:.2f} times plain decoding<extra></extra>",
        showlegend=False,
    )
    figure.add_scatter(
        y=names[::-1],
        x=[score.tokens_per_call for score in scores],
        name="tokens per call",
        mode="markers",
        marker={"symbol": "diamond-open", "size": 11, "color": INK, "line": {"width": 2}},
        hovertemplate="%{y}: %{x:.2f} tokens per call<extra></extra>",
        showlegend=False,
    )
    figure.add_vline(x=1, line={"color": INK, "width": 1, "dash": "dash"})
    figure.update_xaxes(range=[0, 1.06 * most])
    figure.update_yaxes(automargin=True, range=[-0.6, len(scores) - 0.4])
    figure.update_layout(margin={"b": 44, "r": 16}, bargap=0.3)
    return figure


def calls_figure(calls: Sequence[Calls]) -> go.Figure:
    """What a call of so many rows costs in plain calls, by device, dtype and context."""
    figure = base("Time of a call by its rows, in plain calls", "rows of the call", None)
    counts: set[int] = set()
    lines = [(found.head, *line) for found in calls for line in found.lines()]
    for number, (head, dtype, context, times) in enumerate(lines):
        counts |= {time.rows for time in times}
        figure.add_scatter(
            x=[time.rows for time in times],
            y=[time.ratio for time in times],
            customdata=[time.milliseconds for time in times],
            name=f"{context} tokens before, {dtype}, {head.device}",
            mode="lines+markers",
            line={
                "color": SHADES[number % len(SHADES)],
                "width": 2,
                "dash": DASHES[number % len(DASHES)],
            },
            marker={"symbol": SYMBOLS[number % len(SYMBOLS)], "size": 7},
            hovertemplate="%{x} rows: %{y:.2f} plain calls, %{customdata:.2f} ms<extra></extra>",
        )
    ticks = _spaced(sorted(counts))
    figure.add_hline(y=1, line={"color": INK, "width": 1, "dash": "dash"})
    figure.update_xaxes(
        type="log", rangemode="normal", tickvals=ticks, ticktext=[str(tick) for tick in ticks]
    )
    return figure


def histogram_figure(bench: Bench) -> go.Figure:
    """How many tokens calls gave, as shares of a method's calls; plain methods left out."""
    lines = []
    for name, score in _drafting(bench):
        total = sum(count for _, count in score.histogram)
        shares = [(tokens, count / total) for tokens, count in score.histogram]
        mean = f"mean {score.tokens_per_call:.2f}"
        lines.append(_Line(name, _color(score), mean, shares, ": %{y:.1%} of calls gave %{x}"))
    return _multiples("Tokens of a call: shares of a method’s calls", "tokens of a call", lines)


def acceptance_figure(bench: Bench) -> go.Figure:
    """How often the draft at each place of a call stood, of the calls that had one there."""
    lines = [
        _Line(
            name,
            _color(score),
            f"first draft {score.acceptance[0]:.0%}",
            list(enumerate(score.acceptance, 1)),
            ": draft %{x} stood in %{y:.1%} of the calls that had one",
        )
        for name, score in _drafting(bench)
    ]
    return _multiples("Drafts that stood, of those at each place", "place of the draft", lines)


class _Line(NamedTuple):
    """One method of small multiples: bars from 0 on, and a word at their right."""

    name: str
    color: str
    word: str
    points: list[tuple[int, float]]
    hover: str


def _multiples(title: str, x_title: str, lines: Sequence[_Line]) -> go.Figure:
    """A low chart for each method, one below the other on the same axes.

    Nine methods in one chart need nine colours that nobody tells apart; here each has its name.
    """
    head, bars, top, bottom = 18, 30, 44, 48
    inner = max(1, len(lines)) * (head + bars)
    figure = base(title, "", None, height=max(320, top + inner + bottom))
    figure.update_layout(margin={"t": top, "b": bottom, "l": 44}, showlegend=False, bargap=0.25)
    most = max((share for line in lines for _, share in line.points), default=1.0)
    last = max((place for line in lines for place, _ in line.points), default=1)
    for number, line in enumerate(lines):
        axis = "y" if number == 0 else f"y{number + 1}"
        ceiling = 1 - number / len(lines)
        drop = head / (head + bars) / len(lines)
        floor = 1 - (number + 1) / len(lines)
        figure.add_bar(
            x=[place for place, _ in line.points],
            y=[share for _, share in line.points],
            name=line.name,
            yaxis=axis,
            marker={"color": line.color, "line": {"width": 0}},
            hovertemplate=line.name + line.hover + "<extra></extra>",
        )
        figure.layout[f"yaxis{axis[1:]}"] = {
            "domain": [max(0.0, floor), ceiling - drop],
            "range": [0, 1.04 * most],
            "tickvals": [0, most],
            "ticktext": ["", f"{most:.0%}"],
            "tickfont": {"size": 10},
            "gridcolor": GRID,
            "zerolinecolor": GRID,
        }
        for x, anchor, words in ((0, "left", f"<b>{line.name}</b>"), (1, "right", line.word)):
            figure.add_annotation(
                text=words,
                x=x,
                y=ceiling - drop,
                xref="paper",
                yref="paper",
                xanchor=anchor,
                yanchor="bottom",
                showarrow=False,
                font={"size": 11},
            )
    figure.update_xaxes(
        title={"text": x_title, "standoff": 6},
        range=[0.4, last + 0.6],
        dtick=1 if last <= 12 else 2,
        tick0=1,
        anchor="y" if len(lines) < 2 else f"y{len(lines)}",
    )
    return figure


def paper_figure() -> go.Figure:
    """The paper's own speed-ups and tokens per call; none of them measured here."""
    models = list(paper.REPORTED)
    figure = base(f"The paper’s own figures ({paper.SOURCE})", "", None)
    for number, dataset in enumerate(paper.DATASETS):
        pairs = [paper.REPORTED[model][number] for model in models]
        color = SHADES[number]
        figure.add_bar(
            x=models,
            y=[speedup for _, speedup in pairs],
            customdata=[tokens for tokens, _ in pairs],
            name=dataset,
            marker={"color": color, "line": {"width": 0}},
            hovertemplate="%{x}, "
            + dataset
            + ": %{y:.2f} times plain decoding, %{customdata:.2f} tokens per call<extra></extra>",
            offsetgroup=dataset,
        )
        figure.add_scatter(
            x=models,
            y=[tokens for tokens, _ in pairs],
            name=f"{dataset}, tokens per call",
            mode="markers",
            marker={"symbol": SYMBOLS[number] + "-open", "size": 9, "color": INK, "line": {"width": 2}},
            hovertemplate="%{x}, " + dataset + ": %{y:.2f} tokens per call<extra></extra>",
            offsetgroup=dataset,
            showlegend=False,
        )
    figure.add_hline(y=1, line={"color": INK, "width": 1, "dash": "dash"})
    figure.update_layout(barmode="group", scattermode="group", bargap=0.25, legend={"y": -0.34})
    figure.update_xaxes(tickangle=-20, automargin=True)
    figure.update_yaxes(title={"text": "times plain decoding"})
    return figure


def table(bench: Bench) -> list[list[str]]:
    """Head and lines, as text."""
    head = ["method", "k", "tokens per call", "tokens/s", "speed-up", "quartiles", "identical", "looping"]
    lines = [
        [
            score.method,
            str(score.k or "–"),
            f"{score.tokens_per_call:.2f}",
            f"{score.tokens_per_second:.0f}",
            f"{score.speedup:.2f}×",
            f"{score.quartiles[0]:.2f}–{score.quartiles[1]:.2f}",
            f"{score.identical:.0%}" if bench.greedy else "sampled",
            f"{score.looping:.0%}",
        ]
        for score in bench.scores
    ]
    return [head, *lines]


def as_csv(bench: Bench) -> str:
    """The same lines with all digits, for a spreadsheet."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            *("model", "device", "method", "k", "dtype", "tokens_per_call", "rows_per_call"),
            *("tokens_per_second", "speedup", "speedup_q1", "speedup_q3", "identical", "looping"),
        ]
    )
    for score in bench.scores:
        writer.writerow(
            [
                *(_cell(bench.head.model), _cell(bench.head.device), score.method, score.k, score.dtype),
                *(score.tokens_per_call, score.rows_per_call, score.tokens_per_second, score.speedup),
                *(*score.quartiles, score.identical, score.looping),
            ]
        )
    return out.getvalue()


def _cell(words: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    return f"'{words}" if words[:1] in "=+-@\t\r" else words


def _names(scores: Sequence[Score]) -> list[str]:
    several = len({score.dtype for score in scores}) > 1
    return [f"{score.name}, {score.dtype}" if several else score.name for score in scores]


def _drafting(bench: Bench) -> list[tuple[str, Score]]:
    """The methods that give more than one token a call, by name."""
    pairs = zip(_names(bench.scores), bench.scores, strict=True)
    return [(name, score) for name, score in pairs if score.acceptance and score.histogram]


def _color(score: Score) -> str:
    return ACCENT if score.method.startswith("space") else LANES.get(score.method, INK)


def _spaced(counts: Sequence[int]) -> list[int]:
    """Those whose labels do not touch on a logarithmic axis, the last one among them."""
    kept: list[int] = []
    for count in reversed(counts):
        if not kept or math.log(kept[-1] / count) > 0.4:
            kept.append(count)
    return kept[::-1]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
