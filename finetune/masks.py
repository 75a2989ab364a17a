"""Training the masks: the paper's SAR-SFT, and gated dense groups.

A mask sees in training what it sees in decoding: `gated` takes its rows from `space_core.layout`,
and the one group of `paper` stands at the end of its sample, where the causal mask is that rule.

* `paper` (arXiv 2402.11809, §3.1): all weights, one [M] in the vocabulary. A sample keeps the plain
  loss with probability p_ar; otherwise its answer is cut at a random token and k masks stand in.
* `gated`: the base is frozen; mask embeddings, a low-rank adapter of the mask rows and, where the recipe
  gives it a width, a sampler head are trained.
  A text stays whole and many groups stand behind it, each behind a random token ("dense groups",
  as in BiTA and PARD), drawn anew at every step. The real rows need no gradient at all: they are
  computed once, and the masks look at their keys and values. Targets are what the base itself
  would write: its own continuation, or its argmax behind sampled text; a share of the loss may take
  the base's whole distribution there (its logits are at hand anyway). What stands behind a wrong mask
  could not be accepted, so it may count less ("accept until fail", arXiv 2607.01893).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import DynamicCache

from finetune.distill import Own, ends_of_text
from finetune.evaluate import decode_prompts
from finetune.optimizer import Optimizers, cosine, schedule
from finetune.precision import autocast, bfloat16_is_faster
from finetune.processes import ALONE, Team
from finetune.recipe import MaskTraining
from finetune.state import Log, Tell, load_state, save_state
from space_core.adapter import GatedAdapter
from space_core.cache import additive, cache_argument
from space_core.errors import SpaceError
from space_core.layout import Layout
from space_core.lookup import Lookup
from space_core.metrics import tokens_per_call
from space_core.model import Masks, SpaceModel, context_window, split_head
from space_core.sampler import SamplerHead

NOWHERE = torch.zeros((), dtype=torch.long)
"""No draft was accepted."""
UNTOLD = 0.2
"""Share of the loss of guesses that were not told the token in front of them, beside a sampler head."""
Draw = Callable[[int, torch.Generator], Any]
"""Batch number n, from random numbers that depend on n alone."""


class TrainingError(SpaceError, RuntimeError):
    """Training went wrong: the rates are too high, or the data cannot be learnt from."""


class Method(Protocol):
    """A way to train masks, as `train` drives it.

    Attributes:
        trained: what is trained, and saved in states.
    """

    trained: nn.Module

    def loss(self, batch: Any, random: torch.Generator) -> tuple[Tensor, int]:
        """Mean loss of a batch, and how many mask targets it had.

        Where several processes train as one: this one's part of the mean, whose sum it is, and all targets.
        """

    def model(self, tokenizer: Any) -> SpaceModel | None:
        """The model with its masks as they are now, for decoding; None where another process decodes."""

    def restore(self) -> None:
        """Back to training after decoding."""


class GatedMasks(nn.Module):
    """What the gated method trains: one embedding per slot, the adapter and perhaps a sampler head."""

    def __init__(self, lm: Any, plan: MaskTraining, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        mean = lm.get_input_embeddings().weight.detach().mean(0)
        self.embeddings = nn.Parameter(mean.repeat(plan.k, 1))
        self.adapter = GatedAdapter(lm, plan.targets, plan.rank)
        self.sampler = SamplerHead(mean.numel(), plan.sampler).to(mean) if plan.sampler else None

    def begin(self, start: dict[str, Tensor]) -> None:
        """Take over what was trained before, perhaps without a sampler head."""
        self.load_state_dict({**self.state_dict(), **start})

    def masks(self) -> Masks:
        """As they are decoded with; `state_of` is the way back."""
        return Masks(
            len(self.embeddings), "gated", None, self.embeddings.detach(), self.adapter, self.sampler
        )


def state_of(masks: Masks) -> dict[str, Tensor] | None:
    """The state of `GatedMasks` from which trained masks came; None of masks that are not gated."""
    if masks.embeddings is None or masks.adapter is None:
        return None
    parts = {"adapter": masks.adapter, "sampler": masks.sampler}
    return {"embeddings": masks.embeddings} | {
        f"{part}.{name}": tensor
        for part, module in parts.items()
        if module is not None
        for name, tensor in module.state_dict().items()
    }


def joint_losses(
    lm: Any,
    trained: GatedMasks | Masks,
    windows: Tensor,
    groups: int,
    random: torch.Generator,
    first: int = 0,
    plain: bool = True,
    ends: Tensor | None = None,
) -> tuple[Tensor, Tensor, int]:
    """The plain loss of the real rows, that of dense groups behind them, and how many targets these had.

    Here the base learns too: what its real rows offer to masks (their keys and values) is shaped by
    what the masks need.

    Args:
        trained: embeddings of the masks, and their adapter, without which they go through the base's weights;
            with a sampler head, guesses count told and untold, as in `Gated`.
        windows: int64 [batch, length + 1].
        groups: of as many masks as `trained` has embeddings.
        first: row behind which the first group may stand, and the first one with a plain loss.
        plain: whether the plain loss is wanted; else it is 0.
        ends: where each window ends for the masks, as of `Own`; without, at its last token. int64 [batch]
    """
    rows, length = windows.shape[0], windows.shape[1] - 1
    k = len(trained.embeddings)
    if ends is None:
        ends = torch.full((rows,), length + 1)
    anchors = drawn_anchors(ends, first, length - 1, groups, random)
    layout = Layout(length, 0, anchors, (k,) * len(anchors))
    offsets, slots = layout.offsets().to(windows.device), layout.slots().to(windows.device)
    embed = lm.get_input_embeddings()
    masks = trained.embeddings[slots].expand(rows, -1, -1)
    sees = additive(layout.sees().to(windows.device), masks.dtype)
    with nullcontext() if trained.adapter is None else trained.adapter.on(length):
        hidden = lm.base_model(
            inputs_embeds=torch.cat([embed(windows[:, :-1]), masks], dim=1),
            attention_mask=sees[None, None],
            position_ids=offsets[None].expand(rows, -1),
            use_cache=False,
        ).last_hidden_state
    ahead = offsets[length:] + 1  # the mask at position t predicts the token behind it
    ends = ends.to(windows.device)[:, None]
    targets = windows[:, ahead.clamp(max=length)].masked_fill(ahead >= ends, -100)
    if plain:
        targets = torch.cat([windows[:, 1 + first :], targets], dim=1)
    logits = lm.get_output_embeddings()(hidden[:, -targets.shape[1] :]).flatten(0, 1).float()
    losses = nn.functional.cross_entropy(logits, targets.flatten(), reduction="none").view(rows, -1)
    counted = int((ahead < ends).sum())
    guesses = losses[:, -len(ahead) :].sum() / max(1, counted)
    if trained.sampler is not None:
        before = embed(windows[:, (ahead - 1).clamp(max=length)])
        moved = trained.sampler(hidden[:, length:].to(trained.sampler.outer.weight), before)
        logits = lm.get_output_embeddings()(moved.to(hidden)).flatten(0, 1).float()
        aims = targets[:, -len(ahead) :].flatten()
        told = nn.functional.cross_entropy(logits, aims, reduction="sum") / max(1, counted)
        guesses = (1 - UNTOLD) * told + UNTOLD * guesses
    return losses[:, : length - first].mean() if plain else guesses.new_zeros(()), guesses, counted


def drawn_anchors(
    ends: Tensor, first: int, last: int, groups: int, random: torch.Generator
) -> tuple[int, ...]:
    """Rows behind which mask groups shall stand, in order: one set for a batch, so that it shares a mask.

    Where more of its texts still go on, more often.

    Args:
        ends: of the texts. int64 [batch]
        first, last: the rows to draw from, without `last`.
    """
    # The first mask behind row a guesses the token a + 2.
    going = (ends[:, None] > torch.arange(first + 2, last + 2)).float().mean(0).clamp_min(0.01)
    chosen = torch.multinomial(going, min(groups, len(going)), generator=random)
    return tuple((chosen.sort().values + first).tolist())


def train_masks(
    model_lm: Any,
    tokenizer: Any,
    texts: list[Own],
    prompts: list[list[int]],
    plan: MaskTraining,
    out: Path,
    seed: int,
    start: dict[str, Tensor] | None = None,
    tell: Tell | None = None,
) -> SpaceModel:
    """Train masks for a base, resuming from what `out` holds.

    Args:
        model_lm: the base; `gated` leaves it as it is, `paper` trains it.
        texts: of `distill`.
        prompts: held-out prompts on which tokens per call are measured by decoding.
        plan: method, steps, rates.
        out: states and log go here.
        start: state of `GatedMasks` to begin from, for `gated`.
        tell: hears what is logged.

    Returns:
        The model with its trained masks.
    """
    gated = plan.method == "gated"
    method: Method = Gated(model_lm, plan, seed) if gated else Paper(model_lm, plan)
    if gated and start is not None:
        assert isinstance(method, Gated)
        method.trained.begin(start)

    if not gated:
        texts = [own.whole(ends_of_text(model_lm)) for own in texts]
    draw = own_texts(texts, plan.batch)
    return train(method, draw, tokenizer, prompts, plan, out, seed, tell=tell)


def own_texts(texts: list[Own], rows: int) -> Draw:
    """Draws batches of so many rows from the texts of `distill`, lengths as often as they have texts.

    Raises:
        TrainingError: where there are none.
    """
    sizes = torch.tensor([len(own.sequences) for own in texts], dtype=torch.float)
    if not sizes.sum():
        raise TrainingError("all of the model's own texts run in circles: there is nothing to learn from")

    def draw(index: int, random: torch.Generator) -> Own:
        own = texts[int(torch.multinomial(sizes, 1, generator=random))]
        chosen = torch.randperm(len(own.sequences), generator=random)[:rows]
        return Own(own.prompt, own.sequences[chosen], own.ends[chosen])

    return draw


def train(
    method: Method,
    draw: Draw,
    tokenizer: Any,
    prompts: list[list[int]],
    plan: MaskTraining,
    out: Path,
    seed: int,
    half: bool | None = None,
    team: Team = ALONE,
    tell: Tell | None = None,
) -> SpaceModel | None:
    """The training loop: resumes to the bit, logs, measures by decoding, stops early.

    Args:
        method: its loss, and the model it makes.
        draw: batch number n, a function of n and of random numbers that depend on n alone.
        prompts: held-out prompts on which tokens per call are measured by decoding.
        plan: steps, rates, when to save and when to stop.
        out: states and log go here.
        half: multiply in bfloat16; None measures whether that is faster.
        team: the processes that train as one; the method has to know it too.
        tell: hears what is logged.

    Returns:
        The model with its trained masks; with `plan.patience`, those of the best evaluation. None in
        processes that have no whole model.

    Raises:
        TrainingError: when the loss is no longer finite.
    """
    device = next(method.trained.parameters()).device
    path, step, seconds, targets = out / f"masks-{plan.method}.pt", 0, 0.0, 0
    best_path, best, since = out / f"masks-{plan.method}-best.pt", 0.0, 0
    state = load_state(path)
    if state is not None:
        half = state["half"]
    elif half is None:
        half = bfloat16_is_faster(device)
    optimizers = Optimizers(method.trained, plan.muon_lr, plan.lr, half)
    if state is not None:
        team.load(method.trained, state["trained"])
        team.load_optimizers(optimizers, state["optimizers"])
        step, seconds, targets = state["step"], state["seconds"], state["targets"]
        best, since = state.get("best", best), state.get("since", since)
    log = Log(out / "log.jsonl" if team.main else None, f"masks-{plan.method}", step, tell)
    bar = tqdm(
        total=plan.steps, initial=step, desc=f"masks ({plan.method})", mininterval=2, disable=not team.main
    )

    def factor() -> float:
        if plan.cosine:
            return cosine(step, plan.steps, plan.warmup)
        return schedule(step, plan.steps, plan.warmup, plan.decay or plan.steps)

    def measure() -> float:
        rate = 0.0
        with torch.no_grad():
            model = method.model(tokenizer)
            if team.main and model is not None:
                rate = tokens_per_call(decode_prompts(model, prompts, plan.k, plan.evaluate_tokens))
        method.restore()
        rate = float(team.from_main(rate))
        log.write(step, tokens_per_call=round(rate, 4), seconds=round(seconds, 1), mask_targets=targets)
        bar.set_postfix(tokens_per_call=f"{rate:.2f}")
        return rate

    if step == 0:
        measure()
    tired = 0 < plan.patience <= since
    while step < plan.steps and not tired:
        start = time.perf_counter()
        value = 0.0
        for index in range(step * plan.accumulate, (step + 1) * plan.accumulate):
            random = torch.Generator().manual_seed(seed * 1_000_003 + index)
            batch = draw(index, random)
            with autocast(device, half):
                loss, counted = method.loss(batch, random)
            loss = loss / plan.accumulate
            loss.backward()
            value += float(team.sum(loss.detach()))
            targets += counted
        team.sum_gradients(method.trained.parameters())
        optimizers.step(factor())
        if not math.isfinite(value):
            raise TrainingError(f"mask training diverged at step {step}: the loss is {value}")
        step += 1
        seconds += time.perf_counter() - start
        bar.update()
        if step % 10 == 0 or step == plan.steps:
            log.write(step, loss=round(value, 4), mask_targets=targets, seconds=round(seconds, 1))
        if step % plan.evaluate_every == 0 or step == plan.steps:
            rate = measure()
            if plan.patience:
                since = 0 if rate > best else since + 1
                if rate > best:
                    best = rate
                    trained = team.whole(method.trained.state_dict())
                    if team.main:
                        save_state(best_path, {"trained": trained, "step": step})
                tired = since >= plan.patience
        if step % plan.save_every == 0 or step == plan.steps or tired:
            state = {
                "trained": team.whole(method.trained.state_dict()),
                "optimizers": team.whole(optimizers.state_dict()),
                "step": step,
                "half": half,
                "seconds": seconds,
                "targets": targets,
            }
            if team.main:
                save_state(path, {**state, "best": best, "since": since} if plan.patience else state)
    bar.close()
    team.wait()  # for what the main process writes
    if plan.patience:
        state = load_state(best_path)
        if state is not None:
            team.load(method.trained, state["trained"])
            if step < plan.steps:
                log.write(step, stopped_early=True, best_step=state["step"])
    return method.model(tokenizer)


def guess_loss(
    logits: Tensor,
    own: Tensor,
    text: Tensor,
    first: Tensor,
    known: Tensor,
    plan: MaskTraining,
    team: Team = ALONE,
) -> Tensor:
    """Mean loss of the masks of dense groups; of several processes, this one's part of it.

    Args:
        logits: of the masks, group by group. float [batch, groups · k, V]
        own: the base's own logits at the positions of the masks. [batch, groups · k, V]
        text: the tokens behind these positions. int64 [batch, groups · k]
        first: which masks are the first of their group. bool [groups · k]
        known: which masks have a target, 0 or 1. float [batch, groups · k]
        plan: `soft` and `until_fail`.
    """
    batch = len(logits)
    # What the base itself puts there: equal to the text where the text is its greedy output.
    # Behind a sampled token that is not the base's choice, only the text itself can follow.
    wanted = torch.where(first, own.argmax(-1), text)
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
    loss = loss.view(batch, -1)
    if plan.soft:
        whole = own.float().softmax(-1)
        # log-softmax of the masks, without a second copy of it: -Σ p log q = lse(q) - Σ p q.
        against = logits.logsumexp(-1) - (whole * logits).sum(-1)
        loss = (1 - plan.soft) * loss + plan.soft * against
    weights = known
    if plan.until_fail < 1:
        right = (logits.detach().argmax(-1) == wanted).view(batch, -1, plan.k).float()
        alive = torch.cat([torch.ones_like(right[..., :1]), right.cumprod(-1)[..., :-1]], -1)
        weights = weights * (plan.until_fail + (1 - plan.until_fail) * alive.flatten(1))
    return (loss * weights).sum() / team.sum(weights.sum()).clamp_min(1e-6)


class Behind(NamedTuple):
    """Masks of dense groups behind a batch of texts, and what they have to guess.

    Attributes:
        anchors: the rows that the groups stand behind, in order.
        hidden: of the masks, group by group, as they reach the head. float [batch, groups · k, hidden]
        before: the token in front of the one to guess. int64 [batch, groups · k]
        real: likewise, of the base's own rows at the masks' positions. float [batch, groups · k, hidden]
        text: the token to guess, likewise; for the first of a group what the base writes may be another.
        known: whether there is one: behind the text there is none. bool [batch, groups · k]
    """

    anchors: tuple[int, ...]
    hidden: Tensor
    real: Tensor
    before: Tensor
    text: Tensor
    known: Tensor

    def copied(self, sequences: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """What the texts up to each group say of the tokens behind it, as decoding would ask them.

        Args:
            sequences: the batch's. int64 [batch, length]

        Returns:
            The tokens, and how many in front of each matched (0: none did). int64 [batch, groups · k] twice.
        """
        found = []
        for sequence, row in zip(sequences.tolist(), self.before.cpu(), strict=True):
            lookup, read = Lookup([]), 0
            for group, anchor in enumerate(self.anchors):
                lookup.extend(sequence[read : anchor + 1])
                read = anchor + 1
                follow = lookup.follow((), NOWHERE)
                found += [follow(before) for before in row[group * k : (group + 1) * k]]
        tokens, lengths = torch.tensor(found).view(len(sequences), -1, 2).unbind(-1)
        return tokens.to(self.before.device), lengths.to(self.before.device)


class Gated:
    """The gated method on sequences of one length with prompts of one length.

    Args:
        masks: that are there already, and not to be trained; None: new ones.
    """

    team: Team = ALONE

    def __init__(self, lm: Any, plan: MaskTraining, seed: int, masks: Masks | None = None) -> None:
        self.lm, self.plan = lm.eval().requires_grad_(False), plan
        self.base, self.head = split_head(self.lm)
        if plan.sampler and self.head is None:
            raise TrainingError(
                f"{type(lm).__name__} changes its logits behind its head: train it without a sampler head"
            )
        self.trained: Any = GatedMasks(lm, plan, seed) if masks is None else masks

    def loss(self, batch: Any, random: torch.Generator) -> tuple[Tensor, int]:
        """Mean cross-entropy of the masks of dense groups.

        batch: an `Own`; what stands behind a sequence's end is no target.
        """
        seen = self.behind(batch, random)
        first = torch.arange(len(seen.known[0]), device=seen.known.device) % self.plan.k == 0
        with torch.no_grad():
            own = self.logits(seen.real)
        loss = self._guess_loss(seen.hidden, seen.before, own, seen.text, first, seen.known.float())
        return loss, int(seen.known.sum())

    def behind(self, batch: Own, random: torch.Generator) -> Behind:
        """Dense groups behind the texts of a batch, and what they have to guess."""
        lm, plan, trained = self.lm, self.plan, self.trained
        prompt, sequences, ends = batch
        rows, length = sequences.shape
        device = trained.embeddings.device
        sequences = sequences.to(device)
        with torch.no_grad():
            cache = DynamicCache()
            real = self._hidden(input_ids=sequences, **{cache_argument(lm): cache})
        anchors = drawn_anchors(ends, prompt - 1, length - 2, plan.groups, random)
        layout = Layout(length, 0, anchors, (plan.k,) * len(anchors))
        offsets, slots = layout.offsets()[length:].to(device), layout.slots().to(device)
        embeddings = trained.embeddings[slots].expand(rows, -1, -1)
        sees = layout.sees()[length:].to(device)
        with trained.adapter.on(0):  # all rows of this second half are masks
            hidden = self._hidden(
                inputs_embeds=embeddings,
                attention_mask=additive(sees, embeddings.dtype)[None, None],
                # Masks behind the text have no target, but may stand behind the model's last position.
                position_ids=offsets.clamp(max=context_window(lm.config) - 1)[None].expand(rows, -1),
                **{cache_argument(lm): cache},
            )
        # The mask at position t predicts the token behind it; behind the text there is no target.
        known = offsets + 1 < ends.to(device)[:, None]
        places = offsets.clamp(max=length - 2)
        return Behind(anchors, hidden, real[:, places], sequences[:, places], sequences[:, places + 1], known)

    def told(self, hidden: Tensor, before: Tensor) -> Tensor:
        """Hidden states of masks that were told the token in front of what they guess."""
        sampler = self.trained.sampler
        if sampler is None:
            return hidden
        moved: Tensor = sampler(hidden.to(sampler.outer.weight), self.lm.get_input_embeddings()(before))
        return moved.to(hidden)

    def _guess_loss(
        self, hidden: Tensor, before: Tensor, own: Tensor, text: Tensor, first: Tensor, known: Tensor
    ) -> Tensor:
        """`guess_loss` of hidden states. before: the token before each target. int64 [batch, groups · k]"""

        def of(states: Tensor) -> Tensor:
            return guess_loss(self.logits(states).float(), own, text, first, known, self.plan, self.team)

        if self.trained.sampler is None:
            return of(hidden)
        return (1 - UNTOLD) * of(self.told(hidden, before)) + UNTOLD * of(hidden)

    def _hidden(self, **inputs: Any) -> Tensor:
        """Hidden states of the rows, or their logits where the model has no plain head."""
        if self.head is None:
            return self.lm(**inputs, use_cache=True).logits
        return self.base(**inputs, use_cache=True).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """Of what `_hidden` gave."""
        return hidden if self.head is None else self.head(hidden)

    def model(self, tokenizer: Any) -> SpaceModel | None:
        return SpaceModel(self.lm, tokenizer, self.trained.masks())

    def restore(self) -> None:
        pass


class Paper:
    """The paper's method, likewise."""

    def __init__(self, lm: Any, plan: MaskTraining) -> None:
        self.plan = plan
        self.token_id = int(lm.get_input_embeddings().weight.shape[0])
        lm.resize_token_embeddings(self.token_id + 1, mean_resizing=True)
        self.lm = self.trained = lm.requires_grad_(True).train()

    def loss(self, batch: Any, random: torch.Generator) -> tuple[Tensor, int]:
        """SAR-SFT of one batch; the cut is drawn per sample.

        batch: an `Own` of whole sequences.
        """
        prompt, sequences, _ = batch
        k, losses, counted = self.plan.k, [], 0
        plain = torch.rand(len(sequences), generator=random) < self.plan.p_ar
        sequences = sequences.to(next(self.lm.parameters()).device)
        if bool(plain.any()):
            rows = sequences[plain]
            logits = self.lm(rows[:, :-1], use_cache=False).logits[:, prompt - 1 :]
            losses.append(
                nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, prompt:].flatten()) * len(rows)
            )
        rows = sequences[~plain]
        if len(rows):
            cuts = torch.stack([torch.randint(prompt, rows.shape[1] - k, (), generator=random) for _ in rows])
            width, cuts = int(cuts.max()) + k, cuts.to(rows.device)[:, None]
            place = torch.arange(width + 1, device=rows.device)
            # What stands behind a row's own masks is seen by none of them.
            ids = torch.where(place < cuts, rows[:, : width + 1], self.token_id)[:, :width]
            known = (place <= cuts + k)[:, prompt:]
            targets = rows[:, prompt : width + 1].masked_fill(~known, -100)
            logits = self.lm(ids, use_cache=False).logits[:, prompt - 1 :]
            each = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
            losses.append((each.view_as(targets).sum(1) / known.sum(1)).sum())
            counted += k * len(rows)
        return torch.stack(losses).sum() / len(sequences), counted

    def model(self, tokenizer: Any) -> SpaceModel:
        return SpaceModel(self.lm.eval(), tokenizer, Masks(self.plan.k, "paper", self.token_id))

    def restore(self) -> None:
        self.lm.train()


class Dense(Paper):
    """The paper's method with many groups behind each text in the place of one that cuts it.

    All weights learn, and [M] is one token of the vocabulary whose rows go through the same weights as
    all others: nothing of `gated` is in it but the groups. As in the paper's loss every target counts
    the same, a real token's and a mask's; the text stays whole, so no sample is set aside for the plain
    loss (`p_ar` does not apply).
    """

    def loss(self, batch: Any, random: torch.Generator) -> tuple[Tensor, int]:
        """Mean loss of the real rows behind the prompt and of the masks. batch: as of `Paper`."""
        prompt, sequences, _ = batch
        embeddings = self.lm.get_input_embeddings().weight
        masks = Masks(self.plan.k, "paper", embeddings=embeddings[self.token_id].expand(self.plan.k, -1))
        plain, guesses, counted = joint_losses(
            self.lm, masks, sequences.to(embeddings.device), self.plan.groups, random, prompt - 1
        )
        real = len(sequences) * (sequences.shape[1] - prompt)
        return (plain * real + guesses * counted) / (real + counted), counted
