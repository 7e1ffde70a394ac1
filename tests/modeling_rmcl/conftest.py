"""Batches with every kind of padding, and models whose parameters all left their initial values."""

import pytest
import torch
from transformers import ViltImageProcessor, ViltProcessor

VOCAB_SIZE = 60  # all below the toy vocabulary's size


@pytest.fixture
def mixed_batch():
    """Three pairs: images of 2 x 2, 3 x 2 and 2 x 4 patches of 16 pixels, texts of 9, 5 and 7 tokens."""
    generator = torch.Generator().manual_seed(1)
    sizes, lengths = [(32, 32), (48, 32), (32, 64)], [9, 5, 7]
    pixel_mask = torch.zeros(3, 48, 64, dtype=torch.long)
    attention_mask = torch.zeros(3, 9, dtype=torch.long)
    for row, ((height, width), length) in enumerate(zip(sizes, lengths, strict=True)):
        pixel_mask[row, :height, :width] = 1
        attention_mask[row, :length] = 1
    input_ids = torch.randint(1, VOCAB_SIZE, (3, 9), generator=generator) * attention_mask
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "token_type_ids": torch.zeros_like(input_ids),
        "pixel_values": torch.randn(3, 3, 48, 64, generator=generator) * pixel_mask[:, None],
        "pixel_mask": pixel_mask,
    }


@pytest.fixture
def nlvr2_batch(mixed_batch):
    """The same texts, each with two images of different sizes."""
    images = {name: mixed_batch[name] for name in ("pixel_values", "pixel_mask")}
    pairs = {name: torch.stack([value, value.roll(1, dims=0)], dim=1) for name, value in images.items()}
    return {**mixed_batch, **pairs}


@pytest.fixture
def randomised():
    """Give every parameter noise, so that no bias is zero and no scale is one; switch to eval mode."""

    def randomise(model):
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
        return model.eval()

    return randomise


@pytest.fixture
def nlvr2_config(tiny_config):
    tiny_config.num_images, tiny_config.modality_type_vocab_size = 2, 3
    return tiny_config


@pytest.fixture
def tiny_processor(tiny_tokenizer):
    """Images of 32 pixels and more, in patches of 16."""
    image_processor = ViltImageProcessor(size={"shortest_edge": 32}, size_divisor=16)
    return ViltProcessor(image_processor=image_processor, tokenizer=tiny_tokenizer)
