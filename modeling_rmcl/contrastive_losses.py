"""Contrastive objectives of RMCL as pure functions on embeddings `(batch, dim)`."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def info_nce_loss(
    query: Tensor, positive_key: Tensor, queue: Tensor, temperature: float = 0.07, reduction: str = "mean"
) -> Tensor:
    """Contrast each query with its key against a queue of negatives (MoCo, arXiv:1911.05722, Eq. 1).

    Thesis Eq. 2.9.

    Args:
        query: L2-normalised embeddings, shape `(batch, dim)`; carries gradient.
        positive_key: Keys of the same pairs, L2-normalised, shape `(batch, dim)`; treated as constants.
        queue: Negative keys, shape `(queue_size, dim)`; treated as constants.
        temperature: Softmax temperature, > 0.
        reduction: `"mean"` for a scalar, `"none"` for one loss per example, shape `(batch,)`.

    Returns:
        Loss in nats.

    Raises:
        ValueError: If shapes differ, or `temperature` or `reduction` is not valid.

    Examples:
        >>> loss = info_nce_loss(torch.eye(2), torch.eye(2), torch.zeros(3, 2), temperature=1.0)
        >>> round(loss.item(), 4)  # log(1 + 3/e)
        0.7437
    """
    _check_pair(query, positive_key)
    _check_temperature(temperature)
    if queue.ndim != 2 or queue.shape[1] != query.shape[1]:
        raise ValueError(
            f"queue must have shape (queue_size, {query.shape[1]}) as the query, got {tuple(queue.shape)}; "
            "build the queue with the projector's output width."
        )
    positive = (query * positive_key.detach()).sum(dim=1, keepdim=True)  # (batch, 1)
    negative = query @ queue.detach().T  # (batch, queue_size)
    logits = torch.cat([positive, negative], dim=1) / temperature  # (batch, 1 + queue_size)
    target = torch.zeros(len(query), dtype=torch.long, device=query.device)
    return F.cross_entropy(logits, target, reduction=reduction)


def barlow_twins_loss(z_a: Tensor, z_b: Tensor, lambda_param: float = 5e-3, center: bool = True) -> Tensor:
    """Make the cross-correlation of two views the identity (Barlow Twins, arXiv:2103.03230, Eq. 1).

    Thesis Eq. 2.10.

    Args:
        z_a: Embeddings of the attacked pairs, shape `(batch, dim)`, batch >= 2.
        z_b: Embeddings of the clean pairs, shape `(batch, dim)`.
        lambda_param: Weight of the off-diagonal (redundancy reduction) term.
        center: Standardise along the batch by mean and standard deviation, as batch normalisation does.
            `False` divides by the root of the sum of squares only, which is what the thesis prints (Eq. 2.4);
            the values differ.

    Returns:
        Scalar `sum_i (1 - C_ii)^2 + lambda * sum_{i != j} C_ij^2`.

    Raises:
        ValueError: If shapes differ or the batch has fewer than two examples.
    """
    _check_pair(z_a, z_b)
    if len(z_a) < 2:
        raise ValueError(
            f"barlow_twins_loss correlates over the batch and needs at least 2 examples, got {len(z_a)}; "
            "raise per_device_train_batch_size or set dataloader_drop_last."
        )
    z_a, z_b = _standardise(z_a, center), _standardise(z_b, center)
    diagonal = (z_a * z_b).mean(dim=0)  # (dim,)
    invariance_loss = (1 - diagonal).square().sum()
    redundancy_reduction_loss = _squared_correlation(z_a, z_b) - diagonal.square().sum()
    return invariance_loss + lambda_param * redundancy_reduction_loss


def barlow_twins_loss_per_example(
    attacked: Tensor, rows: Tensor, clean: Tensor, key: Tensor, lambda_param: float = 5e-3
) -> Tensor:
    """Barlow Twins loss of a clean batch in which one example alone is replaced by its attacked embedding.

    The adversary needs one number per example; the Barlow loss is one number per batch. This is the exact
    value of that batch loss with row `rows[i]` replaced, standardised by the clean batch, so that no
    example's score depends on how its neighbours are attacked. Replacing one row changes C by a rank-one
    matrix, which keeps the cost at O(batch * dim) per attacked embedding.

    Args:
        attacked: Embeddings under attack, shape `(candidates, dim)`; carries gradient.
        rows: Row of the clean batch that each one replaces, long, shape `(candidates,)`.
        clean: Clean embeddings of the query branch, shape `(batch, dim)`; constants.
        key: Clean embeddings of the key branch, shape `(batch, dim)`; constants.
        lambda_param: Weight of the off-diagonal term.

    Returns:
        Losses, shape `(candidates,)`.
    """
    _check_pair(clean, key)
    clean, key = clean.detach(), _standardise(key.detach(), center=True)
    mean, inverse_std = clean.mean(dim=0), (clean.var(dim=0, unbiased=False) + 1e-5).rsqrt()
    clean = (clean - mean) * inverse_std  # (batch, dim)
    shift = ((attacked - mean) * inverse_std - clean[rows]) / len(clean)  # (candidates, dim)
    own_key = key[rows]  # (candidates, dim): C changes by outer(shift, own_key)
    diagonal = (clean * key).mean(dim=0) + shift * own_key  # (candidates, dim)
    # ||C + s k^T||^2 = ||C||^2 + 2 s^T C k + |s|^2 |k|^2, where s^T C k = mean_n (s . clean_n)(key_n . k)
    cross = ((shift @ clean.T) * (own_key @ key.T)).mean(dim=1)  # (candidates,)
    total = _squared_correlation(clean, key) + 2 * cross + shift.square().sum(1) * own_key.square().sum(1)
    off_diagonal = total - diagonal.square().sum(dim=1)
    return (1 - diagonal).square().sum(dim=1) + lambda_param * off_diagonal


def nt_xent_loss(z_a: Tensor, z_b: Tensor, temperature: float = 0.1) -> Tensor:
    """Normalised temperature-scaled cross entropy over 2N views (SimCLR, arXiv:2002.05709, Eq. 1).

    Args:
        z_a: Embeddings of the first views, shape `(batch, dim)`; normalised inside.
        z_b: Embeddings of the second views, shape `(batch, dim)`; normalised inside.
        temperature: Softmax temperature, > 0.

    Returns:
        Mean loss over the `2 * batch` views, scalar, in nats.
    """
    _check_pair(z_a, z_b)
    _check_temperature(temperature)
    views = F.normalize(torch.cat([z_a, z_b]), dim=1)  # (2 * batch, dim)
    logits = views @ views.T / temperature
    logits.fill_diagonal_(float("-inf"))
    target = torch.arange(len(views), device=views.device).roll(len(z_a))
    return F.cross_entropy(logits, target)


def negative_cosine_similarity(p: Tensor, z: Tensor) -> Tensor:
    """Mean negative cosine between predictions and constant targets (SimSiam, arXiv:2011.10566, Eq. 1).

    Args:
        p: Predictions, shape `(batch, dim)`; carries gradient.
        z: Targets, shape `(batch, dim)`; treated as constants (stop-gradient).

    Returns:
        Scalar in [-1, 1].
    """
    _check_pair(p, z)
    return -F.cosine_similarity(p, z.detach(), dim=1).mean()


def gather_embeddings(embeddings: Tensor) -> Tensor:
    """Concatenate the embeddings of all processes in rank order, gradients included.

    Its backward adds the gradients of all ranks; data-parallel training then averages over ranks, so a loss
    computed on the gathered batch has the same gradient on N processes as on one (`(world * batch, dim)`
    from `(batch, dim)`).
    """
    return embeddings if process_count() == 1 else _Gather.apply(embeddings)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        ctx.size = len(own)
        parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(process_count())]
        dist.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.split(ctx.size)[dist.get_rank()]


def process_count() -> int:
    """Number of processes that train together, 1 without `torch.distributed`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean_over_processes(value: Tensor) -> Tensor:
    """Mean of a tensor that all processes have, without gradient; of one process it is the tensor itself."""
    if process_count() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / process_count()


def _standardise(z: Tensor, center: bool) -> Tensor:
    if not center:
        return z * z.square().mean(dim=0).clamp_min(1e-12).rsqrt()
    return (z - z.mean(dim=0)) * (z.var(dim=0, unbiased=False) + 1e-5).rsqrt()


def _squared_correlation(z_a: Tensor, z_b: Tensor) -> Tensor:
    """`sum_ij C_ij^2` from Gram matrices: no (dim, dim) tensor exists (dim is 8192, batch is small)."""
    return ((z_a @ z_a.T) * (z_b @ z_b.T)).sum() / len(z_a) ** 2


def _check_pair(a: Tensor, b: Tensor) -> None:
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(
            "Embeddings of both views must have the same shape (batch, dim), got "
            f"{tuple(a.shape)} and {tuple(b.shape)}; pass both through the same projector."
        )


def _check_temperature(temperature: float) -> None:
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}; MoCo uses 0.07.")
