"""A toy model, data set and attacks whose behaviour is known by hand."""

import copy
from dataclasses import replace

import numpy as np
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
from rmcl_hub.evaluation.compare import RETENTION, compare_models, count_conclusions
from rmcl_hub.evaluation.outcomes import Outcome, summarise
from rmcl_hub.evaluation.pictures import picture_pair
from rmcl_hub.evaluation.retrieval import recall_numbers

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


def random_outcomes(seed, clean_rate, success_rates, num_examples=160):
    """Outcomes drawn with given rates, four questions per concept."""
    generator = np.random.default_rng(seed)
    outcomes = []
    for index in range(num_examples):
        clean_correct = bool(generator.random() < clean_rate)
        for attack, success in success_rates.items():
            robust = clean_correct and bool(generator.random() >= success)
            words = 0 if attack.startswith("pgd") else 1
            outcomes.append(
                Outcome(
                    id=f"q{index}",
                    cluster=f"concept{index // 4}",
                    question_type=("colour", "object")[index % 2],
                    attack=attack,
                    found_by=attack,
                    label=1,
                    clean_prediction=int(clean_correct),
                    adversarial_prediction=int(robust),
                    clean_correct=clean_correct,
                    adversarial_correct=robust,
                    loss_before=0.5,
                    loss_after=1.5,
                    correct_8bit=robust,
                    delta_linf=0.0 if words else 4 / 255,
                    delta_l2=0.0 if words else 0.5,
                    words_changed=words,
                    num_words=5,
                    text="is the <b>big</b> boat red",
                    adversarial_text="is the large boat red" if words else "is the <b>big</b> boat red",
                )
            )
    return outcomes


def toy_results():
    """A complete `Results`: two models, two seeds, two attacks, retention, retrieval, curves and pictures."""
    rates = {"control": (0.7, {"pgd-4": 0.5, "words": 0.3}), "rmcl": (0.7, {"pgd-4": 0.2, "words": 0.3})}
    runs = {
        key: {seed: random_outcomes(10 * seed + index, *rates[key]) for seed in (0, 1)}
        for index, key in enumerate(rates)
    }
    task = compare_models(runs["control"], runs["rmcl"], task="VQA", protocol="frozen", num_resamples=200)
    retention = compare_models(runs["control"], runs["rmcl"], task=RETENTION, protocol="", num_resamples=200)
    scores = np.random.default_rng(0).random((12, 12)) + np.eye(12)
    numbers = recall_numbers(scores, np.eye(12, dtype=bool))
    retrieval = {"scorer": "dual", "forwards": 24, "text_to_image": numbers, "image_to_text": numbers}
    ramp = torch.linspace(0, 1, 48).expand(3, 48, 48).clone()
    noise = (torch.rand(3, 48, 48, generator=torch.Generator().manual_seed(0)) - 0.5).sign() * 4 / 255
    mask = torch.ones(48, 48, dtype=torch.long)
    pairs = [
        picture_pair(runs["control"][0][index], ramp, (ramp + noise).clamp(0, 1), mask) for index in (0, 1)
    ]
    curve = {
        str(name): [[step, 5 / (1 + step / 20) + name] for step in range(0, 200, 2)] for name in range(2)
    }
    return {
        "title": "Quickstart <report>",
        "summary": [count_conclusions(task), "Control and RMCL start from the same checkpoint."],
        "config": {"steps": 10, "name": "<script>alert(1)</script>"},
        "seeds": [0, 1],
        "versions": {"torch": "2.0", "python": "3.11"},
        "revision": {"git": "abc123", "data": "def456"},
        "data": {"train": {"pictures": 100}, "test": {"questions": 160, "concepts": 40}},
        "baselines": {"VQA": {"majority": 0.3}},
        "threat_models": {"pgd-4": "white-box attack on image: linf 4/255", "words": "one word in five"},
        "cost": {
            attack: {"forwards": 11.0, "backwards": 10.0, "seconds": 0.02} for attack in ("pgd-4", "words")
        },
        "seconds": {"pretrain": 12.0, "evaluate": 3.0},
        "models": {
            key: {
                "name": name,
                "description": "Trained on drawings.",
                "tasks": {"VQA": {"frozen": summarise(runs[key])}},
                "retention": summarise(runs[key]),
                "retrieval": {"openpairs": retrieval},
            }
            for key, name in (("control", "Continued"), ("rmcl", "RMCL"))
        },
        "comparisons": task + retention,
        "curves": [{"title": "Loss", "x_label": "step", "y_label": "nats", "series": curve}],
        "examples": [
            {
                **pair,
                "model": "control",
                "task": "VQA",
                "protocol": "frozen",
                "answers": ["no", "yes & <i>no</i>"],
            }
            for pair in pairs
        ],
        "notes": ["The pictures are drawings."],
    }


@pytest.fixture(scope="session")
def session_results():
    return toy_results()


@pytest.fixture
def results(session_results):
    return copy.deepcopy(session_results)


@pytest.fixture
def outcomes():
    """Eight examples with known counts: 6 clean right, 3 of them survive, one wrong becomes right."""
    clean = [1, 1, 1, 1, 1, 1, 0, 0]
    attacked = [1, 1, 1, 0, 0, 0, 1, 0]
    template = random_outcomes(0, 1.0, {"pgd-4": 0.0}, num_examples=8)
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


@pytest.fixture
def random_outcomes_of():
    return random_outcomes


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
