"""Word change rate as a metric of the `evaluate` library; README.md is its card."""

from collections.abc import Sequence

import datasets
import evaluate

from rmcl_hub.evaluation.metrics import word_change_rate

_DESCRIPTION = "Share of the words that an attack changed, per sentence, averaged over the sentences."

_INPUTS = """
Args:
    clean_texts: The sentences before the attack, strings of at least one word.
    adversarial_texts: The same after it, same order.

Returns:
    word_change_rate: At least 0, mostly below 1; lower is a subtler attack.
"""


class WordChangeRate(evaluate.Metric):
    """`rmcl_hub.evaluation.metrics.word_change_rate`, accumulated over batches and processes."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "clean_texts": datasets.Value("string"),
                    "adversarial_texts": datasets.Value("string"),
                }
            ),
            reference_urls=["https://arxiv.org/abs/2005.05909"],
        )

    def _compute(self, clean_texts: Sequence[str], adversarial_texts: Sequence[str]) -> dict[str, float]:
        return {"word_change_rate": word_change_rate(clean_texts, adversarial_texts)}
