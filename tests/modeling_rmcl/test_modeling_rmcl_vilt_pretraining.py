import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from rmcl_hub.modeling_rmcl import RMCLViltConfig, RMCLViltForPreTraining
from rmcl_hub.modeling_rmcl.word_patch_alignment import word_patch_alignment_loss


@pytest.fixture
def model(tiny_config, randomised):
    tiny_config.itc_weight = 0.5
    return randomised(RMCLViltForPreTraining(tiny_config))


@pytest.fixture
def targets(mixed_batch):
    masked = mixed_batch["input_ids"].clone()
    labels = torch.full_like(masked, -100)
    for row, place in ((0, 3), (0, 5), (2, 1)):
        labels[row, place] = masked[row, place]
        masked[row, place] = 4
    return {
        "mlm_input_ids": masked,
        "mlm_labels": labels,
        "itm_image_index": torch.tensor([0, 2, 1]),
        "itm_labels": torch.tensor([1, 0, 0]),
    }


def test_without_targets_it_returns_the_joint_embedding(model, mixed_batch, tiny_config):
    output = model(**mixed_batch)
    assert output.loss is None
    assert output.embeds.shape == (3, tiny_config.projection_dim)
    assert_close(output.embeds, model.projector(model.vilt(**mixed_batch).pooler_output))
    assert_close(output.embeds, model.joint_embedding(**mixed_batch))


def test_masked_language_model_loss(model, mixed_batch, targets):
    output = model(**mixed_batch, **targets)
    states = model.vilt(**{**mixed_batch, "input_ids": targets["mlm_input_ids"]}).last_hidden_state[:, :9]
    logits = model.mlm_score(states)
    assert_close(output.mlm_loss, F.cross_entropy(logits.flatten(0, 1), targets["mlm_labels"].flatten()))


def test_matching_and_alignment_losses(model, mixed_batch, targets):
    """Texts 1 and 2 meet each other's images; words are all but [CLS], [SEP] and padding."""
    output = model(**mixed_batch, **targets)
    swapped = dict(mixed_batch)
    for name in ("pixel_values", "pixel_mask"):
        swapped[name] = mixed_batch[name][[0, 2, 1]]
    encoded = model.vilt(**swapped)
    logits = model.itm_score(encoded.pooler_output)
    assert_close(output.itm_loss, F.cross_entropy(logits, torch.tensor([1, 0, 0])))
    expected = 0.0
    for row, (length, patches, sign) in enumerate(((9, 4, 1), (5, 8, -1), (7, 6, -1))):
        states = encoded.last_hidden_state[row]
        words, image = states[1 : length - 1][None], states[10 : 10 + patches][None]
        full = [torch.ones(1, n, dtype=torch.bool) for n in (words.shape[1], patches)]
        expected += sign * word_patch_alignment_loss(words, image, *full, torch.ones(1)) / 3
    assert_close(output.wpa_loss, expected, atol=1e-6, rtol=1e-4)


def test_contrast_of_the_modalities_alone(model, mixed_batch, targets):
    output = model(**mixed_batch, **targets)
    text = {name: value for name, value in mixed_batch.items() if not name.startswith("pixel")}
    image = {name: value for name, value in mixed_batch.items() if name.startswith("pixel")}
    texts, images = model.text_embedding(**text), model.image_embedding(**image)
    assert_close(texts.norm(dim=1), torch.ones(3))
    assert_close(images.norm(dim=1), torch.ones(3))
    logits = texts @ images.T * model.itc_log_scale.exp()
    diagonal = [logits.log_softmax(dim=dim).diagonal().mean() for dim in (0, 1)]
    assert_close(output.itc_loss, -sum(diagonal) / 2)


def test_total_is_the_weighted_sum(model, mixed_batch, targets):
    output = model(**mixed_batch, **targets)
    expected = output.mlm_loss + output.itm_loss + 0.1 * output.wpa_loss + 0.5 * output.itc_loss
    assert_close(output.loss, expected)


@pytest.mark.parametrize(
    ("kept", "computed"),
    [(("mlm_input_ids", "mlm_labels"), {"mlm_loss"}), (("itm_image_index", "itm_labels"), {"itm_loss"})],
)
def test_each_loss_needs_only_its_own_targets(kept, computed, tiny_config, mixed_batch, targets):
    tiny_config.wpa_weight = 0.0
    model = RMCLViltForPreTraining(tiny_config)
    output = model(**mixed_batch, **{name: targets[name] for name in kept})
    assert set(output) == {"loss"} | computed


@pytest.mark.parametrize("given", ["mlm_input_ids", "mlm_labels", "itm_image_index", "itm_labels"])
def test_targets_come_in_pairs(given, model, mixed_batch, targets):
    with pytest.raises(ValueError, match="one of two is missing"):
        model(**mixed_batch, **{given: targets[given]})


def test_missing_text_mask_means_all_tokens(model, mixed_batch, targets):
    mixed_batch["attention_mask"] = torch.ones_like(mixed_batch["input_ids"])
    expected = model(**mixed_batch, **targets)
    output = model(**{**mixed_batch, "attention_mask": None}, **targets)
    assert_close(output.loss, expected.loss)


def test_batch_without_masked_words_has_finite_loss(model, mixed_batch, targets):
    targets["mlm_labels"].fill_(-100)
    output = model(**mixed_batch, **targets)
    assert output.mlm_loss == 0
    output.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_pretraining_moves_every_parameter_but_the_projector(model, mixed_batch, targets):
    model(**mixed_batch, **targets).loss.backward()
    still = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    projector = {name for name, _ in model.named_parameters() if name.startswith("projector.")}
    # The key bias adds the same number to all scores of a query, which softmax ignores up to rounding.
    assert {name for name in still if not name.endswith("attention.key.bias")} == projector


def test_pretraining_learns_a_small_batch(tiny_config, mixed_batch, targets):
    """Fifty steps on one batch: every loss falls."""
    tiny_config.itc_weight = 1.0
    model = RMCLViltForPreTraining(tiny_config)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(50):
        output = model(**mixed_batch, **targets)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append({name: value.item() for name, value in output.items()})
    assert losses[-1]["mlm_loss"] < 0.1 * losses[0]["mlm_loss"]
    assert losses[-1]["itm_loss"] < 0.3 * losses[0]["itm_loss"]
    assert losses[-1]["itc_loss"] < 0.5 * losses[0]["itc_loss"]
    assert losses[-1]["wpa_loss"] < losses[0]["wpa_loss"]


def test_contrast_scale_starts_at_the_temperature(model):
    fresh = RMCLViltForPreTraining(model.config)
    assert fresh.itc_log_scale.exp().item() == pytest.approx(1 / 0.07, rel=1e-5)


def test_single_modality_embeddings_need_their_projections(tiny_config, mixed_batch):
    model = RMCLViltForPreTraining(tiny_config)
    assert not any("_projection" in name or "itc" in name for name in model.state_dict())
    with pytest.raises(ValueError, match="itc_weight is 0"):
        model.image_embedding(pixel_values=mixed_batch["pixel_values"])
    with pytest.raises(ValueError, match="itc_weight is 0"):
        model.text_embedding(input_ids=mixed_batch["input_ids"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"projector": "simclr"}, "'moco' or 'barlow_twins', got 'simclr'"),
        ({"contrastive_temperature": 0.0}, "must be positive, got 0.0"),
        ({"itc_weight": -1.0}, r"itc_weight=-1\.0"),
        ({"momentum": 1.5}, r"momentum must lie in \[0, 1\], got 1\.5"),
    ],
)
def test_bad_configuration_is_explained(fields, message):
    with pytest.raises(ValueError, match=message):
        RMCLViltConfig(**fields)


def test_barlow_twins_projector_is_a_configuration(tiny_config, mixed_batch):
    tiny_config.projector = "barlow_twins"
    model = RMCLViltForPreTraining(tiny_config)
    embeds = model(**mixed_batch).embeds
    assert_close(embeds.mean(dim=0), torch.zeros(16), atol=1e-5, rtol=0)
    assert math.isclose(embeds.var(dim=0, unbiased=False).mean().item(), 1.0, rel_tol=0.1)
