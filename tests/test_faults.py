"""Planted faults are caught: by the checks of `verify` always, by the tests in the slow tier."""

from __future__ import annotations

import os
import sys

import faults
import pytest

QUICKLY = (
    "a mask sees the mask behind it",
    "drafts stand one position too far",
    "a crop forgets one row too few",
    "drafts behind a wrong one stand",
    "the corrected token from the row before",
    "a seed shared by the lanes",
    "an end of text within a run is passed over",
    "the budget is overrun by one",
    "the adapter acts on a real row",
)
"""Those that no check needs more than a second for."""
BY_NAME = {fault.name: fault for fault in faults.FAULTS}


def test_every_fault_still_has_its_place():
    for fault in faults.FAULTS:
        source = (faults.ROOT / fault.file).read_text(encoding="utf-8")
        assert fault.applied(source) != source
        compile(fault.applied(source), fault.file, "exec")
    assert len(BY_NAME) == len(faults.FAULTS)


def test_without_a_fault_the_checks_find_nothing(monkeypatch):
    of_their_own = ("cache", "forced drafts", "stopping", "sampling")  # these have tests of their own
    others = {name: options for name, options in faults.QUICK.items() if name not in of_their_own}
    monkeypatch.setattr(faults, "QUICK", others)  # set as a whole: what is put back singly changes its place
    assert faults.caught_by_checks(None) == (False, "no check")


@pytest.mark.parametrize("name", QUICKLY)
def test_the_checks_catch_it(name):
    caught, by = faults.caught_by_checks(BY_NAME[name])
    assert caught, by


def test_planting_leaves_no_trace():
    import space_core.layout

    before = {name: module for name, module in sys.modules.items() if name.startswith("space_core")}
    with faults.planted(BY_NAME["masks stand one position too far"]):
        import space_core.layout as planted

        assert planted.Layout.first(2, 2).offsets().tolist() == [0, 1, 3, 4]
    assert {name: module for name, module in sys.modules.items() if name.startswith("space_core")} == before
    assert space_core.layout.Layout.first(2, 2).offsets().tolist() == [0, 1, 2, 3]


@pytest.mark.slow
@pytest.mark.trust(20)
def test_the_checks_catch_all_they_are_meant_to(figures):
    meant = [fault for fault in faults.FAULTS if fault.check]
    missed = [fault.name for fault in meant if not faults.caught_by_checks(fault)[0]]
    assert not missed
    figures(by_verify=f"{len(meant)} of {len(meant)}")


@pytest.mark.slow
@pytest.mark.trust(20)
def test_the_tests_catch_every_fault(tmp_path, figures, monkeypatch):
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")
    folder = faults.copied(tmp_path / "copy")
    names = " ".join(dict.fromkeys(name for fault in faults.FAULTS for name in fault.tests.split()))
    assert faults.pytest_in(folder, names)[0] == 0
    missed = {}
    for fault in faults.FAULTS:
        caught, by = faults.caught_by_tests(fault, folder)
        faults.report(fault, caught, by)  # seen with -s: all take an hour
        if not caught:
            missed[fault.name] = by
    assert not missed
    figures(by_tests=f"{len(faults.FAULTS)} of {len(faults.FAULTS)}")
