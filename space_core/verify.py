"""Judging the drafts of a call and drawing the next ones: the paper's §3.3, made lossless.

Pure functions of logits or probabilities, drafts and uniform random numbers: the same inputs give
the same verdict, and the tests can enumerate them exactly. Rows are the *judged* rows of a
`Layout`: row 0 is the newest committed token, row i the i-th draft.

Sampling follows Leviathan et al. 2023 and Chen et al. 2023 (speculative sampling): accept a draft
c drawn from q with probability min(1, p(c)/q(c)); at the first rejection draw from the normalised
positive part of p - q. The emitted tokens are then distributed exactly as under p. The paper's
reference code draws from p after a rejection, which is not lossless.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the model says of the drafts.

    Attributes:
        accepted: how many drafts stand, from the first one on; also the group to draft from.
        own: the model's own token behind them (corrected where a draft fell, bonus where all stood).
    """

    accepted: int
    own: int


def verify_greedy(choices: Sequence[int], drafts: Sequence[int]) -> Verdict:
    """Accept drafts as long as each equals the model's own choice in front of it.

    Args:
        choices: argmax of the judged real rows, d + 1 of them.
        drafts: the d drafts.
    """
    accepted = 0
    while accepted < len(drafts) and drafts[accepted] == choices[accepted]:
        accepted += 1
    return Verdict(accepted, choices[accepted])


def verify_sampled(p: Tensor, q: Tensor, drafts: Sequence[int], uniforms: Tensor) -> Verdict:
    """Speculative sampling over the d drafts, with one uniform a draft and one for the own token.

    Args:
        p: target distribution of each judged real row. float [d + 1, V].
        q: distribution each draft was drawn from, after the same warpers. float [d, V].
        drafts: the d drafts; q gives each of them a probability above 0.
        uniforms: float64 [d + 1] in [0, 1).
    """
    d = len(drafts)
    if not d:
        return Verdict(0, draw(p[:1], uniforms)[0])
    tokens = torch.as_tensor(drafts, device=p.device)[:, None]
    # u < p/q without the division, so that q = p accepts and p = 0 rejects at every u.
    stands = uniforms[:d].to(p) * q.gather(1, tokens)[:, 0] < p[:d].gather(1, tokens)[:, 0]
    accepted = int(stands.to(torch.int64).cumprod(0).sum())
    weights = p[d] if accepted == d else residual(p[accepted], q[accepted])
    return Verdict(accepted, draw(weights[None], uniforms[d:])[0])


def residual(p: Tensor, q: Tensor) -> Tensor:
    """max(p - q, 0), not normalised (`draw` needs no norm). float [V] each.

    Where nothing is left, p equals q up to rounding and a rejection had probability 0; p itself
    is then the right distribution.
    """
    rest = (p - q).clamp_min(0)
    return rest if bool((rest > 0).any()) else p


def draw(weights: Tensor, uniforms: Tensor) -> list[int]:
    """Draw from each row of non-negative weights by inverting its cumulative sum.

    Args:
        weights: float [n, V], rows need not sum to 1; a token of weight 0 is never drawn.
        uniforms: float64 [n] in [0, 1).

    Returns:
        n ids.
    """
    cumulative = weights.cumsum(-1)
    total = cumulative[..., -1:]
    # A point may round up to the total itself, behind the last token: keep it strictly below.
    point = torch.minimum(uniforms[..., None].to(weights) * total, total.nextafter(total.new_zeros(())))
    # right=True finds the first token whose cumulative sum lies above the point: its weight is > 0.
    found: list[int] = torch.searchsorted(cumulative, point, right=True)[..., 0].tolist()
    return found
