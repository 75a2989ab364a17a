"""Settings and fixtures of all tests."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve each other on two cores

import pytest


@pytest.fixture(scope="session")
def llama():
    """A float64 Llama without end-of-sequence, with masks whose drafts differ by slot."""
    from tiny import tiny_lm, trained_like_masks

    from space_core.model import SpaceModel

    lm = tiny_lm("Llama")
    return SpaceModel(lm, None, trained_like_masks(lm), eos_ids=())
