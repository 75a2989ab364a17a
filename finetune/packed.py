"""Mask training on samples of any length: several in a row, kept apart, and both methods on them.

Short samples are packed into one row of the batch. Positions restart with each, and the attention mask
is block-diagonal, so that no sample sees another: what a mask sees is what it sees in decoding, to the
rounding of sums. Batch number n is a function of n alone, so a resumed run needs to know nothing else.

The rule of the masks is `space_core.layout`'s here too: a row's layout has all its real rows and groups
of masks, and from what a mask may see there, other samples' rows are taken away.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.modeling_layers import GradientCheckpointingLayer

from finetune.chat import Sample
from finetune.masks import Gated, Paper, TrainingError
from finetune.processes import ALONE, Team
from finetune.recipe import MaskTraining
from space_core.adapter import GatedAdapter
from space_core.cache import additive, cache_argument
from space_core.layout import Layout
from space_core.model import Masks, SpaceModel, context_window, split_head

NONE = -100
"""Label of a row that predicts nothing that is learnt."""
OPEN_ROWS = 64
"""Rows that packing keeps open for a sample that fits."""

Piece = tuple[Tensor, Tensor]
"""Ids and labels of one text. int64 [n] twice"""


class Batches:
    """Samples in rows, rows in batches.

    Args:
        samples: none longer than `length`.
        length: most tokens of a row.
        rows: rows of a batch.
        seed: of the order, which changes with every epoch.
        pack: several samples in a row; otherwise one.
    """

    def __init__(self, samples: Sequence[Sample], length: int, rows: int, seed: int, pack: bool) -> None:
        self._samples, self._length, self._rows = samples, length, rows
        self._seed, self._pack = seed, pack
        self._epochs: list[int] = []
        """Batches up to the end of each epoch that was looked at."""
        self._plan: tuple[int, list[list[int]]] = (-1, [])

    def until(self, epochs: int) -> int:
        """Batches of the first so many epochs; how many an epoch has depends on its packing."""
        while len(self._epochs) < epochs:
            rows = len(self._rows_of(len(self._epochs)))
            self._epochs.append((self._epochs or [0])[-1] + math.ceil(rows / self._rows))
        return self._epochs[epochs - 1]

    def batch(self, index: int) -> list[list[Sample]]:
        """The samples of each row of batch number `index`, from 0, over all epochs."""
        epoch = 0
        while self.until(epoch + 1) <= index:
            epoch += 1
        place = (index - (self._epochs[epoch - 1] if epoch else 0)) * self._rows
        chosen = self._rows_of(epoch)[place : place + self._rows]
        return [[self._samples[i] for i in row] for row in chosen]

    def _rows_of(self, epoch: int) -> list[list[int]]:
        """Which samples are in each row of an epoch: the first open row that has room takes a sample."""
        if self._plan[0] == epoch:
            return self._plan[1]
        random = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        order = torch.randperm(len(self._samples), generator=random).tolist()
        if not self._pack:
            self._plan = epoch, [[i] for i in order]
            return self._plan[1]
        done: list[list[int]] = []
        free: list[tuple[list[int], int]] = []
        for index in order:
            size = len(self._samples[index].ids)
            place = next((n for n, (_, room) in enumerate(free) if room >= size), None)
            if place is not None:
                row, room = free[place]
                row.append(index)
                free[place] = row, room - size
                continue
            if len(free) == OPEN_ROWS:
                done.append(free.pop(0)[0])
            free.append(([index], self._length - size))
        self._plan = epoch, done + [row for row, _ in free]
        return self._plan[1]


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch of packed rows, padded to the longest. int64 [batch, length] each.

    Attributes:
        ids: tokens.
        labels: the token that each row has to predict, or NONE.
        segment: which text of its row a token belongs to; -1 is padding.
        start: where in the row that text begins.
    """

    ids: Tensor
    labels: Tensor
    segment: Tensor
    start: Tensor

    @property
    def positions(self) -> Tensor:
        return torch.arange(self.ids.shape[1], device=self.ids.device) - self.start

    def sees(self) -> Tensor | None:
        """Who sees whom. bool [batch, length, length]; None where the causal mask says as much."""
        if int(self.segment.max()) == 0:
            return None  # padding stands behind everything: no token sees it
        same = self.segment[:, :, None] == self.segment[:, None, :]
        return same.tril()

    def to(self, device: torch.device) -> Rows:
        return Rows(*(part.to(device) for part in (self.ids, self.labels, self.segment, self.start)))

    def pick(self, chosen: list[int]) -> Rows:
        """Some of the batch's rows."""
        return Rows(*(part[chosen] for part in (self.ids, self.labels, self.segment, self.start)))


def pack_rows(rows: Sequence[Sequence[Piece]]) -> Rows:
    """Texts, row by row, as one batch."""
    length = max(sum(len(ids) for ids, _ in row) for row in rows)
    shape = len(rows), length
    ids, start = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    labels, segment = torch.full(shape, NONE), torch.full(shape, -1)
    for number, row in enumerate(rows):
        at = 0
        for index, (piece, wanted) in enumerate(row):
            place = slice(at, at + len(piece))
            ids[number, place], labels[number, place] = piece, wanted
            segment[number, place], start[number, place] = index, at
            at += len(piece)
        start[number, at:] = at
    return Rows(ids, labels, segment, start)


def plain(sample: Sample) -> Piece:
    """A sample as it is: each token of an answer is to be predicted by the row before it."""
    wanted = torch.where(sample.learn, sample.ids, NONE)[1:]
    return sample.ids, torch.cat([wanted, wanted.new_full((1,), NONE)])


def masked(sample: Sample, k: int, token_id: int, random: torch.Generator) -> Piece | None:
    """A sample cut in an answer, k [M] behind the cut, k + 1 targets; None if the answers are too short."""
    if len(sample.learn) <= k:
        return None
    cuts = sample.learn.unfold(0, k + 1, 1).all(-1).nonzero()[:, 0]
    cuts = cuts[cuts > 0]
    if not len(cuts):
        return None
    cut = int(cuts[int(torch.randint(len(cuts), (), generator=random))])
    ids, labels = plain(sample)
    return torch.cat([ids[:cut], ids.new_full((k,), token_id)]), labels[: cut + k]


def draw_anchors(rows: Rows, groups: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Anchors of dense groups: rows that predict an answer's token and are followed by another such.

    Returns:
        int64 [batch, groups], ascending within a row; and which of them count, since a row may have
        fewer places. bool [batch, groups]
    """
    learns = rows.labels != NONE
    places = learns & torch.cat([learns[:, 1:], torch.zeros_like(learns[:, :1])], dim=1)
    most = max(1, min(groups, int(places.sum(1).max())))
    anchors = torch.zeros(len(learns), most, dtype=torch.long)
    counts = torch.zeros(len(learns), most, dtype=torch.bool)
    for row, place in enumerate(places):
        found = place.nonzero()[:, 0]
        found = found[torch.randperm(len(found), generator=random)[:most]].sort().values
        anchors[row, : len(found)], counts[row, : len(found)] = found, True
    return anchors, counts


@dataclass(frozen=True, slots=True)
class Guesses:
    """The mask rows of a batch. [batch, groups · k] each, but for `sees`.

    Attributes:
        at: the row of the batch that stands where the mask does, and predicts what it has to.
        positions: position ids.
        known: whether there is something to predict: all up to it is of one answer. 0 or 1
        sees: bool [batch, groups · k, length + groups · k]
    """

    at: Tensor
    positions: Tensor
    known: Tensor
    sees: Tensor


def guesses(rows: Rows, anchors: Tensor, counts: Tensor, k: int) -> Guesses:
    """Groups of k masks behind the anchors of each row."""
    length = rows.ids.shape[1]
    layouts = [Layout(length, 0, tuple(row), (k,) * len(row)) for row in anchors.tolist()]
    behind = anchors.repeat_interleave(k, dim=1)  # the anchor of each mask
    at = torch.stack([layout.offsets()[length:] for layout in layouts])
    sees = torch.stack([layout.sees()[length:] for layout in layouts])
    same = rows.segment.gather(1, behind)[:, :, None] == rows.segment[:, None, :]
    sees[:, :, :length] &= same
    learns = torch.cat([rows.labels != NONE, torch.zeros(len(at), 1, dtype=torch.bool)], dim=1)
    alive = learns.gather(1, at.clamp(max=length)).view(len(at), -1, k)
    known = alive.int().cumprod(-1).bool() & counts[:, :, None]
    positions = at - rows.start.gather(1, behind)
    return Guesses(at.clamp(max=length - 1), positions, known.flatten(1).float(), sees)


class PackedGated(Gated):
    """The gated method on packed rows.

    Args:
        lm: the base, in whatever format it is to stay.
        checkpointing: compute each layer of the mask rows again in the backward pass, to save memory.
        team: the processes that train as one.
    """

    def __init__(
        self, lm: Any, plan: MaskTraining, seed: int, checkpointing: bool = False, team: Team = ALONE
    ) -> None:
        super().__init__(lm, plan, seed)
        self.trained.float()  # a step in 16 bits would round away most of what is learnt
        self.context, self.team = context_window(lm.config), team
        self.lm, self.whole = team.shard(lm)
        if team.sharded:  # only the whole model's own call collects its weights
            if plan.sampler:
                raise TrainingError("a sampler head cannot be trained beside a base whose weights are spread")
            self.base, self.head = self.lm, None
        self.layers = _layers(self.lm) if checkpointing else []

    def loss(self, batch: Any, random: torch.Generator) -> tuple[Tensor, int]:
        """Mean loss of the masks. batch: the samples of each row."""
        plan, trained, team = self.plan, self.trained, self.team
        rows = pack_rows([[plain(sample) for sample in row] for row in batch])
        anchors, counts = draw_anchors(rows, plan.groups, random)
        if team.size > 1:
            # Drawn for all rows, so that they are what a single process draws. A process that is left
            # without a row takes one that counts for nothing, since all must call the model alike.
            mine = team.share(len(batch))
            rows, anchors, counts = rows.pick(mine or [0]), anchors[mine or [0]], counts[mine or [0]]
            counts = counts & bool(mine)
        groups = guesses(rows, anchors, counts, plan.k)
        device, dtype = self.lm.get_input_embeddings().weight.device, self.lm.dtype
        sees, counted = rows.sees(), int(team.sum(groups.known.sum().to(device)))
        rows, known, at = rows.to(device), groups.known.to(device), groups.at.to(device)
        cache = DynamicCache()
        with torch.no_grad():
            real = self._hidden(
                input_ids=rows.ids,
                attention_mask=None if sees is None else additive(sees.to(device), dtype)[:, None],
                position_ids=rows.positions,
                **{cache_argument(self.lm): cache},
            )
            own = self.logits(real.gather(1, at[:, :, None].expand(-1, -1, real.shape[-1])))
        slots = torch.arange(plan.k, device=device).repeat(at.shape[1] // plan.k)
        with self._with_masks():
            hidden = self._hidden(
                inputs_embeds=trained.embeddings[slots].expand(len(at), -1, -1).to(dtype),
                attention_mask=additive(groups.sees.to(device), dtype)[:, None],
                position_ids=groups.positions.clamp(max=self.context - 1).to(device),
                **{cache_argument(self.lm): _frozen(cache)},
            )
        text = rows.labels.gather(1, at).clamp(min=0)
        before = rows.ids.gather(1, at)
        return self._guess_loss(hidden, before, own, text, slots == 0, known), counted

    def model(self, tokenizer: Any) -> SpaceModel | None:
        """With the masks in the base's format, as they will be saved."""
        if self.whole is None:
            return None
        masks = self.trained.masks()
        like = self.whole.get_input_embeddings().weight
        if self.whole is not self.lm or like.dtype != self.trained.embeddings.dtype:
            adapter = GatedAdapter(self.whole, self.plan.targets, self.plan.rank).requires_grad_(False)
            adapter.load_state_dict(self.trained.adapter.state_dict())
            sampler = copy.deepcopy(masks.sampler)
            masks = Masks(
                masks.k,
                masks.method,
                embeddings=self.trained.embeddings.detach().to(like),
                adapter=adapter,
                sampler=None if sampler is None else sampler.to(like),
            )
        return SpaceModel(self.whole, tokenizer, masks)

    def _with_masks(self) -> AbstractContextManager[None]:
        """All rows are masks: the adapter is on, for the layers' second pass too where there is one."""
        adapter = self.trained.adapter
        return _twice(self.layers, lambda: adapter.on(0)) if self.layers else adapter.on(0)


class PackedPaper(Paper):
    """The paper's method on packed rows. Arguments as of `PackedGated`."""

    def __init__(self, lm: Any, plan: MaskTraining, checkpointing: bool = False, team: Team = ALONE) -> None:
        super().__init__(lm, plan)
        lm.eval()  # the head is found by comparing two passes, which dropout would make differ
        self.base, self.head = split_head(lm)
        self.team = team
        self.lm, self.whole = team.shard(lm)
        if team.sharded:
            self.base, self.head = self.lm, None
        self.trained = self.lm.train()
        self.layers = _layers(self.lm) if checkpointing else []

    def loss(self, batch: Any, random: torch.Generator) -> tuple[Tensor, int]:
        """SAR-SFT (§3.1): the mean over all answers' tokens and masks. batch: the samples of each row."""
        k, counted, pieces = self.plan.k, 0, []
        for row in batch:
            pieces.append([])
            for sample in row:
                as_it_is = bool(torch.rand((), generator=random) < self.plan.p_ar)
                piece = None if as_it_is else masked(sample, k, self.token_id, random)
                counted += 0 if piece is None else k
                pieces[-1].append(plain(sample) if piece is None else piece)
        if self.team.size > 1:
            ids, _ = pieces[0][0]
            idle = [[(ids, torch.full_like(ids, NONE))]]  # see `PackedGated.loss`
            pieces = [pieces[row] for row in self.team.share(len(pieces))] or idle
        return self.learn(pieces, random), counted

    def learn(self, pieces: Sequence[Sequence[Piece]], random: torch.Generator) -> Tensor:
        """Mean loss of all targets of texts, row by row; of several processes, this one's part of it."""
        rows = pack_rows(pieces)
        sees, device = rows.sees(), self.lm.get_input_embeddings().weight.device
        rows = rows.to(device)
        # Dropout draws from the global generator: a resumed run has to draw the same.
        torch.manual_seed(int(torch.randint(2**62, (), generator=random)) + self.team.rank)
        inputs = {
            "input_ids": rows.ids,
            "attention_mask": None if sees is None else additive(sees.to(device), self.lm.dtype)[:, None],
            "position_ids": rows.positions,
            "use_cache": False,
        }
        wanted = rows.labels != NONE
        with _twice(self.layers, nullcontext):
            if self.head is None:
                logits = self.lm(**inputs).logits[wanted]
            else:
                logits = self.head(self.base(**inputs).last_hidden_state[wanted])
        total = self.team.sum(wanted.sum()).clamp_min(1)
        return nn.functional.cross_entropy(logits.float(), rows.labels[wanted], reduction="sum") / total

    def model(self, tokenizer: Any) -> SpaceModel | None:
        state = self.team.whole(self.lm.state_dict()) if self.team.sharded else None
        if self.whole is None:
            return None
        if state is not None:
            self.whole.load_state_dict(state)
        return SpaceModel(self.whole.eval(), tokenizer, Masks(self.plan.k, "paper", self.token_id))


def _layers(lm: nn.Module) -> list[nn.Module]:
    """The layers of a model that transformers says can be computed twice.

    Raises:
        TrainingError: when it has none.
    """
    found = [module for module in lm.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not found:
        raise TrainingError(f"{type(lm).__name__} has no layers that can be checkpointed")
    return found


@contextmanager
def _twice(layers: list[nn.Module], around: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Layers keep their inputs only, and are computed again in the backward pass. around: each time.

    (transformers' own switch drops the cache of keys and values, which the masks look at.)
    """

    def lean(forward: Callable) -> Callable:
        def run(*args: Any, **options: Any) -> Any:
            with around():
                return forward(*args, **options)

        return lambda *args, **options: checkpoint(run, *args, use_reentrant=False, **options)

    for layer in layers:
        layer.__dict__["forward"] = lean(layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.__dict__["forward"]


class _Frozen(DynamicLayer):
    """Keys and values that are seen and never added to: a second pass of a layer finds them as they were."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **options: Any) -> Any:
        return torch.cat([self.keys, key_states], -2), torch.cat([self.values, value_states], -2)


def _frozen(cache: DynamicCache) -> DynamicCache:
    frozen = DynamicCache()
    frozen.layers = [_Frozen(layer.keys, layer.values) for layer in cache.layers]
    return frozen
