"""The command line by its contract, as a user would call it."""

from __future__ import annotations

import json

import pytest
from commandline import run, run_alone

from space_core import Trace
from space_core.bundled import CHECKPOINTS

pytestmark = pytest.mark.usefixtures("as_before")
BUNDLED = any(CHECKPOINTS.glob("*/space.json"))
needs_checkpoint = pytest.mark.skipif(not BUNDLED, reason="no bundled checkpoint in this checkout")


@needs_checkpoint
def test_generate_prints_one_trace_and_both_methods_agree():
    outputs = {}
    for method, call in (("vanilla", run_alone), ("space", run)):
        arguments = ("--prompt-file", "-", "--method", method, "--max-new-tokens", "24", "--dtype", "float64")
        result = call("generate", *arguments, "--json", text="def fib(n):\n")
        assert result.returncode == 0, result.stderr
        data = json.loads(result.stdout)
        trace = Trace.from_json(data)
        assert data["output_ids"] == [i for step in data["steps"] for i in step["emitted"]]
        assert data["tokens_per_call"] == pytest.approx(len(trace.output_ids) / trace.calls)
        outputs[method] = data["output_ids"], data["text"]
    assert outputs["vanilla"] == outputs["space"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("generate",), "--prompt-file"),
        (("generate", "--prompt-file", "/nowhere.txt"), "prompt file"),
        (("generate", "--prompt-file", ""), "name of the prompt file is empty"),
        (("generate", "--prompt-file", "-", "--k", "0"), "k must"),
        (("generate", "--prompt-file", "-", "--k", "many"), "--k"),
        (("generate", "--prompt-file", "-", "--method", "magic"), "--method"),
        (("generate", "--prompt-file", "-", "--temperature", "nan"), "temperature"),
        (("generate", "--prompt-file", "-", "--model", "/nowhere"), "/nowhere"),
        (("generate", "--prompt-file", "-", "--dtype", "int3"), "dtype"),
        (("sing",), "sing"),
        ((), "command"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_code_2(arguments, says):
    # Those that come to torch run alone, since it may say something too.
    call = run_alone if says in ("/nowhere", "dtype") else run
    result = call(*arguments, text="def fib(n):\n")
    assert result.returncode == 2
    assert says in result.stderr and result.stderr.count("\n") == 1
    assert not result.stdout


@needs_checkpoint
def test_an_empty_prompt_is_refused():
    result = run("generate", "--prompt-file", "-")
    assert result.returncode == 2 and "prompt is empty" in result.stderr


@pytest.mark.more
@needs_checkpoint
def test_the_bundled_checkpoint_is_found_lossless():
    """Its masks are told what stands in front of them, which the small models of other tests are not."""
    sizes = ("--cases", "1", "--k", "3", "--max-new-tokens", "24", "--seconds", "60")
    done = run("verify", *sizes)
    assert done.returncode == 0 and "Lossless: no difference" in done.stdout, done.stdout + done.stderr
