"""Accumulated gradients: where parts add up to the whole batch, and what they are where they do not."""

import copy

import pytest
import torch
from torch.testing import assert_close
from transformers import TrainingArguments

from rmcl_hub.attacks.synonyms import SynonymTable
from rmcl_hub.datasets_scripts.task_collators import PairCollator
from rmcl_hub.trainers.arguments import training_arguments
from rmcl_hub.trainers.clean_views import CleanViewCollator, PreparedView
from rmcl_hub.trainers.guarded_trainer import GuardedTrainer
from rmcl_hub.trainers.pretraining_collator import PretrainingCollator

SGD = {"use_cpu": True, "disable_tqdm": True, "optim": "sgd", "max_grad_norm": 0.0, "max_steps": 2}


@pytest.fixture
def train(build_trainer, pairs, recorder, tmp_path):
    """A function that trains two steps of eight pairs; returns trainer, gradients and the batches."""

    def train(model, collator, size, attacks=None, **training):
        batches = []

        class Kept:
            epoch = property(lambda _: collator.epoch, lambda _, epoch: setattr(collator, "epoch", epoch))

            def __call__(self, examples):
                batches.append(collator(examples))
                return batches[-1]

        training |= {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        training |= {"learning_rate": 0.01, "max_steps": 2, "logging_steps": 1}
        if attacks == "vilt":
            args = training_arguments(TrainingArguments, str(tmp_path), {**SGD, **training})
            trainer = GuardedTrainer(copy.deepcopy(model), args, train_dataset=pairs, data_collator=Kept())
        else:
            given = {} if attacks is None else {"attacks": attacks}
            trainer = build_trainer(copy.deepcopy(model), Kept(), **given, **training)
        recorder.gradients = []
        trainer.add_callback(recorder)
        trainer.train()
        return trainer, recorder.gradients, batches

    return train


def losses(trainer):
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def assert_same(ours, theirs, tolerance=1e-6):
    """Gradients of all steps, within float32 of the largest."""
    for step, (own, other) in enumerate(zip(ours, theirs, strict=True)):
        scale = max(1.0, *(value.abs().max().item() for value in other.values()))
        assert own.keys() == other.keys()
        assert scale > 0.01
        for name, value in own.items():
            assert_close(value, other[name], atol=tolerance * scale, rtol=0, msg=f"{step}: {name}")


@pytest.mark.parametrize("size", [4, 2, 1])
def test_moco_adds_up(train, tiny_model, processor, size):
    """The negatives stay while gradients accumulate, and the step's keys enter the queue together."""
    model = tiny_model(momentum=0.5, contrastive_temperature=0.2, queue_size=24)
    whole, gradients, _ = train(model, PairCollator(processor, max_text_length=24), 8)
    parts, ours, _ = train(model, PairCollator(processor, max_text_length=24), size)
    assert_same(ours, gradients)
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-6, abs=1e-4)  # rounded by Transformers 4
    assert_close(parts.key_branch.state_dict(), whole.key_branch.state_dict(), atol=1e-6, rtol=1e-6)
    assert parts.key_branch.queue_pointer == 16
    assert parts.encoder_passes == whole.encoder_passes
    (curves, *_), (expected, *_) = parts.state.log_history, whole.state.log_history
    for name in ("attack_gain_image", "attack_gain_text", "delta_norm", "word_change_rate", "loss_image"):
        # A gain is a small difference of losses.
        assert curves[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-6), name


def test_mcl_with_moco_adds_up(train, tiny_model, processor):
    model = tiny_model(momentum=0.5, contrastive_temperature=0.2, queue_size=24)
    views = (PreparedView("image"), PreparedView("text"))
    collators = [CleanViewCollator(processor, SynonymTable.load(), max_text_length=24) for _ in range(2)]
    whole, gradients, _ = train(model, collators[0], 8, views)
    parts, ours, _ = train(model, collators[1], 4, views)
    assert_same(ours, gradients)
    assert_close(parts.key_branch.state_dict(), whole.key_branch.state_dict(), atol=1e-6, rtol=1e-6)


def test_matching_and_alignment_add_up_if_the_same_images_meet_the_texts(
    train, tiny_model, processor, in_parts
):
    """A text's wrong image is one of its micro-batch."""
    model = tiny_model(wpa_weight=0.1)
    collators = [PretrainingCollator(processor, ["itm"], max_text_length=24) for _ in range(2)]
    _, gradients, _ = train(model, in_parts(collators[0], 4), 8, "vilt")
    _, ours, _ = train(model, collators[1], 4, "vilt")
    assert_same(ours, gradients)


def test_barlow_twins_correlates_per_forward(train, tiny_model, processor):
    """The step is the mean of the micro-batches' losses, which is not the loss of the whole batch."""
    model = tiny_model(projector="barlow_twins")
    _, whole, _ = train(model, PairCollator(processor, max_text_length=24), 8)
    trainer, ours, batches = train(model, PairCollator(processor, max_text_length=24), 4)
    assert_is_mean_of_parts(model, trainer, ours[0], whole[0], batches)


def test_masked_words_and_the_contrast_of_modalities_are_means_per_forward(train, tiny_model, processor):
    model = tiny_model(itc_weight=1.0)
    collators = [PretrainingCollator(processor, ["mlm"], max_text_length=24) for _ in range(2)]
    _, whole, _ = train(model, collators[0], 8, "vilt")
    trainer, ours, batches = train(model, collators[1], 4, "vilt")
    assert_is_mean_of_parts(model, trainer, ours[0], whole[0], batches)


def assert_is_mean_of_parts(model, trainer, ours, whole, batches):
    for part in batches[:2]:
        (trainer.compute_loss(model.train(), part) / 2).backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_same([ours], [expected], tolerance=1e-5)
    largest = max(value.abs().max() for value in whole.values())
    assert max((ours[name] - whole[name]).abs().max() for name in ours) > 0.01 * largest


def test_the_parts_of_a_step_enter_the_queue_in_their_order(train, tiny_model, processor):
    model = tiny_model(momentum=1.0)
    trainer, _, batches = train(model, PairCollator(processor, max_text_length=24), 4)
    with torch.no_grad():
        branch = trainer.key_branch
        names = ("input_ids", "attention_mask", "token_type_ids", "pixel_values", "pixel_mask")
        keys = torch.cat([branch(**{name: batch[name] for name in names}) for batch in batches[:4]])
    assert_close(branch.queue[:16], keys, atol=1e-6, rtol=1e-6)
