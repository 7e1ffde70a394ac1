"""The clean views of MCL, the control of RMCL: ordinary augmentations in place of attacks (thesis 2.5.1).

The collator prepares the views, in the workers of the data loader; `RMCLTrainer` gets them from
`PreparedView` where it would run an attack, and is the same in all else.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import ProcessorMixin

from rmcl_hub.attacks.base import AttackResult
from rmcl_hub.attacks.base import Batch as AttackedBatch
from rmcl_hub.attacks.synonyms import SynonymTable
from rmcl_hub.attacks.text_encoding import encode_texts
from rmcl_hub.datasets_scripts.image_transforms import barlow_twins_view
from rmcl_hub.datasets_scripts.task_collators import Batch
from rmcl_hub.datasets_scripts.text_views import text_view

from .pretraining_collator import PretrainingCollator

_FIELDS = {
    "image": ("pixel_values", "pixel_mask"),
    "text": ("input_ids", "attention_mask", "token_type_ids", "text"),
}


class CleanViewCollator(PretrainingCollator):
    """Pairs plus another view of their pictures and captions: the same fields, with `view_` before the name.

    The view of a picture is `barlow_twins_view`, as large as the clean picture is for the encoder. That of a
    caption is its ranked paraphrase of this epoch if the row has a column `views` (one list per caption),
    else EDA's. Both depend on seed, epoch and image id alone.

    Args:
        processor: See `PairCollator`.
        synonyms: For EDA.
        views: Those of `RMCLArguments`: what no view needs is not prepared.
        objectives: ViLT's own that are kept beside; none by default.
        **kwargs: Of `PairCollator`.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        synonyms: SynonymTable,
        views: Sequence[str] = ("image", "text"),
        objectives: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(processor, objectives, **kwargs)
        self.synonyms = synonyms
        self.modalities = [name for name in _FIELDS if {name, "both"} & set(views)]

    def encode_pairs(self, examples: Sequence[dict[str, Any]], images: list[Any]) -> Batch:
        """Add the views to clean pairs."""
        batch, views = super().encode_pairs(examples, images), {}
        if "image" in self.modalities:
            views |= self._image_views(examples, images, batch)
        if "text" in self.modalities:
            views |= self._text_views(examples, batch)
        return {**batch, **{f"view_{name}": value for name, value in views.items()}}

    def _image_views(self, examples: Sequence[dict[str, Any]], images: list[Any], batch: Batch) -> Batch:
        mask = batch["pixel_mask"]
        sizes = torch.stack([mask[:, :, 0].sum(dim=1), mask[:, 0].sum(dim=1)], dim=1).tolist()
        views = [
            barlow_twins_view(image, (height, width), self._draws(example["image_id"], "view"))
            for example, image, (height, width) in zip(examples, images, sizes, strict=True)
        ]
        pixels = self.processor.image_processor(views, do_resize=False, return_tensors="pt")
        return {name: pixels[name] for name in _FIELDS["image"]}

    def _text_views(self, examples: Sequence[dict[str, Any]], batch: Batch) -> Batch:
        texts = [
            text_view(
                text,
                self._paraphrases(example, text),
                self.epoch,
                self._synonyms,
                self._random(example["image_id"], "view"),
            )
            for example, text in zip(examples, batch["text"], strict=True)
        ]
        return encode_texts(self.processor.tokenizer, texts, self.max_text_length, like=batch)

    def _paraphrases(self, example: dict[str, Any], text: str) -> Sequence[str] | None:
        views = example.get("views")
        if views is None:
            return None
        if len(views) != len(example["captions"]) or any(isinstance(view, str) for view in views):
            raise ValueError(
                f"Image {example['image_id']!r} has {len(example['captions'])} captions, but its column "
                f"views is {views!r:.80}; it must hold one list per caption, as text_views.rank_views makes."
            )
        return views[example["captions"].index(text)]

    def _synonyms(self, word: str) -> list[str]:
        return [synonym for synonym, _ in self.synonyms.candidates(word)]


class PreparedView:
    """Hands over the view of one modality that `CleanViewCollator` made; nothing is searched for.

    It looks at no loss, so `forwards` and `backwards` are 0 and both losses are NaN: unknown.

    Args:
        modality: `"image"` or `"text"`.
    """

    def __init__(self, modality: str) -> None:
        self.fields = _FIELDS[modality]

    def __call__(self, batch: AttackedBatch, objective: Any = None) -> AttackResult:
        """The batch with the modality's fields replaced.

        Raises:
            KeyError: If the batch has no views.
        """
        if missing := [name for name in self.fields if name in batch and f"view_{name}" not in batch]:
            raise KeyError(f"The batch has no view of {', '.join(missing)}; collate with CleanViewCollator.")
        view = {name: batch[f"view_{name}"] for name in self.fields if name in batch}
        unknown = torch.full((len(batch["pixel_values"]),), torch.nan)
        return AttackResult({**batch, **view}, unknown, unknown, forwards=0, backwards=0)
