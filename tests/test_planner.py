"""The planner: full grid where rows are free, plain calls where masks are worthless, never far off."""

from __future__ import annotations

import random

import numpy as np
import pytest

from space_core.cost import curve, layout_of, measure
from space_core.layout import Layout
from space_core.lookup import CONFIDENCE, Lookup
from space_core.planner import (
    CREDIT,
    LEAST_CREDIT,
    MOST_CREDIT,
    TRIES,
    AutoPlanner,
    Drift,
    GridPlanner,
    Reliability,
)

FREE = curve({1: 1.0, 81: 1.0}, 81)
GPU = curve({1: 1.0, 36: 1.05, 81: 1.1}, 81)
CPU = curve({1: 2.35, 6: 3.7, 12: 4.5, 16: 5.2, 36: 8.5, 81: 15.5}, 81)  # ms, two cores, 5.8 M parameters
STEEP = curve({1: 1.0, 81: 21.0}, 81)
DEAR = curve({1: 1.0, 2: 1.74, 3: 1.87, 6: 2.1, 36: 3.31, 81: 4.7}, 81)  # plain calls, 9.7 M, slow memory
DEAR_BARE = curve({1: 1.0, 2: 1.21, 3: 1.32, 6: 1.44}, 6)


def charge(plan):
    """Plain calls that a call takes there."""
    return float((DEAR if plan.layout.n_masks else DEAR_BARE)[plan.layout.rows])


class World:
    """A text whose drafts stand by chance, and a device that costs what its curve says.

    masked: by how much calls with masks take longer than that.
    """

    def __init__(self, planner, cost, k, seed, boast=1.0, masked=1.0):
        self.planner, self.cost, self.k, self.boast, self.masked = planner, cost, k, boast, masked
        self.random = random.Random(seed)
        self.seconds, self.tokens, self.plans = 0.0, 1, []
        self.chances = self.fresh(k, 0.6)

    def fresh(self, count, quality):
        """Chances of so many drafts: easy places and hard ones, less sure with every slot."""
        first = self.random.betavariate(3 * quality + 0.01, 3 * (1 - quality) + 0.01)
        return [min(0.99, max(0.01, first * 0.93**slot)) for slot in range(count)]

    def run(self, tokens, quality):
        until = self.tokens + tokens
        while self.tokens < until:
            plan = self.planner.next(999, [min(1.0, c * self.boast) for c in self.chances])
            self.plans.append(plan)
            judged = min(plan.drafts, len(self.chances))
            right = [self.random.random() < chance for chance in self.chances]
            accepted = next((i for i, r in enumerate(right[:judged]) if not r), judged)
            known = [True] * accepted
            if accepted < judged:
                known.append(False)
            elif accepted < len(right):
                known.append(right[accepted])
            self.planner.learn(known, accepted + 1)
            seconds = self.cost[plan.layout.rows] * (self.masked if plan.layout.n_masks else 1.0)
            self.planner.took(seconds)
            self.seconds += seconds
            self.tokens += accepted + 1
            self.chances = self.fresh(len(plan.layout.drafting_rows(accepted)), quality)
        return self


def pace(kind, cost, k, quality, boast=1.0):
    """Seconds a token, over a dozen texts of 128 tokens."""
    worlds = []
    for seed in range(12):
        planner = AutoPlanner(k, cost) if kind == "auto" else GridPlanner(k)
        worlds.append(World(planner, cost, k, seed, boast).run(128, quality))
    return sum(w.seconds for w in worlds) / sum(w.tokens for w in worlds)


@pytest.mark.parametrize("k", [1, 2, 5, 8])
def test_where_rows_are_free_it_is_the_full_grid(k):
    planner = AutoPlanner(k, FREE)
    for confidence in (0.95, 0.5, 0.1):
        plan = planner.next(999, [confidence] * k)
        assert plan.drafts == k and plan.layout == Layout.grid(k)
        planner.learn([True, False][: k + 1], 2)


@pytest.mark.parametrize("cost", [FREE, GPU, CPU, STEEP], ids=["free", "gpu", "cpu", "steep"])
@pytest.mark.parametrize(("quality", "boast"), [(0.85, 1), (0.6, 1), (0.3, 1), (0.05, 1), (0.02, 30)])
@pytest.mark.parametrize("k", [1, 5, 8])
def test_it_never_loses_much_to_the_better_of_plain_and_grid(cost, quality, boast, k):
    best = min(float(cost[1]), pace("grid", cost, k, quality, boast))
    assert pace("auto", cost, k, quality, boast) <= 1.05 * best


def test_on_a_cpu_it_beats_both_clearly():
    best = min(float(CPU[1]), pace("grid", CPU, 5, 0.85))
    assert pace("auto", CPU, 5, 0.85) < 0.75 * best


def test_worthless_masks_are_given_up_within_a_few_tokens_and_found_again():
    world = World(AutoPlanner(5, CPU), CPU, 5, seed=1, boast=30).run(60, 0.01)
    late = [plan.layout.rows for plan in world.plans[12:]]
    assert np.mean([rows == 1 for rows in late]) > 0.85
    world.boast = 1.0
    world.run(300, 0.9)
    last = world.plans[-40:]
    assert np.mean([plan.layout.n_masks > 0 for plan in last]) > 0.9
    assert np.mean([plan.drafts for plan in last]) > 1


def test_masks_that_nobody_trained_are_asked_seldom_and_where_they_are_free_always():
    """And found all the same where they turn out to be good."""
    tried = {}
    for trained, opening in ((True, 5), (False, 0)):
        planner = AutoPlanner(5, CPU, trained=trained)
        assert planner.first(apart=False) == opening
        world = World(planner, CPU, 5, seed=1)
        world.chances = [0.01] * opening
        world.run(60, 0.0)
        tried[trained] = sum(plan.layout.n_masks > 0 for plan in world.plans)
        world.run(300, 0.9)
        assert np.mean([plan.layout.n_masks > 0 for plan in world.plans[-40:]]) > 0.9, trained
    assert 1 <= tried[False] < tried[True]
    for planner in (AutoPlanner(5, FREE, trained=False), GridPlanner(5)):
        assert planner.first(apart=False) == 5


@pytest.mark.parametrize(
    "k, mask, judging, pays", [(1, 1.77, 1.37, False), (1, 1.3, 1.1, True), (8, 1.77, 1.37, True)]
)
def test_masks_that_could_not_pay_if_they_were_right_are_never_tried(k, mask, judging, pays):
    """One mask that costs 0.77 plain calls and its judging 0.37 wins a token at most; copies are judged all the same."""
    cost = curve({1: 1.0, 2: mask, 9: mask + 0.4, 81: mask + 3}, (k + 1) ** 2)
    planner = AutoPlanner(k, cost, curve({1: 1.0, 2: judging, 9: judging + 0.3}, k + 1), trained=True)
    opening = planner.first(apart=False)
    assert (opening > 0) == pays
    world = World(planner, cost, k, seed=1)
    world.chances = [0.5] * opening
    assert any(plan.layout.n_masks for plan in world.run(200, 0.2).plans) == pays
    assert all(plan.drafts == 0 for plan in world.plans) != pays
    plan = planner.next(99, (), (0.99,) * k)
    assert plan.copied and plan.drafts == k


def test_what_tries_may_lose_is_a_small_share_and_they_are_never_given_up():
    """Masks of which two in five are right, each at 0.87 plain calls and its judging at 0.3."""
    paid, worlds = 0.0, []
    for seed in range(24):
        planner = AutoPlanner(5, DEAR, DEAR_BARE)
        opening = planner.first(apart=False)
        world = World(planner, DEAR, 5, seed)
        world.chances = world.fresh(opening, 0.4)
        worlds.append(world.run(100, 0.4))
        paid += DEAR[1 + opening] + sum(charge(plan) for plan in world.plans)
    tokens = sum(world.tokens for world in worlds)
    assert 1 < paid / tokens <= 1.025
    for world in worlds:
        world.run(300, 0.4)
        assert any(plan.layout.n_masks for plan in world.plans[-200:])


def test_what_masks_cost_and_what_their_guesses_bring_is_booked():
    planner = AutoPlanner(5, DEAR, DEAR_BARE)
    assert planner.first(apart=False) == 5
    left = CREDIT - (2.1 - 1)
    planner.learn([], 1)
    assert planner.credit.left == pytest.approx(left), "the prompt's call is no plain one"
    guesses, copies = (0.9,) * 5, (0.99,) * 5
    for asked, stood, emitted in (
        ((guesses, ()), [True, True, True, True, True], 6),
        ((guesses, ()), [False], 1),
        (((), copies), [True, True, False], 3),
        (((), ()), [], 1),
    ):
        plan = planner.next(999, *asked)
        planner.learn(stood, emitted)
        masks, bare = plan.layout.n_masks, DEAR_BARE[1 + plan.drafts]
        left += TRIES * charge(plan)
        left -= charge(plan) - bare if masks else 0.0
        left += emitted - bare if plan.drafts and not plan.copied else 0.0
        left = min(left, MOST_CREDIT)
        assert planner.credit.left == pytest.approx(left), plan
    planner.credit.add(-50.0)
    assert planner.credit.left == LEAST_CREDIT


def test_masks_that_were_right_and_boast_now_are_found_again_when_they_are_right_again():
    """What they lose meanwhile ends; where it did not, they would be in debt for the rest of the run."""
    world = World(AutoPlanner(5, DEAR, DEAR_BARE), DEAR, 5, seed=1).run(300, 0.95)
    world.boast = 50
    world.run(120, 0.02)
    world.boast = 1
    before = len(world.plans)
    world.run(500, 0.95)
    late = world.plans[before + 120 :]
    assert np.mean([plan.drafts > 1 for plan in late]) > 0.25


def test_masks_that_would_need_a_forward_of_their_own_wait_for_a_call_that_judges_nothing():
    planner = AutoPlanner(5, CPU)
    assert planner.first(apart=True) == 0
    planner.learn([], 1)
    behind_copies = planner.next(99, (), (0.99,) * 5)
    assert behind_copies.copied and behind_copies.drafts and not behind_copies.layout.n_masks
    planner.learn([True] * 5, 6)
    assert planner.next(99, ()).layout == Layout.steady((5,))
    planner.learn([], 1)
    assert planner.next(99, (0.01,) * 5).layout.n_masks < 5, "once"
    assert GridPlanner(5).first(apart=True) == 5


def test_unsure_drafts_are_not_judged_and_get_no_group():
    planner = AutoPlanner(5, CPU)
    sure, unsure = planner.next(999, [0.97] * 5), planner.next(999, [0.97, 0.03, 0.03, 0.03, 0.03])
    assert sure.drafts == 5 and unsure.drafts == 1
    assert sure.layout.masks[0] < sure.layout.masks[-1]  # masks stand where the run will stop


@pytest.mark.parametrize("masked", [0.5, 2.0])
def test_what_calls_take_corrects_what_they_were_measured_to_take(masked):
    """Masks dearer or cheaper than measured: as good as a planner that had known, and better than one deaf."""

    def paces(**options):
        worlds = []
        for seed in range(12):
            planner = AutoPlanner(5, options.get("known", CPU), CPU, timed=options.get("timed", False))
            worlds.append(World(planner, CPU, 5, seed, masked=masked).run(256, 0.5))
        return sum(w.seconds for w in worlds) / sum(w.tokens for w in worlds)

    corrected, deaf, knowing = paces(timed=True), paces(), paces(known=CPU * masked)
    assert corrected <= (1.08 if masked < 1 else 1.04) * knowing
    assert corrected < (1.05 if masked < 1 else 0.8) * deaf


@pytest.mark.parametrize("factor", [0.6, 1.6])
def test_a_device_that_is_faster_or_slower_altogether_is_planned_for_as_ever(factor):
    def pace(planner_of):
        worlds = [World(planner_of(), factor * CPU, 5, seed).run(256, 0.7) for seed in range(12)]
        return sum(w.seconds for w in worlds) / sum(w.tokens for w in worlds)

    known = pace(lambda: AutoPlanner(5, factor * CPU))
    assert pace(lambda: AutoPlanner(5, CPU, CPU, timed=True)) <= 1.04 * known


def test_an_interrupted_call_hardly_counts():
    drift = Drift()
    for _ in range(20):
        drift.see(True, 1.4, 1.0)
    assert drift.of(True) == pytest.approx(1.4, abs=0.02) and drift.of(False) == 1.0
    drift.see(True, 50.0, 1.0)
    assert drift.of(True) < 1.5
    drift.see(False, 1.0, 0.0)  # a clock too coarse
    drift.see(False, 50.0, 1.0)  # the first that is seen of its kind
    assert 1.1 < drift.of(False) < 1.25
    for _ in range(40):
        drift.see(True, 1.0, 1.0)
    assert drift.of(False) == drift.of(True) < 1.1  # forgotten: nothing worse is believed than of the others


def test_reliability_learns_that_boasts_are_empty():
    reliability = Reliability(2)
    assert reliability.chance(0, 0.9) == pytest.approx(0.9)
    for _ in range(30):
        reliability.observe(0, 0.9, False)
    assert reliability.chance(0, 0.9) < 0.1
    assert reliability.chance(1, 0.9) < 0.3  # the other slot is believed less too
    for _ in range(60):
        reliability.observe(0, 0.9, True)
    assert reliability.chance(0, 0.9) > 0.6


def test_the_cost_curve_never_falls_and_goes_on_as_it_ends():
    cost = curve({1: 1.0, 4: 3.0, 6: 2.0, 10: 5.0}, 20)
    assert np.all(np.diff(cost[1:]) >= 0)
    assert cost[4] == cost[6] == 2.0, "the call of four rows was disturbed"
    assert cost[19] - cost[18] == pytest.approx(4 / 9)


@pytest.fixture
def one_look():
    """Not here, where the looks themselves are tested."""


@pytest.mark.parametrize(
    ("pace", "bare", "masked"),
    [
        (0.25, {1, 6}, {6}),  # seconds of a call: of a slow model the three that are needed are all
        (0.02, {1, 2, 3, 6}, {2, 3, 4, 6, 9, 12, 16, 81}),
        (0.001, {1, 2, 3, 6}, {2, 3, 4, 6, 9, 12, 16, 24, 36, 49, 64, 81}),
    ],
)
def test_few_rows_are_measured_first_and_the_first_calls_serve_where_others_lack(pace, bare, masked):
    now, asked = 0.0, []

    def decode(layouts):
        nonlocal now
        for layout in layouts:
            seconds = pace * layout.rows**0.1 * (3 if not asked else 1)  # the very first call is slow
            now += seconds
            asked.append(layout.rows)
            yield layout.rows, layout.n_masks > 0, seconds

    costs = measure(decode, lambda: now)
    assert costs.timed and set(costs.bare) == bare and set(costs.masks) >= masked
    assert now < 1.5
    if len(asked) > 5:  # what was measured again is told by its best, the rest by the first call
        assert costs.bare[1] == pace and costs.masks[81] == pytest.approx(pace * 81**0.1)


def test_a_call_of_any_number_of_rows_can_be_made():
    assert [layout_of(rows).rows for rows in range(1, 90)] == list(range(1, 90))


def test_a_copy_is_found_behind_the_longest_sequence():
    lookup = Lookup([1, 2, 3, 4, 9, 9, 2, 3])
    assert lookup.drafts(3)[0] == [4, 9, 9]
    lookup.extend([4])
    drafts, sure = lookup.drafts(5)
    assert drafts == [9, 9, 2, 3, 4] and sure > Lookup([1, 2, 5, 1, 2]).drafts(1)[1]
    assert Lookup([1, 2, 3]).drafts(4) == ([], 0.0)
    assert Lookup([]).drafts(4) == ([], 0.0)


def test_a_copy_goes_on_in_itself():
    """What followed when the last tokens stood there before; past the text's end, the copy."""
    lookup = Lookup([9, 1, 2, 3, 4, 1, 2])
    assert lookup.drafts(6)[0] == [3, 4, 1, 2, 3, 4]
    lookup = Lookup([5, 7, 7])
    assert lookup.drafts(4)[0] == [7, 7, 7, 7]
    assert Lookup([1, 2, 3]).drafts(4) == ([], 0.0)
    loop = Lookup([1, 2, 3] * 3)
    drafts, sure = loop.drafts(5)
    assert drafts == [1, 2, 3, 1, 2] and sure == max(CONFIDENCE.values())
