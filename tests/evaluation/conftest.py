"""A toy model, data set and attacks whose behaviour is known by hand."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import BertTokenizerFast, ViltImageProcessor, ViltProcessor

from rmcl_hub.attacks.base import AttackResult
from rmcl_hub.attacks.threat_model import ThreatModel
from rmcl_hub.datasets_scripts.corpora import CORPORA
from rmcl_hub.datasets_scripts.miniatures import write_coco_captions
from rmcl_hub.datasets_scripts.prepare import prepare
from rmcl_hub.datasets_scripts.vocabulary import vocabulary_path

COCO_SPLITS = ("train", "restval", "validation", "test")
WORDS = ["[PAD]", "red", "blue", "apple", "boat", "is", "it"]


class ToyPairModel(nn.Module):
    """Joint representation = (mean pixel, mean word vector); logits = linear head. Smooth and tiny."""

    def __init__(self, num_answers=2, hidden=4):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.words = nn.Embedding(len(WORDS), hidden)
        self.head = nn.Linear(3 + hidden, num_answers)
        self.dropout = nn.Dropout(0.5)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def get_input_embeddings(self):
        return self.words

    def joint_representation(
        self,
        pixel_values,
        pixel_mask,
        attention_mask,
        input_ids=None,
        inputs_embeds=None,
        token_type_ids=None,
    ):
        vectors = self.words(input_ids) if inputs_embeds is None else inputs_embeds
        mask = attention_mask[..., None].float()
        text = (vectors * mask).sum(dim=1) / mask.sum(dim=1)
        image = (
            pixel_values.flatten(2).mean(dim=2)
            if pixel_values.ndim == 4
            else pixel_values.mean(dim=(1, 3, 4))
        )
        return self.dropout(torch.cat([image, text], dim=1))

    def logits_from_joint(self, joint):
        return self.head(joint)


class ShiftAttack:
    """Adds a constant to every real pixel and appends a word: what happens to the loss is left to chance."""

    def __init__(self, shift=0.0, epsilon=None, word=None):
        self.shift, self.word = shift, word
        text = {"max_change_share": 1.0, "word_edits": "synonyms"} if word else {}
        modality = "both" if word and shift else "text" if word else "image"
        if modality != "text":
            text["epsilon"] = abs(shift) if epsilon is None else epsilon
            text["norm"] = "linf"
        self.threat_model = ThreatModel(modality=modality, **text)

    def __call__(self, batch, objective):
        mask = batch["pixel_mask"].unsqueeze(-3)
        pixels = batch["pixel_values"] + 2 * self.shift * mask
        attacked = {**batch, "pixel_values": pixels}
        if self.word:
            attacked["text"] = [f"{text} {self.word}" for text in batch["text"]]
            attacked.update(encode(attacked["text"]))
        with torch.no_grad():
            before, after = objective(batch), objective(attacked)
        return AttackResult(attacked, before, after, forwards=2 * len(before), backwards=0)


def encode(texts):
    ids = [[WORDS.index(word) for word in text.split()] for text in texts]
    width = max(map(len, ids))
    input_ids = torch.tensor([row + [0] * (width - len(row)) for row in ids])
    return {
        "input_ids": input_ids,
        "attention_mask": (input_ids > 0).long(),
        "token_type_ids": torch.zeros_like(input_ids),
    }


def toy_collate(rows):
    pixels = torch.stack([row["pixels"] for row in rows])
    mask = torch.ones(len(rows), *pixels.shape[-2:], dtype=torch.long)
    mask[:, :, -1] = 0  # the last column is padding
    return {
        **encode([row["question"] for row in rows]),
        "pixel_values": pixels * mask[:, None],
        "pixel_mask": mask,
        "labels": torch.stack([torch.as_tensor(row["label"]) for row in rows]),
        "text": [row["question"] for row in rows],
    }


@pytest.fixture
def model():
    return ToyPairModel()


@pytest.fixture
def collate():
    return toy_collate


@pytest.fixture
def shift_attack():
    return ShiftAttack


@pytest.fixture
def rows():
    """Twelve questions about four concepts; pixels in [-0.5, 0.5] of the normalised space."""
    generator = torch.Generator().manual_seed(1)
    texts = ["it is red", "is it blue", "red apple", "blue boat is red"]
    return [
        {
            "question_id": f"q{index}",
            "concept": f"concept{index % 4}",
            "question_type": "colour" if index % 2 else "object",
            "question": texts[index % 4],
            "pixels": torch.rand(3, 4, 5, generator=generator) - 0.5,
            "label": index % 2,
        }
        for index in range(12)
    ]


@pytest.fixture
def outcomes(random_outcomes_of):
    """Eight examples with known counts: 6 clean right, 3 of them survive, one wrong becomes right."""
    clean = [1, 1, 1, 1, 1, 1, 0, 0]
    attacked = [1, 1, 1, 0, 0, 0, 1, 0]
    template = random_outcomes_of(0, 1.0, {"pgd-4": 0.0}, num_examples=8)
    return [
        replace(
            row,
            clean_correct=bool(before),
            adversarial_correct=bool(after),
            clean_prediction=before,
            adversarial_prediction=after,
        )
        for row, before, after in zip(template, clean, attacked, strict=True)
    ]


@pytest.fixture(scope="session")
def coco(tmp_path_factory):
    """Folder of a prepared miniature COCO."""
    return prepare_coco(tmp_path_factory.mktemp("coco"), COCO_SPLITS)


@pytest.fixture(scope="session")
def coco_without_test(tmp_path_factory):
    """The same as far as somebody got who forgot the test split."""
    return prepare_coco(tmp_path_factory.mktemp("coco-train"), COCO_SPLITS[:-1])


def prepare_coco(folder, splits):
    write_coco_captions(folder / "official")
    prepare(
        CORPORA["coco_captions"],
        folder / "official",
        folder / "shards",
        splits,
        num_workers=1,
        unofficial=True,
    )
    return folder / "shards"


@pytest.fixture
def save_tiny(tmp_path, tiny_config):
    """Function from a model class to the folder of a random model of it, with its processor."""
    tokenizer = BertTokenizerFast(str(vocabulary_path()))
    tiny_config.vocab_size, tiny_config.cls_token_id = len(tokenizer), tokenizer.cls_token_id

    def save(model_class, **settings):
        for name, value in settings.items():
            setattr(tiny_config, name, value)
        folder = tmp_path / model_class.__name__
        model_class(tiny_config).save_pretrained(folder)
        images = ViltImageProcessor(size={"shortest_edge": 32}, size_divisor=16)
        ViltProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
        return folder

    return save
