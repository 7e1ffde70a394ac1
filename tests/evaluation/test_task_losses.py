import pytest
import torch
import torch.nn.functional as F

from rmcl_hub.evaluation.task_losses import cross_entropy_to_label, is_correct, margin_to_label


class TestSoftLabels:
    def test_cross_entropy_to_scores(self):
        logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0], [5.0, 0.0, 0.0]])
        scores = torch.tensor([[1.0, 0.5, 0.0], [0.0, 0.0, 0.3], [0.0, 0.0, 0.0]])
        log_probabilities = logits.log_softmax(dim=1)
        expected = [
            -(2 * log_probabilities[0, 0] + log_probabilities[0, 1]) / 3,
            -log_probabilities[1, 2],
            0.0,
        ]
        assert cross_entropy_to_label(logits, scores).tolist() == pytest.approx([float(x) for x in expected])

    def test_one_hot_scores_equal_class_indices(self):
        logits, labels = torch.randn(5, 4), torch.tensor([0, 3, 1, 2, 2])
        soft = cross_entropy_to_label(logits, F.one_hot(labels, 4).float())
        assert torch.allclose(soft, cross_entropy_to_label(logits, labels))

    def test_correct_is_a_best_scored_answer(self):
        scores = torch.tensor([[1.0, 0.3], [1.0, 1.0], [0.3, 0.6], [0.0, 0.0]])
        assert is_correct(torch.tensor([1, 1, 1, 0]), scores).tolist() == [False, True, True, False]


class TestMargin:
    def test_equals_a_loop_over_right_and_wrong_classes(self):
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(50, 6, generator=generator)
        scores = (torch.rand(50, 6, generator=generator) * 3).floor() / 3
        for row, soft, margin in zip(logits, scores, margin_to_label(logits, scores), strict=True):
            best = float(soft.max())
            right = [float(z) for z, s in zip(row, soft, strict=True) if s == best and best > 0]
            wrong = [float(z) for z, s in zip(row, soft, strict=True) if not (s == best and best > 0)]
            expected = max(wrong) - max(right) if right and wrong else 0.0
            assert float(margin) == pytest.approx(expected, abs=1e-6)

    def test_its_sign_is_the_verdict(self):
        logits = torch.randn(200, 4, generator=torch.Generator().manual_seed(1))
        labels = torch.arange(200) % 4
        assert torch.equal(margin_to_label(logits, labels) < 0, is_correct(logits.argmax(1), labels))

    def test_two_classes_are_the_logit_difference(self):
        logits = torch.tensor([[3.0, 1.0], [3.0, 1.0]])
        assert margin_to_label(logits, torch.tensor([0, 1])).tolist() == [-2.0, 2.0]

    def test_gradient_where_cross_entropy_has_none(self):
        logits = torch.tensor([[200.0, 0.0, -50.0]], requires_grad=True)
        label = torch.tensor([0])
        (flat,) = torch.autograd.grad(cross_entropy_to_label(logits, label).sum(), logits)
        (steep,) = torch.autograd.grad(margin_to_label(logits, label).sum(), logits)
        assert flat.abs().max() == 0
        assert steep.tolist() == [[-1.0, 1.0, 0.0]]

    def test_an_answer_outside_the_head_gives_zero_and_a_finite_gradient(self):
        logits = torch.randn(2, 3, requires_grad=True)
        margin = margin_to_label(logits, torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
        (gradient,) = torch.autograd.grad(margin.sum(), logits)
        assert margin[0] == 0
        assert gradient[0].tolist() == [0, 0, 0]
        assert gradient[1].abs().sum() == 2

    def test_one_logit_is_refused(self):
        with pytest.raises(ValueError, match=r"needs at least two classes, the head has 1 logit\(s\)"):
            margin_to_label(torch.zeros(2, 1), torch.zeros(2, dtype=torch.long))
