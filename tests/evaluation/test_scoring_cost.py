"""What scoring pairs sends through the encoder: wanted pairs, once, no longer than their forward needs."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViltImageProcessor, ViltProcessor

from rmcl_hub.evaluation.retrieval import PairScorer
from rmcl_hub.modeling_rmcl import RMCLViltForImageAndTextRetrieval
from rmcl_hub.trainers.run_cost import Tokens, forward_flops

TEXTS = (
    "two small birds and a happy child sit near the big red tree .",
    "a",
    "a red dog runs .",
    "two birds",
    "the small cat sits near a tree .",
)
SIZES = ((32, 32), (48, 32), (32, 64))


@pytest.fixture
def model(tiny_config):
    tiny_config.num_hidden_layers = 4
    return RMCLViltForImageAndTextRetrieval(tiny_config).eval()


@pytest.fixture
def sent(model, monkeypatch):
    """(pairs, text length, image tokens) of every forward."""
    forwards, joint = [], model.joint_representation

    def counting(**inputs):
        forwards.append((*inputs["input_ids"].shape, inputs["image_embeds"].shape[1]))
        return joint(**inputs)

    monkeypatch.setattr(model, "joint_representation", counting)
    return forwards


@pytest.fixture
def scorer(model, tiny_tokenizer):
    images = ViltImageProcessor(size={"shortest_edge": 32}, size_divisor=16)
    return PairScorer(model, ViltProcessor(images, tiny_tokenizer), batch_size=2, max_text_length=40)


@pytest.fixture
def pictures(scorer):
    with torch.no_grad():
        return [scorer.picture(Image.new("RGB", size, "red")) for size in SIZES]


def lengths(tokenizer):
    return [len(tokenizer(text)["input_ids"]) for text in TEXTS]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_wanted_pairs_once_and_no_longer_than_they_must_be(share, scorer, pictures, sent, tiny_tokenizer):
    wanted = np.random.default_rng(1).random((len(TEXTS), len(SIZES))) < share
    scorer.scores(pictures, TEXTS, wanted)
    expected = []
    for column, picture in enumerate(pictures):
        length = sorted(np.array(lengths(tiny_tokenizer))[wanted[:, column]].tolist())
        chunks = [length[first : first + 2] for first in range(0, len(length), 2)]
        tokens = picture["image_embeds"].shape[1]
        expected += [(len(chunk), chunk[-1], tokens) for chunk in chunks]
    assert sent == expected
    assert scorer.forwards == wanted.sum() == sum(pairs for pairs, _, _ in sent)
    assert {picture["image_embeds"].shape[1] for picture in pictures} == {4, 5, 7}


def test_operations_are_those_of_the_pairs_as_they_are(model, scorer, pictures, sent):
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        scorer.scores(pictures, TEXTS)
    patches = 2 * 3 * 16 * 16 * 32  # of one patch, which no pair embeds again
    expected = sum(
        pairs * (forward_flops(model.config, Tokens(text, image - 1)) - (image - 1) * patches)
        for pairs, text, image in sent
    )
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)
    padded = sum(
        pairs * (forward_flops(model.config, Tokens(40, image - 1)) - (image - 1) * patches)
        for pairs, _, image in sent
    )
    assert padded > 2 * expected
