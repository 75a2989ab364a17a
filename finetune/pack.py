"""Turn documents into the token files that training reads, and read them without state.

A folder holds train.bin and heldout.bin (uint16, documents joined by the end-of-text token) and
meta.json, written last: where it stands, the folder is complete. A folder of single functions, cut out
of the same documents, has the same form.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from finetune.corpus import CorpusError, Document, parse, split
from finetune.lock import sha256_file

FORMAT = "space-tokens/1"
_DEFINITION_SHARE = 0.7
_LONE_LENGTHS, _LONE_AT_LEAST = (32, 192), 12
_LONE_CHARS, _BARE_CHARS = 2_500, 1_000
_TYPING = frozenset(
    {
        "Any",
        "Callable",
        "Dict",
        "Iterable",
        "Iterator",
        "List",
        "Optional",
        "Sequence",
        "Set",
        "Tuple",
        "Union",
    }
)


def pack(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerFast, out: Path, functions: bool = False
) -> dict[str, Any]:
    """Write the token files of `documents` to the folder `out`; returns meta.json's content.

    A complete folder made of the same documents with the same tokenizer is used as it is.

    Args:
        functions: in the place of each document write those of its functions that stand alone.

    Raises:
        CorpusError: no documents.
        ValueError: the vocabulary is too large for uint16.
    """
    if not documents:
        raise CorpusError("the corpus has no texts: name more modules or packages")
    if len(tokenizer) > 2**16:
        raise ValueError(f"{len(tokenizer)} token ids do not fit into uint16")
    fingerprint = _fingerprint(documents, tokenizer, functions)
    if (meta := read_meta(out)) and meta["fingerprint"] == fingerprint:
        return meta

    out.mkdir(parents=True, exist_ok=True)
    meta_path = out / "meta.json"
    meta_path.unlink(missing_ok=True)
    train, heldout = split(documents)
    if functions:
        train, heldout = _by_functions(train), _by_functions(heldout)
        taught = {document.text for document in train}
        heldout = [document for document in heldout if document.text not in taught]
    meta = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "tokenizer_sha256": tokenizer_hash(tokenizer),
        "train": _write_tokens(train, tokenizer, out / "train.bin"),
        "heldout": _write_tokens(heldout, tokenizer, out / "heldout.bin"),
        "sources": _sources(documents),
        "licences": dict(sorted(Counter(d.licence for d in documents).items())),
    }
    temporary = meta_path.with_suffix(".tmp")
    temporary.write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8", newline="\n")
    os.replace(temporary, meta_path)
    return meta


def _by_functions(documents: Sequence[Document]) -> list[Document]:
    """Each function that stands alone, as a document; of copies the first."""
    unique: dict[str, Document] = {}
    for document in documents:
        for _, whole in lone_functions(document.text):
            unique.setdefault(whole, Document(document.name, whole, document.licence, document.source))
    return list(unique.values())


def read_meta(folder: Path) -> dict[str, Any] | None:
    """The content of meta.json, or None where the folder is not complete."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    complete = isinstance(meta, dict) and meta.get("format") == FORMAT
    for part in ("train", "heldout"):
        path = folder / f"{part}.bin"
        complete = complete and path.exists() and path.stat().st_size == 2 * meta[part]["tokens"]
    return meta if complete else None


def _write_tokens(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerFast, path: Path
) -> dict[str, Any]:
    """Encode into one file, shuffled by the documents' hashes, each followed by end-of-text."""
    order = sorted(documents, key=lambda d: hashlib.sha256(d.text.encode()).digest())
    temporary = path.with_suffix(".tmp")
    tokens = 0
    with temporary.open("wb") as file, tqdm(total=len(order), desc=f"pack {path.stem}") as bar:
        for start in range(0, len(order), 256):
            texts = [d.text for d in order[start : start + 256]]
            for ids in encode(texts, tokenizer):
                ids = np.array([*ids, tokenizer.eos_token_id], dtype="<u2")
                file.write(ids.tobytes())
                tokens += len(ids)
            bar.update(len(texts))
    os.replace(temporary, path)
    return {
        "documents": len(order),
        "tokens": tokens,
        "text_bytes": sum(len(d.text.encode()) for d in order),
        "sha256": sha256_file(path),
    }


def encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """Ids of each text; one that spells a special token gets letters, never the token itself."""
    if not texts:
        return []
    options = {"add_special_tokens": False, "split_special_tokens": True}
    return tokenizer(list(texts), return_attention_mask=False, **options)["input_ids"]


def _fingerprint(documents: Sequence[Document], tokenizer: PreTrainedTokenizerFast, functions: bool) -> str:
    kind = f"{FORMAT} functions" if functions else FORMAT
    digest = hashlib.sha256(f"{kind} {tokenizer_hash(tokenizer)}".encode())
    for document in documents:
        for part in (document.name, document.text, document.licence, document.source):
            digest.update(hashlib.sha256(part.encode()).digest())
    return digest.hexdigest()


def tokenizer_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """What tells tokenizers apart: the SHA-256 of all that decides about ids."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def _sources(documents: Sequence[Document]) -> dict[str, dict[str, Any]]:
    """What the model card lists: files, bytes and licence of every release."""
    sources: dict[str, dict[str, Any]] = {}
    for document in documents:
        entry = {"licence": document.licence, "documents": 0, "text_bytes": 0}
        entry = sources.setdefault(document.source, entry)
        entry["documents"] += 1
        entry["text_bytes"] += len(document.text.encode())
    return dict(sorted(sources.items()))


class Tokens:
    """A token file, memory-mapped, served as batches that depend on the step alone.

    Every epoch cuts the file into windows that touch but do not overlap, from a start that
    changes with the epoch, and visits them in a seeded order: each token is seen about once,
    and a run that resumes at step 1000 needs to know nothing but 1000.
    """

    def __init__(self, path: Path) -> None:
        self._ids = np.memmap(path, dtype="<u2", mode="r")
        self._order: tuple[tuple[int, int, int], int, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self._ids)

    def windows(self, seq_len: int) -> int:
        """Windows of `seq_len` inputs (and one more target) in an epoch."""
        return max(0, (len(self._ids) - seq_len) // seq_len)

    def batch(self, step: int, batch_size: int, seq_len: int, seed: int) -> torch.Tensor:
        """Windows of step `step` (from 0): int64 [batch_size, seq_len + 1].

        A pure function of its arguments: inputs are `[:, :-1]`, targets `[:, 1:]`.

        Raises:
            CorpusError: the file is shorter than two windows.
        """
        count = self.windows(seq_len)
        if not count:
            raise CorpusError(
                f"{len(self)} tokens are too few for windows of {seq_len}: name more modules or "
                "packages, or choose a smaller seq_len"
            )
        rows = np.empty((batch_size, seq_len + 1), dtype=np.int64)
        for row in range(batch_size):
            epoch, place = divmod(step * batch_size + row, count)
            offset, order = self._epoch(epoch, count, seq_len, seed)
            start = self._start(int(order[place]), offset, seq_len)
            rows[row] = self._ids[start : start + seq_len + 1]
        return torch.from_numpy(rows)

    def _start(self, window: int, offset: int, seq_len: int) -> int:
        return offset + window * seq_len

    def _epoch(self, epoch: int, count: int, seq_len: int, seed: int) -> tuple[int, np.ndarray]:
        key = (epoch, seq_len, seed)
        if self._order is None or self._order[0] != key:
            random = np.random.default_rng((seed, epoch))
            self._order = key, int(random.integers(seq_len)), random.permutation(count)
        return self._order[1], self._order[2]


class Texts(Tokens):
    """The same, but every window begins with a text, and each text begins one window in an epoch."""

    def __init__(self, path: Path, end: int) -> None:
        super().__init__(path)
        self._starts = np.concatenate([[0], np.flatnonzero(np.asarray(self._ids) == end)[:-1] + 1])

    def windows(self, seq_len: int) -> int:
        return int(np.searchsorted(self._starts, len(self) - seq_len))

    def _start(self, window: int, offset: int, seq_len: int) -> int:
        return int(self._starts[window])


def prompt_windows(
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerFast,
    length: int,
    count: int,
    seed: int,
) -> torch.Tensor:
    """Prompts for self-distillation: int64 [count, length], a pure function of its arguments.

    Each ends where a person would let the model go on: 70 % right behind a function's signature
    and docstring, the rest behind some line's end. What stands before it in the file is cut from
    the left, wherever that falls; places with fewer than `length` tokens before them are passed
    over. No place gives two. Give one side of `split` only: what is trained on, or what is held out.

    Raises:
        CorpusError: the documents have fewer than `count` such places.
    """
    prompts: list[list[int]] = []
    places = _places(documents, np.random.default_rng(seed))
    while len(prompts) < count:
        # No token is longer than its text; what is too much is cut, what is too little, skipped.
        texts = [text for _, text in zip(range(1024), places, strict=False)]
        if not texts:
            raise CorpusError(
                f"the texts have {len(prompts)} of {count} places for prompts of {length} tokens: "
                "name more modules or packages, or ask for fewer or shorter prompts"
            )
        texts = [text[-16 * length - 64 :] for text in texts]
        prompts += [ids[-length:] for ids in encode(texts, tokenizer) if len(ids) > length]
    return torch.tensor(prompts[:count], dtype=torch.int64)


def lone_prompts(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerFast, count: int, seed: int
) -> dict[int, torch.Tensor]:
    """Prompts that stand alone: one function's signature and docstring with nothing in front.

    A pure function of its arguments, as `prompt_windows`. Those of rare lengths are left out, and where fewer
    are wanted than there are, some lengths, since continuations are made and learnt in batches of one length.

    Returns:
        By length in tokens, int64 [n, length]; `count` prompts in all, or as many as there are.
    """
    texts = sorted({head for document in documents for head, _ in lone_functions(document.text) if head})
    random = np.random.default_rng(seed)
    by_length: dict[int, list[list[int]]] = {}
    for ids in encode([texts[i] for i in random.permutation(len(texts))], tokenizer):
        if _LONE_LENGTHS[0] <= len(ids) <= _LONE_LENGTHS[1]:
            by_length.setdefault(len(ids), []).append(ids)
    common = [length for length, ids in sorted(by_length.items()) if len(ids) >= _LONE_AT_LEAST]
    found: dict[int, torch.Tensor] = {}
    for length in random.permutation(common).tolist():
        if count > 0:
            found[length] = torch.tensor(by_length[length][:count])
            count -= len(found[length])
    return dict(sorted(found.items()))


def lone_functions(text: str) -> Iterator[tuple[str, str]]:
    """Functions that can stand alone, as people ask for them: moved to the left edge, `typing` imported.

    Methods cannot; functions within functions may use names of theirs, as others use their module's. Long
    ones are left out, as are those without a docstring that are not short.

    Yields:
        Signature and docstring, or nothing where there is no docstring; and the whole function.
    """
    tree = parse(text)
    lines = text.split("\n")
    for node in _functions(tree) if tree is not None else ():
        arguments = [*node.args.posonlyargs, *node.args.args]
        if (arguments and arguments[0].arg in ("self", "cls")) or node.end_lineno is None:
            continue
        documented = ast.get_docstring(node, clean=False) is not None
        if len(node.body) < 1 + documented or node.end_lineno - node.lineno < 2:
            continue
        whole = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno])) + "\n"
        if len(whole) > (_LONE_CHARS if documented else _BARE_CHARS):
            continue
        if not whole.startswith(("def ", "async def ")):  # a string within it stands farther to the left
            continue
        names = {
            n.id
            for part in (node.args, node.returns)
            if part
            for n in ast.walk(part)
            if isinstance(n, ast.Name)
        }
        typing = sorted(names & _TYPING)
        above = f"from typing import {', '.join(typing)}\n\n\n" if typing else ""
        head = ""
        if documented:
            head = above + textwrap.dedent("\n".join(lines[node.lineno - 1 : node.body[0].end_lineno])) + "\n"
        yield head, above + whole


def _places(documents: Sequence[Document], random: np.random.Generator) -> Iterator[str]:
    """Texts up to a place to go on from, visiting all documents round by round."""
    stocks: dict[int, tuple[list[int], list[int]]] = {}
    alive = list(range(len(documents)))
    while alive:
        for index in random.permutation(alive):
            text = documents[index].text
            if index not in stocks:
                stocks[index] = _shuffled_cuts(text, random)
            definitions, lines = stocks[index]
            use_definition = random.random() < _DEFINITION_SHARE
            stock = definitions if use_definition else lines
            if stock:
                yield text[: stock.pop()]
        alive = [i for i in alive if any(stocks[i])]


def _shuffled_cuts(text: str, random: np.random.Generator) -> tuple[list[int], list[int]]:
    definitions = definition_ends(text)
    taken = set(definitions)
    ends = (match.end() for match in re.finditer("\n", text[:-1]))
    lines = [end for end in ends if end not in taken]
    return [int(x) for x in random.permutation(definitions)], [int(x) for x in random.permutation(lines)[:64]]


def definition_ends(text: str) -> list[int]:
    """Character offsets right behind each function's signature and, where it has one, docstring.

    Functions whose whole body is on the signature's line, or is only the docstring, have none.
    """
    tree = parse(text)
    if tree is None:
        return []
    lines = text.split("\n")
    starts = np.cumsum([0, *(len(line) + 1 for line in lines)])
    ends = []
    for node in _functions(tree):
        has_docstring = ast.get_docstring(node, clean=False) is not None
        if has_docstring and len(node.body) > 1:
            ends.append(int(starts[node.body[0].end_lineno or 0]))
        elif not has_docstring and (last := _signature_end(node, lines)) < node.body[0].lineno:
            ends.append(int(starts[last]))
    return ends


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions, looking into statements only: most nodes of a tree are expressions."""
    if isinstance(tree, ast.FunctionDef | ast.AsyncFunctionDef):
        yield tree
    for block in ("body", "orelse", "handlers", "finalbody", "cases"):
        for statement in getattr(tree, block, ()):
            yield from _functions(statement)


def _signature_end(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: Sequence[str]) -> int:
    """The line, from 1, with the signature's colon; comments behind it belong to the body."""
    inside = [n.end_lineno or 0 for n in ast.walk(node.args) if isinstance(n, ast.arg | ast.expr)]
    line = max(node.lineno, (node.returns and node.returns.end_lineno) or 0, *inside, 0)
    while line < node.body[0].lineno and not lines[line - 1].split("#")[0].rstrip().endswith(":"):
        line += 1
    return line
