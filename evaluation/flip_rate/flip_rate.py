"""Flip rate as a metric of the `evaluate` library; README.md is its card."""

import datasets
import evaluate
from numpy.typing import NDArray

from rmcl_hub.evaluation.metrics import flip_rate

_DESCRIPTION = "Share of all examples whose prediction changes under attack, whether it was right or wrong."

_INPUTS = """
Args:
    clean_predictions: Predicted class per example, integers.
    adversarial_predictions: The same under attack, same order.

Returns:
    flip_rate: In [0, 1], lower is better for the model.
"""


class FlipRate(evaluate.Metric):
    """`rmcl_hub.evaluation.metrics.flip_rate`, accumulated over batches and processes."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "clean_predictions": datasets.Value("int64"),
                    "adversarial_predictions": datasets.Value("int64"),
                }
            ),
            reference_urls=["https://arxiv.org/abs/2005.05909"],
        )

    def _compute(self, clean_predictions: NDArray, adversarial_predictions: NDArray) -> dict[str, float]:
        return {"flip_rate": flip_rate(clean_predictions, adversarial_predictions)}
