"""The lessons: eight steps on recorded calls, as the page is handed them. The contract "space-walk/1".

`assets/recorded/lessons.json` ("space-lessons/1", made by `lessons.py`) holds what a model did, and the
result files of the benchmark what calls cost. Here both become steps: titles, tasks, and sentences that
are computed from those figures, so that they stay true for another checkpoint. The browser fills in what
depends on the reader's answer: `{name}` in a sentence. This room imports neither torch nor a model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from space_core.errors import ResultError
from space_core.views import benchmarks, phrases, recording

FORMAT: Final = "space-lessons/1"
WALK: Final = "space-walk/1"
PATH = recording.PATH.with_name("lessons.json")
BENCHMARKS = recording.PATH.parents[1] / "benchmarks"
MAX_BYTES = 300_000
"""It comes with the page itself, so it stays small."""

ROWS = 36
"""Rows whose cost the first step asks for: the paper's call with five drafts."""
EVEN = 0.03
"""Speeds closer than this count as the same, as in `verdict.py`."""

Machine = dict[str, Any]


def read(path: Path = PATH) -> dict[str, Any] | None:
    """The recording; None where there is none, or none that is one."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return told if isinstance(told, dict) and told.get("format") == FORMAT else None


def encode(told: dict[str, Any]) -> str:
    """A recording as JSON text that holds no markup, one line for each of its parts."""
    return "{\n" + ",\n".join(f"{_text(name)}:{_text(value)}" for name, value in told.items()) + "\n}\n"


def page(path: Path = PATH, results: Path = BENCHMARKS) -> str:
    """The whole walk as JSON text for the browser; empty where there is no recording."""
    told = read(path)
    if told is None:
        return ""
    try:
        benches, calls = benchmarks.read(results)
    except ResultError:
        benches, calls = [], []
    return _text(walk(told, machines(calls), benches))


def machines(results: Sequence[benchmarks.Calls]) -> list[Machine]:
    """What a call of so many rows takes, in plain calls: of each file its first line (dtype and context)."""
    found = []
    for result in results:
        dtype, context, times = next(result.lines())
        found.append(
            {
                "name": result.head.device,
                "words": f"{result.head.model.partition(':')[0]} on {result.head.device}, {dtype}, "
                f"{_count(context, 'token')} before the call",
                "points": [(time.rows, round(time.ratio, 4)) for time in times],
            }
        )
    return found


def walk(
    told: dict[str, Any], machines: list[Machine], benches: Sequence[benchmarks.Bench]
) -> dict[str, Any]:
    """All steps, from a recording and what calls cost."""
    return {
        "format": WALK,
        "made": f"Recorded from {told['made']['model']} on {told['made']['date']}, greedy, on full grids",
        "steps": [
            _rows(told, machines),
            _mask(told),
            _guess(told),
            _verify(told),
            _grid(told),
            _sight(told),
            _keep(told),
            _train(told, machines, benches),
        ],
        "questions": _questions(told, machines),
    }


# ---------------------------------------------------------------- the steps


def _rows(told: dict[str, Any], machines: list[Machine]) -> dict[str, Any]:
    close = told["close"]
    step = {
        "id": "rows",
        "short": "One row a call",
        "title": "Plain decoding feeds one row a call",
        "lead": [
            "To write a token, all weights of the model go through the processor once. "
            "Plain decoding feeds that call a single row, the newest token, and gets a single token back. "
            "The next call starts all over.",
        ],
        "prompt": close["prompt"],
        "plain": close["plain"],
        "press": "Make a call, a few times. Every call writes one token, so a text of 100 tokens is 100 "
        "calls.",
        "machine": None,
    }
    rows = max((rows for rows, _ in machines[0]["points"] if rows <= ROWS), default=1) if machines else 1
    if rows > 1:
        machine = machines[0]
        ratio = cost(machine, rows)
        step["machine"] = machine
        step["asked"] = rows
        step["ratio"] = ratio
        step["task"] = (
            f"What would a call of {rows} rows take? Drag to your guess, in calls of one row, "
            "then look at the measurement."
        )
        step["measured"] = (
            f"Measured ({machine['words']}): a call of {rows} rows takes as long as {_number(ratio)} calls "
            f"of one row. {_room(rows, ratio)}"
        )
    return step


def _room(rows: int, ratio: float) -> str:
    if ratio > 0.8 * rows:
        return "Here a row costs about a call: more rows save nothing on this machine."
    words = (
        f"Fed one by one, the {rows} rows would be {rows} calls: most of the room in a plain call stays "
        "empty, and SPACE puts guesses into it."
    )
    if ratio > 1 + EVEN:
        words += (
            " It is not free here: such a call is worth it only if it writes more than "
            f"{_number(ratio)} tokens. The last step weighs that."
        )
    return words


def _mask(told: dict[str, Any]) -> dict[str, Any]:
    close = told["close"]
    plain, written, asked = close["plain"], close["written"], close["asked"]
    last = written - 1  # in `plain`: the token that the asking call writes by itself
    slot = min(2, len(asked))
    return {
        "id": "mask",
        "short": "What a mask asks",
        "title": "A mask is a question about a place further on",
        "lead": [
            "Behind the text stand mask tokens, [M]. A mask is an empty place: it sees the text and the "
            "masks before it, and predicts the token after its own place, as every row of the model does. "
            "The newest token’s own row answers for the first new place, so the masks ask one place "
            "further on.",
        ],
        "task": f"Which place does mask {slot} answer for? Choose it.",
        "text": close["prompt"] + "".join(plain[: max(0, last)]),
        "anchor": close["anchor"],
        "places": plain[max(0, last) : max(0, last) + len(asked) + 1],
        "asked": asked,
        "slot": slot,
        "right": f"Yes. Mask {slot} stands at new place {slot} and predicts the token behind it.",
        "wrong": (
            f"Not that one. Mask {slot} stands at new place {slot}, and a row always predicts the token "
            "behind its own place."
        ),
        "explore": "Now choose a mask: what it guessed, and what plain decoding wrote there later.",
        "hits": _hits(asked, plain[max(0, last) + 1 :]),
    }


def _hits(asked: Sequence[Sequence[Sequence[Any]]], written: Sequence[str]) -> str:
    pairs = list(zip(asked, written, strict=False))
    right = sum(guess[0][0] == piece for guess, piece in pairs)
    if right == len(asked):
        return f"All {len(asked)} masks were right this time, without seeing the tokens between."
    if not right:
        return "None of the masks was right this time: no mask sees the tokens between."
    first = next(at for at, (guess, piece) in enumerate(pairs) if guess[0][0] != piece)
    counts = ""
    if first < right:
        counts = f" As drafts only those before the first wrong one would count: {first}."
    return (
        f"{right} of {len(asked)} masks {_be(right)} right this time. The further on a mask asks, "
        f"the more tokens it does not see.{counts}"
    )


TOLD = (
    "(What they answer is then read off one after the other, and here each guess is told {} as well: that "
    "goes beyond the paper, makes better guesses, and is no part of the check.) "
)


TOLD_OF: Final = {
    "sampler": "the guess in front of it",
    "copies": "what came next where the text had the same few tokens before",
}


def _told(masks: dict[str, Any]) -> str:
    """What its guesses are told beside what the masks see, if anything."""
    told = _of_parts(masks, TOLD_OF)
    return TOLD.format(told) if told else ""


def _of_parts(masks: dict[str, Any], words: dict[str, str]) -> str:
    """The words for what these masks have beside them."""
    return " and ".join(what for part, what in words.items() if masks.get(part))


def _guess(told: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "guess",
        "short": "Drafts are guesses",
        "title": "What the masks predict are drafts: guesses, nothing more",
        "lead": [
            "The likeliest token of each mask becomes a draft for the next call. All masks are computed at "
            "once: each sees the empty places before its own, not what is guessed there, so a later draft "
            "fits only where the earlier ones come true. "
            + _told(told["masks"])
            + "A draft stands if plain decoding would have written the same token there, and all drafts "
            "before it stand too.",
        ],
        "task": "How many of these drafts will stand? Choose the last one that does, then reveal.",
        "rounds": told["rounds"],
        "exact": "Exactly: {stood}.",
        "high": "Too hopeful: {stood}.",
        "low": "Too careful: {stood}.",
        "trust": told["trust"],
        "trusted": _trusted(told["trust"]),
    }


def _trusted(trust: Sequence[Sequence[Any]]) -> str:
    judged = sum(row[2] for row in trust)
    if not judged:
        return "No draft was judged in these runs."
    sure = [row for row in trust if row[2]]
    low, high = sure[0], sure[-1]
    start = f"Of {_count(judged, 'judged draft')} in all recorded runs"
    if low is high:
        return f"{start}, {_share(high[3], high[2])} stood."
    return (
        f"{start}: where the mask gave its draft {_bin(high)}, {_share(high[3], high[2])} stood; "
        f"where it gave {_bin(low)}, {_share(low[3], low[2])}. The probability is what the planner weighs "
        "when it decides which rows are worth feeding."
    )


def _verify(told: dict[str, Any]) -> dict[str, Any]:
    opened = told["close"]["opened"]
    drafts, stood = opened["chain"][1:], opened["fates"].count("accepted")
    lost = opened["fates"].count("unreached")
    behind = ""
    if lost:
        behind = (
            f" {phrases.drafts(stood + 2, stood + 1 + lost)} stood behind a wrong token: what comes out of "
            f"{'its row' if lost == 1 else 'those rows'} belongs to a text that will never be, so it is "
            "thrown away unread, even if it looks right."
        )
    return {
        "id": "verify",
        "short": "Check them at once",
        "title": "One call checks all drafts at once",
        "lead": [
            "Feed the newest token and the drafts behind it as rows of one call. With causal attention "
            "every row sees only what stands before it, so each row says what plain decoding would write "
            "next, if the text up to that row is right.",
        ],
        "task": (
            "Be the check. For each draft, from the first one on: does the row before it say the same token? "
            "What is behind a fallen draft is not asked."
        ),
        "text": _tail(told),
        "chain": opened["chain"],
        "says": [guesses[0] for guesses in opened["guesses"][: len(opened["chain"])]],
        "fates": opened["fates"],
        "cached": opened["before"],
        "right": (
            f"That is the check. {_stood(stood, len(drafts))} One call judged "
            f"{_count(len(drafts), 'draft')}, where plain decoding needs a call for each token.{behind}"
        ),
        "wrong": "Look again at the marked drafts: compare a draft with what the row just before it says.",
        "behind": "Right up to the draft that falls. What stands behind it is not asked, even where it looks "
        "right: the rows that would say so have read a wrong token.",
    }


def _grid(told: dict[str, Any]) -> dict[str, Any]:
    opened = told["close"]["opened"]
    k = len(opened["chain"]) - 1
    group = opened["group"]
    rows = len(opened["structure"]["rows"])
    chosen = ""
    if group is not None:
        chosen = (
            f"Right. {_stood(opened['fates'].count('accepted'), k)} Group {group} is the one that assumed "
            "just that, so its guesses are the next call’s drafts. The other groups assumed another "
            "ending and are thrown away."
        )
    return {
        "id": "grid",
        "short": "Both in one call",
        "title": "The same call also drafts for the next one",
        "lead": [
            "While the drafts are being checked, nobody knows yet how many will stand. So the call "
            "carries a mask group for every outcome: one behind the newest token, in case no draft "
            "stands, and one behind each draft, in case it is the last to stand. With "
            f"{_count(k, 'draft')} that makes {k + 1} real rows and {k + 1} groups of {_count(k, 'mask')}: "
            f"{_whole_grid(rows, k)}.",
        ],
        "task": (
            "Build it. Each card is a group; its masks take the places right behind the token they assume "
            "is the last to stand. Put every card behind its token; they are checked when all are placed."
        ),
        "opened": opened,
        "k": k,
        "cards": [(2 * g + 1) % (k + 1) if k % 2 == 0 else (g + 1 + k // 2) % (k + 1) for g in range(k + 1)],
        "wrong": (
            "A group starts one place behind its token. Cards that did not fit went back: compare their "
            "first place with the tokens’ places."
        ),
        "built": f"Built: {k + 1} real rows that check, {rows - k - 1} masks that guess.",
        "then": "Now the verdict is in. Which group’s guesses does the next call take? Choose its line.",
        "stood": _stood(opened["fates"].count("accepted"), k),
        "chosen": chosen,
        "missed": "Not that group: it assumed another number of standing drafts.",
    }


def _whole_grid(rows: int, k: int) -> str:
    whole = (k + 1) ** 2
    return f"{k + 1}² = {whole} rows" if rows == whole else f"{rows} rows, of {whole} of a full grid"


def _sight(told: dict[str, Any]) -> dict[str, Any]:
    rules = told["rules"]
    structure = rules["structure"]
    names = [row["name"] for row in structure["rows"]]
    row = names.index("mask 2 of group 1")
    best = next(rule for rule in rules["rules"] if rule["id"] == "space")
    return {
        "id": "sight",
        "short": "Who sees whom",
        "title": "The attention mask keeps the futures apart",
        "lead": [
            "All these rows go through the model together, and only the attention mask keeps them apart. "
            "A mask may see what is settled, the drafts its group takes for granted, the earlier "
            "masks of its own group, and itself: that keeps its guess to the one future it is asked about. "
            "A real row never sees a mask: that is why its answer is plain decoding’s.",
        ],
        "task": "Fill in one line: what may mask 2 of group 1 see? Switch on all it may see, then check.",
        "structure": structure,
        "before": told["close"]["opened"]["before"],
        "reasons": told["reasons"],
        "row": row,
        "right": "That is its line of the attention mask.",
        "wrong": "Not yet: the marked cells are wrong. Each says why.",
        "then": "Now choose a rule, say what it does to the text, and see what it really did in recorded "
        "runs.",
        "runs": rules["runs"],
        "rules": [
            {
                **rule,
                **RULE_WORDS[rule["id"]],
                "breaks": rule["broken"] > 0,
                "outcome": _outcome(rule, best, rules),
            }
            for rule in rules["rules"]
        ],
    }


RULE_WORDS: Final = {
    "space": {"name": "SPACE’s rule", "words": "Each group sees its own past, no real row sees a mask."},
    "order": {"name": "Text order", "words": "An ordinary causal mask: every row sees all rows above it."},
    "assume": {"name": "All drafts for all", "words": "Every mask sees every draft, also behind its group."},
    "ahead": {
        "name": "Drafts see ahead",
        "words": "The newest token and the drafts see the drafts behind them.",
    },
    "masks": {"name": "Masks in sight", "words": "The newest token and the drafts see every mask."},
}


def _outcome(rule: dict[str, Any], best: dict[str, Any], rules: dict[str, Any]) -> str:
    """What a rule did in the recorded runs, and why."""
    runs, broken = rules["runs"], rule["broken"]
    rate, normal = rule["tokens"] / rule["calls"], best["tokens"] / best["calls"]
    real = [row["slot"] == 0 for row in rules["structure"]["rows"]]
    touched = any(set(line) & {"!", "?"} for line, is_real in zip(rule["whys"], real, strict=True) if is_real)
    every = f"all {runs} runs" if runs > 1 else "the run"
    speed = f"{_number(rate)} tokens a call (k = {max(rules['structure']['masks'])})"
    if rule is best:
        if broken:
            return f"The text parted in {broken} of {runs} runs, at tokens that are nearly as likely as "
            "each other."
        return f"In {every} the text is plain decoding’s, at {speed}."
    if touched and broken:
        return (
            f"In {broken} of {runs} runs another text came out. A real row saw what plain decoding never "
            "sees, so what it says is no longer what plain decoding would write, and nobody notices."
        )
    if touched:
        return (
            f"The text came out the same in {every}, by luck: a real row saw what plain decoding never "
            "sees, and nothing guarantees its answer any more."
        )
    if broken:
        return (
            f"The text parted in {broken} of {runs} runs, at tokens that are nearly as likely as each other."
        )
    change = "The guesses are as good as before here"
    if rate < normal * 0.995:
        change = (
            "Only the guesses got worse, since masks saw futures that are not theirs: "
            f"{speed} instead of {_number(normal)}"
        )
    elif rate > normal * 1.005:
        change = f"The guesses even got a little better here: {speed} instead of {_number(normal)}"
    return (
        f"In {every} the text is still plain decoding’s: no real row sees anything new, so the check is "
        f"sound. {change}."
    )


def _keep(told: dict[str, Any]) -> dict[str, Any]:
    close = told["close"]
    opened = close["opened"]
    stood, k = opened["fates"].count("accepted"), len(opened["chain"]) - 1
    rows = len(opened["structure"]["rows"])
    kept = stood + 1
    calls, tokens = len(close["calls"]), sum(map(len, close["calls"]))
    same = (
        "Token for token the same text"
        if close["equal"]
        else "The texts part at one place, where two tokens were nearly as likely"
    )
    return {
        "id": "keep",
        "short": "Accept and correct",
        "title": "Keep what is right, correct the first wrong one",
        "lead": [
            "What stands goes into the text. The first draft that fell is replaced by what the row before "
            "it says: the corrected token. If all stood, the last row adds a bonus. So every call writes "
            "at least one token, and every token is one that plain decoding would have written.",
        ],
        "task": (
            "Clean up. Which of these rows may stay in the cache for the next call? "
            f"({_stood(stood, k)}) Choose all of them, then check."
        ),
        "opened": opened,
        "text": _tail(told),
        "right": (
            f"{_count(kept, 'row')} of {rows} {'stays' if kept == 1 else 'stay'}: the newest token and "
            "what was accepted. They stand first, so keeping them is cutting the cache off behind them. "
            "The corrected token was never fed: it is the next call’s newest token."
        ),
        "wrong": (
            "Not quite: the marked rows are wrong. A row may stay if its token is now part of the text; "
            "a mask never is."
        ),
        "run": {"prompt": close["prompt"], "plain": close["plain"], "calls": close["calls"]},
        "press": "Now let it run: make SPACE’s calls, and see how many plain calls the same text takes.",
        "end": (
            f"{same}: {_count(calls, 'call')} instead of {len(close['plain'])}, "
            f"{_number(tokens / calls)} tokens a call (k = {k})."
        ),
        "sampled": (
            "At a temperature above 0 the check is a throw of dice: a draft that the masks gave q and the "
            "model gives p stands with probability min(1, p/q), and a fallen one is drawn anew from what "
            "p has more than q. That leaves exactly p: not the same text, but the same distribution. (q is "
            "what the draft was drawn with, whatever its guess was told; a draft copied from the text "
            "has q = 1.)"
        ),
    }


def _train(
    told: dict[str, Any], machines: list[Machine], benches: Sequence[benchmarks.Bench]
) -> dict[str, Any]:
    close, gains = told["close"], told["gains"]
    places = [
        {"name": machine["name"], "costs": [round(cost(machine, (k + 1) ** 2), 4) for k in _ks(gains)]}
        for machine in machines
    ]
    places.append({"name": "a machine whose rows are free (imagined)", "costs": [1.0] * len(_ks(gains))})
    return {
        "id": "train",
        "short": "Training, and limits",
        "title": "What training teaches, and when SPACE does not pay",
        "lead": [
            "A model that never met [M] guesses badly. SAR-SFT (semi-autoregressive supervised fine-tuning) "
            "shows it masks behind real text and the tokens that really follow. " + _learns(told["masks"]),
        ],
        "task": "Choose a token: a training group is anchored there. Its masks must learn the marked tokens.",
        "text": close["plain"][:40],
        "k": min(CLOSE_MASKS, told["masks"]["k"]),
        "taught": (
            "Mask {first} stands behind “{anchor}” and must answer with the token one place further "
            "on, and so on: {targets}. The token right behind is no mask’s task: the real row answers for "
            "it. One text carries many such groups at once, at places drawn anew each time."
        ),
        "learned": _learned(told["acceptance"]),
        "then": "Does it pay? Move the settings. A call must write more tokens than it costs plain calls.",
        "ks": _ks(gains),
        "temperatures": gains["temperatures"],
        "gains": {"trained": gains["trained"], "untrained": gains["untrained"]},
        "places": places,
        "goals": goals(gains, places),
        "basis": _basis(gains),
        "planner": _planner(benches, gains, machines),
        "heat": _heat(gains),
    }


CLOSE_MASKS = 3
METHOD_WORDS: Final = {
    "gated": "Here the base model is frozen. What learns is the masks’ own embeddings and a low-rank adapter "
    "that only mask rows pass through, so plain decoding is bit for bit what it was.",
    "paper": "Here all weights were trained along, so SPACE’s text is that of the model after training.",
    "untrained": "This checkpoint’s masks were never trained: it shows what happens without.",
}


LEARN_TOO: Final = {
    "sampler": "a sampler head, which tells each guess the token in front of it",
    "copies": "a small table of how far guesses lean on what followed the same tokens earlier in the text",
}


def _learns(masks: dict[str, Any]) -> str:
    """What training changed in these masks, and what else was taught beside them."""
    words = METHOD_WORDS.get(masks["method"], METHOD_WORDS["gated"])
    more = "" if masks["method"] == "untrained" else _of_parts(masks, LEARN_TOO)
    return f"{words} Beside them learn {more}." if more else words


def _ks(gains: dict[str, Any]) -> list[int]:
    return list(range(1, 1 + len(gains["trained"][0])))


def goals(gains: dict[str, Any], places: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """What there is to be found in the settings; only what the figures have."""
    speeds = [
        gain / cost
        for place in places[:-1] or places
        for table in (gains["trained"], gains["untrained"])
        for line in table
        for gain, cost in zip(line, place["costs"], strict=True)
    ]
    found = []
    where = places[0]["name"] if len(places) > 1 else "an imagined machine"
    if any(speed > 1 + EVEN for speed in speeds):
        found.append({"id": "faster", "words": f"Find a setting that is faster on {where}."})
    if any(speed < 1 - EVEN for speed in speeds):
        found.append({"id": "slower", "words": "Find one that is slower than plain decoding."})
    found.append({"id": "best", "words": f"Find the best k on {where}: trained, temperature 0."})
    return found


def _learned(acceptance: dict[str, list[float]]) -> str:
    trained, untrained = acceptance["trained"], acceptance["untrained"]
    if not trained or not untrained:
        return "No draft was judged in these runs."
    return (
        f"Draft 1 stands in {trained[0]:.0%} of the calls with the trained masks, and in "
        f"{untrained[0]:.0%} with untrained ones; draft {len(trained)} in {trained[-1]:.0%} and "
        f"{untrained[-1]:.0%}."
    )


def _basis(gains: dict[str, Any]) -> str:
    basis = (
        f"Tokens per call: {_count(gains['prompts'], 'prompt')}, {gains['tokens']} tokens each, full "
        "grids, recorded. Cost: measured calls of (k+1)² rows."
    )
    if gains["looping"]:
        basis += (
            f" {gains['looping']} of the {gains['prompts']} greedy texts run in circles, which are easy to "
            "guess: at temperature 0 the gain flatters."
        )
    return basis


def _heat(gains: dict[str, Any]) -> str:
    """How the gain changes with the temperature, at the middle k."""
    k = min(5, len(gains["trained"][0]))
    rates = [line[k - 1] for line in gains["trained"]]
    parts = [f"{_number(r)} at {t:g}" for r, t in zip(rates, gains["temperatures"], strict=True)]
    falls = rates[-1] < rates[0] * (1 - EVEN)
    tail = (
        "The hotter, the more often an unlikely token is drawn, and the fewer guesses stand."
        if falls
        else "Here the temperature changes little."
    )
    return f"Tokens a call of the trained masks by temperature, k = {k}: {', '.join(parts)}. {tail}"


def _planner(benches: Sequence[benchmarks.Bench], gains: dict[str, Any], machines: Sequence[Machine]) -> str:
    """What the planner makes of it, from the benchmark; empty where it was not measured beside the grid."""
    drawn = {
        k: gain / cost(machines[0], (k + 1) ** 2) for k, gain in enumerate(gains["trained"][0], 1) if machines
    }
    for bench in benches:
        scores = {(score.method, score.k): score for score in bench.scores}
        for (method, k), grid in scores.items():
            planned = scores.get(("space", k))
            if method == "space-grid" and planned:
                less = ""
                if grid.speedup < drawn.get(k, 0.0) * (1 - EVEN):
                    less = (
                        " (less than the bar above: whole runs also read the prompt and the guesses, "
                        "and calls get dearer as the text grows)"
                    )
                return (
                    "By default a planner feeds only the rows that are worth their time. On the benchmark "
                    f"({bench.head.name}, {bench.prompts} prompts, k = {k}) the full grid came to "
                    f"{grid.speedup:.2f}× plain decoding with {grid.rows_per_call:.0f} rows a call{less}, "
                    f"planned calls to {planned.speedup:.2f}× with {planned.rows_per_call:.1f}."
                )
    return ""


# ---------------------------------------------------------------- six questions


def _questions(told: dict[str, Any], machines: list[Machine]) -> list[dict[str, str]]:
    opened = told["close"]["opened"]
    k = len(opened["chain"]) - 1
    return [
        {
            "question": "What are the rows of a call?",
            "answer": f"The newest token, k drafts, and k + 1 groups of k masks: (k + 1)², with k = {k} "
            f"{(k + 1) ** 2} rows. That is the paper’s grid. Unless told otherwise the race feeds fewer: "
            "a planner leaves out rows that are not worth their time here, and where the text repeats "
            "itself it may check drafts copied from the text instead of the masks’.",
        },
        {
            "question": "Which tokens may a mask see?",
            "answer": "All that is settled, the newest token, the drafts up to its group’s own place, "
            "the earlier masks of its group, and itself. No other group, and no later draft: those belong to "
            "other futures, and its guess would be about them.",
        },
        {
            "question": "What happens to the drafts behind a rejected one?",
            "answer": "They are dropped unread with their groups: their rows saw a wrong token. The first "
            "wrong one is replaced by the model’s own token.",
        },
        {
            "question": "Why is the output unchanged?",
            "answer": "Because real rows see exactly what they see in plain decoding, and a draft stays "
            "only if such a row says the same token. When sampling, the acceptance rule leaves the "
            "distribution as it is. Only rounding can part the two texts, where two tokens are nearly as "
            "likely: more rows are added up in another order.",
        },
        {"question": "Why can it be slower on a CPU?", "answer": _slower(told, machines)},
        {
            "question": "What does training change?",
            "answer": "How often drafts stand, and nothing else of the check. "
            + _learned(told["acceptance"])
            + " "
            + _learns(told["masks"])
            + " What the model says of the drafts does not get any less exact: untrained masks only guess "
            "badly.",
        },
    ]


def _slower(told: dict[str, Any], machines: list[Machine]) -> str:
    """Why rows cost time, with the best and the worst of what was recorded at the middle k."""
    why = (
        "A call must fetch all weights, and a GPU waits for them most of the time: further rows are computed "
        "meanwhile, nearly for free. A CPU’s cores are busy with a few rows already, so each further row "
        "takes time, and the tokens it wins must pay for that."
    )
    if not machines:
        return why
    gains, k = told["gains"], min(5, len(told["gains"]["trained"][0]))
    rates = {
        (masks, temperature): line[k - 1]
        for masks in ("trained", "untrained")
        for temperature, line in zip(gains["temperatures"], gains[masks], strict=True)
    }
    price = cost(machines[0], (k + 1) ** 2)

    def case(masks: str, temperature: float) -> str:
        rate = rates[masks, temperature]
        heat = f"temperature {temperature:g}" if temperature else "greedy"
        return f"{masks} masks, {heat}: {_number(rate)} tokens a call, {_speed(rate / price)}"

    worst, best = sorted(rates, key=lambda each: rates[each])[:: len(rates) - 1]
    return (
        f"{why} Here, with k = {k}, a full grid costs {_number(price)} plain calls. "
        f"{case(*worst).capitalize()}; {case(*best)}."
    )


# ---------------------------------------------------------------- figures and words


def cost(machine: Machine, rows: int) -> float:
    """Plain calls that a call of so many rows takes, between the measured points on a line."""
    points = machine["points"]
    for (low, before), (high, after) in pairwise(points):
        if low <= rows <= high:
            return float(before + (after - before) * (rows - low) / (high - low))
    # Outside of what was measured the nearest slope goes on.
    (low, before), (high, after) = points[-2:] if len(points) > 1 else ((0, points[0][1]), points[0])
    return float(after + (after - before) * (rows - high) / (high - low))


def _tail(told: dict[str, Any]) -> str:
    """The text before the newest token of the call that is looked at."""
    close = told["close"]
    return str(close["prompt"] + "".join(close["plain"][: max(0, close["written"] - 1)]))


def _stood(stood: int, drafts: int) -> str:
    if stood == drafts:
        return f"All {drafts} drafts stood." if drafts > 1 else "The draft stood."
    if not stood:
        return "Draft 1 fell, so none stood."
    return f"{phrases.drafts(1, stood)} stood, draft {stood + 1} fell."


def _speed(ratio: float) -> str:
    if abs(ratio - 1) <= EVEN:
        return "about as fast as plain decoding"
    return f"{ratio:.2f}× as fast" if ratio > 1 else f"{1 / ratio:.2f}× slower"


def _share(part: int, whole: int) -> str:
    return f"{int(100 * part / whole + 0.5)}%"  # halves rise, as in the browser


def _bin(row: Sequence[Any]) -> str:
    return f"{row[0]:.0%} to {row[1]:.0%}"


def _number(value: float) -> str:
    return f"{value:.1f}" if value >= 1.95 else f"{value:.2f}"


def _be(count: int) -> str:
    return "was" if count == 1 else "were"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _text(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
