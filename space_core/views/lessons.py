"""Record what the lessons show: python -m space_core.views.lessons [--model DIR] …

Runs the bundled checkpoint on a few prompts and writes assets/recorded/lessons.json: one call chosen to
be looked at closely, calls to guess at, the same decoding under mask rules that leak, and what is won
by k, by temperature and without training. No clock is read, so a busy machine records the same. What
the lessons say of it is `walk.py`'s. Run it again when the bundled checkpoint changes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

import space_core
from space_core import metrics
from space_core.bundled import default_checkpoint
from space_core.cache import BlockCache
from space_core.detokenize import Detokenizer
from space_core.errors import SpaceError
from space_core.inspect import layout_of
from space_core.layout import Layout
from space_core.model import SpaceModel, untrained_masks
from space_core.settings import Plan, Settings
from space_core.trace import Origin, Step, Trace, longest_common_prefix
from space_core.views import inspect, recording, walk

PROMPTS: Final = (
    recording.PROMPT,
    'def is_prime(n: int) -> bool:\n    """Return True if n is a prime number."""\n',
    'class Stack:\n    """A last-in, first-out stack."""\n\n    def __init__(self):\n',
    'import csv\n\n\ndef read_rows(path):\n    """Read a CSV file and return its rows as a list."""\n',
    'def mean(values):\n    """Return the arithmetic mean of a list of numbers."""\n',
    "class Account:\n    def __init__(self, owner, balance=0):\n        self.owner = owner\n",
)
CLOSE_K = 3
"""Drafts of the call that is looked at closely: its 16 rows fit any screen."""
GUESS_K = 5
KS: Final = range(1, 9)
TEMPERATURES: Final = (0.0, 0.7, 1.2)
ROUNDS = 6
TEXT = 160
"""Characters of the text so far that are shown before a call."""
BINS: Final = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True, slots=True)
class Pair:
    """One prompt continued with and without SPACE, greedily."""

    prompt: str
    ids: tuple[int, ...]
    space: Trace
    plain: Trace

    @property
    def equal(self) -> bool:
        return self.space.output_ids == self.plain.output_ids


# ---------------------------------------------------------------- mask rules that leak


def _text_order(layout: Layout) -> Tensor:
    """Every row sees all rows before it, as a causal mask would have it."""
    return torch.ones(layout.rows, layout.rows, dtype=torch.bool).tril()


def _all_drafts(layout: Layout) -> Tensor:
    """Every mask sees every draft, also those its group assumes away."""
    sees = layout.sees()
    sees[layout.n_real :, : layout.n_real] = True
    return sees


def _drafts_ahead(layout: Layout) -> Tensor:
    """The rows that judge see the drafts behind them."""
    sees = layout.sees()
    judged = slice(layout.n_real - 1 - layout.n_drafts, layout.n_real)
    sees[judged, judged] = True
    return sees


def _open_masks(layout: Layout) -> Tensor:
    """The rows that judge see all masks."""
    sees = layout.sees()
    sees[layout.n_real - 1 - layout.n_drafts : layout.n_real, layout.n_real :] = True
    return sees


RULES: Final[dict[str, Callable[[Layout], Tensor]]] = {
    "space": Layout.sees,
    "order": _text_order,
    "assume": _all_drafts,
    "ahead": _drafts_ahead,
    "masks": _open_masks,
}
"""Who sees whom, by the rule's name: bool [rows, rows]. Only the first is SPACE's."""
LEAK, LOST = "!", "?"
REASONS: Final = {
    LEAK: (True, "{row} sees {column}: under SPACE’s rule it must not"),
    LOST: (False, "{row} does not see {column}: under SPACE’s rule it should"),
}


@dataclass(frozen=True, slots=True)
class Ruled(Layout):
    """The rows of a call under one of `RULES`."""

    rule: str = "space"

    def sees(self) -> Tensor:
        plain = Layout(self.n_real, self.n_drafts, self.anchors, self.masks)
        return RULES[self.rule](plain)


def ruled_decode(
    model: SpaceModel, prompt_ids: Sequence[int], k: int, tokens: int, rule: str
) -> list[list[int]]:
    """Greedy SPACE on full grids, under any mask rule. Returns what each call emitted."""
    cache, length = BlockCache(), len(prompt_ids)
    layout, last, drafts = Layout.first(length, k), list(prompt_ids), list[int]()
    calls: list[list[int]] = []
    left = tokens
    while left:
        ruled = Ruled(layout.n_real, layout.n_drafts, layout.anchors, layout.masks, rule)
        choices = model.forward(ruled, [*last, *drafts], cache).argmax(-1).tolist()
        accepted = longest_common_prefix(choices, drafts)
        emitted = [*drafts[:accepted], choices[accepted]][:left]
        cache.commit(length + accepted)
        for index, token in enumerate(emitted):
            if token in model.eos_ids:
                emitted, left = emitted[: index + 1], len(emitted[: index + 1])
                break
        calls.append(emitted)
        left -= len(emitted)
        length += len(emitted)
        drafts = choices[layout.group_rows(accepted)]
        layout, last = Layout.grid(k), emitted[-1:]
    return calls


def whys(layout: Layout, rule: str) -> list[str]:
    """As `inspect.structure` has them, with a letter of its own where the rule parts from SPACE's."""
    right, sees = layout.sees().tolist(), RULES[rule](layout).tolist()
    rows = []
    for r, line in enumerate(inspect.structure(layout)["whys"]):
        cells = [
            letter if seen == should else LEAK if seen else LOST
            for letter, seen, should in zip(line[1:], sees[r], right[r], strict=True)
        ]
        rows.append(line[0] + "".join(cells))
    return rows


# ---------------------------------------------------------------- what is recorded


def record(model: SpaceModel, prompts: Sequence[str] = PROMPTS, tokens: int = 96) -> dict[str, Any]:
    """Run everything and tell it, as "space-lessons/1" (`walk.py`).

    Args:
        model: with a tokenizer.
        prompts: at least one.
        tokens: to be written after each prompt.
    """
    pairs = [_pair(model, prompt, CLOSE_K, tokens) for prompt in prompts]
    wide = [_pair(model, prompt, GUESS_K, tokens) for prompt in prompts]
    close, call = _closest(model, pairs)
    bare = SpaceModel(
        model.lm, model.tokenizer, untrained_masks(model.lm, model.k), model.name, list(model.eos_ids)
    )
    return {
        "format": walk.FORMAT,
        "made": {
            "date": datetime.now(UTC).date().isoformat(),
            "model": model.name,
            "device": str(model.device),
            "dtype": model.dtype_name,
        },
        "masks": {
            "method": model.masks.method,
            "k": model.k,
            "sampler": model.masks.sampler is not None,
            "copies": model.masks.copies is not None,
        },
        "close": _close(model, close, call),
        "rounds": _rounds(model, wide),
        "trust": trust(pair.space for pair in wide),
        "rules": _rules(model, pairs, close),
        "reasons": {**inspect.reasons(), **REASONS},
        "gains": {
            "prompts": len(prompts),
            "tokens": tokens,
            "looping": sum(metrics.is_loop(pair.plain.output_ids) for pair in pairs),
            "temperatures": list(TEMPERATURES),
            "trained": _gains(model, prompts, tokens),
            "untrained": _gains(bare, prompts, tokens),
        },
        "acceptance": {
            "trained": _acceptance(pair.space for pair in wide),
            "untrained": _acceptance(_run(bare, prompt, GUESS_K, tokens) for prompt in prompts),
        },
    }


def _pair(model: SpaceModel, prompt: str, k: int, tokens: int) -> Pair:
    ids = tuple(model.encode(prompt))
    return Pair(prompt, ids, _run(model, prompt, k, tokens), _run(model, prompt, 0, tokens))


def _run(model: SpaceModel, prompt: str, k: int, tokens: int, temperature: float = 0.0) -> Trace:
    """On full grids; plainly with k = 0."""
    ids = model.encode(prompt)
    settings = Settings(
        k=max(1, k), max_new_tokens=tokens, temperature=temperature, plan=Plan.GRID, seed=len(ids)
    )
    decode = space_core.space if k else space_core.vanilla
    steps = tuple(decode(model, ids, settings))
    return Trace(
        model=model.name,
        method="space" if k else "vanilla",
        k=k,
        dtype=model.dtype_name,
        device=str(model.device),
        prompt_ids=tuple(ids),
        steps=steps,
        text=model.decode([token for step in steps for token in step.emitted]),
        settings=settings.to_json(),
    )


def _spell(model: SpaceModel, before: Sequence[int], ids: Sequence[int]) -> list[str]:
    return Detokenizer(model.tokenizer, before).feed(ids)


def _words(pieces: Sequence[str]) -> int:
    """How many different pieces read as words: what can be talked about."""
    return len({piece.strip() for piece in pieces if sum(map(str.isalpha, piece)) > 2})


def _before(trace: Trace, call: int) -> list[int]:
    """All tokens that stand before a call, its newest one included."""
    return [*trace.prompt_ids, *(token for step in trace.steps[:call] for token in step.emitted)]


# ---------------------------------------------------------------- one call, looked at closely


def _closest(model: SpaceModel, pairs: Sequence[Pair]) -> tuple[Pair, int]:
    """The pair and call (from 0) that show most: a draft that stands, one that falls, one not reached."""

    def worth(pair: Pair, call: int) -> tuple[Any, ...]:
        step = pair.space.steps[call]
        fates = inspect.fates(step)
        before = _before(pair.space, call)
        words = _words(_spell(model, before[:-1], [before[-1], *step.drafts]))
        return (
            pair.equal,
            _full(pair.space, call),
            "rejected" in fates and "accepted" in fates,
            not metrics.is_loop(pair.plain.output_ids),
            "unreached" in fates,
            words,
            -call,
        )

    places = [(pair, call) for pair in pairs for call in range(1, pair.space.calls)]
    if not places:
        raise ValueError("no run has a second call: record more tokens")
    return max(places, key=lambda place: worth(*place))


def _full(trace: Trace, call: int) -> bool:
    """Whether a call and those beside it are whole grids, so that all that is told of them is there."""
    if not 0 < call < trace.calls - 1:
        return False
    full = (trace.k,) * (trace.k + 1)
    return trace.steps[call].groups == trace.steps[call + 1].groups == full


def _close(model: SpaceModel, pair: Pair, call: int) -> dict[str, Any]:
    trace = pair.space
    opened = inspect.open_call(model, trace, call)
    opened["structure"] = inspect.structure(layout_of(trace.steps[call]))
    asking = inspect.open_call(model, trace, call - 1)
    written = sum(len(step.emitted) for step in trace.steps[:call])
    return {
        "prompt": pair.prompt,
        "plain": _spell(model, pair.ids, pair.plain.output_ids),
        "calls": _calls(model, trace),
        "equal": pair.equal,
        "call": call + 1,
        "written": written,
        "opened": opened,
        "anchor": asking["chain"][asking["fates"].count("accepted")],
        "asked": [asking["guesses"][row] for row in asking["chosen"]],
    }


def _calls(model: SpaceModel, trace: Trace) -> list[list[tuple[str, str]]]:
    """What each call wrote: pieces and their origins."""
    spell = Detokenizer(model.tokenizer, trace.prompt_ids)
    return [list(zip(spell.feed(step.emitted), map(str, step.origins), strict=True)) for step in trace.steps]


# ---------------------------------------------------------------- calls to guess at


def _rounds(model: SpaceModel, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Calls whose drafts a reader may judge first: of each number that stood, from different runs."""
    found: dict[int, list[tuple[int, Pair, int]]] = {}
    for pair in pairs:
        for call in range(1, pair.space.calls):
            step = pair.space.steps[call]
            if len(step.drafts) < GUESS_K or Origin.OWN in step.origins or len(step.emitted) == step.accepted:
                continue
            pieces = _spell(model, _before(pair.space, call), step.drafts)
            found.setdefault(step.accepted, []).append((_words(pieces), pair, call))
    for places in found.values():
        places.sort(key=lambda place: (-place[0], place[2]))
    chosen: list[tuple[Pair, int]] = []
    # 2, 0, 5, 1, …: neighbours differ, so that no rule of thumb answers them.
    order = sorted(found, key=lambda stood: (stood * 3 + 1) % (GUESS_K + 1))
    while len(chosen) < ROUNDS and any(found.values()):
        for stood in order:
            used = [pair for pair, _ in chosen]
            places = found[stood]
            places.sort(key=lambda place: used.count(place[1]))
            if places and len(chosen) < ROUNDS:
                _, pair, call = places.pop(0)
                chosen.append((pair, call))
    return [_round(model, pair, call) for pair, call in chosen]


def _round(model: SpaceModel, pair: Pair, call: int) -> dict[str, Any]:
    step, before = pair.space.steps[call], _before(pair.space, call)
    pieces = _spell(model, before, step.drafts)
    return {
        "text": model.decode(before)[-TEXT:],
        "drafts": [(piece, round(p, 3)) for piece, p in zip(pieces, step.draft_probs, strict=True)],
        "accepted": step.accepted,
        "own": _spell(model, [*before, *step.drafts[: step.accepted]], step.emitted[-1:])[0],
    }


def trust(traces: Iterable[Trace]) -> list[tuple[float, float, int, int]]:
    """How often drafts of such a probability stood: (from, to, judged, stood) of each bin."""
    judged, stood = [0] * (len(BINS) - 1), [0] * (len(BINS) - 1)
    for trace in traces:
        for step in trace.steps:
            for slot, right in enumerate(_judged(step)):
                place = min(int(step.draft_probs[slot] * len(judged)), len(judged) - 1)
                judged[place] += 1
                stood[place] += right
    return list(zip(BINS[:-1], BINS[1:], judged, stood, strict=True))


def _judged(step: Step) -> list[bool]:
    """Of each draft up to the first that fell whether it stood."""
    fates = inspect.fates(step)
    return [fate == "accepted" for fate in fates if fate in ("accepted", "rejected")]


# ---------------------------------------------------------------- runs under each rule


def _rules(model: SpaceModel, pairs: Sequence[Pair], close: Pair) -> dict[str, Any]:
    """What each rule makes of the text, and who sees whom under it in a small call."""
    layout = Layout.grid(2)
    told = []
    for rule in RULES:
        runs = [
            (pair, ruled_decode(model, pair.ids, CLOSE_K, len(pair.plain.output_ids), rule)) for pair in pairs
        ]
        splits = {
            id(pair): metrics.first_difference([t for call in calls for t in call], pair.plain.output_ids)
            for pair, calls in runs
        }
        broken = [run for run in runs if splits[id(run[0])] is not None]
        # The call looked at closely has this rule's run too, unless only another one shows the damage.
        shown = next((run for run in runs if run[0] is close), runs[0])
        if splits[id(shown[0])] is None and broken:
            shown = broken[0]
        pair, calls = shown
        written = [token for call in calls for token in call]
        told.append(
            {
                "id": rule,
                "whys": whys(layout, rule),
                "prompt": pair.prompt,
                "plain": _spell(model, pair.ids, pair.plain.output_ids),
                "text": _spell(model, pair.ids, written),
                "split": splits[id(pair)],
                "broken": len(broken),
                "calls": sum(len(calls) for _, calls in runs),
                "tokens": sum(len(call) for _, calls in runs for call in calls),
            }
        )
    return {"structure": inspect.structure(layout), "runs": len(pairs), "rules": told}


# ---------------------------------------------------------------- gains


def _gains(model: SpaceModel, prompts: Sequence[str], tokens: int) -> list[list[float]]:
    """Tokens per call on full grids, for each of TEMPERATURES and each k of KS."""
    return [
        [
            round(metrics.tokens_per_call(_run(model, p, k, tokens, temperature) for p in prompts), 3)
            for k in KS
        ]
        for temperature in TEMPERATURES
    ]


def _acceptance(traces: Iterable[Trace]) -> list[float]:
    return [round(share, 4) for share in metrics.acceptance_by_position(traces)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Record what the lessons show.")
    parser.add_argument("--model", help="folder or hub id; the bundled checkpoint by default")
    parser.add_argument("--prompts", type=Path, help="a text file, prompts parted by lines of ---")
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=walk.PATH)
    options = parser.parse_args(arguments)
    try:
        prompts: Sequence[str] = PROMPTS
        if options.prompts:
            prompts = options.prompts.read_text(encoding="utf-8").split("\n---\n")
        model = space_core.load(options.model or str(default_checkpoint()), device=options.device)
        space_core.tune_threads(model)
        told = record(model, prompts, options.max_new_tokens)
    except (SpaceError, OSError, ValueError) as error:
        print(f"lessons: {error}", file=sys.stderr)
        return 2
    text = walk.encode(told)
    size = len(text.encode())
    if size > walk.MAX_BYTES:
        print(f"lessons: {size:,} bytes are too many: record fewer tokens", file=sys.stderr)
        return 2
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text, encoding="utf-8")
    print(f"{options.out}: {size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
