"""The model card of a checkpoint, from its manifest."""

from __future__ import annotations

from typing import Any


def model_card(manifest: dict[str, Any], completions: str = "") -> str:
    """Markdown with front matter: what it is, data and licences, figures, limits."""
    figures = manifest["evaluation"]
    watched = figures["heldout_prompts"]
    recipe = manifest["recipe"]
    setting = f"full grid, k = {watched['k']}, greedy, {watched['prompts']} held-out prompts"
    rows = "\n".join(
        f"| {name} | {entry['licence']} | {entry['documents']} | {entry['text_bytes'] / 1e6:.2f} |"
        for name, entry in manifest["training_data"]["sources"].items()
    )
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags: [code, space, speculative-decoding]
---
# {manifest["name"]}

{recipe["description"]} A Llama-shaped base of {manifest["parameters"] / 1e6:.1f} M parameters, with
masks for SPACE (arXiv 2402.11809): method `{manifest["method"]}`, k = {manifest["k"]}. The folder opens with
`AutoModelForCausalLM.from_pretrained` as the plain model, and with `space_core.load` as the same
model with its masks.

Made by `python -m finetune build --recipe {manifest["name"]}` on {manifest["made"]["date"]}
with torch {manifest["made"]["torch"]} and transformers {manifest["made"]["transformers"]};
`training_log.jsonl` is its log.

## Figures

| | |
|---|---|
| held-out loss, nats per token | {figures["heldout_loss"]} |
| bits per byte, held-out files | {figures["bits_per_byte"]} |
| tokens per call, {setting} | {watched["tokens_per_call"]} |
| the same without looping outputs | {watched["tokens_per_call_without_loops"]} |
| share of looping outputs | {watched["share_of_loops"]} |

## Limits

A demonstration of decoding, not a programming assistant: it writes text that looks like Python and
rarely does what a docstring asks. It repeats itself when decoded greedily. It knows no dialogue.
{completions}
## Training data and licences

Source code of these releases (files after deduplication and filters), under their own licences; the
weights are Apache-2.0.

| source | licence | files | MB |
|---|---|---|---|
{rows}
"""
