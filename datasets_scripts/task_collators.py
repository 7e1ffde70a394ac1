"""From rows of a task (pictures and sentences) to the tensors of a batch."""

import logging
import random
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import ProcessorMixin

from .images import ImageTooLargeError, UnreadableImageError, decode_image

logger = logging.getLogger(__name__)

Batch = dict[str, Any]


class PairCollator:
    """Clean batch of pairs: `pixel_values`, `pixel_mask`, `input_ids`, `attention_mask`, `text`.

    A pair whose image cannot be read, or is a mere strip, is replaced by another pair of the same batch, so
    that batches keep their size on every process; it is counted in `unreadable` and logged. More than
    `max_unreadable` stop the run.

    What is drawn depends on `seed`, `epoch` and the pairs alone, not on the global random state: a resumed
    run, and one on more processes, draws the same captions.

    Args:
        processor: ViLT processor (image processor and fast tokenizer).
        max_text_length: Word pieces kept, special tokens included.
        max_unreadable: Images that may be skipped before the run stops (per data-loader worker).
        draw_caption: Draw one of an image's captions in every epoch; else take the first.
        seed: Seed of the draws.
        transform: Random change of the decoded pictures, of training only, such as
            `image_transforms.randaugment`; its second argument names what is drawn.

    Attributes:
        epoch: Set by `GuardedTrainer` when an epoch begins.
        unreadable: Messages about the images that were skipped.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        max_text_length: int = 40,
        max_unreadable: int = 10,
        draw_caption: bool = True,
        seed: int = 0,
        transform: Callable[[Image.Image, str], Image.Image] | None = None,
    ) -> None:
        self.processor = processor
        self.max_text_length = max_text_length
        self.max_unreadable = max_unreadable
        self.draw_caption = draw_caption
        self.seed = seed
        self.transform = transform
        self.epoch = 0
        self.unreadable: list[str] = []

    def __call__(self, examples: Sequence[dict[str, Any]]) -> Batch:
        """Collate dataset rows with `image`, `image_id` and `captions`."""
        return self.encode_pairs(*self.readable(examples, "image"))

    def encode_pairs(self, examples: Sequence[dict[str, Any]], images: list[Any]) -> Batch:
        """Process rows and their decoded pictures, with one of each row's captions."""
        return self.encode(images, [self._caption(example) for example in examples])

    def encode(self, images: list[Any], texts: list[str]) -> Batch:
        """Process pictures and sentences; `text` keeps the raw sentences for the word attacks."""
        pixels = self.processor.image_processor(images, return_tensors="pt")
        tokens = self.processor.tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_text_length, return_tensors="pt"
        )
        return {
            "input_ids": tokens["input_ids"],
            "attention_mask": tokens["attention_mask"],
            "token_type_ids": torch.zeros_like(tokens["input_ids"]),
            "pixel_values": pixels["pixel_values"],
            "pixel_mask": pixels["pixel_mask"],
            "text": texts,
        }

    def readable(
        self, examples: Sequence[dict[str, Any]], *columns: str
    ) -> tuple[list[dict[str, Any]], list[Any]]:
        """Examples and their decoded images (column by column in one list), unreadable ones replaced."""
        good, images = [], []
        for example in examples:
            try:
                images.append([self._picture(example, column) for column in columns])
                good.append(example)
            except (UnreadableImageError, ImageTooLargeError) as error:
                self._skip(error)
        if not good:
            raise UnreadableImageError(
                f"No image of a batch of {len(examples)} can be read; the latest: {self.unreadable[-1]} "
                "Repair or rebuild the data."
            )
        rows = [index % len(good) for index in range(len(examples))]
        return [good[row] for row in rows], [image for row in rows for image in images[row]]

    def _picture(self, example: dict[str, Any], column: str) -> Image.Image:
        name = example.get("image_id", example.get("identifier", "?"))  # statements have two pictures
        picture = decode_image(example[column], name)
        self._check_shape(picture, name)
        return picture if self.transform is None else self.transform(picture, self._draws(name, column))

    def _check_shape(self, picture: Image.Image, name: str) -> None:
        """Refuse what ViLT's resize would leave without a single patch: strips of about 1 to 20."""
        processor = self.processor.image_processor
        longer = int(1333 / 800 * processor.size["shortest_edge"])  # ViLT's limit of the longer side
        if int(longer * min(picture.size) / max(picture.size) + 0.5) < processor.size_divisor:
            raise UnreadableImageError(
                f"image {name!r} has {picture.width} x {picture.height} pixels: with its longer side at the "
                f"{longer} that the processor allows, the shorter one is below a patch of "
                f"{processor.size_divisor}; crop the picture."
            )

    def _skip(self, error: Exception) -> None:
        self.unreadable.append(str(error))
        logger.warning("Skipped (%d so far, limit %d): %s", len(self.unreadable), self.max_unreadable, error)
        if len(self.unreadable) > self.max_unreadable:
            raise RuntimeError(
                f"{len(self.unreadable)} images cannot be read, max_unreadable is {self.max_unreadable}. "
                f"First: {self.unreadable[0]} Repair the data, or raise data.max_unreadable to go on without "
                "them."
            ) from error

    def _caption(self, example: dict[str, Any]) -> str:
        captions = [caption for caption in example["captions"] if caption and caption.strip()]
        if not captions:
            raise ValueError(
                f"Image {example.get('image_id', '?')!r} has no caption with words; drop such rows before "
                "training."
            )
        return self._random(example["image_id"]).choice(captions) if self.draw_caption else captions[0]

    def _draws(self, *names: str) -> str:
        return f"{self.seed} {self.epoch} {names}"

    def _random(self, *names: str) -> random.Random:
        return random.Random(self._draws(*names))  # a string's seed is the same everywhere


class QuestionCollator(PairCollator):
    """Questions about one image; `labels (batch, answers)` are soft scores over the fixed answers."""

    def __init__(self, processor: ProcessorMixin, answers: Sequence[str], **kwargs: Any) -> None:
        super().__init__(processor, **kwargs)
        self.answer_ids = {answer: index for index, answer in enumerate(answers)}

    def __call__(self, examples: Sequence[dict[str, Any]]) -> Batch:
        """Collate rows with `image`, `question`, `answers` and `scores`."""
        examples, images = self.readable(examples, "image")
        labels = torch.zeros(len(examples), len(self.answer_ids))
        for row, example in enumerate(examples):
            for answer, score in zip(example["answers"], example["scores"], strict=True):
                if answer in self.answer_ids:  # rare answers are outside the fixed list, as in VQA
                    labels[row, self.answer_ids[answer]] = score
        return {**self.encode(images, [example["question"] for example in examples]), "labels": labels}


class StatementCollator(PairCollator):
    """Statements about two images; `pixel_values (batch, 2, 3, H, W)`, `labels (batch,)`, 1 = true."""

    def __call__(self, examples: Sequence[dict[str, Any]]) -> Batch:
        """Collate rows with `left_image`, `right_image`, `statement` and `label`."""
        examples, images = self.readable(examples, "left_image", "right_image")
        batch = self.encode(images, [example["statement"] for example in examples])
        for name in ("pixel_values", "pixel_mask"):
            batch[name] = batch[name].unflatten(0, (len(examples), 2))  # (batch, 2, ...)
        return {**batch, "labels": torch.tensor([int(example["label"]) for example in examples])}


class EntailmentCollator(PairCollator):
    """Hypotheses about one image; `pixel_values (batch, 1, 3, H, W)`, as heads of `num_images` images take
    them; `labels (batch,)` index `schema.ENTAILMENT_LABELS`.
    """

    def __call__(self, examples: Sequence[dict[str, Any]]) -> Batch:
        """Collate rows with `image`, `hypothesis` and `label`."""
        examples, images = self.readable(examples, "image")
        batch = self.encode(images, [example["hypothesis"] for example in examples])
        for name in ("pixel_values", "pixel_mask"):
            batch[name] = batch[name].unsqueeze(1)  # (batch, 1, ...)
        return {**batch, "labels": torch.tensor([int(example["label"]) for example in examples])}


class MatchingCollator(PairCollator):
    """Pairs that are true or not; `labels (batch,)`, 1 = the text is the image's own."""

    def __call__(self, examples: Sequence[dict[str, Any]]) -> Batch:
        """Collate rows with `image`, `image_id`, `caption` and `label`."""
        examples, images = self.readable(examples, "image")
        batch = self.encode(images, [example["caption"] for example in examples])
        return {**batch, "labels": torch.tensor([int(example["label"]) for example in examples])}


class MaskedWordCollator(PairCollator):
    """Captions with one word masked; `labels (batch,)` is its id in the vocabulary, `mask_token_id (batch,)`
    that of the mask.

    Masked is the last word of one word piece that is not spared: what the caption is about, more often than
    the first one.

    Args:
        processor: See `PairCollator`.
        spared: Lower-case words that are never masked, such as stop words.
        kwargs: Of `PairCollator`.
    """

    def __init__(self, processor: ProcessorMixin, spared: Collection[str] = (), **kwargs: Any) -> None:
        super().__init__(processor, **kwargs)
        self.spared = frozenset(spared)

    def __call__(self, examples: Sequence[dict[str, Any]]) -> Batch:
        """Collate rows with `image`, `image_id` and `captions`."""
        examples, images = self.readable(examples, "image")
        masked = [self._masked(self._caption(example)) for example in examples]
        labels = torch.tensor([label for _, label in masked])
        mask_id = torch.full_like(labels, self.processor.tokenizer.mask_token_id)
        return {
            **self.encode(images, [text for text, _ in masked]),
            "labels": labels,
            "mask_token_id": mask_id,
        }

    def has_word_to_mask(self, caption: str) -> bool:
        """Whether a caption can be collated; rows whose caption cannot must be dropped."""
        return self._mask(caption) is not None

    def _masked(self, caption: str) -> tuple[str, int]:
        masked = self._mask(caption)
        if masked is None:
            raise ValueError(
                f"caption {caption!r} has no word of one word piece to mask; drop such rows before the "
                "evaluation (MaskedWordCollator.has_word_to_mask)."
            )
        return masked

    def _mask(self, caption: str) -> tuple[str, int] | None:
        """The caption without the word, and the word's id; None if there is no such word."""
        tokenizer = self.processor.tokenizer
        encoded = tokenizer(
            caption, truncation=True, max_length=self.max_text_length, return_offsets_mapping=True
        )
        ids, words = encoded["input_ids"], encoded.word_ids()
        for place in reversed(range(len(ids))):
            start, end = encoded["offset_mapping"][place]
            word = caption[start:end]
            one_piece = words.count(words[place]) == 1 and ids[place] != tokenizer.unk_token_id
            if one_piece and word.isalpha() and word.lower() not in self.spared:
                return caption[:start] + tokenizer.mask_token + caption[end:], ids[place]
        return None


class LabelledImageCollator:
    """Images with a class, `labels (batch,)`; there is no text (`text` is empty).

    Args:
        image_processor: Makes images of one size, as those of image classifiers do.
    """

    def __init__(self, image_processor: Any) -> None:
        self.image_processor = image_processor

    def __call__(self, examples: Sequence[dict[str, Any]]) -> Batch:
        """Collate rows with `image`, `image_id` and `label`."""
        images = [decode_image(example["image"], example["image_id"]) for example in examples]
        pixels = self.image_processor(images, return_tensors="pt")["pixel_values"]
        return {
            "pixel_values": pixels,
            "pixel_mask": torch.ones(len(pixels), *pixels.shape[-2:], dtype=torch.long),
            "labels": torch.tensor([int(example["label"]) for example in examples]),
            "text": [""] * len(examples),
        }
