"""Operations of a forward, counted by torch, against the closed form of ViLT's matrix products."""

import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViltImageProcessor, ViltProcessor

from rmcl_hub.datasets_scripts.task_collators import PairCollator
from rmcl_hub.modeling_rmcl import RMCLViltConfig, RMCLViltForPreTraining, RMCLViltModel

PICTURES = ("pixel_values", "pixel_mask")
TEXTS = ("input_ids", "attention_mask")


def products(config, rows, text, patches, queries_of_last_block=1):
    """Twice the multiplications of `rows` pairs: patches, blocks, pooler."""
    hidden, inner = config.hidden_size, config.intermediate_size
    length, total = text + 1 + patches, 0
    for block in range(config.num_hidden_layers):
        queries = queries_of_last_block if block == config.num_hidden_layers - 1 else length
        total += length * 2 * hidden * hidden  # keys and values
        total += queries * 2 * hidden * hidden  # queries and output
        total += 2 * queries * length * hidden  # scores and weighted sum, over all heads
        total += 2 * queries * hidden * inner
    total += patches * config.num_channels * config.patch_size**2 * hidden + hidden * hidden
    return 2 * rows * total


def count(function, *args, **kwargs):
    """Operations of a call; torch counts attention where it is made of matrix products."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        function(*args, **kwargs)
    return counter.get_total_flops()


@pytest.fixture(scope="module")
def b32():
    """ViLT-B/32 with weights that nobody filled: operations do not depend on them."""
    with torch.device("meta"):
        model = RMCLViltModel(RMCLViltConfig())
    return model.to_empty(device="cpu").eval()


def pairs(rows, text, height, width):
    return {
        "input_ids": torch.ones(rows, text, dtype=torch.long),
        "pixel_values": torch.zeros(rows, 3, height, width),
    }


@pytest.mark.parametrize(("text", "height", "width"), [(14, 384, 384), (40, 384, 608)])
def test_a_joint_representation_at_the_size_of_b32(b32, text, height, width):
    expected = products(b32.config, 1, text, height // 32 * (width // 32))
    counted = count(b32.joint_representation, **pairs(1, text, height, width))
    assert counted == pytest.approx(expected, rel=0.01)
    assert counted >= 0.999 * expected  # the closed form is a lower bound: nothing may hide from the counter


def test_the_whole_last_block_costs_a_fifteenth_more_at_the_size_of_b32(b32):
    inputs = pairs(1, 14, 384, 384)
    counted = count(b32, **inputs)
    assert counted == pytest.approx(products(b32.config, 1, 14, 144, 14 + 145), rel=0.01)
    assert counted / count(b32.joint_representation, **inputs) == pytest.approx(1.068, abs=0.005)


@pytest.mark.parametrize("rows", [1, 4])
def test_tiny_model_with_padded_texts(tiny_config, tiny_batch, rows):
    tiny_config.num_hidden_layers = 5
    model = RMCLViltModel(tiny_config).eval()
    inputs = {name: tiny_batch[name][:rows] for name in (*TEXTS, *PICTURES)}
    text = inputs["input_ids"].shape[1]
    counted = count(model.joint_representation, **inputs)
    assert counted == pytest.approx(products(tiny_config, rows, text, 4), rel=0.01)


def test_a_collated_batch_costs_what_its_longest_text_does(tiny_config, tiny_tokenizer):
    images = ViltImageProcessor(size={"shortest_edge": 32}, size_divisor=16)
    collator = PairCollator(ViltProcessor(images, tiny_tokenizer), max_text_length=40)
    captions = ["a cat", "two birds and a happy child sit near the big red tree .", "a red dog runs ."]
    batch = collator(
        [
            {"image": Image.new("RGB", (32, 32)), "image_id": str(row), "captions": [caption]}
            for row, caption in enumerate(captions)
        ]
    )
    longest = len(tiny_tokenizer(captions[1])["input_ids"])
    assert batch["input_ids"].shape == (3, longest)
    assert longest < 40
    tiny_config.num_hidden_layers = 5
    model = RMCLViltModel(tiny_config).eval()
    inputs = {name: batch[name] for name in (*TEXTS, *PICTURES)}
    counted = count(model.joint_representation, **inputs)
    assert counted == pytest.approx(products(tiny_config, 3, longest, 4), rel=0.01)


def test_a_joint_embedding_adds_its_projector_alone(tiny_config, tiny_batch):
    model = RMCLViltForPreTraining(tiny_config).eval()
    inputs = {name: tiny_batch[name] for name in (*TEXTS, *PICTURES)}
    projector = 2 * 4 * (32 * 32 + 32 * 16)
    assert count(model.joint_embedding, **inputs) == count(model.joint_representation, **inputs) + projector


def test_image_tokens_are_not_embedded_again(tiny_config, tiny_batch):
    model = RMCLViltModel(tiny_config).eval()
    inputs = {name: tiny_batch[name] for name in (*TEXTS, *PICTURES)}
    with torch.no_grad():
        tokens, mask = model.embed_image(*(inputs.pop(name) for name in PICTURES))
    counted = count(model.joint_representation, **inputs, image_embeds=tokens, pixel_mask=mask)
    embedding = count(model.embed_image, *(tiny_batch[name] for name in PICTURES))
    with_pixels = {name: tiny_batch[name] for name in (*TEXTS, *PICTURES)}
    assert counted + embedding == count(model.joint_representation, **with_pixels)
    assert embedding > 0.05 * counted


def test_patches_are_embedded_as_by_the_convolution_of_their_weights(tiny_config):
    """One product over all patches, in value and in both gradients; the counter sees no convolution."""
    patches = RMCLViltModel(tiny_config).double().embeddings.patch_embeddings
    results = []
    for embed in (patches, lambda pixels: patches.projection(pixels).permute(0, 2, 3, 1)):
        torch.manual_seed(0)
        pixels = torch.randn(3, 3, 48, 80, dtype=torch.double, requires_grad=True)
        embedded = embed(pixels)
        weighted = (embedded * torch.randn(embedded.shape, dtype=torch.double)).sum()
        results.append((embedded, *torch.autograd.grad(weighted, (pixels, *patches.projection.parameters()))))
    torch.testing.assert_close(*results)
    assert results[0][0].shape == (3, 3, 5, tiny_config.hidden_size)
    with FlopCounterMode(display=False) as counter:
        patches(torch.zeros(1, 3, 48, 80, dtype=torch.double))
    assert not [name for name in counter.get_flop_counts()["Global"] if "conv" in str(name)]
