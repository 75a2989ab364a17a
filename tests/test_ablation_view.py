"""The ablation's result to a table and pictures: every figure is the file's."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from space_core.errors import ResultError
from space_core.views import ablation


def variant(name, rate, **other):
    row = {
        "variant": name,
        "adds": f"adds {name}",
        "lr": 0.001,
        "rates_tried": [0.001],
        "seeds": 3,
        "tokens_per_call": rate,
        "lowest": rate - 0.25,
        "highest": rate + 0.5,
        "deviation": 0.4,
        "tokens_per_call_without_loops": rate - 0.5,
        "loops": 0.25,
        "as_base": 0.9999,
        "steps": 1200,
        "mask_targets": 34000,
    }
    return {**row, **other}


RESULT = {
    "format": "space-ablation/1",
    "command": "python -m finetune ablate --seconds 60",
    "date": "2026-11-24T06:00:00+00:00",
    "device": "A | B",
    "versions": {"python": "3.11.7"},
    "threads": 2,
    "model": "<tiny>",
    "recipe": "mini",
    "training_seconds": 60.0,
    "k": 5,
    "prompts": 32,
    "max_new_tokens": 64,
    "variants": [
        variant("paper", 1.25, tokens_per_call_without_loops=None),
        variant("dense", 1.75),
        {"variant": "gated", "adds": "x", "lr": None, "seeds": 0, "tokens_per_call": None},
        variant("soft", 2.5),
    ],
}


def test_the_format_is_the_one_that_is_written():
    from finetune.ablate import FORMAT

    assert ablation.FORMAT == FORMAT


def test_the_table_says_how_it_was_measured_and_what_came_out():
    lines = ablation.markdown(ablation.parse("mini", RESULT)).splitlines()
    assert lines[0] == (
        "**mini**: 60 seconds of training for each variant, 3 seeds, recipe mini, full grid, k = 5, 32 prompts, "
        "64 tokens; at no rate without diverging: gated. &lt;tiny> on A \\| B, 2 threads, 2026-11-24; python 3.11.7."
    )
    assert lines[2] == "    python -m finetune ablate --seconds 60"
    assert lines[6] == (
        "| paper | adds paper | 1.25 (1.00–1.75) | – | 25% | > 99.9% | 1,200 | 34,000 | 0.001 |"
    )
    assert [line.split(" | ")[2] for line in lines[7:]] == ["1.75 (1.50–2.25)", "2.50 (2.25–3.00)"]


def test_bars_are_as_long_as_the_tokens_per_call():
    root = ElementTree.fromstring(ablation.svg(ablation.parse("mini", RESULT)))
    bars = [float(bar.get("width")) for bar in root.findall(".//{http://www.w3.org/2000/svg}rect")]
    assert [bar / bars[0] for bar in bars] == pytest.approx([1, 1.4, 2], abs=0.01)
    words = {text.text for text in root.findall(".//{http://www.w3.org/2000/svg}text")}
    assert {"paper", "dense", "soft", "1.25", "2.50"} <= words and "gated" not in words


def test_the_plotly_figure_has_the_same_bars_and_their_range():
    from space_core.views.figures import ablation_figure

    (bar,) = ablation_figure(ablation.parse("mini", RESULT)).data
    assert list(bar.x) == ["paper", "dense", "soft"] and list(bar.y) == [1.25, 1.75, 2.5]
    assert list(bar.error_y.array) == [0.5] * 3 and list(bar.error_y.arrayminus) == [0.25] * 3


def test_the_command_fills_the_markers_and_writes_pictures(tmp_path, capsys):
    file, readme = tmp_path / "mini.json", tmp_path / "README.md"
    file.write_text(json.dumps(RESULT))
    readme.write_text(
        "a\n<!-- benchmarks -->b<!-- /benchmarks -->\n<!-- ablation -->\nold\n<!-- /ablation -->\nz\n"
    )
    command = [
        str(file),
        "--readme",
        str(readme),
        "--svg",
        str(tmp_path / "a.svg"),
        "--html",
        str(tmp_path / "a.html"),
    ]
    for _ in range(2):
        assert ablation.main(command) == 0
    text = readme.read_text()
    assert text.startswith("a\n<!-- benchmarks -->b<!-- /benchmarks -->\n<!-- ablation -->\n**mini**")
    assert text.endswith("|\n<!-- /ablation -->\nz\n") and "old" not in text and text.count("| soft |") == 1
    assert capsys.readouterr().out == ""
    ElementTree.parse(tmp_path / "a.svg")
    assert "Plotly.newPlot" in (tmp_path / "a.html").read_text(encoding="utf-8")
    assert ablation.main([str(file)]) == 0 and "| soft |" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [
        {"format": "space-bench/1"},
        {"variants": []},
        {"versions": {}},
        {"training_seconds": None},
        {"variants": [variant("paper", 1.25, lowest="low")]},
    ],
)
def test_what_is_no_result_is_one_clear_line(tmp_path, capsys, change):
    with pytest.raises(ResultError, match=r"x\.json is no result"):
        ablation.parse("x", {**RESULT, **change})
    (tmp_path / "x.json").write_text(json.dumps({**RESULT, **change}))
    assert ablation.main([str(tmp_path / "x.json")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ablation: x.json is no result") and error.count("\n") == 1
    assert ablation.main([str(tmp_path / "none.json")]) == 2


def test_the_table_needs_neither_torch_nor_plotly():
    code = "import sys, space_core.views.ablation; sys.exit(bool({'torch', 'plotly'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
