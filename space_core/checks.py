"""Is decoding lossless here? Checks of any model on any device in any dtype, by the code that decodes.

Each compares the decoders with what `trust.py` computes otherwise, or with the law of the next tokens, and
has a control where it could be blind. `python -m space_core verify` runs them on anybody's model, the tests
on small ones with random weights.
"""

from __future__ import annotations

import copy
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor

from space_core.cache import BLOCK, BlockCache
from space_core.decoders import Drafts, Guessed, _planner, _Run, _space, space, vanilla
from space_core.errors import PromptError
from space_core.layout import Layout
from space_core.model import MASK_BLOCK, Judged, SpaceModel
from space_core.planner import GridPlanner
from space_core.settings import Plan, Settings, Verification
from space_core.trace import Step, Stop, longest_common_prefix
from space_core.trust import PRECISE, Report, Subject, Tally, gap, output_of, table
from space_core.verify import Verdict, draw, verify_sampled

SHARES = (0.0, 0.3, 0.7, 1.0)
"""Chances with which a forced draft is right."""
TEMPERATURES = (0.5, 1.5, 4.0)
"""Of sampling: the first one at which no outcome is likelier than all others together."""
TOP, SAMPLED_K, SAMPLED_TOKENS = 3, 2, 4
"""Sampling is tried on so few tokens that every outcome is met often, and on as many as two drafts need."""
SIGMAS = 6.0
"""Chance of a false alarm by chi-square and by counting: 1e-9."""
FEWEST = 4
"""Steps of a check that the time budget cannot end: of `greedy`, both plans at two k."""
FEWEST_DRAWS = 500
LANES = 300
Check = Callable[[Subject, Tally], Iterator[None]]
"""Tries case after case, and yields behind each of them."""


def check_rows(subject: Subject, tally: Tally, count: int = 60) -> Iterator[None]:
    """Every row of a call gives the logits of the paper's table, computed without a cache."""
    model = subject.model
    for case in range(count):
        k = subject.ks[case % len(subject.ks)]
        text = list(subject.prompts[case % len(subject.prompts)]) or subject.tokens_of(4)
        text = text[: max(1, model.context - 2 * k - 2)]
        masks = [k] * (k + 1)
        if case % 2:  # groups of any length, as planned calls have them
            masks = [subject.number(0, k) for _ in range(1 + subject.number(0, k))]
            masks[-1] = max(1, masks[-1])
        drafts = subject.tokens_of(len(masks) - 1)
        layout, cache = Layout.steady(tuple(masks)), BlockCache()
        if len(text) > 1:
            model.call(Layout.plain(len(text) - 1), text[:-1], cache)
        ours = subject.known(model.forward(layout, [text[-1], *drafts], cache))
        cache.commit(len(text) - 1)
        judged = model.call(layout, [text[-1], *drafts], cache)
        real = subject.whole([*text, *drafts], len(masks))
        subject.moved(tally, "real rows", ours[: len(masks)], real)
        subject.moved(tally, "real rows by the lazy head", subject.known(judged.real), real)
        subject.moved(tally, "mask rows", ours[len(masks) :], subject.by_hand(text, drafts, masks))
        tally.cases += 1
        yield


@torch.inference_mode()
def _changed(subject: Subject, rows: Tensor, which: Sequence[int]) -> Tensor:
    """Embeddings of a call's rows with some of them another token's. [1, rows, hidden]"""
    changed = rows.clone()
    ids = torch.tensor(subject.tokens_of(len(which)), device=rows.device)
    changed[0, list(which)] = subject.model.lm.get_input_embeddings()(ids)
    return changed


def check_isolation(subject: Subject, tally: Tally, count: int = 100) -> Iterator[None]:
    """Change all that a row must not see: its logits stay. Change what it sees: they move."""
    done, seen_moved = 0, math.inf
    while done < count:
        k = subject.ks[done % len(subject.ks)]
        masks = (*(subject.number(0, k) for _ in range(k)), k)
        layout, (_, sees) = Layout.steady(masks), table(masks)
        text = list(subject.prompts[done % len(subject.prompts)])[: subject.model.context - 2 * k - 2]
        drafts, cache = subject.tokens_of(k), BlockCache()
        model = copy.copy(subject.model)
        if len(text) > 1:
            model.call(Layout.plain(len(text) - 1), text[:-1], cache)
        rows = model.row_embeddings(layout, [text[-1], *drafts])

        def logits(
            fed: Tensor,
            model: SpaceModel = model,
            layout: Layout = layout,
            ids: Sequence[int] = (text[-1], *drafts),
            cache: BlockCache = cache,
            past: int = len(text) - 1,
        ) -> Tensor:
            model._embedded = lambda *_: fed  # type: ignore[method-assign]
            found = subject.known(model.forward(layout, ids, cache))
            cache.commit(past)
            return found

        before = logits(rows)
        bound = max(min(4 * subject.noise, subject.allowed()), torch.finfo(model.dtype).eps * subject.spread)
        for row in range(len(sees)):
            hidden = [other for other, seen in enumerate(sees[row]) if not seen]
            if hidden and done < count:
                moved = gap(logits(_changed(subject, rows, hidden))[row], before[row])
                tally.measure(f"row {row} of {masks} sees what it must not", moved, max(bound, PRECISE))
                tally.cases += 1
                done += 1
                yield
        # The control: one token that all rows see moves them all.
        after = logits(_changed(subject, rows, [0]))
        seen_moved = min([seen_moved, *(gap(a, b) for a, b in zip(after, before, strict=True))])
        tally.blind = seen_moved <= bound
        tally.figures["seen_moved"] = seen_moved


def check_cache(subject: Subject, tally: Tally, count: int = 20, steps: int = 30) -> Iterator[None]:
    """Step, reject and crop at random: the cache stays that of the committed text."""
    model, most = subject.model, max(subject.ks)
    starts = [2, BLOCK, MASK_BLOCK]  # texts that cross the borders of the blocks in which things grow
    starts = [n for n in starts if n + steps * (most + 1) < model.context] or [2]
    crossed = Counter[int]()
    for case in range(count):
        start = starts[case % len(starts)]
        text, cache = subject.tokens_of(start), BlockCache()
        model.forward(Layout.plain(1), text[:1], cache)
        if start > 2:
            model.call(Layout.plain(start - 2), text[1:-1], cache)
        for step in range(steps):
            k = subject.ks[subject.number(0, len(subject.ks) - 1)]
            if len(text) + 2 * k + 2 >= model.context:
                break
            drafts = subject.tokens_of(k)
            model.call(Layout.grid(k), [text[-1], *drafts], cache)
            accepted = subject.number(0, k)
            cache.commit(len(text) + accepted)
            text += [*drafts[:accepted], subject.token()]
            if cache.length != len(text) - 1:
                tally.wrong(f"the cache holds {cache.length} rows, {len(text) - 1} are committed")
            if step % 10 == 9 or step == steps - 1:
                ours = subject.known(model.call(Layout.plain(1), text[-1:], cache).real)
                cache.commit(len(text) - 1)
                subject.moved(tally, "logits behind the cache", ours, subject.whole(text, 1))
        crossed[start] += 1
        tally.cases += 1
        tally.figures["starts"] = dict(crossed)
        yield


def check_greedy(subject: Subject, tally: Tally) -> Iterator[None]:
    """Greedy output, plain and SPACE's, is what one call of the whole text would write."""
    for index, prompt in enumerate(subject.prompts):
        plain = subject.plain(prompt)
        gap = max(subject.text(prompt, plain).gaps)
        tally.cases += 1
        if gap > subject.slack:
            tally.wrong(f"prompt {index + 1}, plain decoding: a token {gap:.2g} below the best")
        elif gap > 0:
            tally.explained += 1
        for k, plan in product(subject.ks, Plan):
            settings = Settings(k=k, max_new_tokens=subject.tokens, plan=plan)
            output = output_of(space(subject.model, prompt, settings))
            tally.cases += 1
            name = f"prompt {index + 1}, k {k}, {plan}"
            if len(output) != len(plain):
                tally.wrong(f"{name}: {len(output)} tokens, not {len(plain)}")
            subject.compare(tally, name, prompt, output)
            yield


class Forced(_Run):
    """A run whose drafts somebody else chose: choose(index in the whole text, slot from 0)."""

    choose: Callable[[int, int], int]

    def fetch(self, verdict: Verdict, guessed: Guessed | None) -> tuple[int, int, Drafts]:
        accepted, own, drafts = super().fetch(verdict, guessed)
        # What is committed but for the drafts that this call accepts and its own token.
        start = self.length + accepted + 1
        return accepted, own, self.copied([self.choose(start + i, i) for i in range(len(drafts))], 0.5)


def forced(
    model: SpaceModel, prompt: Sequence[int], settings: Settings, choose: Callable[[int, int], int]
) -> Iterator[Step]:
    """SPACE by the full grid on drafts of any origin."""
    # A planned run on a CPU ends its guesses where they are hopeless: the grid's calls want all of them.
    run = Forced(model, prompt, replace(settings, plan=Plan.GRID), stream=1)
    run.choose = choose
    return _space(run, GridPlanner(settings.k))


def check_forced(subject: Subject, tally: Tally, prompts: int | None = None) -> Iterator[None]:
    """Drafts that are right, wrong at one place, right at random: accepted exactly as far as right."""
    counts = Counter[int]()
    for index, prompt in enumerate(subject.prompts[:prompts]):
        truth = (*prompt, *subject.plain(prompt))
        for k in subject.ks:
            kinds = [("perfect", 0, 1.0)]
            kinds += [(f"wrong at {j}", j, 1.0) for j in range(1, k + 1)]
            kinds += [(f"right by {share:.0%}", 0, share) for share in SHARES]
            for kind, wrong, share in kinds:
                settings = Settings(k=k, max_new_tokens=subject.tokens)
                choose = _chooser(subject, truth, wrong, share)
                steps = list(forced(subject.model, prompt, settings, choose))
                name = f"prompt {index + 1}, k {k}, drafts {kind}"
                tally.cases += 1
                if len(output_of(steps)) != subject.tokens:
                    tally.wrong(f"{name}: {len(output_of(steps))} tokens, not {subject.tokens}")
                if subject.compare(tally, name, prompt, output_of(steps)):
                    _check_accepted(tally, name, steps, truth[len(prompt) :], counts)
                tally.figures["accepted"] = dict(sorted(counts.items()))
                yield


def _chooser(
    subject: Subject, truth: Sequence[int], wrong: int = 0, share: float = 1.0
) -> Callable[[int, int], int]:
    """Drafts that are right with some chance, but for number `wrong` of each call."""

    def choose(place: int, slot: int) -> int:
        right = truth[place] if place < len(truth) else subject.other(-1)
        chance = float(torch.rand((), generator=subject.random))
        return right if slot + 1 != wrong and chance < share else subject.other(right)

    return choose


def _check_accepted(
    tally: Tally, name: str, steps: list[Step], truth: Sequence[int], counts: Counter[int]
) -> None:
    written = 0
    for step in steps:
        right = longest_common_prefix(step.drafts, truth[written:])
        if step.accepted != right or len(step.emitted) != min(right + 1, len(truth) - written):
            tally.wrong(f"{name}: {step.accepted} of {right} right drafts accepted")
        if step.drafts:
            counts[step.accepted] += 1
        written += len(step.emitted)


def check_stopping(subject: Subject, tally: Tally) -> Iterator[None]:
    """End of text at every slot, every budget, the context's last places: exact lengths, right reasons."""
    prompt = subject.prompts[0]
    plain = subject.plain(prompt)
    truth = (*prompt, *plain)
    model = copy.copy(subject.model)

    right = _chooser(subject, truth)

    def attempt(what: str, k: int, budget: int, length: int, stop: Stop) -> None:
        settings = Settings(k=k, max_new_tokens=budget)
        runs = {"drafts that are right": forced(model, prompt, settings, right)}
        if k == subject.ks[0]:
            runs["plain decoding"] = vanilla(model, prompt, settings)
        for name, run in runs.items():
            steps = list(run)
            tally.cases += 1
            output = output_of(steps)
            # A split by rounding ends elsewhere: it is judged where greedy output is.
            if output == list(plain[:length]) or subject.compare(tally, f"{what}, k {k}", prompt, output):
                stops = [step.stop for step in steps if step.stop]
                if len(output) != length or stops != [stop] or steps[-1].stop is not stop:
                    tally.wrong(f"{what}, k {k}, {name}: {len(output)} tokens, {stops}, not {length}, {stop}")

    for k in subject.ks:
        for place in range(min(2 * k + 2, len(plain))):
            model.eos_ids = frozenset({plain[place], subject.model.vocabulary + 7})
            length = plain.index(plain[place]) + 1
            attempt(f"end of text at {place}", k, len(plain), length, Stop.EOS)
            yield
        model.eos_ids = frozenset()
        for budget in range(1, min(k + 2, len(plain)) + 1):
            attempt(f"budget {budget}", k, budget, budget, Stop.MAX_NEW_TOKENS)
        for room in range(1, min(k + 2, len(plain) - 1) + 1):
            model.context = len(prompt) + room
            for more, stop in ((0, Stop.MAX_NEW_TOKENS), (1, Stop.CONTEXT)):
                attempt(f"room for {room}", k, room + more, room, stop)
        for short in (0, -1):
            model.context = len(prompt) + short
            tally.cases += 1
            try:
                next(space(model, prompt, Settings(k=k)))
                tally.wrong(f"a prompt of {len(prompt)} tokens is read into a context of {model.context}")
            except PromptError:
                pass
        model.context = subject.model.context
        yield


class _Ledger(BlockCache):
    """A cache that only remembers what was fed."""

    def __init__(self) -> None:
        super().__init__()
        self.fed: list[int] = []

    @property
    def length(self) -> int:
        return len(self.fed)

    def commit(self, length: int) -> None:
        if len(self.fed) < length:
            raise ValueError(f"cannot commit {length} rows of {len(self.fed)}")
        del self.fed[length:]


class _Recalled:
    """Calls of a model, each made once: thousands of runs of few tokens cost a few hundred calls.

    The real rows' logits are those of a whole-text call, the same number for the same text whatever the
    call's shape: what is on trial is the sampler, and not the rounding, which other checks measure.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.model = copy.copy(subject.model)
        self.model.call = self.call  # type: ignore[method-assign]
        self._calls: dict[tuple[Any, ...], Judged] = {}
        self._next: dict[tuple[int, ...], Tensor] = {}

    def call(self, layout: Layout, real_ids: Sequence[int], cache: BlockCache) -> Judged:
        past = tuple(cache.fed) if isinstance(cache, _Ledger) else ()
        key = (past, layout, tuple(real_ids))
        if key not in self._calls:
            model, own = self.subject.model, BlockCache()
            if past:
                model.call(Layout.plain(len(past)), past, own)
            judged = model.call(layout, real_ids, own)
            text = (*past, *real_ids)
            first = len(text) - layout.n_drafts
            rows = [self.behind(text[:end]) for end in range(first, len(text) + 1)]
            real = torch.stack(rows).to(judged.real.device, judged.real.dtype)
            self._calls[key] = replace(judged, real=real)
        if isinstance(cache, _Ledger):
            cache.fed += [*real_ids, *[-1] * layout.n_masks]
        return self._calls[key]

    def behind(self, text: tuple[int, ...]) -> Tensor:
        """Logits of the token behind a text. [V]"""
        if text not in self._next:
            self._next[text] = self.subject.whole(text, 1)[0]
        return self._next[text]

    def law(self, text: tuple[int, ...], temperature: float, top: int) -> dict[int, float]:
        """The distribution behind a text: temperature, then top-k with its ties, then softmax."""
        logits = self.behind(text).to(self.subject.model.dtype).double() / temperature
        kept = (logits >= logits.topk(min(top, len(logits))).values[-1]).nonzero()[:, 0]
        return dict(zip(kept.tolist(), logits[kept].softmax(-1).tolist(), strict=True))


def without_residual(p: Tensor, q: Tensor, drafts: Tensor, uniforms: Tensor) -> Verdict:
    """The reference code's rule, which is not lossless: after a rejection it draws from p itself."""
    verdict = verify_sampled(p, q, drafts, uniforms)
    own = p.index_select(0, verdict.accepted[None])
    return Verdict(verdict.accepted, draw(own, uniforms[len(drafts) :])[0])


VARIANTS: dict[str, dict[str, Any]] = {
    f"{plan}, {verification}": {"plan": plan, "verification": verification}
    for plan, verification in product((Plan.GRID, Plan.AUTO), Verification)
}


def check_sampling(subject: Subject, tally: Tally, draws: int = 2000) -> Iterator[None]:
    """Sampled tokens follow the law (chi-square, below its 1e-9 quantile); a biased rule does not."""
    recalled = _Recalled(subject)
    prompt = subject.prompts[0]
    for temperature in TEMPERATURES:
        due = _law_of_all(recalled, prompt, temperature)
        if max(due.values()) < 0.5:
            break
    likely = _likely(due)
    variants: dict[str, dict[str, Any]] = {
        **VARIANTS,
        **{f"forced, {verification}": {"verification": verification} for verification in Verification},
        "control": {},
    }
    counts = {name: Counter[tuple[int, ...]]() for name in variants}
    for drawn in range(1, draws + 1):
        for name, options in variants.items():
            settings = Settings(
                k=SAMPLED_K,
                max_new_tokens=SAMPLED_TOKENS,
                temperature=temperature,
                top_k=TOP,
                seed=drawn,
                **options,
            )
            if name in VARIANTS:
                planner = _planner(subject.model, settings)
                run = _Run(recalled.model, prompt, settings, stream=1)
            else:
                planner = GridPlanner(SAMPLED_K)
                run = forced = Forced(recalled.model, prompt, settings, stream=1)
                forced.choose = lambda place, _: likely[min(place - len(prompt), len(likely) - 1)]
            run.cache = _Ledger()
            if name == "control":
                run.judge = without_residual
            counts[name][tuple(output_of(_space(run, planner)))] += 1
        if drawn % 50 == 0 or drawn == draws:
            tally.cases = (len(variants) - 1) * drawn
            _judge_counts(tally, counts, due, drawn)
            yield


def _law_of_all(
    recalled: _Recalled, prompt: tuple[int, ...], temperature: float
) -> dict[tuple[int, ...], float]:
    """The chance of each output of SAMPLED_TOKENS tokens."""
    due: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(SAMPLED_TOKENS):
        due = {
            (*before, token): chance * then
            for before, chance in due.items()
            for token, then in recalled.law((*prompt, *before), temperature, TOP).items()
        }
    return due


def _likely(due: dict[tuple[int, ...], float]) -> list[int]:
    """The likeliest token at each place, whatever stands before it."""
    found = []
    for place in range(SAMPLED_TOKENS):
        chances = Counter[int]()
        for output, chance in due.items():
            chances[output[place]] += chance  # type: ignore[assignment]
        found.append(max(chances, key=chances.__getitem__))
    return found


def _judge_counts(
    tally: Tally,
    counts: dict[str, Counter[tuple[int, ...]]],
    due: dict[tuple[int, ...], float],
    drawn: int,
) -> None:
    tally.differences, tally.first, tally.worst = 0, "", 0.0
    for name, seen in counts.items():
        value, limit = against_law(seen, due, drawn)
        tally.figures[name] = {"chi_square": value, "limit": limit}
        if name == "control":
            tally.blind = value <= limit
            continue
        tally.measure(f"{name}: chi-square over its 1e-9 quantile", value / limit, 1.0)


def against_law(
    seen: Counter[tuple[int, ...]], due: dict[tuple[int, ...], float], drawn: int
) -> tuple[float, float]:
    """(chi-square, its 1 - 1e-9 quantile) of counts; infinite where the impossible was drawn."""
    if any(key not in due for key in seen):
        return math.inf, 1.0
    observed = torch.tensor([float(seen[key]) for key in due], dtype=torch.float64)
    value, freedom = chi_square(observed, drawn * torch.tensor([*due.values()], dtype=torch.float64))
    return value, quantile(freedom)


def chi_square(counts: Tensor, expected: Tensor) -> tuple[float, int]:
    """Chi-square and its degrees of freedom; cells of fewer than 5 expected are taken together."""
    keep = expected > 5
    rest_seen, rest_due = counts[~keep].sum(), expected[~keep].sum()
    total = ((counts[keep] - expected[keep]) ** 2 / expected[keep]).sum()
    freedom = int(keep.sum()) - 1
    if rest_due > 5:
        total, freedom = total + (rest_seen - rest_due) ** 2 / rest_due, freedom + 1
    return float(total), max(freedom, 1)


def quantile(freedom: int) -> float:
    """Chi-square's 1 - 1e-9 quantile (Wilson and Hilferty 1931), a little above the true one."""
    return float(freedom) * (1 - 2 / (9 * freedom) + 6.1 * math.sqrt(2 / (9 * freedom))) ** 3


def check_lanes(subject: Subject, tally: Tally, count: int = LANES) -> Iterator[None]:
    """Plain decoding and SPACE throw dice of their own: equal first tokens are as rare as chance has it."""
    recalled, prompt = _Recalled(subject), subject.prompts[0]
    for temperature in (1.0, 2.0, 5.0):
        law = recalled.law(prompt, temperature, subject.model.vocabulary)
        equal = sum(chance**2 for chance in law.values())
        if equal < 0.5:
            break
    firsts: list[tuple[int, int]] = []
    for seed in range(count):
        settings = Settings(max_new_tokens=1, temperature=temperature, seed=seed, plan=Plan.GRID)
        pair = [output_of(decode(recalled.model, prompt, settings))[0] for decode in (vanilla, space)]
        firsts.append((pair[0], pair[1]))
    tally.cases, tally.blind = count, equal > 0.9
    for what, pairs in (
        ("the two lanes of a seed", firsts),
        (
            "one lane and the other of the next seed",
            [(b[0], a[1]) for a, b in pairwise(firsts)],
        ),
        ("plain decoding under two seeds", [(a[0], b[0]) for a, b in pairwise(firsts)]),
    ):
        n = len(pairs)
        sigmas = (sum(a == b for a, b in pairs) - n * equal) / math.sqrt(n * equal * (1 - equal) + 1e-9)
        tally.measure(f"{what} write the same too often (sigmas)", max(0.0, sigmas), SIGMAS)
    yield


CHECKS: dict[str, tuple[Check, float]] = {
    "rows": (check_rows, 0.1),
    "isolation": (check_isolation, 0.1),
    "cache": (check_cache, 0.1),
    "greedy": (check_greedy, 0.3),
    "forced drafts": (check_forced, 0.15),
    "stopping": (check_stopping, 0.1),
    "sampling": (check_sampling, 0.12),
    "lanes": (check_lanes, 0.03),
}
"""By name, with its share of the time. The first one measures the rounding that the others reckon with."""


def examine(
    subject: Subject,
    seconds: float = math.inf,
    progress: Callable[[str, int], None] = lambda name, cases: None,
    only: Sequence[str] = tuple(CHECKS),
) -> Report:
    """Run the checks, each until it is through or its share of the time is spent, but for `FEWEST` steps.

    Args:
        progress: hears of every case: the check's name, and how many cases it had.
        only: names of checks.
    """
    begin, tallies, complete, due = time.perf_counter(), [], True, 0.0
    for name in only:
        check, share = CHECKS[name]
        due += share * seconds
        tally = Tally(name)
        try:
            for steps, _ in enumerate(check(subject, tally), 1):
                progress(name, tally.cases)
                if steps >= FEWEST and time.perf_counter() - begin > due:
                    complete = False
                    break
        except Exception as error:  # decoding that breaks off is no decoding like the model's
            tally.wrong(f"broke off: {type(error).__name__}: {str(error).strip().splitlines()[:1]}")
        if name == "sampling" and tally.cases < FEWEST_DRAWS:
            tally.blind = True
        tallies.append(tally)
    margins = tuple(subject.margins.values())
    return Report(tuple(tallies), subject.noise, margins, time.perf_counter() - begin, complete)
