"""Attack success rate as a metric of the `evaluate` library; README.md is its card."""

import datasets
import evaluate
from numpy.typing import NDArray

from rmcl_hub.evaluation.metrics import attack_success_rate

_DESCRIPTION = "Share of the initially correct examples that an attack makes wrong."

_INPUTS = """
Args:
    clean_correct: Whether each clean prediction is right, bools.
    adversarial_correct: The same under attack, same order.

Returns:
    attack_success_rate: In [0, 1], lower is better for the model.
"""


class AttackSuccessRate(evaluate.Metric):
    """`rmcl_hub.evaluation.metrics.attack_success_rate`, accumulated over batches and processes."""

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
            reference_urls=["https://arxiv.org/abs/2005.05909"],
        )

    def _compute(self, clean_correct: NDArray, adversarial_correct: NDArray) -> dict[str, float]:
        return {"attack_success_rate": attack_success_rate(clean_correct, adversarial_correct)}
