"""Perturbation norm as a metric of the `evaluate` library; README.md is its card."""

from collections.abc import Sequence
from typing import Literal

import datasets
import evaluate

from rmcl_hub.evaluation.metrics import perturbation_norms

_DESCRIPTION = (
    "How far an attack moved the pixels of a picture, in the L-infinity or the L2 norm, for pixels in [0, "
    "1]: mean and maximum over the pictures."
)

_INPUTS = """
Args:
    clean: Pictures with pixels in [0, 1], each of shape (channels, height, width).
    adversarial: The same after the attack, same order.
    norm: "linf" (the default), the largest change of a pixel; or "l2", the Euclidean norm of all changes.

Returns:
    mean: Mean norm over the pictures.
    max: Largest norm, to be compared with the epsilon of the threat model.
"""

_PICTURE = datasets.List(datasets.List(datasets.List(datasets.Value("float64"))))  # channels, rows, columns


class PerturbationNorm(evaluate.Metric):
    """`rmcl_hub.evaluation.metrics.perturbation_norms`, accumulated over batches and processes."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "clean": datasets.List(datasets.List(datasets.List(datasets.Value("float64")))),
                    "adversarial": datasets.List(datasets.List(datasets.List(datasets.Value("float64")))),
                }
            ),
            reference_urls=["https://arxiv.org/abs/1608.04644"],
        )

    def _compute(
        self, clean: Sequence, adversarial: Sequence, norm: Literal["linf", "l2"] = "linf"
    ) -> dict[str, float]:
        norms = perturbation_norms(clean, adversarial, norm)
        return {"mean": float(norms.mean()), "max": float(norms.max())}
