"""A build's log and recipe: curves by plotly, and short series for the browser while it runs.

The log is JSON lines, as `finetune` writes it: {"stage", "step", "seconds", …} with a loss, a held-out
loss or tokens per call. Lines that are none of these are passed over: the last one may be half written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import plotly.graph_objects as go

from space_core.views.figures import base
from space_core.views.inks import ACCENT, INK

MAX_LINES: Final = 20_000
MAX_POINTS: Final = 400
"""Points of a curve that are drawn: more than a figure has pixels for are thinned out."""
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Curves:
    """(step, value) series of one build."""

    base_loss: tuple[Point, ...] = ()
    heldout_loss: tuple[Point, ...] = ()
    masks_loss: tuple[Point, ...] = ()
    tokens_per_call: tuple[Point, ...] = ()
    seconds: float = 0.0
    """Of all stages together."""
    stage: str = ""
    """Of the last line."""
    step: int = 0
    joints: tuple[float, ...] = ()
    """Steps of the masks' training at which another round of it began."""
    copied: tuple[Point, ...] = ()
    """Tokens per call with a table of copies: the last of `tokens_per_call`, where one was fitted."""


def read(*paths: Path) -> Curves:
    """The curves of one log, or of rounds that followed each other; empty where there are no files."""
    found = Curves()
    for path in paths:
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                found = _behind(found, curves(line for _, line in zip(range(MAX_LINES), file, strict=False)))
        except OSError:
            continue
    return found


def _behind(first: Curves, then: Curves) -> Curves:
    """Both, the steps of the second counted on from the first's."""
    base = max((step for step, _ in first.base_loss + first.heldout_loss), default=0.0)
    masks = max((step for step, _ in first.masks_loss + first.tokens_per_call), default=0.0)

    def moved(points: tuple[Point, ...], by: float) -> tuple[Point, ...]:
        return tuple((step + by, value) for step, value in points)

    return Curves(
        base_loss=first.base_loss + moved(then.base_loss, base),
        heldout_loss=first.heldout_loss + moved(then.heldout_loss, base),
        masks_loss=first.masks_loss + moved(then.masks_loss, masks),
        tokens_per_call=first.tokens_per_call + moved(then.tokens_per_call, masks),
        seconds=first.seconds + then.seconds,
        stage=then.stage,
        step=then.step,
        joints=first.joints + ((masks,) if first.masks_loss and then.masks_loss else ()),
        copied=first.copied + moved(then.copied, masks),
    )


def curves(lines: Iterable[str]) -> Curves:
    series: dict[str, list[Point]] = {"base": [], "heldout": [], "masks": [], "tokens": [], "copied": []}
    seconds: dict[str, float] = {}
    stage, step = "", 0
    for line in lines:
        row = _row(line)
        if row is None:
            continue
        # A table of copies is fitted on trained masks: what it brings stands behind their last step.
        behind = row["stage"] == "copies" and stage.startswith("masks")
        stage, step = row["stage"], row["step"] + (step if behind else 0)
        masks = stage.startswith("masks")
        for name, key in (
            ("masks" if masks else "base", "loss"),
            ("heldout", "heldout_loss"),
            ("tokens", "tokens_per_call"),
            ("copied", "tokens_per_call" if stage == "copies" else ""),
        ):
            value = _number(row.get(key))
            if value is not None:
                series[name].append((float(step), value))
        seconds[stage] = max(seconds.get(stage, 0.0), _number(row.get("seconds")) or 0.0)
    return Curves(
        base_loss=tuple(series["base"]),
        heldout_loss=tuple(series["heldout"]),
        masks_loss=tuple(series["masks"]),
        tokens_per_call=tuple(series["tokens"]),
        copied=tuple(series["copied"]),
        seconds=sum(seconds.values()),
        stage=stage,
        step=step,
    )


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    sound = isinstance(row, dict) and isinstance(row.get("stage"), str)
    if not sound or not isinstance(row.get("step"), int) or isinstance(row["step"], bool):
        return None
    return dict(row)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:
        return None
    return float(value)


def thinned(points: Sequence[Point], most: int = MAX_POINTS) -> list[Point]:
    """At most so many of the points, both ends among them."""
    if len(points) <= most:
        return list(points)
    last = len(points) - 1
    return [points[round(i * last / (most - 1))] for i in range(most)]


def base_figure(found: Curves, start: str = "") -> go.Figure:
    """The base's loss on its batches and on held-out text; `start` is what it went on from, if anything."""
    steps = f"step, on from {start}" if start else "step"
    figure = base("The base learns: loss by step", steps, None)
    _faint(figure, found.base_loss, "a batch’s loss")
    _line(figure, [found.heldout_loss], "held-out loss")
    figure.update_yaxes(rangemode="normal")
    return figure


def masks_figure(found: Curves) -> go.Figure:
    """The masks' loss on its batches, and its mean over the last of them."""
    figure = base("The masks learn: loss by step", "step", None)
    _faint(figure, found.masks_loss, "a batch’s loss")
    width = max(1, len(found.masks_loss) // 20)
    means = []
    for points in _rounds(found.masks_loss, found.joints):
        values = [value for _, value in points]
        windows = [values[max(0, i - width + 1) : i + 1] for i in range(len(values))]
        means.append([(at, sum(w) / len(w)) for (at, _), w in zip(points, windows, strict=True)])
    _line(figure, means, f"mean of {width} of them" if width > 1 else "the same", markers=False)
    _joints(figure, found)
    figure.update_yaxes(rangemode="normal")
    return figure


def tokens_figure(found: Curves) -> go.Figure:
    """Tokens per call on the prompts that the build watches, other ones in every round."""
    figure = base("Tokens per call: full grid, held-out prompts", "step of the masks’ training", None)
    trained = [point for point in found.tokens_per_call if point not in found.copied]
    _line(figure, _rounds(trained, found.joints), "tokens per call")
    _joints(figure, found)
    for at, value in found.copied:
        figure.add_scatter(
            x=[at],
            y=[value],
            name="with a table of copies",
            mode="markers",
            marker={"symbol": "diamond-open", "size": 11, "color": ACCENT, "line": {"width": 2}},
            hovertemplate="%{y:.3f} with a table of copies<extra></extra>",
        )
    figure.add_hline(
        y=1,
        line={"color": INK, "width": 1, "dash": "dash"},
        annotation={"text": "plain decoding", "font": {"size": 11}},
    )
    return figure


def _rounds(points: Sequence[Point], joints: Sequence[float]) -> list[list[Point]]:
    """The points of each round; of two at a joint the later one begins the next round."""
    rounds: list[list[Point]] = [[]]
    left = list(joints)
    for at, value in points:
        begun = bool(rounds[-1]) and bool(left)
        if begun and (at > left[0] or at == left[0] == rounds[-1][-1][0]):
            rounds.append([])
            left.pop(0)
        rounds[-1].append((at, value))
    return [each for each in rounds if each]


def _joints(figure: go.Figure, found: Curves) -> None:
    """Where another round began, whose texts are others: losses before and behind are not alike."""
    for step in found.joints:
        figure.add_vline(
            x=step,
            line={"color": INK, "width": 1, "dash": "dot"},
            annotation={"text": "next round, on other texts", "font": {"size": 11}, "y": 0.06},
        )


def _faint(figure: go.Figure, points: Sequence[Point], name: str) -> None:
    drawn = thinned(points)
    figure.add_scatter(
        x=[x for x, _ in drawn],
        y=[y for _, y in drawn],
        name=name,
        mode="lines",
        line={"color": "rgba(128, 136, 150, 0.6)", "width": 1},
        hovertemplate="step %{x}: %{y:.3f}<extra></extra>",
    )


def _line(figure: go.Figure, rounds: Sequence[Sequence[Point]], name: str, markers: bool = True) -> None:
    """A curve, broken between rounds: their texts are others."""
    drawn: list[tuple[float, float | None]] = []
    for points in rounds:
        gap = [(points[0][0], None)] if drawn else []
        drawn += [*gap, *thinned(points, MAX_POINTS // len(rounds))]
    figure.add_scatter(
        x=[x for x, _ in drawn],
        y=[y for _, y in drawn],
        name=name,
        mode="lines+markers" if markers else "lines",
        line={"color": ACCENT, "width": 2},
        hovertemplate=f"step %{{x}}: %{{y:.3f}} ({name})<extra></extra>",
    )


def base_start(manifest: Any) -> str:
    """The name of what the base that was taught here went on from; empty where from nothing."""
    _, start = _base_rounds(manifest)
    name = start.get("name")
    return " ".join(name.split())[:40] if isinstance(name, str) else ""


def _base_rounds(manifest: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The recipes since the one that taught the base, that first, and what it went on from.

    Where the base was left as it is, what made it is told by the round that this one goes on from.
    """
    rounds, start = [_table(manifest, "recipe")], _table(manifest, "start")
    while _table(rounds[0], "pretrain").get("steps") == 0 and _table(start, "recipe"):
        rounds, start = [_table(start, "recipe"), *rounds], _table(start, "start")
    return rounds, start


def facts(manifest: Any, found: Curves) -> list[tuple[str, str]]:
    """What is worth knowing of a checkpoint's making, from its space.json: names and values, as text."""
    told = manifest if isinstance(manifest, dict) else {}
    recipe, evaluation = _table(told, "recipe"), _table(told, "evaluation")
    shape, masks = _table(recipe, "base"), _table(recipe, "masks")
    rounds, start = _base_rounds(told)
    pretrain = _table(rounds[0], "pretrain")
    before = _grouped(_table(_table(start, "recipe"), "pretrain").get("steps"))
    taught = [one for one in rounds if _table(one, "masks").get("steps") != 0] or rounds
    distill = _table(taught[-1], "distill")
    steps = [_grouped(_table(one, "masks").get("steps")) for one in taught]
    pairs = [
        ("recipe", recipe.get("name")),
        ("parameters", _grouped(told.get("parameters"))),
        ("base", _join(("layers", shape.get("layers")), ("hidden", shape.get("hidden")))),
        ("base steps", _join(("", pretrain.get("steps")), ("windows each", pretrain.get("batch")))),
        ("base goes on from", _join(("", base_start(told) or None), ("steps", before))),
        ("own outputs", _grouped(_sum(distill.get("prompts"), distill.get("alone")))),
        (
            "masks",
            _join(
                ("guesses a group", masks.get("k")),
                ("", masks.get("method")),
                ("", _named("rank", masks.get("rank"))),
                ("", _named("sampler head of", masks.get("sampler"))),
                ("", "a table of copies" if masks.get("copy_batches") else None),
            ),
        ),
        ("masks’ steps", " + ".join(filter(None, steps))),
        ("logged time", f"{found.seconds / 60:.0f} minutes" if found.seconds else None),
        ("held-out loss", evaluation.get("heldout_loss")),
        ("bits per byte", evaluation.get("bits_per_byte")),
        ("tokens per call, held-out", _table(evaluation, "heldout_prompts").get("tokens_per_call")),
    ]
    return [(name, " ".join(str(value).split())[:80]) for name, value in pairs if value not in (None, "")]


def _table(row: Any, name: str) -> dict[str, Any]:
    value = row.get(name) if isinstance(row, dict) else None
    return value if isinstance(value, dict) else {}


def _grouped(value: Any) -> str | None:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else None


def _sum(*values: Any) -> Any:
    """Of those that are whole numbers; None without any."""
    whole = [value for value in values if isinstance(value, int) and not isinstance(value, bool)]
    return sum(whole) if whole else None


def _named(name: str, value: Any) -> str | None:
    return f"{name} {value}" if value else None


def _join(*pairs: tuple[str, Any]) -> str | None:
    words = [f"{value} {name}".strip() for name, value in pairs if value is not None]
    return ", ".join(words) or None
