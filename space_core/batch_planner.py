"""Which drafts and which masks are worth their rows in a call that several sequences share.

All sequences of a call get equally many real rows and equally many mask rows, since a tensor is
rectangular: rows that one of them does not need are computed all the same. So the planner chooses one
shape for all, d drafts and m masks, by the rule of `planner.py` summed over the sequences:

    maximise  Σ_s [ (1 + Σ_{i ≤ d} S_i) / λ  +  Σ_{g ≤ d} P(stop at g) · H(w_g) ]  −  T(n · (1 + d + m))

and each sequence spreads its m masks over its groups as is best for it. T is what a call of so many rows
costs, n the sequences that are left, λ the tokens a second that all of them reach together. The more
sequences, the less a row is for free, and the nearer the plan comes to plain decoding.

What is learned (how often drafts stood, what fresh drafts are worth, how far calls take longer than they were
measured to) is learned from all sequences: they run on one model. A plan never sees a drawn token, only
distributions and the text so far (`planner.py` says why). Pure arithmetic on floats: no tensor, no model, no
clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from space_core.layout import Layout
from space_core.planner import (
    AGAIN,
    FIRST_PAUSE,
    LONGEST_PAUSE,
    MEMORY,
    PROBE_MASKS,
    REPEATS,
    TRUSTED,
    Credit,
    Experience,
    Meter,
    Plan,
    could_pay,
    opening,
)

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Ask:
    """What the planner may know of one sequence.

    Attributes:
        left: tokens that may still be written; no row serves one behind them.
        guesses: how sure the masks were of each draft at hand, in [0, 1].
        copies: the same of drafts copied from the text so far.
    """

    left: int
    guesses: Sequence[float] = ()
    copies: Sequence[float] = ()


class BatchPlanner(Protocol):
    """Decides the rows of each call of a batch, but for those that read the prompts."""

    def first(self, sequences: int) -> int:
        """How many masks each of so many sequences has in the first call; asked once, before any `next`."""

    def next(self, asks: Sequence[Ask]) -> list[Plan]:
        """Plan a call: one plan for each sequence that is still there."""

    def learn(self, stood: Sequence[Sequence[bool]], emitted: int) -> None:
        """What became of the call planned last, or of the first one.

        Args:
            stood: for each sequence of that call, of each draft of the chosen kind whether it was right,
                up to the first wrong one.
            emitted: tokens that all of them wrote.
        """

    def took(self, seconds: float) -> None:
        """How long the call lasted that `learn` was last told of."""


class PlainBatch:
    """Plain decoding's calls: one row for each sequence."""

    def first(self, sequences: int) -> int:
        return 0

    def next(self, asks: Sequence[Ask]) -> list[Plan]:
        return [Plan(0, Layout.steady((0,))) for _ in asks]

    def learn(self, stood: Sequence[Sequence[bool]], emitted: int) -> None:
        pass

    def took(self, seconds: float) -> None:
        pass


class GridBatch:
    """The paper's calls: all drafts, k + 1 groups of k masks, for every sequence."""

    def __init__(self, k: int) -> None:
        self.k, self._layout = k, Layout.grid(k)

    def first(self, sequences: int) -> int:
        return self.k

    def next(self, asks: Sequence[Ask]) -> list[Plan]:
        layouts = [self._layout.within(ask.left) for ask in asks]
        return [Plan(layout.n_drafts, layout) for layout in layouts]

    def learn(self, stood: Sequence[Sequence[bool]], emitted: int) -> None:
        pass

    def took(self, seconds: float) -> None:
        pass


class AutoBatch:
    """Rows by their worth.

    Args:
        k: most drafts and most masks in a group.
        cost: seconds of a call with masks by all its rows, up to those of all sequences' full grids.
        bare: the same of calls without masks.
        trained: whether somebody trained the masks: what is expected of them to begin with.
        timed: as of `AutoPlanner`.
    """

    def __init__(self, k: int, cost: Array, bare: Array, trained: bool = True, timed: bool = False) -> None:
        self.k, self.cost, self.bare, self.trained = k, cost, bare, trained
        self.learned = Experience(k, trained)
        # What the tokens of late have cost, and what they would have cost in plain calls: sums that forget.
        # Their ratio stays a price when sequences leave, and plain calls with them become dearer a token.
        self.paid, self.plain = float(TRUSTED), TRUSTED * 1.3
        self.meter = Meter(cost, bare, timed)
        self.pause, self.idle = FIRST_PAUSE, 0
        self.credit = Credit(self.meter)
        self._hopeful: dict[int, bool] = {}
        self._fed = (0, 0)  # drafts and masks of each sequence in the call
        self._judged: list[tuple[Sequence[float], bool, int]] = []  # confidences, copied, drafts
        self._asked = 0
        d = np.arange(k + 1)
        self._after = 1 + d[:, None] + np.arange(k * (k + 1) + 1)[None, :]
        self._reachable = d[None, :] <= d[:, None]  # [d, g]
        self._below = d[None, :] < d[:, None]

    def first(self, sequences: int) -> int:
        hopeful = self.hopeful(sequences)
        masks = opening(self.k, self.cost, self.bare, self.trained, sequences) if hopeful else 0
        self.credit.add(1.0 - self.meter.calls(sequences * (1 + masks), masks > 0, sequences))
        return masks

    def hopeful(self, sequences: int) -> bool:
        """Whether masks could pay at all in calls of so many sequences."""
        if sequences not in self._hopeful:
            self._hopeful[sequences] = could_pay(self.k, self.cost, self.bare, sequences)
        return self._hopeful[sequences]

    def next(self, asks: Sequence[Ask]) -> list[Plan]:
        n, k = len(asks), self.k
        plain = self.meter.seconds(n, False) / n
        token = plain * self.paid / self.plain
        survival, copied, repeats = np.zeros((n, k + 2)), [], []
        for row, ask in enumerate(asks):
            ours = self.learned.survival(ask.guesses, False)
            theirs = self.learned.survival(ask.copies, True)
            copied.append(sum(theirs) > sum(ours))
            repeats.append(sum(theirs[1:]) > REPEATS)
            if ask.guesses:
                self.learned.value(ours, theirs, copied[-1], repeats[-1])
            best = theirs if copied[-1] else ours
            survival[row, : len(best)] = best
        # Whatever masks promise, there are none where tokens have come dearer than by plain calls.
        hopeful = self.hopeful(n)
        allowed = hopeful and (all(repeats) or self.paid <= self.plain)
        drafts, n_masks, order, gains = self._best(survival, repeats, token, allowed)
        probing = hopeful and self._probe(n_masks, all(repeats))
        plans = []
        for row, ask in enumerate(asks):
            reach = min(drafts, int((survival[row] > 0).sum()) - 1)
            won = order[row, drafts, :n_masks]
            won = won[gains[row, drafts][won] > 0]
            masks = np.bincount(won // k, minlength=k + 1)[: reach + 1].tolist()
            if probing:
                masks[-1] = min(PROBE_MASKS, k)
            layout = Layout.steady(tuple(masks)).within(ask.left)
            plans.append(Plan(layout.n_drafts, layout, copied[row]))
        self._judged = [
            (ask.copies if plan.copied else ask.guesses, plan.copied, plan.drafts)
            for ask, plan in zip(asks, plans, strict=True)
        ]
        real = max(plan.layout.n_real for plan in plans)
        masks = max(plan.layout.n_masks for plan in plans)
        self._asked, self._fed = n, (real - 1, masks)
        self.meter.plan(n * (real + masks), masks > 0)
        return plans

    def learn(self, stood: Sequence[Sequence[bool]], emitted: int) -> None:
        paid = self.meter.ran(self._asked)  # in plain calls of these sequences
        if not self._judged:  # the first call was not planned
            return
        right, accepted, judging = [], 0, 0
        for (confidences, copied, drafts), known in zip(self._judged, stood, strict=True):
            self.learned.judge(confidences, copied, known)
            if known and not copied:
                right.append(all(known))
            if drafts and not copied:
                judging += 1
                accepted += sum(known[:drafts])
        if 2 * sum(right) > len(right):  # masks that are right again are asked again at once
            self.idle = self.pause = FIRST_PAUSE
        self.plain = self.plain * MEMORY + emitted / self._asked
        self.paid = self.paid * MEMORY + paid
        n = self._asked
        self.credit.book(paid, *self._fed, judging / n, accepted / n, n)

    def took(self, seconds: float) -> None:
        self.meter.took(seconds)

    def _best(
        self, survival: Array, repeats: Sequence[bool], token: float, masks: bool = True
    ) -> tuple[int, int, npt.NDArray[np.intp], Array]:
        """Drafts and masks for all, the order in which each sequence takes its masks, and what they win.

        Args:
            survival: chance that the first 0, 1, … drafts of each sequence all stand, 0 behind the last
                one and in one more place. [n, k + 2]
            masks: whether any may be fed.
        """
        n, k = len(survival), self.k
        stop = np.where(self._reachable, survival[:, None, :-1], 0.0)  # [n, d, g]
        stop -= np.where(self._below, survival[:, None, 1:], 0.0)
        # What judging a draft adds to a call.
        row = float(self.bare[n * (k + 1)] - self.bare[n]) / (n * k) * self.meter.drift.of(False)
        slots = np.stack([self.learned.worth[again].value for again in repeats]) * token - row  # [n, k]
        gains = (stop[:, :, :, None] * np.maximum(slots, 0.0)[:, None, None, :]).reshape(n, k + 1, -1)
        order = np.argsort(-gains, axis=2, kind="stable")
        total = np.zeros((k + 1, gains.shape[2] + 1))
        total[:, 1:] = np.take_along_axis(gains, order, 2).cumsum(2).sum(0)
        total -= self.cost[n * self._after] * self.meter.drift.of(True)
        total[:, 0] = -self.bare[n * self._after[:, 0]] * self.meter.drift.of(False)
        total += (survival[:, :-1].cumsum(1).sum(0) * token)[:, None]
        if not masks:
            total = total[:, :1]
        most = int((survival > 0).sum(1).max()) - 1  # no draft that nobody has
        drafts, n_masks = divmod(int(total[: most + 1].argmax()), total.shape[1])
        return drafts, n_masks, order, gains

    def _probe(self, n_masks: int, repeats: bool) -> bool:
        """Whether masks are tried though they seem to be worth nothing, as they have not been for long.

        repeats: whether all texts do; where copies do without masks, these were not found wanting.
        """
        if n_masks:
            self.idle = 0
            if n_masks > PROBE_MASKS:
                self.pause = FIRST_PAUSE
            return False
        if repeats:
            return False
        self.idle += 1
        if self.idle <= self.pause or self.credit.left <= 0:
            return False
        self.idle, self.pause = 0, min(2 * self.pause, LONGEST_PAUSE)
        self.paid, self.plain = float(AGAIN), AGAIN * 1.3
        return True
