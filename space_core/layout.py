"""Which rows one call feeds to the model: the paper's §3.2 as positions and a visibility rule.

A call has *real* rows (the prompt, or the newest token and the drafts behind it) and *mask groups*.
The groups stand behind all real rows, so that the accepted rows are already in their final cache
slots and committing a call is a crop:

    last  c1 … cd   M M … M   M M … M   …            (d drafts, then group 0, group 1, …)

Group g is anchored at a real row; its mask j takes the position j behind the anchor and predicts
the token after that position. Training (`finetune`) builds its dense groups from this same class:
there the real rows are a whole text and the anchors are drawn at random.

This room knows rows, positions and who sees whom. It knows no token, model or cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """Rows of one call.

    Attributes:
        n_real: rows of real tokens (drafts included), fed first.
        n_drafts: how many of the last real rows are drafts still to be verified.
        anchors: for each group the real row behind which it stands, ascending not required.
        masks: masks in each group; 0 leaves a group out.
    """

    n_real: int
    n_drafts: int = 0
    anchors: tuple[int, ...] = ()
    masks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.n_drafts < self.n_real:
            raise ValueError("a call needs one real row more than it has drafts")
        if len(self.anchors) != len(self.masks) or min(self.masks, default=0) < 0:
            raise ValueError("each group needs an anchor and a count of masks")
        if any(not 0 <= anchor < self.n_real for anchor in self.anchors):
            raise ValueError("a group must stand behind a real row of the call")

    @classmethod
    @lru_cache(maxsize=512)
    def plain(cls, n_real: int) -> Layout:
        """Real tokens only: what plain decoding feeds."""
        return cls(n_real)

    @classmethod
    def first(cls, n_prompt: int, k: int) -> Layout:
        """The first call: the prompt and one mask group, no drafts."""
        return cls(n_prompt, 0, (n_prompt - 1,), (k,))

    @classmethod
    @lru_cache(maxsize=512)
    def steady(cls, masks: tuple[int, ...]) -> Layout:
        """The newest token, len(masks) - 1 drafts, and masks[g] masks behind g accepted drafts."""
        return cls(len(masks), len(masks) - 1, tuple(range(len(masks))), masks)

    @classmethod
    def grid(cls, k: int) -> Layout:
        """The paper's steady call: k drafts, k + 1 groups of k masks, (k + 1)² rows."""
        return cls.steady((k,) * (k + 1))

    def within(self, left: int) -> Layout:
        """This steady call without the rows that only serve tokens behind the next `left` ones.

        Mask j of group g guesses the token number g + j + 1 from here.
        """
        drafts = min(self.n_drafts, left - 1)
        if self.n_drafts + max(self.masks, default=0) < left:
            return self
        return Layout.steady(
            tuple(min(m, max(0, left - 1 - g)) for g, m in enumerate(self.masks[: drafts + 1]))
        )

    @property
    def n_masks(self) -> int:
        return sum(self.masks)

    @property
    def rows(self) -> int:
        return self.n_real + self.n_masks

    @property
    def n_judged(self) -> int:
        """Rows whose logits are needed, the last ones: the newest token, its drafts, all masks."""
        return 1 + self.n_drafts + self.n_masks

    def group_rows(self, group: int) -> slice:
        """Where the masks of `group` lie among the *judged* rows."""
        start = 1 + self.n_drafts + sum(self.masks[:group])
        return slice(start, start + self.masks[group])

    def drafting_rows(self, accepted: int) -> range:
        """The *judged* rows whose masks guess on behind `accepted` drafts of a decoding call; may be none.

        Its own group's, or where that was left out, the tail of the nearest group before it: mask
        j of group g and mask j - 1 of group g + 1 stand at one position, though only the latter sees
        the draft between them. So neighbouring stops can share a group.
        """
        for group in range(accepted, -1, -1):
            rows = self.group_rows(group)
            if self.masks[group]:
                return range(min(rows.start + accepted - group, rows.stop), rows.stop)
        return range(0)

    def offsets(self) -> Tensor:
        """Position of each row relative to the first real row. int64 [rows]."""
        anchor, slot, _ = _coordinates(self)
        return anchor + slot

    def slots(self) -> Tensor:
        """Which mask of its group each mask row is, from 0. int64 [n_masks]."""
        return _coordinates(self)[1][self.n_real :] - 1

    def sees(self) -> Tensor:
        """Who sees whom among the call's own rows. bool [rows, rows], row = the one that looks.

        A real row sees the real rows up to itself. A mask sees the real rows up to its anchor and
        the masks of its own group up to itself. Nobody sees another group's masks, and no real
        row ever sees a mask. All rows see the whole cache, which is not part of this matrix.
        """
        anchor, slot, group = _coordinates(self)
        real = slot == 0
        below_anchor = real[None, :] & (anchor[None, :] <= anchor[:, None])
        own_group = ~real[None, :] & (group[None, :] == group[:, None]) & (slot[None, :] <= slot[:, None])
        return below_anchor | own_group


@lru_cache(maxsize=16)
def _coordinates(layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """Anchor, slot (0 = real, j = mask j) and group (-1 = real) of each row; int64 [rows] each."""
    n, masks = layout.n_real, torch.tensor(layout.masks, dtype=torch.long)
    group = torch.arange(len(layout.masks)).repeat_interleave(masks)
    first = (masks.cumsum(0) - masks).repeat_interleave(masks)
    anchors = torch.tensor(layout.anchors, dtype=torch.long)
    anchor = torch.cat([torch.arange(n), anchors.repeat_interleave(masks)])
    slot = torch.cat([torch.zeros(n, dtype=torch.long), torch.arange(len(group)) - first + 1])
    return anchor, slot, torch.cat([torch.full((n,), -1), group])
