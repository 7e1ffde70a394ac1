import pytest
import torch
from torch import nn

from rmcl_hub.evaluation.attack_loop import VQA_COLUMNS, batches
from rmcl_hub.evaluation.epsilon_curve import curve_of_batches, epsilon_curve
from rmcl_hub.evaluation.intervals import wilson_interval
from rmcl_hub.evaluation.tasks import Task
from rmcl_hub.evaluation.victims import Victim, as_victim


@pytest.fixture
def victim():
    """Logits (0, mean of the real pixels): broken exactly where epsilon exceeds the distance to 0."""
    module = nn.Linear(1, 1)

    def embed(batch):
        mask = batch["pixel_mask"][:, None].float()
        mean = (batch["pixel_values"] * mask).sum(dim=(1, 2, 3)) / (3 * mask.sum(dim=(1, 2, 3)))
        return torch.stack([torch.zeros_like(mean), mean], dim=1)

    return Victim(module, embed, lambda embedding, batch: embedding)


def test_equals_the_distance_to_the_boundary(victim, rows, collate):
    means = torch.stack([collate([row])["pixel_values"].sum() / (3 * 16) for row in rows])
    labelled = [{**row, "label": int(mean > 0)} for row, mean in zip(rows, means, strict=True)]
    task = Task("toy", collate, VQA_COLUMNS)
    radii = [0.0, *(float(r) for r in means.abs().sort().values / 2 + 1e-4)]
    curve = epsilon_curve(victim, None, labelled, task, radii, batch_size=5)
    expected = [float((means.abs() / 2 > radius).float().mean()) for radius in radii]
    assert curve["robust_accuracy"] == pytest.approx(expected)
    assert curve["epsilons"] == radii
    assert curve["num_examples"] == 12
    intervals = [wilson_interval(round(share * 12), 12) for share in expected]
    assert curve["low"] == pytest.approx([low for low, _ in intervals])
    assert curve["high"] == pytest.approx([high for _, high in intervals])


def test_what_a_smaller_radius_broke_stays_broken(victim, rows, collate, monkeypatch):
    """With an attack that works at the small radius only, the curve falls and the attack alone rises."""
    from rmcl_hub.attacks.base import AttackResult

    class Fading:
        def __init__(self, epsilon, num_steps, **options):
            self.epsilon = epsilon

        def __call__(self, batch, objective):
            sign = -1.0 if 0 < self.epsilon < 0.2 else 1.0
            zeros = torch.zeros(len(batch["text"]))
            return AttackResult({**batch, "pixel_values": sign * batch["pixel_values"]}, zeros, zeros, 0, 0)

    monkeypatch.setattr("rmcl_hub.evaluation.epsilon_curve.APGD", Fading)
    prepared = [batch for _, batch in batches(victim, rows, collate, 12)]
    prepared = [{**batch, "labels": victim.predict(batch).argmax(dim=1)} for batch in prepared]
    curve = curve_of_batches(victim, prepared, [0.5, 0.0, 0.1], "linf", 3)
    assert curve["epsilons"] == [0.0, 0.1, 0.5]
    assert curve["robust_accuracy"] == [1.0, 0.0, 0.0]
    assert curve["attack_alone"] == [1.0, 0.0, 1.0]


def test_radii_and_examples_are_needed(model, rows, collate):
    with pytest.raises(ValueError, match="a curve needs radii and examples, got 0 and"):
        epsilon_curve(as_victim(model.eval()), None, rows, Task("toy", collate, VQA_COLUMNS), [])
