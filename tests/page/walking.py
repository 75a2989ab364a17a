"""A visitor who takes the lessons: opens a step and does its task, from the same data as the page."""

from __future__ import annotations

import json
from typing import Any

from playwright.sync_api import Page, expect

from space_core.views import walk


def steps() -> dict[str, dict[str, Any]]:
    """The walk as it is served, by the steps' names."""
    return {step["id"]: step for step in json.loads(walk.page())["steps"]}


def learn(page: Page) -> None:
    page.get_by_role("tab", name="Learn").click()
    expect(page.locator(".learn .step-title")).to_be_visible()


def go(page: Page, step: str) -> None:
    page.click(f"#step-{step}")
    expect(page.locator(".learn")).to_have_attribute("data-step", step)


def solve(page: Page, name: str) -> None:
    """Open a step and do its task, without a mistake."""
    go(page, name)
    globals()[f"solve_{name}"](page, steps()[name])


def solve_rows(page: Page, step: dict[str, Any]) -> None:
    page.click("#rows-ten")
    page.locator("#rows-guess").fill("20")
    page.click("#rows-reveal")


def solve_mask(page: Page, step: dict[str, Any]) -> None:
    page.locator(".new-place").nth(step["slot"]).click()


def solve_guess(page: Page, step: dict[str, Any]) -> None:
    page.check(f"input[name=guess-stand][value='{step['rounds'][0]['accepted']}']")
    page.click("#guess-reveal")


def solve_verify(page: Page, step: dict[str, Any]) -> None:
    for at, fate in enumerate(step["fates"]):
        if at:
            page.check(f"input[name=verify-{at}][value={fate}]")
    page.click("#verify-check")


def solve_grid(page: Page, step: dict[str, Any]) -> None:
    slots = [page.locator(".slot").nth(at).element_handle() for at in range(step["k"] + 1)]
    cards = page.locator(".learn .card").element_handles()
    for card, group in zip(cards, step["cards"], strict=True):
        card.click()
        slots[group].click()  # type: ignore[union-attr]
    page.check(f"input[name=grid-group][value='{step['opened']['group']}']")


def solve_sight(page: Page, step: dict[str, Any]) -> None:
    whys = step["structure"]["whys"][step["row"]]
    for column, why in enumerate(whys):
        if step["reasons"][why][0]:
            page.click(f".toggle[data-column='{column}']")
    page.click("#sight-check")
    for at, rule in enumerate(step["rules"]):
        page.check(f"input[name=sight-rule][value='{at}']")
        page.click("#sight-breaks" if rule["breaks"] else "#sight-stays")


def solve_keep(page: Page, step: dict[str, Any]) -> None:
    for row, fate in enumerate(step["opened"]["fates"]):
        if fate in ("newest", "accepted"):
            page.locator(".keep-row:not(.mask)").nth(row).click()
    page.click("#keep-check")
    page.click("#keep-call")
    page.click("#keep-all")


def solve_train(page: Page, step: dict[str, Any]) -> None:
    page.locator(".train-token").nth(6).click()
    for masks in ("untrained", "trained"):
        page.check(f"input[name=train-masks][value={masks}]")
        for k in step["ks"]:
            page.locator("#train-k").fill(str(k))
    best = max(
        step["ks"], key=lambda k: step["gains"]["trained"][0][k - 1] / step["places"][0]["costs"][k - 1]
    )
    page.locator("#train-k").fill(str(best))
