"""A moving picture of a race, made anew: python tests/page/record.py [--model DIR] [--out FILE]

Starts the page with the given model (the bundled one by default) in Chromium, races an example prompt
there, then plays the finished race at a chosen speed and takes a picture of each moment; Pillow makes
one animated WebP of them. What is seen is a race that was measured a moment before, slowed down: a
small model's own is over before an eye has followed it. The controls on the picture say the same.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright
from served import CHROMIUM, FLAGS, ROOT, illustrated, serving, set_number

MOST = 3_000_000
"""Bytes that the file may have."""
WIDTH, HEIGHT = 1280, 790
HOLD = 3000
"""Milliseconds for which the end stands still."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="the bundled checkpoint by default")
    parser.add_argument("--out", type=Path, default=ROOT / "assets" / "screenshots" / "race.webp")
    parser.add_argument("--example", default="binary search", help="the example whose chip is pressed")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long the race shall take")
    parser.add_argument("--rate", type=int, default=10, help="pictures a second")
    parser.add_argument("--dark", action="store_true")
    options = parser.parse_args()
    with serving(options.model) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        scheme = "dark" if options.dark else "light"
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme)
        page.goto(url)
        pictures = film(page, options)
        browser.close()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    size = write(pictures, options.out, options.rate)
    print(f"{options.out}: {len(pictures)} pictures, {size:,} bytes")
    if size > MOST:
        sys.exit(f"more than {MOST:,} bytes: take fewer pictures a second, or a shorter race")


def film(page: Page, options: argparse.Namespace) -> list[Image.Image]:
    """A picture for each moment of the race. The replay is led by hand, so no picture comes late."""
    page.wait_for_selector('.chip[data-state="ready"]', timeout=120_000)
    page.locator("#examples button", has_text=options.example).click()
    set_number(page, "budget", options.tokens)
    page.click("#race")
    page.wait_for_selector('.arena[data-state="done"]', timeout=120_000)
    page.click("label:has(input[value=stretched])")
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement.blur()")
    illustrated(page)  # now, and not in the midst of the film
    page.evaluate("scrollTo(0, 0)")
    length = float(page.get_attribute("#scrubber", "max") or 0)
    count = round(options.seconds * options.rate)
    pictures = []
    for number in range(count + 1):
        page.evaluate(
            "at => { const bar = document.querySelector('#scrubber'); bar.value = at;"
            " bar.dispatchEvent(new Event('input', { bubbles: true })); }",
            length * number / count,
        )
        page.wait_for_timeout(40)
        pictures.append(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
    return pictures


def write(pictures: list[Image.Image], out: Path, rate: int) -> int:
    """One animation that runs for ever; its size in bytes."""
    durations = [round(1000 / rate)] * (len(pictures) - 1) + [HOLD]
    pictures[0].save(
        out,
        save_all=True,
        append_images=pictures[1:],
        duration=durations,
        loop=0,
        quality=72,
        method=4,
        minimize_size=False,
    )
    return out.stat().st_size


if __name__ == "__main__":
    main()
