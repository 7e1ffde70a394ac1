"""How right a model is during training: one number per evaluation, which chooses the checkpoint."""

from typing import Any

import torch.nn.functional as F
from transformers import EvalPrediction

from rmcl_hub.evaluation.metrics import recall_at_k, vqa_accuracy


class TaskAccuracy:
    """`compute_metrics` of a `Trainer` with `batch_eval_metrics`: adds up batch by batch and keeps no logits.

    VQA: mean soft score of the predicted answers. NLVR2 and SNLI-VE: share of right predictions. Retrieval:
    share of pictures whose own text scores above all of its group; a group holds 16 texts, so this is not
    Recall@1 of a gallery and much higher. Equal logits count as wrong where one label is right.
    """

    def __init__(self) -> None:
        self._sum = 0.0
        self._count = 0

    def __call__(self, prediction: EvalPrediction, compute_result: bool) -> dict[str, float]:
        """Add a batch: logits `(batch, classes)`; labels, class index `(batch,)` or soft scores `(batch,
        classes)`.

        Returns:
            `accuracy` in [0, 1] over all batches when `compute_result`, and a new count begins; else empty.
        """
        batch: Any = prediction  # of tensors here, of arrays without `batch_eval_metrics`
        logits, labels = batch.predictions.float().cpu(), batch.label_ids.cpu()
        if labels.ndim == 2:
            accuracy = vqa_accuracy(logits.argmax(dim=1), labels)
        else:
            accuracy = recall_at_k(logits, F.one_hot(labels, logits.shape[1]), k=1)
        self._sum += accuracy * len(labels)
        self._count += len(labels)
        if not compute_result:
            return {}
        result = {"accuracy": self._sum / self._count}
        self._sum, self._count = 0.0, 0
        return result
