"""What watching costs: python tests/page/costs.py [--tokens N] [--repeat N] [--readme README.md]

Races a request on the page, watched in Chromium, and the same request unwatched in the same thread, in turns of
half a second: while the unwatched one runs the page has nothing to paint. So both go through the same
moments of a machine that others use as well, on which a whole race takes a tenth more or less than the one
before. Prints one JSON object:

    decode_ratio      seconds of the watched race's calls over those of the same calls unwatched, the middle race;
                      what the page does while it rests (`resting`) is in both
    resting           share of a core that all of the browser takes then
    quartiles         of the races
    races             the same for each of them, in order
    lag_ms            how late a timer of 20 ms comes in the page during the races
    long_tasks        tasks over 50 ms in the page during them: how many, and the longest
    after             the same for the two seconds behind a race, when plotly draws what stands still
    plotly            the longest task, once, when the figures come into sight for the first time and plotly is read
    bytes_per_token   what a race's stream brings, over the tokens of both lanes
    first_page        seconds from asking for the address to a replay that can be moved, cold caches

The lag is told of races that nobody interrupts, which take turns with these. With --readme a table of them is put
between that file's <!-- costs --> marks. For figures to be reported the machine should have nothing else to do;
the load is told with them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from playwright.sync_api import CDPSession, Page, sync_playwright
from served import CHROMIUM, FLAGS, ROOT, answers, free_port, illustrated, set_number

PROMPT = '''class Stack:
    """A last-in, first-out stack."""

    def __init__(self):
'''

# The page. While the word "turns" is told on standard input, each race takes turns with the same one unwatched;
# the calls of both that are the same are told on standard output, as seconds.
SERVER = """
import json, sys, threading, time
import app
from space_core import contest
TURN, TAIL = 0.5, 0.15  # seconds of a turn; those of an unwatched one in which the browser may still paint
plain, decoder = contest.race, contest.decoder
asked, told = {}, {"turns": False}
def decoder_of(lane, *rest):
    asked[lane] = rest[:4]  # without a memory: each lane reads the prompt itself
    return decoder(lane, *rest)
def race(decoders):
    if not told["turns"]:
        yield from plain(decoders)
        return
    watched, alone = plain(decoders), plain({lane: decoder(lane, *asked[lane]) for lane in decoders})
    seen, unseen = {}, {}
    def turn(steps, into, tail):
        start = time.monotonic()
        for lane, step, clock in steps:
            into[lane, "calls"] = number = into.get((lane, "calls"), 0) + 1
            if time.monotonic() - start > tail:
                into[lane, number] = step.rows, step.seconds
            yield lane, step, clock
            if time.monotonic() - start > TURN:
                return
        into["over"] = True
    while "over" not in seen:
        yield from turn(watched, seen, 0)
        for _ in turn(alone, unseen, TAIL):
            pass
    both = [n for n in seen if n in unseen and isinstance(seen[n], tuple) and seen[n][0] == unseen[n][0]]
    sums = [sum(calls[n][1] for n in both) for calls in (seen, unseen)]
    print("TURNS " + json.dumps({"calls": len(both), "watched": sums[0], "unwatched": sums[1]}), flush=True)
contest.race, contest.decoder = race, decoder_of
def listen():
    for line in sys.stdin:
        told["turns"] = line.strip() == "turns"
        print("HEARD", flush=True)
threading.Thread(target=listen, daemon=True).start()
app.main(sys.argv[1:])
"""

# Keeps the lanes' exact counters as the last whole frame told them.
LISTEN = """
const parse = JSON.parse;
JSON.parse = (...all) => {
  const value = parse(...all);
  if (value?.format === "space-frames/1" && value.kind === "snapshot") window.told = value.lanes;
  return value;
};
"""
WATCH = """() => {
  window.lags = [];
  window.tasks = [];
  let due = performance.now() + 20;
  const late = () => {
    const now = performance.now();
    window.lags.push(Math.max(0, now - due));
    due = now + 20;
    setTimeout(late, 20);
  };
  setTimeout(late, 20);
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) window.tasks.push(entry.duration);
  }).observe({ type: "longtask" });
}"""
TAKE = "() => { const told = [window.lags, window.tasks]; window.lags = []; window.tasks = []; return told; }"


class Stream:
    """Bytes of the answers that tell of races, as the browser receives them."""

    def __init__(self, session: CDPSession) -> None:
        self.bytes = 0
        self._ids: set[str] = set()
        session.send("Network.enable")
        session.on("Network.requestWillBeSent", self._asked)
        session.on("Network.dataReceived", self._came)

    def _asked(self, event: dict[str, Any]) -> None:
        if "queue/data" in event["request"]["url"]:
            self._ids.add(event["requestId"])

    def _came(self, event: dict[str, Any]) -> None:
        if event["requestId"] in self._ids:
            self.bytes += event["dataLength"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="the bundled checkpoint by default")
    parser.add_argument("--tokens", type=int, default=512, help="new tokens of each lane")
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=14, help="races of each kind that count")
    parser.add_argument("--readme", type=Path, help="a file whose table is written anew")
    options = parser.parse_args()
    if options.repeat < 1:
        parser.error("--repeat must be at least 1")
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    command = [sys.executable, "-c", SERVER, "--port", str(port), "--device", "cpu"]
    command += ["--model", options.model] if options.model else []
    server = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        while not answers(url):
            if server.poll() is not None:
                sys.exit("the page did not start")
            time.sleep(0.05)
        told = measure(url, server, options)
    finally:
        server.terminate()
        server.wait(10)
    print(json.dumps(told, indent=2))
    if options.readme:
        text = options.readme.read_text(encoding="utf-8")
        options.readme.write_text(put(text, table(told)), encoding="utf-8")


def table(told: dict[str, Any]) -> str:
    """The figures beside what they should be, as Markdown."""
    races, long = told["races"], told["long_tasks"]
    first, next_two = told["first_page"][0], ", ".join(map(str, told["first_page"][1:]))
    lines = [
        f"{told['page']}, {told['cores']} cores, load {told['load']}, {told['tokens_per_race'] // 2} tokens a "
        f"lane, {len(races)} races in turn with unwatched ones and as many whole ones, greedy, {told['browser']}.",
        "",
        "| measured | | aimed at |",
        "|---|---|---|",
        f"| decode time while the page paints over while it rests, the middle race (quartiles {' and '.join(map(str, told['quartiles']))}) "
        f"| {told['decode_ratio']} | ≤ 1.05 |",
        f"| browser lag in a race, p50 / p95 / max, ms | {' / '.join(map(str, told['lag_ms'].values()))} "
        "| p95 < 100 |",
        f"| tasks over 50 ms in the browser, a race; the longest | {long['count'] / len(races):.1f}; "
        f"{long['longest_ms']} ms | none over 200 ms |",
        f"| the longest task behind a race; once, when the figures come into sight | "
        f"{told['after']['long_tasks']['longest_ms']:.0f} ms; {told['plotly']['longest_ms']:.0f} ms | |",
        f"| a page at rest, of a core | {told['resting']} | |",
        f"| bytes sent per token | {told['bytes_per_token']} | |",
        f"| first page usable: the first visit; the next two, while the model loads, s | {first}; {next_two} | < 2 |",
    ]
    return "\n".join(lines)


def put(text: str, words: str) -> str:
    """The text with other words between its marks.

    Raises:
        SystemExit: where it has none.
    """
    begin, end = "<!-- costs -->", "<!-- /costs -->"
    head, found, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        sys.exit(f"the file has no {begin} … {end}")
    return f"{head}{begin}\n{words}\n{end}{tail}"


def measure(url: str, server: subprocess.Popen[str], options: argparse.Namespace) -> dict[str, Any]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        first = [first_page(browser.new_context(), url) for _ in range(3)]
        page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
        page.add_init_script(LISTEN)
        session = page.context.new_cdp_session(page)
        stream = Stream(session)
        page.goto(url)
        page.wait_for_selector('.chip[data-state="ready"]', timeout=120_000)
        page.fill("#prompt textarea", PROMPT)
        set_number(page, "budget", options.tokens)
        set_number(page, "k", options.k)
        page.evaluate(WATCH)
        turns: list[dict[str, float]] = []
        during, after = Seen(), Seen()
        tell(server, "whole")
        # One warms up, and is counted: a browser that tells of each message is busy with it.
        tokens = race(page)
        per_token = stream.bytes / tokens
        session.detach()
        page.evaluate(TAKE)
        illustrated(page)
        page.wait_for_timeout(1000)
        plotly = max(page.evaluate(TAKE)[1], default=0.0)
        page.evaluate("scrollTo(0, 0)")
        page.wait_for_timeout(2000)
        resting = at_rest(page)
        for _ in range(options.repeat):
            page.wait_for_timeout(2000)
            page.evaluate(TAKE)
            race(page)
            during.add(page.evaluate(TAKE))
            page.wait_for_timeout(2000)
            after.add(page.evaluate(TAKE))
            tell(server, "turns")
            race(page)
            turns.append(json.loads(said(server, "TURNS")))
            tell(server, "whole")
        chip = page.locator(".chip").text_content()
        browser.close()
    ratios = [turn["watched"] / turn["unwatched"] for turn in turns]
    return {
        "page": chip,
        "browser": Path(CHROMIUM or "").name,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "tokens_per_race": tokens,
        "decode_ratio": round(median(ratios), 3),
        "quartiles": [round(ratio, 3) for ratio in quantiles(ratios, n=4)[::2]]
        if len(ratios) > 1
        else ratios,
        "races": [round(ratio, 3) for ratio in ratios],
        "calls": round(median(turn["calls"] for turn in turns)),
        "seconds": {
            kind: round(median(turn[kind] for turn in turns), 3) for kind in ("watched", "unwatched")
        },
        "resting": round(resting, 3),
        "lag_ms": during.lag(),
        "long_tasks": during.long(),
        "after": {"lag_ms": after.lag(), "long_tasks": after.long()},
        "plotly": {"longest_ms": round(plotly, 1)},
        "bytes_per_token": round(per_token, 1),
        "first_page": [round(seconds, 2) for seconds in first],
    }


class Seen:
    """Lags and long tasks of the page, in ms."""

    def __init__(self) -> None:
        self.lags: list[float] = []
        self.tasks: list[float] = []

    def add(self, told: tuple[list[float], list[float]]) -> None:
        self.lags += told[0]
        self.tasks += told[1]

    def lag(self) -> dict[str, float]:
        ordered = sorted(self.lags) or [0.0]
        at = {"p50": 0.5, "p95": 0.95, "max": 1.0}
        return {
            name: round(ordered[min(len(ordered) - 1, int(p * len(ordered)))], 1) for name, p in at.items()
        }

    def long(self) -> dict[str, float]:
        return {"count": len(self.tasks), "longest_ms": round(max(self.tasks, default=0.0), 1)}


def at_rest(page: Page, seconds: float = 4.0) -> float:
    """Share of a core that the browser's processes take while nothing happens."""

    def taken() -> float:
        told = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                name, _, rest = stat.read_text().rpartition(")")
            except OSError:
                continue  # it has ended
            if "chrom" in name or "headless" in name:
                told += sum(map(int, rest.split()[11:13]))
        return told / os.sysconf("SC_CLK_TCK")

    before = taken()
    page.wait_for_timeout(1000 * seconds)
    return (taken() - before) / seconds


def first_page(context: Any, url: str) -> float:
    """Seconds until the recorded race of a page never seen before can be walked by a key."""
    page = context.new_page()
    start = time.monotonic()
    page.goto(url, wait_until="commit")
    page.wait_for_selector('.arena[data-state="recorded"] #replay-play:enabled')
    page.focus("#text-space")
    page.keyboard.press("Home")
    page.wait_for_function("document.querySelectorAll('#text-space .out .tok').length === 0")
    seconds = time.monotonic() - start
    context.close()
    return seconds


def tell(server: subprocess.Popen[str], word: str) -> None:
    """How races run from now on: "turns" with an unwatched one, or "whole"."""
    assert server.stdin is not None
    server.stdin.write(f"{word}\n")
    server.stdin.flush()
    said(server, "HEARD")


def said(server: subprocess.Popen[str], word: str) -> str:
    """What the server says next behind this word."""
    assert server.stdout is not None
    for line in server.stdout:
        if line.startswith(word):
            return line.removeprefix(word)
    sys.exit("the page ended")


def race(page: Page) -> int:
    """A race on the page; its lanes' tokens, as its last frame tells them."""
    before = page.get_attribute(".arena", "data-race") or ""
    page.click("#race")
    page.wait_for_function(
        "old => { const arena = document.querySelector('.arena');"
        " return arena.dataset.race !== old && arena.dataset.state === 'done'; }",
        arg=before,
        timeout=120_000,
        polling=200,  # by default it asks at every frame, which makes the browser paint sixty a second
    )
    return sum(lane["tokens"] for lane in page.evaluate("window.told").values())


if __name__ == "__main__":
    main()
