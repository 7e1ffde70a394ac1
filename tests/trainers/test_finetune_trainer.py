"""The task's loss on clean and attacked batches, against loops and gradients written out by hand."""

from types import SimpleNamespace

import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from accelerate import debug_launcher
from accelerate.state import AcceleratorState
from PIL import Image
from torch import nn
from torch.testing import assert_close
from transformers import TrainingArguments, set_seed

from rmcl_hub.attacks.base import AttackResult, JointObjective, frozen
from rmcl_hub.attacks.pgd import PGD
from rmcl_hub.datasets_scripts.retrieval_collator import RetrievalCollator, caption_table
from rmcl_hub.datasets_scripts.task_collators import (
    EntailmentCollator,
    QuestionCollator,
    StatementCollator,
)
from rmcl_hub.evaluation.metrics import robust_accuracy
from rmcl_hub.evaluation.task_losses import cross_entropy_to_label
from rmcl_hub.modeling_rmcl import (
    RMCLViltForImageAndTextRetrieval,
    RMCLViltForImagesAndTextClassification,
    RMCLViltForQuestionAnswering,
)
from rmcl_hub.trainers.arguments import training_arguments
from rmcl_hub.trainers.attack_seeding import seed_attack
from rmcl_hub.trainers.finetune_trainer import FinetuneTrainer
from rmcl_hub.trainers.task_metrics import TaskAccuracy

ANSWERS = ["yes", "no", "red"]
TASKS = ("vqa", "nlvr2", "snli_ve", "retrieval")


@pytest.fixture
def rows(pairs):
    """Eight rows that serve every task; one picture is wider than the others."""
    pairs[2]["image"] = pairs[2]["image"].resize((48, 32), Image.Resampling.BILINEAR)
    for index, row in enumerate(pairs):
        text = row["captions"][0]
        row |= {"question": text, "statement": text, "hypothesis": text, "label": index % 2}
        row |= {"left_image": row["image"], "right_image": pairs[-1 - index]["image"]}
        row |= {"answers": [ANSWERS[index % 3], "rare"], "scores": [1.0 if index % 2 else 0.6, 0.3]}
    return pairs


@pytest.fixture
def collator(processor, rows):
    """A function from a task to its collator."""
    columns = ("image_id", "captions")
    captions = caption_table(pa.table({name: [row[name] for row in rows] for name in columns}))

    def build(task):
        if task == "vqa":
            return QuestionCollator(processor, ANSWERS)
        if task == "retrieval":
            return RetrievalCollator(processor, captions, num_negatives=3)
        return {"nlvr2": StatementCollator, "snli_ve": EntailmentCollator}[task](processor)

    return build


@pytest.fixture
def head(tiny_config):
    """A function from a task to its model, the same in every call, whose logits differ between examples."""

    def build(task):
        tiny_config.num_labels = 3
        tiny_config.num_images, tiny_config.modality_type_vocab_size = {"nlvr2": (2, 3)}.get(task, (1, 2))
        set_seed(0)
        model = {
            "vqa": RMCLViltForQuestionAnswering,
            "retrieval": RMCLViltForImageAndTextRetrieval,
        }.get(task, RMCLViltForImagesAndTextClassification)(tiny_config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        return model

    return build


@pytest.fixture
def build(head, collator, rows, tmp_path):
    """A function to a `FinetuneTrainer` on the CPU: SGD without clipping, so that weights show gradients."""

    def build(task, model=None, train_dataset=None, data_collator=None, eval_dataset=None, **given):
        settings = ("image_attack", "text_attack", "adversarial_weight", "eval_collator", "compute_metrics")
        attack = {name: given.pop(name) for name in settings if name in given}
        training = {
            "use_cpu": True,
            "disable_tqdm": True,
            "optim": "sgd",
            "learning_rate": 0.1,
            "max_grad_norm": 0.0,
            "weight_decay": 0.0,
            "max_steps": 1,
            "per_device_train_batch_size": 8,
            "logging_steps": 1,
            **given,
        }
        return FinetuneTrainer(
            model=model or head(task),
            args=training_arguments(TrainingArguments, str(tmp_path / "run"), training),
            train_dataset=train_dataset or rows,
            eval_dataset=eval_dataset,
            data_collator=data_collator or collator(task),
            **attack,
        )

    return build


def weights(trainer):
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


def logged(trainer, name):
    return [row[name] for row in trainer.state.log_history if name in row]


# The loss of a batch ----------------------------------------------------------------------------------------


def test_retrieval_loss_and_gradient_equal_those_of_separate_forwards(build, head, collator, rows):
    batch = collator("retrieval")(rows)
    trainer = build("retrieval")
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()

    model, scores = head("retrieval"), torch.zeros(8, 4)
    for picture in range(8):
        for text in range(4):
            real = int(batch["attention_mask"][picture, text].sum())  # alone a text needs no padding
            width = int(batch["pixel_mask"][picture, 0].sum())
            output = model(
                input_ids=batch["input_ids"][picture, text, :real][None],
                pixel_values=batch["pixel_values"][picture, :, :, :width][None],
            )
            scores[picture, text] = output.logits
    expected = F.cross_entropy(scores, torch.zeros(8, dtype=torch.long))
    expected.backward()
    assert expected > 0.1
    assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    for name, parameter in model.named_parameters():
        assert_close(trainer.model.get_parameter(name).grad, parameter.grad, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("task", TASKS)
def test_every_trained_weight_has_a_gradient(build, collator, rows, task):
    """Else processes would wait for each other's gradients for ever."""
    trainer = build(task)
    trainer.compute_loss(trainer.model, collator(task)(rows)).backward()
    assert not [name for name, parameter in trainer.model.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize(
    ("task", "attacked"), [("vqa", False), ("nlvr2", False), ("nlvr2", True), ("retrieval", True)]
)
def test_eight_accumulated_batches_of_one_equal_one_batch_of_eight(build, task, attacked):
    attack = {"image_attack": PGD(0.05, step_size=0.05, num_steps=1)} if attacked else {}
    whole = build(task, **attack)
    whole.train()
    parts = build(task, per_device_train_batch_size=1, gradient_accumulation_steps=8, **attack)
    start = weights(parts)
    parts.train()
    moved = 0.0
    for name, value in weights(parts).items():
        assert_close(value, weights(whole)[name], atol=3e-5, rtol=1e-3)
        moved = max(moved, (value - start[name]).abs().max().item())
    assert moved > 1e-3


@pytest.fixture
def forget_processes():
    """Accelerate keeps what it learned about the processes for good; other tests must not inherit it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("forget_processes")
def test_two_processes_do_what_one_does(build, rows, tmp_path):
    """With what could go wrong: two forwards per backward, patches embedded outside the model's forward, and
    an evaluation whose rows do not divide by two.
    """

    def run(name, batch_size):
        trainer = build(
            "retrieval",
            image_attack=PGD(0.05, step_size=0.05, num_steps=1),
            compute_metrics=TaskAccuracy(),
            eval_dataset=rows[:7],
            learning_rate=0.01,  # small, lest two steps make much of rounding
            max_steps=2,
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=2,
            eval_strategy="steps",
            eval_steps=1,
            batch_eval_metrics=True,
        )
        trainer.train()
        accuracy, processes = logged(trainer, "eval_accuracy"), trainer.args.world_size
        result = {"weights": trainer.model.state_dict(), "accuracy": accuracy, "processes": processes}
        torch.save(result, tmp_path / f"{name}-{trainer.args.process_index}.pt")

    debug_launcher(run, ("two", 4), num_processes=2)
    AcceleratorState._reset_state(reset_partial_state=True)
    run("one", 8)
    first, second, one = (torch.load(tmp_path / f"{name}.pt") for name in ("two-0", "two-1", "one-0"))
    assert (first["processes"], one["processes"]) == (2, 1)
    assert first["accuracy"] == pytest.approx(one["accuracy"])
    assert_close(first["weights"], second["weights"], atol=0, rtol=0)
    assert_close(first["weights"], one["weights"], atol=1e-4, rtol=1e-3)


@pytest.mark.usefixtures("forget_processes")
def test_half_precision_trains(build, image_attack, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # set by Transformers 4, for good
    whole = build("retrieval")
    whole.train()
    AcceleratorState._reset_state(reset_partial_state=True)
    half = build("retrieval", image_attack=image_attack, bf16=True)
    half.train()
    assert half.accelerator.mixed_precision == "bf16"
    assert image_attack.results[0].loss_before.dtype == torch.float32
    assert logged(half, "clean_loss") == pytest.approx(logged(whole, "loss"), rel=0.02)


# Adversarial training ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_the_attack_raises_the_loss_within_its_ball(build, image_attack, task):
    trainer = build(task, image_attack=image_attack, max_steps=2)
    trainer.train()
    for clean, result in zip(image_attack.clean, image_attack.results, strict=True):
        change = (result.batch["pixel_values"] - clean["pixel_values"]).abs().amax()
        assert 0 < change <= 2 * 0.1 + 1e-6  # normalised pixels are twice as wide
        assert (result.loss_after >= result.loss_before).all()
        assert (result.loss_after > result.loss_before + 1e-4).any()
    assert len(image_attack.results) == 2
    assert min(logged(trainer, "attack_gain")) > 1e-3


def test_an_attack_that_does_not_score_has_no_gain(build):
    trainer = build("vqa", image_attack=PGD(0.1, 0.1, num_steps=1, keep="last"))
    trainer.train()
    row = trainer.state.log_history[0]
    assert row["adversarial_loss"] > row["clean_loss"]
    assert "attack_gain" not in row
    for clean, adversarial, loss in zip(
        *(logged(trainer, name) for name in ("clean_loss", "adversarial_loss", "loss")), strict=True
    ):
        assert loss == pytest.approx((clean + adversarial) / 2, rel=1e-3)


def test_the_step_follows_the_weighted_gradients_of_clean_and_attacked_batch(
    build, head, collator, rows, image_attack
):
    trainer = build("nlvr2", image_attack=image_attack, adversarial_weight=3.0)
    trainer.train()
    (attacked,) = image_attack.results
    model = head("nlvr2")

    def gradients(batch):
        inputs = {name: value for name, value in batch.items() if name != "text"}
        return torch.autograd.grad(model(**inputs).loss, list(model.parameters()))

    for (name, before), clean, adversarial in zip(
        model.named_parameters(), gradients(image_attack.clean[0]), gradients(attacked.batch), strict=True
    ):
        expected = before - 0.1 * (clean + 3 * adversarial) / 4
        assert_close(trainer.model.get_parameter(name), expected, atol=1e-5, rtol=1e-5)


def test_what_is_attacked_is_the_cross_entropy_of_the_labels(build, image_attack, head):
    build("vqa", image_attack=image_attack).train()
    batch, model = image_attack.clean[0], head("vqa").eval()
    inputs = {name: value for name, value in batch.items() if name not in ("text", "labels")}
    expected = cross_entropy_to_label(model(**inputs).logits, batch["labels"])
    assert_close(image_attack.results[0].loss_before, expected.detach(), atol=1e-5, rtol=1e-4)


def test_a_vanishing_ball_is_clean_training(build):
    clean, attacked = build("nlvr2"), build("nlvr2", image_attack=PGD(1e-9, step_size=1e-9, num_steps=2))
    clean.train()
    attacked.train()
    for name, value in weights(attacked).items():
        assert_close(value, weights(clean)[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("task", ["vqa", "nlvr2", "snli_ve"])
def test_words_and_pictures_are_attacked_together(build, image_attack, text_attack, task):
    for attack in (image_attack, text_attack):
        attack.threat_model = attack.attack.threat_model
    trainer = build(task, image_attack=image_attack, text_attack=text_attack)
    seen = []
    forward = trainer.model.forward
    trainer.model.forward = lambda **inputs: seen.append(inputs) or forward(**inputs)
    trainer.train()
    clean, attacked = seen
    assert text_attack.results[0].batch["text"] != text_attack.clean[0]["text"]
    assert_close(attacked["input_ids"], text_attack.results[0].batch["input_ids"])
    assert_close(attacked["pixel_values"], image_attack.results[0].batch["pixel_values"])
    assert not attacked["pixel_values"].equal(clean["pixel_values"])


def test_a_frozen_encoder_stays_while_its_head_trains_adversarially(build, head, image_attack):
    model = head("vqa")
    model.vilt.requires_grad_(False)
    trainer = build("vqa", model, image_attack=image_attack)
    before = weights(trainer)
    trainer.train()
    assert image_attack.results[0].loss_after.mean() > image_attack.results[0].loss_before.mean()
    for name, value in weights(trainer).items():
        assert value.equal(before[name]) == name.startswith("vilt."), name
    assert not any(parameter.requires_grad for parameter in model.vilt.parameters())


def test_an_evaluation_is_clean(build, image_attack, rows):
    trainer = build("nlvr2", image_attack=image_attack, eval_dataset=rows)
    trainer.evaluate()
    assert not image_attack.results


class DrawingAttack:
    """Draws a number, and changes nothing."""

    def __init__(self):
        self.generator = torch.Generator()
        self.drawn = []

    def __call__(self, batch, objective):
        self.drawn.append(torch.rand((), generator=self.generator).item())
        loss = objective(batch).detach()
        return AttackResult(dict(batch), loss, loss, len(loss), 0)


def test_an_attack_draws_anew_in_every_micro_batch_and_a_resumed_run_repeats_it(build, tmp_path):
    schedule = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 3}
    schedule |= {"save_strategy": "steps", "save_steps": 1}

    def run(resume=None, seed=42):
        attack = DrawingAttack()
        trainer = build("nlvr2", image_attack=attack, seed=seed, **schedule)
        trainer.train(resume_from_checkpoint=resume)
        return attack.drawn

    whole = run()
    assert len(set(whole)) == 6
    assert run(str(tmp_path / "run" / "checkpoint-1")) == whole[2:]
    assert not set(run(seed=7)) & set(whole)


def test_a_seed_and_a_place_fix_the_draws():
    def draw(*place, seed=0):
        attack = SimpleNamespace(generator=torch.Generator())
        seed_attack(attack, seed, place)
        return torch.rand((), generator=attack.generator).item()

    assert draw(1, 0, 0) == draw(1, 0, 0)
    assert len({draw(1, 0, 0), draw(2, 0, 0), draw(1, 1, 0), draw(1, 0, 1), draw(1, 0, 0, seed=1)}) == 5
    seed_attack(None, 0, (0,))  # no attack, or one that draws nothing


# A problem where robustness must be learned -----------------------------------------------------------------


class LinearHead(nn.Module):
    """Two classes from the pixels, with the interface of a head."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(1, 1)
        self.classifier = nn.Linear(3 * 4 * 4, 2)
        nn.init.zeros_(self.classifier.weight)

    def get_input_embeddings(self):
        return self.words

    def joint_representation(self, pixel_values, **_):
        return pixel_values.flatten(1)

    def logits_from_joint(self, joint):
        return self.classifier(joint)

    def forward(self, pixel_values, labels=None, **_):
        logits = self.logits_from_joint(self.joint_representation(pixel_values))
        return SimpleNamespace(loss=F.cross_entropy(logits, labels), logits=logits)


def tsipras_rows(count):
    """One pixel says the class nine times of ten; many others say it a little, together always.

    The construction of Tsipras et al. (arXiv:1805.12152): what is learned first is not robust.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    sign = (2 * labels - 1).float()
    weak = 0.08 * sign[:, None] + 0.05 * torch.randn(count, 48, generator=generator)
    weak[:, 0] = 0.8 * sign * (1 - 2 * (torch.rand(count, generator=generator) < 0.1).float())
    return [
        {"pixels": pixels.view(3, 4, 4), "label": int(label)}
        for pixels, label in zip(weak, labels, strict=True)
    ]


def collate_pixels(rows):
    pixels = torch.stack([row["pixels"] for row in rows])
    return {
        "pixel_values": pixels,
        "pixel_mask": torch.ones_like(pixels[:, 0], dtype=torch.long),
        "input_ids": torch.zeros(len(rows), 1, dtype=torch.long),
        "labels": torch.tensor([row["label"] for row in rows]),
    }


def test_adversarial_training_makes_robust_where_clean_training_does_not(build):
    rows, attack = tsipras_rows(256), PGD(0.1, step_size=0.05, num_steps=4)  # 0.2 in these pixels

    def robustness(**given):
        trainer = build(
            "vqa",
            LinearHead(),
            train_dataset=rows,
            data_collator=collate_pixels,
            per_device_train_batch_size=64,
            max_steps=60,
            learning_rate=1.0,
            save_strategy="no",
            **given,
        )
        trainer.train()
        model, batch = trainer.model, collate_pixels(rows)
        objective = JointObjective(
            lambda batch: model.joint_representation(batch["pixel_values"]),
            lambda joint, batch: cross_entropy_to_label(model.logits_from_joint(joint), batch["labels"]),
            model.get_input_embeddings(),
        )
        with frozen(model):
            attacked = attack(batch, objective).batch
        correct = [(model(**inputs).logits.argmax(dim=1) == batch["labels"]) for inputs in (batch, attacked)]
        return correct[0].float().mean().item(), robust_accuracy(*correct)

    clean, robust = robustness()
    assert clean == 1.0
    assert robust < 0.3
    clean, robust = robustness(image_attack=attack)
    assert clean > 0.85
    assert robust > 0.8
