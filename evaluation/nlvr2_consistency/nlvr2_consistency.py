"""NLVR2 consistency as a metric of the `evaluate` library; README.md is its card."""

import datasets
import evaluate
from numpy.typing import NDArray

from rmcl_hub.evaluation.metrics import nlvr2_consistency

_DESCRIPTION = (
    "Share of the statements that are judged right about every picture pair they are asked of, as in NLVR2."
)

_INPUTS = """
Args:
    correct: Whether each prediction is right, booleans.
    identifiers: NLVR2's identifier of the same example, such as dev-12-3-0.

Returns:
    nlvr2_consistency: In [0, 1], higher is better.
"""


class Nlvr2Consistency(evaluate.Metric):
    """`rmcl_hub.evaluation.metrics.nlvr2_consistency`, accumulated over batches and processes."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "correct": datasets.Value("bool"),
                    "identifiers": datasets.Value("string"),
                }
            ),
            reference_urls=["https://arxiv.org/abs/1811.00491"],
        )

    def _compute(self, correct: NDArray, identifiers: list[str]) -> dict[str, float]:
        return {"nlvr2_consistency": nlvr2_consistency(correct, identifiers)}
