"""Probes on models whose hidden gradients, randomness and sensitivity are known."""

import pytest
import torch
from torch import nn

from rmcl_hub.attacks.base import AttackResult
from rmcl_hub.evaluation import probes
from rmcl_hub.evaluation.attack_loop import batches
from rmcl_hub.evaluation.victims import Victim


class Linear(nn.Module):
    """Logits (0, w . pixels of the first channel): linear in every pixel."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(4, 5, generator=generator))

    def forward(self, batch):
        score = (batch["pixel_values"][:, 0] * self.weight).sum(dim=(1, 2))
        return torch.stack([torch.zeros_like(score), score], dim=1)


def victim_of(module, logits=lambda embedding, batch: embedding):
    return Victim(module, module, logits)


@pytest.fixture
def prepared(rows, collate):
    """Two batches of the toy rows, labelled with the linear model's own answers."""
    module = Linear().eval()
    victim = victim_of(module)
    found = [batch for _, batch in batches(victim, rows, collate, 6)]
    return victim, [{**batch, "labels": victim.predict(batch).argmax(dim=1)} for batch in found]


class TestAnswerSpread:
    def test_none_for_a_function_of_the_batch(self, prepared):
        victim, (batch, _) = prepared
        assert probes.answer_spread(victim, batch) == 0.0

    def test_of_noise(self, prepared):
        victim, (batch, _) = prepared
        values = iter([0.0, 0.3, -0.2, 0.1, 0.0])
        noisy = victim_of(victim.module, lambda embedding, batch: 0 * embedding + next(values))
        assert probes.answer_spread(noisy, batch) == pytest.approx(0.5)


class TestBatchDependence:
    def test_of_a_model_that_looks_at_its_neighbours(self, prepared, rows, collate):
        victim, (batch, _) = prepared
        assert probes.batch_dependence(victim, collate, rows[:6], batch) < 1e-5
        shared = victim_of(victim.module, lambda embedding, batch: embedding + 0.5 * len(embedding))
        assert probes.batch_dependence(shared, collate, rows[:6], batch) == pytest.approx(2.5, abs=1e-5)


class TestGradientHealth:
    def test_of_an_honest_model(self, prepared):
        victim, found = prepared
        assert probes.gradient_health(victim, found) == {
            "zero_share": 0.0,
            "probabilities": False,
            "num_examples": 12,
        }

    def test_only_right_answers_count(self, prepared):
        victim, found = prepared
        wrong = [{**batch, "labels": 1 - batch["labels"]} for batch in found]
        assert probes.gradient_health(victim, wrong)["zero_share"] is None

    def test_of_rounded_pixels(self, prepared):
        """A step function has gradient zero wherever it has one."""
        victim, found = prepared
        rounded = victim_of(
            victim.module, lambda embedding, batch: embedding.round() * 10 + embedding.detach()
        )
        labelled = [{**b, "labels": rounded.predict(b).argmax(dim=1)} for b in found]
        assert probes.gradient_health(rounded, labelled)["zero_share"] == 1.0

    def test_of_not_a_number(self, prepared):
        victim, found = prepared

        def logits(embedding, batch):
            zero = (embedding - embedding.detach()).abs().sum(dim=1, keepdim=True)
            return embedding + zero.sqrt()  # infinite slope of the root at zero, times zero

        broken = victim_of(victim.module, logits)
        assert probes.gradient_health(broken, found)["zero_share"] == 1.0

    def test_of_probabilities(self, prepared):
        victim, found = prepared
        softmax = victim_of(victim.module, lambda embedding, batch: embedding.softmax(dim=1))
        health = probes.gradient_health(softmax, found)
        assert health["probabilities"]
        assert health["zero_share"] == 0.0


class TestLossSurface:
    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_along_the_gradient_of_a_linear_model(self, prepared, norm):
        """The margin falls by epsilon times the dual norm of the weights, in the normalised space."""
        victim, found = prepared
        surface = probes.loss_surface(victim, found, 0.1, norm)
        weight = victim.module.weight.detach()[:, :-1]  # the last column is padding
        slope = float(weight.abs().sum() if norm == "linf" else weight.norm())
        margins = torch.cat([victim.predict(batch)[:, 1].abs() for batch in found])
        expected = [
            float(nn.functional.softplus(-(margins - share * 0.2 * slope)).mean())
            for share in surface["shares"]
        ]
        assert surface["along_gradient"] == pytest.approx(expected, rel=1e-4)
        assert surface["along_random"][-1] < surface["along_gradient"][-1]
        assert surface["agree_share"] == 1.0

    def test_a_gradient_that_points_the_wrong_way(self, prepared):
        victim, found = prepared
        lying = victim_of(victim.module, lambda embedding, batch: 2 * embedding.detach() - embedding)
        assert probes.loss_surface(lying, found, 0.01, "linf")["agree_share"] == 0.0

    def test_leaves_the_global_random_state(self, prepared):
        victim, found = prepared
        torch.manual_seed(5)
        expected = torch.rand(1)
        torch.manual_seed(5)
        probes.loss_surface(victim, found, 0.01, "linf")
        assert torch.rand(1) == expected


class TestOtherImages:
    def test_counts_examples_that_no_picture_of_the_batch_changes(self, prepared):
        victim, found = prepared
        kept = []
        for batch in found:
            answers = victim.predict(batch).argmax(dim=1)
            kept += [bool((answers == label).all()) for label in batch["labels"]]
        assert probes.other_images(victim, found) == sum(kept) / len(kept)

    def test_of_a_model_that_does_not_look(self, prepared):
        victim, found = prepared
        blind = victim_of(victim.module, lambda embedding, batch: 0 * embedding + torch.tensor([0.0, 1.0]))
        labelled = [{**batch, "labels": torch.ones_like(batch["labels"])} for batch in found]
        assert probes.other_images(blind, labelled) == 1.0


def test_nothing_changes_at_radius_zero(prepared):
    victim, found = prepared
    assert probes.changed_at_zero(victim, found) == 0
    counter = iter(range(1000))
    restless = victim_of(
        victim.module, lambda embedding, batch: embedding + next(counter) * torch.tensor([1, 0])
    )
    assert probes.changed_at_zero(restless, found) == 12


def test_restarts_are_seeded_apart(prepared, monkeypatch):
    victim, found = prepared
    with monkeypatch.context() as patched:
        patched.setattr(
            probes, "robust_share", lambda victim, batches, attack, _: attack.generator.initial_seed()
        )
        assert probes.restart_spread(victim, found, 0.5, "linf", seeds=(3, 1, 4)) == [3, 1, 4]
    shares = probes.restart_spread(victim, found, 0.5, "linf")
    assert shares == [0.0, 0.0, 0.0]
    assert probes.restart_spread(victim, found, 0.0, "linf") == [1.0, 1.0, 1.0]


def test_robust_share_asks_for_right_answers_before_and_after(prepared):
    victim, found = prepared

    class Relabelled:
        def __call__(self, batch, objective):
            zeros = torch.zeros(len(batch["labels"]))
            return AttackResult({**batch, "pixel_values": -batch["pixel_values"]}, zeros, zeros, 0, 0)

    half = [{**found[0], "labels": 1 - found[0]["labels"]}, found[1]]
    assert probes.robust_share(victim, half, Relabelled(), None) == 0.0  # the first half was wrong before
