"""Eight in-memory pairs, real attacks of toy size, and trainers over them."""

from itertools import chain

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import TrainerCallback, ViltImageProcessor, ViltProcessor, set_seed

from rmcl_hub.attacks.base import AttackResult
from rmcl_hub.attacks.geometry import GeometryAttack
from rmcl_hub.attacks.pgd import PGD
from rmcl_hub.attacks.synonyms import SynonymTable

SYNONYMS = {
    "dog": [("puppy", 0.8)],
    "big": [("large", 0.9)],
    "small": [("tiny", 0.9)],
    "happy": [("glad", 0.8)],
    "car": [("auto", 0.8)],
    "tree": [("flower", 0.6)],
    "ball": [("apple", 0.6)],
    "house": [("heart", 0.6)],
    "sits": [("eats", 0.6)],
    "runs": [("holds", 0.6)],
}
CAPTIONS = [
    ["a big dog runs .", "the dog sits"],
    ["the small cat sits near a tree .", "a tree and a cat"],
    ["a blue ball .", "the ball near a car"],
    ["two birds and a happy child .", "a happy child sits"],
    ["a big car near the house", "the auto"],
    ["a sad man sits in a small house .", "the man runs"],
    ["the happy dog eats an apple", "a dog and a small ball"],
    ["a tree in the red sun .", "a big tree"],
]


@pytest.fixture
def processor(tiny_tokenizer):
    """Images of 32 x 32 pixels, and the toy vocabulary."""
    images = ViltImageProcessor(size={"shortest_edge": 32}, size_divisor=16)
    return ViltProcessor(image_processor=images, tokenizer=tiny_tokenizer)


@pytest.fixture
def pairs():
    """Eight rows with an image, its id and two captions; mid-grey noise leaves room for a perturbation."""
    pixels = np.random.default_rng(0).integers(40, 216, size=(len(CAPTIONS), 32, 32, 3), dtype=np.uint8)
    return [
        {"image": Image.fromarray(image), "image_id": f"image-{row}", "captions": captions}
        for row, (image, captions) in enumerate(zip(pixels, CAPTIONS, strict=True))
    ]


class RecordingAttack:
    """Runs an attack and keeps what went in and came out."""

    def __init__(self, attack):
        self.attack = attack
        self.clean, self.results = [], []

    @property
    def generator(self):
        return getattr(self.attack, "generator", None)

    def __call__(self, batch, objective):
        result = self.attack(batch, objective)
        self.clean.append(batch)
        self.results.append(result)
        return result


class NoAttack:
    """Hands back the clean batch."""

    def __call__(self, batch, objective):
        loss = objective(batch).detach()
        return AttackResult(dict(batch), loss, loss, forwards=len(loss), backwards=0)


class InParts:
    """Collates a batch as processes or micro-batches do, each its part, and puts the parts together."""

    def __init__(self, collator, part):
        self.collator, self.part = collator, part

    @property
    def epoch(self):
        return self.collator.epoch

    @epoch.setter
    def epoch(self, epoch):
        self.collator.epoch = epoch

    def __call__(self, examples):
        parts = [
            self.collator(examples[start : start + self.part]) for start in range(0, len(examples), self.part)
        ]
        batch = {}
        for name, first in parts[0].items():
            values = [part[name] for part in parts]
            if isinstance(first, list):
                batch[name] = list(chain(*values))
            elif name == "itm_image_index":
                batch[name] = torch.cat([value + index * self.part for index, value in enumerate(values)])
            else:
                width = max(value.shape[-1] for value in values)
                filler = -100 if name == "mlm_labels" else 0
                values = [F.pad(value, (0, width - value.shape[-1]), value=filler) for value in values]
                batch[name] = torch.cat(values)
        return batch


class GradientRecorder(TrainerCallback):
    """Keeps the gradients of every step, as the optimiser gets them."""

    def __init__(self):
        self.gradients = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        named = model.named_parameters()
        self.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})


@pytest.fixture
def in_parts():
    """`InParts`: a function from a collator and the size of a part to a collator of whole batches."""
    return InParts


@pytest.fixture
def recorder():
    """A callback of a trainer that keeps each step's `gradients` by name."""
    return GradientRecorder()


@pytest.fixture
def no_attack():
    return NoAttack()


@pytest.fixture
def image_attack():
    return RecordingAttack(PGD(epsilon=0.1, step_size=0.05, num_steps=2))


@pytest.fixture
def text_attack(tiny_tokenizer):
    table = SynonymTable(SYNONYMS)
    return RecordingAttack(GeometryAttack(tiny_tokenizer, table, max_change_share=0.5, max_length=24))


@pytest.fixture
def tiny_model(tiny_config):
    """A function from configuration fields to a pre-training model whose embeddings differ between pairs."""
    from rmcl_hub.modeling_rmcl import RMCLViltForPreTraining

    def build(**fields):
        for name, value in fields.items():
            setattr(tiny_config, name, value)
        set_seed(0)
        model = RMCLViltForPreTraining(tiny_config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        return model

    return build


@pytest.fixture
def build_trainer(tiny_model, processor, pairs, image_attack, text_attack, tmp_path):
    """A function to an `RMCLTrainer` on the CPU: SGD without clipping, so that weights show gradients."""
    from rmcl_hub.datasets_scripts.task_collators import PairCollator
    from rmcl_hub.trainers.arguments import RMCLArguments, training_arguments
    from rmcl_hub.trainers.rmcl_trainer import RMCLTrainer

    def build(model=None, collator=None, attacks=(image_attack, text_attack), **training):
        given = {
            "use_cpu": True,
            "disable_tqdm": True,
            "optim": "sgd",
            "learning_rate": 0.1,
            "max_grad_norm": 0.0,
            "max_steps": 1,
            "per_device_train_batch_size": 8,
            "logging_steps": 1,
            **training,
        }
        output_dir = given.pop("output_dir", str(tmp_path / "run"))
        eval_dataset = given.pop("eval_dataset", None)
        return RMCLTrainer(
            model=model if model is not None else tiny_model(momentum=0.5),
            args=training_arguments(RMCLArguments, output_dir, given),
            train_dataset=pairs,
            eval_dataset=eval_dataset,
            data_collator=collator or PairCollator(processor, max_text_length=24),
            image_attack=attacks[0],
            text_attack=attacks[1],
        )

    return build


@pytest.fixture
def clean_batch(processor, pairs):
    """All pairs with their first captions."""
    from rmcl_hub.datasets_scripts.task_collators import PairCollator

    return PairCollator(processor, max_text_length=24, draw_caption=False)(pairs)


@pytest.fixture
def caption_manifest():
    """A function that writes a manifest of captions with one shard a split, and the shards if told so."""
    from rmcl_hub.datasets_scripts.shards import SUFFIXES, Manifest, Shard, SplitManifest

    def build(folder, corpus, rows, write=False, shard_format="parquet"):
        (folder / "data").mkdir(parents=True)
        manifest = Manifest(corpus, "captions", "1.0.0", "", format=shard_format)
        for split, number in rows.items():
            file = f"data/{split}-00000-of-00001{SUFFIXES[shard_format]}"
            manifest.splits[split] = SplitManifest(number, number, number, {}, [Shard(file, number, 4, "")])
            if write:
                (folder / file).write_bytes(b"rows")
        (folder / "manifest.json").write_text(manifest.to_json())
        return folder

    return build
