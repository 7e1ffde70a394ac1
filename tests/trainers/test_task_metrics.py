"""Accuracy during training, batch by batch, against counting."""

import pytest
import torch
from transformers import EvalPrediction

from rmcl_hub.trainers.task_metrics import TaskAccuracy


def evaluate(accuracy, batches):
    results = [
        accuracy(EvalPrediction(torch.tensor(logits), torch.tensor(labels)), place == len(batches) - 1)
        for place, (logits, labels) in enumerate(batches)
    ]
    assert all(result == {} for result in results[:-1])
    return results[-1]["accuracy"]


def test_classes_count_right_predictions_over_batches_of_any_size():
    accuracy = TaskAccuracy()
    batches = [([[2.0, 1.0], [0.0, 1.0], [3.0, 4.0]], [0, 1, 0]), ([[1.0, 0.0]], [0])]
    assert evaluate(accuracy, batches) == 3 / 4
    assert evaluate(accuracy, batches[1:]) == 1.0  # the next evaluation starts anew


def test_soft_labels_give_the_score_of_the_predicted_answer():
    batches = [
        ([[1.0, 3.0, 2.0], [3.0, 0.0, 0.0]], [[1.0, 0.3, 0.0], [0.6, 0.0, 1.0]]),
        ([[0.0, 0.0, 1.0]], [[0.0, 0.0, 0.0]]),  # its answers are outside the list
    ]
    assert evaluate(TaskAccuracy(), batches) == pytest.approx((0.3 + 0.6 + 0.0) / 3)


def test_a_constant_score_is_not_right():
    """The true text of a group stands first, where a bare argmax would find it."""
    assert evaluate(TaskAccuracy(), [(torch.zeros(4, 16).tolist(), [0] * 4)]) == 0.0


def test_logits_in_half_precision_are_taken():
    logits = torch.tensor([[0.0, 1.0]], dtype=torch.bfloat16)
    result = TaskAccuracy()(EvalPrediction(logits, torch.tensor([1])), compute_result=True)
    assert result == {"accuracy": 1.0}
