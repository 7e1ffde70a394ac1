"""Recall over disjoint galleries, against plain loops and torchmetrics."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.retrieval import RetrievalHitRate
from transformers import ViltImageProcessor, ViltProcessor

from rmcl_hub.datasets_scripts.protocols import Gallery
from rmcl_hub.evaluation.galleries import check_galleries, evaluate_galleries, fixed_order, mean_recall
from rmcl_hub.evaluation.metrics import best_ranks
from rmcl_hub.evaluation.retrieval import evaluate_retrieval, recall_numbers
from rmcl_hub.modeling_rmcl import RMCLViltForPreTraining

NOUNS = ["dog", "cat", "bird", "fish", "tree", "flower", "house", "car", "ball", "cup", "man", "woman"]


@pytest.fixture
def processor(tiny_tokenizer):
    images = ViltImageProcessor(size={"shortest_edge": 32}, size_divisor=16)
    return ViltProcessor(image_processor=images, tokenizer=tiny_tokenizer)


@pytest.fixture
def pictures():
    """Twelve random pictures with one or two captions each; "a red ball" belongs to two of them."""
    generator = np.random.default_rng(0)
    rows = [
        {
            "image": Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)),
            "image_id": str(index),
            "captions": [f"a {noun} sits", "a red ball"] if index in (2, 7) else [f"a {noun} sits"],
        }
        for index, noun in enumerate(NOUNS)
    ]
    features = datasets.Features(
        image=datasets.Image(),
        image_id=datasets.Value("string"),
        captions=datasets.List(datasets.Value("string")),
    )
    return datasets.Dataset.from_list(rows, features=features)


@pytest.fixture
def scoring_model(tiny_config):
    """Random, but with scores that differ."""
    tiny_config.itc_weight = 1.0
    model = RMCLViltForPreTraining(tiny_config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model


def test_recall_is_the_hit_rate_of_torchmetrics():
    generator = np.random.default_rng(0)
    scores = generator.permutation(40 * 30).reshape(40, 30).astype(float)  # no ties
    relevant = generator.random((40, 30)) < 0.05
    relevant[np.arange(40), generator.integers(0, 30, 40)] = True
    numbers = recall_numbers(scores, relevant)
    queries = torch.arange(40).repeat_interleave(30)
    for k in (1, 5, 10):
        metric = RetrievalHitRate(top_k=k)
        metric.update(torch.tensor(scores.ravel()), torch.tensor(relevant.ravel()), indexes=queries)
        assert numbers["recall"][str(k)]["value"] == pytest.approx(float(metric.compute()))


class TestMeanRecall:
    def test_equals_a_plain_loop_over_five(self):
        generator = np.random.default_rng(1)
        folds = []
        for size in (20, 21, 20, 19, 22):
            relevant = np.zeros((size, 12), dtype=bool)
            relevant[np.arange(size), generator.integers(0, 12, size)] = True
            folds.append((generator.random((size, 12)), relevant))
        mean = mean_recall([recall_numbers(*fold) for fold in folds])
        for k in (1, 5, 10):
            expected = np.mean([(best_ranks(*fold) <= k).mean() for fold in folds])
            assert mean["recall"][str(k)]["value"] == pytest.approx(expected)
            assert mean["recall"][str(k)]["chance"] == pytest.approx(k / 12)
        assert (mean["num_queries"], mean["gallery_size"]) == (102, 12)

    def test_five_galleries_say_more_than_one(self):
        """The interval is that of all queries, narrower than of one gallery."""
        one = recall_numbers(np.random.default_rng(2).random((50, 50)), np.eye(50, dtype=bool))
        five = mean_recall([one] * 5)
        assert five["recall"]["10"]["value"] == pytest.approx(one["recall"]["10"]["value"])
        widths = [entry["recall"]["10"]["high"] - entry["recall"]["10"]["low"] for entry in (five, one)]
        assert widths[0] < 0.6 * widths[1]

    def test_a_cut_off_that_one_gallery_does_not_have(self):
        small, large = (
            recall_numbers(np.random.default_rng(3).random((n, n)), np.eye(n, dtype=bool)) for n in (4, 6)
        )
        assert list(mean_recall([large, small])["recall"]) == ["1"]


class TestEvaluateGalleries:
    @pytest.mark.parametrize("scorer", ["cross", "dual"])
    def test_equals_retrieval_in_each_gallery_alone(self, scoring_model, pictures, processor, scorer):
        options = {"scorer": scorer, "batch_size": 5}
        found = evaluate_galleries(
            scoring_model, pictures, processor, [Gallery(5, 2), Gallery(12)], **options
        )
        order = fixed_order(pictures["image_id"])
        for gallery, chunks in zip(found["galleries"], ([order[:5], order[5:10]], [order]), strict=True):
            alone = [
                evaluate_retrieval(scoring_model, pictures.select(rows), processor, **options)
                for rows in chunks
            ]
            for direction in ("text_to_image", "image_to_text"):
                expected = mean_recall([numbers[direction] for numbers in alone])
                assert gallery[direction]["num_queries"] == expected["num_queries"]
                for k, rate in expected["recall"].items():
                    assert gallery[direction]["recall"][k] == pytest.approx(rate)
        assert (found["num_images"], found["num_texts"]) == (12, 13)
        assert found["forwards"] == (12 * 13 if scorer == "cross" else 12 + 13)

    def test_only_pairs_within_a_gallery_are_scored(self, scoring_model, pictures, processor, monkeypatch):
        pairs = 0
        whole = RMCLViltForPreTraining.joint_representation

        def counted(self, **inputs):
            nonlocal pairs
            pairs += len(inputs["pixel_mask"])
            return whole(self, **inputs)

        monkeypatch.setattr(RMCLViltForPreTraining, "joint_representation", counted)
        found = evaluate_galleries(
            scoring_model, pictures, processor, [Gallery(3, 4)], scorer="cross", batch_size=4
        )
        texts = [
            {
                text
                for row in fixed_order(pictures["image_id"])[at : at + 3]
                for text in pictures[row]["captions"]
            }
            for at in range(0, 12, 3)
        ]
        assert pairs == found["forwards"] == sum(3 * len(of_gallery) for of_gallery in texts) < 12 * 13

    def test_does_not_depend_on_the_order_of_the_rows(self, scoring_model, pictures, processor):
        options = {"scorer": "dual", "batch_size": 4}
        galleries = [Gallery(4)]
        there = evaluate_galleries(scoring_model, pictures, processor, galleries, **options)
        back = evaluate_galleries(
            scoring_model, pictures.select(range(11, -1, -1)), processor, galleries, **options
        )
        assert there == back

    def test_an_unknown_scorer(self, scoring_model, pictures, processor):
        with pytest.raises(ValueError, match="scorer is 'both'; expected 'cross' or 'dual'"):
            evaluate_galleries(scoring_model, pictures, processor, [Gallery(4)], scorer="both", batch_size=4)


def test_the_first_of_the_order_are_not_the_first_of_the_file():
    """A random subset: of 1,000 consecutive ids, the first 500 hold about half of the lower half."""
    ids = [str(index) for index in range(1000)]
    first = fixed_order(ids)[:500]
    assert sorted(fixed_order(ids)) == list(range(1000))
    assert 200 < sum(row < 500 for row in first) < 300
    shuffled = ids[::-1]
    assert [shuffled[row] for row in fixed_order(shuffled)[:500]] == [ids[row] for row in first]


def test_galleries_must_be_filled():
    check_galleries([Gallery(5, 2)], 10)
    with pytest.raises(
        ValueError, match="5 x 2 pictures are to be ranked, but there are 9; prepare the whole"
    ):
        check_galleries([Gallery(1), Gallery(2, 5)], 9)
    with pytest.raises(ValueError, match="0 pictures are to be ranked"):
        check_galleries([Gallery(0)], 9)
    with pytest.raises(ValueError, match="no gallery given"):
        check_galleries([], 9)
