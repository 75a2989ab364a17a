"""Result files to pictures and tables: every figure is the file's, and what is no file is said so."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from space_core.errors import ResultError
from space_core.views import benchmarks

HEAD = {
    "command": "python -m space_core bench --prompts F.jsonl --k 2,5",
    "date": "2026-11-24T06:00:00+00:00",
    "device": "A | B <GPU>",
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "threads": 1,
}


def method(name: str, k: int, speedup: float, per_call: float, **other: Any) -> dict[str, Any]:
    row = {
        "method": name,
        "k": k,
        "plan": None,
        "dtype": "float32",
        "tokens_per_call": per_call,
        "rows_per_call": 3.25,
        "speedup": speedup,
        "speedup_spread": [speedup - 0.25, speedup, speedup + 0.5],
        "identical_to_vanilla": 1.0,
        "loops": {"share": 0.125, "tokens_per_call": None, "speedup": None},
    }
    return {**row, **other}


BENCH = {
    "format": "space-bench/1",
    **HEAD,
    "model": "tiny",
    "settings": {"temperature": 0.0},
    "repetitions": 3,
    "prompts": 40,
    "skipped": [{"prompt": "a", "turn": 1, "reason": "long"}],
    "methods": [
        method("vanilla", 0, 1.0, 1.0),
        method("space-auto", 2, 1.5, 2.125),
        method("space-auto", 5, 1.75, 2.5, identical_to_vanilla=0.99999),
        method("prompt-lookup", 10, 0.75, 1.25),
    ],
}
CALLS = {
    "format": "space-bench-calls/1",
    **HEAD,
    "model": "tiny: 1.0 M parameters",
    "calls": [
        {
            "dtype": "float32",
            "context": context,
            "rows": rows,
            "seconds": [0.001, 0.002 * ratio, 0.1],
            "ratio": ratio,
        }
        for context in (64, 512)
        for rows, ratio in ((1, 1.0), (16, 1.5), (81, 4.0))
        if (context, rows) != (512, 81)
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "human.json").write_text(json.dumps(BENCH))
    (tmp_path / "calls.json").write_text(json.dumps(CALLS))
    return tmp_path


def bench(**other: Any) -> benchmarks.Bench:
    result = benchmarks.parse("human", {**BENCH, **other})
    assert isinstance(result, benchmarks.Bench)
    return result


def calls(**other: Any) -> benchmarks.Calls:
    result = benchmarks.parse("calls", {**CALLS, **other})
    assert isinstance(result, benchmarks.Calls)
    return result


def test_the_formats_are_those_that_the_benchmark_writes() -> None:
    from space_core import bench, calls

    assert (benchmarks.BENCH, benchmarks.CALLS) == (bench.FORMAT, calls.FORMAT)


# ---------------------------------------------------------------- tables


def test_a_table_says_how_it_was_measured_and_what_came_out() -> None:
    lines = benchmarks.markdown([bench()], []).splitlines()
    assert lines[0] == (
        "**human**: 40 prompts, 3 repetitions, 1 turn skipped, float32. tiny on A \\| B &lt;GPU>, "
        "1 thread, 2026-11-24; python 3.11.7, torch 2.13.0."
    )
    assert lines[2] == f"    {HEAD['command']}"
    assert lines[4] == (
        "| method | k | tokens per call | rows per call | speed-up (quartiles) | identical | looping |"
    )
    assert lines[6:] == [
        "| vanilla | – | 1.00 | 3.2 | 1.00 (0.75–1.50) | 100% | 12.5% |",
        "| space-auto | 2 | 2.12 | 3.2 | 1.50 (1.25–2.00) | 100% | 12.5% |",
        "| space-auto | 5 | 2.50 | 3.2 | 1.75 (1.50–2.25) | > 99.9% | 12.5% |",
        "| prompt-lookup | 10 | 1.25 | 3.2 | 0.75 (0.50–1.25) | 100% | 12.5% |",
    ]


def test_sampled_outputs_are_not_called_unequal() -> None:
    text = benchmarks.markdown([bench(settings={"temperature": 0.8})], [])
    assert "| sampled |" in text
    assert "100%" not in text


def test_dtypes_are_told_apart_where_a_file_has_several() -> None:
    result = bench(methods=[method("space", 5, 2, 3), method("space", 5, 1, 3, dtype="bfloat16")])
    text = benchmarks.markdown([result], [])
    assert "| space, float32 | 5 |" in text and "| space, bfloat16 | 5 |" in text
    assert "space, k = 5, bfloat16" in benchmarks.speedup_svg([result])


def test_calls_stand_by_rows_and_context() -> None:
    lines = benchmarks.markdown([], [calls()]).splitlines()
    assert lines[4:] == [
        "| rows of a call | 64 tokens before | 512 tokens before |",
        "|---|---:|---:|",
        "| 1 | 1.00× (2.00 ms) | 1.00× (2.00 ms) |",
        "| 16 | 1.50× (3.00 ms) | 1.50× (3.00 ms) |",
        "| 81 | 4.00× (8.00 ms) | – |",
    ]


@pytest.mark.parametrize(
    "share, words", [(0, "0%"), (0.0001, "&lt; 0.1%"), (0.985, "98.5%"), (0.99996, "> 99.9%"), (1, "100%")]
)
def test_a_share_is_not_rounded_to_all_or_nothing(share: float, words: str) -> None:
    text = benchmarks.markdown([bench(methods=[method("space", 5, 1, 1, identical_to_vanilla=share)])], [])
    assert f"| {words} | 12.5% |" in text


# ---------------------------------------------------------------- pictures


def drawn(svg: str, tag: str) -> list[ElementTree.Element]:
    return ElementTree.fromstring(svg).findall(f".//{{http://www.w3.org/2000/svg}}{tag}")


def test_bars_are_as_long_as_the_speed_ups() -> None:
    svg = benchmarks.speedup_svg([bench()])
    _, *bars = (float(bar.get("width", 0)) for bar in drawn(svg, "rect"))  # the first is the legend's
    assert len(bars) == 3, "vanilla is the line at 1"
    for width, speedup in zip(bars, (1.5, 1.75, 0.75), strict=True):
        assert width / bars[0] == pytest.approx(speedup / 1.5, abs=0.01)
    words = [text.text for text in drawn(svg, "text")]
    assert {"1.50×", "1.75×", "0.75×", "vanilla", "space-auto, k = 5", "2.12 tok/call"} <= set(words)
    dashed = next(line for line in drawn(svg, "line") if line.get("stroke-dasharray"))
    left = float(drawn(svg, "rect")[1].get("x", 0))
    assert float(dashed.get("x1", 0)) - left == pytest.approx(bars[0] / 1.5, abs=0.2), "the line of 1.0"


def test_calls_are_one_line_for_each_context_of_each_file() -> None:
    svg = benchmarks.calls_svg([calls(), calls()])
    lines = drawn(svg, "polyline")
    assert [len((line.get("points") or "").split()) for line in lines] == [3, 2, 3, 2]
    heights = [float(point.split(",")[1]) for point in (lines[0].get("points") or "").split()]
    assert (heights[0] - heights[2]) / (heights[0] - heights[1]) == pytest.approx(6, abs=0.05), (
        "ratios 1, 1.5, 4"
    )
    assert "1.0 M parameters" in svg


@pytest.mark.parametrize("size", [0.01, 1, 7.3, 250, 1e6])
def test_pictures_hold_any_size(size: float) -> None:
    scaled = [{**row, "ratio": row["ratio"] * size} for row in CALLS["calls"]]
    for svg in (
        benchmarks.speedup_svg(
            [bench(methods=[method("space", 5, size, size, speedup_spread=[0, size, 2 * size])])]
        ),
        benchmarks.calls_svg([calls(calls=scaled), calls(calls=CALLS["calls"][:1])]),
    ):
        numbers = [float(n) for n in re.findall(r' (?:x|y|x1|x2|cx|cy|width)="([^"]+)"', svg)]
        assert all(-1 <= n <= 5000 for n in numbers)
        assert "nan" not in svg and "inf" not in svg


def test_pictures_have_no_background_and_names_are_no_markup() -> None:
    hostile = "<script>alert(1)</script>&"
    for svg in (
        benchmarks.speedup_svg([bench(model=hostile)]),
        benchmarks.calls_svg([calls(device=hostile)]),
    ):
        assert "<script" not in svg
        assert any("<script>" in (text.text or "") for text in drawn(svg, "text"))
        assert "white" not in svg and "#fff" not in svg


# ---------------------------------------------------------------- files and the command


def test_drawing_needs_neither_torch_nor_plotly() -> None:
    code = "import sys, space_core.views.benchmarks; sys.exit(bool({'torch', 'plotly'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_command_draws_and_prints(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert benchmarks.main([str(folder)]) == 0
    said = capsys.readouterr()
    assert said.out.count("| method | k |") == 1
    assert said.err == ""
    for name in ("speedup", "calls"):
        assert drawn((folder / f"{name}.svg").read_text(), "text")


def test_the_readme_changes_between_its_markers_only(folder: Path, capsys: pytest.CaptureFixture) -> None:
    readme = folder / "README.md"
    readme.write_text("before\n<!-- benchmarks -->\nold\n<!-- /benchmarks -->\nbehind\n")
    for _ in range(2):
        assert benchmarks.main([str(folder), "--readme", str(readme)]) == 0
        text = readme.read_text()
        assert text.startswith("before\n<!-- benchmarks -->\n**human**")
        assert text.endswith("|\n<!-- /benchmarks -->\nbehind\n")
        assert "old" not in text and text.count("| space-auto | 5 |") == 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "text",
    [
        "no markers",
        "<!-- /benchmarks --><!-- benchmarks -->",
        "<!-- benchmarks -->" * 2 + "<!-- /benchmarks -->",
    ],
)
def test_a_readme_without_its_markers_is_left_alone(
    folder: Path, text: str, capsys: pytest.CaptureFixture
) -> None:
    readme = folder / "README.md"
    readme.write_text(text)
    assert benchmarks.main([str(folder), "--readme", str(readme)]) == 2
    assert "needs the markers" in capsys.readouterr().err
    assert readme.read_text() == text
    assert not list(folder.glob("*.svg"))


def test_missing_files_are_one_clear_line(folder: Path, capsys: pytest.CaptureFixture) -> None:
    for arguments, words in (
        ([str(folder / "nowhere")], "is no folder"),
        ([str(folder), "--readme", str(folder / "none.md")], "none.md"),
    ):
        assert benchmarks.main(arguments) == 2
        line = capsys.readouterr().err
        assert words in line and line.count("\n") == 1
    (folder / "calls.json").unlink()
    assert benchmarks.main([str(folder)]) == 2
    assert "python -m space_core bench calls --json" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"format": "space-trace/1"}', "[" * 100_000, "\0"])
def test_foreign_files_are_one_clear_line(folder: Path, content: str, capsys: pytest.CaptureFixture) -> None:
    (folder / "foreign.json").write_text(content)
    assert benchmarks.main([str(folder)]) == 2
    line = capsys.readouterr().err
    assert "foreign.json is no result file" in line and line.count("\n") == 1


WRONG: list[tuple[tuple[str | int, ...], Any]] = [
    (("device",), None),
    (("command",), "x <!-- /benchmarks -->"),
    (("versions",), {}),
    (("versions", "torch"), 2.13),
    (("threads",), True),
    (("prompts",), -1),
    (("settings",), {}),
    (("methods",), []),
    (("methods", 1, "speedup"), float("nan")),
    (("methods", 1, "speedup_spread"), [1, 2]),
    (("methods", 1, "loops", "share"), "all"),
    (("methods", 1, "k"), None),
    (("skipped",), 3),
]


@pytest.mark.parametrize("path, value", WRONG)
def test_a_wrong_field_is_named(path: tuple[str | int, ...], value: Any) -> None:
    data: Any = copy.deepcopy(BENCH)
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ResultError, match=r"human\.json is no result file") as caught:
        benchmarks.parse("human", data)
    assert str(path[-1]) in str(caught.value) or path == ("settings",)


@pytest.mark.parametrize(
    "field, value", [("rows", 0), ("ratio", float("inf")), ("seconds", None), ("context", 1.5)]
)
def test_a_wrong_call_is_named(field: str, value: Any) -> None:
    with pytest.raises(ResultError, match=field):
        benchmarks.parse("calls", {**CALLS, "calls": [{**CALLS["calls"][0], field: value}]})
