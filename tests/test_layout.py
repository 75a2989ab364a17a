"""The rows of a call, against the table of the paper written out by hand."""

from __future__ import annotations

import pytest
import torch

from space_core.layout import Layout


def by_hand(k: int) -> tuple[list[int], list[list[bool]]]:
    """Positions and visibility of the full grid, from the definition, cell by cell."""
    rows = [("real", i, 0) for i in range(k + 1)]
    rows += [("mask", g, j) for g in range(k + 1) for j in range(1, k + 1)]
    positions = [index if kind == "real" else index + j for kind, index, j in rows]

    def sees(looking, seen):
        (kind, i, j), (other, g, h) = looking, seen
        if other == "real":
            return g <= i
        return kind == "mask" and g == i and h <= j

    return positions, [[sees(a, b) for b in rows] for a in rows]


@pytest.mark.parametrize("k", range(1, 9))
def test_the_grid_is_the_papers(k):
    layout = Layout.grid(k)
    positions, sees = by_hand(k)
    assert layout.rows == layout.n_judged == (k + 1) ** 2
    assert layout.offsets().tolist() == positions
    assert layout.sees().tolist() == sees


def test_the_first_call_is_the_prompt_and_one_group():
    layout = Layout.first(4, 3)
    assert layout.offsets().tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert layout.n_judged == 4
    assert layout.group_rows(0) == slice(1, 4)
    assert torch.equal(layout.sees(), torch.ones(7, 7).tril().bool())


def test_planned_groups_may_differ_in_length():
    layout = Layout.steady((2, 0, 1))
    assert layout.rows == 6
    assert layout.group_rows(0) == slice(3, 5)
    assert layout.group_rows(1) == slice(5, 5)
    assert layout.group_rows(2) == slice(5, 6)
    assert layout.offsets().tolist() == [0, 1, 2, 1, 2, 3]
    assert layout.slots().tolist() == [0, 1, 0]


def test_training_groups_see_what_decoding_groups_see():
    """A group behind token t of a whole text sees what the first call's group sees behind a prompt."""
    dense = Layout(10, 0, (3, 7), (2, 2))
    alone = Layout.first(4, 2)
    rows = [0, 1, 2, 3, 10, 11]
    assert torch.equal(dense.sees()[rows][:, rows], alone.sees())
    assert not dense.sees()[10, 4:10].any()
    assert dense.offsets()[[10, 11]].tolist() == alone.offsets()[4:].tolist()


@pytest.mark.parametrize(
    "arguments", [(0,), (1, 1), (3, 0, (3,), (1,)), (3, 0, (1,), ()), (3, 0, (1,), (-1,))]
)
def test_impossible_calls_are_refused(arguments):
    with pytest.raises(ValueError):
        Layout(*arguments)
