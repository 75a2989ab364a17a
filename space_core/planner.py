"""Which drafts and which masks are worth their rows in the next call.

The paper feeds all (k+1)² rows. Where rows are nearly free that is right; on a CPU 36 rows cost
several plain calls, and most of them guess behind drafts that will not stand. The planner knows what
a call of r rows costs (`cost.py`), how sure the masks were of each draft and how often such drafts
stood so far, and feeds what earns its time:

    maximise  (1 + Σ_{i ≤ d} S_i) / λ  +  Σ_{g ≤ d} P(stop at g) · H(w_g)  −  T(1 + d + Σ w_g)

over the number of drafts d and of masks w_g in each group. S_i is the chance that drafts 1..i all
stand, λ the tokens a second that are being reached in such text (so 1/λ is what a token is worth in seconds),
H(w) what w fresh drafts will be worth to the call after, beyond the copies it will have from the text,
learned as it goes and apart for texts that repeat themselves, and T the cost, corrected by what calls have
taken since (contexts grow, machines are shared). Where T is flat the best plan is the full grid; where masks
are worth nothing it is a plain call, and they are tried again now and then, on credit (`Credit`).

Why the output stays exact. Greedy: a plan changes which drafts are tried, never what the model says
of them. Sampling: a draft may be judged or left out, but not because of the token that was drawn for
it, or surprising tokens would be let through unjudged and the law would bend. So `confidences` are
properties of the distributions q that the drafts were drawn from (their largest probability), known
before the draw, and of the text so far; the tokens themselves are not shown to the planner. Where a
sampler head lets a q depend on the drafts before it, the confidence is that of the mask before it was
told: a plan that knew the other would leave drafts out because of what they are (a test shows it).

Pure arithmetic on floats: no tensor, no model, no clock.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Protocol

import numpy as np
import numpy.typing as npt

from space_core.layout import Layout

BINS = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.96)
"""Borders of the confidences that are calibrated apart."""
PRIOR = 3.0
"""Observations that the prior of a bin counts for."""
MEMORY = 0.98
"""What a call leaves of the weight of all calls before."""
REPEATS = 0.5
"""Copies that are expected to stand from which on a text is taken to repeat itself."""
BESIDE_COPIES = 0.3
"""Share of their worth that masks are believed to have there, to begin with."""
PROBE_MASKS = 2
CREDIT, LEAST_CREDIT, MOST_CREDIT = 1.0, -1.0, 4.0
"""Plain calls that masks may lose before no more are tried: to begin with, and the ends of the account."""
TRIES = 0.01
"""Share of the time that is added to it as the run goes on."""
FREE = 1.1
"""A call that takes no more plain calls than this is as good as one."""
HOPE = 0.9
"""How often the masks of one's hopes are right; where not even these would earn their rows, none is tried."""
TRUSTED, AGAIN = 4, 1
"""Calls that masks are given to show that tokens come cheaper with them, at first and when tried again."""
FIRST_PAUSE, LONGEST_PAUSE = 6, 96
"""Calls without a mask before masks are tried again; doubled whenever that was in vain."""
NEVER_TRAINED = 4
"""By how much longer that is at first where nobody trained the masks."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Rows of the next call: how many of which drafts, and the layout that holds them."""

    drafts: int
    layout: Layout
    copied: bool = False
    """The drafts are those copied from the text, not those that masks guessed."""


class Planner(Protocol):
    """Decides the rows of each call of one run."""

    def first(self, apart: bool) -> int:
        """How many masks the call that reads the prompt feeds; asked once, before any `next`.

        Args:
            apart: so long a prompt is read in a forward of its own, and masks would need a second one.
        """

    def next(self, left: int, guesses: Sequence[float], copies: Sequence[float] = ()) -> Plan:
        """Plan a call.

        Args:
            left: tokens that may still be written; no row serves one behind them.
            guesses: how sure the masks were of each draft at hand, in [0, 1]; there may be none.
            copies: the same of drafts copied from the text so far.
        """

    def learn(self, stood: Sequence[bool], emitted: int) -> None:
        """What became of the call planned last, or of the one that read the prompt.

        Args:
            stood: of each draft of the chosen kind whether it was right, as far as is known: up to
                the first wrong one.
            emitted: tokens that the call wrote.
        """

    def took(self, seconds: float) -> None:
        """How long the call lasted that `learn` was last told of."""


class GridPlanner:
    """The paper's calls: all drafts, k + 1 groups of k masks."""

    def __init__(self, k: int) -> None:
        self.k, self._layout = k, Layout.grid(k)

    def first(self, apart: bool) -> int:
        return self.k

    def next(self, left: int, guesses: Sequence[float], copies: Sequence[float] = ()) -> Plan:
        layout = self._layout.within(left)
        return Plan(layout.n_drafts, layout)

    def learn(self, stood: Sequence[bool], emitted: int) -> None:
        pass

    def took(self, seconds: float) -> None:
        pass


class AutoPlanner:
    """Rows by their worth.

    Args:
        k: most drafts and most masks in a group.
        cost: seconds of a call by its rows; cost[r] for r = 1 .. at least (k+1)², cost[0] unused.
        bare: the same of calls without masks, for r = 1 .. k + 1; `cost` where not given.
        trained: whether somebody trained the masks: what is expected of them to begin with.
        timed: whether the cost was measured, and is corrected by what calls take; plans then differ from run
            to run.
    """

    def __init__(
        self,
        k: int,
        cost: npt.NDArray[np.float64],
        bare: npt.NDArray[np.float64] | None = None,
        trained: bool = True,
        timed: bool = False,
    ) -> None:
        self.k, bare = k, cost if bare is None else bare
        self.hopeful = could_pay(k, cost, bare)
        self._opening = opening(k, cost, bare, trained) if self.hopeful else 0
        self.meter = Meter(cost, bare, timed)
        self.learned = Experience(k, trained)
        self._repeats = False
        # Sums that forget. Apart, since a token saved costs what its neighbours do: where copies are
        # to be had tokens are cheap, and their price would forbid masks where there are none.
        # What was paid is counted in plain calls, so that it stays a price when all calls become slower.
        self.tokens = {repeats: TRUSTED * 1.3 for repeats in (False, True)}
        self.paid = {repeats: float(TRUSTED) for repeats in (False, True)}
        self.row = float(bare[k + 1] - bare[1]) / k  # what judging a draft adds to a call
        self.pause, self.idle = FIRST_PAUSE * (1 if trained else NEVER_TRAINED), 0
        self.credit = Credit(self.meter)
        self._late = 0  # opening masks that wait for a call that judges nothing
        self._judged: tuple[Sequence[float], bool] = ((), False)
        self._fed: tuple[int, int] | None = None  # drafts and masks of the call planned last
        self._plain = Layout.steady((0,))

    def first(self, apart: bool) -> int:
        if apart:  # a call behind has room for them, and writes a token besides
            self._late = self._opening
            return 0
        self.credit.add(1.0 - self.meter.calls(1 + self._opening, self._opening > 0))
        return self._opening

    def next(self, left: int, guesses: Sequence[float], copies: Sequence[float] = ()) -> Plan:
        waits = not self.hopeful or (self.idle and (self.idle < self.pause or self.credit.left <= 0))
        if waits and not self._late and not guesses and not copies:
            self.idle += 1  # masks are not worth it, as was found a few calls ago, or before the first
            self._judged, self._repeats, self._fed = ((), False), False, (0, 0)
            self.meter.plan(1, False)
            return Plan(0, self._plain)
        survival, of_copies = self.learned.survival(guesses, False), self.learned.survival(copies, True)
        copied = sum(of_copies) > sum(survival)
        if guesses:
            self.learned.value(survival, of_copies, copied, self._repeats)
        if copied:
            survival = of_copies
        self._repeats = sum(of_copies[1:]) > REPEATS
        paid, tokens = self.paid[self._repeats], self.tokens[self._repeats]
        price = self.meter.seconds(1, False) * paid / tokens
        # Whatever masks promise, there are none where tokens have come dearer than plain calls would have
        # brought them.
        may = self.hopeful and (self._repeats or paid <= tokens)
        masks = self._best(survival, price, masks=may)
        if self._late and len(masks) == 1:
            masks, self._late = (self._late,), 0
        elif any(masks):
            self.idle = self._late = 0
            if len(masks) > 1 or masks[0] > PROBE_MASKS:
                self.pause = FIRST_PAUSE
        elif self.hopeful and not self._repeats:  # where copies do without masks, these are not found wanting
            self.idle += 1
            if self.idle > self.pause and self.credit.left > 0:
                self.idle, self.pause = 0, min(2 * self.pause, LONGEST_PAUSE)
                self.tokens[False], self.paid[False] = AGAIN * 1.3, float(AGAIN)
                masks = (*masks[:-1], min(PROBE_MASKS, self.k))
        layout = Layout.steady(masks).within(left)
        self._judged, self._fed = (copies if copied else guesses, copied), (layout.n_drafts, layout.n_masks)
        self.meter.plan(layout.rows, layout.n_masks > 0)
        return Plan(layout.n_drafts, layout, copied)

    def learn(self, stood: Sequence[bool], emitted: int) -> None:
        confidences, copied = self._judged
        self.learned.judge(confidences, copied, stood)
        if stood and all(stood) and not copied:  # masks that are right again are asked again at once
            self.idle = self.pause = FIRST_PAUSE
        here, paid = self._repeats, self.meter.ran()
        self.tokens[here] = self.tokens[here] * MEMORY + emitted
        self.paid[here] = self.paid[here] * MEMORY + paid
        if self._fed is not None:
            self.credit.book(paid, *self._fed, *((0, 0) if copied else (1, emitted - 1)))

    def took(self, seconds: float) -> None:
        self.meter.took(seconds)

    def _best(self, survival: Sequence[float], token: float, masks: bool = True) -> tuple[int, ...]:
        """Masks by group, one group more than drafts, from the chances that the first 0, 1, … stand.

        Lists, since a call waits for this: numpy's calls take longer than so few numbers.

        Args:
            masks: whether any may be fed.
        """
        # Worth of slot j of a group: of what it may win, less the row that judges it. Falls along the slots.
        worth = self.learned.worth[self._repeats].value.tolist() if masks else ()
        meter = self.meter
        masked, bare = meter.drift.of(True), meter.drift.of(False)
        slots = [won for value in worth if (won := value * token - self.row * bare) > 0]
        best, drafts = -inf, 0
        fed: list[tuple[float, int]] = []
        behind: list[tuple[float, int]] = []  # gains, negative, and groups, of all stops before draft d
        reached = 0.0
        for d, stands in enumerate(survival):
            reached += stands * token
            gains = sorted(behind + [(-stands * slot, d) for slot in slots])
            total = reached - meter.bare[1 + d] * bare
            if total > best:
                best, drafts, fed = total, d, []
            total = reached
            for n, (loss, _) in enumerate(gains, 2 + d):
                total -= loss
                if total - meter.cost[n] * masked > best:
                    best, drafts, fed = total - meter.cost[n] * masked, d, gains[: n - d - 1]
            if d + 1 < len(survival):
                behind += [(-(stands - survival[d + 1]) * slot, d) for slot in slots]
        groups = [0] * (drafts + 1)
        for _, group in fed:
            groups[group] += 1
        return tuple(groups)


def could_pay(
    k: int, cost: npt.NDArray[np.float64], bare: npt.NDArray[np.float64], sequences: int = 1
) -> bool:
    """Whether some number of hopeful masks wins more than their rows cost, and those that judge them."""
    many = np.arange(1, k + 1)
    won, plain = np.cumsum(HOPE**many), bare[sequences]
    rows = sequences * (1 + many)
    return bool(np.any(won * plain >= (cost[rows] - plain) + (bare[rows] - plain)))


def opening(
    k: int,
    cost: npt.NDArray[np.float64],
    bare: npt.NDArray[np.float64],
    trained: bool,
    sequences: int = 1,
) -> int:
    """Masks of the first call that has any: untrained ones, mostly in vain, where they are all but free."""
    return k if trained or cost[sequences * (1 + k)] <= FREE * bare[sequences] else 0


class Credit:
    """Whether masks that seem to be worth nothing may be tried once more, which nothing else can tell.

    In hard text two in five guesses are right, and each try loses a part of a call. So what masks cost and
    what their guesses bring is booked, whatever they were fed for, and they are tried only while something is
    left; a small share of the time is added. Debts have an end, so that masks are never given up for good.

    Attributes:
        left: plain calls.
    """

    def __init__(self, meter: Meter) -> None:
        self.left, self._meter = CREDIT, meter

    def add(self, won: float) -> None:
        """Plain calls that masks, or the judging of what they guessed, have won; below 0 if they lost."""
        self.left = max(LEAST_CREDIT, min(self.left + won, MOST_CREDIT))

    def book(
        self, paid: float, drafts: int, masks: int, judging: float, accepted: float, sequences: int = 1
    ) -> None:
        """A call has run. Copies, and what they win, are none of the masks' business.

        Args:
            paid: its cost in plain calls.
            drafts, masks: rows of each sequence in it.
            judging: share of the sequences whose drafts masks had guessed.
            accepted: of these drafts, for each sequence in the call.
        """
        bare = self._meter.calls(sequences * (1 + drafts), False, sequences) if masks else paid
        self.add(TRIES * paid + accepted - judging * (bare - 1) - (paid - bare))


class Meter:
    """What calls cost, and what the one that runs is expected to.

    Args:
        cost, bare, timed: as of `AutoPlanner`.

    Attributes:
        cost, bare: seconds by rows, of calls with masks and without, as measured.
        drift: by how much calls take longer than that.
    """

    def __init__(
        self, cost: npt.NDArray[np.float64], bare: npt.NDArray[np.float64], timed: bool = False
    ) -> None:
        self.cost: list[float] = cost.tolist()
        self.bare: list[float] = bare.tolist()
        self.timed, self.drift = timed, Drift()
        # Of the call planned and of the one that ran; the first call of a run is not planned.
        self._planned: tuple[int, bool] | None = None
        self._ran: tuple[int, bool] | None = None

    def seconds(self, rows: int, masked: bool) -> float:
        """What a call of so many rows is expected to take now."""
        return (self.cost if masked else self.bare)[rows] * self.drift.of(masked)

    def calls(self, rows: int, masked: bool, plain: int = 1) -> float:
        """What such a call is expected to cost, in calls of so many bare rows."""
        return self.seconds(rows, masked) / (self.seconds(plain, False) or 1.0)

    def plan(self, rows: int, masked: bool) -> None:
        """The next call has so many rows."""
        self._planned = rows, masked

    def ran(self, plain: int = 1) -> float:
        """The call planned last has run: its cost in calls of so many bare rows; 0 if none was planned."""
        self._ran = self._planned
        return 0.0 if self._planned is None else self.calls(*self._planned, plain)

    def took(self, seconds: float) -> None:
        """How long the call lasted that ran last."""
        if self.timed and self._ran is not None:
            rows, masked = self._ran
            self.drift.see(masked, seconds, (self.cost if masked else self.bare)[rows])


class Drift:
    """By how much calls take longer, or shorter, than they were measured to, with masks and without.

    Of a kind that was not seen lately nothing worse is believed than of the other: plans try it, and see.
    """

    _KEPT, _JUMP, _LATELY, _LEAST = 0.9, 1.5, 0.15, 3.0

    def __init__(self) -> None:
        self._mean = {True: 1.0, False: 1.0}
        self._weight = {True: 1.0, False: 1.0}

    def of(self, masked: bool) -> float:
        """The factor of calls of this kind."""
        own = self._mean[masked]
        return own if self._weight[masked] >= self._LATELY else min(own, self._mean[not masked])

    def see(self, masked: bool, seconds: float, measured: float) -> None:
        """A call of this kind took so long; one that was interrupted counts for little."""
        if measured <= 0:  # calls too fast for the clock
            return
        for kind in (True, False):
            self._weight[kind] *= self._KEPT
        mean = self._mean[masked]
        self._weight[masked] += 1
        factor = min(max(seconds / measured, mean / self._JUMP), mean * self._JUMP)
        self._mean[masked] = mean + (factor - mean) / max(self._weight[masked], self._LEAST)


class Experience:
    """What is learned of drafts as a run goes: how often they stood, and what fresh ones are worth.

    Args:
        k: most drafts and most masks in a group.
        trained: whether somebody trained the masks: what is expected of them to begin with.

    Attributes:
        reliability: of guesses (False) and of copies (True).
        chances: that drafts 1..i of a fresh group all stand. [k]
        worth: of those beyond the copies that are at hand anyway, where these promise much (True) and where
            they do not: in a text that repeats itself masks may be right and yet earn nothing. [k]
    """

    def __init__(self, k: int, trained: bool) -> None:
        self.k = k
        self.reliability = {False: Reliability(k), True: Reliability(k)}
        guess = np.power(0.4 if trained else 0.2, np.arange(1, k + 1))  # holds for a few calls
        self.chances = Average(guess, weight=3.0)
        self.worth = {False: Average(guess, 3.0), True: Average(BESIDE_COPIES * guess, 3.0)}

    def survival(self, confidences: Sequence[float], copied: bool) -> list[float]:
        """Chance that the first 0, 1, … drafts all stand."""
        reliability = self.reliability[copied]
        chances = [1.0]
        for slot, confidence in enumerate(confidences[: self.k]):
            chances.append(chances[-1] * reliability.chance(slot, confidence))
        return chances

    def value(
        self,
        guessed: Sequence[float],
        of_copies: Sequence[float],
        copied: bool,
        repeats: bool,
    ) -> None:
        """Learn from the chances of a fresh group what such a group is worth.

        Args:
            guessed, of_copies: `survival` of the drafts that masks guessed, and of those that were copied.
            copied: the copies are taken, so the group earns nothing.
            repeats: whether the text repeats itself.
        """
        usual, known = self.chances.value, len(guessed) - 1
        # Slots without a mask follow the usual decline.
        rest = usual[known:] * (guessed[-1] / max(usual[known - 1], 1e-9))
        whole = np.concatenate([guessed[1:], np.minimum(rest, guessed[-1])])
        self.chances.add(whole)
        whole[: len(of_copies) - 1] -= of_copies[1:]
        self.worth[repeats].add(np.zeros(self.k) if copied else np.maximum(whole, 0.0))

    def judge(self, confidences: Sequence[float], copied: bool, stood: Sequence[bool]) -> None:
        """Learn which drafts were right, up to the first wrong one."""
        for slot, (confidence, right) in enumerate(zip(confidences, stood, strict=False)):
            self.reliability[copied].observe(slot, confidence, right)


class Reliability:
    """How often drafts stood, by slot and by how sure they were; learned as the run goes.

    An empty bin believes the confidence, times how the confidences of all slots have held so far.
    """

    def __init__(self, k: int) -> None:
        self.right = [[0.0] * (len(BINS) + 1) for _ in range(k)]
        self.seen = [[0.0] * (len(BINS) + 1) for _ in range(k)]
        self.all_right, self.all_due = 2.0, 2.0

    def chance(self, slot: int, confidence: float) -> float:
        b = _bin(confidence)
        prior = confidence * min(1.0, self.all_right / self.all_due)
        chance = (self.right[slot][b] + PRIOR * prior) / (self.seen[slot][b] + PRIOR)
        return min(chance, 0.999)

    def observe(self, slot: int, confidence: float, right: bool) -> None:
        b = _bin(confidence)
        self.right[slot][b] = self.right[slot][b] * MEMORY + right
        self.seen[slot][b] = self.seen[slot][b] * MEMORY + 1
        self.all_right = self.all_right * MEMORY + right
        self.all_due = self.all_due * MEMORY + confidence


def _bin(confidence: float) -> int:
    return bisect_right(BINS, confidence)


class Average:
    """A mean that forgets, begun with a guess of some weight."""

    def __init__(self, guess: npt.NDArray[np.float64], weight: float) -> None:
        self.value, self.weight = guess.astype(np.float64), weight

    def add(self, value: npt.NDArray[np.float64]) -> None:
        self.weight = self.weight * MEMORY + 1
        self.value = self.value + (value - self.value) / self.weight
