"""A shortlist: send only the pairs that a cheap scorer puts first through the expensive encoder, and measure
what that changes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from .intervals import wilson_interval

CheapScores: TypeAlias = Callable[[Sequence[Any], Sequence[str]], NDArray]
"""(images, texts) to scores `(texts, images)`, higher is better."""


@dataclass(frozen=True)
class Shortlist:
    """Rank only `size` items of the gallery by the encoder; the others follow in the cheap scorer's order.

    The list of a query is that of the clean query and the clean gallery, and holds no right answer that the
    cheap scorer did not put there: a right answer outside is not found again.

    Attributes:
        size: Items per query, at least 1; as many as the gallery has (or more) give the exact ranking.
        scores: The cheap scorer; None: the model's own `text_embedding` and `image_embedding`.
        num_checked: Queries, drawn at random, that are ranked exactly too, to measure the error.

    Raises:
        ValueError: If a number is not positive.
    """

    size: int
    scores: CheapScores | None = None
    num_checked: int = 50

    def __post_init__(self) -> None:
        for name in ("size", "num_checked"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; expected at least 1. A shortlist whose error nobody "
                    "measured is no approximation of anything."
                )


class RecallError(TypedDict):
    """Recall@K with the shortlist minus the exact one, over `n` queries, with a 95 % interval.

    The interval is the Wilson intervals of gains and of losses, at 97.5 % each, subtracted: conservative, and
    of positive width also where the two rankings agree on every checked query.
    """

    difference: float
    low: float
    high: float
    n: int


def listed_items(cheap: NDArray, relevant: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """The `size` items per query that the cheap scorer puts first; ties go to irrelevant items.

    Args:
        cheap: Cheap scores, `(queries, gallery)`.
        relevant: Which items are right, `(queries, gallery)`.
        size: Items per query.
    """
    best = np.lexsort((relevant, -cheap), axis=1)[:, :size]  # (queries, size)
    listed = np.zeros(relevant.shape, dtype=bool)
    np.put_along_axis(listed, best, True, axis=1)
    return listed


def complete_scores(scores: NDArray, listed: NDArray[np.bool_], cheap: NDArray) -> NDArray[np.float64]:
    """The encoder's scores of the listed items; all others below them, in the cheap scorer's order.

    Args:
        scores: Of the encoder, `(queries, gallery)`; read where `listed`.
        listed: Which items are on the list, at least one per query, `(queries, gallery)`.
        cheap: Cheap scores, `(queries, gallery)`.
    """
    lowest = np.where(listed, scores, np.inf).min(axis=1, keepdims=True)  # (queries, 1)
    cheap_best = cheap.max(axis=1, keepdims=True)  # (queries, 1)
    return np.where(listed, scores, lowest - 1 - (cheap_best - cheap))


def recall_errors(
    ranks: NDArray[np.int_], exact_ranks: NDArray[np.int_], cutoffs: Sequence[int]
) -> dict[str, RecallError]:
    """Error of Recall@K, by K as a string, from the two ranks of the same queries, `(queries,)` each."""
    n, errors = len(ranks), {}
    for k in cutoffs:
        gained, lost = (
            int(((ranks <= k) & (exact_ranks > k)).sum()),
            int(((ranks > k) & (exact_ranks <= k)).sum()),
        )
        gain_low, gain_high = wilson_interval(gained, n, confidence=0.975)
        loss_low, loss_high = wilson_interval(lost, n, confidence=0.975)
        errors[str(k)] = RecallError(
            difference=(gained - lost) / n, low=gain_low - loss_high, high=gain_high - loss_low, n=n
        )
    return errors
