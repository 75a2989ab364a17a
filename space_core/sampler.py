"""The sampler head: a mask's guess, told the token in front of it.

The masks of a group guess all at once, so none knows what the others guessed, nor even the model's own
token, which the same call decides. When the guesses are read off, those tokens are known: a small
network puts each one's embedding beside the hidden state of the mask behind it,

    z_i = h_i + W₂ · silu(W₁ [h_i, e(x_{i-1})]),    draft_i from head(z_i),    x_0 = own token

so guesses come one after the other, but without another pass through the model. Only mask rows of the
one group that the verdict chose go through it; real rows never do, so the output stays the base's.
(Idea: Samragh et al., arXiv 2507.11851; sequentially dependent draft heads: Ankner et al., Hydra, arXiv
2402.05109.)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from space_core.errors import CheckpointError, first_line

WEIGHTS = "sampler.safetensors"


class SamplerHead(nn.Module):
    """Hidden states of masks, moved by the tokens in front of what they guess.

    Args:
        hidden: width of the model's hidden states.
        width: of the network's one inner layer.

    A new one leaves the hidden states as they are.
    """

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(2 * hidden, width)
        self.outer = nn.Linear(width, hidden, bias=False)
        nn.init.zeros_(self.outer.weight)

    @property
    def width(self) -> int:
        return self.inner.out_features

    def forward(self, hidden: Tensor, before: Tensor) -> Tensor:
        """What the model's head is to read.

        Args:
            hidden: of mask rows, as they reach the model's head. [..., hidden]
            before: input embedding of the token in front of the one that each guesses. [..., hidden]
        """
        told = torch.cat([_level(hidden), _level(before)], dim=-1)
        moved: Tensor = hidden + self.outer(nn.functional.silu(self.inner(told)))
        return moved

    def steps(self, hidden: Tensor) -> Callable[[slice | Tensor, Tensor], Tensor]:
        """`forward` for some rows after others; what no token changes is computed for all at once.

        Args:
            hidden: of masks. [n, hidden]

        Returns:
            A function of the rows wanted and of the embeddings in front of their guesses, [rows, hidden],
            that gives what the head is to read, [rows, hidden].
        """
        n = hidden.shape[-1]
        of_masks = nn.functional.linear(_level(hidden), self.inner.weight[:, :n], self.inner.bias)
        of_token, back = self.inner.weight[:, n:].t(), self.outer.weight.t()

        def step(rows: slice | Tensor, before: Tensor) -> Tensor:
            inner = torch.addmm(of_masks[rows], _level(before), of_token)
            return torch.addmm(hidden[rows], nn.functional.silu(inner), back)

        return step

    def save(self, folder: Path) -> None:
        tensors = {name: tensor.detach().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    @classmethod
    def load(cls, folder: Path, hidden: int) -> SamplerHead:
        """Read what `save` wrote, for a model of this hidden width.

        Raises:
            CheckpointError: for missing, damaged or misfitting files.
        """
        try:
            tensors = load_file(folder / WEIGHTS)
            sampler = cls(hidden, len(tensors["inner.bias"])).to(tensors["outer.weight"].dtype)
            sampler.load_state_dict(tensors)
        except (OSError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"the sampler head cannot be read or does not fit the model: {first_line(error)}"
            ) from None
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
            raise CheckpointError("the sampler head is damaged: it holds numbers that are not finite")
        return sampler


def _level(x: Tensor) -> Tensor:
    """Root mean square 1, since models differ in the size of their embeddings."""
    return nn.functional.rms_norm(x, x.shape[-1:])
