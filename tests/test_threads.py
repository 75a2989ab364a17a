"""Which number of CPU threads is taken: a small real model whose calls take what a script says."""

from __future__ import annotations

from itertools import cycle

import pytest
import torch
from tiny import tiny_lm, trained_like_masks

from space_core.model import SpaceModel
from space_core.threads import ROUNDS, SLOW, tune_threads


@pytest.fixture
def scripted(monkeypatch, as_before):
    """Makes a model whose calls of one row and of many take these seconds, by threads, again and again."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def make(one, many, most=2):
        lm = tiny_lm(dtype=torch.float32)
        model, now, calls = SpaceModel(lm, masks=trained_like_masks(lm)), [0.0], []
        call = model.call
        times = {(n, kind): cycle(each[n]) for kind, each in (("one", one), ("many", many)) for n in each}

        def timed(layout, ids, cache):
            if layout.rows == 1 or layout.masks:
                kind = "one" if layout.rows == 1 else "many"
                calls.append((torch.get_num_threads(), kind))
                now[0] += next(times[calls[-1]])
            return call(layout, ids, cache)

        monkeypatch.setattr(model, "call", timed)
        monkeypatch.setattr(model, "clock", lambda: now[0])
        torch.set_num_threads(most)
        return model, calls

    return make


def test_plain_decoding_decides(scripted):
    model, _ = scripted({1: [0.010], 2: [0.009]}, {1: [0.010], 2: [0.030]})
    assert tune_threads(model) == torch.get_num_threads() == 2


def test_a_call_of_many_rows_decides_among_equals(scripted):
    model, _ = scripted({1: [0.0100], 2: [0.0097]}, {1: [0.020], 2: [0.015]})
    assert tune_threads(model) == 2
    model, _ = scripted({1: [0.0100], 2: [0.0097]}, {1: [0.015], 2: [0.020]})
    assert tune_threads(model) == torch.get_num_threads() == 1


def test_more_threads_must_earn_their_cores(scripted):
    model, _ = scripted({n: [0.010] for n in (1, 2, 4)}, {1: [0.020], 2: [0.018], 4: [0.0175]}, most=4)
    assert tune_threads(model) == 1
    model, _ = scripted({n: [0.010] for n in (1, 2, 4)}, {1: [0.020], 2: [0.014], 4: [0.013]}, most=4)
    assert tune_threads(model) == 2


def test_one_lucky_call_decides_nothing(scripted):
    model, _ = scripted({1: [0.011], 2: [0.012] * 7 + [0.001]}, {1: [0.02], 2: [0.02]})
    assert tune_threads(model) == 1


def test_nor_do_slow_stretches_of_a_shared_machine(scripted):
    """It became slow in the midst of a round: medians over all rounds would be 12 ms and 10.6."""
    one = [0.010] * 12 + [0.014] * 12
    two = [0.0106] * 15 + [0.01484] * 9
    model, _ = scripted({1: one, 2: two}, {1: [0.02], 2: [0.02]})
    assert tune_threads(model) == 1


def test_numbers_are_tried_in_turn(scripted):
    model, calls = scripted({n: [0.001] for n in (1, 2, 4)}, {n: [0.002] for n in (1, 2, 4)}, most=4)
    tune_threads(model)
    turns = [n for number, (n, _) in enumerate(calls) if not number or calls[number - 1][0] != n]
    assert turns == [1, 2, 4] * ROUNDS


def test_a_large_model_is_asked_once(scripted):
    seconds = {1: [2 * SLOW, 9.0], 2: [1.5 * SLOW, 9.0]}
    model, calls = scripted(seconds, seconds)
    assert tune_threads(model) == 2
    assert calls == [(n, kind) for n in (1, 2) for kind in ("one", "many")]


def test_what_the_user_said_stands(scripted, monkeypatch):
    model, calls = scripted({}, {})
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert tune_threads(model) == 2 and not calls
