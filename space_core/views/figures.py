"""Plotly figures of a finished race and of the ablation, and what all figures have in common (`base`).

Backgrounds are transparent, since the page is light or dark; a line's dash and the labels say
again what colour says.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import plotly.graph_objects as go

from space_core.trace import Origin, Trace
from space_core.views.ablation import Result
from space_core.views.inks import ACCENT, FONT, GRID, INK, LANES
from space_core.views.lanes import NAMES

COLORS = {
    Origin.ACCEPTED: "#009E73",
    Origin.CORRECTED: "#D55E00",
    Origin.BONUS: "#CC79A7",
    Origin.OWN: "#8b93a3",
}
WORDS = {
    Origin.ACCEPTED: "accepted drafts",
    Origin.CORRECTED: "corrected",
    Origin.BONUS: "bonus",
    Origin.OWN: "own",
}
COPIED = "copied drafts"
MARKERS = {
    WORDS[Origin.ACCEPTED]: {"color": COLORS[Origin.ACCEPTED], "line": {"width": 0}},
    COPIED: {"color": "rgba(0, 158, 115, 0.35)", "line": {"width": 1, "color": COLORS[Origin.ACCEPTED]}},
    **{
        WORDS[origin]: {"color": COLORS[origin], "line": {"width": 0}}
        for origin in (Origin.CORRECTED, Origin.BONUS, Origin.OWN)
    },
}
"""Of bars, from the bottom up; accepted drafts that were copied from the text are lighter, within a line."""
DASHES = {
    "space": "solid",
    "vanilla": "dot",
    "generate": "dashdot",
    "prompt-lookup": "dash",
    "assisted": "9px,2px",
}


def calls_figure(space: Trace) -> go.Figure:
    """Tokens of each SPACE call by origin, their running mean, and the ceiling k + 1."""
    figure = base("Tokens of each SPACE call", "call", space.k + 1.6)
    calls = list(range(1, space.calls + 1))
    names = [[_word(origin, step.copied) for origin in step.origins] for step in space.steps]
    for name, marker in MARKERS.items():
        counts = [each.count(name) for each in names]
        if any(counts):
            figure.add_bar(
                x=calls,
                y=counts,
                name=name,
                marker=marker,
                hovertemplate="call %{x}: %{y} " + name + "<extra></extra>",
            )
    figure.add_scatter(
        x=calls,
        y=running_mean([len(step.emitted) for step in space.steps]),
        name="mean so far",
        mode="lines",
        line={"color": ACCENT, "width": 2},
        hovertemplate="mean after call %{x}: %{y:.2f}<extra></extra>",
    )
    figure.add_hline(
        y=space.k + 1,
        line={"color": INK, "width": 1, "dash": "dash"},
        annotation={"text": f"ceiling k + 1 = {space.k + 1}", "font": {"size": 11}},
    )
    return figure


def _word(origin: Origin, copied: bool) -> str:
    return COPIED if copied and origin is Origin.ACCEPTED else WORDS[origin]


def clock_figure(space: Trace, vanilla: Trace, *others: Trace) -> go.Figure:
    """Tokens of every lane over the seconds of its own calls: the race as the clock saw it."""
    figure = base("Tokens over each lane's own seconds", "seconds", None)
    for trace in (vanilla, *others, space):
        name = NAMES[trace.method]
        figure.add_scatter(
            x=[0.0, *accumulate(step.seconds for step in trace.steps)],
            y=[0, *accumulate(len(step.emitted) for step in trace.steps)],
            name=name,
            mode="lines",
            line={
                "color": LANES[trace.method],
                "width": 2,
                "dash": DASHES[trace.method],
                "shape": "hv",
            },
            hovertemplate=name + ": %{y} tokens after %{x:.3f} s<extra></extra>",
        )
    return figure


def ablation_figure(result: Result) -> go.Figure:
    """Tokens per call of each variant, the range of its seeds as an error bar."""
    lines = result.lines
    figure = base(f"Tokens per call after {result.seconds:g} s of training", "", None)
    figure.add_bar(
        x=[line.name for line in lines],
        y=[line.tokens_per_call for line in lines],
        marker={"color": ACCENT, "line": {"width": 0}},
        error_y={
            "array": [line.highest - line.tokens_per_call for line in lines],
            "arrayminus": [line.tokens_per_call - line.lowest for line in lines],
            "color": INK,
        },
        customdata=[[line.adds, line.seeds, line.rate] for line in lines],
        hovertemplate="%{x}: %{y:.2f}<br>%{customdata[0]}<br>%{customdata[1]} seeds, rate %{customdata[2]}"
        "<extra></extra>",
    )
    return figure


def running_mean(values: Sequence[float]) -> list[float]:
    """The mean of the first 1, 2, 3 … values."""
    return [total / count for count, total in enumerate(accumulate(values), 1)]


def base(title: str, x_title: str, y_max: float | None, height: int = 320) -> go.Figure:
    """An empty figure in the page's looks; `y_max` None leaves the axis to its data."""
    axis = {"gridcolor": GRID, "zerolinecolor": GRID, "linecolor": GRID}
    return go.Figure(
        layout={
            "template": "none",
            "title": {"text": title, "font": {"size": 13}, "x": 0, "xref": "container", "pad": {"l": 14}},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"color": INK, "size": 12, "family": FONT},
            "barmode": "stack",
            "bargap": 0.15,
            "height": height,
            "margin": {"l": 44, "r": 16, "t": 44, "b": 84},
            "legend": {"orientation": "h", "y": -0.3, "x": 0},
            "xaxis": {"title": {"text": x_title, "standoff": 6}, "rangemode": "tozero", **axis},
            "yaxis": {"range": [0, y_max], "rangemode": "tozero", **axis},
            "hoverlabel": {"font": {"family": FONT}},
            "modebar": {"orientation": "v", "bgcolor": "rgba(0,0,0,0)", "color": GRID},
        }
    )
