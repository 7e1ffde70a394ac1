import pytest
import torch
from torch.testing import assert_close

from rmcl_hub.modeling_rmcl import (
    RMCLViltForImageAndTextRetrieval,
    RMCLViltForImagesAndTextClassification,
    RMCLViltForMaskedLM,
    RMCLViltForPreTraining,
    RMCLViltForQuestionAnswering,
)

PAIR_HEADS = [RMCLViltForQuestionAnswering, RMCLViltForImageAndTextRetrieval, RMCLViltForPreTraining]


@pytest.mark.parametrize("model_class", PAIR_HEADS)
def test_logits_come_from_the_joint_representation(model_class, tiny_config, mixed_batch, randomised):
    model = randomised(model_class(tiny_config))
    joint = model.joint_representation(**mixed_batch)
    assert_close(joint, model.vilt(**mixed_batch).pooler_output)
    if model_class is not RMCLViltForPreTraining:
        assert_close(model(**mixed_batch).logits, model.logits_from_joint(joint))


@pytest.mark.parametrize("model_class", PAIR_HEADS)
def test_heads_take_word_vectors(model_class, tiny_config, mixed_batch, randomised):
    model = randomised(model_class(tiny_config))
    words = model.get_input_embeddings()(mixed_batch["input_ids"])
    rest = {name: value for name, value in mixed_batch.items() if name != "input_ids"}
    assert_close(
        model.joint_representation(**rest, inputs_embeds=words), model.joint_representation(**mixed_batch)
    )


def test_masked_lm_takes_word_vectors_and_ignores_unscored_places(tiny_config, mixed_batch, randomised):
    model = randomised(RMCLViltForMaskedLM(tiny_config))
    labels = torch.full((3, 9), -100)
    labels[0, 2], labels[2, 1] = 7, 8
    output = model(**mixed_batch, labels=labels)
    assert output.logits.shape == (3, 9, tiny_config.vocab_size)
    scores = output.logits.log_softmax(dim=-1)
    assert_close(output.loss, -(scores[0, 2, 7] + scores[2, 1, 8]) / 2)
    words = model.get_input_embeddings()(mixed_batch.pop("input_ids"))
    assert_close(model(**mixed_batch, inputs_embeds=words).logits, output.logits)


def test_nlvr2_joint_is_the_pooled_pair_with_each_image(nlvr2_config, nlvr2_batch, randomised):
    model = randomised(RMCLViltForImagesAndTextClassification(nlvr2_config))
    text = {name: value for name, value in nlvr2_batch.items() if not name.startswith("pixel")}
    parts = [
        model.vilt(
            **text,
            pixel_values=nlvr2_batch["pixel_values"][:, image],
            pixel_mask=nlvr2_batch["pixel_mask"][:, image],
            image_token_type_idx=image + 1,
        ).pooler_output
        for image in range(2)
    ]
    joint = model.joint_representation(**nlvr2_batch)
    assert_close(joint, torch.cat(parts, dim=1))
    assert_close(model(**nlvr2_batch).logits, model.logits_from_joint(joint))
    words = model.get_input_embeddings()(nlvr2_batch.pop("input_ids"))
    assert_close(model.joint_representation(**nlvr2_batch, inputs_embeds=words), joint)


def test_nlvr2_loss_and_gradient_of_both_images(nlvr2_config, nlvr2_batch, randomised):
    model = randomised(RMCLViltForImagesAndTextClassification(nlvr2_config))
    pixels = nlvr2_batch["pixel_values"].clone().requires_grad_()
    output = model(**{**nlvr2_batch, "pixel_values": pixels}, labels=torch.tensor([0, 1, 1]))
    scores = output.logits.log_softmax(dim=-1)
    assert_close(output.loss, -(scores[0, 0] + scores[1, 1] + scores[2, 1]) / 3)
    output.loss.backward()
    assert (pixels.grad.abs().sum(dim=(2, 3, 4)) > 0).all()


def test_nlvr2_wants_two_images_and_three_modality_types(tiny_config, nlvr2_batch, mixed_batch):
    with pytest.raises(ValueError, match="num_images=2, modality_type_vocab_size=3"):
        RMCLViltForImagesAndTextClassification(tiny_config)
    tiny_config.num_images, tiny_config.modality_type_vocab_size = 2, 3
    model = RMCLViltForImagesAndTextClassification(tiny_config)
    with pytest.raises(ValueError, match=r"Expected 2 images per text.* got \(3, 3, 48, 64\)"):
        model(**mixed_batch)
    nlvr2_batch["pixel_values"] = nlvr2_batch["pixel_values"][:, :1]
    with pytest.raises(ValueError, match=r"Expected 2 images per text.* got \(3, 1, 3, 48, 64\)"):
        model(**nlvr2_batch)


def test_question_answering_loss_sums_over_answers(tiny_config, mixed_batch, randomised):
    tiny_config.num_labels = 5
    model = randomised(RMCLViltForQuestionAnswering(tiny_config))
    labels = torch.tensor([[1, 0, 0.3, 0, 0], [0, 0, 0, 0, 0], [0, 0.6, 0, 0, 1]])
    output = model(**mixed_batch, labels=labels)
    probability = output.logits.sigmoid()
    losses = -(labels * probability.log() + (1 - labels) * (1 - probability).log())
    assert_close(output.loss, losses.sum(dim=1).mean())


def test_question_answering_with_one_right_answer_is_softmax_cross_entropy(
    tiny_config, mixed_batch, randomised
):
    tiny_config.num_labels, tiny_config.problem_type = 5, "single_label_classification"
    model = randomised(RMCLViltForQuestionAnswering(tiny_config))
    labels = torch.eye(5)[[2, 0, 4]]
    output = model(**mixed_batch, labels=labels)
    scores = output.logits.log_softmax(dim=-1)
    assert_close(output.loss, -(scores[0, 2] + scores[1, 0] + scores[2, 4]) / 3)


def test_retrieval_loss_is_cross_entropy_within_groups(tiny_config, mixed_batch, randomised):
    model = randomised(RMCLViltForImageAndTextRetrieval(tiny_config))
    twice = {name: value.repeat_interleave(2, dim=0) for name, value in mixed_batch.items()}
    twice["input_ids"] = twice["input_ids"].roll(1, dims=0)
    output = model(**twice, labels=torch.tensor([1, 0]))  # two groups of three pairs
    groups = output.logits.view(2, 3).log_softmax(dim=1)
    assert_close(output.loss, -(groups[0, 1] + groups[1, 0]) / 2)
    with pytest.raises(ValueError, match="6 pairs do not divide into 4 groups"):
        model(**twice, labels=torch.zeros(4, dtype=torch.long))


def test_retrieval_starts_from_the_true_pair_logit(tiny_config, mixed_batch, randomised):
    pretrained = randomised(RMCLViltForPreTraining(tiny_config))
    model = RMCLViltForImageAndTextRetrieval(tiny_config).eval()
    model.vilt.load_state_dict(pretrained.vilt.state_dict())
    model.copy_itm_head(pretrained.itm_score)
    expected = pretrained.logits_from_joint(pretrained.joint_representation(**mixed_batch))[:, 1:]
    assert_close(model(**mixed_batch).logits, expected)


def test_one_image_is_paired_with_every_text(tiny_config, mixed_batch, randomised):
    model = randomised(RMCLViltForImageAndTextRetrieval(tiny_config))
    assert model(**mixed_batch).logits_per_image is None
    names = ("pixel_values", "pixel_mask")
    one = {**mixed_batch, **{name: mixed_batch[name][1:2] for name in names}}
    pairs = {**mixed_batch, **{name: mixed_batch[name][1:2].repeat_interleave(3, dim=0) for name in names}}
    output = model(**one, labels=torch.tensor([1]))
    expected = model(**pairs, labels=torch.tensor([1]))
    assert_close(output.logits, expected.logits)
    assert_close(output.logits_per_image, expected.logits.T)
    assert_close(output.loss, expected.loss)
    two = {**mixed_batch, **{name: mixed_batch[name][:2] for name in names}}
    with pytest.raises(ValueError, match="got 3 texts and 2 images"):
        model(**two)
