import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import ViltImageProcessor, ViltProcessor

from rmcl_hub.evaluation.metrics import recall_at_k
from rmcl_hub.evaluation.retrieval import (
    PairScorer,
    chance_recall,
    cross_encoder_scores,
    distinct_captions,
    dual_encoder_scores,
    evaluate_retrieval,
    recall_numbers,
    stack_pictures,
)
from rmcl_hub.modeling_rmcl import RMCLViltForImageAndTextRetrieval, RMCLViltForPreTraining

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class ColourModel(nn.Module):
    """Knows by construction that the words red, green and blue name the channels."""

    def __init__(self, tokenizer, num_logits=1):
        super().__init__()
        self.words = nn.Embedding(len(tokenizer), 3)
        self.num_logits = num_logits
        self.rows_scored = 0
        with torch.no_grad():
            self.words.weight.zero_()
            for channel, colour in enumerate(COLOURS):
                self.words.weight[tokenizer.convert_tokens_to_ids(colour), channel] = 1

    def text_embedding(self, input_ids, attention_mask):
        return (self.words(input_ids) * attention_mask[..., None]).sum(dim=1)

    def image_embedding(self, pixel_values, pixel_mask):
        weight = pixel_mask[:, None].float()
        return (pixel_values * weight).sum(dim=(2, 3)) / weight.sum(dim=(2, 3))

    def joint_representation(self, input_ids, attention_mask, pixel_values, pixel_mask):
        self.rows_scored += len(input_ids)
        text = self.text_embedding(input_ids, attention_mask)
        return (text * self.image_embedding(pixel_values, pixel_mask)).sum(dim=1, keepdim=True)

    def logits_from_joint(self, joint):
        return torch.cat([-joint] * (self.num_logits - 1) + [joint], dim=1)


@pytest.fixture
def processor(tiny_tokenizer):
    images = ViltImageProcessor(size={"shortest_edge": 32}, size_divisor=16)
    return ViltProcessor(image_processor=images, tokenizer=tiny_tokenizer)


@pytest.fixture
def pictures():
    captions = {
        "red": ["a red ball", "the red house"],
        "green": ["a green tree", "a  Green TREE"],
        "blue": ["a blue car"],
    }
    return [
        {"image": Image.new("RGB", (40 + 8 * index, 40), COLOURS[colour]), "captions": captions[colour]}
        for index, colour in enumerate(COLOURS)
    ]


class TestEvaluateRetrieval:
    @pytest.mark.parametrize(("scorer", "num_logits"), [("dual", 1), ("cross", 1), ("cross", 2)])
    def test_a_model_that_knows_finds_everything(
        self, tiny_tokenizer, processor, pictures, scorer, num_logits
    ):
        model = ColourModel(tiny_tokenizer, num_logits)
        numbers = evaluate_retrieval(model, pictures, processor, scorer=scorer, batch_size=2)
        to_image, to_text = numbers["text_to_image"], numbers["image_to_text"]
        assert (to_image["num_queries"], to_image["gallery_size"]) == (4, 3)  # two captions are one text
        assert (to_text["num_queries"], to_text["gallery_size"]) == (3, 4)
        assert to_image["recall"]["1"]["value"] == to_text["recall"]["1"]["value"] == 1.0
        assert to_image["recall"]["1"]["chance"] == pytest.approx(1 / 3)
        assert set(to_image["recall"]) == {"1"}  # 5 and 10 exceed the gallery
        assert numbers["forwards"] == (7 if scorer == "dual" else 12)

    def test_a_model_that_is_wrong_finds_nothing(self, tiny_tokenizer, processor, pictures):
        model = ColourModel(tiny_tokenizer)
        with torch.no_grad():
            model.words.weight.neg_()
        numbers = evaluate_retrieval(model, pictures, processor, scorer="dual", batch_size=8)
        assert numbers["text_to_image"]["recall"]["1"]["value"] == 0.0

    def test_every_pair_is_scored_once(self, tiny_tokenizer, processor, pictures):
        model = ColourModel(tiny_tokenizer)
        evaluate_retrieval(model, pictures, processor, scorer="cross", batch_size=3)
        assert model.rows_scored == 4 * 3

    def test_errors(self, tiny_tokenizer, processor, pictures):
        model = ColourModel(tiny_tokenizer)
        with pytest.raises(ValueError, match="scorer is 'itm'; expected one of dual, cross"):
            evaluate_retrieval(model, pictures, processor, scorer="itm", batch_size=2)
        with pytest.raises(ValueError, match="the data set is empty"):
            evaluate_retrieval(model, [], processor, scorer="dual", batch_size=2)
        model.num_logits = 3
        with pytest.raises(ValueError, match="1 or 2 logits per pair, got 3"):
            evaluate_retrieval(model, pictures, processor, scorer="cross", batch_size=2)


class TestRealModels:
    TEXTS = ("a red dog runs .", "two birds", "the small cat sits near a tree .")

    def images(self):
        generator = np.random.default_rng(0)
        sizes = [(32, 32), (48, 32), (32, 64)]
        return [Image.fromarray(generator.integers(256, size=(*size, 3), dtype=np.uint8)) for size in sizes]

    def test_matching_head_of_pretraining_gives_log_odds(self, tiny_config, processor):
        model = RMCLViltForPreTraining(tiny_config).eval()
        scores = cross_encoder_scores(model, self.images()[:1], self.TEXTS[:1], processor, 2, 40)
        inputs = processor(self.images()[0], self.TEXTS[0], return_tensors="pt")
        with torch.no_grad():
            logits = model.itm_score(model.vilt(**inputs).pooler_output)[0]
        assert scores[0, 0] == pytest.approx((logits[1] - logits[0]).item(), abs=1e-5)

    def test_dual_scores_are_cosines_and_the_mode_comes_back(self, tiny_config, processor):
        tiny_config.itc_weight = 1.0
        model = RMCLViltForPreTraining(tiny_config).train()
        scores = dual_encoder_scores(model, self.images(), self.TEXTS, processor, 2, 40)
        assert scores.shape == (3, 3)
        assert np.abs(scores).max() <= 1 + 1e-6
        assert model.training
        one = dual_encoder_scores(model, self.images()[2:], self.TEXTS[1:2], processor, 2, 40)
        assert scores[1, 2] == pytest.approx(one[0, 0], abs=1e-5)


class TestPairScorer:
    """Against a loop over pairs that shares nothing; pictures of three sizes, texts of five lengths."""

    TEXTS = (*TestRealModels.TEXTS, "a", "two small birds and a happy child sit near the big red tree .")

    @pytest.fixture
    def model(self, tiny_config):
        tiny_config.initializer_range = 0.5  # else all pairs have nearly the same score
        return RMCLViltForImageAndTextRetrieval(tiny_config).eval()

    @pytest.fixture
    def images(self):
        return TestRealModels().images()

    @pytest.fixture
    def naive(self, model, images, processor):
        with torch.no_grad():
            return np.array(
                [
                    [model(**processor(image, text, return_tensors="pt")).logits.item() for image in images]
                    for text in self.TEXTS
                ]
            )

    @pytest.mark.parametrize("batch_size", [1, 2, 64])
    def test_all_pairs(self, model, images, processor, naive, batch_size):
        scorer = PairScorer(model, processor, batch_size, 40)
        scores = scorer.scores([scorer.picture(image) for image in images], self.TEXTS)
        assert np.abs(scores - naive).max() < 1e-5
        assert naive.std() > 0.05  # so that a wrong order would show
        assert scorer.forwards == naive.size

    def test_wanted_pairs_only(self, model, images, processor, naive):
        wanted = np.random.default_rng(0).random(naive.shape) < 0.4
        wanted[:, 1] = False
        scorer = PairScorer(model, processor, 2, 40)
        scores = scorer.scores([scorer.picture(image) for image in images], self.TEXTS, wanted)
        assert (np.isnan(scores) == ~wanted).all()
        assert np.abs(scores - naive)[wanted].max() < 1e-5
        assert scorer.forwards == wanted.sum()

    @pytest.mark.parametrize("batch_size", [1, 3, 64])
    def test_aligned_pairs(self, model, images, processor, naive, batch_size):
        pairs = [(0, 2), (3, 0), (4, 1), (2, 2), (1, 0)]
        scorer = PairScorer(model, processor, batch_size, 40)
        pictures = [scorer.picture(image) for image in images]
        scores = scorer.aligned_scores(
            [self.TEXTS[text] for text, _ in pairs], [pictures[image] for _, image in pairs]
        )
        assert scores == pytest.approx([naive[pair] for pair in pairs], abs=1e-5)
        assert scorer.forwards == len(pairs)

    def test_an_image_is_embedded_once_and_texts_are_not_padded_far(
        self, model, images, processor, monkeypatch
    ):
        embedded, lengths = [], []
        embed_image, joint = model.embed_image, model.joint_representation

        def counting_embed(*args):
            embedded.append(args)
            return embed_image(*args)

        def counting_joint(**inputs):
            lengths.append(inputs["input_ids"].shape[1])
            assert inputs["attention_mask"].sum(dim=1).max() == lengths[-1]
            return joint(**inputs)

        monkeypatch.setattr(model, "embed_image", counting_embed)
        monkeypatch.setattr(model, "joint_representation", counting_joint)
        cross_encoder_scores(model, images, self.TEXTS, processor, 2, 40)
        assert len(embedded) == len(images)
        assert len(set(lengths[:3])) == 3  # shortest two, next two, the longest one
        assert lengths == 3 * lengths[:3]
        assert lengths[:3] == sorted(lengths[:3])

    def test_the_score_is_differentiable_in_the_pixels(self, model, images, processor):
        scorer = PairScorer(model, processor, 8, 40)
        pixels = scorer.pixels(images[0])
        pixels["pixel_values"].requires_grad_()
        joint = scorer.joint({**scorer.tokens(self.TEXTS[:1]), **scorer.embed_image(**pixels)})
        (gradient,) = torch.autograd.grad(scorer.pair_score(joint).sum(), pixels["pixel_values"])
        assert gradient.abs().max() > 0

    def test_stacked_pictures_are_padded_at_the_end(self):
        small, large = torch.ones(1, 2, 3), torch.ones(1, 4, 2)
        stacked = stack_pictures([{"image_embeds": small}, {"image_embeds": large}])["image_embeds"]
        assert stacked.shape == (2, 4, 3)
        assert stacked[0, :2].equal(torch.ones(2, 3))
        assert stacked[1, :, :2].equal(torch.ones(4, 2))
        assert stacked.sum() == 6 + 8


class TestPieces:
    def test_equal_captions_are_one_text_and_right_for_both(self):
        texts, relevant = distinct_captions([["a cat", "The dog"], ["the  DOG "], ["a cup"]])
        assert texts == ["a cat", "The dog", "a cup"]
        assert relevant.tolist() == [[True, False, False], [True, True, False], [False, False, True]]

    def test_captionless_picture(self):
        with pytest.raises(ValueError, match="picture 1 has no caption"):
            distinct_captions([["a"], []])

    @pytest.mark.parametrize("k", [1, 3, 7])
    def test_chance_is_the_mean_over_random_rankings(self, k):
        relevant = np.zeros((2, 8), dtype=bool)
        relevant[0, 0] = relevant[1, :3] = True
        generator = np.random.default_rng(0)
        hits = [np.mean([row[generator.permutation(8)[:k]].any() for row in relevant]) for _ in range(4000)]
        assert chance_recall(relevant, k) == pytest.approx(np.mean(hits), abs=0.02)

    def test_recall_numbers_are_those_of_the_metric(self):
        generator = np.random.default_rng(1)
        scores, relevant = generator.random((30, 12)), generator.random((30, 12)) < 0.1
        relevant[:, 3] = True
        numbers = recall_numbers(scores, relevant)["recall"]
        assert list(numbers) == ["1", "5", "10"]
        for k, rate in numbers.items():
            assert rate["value"] == recall_at_k(scores, relevant, int(k))
            assert rate["low"] < rate["value"] < rate["high"] or rate["value"] == 1

    def test_recall_numbers_hold_the_interval_of_the_queries(self):
        scores = np.eye(6) + np.fliplr(np.eye(6)) * 2
        numbers = recall_numbers(scores, np.eye(6, dtype=bool))
        assert numbers["recall"]["1"]["value"] == 0.0
        assert numbers["recall"]["1"]["high"] == pytest.approx(0.3903, abs=1e-3)
        assert numbers["recall"]["5"]["value"] == 1.0
