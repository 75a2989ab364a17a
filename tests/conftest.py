"""Settings and fixtures of all tests."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve each other on two cores
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers share the cores

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def llama():
    """A float64 Llama without end-of-sequence, with masks whose drafts differ by slot."""
    from tiny import tiny_lm, trained_like_masks

    from space_core.model import SpaceModel

    lm = tiny_lm("Llama")
    return SpaceModel(lm, None, trained_like_masks(lm), eos_ids=())


@pytest.fixture(autouse=True)
def one_look(monkeypatch):
    """What calls cost is measured once where a test makes a model, not five times: plans may then be worse,
    texts the same."""
    monkeypatch.setattr("space_core.cost.REPETITIONS", 1)


@pytest.fixture
def as_before():
    """The command line sets torch's threads and transformers' log level for the whole process."""
    import torch
    from transformers.utils import logging

    threads, level = torch.get_num_threads(), logging.get_verbosity()
    logging.set_verbosity_warning()
    yield
    torch.set_num_threads(threads)
    logging.set_verbosity(level)
    logging.enable_progress_bar()


@pytest.fixture
def figures(record_property):
    """What a test found, for the trust table: figures(cases=…, worst=…)."""

    def note(**found):
        for name, value in found.items():
            record_property(name, value)

    return note


RAN: dict[int, list[tuple]] = {}
"""Tests of each row of the trust table, as they ended: name, outcome, seconds, figures."""


def pytest_addoption(parser):
    parser.addoption("--trust", metavar="OUT.json", help="write results of the tests marked trust(row) here")


def pytest_collection_modifyitems(items):
    for item in items:
        for mark in item.iter_markers("trust"):
            item.user_properties.append(("trust", mark.args[0]))


def pytest_runtest_logreport(report):
    rows = [value for name, value in report.user_properties if name == "trust"]
    if rows and (report.when == "call" or report.failed or report.skipped):
        found = {name: value for name, value in report.user_properties if name != "trust"}
        for row in rows:
            RAN.setdefault(row, []).append((report.nodeid, report.outcome, report.duration, found))


def pytest_sessionfinish(session):
    out = session.config.getoption("--trust")
    if out and not hasattr(session.config, "workerinput"):  # the others' results come together in one process
        from trust_table import write

        write(Path(out), RAN)
