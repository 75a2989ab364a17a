"""The benchmark tab in a real browser: bundled results, a run here, broken off, bad input."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from served import TIMEOUT, Server, ink, inside, race, set_number

from app import BENCHMARKS, Benchmarks, Loader
from space_core.views import benchmarks


def open_tab(page: Page, name: str) -> None:
    page.click(f"button[role=tab]:has-text('{name}')")


@pytest.fixture
def bench(app: Page) -> Page:
    open_tab(app, "Benchmark")
    expect(app.locator("#bench-run")).to_be_visible()
    return app


def measure(page: Page, prompts: int = 2, tokens: int = 16) -> None:
    set_number(page, "bench-prompts", prompts)
    set_number(page, "bench-tokens", tokens)
    page.click("#bench-run")


def test_bundled_results_and_the_papers_apart(bench: Page) -> None:
    benches, _ = benchmarks.read(BENCHMARKS)
    for name in ("speedup", "rows", "histogram", "acceptance", "paper"):
        expect(bench.locator(f"#{name}-figure .js-plotly-plot")).to_be_visible(timeout=TIMEOUT)
    for score in benches[0].scores:
        expect(bench.locator("#speedup-figure")).to_contain_text(score.name)
    expect(bench.locator("#paper-figure")).to_contain_text("paper")
    expect(bench.locator(".section").last).to_contain_text("None of it was measured here")


def test_a_benchmark_here_to_its_end_and_its_files(bench: Page, tmp_path: Path) -> None:
    bench.check("#bench-methods input[name=space-grid]")
    measure(bench)
    expect(bench.locator(".bench")).to_have_attribute("data-state", "done", timeout=60_000)
    rows = bench.locator(".bench-table tbody tr")
    expect(rows).to_have_count(4)
    shown = [row.locator("th").text_content() for row in rows.all()]
    assert shown == ["vanilla", "space", "space-grid", "prompt-lookup"]
    expect(bench.locator("#bench-words")).to_contain_text("All prompts are done. tiny on ")
    saved = {}
    for kind in ("csv", "json"):
        with bench.expect_download() as download:
            bench.click(f"#bench-{kind}")
        assert download.value.suggested_filename == f"space-benchmark.{kind}"
        saved[kind] = tmp_path / kind
        download.value.save_as(saved[kind])
    found = benchmarks.parse("here", json.loads(saved["json"].read_text()))
    assert isinstance(found, benchmarks.Bench)
    assert found.prompts == 2
    assert [row["method"] for row in csv.DictReader(saved["csv"].open())] == shown
    cells = rows.nth(1).locator("td").all_text_contents()
    assert cells[1] == f"{found.scores[1].tokens_per_call:.2f}"
    expect(bench.locator("#here-speedup-figure .js-plotly-plot")).to_be_visible(timeout=TIMEOUT)


@pytest.mark.more
def test_a_benchmark_stops_and_keeps_what_it_has_and_the_device_is_free(bench: Page) -> None:
    bench.check("#bench-methods input[name=space-grid]")
    bench.check("#bench-methods input[name=generate]")
    resting = ink(bench, "#bench-stop")
    measure(bench, prompts=8, tokens=256)
    expect(bench.locator("#bench-words")).to_contain_text(re.compile("prompt [2-6] of 8"), timeout=60_000)
    expect(bench.locator("#bench-stop")).not_to_have_css("color", resting)
    bench.click("#bench-stop")
    expect(bench.locator(".bench")).to_have_attribute("data-state", "stopped", timeout=5_000)
    expect(bench.locator("#bench-words")).to_contain_text("Only prompts that every method has finished count")
    expect(bench.locator(".bench-table tbody tr")).to_have_count(5)
    open_tab(bench, "Race")
    race(bench)
    expect(bench.locator("#badge")).to_have_text("outputs identical")


@pytest.mark.more
def test_a_closed_tab_ends_its_benchmark(bench: Page, server: Server) -> None:
    other = bench.context.new_page()
    other.goto(server.url)
    open_tab(other, "Benchmark")
    measure(other, prompts=8, tokens=256)
    expect(other.locator(".bench[data-state=running]")).to_be_visible(timeout=TIMEOUT)
    other.close()
    open_tab(bench, "Race")
    race(bench)


@pytest.mark.more
def test_no_method_is_a_sentence(bench: Page) -> None:
    for name in ("space", "prompt-lookup"):
        bench.uncheck(f"#bench-methods input[name={name}]")
    bench.click("#bench-run")
    expect(bench.locator("#bench-words")).to_have_text("choose at least one method to hold against vanilla.")


BAD: list[tuple[int, Any, str]] = [
    (0, 0, "prompts must be"),
    (0, True, "prompts must be"),
    (0, 10**9, "prompts must be"),
    (0, float("nan"), "prompts must be"),
    (0, "3", "prompts must be"),
    (1, [], "at least one method"),
    (1, "space", "at least one method"),
    (1, ["<b>"], "unknown method"),
    (1, [["space"]], "unknown method"),
    (1, ["assisted"], "unknown method"),
    (2, 99, "k must lie in"),
    (2, None, "k must be"),
    (3, 257, "tokens must be"),
    (3, 1e308, "tokens must be"),
    (3, float("inf"), "tokens must be"),
]


def test_raw_values_are_judged_again(tiny_model: Path, one_thread: None) -> None:
    loader = Loader(str(tiny_model), "cpu", "float32")
    loader.start()
    assert loader.done.wait(60)
    handlers = Benchmarks(loader, 60)
    for field, value, words in BAD:
        values = [value if i == field else good for i, good in enumerate((1, ["space"], 2, 16))]
        *_, (last, trial) = handlers.run(*values)
        view = json.loads(last)
        assert view["state"] == "failed" and words in view["words"], (field, value, view)
        assert trial is None
    *_, (last, trial) = handlers.run(1, ["space"], 2, 16)
    assert json.loads(last)["state"] == "done" and trial is not None


def test_a_benchmark_ends_at_its_deadline(tiny_model: Path, one_thread: None) -> None:
    loader = Loader(str(tiny_model), "cpu", "float32")
    loader.start()
    assert loader.done.wait(60)
    *_, (last, _) = Benchmarks(loader, 0.05).run(8, ["space"], 8, 256)
    assert json.loads(last)["state"] == "deadline"


def test_races_and_benchmarks_share_one_queue(tiny_model: Path) -> None:
    from app import build

    page = build(Loader(str(tiny_model), "cpu", "float32"))
    on_device = {fn.api_name: fn for fn in page.fns.values() if fn.concurrency_id == "device"}
    assert {"page_race", "race", "generate", "benchmark"} <= set(on_device)
    assert {fn.concurrency_limit for fn in on_device.values()} == {1}


@pytest.mark.more
def test_the_tab_fits_a_phone(bench: Page) -> None:
    bench.set_viewport_size({"width": 390, "height": 844})
    measure(bench, prompts=1)
    expect(bench.locator(".bench")).to_have_attribute("data-state", "done", timeout=60_000)
    expect(bench.locator("#here-speedup-figure .js-plotly-plot")).to_be_visible(timeout=TIMEOUT)
    inside(bench, "#bench-run", "#bench-stop", "#bench-csv")
