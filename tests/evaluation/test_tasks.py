import datasets
import numpy as np
import pytest
from PIL import Image
from torch import nn
from transformers import (
    ViltConfig,
    ViltForQuestionAnswering,
    ViltImageProcessor,
    ViltProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from rmcl_hub.datasets_scripts.images import UnreadableImageError
from rmcl_hub.datasets_scripts.schema import ENTAILMENT_LABELS
from rmcl_hub.evaluation.robustness import evaluate_robustness
from rmcl_hub.evaluation.tasks import TASKS, build_task, matching_pairs
from rmcl_hub.evaluation.victims import Victim, as_victim
from rmcl_hub.modeling_rmcl import (
    RMCLViltForImageAndTextRetrieval,
    RMCLViltForImagesAndTextClassification,
    RMCLViltForMaskedLM,
)

GREY = Image.new("RGB", (32, 32), (120, 130, 140))


@pytest.fixture
def processor(tiny_tokenizer):
    images = ViltImageProcessor(size={"shortest_edge": 32}, size_divisor=16)
    return ViltProcessor(image_processor=images, tokenizer=tiny_tokenizer)


@pytest.fixture
def image_processor():
    return ViTImageProcessor(size={"height": 32, "width": 32})


@pytest.fixture
def classifier():
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=16,
        image_size=32,
        patch_size=16,
        num_labels=2,
    )
    return ViTForImageClassification(config).eval()


def labelled(*labels):
    return datasets.Dataset.from_list(
        [{"image": GREY, "image_id": f"i{row}", "label": label} for row, label in enumerate(labels)]
    )


def captioned(captions, concepts):
    rows = zip(captions, concepts, strict=True)
    return datasets.Dataset.from_list(
        [
            {"image_id": f"i{row}", "captions": texts, "concept": concept}
            for row, (texts, concept) in enumerate(rows)
        ]
    )


class TestMatchingPairs:
    @pytest.fixture
    def many(self):
        """Sixty images of twenty concepts; some captions are common, and differ in case and spaces only."""
        draw = np.random.default_rng(0)
        words = ["A dog", "a  dog", "a dog", "a cat", "two cats", "the sun", "a car"]
        captions = [[words[draw.integers(7)], f"image {row}"][:: 1 - 2 * (row % 2)] for row in range(61)]
        return captioned(captions, [f"c{row // 3}" for row in range(61)])

    def test_half_is_false_and_no_false_pair_is_true(self, many):
        pairs = matching_pairs(many)
        assert sum(pairs["label"]) == 31
        for before, row in zip(many, pairs, strict=True):
            if row["label"]:
                assert row["caption"] == before["captions"][0]
                continue
            own = {" ".join(text.lower().split()) for text in before["captions"]}
            assert " ".join(row["caption"].lower().split()) not in own
            givers = [other["concept"] for other in many if other["captions"][0] == row["caption"]]
            assert set(givers) - {before["concept"]}

    def test_a_concept_gives_its_images_no_false_captions(self):
        data = captioned([["a"], ["b"], ["c"], ["d"]], ["x", "x", "y", "y"])
        for seed in range(5):
            for before, row in zip(data, matching_pairs(data, seed), strict=True):
                if not row["label"]:
                    allowed = {"x": ("c", "d"), "y": ("a", "b")}[before["concept"]]
                    assert row["caption"] in allowed

    def test_seed_decides(self, many):
        assert matching_pairs(many)["caption"] == matching_pairs(many)["caption"]
        assert matching_pairs(many)["label"] != matching_pairs(many, seed=1)["label"]

    def test_one_image(self):
        with pytest.raises(ValueError, match="false pairs need at least two images, got 1"):
            matching_pairs(captioned([["a"]], ["x"]))

    def test_one_concept(self):
        with pytest.raises(ValueError, match=r"every caption fits image 'i\d'.*at least two concepts"):
            matching_pairs(captioned([["a"], ["b"]], ["x", "x"]))


class TestMaskedWords:
    @pytest.fixture
    def collate(self, tiny_config, processor):
        return build_task("mlm", RMCLViltForMaskedLM(tiny_config), processor).collate

    @pytest.mark.parametrize(
        ("caption", "masked", "word"),
        [
            ("a red dog runs .", "a red dog [MASK] .", "runs"),
            (
                "the small cat and the trees",
                "the small [MASK] and the trees",
                "cat",
            ),  # `tree ##s`: two pieces
            ("a blue zebra", "a [MASK] zebra", "blue"),  # an unknown word has no id of its own
            ("two birds near the Sun, not", "two birds near the [MASK], not", "sun"),
        ],
    )
    def test_last_word_that_says_something(self, collate, processor, caption, masked, word):
        batch = collate([{"image": GREY, "image_id": "i", "captions": [caption, "another"]}])
        tokenizer = processor.tokenizer
        assert batch["text"] == [masked]
        assert batch["labels"].tolist() == [tokenizer.convert_tokens_to_ids(word)]
        assert batch["mask_token_id"].tolist() == [tokenizer.mask_token_id]
        assert (batch["input_ids"] == tokenizer.mask_token_id).sum() == 1

    def test_caption_without_such_a_word(self, collate):
        with pytest.raises(ValueError, match=r"'the zebra' has no word of one word piece to mask; drop"):
            collate([{"image": GREY, "image_id": "i", "captions": ["the zebra"]}])

    def test_words_that_truncation_hides_are_not_masked(self, tiny_config, processor):
        task = build_task("mlm", RMCLViltForMaskedLM(tiny_config), processor, max_text_length=4)
        batch = task.collate([{"image": GREY, "image_id": "i", "captions": ["red dog cat ball"]}])
        assert batch["text"] == ["red [MASK] cat ball"]
        assert (batch["input_ids"] == processor.tokenizer.mask_token_id).sum() == 1


class TestImages:
    def test_batch(self, classifier, image_processor):
        task = build_task("image-classification", classifier, image_processor)
        batch = task.collate(list(labelled(1, 0)))
        assert batch["pixel_values"].shape == (2, 3, 32, 32)
        assert batch["pixel_mask"].shape == (2, 32, 32)
        assert batch["pixel_mask"].all()
        assert batch["labels"].tolist() == [1, 0]
        assert batch["text"] == ["", ""]
        assert task.tokenizer is None

    def test_damaged_image_is_named(self, classifier, image_processor):
        task = build_task("image-classification", classifier, image_processor)
        with pytest.raises(UnreadableImageError, match="image 'bad' cannot be read"):
            task.collate([{"image": {"bytes": b"no image"}, "image_id": "bad", "label": 0}])


class TestErrors:
    """Each message says what came, what was expected and what to do."""

    def test_unknown_task(self, classifier, processor):
        with pytest.raises(
            ValueError, match=f"no task 'vcr'; choose one of {', '.join(TASKS)}, or pass a Task"
        ):
            build_task("vcr", classifier, processor)

    def test_processor_without_tokenizer(self, classifier, image_processor):
        with pytest.raises(
            ValueError, match=r"needs a processor with a tokenizer.*load it with AutoProcessor"
        ):
            build_task("matching", classifier, image_processor)

    def test_head_whose_answers_have_no_names(self, processor):
        config = ViltConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, num_labels=3)
        model = ViltForQuestionAnswering(config)
        for head in (model, as_victim(model)):
            with pytest.raises(ValueError, match=r"the 3 logits of ViltForQuestionAnswering have no names"):
                build_task("vqa", head, processor)
        with pytest.raises(
            ValueError, match=r"model.config.id2label, which Linear has not; set it, or pass a Task"
        ):
            build_task("vqa", nn.Linear(1, 1), processor)

    def test_head_that_only_ranks(self, tiny_config, processor):
        with pytest.raises(ValueError, match=r"gives a pair one score.*use evaluate_robust_retrieval"):
            build_task("matching", RMCLViltForImageAndTextRetrieval(tiny_config), processor)

    def test_label_outside_the_head(self, classifier, image_processor):
        with pytest.raises(ValueError, match=r"label 2 is outside the head's 2 classes, 0 to 1; load a head"):
            evaluate(classifier, image_processor, labelled(0, 2))

    def test_one_logit(self, image_processor):
        network = nn.Linear(3, 1).eval()
        victim = Victim(
            network,
            lambda batch: network(batch["pixel_values"].mean(dim=(2, 3))),
            lambda embedding, batch: embedding,
            reads_text=False,
        )
        with pytest.raises(ValueError, match=r"a margin needs at least two classes, the head has 1 logit"):
            evaluate(victim, image_processor, labelled(0, 0))

    def test_no_data(self, classifier, image_processor):
        with pytest.raises(ValueError, match=r"the data set is empty.*Check the filters"):
            evaluate(classifier, image_processor, labelled(0).select([]))

    def test_model_in_training_mode(self, classifier, image_processor):
        with pytest.raises(ValueError, match=r"the model is in training mode.*call model.eval\(\) first"):
            evaluate(classifier.train(), image_processor, labelled(0, 1))

    @pytest.mark.parametrize("threat", ["words-1", "joint-linf-4-words-20pct"])
    def test_words_of_a_model_that_reads_none(self, classifier, image_processor, threat):
        with pytest.raises(
            ValueError, match=r"ViTForImageClassification reads no text; choose one on pixels"
        ):
            evaluate(classifier, image_processor, labelled(0, 1), threat)

    def test_pixels_of_another_normalisation(self, classifier):
        """The processor of another model: its pixels are not where the model's own would be."""
        theirs = ViTImageProcessor(
            size={"height": 32, "width": 32}, image_mean=[0.0] * 3, image_std=[0.1] * 3
        )
        task = build_task("image-classification", classifier, theirs)
        with pytest.raises(ValueError, match="expected normalised values from -1 to 1"):
            evaluate(as_victim(classifier), theirs, labelled(0, 1), task=task)


def evaluate(model, processor, data, threat="linf-4", task="image-classification"):
    return evaluate_robustness(model, processor, data, task, [threat], batch_size=2, effort="quick")


def test_hypotheses_are_about_one_picture(processor, tiny_config):
    """The head takes `num_images` pictures per text; labels are indices of the names that reports show."""
    tiny_config.num_images, tiny_config.modality_type_vocab_size, tiny_config.num_labels = 1, 2, 3
    model = RMCLViltForImagesAndTextClassification(tiny_config).eval()
    task = build_task("snli_ve", model, processor)
    black = Image.new("RGB", (32, 32))
    rows = [
        {
            "image": image,
            "image_id": "i",
            "pair_id": f"p{label}",
            "hypothesis": text,
            "concept": "i",
            "label": label,
        }
        for label, (image, text) in enumerate([(GREY, "a dog"), (black, "a cat sits"), (GREY, "two birds")])
    ]
    batch = task.collate(rows)
    assert batch["pixel_values"].shape == (3, 1, 3, 32, 32)
    assert batch["pixel_mask"].shape == (3, 1, 32, 32)
    assert batch["labels"].tolist() == [0, 1, 2]
    assert batch["text"] == ["a dog", "a cat sits", "two birds"]
    assert batch["pixel_values"][1].mean() < batch["pixel_values"][0].mean()
    assert as_victim(model, processor, "snli_ve").predict(batch).shape == (3, 3)
    assert tuple(task.answers) == ENTAILMENT_LABELS
    assert (task.columns.id, task.columns.cluster) == ("pair_id", "concept")
