"""Recall@K as a metric of the `evaluate` library; README.md is its card."""

import datasets
import evaluate
from numpy.typing import NDArray

from rmcl_hub.evaluation.metrics import recall_at_k

_DESCRIPTION = (
    "Share of the queries with at least one right answer among their K best gallery items. Ties count "
    "against the model."
)

_INPUTS = """
Args:
    scores: One row per query, one score per gallery item, higher is better.
    relevant: Whether an item is a right answer, bools of the same shape; several per query are allowed.
    k: Cut-off, from 1 to the size of the gallery; 1 by default.

Returns:
    recall_at_k: In [0, 1], higher is better.
    gallery_size: Items per query, without which the figure means nothing.
"""


class RecallAtK(evaluate.Metric):
    """`rmcl_hub.evaluation.metrics.recall_at_k`, accumulated over batches and processes."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "scores": datasets.List(datasets.Value("float64")),
                    "relevant": datasets.List(datasets.Value("bool")),
                }
            ),
            reference_urls=["https://doi.org/10.1613/jair.3994"],
        )

    def _compute(self, scores: NDArray, relevant: NDArray, k: int = 1) -> dict[str, float]:
        return {"recall_at_k": recall_at_k(scores, relevant, k), "gallery_size": len(scores[0])}
