"""What the text so far says of a mask's guess: a token that followed the same tokens before gains.

Code repeats itself, and masks do not learn to copy two tokens ahead. So when the guesses of a group are
read off one after the other, the text is asked which token followed the last few when they stood there
before, and something is added to that token's logit,

    logits_i[c] += b[i, n],    c what followed last, n how many tokens in front of it matched,

by a small table b that was fitted on the model's own texts (`finetune/copying.py`). Only guesses are moved,
never what the model says itself, and a sampled guess is drawn from what came of it: the output stays that
of the base.
(A pointer into the context beside a softmax: Merity et al. 2016, arXiv 1609.07843; a cache of the
text's own n-grams: Grave et al. 2016, arXiv 1612.04426.)
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from space_core.errors import CheckpointError, first_line
from space_core.lookup import LENGTHS

WEIGHTS = "copies.safetensors"


class CopyBias:
    """What is added to the logit of a copied token.

    Args:
        table: by slot and by the length that matched, from 1 on. float [slots, max(LENGTHS)]
    """

    def __init__(self, table: Tensor) -> None:
        self.table = table.detach()
        wide = torch.cat([self.table.new_zeros(len(table), 1), self.table], dim=1)  # nothing matched: nothing
        self._wide, self._numbers = wide, wide.tolist()

    def to(self, device: torch.device) -> CopyBias:
        return CopyBias(self.table.to(device))

    def lean(self, logits: Tensor, slot: int, token: int | Tensor, length: int | Tensor) -> None:
        """Add to the logits of one guess, in place.

        Args:
            logits: [1, V].
            slot: of the mask, from 0; those behind the last that was fitted are as that one.
            token, length: what followed and what matched, as `Lookup` or `DeviceLookup` say. int64 [] each,
                or numbers.
        """
        slot = min(slot, len(self._numbers) - 1)
        if isinstance(length, int):
            if length and logits.dtype in (torch.float32, torch.float64) and logits.device.type == "cpu":
                logits.numpy()[0, token] += self._numbers[slot][length]  # a fifth of torch's time
            elif length:
                logits[0, token] += self._numbers[slot][length]
        else:
            gain = self._wide[slot].index_select(0, length.view(1)).to(logits)
            logits.scatter_add_(1, torch.as_tensor(token).view(1, 1), gain[None])

    def save(self, folder: Path) -> None:
        save_file({"table": self.table.cpu().contiguous()}, folder / WEIGHTS, metadata={"format": "pt"})

    @classmethod
    def load(cls, folder: Path) -> CopyBias:
        """Read what `save` wrote.

        Raises:
            CheckpointError: for missing, damaged or misfitting files.
        """
        try:
            table: Tensor = load_file(folder / WEIGHTS)["table"]
        except (OSError, KeyError, SafetensorError) as error:
            raise CheckpointError(f"the table of copies cannot be read: {first_line(error)}") from None
        if table.ndim != 2 or not len(table) or table.shape[1] != max(LENGTHS):
            raise CheckpointError(
                f"the table of copies is {list(table.shape)}, it needs [slots, {max(LENGTHS)}]"
            )
        if not table.is_floating_point() or not bool(torch.isfinite(table).all()):
            raise CheckpointError("the table of copies is damaged: it holds what are no finite numbers")
        return cls(table)
