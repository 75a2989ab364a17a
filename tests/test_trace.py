"""Settings and traces: what is accepted, what is refused, JSON both ways."""

from __future__ import annotations

import json
import math

import pytest

from space_core import Settings, Step, Stop, Trace
from space_core.errors import SettingError, TraceError
from space_core.metrics import acceptance_by_position, calls_histogram, is_loop, tokens_per_call
from space_core.trace import Origin


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("k", 0), ("k", 17), ("k", 2.5), ("k", True), ("k", "5"), ("k", None), ("k", math.nan), ("k", [5]),
        ("max_new_tokens", 0), ("max_new_tokens", 1e308), ("max_new_tokens", -math.inf), ("max_new_tokens", 10**400),
        ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf), ("temperature", 1e-9),
        ("temperature", True), ("temperature", "1"), ("temperature", 10**400), ("temperature", 5.1),
        ("top_p", 0.0), ("top_p", 1.01), ("top_k", -1), ("seed", -1), ("seed", 2**63), ("plan", "fast"), ("plan", None),
    ],
)  # fmt: skip
def test_settings_refuse_what_is_no_setting(field, value):
    with pytest.raises(SettingError) as caught:
        Settings(**{field: value})
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


def test_settings_take_a_browsers_whole_floats():
    assert Settings(k=3.0, seed=7.0).k == 3


def a_trace() -> Trace:
    steps = (
        Step((5,), 0, (), 8, 0.1, (), (2,), (6, 7), (0.9, 0.5)),
        Step((6, 9), 1, (6, 7), 9, 0.2, (0.9, 0.5), (2, 2, 2), (1, 2), (0.3, 0.2)),
        Step((1, 2, 3), 2, (1, 2), 9, 0.2, (0.3, 0.2), (2, 2, 2), stop=Stop.MAX_NEW_TOKENS),
    )
    return Trace("m", "space", 2, "float32", "cpu", (1, 2, 3), steps, "text", Settings(k=2).to_json())


def test_a_trace_survives_json():
    trace = a_trace()
    data = json.loads(json.dumps(trace.to_json()))
    assert Trace.from_json(data) == Trace.from_json(data)
    assert Trace.from_json(data).to_json() == data
    assert data["output_ids"] == [5, 6, 9, 1, 2, 3] == list(trace.output_ids)
    assert data["calls"] == 3 and data["tokens_per_call"] == 2.0 and data["stop"] == "max_new_tokens"


def test_origins_tell_where_each_token_came_from():
    assert [step.origins for step in a_trace().steps] == [
        (Origin.OWN,),
        (Origin.ACCEPTED, Origin.CORRECTED),
        (Origin.ACCEPTED, Origin.ACCEPTED, Origin.BONUS),
    ]


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.update(format="space-trace/2"),
        lambda d: d.pop("steps"),
        lambda d: d.update(text=5),
        lambda d: d.update(k=True),
        lambda d: d.update(output_ids=[1]),
        lambda d: d.update(prompt_ids=["1"]),
        lambda d: d["steps"][0].update(accepted=4),
        lambda d: d["steps"][1].update(emitted=[7, 9]),
        lambda d: d["steps"][1].update(emitted=[6, 9, 9]),
        lambda d: d["steps"][1].update(seconds=math.nan),
        lambda d: d["steps"][1].update(draft_probs=[2.0]),
        lambda d: d["steps"][0].update(stop="eos"),
        lambda d: d["steps"].append("step"),
    ],
)
def test_what_no_decoder_wrote_is_no_trace(damage):
    data = json.loads(json.dumps(a_trace().to_json()))
    damage(data)
    with pytest.raises(TraceError):
        Trace.from_json(data)


@pytest.mark.parametrize("data", [None, [], "x", 5, {}, {"format": "space-trace/1"}])
def test_other_json_is_no_trace(data):
    with pytest.raises(TraceError):
        Trace.from_json(data)


def test_metrics_are_folds_over_steps():
    traces = [a_trace()]
    assert tokens_per_call(traces) == 2.0
    assert calls_histogram(traces) == {1: 1, 2: 1, 3: 1}
    assert acceptance_by_position(traces) == [1.0, 0.5]
    assert is_loop([1, 2, 3, 4] * 10) and not is_loop(list(range(40))) and not is_loop([1, 1])
