"""A model that writes nothing but attacks, in a real browser; and the page inside other people's pages."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cycle import cycle_model
from playwright.sync_api import Page, expect
from served import TIMEOUT, illustrated, set_number, text
from visiting import hosting

from space_core.views import frames

FORMS = (
    "${X}",
    "`${X}`",
    "\\${X}",
    "${`${X}`}",
    "{{X}}",
    "{{{X}}}",
    "{{#each X}}",
    "<img src=x onerror=X>",
    "<svg/onload=X>",
    "</script><script>X</script>",
    "<iframe srcdoc='<script>parent.X</script>'>",
    "<a href=javascript:X>x</a>",
    "\"><img src=x onerror='X'>",
    "' autofocus onfocus=X tabindex=1 '",
    "--><script>X</script><!--",
    "</textarea><script>X</script>",
    "<style>@import 'javascript:X'</style>",
    "<math><mtext></form><mglyph><style></math><img src onerror=X>",
    "]]><script>X</script>",
    "\\u003cimg src=x onerror=X\\u003e",
    "&lt;img src=x onerror=X&gt;",
    "C:\\users\\X\\n",
    "'+X+'",
    ");X;//",
    "\u2028X\u2029",
)
DEEDS = (
    "window.pwned=1",
    "alert(1)",
    "parent.pwned=1",
    "document.body.dataset.pwned=1",
    "fetch('//127.0.0.1:9/')",
    "eval('pwned=1')",
    "(()=>{throw 1})()",
    "location='#pwned'",
)
PIECES = tuple(form.replace("X", deed) for deed in DEEDS for form in FORMS)
assert len(set(PIECES)) == 200


def every(count: int) -> tuple[str, ...]:
    """So many of the 200, spread over forms and deeds."""
    return tuple(PIECES[n * 27 % len(PIECES)] for n in range(count))


@contextmanager
def hostile_page(folder: Path, count: int, code: str | None = None) -> Iterator[str]:
    model = cycle_model(folder / "hostile", every(count))
    with hosting(folder / "log.txt", "--model", str(model), "--device", "cpu", code=code) as host:
        host.wait_for_the_model()
        yield host.url


def attacked(page: Page, url: str, count: int) -> list[str]:
    """What went wrong when all pieces were written, hovered, replayed and shared."""
    found: list[str] = []
    page.on("dialog", lambda dialog: (found.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on("pageerror", lambda error: found.append(f"error {error}"))
    page.on("request", lambda r: found.append(f"request {r.url}") if ":9/" in r.url else None)
    page.set_default_timeout(TIMEOUT)
    page.goto(url)
    page.fill("#prompt textarea", "".join(every(count)[:8]))
    set_number(page, "budget", count + 1)
    page.click("#race")
    expect(page.locator(".arena")).to_have_attribute("data-state", "done", timeout=4 * TIMEOUT)
    for lane in ("space", "vanilla"):
        shown = text(page, lane)
        for piece in every(count):
            if piece not in shown:
                found.append(f"{lane} lost {piece}")
    for token in page.locator("#text-space .tok").all()[:: max(1, count // 20)]:
        token.dispatch_event("pointerover")
    page.locator("#text-space .tok").last.click()
    page.wait_for_timeout(300)
    page.click("#share")
    expect(page.locator(".share")).to_be_visible()
    page.wait_for_timeout(500)
    found += [
        f"pwned {deed}" for deed in ("window.pwned", "document.body.dataset.pwned") if page.evaluate(deed)
    ]
    found += ["pwned #"] if "pwned" in page.evaluate("location.hash") else []
    inside = "#arena :is(img, script, iframe, svg[onload], a, style, math), .share :is(img:not(#card), script, iframe)"
    found += [f"markup {n}" for n in page.locator(inside).evaluate_all("all => all.map(e => e.outerHTML)")]
    return found


def test_hostile_tokens_come_back_as_text_and_nothing_runs(
    page: Page, tmp_path: Path, one_thread: None
) -> None:
    with hostile_page(tmp_path, 20) as url:
        assert attacked(page, url, 20) == []


@pytest.mark.slow
@pytest.mark.trust(10)
def test_two_hundred_hostile_tokens(page: Page, tmp_path: Path, one_thread: None) -> None:
    with hostile_page(tmp_path, 200) as url:
        assert attacked(page, url, 200) == []


MARKUP = """
import sys, app
plain = app.scripts
app.scripts = lambda names: plain(names).replace(".textContent =", ".innerHTML =")
app.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_text_painted_as_markup_is_noticed(page: Page, tmp_path: Path, one_thread: None) -> None:
    """The fault that all this looks for, planted: `innerHTML` where the page has `textContent`."""
    with hostile_page(tmp_path, 20, MARKUP) as url:
        try:
            found = attacked(page, url, 20)
        except AssertionError:  # so broken that it did not even end
            found = ["broken"]
        assert found


@pytest.mark.parametrize("count", [20, 200])
def test_frames_hold_no_markup_whoever_reads_them(count: int) -> None:
    for piece in every(count):
        told = frames.encode({"text": piece})
        assert not set("<>&\u2028\u2029") & set(told), piece


# ---------------------------------------------------------------- inside another page


@contextmanager
def another_site(inner: str) -> Iterator[str]:
    """A page of another origin that frames this one."""
    body = f"<!doctype html><iframe src='{inner}' width=1200 height=780></iframe>".encode()

    class Site(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.2", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.2:{server.server_port}/"
    finally:
        server.shutdown()


@pytest.mark.more
def test_a_hosted_page_races_inside_another_sites_frame(page: Page, tmp_path: Path) -> None:
    """As huggingface.co shows a Space, and a course its page; nothing of it breaks its own policy."""
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.set_default_timeout(TIMEOUT)
    with hosting(tmp_path / "log.txt", "--device", "cpu", SPACE_HOSTED="1") as host:
        host.wait_for_the_model()
        with another_site(host.url) as outer:
            page.goto(outer)
            inner = page.frame_locator("iframe")
            inner.locator("#race").click()
            expect(inner.locator(".arena")).to_have_attribute("data-state", "done", timeout=2 * TIMEOUT)
            illustrated(inner)
            inner.locator("#share").click()
            with page.expect_download():
                inner.locator("#save-png").click()
            for tab in ("Learn", "Benchmark", "Build"):
                inner.locator(f"button[role=tab]:has-text('{tab}')").click()
                page.wait_for_timeout(500)
            expect(inner.locator("#build-off")).to_be_visible()
    assert [words for words in said if "Content Security Policy" in words or "violates" in words] == []


@pytest.mark.more
def test_a_local_page_is_framed_by_nobody_else(page: Page, tmp_path: Path, tiny_model: Path) -> None:
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    started = hosting(tmp_path / "log.txt", "--model", str(tiny_model), "--device", "cpu")
    with started as host, another_site(host.url) as outer:
        page.goto(outer)
        page.wait_for_timeout(1500)
        assert page.frame_locator("iframe").locator("#race").count() == 0
    assert any("frame-ancestors" in words for words in said)
