"""Pictures of the page, made anew: python tests/page/screenshots.py [--model DIR] [--all | --only NAME …]

Starts the page with the given model (the bundled one by default) in Chromium and writes race.png,
inspector.png and learn.png to assets/screenshots; with --all, also phone, dark, the page as it opens, in
mid-race, every lesson with its task done, and the other regions and tabs. The pictures have 256 colours
each: a third of the bytes, and the page has hardly more.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright
from served import CHROMIUM, FLAGS, ROOT, illustrated, serving, under_way
from walking import go, learn, solve

DESKTOP, TALL, LONG, PHONE = (1280, 800), (1280, 1100), (1280, 1500), (390, 844)
LESSON = (1280, 1000)
STANDING = ("race", "inspector", "learn")
LESSONS = ("rows", "mask", "guess", "verify", "grid", "sight", "keep", "train")
SHOTS = {
    "race": (DESKTOP, "light", "after"),
    "inspector": (TALL, "light", "inspector"),
    "race-dark": (DESKTOP, "dark", "after"),
    "opening": (DESKTOP, "light", "opening"),
    "opening-phone": (PHONE, "light", "opening"),
    "replay": (DESKTOP, "light", "replay"),
    "replay-dark": (DESKTOP, "dark", "replay"),
    "inspector-dark": (TALL, "dark", "inspector"),
    "inspector-phone": (PHONE, "light", "inspector"),
    "race-mid": (DESKTOP, "light", "mid"),
    "race-mid-dark": (DESKTOP, "dark", "mid"),
    "race-phone": (PHONE, "light", "after"),
    "race-phone-dark": (PHONE, "dark", "after"),
    "settings": (TALL, "light", "settings"),
    "settings-phone-dark": (PHONE, "dark", "settings"),
    "lookup": (LONG, "light", "lookup"),
    "lookup-dark": (LONG, "dark", "lookup"),
    "share": (LONG, "light", "share"),
    "share-dark": (LONG, "dark", "share"),
    "share-phone": (PHONE, "light", "share"),
    "benchmark": (LONG, "light", "benchmark"),
    "benchmark-dark": (LONG, "dark", "benchmark"),
    "benchmark-phone": (PHONE, "light", "benchmark"),
    "build": (DESKTOP, "light", "build"),
    "build-dark": (DESKTOP, "dark", "build"),
    "build-phone": (PHONE, "dark", "build"),
    "learn": (LESSON, "light", "learn-grid"),
    "learn-open": (DESKTOP, "light", "learn"),
    "learn-phone-open": (PHONE, "light", "learn"),
    **{f"learn-{name}": (LESSON, "light", f"learn-{name}") for name in LESSONS},
    **{f"learn-{name}-dark": (LESSON, "dark", f"learn-{name}") for name in LESSONS},
    **{f"learn-{name}-phone": (PHONE, "light", f"learn-{name}") for name in LESSONS},
    **{f"learn-{name}-phone-dark": (PHONE, "dark", f"learn-{name}") for name in LESSONS},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="the bundled checkpoint by default")
    parser.add_argument("--out", type=Path, default=ROOT / "assets" / "screenshots")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--only", nargs="+", choices=SHOTS, metavar="NAME", help="these, by their names")
    options = parser.parse_args()
    wanted = options.only or (SHOTS if options.all else STANDING)
    options.out.mkdir(parents=True, exist_ok=True)
    with serving(options.model) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for name, ((width, height), scheme, phase) in SHOTS.items():
            if name not in wanted:
                continue
            context = browser.new_context(
                viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
            )
            page = context.new_page()
            page.goto(url)
            act(page, phase)
            shot = page.screenshot(full_page=width < 500 or "learn-" in phase)
            keep(shot, options.out / f"{name}.png")
            context.close()
        browser.close()


def keep(shot: bytes, path: Path) -> None:
    """Write a picture with a palette of its own."""
    picture = Image.open(io.BytesIO(shot)).convert("RGB")
    picture.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)


def act(page: Page, phase: str) -> None:
    """Bring the page to a phase: of its recording, or of a race."""
    page.wait_for_selector('.arena[data-state="recorded"]')
    if phase == "opening":
        page.wait_for_timeout(500)
    elif phase == "replay":
        page.focus("#text-space")
        page.keyboard.press("Home")
        page.check("input[value=stretched]", force=True)
        page.click("#replay-play")
        page.wait_for_function(
            "document.querySelector('#scrubber').value > 0.6 * document.querySelector('#scrubber').max"
        )
        page.click("#replay-play")
    elif phase == "inspector":
        look_inside(page)
    elif phase == "settings":
        page.click("#more > .label-wrap")
        page.locator("#text-space .tok.corrected").last.hover()
    elif phase == "lookup":
        look_inside_a_lookup(page)
    elif phase == "share":
        run(page, "after")
        page.click("#share")
        page.wait_for_selector(".share:not([hidden])")
        page.wait_for_timeout(500)
    elif phase in ("benchmark", "build"):
        look_at_tab(page, phase)
    elif phase.startswith("learn"):
        lesson(page, phase.partition("-")[2])
    else:
        run(page, phase)


def look_at_tab(page: Page, name: str) -> None:
    """A tab with its figures; the benchmark's also with a small run."""
    page.wait_for_selector('.chip[data-state="ready"]', timeout=120_000)
    page.click(f"button[role=tab]:has-text('{name.capitalize()}')")
    last = {"benchmark": "#paper-figure", "build": "#tokens-figure"}[name]
    page.wait_for_selector(f"{last} .js-plotly-plot")
    if name == "benchmark":
        page.click("#bench-run")
        page.wait_for_selector('.bench[data-state="done"]', timeout=120_000)
        page.wait_for_selector("#here-histogram-figure .js-plotly-plot")
    page.wait_for_timeout(1500)


def look_inside(page: Page) -> None:
    """Open the recorded call that shows most: a rejected draft, a chosen group, many rows. Point at its map."""
    recorded = json.loads((ROOT / "assets" / "recorded" / "race.json").read_text(encoding="utf-8"))

    def worth(call: dict) -> tuple:
        fates = call["fates"]
        return (
            call["next"] == "masks",
            "rejected" in fates,
            min(2, fates.count("accepted")),
            len(call["guesses"]),
        )

    best = max(recorded["opened"]["space"], key=worth)
    page.locator(f".chart .call[data-call='{best['n']}']").dispatch_event("click")
    page.wait_for_timeout(700)
    away = page.locator(".map .cell[aria-label*='assumes it was']")
    (away if away.count() else page.locator(".map .cell")).last.hover()
    page.locator("#inspector").scroll_into_view_if_needed()


def look_inside_a_lookup(page: Page) -> None:
    """A race with a lane of transformers, and one of that lane's calls opened."""
    page.click("#more > .label-wrap")
    page.check("#lanes input[name=prompt-lookup]")
    page.click("#more > .label-wrap")
    run(page, "after")
    page.locator("#text-prompt-lookup .tok.accepted").last.click()
    page.wait_for_selector(".map .cell", timeout=60_000)
    page.locator("#inspector").scroll_into_view_if_needed()
    page.wait_for_timeout(500)


def lesson(page: Page, name: str) -> None:
    """A lesson with its task done, and those before it too; without a name, the first as it opens."""
    learn(page)
    for each in LESSONS[: LESSONS.index(name) + 1] if name else ():
        solve(page, each)
    if name:
        go(page, name)
    page.mouse.move(0, 0)


def run(page: Page, phase: str) -> None:
    page.wait_for_selector('.chip[data-state="ready"]', timeout=120_000)
    page.click("#race")
    if phase == "mid":
        under_way(page, 40)
        return
    page.wait_for_selector('.arena[data-state="done"]', timeout=120_000)
    illustrated(page)
    page.wait_for_timeout(1000)
    page.evaluate("scrollTo(0, 0)")


if __name__ == "__main__":
    main()
