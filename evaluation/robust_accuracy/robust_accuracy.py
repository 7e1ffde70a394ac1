"""Robust accuracy as a metric of the `evaluate` library; README.md is its card."""

import datasets
import evaluate
from numpy.typing import NDArray

from rmcl_hub.evaluation.metrics import robust_accuracy

_DESCRIPTION = (
    "Share of all examples that are answered right before AND after an attack. An example that was wrong "
    "and becomes right under attack does not count."
)

_INPUTS = """
Args:
    clean_correct: Whether each clean prediction is right, bools.
    adversarial_correct: The same under attack, same order.

Returns:
    robust_accuracy: In [0, 1], higher is better.
"""


class RobustAccuracy(evaluate.Metric):
    """`rmcl_hub.evaluation.metrics.robust_accuracy`, accumulated over batches and processes."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "clean_correct": datasets.Value("bool"),
                    "adversarial_correct": datasets.Value("bool"),
                }
            ),
            reference_urls=["https://arxiv.org/abs/1706.06083"],
        )

    def _compute(self, clean_correct: NDArray, adversarial_correct: NDArray) -> dict[str, float]:
        return {"robust_accuracy": robust_accuracy(clean_correct, adversarial_correct)}
