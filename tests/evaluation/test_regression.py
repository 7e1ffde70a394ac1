"""A frozen tiny model, built from a formula, and the outcomes it had: they may change only on purpose."""

import pytest
import torch

from rmcl_hub.attacks.apgd import APGD
from rmcl_hub.attacks.pgd import PGD
from rmcl_hub.attacks.square import SquareAttack
from rmcl_hub.evaluation.attack_loop import VQA_COLUMNS
from rmcl_hub.evaluation.attack_suite import LossAttack
from rmcl_hub.evaluation.metrics import recall_at_k
from rmcl_hub.evaluation.task_attack import attack_task
from rmcl_hub.evaluation.tasks import Task
from rmcl_hub.modeling_rmcl import RMCLViltForQuestionAnswering

NUM_EXAMPLES = 24
NOT_BROKEN = {"pgd": {4, 7, 15}, "apgd": {4, 7, 15}, "square": set(range(NUM_EXAMPLES))}
LOSSES = {"pgd": 1.0418, "apgd": 1.0266, "square": 0.6393}
RECALLED = [0, 4, 8]


def wave(shape, step):
    """Numbers in [-1, 1] that look random and are the same on every machine and in every version."""
    places = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.sin(places * step + places**2 * 0.37).reshape(shape).float()


@pytest.fixture(scope="module")
def frozen_model():
    from rmcl_hub.modeling_rmcl import RMCLViltConfig

    config = RMCLViltConfig(
        vocab_size=12,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=16,
        num_labels=3,
        cls_token_id=1,
    )
    model = RMCLViltForQuestionAnswering(config).eval()
    with torch.no_grad():
        for number, (name, parameter) in enumerate(sorted(model.named_parameters())):
            centre = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.4 * wave(parameter.shape, 1.0 + number))
    return model


def collate(rows):
    index = torch.tensor([row["row"] for row in rows])
    pixels = 0.6 * wave((NUM_EXAMPLES, 3, 32, 32), 0.9)[index]
    ids = 1 + (index[:, None] * 5 + torch.arange(4)) % 11
    return {
        "pixel_values": pixels,
        "pixel_mask": torch.ones(len(rows), 32, 32, dtype=torch.long),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": index % 3,
        "text": ["a text"] * len(rows),
    }


@pytest.fixture(scope="module")
def rows():
    return [
        {"row": row, "question_id": f"q{row}", "concept": f"c{row}", "question_type": "all"}
        for row in range(NUM_EXAMPLES)
    ]


def test_outcomes_under_attack(frozen_model, rows):
    with torch.no_grad():
        batch = collate(rows)
        answers = frozen_model(
            **{k: v for k, v in batch.items() if k not in ("labels", "text")}
        ).logits.argmax(1)
    attacks = {
        "pgd": PGD.preset("standard", 16 / 255),
        "apgd": LossAttack(APGD(16 / 255, 10), "margin"),
        "square": LossAttack(SquareAttack(32 / 255, 50), "margin"),
    }

    def labelled(chosen):
        return {**collate(chosen), "labels": answers[[row["row"] for row in chosen]]}

    result = attack_task(
        frozen_model, rows, Task("toy", labelled, VQA_COLUMNS), attacks, batch_size=NUM_EXAMPLES
    )
    survivors = {
        name: {int(row.id[1:]) for row in result.outcomes if row.attack == name and row.adversarial_correct}
        for name in attacks
    }
    assert survivors == NOT_BROKEN
    losses = {
        name: sum(row.loss_after for row in result.outcomes if row.attack == name) / NUM_EXAMPLES
        for name in attacks
    }
    assert losses == pytest.approx(LOSSES, abs=2e-3)


def test_recall_of_the_joint_representation(frozen_model, rows):
    """Every text with every picture, scored by the first logit."""
    batch = collate(rows)
    scores = torch.zeros(NUM_EXAMPLES, NUM_EXAMPLES)
    with torch.no_grad():
        for text in range(NUM_EXAMPLES):
            fields = {name: batch[name][[text] * NUM_EXAMPLES] for name in ("input_ids", "attention_mask")}
            pictures = {name: batch[name] for name in ("pixel_values", "pixel_mask")}
            scores[text] = frozen_model(**fields, **pictures).logits[:, 0]
    relevant = torch.eye(NUM_EXAMPLES, dtype=torch.bool)
    assert [recall_at_k(scores, relevant, k) * NUM_EXAMPLES for k in (1, 5, 10)] == RECALLED
