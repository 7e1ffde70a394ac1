"""Every kind of model that the evaluation takes, against the model's own forward."""

import doctest
import inspect

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    ViltConfig,
    ViltForImageAndTextRetrieval,
    ViltForImagesAndTextClassification,
    ViltForMaskedLM,
    ViltForQuestionAnswering,
    ViltImageProcessor,
    ViltProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from rmcl_hub.attacks.geometry import GeometryAttack
from rmcl_hub.attacks.pgd import PGD
from rmcl_hub.attacks.synonyms import SynonymTable
from rmcl_hub.datasets_scripts.task_collators import QuestionCollator
from rmcl_hub.evaluation import attack_suite, victims
from rmcl_hub.evaluation.attack_loop import VQA_COLUMNS
from rmcl_hub.evaluation.attack_suite import Effort, LossAttack
from rmcl_hub.evaluation.robustness import evaluate_robustness
from rmcl_hub.evaluation.task_attack import attack_task, task_objective
from rmcl_hub.evaluation.tasks import Task, build_task, matching_pairs
from rmcl_hub.evaluation.victims import Victim, as_victim, dual_encoder
from rmcl_hub.modeling_rmcl import (
    RMCLViltForImagesAndTextClassification,
    RMCLViltForMaskedLM,
    RMCLViltForPreTraining,
    RMCLViltForQuestionAnswering,
)

EPSILON = 4 / 255
ANSWERS = {0: "red", 1: "small", 2: "dog"}
TEXTS = [
    "is the dog near the house small",
    "a big car sits near the red tree",
    "the happy child holds a ball",
    "is it a round apple",
]
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**TOWER, "image_size": 32, "patch_size": 16}
MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "pixel_values", "pixel_mask")


@pytest.fixture
def processor(tiny_tokenizer):
    images = ViltImageProcessor(size={"shortest_edge": 32}, size_divisor=16)
    return ViltProcessor(image_processor=images, tokenizer=tiny_tokenizer)


def pictures(widths):
    """Grey noise, which leaves room for a perturbation."""
    draw = np.random.default_rng(0).integers
    return [Image.fromarray(draw(40, 216, size=(32, width, 3), dtype=np.uint8)) for width in widths]


@pytest.fixture
def data():
    """Four rows of every task; the pictures of the pairs are of two sizes, so that some are padded."""
    wide, square = pictures([32, 48] * 4), pictures([32] * 4)
    shared = [{"concept": f"c{row}", "image_id": f"i{row}", "image": wide[row]} for row in range(4)]
    captions = [{**row, "captions": [text]} for row, text in zip(shared, TEXTS, strict=True)]
    tables = {
        "vqa": [
            {
                **row,
                "question_id": f"q{index}",
                "question": TEXTS[index],
                "question_type": "any",
                "answers": [ANSWERS[index % 3]],
                "scores": [1.0],
            }
            for index, row in enumerate(shared)
        ],
        "nlvr2": [
            {
                "left_image": wide[index],
                "right_image": wide[index + 4],
                "identifier": f"n{index}",
                "statement": TEXTS[index],
                "statement_type": "any",
                "concept": f"c{index}",
                "label": bool(index % 2),
            }
            for index in range(4)
        ],
        "mlm": captions,
        "image-classification": [
            {"image": square[index], "image_id": f"i{index}", "label": index % 3} for index in range(4)
        ],
    }
    tables = {name: datasets.Dataset.from_list(rows) for name, rows in tables.items()}
    return {**tables, "matching": matching_pairs(tables["mlm"])}


@pytest.fixture
def vilt_config(tiny_config):
    """Transformers' configuration of the same size."""
    names = ("vocab_size", "max_position_embeddings", *VISION)
    return ViltConfig(**{name: getattr(tiny_config, name) for name in names})


class Zoo:
    """One model of each kind: (model or victim, processor, task, the model's own logits of a batch)."""

    def __init__(self, processor, tiny_config, vilt_config):
        self.processor, self.configs = processor, {"rmcl": tiny_config, "vilt": vilt_config}

    def __getitem__(self, name):
        family, _, kind = name.partition(" ")
        if family in self.configs:
            return self.pair_model(self.configs[family], family, kind)
        return getattr(self, family)()

    def pair_model(self, config, family, kind):
        heads = {
            "rmcl vqa": RMCLViltForQuestionAnswering,
            "rmcl nlvr2": RMCLViltForImagesAndTextClassification,
            "rmcl matching": RMCLViltForPreTraining,
            "rmcl mlm": RMCLViltForMaskedLM,
            "vilt vqa": ViltForQuestionAnswering,
            "vilt nlvr2": ViltForImagesAndTextClassification,
            "vilt mlm": ViltForMaskedLM,
        }
        config.id2label = dict(enumerate(("false", "true"))) if kind == "nlvr2" else ANSWERS
        if kind == "nlvr2":
            config.num_images, config.modality_type_vocab_size = 2, 3
        config.tie_word_embeddings = False  # Transformers 4's default for its ViLT, not for ours
        model = alive(heads[f"{family} {kind}"](config))

        def own_logits(batch):
            inputs = {name: batch[name] for name in MODEL_INPUTS}
            if kind == "matching":
                return model.itm_score(model.vilt(**inputs).pooler_output)
            logits = model(**inputs).logits
            if kind != "mlm":
                return logits
            places = [row.tolist().index(4) for row in batch["input_ids"]]  # [MASK]
            return torch.stack([logits[row, place] for row, place in enumerate(places)])

        return model, self.processor, kind, own_logits

    def vit(self):
        model = alive(ViTForImageClassification(ViTConfig(**VISION, num_labels=3)))
        images = ViTImageProcessor(size={"height": 32, "width": 32})
        return model, images, "image-classification", lambda batch: model(batch["pixel_values"]).logits

    def resnet(self):
        config = ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3
        )
        model = alive(ResNetForImageClassification(config))
        images = ViTImageProcessor(size={"height": 32, "width": 32})
        return model, images, "image-classification", lambda batch: model(batch["pixel_values"]).logits

    def clip(self):
        text = {**TOWER, "vocab_size": 65, "max_position_embeddings": 20}
        text |= {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
        model = alive(CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16)))
        images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
        return self.dual(model, images)

    def siglip(self):
        text = {**TOWER, "vocab_size": 65, "max_position_embeddings": 20}
        text |= {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
        model = alive(SiglipModel(SiglipConfig(text_config=text, vision_config=VISION)))
        return self.dual(model, SiglipImageProcessor(size={"height": 32, "width": 32}))

    def dual(self, model, images):
        inputs = self.processor.tokenizer(
            ["a red dog", "a cat", "the blue car"],
            padding=True,
            return_token_type_ids=False,
            return_tensors="pt",
        )
        victim = dual_encoder(model, inputs, images)

        def own_logits(batch):
            return model(**inputs, pixel_values=batch["pixel_values"]).logits_per_image

        return victim, images, "image-classification", own_logits


def alive(model):
    """Weights large enough for answers to differ, in eval mode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model.eval()


PAIR_MODELS = [f"rmcl {task}" for task in ("vqa", "nlvr2", "matching", "mlm")]
PAIR_MODELS += [f"vilt {task}" for task in ("vqa", "nlvr2", "mlm")]
IMAGE_MODELS = ["vit", "resnet", "clip", "siglip"]


@pytest.fixture
def zoo(processor, tiny_config, vilt_config):
    return Zoo(processor, tiny_config, vilt_config)


@pytest.fixture
def case(zoo, data):
    """Model, processor, task, rows, batch with `clean_embedding`, and the model's own logits."""

    def build(name):
        model, processor, kind, own_logits = zoo[name]
        task = build_task(kind, model, processor)
        batch = task.collate(list(data[kind]))
        return model, processor, task, data[kind], batch, own_logits

    return build


@pytest.mark.parametrize("name", PAIR_MODELS + IMAGE_MODELS)
class TestEveryModel:
    def test_logits_are_the_models_own(self, name, case):
        model, processor, task, _, batch, own_logits = case(name)
        with torch.no_grad():
            expected = own_logits(batch)
        victim = as_victim(model, processor, task.name)
        logits = victim.predict(batch)
        # SigLIP adds the same number to all, which changes no probability.
        shift = (expected - logits).mean(dim=1, keepdim=True) if name == "siglip" else 0.0
        torch.testing.assert_close(logits + shift, expected, rtol=1e-4, atol=1e-5)
        assert logits.std(dim=0).max() > 1e-3  # the images and texts make a difference

    def test_pixels_are_attacked_and_epsilon_is_in_pixels(self, name, case):
        """One step from the clean image, computed by hand in pixels in [0, 1]."""
        model, processor, task, rows, batch, own_logits = case(name)
        images = getattr(processor, "image_processor", processor)
        mean, std = (torch.tensor(value).reshape(3, 1, 1) for value in (images.image_mean, images.image_std))
        pixels = (batch["pixel_values"] * std + mean).clamp(0, 1).requires_grad_()
        logits = own_logits({**batch, "pixel_values": (pixels - mean) / std})
        labels = batch["labels"] if batch["labels"].ndim == 1 else batch["labels"].argmax(dim=1)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), pixels)
        real = (batch["pixel_mask"] != 0).unsqueeze(-3)
        attacked = ((pixels + EPSILON * gradient.sign()).clamp(0, 1) - mean) / std
        expected = torch.where(real, attacked, batch["pixel_values"]).detach()

        victim = as_victim(model, processor, task.name)
        fgsm = PGD(EPSILON, EPSILON, 1, image_mean=victim.image_mean, image_std=victim.image_std)
        found = fgsm(batch, task_objective(victim, "cross-entropy")).batch["pixel_values"]
        changed = (found != batch["pixel_values"]).flatten(1).any(dim=1)  # the others: the step did not pay
        assert changed.float().mean() >= 0.5
        same = (found - expected).abs() < 1e-4
        assert same[changed].float().mean() > 0.995  # the sign of a gradient next to zero is rounding
        outcomes = attack_task(victim, rows, task, {"fgsm": LossAttack(fgsm)}, batch_size=4).outcomes
        assert max(row.delta_linf for row in outcomes) == pytest.approx(EPSILON, abs=1e-6)
        assert all(
            row.loss_after > row.loss_before for row, moved in zip(outcomes, changed, strict=True) if moved
        )

    def test_one_call(self, name, case, monkeypatch):
        monkeypatch.setitem(attack_suite.EFFORTS, "quick", Effort(1, 2, 1))
        model, processor, task, rows, batch, own_logits = case(name)
        threat = "linf-4" if name in IMAGE_MODELS else "typos-1"  # pixels of pairs: the test before
        evaluation = evaluate_robustness(
            model, processor, rows, task.name, [threat], batch_size=4, effort="quick"
        )
        with torch.no_grad():
            predictions = own_logits(batch).argmax(dim=1).tolist()
        outcomes = [row for row in evaluation.outcomes if row.attack == threat]
        assert [row.clean_prediction for row in outcomes] == predictions
        assert any(row.loss_after > row.loss_before + 1e-4 for row in outcomes)
        assert max(row.words_changed for row in outcomes) == (0 if threat == "linf-4" else 1)
        numbers = evaluation.record["threats"][threat]["numbers"]["overall"]
        assert numbers["max_delta_linf"] == pytest.approx(EPSILON if threat == "linf-4" else 0, abs=1e-6)
        assert numbers["clean_accuracy"]["value"] == np.mean([row.clean_correct for row in outcomes])


class TestTransformersVilt:
    def test_patch_order_neither_shows_nor_moves_the_global_random_state(self, case):
        for name in ("vilt vqa", "vilt nlvr2", "vilt mlm"):
            model, processor, task, _, batch, _ = case(name)
            victim = as_victim(model, processor, task.name)
            answers = []
            for seed in (1, 2):
                torch.manual_seed(seed)
                state = torch.get_rng_state()
                answers.append(victim.predict(batch))
                assert torch.equal(torch.get_rng_state(), state)
            assert torch.equal(*answers)

    def test_one_which_drops_patches_at_random_is_refused(self, vilt_config):
        vilt_config.max_image_length = 3
        model = ViltForQuestionAnswering(vilt_config)
        with pytest.raises(ValueError, match=r"max_image_length is 3.*Set model.config.max_image_length"):
            as_victim(model)
        model.config.max_image_length = -1
        assert as_victim(model).reads_text

    @pytest.mark.parametrize("kind", ["vqa", "nlvr2", "mlm"])
    def test_same_weights_as_ours_give_the_same_answers_and_outcomes(self, kind, case, synonyms):
        theirs, processor, task, rows, batch, _ = case(f"vilt {kind}")
        ours, _, _, _, _, _ = case(f"rmcl {kind}")
        with torch.no_grad():
            for parameter in ours.parameters():
                parameter.zero_()
        loaded = ours.load_state_dict(theirs.state_dict(), strict=False)
        assert not loaded.unexpected_keys
        assert set(loaded.missing_keys) <= {"mlm_score.bias"}  # Transformers 4's name, which ours never reads
        pair = [as_victim(model, processor, kind) for model in (theirs, ours)]
        torch.testing.assert_close(*(victim.predict(batch) for victim in pair), rtol=1e-4, atol=1e-5)

        def attacks():
            pixels = [PGD(EPSILON, EPSILON / 2, 3, gradient="l2", random_start=start) for start in (0, 1)]
            words = GeometryAttack(processor.tokenizer, synonyms, max_change_share=1.0)
            return {
                "margin": LossAttack(pixels[0], "margin"),
                "distance": LossAttack(pixels[1], "distance"),
                "words": LossAttack(words),
            }

        first, second = (attack_task(victim, rows, task, attacks(), batch_size=4) for victim in pair)
        for one, other in zip(first.outcomes, second.outcomes, strict=True):
            assert one.adversarial_text == other.adversarial_text
            assert (one.clean_prediction, one.adversarial_prediction) == (
                other.clean_prediction,
                other.adversarial_prediction,
            )
            assert one.loss_after == pytest.approx(other.loss_after, rel=1e-3, abs=1e-4)
        assert any(row.words_changed for row in first.outcomes)


@pytest.fixture
def synonyms():
    return SynonymTable(
        {
            "mask": [("face", 0.9)],
            "dog": [("puppy", 0.9), ("cat", 0.6)],
            "small": [("tiny", 0.9)],
            "big": [("large", 0.9)],
            "car": [("auto", 0.9)],
            "happy": [("glad", 0.9)],
            "round": [("red", 0.6)],
            "house": [("flower", 0.6)],
        }
    )


class TestMaskedWords:
    def test_found_in_embedded_words_too(self, case):
        for name in ("rmcl mlm", "vilt mlm"):
            model, processor, task, _, batch, _ = case(name)
            victim = as_victim(model, processor, task.name)
            assert victim.word_embeddings is not None
            embedded = {**batch, "inputs_embeds": victim.word_embeddings(batch["input_ids"])}
            del embedded["input_ids"]
            torch.testing.assert_close(victim.predict(embedded), victim.predict(batch))

    def test_word_attacks_leave_the_mask_alone(self, case, synonyms):
        model, processor, task, rows, batch, _ = case("rmcl mlm")
        geometry = GeometryAttack(processor.tokenizer, synonyms, max_change_share=1.0, max_loops=20)
        outcomes = attack_task(model, rows, task, {"words": geometry}, batch_size=4).outcomes
        assert sum(row.words_changed for row in outcomes) >= 2
        for row, masked in zip(outcomes, batch["text"], strict=True):
            places = [text.split().index("[MASK]") for text in (masked, row.adversarial_text)]
            assert places[0] == places[1]
            assert row.adversarial_text.count("[MASK]") == 1

    @pytest.mark.parametrize("text", ["the [MASK] and the [MASK]", "no word is hidden"])
    def test_one_word_is_masked_or_the_batch_is_refused(self, case, text):
        model, processor, task, _, batch, _ = case("rmcl mlm")
        batch = {**batch, **processor.tokenizer([text] * 4, return_tensors="pt")}
        with pytest.raises(ValueError, match=r"masked words; expected one in each.*Mask one word"):
            as_victim(model, processor, task.name).predict(batch)


class BagOfBoth(nn.Module):
    """A model of somebody's own: mean word times mean colour."""

    def __init__(self, vocabulary):
        super().__init__()
        self.table = nn.Embedding(vocabulary, 6)
        self.colour = nn.Linear(3, 6)
        self.answer = nn.Linear(6, 3)

    def fuse(self, words, mask, pixels):
        mask = mask.unsqueeze(-1)
        return (words * mask).sum(1) / mask.sum(1) * self.colour(pixels.mean(dim=(2, 3)))


def my_victim(model):
    def embed(batch):
        words = batch["inputs_embeds"] if "inputs_embeds" in batch else model.table(batch["input_ids"])
        return model.fuse(words, batch["attention_mask"], batch["pixel_values"])

    return Victim(
        module=model,
        embed=embed,
        logits=lambda embedding, batch: model.answer(embedding),
        word_embeddings=model.table,
    )


def my_task(processor):
    collate = QuestionCollator(processor, list(ANSWERS.values()), max_unreadable=0)
    return Task("mine", collate, VQA_COLUMNS, tokenizer=processor.tokenizer)


class TestOwnModel:
    def test_example_is_true(self):
        results = doctest.testmod(victims)
        assert results.attempted > 0
        assert results.failed == 0

    def test_twenty_lines_are_enough(self, processor, data, monkeypatch):
        monkeypatch.setitem(attack_suite.EFFORTS, "quick", Effort(2, 3, 2))
        lines = [line for adapter in (my_victim, my_task) for line in inspect.getsource(adapter).splitlines()]
        assert len([line for line in lines if line.strip()]) <= 20
        model = alive(BagOfBoth(len(processor.tokenizer)))
        threats = ["linf-8", "typos-1"]
        evaluation = evaluate_robustness(
            my_victim(model),
            processor,
            data["vqa"],
            my_task(processor),
            threats,
            batch_size=4,
            effort="quick",
        )
        attacked = {row.attack for row in evaluation.outcomes if row.loss_after > row.loss_before + 1e-5}
        assert attacked >= {*threats, "linf-8/pgd", "typos-1/geometry"}

    def test_a_victim_stays_itself_but_for_its_defence(self, processor):
        victim = my_victim(BagOfBoth(len(processor.tokenizer)))
        assert as_victim(victim, processor, "mlm") is victim
        defended = as_victim(victim, defence="random resizing")
        assert defended.defence == "random resizing"
        assert (defended.embed, victim.defence) == (victim.embed, None)


class TestErrors:
    def test_unknown_model(self):
        with pytest.raises(ValueError, match=r"Linear has neither joint_rep.*dual_encoder.*Victim"):
            as_victim(nn.Linear(1, 1))

    def test_head_for_ranking(self, vilt_config):
        with pytest.raises(ValueError, match="ViltForImageAndTextRetrieval has neither"):
            as_victim(ViltForImageAndTextRetrieval(vilt_config))

    def test_masked_words_from_another_head(self, zoo):
        model, *_ = zoo["rmcl vqa"]
        with pytest.raises(ValueError, match=r"no vilt and mlm_score.*load the model with AutoModel"):
            as_victim(model, task="mlm")

    def test_image_model_without_a_head(self):
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
        victim = as_victim(ResNetModel(config).eval())
        with pytest.raises(ValueError, match=r"has no logits; load the model with its head"):
            victim.predict({"pixel_values": torch.zeros(1, 3, 32, 32)})

    def test_processor_without_images(self, zoo, tiny_tokenizer):
        model, *_ = zoo["rmcl vqa"]
        with pytest.raises(ValueError, match="has no image_mean, so epsilon cannot be put into pixels"):
            as_victim(model, tiny_tokenizer)

    def test_pixels_that_are_not_normalised(self, zoo):
        images = ViTImageProcessor(do_normalize=False)
        victim = as_victim(zoo["vit"][0], images)
        assert (victim.image_mean, victim.image_std) == (0.0, 1.0)
