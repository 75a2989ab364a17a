"""Planted faults: each is a few words of the source changed, and something must notice.

    python -m tests.faults              plant each in a copy of the repository, run the tests meant to catch it
    python -m tests.faults --checks     the quick way: the checks of `verify` on a small model, in this process
    python -m tests.faults --only NAME  one of them

Exit code 0 if all were caught. A fault whose place is gone from the source is an error: mend it here.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path

ROOT = Path(__file__).parent.parent
HUNG = 1800
"""Seconds after which tests that do not end have failed."""


@dataclass(frozen=True, slots=True)
class Fault:
    """`old` in a file, which it holds `times` times, becomes `new`.

    Attributes:
        tests: what pytest is to run, in the folder tests.
        check: whether the checks of `verify` see it too, on any model.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str
    check: bool = True
    times: int = 1

    def applied(self, source: str) -> str:
        if source.count(self.old) != self.times:
            raise ValueError(
                f"{self.name}: {self.file} holds {self.old!r} {source.count(self.old)} times, not {self.times}"
            )
        return source.replace(self.old, self.new)


LAYOUT, VERIFY, DECODERS, CACHE, MODEL = (
    f"space_core/{room}.py" for room in ("layout", "verify", "decoders", "cache", "model")
)
GRAPHS, RECORDED = "space_core/graphs.py", "test_graphs.py"
LOOKUP, COPIES = "space_core/lookup.py", "test_copies.py"
LOSSLESS, CHECKPOINT, SAMPLER = "test_lossless.py test_trust.py", "test_checkpoint.py", "test_verify.py"

FAULTS = (
    # who sees whom, and where
    Fault("a mask sees the mask behind it", LAYOUT, "(slot[None, :] <= slot[:, None])\n", "(slot[None, :] <= slot[:, None] + 1)\n", "test_layout.py"),
    Fault("a mask sees another group", LAYOUT, "& (group[None, :] == group[:, None]) ", "", "test_layout.py"),
    Fault("a real row sees masks", LAYOUT, "return below_anchor | own_group", "return below_anchor | own_group | (real[:, None] & ~real[None, :])", "test_layout.py"),
    Fault("a row sees one draft too many", LAYOUT, "(anchor[None, :] <= anchor[:, None])", "(anchor[None, :] <= anchor[:, None] + 1)", "test_layout.py"),
    Fault("masks stand one position too far", LAYOUT, "return anchor + slot\n", "return anchor + slot + (slot > 0)\n", "test_layout.py"),
    Fault("drafts stand one position too far", LAYOUT, "return anchor + slot\n", "return anchor + slot + (anchor > 0)\n", "test_layout.py"),
    Fault("positions count from behind the cache", MODEL, "position_ids=shape.offsets + past", "position_ids=shape.offsets + past + (past > 0)", LOSSLESS),
    Fault("one cell of the cache is not seen", MODEL, "rule.new_zeros(layout.rows, room), rule]", "rule.new_zeros(layout.rows, room).index_fill(1, torch.tensor([max(room - 1, 0)] if room else [], dtype=torch.long), torch.finfo(self.dtype).min), rule]", LOSSLESS),
    Fault("masks in the wrong slot", LAYOUT, "_coordinates(self)[1][self.n_real :] - 1", "_coordinates(self)[1][self.n_real :].clamp(max=1) - 1", "test_layout.py"),
    Fault("drafts come from another group", MODEL, "index_select(0, accepted[None])", "index_select(0, accepted[None] * 0)", "test_lossless.py", check=False),
    # several sequences together
    Fault("a sequence throws another's dice", "space_core/batch_drafts.py", "runs[run].dice(1) for run in order", "runs[0].dice(1) for run in order", "test_batches.py", check=False),
    Fault("a guess is told another sequence's token", "space_core/batch_drafts.py", "before, first_rows, order = tokens[kept], ", "before, first_rows, order = tokens[-len(going) :], ", "test_batches.py", check=False),
    # what the text so far says
    Fault("what followed is taken one too early", LOOKUP, "return (self._text[end], length)", "return (self._text[end - 1], length)", COPIES, check=False),
    Fault("the tokens in front are not heard", LOOKUP, "            tail.append(int(before))\n", "            tail[-1:] = [int(before)]\n", COPIES, check=False),
    Fault("rejected drafts are asked about", LOOKUP, "*drafts[: int(accepted)]]", "*drafts]", COPIES, check=False),
    Fault("a device asks about rejected drafts", LOOKUP, "accepted + torch.arange(most", "len(drafts) + torch.arange(most", COPIES, check=False),
    Fault("a device takes the first that stood there", LOOKUP, "(equal * len(windows) + place)", "(equal * len(windows) - place)", COPIES, check=False),
    Fault("a copy gains by another slot", "space_core/copies.py", "slot = min(slot, len(self._numbers) - 1)", "slot = 0", COPIES, check=False),
    Fault("a copy gains by the next shorter match", "space_core/copies.py", "self._numbers[slot][length]  #", "self._numbers[slot][length - 1]  #", COPIES, check=False),
    Fault("a batch's copies gain by another slot", "space_core/batch_drafts.py", "copies.lean(logits[at : at + 1], slot, ", "copies.lean(logits[at : at + 1], slot + 1, ", COPIES, check=False),
    Fault("wrong copies are fitted as if right", "finetune/copying.py", "torch.where(same, gain, 0.0)", "gain", COPIES, check=False),
    # planning and teaching
    Fault("what calls take is not heard", "space_core/planner.py", "if self.timed and self._ran is not None:", "if False and self._ran is not None:", "test_planner.py test_batches.py", check=False),
    Fault("masks learn what stands behind a text's end", "finetune/masks.py", "masked_fill(ahead >= ends, -100)", "masked_fill(ahead > length, -100)", "test_finetune.py::test_beside_the_base_too_nothing_behind_the_end_of_a_text_is_a_target", check=False),
    # the cache
    Fault("a crop forgets one row too few", CACHE, "layer.length = length\n", "layer.length = min(length + 1, layer.length)\n", LOSSLESS),
    Fault("a crop forgets one row too many", CACHE, "layer.length = length\n", "layer.length = max(length - 1, 0)\n", LOSSLESS),
    Fault("growing loses the last row", CACHE, "new[:, :, : self.length] = old[:, :, : self.length]", "new[:, :, : self.length - 1] = old[:, :, : self.length - 1]", LOSSLESS),
    Fault("growing one row too late", CACHE, "if end > self.keys.shape[2]:", "if end > self.keys.shape[2] + 1:", LOSSLESS),
    Fault("a mask block too short", MODEL, "room = -(-past // MASK_BLOCK) * MASK_BLOCK", "room = past // MASK_BLOCK * MASK_BLOCK", LOSSLESS),
    Fault("values are written, keys are not", CACHE, "self.keys[:, :, start:end] = key_states", "self.keys[:, :, start : end - 1] = key_states[:, :, :-1]", LOSSLESS),
    # greedy judging
    Fault("every draft stands", VERIFY, "if draft != said[i])", "if draft != draft)", LOSSLESS),
    Fault("drafts behind a wrong one stand", VERIFY, "stood = next(wrong, len(tried))", "stood = len(tried) - sum(1 for _ in wrong)", LOSSLESS),
    Fault("a device lets drafts behind a wrong one stand", VERIFY, "(choices[:-1] == drafts).cumprod(0).sum()", "(choices[:-1] == drafts).sum()", SAMPLER, check=False),
    Fault("a device takes the corrected token from the last row", VERIFY, "return Verdict(accepted, _row(choices, accepted))", "return Verdict(accepted, choices[-1])", SAMPLER, check=False),
    Fault("the corrected token from the last row", VERIFY, "return Verdict(torch.tensor(stood), choices[stood])", "return Verdict(torch.tensor(stood), choices[-1])", LOSSLESS),
    Fault("the corrected token from the row before", VERIFY, "return Verdict(torch.tensor(stood), choices[stood])", "return Verdict(torch.tensor(stood), choices[max(stood - 1, 0)])", LOSSLESS),
    # sampling
    Fault("<= for <, draft by draft", VERIFY, "uniforms[:d] * q_drafts < p_drafts", "uniforms[:d] * q_drafts <= p_drafts", SAMPLER, check=False),
    Fault("<= for <, as a block", VERIFY, "(uniforms[:d] < chances)", "(uniforms[:d] <= chances)", SAMPLER, check=False),
    Fault("the residual is forgotten", VERIFY, "rest = (p - q).clamp_min(0)", "rest = p.clamp_min(0)", SAMPLER),
    Fault("the block's residual is forgotten", VERIFY, "rest = (w[:d, None] * p[:d] - q).clamp_min(0)", "rest = p[:d].clamp_min(0)", SAMPLER),
    Fault("a block forgets what was lost", VERIFY, "weights.append((weights[-1] * ratio).clamp(max=1))", "weights.append(ratio.clamp(max=1))", SAMPLER),
    Fault("drafts are likelier to stand", VERIFY, "uniforms[:d] * q_drafts < p_drafts", "uniforms[:d] * q_drafts < p_drafts + 0.05", SAMPLER),
    Fault("one die for draft and own token", VERIFY, "return Verdict(accepted, draw(weights[None], uniforms[d:])[0])", "return Verdict(accepted, draw(weights[None], uniforms[:1])[0])", SAMPLER),
    Fault("one die for draft and own token, as a block", VERIFY, "draw(_row(own, accepted)[None], uniforms[d:])[0]", "draw(_row(own, accepted)[None], uniforms[:1])[0]", SAMPLER),
    Fault("one die for all drafts", VERIFY, "uniforms[:d] * q_drafts < p_drafts", "uniforms[:1] * q_drafts < p_drafts", SAMPLER, check=False),
    Fault("the own token by q", VERIFY, "torch.cat([residual(p[:d], q), p[d:]])", "torch.cat([residual(q, p[:d]), p[d:]])", SAMPLER),
    Fault("the dice of the call before", DECODERS, "return torch.rand(count, generator=self.random, dtype=torch.float64)", "return torch.rand(count, generator=torch.Generator().manual_seed(self.settings.seed), dtype=torch.float64).to(like)", SAMPLER),
    Fault("a seed shared by the lanes", DECODERS, "manual_seed(2 * settings.seed + stream)", "manual_seed(2 * settings.seed)", "test_trust.py"),
    Fault("a lane with the next seed's dice", DECODERS, "manual_seed(2 * settings.seed + stream)", "manual_seed(settings.seed + stream)", "test_trust.py"),
    Fault("top-k is ignored", DECODERS, "warpers.append(TopKLogitsWarper(settings.top_k))", "pass", SAMPLER),
    Fault("the temperature is ignored", DECODERS, "warpers.append(TemperatureLogitsWarper(settings.temperature))", "pass", SAMPLER, check=False),
    # stopping
    Fault("an end of text within a run is passed over", DECODERS, "if token in self.eos_ids:", "if token in self.eos_ids and index == len(tokens) - 1:", LOSSLESS),
    Fault("what stands behind the end of text is written", DECODERS, "return tokens[: index + 1], Stop.EOS", "return tokens, Stop.EOS", LOSSLESS),
    Fault("only the first end of text is known", MODEL, "(eos if isinstance(eos, list | tuple) else [eos])", "(eos[:1] if isinstance(eos, list | tuple) else [eos])", "test_trust.py", check=False),
    Fault("the budget is overrun by one", DECODERS, "self.left = min(settings.max_new_tokens, room)", "self.left = min(settings.max_new_tokens + 1, room)", LOSSLESS),
    Fault("the context is overrun by one", DECODERS, "room = model.context - self.length", "room = model.context - self.length + 1", LOSSLESS),
    Fault("the wrong reason to stop", DECODERS, "Stop.CONTEXT if room < settings.max_new_tokens", "Stop.CONTEXT if room <= settings.max_new_tokens", LOSSLESS),
    Fault("a full prompt is let in", MODEL, "if len(prompt_ids) >= self.context:", "if len(prompt_ids) > self.context:", LOSSLESS),
    Fault("rows behind the budget", LAYOUT, "drafts = min(self.n_drafts, left - 1)", "drafts = min(self.n_drafts, left)", LOSSLESS, check=False),
    # [M] and the adapter
    Fault("[M] is drafted", MODEL, "return self._model.logits(masks)", "return self._model._head(masks)", "test_lossless.py", check=False),
    Fault("[M] is written", MODEL, "return Judged(self.logits(", "return Judged((self._head or (lambda rows: rows))(", "test_lossless.py", check=False),
    Fault("the adapter acts on a real row", MODEL, "adapter.on(layout.n_real)", "adapter.on(layout.n_real - 1)", CHECKPOINT),
    Fault("the adapter passes over a mask", MODEL, "adapter.on(layout.n_real)", "adapter.on(layout.n_real + 1)", f"{CHECKPOINT} test_trust.py"),
    Fault("the adapter stays on", "space_core/products.py", "                del place[\"forward\"]", "                pass", CHECKPOINT),
    Fault("plans see what drafts made of the next ones", DECODERS, "torch.cat([q[0].amax()[None], untold[1 : len(q)]])", "q.amax(-1)", "test_sampler.py", check=False),
    Fault("a guess is told the token before the last", MODEL, "            before = choose(logits[-1])\n            tokens.append(before)\n", "            tokens.append(choose(logits[-1]))\n", "test_sampler.py", check=False),
    # recorded calls
    Fault("a padding row is seen", GRAPHS, "own[at[:, None], at] = layout.sees()", "own[at] = True\n    own[at[:, None], at] = layout.sees()", RECORDED, check=False),
    Fault("a stale slot is seen", GRAPHS, "own.new_zeros(rows, 1)]", "own.new_ones(rows, 1)]", RECORDED, check=False),
    Fault("the last slot committed is not seen", GRAPHS, "(self.columns - past + 1).clamp(", "(self.columns - past + 2).clamp(", RECORDED, check=False),
    Fault("rows are written one slot too far", GRAPHS, "self.cache.place(past + self.order)", "self.cache.place(past + self.order + 1)", RECORDED, check=False),
    Fault("a recording stands where it was made", GRAPHS, "(self.offsets + past)[None]", "(self.offsets + int(self.cache.layers[0].length) + 4)[None]", RECORDED, check=False),
    Fault("a layout's inputs stay in the recording of another", GRAPHS, "if layout != self._layout:", "if self._layout is None:", RECORDED, check=False),
    Fault("a recorded adapter begins at the padding", GRAPHS, "adapter.on(self.real)", "adapter.on(self.real - 1)", RECORDED, check=False),
    Fault("masks are taken from where they would be without padding", GRAPHS, "found[real : real + layout.n_masks]", "found[n : n + layout.n_masks]", RECORDED, check=False),
    Fault("a storage has no room for the padding", GRAPHS, "self._home(model, cache, past + real + masks)", "self._home(model, cache, past + n)", RECORDED, check=False),
    Fault("a storage is not cleaned for its next guest", CACHE, "                store[:, :, theirs.length :] = 0\n", "", RECORDED, check=False),
    Fault("a guest leaves its rows behind", CACHE, "layer.keys = layer.keys[:, :, : layer.length].clone()", "layer.keys = layer.keys[:, :, : layer.length]", RECORDED, check=False),
    Fault("each call is recorded", GRAPHS, "if call.replay is None:", "if True:", RECORDED, check=False),
    Fault("moved weights are not noticed", GRAPHS, "if weights != self._weights:", "if not self._weights:", RECORDED, check=False),
    Fault("a failed recording is tried again", GRAPHS, "            self.refused = reason\n", "            pass\n", RECORDED, check=False),
    Fault("a hook is passed over", GRAPHS, "module._forward_hooks or ", "", RECORDED, check=False),
    Fault("the result is that of the next replay too", GRAPHS, "rows = torch.cat([found[:n], found[real : real + layout.n_masks]])", "rows = torch.cat([found[:n], found[real : real + layout.n_masks]]) if layout.n_masks else found[:n]", RECORDED, check=False),
    # text
    Fault("half a character is shown", "space_core/detokenize.py", "while waiting < 3 and", "while waiting < 0 and", "test_detokenize.py", check=False),
    Fault("a run of bytes is shown too early", "space_core/detokenize.py", "        if self._in_run(token):\n            return \"\"\n", "", "test_detokenize.py", check=False),
    Fault("a piece begins within a run of bytes", "space_core/detokenize.py", "            start -= 1\n", "            break\n", "test_detokenize.py", check=False),
    Fault("a piece is decoded alone", "space_core/detokenize.py", "self._before, self._pending = ids[self._begins(ids, len(self._before)) :], []", "self._before, self._pending = [], []", "test_detokenize.py", check=False),
    # checkpoints and training
    Fault("hashes are not looked at", "space_core/checkpoint.py", "if sha256(part) != digest:", "if False:", CHECKPOINT, check=False),
    Fault("a missing file is passed over", "space_core/checkpoint.py", "if not part.is_file():", "if False:", CHECKPOINT, check=False),
    Fault("weights that are no numbers", "space_core/checkpoint.py", "not bool(torch.isfinite(parameter).all())", "False", CHECKPOINT, check=False),
    Fault("pickles are opened", "space_core/checkpoint.py", "use_safetensors=True", "use_safetensors=None", CHECKPOINT, check=False),
    Fault("a larger tokenizer is let in", "space_core/checkpoint.py", "if len(tokenizer) > size:", "if False:", CHECKPOINT, check=False),
    Fault("a checkpoint is in its place before it is on the disk", "space_core/checkpoint.py", "    for path in [*aside.rglob(\"*\"), aside]:\n        _flush(path)\n", "", CHECKPOINT, check=False),
    Fault("a state is written in its place", "finetune/state.py", "temporary = path.with_suffix(\".tmp\")\n    with", "temporary = path\n    with", "test_killed.py", check=False),
    Fault("a resumed run forgets the optimizer", "finetune/masks.py", "team.load_optimizers(optimizers, state[\"optimizers\"])", "pass", "test_killed.py test_finetune.py", check=False),
)  # fmt: skip


def caught_by_tests(fault: Fault, folder: Path) -> tuple[bool, str]:
    """Plant a fault in a copy of the repository and run its tests there: (caught, last line of pytest)."""
    path = folder / fault.file
    source = path.read_text(encoding="utf-8")
    path.write_text(fault.applied(source), encoding="utf-8")
    try:
        code, last = pytest_in(folder, fault.tests)
    finally:
        path.write_text(source, encoding="utf-8")
    # 1: tests failed. A fault that keeps pytest from collecting (2 and above) proves nothing.
    return code == 1, last


def pytest_in(folder: Path, tests: str) -> tuple[int, str]:
    import warm  # which lies beside this file: `main` says where

    command = [
        "-m",
        "pytest",
        "-x",
        "-q",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        "--no-header",
        "-m",
        "not slow",
    ]
    command += [f"tests/{name}" for name in tests.split()]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        result = warm.run(*command, cwd=folder, env=environment, timeout=HUNG)
    except subprocess.TimeoutExpired:
        return 1, f"hung for {HUNG} s"
    lines = result.stdout.strip().splitlines() or result.stderr.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return result.returncode, (failed or lines or [""])[-1][:150]


def report(fault: Fault, caught: bool, by: str) -> None:
    print(f"{'caught' if caught else 'MISSED':8}{fault.name:48} {by}", flush=True)


def copied(folder: Path) -> Path:
    """What the tests need of the repository, in another folder."""
    for name in ("space_core", "finetune", "tests"):
        skipped = shutil.ignore_patterns("__pycache__", "page", "test_faults.py")
        shutil.copytree(ROOT / name, folder / name, ignore=skipped)
    for name in ("pyproject.toml", "requirements.txt", "README.md"):
        shutil.copy(ROOT / name, folder / name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "assets").symlink_to(ROOT / "assets", target_is_directory=True)
    return folder


class _Planting(MetaPathFinder):
    """Imports one module of a package with its source changed."""

    def __init__(self, fault: Fault) -> None:
        self.module, self.fault = fault.file.removesuffix(".py").replace("/", "."), fault

    def find_spec(self, name, path=None, target=None):
        if name != self.module:
            return None
        place = str(ROOT / self.fault.file)
        return spec_from_file_location(name, place, loader=_Loader(name, place, self.fault))


class _Loader(SourceFileLoader):
    def __init__(self, name: str, path: str, fault: Fault) -> None:
        super().__init__(name, path)
        self.fault = fault

    def get_code(self, fullname):
        source = self.fault.applied(Path(self.path).read_text(encoding="utf-8"))
        return compile(source, self.path, "exec", dont_inherit=True)


@contextmanager
def planted(fault: Fault | None) -> Iterator[None]:
    """Within it `space_core` is imported anew, with the fault; behind it the old modules are back."""
    ours = {
        name: module for name, module in sys.modules.items() if name.split(".")[0] in ("space_core", "tiny")
    }
    for name in ours:
        del sys.modules[name]
    finder = None if fault is None else _Planting(fault)
    if finder:
        sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        if finder:
            sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.split(".")[0] in ("space_core", "tiny")]:
            del sys.modules[name]
        sys.modules.update(ours)


def caught_by_checks(fault: Fault | None) -> tuple[bool, str]:
    """The checks of `verify`, made short, on a small model with an adapter: (caught, by which)."""
    with planted(fault):
        checks, trust, tiny, model, adapter, cost = (
            importlib.import_module(name)
            for name in (
                *("space_core.checks", "space_core.trust", "tiny"),
                *("space_core.model", "space_core.adapter", "space_core.cost"),
            )
        )
        import torch

        lm = tiny.tiny_lm("Llama")
        lm.config.max_position_embeddings = 2048
        masks = tiny.trained_like_masks(lm)
        masks.adapter = adapter.GatedAdapter(lm, ("q_proj", "down_proj"), rank=4)
        with torch.no_grad():
            for parameter in masks.adapter.b.values():
                parameter.normal_()
        masks.adapter.requires_grad_(False)
        examined = model.SpaceModel(lm, None, masks, eos_ids=())
        costs = cost.Costs({6: 1.3, 81: 7.0}, {1: 1.0})
        examined.costs = {True: costs, False: costs}
        subject = trust.Subject(examined, [[3, 1, 4, 1, 5]], tokens=16, ks=(1, 3))
        for name, options in QUICK.items():
            tally = trust.Tally(name)
            try:
                for _ in checks.CHECKS[name][0](subject, tally, **options):
                    if tally.differences and name != "sampling":
                        break
            except Exception as error:
                return True, f"{name}: {type(error).__name__}"
            if tally.differences:
                return True, f"{name}: {tally.first}"
    return False, "no check"


QUICK = {
    "rows": {"count": 6},
    "lanes": {},
    "cache": {"count": 3, "steps": 10},
    "greedy": {},
    "forced drafts": {},
    "stopping": {},
    "isolation": {"count": 20},
    "sampling": {"draws": 1000},
}
"""Checks in the order in which they are tried, the quick ones first."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tests.faults", description=__doc__.partition("\n")[0])
    parser.add_argument("--checks", action="store_true", help="by the checks of verify, in this process")
    parser.add_argument("--only", metavar="NAME", action="append", help="part of a name; may be given again")
    parser.add_argument("--json", metavar="OUT")
    options = parser.parse_args(arguments)
    sys.path.insert(0, str(ROOT / "tests"))
    chosen = [f for f in FAULTS if not options.only or any(part in f.name for part in options.only)]
    if options.checks:
        chosen = [fault for fault in chosen if fault.check]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        if options.checks:
            sound = caught_by_checks(None)[0] is False
        else:
            copied(Path(folder))
            files = " ".join(dict.fromkeys(name for fault in chosen for name in fault.tests.split()))
            sound = pytest_in(Path(folder), files)[0] == 0
        print(f"without a fault: {'nothing found' if sound else 'SOMETHING FOUND'}", flush=True)
        for fault in chosen:
            caught, by = caught_by_checks(fault) if options.checks else caught_by_tests(fault, Path(folder))
            found[fault.name] = {"caught": caught, "by": by}
            report(fault, caught, by)
    killed = sum(one["caught"] for one in found.values())
    print(f"{killed} of {len(found)} caught")
    if options.json:
        Path(options.json).write_text(json.dumps({"sound": sound, "faults": found}, indent=1) + "\n")
    return 0 if sound and killed == len(found) else 1


if __name__ == "__main__":
    sys.exit(main())
