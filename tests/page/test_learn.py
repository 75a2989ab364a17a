"""The lessons in a real browser: every task, by pointer and by keyboard, wide and narrow, light and dark."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect
from served import HOSTILE, TIMEOUT, Server, alarmed
from tiny import some
from walking import go, learn, solve, steps

import app
from space_core.views import walk

NAMES = list(steps())


ANEW = """
([code, walk]) => {
  const learn = document.querySelector(".learn");
  learn.replaceWith(Object.assign(document.createElement("section"), { className: "learn" }));
  new Function("element", "props", code)(document.querySelector("#learn"), { walk });
  document.activeElement?.blur();
  scrollTo(0, 0);
}
"""
"""What Gradio does with the tab's script when a page opens."""


@pytest.fixture(scope="module")
def school(
    browser: Browser, browser_context_args: dict, empty_server: Server
) -> Iterator[tuple[Page, list[str]]]:
    """The Learn tab with no model behind the page, and what it must not do; opened once for all tests here."""
    context = browser.new_context(**browser_context_args)
    page = context.new_page()
    page.set_default_timeout(TIMEOUT)
    alarms = alarmed(page)
    page.goto(empty_server.url)
    expect(page.locator('.arena[data-state="recorded"]')).to_be_visible()
    learn(page)
    yield page, alarms
    context.close()


@pytest.fixture
def lessons(school: tuple[Page, list[str]]) -> Iterator[Page]:
    """The lessons as nobody has touched them."""
    page, alarms = school
    alarms.clear()
    page.evaluate(ANEW, [app.scripts(app.LEARN), walk.page()])
    expect(page.locator(".learn .step-title")).to_be_visible()
    yield page
    assert page.evaluate("window.pwned") is None and alarms == []


def finished(page: Page, name: str) -> Any:
    return page.locator(f"#step-{name}.finished")


def said(page: Page, tone: str) -> Any:
    return page.locator(f".said[data-tone={tone}]")


# ---------------------------------------------------------------- the walk


def test_the_lessons_need_neither_model_nor_server(watched: Page, empty_server: Server) -> None:
    watched.goto(empty_server.url)
    expect(watched.locator('.arena[data-state="recorded"]')).to_be_visible()
    requests: list[str] = []
    watched.on("request", lambda request: requests.append(request.url))
    learn(watched)
    for name in NAMES:
        solve(watched, name)
    # The page asks on whether the model is there; nothing else is asked, and nobody else.
    assert [url for url in requests if not url.startswith(empty_server.url)] == []
    assert [url for url in requests if "queue/" in url] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_task_can_be_done(lessons: Page, name: str) -> None:
    go(lessons, name)
    step = steps()[name]
    expect(lessons.locator(".step-title")).to_have_text(step["title"])
    for words in step["lead"]:
        expect(lessons.locator(".lead", has_text=words)).to_be_visible()
    expect(finished(lessons, name)).to_have_count(0)
    solve(lessons, name)
    expect(finished(lessons, name)).to_have_count(1)
    expect(lessons.locator(".missed")).to_have_count(0)


def test_steps_keep_what_was_done(lessons: Page) -> None:
    solve(lessons, "verify")
    go(lessons, "rows")
    lessons.click("#next-0")
    expect(lessons.locator(".learn")).to_have_attribute("data-step", NAMES[1])
    expect(lessons.locator(".step-title")).to_be_focused()
    lessons.keyboard.press("ArrowRight")
    lessons.keyboard.press("ArrowRight")
    expect(lessons.locator(".learn")).to_have_attribute("data-step", "verify")
    expect(said(lessons, "right")).to_have_text(steps()["verify"]["right"])
    lessons.keyboard.press("ArrowLeft")
    expect(lessons.locator("[aria-current=step]")).to_have_attribute("id", "step-guess")


# ---------------------------------------------------------------- answers that are wrong


def test_rows_shows_the_guess_beside_the_measurement(lessons: Page) -> None:
    step = steps()["rows"]
    lessons.click("#rows-call")
    lessons.click("#rows-ten")
    assert lessons.locator(".lesson-rows .out").text_content() == "".join(step["plain"][:11])
    expect(lessons.locator(".counts")).to_contain_text("11 calls, 11 tokens")
    lessons.locator("#rows-guess").fill(str(step["asked"]))
    lessons.click("#rows-reveal")
    expect(lessons.locator(".lesson-rows .said")).to_contain_text(step["measured"])
    guessed = lessons.locator(".curve .guessed").bounding_box()
    found = lessons.locator(".curve .found").bounding_box()
    assert guessed and found
    higher = guessed["y"] < found["y"]
    assert higher == (step["ratio"] < step["asked"])


def test_a_masks_place_is_behind_its_own(lessons: Page) -> None:
    step = steps()["mask"]
    go(lessons, "mask")
    expect(lessons.locator("button.asker").first).to_be_disabled()
    lessons.locator(".new-place").nth(step["slot"] - 1).click()
    expect(said(lessons, "wrong")).to_have_text(step["wrong"])
    expect(finished(lessons, "mask")).to_have_count(0)
    solve(lessons, "mask")
    for slot in range(1, len(step["asked"]) + 1):
        lessons.locator("button.asker").nth(slot - 1).click()
        tops = lessons.locator(".panel .guesses li")
        expect(tops).to_have_count(len(step["asked"][slot - 1]))
        right = step["asked"][slot - 1][0][0] == step["places"][slot]
        expect(lessons.locator(".verdict-line.good")).to_have_count(int(right))


def test_every_round_of_guesses_is_judged(lessons: Page) -> None:
    step = steps()["guess"]
    go(lessons, "guess")
    exact = 0
    for at, told in enumerate(step["rounds"]):
        guess = min(2, len(told["drafts"]))
        expect(lessons.locator("#guess-reveal")).to_be_disabled()
        lessons.check(f"input[name=guess-stand][value='{guess}']")
        expect(lessons.locator(".draft-option.trusted")).to_have_count(guess)
        lessons.click("#guess-reveal")
        exact += guess == told["accepted"]
        expect(lessons.locator(".draft-option[data-fate=stands]")).to_have_count(told["accepted"])
        fell = lessons.locator(".draft-option[data-fate=falls]")
        expect(fell).to_have_count(int(told["accepted"] < len(told["drafts"])))
        expect(lessons.locator(".score")).to_contain_text(f"{exact} of {at + 1} call")
        lessons.click("#guess-next")
    expect(lessons.locator(".trust .bar-line")).to_have_count(len(step["trust"]))


def test_a_wrong_check_is_marked(lessons: Page) -> None:
    step = steps()["verify"]
    go(lessons, "verify")
    lessons.click("#verify-check")
    expect(said(lessons, "wrong")).to_have_text("Judge every draft first.")
    wrong = {"accepted": "rejected", "rejected": "accepted", "unreached": "accepted"}
    for at, fate in list(enumerate(step["fates"]))[1:]:
        lessons.check(f"input[name=verify-{at}][value={wrong[fate]}]")
    lessons.click("#verify-check")
    expect(lessons.locator(".chain-line.missed")).to_have_count(len(step["fates"]) - 1)
    assert lessons.locator(".chain-line[data-fate]").count() == 0, "the answer is not given away"
    # What stands behind the draft that falls may look right: that it is not asked is another mistake.
    for at, fate in list(enumerate(step["fates"]))[1:]:
        lessons.check(f"input[name=verify-{at}][value={'accepted' if fate == 'unreached' else fate}]")
    lessons.click("#verify-check")
    expect(said(lessons, "wrong")).to_have_text(step["behind"])
    expect(lessons.locator(".chain-line.missed")).to_have_count(step["fates"].count("unreached"))
    solve(lessons, "verify")
    expect(finished(lessons, "verify")).to_have_count(1)


@pytest.mark.more
def test_cards_that_do_not_fit_go_back(lessons: Page) -> None:
    step = steps()["grid"]
    go(lessons, "grid")
    lessons.locator(".slot").first.click()
    expect(lessons.locator(".lesson-grid .said")).to_have_text("Choose a card first.")
    wrong = [(group + 1) % (step["k"] + 1) for group in step["cards"]]
    cards = lessons.locator(".learn .card").element_handles()
    for card, place in zip(cards, wrong, strict=True):
        card.click()
        lessons.locator(".slot").nth(place).click()
    expect(said(lessons, "wrong")).to_have_text(step["wrong"])
    expect(lessons.locator(".learn .card:visible")).to_have_count(step["k"] + 1)
    assert lessons.locator(".unjudged .fate:visible").count() == 0, "the verdict is not given away"
    # one card can be taken back
    cards[0].click()
    lessons.locator(".slot").first.click()
    expect(lessons.locator(".learn .card:visible")).to_have_count(step["k"])
    lessons.locator(".slot").first.click()
    expect(lessons.locator(".learn .card:visible")).to_have_count(step["k"] + 1)
    for card, place in zip(cards, step["cards"], strict=True):
        card.click()
        lessons.locator(".slot-cell, .group:not(.grid-head *)").nth(place).click()
    expect(lessons.locator(".lesson-grid .place[data-row]")).to_have_count(
        len(step["opened"]["structure"]["rows"])
    )
    chosen = lessons.locator(".lesson-grid :is(.group.chosen, .place.taken)")
    expect(chosen).to_have_count(0)  # nor is the second answer
    for guess, marked in ((1, 0), (0, 1 + len(step["opened"]["chosen"])), (2, 0)):
        group = (step["opened"]["group"] + guess) % (step["k"] + 1)
        lessons.check(f"input[name=grid-group][value='{group}']")
        expect(chosen).to_have_count(marked)
    expect(finished(lessons, "grid")).to_have_count(1)


def test_each_wrong_cell_says_why(lessons: Page) -> None:
    step = steps()["sight"]
    whys = step["structure"]["whys"][step["row"]]
    go(lessons, "sight")
    lessons.click("#sight-check")
    seen = [column for column, why in enumerate(whys) if step["reasons"][why][0]]
    expect(lessons.locator(".toggle.missed")).to_have_count(len(seen))
    expect(lessons.locator(".why-list li")).to_have_count(len(seen))
    expect(lessons.locator(".why-list li").last).to_have_text("Mask 2 of group 1 sees itself.")
    assert lessons.locator(".rules").count() == 0


@pytest.mark.more
@pytest.mark.parametrize("at", range(len(steps()["sight"]["rules"])))
def test_a_rules_run_is_shown_as_it_was_recorded(lessons: Page, at: int) -> None:
    step = steps()["sight"]
    rule = step["rules"][at]
    solve(lessons, "sight")
    lessons.check(f"input[name=sight-rule][value='{int(at == 0)}']")
    lessons.check(f"input[name=sight-rule][value='{at}']")
    leaks = sum(line.count("!") for line in rule["whys"])
    expect(lessons.locator(".sheet .map .cell.leak")).to_have_count(leaks)
    lessons.click("#sight-stays" if rule["breaks"] else "#sight-breaks")
    expect(said(lessons, "wrong")).to_contain_text(rule["outcome"])
    texts = lessons.locator(".run .snippet")
    expect(texts).to_have_count(2)
    split = rule["split"]
    assert lessons.locator(".fork").count() == (0 if split is None else 2)
    if split is None:
        assert texts.nth(0).text_content() == texts.nth(1).text_content() == "".join(rule["plain"])
    else:
        assert lessons.locator(".run .other").text_content() == "".join(rule["text"][split:])
        assert texts.nth(0).locator(".same").first.text_content() == "".join(rule["plain"][:split])


def test_a_row_that_may_not_stay_is_marked(lessons: Page) -> None:
    go(lessons, "keep")
    lessons.locator(".keep-row.mask").first.click()
    lessons.click("#keep-check")
    stays = sum(fate in ("newest", "accepted") for fate in steps()["keep"]["opened"]["fates"])
    expect(lessons.locator(".keep-row.missed")).to_have_count(1 + stays)
    expect(said(lessons, "wrong")).to_be_visible()
    lessons.locator(".keep-row.mask").first.click()
    solve(lessons, "keep")
    run = steps()["keep"]["run"]
    assert lessons.locator(".lesson-keep .out").last.text_content() == "".join(run["plain"])
    expect(lessons.locator(".lesson-keep .out .tok.accepted")).to_have_count(
        sum(origin == "accepted" for call in run["calls"] for _, origin in call)
    )


def test_settings_show_gain_over_cost(lessons: Page) -> None:
    step = steps()["train"]
    go(lessons, "train")
    lessons.locator(".train-token").nth(3).click()
    targets = lessons.locator(".train-token[data-role=target] code")
    expect(targets).to_have_count(step["k"])
    for masks in ("trained", "untrained"):
        for heat in range(len(step["temperatures"])):
            lessons.check(f"input[name=train-masks][value={masks}]")
            lessons.check(f"input[name=train-heat][value='{heat}']")
            lessons.locator("#train-k").fill("8")
            gain, price = step["gains"][masks][heat][7], step["places"][0]["costs"][7]
            expect(lessons.locator(".scale .ours .bar-value")).to_have_text(f"{gain:.2f} tokens")
            expect(lessons.locator(".scale .theirs .bar-value")).to_have_text(f"{price:.2f} plain calls")
            speed = gain / price
            tone = "even" if abs(speed - 1) <= 0.03 else "good" if speed > 1 else "bad"
            expect(lessons.locator(".scale")).to_have_attribute("data-tone", tone)
    free = len(step["places"]) - 1
    lessons.check(f"input[name=train-place][value='{free}']")
    expect(lessons.locator(".scale .theirs .bar-value")).to_have_text("1.00 plain calls")
    expect(finished(lessons, "train")).to_have_count(0)


def test_the_questions_at_the_end_have_answers(lessons: Page) -> None:
    go(lessons, NAMES[-1])
    questions = lessons.locator(".questions details")
    expect(questions).to_have_count(6)
    for question in questions.all():
        answer = question.locator("p")
        expect(answer).to_be_hidden()
        question.locator("summary").press("Enter")
        expect(answer).to_be_visible()


# ---------------------------------------------------------------- keyboard


def test_the_grid_is_built_by_keyboard(lessons: Page) -> None:
    step = steps()["grid"]
    lessons.focus("#step-grid")
    lessons.keyboard.press("Enter")
    for name in ("A", "B", "C", "D", "E")[: step["k"] + 1]:
        group = step["cards"][ord(name) - ord("A")]
        card = lessons.locator(".learn .card", has_text=name).filter(visible=True).first
        card.focus()
        lessons.keyboard.press("Space")
        expect(card).to_have_attribute("aria-pressed", "true")
        label = step["opened"]["structure"]["rows"][group]["name"]
        lessons.get_by_label(f"Behind {label}: empty").focus()
        lessons.keyboard.press("Enter")
    first = lessons.locator("input[name=grid-group]").first
    expect(first).to_be_focused()
    lessons.keyboard.press("Space")
    for _ in range(step["opened"]["group"]):
        lessons.keyboard.press("ArrowRight")
    expect(finished(lessons, "grid")).to_have_count(1)


def test_a_line_is_filled_and_a_text_walked_by_keyboard(lessons: Page) -> None:
    step = steps()["sight"]
    go(lessons, "sight")
    for column, why in enumerate(step["structure"]["whys"][step["row"]]):
        if step["reasons"][why][0]:
            lessons.focus(f".toggle[data-column='{column}']")
            lessons.keyboard.press("Space")
    lessons.focus("#sight-check")
    lessons.keyboard.press("Enter")
    lessons.focus("input[name=sight-rule]:checked")
    lessons.keyboard.press("ArrowDown")
    expect(lessons.locator("input[name=sight-rule][value='1']")).to_be_checked()
    cell = lessons.locator(".sheet .cell[tabindex='0']")
    cell.focus()
    lessons.keyboard.press("ArrowRight")
    expect(lessons.locator("#learn-why")).to_have_text("The newest token sees itself.")

    go(lessons, "train")
    lessons.locator(".train-token[tabindex='0']").focus()
    lessons.keyboard.press("ArrowRight")
    lessons.keyboard.press("ArrowRight")
    lessons.keyboard.press("Enter")
    expect(lessons.locator(".train-token").nth(2)).to_have_attribute("data-role", "anchor")
    lessons.focus("#train-k")
    before = lessons.locator(".slider .value").text_content()
    lessons.keyboard.press("ArrowRight")
    expect(lessons.locator(".slider .value")).not_to_have_text(before or "")


@pytest.mark.more
def test_everything_that_can_be_used_has_a_name_and_a_focus(lessons: Page) -> None:
    for name in NAMES:
        solve(lessons, name)
        nameless = lessons.locator(".learn").evaluate(
            """root => [...root.querySelectorAll('button, input, summary, [role=img], [role=group], [role=grid]')]
              .filter(node => !(node.ariaLabel || node.textContent.trim() || node.labels?.[0]?.textContent.trim()))
              .map(node => node.outerHTML.slice(0, 120))"""
        )
        assert nameless == [], name
        ids = lessons.evaluate("[...document.querySelectorAll('[id]')].map(node => node.id)")
        doubled = {each for each in ids if ids.count(each) > 1}
        assert not {each for each in doubled if each.split("-")[0] in (*NAMES, "step", "learn")}, doubled


# ---------------------------------------------------------------- looks


@pytest.mark.parametrize("scheme", some(["light", "dark"], ["dark"]))
def test_the_lessons_fit_a_phone_and_can_be_read(browser: Any, empty_server: Server, scheme: str) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(TIMEOUT)
    page.goto(empty_server.url)
    expect(page.locator('.arena[data-state="recorded"]')).to_be_visible()
    learn(page)
    for name in NAMES:
        solve(page, name)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
        beyond = page.evaluate(
            """() => [...document.querySelectorAll('.learn button, .learn .choice label, .learn p')]
              .filter(node => node.offsetParent && node.getBoundingClientRect().right > 390)
              .filter(node => !node.closest('.scroll, .snippet'))
              .map(node => node.outerHTML.slice(0, 100))"""
        )
        assert beyond == [], name
        low = page.evaluate(CONTRAST)
        assert low == [], (name, scheme)
    context.close()


CONTRAST = """() => {
  const pen = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgb = (color, under) => {
    pen.fillStyle = `rgb(${under.join(' ')})`; pen.fillRect(0, 0, 1, 1);
    pen.fillStyle = color; pen.fillRect(0, 0, 1, 1);
    return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (color) => color.map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => {
    const chain = [];
    for (let at = node; at; at = at.parentElement) chain.unshift(getComputedStyle(at).backgroundColor);
    return chain.reduce((under, color) => rgb(color, under), [255, 255, 255]);
  };
  const kinds = '.eyebrow, .step-title, .lead, .ask, .turn, .said, .small, .say, .act:not(:disabled), .choice label span, .value, .bar-name, .fate, .card';
  return [...document.querySelectorAll('.learn :is(' + kinds + ')')].filter(node => node.offsetParent && node.textContent)
    .map(node => {
      const under = ground(node);
      const [a, b] = [light(rgb(getComputedStyle(node).color, under)), light(under)];
      return [node.className, node.textContent.slice(0, 30), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
    }).filter(([, , ratio]) => ratio < 4.5);
}"""


def test_less_motion_means_none(watched: Page, empty_server: Server) -> None:
    watched.emulate_media(reduced_motion="reduce")
    watched.goto(empty_server.url)
    learn(watched)
    watched.click("#rows-call")
    moving = "document.getAnimations().filter(a => a.effect.target.closest('.learn')).length"
    assert watched.evaluate(moving) == 0
    watched.emulate_media(reduced_motion="no-preference")
    watched.click("#rows-call")
    assert watched.evaluate(moving) == 1


# ---------------------------------------------------------------- hostile text


def hostile(piece: str) -> dict[str, Any]:
    """The walk with each token of the recording replaced by one that would run if taken for markup."""
    told = walk.read()
    assert told is not None

    def other(value: Any) -> Any:
        if isinstance(value, str):
            return piece
        return [other(value[0]), *value[1:]] if type(value[-1]) is float else list(map(other, value))

    close = told["close"]
    opened = close["opened"]
    for name in ("prompt", "plain", "anchor", "asked"):
        close[name] = other(close[name])
    close["calls"] = [[[piece, origin] for _, origin in call] for call in close["calls"]]
    for name in ("chain", "own", "guesses"):
        opened[name] = other(opened[name])
    for each in told["rounds"]:
        for name in ("text", "drafts", "own"):
            each[name] = other(each[name])
    for rule in told["rules"]["rules"]:
        for name in ("prompt", "plain", "text"):
            rule[name] = other(rule[name])
    told["made"]["model"] = piece
    machine = {"name": piece, "words": piece, "points": [(1, 1.0), (16, 2.0)]}
    return walk.walk(told, [machine], [])


@pytest.mark.parametrize("piece", some(HOSTILE[:4], HOSTILE[2:3]))
def test_hostile_tokens_stay_text(watched: Page, empty_server: Server, piece: str) -> None:
    watched.add_init_script(
        f"const told = {json.dumps(hostile(piece))}; const parse = JSON.parse;"
        "JSON.parse = (...all) => { const value = parse(...all);"
        " return value?.format === 'space-walk/1' ? told : value; };"
    )
    watched.goto(empty_server.url)
    learn(watched)
    expect(watched.locator(".rail-note")).to_contain_text(piece)
    for name in NAMES[:-1]:
        solve(watched, name)
        assert piece in (watched.locator(".stage").text_content() or ""), name
        assert watched.locator("#learn :is(img, script)").count() == 0, name
    go(watched, NAMES[-1])
    watched.locator(".train-token").nth(3).click()
    expect(watched.locator(".stage .said").first).to_contain_text(piece)
    assert watched.locator("#learn :is(img, script)").count() == 0


def test_without_a_recording_the_tab_says_so(watched: Page, empty_server: Server) -> None:
    watched.add_init_script(
        "const parse = JSON.parse; JSON.parse = (...all) => { const value = parse(...all);"
        " return value?.format === 'space-walk/1' ? null : value; };"
    )
    watched.goto(empty_server.url)
    watched.get_by_role("tab", name="Learn").click()
    expect(watched.locator(".learn .lead")).to_contain_text("python -m space_core.views.lessons")
