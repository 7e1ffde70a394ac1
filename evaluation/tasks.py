"""The tasks that models are attacked on: how rows become labelled batches, and which columns name them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rmcl_hub.attacks.synonyms import STOP_WORDS
from rmcl_hub.datasets_scripts.task_collators import (
    EntailmentCollator,
    LabelledImageCollator,
    MaskedWordCollator,
    MatchingCollator,
    QuestionCollator,
    StatementCollator,
)

from .attack_loop import (
    CAPTION_COLUMNS,
    ENTAILMENT_COLUMNS,
    NLVR2_COLUMNS,
    VQA_COLUMNS,
    Collate,
    Columns,
)
from .victims import Victim


@dataclass(frozen=True)
class Task:
    """A labelled task.

    Attributes:
        name: `"vqa"`, `"nlvr2"`, `"snli_ve"`, `"matching"`, `"mlm"`, `"image-classification"`, or a name of
            your own.
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


def build_task(name: str, model: Any, processor: Any, max_text_length: int | None = None) -> Task:
    """One of the built-in tasks for a model; texts are cut where its positions end, or at `max_text_length`.

    Rows of `"vqa"` have `image`, `question_id`, `question`, `question_type`, `concept`, `answers`, `scores`;
    of `"nlvr2"`: `left_image`, `right_image`, `identifier`, `statement`, `statement_type`, `concept`,
    `label`; of `"snli_ve"`: `image`, `pair_id`, `hypothesis`, `concept`, `label`; of `"matching"`: `image`,
    `image_id`, `concept`, `caption`, `label` (see `matching_pairs`); of `"mlm"`: `image`, `image_id`,
    `concept`, `captions` (the first one is used); of `"image-classification"`: `image`, `image_id`, `label`.

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
    # ViLT's 40 where the configuration does not say
    config = getattr(getattr(model, "module", model), "config", None)  # a victim's is its module's
    positions: int = getattr(config, "max_position_embeddings", 40)
    return _BUILDERS[name](model, processor, positions if max_text_length is None else max_text_length)


def _vqa(model: Any, processor: Any, max_text_length: int) -> Task:
    answers = _class_names(model, "vqa")
    collator = QuestionCollator(processor, answers, max_text_length=max_text_length, max_unreadable=0)
    return Task("vqa", collator, VQA_COLUMNS, answers, processor.tokenizer, max_text_length)


def _nlvr2(model: Any, processor: Any, max_text_length: int) -> Task:
    collator = StatementCollator(processor, max_text_length=max_text_length, max_unreadable=0)
    return Task("nlvr2", collator, NLVR2_COLUMNS, ("false", "true"), processor.tokenizer, max_text_length)


def _snli_ve(model: Any, processor: Any, max_text_length: int) -> Task:
    from rmcl_hub.datasets_scripts.schema import ENTAILMENT_LABELS  # imports datasets, which is slow

    collator = EntailmentCollator(processor, max_text_length=max_text_length, max_unreadable=0)
    return Task(
        "snli_ve", collator, ENTAILMENT_COLUMNS, ENTAILMENT_LABELS, processor.tokenizer, max_text_length
    )


def _matching(model: Any, processor: Any, max_text_length: int) -> Task:
    if hasattr(model, "rank_output"):
        raise ValueError(
            f"{type(model).__name__} gives a pair one score, to rank it, and says of none whether it is "
            "true; use evaluate_robust_retrieval, or the two matching logits of RMCLViltForPreTraining."
        )
    collator = MatchingCollator(processor, max_text_length=max_text_length, max_unreadable=0)
    return Task(
        "matching", collator, CAPTION_COLUMNS, ("no pair", "pair"), processor.tokenizer, max_text_length
    )


def _masked_words(model: Any, processor: Any, max_text_length: int) -> Task:
    collator = MaskedWordCollator(
        processor, STOP_WORDS, max_text_length=max_text_length, max_unreadable=0, draw_caption=False
    )
    return Task("mlm", collator, CAPTION_COLUMNS, (), processor.tokenizer, max_text_length)


def _image_classification(model: Any, processor: Any, max_text_length: int) -> Task:
    columns = Columns(id="image_id", cluster="image_id", question_type="")
    image_processor = getattr(processor, "image_processor", processor)
    return Task("image-classification", LabelledImageCollator(image_processor), columns)


_BUILDERS = {
    "vqa": _vqa,
    "nlvr2": _nlvr2,
    "snli_ve": _snli_ve,
    "matching": _matching,
    "mlm": _masked_words,
    "image-classification": _image_classification,
}
TASKS = tuple(_BUILDERS)


def matching_pairs(dataset: Any, seed: int = 0) -> Any:
    """True and false pairs from captioned images: one row per image, every second one with the first caption
    of an image of another concept.

    No false pair is one of the data's own: not even up to case and spacing does an image get a caption that
    it has, nor one of an image of its concept. The same images and seed give the same pairs.

    Args:
        dataset: Map-style `datasets.Dataset` with `image`, `image_id`, `concept` and `captions`.
        seed: Of the permutation that chooses the images with false captions, and the captions.

    Returns:
        The data set with the columns `caption` and `label`, 1 = the image's own; half of the labels, rounded
        up, are 1.

    Raises:
        ValueError: If there are fewer than two images, or no other image has a caption for one.
    """
    if len(dataset) < 2:
        raise ValueError(f"false pairs need at least two images, got {len(dataset)}.")
    captions, concepts = dataset["captions"], dataset["concept"]
    own = [{_plain(caption) for caption in texts} for texts in captions]
    order = np.random.default_rng(seed).permutation(len(captions)).tolist()
    texts, labels = [texts[0] for texts in captions], [1] * len(captions)
    for place in range(0, len(order) - 1, 2):
        row = order[place]
        others = (order[(place + step) % len(order)] for step in range(1, len(order)))
        fitting = (
            captions[other][0]
            for other in others
            if concepts[other] != concepts[row] and _plain(captions[other][0]) not in own[row]
        )
        false = next(fitting, None)
        if false is None:
            raise ValueError(
                f"every caption fits image {dataset[row]['image_id']!r}, so it has no false one; pairs need "
                "images of at least two concepts."
            )
        texts[row], labels[row] = false, 0
    return dataset.add_column("caption", texts).add_column("label", labels)


def _plain(caption: str) -> str:
    return " ".join(caption.lower().split())


def _class_names(model: Any, task: str) -> list[str]:
    """The answers of a head, in the order of its logits."""
    head = model.module if isinstance(model, Victim) else model
    id2label = getattr(getattr(head, "config", None), "id2label", None)
    if not id2label:
        raise ValueError(
            f"Task {task!r} reads the answers from model.config.id2label, which {type(head).__name__} has "
            "not; set it, or pass a Task of your own."
        )
    names = [id2label[index] for index in sorted(id2label)]
    if all(name == f"LABEL_{index}" for index, name in enumerate(names)):
        raise ValueError(
            f"Task {task!r} reads the answers from model.config.id2label, but the {len(names)} logits of "
            f"{type(head).__name__} have no names (LABEL_0, ...), so no answer could be right; set "
            "config.id2label to the answers that the head was trained with."
        )
    return names
