"""VQA accuracy as a metric of the `evaluate` library; README.md is its card."""

import datasets
import evaluate
from numpy.typing import NDArray

from rmcl_hub.evaluation.metrics import vqa_accuracy

_DESCRIPTION = (
    "Mean soft score of the predicted answers: min(1, agreeing annotators / 3), averaged over the "
    "annotators, as in VQA v2."
)

_INPUTS = """
Args:
    predictions: Index of the predicted answer per question, integers.
    scores: Soft score of every answer in [0, 1], one row per question.

Returns:
    vqa_accuracy: In [0, 1], higher is better.
"""


class VQAAccuracy(evaluate.Metric):
    """`rmcl_hub.evaluation.metrics.vqa_accuracy`, accumulated over batches and processes."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("int64"),
                    "scores": datasets.List(datasets.Value("float64")),
                }
            ),
            reference_urls=["https://arxiv.org/abs/1612.00837"],
        )

    def _compute(self, predictions: NDArray, scores: NDArray) -> dict[str, float]:
        return {"vqa_accuracy": vqa_accuracy(predictions, scores)}
