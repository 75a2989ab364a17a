"""What a checkpoint is worth: tokens per call by decoding, and how its text reads."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from space_core.decoders import space, vanilla
from space_core.errors import PromptError
from space_core.metrics import acceptance_by_position, is_loop, tokens_per_call
from space_core.model import SpaceModel
from space_core.settings import Settings
from space_core.trace import Stop, Trace


def decode_prompts(
    model: SpaceModel, prompts: Sequence[Sequence[int]], k: int, new_tokens: int, **settings: Any
) -> list[Trace]:
    """SPACE on the full grid, one trace per prompt."""
    request = Settings(k=k, max_new_tokens=new_tokens, plan="grid", **settings)
    return [Trace("", "space", k, "", "", tuple(ids), tuple(space(model, ids, request))) for ids in prompts]


def evaluate(
    model: SpaceModel, prompts: Sequence[str], k: int, new_tokens: int = 128, temperature: float = 0.0
) -> dict[str, Any]:
    """The figures of the model card, on prompts the model was not trained on."""
    ids = [model.encode(prompt) for prompt in prompts]
    result, traces = figures(model, ids, k, new_tokens, temperature)
    reads = sum(parses(p, model.decode(t.output_ids)) for p, t in zip(prompts, traces, strict=True))
    same = result.pop("identical_to_vanilla", None)
    result["share_that_parses"] = round(reads / len(traces), 4)
    result["share_that_ends"] = round(sum(t.steps[-1].stop is Stop.EOS for t in traces) / len(traces), 4)
    if same is not None:
        result["identical_to_vanilla"] = same
    return result


def figures(
    model: SpaceModel, prompts: Sequence[Sequence[int]], k: int, new_tokens: int, temperature: float = 0.0
) -> tuple[dict[str, Any], list[Trace]]:
    """What decoding on the full grid says of the masks, and its traces, one for each prompt."""
    traces: list[Trace] = []
    for prompt in tqdm(prompts, desc=f"evaluate k={k}", mininterval=2):
        traces += decode_prompts(model, [prompt], k, new_tokens, temperature=temperature)
    straight = [trace for trace in traces if not is_loop(trace.output_ids)]
    result = {
        "prompts": len(traces),
        "k": k,
        "temperature": temperature,
        "max_new_tokens": new_tokens,
        "tokens_per_call": round(tokens_per_call(traces), 4),
        "tokens_per_call_without_loops": round(tokens_per_call(straight), 4),
        "share_of_loops": round(1 - len(straight) / len(traces), 4),
        "acceptance_by_position": [round(a, 4) for a in acceptance_by_position(traces)],
    }
    if temperature == 0:
        request = Settings(k=k, max_new_tokens=new_tokens)
        same = sum(
            tuple(token for step in vanilla(model, p, request) for token in step.emitted) == t.output_ids
            for p, t in zip(prompts, traces, strict=True)
        )
        result["identical_to_vanilla"] = same
    return result, traces


def read_prompts(path: Path) -> list[str]:
    """The "prompt" of each line of a JSON lines file, HumanEval's form.

    Raises:
        PromptError: naming the file and the line that is wrong.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"cannot read {path}: {error}") from None
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            prompt = json.loads(line)["prompt"]
        except (ValueError, KeyError, TypeError):
            prompt = None
        if not isinstance(prompt, str) or not prompt:
            raise PromptError(f'{path}, line {number}: needs an object with a "prompt"')
        prompts.append(prompt)
    if not prompts:
        raise PromptError(f"{path} holds no prompts")
    return prompts


def parses(prompt: str, completion: str) -> bool:
    """Whether prompt and completion are Python up to some line that the completion reached."""
    lines = (prompt + completion).split("\n")
    for end in range(len(lines), prompt.count("\n"), -1):
        try:
            ast.parse("\n".join(lines[:end]))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        return True
    return False
