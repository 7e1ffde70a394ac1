"""Planted frauds: ways to look robust that the audit must not believe."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from rmcl_hub.attacks.base import AttackResult
from rmcl_hub.attacks.threat_model import ThreatModel
from rmcl_hub.evaluation.attack_loop import VQA_COLUMNS
from rmcl_hub.evaluation.attack_suite import EFFORTS, Effort
from rmcl_hub.evaluation.robustness import evaluate_robustness
from rmcl_hub.evaluation.tasks import Task
from rmcl_hub.evaluation.victims import Victim, as_victim


@pytest.fixture
def honest(model):
    return as_victim(model.eval())


@pytest.fixture
def answered_rows(rows, collate, honest):
    """The rows with the model's own answers as labels: clean accuracy is one."""
    labels = honest.predict(collate(rows)).argmax(dim=1).tolist()
    return [{**row, "label": label} for row, label in zip(rows, labels, strict=True)]


@pytest.fixture
def evaluate(answered_rows, collate, tmp_path, monkeypatch):
    monkeypatch.setitem(EFFORTS, "quick", Effort(apgd_steps=8, square_queries=60, word_candidates=5))

    def run(victim, threat="linf-64", **options):
        task = Task("toy", collate, VQA_COLUMNS)
        options = {"defence": "none", "output_dir": tmp_path / "out", "effort": "quick", **options}
        return evaluate_robustness(
            victim, None, answered_rows, task, [threat], batch_size=6, **options
        ).record["threats"][threat]

    return run


def failed_rules(judged):
    return {check["rule"] for check in judged["checks"] if check["status"] == "fail"}


def robust_accuracy(judged):
    return judged["numbers"]["overall"]["robust_accuracy"]["value"]


def test_without_the_training_data_nothing_is_published(evaluate, honest):
    judged = evaluate(honest)
    assert failed_rules(judged) == set()
    assert robust_accuracy(judged) < 0.5
    assert (judged["verdict"], judged["publishable"]) == ("unreliable", False)
    assert [reason[:7] for reason in judged["reasons"]] == ["rule 18"]


def test_without_a_folder_nothing_is_published(evaluate, honest):
    judged = evaluate(honest, output_dir=None)
    assert [reason[:7] for reason in judged["reasons"]] == ["rule 18", "rule 28"]


def test_a_saturated_softmax_in_front_is_unreliable(evaluate, honest):
    """The answers are those of the honest model; only the gradients are gone."""
    masked = Victim(
        honest.module,
        honest.embed,
        lambda embedding, batch: (1e4 * honest.logits(embedding, batch)).softmax(dim=-1),
        honest.word_embeddings,
    )
    judged = evaluate(masked)
    assert judged["verdict"] == "unreliable"
    assert {7, 8, 22} <= failed_rules(judged)
    by_attack = {
        name: entry["numbers"]["robust_accuracy"]["value"] for name, entry in judged["attacks"].items()
    }
    assert by_attack["pgd"] > 0.8
    assert by_attack["square"] < by_attack["pgd"]  # no better a model than the honest one
    reasons = " ".join(judged["reasons"])
    assert "right answers have no gradient" in reasons
    assert "probabilities instead of logits" in reasons


def test_a_random_resize_defence_is_refused(evaluate, honest):
    class RandomResize(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = honest.module

        def embed(self, batch):
            size = int(torch.randint(2, 8, ()))
            pixels = F.interpolate(batch["pixel_values"], size=(size, size))
            mask = torch.ones(len(pixels), size, size)
            return self.inner.joint_representation(
                pixels, mask, batch["attention_mask"], input_ids=batch["input_ids"]
            )

    defended = RandomResize().eval()
    victim = Victim(defended, defended.embed, honest.logits, defence="random resize")
    with pytest.raises(ValueError, match=r"differs by .* between two forwards in eval mode"):
        evaluate(victim)


class NormalisedPGD:
    """Says 16/255 and means it in the space [-1, 1], where it is twice as much."""

    threat_model = ThreatModel("image", "linf", 16 / 255)

    def __call__(self, batch, objective):
        shift = 16 / 255 / 0.5 * 2 * (batch["pixel_mask"] != 0).unsqueeze(-3)
        attacked = {**batch, "pixel_values": batch["pixel_values"] - shift}
        zeros = torch.zeros(len(batch["text"]))
        return AttackResult(attacked, zeros, zeros, 1, 0)


def test_an_epsilon_in_normalised_space_is_refused(evaluate, honest):
    with pytest.raises(
        ValueError, match=r"'linf-16/mine' changed a picture by 0\.125.*allows 0\.06275.* 2 times as large"
    ):
        evaluate(honest, "linf-16", adaptive_attacks={"mine": NormalisedPGD()})


@pytest.mark.parametrize("leaked", [0, 1])
def test_a_picture_of_the_training_data_refuses_publication(evaluate, honest, answered_rows, leaked):
    generator = np.random.default_rng(0)

    def picture():
        return Image.fromarray(generator.integers(0, 255, (4, 4, 3), dtype=np.uint8))

    for index, row in enumerate(answered_rows):
        row["image"], row["image_id"] = picture(), f"test-{index}"
    train = [{"image": picture(), "image_id": f"train-{index}"} for index in range(5)]
    train += [{"image": row["image"], "image_id": "renamed"} for row in answered_rows[:leaked]]
    judged = evaluate(honest, train_dataset=train)
    assert judged["publishable"] is not bool(leaked)
    assert (18 in failed_rules(judged)) is bool(leaked)
    assert judged["verdict"] == ("unreliable" if leaked else "trusted")
    if leaked:
        assert "1 of 12 test pictures and 0 ids are in the training data too" in judged["reasons"][0]


def test_a_defence_that_nobody_attacked_is_not_adaptive(evaluate, honest):
    defended = Victim(honest.module, honest.embed, honest.logits, defence="JPEG")
    judged = evaluate(defended, defence=None)
    assert failed_rules(judged) == {16}
    assert "defence: JPEG; adaptive attacks: none" in judged["reasons"][0]
