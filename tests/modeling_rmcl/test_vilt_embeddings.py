import random

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from rmcl_hub.modeling_rmcl import RMCLViltForPreTraining, RMCLViltModel


@pytest.fixture
def model(tiny_config, randomised):
    tiny_config.image_size = 64  # 4 x 4 positions, so that every image of the mixed batch is interpolated
    return randomised(RMCLViltModel(tiny_config))


def single(batch, row):
    """One example of the mixed batch without any padding."""
    length = int(batch["attention_mask"][row].sum())
    height, width = int(batch["pixel_mask"][row, :, 0].sum()), int(batch["pixel_mask"][row, 0].sum())
    rows = {name: value[row : row + 1] for name, value in batch.items()}
    return {
        **{name: rows[name][:, :length] for name in ("input_ids", "attention_mask", "token_type_ids")},
        "pixel_values": rows["pixel_values"][:, :, :height, :width],
        "pixel_mask": rows["pixel_mask"][:, :height, :width],
    }


@pytest.mark.parametrize("row", range(3))
def test_padded_batch_equals_single_examples(row, model, mixed_batch):
    alone, padded = single(mixed_batch, row), mixed_batch
    assert_close(
        model.joint_representation(**padded)[row],
        model.joint_representation(**alone)[0],
        atol=1e-5,
        rtol=1e-5,
    )
    together, apart = model(**padded).last_hidden_state[row], model(**alone).last_hidden_state[0]
    length = alone["input_ids"].shape[1]
    assert_close(together[:length], apart[:length], atol=1e-5, rtol=1e-5)
    num_image_tokens = len(apart) - length
    start = padded["input_ids"].shape[1]
    assert_close(together[start : start + num_image_tokens], apart[length:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("row", range(3))
def test_content_of_padding_does_not_matter(row, model, mixed_batch):
    """Anything may stand in padded pixels and tokens."""
    dirty = dict(mixed_batch)
    dirty["input_ids"] = mixed_batch["input_ids"] + 5 * (1 - mixed_batch["attention_mask"])
    dirty["pixel_values"] = mixed_batch["pixel_values"] + 3.0 * (1 - mixed_batch["pixel_mask"][:, None])
    assert_close(model.joint_representation(**dirty)[row], model.joint_representation(**mixed_batch)[row])


def test_positions_equal_bilinear_interpolation_of_each_image(model, mixed_batch):
    embeddings = model.embeddings
    grid = embeddings.position_embeddings[:, 1:].view(1, 4, 4, -1).permute(0, 3, 1, 2)
    heights, widths = torch.tensor([2, 3, 1]), torch.tensor([2, 1, 7])
    positions = embeddings._stretched_positions((3, 7), heights, widths)
    for row, (height, width) in enumerate(zip(heights.tolist(), widths.tolist(), strict=True)):
        expected = F.interpolate(grid, size=(height, width), mode="bilinear", align_corners=True)
        assert_close(positions[row, :height, :width], expected[0].permute(1, 2, 0), atol=1e-6, rtol=1e-6)


def test_native_size_uses_the_stored_positions_exactly(model):
    positions = model.embeddings._stretched_positions((4, 4))
    assert torch.equal(positions.flatten(1, 2)[0], model.embeddings.position_embeddings[0, 1:])


def test_patches_are_in_row_major_order(model):
    """Changing one pixel changes exactly the token of its patch."""
    pixels = torch.zeros(1, 3, 32, 48)
    changed = pixels.clone()
    changed[0, 0, 20, 40] = 1.0  # second row, third column
    before, after = (model.embeddings.embed_image(image)[0] for image in (pixels, changed))
    moved = (after - before).abs().amax(dim=-1)[0] > 0
    assert moved.nonzero().flatten().tolist() == [1 + 1 * 3 + 2]


def test_forward_leaves_the_random_generators_alone(tiny_config, mixed_batch):
    model = RMCLViltForPreTraining(tiny_config).eval()
    states = [torch.get_rng_state(), random.getstate()]
    first = model(**mixed_batch).embeds
    second = model(**mixed_batch).embeds
    assert torch.equal(first, second)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()


def test_training_without_dropout_is_deterministic_too(tiny_config, mixed_batch):
    model = RMCLViltModel(tiny_config).train()
    state = torch.get_rng_state()
    model(**mixed_batch)
    assert torch.equal(state, torch.get_rng_state())


def test_mask_of_ones_equals_no_mask(model, mixed_batch):
    pixels = mixed_batch["pixel_values"]
    ones = torch.ones_like(mixed_batch["pixel_mask"])
    assert_close(model.image_representation(pixels, ones), model.image_representation(pixels))


def test_image_embeds_replace_pixels(model, mixed_batch):
    image, mask = model.embeddings.embed_image(mixed_batch["pixel_values"], mixed_batch["pixel_mask"])
    text = {k: v for k, v in mixed_batch.items() if not k.startswith("pixel")}
    cached = model.joint_representation(**text, image_embeds=image, pixel_mask=mask)
    assert_close(cached, model.joint_representation(**mixed_batch))


def test_inputs_embeds_replace_ids_and_carry_gradient(model, mixed_batch):
    words = model.get_input_embeddings()(mixed_batch["input_ids"]).detach().requires_grad_()
    pixels = mixed_batch["pixel_values"].clone().requires_grad_()
    rest = {k: v for k, v in mixed_batch.items() if k not in ("input_ids", "pixel_values")}
    joint = model.joint_representation(**rest, inputs_embeds=words, pixel_values=pixels)
    assert_close(joint, model.joint_representation(**mixed_batch))
    word_gradient, pixel_gradient = torch.autograd.grad(joint.sum(), [words, pixels])
    text_mask, pixel_mask = mixed_batch["attention_mask"].bool(), mixed_batch["pixel_mask"].bool()
    assert (word_gradient[text_mask].norm(dim=-1) > 0).all()
    assert (word_gradient[~text_mask] == 0).all()
    pixel_gradient = pixel_gradient.abs().sum(dim=1)
    assert (pixel_gradient[pixel_mask] > 0).all()
    assert (pixel_gradient[~pixel_mask] == 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"input_ids": torch.ones(3, 41, dtype=torch.long), "token_type_ids": None},
            "max_position_embeddings=40",
        ),
        ({"pixel_values": torch.zeros(3, 3, 40, 64)}, "multiples of the patch size 16, got 40 x 64"),
        ({"pixel_values": torch.zeros(3, 1, 48, 64)}, r"\(batch, 3, height, width\), got \(3, 1, 48, 64\)"),
        ({"pixel_mask": torch.ones(3, 32, 32)}, r"shape \(3, 48, 64\).* got \(3, 32, 32\)"),
        ({"pixel_values": None}, "exactly one of pixel_values and image_embeds"),
        ({"input_ids": None}, "exactly one of input_ids and inputs_embeds"),
        ({"inputs_embeds": torch.zeros(3, 9, 32)}, "exactly one of input_ids and inputs_embeds"),
        ({"pixel_values": torch.zeros(2, 3, 48, 64), "pixel_mask": None}, "3 texts and 2 images"),
    ],
)
def test_bad_input_is_explained(changes, message, model, mixed_batch):
    with pytest.raises(ValueError, match=message):
        model(**{**mixed_batch, **changes})


def test_fully_masked_image_is_named(model, mixed_batch):
    mixed_batch["pixel_mask"][1] = 0
    with pytest.raises(ValueError, match=r"image\(s\) \[1\]"):
        model(**mixed_batch)


def test_mask_with_a_hole_is_refused(model, mixed_batch):
    mixed_batch["pixel_mask"][2, 16:32, 16:32] = 0
    with pytest.raises(ValueError, match=r"image\(s\) \[2\] in the batch is empty or no top left rectangle"):
        model(**mixed_batch)


def test_too_many_patches_are_refused_instead_of_drawn_at_random(model, mixed_batch):
    model.config.max_image_length = 7
    with pytest.raises(ValueError, match=r"8 patches but config.max_image_length is 7"):
        model(**mixed_batch)
    model.config.max_image_length = 8
    model(**mixed_batch)
