"""The tasks that models are attacked on: how rows become labelled batches, and which columns name them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rmcl_hub.attacks.base import Batch
from rmcl_hub.attacks.synonyms import STOP_WORDS
from rmcl_hub.datasets_scripts.task_collators import PairCollator, QuestionCollator, StatementCollator

from .attack_loop import CAPTION_COLUMNS, NLVR2_COLUMNS, VQA_COLUMNS, Collate, Columns


@dataclass(frozen=True)
class Task:
    """A labelled task.

    Attributes:
        name: `"vqa"`, `"nlvr2"`, `"matching"`, `"mlm"`, `"image-classification"`, or a name of your own.
        collate: Rows to a batch with `text`, `labels` (class index `(batch,)` or soft scores `(batch,
            classes)`), `pixel_values`, `pixel_mask`, and `input_ids`, `attention_mask` of the texts.
        columns: Which columns name an example, its cluster and its stratum.
        answers: Names of the classes, for reports; empty if they are too many.
        tokenizer: The one behind `input_ids`; None for tasks without text.
        max_text_length: Its truncation length, special tokens included.
    """

    name: str
    collate: Collate
    columns: Columns
    answers: Sequence[str] = ()
    tokenizer: Any = None
    max_text_length: int = 40


def build_task(name: str, model: Any, processor: Any, max_text_length: int = 40) -> Task:
    """One of the built-in tasks for a model.

    Rows of `"vqa"` have `image`, `question_id`, `question`, `question_type`, `concept`, `answers`, `scores`;
    of `"nlvr2"`: `left_image`, `right_image`, `identifier`, `statement`, `statement_type`, `concept`,
    `label`; of `"matching"`: `image`, `image_id`, `concept`, `caption`, `label` (see `matching_pairs`); of `"mlm"`:
    `image`, `image_id`, `concept`, `captions` (the first one is used); of `"image-classification"`: `image`,
    `image_id`, `label`.

    Raises:
        ValueError: If there is no such task, or the model's head does not fit it.
    """
    if name not in _BUILDERS:
        raise ValueError(
            f"There is no task {name!r}; choose one of {', '.join(_BUILDERS)}, or pass a Task of your own."
        )
    tokenizer = getattr(processor, "tokenizer", None)
    if name != "image-classification" and tokenizer is None:
        raise ValueError(
            f"Task {name!r} needs a processor with a tokenizer, got {type(processor).__name__}; "
            "load it with AutoProcessor.from_pretrained."
        )
    return _BUILDERS[name](model, processor, max_text_length)


def _vqa(model: Any, processor: Any, max_text_length: int) -> Task:
    answers = _class_names(model, "vqa")
    collator = QuestionCollator(processor, answers, max_text_length=max_text_length, max_unreadable=0)
    return Task("vqa", collator, VQA_COLUMNS, answers, processor.tokenizer, max_text_length)


def _nlvr2(model: Any, processor: Any, max_text_length: int) -> Task:
    collator = StatementCollator(processor, max_text_length=max_text_length, max_unreadable=0)
    return Task("nlvr2", collator, NLVR2_COLUMNS, ("false", "true"), processor.tokenizer, max_text_length)


def _matching(model: Any, processor: Any, max_text_length: int) -> Task:
    collator = MatchingCollator(processor, max_text_length=max_text_length, max_unreadable=0)
    return Task(
        "matching", collator, CAPTION_COLUMNS, ("no pair", "pair"), processor.tokenizer, max_text_length
    )


def _masked_words(model: Any, processor: Any, max_text_length: int) -> Task:
    collator = MaskedWordCollator(
        processor, max_text_length=max_text_length, max_unreadable=0, draw_caption=False
    )
    return Task("mlm", collator, CAPTION_COLUMNS, (), processor.tokenizer, max_text_length)


def _image_classification(model: Any, processor: Any, max_text_length: int) -> Task:
    columns = Columns(id="image_id", cluster="image_id", question_type="")
    image_processor = getattr(processor, "image_processor", processor)
    return Task("image-classification", LabelledImageCollator(image_processor), columns)


_BUILDERS = {
    "vqa": _vqa,
    "nlvr2": _nlvr2,
    "matching": _matching,
    "mlm": _masked_words,
    "image-classification": _image_classification,
}
TASKS = tuple(_BUILDERS)


def matching_pairs(dataset: Any, seed: int = 0) -> Any:
    """True and false pairs from captioned images: one row per image, every second one with a caption that
    belongs to another image.

    Args:
        dataset: Map-style `datasets.Dataset` with `image`, `image_id`, `concept` and `captions`.
        seed: Of the permutation that the false captions come from.

    Raises:
        ValueError: If there are fewer than two images.
    """
    if len(dataset) < 2:
        raise ValueError(f"false pairs need at least two images, got {len(dataset)}.")
    captions = dataset["captions"]
    order = np.random.default_rng(seed).permutation(len(captions))
    texts, labels = [own[0] for own in captions], [1] * len(captions)
    # Every second image of a random order takes the first caption of the next one, unless that is its own.
    for place in range(0, len(order) - 1, 2):
        row, other = int(order[place]), int(order[place + 1])
        if captions[other][0] not in captions[row]:
            texts[row], labels[row] = captions[other][0], 0
    return dataset.add_column("caption", texts).add_column("label", labels)


class MatchingCollator(PairCollator):
    """Pairs that are true or not; `labels (batch,)`, 1 = the text is the image's own."""

    def __call__(self, examples: Sequence[dict[str, Any]]) -> Batch:
        """Collate rows with `image`, `image_id`, `caption` and `label`."""
        examples, images = self.readable(examples, "image")
        labels = torch.tensor([int(example["label"]) for example in examples])
        return {**self.encode(images, [example["caption"] for example in examples]), "labels": labels}


class MaskedWordCollator(PairCollator):
    """Captions with one word masked; `labels (batch,)` is its id in the vocabulary.

    Masked is the last word of one word piece that is no stop word: what the caption is about, more often than
    the first one.
    """

    def __call__(self, examples: Sequence[dict[str, Any]]) -> Batch:
        """Collate rows with `image`, `image_id` and `captions`."""
        examples, images = self.readable(examples, "image")
        masked = [self._mask(self._caption(example)) for example in examples]
        batch = self.encode(images, [text for text, _ in masked])
        mask_id: Any = self.processor.tokenizer.mask_token_id
        labels = torch.tensor([label for _, label in masked])
        return {**batch, "labels": labels, "mask_token_id": torch.full_like(labels, mask_id)}

    def _mask(self, caption: str) -> tuple[str, int]:
        tokenizer = self.processor.tokenizer
        encoded = tokenizer(
            caption, truncation=True, max_length=self.max_text_length, return_offsets_mapping=True
        )
        words = encoded.word_ids()
        for place in reversed(range(len(words))):
            start, end = encoded["offset_mapping"][place]
            word = caption[start:end]
            if words.count(words[place]) == 1 and word.isalpha() and word.lower() not in STOP_WORDS:
                return caption[:start] + tokenizer.mask_token + caption[end:], encoded["input_ids"][place]
        raise ValueError(
            f"caption {caption!r} has no word of one word piece to mask; drop such rows before the "
            "evaluation."
        )


class LabelledImageCollator:
    """Images with a class; there is no text (`text` is empty)."""

    def __init__(self, image_processor: Any) -> None:
        self.image_processor = image_processor

    def __call__(self, examples: Sequence[dict[str, Any]]) -> Batch:
        """Collate rows with `image` (PIL) and `label`."""
        images = [example["image"].convert("RGB") for example in examples]
        pixels: Tensor = self.image_processor(images, return_tensors="pt")["pixel_values"]
        mask = torch.ones(len(pixels), *pixels.shape[-2:], dtype=torch.long)
        labels = torch.tensor([int(example["label"]) for example in examples])
        return {"pixel_values": pixels, "pixel_mask": mask, "labels": labels, "text": [""] * len(labels)}


def _class_names(model: Any, task: str) -> list[str]:
    """The answers of a head, in the order of its logits."""
    id2label = getattr(getattr(model, "config", None), "id2label", None)
    if not id2label:
        raise ValueError(
            f"Task {task!r} reads the answers from model.config.id2label, which {type(model).__name__} has "
            "not; set it, or pass a Task of your own."
        )
    return [id2label[index] for index in sorted(id2label)]
