"""Word-patch alignment of ViLT pre-training: optimal transport between word and patch states by IPOT."""

import torch
import torch.nn.functional as F
from torch import Tensor


def ipot_plan(
    cost: Tensor,
    word_mask: Tensor,
    patch_mask: Tensor,
    beta: float = 0.5,
    num_iterations: int = 50,
    num_inner: int = 1,
) -> Tensor:
    """Optimal transport plan between uniform marginals by IPOT (arXiv:1802.04307, Algorithm 1).

    Args:
        cost: Transport costs `(batch, words, patches)`.
        word_mask: `(batch, words)`, true = takes part.
        patch_mask: `(batch, patches)`, true = takes part.
        beta: Proximal step; smaller converges to the exact plan in more iterations.
        num_iterations: Proximal steps (thesis: 50; its heat maps: beta 0.1, 1000).
        num_inner: Sinkhorn updates per proximal step.

    Returns:
        Plan `(batch, words, patches)` in float32, zero at padding, with column sums 1/patches exactly and row
        sums 1/words up to convergence; all zero for an example without words or patches.
    """
    both = (word_mask[:, :, None] & patch_mask[:, None, :]).float()  # (batch, words, patches)
    num_words = word_mask.sum(dim=1, keepdim=True).float()  # (batch, 1)
    num_patches = patch_mask.sum(dim=1, keepdim=True).float()
    kernel = torch.exp(-cost.float() / beta) * both
    plan = both
    word_scale = word_mask.float()  # (batch, words), found anew from patch_scale in every inner iteration
    patch_scale = patch_mask / num_patches.clamp_min(1)  # (batch, patches)
    for _ in range(num_iterations):
        proximal = kernel * plan
        for _ in range(num_inner):
            word_scale = _masked_reciprocal(
                num_words * torch.einsum("bwp,bp->bw", proximal, patch_scale), word_mask
            )
            patch_scale = _masked_reciprocal(
                num_patches * torch.einsum("bwp,bw->bp", proximal, word_scale), patch_mask
            )
        plan = word_scale[:, :, None] * proximal * patch_scale[:, None, :]
    return plan


def alignment_distance(
    words: Tensor,
    patches: Tensor,
    word_mask: Tensor,
    patch_mask: Tensor,
    beta: float = 0.5,
    num_iterations: int = 50,
) -> Tensor:
    """Optimal transport distance between word and patch states with cost `1 - cosine` (thesis Eq. 2.7).

    Args:
        words: Word states `(batch, words, hidden)`; carry gradient through the cost, the plan is a constant.
        patches: Patch states `(batch, patches, hidden)`.
        word_mask: `(batch, words)`, true = takes part ([CLS], [SEP] and padding do not).
        patch_mask: `(batch, patches)`, true = takes part (class token and padding do not).
        beta: See `ipot_plan`.
        num_iterations: See `ipot_plan`.

    Returns:
        Distances `(batch,)` in [0, 2], float32.
    """
    # float32 whatever the model's precision: 50 iterations of products underflow in half precision.
    with torch.autocast(words.device.type, enabled=False):
        cosine = F.normalize(words.float(), dim=-1) @ F.normalize(patches.float(), dim=-1).transpose(1, 2)
        cost = 1 - cosine  # (batch, words, patches)
        plan = ipot_plan(cost.detach(), word_mask, patch_mask, beta, num_iterations)
        return (plan * cost).sum(dim=(1, 2))


def word_patch_alignment_loss(
    words: Tensor, patches: Tensor, word_mask: Tensor, patch_mask: Tensor, is_match: Tensor
) -> Tensor:
    """Pull words and patches of true pairs together, push those of false pairs apart.

    ViLT's objective (arXiv:2102.03334, section 3.2), after UNITER's word-region alignment (arXiv:1909.11740).

    Args:
        words: Word states `(batch, words, hidden)`.
        patches: Patch states `(batch, patches, hidden)`.
        word_mask: `(batch, words)`, true = takes part.
        patch_mask: `(batch, patches)`, true = takes part.
        is_match: `(batch,)`, 1 = text and image belong together.

    Returns:
        Scalar `(sum of true pairs' distances - sum of false pairs' distances) / batch`; ViLT's weight is 0.1.
    """
    distance = alignment_distance(words, patches, word_mask, patch_mask)  # (batch,)
    return torch.where(is_match.bool(), distance, -distance).mean()


def inner_word_mask(attention_mask: Tensor) -> Tensor:
    """True at words only: not at the first and last real token of a text ([CLS], [SEP]) nor at padding.

    Args:
        attention_mask: `(batch, length)`, 1 = real token, padding on the right.
    """
    mask = attention_mask.bool()
    inner = mask.clone()
    inner[:, 0] = False
    inner[:, :-1] &= mask[:, 1:]  # a real token before padding is [SEP]
    inner[:, -1] = False
    return inner


def _masked_reciprocal(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, 1 / torch.where(mask, values, 1).clamp_min(torch.finfo(values.dtype).tiny), 0)
