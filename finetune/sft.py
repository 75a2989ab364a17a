"""One command from a model and conversations to a SPACE checkpoint: `python -m finetune sft …`.

Data → samples → (gated) the model's own continuations → masks → evaluation by decoding → folder and card.
Every stage leaves its result in the run's folder and is skipped or resumed when it stands there.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from finetune.card import sft_card
from finetune.chat import Renderer, Sample, render_all
from finetune.copying import fit_copies
from finetune.data import Conversation, DataError, read_data
from finetune.distill import Own, continuations
from finetune.evaluate import figures
from finetune.masks import train
from finetune.packed import Batches, PackedGated, PackedPaper
from finetune.processes import Team, launched
from finetune.recipe import Distill, MaskTraining
from finetune.state import Log, check_same, made, replace_folder, write_json
from finetune.track import Trackers
from space_core import checkpoint
from space_core.errors import CheckpointError, SettingError, first_line
from space_core.model import SpaceModel
from space_core.settings import MAX_K

METHODS = ("gated", "paper")
RESIDUAL = ("o_proj", "down_proj", "out_proj", "c_proj", "fc2", "dense", "dense_4h_to_h")
"""What transformers' architectures call the projections that write to the residual stream."""
LEARNING_RATES = {"gated": 5e-4, "paper": 5e-5}
PROMPT_ROOM = 8
"""New tokens for which a prompt must leave room to be worth continuing."""
RUN = "sft.json"
"""The options of a run, in its folder."""
WEIGHTS = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
"""What is copied of a base: its weights, configurations and tokenizer."""


@dataclass(frozen=True, slots=True)
class Sft:
    """Everything that decides what is trained; a run is resumed only with the same.

    Attributes:
        base: folder or hub id.
        revision: of the hub id; None takes the newest.
        data: JSON-lines file, or id of a data set of the hub, of which `split` is taken.
        method: "gated" leaves the base as it is; "paper" trains all weights, and [M] in the vocabulary.
        k: masks of a group.
        rank: of the gated adapter.
        sampler: width of the sampler head, for the gated method; 0 trains none. There is none either
            where a base changes its logits behind its head, or has its weights spread over processes.
        copy_samples: on which the table of copies is fitted at the end, for the gated method; 0 fits none.
        targets: modules it updates, by name; empty: those that write to the residual stream.
        groups: dense groups drawn in each row at every step.
        until_fail, soft, p_ar: see `MaskTraining`.
        lr: peak learning rate; 0 takes the method's default.
        epochs: over the samples; `steps`, where not 0, says how long instead.
        batch, accumulate: rows of a batch, and batches of a step.
        max_length: most tokens of a sample and of a row; 0: 2048, or the model's context if shorter.
        truncate: which turns a longer conversation loses, "front" or "back".
        pack: several short samples in one row.
        distil: how many prompts the model itself continues; masks are then trained on that, not on the
            data's answers. 0 trains on the data's. For the gated method only.
        distil_tokens, sampled_share, temperature: new tokens, and which share is sampled how.
        warmup: share of the steps over which the rate rises.
        evaluate_every, evaluate_prompts, evaluate_tokens: tokens per call by decoding, on prompts that
            are held out.
        patience: evaluations without gain before training stops; 0 never stops early.
        save_every: steps between states.
        dtype: "float32"; "bfloat16" keeps the base of the gated method in it and multiplies in it;
            "auto" is bfloat16 on GPUs that have it.
        checkpointing: less memory, more time.
    """

    base: str
    data: str
    method: str = "gated"
    revision: str | None = None
    split: str = "train"
    k: int = 5
    rank: int = 64
    sampler: int = 512
    copy_samples: int = 256
    targets: tuple[str, ...] = ()
    groups: int = 64
    until_fail: float = 0.2
    soft: float = 0.3
    p_ar: float = 0.5
    lr: float = 0.0
    epochs: int = 3
    steps: int = 0
    batch: int = 4
    accumulate: int = 1
    max_length: int = 0
    truncate: str = "front"
    pack: bool = True
    distil: int = 4096
    distil_tokens: int = 256
    distil_batch: int = 32
    sampled_share: float = 0.2
    temperature: float = 0.8
    warmup: float = 0.03
    evaluate_every: int = 100
    evaluate_prompts: int = 16
    evaluate_tokens: int = 64
    patience: int = 5
    save_every: int = 100
    dtype: str = "auto"
    checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (
            ("method", METHODS),
            ("truncate", ("front", "back")),
            ("dtype", ("auto", "float32", "bfloat16")),
        ):
            if getattr(self, name) not in known:
                raise SettingError(
                    name, f"{name} must be {' or '.join(known)}, not {getattr(self, name)!r:.40}"
                )
        for name in (
            *("k", "rank", "groups", "epochs", "batch", "accumulate", "distil_tokens", "distil_batch"),
            *("evaluate_every", "evaluate_prompts", "evaluate_tokens", "save_every"),
        ):
            if getattr(self, name) < 1:
                raise SettingError(name, f"{name} must be at least 1")
        for name in (
            *("steps", "max_length", "distil", "patience", "seed"),
            *("lr", "temperature", "sampler", "copy_samples"),
        ):
            if not 0 <= getattr(self, name) < math.inf:
                raise SettingError(name, f"{name} must not be below 0, nor endless")
        for name in ("until_fail", "soft", "p_ar", "sampled_share", "warmup"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingError(name, f"{name} must lie in 0..1")
        if self.k > MAX_K:
            raise SettingError("k", f"k must lie in 1..{MAX_K}")
        if self.sampled_share and self.distil and not self.temperature:
            raise SettingError("temperature", "temperature must be above 0 to sample continuations")
        if self.max_length and self.max_length < 4 + self.k:
            raise SettingError("max_length", f"max_length must be at least {4 + self.k}")


def sft(
    options: Sft,
    run: Path,
    out: Path,
    device: str = "cpu",
    *,
    merge_base: bool = False,
    push_to: str | None = None,
    track: Sequence[str] = (),
) -> Path:
    """Fine-tune a model of transformers for SPACE; returns `out`.

    Args:
        run: states and log; a killed run resumes from it.
        out: the checkpoint; replaced when it holds one.
        merge_base: put a copy of the base's files beside the gated parts, so that the folder needs no
            other. The paper's method always writes a whole model.
        track: accelerate's trackers that hear what is logged.
        push_to: id of a model repository on the hub to upload the checkpoint to.

    Raises:
        SpaceError: with one sentence, for data, bases and settings that do not serve.
    """
    _check_out(out)
    team = launched(device)
    device = team.device(device)
    whole = merge_base or options.method == "paper"
    if push_to is not None:
        _check_push(options.base, push_to, whole)
    conversations, digest = read_data(options.data, options.split)
    mine = json.loads(json.dumps({**asdict(options), "data's SHA-256": digest}))
    check_same(run / RUN, mine)
    trackers = Trackers(track if team.main else (), run, asdict(options))
    model, base, folder = open_base(options, device)
    dtype = _format(options.dtype, model.device)
    train_on, prompts, told = _samples(options, model, conversations, run, team)
    if team.main:
        write_json(run / RUN, mine)
    if options.method == "gated" and options.distil:
        train_on = _own_words(options, model, train_on, run, team)
    length = _length(options, model)
    batches = Batches(train_on, length, options.batch, options.seed, options.pack)
    plan = _plan(options, model, batches, team)
    torch.manual_seed(options.seed)  # of [M]'s first embedding
    method: PackedGated | PackedPaper
    if options.method == "gated":
        method = PackedGated(model.lm, plan, options.seed, options.checkpointing, team)
    else:
        method = PackedPaper(model.lm, plan, options.checkpointing, team)
    if team.main and team.size > 1:
        held = round(team.held(method.lm), 4)
        Log(run / "log.jsonl", "processes", -1).write(0, processes=team.size, share_of_base_held=held)
    trained = train(
        method,
        lambda index, random: batches.batch(index),
        model.tokenizer,
        prompts,
        plan,
        run,
        options.seed,
        half=dtype == torch.bfloat16,
        team=team,
        tell=trackers,
    )
    if not team.main or trained is None:
        team.end()
        return out
    if options.method == "paper":
        trained.lm.to(dtype)
        trained = SpaceModel(trained.lm, trained.tokenizer, trained.masks)
    elif options.copy_samples:
        order = torch.randperm(len(train_on), generator=torch.Generator().manual_seed(options.seed)).tolist()
        chosen = (_last_answer(train_on[index]) for index in order[: options.copy_samples])
        answers = [own for own in chosen if own]
        fitted = fit_copies(trained, lambda index, random: answers[index], len(answers), plan, options.seed)
        if fitted:
            Log(run / "log.jsonl", "copies", -1, trackers).write(0, **fitted)
    trained.name = out.name
    result, _ = figures(trained, prompts, plan.k, plan.evaluate_tokens)
    about = {
        "name": out.name,
        "base": base,
        "sft": {key: value for key, value in asdict(options).items() if key not in ("base", "revision")},
        "parameters": sum(p.numel() for p in trained.lm.parameters()),
        "trained_parameters": sum(p.numel() for p in method.trained.parameters()),
        "training_data": {"source": _shown(options.data), "sha256": digest, "told": told},
        "evaluation": {"heldout_prompts": result},
        "made": made(),
    }
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    if options.method == "gated" and merge_base:
        _copy_base(folder, part)
    checkpoint.save(part, trained, base_id=base["id"] if options.method == "gated" else None, about=about)
    shutil.copy(run / "log.jsonl", part / "training_log.jsonl")
    manifest = json.loads((part / checkpoint.MANIFEST).read_text(encoding="utf-8"))
    (part / "README.md").write_text(sft_card(manifest, whole), encoding="utf-8")
    replace_folder(part, out)
    trackers.finish()
    team.end()
    if push_to is not None:
        push(out, push_to)
    return out


def open_base(options: Sft, device: str) -> tuple[SpaceModel, dict[str, Any], Path]:
    """The base for training, how a manifest names it, and the folder it came from.

    Raises:
        CheckpointError: for a base that is no plain model with a tokenizer.
    """
    folder = checkpoint.fetch(options.base, options.revision)
    manifest = checkpoint.read_manifest(folder)
    if manifest and not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{options.base} holds an adapter only: name its base, {manifest['base']['id']}, with --base"
        )
    if manifest and manifest.get("method") == "paper":
        raise CheckpointError(
            f"{options.base} has its masks in the vocabulary: name the model it was made from"
        )
    # The paper's method trains all weights, and needs all their digits to add small steps up.
    dtype = _format(options.dtype, checkpoint.find_device(device))
    name = "bfloat16" if dtype == torch.bfloat16 and options.method == "gated" else "float32"
    model = checkpoint.load(folder, device, name)
    if model.tokenizer is None:
        raise CheckpointError(f"{options.base} has no tokenizer that can be read")
    local = Path(options.base).is_dir()
    revision = None if local else folder.name  # a snapshot's folder is called by its commit
    named = str(Path(options.base).resolve()) if local else options.base
    return model, {"id": named, "revision": revision}, folder


def push(folder: Path, repository: str) -> None:
    """Upload a checkpoint to the Hugging Face hub, private where the repository is new.

    Raises:
        CheckpointError: when the hub refuses it, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    hub = HfApi()
    try:
        hub.create_repo(repository, exist_ok=True, private=True)
        hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="SPACE checkpoint")
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise CheckpointError(
            f"the checkpoint stands in {folder}, but the hub does not take it as {repository}: "
            f"{first_line(error, 200)}"
        ) from None


def target_modules(lm: Any) -> tuple[str, ...]:
    """The projections of a model that write to the residual stream, by name.

    Raises:
        SettingError: for an architecture that calls them otherwise.
    """
    names = {name.rpartition(".")[2] for name, _ in lm.named_modules()}
    found = tuple(name for name in RESIDUAL if name in names)
    if not found:
        linear = sorted(
            {n.rpartition(".")[2] for n, m in lm.named_modules() if isinstance(m, torch.nn.Linear)}
        )
        raise SettingError("targets", f"name the layers to adapt with --targets, of {', '.join(linear)}")
    return found


def _samples(
    options: Sft, model: SpaceModel, conversations: list[Conversation], run: Path, team: Team
) -> tuple[list[Sample], list[list[int]], str]:
    """What to train on, the prompts that are held out, and a sentence on what became of the data."""
    length = _length(options, model)
    ends = set(model.eos_ids)
    if model.tokenizer.eos_token_id is not None:
        ends.add(int(model.tokenizer.eos_token_id))
    renderer = Renderer(model.tokenizer, length, frozenset(ends), options.truncate)
    random = torch.Generator().manual_seed(options.seed)
    order = torch.randperm(len(conversations), generator=random).tolist()
    wanted = max(1, min(options.evaluate_prompts, len(order) // 4))
    prompts: list[list[int]] = []
    questions = set()
    for index in order:
        question = conversations[index].question
        if len(prompts) == wanted:
            break
        prompt = renderer.prompt(conversations[index])
        if question not in questions and len(prompt) + PROMPT_ROOM <= length:
            questions.add(question)
            prompts.append(prompt)
    rest = [c for c in conversations if c.question not in questions]
    samples = render_all(renderer, rest)
    told = f"{renderer.counts} (limit {length} tokens); {len(prompts)} prompts held out"
    if not samples or not prompts:
        raise DataError(
            f"{options.data}: {len(samples)} samples and {len(prompts)} held-out prompts are left "
            f"({renderer.counts}): more, other or shorter data is needed, or a larger --max-length"
        )
    if team.main:
        print(f"data: {told}", file=sys.stderr)
        Log(run / "log.jsonl", "data", -1).write(0, **asdict(renderer.counts), heldout=len(prompts))
    return samples, prompts, told


def _own_words(options: Sft, model: SpaceModel, samples: list[Sample], run: Path, team: Team) -> list[Sample]:
    """The data's prompts with what the model itself writes behind them."""
    length = _length(options, model)
    unique = {tuple(p.tolist()): p for sample in samples for p in sample.prompts}
    prompts = [p for p in unique.values() if 0 < len(p) <= length - PROMPT_ROOM]
    random = torch.Generator().manual_seed(options.seed)
    chosen = [prompts[i] for i in torch.randperm(len(prompts), generator=random)[: options.distil].tolist()]
    plan = Distill(
        prompts=len(chosen),
        prompt_lengths=(),
        new_tokens=options.distil_tokens,
        batch=options.distil_batch,
        sampled_share=options.sampled_share,
        temperature=options.temperature,
    )
    written = continuations(model.lm, chosen, plan, model.eos_ids, length, run, options.seed, team)
    found = []
    for prompt, text in written:
        learn = torch.arange(len(prompt) + len(text)) >= len(prompt)
        found.append(Sample(torch.cat([prompt, text]), learn, (prompt,)))
    found = [sample for sample in found if int(sample.learn.sum()) > 1]
    tokens = sum(int(sample.learn.sum()) for sample in found)
    if team.main:
        print(f"distil: {tokens} tokens in {len(found)} of {len(chosen)} continuations", file=sys.stderr)
        Log(run / "log.jsonl", "distil", -1).write(0, prompts=len(chosen), kept=len(found), tokens=tokens)
    if not found:
        raise DataError(
            f"none of the model's own {len(chosen)} continuations can be learnt from (they end at once): "
            "--no-distil trains on the data's answers"
        )
    return found


def _last_answer(sample: Sample) -> Own | None:
    """A sample up to the end of its last answer, as what the model wrote; None where that is no text."""
    learn = sample.learn.tolist()
    if True not in learn:
        return None
    end = len(learn) - learn[::-1].index(True)
    start = next((i for i in range(end - 1, 0, -1) if not learn[i - 1]), 1)
    return Own.of(start, sample.ids[None, :end]) if end - start > 1 else None


def _plan(options: Sft, model: SpaceModel, batches: Batches, team: Team) -> MaskTraining:
    steps = options.steps or math.ceil(batches.until(options.epochs) / options.accumulate)
    gated = options.method == "gated"
    return MaskTraining(
        steps=steps,
        batch=options.batch,
        k=options.k,
        method=options.method,
        rank=options.rank,
        sampler=options.sampler if gated and model.has_plain_head and not team.sharded else 0,
        targets=options.targets or (target_modules(model.lm) if gated else ()),
        groups=options.groups,
        until_fail=options.until_fail,
        soft=options.soft,
        lr=options.lr or LEARNING_RATES[options.method],
        p_ar=options.p_ar,
        warmup=max(1, math.ceil(options.warmup * steps)),
        accumulate=options.accumulate,
        cosine=True,
        patience=options.patience,
        save_every=options.save_every,
        evaluate_every=options.evaluate_every,
        evaluate_prompts=options.evaluate_prompts,
        evaluate_tokens=options.evaluate_tokens,
    )


def _length(options: Sft, model: SpaceModel) -> int:
    return min(options.max_length or 2048, model.context)


def _format(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        half = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if half else torch.float32
    return checkpoint.DTYPES[name]


def _check_out(out: Path) -> None:
    if out.exists() and not (out / checkpoint.MANIFEST).is_file():
        raise CheckpointError(f"{out} is there and is no SPACE checkpoint: it will not be replaced")


def _check_push(base: str, repository: str, whole: bool) -> None:
    """What can be known before hours of training."""
    from huggingface_hub import get_token

    if repository.count("/") != 1:
        raise SettingError("push_to_hub", f"--push-to-hub needs OWNER/NAME, not {repository!r:.60}")
    if not whole and Path(base).is_dir():
        raise SettingError(
            "push_to_hub", "the adapter would name a folder of this machine as its base: add --merge-base"
        )
    if not get_token():
        raise SettingError("push_to_hub", "--push-to-hub needs a token: run `hf auth login`, or set HF_TOKEN")


def _copy_base(folder: Path, part: Path) -> None:
    part.mkdir(parents=True)
    for pattern in WEIGHTS:
        for path in sorted(folder.glob(pattern)):
            if path.name != checkpoint.MANIFEST:
                shutil.copy(path, part / path.name)


def _shown(data: str) -> str:
    """A data set's id, or a file's name without the folders of this machine."""
    path = Path(data)
    return path.name if path.exists() else data
