"""What attacks maximise: losses per example that are right for two classes, for many, and for soft labels."""

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy_to_label(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy per example, `(batch,)`.

    Args:
        logits: `(batch, classes)`.
        labels: Class index `(batch,)`, or soft scores `(batch, classes)`, which are made to sum to one.
    """
    if labels.ndim == 2:
        labels = labels / labels.sum(dim=-1, keepdim=True).clamp_min(1e-12)
    return F.cross_entropy(logits.float(), labels, reduction="none")


def margin_to_label(logits: Tensor, labels: Tensor) -> Tensor:
    """Best wrong logit minus best right logit, `(batch,)`: positive where the prediction is wrong.

    The logit difference of Carlini and Wagner (arXiv:1608.04644), which has a gradient where cross entropy is
    saturated. AutoAttack's DLR divides it by the distance of the first and third logit, which two classes do
    not have. The right answers of a soft label are those with its highest score; where no answer has a
    positive score every prediction is wrong, and the margin is 0.

    Args:
        logits: `(batch, classes)`, two classes at least.
        labels: Class index `(batch,)`, or soft scores `(batch, classes)`.

    Raises:
        ValueError: If there are fewer than two classes.
    """
    if logits.shape[-1] < 2:
        raise ValueError(
            f"a margin needs at least two classes, the head has {logits.shape[-1]} logit(s); "
            "rank pairs with evaluate_robust_retrieval instead."
        )
    logits, right = logits.float(), right_answers(labels, logits.shape[-1])
    wrong = logits.masked_fill(right, -torch.inf).amax(dim=-1)
    best = logits.masked_fill(~right, -torch.inf).amax(dim=-1)
    decidable = right.any(dim=-1) & ~right.all(dim=-1)
    # The zeros keep the infinities of undecidable rows, and so NaN, out of the gradient.
    return torch.where(decidable, wrong, 0.0) - torch.where(decidable, best, 0.0)


def right_answers(labels: Tensor, num_classes: int) -> Tensor:
    """Which classes count as right, bool `(batch, classes)`."""
    if labels.ndim == 1:
        return F.one_hot(labels, num_classes).bool()
    return (labels == labels.amax(dim=-1, keepdim=True)) & (labels > 0)


def is_correct(prediction: Tensor, labels: Tensor) -> Tensor:
    """Whether predictions `(batch,)` hit the class index `(batch,)`, or a highest positive soft score of the
    row `(batch, classes)`.
    """
    if labels.ndim == 1:
        return prediction == labels
    return right_answers(labels, labels.shape[1]).gather(1, prediction[:, None]).squeeze(1)
