"""Pictures of the page, made anew: python tests/page/screenshots.py [--model DIR] [--all]

Starts the page with the given model (the bundled one by default), runs a race in Chromium and
writes assets/screenshots/race.png; with --all, also phone, dark, before and in mid-race.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright
from served import CHROMIUM, FLAGS, ROOT, answers, free_port

DESKTOP, PHONE = (1280, 800), (390, 844)
SHOTS = {
    "race": (DESKTOP, "light", "after"),
    "race-dark": (DESKTOP, "dark", "after"),
    "race-before": (DESKTOP, "light", "before"),
    "race-mid": (DESKTOP, "light", "mid"),
    "race-mid-dark": (DESKTOP, "dark", "mid"),
    "race-phone": (PHONE, "light", "after"),
    "race-phone-dark": (PHONE, "dark", "after"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="the bundled checkpoint by default")
    parser.add_argument("--out", type=Path, default=ROOT / "assets" / "screenshots")
    parser.add_argument("--all", action="store_true")
    options = parser.parse_args()
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    options.out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "app.py", "--port", str(port)]
    command += ["--model", options.model] if options.model else []
    server = subprocess.Popen(command, cwd=ROOT)
    try:
        while not answers(url):
            if server.poll() is not None:
                sys.exit("the page did not start")
            time.sleep(0.2)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            for name, ((width, height), scheme, phase) in SHOTS.items():
                if name != "race" and not options.all:
                    continue
                context = browser.new_context(
                    viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
                )
                page = context.new_page()
                page.goto(url)
                act(page, phase)
                page.screenshot(path=options.out / f"{name}.png", full_page=width < 500)
                context.close()
            browser.close()
    finally:
        server.terminate()
        server.wait(10)


def act(page: Page, phase: str) -> None:
    """Bring the page to a phase of a race."""
    page.wait_for_selector('.chip[data-state="ready"]', timeout=120_000)
    if phase == "before":
        return
    page.click("#race")
    if phase == "mid":
        page.wait_for_function("document.querySelectorAll('#text-vanilla .tok').length > 40")
        return
    page.wait_for_selector('.arena[data-state="done"]', timeout=120_000)
    page.wait_for_timeout(3000)  # plotly draws below the first screen


if __name__ == "__main__":
    main()
