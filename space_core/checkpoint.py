"""Load and save a model with its masks.

A checkpoint is an ordinary transformers folder, which `AutoModelForCausalLM` opens as the model
that plain decoding runs, with SPACE's own parts beside it:

    space.json                        manifest: format, k, method, hashes, data, evaluation
    space/masks.safetensors           mask embeddings, one per slot (methods with no [M] id)
    space/adapter_config.json         the gated adapter, in PEFT's format
    space/adapter_model.safetensors
    custom_generate/generate.py       SPACE for transformers' `generate`

or only those parts, with a base model named in space.json. A folder without space.json opens too:
its masks are untrained, and SPACE gives plain decoding's output at about one token a call.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from space_core.adapter import GatedAdapter
from space_core.copies import WEIGHTS as COPIES
from space_core.copies import CopyBias
from space_core.devices import KINDS
from space_core.errors import CheckpointError, first_line
from space_core.model import Masks, SpaceModel, best_device, probe, untrained_masks
from space_core.placement import check_map, runs_on, weights_here
from space_core.sampler import WEIGHTS as SAMPLER
from space_core.sampler import SamplerHead

FORMAT = "space-checkpoint/1"
MANIFEST = "space.json"
PARTS = "space"
FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", f"{PARTS}/*")
"""What a checkpoint consists of: fetched from the hub, and listed in the manifest with its hashes."""
MASKS = "masks.safetensors"
CUSTOM = Path(__file__).parent / "custom_generate"
"""What transformers' `generate` runs for a repository (`generation.py`)."""
SHARD = "9MB"
FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", f"{PARTS}/*")
SAVING = ".saving"
"""Behind the name of a folder that is still being written."""
MAX_MASKS = 64
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def load(
    folder_or_hub_id: str | Path,
    device: str = "cpu",
    dtype: str = "float32",
    mask_token_id: int | None = None,
    k: int | None = None,
    *,
    device_map: str | Mapping[str, Any] | None = None,
    max_memory: Mapping[int | str, int | str] | None = None,
    offload_folder: str | Path | None = None,
) -> SpaceModel:
    """Open a checkpoint for decoding.

    A base that was saved quantised (torchao, bitsandbytes) opens as transformers opens it, where the
    library that made it is installed.

    Args:
        folder_or_hub_id: a local folder, or a model id on the Hugging Face hub.
        device: "cpu", "cuda", "cuda:1", "mps" or "auto" (the best one there is).
        dtype: "float64", "float32", "bfloat16" or "float16".
        mask_token_id: vocabulary id of [M], for checkpoints in the paper's official format.
        k: masks a group was trained with, for the same.
        device_map: for a model larger than one device, in place of `device`: "auto" (or another of
            accelerate's ways), or a device for each module, "disk" among them:
            {"model.embed_tokens": 0, "model.layers.0": "cpu", "model.layers.1": "disk", …}.
        max_memory: most bytes of each device for the same, {0: "20GiB", "cpu": "60GiB"}.
        offload_folder: where layers on disk are written, if the checkpoint's own files do not serve.

    Raises:
        CheckpointError: for missing, damaged or misfitting files, an unknown device, map or dtype.
        UnsupportedModelError: for a model that SPACE cannot run losslessly.
    """
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r:.40}")
    if k is not None and (isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MAX_MASKS):
        raise CheckpointError(f"k must be a whole number in 1..{MAX_MASKS}, not {k!r:.40}")
    place = find_device(device)
    spread: dict[str, Any] = {}
    if device_map is not None:
        check_map(device_map, max_memory)
        spread["device_map"] = device_map if isinstance(device_map, str) else dict(device_map)
        spread["max_memory"] = None if max_memory is None else dict(max_memory)
        spread["offload_folder"] = offload_folder
    elif max_memory is not None or offload_folder is not None:
        raise CheckpointError("max_memory and offload_folder need a device_map")
    folder = fetch(str(folder_or_hub_id))
    manifest = read_manifest(folder)
    base = folder
    if manifest and not (folder / "config.json").is_file():
        base = fetch(manifest["base"]["id"], manifest["base"].get("revision"))
    if not spread and _is_quantized(base):
        spread["device_map"] = {"": place}  # where its own format loads it: it may not be moved afterwards
    lm = _open(base, str(folder_or_hub_id), DTYPES[dtype], spread)
    _check_finite(lm)
    tokenizer = _tokenizer(base, lm)
    if not spread:
        lm = lm.to(place)
    lm.requires_grad_(False)
    masks = _masks(lm, folder, manifest, mask_token_id, k)
    name = str(folder_or_hub_id)
    if folder == Path(name):
        name = folder.resolve().name
    model = SpaceModel(lm, tokenizer, masks, name)
    if masks.sampler is not None and not model.has_plain_head:
        raise CheckpointError("the sampler head does not fit: this model changes its logits behind its head")
    model.pack()
    probe(model)
    return model


def attach(lm: Any, folder_or_hub_id: str | Path) -> SpaceModel:
    """A checkpoint's masks for a transformers model that is open already, where it lies and as it is.

    Only SPACE's own files are read; their hashes are checked.

    Raises:
        CheckpointError: for a folder or repository without masks, and for files that are damaged or do
            not fit the model.
        UnsupportedModelError: for a model that SPACE cannot run losslessly.
    """
    name = str(folder_or_hub_id)
    folder = fetch(name, patterns=[MANIFEST, f"{PARTS}/*"])
    manifest = read_manifest(folder, weights=False)
    if manifest is None:
        raise CheckpointError(f"{name} holds no {MANIFEST}, so no masks: give space= another one")
    masks = _masks(lm, folder, manifest, None, None)
    model = SpaceModel(lm, None, masks, folder.resolve().name if folder == Path(name) else name)
    model.pack()
    probe(model)
    return model


def _open(folder: Path, name: str, dtype: torch.dtype, spread: dict[str, Any]) -> Any:
    """The transformers model of a folder, complete, with an attention that takes a mask.

    Args:
        spread: how its layers are laid over devices; empty for one device.
    """
    for attention in ("sdpa", "eager"):
        try:
            lm, report = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation=attention,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                **spread,
            )
        except Exception as error:  # a stranger's files in the hands of code that is not ours
            if attention == "sdpa" and "scaled_dot_product_attention" in str(error):
                continue
            raise CheckpointError(f"cannot open the model {name}: {first_line(error, 240)}") from None
        if report["missing_keys"]:
            missing = sorted(report["missing_keys"])[0]
            raise CheckpointError(f"the model {name} is incomplete: {missing} is missing")
        return lm
    raise AssertionError("eager attention exists in every model")


def _is_quantized(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # transformers says what is wrong with it
    return isinstance(config, dict) and bool(config.get("quantization_config"))


def _check_finite(lm: torch.nn.Module) -> None:
    """Raise CheckpointError for weights that are not finite, those on disk included."""
    for prefix, module in lm.named_modules():
        with weights_here(module):
            for name, parameter in module.named_parameters(prefix, recurse=False):
                # A quantised weight is a class of its own: what it holds are whole numbers and scales.
                if type(parameter) is torch.nn.Parameter and not bool(torch.isfinite(parameter).all()):
                    raise CheckpointError(f"the model is damaged: {name} holds numbers that are not finite")


def read_manifest(folder: Path, weights: bool = True) -> dict[str, Any] | None:
    """space.json of a folder, its hashes checked; None where there is none.

    Args:
        weights: whether the base model's files are checked too, or SPACE's own alone.

    Raises:
        CheckpointError: for a manifest that is not one, or a file that does not match it.
    """
    path = folder / MANIFEST
    if not path.is_file():
        if (folder / PARTS / MASKS).exists():
            raise CheckpointError(f"the checkpoint is incomplete: {MANIFEST} is missing")
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{MANIFEST} cannot be read: {first_line(error, 240)}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{MANIFEST}: format must be {FORMAT!r}")
    k, files, base = manifest.get("k"), manifest.get("files"), manifest.get("base")
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= MAX_MASKS:
        raise CheckpointError(f"{MANIFEST}: k must be a whole number in 1..{MAX_MASKS}")
    # [M] as a vocabulary id of a base that lies elsewhere needs no file here.
    if not isinstance(files, dict) or not (files or manifest.get("mask_token_id") is not None):
        raise CheckpointError(f"{MANIFEST}: files must list the weight files with their SHA-256")
    if not isinstance(base, dict) or not all(isinstance(base.get(n) or "", str) for n in ("id", "revision")):
        raise CheckpointError(f"{MANIFEST}: base must name the base model")
    if not isinstance(manifest.get("method", ""), str):
        raise CheckpointError(f"{MANIFEST}: method must be text")
    if not (folder / "config.json").is_file() and not base.get("id"):
        raise CheckpointError(f"{MANIFEST} names no base model, and the folder holds none")
    for name, digest in files.items():
        part = folder / name.replace("\0", "?")
        if part.resolve().parent not in (folder.resolve(), (folder / PARTS).resolve()):
            raise CheckpointError(f"{MANIFEST}: {name} lies outside the checkpoint")
        if not weights and part.resolve().parent != (folder / PARTS).resolve():
            continue
        if not part.is_file():
            raise CheckpointError(f"the checkpoint is incomplete: {name} is missing")
        if sha256(part) != digest:
            raise CheckpointError(f"the checkpoint is damaged: {name} does not match its SHA-256")
    return manifest


def save(
    folder: Path, model: SpaceModel, *, base_id: str | None = None, about: dict[str, Any] | None = None
) -> None:
    """Write a checkpoint: aside, flushed to the disk, and put in its place only when it is whole.

    Args:
        folder: to be filled; must not hold a checkpoint yet. What else it holds (a base's files) stays.
        model: what to save. With `base_id` only SPACE's own parts are written.
        base_id: hub id or absolute folder of the base model.
        about: further entries of the manifest (training data, licence, evaluation …).
    """
    if (folder / MANIFEST).exists():
        raise CheckpointError(f"{folder} holds a checkpoint already")
    aside, before = (folder.with_name(folder.name + end) for end in (SAVING, ".before"))
    shutil.rmtree(aside, ignore_errors=True)
    if folder.is_dir():
        shutil.copytree(folder, aside, copy_function=_link)
    aside.mkdir(parents=True, exist_ok=True)
    _write(aside, model, base_id, about or {})
    for path in [*aside.rglob("*"), aside]:
        _flush(path)
    if folder.is_dir():
        os.replace(folder, before)
    os.replace(aside, folder)
    shutil.rmtree(before, ignore_errors=True)
    _flush(folder.parent)


def _link(source: str, target: str) -> None:
    """The same file under another name; a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _write(folder: Path, model: SpaceModel, base_id: str | None, about: dict[str, Any]) -> None:
    if base_id is None:
        model.lm.save_pretrained(folder, max_shard_size=SHARD)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(folder)
    write_custom_generate(folder)
    masks = model.masks
    if masks.embeddings is not None:
        (folder / PARTS).mkdir(exist_ok=True)
        save_file({"embeddings": masks.embeddings.detach().contiguous()}, folder / PARTS / MASKS)
    if masks.adapter is not None:
        masks.adapter.save(folder / PARTS, base_id)
    if masks.sampler is not None:
        masks.sampler.save(folder / PARTS)
    if masks.copies is not None:
        (folder / PARTS).mkdir(exist_ok=True)
        masks.copies.save(folder / PARTS)
    # All that decides what is written: a tokenizer or configuration of another model is refused, too.
    files = sorted({path for kind in FILES for path in folder.glob(kind)} - {folder / MANIFEST})
    manifest = {
        "format": FORMAT,
        "method": masks.method,
        "k": masks.k,
        "mask_token_id": masks.token_id,
        "mask_embeddings": f"{PARTS}/{MASKS}" if masks.embeddings is not None else None,
        "adapter": PARTS if masks.adapter is not None else None,
        "sampler": f"{PARTS}/{SAMPLER}" if masks.sampler is not None else None,
        "copies": f"{PARTS}/{COPIES}" if masks.copies is not None else None,
        "base": {"id": base_id, "revision": None},
        **about,
        "files": {path.relative_to(folder).as_posix(): sha256(path) for path in files},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def write_custom_generate(folder: str | Path) -> Path:
    """Put `custom_generate/generate.py` and its requirements into a checkpoint's folder; returns where.

    With it, and space_core installed, a published checkpoint decodes with SPACE by
    `model.generate(…, custom_generate="owner/model")` for whoever trusts its code. `save` does it.
    """
    target = Path(folder) / CUSTOM.name
    target.mkdir(parents=True, exist_ok=True)
    for name in ("generate.py", "requirements.txt"):
        shutil.copyfile(CUSTOM / name, target / name)
    return target


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name == "nt" and path.is_dir():  # which cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _masks(
    lm: Any, folder: Path, manifest: dict[str, Any] | None, token_id: int | None, k: int | None
) -> Masks:
    vocabulary, hidden = lm.get_input_embeddings().weight.shape
    copies = None
    if token_id is None and manifest:
        if manifest.get("copies"):
            copies = CopyBias.load(folder / PARTS).to(runs_on(lm.get_input_embeddings()))
        token_id = manifest.get("mask_token_id")
    if token_id is not None:
        if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < vocabulary:
            raise CheckpointError(f"the mask token id must lie in 0..{vocabulary - 1}, not {token_id!r:.40}")
        return Masks(k or (manifest["k"] if manifest else 5), "paper", token_id=token_id, copies=copies)
    if not manifest:
        return untrained_masks(lm, k or 5)
    try:
        embeddings: Tensor = load_file(folder / PARTS / MASKS)["embeddings"]
    except (OSError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"the mask embeddings cannot be read: {first_line(error, 240)}") from None
    if embeddings.ndim != 2 or not len(embeddings) or embeddings.shape[1] != hidden:
        raise CheckpointError(
            f"the masks do not fit the model: embeddings are {list(embeddings.shape)}, it needs [k, {hidden}]"
        )
    if not bool(torch.isfinite(embeddings).all()):
        raise CheckpointError("the mask embeddings are damaged: they hold numbers that are not finite")
    embed = lm.get_input_embeddings()
    adapter = GatedAdapter.load(lm, folder / PARTS) if manifest.get("adapter") else None
    if adapter is not None:
        adapter.requires_grad_(False)
    head = SamplerHead.load(folder / PARTS, hidden) if manifest.get("sampler") else None
    if head is not None:
        head.to(device=runs_on(embed), dtype=embed.weight.dtype).requires_grad_(False)
    return Masks(
        k or manifest["k"],
        str(manifest.get("method", "gated")),
        embeddings=embeddings.to(device=runs_on(embed), dtype=embed.weight.dtype),
        adapter=adapter,
        sampler=head,
        copies=copies,
    )


def fetch(name: str, revision: str | None = None, patterns: Sequence[str] = FILES) -> Path:
    """The local folder of a checkpoint: as given, or downloaded from the hub (safetensors only).

    Args:
        patterns: names of the files to download.

    Raises:
        CheckpointError: when there is no such folder, and no such model on the hub.
    """
    folder = Path(name)
    try:
        here = folder.is_dir()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name[:80]!r} names no checkpoint: {first_line(error, 240)}") from None
    if here:
        if folder.resolve().name.endswith(SAVING):
            raise CheckpointError(f"{name} is a checkpoint whose saving was cut short: save it anew")
        if not any((folder / part).is_file() for part in ("config.json", MANIFEST)):
            raise CheckpointError(f"{name} holds neither config.json nor {MANIFEST}: not a checkpoint")
        return folder
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or not name:
        raise CheckpointError(f"there is no folder {name}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=list(patterns),
            )
        )
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, ValueError) as error:
        raise CheckpointError(
            f"{name} is no folder here, and the hub does not give it: {first_line(error, 240)}"
        ) from None


def _tokenizer(folder: Path, lm: Any) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError):
        return None  # a model without a tokenizer is fed ids only
    size = lm.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > size:
        raise CheckpointError(
            f"the tokenizer has {len(tokenizer)} tokens, but the model embeds only {size}: "
            "they do not belong together"
        )
    return tokenizer


def find_device(name: str) -> torch.device:
    """The device of a name, "auto" being the best there is.

    Raises:
        CheckpointError: when it is not to be had here.
    """
    try:
        device = torch.device(best_device() if name == "auto" else name)
        if device.type not in KINDS:
            raise NotImplementedError(f"use one of {', '.join(KINDS)}")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError, ImportError) as error:
        raise CheckpointError(
            f"device {name!r:.40} is not to be had here: {first_line(error, 240)}"
        ) from None
    return device
