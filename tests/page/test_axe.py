"""axe-core on every tab, in light and dark: no serious or critical finding.

axe.min.js comes with the package axe-playwright-python, and is used by these tests alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import serve
from playwright.sync_api import Page, expect
from served import TIMEOUT, Server, illustrated, race, set_number
from test_benchmark import measure, open_tab
from walking import go, learn, solve, steps

GRAVE = ("serious", "critical")


@pytest.fixture(scope="module")
def bundled_server(
    browser_type_launch_args: dict, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The page with its own checkpoint, so that the build tab has something to tell."""
    yield from serve(["app.py", "--device", "cpu"], tmp_path_factory.mktemp("bundled") / "log.txt")


@pytest.fixture(params=["light", pytest.param("dark", marks=pytest.mark.slow)])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def visited(browser: Any, bundled_server: Server, scheme: str) -> Iterator[Page]:
    context = browser.new_context(
        viewport={"width": 1280, "height": 800}, color_scheme=scheme, reduced_motion="reduce"
    )
    page = context.new_page()
    page.set_default_timeout(TIMEOUT)
    page.goto(bundled_server.url)
    expect(page.locator('.chip[data-state="ready"]')).to_be_visible(timeout=60_000)
    yield page
    context.close()


def findings(page: Page, within: str | None = None) -> list[str]:
    """What axe-core calls serious or critical on the page or within an element, one line each with the first places."""
    page.mouse.move(0, 0)
    # Gradio's own placeholder of a figure that is not drawn yet has a label that its role does not allow.
    around = {"exclude": [[".unpadded_box"]], **({"include": [[within]]} if within else {})}
    found = Axe().run(page, context=around, options={"resultTypes": ["violations"]}).response["violations"]
    return [
        f"{each['impact']} {each['id']} ({len(each['nodes'])}): "
        + " | ".join(f"{node['target']} {node.get('failureSummary', '')[:160]}" for node in each["nodes"][:4])
        for each in found
        if each["impact"] in GRAVE
    ]


@pytest.mark.more
def test_race(visited: Page) -> None:
    assert findings(visited) == []
    visited.click("#more > .label-wrap")
    visited.check("#lanes input[name=prompt-lookup]")
    set_number(visited, "budget", 64)
    race(visited)
    illustrated(visited)
    assert findings(visited) == []
    # That the check can fail: a button without a name.
    visited.evaluate("document.querySelector('.arena').insertAdjacentHTML('beforeend', '<button></button>')")
    for within in (None, "#arena"):
        assert any("button-name" in line for line in findings(visited, within))


@pytest.mark.more
def test_inspector_and_share(visited: Page) -> None:
    visited.locator("#text-space .tok.corrected").last.click()
    expect(visited.locator(".map .cell").first).to_be_visible()
    assert findings(visited) == []
    set_number(visited, "budget", 32)
    race(visited)
    visited.click("#share")
    expect(visited.locator("#card")).to_be_visible()
    assert findings(visited) == []


@pytest.mark.more
def test_learn(visited: Page) -> None:
    learn(visited)
    assert findings(visited) == []
    for name in steps():
        go(visited, name)
        assert findings(visited, "#learn") == [], name  # what is around it stays as it was
        solve(visited, name)
        assert findings(visited, "#learn") == [], f"{name}, solved"


@pytest.mark.more
def test_benchmark(visited: Page) -> None:
    open_tab(visited, "Benchmark")
    expect(visited.locator("#paper-figure .js-plotly-plot")).to_be_visible(timeout=TIMEOUT)
    assert findings(visited) == []
    measure(visited, prompts=1)
    expect(visited.locator(".bench")).to_have_attribute("data-state", "done", timeout=60_000)
    expect(visited.locator("#here-histogram-figure .js-plotly-plot")).to_be_visible(timeout=TIMEOUT)
    assert findings(visited) == []


@pytest.mark.more
def test_build(visited: Page) -> None:
    open_tab(visited, "Build")
    expect(visited.locator("#tokens-figure .js-plotly-plot")).to_be_visible(timeout=TIMEOUT)
    assert findings(visited) == []
