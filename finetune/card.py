"""The model card of a checkpoint, from its manifest."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from space_core.decoders import vanilla
from space_core.model import SpaceModel
from space_core.settings import Settings

SHOWN_LINES = 8
"""Lines of a prompt that are quoted, the last ones."""


def model_card(manifest: dict[str, Any], completed: str = "") -> str:
    """Markdown with front matter: what it is, data and licences, figures, limits."""
    figures = manifest["evaluation"]
    watched = figures["heldout_prompts"]
    recipe = manifest["recipe"]
    setting = f"full grid, k = {watched['k']}, greedy, {watched['prompts']} held-out prompts"
    before = ""
    if start := manifest.get("start"):
        does = "teaches the base together with its masks before they are trained alone"
        if not recipe["pretrain"]["steps"]:
            does = "leaves the base as it is: only its masks are taught on"
            if not recipe["masks"]["steps"]:
                does = "leaves base and masks as they are: only the table of copies is fitted"
        before = (
            f"\n\nIt goes on from an earlier round, `{start['name']}` of {start['made']['date']} "
            f"(`training_log_1.jsonl` and so on are the logs before), and\n{does}. "
            f"{start['made'].get('note', '')}"
        ).rstrip()
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
masks for SPACE (arXiv 2402.11809): method `{manifest["method"]}`, k = {manifest["k"]}{_told(manifest)}.
The folder opens with `AutoModelForCausalLM.from_pretrained` as the plain model, and with `space_core.load`
as the same model with its masks.

Made by `python -m finetune build --recipe {manifest["name"]}` on {manifest["made"]["date"]}
with torch {manifest["made"]["torch"]} and transformers {manifest["made"]["transformers"]};
`training_log.jsonl` is its log.{before}

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
{completed}
## Training data and licences

Source code of these releases (files after deduplication and filters), under their own licences; the
weights are Apache-2.0.

| source | licence | files | MB |
|---|---|---|---|
{rows}
"""


def _told(manifest: dict[str, Any]) -> str:
    """What guesses are told beside what masks see."""
    parts = {"sampler": "a sampler head", "copies": "a table of copies"}
    told = [what for name, what in parts.items() if manifest.get(name)]
    return f", with {' and '.join(told)}" if told else ""


def sft_card(manifest: dict[str, Any], whole: bool) -> str:
    """The card of what `sft` made. whole: the folder holds a model, not only SPACE's parts."""
    figures, options, base = manifest["evaluation"]["heldout_prompts"], manifest["sft"], manifest["base"]
    gated = manifest["method"] == "gated"
    on_hub = not base["id"].startswith(("/", "\\")) and base["id"].count("/") == 1
    front = [
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [space, speculative-decoding]",
    ]
    front += [f"base_model: {base['id']}"] if on_hub else []
    if gated:
        what = (
            f"a low-rank adapter and mask embeddings that act on mask rows only{_told(manifest)}.\n"
            "The base is untouched: with SPACE it writes what it wrote before, in fewer calls"
        )
    else:
        what = (
            "all weights fine-tuned, with one [M] in the vocabulary. SPACE writes what this model writes\n"
            "without it, in fewer calls; that is not what the base writes"
        )
    named = f"`{base['id'] if on_hub else base['id'].rpartition('/')[2]}`"
    opens = (
        "The folder opens with `AutoModelForCausalLM.from_pretrained` as the plain model, too."
        if whole
        else f"It holds SPACE's parts only; the base, {named}, is opened with it."
    )
    answers = (
        "Trained on the model's own continuations of the data's prompts."
        if gated and options["distil"]
        else "Trained on the data's answers."
    )
    chosen = ", but they chose the best of the evaluations" if options["patience"] else ""
    revision = f", revision `{base['revision']}`" if base["revision"] else ""
    share = manifest["trained_parameters"] / manifest["parameters"]
    setting = f"full grid, k = {figures['k']}, greedy, {figures['prompts']} held-out prompts"
    return f"""---
{chr(10).join(front)}
---
# {manifest["name"]}

{named}{revision} with masks for SPACE (arXiv 2402.11809): method `{manifest["method"]}`,
k = {manifest["k"]}, {what}.

    import space_core
    model = space_core.load("{manifest["name"]}")

{opens} Trained parameters: {manifest["trained_parameters"] / 1e6:.2f} M, {100 * share:.1f} % of the model's.

Made by `python -m finetune sft` on {manifest["made"]["date"]} with torch {manifest["made"]["torch"]}
and transformers {manifest["made"]["transformers"]}; `training_log.jsonl` is its log, and `space.json`
holds every option.

## Figures

| | |
|---|---|
| tokens per call, {setting} | {figures["tokens_per_call"]} |
| the same without looping outputs | {figures["tokens_per_call_without_loops"]} |
| share of looping outputs | {figures["share_of_loops"]} |
| acceptance by position | {", ".join(map(str, figures["acceptance_by_position"]))} |
| outputs identical to plain decoding's | {figures["identical_to_vanilla"]} of {figures["prompts"]} |

Nothing was trained on these prompts{chosen}. How much faster that is depends on
what a call of (k+1)² rows costs on your device: measure it with `python -m space_core bench`.

## Training data

`{manifest["training_data"]["source"]}`, SHA-256 of its rows `{manifest["training_data"]["sha256"]}`:
{manifest["training_data"]["told"]}. {answers} The licence is that of the base and of this data.
"""


def completions(model: SpaceModel, prompts: Sequence[Sequence[int]], tokens: int = 96) -> str:
    """What the model writes behind each prompt, as a section of the card: greedy, and sampled."""
    parts = [
        "",
        f"## {len(prompts)} completions",
        "",
        f"Prompts from held-out files, the first {len(prompts)} as they come; the last lines of each, then "
        f"`# --- greedy` and `# --- temperature 0.7, top-p 0.95`, {tokens} tokens each.",
        "",
    ]
    for prompt in prompts:
        texts = ["\n".join(model.decode(prompt).split("\n")[-SHOWN_LINES - 1 :])]
        for title, options in (
            ("greedy", {}),
            ("temperature 0.7, top-p 0.95", {"temperature": 0.7, "top_p": 0.95}),
        ):
            settings = Settings(max_new_tokens=tokens, **options)
            written = [token for step in vanilla(model, prompt, settings) for token in step.emitted]
            texts += [f"# --- {title}\n", model.decode(written).rstrip("\n") + "\n"]
        # A fence longer than any run of backticks within.
        text = "".join(texts)
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
        parts += [f"{fence}python", text.rstrip("\n"), fence, ""]
    return "\n".join(parts)
